"""The fleet's own secret: it signs the addresses of results, and gives each key's webhooks a secret of their own."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

BYTES = 32


class Secret:
    def __init__(self, key: bytes):
        self._key = key

    @classmethod
    def open(cls, folder: Path) -> Secret:
        """That of ``folder/secret``, made where there is none; every node that shares the folder has the same."""
        path = folder / "secret"
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".secret.{secrets.token_hex(8)}"
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(BYTES))
        with suppress(FileExistsError):
            os.link(partial, path)  # whole or not at all, and the first one counts
        partial.unlink()
        return cls(path.read_bytes())

    def sign(self, what: str, seconds: float) -> str:
        """``<expiry>-<signature>``: that ``what`` may be read until then."""
        expiry = int(time.time() + seconds)
        return f"{expiry}-{self._signature(what, expiry)}"

    def allows(self, what: str, signed: str) -> bool:
        """Whether this is what `sign` gave for ``what``, and still in time."""
        expiry, _, signature = signed.partition("-")
        if not expiry.isdecimal() or not expiry.isascii() or len(expiry) > 12 or not signature.isascii():
            return False
        return hmac.compare_digest(signature, self._signature(what, int(expiry))) and time.time() < int(expiry)

    def webhook_secret(self, owner: str) -> str:
        """``whsec_<base64>``: what Replicate's clients check signatures with; the same for an owner for ever."""
        return f"whsec_{base64.b64encode(self._derived(f'webhooks of {owner}')).decode()}"

    def _signature(self, what: str, expiry: int) -> str:
        return base64.urlsafe_b64encode(self._derived(f"read {what} until {expiry}")).decode().rstrip("=")

    def _derived(self, purpose: str) -> bytes:
        return hmac.digest(self._key, purpose.encode(), hashlib.sha256)
