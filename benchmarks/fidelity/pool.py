"""Cells by the dozen: as many processes as there are cores, one thread each, which is faster than one of two threads."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers

from benchmarks.fidelity import cell
from benchmarks.fidelity.cell import Cell


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
    if not missing:
        return
    os.environ["TQDM_DISABLE"] = "1"  # of the workers: tqdm reads it when it is imported, as it was here
    workers = min(len(os.sched_getaffinity(0)), len(missing))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet_worker) as pool:
        for future in as_completed([pool.submit(cell.run, one) for one in missing]):
            row, images = future.result()
            if log:
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            yield row, images


def read_rows(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
