"""The inputs of Black Forest Labs' API, with its own names, bounds and defaults, and what they are in the library's words."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from pydantic import Field, field_validator

from finetuner.requests import ASPECT_RATIOS, CUSTOM, DEFAULT_SAMPLING_STEPS
from fleet.apis.inputs import Inputs

GUIDANCE = 2.5  # what this API leaves guidance at
WIDEST = 21 / 9
MEGAPIXEL, LONGEST = 1024 * 1024, 1440  # the area of a shape that has no name here, in pixels, and its longer side at most


class BflInputs(Inputs):
    """Names that are no inputs are ignored, since clients send some: the job's log says which."""

    webhook_url: str | None = None
    webhook_secret: str | None = None


class FinetuneInputs(BflInputs):
    file_data: str = Field(description="A zip of the training images, in base64.")
    finetune_comment: str
    mode: Literal["general", "character", "style", "product"]
    trigger_word: str = "TOK"
    iterations: int = Field(300, ge=100, le=1000)
    learning_rate: float | None = Field(None, ge=1e-6, le=5e-3)
    captioning: bool = True
    priority: Literal["speed", "quality", "high_res_only"] = "quality"
    finetune_type: Literal["lora", "full"] = "full"
    lora_rank: int = Field(32, json_schema_extra={"enum": [16, 32]})

    def words(self) -> dict[str, Any]:
        return {
            "training_steps": self.iterations,
            "trigger_word": self.trigger_word,
            "mode": self.mode,
            "learning_rate": self.learning_rate,
            "captioning": "automatic" if self.captioning else "captioning-disabled",
            "priority": self.priority,
            "finetune_type": self.finetune_type,
            "lora_rank": self.lora_rank,
        }


class DrawingInputs(BflInputs):
    prompt: str = ""
    finetune_id: str
    image_prompt: str | None = Field(None, description="A picture in base64.")
    prompt_upsampling: bool = False
    seed: int | None = None
    safety_tolerance: int = Field(2, ge=0, le=6)
    output_format: Literal["jpeg", "png"] = "jpeg"

    def words(self) -> dict[str, Any]:
        words = super().words()
        del words["finetune_id"]
        words = {name: value for name, value in words.items() if not name.startswith("webhook_")}
        return words | {"finetune_id": self.finetune_id, "output_format": {"jpeg": "jpg"}.get(self.output_format, "png")}


class ProInputs(DrawingInputs):
    """/v1/flux-pro-finetuned"""

    finetune_strength: float = Field(1.1, ge=0, le=2)
    width: int = Field(1024, ge=256, le=1440, multiple_of=32)
    height: int = Field(768, ge=256, le=1440, multiple_of=32)
    steps: int = Field(DEFAULT_SAMPLING_STEPS, ge=1, le=50)
    guidance: float | None = Field(
        None, ge=1.5, le=5, description=f"{GUIDANCE} where it is left out, or the base's own where that is not FLUX.1's."
    )

    def words(self) -> dict[str, Any]:
        return super().words() | {"aspect_ratio": CUSTOM}


class UltraInputs(DrawingInputs):
    """/v1/flux-pro-1.1-ultra-finetuned"""

    finetune_strength: float = Field(1.2, ge=0, le=2)
    image_prompt_strength: float = Field(0.1, ge=0, le=1)
    aspect_ratio: str = Field("16:9", description="width:height, from 21:9 to 9:21")
    raw: bool = False

    @field_validator("aspect_ratio")
    @classmethod
    def is_between_the_widest_and_the_tallest(cls, ratio: str) -> str:
        asked = re.fullmatch(r"([1-9]\d{0,4}):([1-9]\d{0,4})", ratio.strip())
        if not asked or not 1 / WIDEST <= int(asked[1]) / int(asked[2]) <= WIDEST:
            raise ValueError("is not width:height, from 21:9 to 9:21, such as 16:9")
        return ratio.strip()

    def words(self) -> dict[str, Any]:
        return super().words() | shape_of(self.aspect_ratio)


class KleinInputs(DrawingInputs):
    """The endpoint that has the base's own name, such as /v1/flux-2-klein-4b-finetuned."""

    prompt: str
    finetune_strength: float = Field(1, ge=0, le=2)
    input_image: str | None = Field(None, description="A picture in base64.")
    width: int | None = Field(None, ge=256, le=1440)
    height: int | None = Field(None, ge=256, le=1440)

    def words(self) -> dict[str, Any]:
        words = super().words()
        if (picture := words.pop("input_image", None)) is not None:
            words["image_prompt"] = picture
        return words | ({"aspect_ratio": CUSTOM} if self.width and self.height else {})


def shape_of(ratio: str) -> dict[str, Any]:
    """A documented shape by its name; any other as the width and height of about a megapixel, in whole 32 pixels."""
    if ratio in ASPECT_RATIOS:
        return {"aspect_ratio": ratio}
    wide, high = map(int, ratio.split(":"))
    for name, (width, height) in ASPECT_RATIOS.items():
        if wide * height == high * width:
            return {"aspect_ratio": name}
    area = min(MEGAPIXEL, LONGEST**2 * min(wide / high, high / wide))
    sides = math.sqrt(area * wide / high), math.sqrt(area * high / wide)
    width, height = (max(256, min(LONGEST, round(side / 32) * 32)) for side in sides)
    return {"aspect_ratio": CUSTOM, "width": width, "height": height}
