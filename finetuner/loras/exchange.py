"""Finetunes from and for other tools: a LoRA file that was trained elsewhere in, a finetune's LoRA out."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from finetuner.bases import choose_base
from finetuner.loras.files import WEIGHTS_NAME, load_lora, save_lora
from finetuner.loras.formats import FORMATS, read_foreign_lora, target_shapes, write_kohya
from finetuner.requests import RANKS, check_trigger_word
from finetuner.store import Finetune, Store, sha256


def import_lora(path: Path, trigger_word: str, store: Store) -> Finetune:
    """Make a LoRA file a finetune of the chosen base.

    Raises:
        ValueError: the trigger word is not one word, or `read_foreign_lora` refuses the file.
        StoreError: the store cannot be written.
    """
    trigger_word = check_trigger_word(trigger_word)
    base = choose_base()
    weights = read_foreign_lora(path, base.family, target_shapes(base.meta_transformer()), largest_rank=max(RANKS))
    with tempfile.TemporaryDirectory() as staged:
        save_lora(weights, Path(staged), base.family)
        manifest = {
            "base": base.describe(),
            "inputs": {"trigger_word": trigger_word},
            "imported": {"file": path.name, "sha256": sha256(path)},
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
    published = finetune.folder / WEIGHTS_NAME
    partial = path.with_name(f"{path.name}.partial")
    try:
        if file_format == "kohya":
            write_kohya(load_lora(published), partial)
        else:
            shutil.copyfile(published, partial)  # as it is: ComfyUI reads these keys, too
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
