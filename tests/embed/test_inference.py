import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn

from vizsla import storage
from vizsla.data.imageset import ImageSet
from vizsla.data.preprocess import Preprocess
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.compute import Compute
from vizsla.embed.embeddings import Embeddings, read_manifest
from vizsla.embed.inference import embed
from vizsla.errors import DataError, StorageError, UsageError
from vizsla.model.embedder import Embedder


class Patches(nn.Module):
    """(B, 3, H, W) → (B, 48): the mean colour of each cell of a 4 × 4 grid."""

    def __init__(self, dead: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float("nan") if dead else 1.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (nn.functional.adaptive_avg_pool2d(images, 4) * self.scale).flatten(1)


def embedder(dead: bool = False) -> Embedder:
    preprocess = Preprocess(size=(16, 16), resize=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Embedder.from_module(Patches(dead), preprocess, name="patches")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(23):
        pixels = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return folder


def compute(batch_size: int = 4, workers: int = 1) -> Compute:
    return resolve_compute(device="cpu", precision="fp32", batch_size=batch_size, workers=workers)


def test_every_image_gets_its_own_unit_vector(photos: Path, tmp_path: Path) -> None:
    found = embed(ImageSet.from_folder(photos), embedder(), tmp_path / "e", compute=compute())
    assert found.ids == [f"{i:02}.png" for i in range(23)]
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
    alone = embed(
        ImageSet.from_folder(photos).subset([7]), embedder(), tmp_path / "7", compute=compute()
    )
    np.testing.assert_allclose(alone.vectors[0], found.vectors[7], atol=1e-6)


def test_the_same_for_any_shard_size_and_number_of_workers(photos: Path, tmp_path: Path) -> None:
    (photos / "05.png").write_bytes(b"broken")
    found = []
    for n, (shard_images, workers) in enumerate([(1000, 1), (4, 3), (9, 2)]):
        out = tmp_path / str(n)
        found.append(
            embed(
                ImageSet.from_folder(photos), embedder(), out,
                compute=compute(workers=workers), shard_images=shard_images,
            )
        )  # fmt: skip
        assert len(list(out.glob("shard-*.parquet"))) == [1, 6, 2][n]
    for other in found[1:]:
        assert other.ids == found[0].ids and other.broken == found[0].broken
        np.testing.assert_array_equal(other.vectors, found[0].vectors)


def test_twice_gives_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    for name in "ab":
        embed(ImageSet.from_folder(photos), embedder(), tmp_path / name, compute=compute())
    for file in ("manifest.json", "shard-00000.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_broken_images_are_listed_with_their_reason(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "03.png").write_bytes(b"")
    (photos / "08.png").write_bytes((photos / "07.png").read_bytes()[:-300])
    found = embed(ImageSet.from_folder(photos), embedder(), tmp_path / "e", compute=compute())
    assert [name for name, _ in found.broken] == ["03.png", "08.png"]
    assert "empty" in found.broken[0][1] and "truncated" in found.broken[1][1]
    assert len(found) == 21 and "03.png" not in found.ids
    assert "2 of 23 images" in caplog.text
    assert Embeddings.open(tmp_path / "e").broken == found.broken


def test_nothing_to_embed_is_an_error(photos: Path, tmp_path: Path) -> None:
    for path in photos.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 23 images"):
        embed(ImageSet.from_folder(photos), embedder(), tmp_path / "e", compute=compute())


def test_a_model_that_gives_nan_is_noticed(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the model gives it no direction"):
        embed(ImageSet.from_folder(photos), embedder(dead=True), tmp_path / "e", compute=compute())
    for _ in range(2):  # the second one finds what the first one left
        with pytest.raises(DataError, match="none of its 23 images could be used"):
            Embeddings.open(tmp_path / "e")
        with pytest.raises(DataError, match="none of the 23 images"):
            embed(
                ImageSet.from_folder(photos), embedder(dead=True), tmp_path / "e", compute=compute()
            )


def test_a_name_with_a_line_break_breaks_no_message(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "a\nb.png").write_bytes(b"broken")
    found = embed(ImageSet.from_folder(photos), embedder(), tmp_path / "e", compute=compute())
    assert found.broken[0][0] == "a\nb.png"
    assert r"a\nb.png: not an image" in caplog.text


def test_an_interrupted_run_goes_on_and_ends_with_the_same_files(
    photos: Path, tmp_path: Path
) -> None:
    images = ImageSet.from_folder(photos)
    embed(images, embedder(), tmp_path / "whole", compute=compute(), shard_images=4)

    def interrupt(done: int, total: int) -> None:
        if done >= 14:
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        embed(
            images, embedder(), tmp_path / "e", compute=compute(), shard_images=4,
            progress=interrupt,
        )  # fmt: skip
    with pytest.raises(DataError, match="unfinished"):
        Embeddings.open(tmp_path / "e")
    embed(
        images, embedder(), tmp_path / "e", compute=compute(), shard_images=4,
        progress=lambda done, total: seen.append(done),
    )  # fmt: skip
    assert seen == [16, 20, 23]
    for path in (tmp_path / "whole").glob("*.*"):
        assert (tmp_path / "e" / path.name).read_bytes() == path.read_bytes()


def test_another_model_or_input_is_never_mixed_in(photos: Path, tmp_path: Path) -> None:
    images = ImageSet.from_folder(photos)
    embed(images, embedder(), tmp_path / "e", compute=compute())
    with pytest.raises(DataError, match="differ in compute, compute_id"):
        embed(images, embedder(), tmp_path / "e", compute=compute(batch_size=5))
    with pytest.raises(DataError, match="differ in max_pixels"):
        embed(images, embedder(), tmp_path / "e", compute=compute(), max_pixels=9)
    Image.new("RGB", (9, 9)).save(photos / "00.png")
    with pytest.raises(DataError, match="differ in images"):
        embed(ImageSet.from_folder(photos), embedder(), tmp_path / "e", compute=compute())
    again = embed(
        ImageSet.from_folder(photos), embedder(), tmp_path / "e", compute=compute(), overwrite=True
    )
    assert len(again) == 23


def test_a_picture_that_changed_and_kept_its_size_is_noticed(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (255, 0, 0)).save(photos / "00.bmp")
    embed(ImageSet.from_folder(photos), embedder(), tmp_path / "e", compute=compute())
    size = (photos / "00.bmp").stat().st_size
    Image.new("RGB", (40, 30), (0, 0, 255)).save(photos / "00.bmp")
    assert (photos / "00.bmp").stat().st_size == size
    with pytest.raises(DataError, match="differ in images"):
        embed(ImageSet.from_folder(photos), embedder(), tmp_path / "e", compute=compute())


def test_two_at_once_are_not_mixed(photos: Path, tmp_path: Path) -> None:
    images, entered, leave = ImageSet.from_folder(photos), threading.Event(), threading.Event()

    def wait(done: int, total: int) -> None:
        entered.set()
        leave.wait(30)

    first = threading.Thread(
        target=embed,
        args=(images, embedder(), tmp_path / "e"),
        kwargs={"compute": compute(), "progress": wait},
    )
    first.start()
    assert entered.wait(30)
    with pytest.raises(StorageError, match="another process is writing"):
        embed(images, embedder(), tmp_path / "e", compute=compute())
    leave.set()
    first.join()
    assert len(Embeddings.open(tmp_path / "e")) == 23


def test_half_precision_stays_close(photos: Path, tmp_path: Path) -> None:
    images = ImageSet.from_folder(photos)
    whole = embed(images, embedder(), tmp_path / "a", compute=compute())
    half = embed(
        images, embedder(), tmp_path / "b",
        compute=resolve_compute(device="cpu", precision="bf16", batch_size=4),
    )  # fmt: skip
    assert half.compute_id != whole.compute_id and half.model_id == whole.model_id
    assert (half.vectors * whole.vectors).sum(axis=1).min() > 0.999


def test_what_the_machine_does_not_have_is_said() -> None:
    with pytest.raises(UsageError, match="choose auto, cpu"):
        resolve_compute(device="tpu")
    with pytest.raises(UsageError, match="choose fp32 or fp16"):
        embed(ImageSet(Path(), ["a"], pa.table({})), embedder(), "x", store="fp8")
    with pytest.raises(UsageError, match="choose auto, fp32"):
        resolve_compute(precision="int4")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA"):
            resolve_compute(device="cuda")


def test_without_being_told_it_asks_which_precision_the_network_allows(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vizsla.embed import auto_compute as module

    requested: list[object] = []

    def precision(given: object, device: str, images: int, sample: object) -> str:
        requested.extend([given, images, sample is not None])
        return "fp32"

    monkeypatch.setattr(module, "_precision", precision)
    known = embedder()
    embed(ImageSet.from_folder(photos), known, tmp_path / "e")
    assert requested == [known, 23, True]
    assert read_manifest(tmp_path / "e")["compute"]["precision"] == "fp32"


def test_the_way_of_a_gpu_leaves_the_same_files(
    photos: Path, tmp_path: Path, beside_a_gpu: Callable[..., Compute]
) -> None:
    (photos / "03.png").write_bytes(b"")
    images = ImageSet.from_folder(photos)
    for name, how in (("a", compute()), ("b", beside_a_gpu())):
        embed(images, embedder(), tmp_path / name, compute=how, shard_images=4)
    files = sorted(path.name for path in (tmp_path / "a").glob("[!.]*"))
    assert len(files) == 8  # six shards, the manifest, and where the vectors come from
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_way_of_a_gpu_goes_on_behind_what_is_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    beside_a_gpu: Callable[..., Compute],
) -> None:  # fmt: skip
    images, write, written = ImageSet.from_folder(photos), storage.write_table, []

    def full_after_two(path: Path, table: pa.Table) -> str:
        if len(written) == 2:
            raise StorageError("the disk is full")
        written.append(path.name)
        return write(path, table)

    embed(images, embedder(), tmp_path / "whole", compute=beside_a_gpu(), shard_images=4)
    with monkeypatch.context() as broken:
        broken.setattr(storage, "write_table", full_after_two)
        with pytest.raises(StorageError, match="the disk is full"):
            embed(images, embedder(), tmp_path / "e", compute=beside_a_gpu(), shard_images=4)
    with pytest.raises(DataError, match=r"unfinished \(8 of 23 images\)"):
        Embeddings.open(tmp_path / "e")
    kept = (tmp_path / "e" / "shard-00000.parquet").stat().st_mtime_ns
    embed(images, embedder(), tmp_path / "e", compute=beside_a_gpu(), shard_images=4)
    assert (tmp_path / "e" / "shard-00000.parquet").stat().st_mtime_ns == kept
    for path in (tmp_path / "whole").glob("[!.]*"):
        assert (tmp_path / "e" / path.name).read_bytes() == path.read_bytes()


def test_the_way_of_a_gpu_notices_other_images(
    photos: Path, tmp_path: Path, beside_a_gpu: Callable[..., Compute]
) -> None:
    embed(ImageSet.from_folder(photos), embedder(), tmp_path / "e", compute=beside_a_gpu())
    (photos / "05.png").write_bytes((photos / "06.png").read_bytes())
    with pytest.raises(DataError, match="already holds other embeddings"):
        embed(ImageSet.from_folder(photos), embedder(), tmp_path / "e", compute=beside_a_gpu())
