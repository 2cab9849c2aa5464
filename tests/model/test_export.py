"""What ONNX Runtime computes from the file is what torch computes from the embedder."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from vizsla import storage
from vizsla.cli.main import app
from vizsla.data.preprocess import Preprocess
from vizsla.errors import MissingExtraError, ModelError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.export import _steps, export
from vizsla.model.projection import Projection, WithClasses

onnxruntime = pytest.importorskip("onnxruntime")


def vectors(path: Path, images: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(["vectors"], {"images": images.numpy()})
    return np.asarray(found)


def pictures(embedder: Embedder, n: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    made = [rng.integers(0, 255, (90, 120, 3), dtype=np.uint8) for _ in range(n)]
    return torch.stack([embedder.preprocess(Image.fromarray(pixels)) for pixels in made])


@pytest.mark.parametrize(
    ("name", "pooling", "size"),
    [
        ("tiny", "gem", 64),
        pytest.param("mobilenetv2", "gap", 96, marks=pytest.mark.slow),
        pytest.param("resnet18", "gem", 96, marks=pytest.mark.slow),
        pytest.param("dinov2-s14", "cls", 56, marks=pytest.mark.slow),
        pytest.param("clip-vit-b32", "native", 224, marks=pytest.mark.slow),
    ],
)
def test_the_vectors_are_those_of_torch_at_any_batch_size(
    tmp_path: Path, name: str, pooling: str, size: int
) -> None:
    embedder = Embedder.build(name, weights="random", pooling=pooling, image_size=size)
    done = export(embedder, tmp_path / "model.onnx")
    assert done.difference is not None and done.difference < 1e-4
    for n in (1, 5):
        images = pictures(embedder, n)
        with torch.inference_mode():
            expected = embedder(images).numpy()
        found = vectors(done.path, images)
        assert found.shape == (n, embedder.dim) == (n, done.dim)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_tuned_embedder_goes_out_with_its_projection_and_a_description(tmp_path: Path) -> None:
    embedder = Embedder.build("tiny", weights="random", image_size=64)
    torch.manual_seed(0)
    embedder.projection = Projection(embedder.dim, 12, frozen_share=0.3)
    nn.init.normal_(embedder.projection.weight)
    embedder.eval().save(tmp_path / "tuned")
    words = ["export", str(tmp_path / "tuned"), "-o", str(tmp_path / "m.onnx"), "--json"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["dim"] == embedder.dim == 12 + embedder.backbone.feature_dim
    images = pictures(embedder, 3)
    with torch.inference_mode():
        expected = embedder(images).numpy()
    np.testing.assert_allclose(vectors(tmp_path / "m.onnx", images), expected, atol=1e-4)

    about = json.loads((tmp_path / "m.json").read_text())
    assert about["model_id"] == embedder.model_id
    assert about["sha256"] == storage.sha256_of(tmp_path / "m.onnx")
    check_description(about, embedder)


def test_class_probabilities_go_out_with_the_network(tmp_path: Path) -> None:
    embedder = Embedder.build("tiny", weights="random", image_size=64)
    torch.manual_seed(0)
    base, classes = Projection(embedder.dim, 12), Projection(embedder.dim, 5)
    for part in (base, classes):
        nn.init.normal_(part.weight)
    embedder.projection = WithClasses(base, classes, share=0.5)
    embedder.eval().save(tmp_path / "tuned")
    again = Embedder.load(tmp_path / "tuned")
    assert again.model_id == embedder.model_id and again.dim == 17
    words = ["export", str(tmp_path / "tuned"), "-o", str(tmp_path / "m.onnx")]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    images = pictures(embedder, 3)
    with torch.inference_mode():
        expected = embedder(images).numpy()
        np.testing.assert_allclose(again(images).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(vectors(tmp_path / "m.onnx", images), expected, atol=1e-4)


def check_description(about: dict[str, Any], embedder: Embedder) -> None:
    """It is enough to prepare an image."""
    recorded = about["preprocess"]
    pixels = np.random.default_rng(1).integers(0, 255, (100, 80, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    short = recorded["resize"] or max(recorded["size"])
    scaled = picture.resize(
        (short, int(short * 100 / 80)), Image.Resampling[recorded["interpolation"].upper()]
    )
    height, width = recorded["size"]
    left, top = round((scaled.width - width) / 2), round((scaled.height - height) / 2)
    cut = np.asarray(scaled.crop((left, top, left + width, top + height)), np.float32)
    mine = ((cut / 255 - recorded["mean"]) / recorded["std"]).transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_allclose(mine, embedder.preprocess(picture).numpy(), atol=1e-5)


def test_what_cannot_be_exported_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3)) * (1 if images.mean() > 0 else 2)

    preprocess = Preprocess(size=(16, 16), resize=16)
    odd = Embedder.from_module(Odd(), preprocess, name="odd")
    with pytest.raises(ModelError, match="odd cannot be exported"):
        export(odd, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"vizsla\[onnx\]"):
        export(odd, tmp_path / "m.onnx")


@pytest.mark.parametrize("name", ["m.json", "m", "m.pt"])
def test_a_name_that_its_description_would_take_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"ends in \.onnx"):
        export(Embedder.build("tiny", weights="random", image_size=32), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [(333, 500), (1001, 77), (75, 74), (640, 427), (9, 200)])
def test_the_words_about_preprocessing_say_all(size: tuple[int, int]) -> None:
    """Done again from the description alone, with Pillow: no pixel differs."""
    preprocess = Preprocess((52, 60), 64)
    steps = _steps(Embedder.from_module(nn.Flatten(), preprocess, name="flat"))
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    )
    expected = preprocess.framing.pixels(picture)
    shorter, longer = sorted(size)
    assert "more than 8 times" in steps[1] and "floor((longer - 8 * shorter) / 2)" in steps[1]
    if longer > 8 * shorter:
        first = math.floor((longer - 8 * shorter) / 2)
        box = [0, 0, *size]
        axis = 0 if size[0] == longer else 1
        box[axis], box[axis + 2] = first, first + 8 * shorter
        picture = picture.crop(tuple(box))
        shorter, longer = sorted(picture.size)
    assert "shorter side is 64" in steps[2] and "floor(64 * longer / shorter)" in steps[2]
    assert "bicubic" in steps[2]
    other = math.floor(64 * longer / shorter)
    wide = picture.width <= picture.height
    picture = picture.resize((64, other) if wide else (other, 64), Image.Resampling.BICUBIC)
    assert "60 × 52, from column round((width - 60) / 2) and row round((height - 52)" in steps[3]
    left, top = round((picture.width - 60) / 2), round((picture.height - 52) / 2)
    found = np.asarray(picture.crop((left, top, left + 60, top + 52)))
    np.testing.assert_array_equal(found, expected)
