"""Finetunes from and for other tools: a LoRA file that was trained elsewhere in, a finetune's LoRA out."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from finetuner.bases import choose_base
from finetuner.loras.export import FORMATS, write_export
from finetuner.loras.files import save_lora
from finetuner.loras.foreign import linear_shapes, read_foreign_lora
from finetuner.requests import RANKS, check_trigger_word
from finetuner.store import Finetune, Store, sha256


def import_lora(path: Path, trigger_word: str, store: Store, *, resize: bool = False, blocks_only: bool = False) -> Finetune:
    """Make a LoRA a finetune of the chosen base. The file and the options are as `read_foreign_lora` takes them.

    Raises:
        ValueError: the trigger word is not one word, or `read_foreign_lora` refuses the file.
        StoreError: the store cannot be written.
    """
    trigger_word = check_trigger_word(trigger_word)
    base, path = choose_base(), path.absolute()  # "." has no name
    shapes = linear_shapes(base.meta_transformer())
    lora = read_foreign_lora(path, base.family, shapes, max(RANKS), resize=resize, blocks_only=blocks_only)
    with tempfile.TemporaryDirectory() as staged:
        save_lora(lora.weights, Path(staged), base.family)
        manifest = {
            "base": base.describe(),
            "inputs": {"trigger_word": trigger_word},
            "imported": {"file": path.name, "sha256": None if path.is_dir() else sha256(path)} | lora.facts,
        }
        return store.publish(Path(staged), manifest)


def export_lora(finetune: Finetune, file_format: str, path: Path) -> None:
    """Write a finetune's LoRA to one new file, whole or not at all.

    Raises:
        ValueError: there is no such format, or the file is there already.
    """
    if file_format not in FORMATS:
        raise ValueError(f"--format: {file_format!r} is not one of {', '.join(FORMATS)}.")
    if path.exists():
        raise ValueError(f"{path} is there already. Name another file, or delete it first.")
    partial = path.with_name(f"{path.name}.partial")
    try:
        write_export(finetune, file_format, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
