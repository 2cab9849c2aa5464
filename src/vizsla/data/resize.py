"""An image → the pixels of a network's input: resized, with the centre cropped. Does not
import torch, so that child processes that only decode start fast and stay small.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vizsla.data.images import MAX_PIXELS, Reduced, read_reduced
from vizsla.data.tiles import WHOLE, Box

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
REDUCED = 2.0  # a JPEG may be decoded smaller, but no smaller than this times the size needed
REDUCED_BOUND = 1.0  # of 255: largest difference of a pixel then, averaged over a photo


@dataclass(frozen=True)
class Framing:
    """size: (H, W) of the result. resize, mode, interpolation: see preprocess.Preprocess."""

    size: tuple[int, int]
    resize: int | None
    mode: str
    interpolation: str

    def read(self, path: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """(H, W, 3) uint8 of a file; ImageError with the reason if it cannot be read.

        A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, if that is still REDUCED times
        what is needed: two to four times as fast, and within REDUCED_BOUND.
        """
        return self.of_reduced(self.reduced(path, max_pixels=max_pixels))

    def reduced(self, path: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Reduced:
        """The image as `read` decodes it."""
        return read_reduced(path, max_pixels=max_pixels, at_least=self.least_side)

    @property
    def least_side(self) -> int:
        """The shortest side that a reduced image may have."""
        return round(REDUCED * (self.resize or max(self.size)))

    def pixels(self, image: Image.Image) -> np.ndarray:
        """(H, W, 3) uint8 of an RGB image."""
        return self.of_reduced(Reduced.of(image))

    def of_reduced(self, found: Reduced) -> np.ndarray:
        """(H, W, 3) uint8 of an image that may have been decoded smaller: sizes and positions are
        those of the whole one, to a fraction of a pixel."""
        wide, high = found.whole
        kept = _without_long_ends(wide, high) if self.mode == "crop" else (0, 0, wide, high)
        image, size = found.image, self.scaled(kept[2] - kept[0], kept[3] - kept[1])
        interpolation = INTERPOLATIONS[self.interpolation]
        if image.size == found.whole:
            cut = image if kept == (0, 0, wide, high) else image.crop(kept)
            scaled = cut.resize(size, interpolation)
        else:
            scaled = image.resize(size, interpolation, box=_inside(kept, found))
        height, width = self.size
        left, top = round((scaled.width - width) / 2), round((scaled.height - height) / 2)
        return np.asarray(scaled.crop((left, top, left + width, top + height)))

    def scaled(self, wide: int, high: int) -> tuple[int, int]:
        """Width and height of the whole image after resizing, before the centre is cut out."""
        if self.mode == "squash":
            height, width = (self.resize, self.resize) if self.resize else self.size
            return width, height
        short = self.resize or max(self.size)
        if wide <= high:
            return short, int(short * high / wide)
        return int(short * wide / high), short


@dataclass(frozen=True)
class TiledFraming:
    """The whole image and parts of it, each as `framing` makes it, one below the other.

    boxes: T, the first one the whole image. All are cut from one decoded image, which is reduced no
    further than the smallest of them allows.
    """

    framing: Framing
    boxes: tuple[Box, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(T·H, W) of the result."""
        height, width = self.framing.size
        return len(self.boxes) * height, width

    @property
    def least_side(self) -> int:
        """The shortest side that a reduced image may have."""
        return round(self.framing.least_side / min(min(box[2:]) for box in self.boxes))

    def read(self, path: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """(T·H, W, 3) uint8 of a file; see `Framing.read`."""
        found = read_reduced(path, max_pixels=max_pixels, at_least=self.least_side)
        return self.of_reduced(found)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """(T·H, W, 3) uint8 of an RGB image."""
        return self.of_reduced(Reduced.of(image))

    def of_reduced(self, found: Reduced) -> np.ndarray:
        """(T·H, W, 3) uint8 of an image that may have been decoded smaller."""
        return np.concatenate([self.framing.of_reduced(_part(found, box)) for box in self.boxes])


def _part(found: Reduced, box: Box) -> Reduced:
    """A box of an image, which is not copied."""
    if box == WHOLE:
        return found
    x, y, wide, high = box
    left, top, right, bottom = found.box
    across, down = right - left, bottom - top
    whole = max(1, round(wide * found.whole[0])), max(1, round(high * found.whole[1]))
    return Reduced(
        found.image, whole,
        (
            left + x * across, top + y * down,
            min(right, left + (x + wide) * across), min(bottom, top + (y + high) * down),
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class Framings:
    """The framings of several networks for one image, as one array of pixels."""

    parts: tuple[Framing, ...]

    @property
    def least_side(self) -> int:
        """The shortest side that a reduced image may have, for all of them."""
        return max(part.least_side for part in self.parts)

    def of_reduced(self, found: Reduced) -> np.ndarray:
        """(ΣH·W, 1, 3) uint8: what each part gives, one after another."""
        return np.concatenate([part.of_reduced(found).reshape(-1, 1, 3) for part in self.parts])

    def split(self, pixels: np.ndarray) -> list[np.ndarray]:
        """What each part gave, (H, W, 3)."""
        ends = np.cumsum([part.size[0] * part.size[1] for part in self.parts])
        cut = np.split(pixels, ends[:-1])
        return [one.reshape(*part.size, 3) for one, part in zip(cut, self.parts, strict=True)]


def framing_from(options: dict[str, Any]) -> Framing | TiledFraming | Framings:
    """From what `dataclasses.asdict` makes of it."""
    if "parts" in options:
        return Framings(tuple(Framing(**part) for part in options["parts"]))
    if "boxes" in options:
        boxes = tuple(tuple(box) for box in options["boxes"])
        framing = framing_from(options["framing"])
        assert isinstance(framing, Framing)
        return TiledFraming(framing, boxes)
    return Framing(**{**options, "size": tuple(options["size"])})


def _without_long_ends(wide: int, high: int) -> tuple[int, int, int, int]:
    """The box to keep. A strip of 1 × 10,000 pixels, its shorter side resized to 256, would
    need gigabytes: so the far ends are cropped before resizing, not after."""
    longest = 8 * min(wide, high)
    left, top = max(0, wide - longest) // 2, max(0, high - longest) // 2
    return left, top, left + min(wide, longest), top + min(high, longest)


def _inside(kept: tuple[int, int, int, int], found: Reduced) -> tuple[float, float, float, float]:
    """A box of the whole image, in the coordinates of the reduced one."""
    wide, high = found.whole
    left, top, right, bottom = found.box
    across, down = (right - left) / wide, (bottom - top) / high
    return (
        left + kept[0] * across, top + kept[1] * down,
        min(right, left + kept[2] * across), min(bottom, top + kept[3] * down),
    )  # fmt: skip
