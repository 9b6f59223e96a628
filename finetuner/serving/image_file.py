"""An image and what it was made with -> one JPEG or PNG file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

EXIF_USER_COMMENT = 0x9286
EXIF_IFD = 0x8769


def write_image(image: Image.Image, folder: Path | None, output_format: str, metadata: dict) -> Path:
    """Write a new JPEG or PNG file that carries ``metadata`` as JSON: in the EXIF user comment, or in the text ``finetune``."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="image-", suffix=f".{output_format}", delete=False) as file:
        if output_format == "png":
            text = PngInfo()
            text.add_text("finetune", json.dumps(metadata))
            image.save(file, "PNG", pnginfo=text)
        else:
            exif = Image.Exif()
            exif.get_ifd(EXIF_IFD)[EXIF_USER_COMMENT] = b"ASCII\0\0\0" + json.dumps(metadata).encode()
            image.save(file, "JPEG", quality=95, subsampling=0, exif=exif)  # 4:4:4: no colour fringes on flat areas
    return Path(file.name)
