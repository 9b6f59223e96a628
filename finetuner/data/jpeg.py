"""Whether a JPEG file has all its pixels.

Decoders fill what is missing with grey and say nothing, and Pillow refuses a file for its missing end alone. So the end is
found here, and put where it should be; whether the scan before it was complete shows when noise stands in for what may be
missing: a complete one decodes to the same pixels whatever follows.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct

from PIL import Image

START, END = b"\xff\xd8", b"\xff\xd9"
STANDALONE = (0x01, *range(0xD0, 0xD8))  # markers without a length
SCAN = 0xDA
NEXT_MARKER = re.compile(rb"\xff+[^\xff\x00\xd0-\xd7]")  # restarts are part of a scan
METADATA = (*range(0xE1, 0xEE), 0xEF, 0xFE)  # not 0xE0 and 0xEE: JFIF and Adobe say which colours are meant
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)


def whole_jpeg(data: bytes) -> bytes:
    """The file, with an end where it has none.

    Raises:
        ValueError: pixels are missing, or it is no JPEG.
    """
    end = _end(data)
    if end is None:
        raise ValueError("no picture is in it")
    has_end = data[end : end + 2] == END
    bare = _without_metadata(data[:end]).rstrip(b"\xff")  # half of a marker, or of a byte of a scan
    first, second = (_small(bare + _noise(bare, seed) + END) for seed in (b"a", b"b"))
    if first != second or not (has_end or _has_all_scans(bare)):
        raise ValueError("the file is cut short, and a part of the picture is missing")
    return data if has_end else data[:end] + END


def without_metadata(data: bytes) -> bytes:
    """The picture alone, for where its metadata cannot be read."""
    end = _end(data)
    return _without_metadata(data[:end]) + END


def _noise(picture: bytes, seed: bytes) -> bytes:
    """What a decoder takes for pixels, with the restart markers that it may wait for."""
    restarts = RESTART.findall(picture)
    number = restarts[-1][1] - 0xCF if restarts else 0
    blocks = [hashlib.sha256(seed + bytes([n])).digest().replace(b"\xff", b"") for n in range(16)]
    return b"".join(block + bytes([0xFF, 0xD0 + (number + n) % 8]) for n, block in enumerate(blocks))


def _small(data: bytes) -> bytes:
    """The pixels at a fraction of the size; a missing block changes them for certain."""
    image = Image.open(io.BytesIO(data), formats=["JPEG"])
    factor = 2 if _is_progressive(data) else 8  # at an eighth, only the first scan of a progressive file shows
    image.draft(image.mode, (-(-image.width // factor), -(-image.height // factor)))
    return hashlib.sha256(image.tobytes()).digest()


def _is_progressive(data: bytes) -> bool:
    return any(marker in PROGRESSIVE for marker, _, _ in _segments(data))


def _has_all_scans(data: bytes) -> bool:
    """Whether a progressive file tells every coefficient of every component to the last bit (ITU T.81, G.1.1)."""
    if not _is_progressive(data):
        return True
    told: set[tuple[int, int]] = set()
    components = 0
    for marker, start, _ in _segments(data):
        if marker in PROGRESSIVE:
            components = data[start + 9]
        elif marker == SCAN:
            count = data[start + 4]
            first, last, bits = data[start + 5 + 2 * count : start + 8 + 2 * count]
            if bits & 0x0F == 0:
                told |= {(data[start + 5 + 2 * n], k) for n in range(count) for k in range(first, last + 1)}
    return len(told) == 64 * components


def _segments(data: bytes):
    """(marker, start, end) of each segment, a scan's data with its header; stops at the end of the picture."""
    start = len(START)
    while match := NEXT_MARKER.search(data, start):
        marker, start = data[match.end() - 1], match.end() - 2
        if marker == END[1]:
            yield marker, start, start
            return
        if marker in STANDALONE:
            start += 2
            continue
        if start + 4 > len(data):
            return
        end = start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0]
        if marker == SCAN:
            following = NEXT_MARKER.search(data, end)
            end = following.end() - 2 if following else len(data)
        yield marker, start, min(end, len(data))
        start = end


def _end(data: bytes) -> int | None:
    """Where the picture ends: before its end marker, or after the last scan; None where there is no scan."""
    last = None
    for marker, start, end in _segments(data):
        if marker == END[1]:
            return start
        if marker == SCAN:
            last = end
    if last is None:
        return None
    return last - 1 if data[last - 1 : last] == b"\xff" else last  # half of an end marker


def _without_metadata(picture: bytes) -> bytes:
    kept = [picture[start:end] for marker, start, end in _segments(picture) if marker not in METADATA and marker != END[1]]
    return START + b"".join(kept)
