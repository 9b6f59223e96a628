"""What drawing with a base needs in memory, and the fastest way to hold it on the device that is here.

A closed formula over the shapes of the base's parts, so that a server decides before it loads anything. Its constants were read
off traces of the phases on fake tensors; `script/plan --drawing` prints them beside the formula.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from finetuner.bases import (
    Base,
    Placement,
    block_linears,
    device,
    device_for,
    device_memory_bytes,
    family_of,
    quantised_bytes,
    usable_bytes,
    weight_dtype,
)
from finetuner.phases import GIB
from finetuner.requests import RANKS
from finetuner.serving.caches import IMAGE_PROMPT_CACHE_BYTES, PROMPT_CACHE_BYTES

log = logging.getLogger(__name__)

# From the fastest. The text encoders are needed once for a new prompt, so that streaming them costs little. int8 and nf4 round
# the base: int8 a weight to 1/127 of its row's largest, nf4 to one of 16 levels. A streamed transformer crosses the bus at each
# step.
WAYS = (
    Placement(),
    Placement(texts_streamed=True),
    Placement(precision="int8", texts_streamed=True),
    Placement(precision="nf4", texts_streamed=True),
    Placement(texts_streamed=True, transformer_streamed=True),
)
CPU_WAYS = (Placement(), Placement(precision="int8"), Placement(precision="nf4"))  # what is streamed would lie there, too

TEXT_BYTES = 3 << 27  # beside a text encoder's weights, for 512 tokens: Qwen3-8B's 0.36 GiB is the most
DECODED_VALUES = 769  # of the VAE, per pixel
# Convolutions on CUDA take workspaces, which no trace shows. An allowance: FLUX.1-dev at 1024 px was seen to peak 4.7 GiB above
# its weights (the benchmark behind huggingface.co/blog/diffusers-quantization), where the trace has 1.5 GiB and the margin for
# fragmentation and CUDA's context another 2 GiB.
WORKSPACE_BYTES = GIB


@dataclass(frozen=True)
class DrawingSizes:
    """Counts of a base's weights, and the largest picture that is drawn."""

    blocks: int  # weights of the linears in the transformer's blocks
    block_rows: int  # their output features
    others: int  # weights of the transformer beside them
    largest: int  # weights of its largest linear
    slot: int  # numbers in the slot
    texts: int  # weights of the text encoders
    largest_text: int  # of a layer of theirs
    vae: int
    image_reader_bytes: int  # of what reads image prompts, where it is a model of its own
    step_values: float  # that a step has alive beside the weights, per token
    tokens: int  # of the largest picture, its text and its image prompt
    pixels: int
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        parts: dict[str, nn.Module],
        side: int,
        prompt_tokens: int,
        size_multiple: int,
        dtype: torch.dtype,
        image_reader_bytes: int = 0,
    ) -> DrawingSizes:
        """
        Args:
            parts: the pipeline's models; on the meta device will do.
            side: of the largest square area, in pixels.
            prompt_tokens: of a text and an image prompt.
        """
        transformer = parts["transformer"]
        linears = block_linears(transformer).values()
        texts = [part for name, part in parts.items() if name.startswith("text_encoder")]
        blocks = sum(linear.weight.numel() for linear in linears)
        return cls(
            blocks=blocks,
            block_rows=sum(linear.out_features for linear in linears),
            others=_count(transformer.parameters()) - blocks,
            largest=max(linear.weight.numel() for linear in linears),
            slot=max(RANKS) * sum(linear.in_features + linear.out_features for linear in linears),
            texts=sum(_count(text.parameters()) for text in texts),
            largest_text=max(_count(layer.parameters(recurse=False)) for text in texts for layer in text.modules()),
            vae=_count(parts["vae"].parameters()),
            image_reader_bytes=image_reader_bytes,
            step_values=family_of(transformer).STEP_VALUES * transformer.inner_dim,
            tokens=math.ceil(side / size_multiple) ** 2 + prompt_tokens,
            pixels=side**2,
            dtype=dtype,
        )


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def drawing_bytes(sizes: DrawingSizes, placement: Placement) -> int:
    """All tensors alive at once on the device while a base draws, at the moment when that is most."""
    value = sizes.dtype.itemsize
    step = math.ceil(sizes.tokens * sizes.step_values) * value
    if placement.transformer_streamed:
        transformer, step = sizes.others * value, step + sizes.largest * value
    elif placement.precision:
        transformer = quantised_bytes(sizes.blocks, sizes.block_rows, placement.precision) + sizes.others * value
        step += sizes.largest * value  # a quantised linear is expanded to the base's dtype for each product
    else:
        transformer = (sizes.blocks + sizes.others) * value
    static = transformer + (sizes.slot + sizes.vae) * value + PROMPT_CACHE_BYTES + IMAGE_PROMPT_CACHE_BYTES
    encode = TEXT_BYTES
    if placement.texts_streamed:  # and what reads image prompts, whose layers are smaller
        encode += sizes.largest_text * value
    else:
        static += sizes.texts * value + sizes.image_reader_bytes
    decode = DECODED_VALUES * sizes.pixels * value + WORKSPACE_BYTES
    return static + max(encode, step, decode)


def choose_placement(base: Base) -> Placement:
    """The fastest way in which the base draws every size on this device; the log says which, and what it takes.

    Raises:
        ValueError: none fits; says how much is needed and how much there is.
    """
    sizes = sizes_of(base)
    ways = CPU_WAYS if device().type == "cpu" else WAYS
    placement = fastest(base.name, sizes, ways, device_memory_bytes())
    log.info("Memory: %s", describe(sizes, placement))
    return placement


def bytes_left(base: Base, placement: Placement) -> int:
    """What of this device tensors may still take beside a base that draws."""
    return usable_bytes(device_memory_bytes()) - drawing_bytes(sizes_of(base), placement)


def sizes_of(base: Base) -> DrawingSizes:
    prompt_tokens = base.max_sequence_length + base.image_prompt_tokens
    parts, sides = base.meta_parts(), (base.largest_side, prompt_tokens, base.size_multiple)
    return DrawingSizes.of(parts, *sides, weight_dtype(), base.image_reader_bytes)


def fastest(name: str, sizes: DrawingSizes, ways: Iterable[Placement], memory_bytes: int) -> Placement:
    """The first of ``ways`` that fits into a device of ``memory_bytes``.

    Raises:
        ValueError: none does.
    """
    needed = {way: drawing_bytes(sizes, way) for way in ways}
    for way, needs in needed.items():
        if needs <= usable_bytes(memory_bytes):
            return way
    least = device_for(min(needed.values())) / GIB
    raise ValueError(
        f"BASE_MODEL: drawing with {name} takes a device with {math.ceil(least)} GiB, and this one has"
        f" {memory_bytes / GIB:.1f}. Use a larger one, or a smaller base."
    )


def describe(sizes: DrawingSizes, placement: Placement) -> str:
    """How the parts are held, for the log."""
    native = str(sizes.dtype).removeprefix("torch.")
    transformer = placement.precision or native
    streamed = "streamed from the CPU layer by layer"
    return (
        f"the transformer in {transformer}{f', {streamed}' if placement.transformer_streamed else ''}; the text encoders"
        f" {f'{streamed}, for prompts that are not in memory' if placement.texts_streamed else 'resident'};"
        f" at most {drawing_bytes(sizes, placement) / GIB:.1f} GiB of this device"
    )
