"""Every `auto` is resolved once, with a reason, and what goes on uses what is written."""

import logging
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vizsla import storage
from vizsla.data.fingerprint import FileInspection, inspect_files
from vizsla.data.imageset import ImageSet
from vizsla.data.preprocess import Preprocess
from vizsla.embed import auto_compute, inference, torch_runtime
from vizsla.embed.auto_compute import resolve_compute, written_compute
from vizsla.embed.compute import Compute
from vizsla.embed.compute_shards import EmbeddingInput, Engine, Shard, embed_here
from vizsla.embed.embeddings import read_manifest
from vizsla.embed.inference import embed, write_embeddings
from vizsla.embed.torch_runtime import CompilingError, TorchRuntime
from vizsla.errors import UsageError
from vizsla.model.embedder import Embedder


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.build("tiny", weights="random", image_size=32)


@pytest.fixture
def photos(tmp_path: Path) -> ImageSet:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(9):
        pixels = rng.integers(0, 255, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{i}.png")
    return ImageSet.from_folder(tmp_path / "photos")


def test_bf16_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(auto_compute, "has_fast_bf16", lambda device, fast=fast: fast)
        assert resolve_compute(device="cpu").precision == precision
    assert resolve_compute(device="cpu", precision="fp32").precision == "fp32"
    assert resolve_compute(device="cpu").batch_size == auto_compute.CPU_BATCH


def test_what_was_written_stands_for_every_auto() -> None:
    written = {"precision": "fp16", "batch_size": 7, "compiled": False}
    found = resolve_compute(device="cpu", compiling="auto", images=10**6, written=written)
    assert (found.precision, found.batch_size, found.compiled) == ("fp16", 7, False)
    given = resolve_compute(device="cpu", precision="fp32", batch_size=3, written=written)
    assert (given.precision, given.batch_size) == ("fp32", 3)


def test_an_interrupted_folder_is_gone_on_with_as_it_was_begun(
    photos: ImageSet, embedder: Embedder, tmp_path: Path
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 4:
            raise KeyboardInterrupt

    begun = resolve_compute(device="cpu", precision="fp32", batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        embed(photos, embedder, tmp_path / "e", compute=begun, shard_images=2, progress=interrupt)
    now = resolve_compute(device="cpu", written=written_compute(tmp_path / "e"))
    assert now.id == begun.id
    assert len(embed(photos, embedder, tmp_path / "e", compute=now, shard_images=2)) == 9
    assert written_compute(tmp_path / "nothing") is None


def test_the_compute_id_knows_what_changes_bits_and_nothing_else() -> None:
    one = Compute("cpu", "fp32", 32, 1)
    assert one.id == Compute("cpu", "fp32", 32, 5).id
    others = [Compute("cpu", "bf16", 32, 1), Compute("cpu", "fp32", 16, 1),
              Compute("cpu", "fp32", 32, 1, compiled=True)]  # fmt: skip
    assert len({one.id, *(other.id for other in others)}) == 4
    assert "pillow" in one.facts["decoder"] and "reduced" in one.facts["decoder"]


@pytest.mark.parametrize("wrong", [
    {"compiling": "maybe"}, {"batch_size": 0}, {"batch_size": "many"}, {"workers": 0},
    {"batch_size": "²"}, {"batch_size": 10**19}, {"device": "cpu:abc"}, {"device": "cpu:"},
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="choose"):
        resolve_compute(**{"device": "cpu", **wrong})  # type: ignore[arg-type]


# ── compiling ────────────────────────────────────────────────────────────────────────────────────


def test_few_images_are_never_compiled(embedder: Embedder) -> None:
    few = resolve_compute(device="cpu", compiling="auto", embedder=embedder, images=100)
    assert not few.compiled


def test_compiling_pays_from_some_number_of_images_on_and_says_why(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vizsla.embed")
    monkeypatch.setattr(auto_compute, "_seconds_per_image", lambda *_: 0.01)
    one = Compute("cpu", "fp32", 4, 1)
    assert not auto_compute.compiling_pays(one, embedder, 10_000)  # saves 5 s of 60
    assert auto_compute.compiling_pays(one, embedder, 200_000)
    assert "for 200000 images compiling saves about 100 s and takes 60 s" in caplog.text


def test_without_a_compiler_it_is_eager_with_one_line(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for requested, images in (("auto", 10**7), ("on", 10)):
        caplog.clear()
        found = resolve_compute(device="cpu", compiling=requested, embedder=embedder, images=images)
        assert not found.compiled and caplog.text.count("no C++ compiler") == 1


def test_a_network_that_cannot_be_compiled_is_computed_eagerly(
    photos: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    embedder = Embedder.build("tiny", weights="random", image_size=32, seed=5)

    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("no rule for this operator")

    monkeypatch.setattr(torch, "compile", broken)
    wished = Compute("cpu", "fp32", 4, 1, compiled=True)
    written = write_embeddings(photos, embedder, tmp_path / "e", compute=wished)
    assert "no rule for this operator" in caplog.text and "continues without" in caplog.text
    assert not written.compute.compiled and written.images == 9
    assert read_manifest(tmp_path / "e")["compute"]["compiled"] is False
    runtime = TorchRuntime(embedder, wished)
    for _ in range(2):  # not eagerly from the second batch on
        with pytest.raises(CompilingError):
            runtime.submit(runtime.blank_batch())


def machines_that_differ(compiling: int) -> Engine:
    """An engine on which the first ranges compute, and then one cannot be compiled."""

    def engine(
        source: EmbeddingInput, runtime: TorchRuntime, ranges: Any, progress: Any
    ) -> Iterator[tuple[range, Shard]]:
        eager = TorchRuntime(runtime.embedder, replace(runtime.compute, compiled=False))
        if runtime.compute.compiled:
            yield from embed_here(source, eager, ranges[:compiling], progress)
            raise CompilingError("tiny cannot be compiled there")
        yield from embed_here(source, eager, ranges, progress)

    return engine


def test_a_machine_that_cannot_compile_after_others_could(
    photos: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = Embedder.build("tiny", weights="random", image_size=32, seed=5)
    wished = Compute("cpu", "fp32", 4, 1, compiled=True)
    options: dict[str, Any] = {"compute": wished, "shard_images": 4}
    engine = machines_that_differ(compiling=1)
    write_embeddings(photos, embedder, tmp_path / "e", engine=engine, **options)
    assert "continues without compiling; 4 images are embedded again" in caplog.text
    eager = {**options, "compute": replace(wished, compiled=False)}
    write_embeddings(photos, embedder, tmp_path / "eager", **eager)
    for file in (tmp_path / "eager").iterdir():
        assert file.read_bytes() == (tmp_path / "e" / file.name).read_bytes()


def test_what_an_earlier_run_has_compiled_is_never_thrown_away(
    photos: ImageSet, tmp_path: Path
) -> None:
    embedder = Embedder.build("tiny", weights="random", image_size=32, seed=5)
    wished = Compute("cpu", "fp32", 4, 1, compiled=True)
    options: dict[str, Any] = {"compute": wished, "shard_images": 4}

    def interrupted(*arguments: Any) -> Iterator[tuple[range, Shard]]:
        yield next(machines_that_differ(compiling=1)(*arguments))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_embeddings(photos, embedder, tmp_path / "e", engine=interrupted, **options)
    engine = machines_that_differ(compiling=0)
    with pytest.raises(CompilingError, match="4 images were embedded by a compiled network: cont"):
        write_embeddings(photos, embedder, tmp_path / "e", engine=engine, **options)
    kept = written_compute(tmp_path / "e")
    assert kept is not None and kept["compiled"] is True


def test_the_inspection_of_the_files_outlives_a_failed_compiler(
    photos: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU it goes on in the background meanwhile."""
    failed = threading.Event()

    def slow(images: ImageSet, cancelled: threading.Event | None = None) -> FileInspection:
        failed.wait(20)
        return inspect_files(images, cancelled=cancelled)

    def engine(*arguments: Any) -> Iterator[tuple[range, Shard]]:
        if not arguments[1].compute.compiled:
            failed.set()
        return machines_that_differ(compiling=0)(*arguments)

    in_background = partial(inference._Inspection, in_background=True)
    monkeypatch.setattr(inference, "inspect_files", slow)
    monkeypatch.setattr(inference, "_Inspection", lambda images, **_: in_background(images))
    embedder = Embedder.build("tiny", weights="random", image_size=32, seed=5)
    wished = Compute("cpu", "fp32", 4, 1, compiled=True)
    write_embeddings(photos, embedder, tmp_path / "e", compute=wished, engine=engine)


@pytest.mark.slow
def test_compiled_vectors_are_the_same_and_the_code_is_kept(
    photos: ImageSet, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch_runtime.compiler_missing("cpu"):
        pytest.skip("no C++ compiler here")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    found = {}
    for way in ("eager", "compiled", "compiled again"):
        chosen = Compute("cpu", "fp32", 4, 1, compiled=way != "eager")
        found[way] = embed(photos, embedder, tmp_path / way, compute=chosen)
    cosines = (found["eager"].vectors * found["compiled"].vectors).sum(axis=1)
    assert cosines.min() > 0.99999
    assert np.array_equal(found["compiled"].vectors, found["compiled again"].vectors)
    assert found["eager"].model_id == found["compiled"].model_id
    assert found["eager"].compute_id != found["compiled"].compute_id
    kept = storage.cache_folder() / "inductor"
    assert kept.stat().st_mode & 0o077 == 0 and any(kept.rglob("*.so"))


# ── pixels → vectors ─────────────────────────────────────────────────────────────────────────────


def test_the_network_gives_what_the_embedder_gives(photos: ImageSet, embedder: Embedder) -> None:
    pictures = [Image.open(photos.path(i)).convert("RGB") for i in range(4)]
    with torch.inference_mode():
        expected = embedder(torch.stack([embedder.preprocess(p) for p in pictures])).numpy()
    framing = embedder.preprocess.framing
    pixels = torch.from_numpy(np.stack([framing.pixels(p) for p in pictures]))
    found = TorchRuntime(embedder, Compute("cpu", "fp32", 4, 1)).submit(pixels).result()
    np.testing.assert_allclose(found, expected, atol=1e-6)


# ── half precision ───────────────────────────────────────────────────────────────────────────────


class Ill(nn.Module):
    """(B, 3, H, W) → (B, 8): small differences upon a large number, which bf16 rounds away."""

    def __init__(self, height: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 8, stride=8)
        self.height = height

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return ((self.conv(images) + self.height) - self.height).mean((2, 3))


@pytest.mark.parametrize(("height", "expected"), [(0.0, "bf16"), (300.0, "fp32")])
def test_bf16_is_chosen_only_where_the_network_keeps_its_cosines(
    photos: ImageSet, monkeypatch: pytest.MonkeyPatch, height: float, expected: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG, "vizsla.embed")
    monkeypatch.setattr(auto_compute, "has_fast_bf16", lambda device: True)
    torch.manual_seed(0)
    known = Embedder.from_module(Ill(height), Preprocess((16, 16), 16), name=f"ill {height}")
    (photos.root / "0.png").write_bytes(b"broken")
    for _ in range(2):  # the second time from memory
        found = resolve_compute(device="cpu", embedder=known, images=9, sample=photos.path)
        assert found.precision == expected
        requested = resolve_compute(
            device="cpu", precision="bf16", embedder=known, images=9, sample=photos.path
        )
        assert requested.precision == "bf16"
    assert ("would change the cosines" in caplog.text) == (expected == "fp32")
    records = [r for r in caplog.records if r.message.startswith("fp32:")]
    assert all(record.levelno == logging.DEBUG for record in records)  # no warning


def test_a_few_images_decide_for_themselves_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image shows nothing, copies of one image as little; what is known is used for both."""
    monkeypatch.setattr(auto_compute, "has_fast_bf16", lambda device: True)
    rng = np.random.default_rng(0)
    for i in range(12):
        colour = [90, 90, 90] if i < 4 else rng.integers(0, 255, 3)
        pixels = np.full((20, 20, 3), colour, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    photos = ImageSet.from_folder(tmp_path)
    torch.manual_seed(7)
    known = Embedder.from_module(Ill(0.0), Preprocess((16, 16), 16), name="a few")

    def chosen(images: int) -> str:
        return resolve_compute(
            device="cpu", embedder=known, images=images, sample=photos.path
        ).precision

    assert chosen(1) == "fp32"
    assert chosen(4) == "fp32"  # copies
    assert resolve_compute(device="cpu", embedder=known).precision == "fp32"
    assert chosen(12) == "bf16"
    assert chosen(1) == "bf16"  # known by now
    assert resolve_compute(device="cpu", embedder=known).precision == "bf16"


def test_auto_scores_as_fp32_does(shared: Path, tmp_path: Path) -> None:
    """Real photos by real features, of a network whose cosines bf16 changes."""
    images = ImageSet.from_folder(shared / "data/clothing/test/query").subset(range(16))
    weights = shared / "weights/mobilenetv2_100.safetensors"
    real = Embedder.build("mobilenetv2", weights=weights, pooling="gap")
    chosen = resolve_compute(device="cpu", embedder=real, images=16, sample=images.path)
    exact = resolve_compute(device="cpu", precision="fp32")
    vectors = [
        embed(images, real, tmp_path / str(i), compute=one).vectors
        for i, one in enumerate((exact, chosen))
    ]
    scores = [found @ found.T for found in vectors]
    assert np.abs(scores[0] - scores[1]).mean() < auto_compute.MAX_COSINE_CHANGE
