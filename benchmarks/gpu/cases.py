"""What is measured, in order of importance: what the time does not suffice for stays out, and is named."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import torch
from torch import nn

from benchmarks.gpu.pictures import PREDICTIONS, Prediction, measure_prediction
from benchmarks.gpu.steps import Step, measure_step, random_transformer
from finetuner.bases import device, device_memory_bytes, device_name, weight_dtype
from finetuner.training.costs import Sizes
from finetuner.training.plan import usable_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bases:
    """What is measured on: the configurations by name, and the sizes of pictures and texts."""

    configs: Mapping[str, Mapping]
    sides: tuple[int, int]  # pixels: a small and a large picture
    text_tokens: int


def measure(bases: Bases, seconds: float, keep: Callable[[dict], object] = lambda measured: None) -> dict:
    """Measure for so many seconds: no case is begun after them.

    Args:
        keep: gets what there is after each case, in case that the next one takes the machine down.
    """
    started = time.monotonic()
    cases: list[dict] = []
    left_out: list[str] = []
    measured = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": device_name(),
        "memory_bytes": device_memory_bytes(),
        "usable_bytes": usable_bytes(device_memory_bytes()),
        "dtype": str(weight_dtype()).removeprefix("torch."),
        "torch": torch.__version__,
        "seconds": 0.0,
        "cases": cases,
        "left_out": left_out,
    }
    for name, config in bases.configs.items():
        transformer = random_transformer(config)
        for case in cases_of(Sizes.of(transformer), bases):
            if time.monotonic() - started > seconds:
                left_out.append(f"{name}: {case}")
            else:
                cases.append({"base": name} | asdict(case) | _outcome(transformer, case, bases.text_tokens))
                log.warning("%s", cases[-1])
            measured["seconds"] = round(time.monotonic() - started, 1)
            keep(measured)
        del transformer
        _empty_cache()
    return measured


def cases_of(sizes: Sizes, bases: Bases) -> Iterator[Step | Prediction]:
    """The question that a case answers is in its comment."""
    (small, large), blocks = bases.sides, len(sizes.order)
    every, half = blocks - 1, blocks // 2
    yield Step("lora", small, 1, 0)  # is the formula right, in bytes and in FLOP?
    yield Step("lora", small, 1, 0, way="peft")  # the anchors: what others do, in the same run
    yield Step("lora", small, 1, 0, way="diffusers")
    yield Step("lora", small, 1, 0, compiled=True)  # does compiling pay, and what does it take?
    yield Step("lora", large, 1, half)  # is time linear in the number of checkpointed blocks?
    yield Step("lora", large, 1, 0)
    yield Step("lora", large, 1, every)
    yield Step("lora", large, 1, every, way="diffusers")
    yield Step("lora", small, 4, 0)  # is one image at a time as fast as four?
    yield Step("lora", large, 1, every, compiled=True)  # do compiled blocks eat what checkpointing saves?
    yield Step("lora", large, 1, every, precision="int8")
    for way in PREDICTIONS:
        yield Prediction(large, way)
    yield Step("full", small, 1, half)
    yield Step("full", large, 1, every)
    yield Step("full", small, 1, half, compiled=True)


def _outcome(transformer: nn.Module, case: Step | Prediction, text_tokens: int) -> dict:
    """What was measured, or why not: one case that fails must not cost the others their time on the card."""
    try:
        if isinstance(case, Step):
            return measure_step(transformer, case, text_tokens)
        return measure_prediction(transformer, case, text_tokens)
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    except Exception as error:  # whatever it is, it is written down
        log.exception("It failed")
        return {"failed": f"{type(error).__name__}: {error}"[:300]}
    finally:
        _empty_cache()


def _empty_cache() -> None:
    if device().type == "cuda":
        torch.cuda.empty_cache()
