import io
import os
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from vizsla.data.images import (
    Header,
    _pillow_limits,
    read_header,
    read_image,
)
from vizsla.errors import ImageError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)

BROKEN_ON_PURPOSE = {  # a file of the shared edge cases → a word that its reason must hold
    "broken.png": "damaged PNG",
    "broken_data_stream.png": "damaged PNG",
    "decompression_bomb.gif": "4,364,696,535 pixels",
    "decompression_bomb.ico": "2,147,385,345 pixels",
    "png_decompression_dos.png": "decompression bomb",
    "truncated_end_chunk.png": "truncated",
    "truncated_image.png": "truncated",
    "truncated_jpeg.jpg": "truncated: the JPEG ends after 6,698 bytes",
    "zero_byte.jpg": "empty",
    "zero_height.j2k": "damaged JPEG 2000",
    "zero_width.gif": "damaged GIF",
}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(read_image(path)).astype(int)


def reason(path: Path, **options: int) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(path, **options)
    return str(caught.value)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def png(path: Path, size: tuple[int, int], depth: int, colour: int, *chunks: tuple) -> Path:
    """A PNG by hand: what Pillow cannot write. chunks: (name, content) between IHDR and IEND."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in (("IHDR", header), *chunks, ("IEND", b"")):
        body = name.encode() + data
        content += struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(content)
    return path


# ── smaller, and without pixels ──────────────────────────────────────────────────────────────────


def test_a_large_jpeg_can_come_smaller(tmp_path: Path) -> None:
    large = np.linspace(0, 255, 640 * 480 * 3).reshape(480, 640, 3).astype(np.uint8)
    path = saved(Image.fromarray(large), tmp_path / "large.jpg", quality=95)
    small = read_image(path, at_least=200)
    assert small.size == (320, 240)
    exact = np.asarray(Image.fromarray(large).reduce(2)).astype(int)
    assert np.abs(np.asarray(small).astype(int) - exact).max() <= 6
    assert read_image(path, at_least=300).size == read_image(path).size == (640, 480)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ImageError, match="truncated"):
        read_image(path, at_least=50)


def test_a_header_says_what_the_file_holds(tmp_path: Path) -> None:
    grey = saved(Image.new("L", (30, 20)), tmp_path / "grey.jpg")
    assert read_header(grey) == Header("JPEG", (30, 20), "L")
    wrong = saved(Image.new("RGBA", (5, 6)), tmp_path / "wrong.jpg", format="PNG")
    assert read_header(wrong) == Header("PNG", (5, 6), "RGBA")
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_header(tmp_path / "moving.gif").animated
    with pytest.raises(ImageError, match="pixels"):
        read_header(grey, max_pixels=100)
    grey.write_bytes(b"")
    with pytest.raises(ImageError, match="empty"):
        read_header(grey)


# ── real odd files ───────────────────────────────────────────────────────────────────────────────


def test_every_edge_file_is_a_picture_or_has_a_reason(shared: Path) -> None:
    files = sorted((shared / "data" / "edge").iterdir())
    reasons = {}
    for path in files:
        try:
            image = read_image(path)
            assert image.mode == "RGB" and type(image) is Image.Image and image.info == {}
        except ImageError as error:
            reasons[path.name] = str(error)
    assert len(files) == 83
    assert reasons.keys() == BROKEN_ON_PURPOSE.keys()
    for name, word in BROKEN_ON_PURPOSE.items():
        assert word in reasons[name]
        assert len(reasons[name]) < 120 and "\n" not in reasons[name]


@pytest.mark.parametrize("kind", ["Landscape", "Portrait"])
def test_all_eight_orientations_look_alike_when_upright(shared: Path, kind: str) -> None:
    first = pixels(shared / "data" / "edge" / f"{kind}_1.jpg")
    for i in range(9):
        other = pixels(shared / "data" / "edge" / f"{kind}_{i}.jpg")
        assert other.shape == first.shape
        assert abs(other - first).mean() < 5  # they were saved as JPEG again


def test_the_same_photo_in_other_formats_looks_the_same(shared: Path) -> None:
    edge = shared / "data" / "edge"
    photo = pixels(edge / "hopper.ppm")
    for name in ("bmp", "tif", "webp", "avif"):
        assert abs(pixels(edge / f"hopper.{name}") - photo).mean() < 6
    grey = pixels(edge / "hopper_gray.jpg")
    assert abs(pixels(edge / "hopper_16bit.pgm") - grey).mean() < 4
    assert (
        pixels(edge / "tiff_16bit_RGB.tiff") == pixels(edge / "tiff_16bit_RGB_target.png")
    ).all()


def test_cmyk_photos_have_the_colours_of_their_rgb_twin(shared: Path) -> None:
    edge = shared / "data" / "edge"
    twin = pixels(edge / "pil_sample_rgb.jpg")
    assert abs(pixels(edge / "pil_sample_cmyk.jpg") - twin).mean() < 8
    assert abs(pixels(edge / "tiff_strip_cmyk_jpeg.tif") - twin).mean() < 8


def test_heic_is_read_upright(shared: Path) -> None:
    pytest.importorskip("pillow_heif")
    image = read_image(shared / "data" / "edge" / "iphone_13_pro_max.HEIC")
    assert image.size == (3024, 4032)
    assert np.asarray(image).std() > 20


def test_heic_without_the_extra_names_it(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = shared / "data" / "edge" / "iphone_13_pro_max.HEIC"
    assert "pip install 'vizsla[heic]'" in reason(path)


def test_heic_beyond_the_limit_is_not_unpacked(shared: Path) -> None:
    pytest.importorskip("pillow_heif")
    path = shared / "data" / "edge" / "iphone_13_pro_max.HEIC"
    assert "12,192,768 pixels" in reason(path, max_pixels=1_000_000)


# ── upright ──────────────────────────────────────────────────────────────────────────────────────

CORNER = np.zeros((20, 30, 3), np.uint8)
CORNER[:10, :15] = RED  # upright: red above on the left, blue above on the right
CORNER[:10, 15:] = BLUE
LAID = {  # orientation → how the file holds the upright image
    1: CORNER,
    2: CORNER[:, ::-1],
    3: CORNER[::-1, ::-1],
    4: CORNER[::-1],
    5: CORNER.transpose(1, 0, 2),
    6: np.rot90(CORNER, 1),
    7: CORNER[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(CORNER, -1),
}


@pytest.mark.parametrize("extension", ["png", "tif", "webp", "avif"])
@pytest.mark.parametrize("orientation", LAID)
def test_orientation_in_every_format_with_exif(
    tmp_path: Path, orientation: int, extension: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(LAID[orientation]))
    options = {"webp": {"lossless": True}, "avif": {"quality": 100}}.get(extension, {})
    path = saved(stored, tmp_path / f"a.{extension}", exif=exif, **options)
    upright = pixels(path)
    assert upright.shape == CORNER.shape
    assert abs(upright - CORNER).mean() < 6


def test_grey_pictures_are_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(Image.new("I;16", (30, 20)), tmp_path / "a.png", exif=exif)
    assert read_image(path).size == (20, 30)


@pytest.mark.parametrize("block", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0", b"Exif\0\0II"])
def test_a_broken_exif_block_does_not_break_the_picture(tmp_path: Path, block: bytes) -> None:
    path = saved(Image.new("RGB", (8, 6), RED), tmp_path / "a.jpg", exif=block, quality=95)
    assert read_image(path).size == (8, 6)


# ── any mode to RGB ──────────────────────────────────────────────────────────────────────────────


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    for name in ("a.png", "a.tif"):
        read = pixels(saved(Image.fromarray(ramp), tmp_path / name))
        assert (read[..., 0].ravel() == np.arange(256)).all()
        assert (read[..., 0] == read[..., 2]).all()


def test_16_bit_pgm_and_colour_png_are_scaled(tmp_path: Path) -> None:
    values = np.array([0, 257 * 100, 65535], ">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + values.tobytes())
    assert pixels(tmp_path / "a.pgm")[0, :, 0].tolist() == [0, 100, 255]
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + bytes([0, 0, 0, 100, 0, 250]))
    assert pixels(tmp_path / "a.pgm")[0, :, 0].tolist() == [0, 0, 1]  # dark, not stretched
    rows = b"\0" + struct.pack(">6H", 65535, 0, 257 * 100, 0, 65535, 0)
    path = png(tmp_path / "b.png", (2, 1), 16, 2, ("IDAT", zlib.compress(rows)))
    assert pixels(path)[0].tolist() == [[255, 0, 100], [0, 255, 0]]


def test_12_bit_tiff_uses_its_own_white(tmp_path: Path) -> None:
    # Two 12-bit values, 0xFFF and 0x800, in three bytes.
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 110), (277, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(head + b"\xff\xf8\x00")
    assert len(head) == 110
    assert pixels(tmp_path / "a.tif")[0, :, 0].tolist() == [255, 128]


def test_tiff_where_white_is_zero(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 65535]], np.uint16))
    path = saved(image, tmp_path / "a.tif", tiffinfo={262: 0})
    assert pixels(path)[0, :, 0].tolist() == [255, 0]


def test_whole_numbers_and_floats_of_unknown_range(tmp_path: Path) -> None:
    def grey(numbers: list[float], dtype: type) -> list[int]:
        image = Image.fromarray(np.array([numbers], dtype))
        return pixels(saved(image, tmp_path / "a.tif"))[0, :, 0].tolist()

    assert grey([0, 0.5, 1], np.float32) == [0, 128, 255]
    assert grey([0, 100, 255], np.float32) == [0, 100, 255]
    assert grey([-10, 0, 10], np.float32) == [0, 128, 255]
    assert grey([0, np.nan, 1], np.float32) == [0, 0, 255]
    assert grey([7, 7, 7], np.float32) == [7, 7, 7]
    assert grey([-7, -7, -7], np.float32) == [0, 0, 0]
    assert grey([0, 100, 255], np.int32) == [0, 100, 255]
    assert grey([0, 257 * 100, 65535], np.int32) == [0, 100, 255]
    assert grey([-(10**6), 0, 10**6], np.int32) == [0, 128, 255]


@pytest.mark.parametrize("extension", ["png", "webp", "tif", "ico", "avif"])
def test_alpha_is_composed_on_white(tmp_path: Path, extension: str) -> None:
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))  # clear, and black beneath
    image.paste((255, 0, 0, 255), (16, 0, 32, 16))
    image.paste((0, 0, 0, 128), (16, 16, 32, 32))
    options = {"lossless": True} if extension == "webp" else {}
    read = pixels(saved(image, tmp_path / f"a.{extension}", **options))
    for place, colour in (((8, 8), WHITE), ((8, 24), RED), ((24, 24), (127, 127, 127))):
        assert abs(read[place] - np.array(colour)).max() <= (12 if extension == "avif" else 1)


def test_grey_with_alpha(tmp_path: Path) -> None:
    image = Image.new("LA", (2, 1), (0, 0))
    image.putpixel((1, 0), (40, 255))
    assert pixels(saved(image, tmp_path / "a.png"))[0].tolist() == [[255] * 3, [40] * 3]


@pytest.mark.parametrize("extension", ["png", "gif"])
def test_palette_with_a_transparent_colour(tmp_path: Path, extension: str) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    path = saved(image, tmp_path / f"a.{extension}", transparency=1)
    assert pixels(path)[0].tolist() == [list(RED), list(WHITE), list(BLUE)]


def test_palette_with_an_alpha_for_each_colour(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, 0, 0, 0, *BLUE])
    image.putdata([0, 1, 2])
    path = saved(image, tmp_path / "a.png", transparency=bytes([255, 51, 0]))
    assert pixels(path)[0].tolist() == [list(RED), [204] * 3, list(WHITE)]


@pytest.mark.parametrize(
    ("depth", "row", "clear", "expected"),
    [
        (1, b"\x40", 1, [0, 255]),
        (2, b"\x60", 1, [255, 170]),
        (4, b"\x3f", 3, [255, 255]),
        (8, b"\x10\x20", 16, [255, 32]),
        (16, b"\x10\x10\x10\x11", 0x1011, [16, 255]),
    ],
)
def test_transparent_grey_of_a_png_in_every_depth(
    tmp_path: Path, depth: int, row: bytes, clear: int, expected: list[int]
) -> None:
    data = ("IDAT", zlib.compress(b"\0" + row))
    path = png(tmp_path / "a.png", (2, 1), depth, 0, ("tRNS", struct.pack(">H", clear)), data)
    assert pixels(path)[0, :, 0].tolist() == expected


def test_transparent_colour_of_a_16_bit_png(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">6H", 300, 3000, 30000, 65535, 0, 0)
    clear = ("tRNS", struct.pack(">3H", 300, 3000, 30000))
    path = png(tmp_path / "a.png", (2, 1), 16, 2, clear, ("IDAT", zlib.compress(row)))
    assert pixels(path)[0].tolist() == [list(WHITE), list(RED)]


def test_cmyk_and_lab_and_one_bit(tmp_path: Path) -> None:
    assert pixels(saved(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), tmp_path / "a.tif"))[
        0, 0
    ].tolist() == list(RED)
    jpeg = pixels(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "a.jpg"))
    assert abs(jpeg[8, 8] - np.array(RED)).max() < 6
    lab = pixels(saved(Image.new("LAB", (4, 4), (255, 128, 128)), tmp_path / "b.tif"))
    assert lab.min() > 250
    bits = Image.new("1", (2, 1))
    bits.putpixel((1, 0), 1)
    for name in ("c.png", "c.bmp", "c.pbm", "c.tif"):
        assert pixels(saved(bits, tmp_path / name))[0, :, 1].tolist() == [0, 255]


@pytest.mark.parametrize("extension", ["gif", "png", "webp", "tif", "avif"])
def test_only_the_first_frame_counts(tmp_path: Path, extension: str) -> None:
    frames = [Image.new("RGB", (24, 16), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if extension == "webp" else {}
    path = tmp_path / f"a.{extension}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    read = pixels(path)
    assert read.shape == (16, 24, 3)
    assert abs(read - np.array(RED)).max() < 12


def test_mpo_gives_its_first_picture(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (16, 16), BLUE)
    first.save(tmp_path / "a.mpo", save_all=True, append_images=[second])
    assert abs(pixels(tmp_path / "a.mpo")[8, 8] - np.array(RED)).max() < 6


def test_jpeg_2000_and_extension_that_lies(tmp_path: Path) -> None:
    Image.new("RGB", (16, 12), RED).save(tmp_path / "a.jp2")
    (tmp_path / "a.jp2").rename(tmp_path / "a.jpg")
    assert pixels(tmp_path / "a.jpg").shape == (12, 16, 3)


def test_the_picture_lives_on_without_its_file(paint: Callable[..., Path]) -> None:
    path = paint("a.png", RED)
    image = read_image(path)
    path.unlink()
    image.putpixel((0, 0), BLUE)
    assert image.copy().getpixel((0, 0)) == BLUE


# ── limits and reasons ───────────────────────────────────────────────────────────────────────────


def test_max_pixels_is_exact(paint: Callable[..., Path]) -> None:
    path = paint("a.png", RED, (32, 24))
    assert read_image(path, max_pixels=32 * 24).size == (32, 24)
    assert reason(path, max_pixels=32 * 24 - 1) == (
        "768 pixels, more than the limit of 767 (max_pixels)"
    )


def test_the_limit_holds_before_pixels_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(image: ImageFile.ImageFile) -> None:
        raise AssertionError("the pixels are unpacked")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    idat = ("IDAT", zlib.compress(bytes(1000)))
    path = png(tmp_path / "a.png", (100_000, 100_000), 8, 2, idat)
    assert "10,000,000,000 pixels" in reason(path)


def test_the_limit_can_be_raised_beyond_pillows_own(tmp_path: Path) -> None:
    # 400 million pixels, more than Pillow's own limit; truncated, so they are never unpacked.
    path = png(tmp_path / "a.png", (20_000, 20_000), 1, 0, ("IDAT", zlib.compress(b"\0")))
    before = Image.MAX_IMAGE_PIXELS
    assert "truncated" in reason(path, max_pixels=500_000_000)
    assert before == Image.MAX_IMAGE_PIXELS
    assert "400,000,000 pixels" in reason(path)


def test_an_icon_whose_directory_lies(tmp_path: Path) -> None:
    inner = png(tmp_path / "inner.png", (3000, 3000), 8, 2, ("IDAT", b"")).read_bytes()
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    (tmp_path / "a.ico").write_bytes(struct.pack("<HHH", 0, 1, 1) + entry + inner)
    assert "9,000,000 pixels" in reason(tmp_path / "a.ico", max_pixels=1_000_000)


def test_a_tiff_with_a_giant_tile(tmp_path: Path) -> None:
    data = zlib.compress(bytes(10_000))
    tags = [
        (256, 100), (257, 100), (258, 8), (259, 8), (262, 1), (277, 1), (322, 60_000),
        (323, 60_000), (324, 134), (325, len(data)),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(head + data)
    assert "3,600,000,000 pixels" in reason(tmp_path / "a.tif")


def test_a_file_far_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.webp").open("wb") as file:
        file.truncate(2**31)  # a hole: takes no room on the disk
    assert "2,147,483,648 bytes" in reason(tmp_path / "a.webp")


def test_what_is_no_file_has_a_reason(tmp_path: Path) -> None:
    assert reason(tmp_path / "a.jpg") == "the file is missing"
    assert "a folder" in reason(tmp_path)
    assert "cannot be opened" in reason(Path("a\0b.jpg"))
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    assert "cannot be read" in reason(tmp_path / "round.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert reason(tmp_path / "pipe.jpg") == "not a regular file"


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read all")
def test_no_permission(paint: Callable[..., Path]) -> None:
    path = paint("a.png", RED)
    path.chmod(0)
    assert "permission" in reason(path)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "PostScript"),
        (b"%PDF-1.7", "PDF"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\xef\xbb\xbf\n<html>404</html>", "web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"8BPS\0\1", "Photoshop"),
        (b"hello", "not an image"),
        (b"P6 abc", "PPM"),
        (b"\0\0\1\0\1\0", "ICO"),
    ],
)
def test_other_kinds_of_files_are_named(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert word in reason(tmp_path / "a.jpg")


def test_formats_outside_the_allow_list_are_not_read(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), RED)
    for form in ("EPS", "PCX", "TGA", "SGI", "ICNS", "DDS"):
        image.save(tmp_path / "a.jpg", format=form)
        with Image.open(tmp_path / "a.jpg") as known:
            assert known.format == form
        assert reason(tmp_path / "a.jpg")


@pytest.mark.parametrize("extension", ["jpg", "png", "gif", "bmp", "tif", "webp", "avif", "ppm"])
def test_truncated_files_are_broken_in_every_format(tmp_path: Path, extension: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"a.{extension}")
    whole = path.read_bytes()
    for share in (0.02, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert reason(path)
    path.write_bytes(whole)
    assert read_image(path).size == (64, 64)


def test_garbled_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
    for extension in ("jpg", "png", "gif", "bmp", "tif", "webp", "avif", "ppm", "ico", "jp2"):
        whole = io.BytesIO()
        photo.save(
            whole, {"jpg": "jpeg", "tif": "tiff", "jp2": "jpeg2000"}.get(extension, extension)
        )
        for _ in range(30):
            content = np.frombuffer(whole.getvalue(), np.uint8).copy()
            places = rng.integers(0, min(len(content), 200), 4)
            content[places] = rng.integers(0, 256, 4)
            path = tmp_path / f"a.{extension}"
            path.write_bytes(content.tobytes())
            try:
                assert read_image(path, max_pixels=1_000_000).mode == "RGB"
            except ImageError as error:
                assert str(error) and "\n" not in str(error)


# ── Pillow's settings ────────────────────────────────────────────────────────────────────────────


def test_threads_leave_pillow_and_warnings_as_they_were(
    shared: Path, paint: Callable[..., Path]
) -> None:
    warns = shared / "data" / "edge" / "hopper_bad_exif.jpg"  # Pillow warns of its EXIF
    good = paint("a.png", RED)
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    failures: list[BaseException] = []

    def read_many() -> None:
        try:
            for _ in range(40):
                read_image(warns)
                read_image(good, max_pixels=300_000_000)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert limit == Image.MAX_IMAGE_PIXELS
    assert list(warnings.filters) == filters


def test_the_last_reader_restores_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    filters = list(warnings.filters)
    with _pillow_limits(5000):
        with _pillow_limits(3000):
            assert Image.MAX_IMAGE_PIXELS == 5000
        assert Image.MAX_IMAGE_PIXELS == 5000 and len(warnings.filters) == len(filters) + 1
    assert Image.MAX_IMAGE_PIXELS == 1000 and list(warnings.filters) == filters


def test_pillow_would_have_warned(shared: Path) -> None:
    """Or the test above proves nothing."""
    with (
        pytest.warns(UserWarning, match="EXIF"),
        Image.open(shared / "data" / "edge" / "hopper_bad_exif.jpg") as image,
    ):
        image.getexif()
