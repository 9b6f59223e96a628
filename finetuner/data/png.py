"""A PNG file without what is not picture: metadata must not decide whether it can be read."""

from __future__ import annotations

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What changes how it looks. Of an animation, the first picture is in the same chunks as that of a still image.
KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"iCCP", b"iTXt", b"zTXt", b"tEXt", b"IEND")
MAX_METADATA_BYTES = 2**20  # of one chunk, unpacked: Pillow refuses the whole file above it
MAX_METADATA_CHUNKS = 16
# Texts that may say which way is up: XMP, and how ImageMagick writes EXIF
TEXTS_KEPT = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")


def picture_of_png(data: bytes) -> bytes:
    """The same picture, with whole metadata only: what is damaged, needless or unpacks to too much is left out.

    A last chunk that is cut short is kept as far as it goes: whether pixels are missing, the decoder sees.
    """
    kept = [SIGNATURE]
    start, texts = len(SIGNATURE), 0
    while start + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        content = data[start + 8 : start + 8 + size]
        checksum = data[start + 8 + size : start + 12 + size]
        start += 12 + size
        is_whole = checksum == struct.pack(">I", zlib.crc32(kind + content))
        if kind not in KEPT:
            if not kind[0] & 0x20:  # a critical chunk: without it the picture would be another
                kept.append(struct.pack(">I", size) + kind + content + checksum)
            continue
        if kind[0] & 0x20 and kind != b"tRNS":
            texts += 1
            if not is_whole or texts > MAX_METADATA_CHUNKS or not _is_harmless(kind, content):
                continue
        if len(checksum) < 4:  # the file ends here
            checksum = struct.pack(">I", zlib.crc32(kind + content))
        kept.append(struct.pack(">I", len(content)) + kind + content + checksum)
        if kind == b"IEND":
            return b"".join(kept)
    return b"".join([*kept, _chunk(b"IEND", b"")])


def _is_harmless(kind: bytes, content: bytes) -> bool:
    if len(content) > MAX_METADATA_BYTES:
        return False
    keyword, _, rest = content.partition(b"\0")
    if kind in (b"iTXt", b"zTXt", b"tEXt") and keyword + b"\0" not in TEXTS_KEPT:
        return False
    if kind in (b"iCCP", b"zTXt"):
        packed = rest[1:]
    elif kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        return True
    try:
        unpacker = zlib.decompressobj()
        unpacker.decompress(packed, MAX_METADATA_BYTES - 1)
    except zlib.error:
        return False
    return unpacker.eof


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
