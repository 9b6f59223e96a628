"""The report's page: one file of HTML that needs nothing else, on a phone and on a desktop, light and dark."""

from __future__ import annotations

import base64
import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup
from PIL import Image

from finetuner.data import CaptionedExample
from finetuner.report.curve import as_svg
from finetuner.report.sheet import STRENGTHS, Sheet, thumbnail
from finetuner.report.summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Two megabytes is what a phone opens at once: 12 pictures of the sheet at 50 KB, 24 training images at 20 KB, as base64.
SHEET_SIDE = 384  # pixels
SHOWN, SHOWN_SIDE = 24, 240  # training images; pixels
CAPTION_LENGTH = 240  # characters
FEW_PIXELS = 160  # a picture of no more is shown pixel by pixel: smoothed, it would look out of focus

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_page(summary: Summary, examples: list[CaptionedExample], sheet: Sheet, curve: Figure) -> str:
    return TEMPLATES.get_template("page.html.j2").render(
        **asdict(summary),
        strengths=STRENGTHS,
        rows=list(zip(sheet.prompts, [[_inline(image, SHEET_SIDE) for image in row] for row in sheet.rows], strict=True)),
        training=[(example.name, _short(example.caption), _inline(example.image, SHOWN_SIDE)) for example in examples[:SHOWN]],
        more=max(0, len(examples) - SHOWN),
        curve=Markup(as_svg(curve)),
    )


def _inline(image: Image.Image, side: int) -> dict:
    """An ``<img>``'s attributes. WebP: every browser reads it, and it keeps few pixels exact in few bytes."""
    small = thumbnail(image, side)
    few = max(small.size) <= FEW_PIXELS
    data = io.BytesIO()
    small.save(data, "WEBP", lossless=few, quality=82)
    source = "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
    return {"src": source, "width": small.width, "height": small.height, "class": "few-pixels" if few else ""}


def _short(caption: str) -> str:
    return caption if len(caption) <= CAPTION_LENGTH else caption[: CAPTION_LENGTH - 1] + "…"
