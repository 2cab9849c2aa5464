"""Which weights are trained, with which learning rate and weight decay."""

import pytest
import torch
from torch import nn

from vizsla.data.preprocess import Preprocess
from vizsla.errors import ModelError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.projection import Projection
from vizsla.train.optimizer import (
    blocks_of,
    checkpoint_activations,
    freeze_norms,
    moving_average,
    parameter_groups,
    rate_at,
    set_rates,
    unfreeze_weights,
)


@pytest.fixture
def embedder() -> Embedder:
    """Three blocks in a list, GeM pooling, a projection."""
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3, 2), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in ((3, 8), (8, 8), (8, 8))
    ]
    embedder = Embedder.from_module(nn.Sequential(*blocks), Preprocess((32, 32)), pooling="gem")
    embedder.projection = Projection(8, 8)
    return embedder


def names(embedder: Embedder, *, open_only: bool = True) -> set[str]:
    return {n for n, p in embedder.named_parameters() if p.requires_grad or not open_only}


@pytest.mark.parametrize(
    ("model", "least"),
    [("mobilenetv2", 14), ("resnet18", 5), ("dinov2-s14", 12), ("googlenet", 9), ("tiny", 4)],
)
def test_backbones_are_split_into_blocks(model: str, least: int) -> None:
    with torch.device("meta"):
        embedder = Embedder.build(model, weights="random")
    blocks = blocks_of(embedder)
    assert len(blocks) >= least
    every = [id(p) for block in blocks for p in block]
    assert len(every) == len(set(every))
    assert set(every) == {id(p) for p in embedder.backbone.network.parameters()}


def test_the_text_tower_is_not_trained(tiny_clip: str) -> None:
    embedder = Embedder.build(tiny_clip, weights="random", pooling="native")
    unfreeze_weights(embedder, "full", 1)
    opened = names(embedder)
    assert opened
    assert all(name.startswith("backbone.network.visual") for name in opened)


def test_which_weights_are_trained(embedder: Embedder) -> None:
    head = {"pool.p", "projection.weight", "projection.bias"}
    assert unfreeze_weights(embedder, "head", 1) == []
    assert names(embedder) == head
    assert len(unfreeze_weights(embedder, "last", 2)) == 2
    assert {n.split(".")[2] for n in names(embedder) - head} == {"1", "2"}
    assert len(unfreeze_weights(embedder, "full", 1)) == 3
    assert names(embedder) == names(embedder, open_only=False)
    with pytest.raises(UsageError, match="has 3 blocks"):
        unfreeze_weights(embedder, "last", 4)


def test_most_blocks_are_trained_by_default() -> None:
    with torch.device("meta"):
        model = Embedder.build("mobilenetv2", weights="random")
    assert (len(blocks_of(model)), len(unfreeze_weights(model, "last"))) == (16, 11)
    assert len(unfreeze_weights(model, "last", 3)) == 3


def test_learning_rates_fall_with_depth_and_only_matrices_decay(embedder: Embedder) -> None:
    blocks = unfreeze_weights(embedder, "full", 1)
    loss = nn.Linear(8, 4)
    groups = parameter_groups(
        embedder, blocks, loss,
        learning_rate=1.0, head_learning_rate=7.0, layer_decay=0.5, weight_decay=0.1,
    )  # fmt: skip
    of = {id(p): g for g in groups for p in g["params"]}
    assert len(of) == sum(len(g["params"]) for g in groups)
    modules = dict(embedder.named_parameters())
    assert [of[id(modules[f"backbone.network.{i}.0.weight"])]["lr"] for i in range(3)] == [
        0.25, 0.5, 1.0,
    ]  # fmt: skip
    assert of[id(loss.weight)]["lr"] == 7.0
    for name, p in modules.items():
        decays = name.startswith("backbone") and p.ndim > 1
        assert (of[id(p)]["weight_decay"] == 0.1) == decays, name


def test_the_learning_rate_warms_up_and_falls() -> None:
    assert rate_at(0.0, 0.1) < 0.02
    assert rate_at(0.1, 0.1) == pytest.approx(1.0)
    assert rate_at(0.55, 0.1) == pytest.approx(0.5)
    assert rate_at(1.0, 0.1) == pytest.approx(0.0)
    assert rate_at(0.0, 0.0) == 1.0
    optimiser = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": 2, "full_lr": 2}])
    set_rates(optimiser, 0.25)
    assert optimiser.param_groups[0]["lr"] == 0.5


def test_the_moving_average_follows_slowly(embedder: Embedder) -> None:
    average = moving_average(embedder, 0.9)
    first = embedder.projection.weight.detach().clone()
    average.update_parameters(embedder)
    with torch.no_grad():
        embedder.projection.weight += 1.0
    average.update_parameters(embedder)
    moved = (average.module.projection.weight - first).mean().item()
    assert 0 < moved < 1
    for _ in range(300):
        average.update_parameters(embedder)
    assert torch.allclose(average.module.projection.weight, first + 1, atol=1e-3)


def test_frozen_batch_norms_keep_their_statistics(embedder: Embedder) -> None:
    embedder.train()
    freeze_norms(embedder)
    before = embedder.backbone.network[0][1].running_mean.clone()
    embedder(torch.randn(4, 3, 32, 32))
    assert torch.equal(embedder.backbone.network[0][1].running_mean, before)


def test_checkpointing_needs_a_network_that_can(embedder: Embedder) -> None:
    checkpoint_activations(Embedder.build("tiny", weights="random"))
    with pytest.raises(ModelError, match="leave out checkpointing=True"):
        checkpoint_activations(embedder)
