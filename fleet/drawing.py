"""One `Generator` per replica, as a deployment of Ray Serve: one picture at a time each."""

from __future__ import annotations

import functools
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from finetuner.generate import Generator
from finetuner.requests import ImageRequest
from finetuner.serving import FlaggedError
from finetuner.store import StoreError
from fleet.interruptible import interruptible
from fleet.requests import from_json

log = logging.getLogger(__name__)


class Drawing:
    """What Serve makes a replica of."""

    def __init__(self) -> None:
        logging.getLogger("finetuner").setLevel(logging.INFO)
        self.generator = Generator.open()
        self.pencil = ThreadPoolExecutor(1)  # apart from the event loop, which answers health checks meanwhile

    async def draw(self, inputs: dict, folder: str) -> dict:
        """The picture's file in ``folder``, which is emptied first, with its seed and metrics; or ``error``, a sentence."""
        return await interruptible(functools.partial(draw, self.generator, inputs, Path(folder)), self.pencil)


def draw(generator: Generator, inputs: dict, folder: Path) -> dict:
    """One picture, as `Drawing.draw` gives it."""
    shutil.rmtree(folder, ignore_errors=True)  # of a try whose replica was lost
    folder.mkdir(parents=True)
    try:
        made = generator.generate(from_json(ImageRequest, inputs), folder)
    except FlaggedError as error:
        return {"error": str(error), "moderated": True}
    except (ValueError, FloatingPointError, StoreError) as error:
        return {"error": str(error)}
    metrics = {f"{phase}_seconds": seconds for phase, seconds in made.seconds.items()}
    metrics |= {"adapter_cache_hit": made.adapter_hit, "prompt_cache_hit": made.prompt_hit}
    return {"file": str(made.path), "seed": made.seed, "metrics": metrics}
