"""Small pictures in rows, for people to compare."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP, HEAD = 4, 40  # pixels: between pictures, and above them


def grouped_sheet(rows: dict[str, np.ndarray], heads: dict[int, str], group: int, cell: int) -> Image.Image:
    """A row of pictures behind each label, each ``group`` of them a little apart.

    Args:
        rows: label -> pictures, uint8 [columns, height, width, 3]; of all as many.
        heads: number of a column -> the words above it.
        cell: side of a picture on the sheet, in pixels.
    """
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    label = 12 + int(max(font.getlength(line) for name in rows for line in name.split("\n")))

    def left(column: int) -> int:
        return label + column * (cell + GAP) + column // group * 3 * GAP

    columns = len(next(iter(rows.values())))
    page = Image.new("RGB", (left(columns), HEAD + len(rows) * (cell + GAP)), "white")
    pen = ImageDraw.Draw(page)
    for column, words in heads.items():
        pen.multiline_text((left(column), HEAD - 6), words, "black", small, anchor="ld")
    for row, (name, images) in enumerate(rows.items()):
        top = HEAD + row * (cell + GAP)
        pen.multiline_text((4, top + cell / 2), name, "black", font, anchor="lm")
        for column, pixels in enumerate(images):
            picture = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.LANCZOS)
            page.paste(picture, (left(column), top))
    return page
