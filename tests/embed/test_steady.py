"""Files that change, vanish or come back while they are embedded never end in a wrong artefact."""

import os
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vizsla.data import file_hashes
from vizsla.data.fingerprint import FileInspection
from vizsla.data.imageset import ImageSet
from vizsla.data.preprocess import Preprocess
from vizsla.data.remote import image_set_from_url
from vizsla.data.resize import Framing
from vizsla.data.webdataset import image_set_from_tars
from vizsla.embed import inference
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.compute import Compute
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import embed
from vizsla.errors import DataError
from vizsla.model.embedder import Embedder
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
    rng = np.random.default_rng(0)
    for i in range(N):
        path = tmp_path / "photos" / f"{i % 2}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
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
    """Puts another image in the place of one, as `mv` does, with an older date."""

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
    with pytest.raises(DataError, match=r"were readable at the start.*Run the same command again"):
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


def test_the_dates_of_files_do_not_matter(photos: Path, once: Callable[..., Embeddings]) -> None:
    """A camera's clock may be wrong, and copies keep their dates."""
    images = ImageSet.from_folder(photos)
    os.utime(photos / images.ids[3], (2e9, 2e9))
    assert len(once(images)) == N


# ── while files are read ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def at_read(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What happens before the n-th image is read."""

    def plan(**actions: Callable[[], Any]) -> None:
        read, count = Framing.read, [0]

        def counted(self: Framing, path: Any, **options: Any) -> np.ndarray:
            count[0] += 1
            actions.pop(f"at_{count[0]}", lambda: None)()
            return read(self, path, **options)

        monkeypatch.setattr(Framing, "read", counted)

    return plan


def other_photos(place: Path) -> Path:
    """The same names with other images, and with older dates."""
    for i in range(N):
        path = place / f"{i % 2}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 20), (9 * i, 0, 255 - 9 * i)).save(path)
        os.utime(path, (1, 1))
    return place


def test_a_folder_that_is_away_for_a_moment_breaks_no_image(
    photos: Path, once: Callable[..., Embeddings], at_read: Callable[..., None], tmp_path: Path
) -> None:
    images = ImageSet.from_folder(photos)
    at_read(
        at_3=lambda: (photos / "0").rename(tmp_path / "away"),
        at_7=lambda: (tmp_path / "away").rename(photos / "0"),
    )
    with pytest.raises(DataError, match=r"were readable at the start.*Run the same command again"):
        once(images)
    assert once(images).ids == images.ids


@pytest.mark.parametrize("what", ["link to the root", "class folder", "link to one"])
def test_folders_and_links_that_are_exchanged_are_noticed(
    photos: Path, colours: Embedder, tmp_path: Path, what: str, once: Callable[..., Embeddings],
    at_read: Callable[..., None],
) -> None:  # fmt: skip
    others, root = other_photos(tmp_path / "others"), tmp_path / "current"
    if what == "link to the root":
        root.symlink_to(photos)
    else:
        photos.rename(root)
    linked = root / "1" / "11.png"
    if what == "link to one":
        (root / "own.png").symlink_to("01.png")
        (root / "own.png").replace(linked)

    def exchange() -> None:
        if what == "class folder":
            (root / "0").rename(tmp_path / "old")
            (others / "0").rename(root / "0")
            return
        new, place = (others, root) if what == "link to the root" else (others / "1/11.png", linked)
        (tmp_path / "new").symlink_to(new)
        (tmp_path / "new").replace(place)

    images = ImageSet.from_folder(root)
    at_read(**{"at_22" if what == "link to one" else "at_11": exchange})
    with pytest.raises(DataError, match="changed while they were embedded"):
        once(images)
    compute = resolve_compute(device="cpu", precision="fp32", batch_size=4, workers=1)
    alone, cached = (
        embed(images, colours, tmp_path / out, compute=compute, cache=cache).vectors
        for out, cache in (("a", None), ("b", tmp_path / "cache"))
    )
    np.testing.assert_allclose(cached, alone, atol=1e-6)  # nothing wrong went into the cache


@pytest.fixture
def tar(photos: Path, tmp_path: Path) -> Path:
    with tarfile.open(tmp_path / "part.tar", "w") as archive:
        for path in sorted(photos.rglob("*.png")):
            archive.add(path, path.name)
    return tmp_path / "part.tar"


@pytest.mark.parametrize("how", ["away", "replaced"])
def test_a_tar_file_must_hold_still_too(
    tar: Path, photos: Path, tmp_path: Path, colours: Embedder, how: str,
    at_read: Callable[..., None],
) -> None:  # fmt: skip
    def replaced() -> None:
        other = tmp_path / "other.tar"
        with tarfile.open(other, "w") as archive:
            for path in sorted(other_photos(tmp_path / "others").rglob("*.png")):
                archive.add(path, path.name)
        other.replace(tar)

    images, away = image_set_from_tars(str(tar)), tmp_path / "away.tar"
    if how == "replaced":
        at_read(at_11=replaced)
    else:
        at_read(at_3=lambda: tar.rename(away))
    compute = resolve_compute(device="cpu", precision="fp32", batch_size=4, workers=1)
    with pytest.raises(DataError, match=r"changed while|were readable at the start"):
        embed(images, colours, tmp_path / "e", compute=compute, shard_images=8)
    if away.exists():
        away.rename(tar)
    again = image_set_from_tars(str(tar))
    found = embed(again, colours, tmp_path / "e", compute=compute, shard_images=8,
                  overwrite=how == "replaced")  # fmt: skip
    assert len(found) == N and not found.broken


@pytest.mark.parametrize("how", ["gone", "another size"])
def test_what_a_store_listed_must_still_be_there(
    photos: Path, tmp_path: Path, colours: Embedder, how: str
) -> None:
    images = image_set_from_url(f"file://{photos}")
    last = photos / images.ids[-1]
    whole = last.read_bytes()
    last.unlink() if how == "gone" else last.write_bytes(whole + b"more")
    compute = resolve_compute(device="cpu", precision="fp32", batch_size=4, workers=1)
    with pytest.raises(DataError, match=r"were readable at the start|was listed with"):
        embed(images, colours, tmp_path / "e", compute=compute, shard_images=8)
    last.write_bytes(whole)
    os.utime(last, (1, 1))
    again = image_set_from_url(f"file://{photos}")
    found = embed(again, colours, tmp_path / "e", compute=compute, shard_images=8, overwrite=True)
    assert len(found) == N and not found.broken


def test_what_is_looked_at_late_is_still_what_was_embedded(
    photos: Path, colours: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    beside_a_gpu: Callable[..., Compute],
) -> None:  # fmt: skip
    images, look = ImageSet.from_folder(photos), file_hashes.hash_file

    def late(path: str) -> file_hashes.FileHash:
        if path.endswith(images.ids[0]):  # the first shard was embedded long ago
            time.sleep(2)
            swapped(photos, images.ids[1])()
        return look(path)

    monkeypatch.setattr(file_hashes, "hash_file", late)
    compute = beside_a_gpu(workers=1)
    with pytest.raises(DataError, match=f"1 images .*changed while.*first: {images.ids[1]}"):
        embed(images, colours, tmp_path / "e", compute=compute, shard_images=8)
    assert not (tmp_path / "e" / "manifest.json").exists()


def test_an_interruption_does_not_wait_for_the_files_to_be_looked_at(
    photos: Path, colours: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    beside_a_gpu: Callable[..., Compute],
) -> None:  # fmt: skip
    images, look = ImageSet.from_folder(photos), file_hashes.hash_file
    inspect = inference.inspect_files
    looked, cancellations = [], []

    def inspected(images: ImageSet, *, cancelled: threading.Event) -> FileInspection:
        cancellations.append(cancelled)
        return inspect(images, cancelled=cancelled)

    def slowly(path: str) -> file_hashes.FileHash:
        looked.append(path)
        cancellations[0].wait(60)
        return look(path)

    def interrupt(done: int, total: int) -> None:
        if done > 8:  # the first shard waits to be written
            raise KeyboardInterrupt

    monkeypatch.setattr(file_hashes, "hash_file", slowly)
    monkeypatch.setattr(inference, "inspect_files", inspected)
    with pytest.raises(KeyboardInterrupt):
        embed(images, colours, tmp_path / "e", compute=beside_a_gpu(workers=1),
              shard_images=8, progress=interrupt)  # fmt: skip
    assert len(looked) == 1
