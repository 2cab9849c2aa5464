"""One file → one upright RGB image, or a reason in plain words why it cannot be read.

Knows nothing of labels or tensors. A file from a stranger may be broken, huge or hostile: only the
formats below are tried, the size is checked before pixels are decoded, and no program is started.
"""

import contextlib
import errno
import functools
import io
import logging
import re
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

# Each plugin registers itself with Pillow. Named here, so that Pillow never loads all of them, and
# above all not the one for EPS, which starts Ghostscript.
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    IcoImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from vizsla.data.exif import Exif, exif_of
from vizsla.data.rgb import SIDEWAYS, rawmode_of, to_upright_rgb, transposed_box, upright_transpose
from vizsla.errors import ImageError, MissingExtraError

log = logging.getLogger("vizsla.images")
_Result = TypeVar("_Result")

MAX_PIXELS = 100_000_000
PLUGINS = (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    IcoImagePlugin,
    Jpeg2KImagePlugin,
    JpegImagePlugin,  # finds MPO as well
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "ICO", "JPEG2000")


# ── reading one image ──────────────────────────────────────────────────────────────────────────


def read_image(
    path: str | Path | bytes, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None
) -> Image.Image:
    """The image as people see it: RGB, turned upright by EXIF, alpha on white, first frame only.

    Raises ImageError, whose message is only the reason, for whatever cannot be read.
    A truncated file counts as broken, however little is missing: the grey rest would give a
    misleading vector. A broken EXIF block is ignored: the image is not turned.
    16 bits become 8 by scaling, never by clipping. Grey values without a known range (32-bit
    integers, floats) are read as 0…1, 0…255 or 0…65535, whichever they fit, else stretched.
    at_least: a large JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which is faster, but with
    no side shorter than this.
    """
    return read_reduced(path, max_pixels=max_pixels, at_least=at_least).image


@dataclass(frozen=True)
class Reduced:
    """An image that may have been decoded at a reduced size.

    whole: its full (width, height). box: (left, top, right, bottom) of the image in `image`:
    reduced decoding rounds sides up, so the last column may be half empty.
    """

    image: Image.Image
    whole: tuple[int, int]
    box: tuple[float, float, float, float]

    @staticmethod
    def of(image: Image.Image) -> "Reduced":
        """An image that was decoded at its full size."""
        return Reduced(image, image.size, (0, 0, *image.size))


def read_reduced(
    path: str | Path | bytes, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None
) -> Reduced:
    """As `read_image`, with the position of the whole image in the reduced one."""
    return _from_file(path, max_pixels, functools.partial(_decode, at_least=at_least))


@dataclass(frozen=True)
class Header:
    """What a file's header says. size: not turned upright. format, mode: Pillow's names."""

    format: str
    size: tuple[int, int]
    mode: str
    animated: bool = False
    exif: Exif = field(default_factory=Exif)


def read_header(path: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Header:
    """The header only: the pixels may still be broken. Raises what `read_image` does."""
    return _from_file(path, max_pixels, _header)


def _from_file(
    path: str | Path | bytes, max_pixels: int, read: Callable[[BinaryIO, str, int], _Result]
) -> _Result:
    n_bytes = _size_of_file(path, max_pixels)
    kind = "image"
    try:
        with _open(path) as file, _pillow_limits(max_pixels):
            head = file.read(512)
            kind = _kind_of(head)
            return read(file, kind, max_pixels)
    except ImageError:
        raise
    except Exception as error:  # a broken file can make a decoder raise anything at all
        raise ImageError(_reason(error, kind, n_bytes, max_pixels)) from error


def _open(path: str | Path | bytes) -> BinaryIO:
    return io.BytesIO(path) if isinstance(path, bytes) else Path(path).open("rb")


def _size_of_file(path: str | Path | bytes, max_pixels: int) -> int:
    """Bytes; ImageError if it is not a file, or too large to hold one image of `max_pixels`."""
    n_bytes = len(path) if isinstance(path, bytes) else _size_on_disk(path)
    if n_bytes == 0:
        raise ImageError("the file is empty (0 bytes)")
    limit = 2**26 + 16 * max_pixels  # some decoders read the whole file into memory first
    if n_bytes > limit:
        raise ImageError(
            f"the file has {n_bytes:,} bytes, more than an image of {max_pixels:,} pixels "
            "needs (raise max_pixels to read it)"
        )
    return n_bytes


def _size_on_disk(path: str | Path) -> int:
    try:
        found = Path(path).stat()
    except (OSError, ValueError) as error:
        raise ImageError(_system_reason(error)) from error
    if stat.S_ISDIR(found.st_mode):
        raise ImageError("a folder, not an image")
    if not stat.S_ISREG(found.st_mode):
        raise ImageError("not a regular file")  # opening a pipe would wait forever
    return found.st_size


def _decode(file: BinaryIO, kind: str, max_pixels: int, *, at_least: int | None = None) -> Reduced:
    if kind == "HEIC":
        return Reduced.of(to_upright_rgb(_read_heic(file, max_pixels), ""))
    with _opened(file, kind, max_pixels) as image:
        whole, reduced = image.size, None
        if at_least is not None:
            reduced = image.draft(None, (at_least, at_least))
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            tile = (image.tag_v2.get(322, 1), image.tag_v2.get(323, 1))
            _check_pixels(tile, max(max_pixels, 2**24))
        rawmode = rawmode_of(image)
        image.load()
        found = to_upright_rgb(image, rawmode)
        if reduced is None or image.size == whole:
            return Reduced.of(found)
        turn = upright_transpose(image)
        box = transposed_box(reduced[1], image.size, turn)
        return Reduced(found, whole[::-1] if turn in SIDEWAYS else whole, box)


def _header(file: BinaryIO, kind: str, max_pixels: int) -> Header:
    if kind == "HEIC":
        heif = _open_heic(file, max_pixels)
        return Header("HEIC", heif.size, heif.mode, exif=exif_of(heif))
    with _opened(file, kind, max_pixels) as image:
        animated = image.format != "MPO" and getattr(image, "is_animated", False)
        return Header(image.format or "", image.size, image.mode, animated, exif_of(image))


def _opened(file: BinaryIO, kind: str, max_pixels: int) -> Image.Image:
    """Opened, but not decoded yet; ImageError if it has too many pixels."""
    if kind == "ICO":  # Pillow unpacks icons while it opens them
        _check_pixels(_size_inside_icon(file), max_pixels)
    file.seek(0)
    image = Image.open(file, formats=FORMATS)
    _check_pixels(image.size, max_pixels)
    return image


def _open_heic(file: BinaryIO, max_pixels: int) -> Any:
    """Opened, but not decoded yet."""
    try:
        import pillow_heif
    except ImportError:
        raise ImageError(str(MissingExtraError("reading HEIC", "heic"))) from None
    file.seek(0)
    heif = pillow_heif.open_heif(file, convert_hdr_to_8bit=True)
    _check_pixels(heif.size, max_pixels)
    return heif


def _read_heic(file: BinaryIO, max_pixels: int) -> Image.Image:
    image: Image.Image = _open_heic(file, max_pixels).to_pillow()  # already turned upright
    image.info.pop("exif", None)
    image.info.pop("xmp", None)
    return image


def _size_inside_icon(file: BinaryIO) -> tuple[int, int]:
    """The icon's directory may be wrong: a PNG or BMP inside it has a header of its own."""
    file.seek(0)
    offset = IcoImagePlugin.IcoFile(file).entry[0].offset
    file.seek(offset)
    head = file.read(24)
    if head.startswith(b"\x89PNG"):
        width, height = struct.unpack(">II", head[16:24])
    elif head[:4] == b"\x0c\0\0\0":
        width, height = struct.unpack("<HH", head[4:8])
    else:
        width, height = struct.unpack("<ii", head[4:12])
        height //= 2  # includes the transparency mask below the image
    return abs(width), abs(height)


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    pixels = int(size[0]) * int(size[1])
    if pixels > max_pixels:
        raise ImageError(_too_many(pixels, max_pixels))
    if pixels <= 0:
        raise ImageError(f"it has no pixels ({size[0]} × {size[1]})")


def _too_many(pixels: int, max_pixels: int) -> str:
    return f"{pixels:,} pixels, more than the limit of {max_pixels:,} (max_pixels)"


# ── Pillow's own limits and warnings ─────────────────────────────────────────────────────────────

_reading: list[int] = []  # the max_pixels of every read in progress, in all threads
_reading_lock = threading.Lock()
_limit_before: int | None = None
_IGNORE_PILLOW: Any = ("ignore", None, Warning, re.compile(r"PIL\.(?#vizsla)"), 0)


@contextlib.contextmanager
def _pillow_limits(max_pixels: int) -> Iterator[None]:
    """While any thread reads: no warnings from Pillow, and no pixel limit below ours.

    Both are settings of the whole process. The first reader changes them and the last one restores
    them, so that threads do not undo each other's changes, as `warnings.catch_warnings` would.
    """
    global _limit_before
    with _reading_lock:
        if not _reading:
            _limit_before = Image.MAX_IMAGE_PIXELS
        if _IGNORE_PILLOW not in warnings.filters:  # other code may have restored an older list
            warnings.filters.insert(0, _IGNORE_PILLOW)  # type: ignore[attr-defined]
        _reading.append(max_pixels)
        if _limit_before is not None:
            Image.MAX_IMAGE_PIXELS = max(_limit_before, *_reading)
    try:
        yield
    finally:
        with _reading_lock:
            _reading.remove(max_pixels)
            if not _reading:
                Image.MAX_IMAGE_PIXELS = _limit_before
                while _IGNORE_PILLOW in warnings.filters:
                    warnings.filters.remove(_IGNORE_PILLOW)  # type: ignore[attr-defined]


# ── why a file cannot be read ─────────────────────────────────────────────────────────────────────

# The operating system's reasons: the file may be readable another time.
MISSING = "the file is missing"
NO_PERMISSION = "no permission to read the file"
CANNOT_BE_READ = "the file cannot be read"
CANNOT_BE_OPENED = "the file cannot be opened"
TAR_MISSING = "its tar file is missing"
TAR_UNREADABLE = "its tar file cannot be read"
_SYSTEM_REASONS = (
    MISSING, NO_PERMISSION, CANNOT_BE_READ, CANNOT_BE_OPENED, TAR_MISSING, TAR_UNREADABLE
)  # fmt: skip
_NOT_PICTURES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the image itself: run `git lfs pull`"),
    (b"%!PS", "PostScript, which is not read because it is a program"),
    (b"%PDF", "a PDF document, not an image"),
    (b"8BPS", "a Photoshop document: save it as PNG or JPEG"),
    (b"PK\x03\x04", "a ZIP archive, not an image"),
    (b"<!doctype html", "a web page, not an image"),
    (b"<html", "a web page, not an image"),
    (b"<svg", "an SVG drawing: save it as PNG"),
    (b"<?xml", "an XML document, not an image"),
)

_PLAIN_WORDS = {
    "data stream": "the compressed part is garbled",
    "decoder error": "the compressed part is garbled",
    "failed to read next frame": "the compressed part is garbled",
    "broken png": "a chunk is garbled",
    "invalid literal": "a number is garbled",
    "token": "a number is garbled",
    "out of range": "its header is garbled",
    "could not create decoder": "its header is garbled",
    "invalid argument": "its header is garbled",
}  # part of a decoder's message → what it means


def _kind_of(head: bytes) -> str:
    """The format's name by its first bytes; ImageError if no image format starts with them."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, reason in _NOT_PICTURES:
        if start.startswith(magic.lower()):
            raise ImageError(reason)
    if head[4:8] == b"ftyp":
        brands = head[8 : min(len(head), int.from_bytes(head[:4], "big"))]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        return "HEIC" if re.search(b"he[iv][cxms]", brands) else "image"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    magics = {
        b"\xff\xd8": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"BM": "BMP", b"II": "TIFF",
        b"MM": "TIFF", b"\0\0\1\0": "ICO", b"\xff\x4f\xff\x51": "JPEG 2000",
        b"\0\0\0\x0cjP": "JPEG 2000",
    }  # fmt: skip
    if re.match(rb"P([1-7fF]|y)\s", head):
        return "PPM"
    return next((kind for magic, kind in magics.items() if head.startswith(magic)), "image")


def _reason(error: Exception, kind: str, n_bytes: int, max_pixels: int) -> str:
    """What went wrong in plain words; in the decoder's words if there are no others."""
    text = " ".join(str(error).split())
    lowered = text.lower()
    if isinstance(error, Image.DecompressionBombError):
        found = re.search(r"\((\d+) pixels\)", text)
        return _too_many(int(found[1]) if found else 2 * max_pixels + 1, max_pixels)
    if "max_text" in lowered:
        return f"decompression bomb: a text block in the {kind} unpacks to megabytes"
    if isinstance(error, MemoryError):
        return "not enough memory to unpack it"
    if isinstance(error, UnidentifiedImageError):
        if kind == "image":
            return "not an image, or of a format that is not read"
        return f"damaged {kind} header, or a rare sort of {kind} that is not read"
    cut = isinstance(error, EOFError | struct.error) or "not large enough" in lowered
    if cut or "truncated" in lowered or "unexpected end" in lowered:
        return f"truncated: the {kind} ends after {n_bytes:,} bytes, before it is complete"
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return _system_reason(error)
    plain = next((ours for theirs, ours in _PLAIN_WORDS.items() if theirs in lowered), None)
    reason = plain or (text[:97] + "…" if len(text) > 98 else text)
    return f"damaged {kind} data ({reason or type(error).__name__})"


def _system_reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return MISSING
    if isinstance(error, PermissionError):
        return NO_PERMISSION
    if isinstance(error, OSError) and error.strerror:
        return f"{CANNOT_BE_READ}: {error.strerror.lower()}"
    return f"{CANNOT_BE_OPENED}: {error}"


def is_system_reason(reason: str) -> bool:
    """Whether the system failed and not the image: it may be readable later, or elsewhere."""
    return reason.startswith(_SYSTEM_REASONS)
