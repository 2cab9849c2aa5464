"""Choosing tiles on vectors where it is known whether parts of images help."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vizsla.choose.tile_choice import (
    GRIDS,
    choose_tiles_on_images,
    saved_tiles,
    vectors_each,
)
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Target
from vizsla.data.tiles import Tiles
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError
from vizsla.options import TuneConfig

T = vectors_each(GRIDS[-1])


def tiled(images: ImageSet, tile: int) -> Embeddings:
    """Of every other image of a class only this tile shows it; the others show it as a whole."""
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((len(images), T, 96))
    for i, name in enumerate(images.ids):
        c = int(name[:2])
        of_class = np.random.default_rng((3, c)).standard_normal(96)
        shown = tile if i % 2 else 0
        vectors[i, shown] = of_class + 0.3 * rng.standard_normal(96)
    vectors = (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).astype(np.float32)
    return Embeddings(
        images.ids, vectors[:, 0], images.attributes, "m", tiles=Tiles.parse(GRIDS[-1]),
        tile_vectors=vectors,
    )  # fmt: skip


@pytest.mark.parametrize(("tile", "wanted"), [(0, "none"), (3, "1+2x2"), (9, "1+2x2+3x3")])
def test_the_grid_that_shows_the_objects_is_chosen(
    images: ImageSet, tmp_path: Path, tile: int, wanted: str
) -> None:
    choice = choose_tiles_on_images(
        images, TuneConfig(optimise="map"), Target(24, 72, 9.0), frozen=True,
        embed=lambda some: tiled(some, tile),
    )  # fmt: skip
    assert choice.tiles == wanted == choice.chosen.name
    assert [trial.name for trial in choice.report.trials] == list(GRIDS)
    if wanted != "none":
        assert choice.chosen.gain > choice.chosen.error and choice.chosen.risk <= 0.1
    text = "\n".join(choice.lines())
    each = {"none": "one vector of each image", "1+2x2": "5 vectors of each gallery image"}
    assert f"tiles kept: {wanted} ({each.get(wanted, '14 vectors of each gallery image')})" in text
    rows = choice.record()["candidates"]
    assert [row["tiles"] for row in rows if row["verdict"] == "kept"] == [wanted]
    choice.save(tmp_path / "tiles.json")
    assert saved_tiles(tmp_path / "tiles.json") == wanted
    assert saved_tiles(tmp_path / "absent.json") is None


def test_vectors_of_other_tiles_are_refused(
    images: ImageSet, curled: Callable[[ImageSet], Embeddings]
) -> None:
    with pytest.raises(DataError, match=r"vectors of the tiles 1\+2x2\+3x3 are needed, not of No"):
        choose_tiles_on_images(images, TuneConfig(), Target(24, 72, 9.0), frozen=True, embed=curled)
