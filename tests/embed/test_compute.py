"""Every `auto` is resolved once, with a reason, and what goes on uses what is written."""

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image
from torch import nn

from vizsla import storage
from vizsla.data.fingerprint import FileInspection, inspect_files
from vizsla.data.imageset import ImageSet
from vizsla.data.preprocess import Preprocess
from vizsla.embed import auto_compute, inference, runtime, torch_runtime
from vizsla.embed.auto_compute import resolve_compute, written_compute
from vizsla.embed.compute import Compute, RuntimeFailed, runtime_package
from vizsla.embed.compute_shards import EmbeddingInput, Engine, Shard, embed_here
from vizsla.embed.embeddings import read_manifest
from vizsla.embed.inference import embed, write_embeddings
from vizsla.embed.runtime import Runtime
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
    written = {"precision": "fp16", "batch_size": 7, "runtime": "compiled"}
    found = resolve_compute(device="cpu", images=10**6, written=written)
    assert (found.precision, found.batch_size, found.runtime) == ("fp16", 7, "compiled")
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
              Compute("cpu", "fp32", 32, 1, runtime="compiled")]  # fmt: skip
    assert len({one.id, *(other.id for other in others)}) == 4
    assert "pillow" in one.facts["decoder"] and "reduced" in one.facts["decoder"]


@pytest.mark.parametrize("wrong", [
    {"runtime": "maybe"}, {"runtime": "onnx", "precision": "bf16"}, {"batch_size": 0},
    {"runtime": "openvino", "precision": "fp16"},
    {"batch_size": "many"}, {"workers": 0}, {"batch_size": "²"}, {"batch_size": 10**19},
    {"device": "cpu:abc"}, {"device": "cpu:"},
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="choose"):
        resolve_compute(**{"device": "cpu", **wrong})  # type: ignore[arg-type]


# ── runtimes ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, two_cores: None) -> dict[str, int]:
    """Runtime → how many images were timed. Each takes a known time instead of being measured."""
    seconds = {"torch": [0.1, 0.01], "openvino": [0.5, 0.007], "onnx": [9.0, 0.002]}
    done: dict[str, int] = {}

    def time_it(embedder: Embedder, compute: Compute, batch: int, passes: int) -> list[float]:
        assert compute.runtime not in done
        done[compute.runtime] = batch * passes
        return seconds[compute.runtime]

    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(auto_compute, "_timed", time_it)
    monkeypatch.setattr(auto_compute, "installed", lambda runtime: True)
    return done


def chosen_runtime(embedder: Embedder, images: int, precision: str = "fp32") -> str:
    return resolve_compute(
        device="cpu", precision=precision, embedder=embedder, images=images
    ).runtime


def test_the_fastest_runtime_is_taken_where_it_saves_more_than_it_takes(
    embedder: Embedder, timed: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "vizsla.embed")
    chosen = partial(chosen_runtime, embedder)
    assert chosen(100) == "torch" and not timed  # few images do not wait for a measurement
    assert chosen(500) == "torch" and list(timed) == ["torch"]
    assert chosen(1100) == "torch" and list(timed) == ["torch"]  # it would start twice
    assert chosen(1300) == "openvino" and list(timed) == ["torch", "openvino"]
    assert chosen(150) == "torch"  # by the measured times, of which none is measured again
    assert chosen(500) == "openvino"
    assert "openvino: saves 1 s of 5 s for 500 images" in caplog.text
    timed.clear()
    assert chosen(100_000) == "onnx" and list(timed) == ["onnx"]
    timed.clear()
    assert chosen(100_000, "bf16") == "openvino"  # ONNX Runtime computes in fp32
    assert set(timed) == {"torch", "openvino"}


def test_a_runtime_that_starts_anew_for_each_candidate_must_save_all_its_starts(
    embedder: Embedder, timed: dict[str, int]
) -> None:
    compute = Compute("cpu", "fp32", 32, 1)
    assert auto_compute.fastest_runtime(embedder, compute, 1300, starts=10) == "torch"
    assert list(timed) == ["torch"]
    assert auto_compute.fastest_runtime(embedder, compute, 1300) == "openvino"
    assert (
        auto_compute.fastest_runtime(embedder, compute, 1300, starts=10) == "torch"
    )  # by measured times too


@pytest.mark.parametrize(
    ("threads", "images", "expected"), [(2, 128, 16), (2, 10_000, 24), (9, 500, 0), (9, 600, 72)]
)
def test_timing_torch_takes_an_eighth_of_the_images_at_most(
    embedder: Embedder, timed: dict[str, int], threads: int, images: int, expected: int
) -> None:
    torch.set_num_threads(threads)
    chosen_runtime(embedder, images)
    assert timed.get("torch", 0) == expected <= images / 8


def test_another_version_or_processor_is_timed_again(
    embedder: Embedder, timed: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def times() -> int:
        timed.clear()
        chosen_runtime(embedder, 2000)
        return len(timed)

    assert times() == 2 and times() == 0
    monkeypatch.setattr(runtime_package("openvino"), "__version__", "9999.1")
    assert times() == 2 and times() == 0
    monkeypatch.setattr(auto_compute, "processor", lambda: "another one")
    assert times() == 2 and times() == 0


def test_a_runtime_that_fails_is_not_chosen_and_is_tried_again_the_next_time(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, "vizsla.embed")

    def broken(*_: object) -> object:
        raise RuntimeError("no rule for this operator")

    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(auto_compute, "installed", lambda name: name == "openvino")
    monkeypatch.setitem(runtime.START, "openvino", broken)
    for tries in (1, 2):
        assert chosen_runtime(embedder, 10**7) == "torch"
        assert caplog.text.count("no rule for this operator") == tries


@pytest.mark.parametrize("name", ["openvino", "onnx"])
@pytest.mark.parametrize("how", ["torch network", "with views"])
def test_every_runtime_gives_the_vectors_of_torch(name: str, how: str) -> None:
    known = Embedder.build("timm:test_resnet", weights="random", image_size=32)
    if how == "with views":
        known.with_views("flip")
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8, generator=rng)
    expected = Runtime(known, Compute("cpu", "fp32", 6, 1)).submit(pixels).result()
    other = Runtime(known, Compute("cpu", "fp32", 6, 1, name))
    found = other.submit(pixels).result()
    assert other.compute.runtime == name
    np.testing.assert_allclose(found, expected, atol=1e-5)
    order = [3, 5, 0, 1, 4, 2]  # a vector does not depend on the other images of its batch
    assert np.array_equal(other.submit(pixels[order]).result(), found[order])
    alone = np.concatenate([other.submit(one[None]).result() for one in pixels])
    np.testing.assert_allclose(alone, found, atol=1e-6)


@pytest.mark.parametrize("name", ["openvino", "onnx"])
@pytest.mark.parametrize("fault", ["cannot be converted", "other vectors", "flips"])
def test_a_network_that_a_runtime_cannot_compute_is_computed_by_torch(
    photos: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fault: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    embedder = Embedder.build("tiny", weights="random", image_size=32, seed=5)

    def broken(embedder: Embedder, compute: Compute) -> torch_runtime.Vectors:
        if fault == "flips":
            right = torch_runtime.eager(embedder, compute)
            return lambda pixels: right(pixels.flip(2))
        if fault == "other vectors":
            return lambda pixels: torch.ones(len(pixels), embedder.dim) / embedder.dim**0.5
        raise RuntimeError("no rule for this operator")

    monkeypatch.setitem(runtime.START, name, broken)
    wished = Compute("cpu", "fp32", 4, 1, runtime=name)
    written = write_embeddings(photos, embedder, tmp_path / "e", compute=wished)
    assert ("no rule for this operator" in caplog.text) == (fault == "cannot be converted")
    assert (f"{name} computes other vectors" in caplog.text) == (fault != "cannot be converted")
    assert caplog.text.count("continues with torch") == 1
    assert written.compute.runtime == "torch" and written.images == 9
    assert read_manifest(tmp_path / "e")["compute"]["runtime"] == "torch"
    failing = Runtime(embedder, wished)
    for _ in range(2):  # black images show no flip; nor does torch take over without a word
        with pytest.raises(RuntimeFailed):
            failing.submit(failing.blank_batch())


def test_openvino_binds_no_thread_to_a_core_and_compiles_what_it_needs(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, two_cores: None
) -> None:
    core = runtime_package("openvino").Core
    compiled: list[Any] = []
    compile_model = core.compile_model

    def recorded(*arguments: Any) -> Any:
        compiled.append(compile_model(*arguments))
        return compiled[-1]

    monkeypatch.setattr(core, "compile_model", recorded)
    known = Runtime(embedder, Compute("cpu", "fp32", 8, 1, "openvino"))
    known.submit(known.blank_batch()).result()
    assert [one.get_property("NUM_STREAMS") for one in compiled] == [2]  # a stream for each core
    known.submit(known.blank_batch()[:1]).result()
    assert [one.get_property("NUM_STREAMS") for one in compiled] == [2, 1]
    assert not any(one.get_property("ENABLE_CPU_PINNING") for one in compiled)
    assert all(one.get_property("INFERENCE_NUM_THREADS") == 2 for one in compiled)


def test_openvino_never_computes_in_another_precision(embedder: Embedder) -> None:
    """Processors that compute in fp16 (ARM, AVX512-FP16) do so, the others refuse."""
    openvino = pytest.importorskip("openvino")
    can = "FP16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    known = Runtime(embedder, Compute("cpu", "fp16", 4, 1, "openvino"))
    if can:
        assert known.submit(known.blank_batch()).result().shape == (4, embedder.dim)
        return
    with pytest.raises(RuntimeFailed, match=r"computes in b?f[0-9]+ here, not in f16"):
        known.submit(known.blank_batch())


def test_a_package_without_a_distribution_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnxruntime-gpu and nightly builds are."""

    def none(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", none)
    facts = Compute("cpu", "fp32", 4, 1, "onnx").facts
    assert facts["onnxruntime"] == runtime_package("onnx").__version__
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # cannot be imported
    with pytest.raises(RuntimeFailed, match=r"onnx is not installed here .*: pip install onnx"):
        _ = Compute("cpu", "fp32", 4, 1, "onnx").facts


def test_a_package_that_cannot_be_imported_is_not_chosen(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(auto_compute, "installed", lambda name: name == "openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = resolve_compute(device="cpu", precision="fp32", embedder=embedder, images=10**7)
    assert found.runtime == "torch"


def test_openvino_is_not_asked_for_where_it_has_no_wheel() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (needed,) = (
        Requirement(one) for one in project["project"]["dependencies"] if "openvino" in one
    )
    assert needed.marker is not None
    wanted = {
        ("linux", "x86_64"): True,
        ("linux", "aarch64"): True,
        ("win32", "AMD64"): True,
        ("darwin", "arm64"): True,
        ("darwin", "x86_64"): False,
        ("win32", "ARM64"): False,
    }
    for (system, machine), expected in wanted.items():
        environment = {"sys_platform": system, "platform_machine": machine}
        assert needed.marker.evaluate(environment) == expected, environment


def machines_that_differ(compiling: int) -> Engine:
    """An engine on which the first ranges compute, and then one cannot be compiled."""

    def engine(
        source: EmbeddingInput, wished: Runtime, ranges: Any, progress: Any
    ) -> Iterator[tuple[range, Shard]]:
        eager = Runtime(wished.embedder, replace(wished.compute, runtime="torch"))
        if wished.compute.runtime == "compiled":
            yield from embed_here(source, eager, ranges[:compiling], progress)
            raise RuntimeFailed("tiny cannot be compiled there")
        yield from embed_here(source, eager, ranges, progress)

    return engine


def test_a_machine_that_cannot_compile_after_others_could(
    photos: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = Embedder.build("tiny", weights="random", image_size=32, seed=5)
    wished = Compute("cpu", "fp32", 4, 1, runtime="compiled")
    options: dict[str, Any] = {"compute": wished, "shard_images": 4}
    engine = machines_that_differ(compiling=1)
    write_embeddings(photos, embedder, tmp_path / "e", engine=engine, **options)
    assert "4 images are embedded again: continues with torch" in caplog.text
    eager = {**options, "compute": replace(wished, runtime="torch")}
    write_embeddings(photos, embedder, tmp_path / "eager", **eager)
    for file in (tmp_path / "eager").iterdir():
        assert file.read_bytes() == (tmp_path / "e" / file.name).read_bytes()


def test_what_an_earlier_run_has_compiled_is_never_thrown_away(
    photos: ImageSet, tmp_path: Path
) -> None:
    embedder = Embedder.build("tiny", weights="random", image_size=32, seed=5)
    wished = Compute("cpu", "fp32", 4, 1, runtime="compiled")
    options: dict[str, Any] = {"compute": wished, "shard_images": 4}

    def interrupted(*arguments: Any) -> Iterator[tuple[range, Shard]]:
        yield next(machines_that_differ(compiling=1)(*arguments))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_embeddings(photos, embedder, tmp_path / "e", engine=interrupted, **options)
    engine = machines_that_differ(compiling=0)
    with pytest.raises(RuntimeFailed, match="4 images were embedded by compiled: continue"):
        write_embeddings(photos, embedder, tmp_path / "e", engine=engine, **options)
    kept = written_compute(tmp_path / "e")
    assert kept is not None and kept["runtime"] == "compiled"


def test_the_inspection_of_the_files_outlives_a_failed_compiler(
    photos: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU it goes on in the background meanwhile."""
    failed = threading.Event()

    def slow(images: ImageSet, cancelled: threading.Event | None = None) -> FileInspection:
        failed.wait(20)
        return inspect_files(images, cancelled=cancelled)

    def engine(*arguments: Any) -> Iterator[tuple[range, Shard]]:
        if arguments[1].compute.runtime == "torch":
            failed.set()
        return machines_that_differ(compiling=0)(*arguments)

    in_background = partial(inference._Inspection, in_background=True)
    monkeypatch.setattr(inference, "inspect_files", slow)
    monkeypatch.setattr(inference, "_Inspection", lambda images, **_: in_background(images))
    embedder = Embedder.build("tiny", weights="random", image_size=32, seed=5)
    wished = Compute("cpu", "fp32", 4, 1, runtime="compiled")
    write_embeddings(photos, embedder, tmp_path / "e", compute=wished, engine=engine)


def test_a_missing_compiler_or_package_is_said_in_one_line(
    photos: ImageSet, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    compute = resolve_compute(device="cpu", runtime="compiled", precision="fp32")
    embed(photos, embedder, tmp_path / "e", compute=compute)
    assert caplog.text.count("no C++ compiler") == 1
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install onnx onnxruntime onnxscript, or choose"):
        resolve_compute(device="cpu", runtime="onnx")
    elsewhere = {"runtime": "openvino", "precision": "fp32"}  # computed on another machine
    assert resolve_compute(device="cpu", written=elsewhere).runtime == "torch"


def test_openvino_reports_nothing_to_its_makers(tmp_path: Path) -> None:
    """In a process of its own, since a module is imported once: no file of consent or identity is
    written, no thread or process is started that sends, nothing is connected to."""
    program = """
import os, socket, sys
def connect(*_): raise SystemExit("a connection")
socket.socket.connect = connect
from vizsla.embed.compute import Compute
from vizsla.embed.runtime import Runtime
from vizsla.model.embedder import Embedder
embedder = Embedder.build("tiny", weights="random", image_size=32)
runtime = Runtime(embedder, Compute("cpu", "fp32", 4, 1, "openvino"))
runtime.submit(runtime.blank_batch()).result()
print("openvino" in sys.modules, sys.modules["openvino_telemetry"], os.listdir(os.environ["HOME"]))
"""
    kept = {k: v for k, v in os.environ.items() if k not in ("CI", "GITHUB_ACTIONS", "TF_BUILD")}
    (tmp_path / "home").mkdir()
    kept |= {"HOME": str(tmp_path / "home"), "VIZSLA_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=kept, check=True
    )
    assert done.stdout.strip() == "True None []", done.stdout + done.stderr


@pytest.mark.slow
def test_compiled_vectors_are_the_same_and_the_code_is_kept(
    photos: ImageSet, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch_runtime.compiler_missing("cpu"):
        pytest.skip("no C++ compiler here")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    found = {}
    for way in ("eager", "compiled", "compiled again"):
        chosen = Compute("cpu", "fp32", 4, 1, runtime="torch" if way == "eager" else "compiled")
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
    found = Runtime(embedder, Compute("cpu", "fp32", 4, 1)).submit(pixels).result()
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
