"""One file → one upright RGB picture, or a plain reason why not; one folder → the pictures in it.

Knows nothing of labels or tensors. A file from a stranger may be broken, huge or hostile: only the
formats below are tried, the size is judged before pixels are unpacked, and no program is started.
"""

import contextlib
import errno
import functools
import heapq
import io
import logging
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

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

from vizsla.errors import DataError, ImageError, MissingExtraError

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
_EXTENSIONS = """
    jpg jpeg jpe jfif mpo png apng webp gif bmp dib tif tiff avif avifs ppm pgm pbm pnm pfm ico
    jp2 j2k j2c jpc jpf jpx heic heif hif
"""
IMAGE_EXTENSIONS = frozenset(_EXTENSIONS.split())  # without the dot, in small letters


# ── reading one picture ──────────────────────────────────────────────────────────────────────────


def read_image(
    path: str | Path | bytes, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None
) -> Image.Image:
    """The picture as people see it: RGB, turned upright by EXIF, alpha on white, first frame only.

    Raises ImageError with the reason alone, in plain words, for whatever cannot be read.
    A truncated file counts as broken, however little is missing: the grey rest would give a
    misleading vector. A broken EXIF block does no harm: the picture stays as it lies.
    16 bits become 8 by scaling, never by clipping. Grey numbers without a known range (32-bit
    integers, floats) are read as 0…1, 0…255 or 0…65535, whichever they fit, else stretched.
    at_least: a large JPEG may come at 1/2, 1/4 or 1/8 of its size, which is faster, but with no
    side shorter than this.
    """
    return _from_file(path, max_pixels, functools.partial(_decode, at_least=at_least))


@dataclass(frozen=True)
class Header:
    """What a file says of its picture. size: as it lies. format and mode: Pillow's names."""

    format: str
    size: tuple[int, int]
    mode: str
    animated: bool = False


def read_header(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Header:
    """The pixels are not read, so they may still turn out broken. Raises what `read_image` does."""
    return _from_file(path, max_pixels, _header)


def _from_file(
    path: str | Path | bytes, max_pixels: int, read: Callable[[BinaryIO, str, int], _Result]
) -> _Result:
    n_bytes = _size_of_file(path, max_pixels)
    kind = "image"
    try:
        with _open(path) as file, _pillow_at_ease(max_pixels):
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
    """Bytes; ImageError for what is no file, or too large to hold one picture of `max_pixels`."""
    n_bytes = len(path) if isinstance(path, bytes) else _size_on_disk(path)
    if n_bytes == 0:
        raise ImageError("the file is empty (0 bytes)")
    limit = 2**26 + 16 * max_pixels  # some decoders read the whole file into memory first
    if n_bytes > limit:
        raise ImageError(
            f"the file has {n_bytes:,} bytes, more than a picture of {max_pixels:,} pixels "
            "needs (raise --max-pixels to read it)"
        )
    return n_bytes


def _size_on_disk(path: str | Path) -> int:
    try:
        found = Path(path).stat()
    except (OSError, ValueError) as error:
        raise ImageError(_reason_of_system(error)) from error
    if stat.S_ISDIR(found.st_mode):
        raise ImageError("a folder, not a picture")
    if not stat.S_ISREG(found.st_mode):
        raise ImageError("not a regular file")  # opening a pipe would wait for ever
    return found.st_size


def _decode(
    file: BinaryIO, kind: str, max_pixels: int, *, at_least: int | None = None
) -> Image.Image:
    if kind == "HEIC":
        return _finished(_read_heic(file, max_pixels), "")
    with _opened(file, kind, max_pixels) as image:
        if at_least is not None:
            image.draft(None, (at_least, at_least))
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            tile = (image.tag_v2.get(322, 1), image.tag_v2.get(323, 1))
            _check_pixels(tile, max(max_pixels, 2**24))
        rawmode = _rawmode(image)
        image.load()
        return _finished(image, rawmode)


def _header(file: BinaryIO, kind: str, max_pixels: int) -> Header:
    if kind == "HEIC":
        heif = _open_heic(file, max_pixels)
        return Header("HEIC", heif.size, heif.mode)
    with _opened(file, kind, max_pixels) as image:
        animated = image.format != "MPO" and getattr(image, "is_animated", False)
        return Header(image.format or "", image.size, image.mode, animated)


def _opened(file: BinaryIO, kind: str, max_pixels: int) -> Image.Image:
    """Its pixels are not unpacked yet, and are not too many."""
    if kind == "ICO":  # Pillow unpacks icons while it opens them
        _check_pixels(_size_inside_icon(file), max_pixels)
    file.seek(0)
    image = Image.open(file, formats=FORMATS)
    _check_pixels(image.size, max_pixels)
    return image


def _open_heic(file: BinaryIO, max_pixels: int) -> Any:
    """Its pixels are not unpacked yet."""
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
    """The icon's own directory may lie: a PNG or BMP inside it has a header of its own."""
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
        height //= 2  # the transparency mask lies below the picture and is counted
    return abs(width), abs(height)


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    pixels = int(size[0]) * int(size[1])
    if pixels > max_pixels:
        raise ImageError(_too_many(pixels, max_pixels))
    if pixels <= 0:
        raise ImageError(f"it has no pixels ({size[0]} × {size[1]})")


def _too_many(pixels: int, max_pixels: int) -> str:
    return f"{pixels:,} pixels, more than the limit of {max_pixels:,} (--max-pixels)"


# ── from any mode to upright RGB ─────────────────────────────────────────────────────────────────

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation → what makes it upright


def _finished(image: Image.Image, rawmode: str) -> Image.Image:
    turn = TURNS.get(_orientation(image))
    rgb = _to_rgb(image, rawmode)
    if turn is not None:
        rgb = rgb.transpose(turn)
    elif rgb is image:
        rgb = image.copy()  # a plain Image, no longer tied to its file
    rgb.info = {}  # or a later save would turn it again, and carry profiles along
    return rgb


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
        return int(value)
    except Exception as error:  # EXIF is a file format of its own, and as often broken
        log.debug("EXIF cannot be read (%s): the picture stays as it lies", error)
        return 1


def _to_rgb(image: Image.Image, rawmode: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_grey16(image)
    if image.mode in ("I", "F"):
        numbers = np.asarray(image)
        black, white = (0, 65535) if image.format == "PPM" and image.mode == "I" else _span(numbers)
        return _to_grey8(numbers, black, white).convert("RGB")
    if image.has_transparency_data:
        _scale_transparent_colour(image, rawmode)
        rgba = image.convert("RGBA")
        white_page = Image.new("RGB", image.size, "white")
        white_page.paste(rgba, mask=rgba.getchannel("A"))
        return white_page
    return image if image.mode == "RGB" else image.convert("RGB")


def _rawmode(image: Any) -> str:
    """How the pixels lie in the file, such as `L;2` or `RGB;16B`; known until they are loaded."""
    args = image.tile[0][3] if image.tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _scale_transparent_colour(image: Image.Image, rawmode: str) -> None:
    """A PNG names its transparent colour in the file's own depth; Pillow compares it in 8 bits."""
    colour = image.info.get("transparency")
    if image.format != "PNG" or image.mode not in ("L", "RGB"):
        return
    if isinstance(colour, tuple):
        shift = 8 if "16" in rawmode else 0
        image.info["transparency"] = tuple(value >> shift & 255 for value in colour)
    elif isinstance(colour, int):
        image.info["transparency"] = colour * {"L;2": 85, "L;4": 17}.get(rawmode, 1) & 255


def _from_grey16(image: Image.Image) -> Image.Image:
    numbers = np.asarray(image)
    black, white = 0, 65535
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(258, (16,))[0]
        white = 2**bits - 1
        if image.tag_v2.get(262) == 0:  # white is zero
            black, white = white, black
    grey = _to_grey8(numbers, black, white)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.paste(255, mask=Image.fromarray(numbers == clear))
    return grey.convert("RGB")


def _span(numbers: np.ndarray) -> tuple[float, float]:
    """The values of black and of white, guessed from the numbers themselves."""
    finite = numbers[np.isfinite(numbers)] if numbers.dtype.kind == "f" else numbers
    if finite.size == 0:
        return 0, 1
    lowest, highest = float(finite.min()), float(finite.max())
    for white in (1, 255, 65535) if numbers.dtype.kind == "f" else (255, 65535):
        if lowest >= 0 and highest <= white:
            return 0, white
    return lowest, highest if highest > lowest else lowest + 1


def _to_grey8(numbers: np.ndarray, black: float, white: float) -> Image.Image:
    """Mode L; black and white may stand in either order. In strips, to stay small in memory."""
    grey = np.empty(numbers.shape, np.uint8)
    rows = max(1, 2**20 // max(1, numbers.shape[1]))
    for start in range(0, len(numbers), rows):
        part = numbers[start : start + rows].astype(np.float64)
        part = np.nan_to_num((part - black) / (white - black), nan=0, posinf=1, neginf=0)
        grey[start : start + rows] = np.clip(part * 255 + 0.5, 0, 255)
    return Image.fromarray(grey)


# ── Pillow's own limits and warnings ─────────────────────────────────────────────────────────────

_reading: list[int] = []  # the max_pixels of every read under way, in all threads
_reading_lock = threading.Lock()
_limit_before: int | None = None
_HUSH: Any = ("ignore", None, Warning, re.compile(r"PIL\.(?#vizsla)"), 0)


@contextlib.contextmanager
def _pillow_at_ease(max_pixels: int) -> Iterator[None]:
    """While any thread reads: no warnings out of Pillow, and no pixel limit below ours.

    Both are settings of the whole process. The first reader changes them and the last one puts them
    back, so that threads do not undo each other's; `warnings.catch_warnings` would.
    """
    global _limit_before
    with _reading_lock:
        if not _reading:
            _limit_before = Image.MAX_IMAGE_PIXELS
        if _HUSH not in warnings.filters:  # somebody else may have restored an older list
            warnings.filters.insert(0, _HUSH)  # type: ignore[attr-defined]
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
                while _HUSH in warnings.filters:
                    warnings.filters.remove(_HUSH)  # type: ignore[attr-defined]


# ── why not ──────────────────────────────────────────────────────────────────────────────────────

_NOT_PICTURES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the picture itself: run `git lfs pull`"),
    (b"%!PS", "PostScript, which is not read because it is a program"),
    (b"%PDF", "a PDF document, not a picture"),
    (b"8BPS", "a Photoshop document: save it as PNG or JPEG"),
    (b"PK\x03\x04", "a ZIP archive, not a picture"),
    (b"<!doctype html", "a web page, not a picture"),
    (b"<html", "a web page, not a picture"),
    (b"<svg", "an SVG drawing: save it as PNG"),
    (b"<?xml", "an XML document, not a picture"),
)

_IN_PLAIN_WORDS = {
    "data stream": "the compressed part is garbled",
    "decoder error": "the compressed part is garbled",
    "failed to read next frame": "the compressed part is garbled",
    "broken png": "a chunk is garbled",
    "invalid literal": "a number is garbled",
    "token": "a number is garbled",
    "out of range": "its header is garbled",
    "could not create decoder": "its header is garbled",
    "invalid argument": "its header is garbled",
}  # what decoders say → what it means


def _kind_of(head: bytes) -> str:
    """The format's name by its first bytes; ImageError where they belong to something else."""
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
    """What went wrong in plain words; in the decoder's own only where there are no others."""
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
            return "not a picture, or of a format that is not read"
        return f"damaged {kind} header, or a rare sort of {kind} that is not read"
    cut = isinstance(error, EOFError | struct.error) or "not large enough" in lowered
    if cut or "truncated" in lowered or "unexpected end" in lowered:
        return f"truncated: the {kind} ends after {n_bytes:,} bytes, before it is complete"
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return _reason_of_system(error)
    plain = next((ours for theirs, ours in _IN_PLAIN_WORDS.items() if theirs in lowered), None)
    said = plain or (text[:97] + "…" if len(text) > 98 else text)
    return f"damaged {kind} data ({said or type(error).__name__})"


def _reason_of_system(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file is missing"
    if isinstance(error, PermissionError):
        return "no permission to read the file"
    if isinstance(error, OSError) and error.strerror:
        return f"the file cannot be read: {error.strerror.lower()}"
    return f"the file cannot be opened: {error}"


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names and how many more there are, for a message; odd characters are escaped."""
    shown = ", ".join(n if n.isprintable() else ascii(n)[1:-1] for n in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


# ── listing a folder ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Listing:
    """ids: posix paths below the root, sorted as UTF-8 bytes.

    links_outside: links that lead out of the root and were not followed. passed_over: how many
    hidden entries and files of other kinds there are. bad_names: pictures left out because their
    names are not valid UTF-8 (in Python's escaped form); no artefact could hold such a name.
    """

    ids: list[str]
    links_outside: list[str] = field(default_factory=list)
    passed_over: int = 0
    bad_names: list[str] = field(default_factory=list)


def is_image_name(name: str) -> bool:
    """By its extension, in any case; hidden files are no images."""
    stem, dot, extension = name.rpartition(".")
    return bool(stem) and bool(dot) and name[0] != "." and extension.lower() in IMAGE_EXTENSIONS


def list_images(root: str | Path, *, follow_links: bool = False) -> Listing:
    """All pictures below `root`, by name; they are not opened.

    A link to a file below the root is one more picture. A linked folder is listed once, under its
    real name where that lies below the root, so links in a circle end. A link that leads nowhere is
    listed too, and turns out broken when it is read. DataError for no folder, or no pictures.
    """
    start = Path(root)
    if not start.exists():
        raise DataError(f"{root} does not exist: give the folder that holds the images")
    if not start.is_dir():
        raise DataError(f"{root} is a file, expected a folder of images")
    walk = _Walk(os.path.realpath(start), follow_links)
    walk.run()
    found = walk.listing()
    if walk.unreadable:
        log.warning("%s: %s cannot be opened and are left out", root, few(walk.unreadable))
    if found.bad_names:
        log.warning("%s: names that are not UTF-8, left out: %s", root, few(found.bad_names))
    if not found.ids:
        raise DataError(_nothing_in(root, found))
    return found


def _nothing_in(root: str | Path, found: Listing) -> str:
    message = f"{root} holds no images"
    if found.links_outside:
        message += (
            f", but {len(found.links_outside)} links that lead out of it "
            f"({few(found.links_outside)}): follow them with --follow-links"
        )
    elif found.passed_over:
        message += (
            f" among {found.passed_over} files: expected names that end in .jpg, .png, .webp, …"
        )
    else:
        message += ": it is empty"
    return message


class _Walk:
    """One pass over a tree: real folders first, then the linked ones that were not among them."""

    def __init__(self, root: str, follow_links: bool) -> None:
        self.root, self.follow_links = root, follow_links
        self.ids: list[str] = []
        self.outside: list[str] = []
        self.bad_names: list[str] = []
        self.unreadable: list[str] = []
        self.passed_over = 0
        self.seen: set[tuple[int, int]] = set()
        self.linked: list[tuple[int, str, str]] = []  # (depth, id prefix, folder), not yet walked

    def run(self) -> None:
        self._folders([("", self.root)])
        while self.linked:
            _, prefix, folder = heapq.heappop(self.linked)
            self._folders([(prefix, folder)])

    def listing(self) -> Listing:
        # Python sorts by code points, which is the order of their UTF-8 bytes.
        return Listing(
            sorted(self.ids), sorted(self.outside), self.passed_over, sorted(self.bad_names)
        )

    def _folders(self, waiting: list[tuple[str, str]]) -> None:
        while waiting:
            prefix, folder = waiting.pop()
            try:
                found = Path(folder).stat()
                if (found.st_dev, found.st_ino) in self.seen:
                    continue
                self.seen.add((found.st_dev, found.st_ino))
                with os.scandir(folder) as entries:
                    for entry in entries:
                        self._entry(entry, prefix, waiting)
            except OSError as error:
                self.unreadable.append(f"{prefix or folder} ({error.strerror})")

    def _entry(
        self, entry: "os.DirEntry[str]", prefix: str, waiting: list[tuple[str, str]]
    ) -> None:
        name = entry.name
        if name[0] == ".":
            self.passed_over += 1
        elif entry.is_symlink():
            self._link(entry, prefix + name)
        elif entry.is_dir(follow_symlinks=False):
            waiting.append((f"{prefix}{name}/", entry.path))
        elif is_image_name(name) and entry.is_file(follow_symlinks=False):
            self._image(prefix + name)
        else:
            self.passed_over += 1

    def _link(self, entry: "os.DirEntry[str]", name: str) -> None:
        is_folder = Path(entry.path).is_dir()  # False for links in a circle; entry.is_dir() raises
        if not is_folder and not is_image_name(entry.name):
            self.passed_over += 1
        elif not is_folder and self.follow_links:
            self._image(name)
        else:
            target = os.path.realpath(entry.path)
            inside = target == self.root or target.startswith(self.root.rstrip(os.sep) + os.sep)
            if not inside and not self.follow_links:
                self.outside.append(name)
            elif is_folder:
                heapq.heappush(self.linked, (name.count("/"), f"{name}/", target))
            else:
                self._image(name)

    def _image(self, name: str) -> None:
        if name.isascii() or _is_utf8(name):
            self.ids.append(name)
        else:
            self.bad_names.append(ascii(name)[1:-1])


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # undecodable bytes of a name arrive as lone surrogates
        return False
    return True
