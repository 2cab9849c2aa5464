"""The part of a picture that is searched with: from text or numbers, and cut out of an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vizsla.errors import DataError, UsageError

EXPECTED = (
    "expected left, top, width, height, such as 40,30,200,150 in pixels, or 0.1,0.1,0.5,0.5 as "
    "fractions of the picture's sides"
)
TOLERANCE = 1e-4  # of a side: fractions of three or four digits may end so far beyond it


@dataclass(frozen=True)
class QueryBox:
    """left, top, width, height of a part of a picture that is upright (after EXIF rotation).

    Fractions of its width and height if no number is above 1, else whole pixels.
    """

    x: float
    y: float
    w: float
    h: float

    def __post_init__(self) -> None:
        if not all(np.isfinite(value) and value >= 0 for value in self.numbers):
            raise UsageError(f"box {self}: a number below 0 or none at all; {EXPECTED}")
        if self.w == 0 or self.h == 0:
            raise UsageError(f"box {self} has no area; {EXPECTED}")
        if not self.in_fractions and any(value % 1 for value in self.numbers):
            raise UsageError(
                f"box {self}: pixels are whole numbers, fractions at most 1; {EXPECTED}"
            )
        if self.in_fractions and max(self.x + self.w, self.y + self.h) > 1 + TOLERANCE:
            raise UsageError(
                f"box {self} reaches beyond the picture, whose sides are 1; {EXPECTED}"
            )

    @staticmethod
    def of(given: "GivenBox") -> "QueryBox | None":
        """From x,y,w,h as text or four numbers; None stays None. UsageError: it is neither."""
        if given is None or isinstance(given, QueryBox):
            return given
        parts = given.split(",") if isinstance(given, str) else given
        try:
            x, y, w, h = (float(part) for part in parts)
        except (TypeError, ValueError) as error:
            raise UsageError(f"box {given!r}: {EXPECTED}") from error
        return QueryBox(x, y, w, h)

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """x, y, w, h."""
        return self.x, self.y, self.w, self.h

    @property
    def in_fractions(self) -> bool:
        """Whether the numbers are fractions of the picture's sides, and not pixels."""
        return max(self.numbers) <= 1

    def __str__(self) -> str:
        return ",".join(f"{value:.10g}" for value in self.numbers)

    def pixels(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """left, top, right, bottom in a picture of this (width, height); at least one pixel.

        DataError: it reaches beyond the picture.
        """
        wide, high = size
        x, y, right, bottom = self.x, self.y, self.x + self.w, self.y + self.h
        if self.in_fractions:
            x, right = min(round(x * wide), wide - 1), min(round(right * wide), wide)
            y, bottom = min(round(y * high), high - 1), min(round(bottom * high), high)
        elif right > wide or bottom > high:
            raise DataError(
                f"box {self} reaches beyond the picture, which is {wide} × {high} pixels upright: "
                "give a box inside of it"
            )
        left, top = int(x), int(y)
        return left, top, max(left + 1, int(right)), max(top + 1, int(bottom))

    def in_fractions_of(self, size: tuple[int, int]) -> "QueryBox":
        """The same part, by fractions of a picture of this (width, height), which may be shown at
        another size. DataError: it reaches beyond it."""
        if self.in_fractions:
            return self
        self.pixels(size)
        wide, high = size
        return QueryBox(self.x / wide, self.y / high, self.w / wide, self.h / high)

    def cut(self, image: Image.Image) -> Image.Image:
        """This part of an upright image. DataError: it reaches beyond it."""
        return image.crop(self.pixels(image.size))


GivenBox = QueryBox | str | Sequence[float] | None  # what `QueryBox.of` takes
