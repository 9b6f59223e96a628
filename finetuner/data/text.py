"""The bytes of caption files -> clean text."""

from __future__ import annotations

import re
import unicodedata

from finetuner.data.encodings import TEXT_ENCODINGS, decodes, guess_encoding, guess_unknown

MANGLED = 0.1  # of a text's characters beyond ASCII: up to here it is UTF-8 that was cut or damaged
CODED = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")


def decode_all(contents: list[bytes]) -> list[tuple[str | None, str | None]]:
    """Decode texts that lie in one archive.

    Returns:
        Of each, the text, or None where it is none; and its encoding, where that had to be guessed.
    """
    coded = [_unicode_encoding(content) for content in contents]
    bare = [content for content, encoding in zip(contents, coded, strict=True) if encoding == "utf-8"]
    unknown, together = guess_unknown([content for content in bare if not _is_mangled_utf8(content)], TEXT_ENCODINGS)
    found: list[tuple[str | None, str | None]] = []
    for content, encoding in zip(contents, coded, strict=True):
        if content in unknown and encoding == "utf-8":
            guess = together or guess_encoding([content], TEXT_ENCODINGS) or "cp1252"
            found.append((content.decode(guess, errors="ignore"), guess))
        elif decodes(content, encoding):
            found.append((content.decode(encoding), None))
        elif encoding == "utf-8":  # but for a few bytes
            found.append((content.decode(errors="ignore"), encoding))
        else:  # the mark says what it is, and it is not
            found.append((None, None))
    return found


def _unicode_encoding(content: bytes) -> str:
    if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")) and len(content) % 4 == 0:
        return "utf-32"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if len(content) >= 4 and len(content) % 4 == 0:
        if not any(content[2::4]) and not any(content[3::4]) and any(content):
            return "utf-32-le"
        if not any(content[::4]) and not any(content[1::4]) and any(content):
            return "utf-32-be"
    for encoding, high_bytes in ("utf-16-le", content[1::2]), ("utf-16-be", content[::2]):
        if high_bytes.count(0) > len(high_bytes) / 2:
            return encoding
    return "utf-8"


def _is_mangled_utf8(content: bytes) -> bool:
    """Whether it is UTF-8 but for a few bytes."""
    coded = len(CODED.findall(content))
    stray = sum(byte > 127 for byte in CODED.sub(b"", content))
    return 0 < stray <= max(2, coded * MANGLED) and coded >= 5 * stray


def clean(text: str) -> str:
    """All white space and control characters as single spaces."""
    # Of the characters that are not seen, only the two that join letters (in Persian, in emoji) belong to a text.
    kept = (c for c in text if c in "\u200c\u200d" or unicodedata.category(c) != "Cf")
    return " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in kept).split())
