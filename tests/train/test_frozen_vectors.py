"""Embedding the training images within a budget, and the same ones after an interruption."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vizsla.data.imageset import ImageSet
from vizsla.data.preprocess import Preprocess
from vizsla.data.splits import split
from vizsla.embed import auto_compute
from vizsla.embed.embeddings import read_manifest
from vizsla.model.embedder import Embedder
from vizsla.options import TrainConfig
from vizsla.score.embedder_validation import Validation
from vizsla.train.frozen_vectors import (
    READING_SHARE,
    TrainingSet,
    drawn_by_class,
    embed_training_images,
)
from vizsla.train.job import Budget, TrainingJob, training_compute
from vizsla.train.training import train

EACH = 0.004  # seconds that the network takes for an image


class Clock:
    """Stands still but for the images that a network is given."""

    def __init__(self) -> None:
        self.now, self.lock = 0.0, threading.Lock()

    def __call__(self) -> float:
        return self.now

    def add(self, seconds: float) -> None:
        with self.lock:
            self.now += seconds


CLOCK = Clock()


class Slow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        CLOCK.add(EACH * len(images))
        return self.layer(images)


def slow() -> Embedder:
    torch.manual_seed(0)
    return Embedder.from_module(Slow(), Preprocess((8, 8)), name="slow", pooling="gap")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """5 classes of 200, 150, 100, 50 and 3 images, one of them broken."""
    root, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for label, n in enumerate((200, 150, 100, 50, 3)):
        (root / f"c{label}").mkdir()
        for i in range(n):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"c{label}" / f"{i:03d}.png")
    (root / "c0" / "000.png").write_bytes(b"\x89PNG")
    return ImageSet.from_class_folders(root)


def read(images: ImageSet, out: Path, budget: float | None) -> TrainingSet:
    config = TrainConfig(device="cpu", precision="fp32", budget=budget)
    compute = training_compute(config)
    job = TrainingJob(config, compute, compute, out, "one", Budget(budget, clock=CLOCK))
    data = embed_training_images(images, slow(), job)
    left_out = len(images) - len(data.images) - len(data.broken)
    assert any("drawn by class" in sentence for sentence in job.warnings) == (left_out > 0)
    return data


def test_a_part_has_the_same_share_of_every_class() -> None:
    codes = np.repeat(np.arange(5), (200, 150, 100, 50, 3))
    for n in (100, 250):
        chosen = drawn_by_class(codes, n, seed=0)
        assert len(set(chosen)) == n and list(chosen) == sorted(chosen)
        counts = np.bincount(codes[chosen])
        assert counts[-1] >= 2
        assert np.abs(counts[:4] / n - np.array([200, 150, 100, 50]) / 500).max() < 0.02
    assert list(drawn_by_class(codes, 100, seed=0)) == list(drawn_by_class(codes, 100, seed=0))
    assert list(drawn_by_class(codes, 100, seed=0)) != list(drawn_by_class(codes, 100, seed=1))
    of_few = np.bincount(codes[drawn_by_class(codes, 6, seed=0)], minlength=5)
    assert sorted(of_few) == [0, 0, 2, 2, 2]  # pairs: one image of a class teaches nothing


def test_as_many_images_are_read_as_there_is_time_for(images: ImageSet, tmp_path: Path) -> None:
    whole = read(images, tmp_path / "whole", None)
    assert len(whole.images) == len(whole.vectors) == len(images) - 1
    assert [name for name, _ in whole.broken] == ["c0/000.png"]
    budget = 1.4 / READING_SHARE
    started = CLOCK.now
    part = read(images, tmp_path / "part", budget)
    took = CLOCK.now - started
    assert 96 <= len(part.images) < 400
    assert 0.9 * 1.4 < took < 1.1 * 1.4
    assert part.seconds == pytest.approx(took, abs=3 * EACH)  # the rest: building the embedder
    assert part.vectors.shape == (len(part.images), 8)
    place = {name: i for i, name in enumerate(whole.images.ids)}
    same = whole.vectors[[place[name] for name in part.images.ids]]
    assert np.allclose(part.vectors, same, atol=1e-6)
    assert len(set(part.images.labels or [])) == 5


def test_an_interrupted_training_reads_the_same_part(images: ImageSet, tmp_path: Path) -> None:
    first = read(images, tmp_path, 5.6)
    assert read(images, tmp_path, 1000.0).images.ids == first.images.ids
    manifest = json.loads((tmp_path / "features-part" / "manifest.json").read_text())
    assert manifest["done"] == len(first.images) + len(first.broken)


def test_the_fastest_runtime_computes_the_vectors_unless_the_budget_is_short(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runtime(folder: str) -> str:
        return str(read_manifest(tmp_path / folder)["compute"]["runtime"])

    monkeypatch.setattr(auto_compute, "fastest_runtime", lambda *_: "openvino")
    fast = read(images, tmp_path / "fast", None)
    assert runtime("fast/features") == "openvino"
    read(images, tmp_path / "minutes", 1000.0)
    assert runtime("minutes/features") == "openvino"
    read(images, tmp_path / "a minute", 60.0)
    assert runtime("a minute/features") == "torch"
    plain = read(images, tmp_path / "a minute", None)  # continues as it was begun
    assert runtime("a minute/features") == "torch"
    np.testing.assert_allclose(fast.vectors, plain.vectors, atol=1e-5)
    before = CLOCK()
    again = read(images, tmp_path / "fast", 1000.0)
    assert runtime("fast/features") == "openvino" and CLOCK() - before < 10 * EACH
    assert np.array_equal(again.vectors, fast.vectors)


def test_existing_vectors_take_no_time(images: ImageSet, tmp_path: Path) -> None:
    whole = read(images, tmp_path, None)
    assert read(images, tmp_path, 0.1).images.ids == whole.images.ids


def test_training_uses_the_part_and_says_so(images: ImageSet, tmp_path: Path) -> None:
    config = TrainConfig(
        finetune="last", loss="cross-entropy", precision="fp32", batch_size=16, budget=6.0,
        workers=1, augment="none", real_weights=False, train_size=8,
    )  # fmt: skip
    parts = split(images, "seen-classes", share=0.1)
    training = images.subset(parts.training)
    validation = Validation(images, parts, training_compute(config))
    budget = Budget(config.budget, clock=CLOCK)
    result = train(training, slow(), config, validation, tmp_path, budget=budget)
    assert budget.spent() < 6.0
    assert any("drawn by class. A longer --budget" in sentence for sentence in result.warnings)
    assert result.steps > 0 and result.num_classes == 5
