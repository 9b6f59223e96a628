"""One training step of FLUX, traced without weights or GPU: how much memory it needs at its peak, and how many FLOP.

The step is the one that we train with (`velocity_errors`, the adapter or the deltas, the optimizers), on fake tensors. They
live on a fake CPU, since PyTorch's CPU build cannot index a fake CUDA tensor. Where CUDA would do otherwise, the trace
follows CUDA:

- attention: the CPU's flash kernel is chosen, which saves what CUDA's does (q, k, v, output and a log-sum-exp per row);
- RMSNorm: composed of float32 operations on a CPU, one kernel on CUDA (`FusedNorm`);
- AdamW: one tensor after another on a CPU, all at once on CUDA (`foreach`).

Not traced, since PyTorch shows them to nobody: the kernels' own workspaces and the allocator's fragmentation.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from unittest.mock import patch

import diffusers
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from finetuner.bases import TextEmbeddings
from finetuner.bases.quantise import quantise
from finetuner.training.adapter import add_adapter
from finetuner.training.dataset import Batch
from finetuner.training.delta import add_deltas, deltas
from finetuner.training.flow import Samples, velocity_errors
from finetuner.training.optim import InBackwardOptimizer, LoraOptimizer
from finetuner.training.plan import Plan
from finetuner.training.recipe import Recipe

aten = torch.ops.aten
FLOP = dict(flop_registry) | {
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[aten._scaled_dot_product_flash_attention_backward],
}


@dataclass(frozen=True)
class Step:
    """What one training step takes."""

    peak_bytes: int  # of all tensors alive at once: weights, optimizer state, activations, gradients
    flop: int


class Meter(TorchDispatchMode):
    """Sums the storages that are alive, and the FLOP."""

    def __init__(self):
        super().__init__()
        self.alive: dict[int, int] = {}  # storage -> bytes
        self.bytes = self.peak_bytes = self.flop = 0

    def reset(self) -> None:
        self.peak_bytes, self.flop = self.bytes, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._watch(leaf.untyped_storage())
        if count := FLOP.get(func._overloadpacket):
            self.flop += count(*args, **(kwargs or {}), out_val=result)
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self.bytes)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.bytes -= self.alive.pop(key)


class FusedNorm(torch.autograd.Function):
    """RMSNorm as CUDA's kernel: it saves its input and one number per row."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, gradient):
        return torch.empty_like(ctx.saved_tensors[0])


def on_meta(config: Mapping) -> nn.Module:
    """A transformer on the meta device: every shape and no weight.

    Args:
        config: what its ``config.json`` says; its class by the name of ``_class_name``.
    """
    with torch.device("meta"):
        return getattr(diffusers, config["_class_name"]).from_config(config)


def prepared(config: Mapping, finetune_type: str, rank: int, dtype: torch.dtype, precision: str = "") -> nn.Module:
    """A transformer on the meta device, with what a fine-tune trains in it. (peft cannot swap fake parameters.)

    Args:
        precision: "int8" quantises its blocks; any other leaves them as they are.
    """
    transformer = on_meta(config).to(dtype).requires_grad_(False).eval()
    if precision == "int8":
        quantise(transformer, precision, torch.device("meta"))
    with torch.device("meta"):
        if finetune_type == "lora":
            add_adapter(transformer, rank, seed=0)
        else:
            add_deltas(transformer)
    return transformer


def optimizer_of(transformer: nn.Module) -> LoraOptimizer | InBackwardOptimizer:
    """The optimizer for what is trainable. No number of the recipe changes a tensor's size."""
    found = deltas(transformer)
    recipe = Recipe(
        "full" if found else "lora",
        steps=2,
        rank=0,
        resolutions=(),
        learning_rate=1e-4,
        guidance=1.0,
        distillation_steps=0,
        distillation_rate=0.0,
        plan=Plan("bfloat16", 0, micro_batch=1, accumulation=1, compiled=False, peak_bytes=0, step_flop=0),
    )
    if found:
        return InBackwardOptimizer(found, recipe)
    trained = {name: parameter for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    optimizer = LoraOptimizer({f"{name}.": parameter for name, parameter in trained.items()}, recipe)  # as "….lora_A."
    for group in optimizer.adamw.param_groups:
        group["foreach"], group["fused"] = True, False
    for parameter in optimizer.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # makes Adam's moments: every step but the first one has them from its start
    return optimizer


def trace(
    transformer: nn.Module,
    tokens: int,
    text_tokens: int,
    batch_size: int,
    fused_norms: bool = True,
) -> Step:
    """Trace one training step.

    Args:
        transformer: from `prepared`; its parameters become fake ones.
        tokens: of one image, without its text.
        fused_norms: RMSNorm as on CUDA; otherwise composed, as on a CPU.
    """
    rms_norm = (lambda x, *_: FusedNorm.apply(x)) if fused_norms else nn.functional.rms_norm
    with (
        FakeTensorMode(),
        Meter() as meter,
        patch.object(nn.functional, "rms_norm", rms_norm),
        patch.object(torch.Tensor, "item", lambda _: 1.0),  # a fake tensor has no value: gradient norm, Adam's step count
    ):
        make_fake(transformer)
        optimizer = optimizer_of(transformer)
        batch = _batch(transformer, tokens, text_tokens, batch_size)
        noise, sigmas = torch.empty_like(batch.latents), torch.empty(batch_size)
        meter.reset()
        velocity_errors(transformer, Samples.of(batch, noise, sigmas), guidance=1.0).mean().backward()
        optimizer.step()
    return Step(meter.peak_bytes, meter.flop)


def make_fake(transformer: nn.Module) -> None:
    for module in transformer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            fake = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), parameter.requires_grad)
            setattr(module, name, fake)


def _batch(transformer: nn.Module, tokens: int, text_tokens: int, batch_size: int) -> Batch:
    config, dtype = transformer.config, transformer.x_embedder.weight.dtype
    pooled = config.get("pooled_projection_dim")  # of the whole prompt, which not every family has
    texts = TextEmbeddings(
        torch.empty(batch_size, text_tokens, config.joint_attention_dim, dtype=dtype),
        torch.empty(batch_size, pooled, dtype=dtype) if pooled else None,
    )
    return Batch(torch.empty(batch_size, tokens, config.in_channels), grid=(1, tokens), texts=texts)
