"""The emoji drawings, and the scenes composed from them.

A *drawing* is a 128 px RGBA picture of one emoji in one family; a *scene* is a drawing on a named
background, at a scale and a place.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
DRAWING_SIZE = 128

NOTO = "noto"
FLUENT_FLAT = "fluent-emoji-flat"
LINE = "fluent-emoji-high-contrast"
CODEC_FAMILIES = (NOTO, FLUENT_FLAT, LINE, "flat-color-icons")  # all Apache-2.0, OFL-1.1 or MIT
FLUENT = "fluent-emoji"  # the same drawings with gradients and shine; MIT
NOTO_V1 = "noto-v1"  # Noto of before 2017, rounder; Apache-2.0
UNSEEN_FAMILIES = ("twemoji", "openmoji")  # neither the codec nor the transformer sees these
BENCHMARK_FAMILIES = ("emojione-monotone", "fxemoji")  # nor these, by CC BY 4.0 and Apache-2.0
NOTO_PACKAGE = "fonts-noto-color-emoji"
NOTO_MONO = "noto-emoji"  # the same things in outlines

BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "grey": (150, 150, 150),
    "red": (215, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 60),
    "green": (70, 165, 70),
    "teal": (20, 140, 140),
    "light blue": (150, 205, 245),
    "blue": (40, 95, 210),
    "purple": (125, 65, 175),
    "pink": (245, 160, 195),
    "brown": (125, 80, 50),
}


@dataclass(frozen=True)
class Concept:
    name: str  # what captions call it
    code: str  # its code point, in hexadecimal: the name of its drawing in every family


def fetch(folder: Path) -> None:
    """Render every family into ``folder`` (npm and apt fetch the pinned packages); skipped when these were rendered."""
    sources = {name: (HERE / name).read_bytes() for name in ("package.json", "package-lock.json", "render.mjs")}
    done = folder / "done"
    digest = hashlib.sha256(b"".join(sources.values())).hexdigest()
    if done.exists() and done.read_text() == digest:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in sources.items():
        (folder / name).write_bytes(content)
    subprocess.run(["npm", "ci", "--no-fund", "--no-audit"], cwd=folder, check=True)
    subprocess.run(["node", "render.mjs", "."], cwd=folder, check=True)
    render_noto(folder / NOTO, find_noto_font(folder))
    render_noto_mono(folder / NOTO_MONO, folder / "node_modules/@fontsource/noto-emoji")
    done.write_text(digest)


def find_noto_font(folder: Path) -> Path:
    """Unpack Debian's Noto Color Emoji package; needs apt but not root."""
    subprocess.run(["apt-get", "download", NOTO_PACKAGE], cwd=folder, check=True)
    package = next(folder.glob(f"{NOTO_PACKAGE}_*.deb"))
    subprocess.run(["dpkg", "-x", package.name, "font"], cwd=folder, check=True)
    return next((folder / "font").rglob("NotoColorEmoji.ttf"))


def render_noto(folder: Path, font_path: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    font = ImageFont.truetype(str(font_path), 109)  # the only size of the font's bitmaps (136 x 128)
    codes = [p.stem for p in (folder.parent / "twemoji").glob("*.png")]
    for code in codes:
        picture = Image.new("RGBA", (136, 136))
        ImageDraw.Draw(picture).text((0, 4), chr(int(code, 16)), font=font, embedded_color=True)
        if picture.getbbox() is None:
            continue
        picture.resize((DRAWING_SIZE, DRAWING_SIZE), Image.Resampling.LANCZOS).save(folder / f"{code}.png")


def render_noto_mono(folder: Path, package: Path) -> None:
    """Black glyphs; the font comes in parts by ranges of code points ("U+200d,U+23ce-23cf")."""
    folder.mkdir(parents=True, exist_ok=True)
    codes = {int(p.stem, 16) for p in (folder.parent / "twemoji").glob("*.png")}
    for part, ranges in json.loads((package / "unicode.json").read_text()).items():
        font = ImageFont.truetype(str(package / "files" / f"noto-emoji-{part.strip('[]')}-400-normal.woff2"), 100)
        for low, _, high in (piece.strip().removeprefix("U+").partition("-") for piece in ranges.split(",")):
            for code in codes & set(range(int(low, 16), int(high or low, 16) + 1)):
                picture = Image.new("RGBA", (DRAWING_SIZE, DRAWING_SIZE))
                ImageDraw.Draw(picture).text((64, 64), chr(code), "black", font, anchor="mm")
                if picture.getbbox():
                    picture.save(folder / f"{code:x}.png")


def concepts(folder: Path) -> list[Concept]:
    """The curated concepts, in the order of ``concepts.txt``.

    Raises:
        ValueError: a label that emojibase does not have.
    """
    codes = {e["label"]: e["hexcode"].lower().removesuffix("-fe0f") for e in json.loads((folder / "emoji.json").read_text())}
    lines = [line for line in (HERE / "concepts.txt").read_text().splitlines() if line and line[0] != "#"]
    found = []
    for line in lines:
        label, _, name = line.partition(" = ")
        if label not in codes:
            raise ValueError(f"concepts.txt: emojibase has no emoji labelled {label!r}")
        found.append(Concept(name or label, codes[label].lstrip("0")))
    return found


def family_codes(folder: Path, family: str) -> list[str]:
    return sorted(p.stem for p in (folder / family).glob("*.png"))


@cache
def drawing(folder: Path, family: str, code: str) -> Image.Image:
    """One drawing, cropped to what is drawn, so that scale means the same in every family."""
    picture = Image.open(folder / family / f"{code}.png").convert("RGBA")
    return picture.crop(picture.getbbox())


def compose(
    picture: Image.Image,
    background: tuple[int, int, int] | np.ndarray,
    size: tuple[int, int],
    scale: float,
    place: tuple[float, float],
) -> np.ndarray:
    """Put a drawing on a background.

    Args:
        background: one RGB colour, or an RGB array of ``size``.
        size: (width, height) of the scene in pixels.
        scale: longer side of the drawing as a share of the scene's shorter side.
        place: 0..1 in each direction: where in the free room the drawing stands, 0.5 being the middle.

    Returns:
        uint8 array, height x width x 3.
    """
    width, height = size
    factor = scale * min(size) / max(picture.size)
    drawn = picture.resize([max(1, round(side * factor)) for side in picture.size], Image.Resampling.LANCZOS)
    scene = Image.new("RGB", size, background) if isinstance(background, tuple) else Image.fromarray(background)
    corner = round((width - drawn.width) * place[0]), round((height - drawn.height) * place[1])
    scene.paste(drawn, corner, drawn)
    return np.asarray(scene)


def to_tensor_range(scenes: np.ndarray) -> np.ndarray:
    """uint8 N x H x W x 3 -> float32 N x 3 x H x W in -1..1."""
    return np.ascontiguousarray(scenes.transpose(0, 3, 1, 2)).astype(np.float32) / 127.5 - 1
