"""How to draw with a finetune, as code that runs."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from finetuner.bases import Base, Size
from finetuner.loras import WEIGHTS_NAME

FINETUNE_ID, FINETUNE_FOLDER = "FINETUNE_ID", "FINETUNE_FOLDER"  # not known yet: a finetune gets its id when all of it is there


@dataclass(frozen=True)
class Call:
    title: str
    language: str
    code: str


def usage_examples(base: Base, prompt: str, size: Size) -> list[Call]:
    """Ways to draw ``prompt``, which may hold any character but line ends."""
    return [
        Call("Over HTTP", "sh", _curl(prompt)),
        Call("In Python, with diffusers alone", "python", _diffusers(base, prompt, size)),
        Call("With the container's predictor", "sh", _predictor(prompt)),
    ]


def _curl(prompt: str) -> str:
    body = {"input": {"prompt": prompt, "finetune_id": FINETUNE_ID, "finetune_strength": 1}}
    return f"""\
curl -s localhost:5000/predictions -H 'Content-Type: application/json' -d @- <<'END'
{json.dumps(body, ensure_ascii=False)}
END"""


def _diffusers(base: Base, prompt: str, size: Size) -> str:
    pipeline_class = base.family.PIPELINE.__name__
    return f"""\
import torch
from diffusers import {pipeline_class}

device = "cuda" if torch.cuda.is_available() else "cpu"
pipeline = {pipeline_class}.from_pretrained({_string(base.source)}, dtype=torch.bfloat16).to(device)
pipeline.load_lora_weights({_string(FINETUNE_FOLDER)}, weight_name={_string(WEIGHTS_NAME)}, adapter_name="finetune")
pipeline.set_adapters("finetune", 1.0)  # the strength
image = pipeline(
    prompt={_string(prompt)},
    width={size[0]},
    height={size[1]},
    guidance_scale={base.guidance_scale},
    num_inference_steps={base.sampling_steps},
    max_sequence_length={base.max_sequence_length},
    generator=torch.Generator("cpu").manual_seed(0),
).images[0]
image.save("image.png")"""


def _predictor(prompt: str) -> str:
    return f"cog predict -i {shlex.quote(f'prompt={prompt}')} -i finetune_id={FINETUNE_ID} -i finetune_strength=1"


def _string(text: str) -> str:
    """A Python literal, in double quotes."""
    return json.dumps(text, ensure_ascii=False)
