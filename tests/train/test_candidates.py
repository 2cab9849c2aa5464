"""The candidates of a trained backbone: their order, and what is left out when time runs out."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from vizsla.data.preprocess import Preprocess
from vizsla.model.embedder import Embedder
from vizsla.model.projection import Projection
from vizsla.train import candidates
from vizsla.train.candidates import (
    PROJECTIONS,
    Costs,
    TunedCandidates,
    framings_of,
    takes_any_size,
    with_preprocess,
)
from vizsla.train.heads import with_projection
from vizsla.train.job import Budget
from vizsla.train.selection import Selection


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Conv2d(3, 6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.only(images)


class OneSize(Net):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[2] != 224:
            raise AssertionError("Input height doesn't match the model")
        return super().forward(images)


def embedder(value: float = 0.0, net: nn.Module | None = None) -> Embedder:
    model = Embedder.from_module(net or Net(), Preprocess((224, 224), 256), pooling="gap")
    model.projection = Projection(6, 6)
    with torch.no_grad():
        model.backbone.network.only.bias.fill_(value)
    return model


class Validate:
    """Best at one weight; a whole image adds 0.1, a moved mean 0.2."""

    def __init__(self, best: float = 0.75) -> None:
        self.best = best

    def __call__(self, model: Embedder) -> np.ndarray:
        value = 1 - abs(model.backbone.network.only.bias[0].item() - self.best)
        moved = isinstance(model.projection, Projection) and bool(model.projection.bias.any())
        value += 0.1 * (model.preprocess.resize is None) + 0.2 * moved
        return np.full(4, value)


def entered(
    budget: float | None = None, *, spent: float = 0.0, best: float = 0.75, refitted: int = 40
) -> tuple[Selection, list[str]]:
    selection, warned = Selection(embedder(), Validate(best)), []
    limit = Budget(budget, clock=lambda: 0.0)
    limit.count_earlier(spent)
    labels = np.arange(40) % 4

    def pooled(model: Embedder, chosen: np.ndarray) -> np.ndarray:
        assert len(chosen) == refitted
        rng = np.random.default_rng(0)
        return rng.normal(size=(len(chosen), 6)).astype(np.float32) + labels[chosen, None]

    entries = TunedCandidates(
        selection, limit, Costs(10.0, 20.0, images=40), pooled=pooled, labels=labels, dim=None,
        seed=0, warn=warned.append,
    )  # fmt: skip
    entries.enter(embedder(), "average of weights", embedder(1.0))
    return selection, warned


def test_end_interpolations_framings_and_projections_are_scored_in_this_order() -> None:
    selection, warned = entered()
    names = [c.name for c in selection.candidates]
    assert names[:4] == ["frozen", "average of weights", "0.75 of the way", "0.5 of the way"]
    assert names[4:6] == [f"0.75 of the way, whole image{at}" for at in ("", " at 256")]
    refitted = [name for name in names[6:] if name.startswith("0.75 of the way, whole image, ")]
    assert len(refitted) == len(names) - 6 == PROJECTIONS  # of the best one only
    assert selection.decided().name == "0.75 of the way, whole image, centred"
    assert not warned


@pytest.mark.parametrize(
    ("best", "tried"),
    [(1.0, [0.75]), (0.75, [0.75, 0.5]), (0.6, [0.75, 0.5]), (0.25, [0.5, 0.25])],
)
def test_points_of_the_line_that_cannot_win_are_left_out(best: float, tried: list[float]) -> None:
    names = [c.name for c in entered(best=best)[0].candidates]
    assert [name for name in names if name.endswith("of the way")] == [
        f"{alpha:g} of the way" for alpha in tried
    ]


def test_projections_are_fitted_to_as_many_images_as_there_is_time_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(candidates, "MIN_REFITTED", 10)
    some, _ = entered(100.0, spent=80.5, refitted=26)  # 0.8 · (19.5 - 3) / 0.5
    assert len(some.candidates) > 6


def test_without_time_candidates_are_left_out_with_a_warning() -> None:
    selection, warned = entered(100.0, spent=95.0)
    assert [c.name for c in selection.candidates] == ["frozen", "average of weights"]
    assert any("longer --budget" in sentence for sentence in warned)


@pytest.mark.parametrize(
    ("left", "between"),
    [(41.0, True), (30.0, False)],  # 26 s for projections, 10 for a point of the line, 3 to save
)
def test_projections_come_before_framings_and_interpolations_where_there_is_no_time_for_all(
    left: float, between: bool
) -> None:
    names = [c.name for c in entered(100.0, spent=100.0 - left)[0].candidates]
    assert not any("whole image" in name for name in names)
    assert any(name.endswith("of the way") for name in names) == between
    tuned = "0.75 of the way" if between else "average of weights"
    assert sum(name.startswith(f"{tuned}, ") for name in names) == PROJECTIONS


def test_the_start_is_not_changed() -> None:
    origin = embedder()
    before = copy.deepcopy(origin.state_dict())
    other = with_projection(with_preprocess(origin, Preprocess((64, 64))), Projection(6, 2))
    assert (other.preprocess.size, other.dim) == ((64, 64), 2)
    assert (origin.preprocess.size, origin.dim) == ((224, 224), 6)
    assert all(torch.equal(before[name], t) for name, t in origin.state_dict().items())
    assert other.backbone is origin.backbone


def test_the_cost_of_the_choice_counts_all_candidates() -> None:
    costs = Costs(2.0, 5.0, images=100)
    assert costs.choice(2) > costs.choice(0) > 3 * 2.0 + 5.0
    larger = (8 / 7) ** 2
    assert Costs(2.0, 50.0, images=20_000).refitting == pytest.approx(5.0 * larger)  # of 2,000
    assert Costs(2.0, 50.0, images=20_000, budget=50.0).refitting == pytest.approx(4.0)
    short = Costs(10.0, 5.0, images=100, budget=200.0)  # all would take 10 · 5.6 + 6.5 + 3 s
    assert short.choice(2) == pytest.approx(0.18 * 200)
    assert Costs(30.0, 5.0, images=100, budget=200.0).choice(2) > 30.0 + 3.0  # the end, at least


@pytest.mark.parametrize(("net", "names"), [(Net(), 2), (OneSize(), 1)])
def test_only_networks_that_take_any_size_get_larger_images(net: nn.Module, names: int) -> None:
    model = embedder(net=net)
    assert takes_any_size(model) == (names == 2)
    found = framings_of(model)
    assert list(found) == ["whole image", "whole image at 256"][:names]
    assert all(view.resize is None for view in found.values())


def test_squashed_images_have_no_other_framings() -> None:
    model = Embedder.from_module(Net(), Preprocess((224, 224), mode="squash"))
    assert framings_of(model) == {}
    borderless = Embedder.from_module(Net(), Preprocess((224, 224)))
    assert list(framings_of(borderless)) == ["whole image at 256"]
