"""Validation scores as the evaluation does, on the same queries for every embedder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vizsla.data.imageset import ImageSet
from vizsla.data.preprocess import Preprocess
from vizsla.data.splits import Split, split
from vizsla.embed import runtime
from vizsla.embed.compute import Compute
from vizsla.embed.converted_runtimes import openvino
from vizsla.embed.inference import embed
from vizsla.embed.torch_runtime import Vectors
from vizsla.embed.validation_tensors import ValidationImages
from vizsla.errors import UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.projection import Projection
from vizsla.score.embedder_validation import Validation
from vizsla.score.evaluate import evaluate
from vizsla.score.truth import Truth
from vizsla.search import exact

COMPUTE = Compute("cpu", "fp32", 8, 1)


class Colour(nn.Module):
    """The mean colour, counted: how often were images embedded?"""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.images = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        return images.mean((2, 3)) * self.scale


def embedder() -> Embedder:
    plain = Preprocess((8, 8), mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    return Embedder.from_module(Colour(), plain)


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    """6 classes × 10 images, whose colours tell the class often, not always."""
    rng = np.random.default_rng(0)
    for label in range(6):
        (tmp_path / f"c{label}").mkdir()
        colour = rng.uniform(60, 200, 3)
        for i in range(10):
            own = tuple(int(v) for v in (colour + rng.normal(0, 30, 3)).clip(0, 255))
            Image.new("RGB", (12, 10), own).save(tmp_path / f"c{label}/{i}.png")
    return ImageSet.from_class_folders(tmp_path)


def test_one_draw_is_scored_as_the_evaluation_does(images: ImageSet, tmp_path: Path) -> None:
    found = split(images, draws=1, share=0.6)
    draw, model = found.draws[0], embedder()
    query, gallery = (images.subset(side) for side in (draw.query, draw.gallery))
    vectors = [
        embed(part, model, tmp_path / name, compute=COMPUTE)
        for name, part in (("q", query), ("g", gallery))
    ]
    scores = evaluate(exact.rank(*vectors), Truth.from_sets(query, gallery))
    for value, key in (("map", "map"), ("top-1", "top_k_accuracy@1")):
        validation = Validation(images, found, COMPUTE, optimise=value)
        assert np.allclose(validation(model), scores.metrics[key].values)
        assert validation.queries == scores.queries
        assert validation.means["map"] == pytest.approx(scores.mean("map"))
    balanced = Validation(images, found, COMPUTE)(model)
    top1 = scores.metrics["top_k_accuracy@1"].values
    assert np.allclose(balanced, (scores.metrics["map"].values + top1) / 2)


def test_a_gallery_too_large_for_a_whole_ranking_is_scored_whole(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = Validation(images, split(images, draws=2, share=0.6), COMPUTE)
    whole = validation(embedder())
    monkeypatch.setattr(exact, "FULL_DEPTH", 10)
    monkeypatch.setattr(exact, "LIMITED_DEPTH", 10)
    assert len(validation.draws[0][1]) > 10
    assert np.array_equal(validation(embedder()), whole)


def test_draws_are_averaged_by_query(images: ImageSet) -> None:
    whole = split(images, draws=3, share=0.6)
    together = Validation(images, whole, COMPUTE, optimise="map")
    values = dict(zip(together.queries, together(embedder()), strict=False))
    apart: dict[str, list[float]] = {}
    for draw in whole.draws:
        one = Validation(images, Split(whole.training, [draw]), COMPUTE, optimise="map")
        for name, value in zip(one.queries, one(embedder()), strict=True):
            apart.setdefault(name, []).append(value)
    assert set(values) == set(apart)
    for name, value in values.items():
        assert value == pytest.approx(np.mean(apart[name]))


def test_chance_is_what_random_vectors_give(images: ImageSet) -> None:
    validation = Validation(images, split(images, share=0.6), COMPUTE, optimise="top-1")
    means = []
    for seed in range(200):
        torch.manual_seed(seed)
        model = embedder()
        noise = torch.randn(len(validation.images), 3)
        validation.held_out._pooled.clear()
        validation.held_out._embedded = lambda model, noise=noise: noise  # type: ignore[method-assign]
        means.append(validation(model).mean())
    assert np.mean(means) == pytest.approx(validation.chance, abs=0.03)


def test_another_projection_embeds_nothing_again(images: ImageSet) -> None:
    model = embedder()
    held = ValidationImages(images, COMPUTE)
    model.backbone.network.images = 0
    first = held.vectors(model)
    once = model.backbone.network.images
    model.projection = Projection(3, 2)
    assert held.vectors(model).shape == (60, 2)
    assert model.backbone.network.images == once
    with torch.no_grad():
        model.backbone.network.scale[0] = 2.0
    model.projection = nn.Identity()
    assert not np.allclose(held.vectors(model), first)
    assert model.backbone.network.images == 2 * once


@pytest.mark.parametrize("fails", [False, True])
def test_another_runtime_gives_the_same_vectors(
    images: ImageSet, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def start(embedder: Embedder, compute: Compute) -> Vectors:
        started.append(compute.runtime)
        if fails:
            raise OSError("no such network")
        return openvino(embedder, compute)

    monkeypatch.setitem(runtime.START, "openvino", start)
    model = embedder()
    model.projection = Projection(3, 2)
    by_torch = ValidationImages(images, COMPUTE).vectors(model)
    held = ValidationImages(images, replace(COMPUTE, runtime="openvino"))
    assert np.allclose(held.vectors(model), by_torch, atol=1e-5)
    with torch.no_grad():
        model.backbone.network.scale[0] = 3.0
    by_torch = ValidationImages(images, COMPUTE).vectors(model)
    assert np.allclose(held.vectors(model), by_torch, atol=1e-5)  # of the new weights
    assert started == ["openvino"] * 2


def test_broken_images_neither_ask_nor_answer(images: ImageSet) -> None:
    found = split(images, draws=1, share=0.6)
    broken = images.ids[found.draws[0].query[0]]
    images.path(int(found.draws[0].query[0])).write_bytes(b"no image")
    validation = Validation(images, found, COMPUTE)
    values = validation(embedder())
    assert len(values) == len(found.draws[0].query) - 1
    assert broken in validation.queries


def test_an_unknown_value_lists_the_known(images: ImageSet) -> None:
    with pytest.raises(UsageError, match="mean, points, top-1, map"):
        Validation(images, split(images, share=0.6), COMPUTE, optimise="f1")


def test_points_reach_1000(images: ImageSet) -> None:
    validation = Validation(images, split(images, share=0.6), COMPUTE, optimise="points")
    values = validation(embedder())
    assert validation.means["points"] == pytest.approx(1000 * values.mean()) and values.max() == 1
    assert 0.01 < validation.chance < 1
