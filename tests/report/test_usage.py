import json
import os
import shlex
import subprocess

import pytest
import torch
from PIL import Image

from benchmarks.adapters import random_adapter
from finetuner.loras import save_lora
from finetuner.report.usage import FINETUNE_FOLDER, FINETUNE_ID, usage_examples

PROMPT = """it's a "TO$(exit 1)K", `id` \\ 'END' % é 🦊"""


@pytest.fixture
def codes(base) -> dict[str, str]:
    return {call.title.split()[0]: call.code for call in usage_examples(base, PROMPT, (64, 64))}


def run(code: str, tmp_path, program: str, does: str) -> str:
    """What a shell hands to ``program``, by having it do this."""
    (tmp_path / program).write_text(f"#!/bin/sh\n{does}\n")
    (tmp_path / program).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return subprocess.run(["sh", "-c", code], env=environment, capture_output=True, text=True, check=True).stdout


def test_curl_sends_the_prompt_as_it_is(codes, tmp_path):
    sent = json.loads(run(codes["Over"], tmp_path, "curl", "cat"))
    assert sent == {"input": {"prompt": PROMPT, "finetune_id": FINETUNE_ID, "finetune_strength": 1}}


def test_the_predictor_gets_the_prompt_as_it_is(codes, tmp_path):
    arguments = run(codes["With"], tmp_path, "cog", r'printf "%s\n" "$@"').splitlines()
    assert arguments == ["predict", "-i", f"prompt={PROMPT}", "-i", f"finetune_id={FINETUNE_ID}", "-i", "finetune_strength=1"]
    assert len(shlex.split(codes["With"])) == 1 + len(arguments)


def test_the_python_lines_draw_with_the_finetune(base, codes, tmp_path, monkeypatch):
    save_lora(random_adapter(base.load_transformer(), rank=4), tmp_path, base.family)
    monkeypatch.chdir(tmp_path)
    code = (
        codes["In"]
        .replace(FINETUNE_FOLDER, str(tmp_path))
        .replace(f'"{base.source}"', repr(str(base.folder)))
        .replace("num_inference_steps=40", "num_inference_steps=1")
    )
    drawn = []
    for strength in ("1.0", "0.0"):
        exec(code.replace('"finetune", 1.0', f'"finetune", {strength}'), {})
        drawn.append(Image.open("image.png").convert("RGB"))
    assert drawn[0].size == (64, 64) and drawn[0].tobytes() != drawn[1].tobytes()
    assert torch.get_default_dtype() == torch.float32
