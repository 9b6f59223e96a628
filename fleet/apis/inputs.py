"""What every API's inputs have in common, and the documented inputs of a training and of a prediction."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from finetuner.other_names import sentences
from finetuner.requests import ASPECT_RATIOS, CUSTOM, DEFAULT_GUIDANCE, DEFAULT_SAMPLING_STEPS, LEARNING_RATES, STEPS
from fleet.apis.problems import Problem, refused

SINGLE = ("num_outputs", "num_images")  # one is what a request gives; some clients say so


class Inputs(BaseModel):
    """Null means left out. Names that are not inputs are kept apart, in ``model_extra``."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def null_means_left_out(cls, sent: Any) -> Any:
        return {name: value for name, value in sent.items() if value is not None} if isinstance(sent, dict) else sent

    def words(self) -> dict[str, Any]:
        """What was sent, and the defaults of the rest, in the words of `finetuner.requests`."""
        return {name: getattr(self, name) for name in type(self).model_fields if getattr(self, name) is not None}

    def refuse_other_names(self, within: tuple[str, ...]) -> None:
        """Raise `Problem` for what other tools call an input of ours: it would be lost in silence."""
        said = sentences(list(type(self).model_fields))
        for name in self.unknown():
            if name in said:
                raise refused(name, said[name], within)

    def unknown(self) -> dict[str, Any]:
        return {name: value for name, value in (self.model_extra or {}).items() if not (name in SINGLE and value == 1)}

    def note(self) -> str:
        """A line for the job's log, of the names that change nothing."""
        unknown = ", ".join(sorted(name[:40] for name in self.unknown())[:20])
        return f"Not inputs here, so that they change nothing: {unknown}\n" if unknown else ""


class TrainingInput(Inputs):
    """The nine documented inputs of a training."""

    input_images: str = Field(description="The archive of training images: an address, or a data: URI.")
    training_steps: int = Field(300, ge=STEPS[0], le=STEPS[1])
    trigger_word: str = "TOK"
    mode: Literal["general", "character", "style", "product"] = "general"
    learning_rate: float | None = Field(None, ge=LEARNING_RATES[0], le=LEARNING_RATES[1])
    captioning: Literal["automatic", "captioning-enabled", "captioning-disabled"] = "automatic"
    priority: Literal["speed", "quality", "high_res_only"] = "quality"
    finetune_type: Literal["lora", "full"] = "full"
    lora_rank: int = Field(32, json_schema_extra={"enum": [16, 32]})


class DrawingInput(Inputs):
    """What all of Replicate's models that draw, and Cog's server, take."""

    prompt: str
    finetune_id: str
    finetune_strength: float = Field(1, ge=0, le=2)
    image_prompt: str | None = Field(None, description="A picture: an address, or a data: URI.")
    safety_tolerance: int = Field(2, ge=1, le=6)
    seed: int | None = None
    output_format: Literal["jpg", "png"] = "jpg"


class PredictionInput(DrawingInput):
    """The documented inputs of a prediction: what is valid for either of the two hosted models is valid here."""

    image_prompt_strength: float = Field(0.1, ge=0, le=1)
    aspect_ratio: str = Field("1:1", json_schema_extra={"enum": [CUSTOM, *ASPECT_RATIOS]})
    width: int | None = Field(None, ge=256, le=1440, description="In pixels, rounded to 32, with aspect_ratio custom.")
    height: int | None = Field(None, ge=256, le=1440, description="In pixels, rounded to 32, with aspect_ratio custom.")
    prompt_upsampling: bool = False
    steps: int = Field(DEFAULT_SAMPLING_STEPS, ge=1, le=50)
    guidance: float = Field(DEFAULT_GUIDANCE, ge=2, le=5)
    raw: bool = False


def problem_of(error: ValueError, within: tuple[str, ...] = ()) -> Problem:
    """422 of a sentence of the library, which begins with its field."""
    field, colon, _ = str(error).partition(":")
    return refused(field.partition(",")[0] if colon else "input", str(error), within)
