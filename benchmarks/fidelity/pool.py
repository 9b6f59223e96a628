"""Cells by the dozen: as many processes as there are cores, one thread each, which is faster than one of two threads."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import diffusers
import numpy as np
import torch
import transformers

from benchmarks.fidelity import cell
from benchmarks.fidelity.cell import Cell

Result = TypeVar("Result")


def _quiet_worker() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def run_cells(cells: list[Cell], log: Path | None = None) -> Iterator[tuple[dict, np.ndarray | None]]:
    """Measure the cells, in whatever order they end. What ``log``, a file of JSON lines, holds already is not measured again
    (and comes without pictures); what is measured is appended to it."""
    known = {row["key"]: row for row in read_rows(log)} if log else {}
    missing = []
    for one in cells:
        if one.key() in known:
            yield known[one.key()], None
        else:
            missing.append(one)
    for row, images in run_all(cell.run, missing):
        if log:
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
        yield row, images


def run_all(work: Callable[[Cell], Result], cells: list[Cell]) -> Iterator[Result]:
    """What ``work``, a module's function, gives of each cell, in whatever order they end."""
    if not cells:
        return
    os.environ["TQDM_DISABLE"] = "1"  # of the workers: tqdm reads it when it is imported, as it was here
    workers = min(len(os.sched_getaffinity(0)), len(cells))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet_worker) as pool:
        for future in as_completed([pool.submit(work, one) for one in cells]):
            yield future.result()


def read_rows(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
