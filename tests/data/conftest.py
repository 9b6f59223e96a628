"""Reading archives, with nothing written while they are read."""

import logging
import re

import pytest
from archives import nothing_written

from finetuner.data.archive import Example, open_archive


@pytest.fixture
def log(caplog) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="finetuner")
    return caplog


@pytest.fixture
def read(tmp_path, log):
    """Read an archive's bytes; nothing may be written while they are."""

    def read(data: bytes, name: str = "archive") -> list[Example]:
        path = tmp_path / name
        path.write_bytes(data)
        with nothing_written():
            return open_archive(path)

    return read


@pytest.fixture
def refused(read):
    """What an archive is refused with."""

    def refused(data: bytes, pattern: str = "") -> str:
        with pytest.raises(ValueError, match=r"\Ainput_images: ") as caught:
            read(data)
        message = str(caught.value)
        assert re.search(pattern, message), message
        return message

    return refused


@pytest.fixture
def warnings(log):
    """What was warned of so far, as one text."""
    return lambda: "\n".join(record.getMessage() for record in log.records if record.levelno >= logging.WARNING)
