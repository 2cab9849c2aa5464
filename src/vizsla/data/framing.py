"""A picture → the pixels that a network looks at: resized, the centre cut out. Imports no torch.

So a process that decodes and does nothing else starts fast and stays small.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vizsla.data.images import MAX_PIXELS, read_image

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
REDUCED = 2.0  # a JPEG is decoded smaller, but at least so many times as large as it is needed
REDUCED_BOUND = 2.5  # of 255: how much a pixel then differs at most, on average over a photo


@dataclass(frozen=True)
class Framing:
    """size: (H, W) of what comes out. resize, mode, interpolation: see transforms.Preprocess."""

    size: tuple[int, int]
    resize: int | None
    mode: str
    interpolation: str

    def read(self, path: str | Path | bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """(H, W, 3) uint8 of a file; ImageError with the reason where it cannot be read.

        A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, where that is still REDUCED times
        what is needed: two to four times as fast, and within REDUCED_BOUND.
        """
        return self.pixels(read_image(path, max_pixels=max_pixels, at_least=self.least_side))

    @property
    def least_side(self) -> int:
        """No side of a picture may be shorter, that is to be decoded at a smaller size."""
        return round(REDUCED * (self.resize or max(self.size)))

    def pixels(self, image: Image.Image) -> np.ndarray:
        """(H, W, 3) uint8 of an RGB picture."""
        if self.mode == "crop":
            image = _without_long_ends(image)
        scaled = image.resize(self.scaled(*image.size), INTERPOLATIONS[self.interpolation])
        height, width = self.size
        left, top = round((scaled.width - width) / 2), round((scaled.height - height) / 2)
        return np.asarray(scaled.crop((left, top, left + width, top + height)))

    def scaled(self, wide: int, high: int) -> tuple[int, int]:
        """Width and height of the whole picture after resizing, before the centre is cut out."""
        if self.mode == "squash":
            height, width = (self.resize, self.resize) if self.resize else self.size
            return width, height
        short = self.resize or max(self.size)
        if wide <= high:
            return short, int(short * high / wide)
        return int(short * wide / high), short


def _without_long_ends(image: Image.Image) -> Image.Image:
    """A strip of 1 × 10,000 pixels, its shorter side resized to 256, would need gigabytes:
    what is far from the centre is cut off before, and not after."""
    wide, high = image.size
    longest = 8 * min(wide, high)
    if max(wide, high) <= longest:
        return image
    left, top = max(0, wide - longest) // 2, max(0, high - longest) // 2
    return image.crop((left, top, left + min(wide, longest), top + min(high, longest)))
