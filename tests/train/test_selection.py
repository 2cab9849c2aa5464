"""The frozen model is kept unless a candidate's paired gain exceeds its standard error."""

import numpy as np
import pytest
import torch
from torch import nn

from vizsla.data.preprocess import Preprocess
from vizsla.model.embedder import Embedder
from vizsla.model.projection import Projection, WithClasses
from vizsla.train.selection import Candidate, Selection, interpolated, paired_gain, table


def embedder(value: float) -> Embedder:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3)) * 0 + self.value

    return Embedder.from_module(Fixed(), Preprocess((4, 4)))


class Validate:
    """Scores an embedder by its only weight; every query alike but for noise that is shared."""

    def __init__(self, noise: float = 0.0) -> None:
        self.noise, self.calls, self.optimise = noise, 0, "mean"
        self.means = {"top1": 0.5}

    def __call__(self, model: Embedder) -> np.ndarray:
        self.calls += 1
        own = np.random.default_rng(self.calls).normal(size=50) * self.noise
        return model.backbone.network.value.item() + own


def test_the_largest_significant_gain_is_kept() -> None:
    selection = Selection(embedder(0.5), Validate())
    for name, value in (("worse", 0.4), ("better", 0.6), ("best", 0.7), ("good", 0.65)):
        selection.enter(name, embedder(value))
    kept = selection.decided()
    assert kept.name == "best"
    assert kept.embedder.backbone.network.value.item() == pytest.approx(0.7)
    assert kept.gain == pytest.approx(0.2)
    assert [c.name for c in selection.candidates if c.embedder] == ["frozen", "best"]


def test_a_gain_within_its_error_does_not_count() -> None:
    selection = Selection(embedder(0.5), Validate(noise=3.0))
    candidate = selection.enter("lucky", embedder(0.501))
    assert abs(candidate.gain) < candidate.error or candidate.gain < 0
    assert selection.decided().name == "frozen"


def test_a_tie_keeps_the_frozen_model() -> None:
    selection = Selection(embedder(0.5), Validate())
    assert selection.enter("same", embedder(0.5)).gain == 0
    assert selection.decided().name == "frozen"


def with_classes(value: float) -> Embedder:
    model = embedder(value)
    model.projection = WithClasses(Projection(1, 1), Projection(1, 2), share=0.3)
    return model


@pytest.mark.parametrize("optimise", ["mean", "map"])
def test_class_probabilities_must_not_cost_contest_points(optimise: str) -> None:
    validate = Validate()
    validate.optimise = optimise
    selection = Selection(embedder(0.5), validate)
    validate.means = {"points": 900.0}
    selection.enter("discriminant", embedder(0.7))
    validate.means = {"points": 890.0}
    fewer = selection.enter("with classes, fewer points", with_classes(0.9))
    if optimise == "map":  # points were not asked for
        assert selection.best is fewer
        return
    assert selection.best.name == "discriminant"
    validate.means = {"points": 910.0}
    more = selection.enter("with classes, more points", with_classes(0.8))
    assert selection.decided() is more and more.embedder is not None
    unsure = Candidate("unsure", np.zeros(2), gain=0.1, error=0.2)
    assert unsure.verdict == "unsure"
    unsure.gain = -0.1
    assert unsure.verdict == "worse"
    unsure.gain = 0.3
    assert unsure.verdict == ""
    lines = {line.split("  ")[0].strip(): line for line in table(selection.candidates).splitlines()}
    assert "fewer points" in lines["costs points"] and "more points" in lines["kept"]


def test_a_candidate_is_kept_as_it_was_scored() -> None:
    selection, model = Selection(embedder(0.1), Validate()), embedder(0.9)
    selection.enter("one", model)
    with torch.no_grad():
        model.backbone.network.value.fill_(-1)
    assert selection.decided().embedder.backbone.network.value.item() == pytest.approx(0.9)


def test_gain_and_error_by_hand() -> None:
    gain, error = paired_gain(np.array([1.0, 1, 0, 1]), np.array([0.0, 1, 0, 1]))
    assert gain == 0.25
    assert error == pytest.approx(0.25)  # the deviation of (1, 0, 0, 0) is 0.5, over 2
    assert paired_gain(np.array([1.0]), np.array([0.5])) == (0.5, 0.0)


def test_interpolation_between_weights() -> None:
    start = {"a": torch.zeros(2), "n": torch.tensor(3)}
    end = {"a": torch.ones(2), "n": torch.tensor(5)}
    assert torch.equal(interpolated(start, end, 0.25)["a"], torch.full((2,), 0.25))
    assert interpolated(start, end, 0.25)["n"] == 5
    assert torch.equal(interpolated(start, end, 0.0)["a"], start["a"])


def test_the_table_lists_all_candidates() -> None:
    selection = Selection(embedder(0.5), Validate())
    selection.enter("tuned", embedder(0.75))
    selection.decided()
    lines = table(selection.candidates).splitlines()
    assert "top-1" in lines[0]
    assert lines[1].startswith("      frozen")
    assert "+0.2500" in lines[2]
    assert lines[2].startswith("kept  tuned ")


def test_the_table_of_candidates_fits_80_columns_and_counts_points_to_1000() -> None:
    means = {"map": 0.5, "top1": 0.7, "points": 793.4, "text": 0.5}
    name = "average of weights, whole image at 256, discriminant 0.6"
    found = [Candidate("frozen", np.array([0.6]), means=means),
             Candidate(name, np.array([0.7]), gain=0.1, kept=True, means=means)]  # fmt: skip
    lines = table(found).splitlines()
    assert max(map(len, lines)) <= 80 and "793.4" in lines[1]
    assert lines[2].split()[0] == "kept" and "+0.1000" in lines[2]
