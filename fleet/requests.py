"""The library's requests, from the JSON values that a job's record keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

Request = TypeVar("Request")


def from_json(request: type[Request], inputs: dict[str, Any]) -> Request:
    """Raises ValueError as the request does, and for a name that is no input."""
    hints = get_type_hints(request)
    if unknown := inputs.keys() - hints.keys():
        raise ValueError(f"{min(unknown)}: is not an input here.")
    files = {name for name, hint in hints.items() if Path in (hint, *get_args(hint))}
    return request(**{name: Path(value) if name in files and value else value for name, value in inputs.items()})
