"""A grid such as `1+2x2+3x3` → the boxes of an image's tiles: the whole image, then each grid's."""

import re
from dataclasses import dataclass
from functools import cached_property

from vizsla.errors import UsageError

Box = tuple[float, float, float, float]  # x, y, width and height as fractions of the image
WHOLE: Box = (0, 0, 1, 1)
# Of a tile's side, shared with the next one of its grid: small objects in training pictures are
# found by smaller tiles (docs/measured.md), and one on a border is seen by both.
OVERLAP = 0.2
MOST_ON_A_SIDE, MOST_TILES = 8, 64


@dataclass(frozen=True)
class Tiles:
    """grids: (across, down) of each; the first one is (1, 1), the whole image."""

    grids: tuple[tuple[int, int], ...]

    @staticmethod
    def parse(text: str, flag: str = "--tiles") -> "Tiles | None":
        """From grids joined by +, such as `1+2x2` or `2x2`: the whole image is always the first
        tile. None for `none` and `1`. UsageError, which names the flag: not understood, or too
        many."""
        grids = [(1, 1)]
        for word in [] if text.strip() == "none" else text.replace(" ", "").split("+"):
            found = re.fullmatch(r"(\d{1,2})[xX](\d{1,2})|1", word)
            if not found:
                raise UsageError(
                    f"{flag} {text!r}: {word!r} is not a grid; write 1 for the whole image and "
                    "2x2 for two tiles across and two down, joined by +: 1+2x2+3x3"
                )
            across, down = (int(found[1]), int(found[2])) if found[1] else (1, 1)
            if not (1 <= across <= MOST_ON_A_SIDE and 1 <= down <= MOST_ON_A_SIDE):
                raise UsageError(f"{flag} {text!r}: choose from 1 to {MOST_ON_A_SIDE} on a side")
            grids.append((across, down))
        tiles = Tiles(tuple(dict.fromkeys(grids)))
        if len(tiles) > MOST_TILES:
            raise UsageError(
                f"{flag} {text!r} makes {len(tiles)} tiles of each image: choose up to {MOST_TILES}"
            )
        return tiles if len(tiles) > 1 else None

    @staticmethod
    def of_query(grids: str | None) -> "Tiles | None":
        """What --query-tiles says; None without."""
        return Tiles.parse(grids or "none", "--query-tiles")

    def __str__(self) -> str:
        return "+".join("1" if grid == (1, 1) else f"{grid[0]}x{grid[1]}" for grid in self.grids)

    def __len__(self) -> int:
        """T, the tiles of an image."""
        return sum(across * down for across, down in self.grids)

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """T boxes: grid by grid, row by row."""
        return tuple(
            (x, y, wide, high)
            for across, down in self.grids
            for y, high in _spans(down)
            for x, wide in _spans(across)
        )


def _spans(n: int) -> list[tuple[float, float]]:
    """Start and length of n equal parts of 0…1, each of which shares OVERLAP with the next."""
    length = 1 / (n - (n - 1) * OVERLAP)
    return [(i * length * (1 - OVERLAP), length) for i in range(n)]
