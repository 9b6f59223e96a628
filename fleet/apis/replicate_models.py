"""The three models that are answered for, and which of them an old client means by a version."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field, ValidationError

from finetuner.requests import DEFAULT_GUIDANCE, DEFAULT_SAMPLING_STEPS
from fleet.apis.inputs import DrawingInput, Inputs, TrainingInput
from fleet.apis.problems import Problem
from fleet.records import Kind

CREATED = datetime(2025, 1, 1, tzinfo=UTC)  # clients want a time of every version
COG_VERSION = "0.23.1"  # whose document of inputs these versions' is like


class FluxProFinetuned(DrawingInput):
    aspect_ratio: Literal["1:1", "16:9", "3:2", "4:3", "5:4", "4:5", "3:4", "2:3", "9:16", "custom"] = "1:1"
    width: int | None = Field(None, ge=256, le=1440, description="In pixels, rounded to 32, with aspect_ratio custom.")
    height: int | None = Field(None, ge=256, le=1440, description="In pixels, rounded to 32, with aspect_ratio custom.")
    prompt_upsampling: bool = False
    steps: int = Field(DEFAULT_SAMPLING_STEPS, ge=1, le=50)
    guidance: float = Field(DEFAULT_GUIDANCE, ge=2, le=5)


class FluxUltraFinetuned(DrawingInput):
    image_prompt_strength: float = Field(0.1, ge=0, le=1)
    raw: bool = False
    aspect_ratio: Literal["21:9", "16:9", "3:2", "4:3", "5:4", "1:1", "4:5", "3:4", "2:3", "9:16", "9:21"] = "1:1"


@dataclass(frozen=True)
class Model:
    name: str
    kind: Kind
    inputs: type[Inputs]
    description: str

    @property
    def id(self) -> str:
        return f"black-forest-labs/{self.name}"

    @property
    def version(self) -> str:
        """An id in the form that clients know: 64 hex digits."""
        return hashlib.sha256(self.id.encode()).hexdigest()

    def described(self, base: str) -> dict[str, Any]:
        owner, name = self.id.split("/")
        return {
            "url": f"{base}/v1/models/{self.id}",
            "owner": owner,
            "name": name,
            "description": self.description,
            "visibility": "private",
            "github_url": None,
            "paper_url": None,
            "license_url": None,
            "run_count": 0,
            "cover_image_url": None,
            "default_example": None,
            "latest_version": self.version_described(),
        }

    def version_described(self, version: str | None = None) -> dict[str, Any]:
        schema = self.inputs.model_json_schema()
        schema["title"] = "Input"
        for order, field in enumerate(schema["properties"].values()):
            field["x-order"] = order
        output = {"type": "string", "title": "Output"} | ({"format": "uri"} if self.kind is Kind.DRAWING else {})
        return {
            "id": version or self.version,
            "created_at": CREATED.isoformat(),
            "cog_version": COG_VERSION,
            "openapi_schema": {
                "openapi": "3.0.2",
                "info": {"title": "Cog", "version": COG_VERSION},
                "components": {"schemas": {"Input": schema, "Output": output}},
            },
        }


MODELS = {
    model.id: model
    for model in (
        Model("flux-pro-trainer", Kind.TRAINING, TrainingInput, "Fine-tunes the base on an archive of images."),
        Model("flux-pro-finetuned", Kind.DRAWING, FluxProFinetuned, "Draws with a finetune, at any size."),
        Model("flux-1.1-pro-ultra-finetuned", Kind.DRAWING, FluxUltraFinetuned, "Draws with a finetune."),
    )
}
TRAINER, PRO, ULTRA = MODELS.values()


def known(owner: str, name: str) -> Model:
    """Raises `Problem` 404 where there is none."""
    model = MODELS.get(f"{owner}/{name}")
    if model is None:
        raise Problem(404, f"There is no model {owner}/{name} here. There are {', '.join(MODELS)}.")
    return model


def model_of(version: str, sent: dict[str, Any]) -> tuple[Model, str]:
    """The model that a request by version is for, and the version as it was sent.

    Old clients carry ids that nobody here knows, and a request says no more than that: so its inputs tell. A request that both
    models take means the same to both, but for the inputs that only one has.
    """
    name, _, number = version.partition(":")
    if "/" in version:
        return known(*name.split("/", 1)), number
    for model in MODELS.values():
        if version == model.version:
            return model, version
    if "input_images" in sent or not {"prompt", "finetune_id"} & sent.keys():
        return TRAINER, version
    ultra = FluxUltraFinetuned.model_fields.keys() - FluxProFinetuned.model_fields.keys()
    if ultra & sent.keys() or (_takes(ULTRA, sent) and not _takes(PRO, sent)):
        return ULTRA, version
    return PRO, version


def _takes(model: Model, sent: dict[str, Any]) -> bool:
    try:
        model.inputs.model_validate(sent)
    except ValidationError:
        return False
    return True
