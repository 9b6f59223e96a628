"""Who may: API keys, each with a name. Of a key only its SHA-256 is kept.

    API_KEYS=ann:key,bob:key            in the environment
    API_KEYS_FILE=/etc/fleet/keys       a line each: ann:sha256:<64 hex digits>; a line ann:key is rewritten so when it is read

    python -m fleet.keys ann            makes a key: prints it, once, and the line for the file

A plain hash is enough for keys that are made so: 256 random bits cannot be tried one by one.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)

NOBODY = "local"  # the owner of everything on a fleet without keys
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
HASHED = "sha256:"
SHORTEST = 16  # characters: a key that is shorter can be guessed


class Keys:
    """The keys that are let in; of none, everyone is, as `NOBODY`."""

    def __init__(self, hashes: dict[str, str]):
        self._hashes = hashes  # by name

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def owner_of(self, key: str | None) -> str | None:
        """The key's name; None where it is no key of ours. Takes as long for a wrong key as for a right one."""
        if not self._hashes:
            return NOBODY
        found, sent = None, sha256(key or "")
        for name, kept in self._hashes.items():
            if hmac.compare_digest(kept, sent):
                found = name
        return found

    @classmethod
    def open(cls) -> Keys:
        """Those of ``API_KEYS`` and of the file that ``API_KEYS_FILE`` names.

        Raises:
            ValueError: a key or its name is not usable, or the file cannot be read; the sentence names it and never the key.
        """
        hashes = dict(_hashed(os.environ.get("API_KEYS", "").split(","), "API_KEYS"))
        if file := os.environ.get("API_KEYS_FILE"):
            for name, kept in _of_file(Path(file)).items():
                if hashes.setdefault(name, kept) != kept:
                    raise ValueError(f"API_KEYS_FILE: {name} is in API_KEYS, too, with another key. Leave one of them out.")
        names = {kept: name for name, kept in hashes.items()}
        for name, kept in hashes.items():
            if names[kept] != name:
                raise ValueError(f"API_KEYS: {name} and {names[kept]} have the same key. Give each a key of its own.")
        return cls(hashes)


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _of_file(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"API_KEYS_FILE: {path} cannot be read: {error}") from error
    entries = [line for line in lines if not line.strip().startswith("#")]
    hashes = dict(_hashed(entries, f"API_KEYS_FILE: {path}"))
    if any(entry.strip() and f":{HASHED}" not in entry for entry in entries):
        _rewrite(path, lines, hashes)
    return hashes


def _rewrite(path: Path, lines: list[str], hashes: dict[str, str]) -> None:
    """Keep the hashes in place of the keys; the comments stay."""

    def line_of(line: str) -> str:
        name = line.strip().partition(":")[0].strip()
        return f"{name}:{HASHED}{hashes[name]}" if name in hashes else line

    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.touch(mode=0o600)
        partial.write_text("\n".join(map(line_of, lines)) + "\n")
        partial.replace(path)
        log.info("API_KEYS_FILE: %s held keys as they are sent; it holds their hashes now", path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        log.warning("API_KEYS_FILE: %s holds keys as they are sent, and hashes cannot be put in their place: %s", path, error)


def _hashed(entries: Iterable[str], where: str) -> Iterable[tuple[str, str]]:
    seen = set()
    for entry in filter(None, map(str.strip, entries)):
        name, colon, key = (part.strip() for part in entry.partition(":"))
        if not colon or not NAME.fullmatch(name):
            raise ValueError(f"{where}: an entry is not NAME:KEY. A name is of letters, digits and . _ -, at most 64 of them.")
        if name in seen:
            raise ValueError(f"{where}: {name} has two keys. Give each key a name of its own.")
        seen.add(name)
        remedy = f"Make the line with: python -m fleet.keys {name}"
        kept = key.removeprefix(HASHED)
        if key.startswith(HASHED):
            if not re.fullmatch(r"[0-9a-f]{64}", kept):
                raise ValueError(f"{where}: {name} has no SHA-256 behind {HASHED}. {remedy}")
            yield name, kept
        elif not key:
            raise ValueError(f"{where}: {name} has no key. {remedy}")
        else:
            if len(key) < SHORTEST:
                log.warning("%s: the key of %s is short and can be guessed. %s", where, name, remedy)
            yield name, sha256(key)


def main() -> None:
    if len(sys.argv) != 2 or not NAME.fullmatch(sys.argv[1]):
        sys.exit("usage: python -m fleet.keys NAME\nNAME is of letters, digits and . _ -, and tells keys apart.")
    key = secrets.token_urlsafe(32)
    print(f"The key, which is kept nowhere:  {key}", file=sys.stderr)
    print(f"{sys.argv[1]}:{HASHED}{sha256(key)}")


if __name__ == "__main__":
    main()
