"""Compiled blocks: whether a job is long enough for them, and how they are compiled."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx.experimental import _config as symbolic_shapes

from finetuner.bases import device_name, switch

log = logging.getLogger(__name__)

# Dense bfloat16 with float32 sums, TFLOP/s, by a part of the name that the driver gives; the first that matches counts. From
# NVIDIA's data sheets (H100 to L4: half of what they print with sparsity) and its Ada, Ampere and Blackwell GPU architecture
# white papers (GeForce).
CARDS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "RTX 6000 Ada": 182,
    "RTX A6000": 155,
    "A10G": 70,
    "A10": 125,
    "L4": 121,
    "RTX 5090": 210,
    "RTX 4090": 165,
    "RTX 4080": 97,
    "RTX 3090": 71,
}
# What an eager step reaches of it: FLUX.1-dev at 1024 px takes 74 TFLOP a forward, and 28 of them 6.57 s of an H100
# (diffusers-torchao).
EAGER_SHARE = 0.32
# What compiled blocks save of a step's time: 25 to 35 % on an RTX 4070 (OneTrainer #1114), 26 to 34 % on H100 and B200
# (SimpleTuner, DiffSynth #1680); 16 % of a forward on an L20 (sglang #19673).
GPU_SAVED = 0.25
# Two kinds of blocks, forward and backward. The forward alone took 10 s (PyTorch's post on regional compilation) to 24 s
# (sglang #32696) on an H100, and a training "up to minutes" (OneTrainer #1114).
GPU_COMPILE_SECONDS = 60.0

# Measured on a core of an AMD EPYC with flux-emoji: a step of 4 at 64 px is 6.1 GFLOP and takes 0.158 s, compiled 0.135 s, and
# to compile took 79 s. So a job of less than ten minutes is not compiled.
CPU_FLOPS = 3.9e10  # of a core, a second
CPU_SAVED = 0.14
CPU_COMPILE_SECONDS = 79.0


@dataclass(frozen=True)
class Speed:
    """Of a device, as far as it decides whether to compile."""

    flops: float  # a second, of an eager step
    saved: float  # share of a step's time that compiled blocks save
    compile_seconds: float

    def pays(self, eager_flop: float, compiled_flop: float) -> bool:
        """Whether a job of so many FLOP, which are others where compiled blocks need more memory, ends sooner compiled."""
        return self.compile_seconds + (1 - self.saved) * compiled_flop / self.flops < eager_flop / self.flops


def speed_of(card: str) -> Speed | None:
    """What is known of a GPU, by the name that its driver gives it."""
    for name, tflops in CARDS.items():
        if name in card and "Laptop" not in card:
            return Speed(tflops * 1e12 * EAGER_SHARE, GPU_SAVED, GPU_COMPILE_SECONDS)
    return None


def speed_here() -> Speed | None:
    """Of the device that the training runs on; None where it is not known."""
    if torch.cuda.is_available():
        return speed_of(device_name())
    return Speed(CPU_FLOPS * len(os.sched_getaffinity(0)), CPU_SAVED, CPU_COMPILE_SECONDS)


def worth_compiling(eager_flop: float, compiled_flop: float) -> bool:
    """Whether a job of so many FLOP is to compile its blocks: as ``COMPILE`` says, else where it ends sooner for it.

    The whole job counts, not what is left of it, so that one that goes on does not switch.

    Raises:
        ValueError: ``COMPILE`` is neither 0 nor 1, or 1 without a compiler.
    """
    asked, compiler = switch("COMPILE"), shutil.which(os.environ.get("CXX", "g++"))
    if asked and not compiler:
        raise ValueError("COMPILE: 1 takes a C++ compiler, and there is no g++ here. Install it, or set COMPILE to 0.")
    if asked is not None:
        return asked
    speed = speed_here()
    if speed is None:
        log.info("The blocks are not compiled: nobody has said how fast %s is. COMPILE=1 does it", device_name())
        return False
    if not (pays := speed.pays(eager_flop, compiled_flop)):
        return False
    if not compiler:
        log.warning("The blocks are not compiled, though it would pay: there is no C++ compiler (g++) here")
    return pays and compiler is not None


@contextmanager
def compiled_blocks(transformer: nn.Module) -> Iterator[None]:
    """With the transformer's blocks compiled, each kind of them once for images of all sizes.

    What earlier jobs of this process compiled is forgotten first: a job's bits must not depend on them.
    """
    torch._dynamo.reset()
    # Two lengths that happen to be equal in the first batch are not the same length in the next one.
    with symbolic_shapes.patch(use_duck_shape=False):
        # deterministic: nothing that rounds otherwise is chosen by a measurement.
        transformer.compile_repeated_blocks(fullgraph=True, dynamic=True, options={"deterministic": True})
        try:
            yield
        finally:
            for module in transformer.modules():
                module.__dict__.pop("_compiled_call_impl", None)
            torch._dynamo.reset()
