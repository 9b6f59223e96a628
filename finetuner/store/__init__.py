"""finetune_id -> files, in a folder or an object store.

In: a folder with a finetune's files, sealed by its manifest. Out: a finetune_id, and for that the files again, checked. A
finetune is published whole or not at all. Begin with store.py, which says what every store does. Imports no torch.
"""

from __future__ import annotations

import os
import re

from finetuner.paths import ROOT
from finetuner.store.files import MANIFEST, is_sealed, seal, sha256, staging_folder
from finetuner.store.folder import FolderStore
from finetuner.store.store import Finetune, Listing, Store, StoreError, checked_id

__all__ = [
    "MANIFEST",
    "Finetune",
    "FolderStore",
    "Listing",
    "Store",
    "StoreError",
    "checked_id",
    "is_sealed",
    "open_store",
    "seal",
    "sha256",
    "staging_folder",
]


def open_store() -> Store:
    """The store that ``FINETUNE_STORE`` names: a folder, or an URL of any file system that fsspec knows.

    ``~`` and ``$NAME`` are expanded: files of variables, such as Docker's and systemd's, hand them over as they are written.

    Raises:
        ValueError: nothing here speaks the URL's protocol, or a name in it is not known here.
    """
    said = os.environ.get("FINETUNE_STORE") or "weights/finetunes"
    home = os.path.expanduser(os.path.expandvars(said))
    if unknown := re.search(r"^~[^/]*|\$\w+|\$\{\w*\}", home):
        raise ValueError(f"FINETUNE_STORE: {unknown[0]} in {said} is not known to this server. Write the whole path or URL.")
    if "://" not in home:
        return FolderStore(ROOT / home)
    from finetuner.store.object import ObjectStore  # takes two seconds, which a folder need not wait for

    return ObjectStore(home)
