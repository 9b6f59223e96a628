"""What a server needs to serve at all, looked at when it starts: it fails its setup with a sentence, not each request."""

import logging
import shutil
import tempfile
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from finetuner.bases import choose_base
from finetuner.paths import JOBS
from finetuner.store import FolderStore, StoreError, open_store

log = logging.getLogger(__name__)

# Cog keeps each request's files in a folder here named by the request's id (coglet 0.23.1, `service.rs`). A request that
# cannot have one fails, and every later one is answered that the server is busy.
COGS_FOLDER = Path("/tmp/coglet/predictions")
FREE_BYTES = 1 << 30  # four checkpoints of a LoRA of rank 32 for FLUX.1-dev, its weights and optimizer state 250 MB


def check_predict_server() -> None:
    """Look at Cog's folder and the store; the base and its weights are looked at where they are loaded.

    Raises:
        RuntimeError: the server could answer no request; with the remedy.
    """
    _require_writable(COGS_FOLDER, "Cog keeps the files of every request there")
    _check_store(_ask_for_a_finetune)


def check_train_server() -> None:
    """Look at Cog's folder, the base, the folder of jobs with its disk, and the store.

    Raises:
        RuntimeError, ValueError: the server could answer no request; with the remedy.
    """
    _require_writable(COGS_FOLDER, "Cog keeps the files of every request there")
    choose_base().require_trains()
    _require_writable(JOBS, "trainings keep their checkpoints there")
    free = shutil.disk_usage(JOBS).free
    if free < FREE_BYTES:
        raise RuntimeError(f"{JOBS}: its disk has {free / 1e9:.1f} GB free, too little for a checkpoint. Make room there.")
    _check_store(lambda: open_store().check())


def _require_writable(folder: Path, reason: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder):
            pass
    except OSError as error:
        raise RuntimeError(
            f"{folder}: {reason}, and it cannot be written: {error}. Remove it, give it to the user that this server runs as,"
            " or make room on its disk."
        ) from error


def _check_store(check: Callable[[], None]) -> None:
    """A folder that fails is set up wrongly. An object store may be away for a while, and each request asks it again."""
    try:
        check()
    except StoreError as error:
        if isinstance(open_store(), FolderStore):
            raise
        log.warning("%s. The server starts all the same: each request asks the store again", error)


def _ask_for_a_finetune() -> None:
    with suppress(ValueError):  # there is none of this id
        open_store().manifest(str(uuid.uuid4()))
