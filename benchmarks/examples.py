"""The example archive as training data, and what several benchmarks of training do alike."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from finetuner.bases import choose_base
from finetuner.data import complete_captions, open_archive
from finetuner.paths import ROOT
from finetuner.requests import FinetuneRequest
from finetuner.training import Checkpoint, encode_dataset, recipe_for

ARCHIVE = ROOT / "examples" / "line-icons.zip"
STEPS = 12  # of a repeat
REPEATS = 7
RANK = 32


def examples_dataset(finetune_type: str = "lora", mode: str = "general") -> tuple:
    """The base, a recipe and the example archive's training data. Mode general preserves nothing: its steps are the images'."""
    base = choose_base()
    request = FinetuneRequest(ARCHIVE, mode=mode, finetune_type=finetune_type, lora_rank=RANK, priority="speed")
    examples = complete_captions(open_archive(ARCHIVE), {}, request, base)
    recipe = replace(recipe_for(request, base), steps=STEPS, seed=1)
    dataset, _ = encode_dataset(examples, [], base, recipe)
    return base, recipe, dataset


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextmanager
def temporary_checkpoint():
    with tempfile.TemporaryDirectory() as folder, Checkpoint(Path(folder) / "job") as checkpoint:
        yield checkpoint
