import dataclasses
from pathlib import Path

import pytest

from finetuner.bases.device import CONTEXT_BYTES
from finetuner.requests import FinetuneRequest
from finetuner.training.recipe import recipe_for

ARCHIVE = Path("photos.zip")


def test_the_defaults_are_the_documented_ones():
    assert FinetuneRequest(ARCHIVE).inputs() == {
        "input_images": "photos.zip",
        "training_steps": 300,
        "trigger_word": "TOK",
        "mode": "general",
        "learning_rate": None,
        "captioning": "automatic",
        "priority": "quality",
        "finetune_type": "full",
        "lora_rank": 32,
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("training_steps", 0),
        ("training_steps", 6001),
        ("trigger_word", "  "),
        ("trigger_word", "two words"),
        ("mode", "person"),
        ("learning_rate", 9e-7),
        ("learning_rate", 6e-3),
        ("captioning", "yes"),
        ("priority", "best"),
        ("finetune_type", "dreambooth"),
        ("lora_rank", 8),
    ],
)
def test_a_wrong_input_is_refused_by_its_name(field, value):
    with pytest.raises(ValueError, match=f"^{field}: "):
        FinetuneRequest(ARCHIVE, **{field: value})


@pytest.mark.parametrize(("finetune_type", "documented"), [("full", 1e-5), ("lora", 1e-4)])
def test_an_unset_learning_rate_is_the_documented_one_for_the_type(base, finetune_type, documented):
    recipe = recipe_for(FinetuneRequest(ARCHIVE, finetune_type=finetune_type), base)
    assert recipe.learning_rate == pytest.approx(documented * base.learning_rate_scale[finetune_type])


def test_prompts_without_the_trigger_word_are_preserved_where_there_is_a_concept_and_the_base_hears_its_word(base):
    """And no caption is dropped there: what that would teach the empty prompt is what is preserved of it."""

    def decided(mode: str, hears: bool) -> tuple[int, float]:
        recipe = recipe_for(FinetuneRequest(ARCHIVE, mode=mode), dataclasses.replace(base, hears_new_words=hears))
        return recipe.preserved_images, recipe.caption_dropout, recipe.plan.micro_batch  # preserved ones in one pass, too

    assert [decided(mode, True) for mode in ("style", "character", "product")] == [(1, 0.0, 5)] * 3
    assert decided("general", True) == decided("style", False) == (0, 0.05, 4)


def test_a_learning_rate_that_is_set_is_used(base):
    recipe = recipe_for(FinetuneRequest(ARCHIVE, learning_rate=2e-4), base)
    assert recipe.learning_rate == pytest.approx(2e-4 * base.learning_rate_scale["full"])


@pytest.mark.parametrize("priority", ["speed", "quality", "high_res_only"])
def test_priority_chooses_among_the_resolutions_of_the_base(base, priority):
    recipe = recipe_for(FinetuneRequest(ARCHIVE, priority=priority), base)
    assert recipe.resolutions == base.resolutions[priority]


def test_the_plan_fits_the_device_and_a_device_too_small_is_refused_before_loading(base, monkeypatch):
    plan = recipe_for(FinetuneRequest(ARCHIVE, finetune_type="lora"), base).plan
    assert plan.base_precision == "float32" and plan.checkpointed_blocks == 0 and plan.accumulation == 1
    own = plan.peak_bytes + CONTEXT_BYTES
    monkeypatch.setattr("finetuner.training.recipe.device_memory_bytes", lambda: own)
    smaller = recipe_for(FinetuneRequest(ARCHIVE, finetune_type="lora"), base).plan
    assert smaller.accumulation > 1 and smaller.micro_batch * smaller.accumulation == plan.micro_batch
    monkeypatch.setattr("finetuner.training.recipe.device_memory_bytes", lambda: CONTEXT_BYTES)
    with pytest.raises(ValueError, match=r"^finetune_type: "):
        recipe_for(FinetuneRequest(ARCHIVE, finetune_type="lora"), base)
