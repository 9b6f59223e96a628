"""An image and what it was made with -> one JPEG or PNG file."""

from __future__ import annotations

import bisect
import json
import logging
import tempfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

log = logging.getLogger(__name__)

EXIF_USER_COMMENT = 0x9286
EXIF_IFD = 0x8769
# A JPEG's segment holds 65,533 bytes (ITU-T T.81, B.1.1.4): "Exif" and what its directories take go off.
USER_COMMENT_BYTES = 65_533 - 100
CUT = "… [cut: {kept} of {all} characters]"


def write_image(image: Image.Image, folder: Path | None, output_format: str, metadata: dict) -> Path:
    """Write a new JPEG or PNG file that carries ``metadata`` as JSON: in the EXIF user comment, or in the text ``finetune``.

    A JPEG has room for 64 KB of it: a longer prompt is cut there, which the log and the prompt itself say.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix="image-", suffix=f".{output_format}", delete=False) as file:
        if output_format == "png":
            text = PngInfo()
            text.add_text("finetune", json.dumps(metadata))
            image.save(file, "PNG", pnginfo=text)
        else:
            exif = Image.Exif()
            exif.get_ifd(EXIF_IFD)[EXIF_USER_COMMENT] = user_comment(metadata)
            image.save(file, "JPEG", quality=95, subsampling=0, exif=exif)  # 4:4:4: no colour fringes on flat areas
    return Path(file.name)


def user_comment(metadata: dict) -> bytes:
    """``metadata`` as JSON in the form of Exif's UserComment, its prompt cut where it is too long for a JPEG."""
    prompt = metadata["prompt"]

    def cut_to(length: int) -> bytes:
        mark = CUT.format(kept=length, all=len(prompt)) if length < len(prompt) else ""
        return _encoded(metadata | {"prompt": prompt[:length] + mark})

    whole = cut_to(len(prompt))
    if len(whole) <= USER_COMMENT_BYTES:
        return whole
    kept = bisect.bisect_right(range(len(prompt)), USER_COMMENT_BYTES, key=lambda length: len(cut_to(length))) - 1
    log.warning(
        "prompt: its %d characters do not fit into a JPEG's metadata, which holds the first %d. output_format png holds all",
        len(prompt),
        kept,
    )
    return cut_to(kept)


def _encoded(metadata: dict) -> bytes:
    r"""As ASCII, which every reader knows; where that is too long, as UTF-16: a Chinese character takes 2 bytes of it, not the
    6 of its \u4e00."""
    ascii_form = b"ASCII\0\0\0" + json.dumps(metadata).encode()
    if len(ascii_form) <= USER_COMMENT_BYTES:
        return ascii_form
    wide_form = b"UNICODE\0" + json.dumps(metadata, ensure_ascii=False).encode("utf-16-le", "surrogatepass")
    return min(ascii_form, wide_form, key=len)
