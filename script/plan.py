"""Print what a training step of FLUX.1-dev takes: peak memory and FLOP, traced without weights or GPU. Run it as script/plan.

The columns for quantised bases are the trace with the base's weights exchanged: `finetuner.plan.base_bytes` for what
they take, and one linear of the blocks in bfloat16 (the backends expand one layer at a time, forward and backward).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator

from diffusers.utils import logging

from finetuner.plan import FLUX_DEV, GIB, Job, Sizes, exchange_bytes, peak_bytes
from script.trace_step import Step, prepared, trace

RANK = 32
SIDES = (512, 768, 1024)
BATCHES = (1, 2, 4)
TYPES = ("lora", "full")
QUANTISED = ("int8", "nf4")
