"""One vector for each tile of an image, cut from one decoded image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vizsla.data.images import read_image
from vizsla.data.imageset import ImageSet
from vizsla.data.preprocess import Preprocess
from vizsla.data.resize import TiledFraming
from vizsla.data.tiles import OVERLAP, Tiles
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.compute import Compute
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import embed
from vizsla.errors import DataError, UsageError
from vizsla.model.embedder import Embedder


class Patches(nn.Module):
    """(B, 3, H, W) → (B, 48): the mean colour of each cell of a 4 × 4 grid."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (nn.functional.adaptive_avg_pool2d(images, 4) * self.scale).flatten(1)


def embedder(tiles: str | None = "1+2x2") -> Embedder:
    preprocess = Preprocess(size=(16, 16), resize=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    found = Embedder.from_module(Patches(), preprocess, name="patches")
    return found if tiles is None else found.with_tiles(tiles)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(11):
        small = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
        small.resize((400, 300), Image.Resampling.BICUBIC).save(folder / f"ü {i:02}.jpg")
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def compute(batch_size: int = 16) -> Compute:
    return resolve_compute(device="cpu", precision="fp32", batch_size=batch_size, workers=1)


def made(photos: Path, out: Path, tiles: str | None = "1+2x2", **more: Any) -> Embeddings:
    options = {"compute": compute(), **more}
    return embed(ImageSet.from_folder(photos), embedder(tiles), out, **options)


def test_grids_are_read_and_their_tiles_cover_the_image() -> None:
    tiles = Tiles.parse("2x2 + 3X1")
    assert tiles is not None and str(tiles) == "1+2x2+3x1" and len(tiles) == 8
    assert tiles.boxes[0] == (0, 0, 1, 1)
    side = 1 / (2 - OVERLAP)
    np.testing.assert_allclose(tiles.boxes[1:5], [
        (0, 0, side, side), (1 - side, 0, side, side),
        (0, 1 - side, side, side), (1 - side, 1 - side, side, side),
    ])  # fmt: skip
    starts, width = [box[0] for box in tiles.boxes[5:]], tiles.boxes[5][2]
    np.testing.assert_allclose(np.diff(starts), (1 - OVERLAP) * width)
    assert starts[-1] + width == pytest.approx(1)
    assert Tiles.parse("1") is None and Tiles.parse("none") is None
    for wrong in ("", "2", "2x", "0x2", "9x1", "8x8", "axb", "1+"):
        with pytest.raises(UsageError, match="tiles"):
            Tiles.parse(wrong)


def test_a_tile_has_the_vector_of_its_part_of_the_image(photos: Path, tmp_path: Path) -> None:
    found, plain = made(photos, tmp_path / "e"), made(photos, tmp_path / "plain", None)
    assert found.tiles == Tiles.parse("1+2x2") and found.tile_vectors is not None
    assert found.ids == plain.ids and [name for name, _ in found.broken] == ["broken.jpg"]
    assert (found.vectors * plain.vectors).sum(axis=1).min() > 0.999  # it may be decoded smaller
    assert found.tile_vectors.shape == (11, 5, 48) and found.model_id != plain.model_id
    np.testing.assert_allclose(np.linalg.norm(found.tile_vectors, axis=2), 1, atol=1e-6)
    for name, vectors in zip(found.ids, found.tile_vectors, strict=True):
        image = read_image(photos / name)
        for (x, y, w, h), vector in zip(found.tiles.boxes[1:], vectors[1:], strict=True):
            box = (x * 400, y * 300, (x + w) * 400, (y + h) * 300)
            cut = image.resize((268, 201), box=box, resample=Image.Resampling.BICUBIC)
            (expected,) = embedder(None).encode([cut]).numpy()
            assert vector @ expected > 0.999
        assert (vectors @ vectors.T).min() < 0.9  # the tiles differ


def test_a_large_image_is_decoded_small_but_large_enough_for_its_tiles(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    pixels = np.random.default_rng(1).integers(0, 255, (15, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((480, 360), Image.Resampling.BICUBIC).save(path)
    framing, tiles = embedder().preprocess.framing, Tiles.parse("1+3x3")
    assert tiles is not None
    tiled = TiledFraming(framing, tiles.boxes)
    assert framing.reduced(path).image.size < read_image(path, at_least=tiled.least_side).size
    reduced, whole = tiled.read(path), tiled.pixels(read_image(path))
    assert reduced.shape == whole.shape == (160, 16, 3)
    assert np.abs(reduced.astype(int) - whole).mean() < 2


def test_an_interrupted_job_continues_to_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > 6:
            raise Stopped

    with pytest.raises(Stopped):
        made(photos, tmp_path / "e", shard_images=3, progress=stop)
    made(photos, tmp_path / "e", shard_images=3)
    made(photos, tmp_path / "once", shard_images=3)
    files = sorted(path.name for path in (tmp_path / "e").glob("*.parquet"))
    assert len(files) > 1
    for name in files:
        assert (tmp_path / "e" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
    with pytest.raises(DataError, match="other embeddings"):
        made(photos, tmp_path / "e", "1+3x3", shard_images=3)


def test_other_batches_caches_and_processes_give_the_same(
    photos: Path, tmp_path: Path, beside_a_gpu: Callable[..., Compute]
) -> None:
    expected = made(photos, tmp_path / "e").tile_vectors
    for i, more in enumerate([
        {"compute": compute(3)}, {"cache": tmp_path / "c"}, {"cache": tmp_path / "c"},
        {"compute": beside_a_gpu()},
    ]):  # fmt: skip
        found = made(photos, tmp_path / str(i), **more)
        np.testing.assert_allclose(found.tile_vectors, expected, atol=1e-6)
    whole = made(photos, tmp_path / "whole", cache=tmp_path / "c", only_whole=True)
    assert whole.tiles is None and whole.model_id == found.model_id
    assert (whole.vectors * found.vectors).sum(axis=1).min() > 0.999


def test_saved_embeddings_and_embedders_keep_their_tiles(photos: Path, tmp_path: Path) -> None:
    found = made(photos, tmp_path / "e")
    found.save(tmp_path / "copy", store="fp16")
    copy = Embeddings.open(tmp_path / "copy")
    assert copy.tiles == found.tiles and "5 tiles each: 1+2x2" in repr(copy)
    np.testing.assert_allclose(copy.tile_vectors, found.tile_vectors, atol=1e-3)  # type: ignore[arg-type]
    few = found.subset(np.array([4, 2]))
    np.testing.assert_array_equal(few.tile_vectors, found.tile_vectors[[4, 2]])  # type: ignore[index]
    embedder().save(tmp_path / "model")
    again = Embedder.load(tmp_path / "model", module=Patches())
    assert again.tiles == found.tiles and again.model_id == found.model_id
