"""Checkpoints of the build's stages, so that it goes on where it was stopped."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

EVERY_SECONDS = 120


class Checkpoints:
    """One file a stage in ``folder``, replaced atomically. Only this build reads them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.last_save = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self, stage: str, **parts) -> int:
        """Load the stage's parts, where there are any; the step to go on with."""
        path = self.folder / f"{stage}.pt"
        if not path.exists():
            return 0
        saved = torch.load(path, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        return saved["step"]

    def save(self, stage: str, step: int, *, last: bool, **parts) -> None:
        if not last and time.monotonic() - self.last_save < EVERY_SECONDS:
            return
        partial = self.folder / f"{stage}.partial"
        torch.save({"step": step} | {name: part.state_dict() for name, part in parts.items()}, partial)
        os.replace(partial, self.folder / f"{stage}.pt")
        self.last_save = time.monotonic()
