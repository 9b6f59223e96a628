import json
import re

import pytest
from PIL import Image

from finetuner.serving.image_file import EXIF_IFD, EXIF_USER_COMMENT, write_image

PICTURE = Image.new("RGB", (8, 8), "red")


def said_in(path) -> dict:
    """The metadata as a reader of Exif finds it: its first 8 bytes name the encoding."""
    comment = Image.open(path).getexif().get_ifd(EXIF_IFD)[EXIF_USER_COMMENT]
    encoding = {b"ASCII\0\0\0": "ascii", b"UNICODE\0": "utf-16-le"}[comment[:8]]
    return json.loads(comment[8:].decode(encoding, "surrogatepass"))


@pytest.mark.parametrize("prompt", ["a fox", "狐" * 300, "a fox " * 10_000, "狐" * 11_000, "狐" * 30_000, "\ud800"])
def test_a_jpeg_holds_the_whole_prompt_as_long_as_it_fits(tmp_path, prompt, caplog):
    assert said_in(write_image(PICTURE, tmp_path, "jpg", {"prompt": prompt, "seed": 5})) == {"prompt": prompt, "seed": 5}
    assert not caplog.records


@pytest.mark.parametrize("prompt", ["a fox " * 11_000, "狐" * 40_000, "🦊" * 70_000, "fox 狐" * 20_000])
def test_a_longer_one_is_cut_with_a_mark_and_a_warning(tmp_path, prompt, caplog):
    path = write_image(PICTURE, tmp_path, "jpg", {"prompt": prompt, "seed": 5})
    said = said_in(path)
    kept, mark = re.fullmatch(r"(.*)… \[cut: (\d+ of \d+) characters\]", said["prompt"]).groups()
    assert prompt.startswith(kept) and mark == f"{len(kept)} of {len(prompt)}" and said["seed"] == 5
    assert len(Image.open(path).info["exif"]) > 65_000  # no more is cut than must be
    assert f"prompt: its {len(prompt)} characters do not fit into a JPEG's metadata" in caplog.text


def test_a_png_holds_any(tmp_path, caplog):
    prompt = "狐" * 100_000
    assert (
        json.loads(Image.open(write_image(PICTURE, tmp_path, "png", {"prompt": prompt})).text["finetune"])["prompt"] == prompt
    )
    assert not caplog.records
