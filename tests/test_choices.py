"""Every combination of the documented choices, as a whole job."""

from pathlib import Path

import pytest
from helpers import make_archive
from PIL import Image

from finetuner import finetune
from finetuner.loras import WEIGHTS_NAME, load_lora
from finetuner.report import sheet
from finetuner.requests import FinetuneRequest


@pytest.fixture
def two_pictures(tmp_path) -> Path:
    return make_archive(tmp_path / "two.zip", {"a.png": Image.new("RGB", (96, 96), "red"), "b.png": Image.new("RGB", (96, 96))})


@pytest.mark.parametrize("lora_rank", [16, 32])
@pytest.mark.parametrize("finetune_type", ["lora", "full"])
@pytest.mark.parametrize("priority", ["speed", "quality", "high_res_only"])
@pytest.mark.parametrize("mode", ["general", "character", "style", "product"])
def test_every_documented_choice_trains_and_publishes(
    store, two_pictures, monkeypatch, mode, priority, finetune_type, lora_rank
):
    monkeypatch.setattr(sheet, "SAMPLING_STEPS", 1)  # what is drawn is not looked at here
    request = FinetuneRequest(
        two_pictures,
        training_steps=3,
        mode=mode,
        priority=priority,
        finetune_type=finetune_type,
        lora_rank=lora_rank,
        captioning="captioning-disabled",
    )
    published = finetune.finetune(request)
    assert published.manifest["inputs"] == request.inputs()
    assert len(published.manifest["losses"]) == 3
    weights = load_lora(published.folder / WEIGHTS_NAME)
    assert {min(tensor.shape) for tensor in weights.values()} == {lora_rank}
