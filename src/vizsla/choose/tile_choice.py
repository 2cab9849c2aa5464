"""Labelled images → the tiles that validation prefers: `--tiles auto`. The test part is never used.

Queries are whole images, as they are when a gallery with tiles is searched.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.choose.validation import Trial, TrialReport, Trials, ValidationSet, embedded_draws
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Target
from vizsla.data.tiles import Tiles
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError
from vizsla.options import TuneConfig
from vizsla.search import exact

NONE = "none"
GRIDS = (NONE, "1+2x2", "1+2x2+3x3")  # each holds the tiles of those before it
FORM = "tiles/1"


@dataclass(frozen=True)
class TileChoice:
    """The grids that were chosen, or `none`, and all trials."""

    tiles: str
    report: TrialReport

    @property
    def chosen(self) -> Trial:
        """The trial of the chosen grids."""
        return self.report.chosen

    def lines(self) -> list[str]:
        """For a terminal and the log."""
        each = vectors_each(self.tiles)
        cost = f"{each} vectors of each gallery image" if each > 1 else "one vector of each image"
        return [*self.report.lines("tiles"), f"tiles kept: {self.tiles} ({cost})"]

    def record(self) -> dict[str, Any]:
        """For the result file: what it was chosen on, and each candidate's gain."""
        return self.report.record("tiles")

    def save(self, path: str | Path) -> None:
        """Writes sealed JSON, so that a repeated run need not choose again."""
        storage.write_sealed_json(path, {"form": FORM, "tiles": self.tiles, **self.record()})


def saved_tiles(path: str | Path) -> str | None:
    """The grids that `TileChoice.save` wrote; None if there is no such file."""
    return str(storage.read_sealed_json(path)["tiles"]) if Path(path).exists() else None


def vectors_each(grids: str) -> int:
    """How many vectors an image has."""
    return len(Tiles.parse(grids) or [0])


def choose_tiles_on_images(
    images: ImageSet,
    config: TuneConfig,
    target: Target | None,
    *,
    frozen: bool,
    embed: Callable[[ImageSet], Embeddings],
) -> TileChoice:
    """The grids chosen on labelled images, by draws like the test part (see `embedded_draws`).

    embed: gives some of the images the vectors of all tiles of the last of GRIDS. DataError if
    there are too few images of a class.
    """
    drawn = embedded_draws(images, config, target, frozen=frozen, embed=embed)
    return choose_tiles(drawn.vectors, drawn.validation_set, optimise=config.optimise)


def choose_tiles(
    vectors: Embeddings, validation: ValidationSet, *, optimise: str = "mean"
) -> TileChoice:
    """The first of GRIDS, unless the best of the others is safe (`Trial.is_safe`).

    vectors: of the tiles of the last of GRIDS. DataError: of others.
    """
    if str(vectors.tiles or NONE) != GRIDS[-1]:
        raise DataError(f"vectors of the tiles {GRIDS[-1]} are needed, not of {vectors.tiles}")
    assert vectors.tile_vectors is not None
    trials = Trials(validation, optimise)
    for grids in GRIDS:
        T, found = vectors_each(grids), []
        for draw in validation.draws:
            queries = vectors.vectors[draw.query]
            gallery = vectors.tile_vectors[draw.gallery, :T].reshape(-1, vectors.dim)
            positions, _ = exact.top_k_of_tiles(queries, gallery, T, len(draw.gallery))
            found.append(positions // T)
        trials.add(grids, found)
    best = trials.best().name
    return TileChoice(best, trials.report(best))
