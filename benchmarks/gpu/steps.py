"""A training step on random weights: seconds, and bytes at the peak beside the formula's."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from peft import LoraConfig
from torch import nn

from finetuner.bases import TextEmbeddings, block_linears, device, device_memory_bytes, target_names, weight_dtype
from finetuner.bases.quantise import quantise
from finetuner.bases.warm import sharing_copy
from finetuner.training import adapter
from finetuner.training.activations import checkpoint_blocks
from finetuner.training.compiling import compiled_blocks
from finetuner.training.costs import Sizes, StepSize, native_precision, peak_bytes, step_flop
from finetuner.training.dataset import Batch
from finetuner.training.delta import add_deltas, deltas
from finetuner.training.flow import Samples, velocity_errors
from finetuner.training.optim import InBackwardOptimizer, LoraOptimizer
from finetuner.training.plan import Plan, usable_bytes
from finetuner.training.recipe import Recipe
from script.trace_step import on_meta

RANK = 32
WARM_UP, REPEATS = 2, 3
SIZE_MULTIPLE = 16  # pixels a token


@dataclass(frozen=True)
class Step:
    """A training step of ``images`` at ``side`` pixels."""

    finetune_type: str
    side: int
    images: int
    checkpointed: int
    compiled: bool = False
    precision: str = ""  # the base's own where it is empty
    way: str = "ours"  # or "peft": its layers and AdamW; or "diffusers": those under autocast, as in its DreamBooth script

    def tokens(self) -> int:
        return (self.side // SIZE_MULTIPLE) ** 2


def random_transformer(config: Mapping) -> nn.Module:
    """Of random weights, frozen, on the device, in the dtype that it trains in."""
    transformer = on_meta(config).to(weight_dtype()).to_empty(device=device()).requires_grad_(False).eval()
    for parameter in transformer.parameters():
        parameter.normal_(std=0.02)
    return transformer


def measure_step(transformer: nn.Module, step: Step, text_tokens: int) -> dict:
    """Seconds of a step (the median), of the first one, which compiles, and the peak's bytes (of a GPU alone).

    The formula's bytes and FLOP come with them. A step that does not fit by the formula is not run.
    """
    precision = step.precision or native_precision(weight_dtype())
    sizes = Sizes.of(transformer)
    size = StepSize(step.finetune_type, RANK, step.tokens() + text_tokens, step.images, weight_dtype())
    found: dict = {
        "formula_bytes": peak_bytes(sizes, size, precision, step.checkpointed),
        "formula_flop": step_flop(sizes, size, step.checkpointed),
    }
    if found["formula_bytes"] > usable_bytes(device_memory_bytes()):
        return found | {"failed": "does not fit, by the formula"}
    used = sharing_copy(transformer)
    if step.precision:
        used = quantise(used, step.precision, device())
    checkpoint_blocks(used, step.checkpointed)
    run = OURS[step.finetune_type](used, step) if step.way == "ours" else _theirs(used, step)
    batch = random_batch(used, step.tokens(), text_tokens, step.images)
    noise, sigmas = torch.randn_like(batch.latents), torch.full((step.images,), 0.5, device=device())

    def once() -> None:
        run(lambda: velocity_errors(used, Samples.of(batch, noise, sigmas), 1.0).mean())

    with compiled_blocks(used) if step.compiled else nullcontext():
        found |= timed(once, WARM_UP, REPEATS)
    if step.precision and found["peak_bytes"]:  # the base that was quantised is there, too
        found["peak_bytes"] -= sum(linear.weight.nbytes for linear in block_linears(transformer).values())
    return found


def timed(work: Callable[[], object], warm_up: int, repeats: int) -> dict:
    """Seconds of the first time, the median of ``repeats`` later ones, and the peak's bytes over those."""
    gc.collect()
    first, *_ = [_seconds(work) for _ in range(warm_up)]
    on_gpu = device().type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(_seconds(work) for _ in range(repeats))
    return {"seconds": seconds, "first_seconds": first, "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None}


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def random_batch(transformer: nn.Module, tokens: int, text_tokens: int, count: int) -> Batch:
    config, place = transformer.config, {"device": device()}
    embeds = torch.randn(count, text_tokens, config.joint_attention_dim, dtype=weight_dtype(), **place)
    pooled = config.get("pooled_projection_dim")  # of the whole prompt, which not every family has
    texts = TextEmbeddings(embeds, torch.randn(count, pooled, dtype=weight_dtype(), **place) if pooled else None)
    side = int(tokens**0.5)
    return Batch(torch.randn(count, side * side, config.in_channels, **place), grid=(side, side), texts=texts)


def _recipe(step: Step) -> Recipe:
    """No number of it changes what a step costs."""
    plan = Plan(step.precision, step.checkpointed, step.images, 1, step.compiled, peak_bytes=0, step_flop=0)
    return Recipe(step.finetune_type, 300, RANK, (step.side,), 1e-5, 1.0, 0, 0.0, plan)


def _our_lora(transformer: nn.Module, step: Step) -> Callable[[Callable], None]:
    adapter.add_adapter(transformer, RANK, seed=0)
    return _stepping(LoraOptimizer(adapter.trainable_weights(transformer), _recipe(step)))


def _our_full(transformer: nn.Module, step: Step) -> Callable[[Callable], None]:
    add_deltas(transformer)
    return _stepping(InBackwardOptimizer(deltas(transformer), _recipe(step)))


OURS = {"lora": _our_lora, "full": _our_full}


def _stepping(optimizer: LoraOptimizer | InBackwardOptimizer) -> Callable[[Callable], None]:
    def run(loss: Callable[[], torch.Tensor]) -> None:
        loss().backward()
        optimizer.step()

    return run


def _theirs(transformer: nn.Module, step: Step) -> Callable[[Callable], None]:
    """peft's LoRA on the same linears, in float32, with AdamW as the scripts make it (not fused)."""
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=target_names(transformer))
    transformer.add_adapter(config)
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    adamw = torch.optim.AdamW(trained, lr=1e-5)
    autocast = step.way == "diffusers" and weight_dtype() != torch.float32

    def run(loss: Callable[[], torch.Tensor]) -> None:
        with torch.autocast(device().type, weight_dtype()) if autocast else nullcontext():
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        adamw.step()
        adamw.zero_grad()

    return run
