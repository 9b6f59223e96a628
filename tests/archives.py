"""Real images and archives, made on the spot, and what to watch while they are read."""

import io
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

RED = (200, 30, 40)
WRITING = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}
RUNNING = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"}
watching = False
caught: list[str] = []


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def photo(colour: tuple[int, int, int] = RED, size: tuple[int, int] = (8, 6), format: str = "PNG", **options) -> bytes:
    return encoded(Image.new("RGB", size, colour), format, **options)


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)  # ZipInfo, to be the same at any time of day
    return file.getvalue()


def zip_of(files: list[tuple[bytes, bytes]], extra: bytes = b"", flags: int = 0) -> bytes:
    """A zip of stored files whose names are any bytes."""
    body, directory = b"", b""
    for name, content in files:
        sizes = struct.pack("<3I2H", zlib.crc32(content), len(content), len(content), len(name), len(extra))
        directory += struct.pack("<4s6H", b"PK\1\2", 20, 20, flags, 0, 0, 0) + sizes
        directory += struct.pack("<3H2I", 0, 0, 0, 0, len(body)) + name + extra
        body += struct.pack("<4s5H", b"PK\3\4", 20, flags, 0, 0, 0) + sizes + name + extra + content
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(files), len(files), len(directory), len(body), 0)
    return body + directory + end


def tarred(files: dict[str, bytes], compression: str = "", format: int = tarfile.PAX_FORMAT) -> bytes:
    return tar_of([member(name, len(content)) for name, content in files.items()], list(files.values()), compression, format)


def member(name: str, size: int = 0, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar_of(
    members: list[tarfile.TarInfo], contents: list[bytes], compression: str = "", format: int = tarfile.PAX_FORMAT
) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}", format=format) as archive:
        for info, content in zip(members, contents, strict=True):
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


@contextmanager
def nothing_written() -> Iterator[None]:
    """Fail if a file is opened for writing, a folder is touched or a program is run, wherever it is."""
    global watching
    caught.clear()
    watching = True
    try:
        yield
    finally:
        watching = False
    assert not caught, caught


def _watch(event: str, arguments: tuple) -> None:
    if not watching:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or event in WRITING | RUNNING:
        caught.append(f"{event} {arguments}")


sys.addaudithook(_watch)


def peak_memory(run: Callable[[], object]) -> int:
    """How many bytes the process grew by, at most, while ``run`` ran: all of them, not only Python's."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        pytest.skip("only Linux tells the peak of a process's memory")
    reset.write_text("5")
    before = _kilobytes("VmRSS")
    run()
    return (_kilobytes("VmHWM") - before) * 1024


def _kilobytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
