"""finetune_id -> files, in a folder or an object store.

In: a folder with a finetune's files, sealed by its manifest. Out: a finetune_id, and for that the files again, checked. A
finetune is published whole or not at all. Begin with store.py, which says what every store does. Imports no torch.
"""

from __future__ import annotations

import os

from finetuner.paths import ROOT
from finetuner.store.files import MANIFEST, is_sealed, seal, sha256, staging_folder
from finetuner.store.folder import FolderStore
from finetuner.store.store import Finetune, Listing, Store, StoreError

__all__ = [
    "MANIFEST",
    "Finetune",
    "FolderStore",
    "Listing",
    "Store",
    "StoreError",
    "is_sealed",
    "open_store",
    "seal",
    "sha256",
    "staging_folder",
]


def open_store() -> Store:
    """The store that ``FINETUNE_STORE`` names: a folder, or an URL of any file system that fsspec knows.

    Raises:
        ValueError: nothing here speaks the URL's protocol.
    """
    home = os.environ.get("FINETUNE_STORE") or "weights/finetunes"
    if "://" not in home:
        return FolderStore(ROOT / home)
    from finetuner.store.object import ObjectStore  # takes two seconds, which a folder need not wait for

    return ObjectStore(home)
