"""What may be asked for: the documented inputs of a training and of a prediction, checked."""

from __future__ import annotations

import logging
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger(__name__)

MODES = ("general", "character", "style", "product")
PRIORITIES = ("speed", "quality", "high_res_only")
CAPTIONINGS = ("automatic", "captioning-enabled", "captioning-disabled")
FINETUNE_TYPES = ("lora", "full")
RANKS = (16, 32)
LONGEST_WORD = 64  # characters: 20 to 60 tokens, and the smaller text encoder of FLUX.1 reads 77 of a prompt
QUOTATION_MARKS = {
    *('""', "''", "``", "\u201c\u201d", "\u201e\u201c", "\u2018\u2019", "\u00ab\u00bb", "\u300c\u300d", "\u300e\u300f")
}
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn")  # Unicode's categories
JOINERS = "\u200c\u200d"  # of letters, in Persian and in emoji
STEPS = (1, 6000)
LEARNING_RATES = (1e-6, 5e-3)
DOCUMENTED_LEARNING_RATE = {"lora": 1e-4, "full": 1e-5}  # what an unset learning_rate means, by finetune_type

ASPECT_RATIOS = {  # width to height
    "1:1": (1, 1), "21:9": (21, 9), "16:9": (16, 9), "3:2": (3, 2), "4:3": (4, 3), "5:4": (5, 4),
    "4:5": (4, 5), "3:4": (3, 4), "2:3": (2, 3), "9:16": (9, 16), "9:21": (9, 21),
}  # fmt: skip
CUSTOM = "custom"  # an aspect_ratio: width and height decide
DEFAULT_GUIDANCE, DEFAULT_SAMPLING_STEPS = 3.0, 40
DEFAULT_IMAGE_PROMPT_STRENGTH = 0.1


@dataclass(frozen=True)
class FinetuneRequest:
    """The nine documented training inputs.

    Raises:
        ValueError: an input is outside what is documented; the sentence names the field and what it takes.
    """

    input_images: Path
    training_steps: int = 300
    trigger_word: str = "TOK"
    mode: str = "general"
    learning_rate: float | None = None
    captioning: str = "automatic"
    priority: str = "quality"
    finetune_type: str = "full"
    lora_rank: int = 32

    def __post_init__(self) -> None:
        for name, choices in (
            ("mode", MODES),
            ("priority", PRIORITIES),
            ("captioning", CAPTIONINGS),
            ("finetune_type", FINETUNE_TYPES),
            ("lora_rank", RANKS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(map(str, choices))}.")
        if not STEPS[0] <= self.training_steps <= STEPS[1]:
            raise ValueError(f"training_steps: {self.training_steps} is not between {STEPS[0]} and {STEPS[1]}.")
        if self.learning_rate is not None and not LEARNING_RATES[0] <= self.learning_rate <= LEARNING_RATES[1]:
            raise ValueError(
                f"learning_rate: {self.learning_rate:g} is not between {LEARNING_RATES[0]:g} and {LEARNING_RATES[1]:g}."
            )
        object.__setattr__(self, "trigger_word", check_trigger_word(self.trigger_word))

    def inputs(self) -> dict:
        """The inputs as JSON values; the archive by its name alone (its place is temporary)."""
        return asdict(self) | {"input_images": self.input_images.name}


def check_trigger_word(word: str) -> str:
    """The word without the white space and quotation marks around it.

    Raises:
        ValueError: it is not one word, is too long, or has characters that nobody can see or type.
    """
    trimmed = word
    while (bare := _without_surroundings(trimmed)) != trimmed:
        trimmed = bare
    if not trimmed:
        raise ValueError("trigger_word: is empty. Give a made-up word, for example TOK: prompts name the concept by it.")
    if len(trimmed.split()) > 1:
        raise ValueError(f"trigger_word: {trimmed[:LONGEST_WORD]!r} is more than one word. Join it, for example with '_'.")
    if len(trimmed) > LONGEST_WORD:
        raise ValueError(
            f"trigger_word: has {len(trimmed)} characters, and at most {LONGEST_WORD} are taken, for it is a part of every"
            " caption and prompt. Give a short made-up word, for example TOK."
        )
    if unseen := [c for c in trimmed if unicodedata.category(c) in UNSEEN and c not in JOINERS]:
        raise ValueError(
            f"trigger_word: {trimmed!r} has a character that cannot be seen ({', '.join(f'U+{ord(c):04X}' for c in unseen)})."
            " Type the word anew, in letters and digits."
        )
    if trimmed != word:
        log.info("trigger_word: %r is taken as %r", word, trimmed)
    return trimmed


def _without_surroundings(word: str) -> str:
    word = word.strip().strip("\ufeff\u200b\u2060")
    return word[1:-1] if word[:1] + word[-1:] in QUOTATION_MARKS and len(word) > 1 else word


@dataclass(frozen=True)
class ImageRequest:
    """The documented prediction inputs. Bounds are the server's schema's; what it cannot express is checked here.

    Raises:
        ValueError: the prompt is empty, the size is not said, the seed is too large, or an input does not work here yet; the
            sentence names the field and the remedy.
    """

    prompt: str
    finetune_id: str
    finetune_strength: float = 1.0
    image_prompt: Path | None = None
    image_prompt_strength: float = DEFAULT_IMAGE_PROMPT_STRENGTH
    aspect_ratio: str = "1:1"
    width: int | None = None
    height: int | None = None
    prompt_upsampling: bool = False
    steps: int = DEFAULT_SAMPLING_STEPS
    guidance: float = DEFAULT_GUIDANCE
    raw: bool = False
    safety_tolerance: int = 2  # 0 is the strictest; the schema, as the old one, begins at 1
    seed: int | None = None
    output_format: str = "jpg"

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("prompt: is empty. Say what to draw, with the finetune's trigger word.")
        sized = self.width is not None and self.height is not None
        if self.aspect_ratio == CUSTOM and not sized:
            raise ValueError("width, height: aspect_ratio 'custom' needs both. Send both, or choose another aspect_ratio.")
        if self.aspect_ratio not in (CUSTOM, *ASPECT_RATIOS):
            raise ValueError(f"aspect_ratio: {self.aspect_ratio!r} is not one of {', '.join([*ASPECT_RATIOS, CUSTOM])}.")
        if self.aspect_ratio != CUSTOM and (self.width or self.height):
            log.warning("width and height count with aspect_ratio 'custom' only; this image is %s", self.aspect_ratio)
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"seed: {self.seed} does not fit into 64 bits. Send one from {-(2**63)} to {2**64 - 1}, or none.")
        if self.image_prompt is None and self.image_prompt_strength != DEFAULT_IMAGE_PROMPT_STRENGTH:
            log.warning("image_prompt_strength: %g changes nothing without an image_prompt", self.image_prompt_strength)
