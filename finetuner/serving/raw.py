"""The raw look: a picture less processed, more like a candid photograph.

No open model has the mode that the hosted one had, and what that did was never published. This is what people do instead: less
guidance, whose excess is what makes pictures smooth and glossy, and words that candid photographs are captioned with.
"""

from __future__ import annotations

import logging

from finetuner.bases import Base

log = logging.getLogger(__name__)

PHOTOGRAPHS = "photographs"  # as base.json names what a base draws
# FLUX.1-dev's default of 3 becomes 2, FLUX.2-klein-base's 4 becomes 2.7. Far below, at 1, FLUX.1-dev turns grey and painterly.
RAW_GUIDANCE = 2 / 3
# Behind the prompt, so that what was asked for stays first.
RAW_WORDS = "candid photograph, natural light, unretouched, true colors, slight film grain"


def require_raw(base: Base) -> None:
    """Raise ValueError with the remedy where the base does not draw photographs: nothing in it was called candid."""
    if base.pictures != PHOTOGRAPHS:
        raise ValueError(f"raw: makes photographs look candid, and {base.name} draws {base.pictures}. Send false.")


def raw_look(prompt: str, guidance: float | None) -> tuple[str, float | None]:
    """What is drawn in place of a prompt and a guidance, None where the base takes none: then the words do it alone."""
    drawn = f"{prompt.rstrip().rstrip(',.')}, {RAW_WORDS}"
    if guidance is None:
        log.info("raw: the prompt gets ', %s'; this base takes no guidance that could be lowered", RAW_WORDS)
        return drawn, None
    log.info("raw: the prompt gets ', %s', and guidance %g becomes %.4g", RAW_WORDS, guidance, guidance * RAW_GUIDANCE)
    return drawn, guidance * RAW_GUIDANCE
