"""The memory of a training step: known points of the bases, the formula against the trace, and what is chosen for a card."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel
from peft import LoraConfig

from finetuner.training.activations import checkpoint_blocks
from finetuner.training.costs import Sizes, StepSize, base_bytes, peak_bytes, step_flop, token_count
from finetuner.training.plan import GIB, Plan, choose_plan, usable_bytes
from script.plan import CARDS, FLUX_DEV, KLEIN_4B, KLEIN_9B, TEXT_TOKENS
from script.trace_step import Step, on_meta, prepared, trace

BLOCKS_2_2 = FLUX_DEV | {"num_layers": 2, "num_single_layers": 2}  # of the real width: what a block takes, in a second
TINY = {
    "_class_name": "FluxTransformer2DModel",
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 32,
    "num_attention_heads": 6,
    "joint_attention_dim": 96,
    "pooled_projection_dim": 96,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 14, 14),
}
TINY_KLEIN = KLEIN_4B | {
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 32,
    "num_attention_heads": 6,
    "joint_attention_dim": 192,
    "axes_dims_rope": (8, 8, 8, 8),
}


def job(finetune_type: str = "lora", side: int = 1024, batch_size: int = 1, dtype: torch.dtype = torch.bfloat16) -> StepSize:
    return StepSize(finetune_type, 32, token_count(side, 16, TEXT_TOKENS), batch_size, dtype)


def untouched(config: dict) -> FluxTransformer2DModel | Flux2Transformer2DModel:
    """A base on the meta device, made once: to plan for it changes nothing of it."""
    return _untouched(json.dumps(config))


@cache
def _untouched(config: str) -> FluxTransformer2DModel | Flux2Transformer2DModel:
    return on_meta(json.loads(config))


def plan_for(job: StepSize, gigabytes: float, config: dict = FLUX_DEV) -> Plan:
    return choose_plan(untouched(config), job, int(gigabytes * GIB))


def traced(config: dict, job: StepSize, text_tokens: int, checkpointed: int, precision: str = "") -> Step:
    transformer = prepared(config, job.finetune_type, job.rank, job.dtype, precision)
    checkpoint_blocks(transformer, checkpointed)
    return trace(transformer, job.tokens - text_tokens, text_tokens, job.batch_size)


@pytest.fixture(scope="module")
def attention_lora() -> FluxTransformer2DModel:
    """A bfloat16 LoRA of rank 32 on the image stream's attention: what the known points were measured with."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(FLUX_DEV).bfloat16().requires_grad_(False).eval()
        projections = r"transformer_blocks\.\d+\.attn\.to_(q|k|v|out\.0)|single_transformer_blocks\.\d+\.attn\.to_(q|k|v)"
        transformer.add_adapter(LoraConfig(r=32, lora_alpha=32, target_modules=projections))
        return transformer.bfloat16()


def test_known_size_of_flux_dev(attention_lora):
    sizes = Sizes.of(untouched(FLUX_DEV))
    assert (sizes.block_weights + sizes.other_weights) / 1e9 == pytest.approx(11.90, abs=0.005)
    assert sum(p.numel() for p in attention_lora.parameters()) / 1e9 == pytest.approx(11.94, abs=0.005)
    assert base_bytes(sizes, "bfloat16", torch.bfloat16) / GIB == pytest.approx(22.2, abs=0.05)


@pytest.mark.parametrize(
    ("config", "billions", "targets", "megabytes"), [(KLEIN_4B, 3.88, 100, 96), (KLEIN_9B, 9.08, 144, 174)]
)
def test_known_size_of_klein(config, billions, targets, megabytes):
    """Of the LoRA: of rank 32, in float16, as it is published."""
    sizes = Sizes.of(untouched(config))
    assert (sizes.block_weights + sizes.other_weights) / 1e9 == pytest.approx(billions, abs=0.005)
    shapes = [shape for of_kind in sizes.targets.values() for shape in of_kind]
    assert len(shapes) == targets
    assert 2 * 32 * sum(out + in_ for out, in_ in shapes) / 1e6 == pytest.approx(megabytes, abs=0.5)


@pytest.mark.parametrize(("checkpointing", "gib"), [(True, 24.6), (False, 44.3)])
def test_known_peaks_of_flux_dev(attention_lora, checkpointing, gib):
    if checkpointing:
        attention_lora.enable_gradient_checkpointing()
    step = trace(attention_lora, 4096, TEXT_TOKENS, batch_size=1, fused_norms=False)
    attention_lora.disable_gradient_checkpointing()
    assert step.peak_bytes / GIB == pytest.approx(gib, abs=0.06)


@pytest.mark.parametrize("share", [0, 0.5, 1], ids=["kept", "half", "checkpointed"])
@pytest.mark.parametrize("finetune_type", ["lora", "full"])
@pytest.mark.parametrize(
    ("config", "text_tokens", "tokens", "batch_size", "dtype", "off"),
    [
        (BLOCKS_2_2, 512, 4608, 2, torch.bfloat16, 0.02),
        (TINY, 32, 96, 16, torch.float32, 0.02),
        (KLEIN_4B, 512, 1536, 4, torch.bfloat16, 0.045),  # a full fine-tune's largest matrix is stepped when its block is done
        (TINY_KLEIN, 32, 96, 16, torch.float32, 0.035),
    ],
    ids=["flux-width", "tiny", "klein", "tiny-klein"],
)
def test_formulas_agree_with_the_trace(config, text_tokens, tokens, batch_size, dtype, off, finetune_type, share):
    asked, sizes = StepSize(finetune_type, 32, tokens, batch_size, dtype), Sizes.of(untouched(config))
    checkpointed = round(share * (len(sizes.order) - 1))
    step = traced(config, asked, text_tokens, checkpointed)
    own = str(dtype).removeprefix("torch.")
    assert peak_bytes(sizes, asked, own, checkpointed) == pytest.approx(step.peak_bytes, rel=off)
    # Not in the formula: that the first block's input needs no gradient, of 4 blocks or of 57; and what lies outside them.
    assert step_flop(sizes, asked, checkpointed) == pytest.approx(step.flop, rel=0.005 if len(sizes.order) > 6 else 0.05)


@pytest.mark.parametrize(("precision", "checkpointed"), [("bfloat16", 10), ("int8", 52)])
def test_formulas_agree_with_the_trace_of_flux_dev(precision, checkpointed):
    """As it is, and quantised; at 512 px, where weights and activations weigh alike."""
    asked, sizes = job(side=512), Sizes.of(untouched(FLUX_DEV))
    step = traced(FLUX_DEV, asked, TEXT_TOKENS, checkpointed, precision)
    assert peak_bytes(sizes, asked, precision, checkpointed) == pytest.approx(step.peak_bytes, rel=0.02)
    assert step_flop(sizes, asked, checkpointed) == pytest.approx(step.flop, rel=0.005)


def test_checkpointing_the_last_block_saves_nothing():
    sizes, step = Sizes.of(untouched(KLEIN_4B)), job(batch_size=4)
    peaks = [peak_bytes(sizes, step, "bfloat16", checkpointed) for checkpointed in range(len(sizes.order) + 1)]
    assert sorted(peaks[:-1], reverse=True) == peaks[:-1]
    assert peaks[-1] >= peaks[-2]


def test_flop_of_a_step():
    """By hand: each token meets 12 w^2 weights a block, forward and for its gradient; attention is 4 T^2 w, then 10."""
    tokens, width, blocks = 4096 + TEXT_TOKENS, 3072, 4
    by_hand = blocks * (2 * 2 * 12 * width**2 * tokens + 14 * tokens**2 * width)
    step = traced(BLOCKS_2_2, job(), TEXT_TOKENS, checkpointed=0)
    # Not in the sum: the LoRA itself (+ 3 %), and that the first block's inputs need no gradient (- 3 %).
    assert step.flop == pytest.approx(by_hand, rel=0.06)


@pytest.mark.parametrize("side", [512, 768, 1024])
@pytest.mark.parametrize(
    ("config", "card"),
    [*((FLUX_DEV, card) for card in (80, 48, 24, 16)), *((config, card) for config in (KLEIN_4B, KLEIN_9B) for card in CARDS)],
)
def test_a_lora_fits_on_every_card(config, card, side):
    plan = plan_for(job("lora", side, batch_size=4), CARDS[card], config)
    assert plan.peak_bytes <= usable_bytes(int(CARDS[card] * GIB))
    assert plan.micro_batch * plan.accumulation == 4


def test_klein_4b_trains_on_small_cards_as_it_is():
    """A LoRA at 1024 px in 12 GB, as others publish; in int8 in 8 GB; a full fine-tune at 768 px in 24 GB."""
    ways = [plan_for(job("lora", 1024, 4), CARDS[card], KLEIN_4B) for card in (24, 16, 12)]
    ways += [plan_for(job("lora", 1024, 4), 7.7, KLEIN_4B), plan_for(job("full", 768, 4), CARDS[24], KLEIN_4B)]
    assert [(way.base_precision, way.checkpointed_blocks, way.micro_batch) for way in ways] == [
        ("bfloat16", 4, 1),
        ("bfloat16", 16, 1),
        ("bfloat16", 23, 1),
        ("int8", 24, 1),
        ("bfloat16", 23, 4),
    ]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_full_fits_on_80_gb(batch_size):
    plan = plan_for(job("full", 1024, batch_size), CARDS[80])
    assert (plan.base_precision, plan.micro_batch, plan.accumulation) == ("bfloat16", batch_size, 1)
    assert 0 < plan.checkpointed_blocks < 56


def test_cheaper_ways_come_first():
    ways = [plan_for(job("lora", 512, 4), gib) for gib in (79.1, 48, 40, 28, 22, 14)]
    assert [(w.base_precision, w.checkpointed_blocks, w.micro_batch) for w in ways] == [
        ("bfloat16", 0, 4),
        ("bfloat16", 0, 2),
        ("bfloat16", 0, 1),
        ("bfloat16", 46, 1),
        ("int8", 11, 1),
        ("nf4", 26, 1),
    ]


@pytest.mark.parametrize(("finetune_type", "side", "gib"), [("lora", 1024, 44.4), ("full", 1024, 79.1)])
def test_no_more_blocks_are_checkpointed_than_must_be(finetune_type, side, gib):
    asked, sizes = job(finetune_type, side, 4), Sizes.of(untouched(FLUX_DEV))
    plan = plan_for(asked, gib)
    part = replace(asked, batch_size=plan.micro_batch)
    fewer = peak_bytes(sizes, part, plan.base_precision, plan.checkpointed_blocks - 1)
    assert plan.peak_bytes <= usable_bytes(int(gib * GIB)) < fewer
    assert plan.step_flop == step_flop(sizes, asked, plan.checkpointed_blocks)


def test_compiled_blocks_are_asked_for_by_their_flop_and_get_a_margin():
    asked, told = job("lora", 1024, 4), []

    def worth(eager: float, compiled: float) -> bool:
        told.append((eager, compiled))
        return True

    eager = plan_for(asked, 44.4)
    compiled = choose_plan(untouched(FLUX_DEV), asked, int(44.4 * GIB), (1536, 4608), worth)
    assert compiled.compiled and not eager.compiled
    assert compiled.peak_bytes <= usable_bytes(int(44.4 * GIB), compiled=True) < eager.peak_bytes
    assert compiled.checkpointed_blocks > eager.checkpointed_blocks
    sizes = Sizes.of(untouched(FLUX_DEV))
    of_both = [step_flop(sizes, replace(asked, tokens=tokens), eager.checkpointed_blocks) for tokens in (1536, 4608)]
    assert told == [(sum(of_both) / 2, pytest.approx(told[0][1]))] and told[0][0] < told[0][1]


def test_a_step_of_five_images_runs_in_parts_as_equal_as_they_can_be():
    """A preserved image beside the batch of four."""
    ways = [plan_for(job("lora", 512, 5), gib) for gib in (79.1, 56, 48, 40)]
    assert [(way.micro_batch, way.accumulation) for way in ways] == [(5, 1), (3, 2), (2, 3), (1, 5)]


def test_a_base_is_not_quantised_for_compiled_blocks():
    """FLUX.1-dev's blocks fit in its own precision here, but not with the margin."""
    gib = next(gib / 10 for gib in range(200, 400) if plan_for(job(side=512), gib / 10).base_precision == "bfloat16")
    assert not choose_plan(untouched(FLUX_DEV), job(side=512), int(gib * GIB), (), lambda eager, compiled: True).compiled


def test_a_tiny_base_needs_no_card():
    plan = choose_plan(untouched(TINY), StepSize("full", 32, 96, 16, torch.float32), GIB * 2)
    assert plan == replace(plan, base_precision="float32", checkpointed_blocks=0, micro_batch=16, compiled=False)


def test_refusal_says_what_would_fit():
    with pytest.raises(ValueError, match=r"full needs \d\d\.\d GiB .* 24\.0 GiB .* lora would fit"):
        plan_for(job("full"), 24)
    with pytest.raises(ValueError, match="try priority speed"):
        plan_for(job("lora", side=2048), 15.6)
    with pytest.raises(ValueError, match=r"Use a device with \d+ GiB or more"):
        plan_for(job("lora", side=512), 4)


@pytest.mark.parametrize("side", [512, 768, 1024, 1536])
def test_the_least_that_is_asked_for_suffices(side):
    """The device that the refusal asks for runs the job; one with a GiB less does not."""
    with pytest.raises(ValueError) as refusal:
        plan_for(job("lora", side), 4)
    gib = int(str(refusal.value).split("device with ")[1].split()[0])
    plan_for(job("lora", side), gib)
    with pytest.raises(ValueError):
        plan_for(job("lora", side), gib - 1)
