import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vizsla.errors import ModelError, UsageError
from vizsla.model.pooling import (
    POOLINGS,
    GeM,
    GlobalAverage,
    GlobalMax,
    StageStatistics,
    check_pooling,
)


@pytest.fixture
def features() -> Tensor:
    """(1, 2, 1, 3): two channels, three places."""
    return torch.tensor([[[[1.0, 2.0, 3.0]], [[0.0, 0.0, 6.0]]]])


def test_by_hand(features: Tensor) -> None:
    assert torch.allclose(GlobalAverage()(features), torch.tensor([[2.0, 2.0]]))
    assert torch.allclose(GlobalMax()(features), torch.tensor([[3.0, 6.0]]))
    cubes = [[((1 + 8 + 27) / 3) ** (1 / 3), (216 / 3) ** (1 / 3)]]
    assert torch.allclose(GeM()(features), torch.tensor(cubes))


@pytest.mark.parametrize("name", ["gap", "gem", "max"])
def test_tokens_are_pooled_as_the_map_they_came_from(name: str) -> None:
    features = torch.rand(4, 8, 3, 5)
    pool = POOLINGS[name]()
    tokens = features.flatten(2).transpose(1, 2)  # (4, 15, 8)
    assert pool(features).shape == (4, 8)
    assert torch.allclose(pool(features), pool(tokens))


def test_stages_have_means_and_deviations_of_length_one() -> None:
    final, stage = torch.rand(2, 3, 2, 2), torch.rand(2, 5, 4, 4)
    found = POOLINGS["stages"]()([final, stage])
    assert found.shape == (2, StageStatistics.dim(3, [5])) == (2, 13)
    for part, expected, length in (
        (found[:, :3], final.mean((2, 3)), 1),
        (found[:, 3:8], stage.mean((2, 3)), 0.6),
        (found[:, 8:], stage.flatten(2).std(2, correction=0), 0.6),
    ):
        torch.testing.assert_close(part, F.normalize(expected, dim=1) * length)
    even = torch.ones(1, 5, 4, 4, requires_grad=True)  # deviation 0
    POOLINGS["stages"]()([final[:1], even]).sum().backward()
    assert even.grad is not None and even.grad.isfinite().all()


def test_gem_lies_between_average_and_maximum() -> None:
    features = torch.rand(4, 8, 7, 7) + 0.01
    average, maximum = GlobalAverage()(features), GlobalMax()(features)
    assert torch.allclose(GeM(1)(features), average, atol=1e-6)
    between = [GeM(p)(features) for p in (1, 2, 3, 6, 20)]
    for lower, higher in itertools.pairwise(between):
        assert (lower < higher).all()
    assert (between[-1] < maximum).all()


def test_gem_starts_at_three_and_learns() -> None:
    pool = GeM()
    assert pool.p.item() == 3 and pool.p.requires_grad
    pool(torch.rand(2, 4, 3, 3)).sum().backward()
    assert pool.p.grad is not None and pool.p.grad.item() > 0


def test_gem_has_the_gradients_of_the_formula() -> None:
    values = torch.rand(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    pool = GeM()
    ours = values.clone().requires_grad_()
    pool(ours).square().sum().backward()
    p = torch.tensor(3.0, requires_grad=True)
    plain = values.clone().requires_grad_()
    plain.pow(p).mean((2, 3)).pow(1 / p).square().sum().backward()
    assert torch.allclose(ours.grad, plain.grad, rtol=1e-4)  # type: ignore[arg-type]
    assert torch.allclose(pool.p.grad, p.grad, rtol=1e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("p", [3.0, 19.0])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 6e4])
def test_gem_stays_finite(dtype: torch.dtype, p: float, scale: float) -> None:
    features = (torch.rand(2, 4, 7, 7) * scale).to(dtype)
    features[0, 0] = 0  # a dead channel
    features[0, 1, 0, 0] = -5
    features.requires_grad_()
    pool = GeM(p)
    pooled = pool(features)
    assert pooled.dtype == torch.float32
    assert pooled.isfinite().all() and (pooled > 0).all()
    assert math.isclose(pooled[0, 0].item(), pool.eps, rel_tol=1e-3)
    pooled.sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()
    assert pool.p.grad is not None and pool.p.grad.isfinite()


def test_gem_is_the_same_under_autocast() -> None:
    features = torch.rand(2, 4, 7, 7)
    plain = GeM()(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(GeM()(features), plain)


@pytest.mark.parametrize(("wild", "bound"), [(-4.0, 1.0), (0.0, 1.0), (500.0, 20.0)])
def test_gem_clamps_p(wild: float, bound: float) -> None:
    features = torch.rand(2, 4, 3, 3)
    assert torch.equal(GeM(wild)(features), GeM(bound)(features))


def test_halves_are_summed_in_float32() -> None:
    features = torch.full((1, 1, 64, 64), 60000.0, dtype=torch.float16)
    assert GlobalAverage()(features).item() == pytest.approx(60000, rel=1e-3)


@pytest.mark.parametrize("shape", [(2, 8), (8,), (1, 2, 3, 4, 5)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"expected a map \(B, C, H, W\)"):
        GlobalAverage()(torch.zeros(shape))


def test_names_are_checked() -> None:
    assert check_pooling("GeM ", ("gap", "gem"), "m") == "gem"
    with pytest.raises(UsageError, match="gap, gem, max, cls, native"):
        check_pooling("average", ("gap",), "m")
    with pytest.raises(ModelError, match="resnet18 has no cls pooling: choose one of gap, gem"):
        check_pooling("cls", ("gap", "gem"), "resnet18")
