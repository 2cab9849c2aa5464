"""Each warning: given where there is a reason, and only there."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vizsla.train import train_warnings


def test_weights_that_did_not_move_and_those_that_should_not_have() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    net[2].requires_grad_(False)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    with torch.no_grad():
        net[0].weight += 1
        net[0].bias += 1
        net[2].weight += 1
    still, strayed = train_warnings.unmoved_weights(before, net, steps=5)
    assert still.startswith("2 of 4 trained weights did not move in 5 steps (1.bias, 1.weight)")
    assert "1 weights that should be frozen moved (2.weight)" in strayed
    assert train_warnings.unmoved_weights(before, net, steps=0) == []
    with torch.no_grad():
        net[1].weight += 1
        net[1].bias += 1
        net[2].weight.copy_(before["2.weight"])
    assert train_warnings.unmoved_weights(before, net, steps=5) == []


def test_no_weight_moved() -> None:
    net = nn.Linear(2, 2)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    assert train_warnings.unmoved_weights(before, net, steps=1)[0].startswith(
        "all 2 trained weights"
    )


def test_a_loss_at_chance() -> None:
    assert "nothing was learned" in train_warnings.loss_near_chance(6.82, np.log(921), "x")[0]
    assert train_warnings.loss_near_chance(5.0, np.log(921), "x") == []
    assert train_warnings.loss_near_chance(5.0, None, "x") == []
    assert train_warnings.loss_near_chance(float("nan"), 5.0, "x") == []


def test_a_collapsed_embedding() -> None:
    torch.manual_seed(0)
    spread = F.normalize(torch.randn(20, 8), dim=1)
    assert train_warnings.collapsed(spread) == []
    assert "mean cosine of 1.000" in train_warnings.collapsed(spread[:1].expand(20, 8))[0]
    assert train_warnings.collapsed(spread[:2]) == []


def test_frozen_near_chance() -> None:
    low, high = np.full(100, 0.05), np.full(100, 0.6)
    assert "weights or the preprocessing are wrong" in train_warnings.frozen_near_chance(
        low, 0.05, real_weights=True
    )[0].replace("\n", " ")
    assert train_warnings.frozen_near_chance(high, 0.05, real_weights=True) == []
    assert train_warnings.frozen_near_chance(low, 0.05, real_weights=False) == []
    assert train_warnings.frozen_near_chance(low, None, real_weights=True) == []


@pytest.mark.parametrize("change", [0.0, 0.1])
def test_tuned_exactly_as_frozen(change: float) -> None:
    values = np.array([0.5, 1.0, 0.0])
    warning = train_warnings.tuned_like_frozen(values + change, values)
    assert bool(warning) == (change == 0)


def test_two_perfect_models_give_no_warning() -> None:
    assert train_warnings.tuned_like_frozen(np.ones(5), np.ones(5)) == []


def test_few_held_out_queries_name_what_helps() -> None:
    (said,) = train_warnings.few_queries(49)
    assert "only 49 held-out queries" in said and "--set share=" in said
    assert train_warnings.few_queries(50) == []
