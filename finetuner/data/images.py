"""An image file's bytes -> RGB pixels as a person would see them."""

from __future__ import annotations

import io
import re
import warnings

from pi_heif import register_heif_opener
from PIL import Image, ImageCms, UnidentifiedImageError

from finetuner.data.jpeg import whole_jpeg, without_metadata
from finetuner.data.kinds import HEAD_BYTES, HEIF, NOT_READ, other_picture
from finetuner.data.png import SIGNATURE, picture_of_png

# Named one by one, because Pillow also opens formats that run other programs (EPS) or are no photographs (icons, PDF).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
# 110 megapixels hold what the largest cameras and telephones take. They need up to 8 bytes a pixel here; the decoders of
# the second group need up to 17, and with these limits neither takes a gigabyte.
MAX_PIXELS = 110_000_000
MAX_PIXELS_OF = {"WEBP": 50_000_000, "AVIF": 50_000_000, "TIFF": 50_000_000, "HEIF": 50_000_000}
SMALLER = "save it smaller (2 megapixels are plenty)"
KEPT_PIXELS = 2**20  # FLUX.1 trains on at most a megapixel: more is scaled down at once

ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags
DNG_VERSION, SUBFILE_TYPE, REDUCED, SUB_IMAGES = 50706, 254, 1, 330  # TIFF tags; REDUCED is a value of SUBFILE_TYPE
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a TIFF tag and one of its values


register_heif_opener(thumbnails=False)  # HEIC, as iPhones save photographs; upright already when it is opened


class ImageError(ValueError):
    """An image that cannot be used: why, and the remedy, in words that go on from its file's name."""


def decode_image(data: bytes, most_pixels: int | None = None) -> Image.Image:
    """The first frame, upright, in sRGB, over white, scaled down to a megapixel.

    Args:
        most_pixels: where fewer are to be taken than can be read.

    Raises:
        ImageError: it is no image of a format read here, is damaged, or has too many pixels.
    """
    if not data:
        raise ImageError("is an empty file: replace it")
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's, of odd metadata and of sizes that have our own limit
            image = _opened(data)
            _check(image, most_pixels)
            if image.format in ("JPEG", "MPO"):
                image = _opened(whole_jpeg(data))
            image.draft("RGB", (2048, 2048))  # a JPEG decodes at a fraction of its size where that is enough
            image.load()
            orientation, profile = _orientation(image), image.info.get("icc_profile")
            image = _plain(image)  # one step a statement: each frees the large image before it
            image = _scaled_down(image)
            if orientation in UPRIGHT:
                image = image.transpose(UPRIGHT[orientation])
            image = _over_white(image, profile)
    except ImageError:
        raise
    except Exception as error:  # for damaged bytes, Pillow lets nearly every exception through
        raise ImageError(f"cannot be read ({error}): save it again as JPEG or PNG") from error
    image.info.clear()  # a photograph's metadata may weigh more than a megapixel
    return image


def _opened(data: bytes) -> Image.Image:
    """The image by its header; no pixel is decoded yet."""
    if data.startswith(SIGNATURE):
        data = picture_of_png(data)
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"has far too many pixels: {SMALLER}") from error
    except UnidentifiedImageError as error:
        if re.match(HEIF, data, re.DOTALL):
            raise ImageError("is a HEIC file that is damaged, or of a kind that is not read here: save it as JPEG") from error
        if name := other_picture(data[:HEAD_BYTES]):
            raise ImageError(f"is {name}, {NOT_READ}") from error
        raise ImageError("is not an image that can be read here: save it as JPEG or PNG") from error
    except Exception:  # Pillow stumbles over metadata that viewers pass over
        if not data.startswith(b"\xff\xd8"):
            raise
        return Image.open(io.BytesIO(without_metadata(data)), formats=("JPEG",))


def _check(image: Image.Image, most_pixels: int | None) -> None:
    if most_pixels is not None and image.width * image.height > most_pixels:
        megapixels = f"{image.width * image.height / 10**6:.1f} megapixels, and at most {most_pixels // 10**6} are taken"
        raise ImageError(f"has {megapixels}: {SMALLER}")
    pixels, limit = _pixels_to_decode(image), MAX_PIXELS_OF.get(image.format or "", MAX_PIXELS)
    if pixels > limit:
        megapixels = f"{pixels // 10**6} megapixels, and of {image.format} at most {limit // 10**6} are read"
        raise ImageError(f"has {megapixels}: {SMALLER}")
    tags = getattr(image, "tag_v2", {})
    if DNG_VERSION in tags or (tags.get(SUBFILE_TYPE) == REDUCED and SUB_IMAGES in tags):
        raise ImageError(f"is a camera's raw file, {NOT_READ}")  # whose first image is a preview
    if image.mode in ("I", "F"):
        raise ImageError("has 32 bits a channel, which do not say what is white: save it as JPEG or PNG")


def _pixels_to_decode(image: Image.Image) -> int:
    """The image's pixels, or those of one of its tiles: a small TIFF may declare a huge one, which is decoded whole."""
    tags = getattr(image, "tag_v2", {})
    tile = [side if isinstance(side := tags.get(tag), int) else 0 for tag in (TILE_WIDTH, TILE_LENGTH)]
    return max(image.width * image.height, tile[0] * tile[1])


def _orientation(image: Image.Image) -> int | None:
    # Not ImageOps.exif_transpose: that also writes the whole EXIF block anew, and fails where one tag in it is odd.
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # the block is damaged; the photograph need not be
        return None


def _plain(image: Image.Image) -> Image.Image:
    """One of the modes L, RGB, CMYK, LA and RGBA."""
    if image.mode.startswith("I;16"):
        image = _in_8_bits(image)
    if image.has_transparency_data:
        return image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _in_8_bits(image: Image.Image) -> Image.Image:
    """The high byte of each pixel; Pillow's own conversion cuts off all that is above 255."""
    white_is_zero = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO  # Pillow heeds it up to 8 bits only
    high = 0 if image.mode == "I;16B" else 1
    image = Image.frombytes("L", image.size, image.tobytes()[high::2])
    return image.point(lambda value: 255 - value) if white_is_zero else image


def _scaled_down(image: Image.Image) -> Image.Image:
    factor = (KEPT_PIXELS / (image.width * image.height)) ** 0.5
    if factor >= 1:
        return image
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS)


def _over_white(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode not in ("LA", "RGBA"):
        return _in_srgb(image, profile)
    colours = _in_srgb(image.convert(image.mode.removesuffix("A")), profile)
    return Image.composite(colours, Image.new("RGB", image.size, "white"), image.getchannel("A"))


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An L, RGB or CMYK image as RGB; its profile, where it has one that fits, decides the colours."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            assert converted is not None  # it is None for a conversion in place alone
            return converted
        except (OSError, ImageCms.PyCMSError):  # damaged, or for other colours than the image has: all viewers ignore it
            pass
    return image.convert("RGB")
