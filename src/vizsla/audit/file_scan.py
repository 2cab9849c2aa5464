"""Image sets → facts about every file: broken, odd, blurred, hashes, EXIF, a small grey image.

Each file is read once, by threads. Knows nothing of pairs or of what a finding means.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vizsla import storage
from vizsla.audit import image_quality
from vizsla.audit.copy_detection import COLOURS, SIDE
from vizsla.data.exif import Exif
from vizsla.data.images import MAX_PIXELS, Header, read_header, read_image
from vizsla.data.imageset import ImageSet
from vizsla.data.tables import value_text
from vizsla.errors import ImageError

WHOLE = "images"  # the role of all images of a folder that is not in parts
TINY_SIDE = 32  # px of the shorter side
THIN_RATIO = 4.0  # longer side over shorter side
HUGE_PIXELS = 40_000_000  # pixels
BLURRED = 1.6  # px, see image_quality.blur_of; of 100 photos 99 have less than 1.1
DARK = 0.2  # see image_quality.brightness_of
DECODED_SIDE = 512  # px: a JPEG is decoded at 1/2, 1/4 or 1/8 while both sides keep this many

ODD = {
    "tiny": f"shorter side below {TINY_SIDE} px",
    "thin": f"one side is more than {THIN_RATIO:g} times the other",
    "huge": f"more than {HUGE_PIXELS // 1_000_000} million pixels",
    "one colour": "shows nothing",
    "nearly one colour": "shows almost nothing",
    "blurred": "hardly any sharp edge",
    "dark": "hardly any bright pixel",
    "wrong extension": "the content has another format than the file name says",
    "animated": "only the first frame is used",
    "alpha channel": "shown on white where it is transparent",
    "16 bits": "read as 8 bits a channel",
    "CMYK": "colours for print, converted to RGB",
    "palette": "256 colours at most",
    "black and white": "no greys",
    "grey": "no colours",
}  # kind → meaning; the last seven are remarks, not faults
REMARKS = frozenset(list(ODD)[-7:])
QUALITY = ("blurred", "dark")

_EXTENSIONS = {
    "JPEG": "jpg jpeg jpe jfif mpo", "MPO": "mpo jpg jpeg jpe jfif", "PNG": "png apng",
    "WEBP": "webp", "GIF": "gif", "BMP": "bmp dib", "DIB": "bmp dib", "TIFF": "tif tiff",
    "AVIF": "avif avifs", "PPM": "ppm pgm pbm pnm pfm", "ICO": "ico",
    "JPEG2000": "jp2 j2k j2c jpc jpf jpx", "HEIC": "heic heif hif",
}  # fmt: skip
_MODES = {
    "LA": "alpha channel", "La": "alpha channel", "PA": "alpha channel", "RGBA": "alpha channel",
    "RGBa": "alpha channel", "P": "palette", "L": "grey", "1": "black and white", "CMYK": "CMYK",
    "YCCK": "CMYK", "I": "16 bits", "F": "16 bits",
}  # fmt: skip


@dataclass(frozen=True)
class ImageFacts:
    """One file. broken: why it cannot be read; all later fields are then empty.

    file_hash, pixel_hash: SHA-256 of its bytes, and of its decoded pixels.
    item: the product, individual, … that it shows, if a column names it.
    odd: keys of ODD. size: stored width and height, before any rotation. blur, brightness: see
    image_quality.py.
    """

    role: str
    id: str
    path: Path
    label: str | None
    broken: str | None = None
    file_hash: str = ""
    pixel_hash: str = ""
    size: tuple[int, int] = (0, 0)
    form: str = ""
    odd: tuple[str, ...] = ()
    blur: float = 0.0
    brightness: float = 1.0
    exif: Exif = field(default_factory=Exif)
    item: str | None = None

    @property
    def name(self) -> str:
        """The name as `run --exclude` reads it."""
        return self.id if self.role == WHOLE else f"{self.role}/{self.id}"

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.size[0] * self.size[1]

    def score(self, kind: str) -> float:
        """What makes it blurred or dark."""
        return {"blurred": self.blur, "dark": self.brightness}[kind]

    @property
    def sharpness(self) -> float:
        """Edge widths in the shorter side: between copies of one photo, more is sharper."""
        return min(*self.size, image_quality.SIDE) / max(self.blur, 0.1)


@dataclass(frozen=True, eq=False)
class Scan:
    """N files of all roles. grey, colours: for `copy_detection.matches`; 0 for a broken file."""

    facts: list[ImageFacts]
    grey: np.ndarray
    colours: np.ndarray

    def __len__(self) -> int:
        return len(self.facts)


def scan_files(
    sets: Mapping[str, ImageSet],
    *,
    item_column: str | None = None,
    max_pixels: int = MAX_PIXELS,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """The facts of every file of all sets (role → images), in this order.

    item_column: the attribute that names the item each image shows.
    """
    files = [
        ImageFacts(role, name, images.path(i), label, item=item)
        for role, images in sets.items()
        for i, (name, label, item) in enumerate(
            zip(images.ids, images.labels or [None] * len(images), _items(images, item_column),
                strict=True)
        )
    ]  # fmt: skip
    grey = np.zeros((len(files), SIDE, SIDE), np.uint8)
    colours = np.zeros((len(files), 2, COLOURS, COLOURS), np.int8)

    def one(i: int) -> ImageFacts:
        facts = files[i]
        try:
            facts, grey[i], colours[i] = _scan_file(facts, max_pixels)
        except (ImageError, OSError) as error:
            facts = replace(facts, broken=str(error))
        return facts

    facts = []
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="scan") as pool:
        for found in pool.map(one, range(len(files))):
            facts.append(found)
            if progress and (len(facts) % 100 == 0 or len(facts) == len(files)):
                progress(len(facts), len(files))
    return Scan(facts, grey, colours)


def _items(images: ImageSet, column: str | None) -> list[str | None]:
    """N values of an attribute as text; None where it is unknown."""
    if column is None or column not in images.attributes.column_names:
        return [None] * len(images)
    values = images.attributes[column].to_pylist()
    return [None if value is None else value_text(value) for value in values]


def _scan_file(facts: ImageFacts, max_pixels: int) -> tuple[ImageFacts, np.ndarray, np.ndarray]:
    image = read_image(facts.path, max_pixels=max_pixels, at_least=DECODED_SIDE)
    header = read_header(facts.path, max_pixels=max_pixels)
    sides = (SIDE, COLOURS, COLOURS)
    channels = image.convert("YCbCr").split()
    grey, *colours = (
        np.asarray(channel.resize((side, side), Image.Resampling.BOX))
        for channel, side in zip(channels, sides, strict=True)
    )
    planes = (np.stack(colours).astype(np.int16) - 128).astype(np.int8)
    size = f"{sorted(header.size)} {image.size}\n".encode()
    blur = image_quality.blur_of(channels[0])
    brightness = image_quality.brightness_of(channels[0])
    found = replace(
        facts,
        file_hash=storage.sha256_of(facts.path),
        pixel_hash=hashlib.sha256(size + image.tobytes()).hexdigest(),
        size=header.size,
        form=f"{header.format} {header.mode}",
        blur=round(blur, 3),
        brightness=round(brightness, 3),
        exif=header.exif,
    )
    odd = tuple(_odd(found, header, image, grey, planes))
    return replace(found, odd=odd), grey, planes


def _odd(
    facts: ImageFacts, header: Header, image: Image.Image, grey: np.ndarray, colours: np.ndarray
) -> Iterator[str]:
    shorter, longer = sorted(header.size)
    if shorter < TINY_SIDE:
        yield "tiny"
    if longer > THIN_RATIO * shorter:
        yield "thin"
    if shorter * longer > HUGE_PIXELS:
        yield "huge"
    extrema: Any = image.getextrema()  # of each channel
    if max(highest - lowest for lowest, highest in extrema) <= 8:
        yield "one colour"
    elif grey.std() < 2 and colours.std(axis=(1, 2)).max() < 2:
        yield "nearly one colour"
    elif facts.blur > BLURRED:
        yield "blurred"
    if facts.brightness < DARK:
        yield "dark"
    if facts.path.suffix[1:].lower() not in _EXTENSIONS[header.format].split():
        yield "wrong extension"
    if header.animated:
        yield "animated"
    mode = "16 bits" if header.mode.startswith("I;16") else _MODES.get(header.mode)
    if mode:
        yield mode
