"""Files that change, vanish or come back while they are embedded never end in a wrong artefact."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vizsla.data.imageset import ImageSet
from vizsla.data.transforms import Preprocess
from vizsla.errors import DataError
from vizsla.model.compute import resolve_compute
from vizsla.model.embedder import Embedder
from vizsla.model.embeddings import Embeddings
from vizsla.model.inference import embed
from vizsla.storage import read_sealed_json

N = 24


class Patches(nn.Module):
    """(B, 3, H, W) → (B, 48): the mean colour of each cell of a 4 × 4 grid."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (nn.functional.adaptive_avg_pool2d(images, 4) * self.scale).flatten(1)


@pytest.fixture
def colours() -> Embedder:
    return Embedder.from_module(Patches(), Preprocess((16, 16), 16), name="patches")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    dice = np.random.default_rng(0)
    for i in range(N):
        path = tmp_path / "photos" / f"{i % 2}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def once(colours: Embedder, tmp_path: Path) -> Callable[..., Embeddings]:
    compute = resolve_compute(device="cpu", precision="fp32", batch_size=4, workers=1)

    def run(images: ImageSet, after: Callable[[], None] | None = None) -> Embeddings:
        """after: happens when the first images are done."""
        pending = [after] if after else []

        def progress(done: int, total: int) -> None:
            if pending:
                pending.pop()()

        return embed(
            images, colours, tmp_path / "e", compute=compute, shard_images=8, progress=progress,
            cache=tmp_path / "cache",
        )  # fmt: skip

    return run


def swapped(photos: Path, name: str) -> Callable[[], None]:
    """Puts another picture in the place of one, as `mv` does, with an older date."""

    def swap() -> None:
        other = photos.parent / "other.png"
        Image.new("RGB", (24, 20), "red").save(other)
        os.utime(other, (0, 0))
        other.replace(photos / name)

    return swap


def test_a_picture_that_changes_meanwhile_is_not_embedded_for_the_old_one(
    photos: Path, once: Callable[..., Embeddings], colours: Embedder, tmp_path: Path
) -> None:
    images = ImageSet.from_folder(photos)
    name = images.ids[-1]
    original = (photos / name).read_bytes()
    with pytest.raises(DataError, match=rf"1 images in .* changed .*first: {name}"):
        once(images, swapped(photos, name))
    (photos / name).write_bytes(original)
    found = once(images)
    assert found.ids == images.ids
    compute = resolve_compute(device="cpu", precision="fp32", batch_size=4, workers=1)
    alone = embed(images.subset([N - 1]), colours, tmp_path / "alone", compute=compute)
    np.testing.assert_allclose(found.vectors[-1], alone.vectors[0], atol=1e-6)


def test_the_cache_takes_no_vector_of_what_changed(
    photos: Path, once: Callable[..., Embeddings], colours: Embedder, tmp_path: Path
) -> None:
    images = ImageSet.from_folder(photos)
    name = images.ids[-1]
    original = (photos / name).read_bytes()
    with pytest.raises(DataError, match="changed"):
        once(images, swapped(photos, name))
    moved = tmp_path / "elsewhere" / "renamed.png"
    moved.parent.mkdir()
    moved.write_bytes(original)
    compute = resolve_compute(device="cpu", precision="fp32", batch_size=4, workers=1)
    alone, cached = (
        embed(ImageSet.from_folder(moved.parent), colours, tmp_path / out, compute=compute,
              cache=cache)
        for out, cache in (("a", None), ("b", tmp_path / "cache"))
    )  # fmt: skip
    np.testing.assert_allclose(cached.vectors, alone.vectors, atol=1e-6)


def test_a_folder_that_comes_back_is_embedded_whole(
    photos: Path, once: Callable[..., Embeddings], tmp_path: Path
) -> None:
    images = ImageSet.from_folder(photos)
    with pytest.raises(DataError, match=r"could be read at the start.*Run the same command again"):
        once(images, lambda: (photos / "1").rename(tmp_path / "away"))
    assert not read_sealed_json(tmp_path / "e" / "manifest.json")["complete"]
    (tmp_path / "away").rename(photos / "1")
    assert once(images).ids == images.ids


def test_what_was_missing_from_the_start_is_broken_as_before(
    photos: Path, once: Callable[..., Embeddings], tmp_path: Path
) -> None:
    images = ImageSet(photos, sorted([*ImageSet.from_folder(photos).ids, "1/none.png"]))
    found = once(images)
    assert len(found.ids) == N
    assert "1/none.png" in str(read_sealed_json(tmp_path / "e" / "manifest.json")["shards"])
