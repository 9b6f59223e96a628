"""Any image a person sends, as that person sees it."""

import io
import re
import struct
import zlib
from pathlib import Path

import pytest
from archives import RED, encoded, nothing_written, peak_memory, photo
from PIL import Image, ImageCms

from finetuner.data import images
from finetuner.data.images import ImageError, decode_image

HERE = Path(__file__).parent
GREEN, BLUE, WHITE = (0, 128, 0), (0, 0, 255), (255, 255, 255)
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
MEBIBYTE = 2**20


def close(pixel: tuple[int, ...], colour: tuple[int, ...], tolerance: int = 4) -> bool:
    return len(pixel) == 3 and all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


def seen(data: bytes, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    image = decode_image(data)
    assert image.mode == "RGB"
    return image.getpixel(at)


def refused(data: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        decode_image(data)


@pytest.mark.parametrize("format", FORMATS)
def test_reads(format):
    image = decode_image(photo(format=format))
    assert image.size == (8, 6)
    assert close(seen(photo(format=format)), RED)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_takes_the_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert close(seen(data), RED)


def test_reads_the_photograph_of_a_camera_file_that_holds_a_preview_too():
    data = encoded(Image.new("RGB", (8, 6), RED), "MPO", save_all=True, append_images=[Image.new("RGB", (4, 3), BLUE)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert close(seen(data), RED)


# Upright


def corner_at(orientation: int, format: str) -> bytes:
    """A picture with a red corner which, turned as its EXIF block says, is at the top left."""
    upright = Image.new("RGB", (48, 32), BLUE)
    upright.paste(RED, (0, 0, 16, 16))
    inverse = images.UPRIGHT.get(orientation)
    if inverse in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270):
        inverse = Image.Transpose.ROTATE_270 if inverse is Image.Transpose.ROTATE_90 else Image.Transpose.ROTATE_90
    stored = upright if inverse is None else upright.transpose(inverse)
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    return encoded(stored, format, exif=exif, **({} if format == "TIFF" else {"quality": 95}))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format, orientation):
    image = decode_image(corner_at(orientation, format))
    assert image.size == (48, 32)
    assert close(image.getpixel((4, 4)), RED, 12)
    assert all(close(image.getpixel(corner), BLUE, 12) for corner in [(44, 4), (4, 28), (44, 28)])


def test_the_orientation_that_only_xmp_tells_is_applied():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert decode_image(photo(format="JPEG", xmp=xmp)).size == (6, 8)


def test_a_photograph_with_a_damaged_exif_block_is_read():
    assert close(seen(photo(format="JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\xff\xff" * 9)), RED)
    assert close(seen(photo(format="WEBP", exif=b"Exif\0\0no TIFF header")), RED)


# Colours


def test_cmyk_is_read_in_adobes_inverted_way():
    data = encoded(Image.new("CMYK", (8, 6), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in data  # the mark of the inverted way, as Photoshop sets it
    assert close(seen(data), (255, 0, 0), 8)


def test_cmyk_tiff_is_read():
    assert close(seen(encoded(Image.new("CMYK", (8, 6), (0, 255, 255, 0)), "TIFF")), (255, 0, 0))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("value", [0, 8000, 32768, 65535])
def test_16_bit_grey_keeps_its_brightness(format, value):
    assert close(seen(encoded(Image.new("I;16", (8, 6), value), format)), (value // 256,) * 3, 1)


def test_16_bit_grey_in_big_endian_order_keeps_its_brightness():
    image = Image.frombytes("I;16B", (8, 6), struct.pack(">H", 32768) * 48)
    assert close(seen(encoded(image, "TIFF")), (128,) * 3, 1)


def test_16_bit_grey_with_a_transparent_value_is_read():
    assert seen(encoded(Image.new("I;16", (8, 6), 32768), transparency=40000)) == (128, 128, 128)


def test_a_16_bit_tiff_whose_zero_is_white_is_no_negative():
    image = Image.new("I;16", (8, 6), 65535)
    assert seen(encoded(image, "TIFF", tiffinfo={images.PHOTOMETRIC: images.WHITE_IS_ZERO})) == (0, 0, 0)


def test_16_bit_colour_keeps_its_brightness():
    row = b"\0" + struct.pack(">3H", *(value * 257 for value in RED)) * 8
    assert seen(png(8, 6, bits=16, idat=zlib.compress(row * 6))) == RED


def test_32_bit_pixels_are_refused():
    refused(encoded(Image.new("F", (8, 6), 0.5), "TIFF"), "32 bits a channel")


def test_grey_and_black_and_white_are_read():
    assert seen(encoded(Image.new("L", (8, 6), 100))) == (100, 100, 100)
    assert seen(encoded(Image.new("1", (8, 6), 1))) == WHITE


def test_a_palette_is_read():
    assert seen(encoded(Image.new("RGB", (8, 6), RED).quantize(4))) == RED


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_white(format):
    image = Image.new("P", (8, 6), 1)
    image.putpalette([*RED, *GREEN])
    image.putpixel((0, 0), 0)
    data = encoded(image, format, transparency=1)
    assert seen(data) == RED
    assert seen(data, at=(1, 1)) == WHITE


def test_a_palette_with_many_opacities_lies_over_white():
    image = Image.new("P", (8, 6), 0)
    image.putpalette([0, 0, 0])
    assert close(seen(encoded(image, transparency=b"\x80")), (127, 127, 127), 1)


def test_a_transparent_colour_of_a_true_colour_png_is_white():
    assert seen(photo(transparency=RED)) == WHITE


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_alpha_lies_over_white(format):
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.new("RGBA", (8, 6), (0, 0, 0, 51)), format, **options)
    assert close(seen(data), (204, 204, 204), 2)


def test_grey_with_alpha_lies_over_white():
    assert close(seen(encoded(Image.new("LA", (8, 6), (0, 51)))), (204, 204, 204), 1)


def test_what_transparency_hides_leaves_no_fringe():
    image = Image.new("RGBA", (1200, 1200), (255, 0, 0, 0))  # red that nobody sees
    image.paste((0, 0, 255, 255), (601, 0, 1200, 1200))
    row = decode_image(encoded(image, compress_level=1)).crop((500, 500, 524, 501))
    for red, green, blue in row.get_flattened_data():
        assert red == green and blue >= 250  # from white to blue, by way of no red


def profile_of(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of a monitor."""
    table, body = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += tag + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(content))
        body += content.ljust(-(-len(content) // 4) * 4, b"\0")
    size = struct.pack(">I", 128 + len(table) + len(body))
    header = size + b"lcms\x02\x40\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    return (header + struct.pack(">3i", 63190, 65536, 54061)).ljust(128, b"\0") + table + body


def swapped_profile() -> bytes:
    """sRGB with red for blue."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for old, new in ((b"rXYZ", b"????"), (b"bXYZ", b"rXYZ"), (b"????", b"bXYZ")):
        profile[:] = profile.replace(old, new)
    return bytes(profile)


LINEAR_GREY = profile_of(
    b"GRAY", {b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061), b"kTRC": b"curv" + bytes(8)}
)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_colour_profile_is_converted(format):
    assert close(seen(photo((255, 0, 0), format=format, icc_profile=swapped_profile())), BLUE, 8)


def test_the_colour_profile_of_a_palette_is_converted():
    image = Image.new("RGB", (8, 6), (255, 0, 0)).quantize(4)
    assert close(seen(encoded(image, icc_profile=swapped_profile())), BLUE)


def test_the_colour_profile_of_an_image_with_alpha_is_converted():
    image = Image.new("RGBA", (8, 6), (255, 0, 0, 51))
    assert close(seen(encoded(image, icc_profile=swapped_profile())), (204, 204, 255))


@pytest.mark.parametrize(("mode", "colour"), [("L", 55), ("LA", (55, 255)), ("I;16", 55 * 256)])
def test_the_profile_of_a_grey_image_is_converted(mode, colour):
    assert close(seen(encoded(Image.new(mode, (8, 6), colour), icc_profile=LINEAR_GREY)), (128, 128, 128), 3)


@pytest.mark.parametrize("profile", [b"no profile", LINEAR_GREY])
def test_a_profile_that_is_damaged_or_of_other_colours_is_ignored(profile):
    assert seen(photo(icc_profile=profile)) == RED


# Size


def test_a_large_image_is_scaled_down_to_a_megapixel():
    image = decode_image(photo(size=(3000, 1500), format="JPEG"))
    assert image.width * image.height == pytest.approx(2**20, rel=0.01)
    assert image.width / image.height == pytest.approx(2, rel=0.01)


def test_a_small_image_keeps_its_size():
    assert decode_image(photo(size=(1024, 1024))).size == (1024, 1024)


def test_a_line_stays_a_line():
    assert decode_image(encoded(Image.new("1", (10_000_000, 1)), "BMP")).height == 1


def test_metadata_is_not_kept():
    image = decode_image(photo(format="JPEG", comment=b"x" * 60000, icc_profile=swapped_profile()))
    assert not image.info
    assert type(image) is Image.Image  # and not a JpegImageFile, which holds on to the file


# What is worse than wrong


def png(width: int, height: int, bits: int = 8, idat: bytes = b"", more: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def huge_jpeg() -> bytes:
    data = bytearray(photo(format="JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", 65000, 65000)
    return bytes(data)


def huge_bmp() -> bytes:
    data = bytearray(photo(format="BMP"))
    data[18:26] = struct.pack("<ii", 30000, 30000)
    return bytes(data)


def huge_gif() -> bytes:
    data = bytearray(photo(format="GIF"))
    data[6:10] = struct.pack("<HH", 65000, 65000)
    return bytes(data)


def huge_webp() -> bytes:
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, BLUE)]  # whose canvas may be larger than its frames
    data = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    start = data.index(b"VP8X") + 12
    data[start : start + 6] = (12000 - 1).to_bytes(3, "little") * 2
    return bytes(data)


def tiff_with_huge_tile(side: int = 20000) -> bytes:
    tile = zeros_packed(side * side // MEBIBYTE)
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8 + 2 + 12 * 10 + 4, 325: len(tile)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + tile


def zeros_packed(mebibytes: int) -> bytes:
    packer, zeros = zlib.compressobj(1), bytes(MEBIBYTE)
    return b"".join(packer.compress(zeros) for _ in range(mebibytes)) + packer.flush()


@pytest.mark.parametrize(
    "make",
    [lambda: png(60000, 60000), lambda: png(11000, 11000), huge_jpeg, huge_bmp, huge_gif, huge_webp, tiff_with_huge_tile],
    ids=["png beyond Pillow's limit", "png", "jpeg", "bmp", "gif", "webp", "tiff tile"],
)
def test_too_many_pixels_are_refused_before_memory_is_spent(make):
    data = make()
    assert peak_memory(lambda: refused(data, "megapixels")) < 30 * MEBIBYTE


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_bomb_in_a_pngs_metadata_takes_no_memory(kind):
    before = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\1\0\0\0", b"iCCP": b"a\0\0"}[kind]
    data = png(4, 4, idat=zlib.compress(bytes(4 * 13)), more=chunk(kind, before + zeros_packed(200)))

    assert peak_memory(lambda: decode_image(data)) < 30 * MEBIBYTE


def test_pixels_beyond_the_declared_ones_take_no_memory():
    data = png(4, 4, idat=zeros_packed(200))
    assert peak_memory(lambda: decode_image(data)) < 30 * MEBIBYTE


@pytest.mark.parametrize(
    ("format", "mode", "options"),
    [
        ("JPEG", "CMYK", {"progressive": True}),
        ("PNG", "RGBA", {"compress_level": 1}),
        ("PNG", "RGB", {"compress_level": 1, "transparency": (1, 2, 3)}),
        ("PNG", "LA", {"compress_level": 1}),
        ("PNG", "I;16", {"compress_level": 1}),
        ("GIF", "P", {"transparency": 3}),
        ("TIFF", "RGBA", {"compression": "tiff_adobe_deflate", "strip_size": 2**30, "exif": {images.ORIENTATION: 6}}),
        ("WEBP", "RGBA", {"method": 0}),
        ("AVIF", "RGBA", {"speed": 10, "subsampling": "4:4:4"}),
    ],
)
def test_the_largest_image_of_each_format_stays_below_a_gigabyte(format, mode, options):
    """Measured at a fifth of the limit, without what does not grow with the pixels, and with the file itself on top."""
    pixels = images.MAX_PIXELS_OF.get(format, images.MAX_PIXELS) // 5
    side = int(pixels**0.5)
    if "exif" in options:
        exif = Image.Exif()
        exif.update(options["exif"])
        options = options | {"exif": exif}
    image = Image.linear_gradient("L").resize((side, side))
    data = encoded(image.convert(mode) if mode in ("P", "I;16") else image.convert("RGB").convert(mode), format, **options)
    del image
    decode_image(photo(format=format))
    peak = peak_memory(lambda: decode_image(data)) - 16 * MEBIBYTE
    assert 5 * peak + 100 * MEBIBYTE < 1024 * MEBIBYTE


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_image_is_refused(format):
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    data = encoded(noise, format)
    refused(data[: len(data) // 2], "read")


@pytest.mark.parametrize("name", ["plain", "rotated"])
def test_heic_is_read_upright(name):
    """Four quarters; the second file is stored on its side, with the EXIF tag that says so."""
    image = decode_image((HERE / f"{name}.heic").read_bytes())
    assert image.mode == "RGB" and image.size == ((96, 64) if name == "plain" else (64, 96))
    corners = [(8, 8), (image.width - 9, 8), (8, image.height - 9), (image.width - 9, image.height - 9)]
    red, green, blue, yellow = (220, 30, 30), (30, 160, 60), (30, 60, 220), (250, 210, 40)
    wanted = (red, green, blue, yellow) if name == "plain" else (blue, red, yellow, green)
    assert all(close(image.getpixel(at), colour, 20) for at, colour in zip(corners, wanted, strict=True))


def test_transparent_heic_is_over_white():
    image = decode_image((HERE / "transparent.heic").read_bytes())
    assert close(image.getpixel((2, 2)), (255, 255, 255)) and close(image.getpixel((32, 32)), (20, 90, 200), 20)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_heic_that_was_cut_is_refused(share):
    data = (HERE / "plain.heic").read_bytes()
    refused(data[: int(share * len(data))], "save it")


def test_damaged_heic_has_its_own_word():
    for brands in (b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heic", b"hevc\0\0\0\0heic"):
        refused(struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(64), "HEIC.*save it as JPEG")


def test_formats_that_run_programs_are_not_opened():
    data = encoded(Image.new("RGB", (8, 6)), "EPS")
    with nothing_written():
        refused(data, "not an image that can be read here")


def test_an_empty_file_has_its_own_word():
    refused(b"", "empty")


# What every viewer shows whole is a picture, whatever its metadata

NOISE = Image.effect_noise((96, 64), 80).convert("RGB")
WORKFLOW = b"workflow\0" + b'{"node": 1}' * 200_000


@pytest.mark.parametrize(
    "more",
    [
        chunk(b"tEXt", WORKFLOW),
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(WORKFLOW)),
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(WORKFLOW)),
        chunk(b"tEXt", b"a\0b")[:-4] + b"\0\0\0\0",
        chunk(b"pHYs", b"123456789")[:-4] + b"\0\0\0\0",
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>")[:-4] + b"\0\0\0\0",
        chunk(b"gAMA", b"12"),
        chunk(b"iCCP", b"a\0\0no zlib"),
        chunk(b"eXIf", b"no TIFF"),
        chunk(b"tEXt", b"a\0b") * 5000,
    ],
    ids=["tEXt", "zTXt", "iTXt", "checksum", "checksum of pHYs", "checksum of XMP", "gAMA", "iCCP", "eXIf", "many"],
)
def test_a_pngs_metadata_decides_nothing(more):
    data = encoded(NOISE)
    end_of_header = 8 + 25
    assert decode_image(data[:end_of_header] + more + data[end_of_header:]).tobytes() == NOISE.tobytes()


def test_the_way_up_that_a_pngs_text_tells_is_kept():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(NOISE)
    assert decode_image(data[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + data[33:]).size == (64, 96)


@pytest.mark.parametrize("missing", [1, 4, 12, 14])
def test_a_png_without_its_end_is_read_as_long_as_no_pixel_is_missing(missing):
    assert decode_image(encoded(NOISE)[:-missing]).tobytes() == NOISE.tobytes()


@pytest.mark.parametrize("missing", [40, 1000])
def test_a_png_without_its_last_pixels_is_refused(missing):
    refused(encoded(NOISE)[:-missing], "cannot be read.*truncated")


def test_a_png_whose_pixels_have_another_checksum_is_refused():
    data = bytearray(encoded(NOISE))
    data[-20] ^= 1
    refused(bytes(data), "cannot be read")


JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "many restarts": {"restart_marker_blocks": 3},
    "full colour": {"subsampling": 0},
}


ENDS = [lambda d: d[:-2], lambda d: d[:-1], lambda d: d + b"trailing\xff\xd8", lambda d: d[:-2] + bytes(99)]


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("change", ENDS)
def test_a_jpeg_without_its_end_or_with_more_after_it_is_read(kind, change):
    data = encoded(NOISE, "JPEG", **JPEGS[kind])
    assert decode_image(change(data)).tobytes() == decode_image(data).tobytes()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_jpeg_with_missing_pixels_is_refused_wherever_it_was_cut(mode, kind, end):
    data = encoded(NOISE.convert(mode), "JPEG", **JPEGS[kind])
    start = data.index(b"\xff\xda") + 40
    end_of_scan = data.index(b"\xff\xc4", start) if kind == "progressive" else len(data) - 40
    restarts = [match.start() for match in re.finditer(rb"\xff[\xd0-\xd7]", data)]
    for at in [*range(start, end_of_scan, 501), *(at for at in restarts if at > start)]:
        refused(data[:at] + end, "cannot be read .the file is cut short, and a part of the picture is missing")


def test_a_progressive_jpeg_cut_between_two_scans_is_refused():
    data = encoded(NOISE, "JPEG", progressive=True)
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    for at in scans[1:]:
        refused(data[:at], "the file is cut short")


def test_a_progressive_jpeg_cut_in_its_last_scan_is_refused_with_an_end_marker_too():
    data = encoded(NOISE, "JPEG", progressive=True)
    refused(data[: (data.rindex(b"\xff\xda") + len(data)) // 2] + b"\xff\xd9", "the file is cut short")


def test_a_jpeg_whose_metadata_pillow_cannot_read_is_read():
    data = encoded(NOISE, "JPEG")
    bodies = [
        b"Exif\0\0" + b"\xff" * 40,
        b"ICC_PROFILE\0\1\2short",
        b"MPF\0II*\0\x08\0\0\0\xff\xff",
        b"Photoshop 3.0\x008BIM\xff",
    ]
    for marker in (b"\xff\xe1", b"\xff\xe2", b"\xff\xed"):
        for body in bodies:
            odd = data[:2] + marker + struct.pack(">H", len(body) + 2) + body + data[2:]
            assert decode_image(odd).tobytes() == decode_image(data).tobytes()


def test_a_second_picture_that_is_damaged_does_not_matter():
    data = encoded(NOISE, "MPO", save_all=True, append_images=[NOISE])
    first = decode_image(data).tobytes()
    assert decode_image(data[: len(data) * 3 // 4]).tobytes() == first


def test_adobes_ycck_is_read_as_photoshop_means_it():
    data = bytearray(encoded(Image.new("CMYK", (8, 6), (0, 255, 255, 0)), "JPEG", quality=95))
    assert data[data.index(b"Adobe") + 11] == 2 or close(seen(bytes(data)), (255, 0, 0), 8)


def test_a_palette_of_16_entries_with_transparency_and_odd_bits_is_read():
    image = Image.new("P", (7, 5), 1)
    image.putpalette([*RED, *GREEN])
    assert seen(encoded(image, bits=1, transparency=0)) == GREEN


def test_unused_bytes_after_a_webp_or_gif_are_passed_over():
    for format in ("WEBP", "GIF"):
        data = encoded(NOISE, format)
        assert decode_image(data + b"\0trailing").tobytes() == decode_image(data).tobytes()
