"""One file of an archive, not yet unpacked, and the limits that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MAX_ENTRIES = 10_000  # a training set has tens of files; a bomb has millions
MAX_FILE_BYTES = 100 * 2**20  # the largest camera JPEGs and PNGs are below 60 MiB
MAX_TOTAL_BYTES = 4 * 2**30  # of all that is unpacked; at most one file of it is in memory at a time
MAX_RATIO = 200  # unpacked to packed: drawings reach it, and a bomb of deflate goes on to 1000, of bzip2 to 1000000 ...
HARMLESS_BYTES = 2**30  # ... but however well it is packed, this much is unpacked in a second or two
LZMA_MEMORY = 128 * 2**20  # xz -9 takes 65 MiB to unpack; a header may ask for 4 GiB

CHUNK = 64 * 2**10
PACK_AGAIN = "Pack the images into a zip again and send that"
TOO_MANY = f"the archive holds more than {MAX_ENTRIES} files. Send fewer images"


class ArchiveError(ValueError):
    """The archive as a whole is of no use; a sentence with its remedy."""


@dataclass(frozen=True)
class Entry:
    raw_name: bytes  # as the archive has it, be it a path that leads anywhere, in any encoding
    unicode_name: str | None  # where the archive says the name in Unicode, too
    size: int  # in bytes, as the archive has it
    is_file: bool  # and not a link or a device
    _head: Callable[[], bytes]
    _unpack: Callable[[], bytes]

    def head(self) -> bytes | None:
        """The first `HEAD_BYTES`, before `read`; None where they cannot be had.

        Raises:
            ArchiveError: the damage, or a limit, ends the archive.
        """
        try:
            return self._head() if self.is_file else None
        except ArchiveError:
            raise
        except ValueError:
            return None

    def read(self) -> bytes:
        """The content. Only until the next entry is asked for: a tar is read in one go.

        Raises:
            ValueError: the file is too large or damaged; says so in words that go on from its name.
            ArchiveError: the damage, or a limit, ends the archive.
        """
        if self.size > MAX_FILE_BYTES:
            raise ValueError(f"is larger than {MAX_FILE_BYTES >> 20} MiB: save it smaller")
        return self._unpack()


@contextmanager
def damage_in_plain_words() -> Iterator[None]:
    try:
        yield
    except ArchiveError:
        raise
    except EOFError as error:
        raise ArchiveError("the archive is cut short. Download or upload it again, whole") from error
    except Exception as error:  # parsing damaged headers ends in nearly every exception there is
        raise ArchiveError(f"the archive is damaged ({error}). {PACK_AGAIN}") from error


class Budget:
    """How much may still be unpacked."""

    def __init__(self, size: int) -> None:
        self.left = size

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ArchiveError(
                f"the archive unpacks to more than {MAX_TOTAL_BYTES >> 30} GiB, or to more than {MAX_RATIO} times its own size."
                " Send fewer images, saved as JPEG"
            )
