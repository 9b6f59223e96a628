"""The phases of a prediction, traced without weights or GPU: how much memory each needs at its peak, beside the weights.

As `script.trace_step`, on fake tensors of a fake CPU, with the kernels that CUDA would choose where the CPU's differ.
"""

from __future__ import annotations

from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from finetuner.serving import Slot
from script.trace_step import FusedNorm, Meter, make_fake


def trace_transformer(transformer: nn.Module, tokens: int, text_tokens: int, rank: int) -> int:
    """Bytes that one step of sampling needs beside the weights and the slot.

    Args:
        transformer: on the meta device, in the dtype that it computes in; its parameters become fake ones.
    """
    Slot(transformer, rank)
    return _beside_the_weights(transformer, lambda: transformer(**step_inputs(transformer, tokens, text_tokens)))


def step_inputs(transformer: nn.Module, tokens: int, text_tokens: int) -> dict[str, torch.Tensor | None]:
    """What a transformer of either family takes for one step of one picture, all zero: the values change neither time nor
    memory."""
    config, weight = transformer.config, transformer.x_embedder.weight
    place, axes = {"device": weight.device, "dtype": weight.dtype}, len(config.axes_dims_rope)
    inputs = {
        "hidden_states": torch.zeros(1, tokens, config.in_channels, **place),
        "encoder_hidden_states": torch.zeros(1, text_tokens, config.joint_attention_dim, **place),
        "timestep": torch.full((1,), 0.5, **place),
        "guidance": torch.full((1,), 3.0, **place) if config.guidance_embeds else None,
        "img_ids": torch.zeros(tokens, axes, device=weight.device),
        "txt_ids": torch.zeros(text_tokens, axes, device=weight.device),
    }
    if pooled := config.get("pooled_projection_dim"):
        inputs["pooled_projections"] = torch.zeros(1, pooled, **place)
    return inputs


def trace_decode(vae: nn.Module, width: int, height: int) -> int:
    """Bytes that decoding an image of so many pixels needs beside the VAE's weights."""
    dtype, downscale = next(vae.parameters()).dtype, 2 ** (len(vae.config.block_out_channels) - 1)
    size = (height // downscale, width // downscale)
    return _beside_the_weights(vae, lambda: vae.decode(torch.empty(1, vae.config.latent_channels, *size, dtype=dtype)))


def trace_text(encoder: nn.Module, tokens: int) -> int:
    """Bytes that encoding a prompt of so many tokens needs beside the text encoder's weights."""
    ids = {"input_ids": (1, tokens), "attention_mask": (1, tokens)}

    def encode() -> None:
        encoder(**{name: torch.zeros(shape, dtype=torch.long) for name, shape in ids.items()}, output_hidden_states=True)

    return _beside_the_weights(encoder, encode)


@torch.no_grad()
def _beside_the_weights(model: nn.Module, work) -> int:
    rms_norm = lambda x, *_: FusedNorm.apply(x)  # noqa: E731
    with FakeTensorMode(), Meter() as meter, patch.object(nn.functional, "rms_norm", rms_norm):
        make_fake(model)
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        before = meter.bytes
        meter.reset()
        work()
        return meter.peak_bytes - before
