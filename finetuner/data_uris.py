"""Files inside of a request: data: URIs and base64, in every spelling that clients send."""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote_to_bytes


def read_data_uri(field: str, uri: str) -> tuple[str, bytes]:
    """The media type of a data: URI (RFC 2397) and its content.

    Base64 may be of either alphabet, with or without padding and white space, and percent-encoded.

    Raises:
        ValueError: it has no comma, or is no base64; the sentence names the field.
    """
    header, comma, text = uri.partition(":")[2].partition(",")
    if not comma:
        raise ValueError(f"{field}: the data: URI has no comma. Send data:TYPE;base64, and then the file in base64.")
    kind, *parameters = (part.strip() for part in header.split(";"))
    kind = kind or "application/octet-stream"
    data = unquote_to_bytes(text)
    if "base64" not in (parameter.lower() for parameter in parameters):
        return kind, data
    return kind, read_base64(field, data, "the data: URI")


def read_base64(field: str, data: bytes, sent: str) -> bytes:
    """The content of base64, of either alphabet, with or without padding and white space.

    Raises:
        ValueError: it is none; the sentence names the field, and calls it ``sent``.
    """
    data = re.sub(rb"\s+", b"", data).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    if wrong := re.search(rb"[^A-Za-z0-9+/]", data):
        raise ValueError(
            f"{field}: {sent} is no base64: {wrong[0]!r} stands at character {wrong.start()} of it. Send the file in base64."
        )
    if len(data) % 4 == 1:
        raise ValueError(f"{field}: {sent}'s base64 is cut short: {len(data)} characters of it arrived. Send all of it.")
    return base64.b64decode(data + b"=" * (-len(data) % 4))
