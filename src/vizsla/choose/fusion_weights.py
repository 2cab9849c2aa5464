"""Fusion weights → those that validation prefers. The test part is never used."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vizsla.choose.validation import (
    EmbeddedDraws,
    Trial,
    TrialReport,
    Trials,
    ValidationSet,
    validation_set,
)
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import UsageError
from vizsla.search.chain import Chain, Refiner
from vizsla.search.fusion import Probability, checked_weights, fused
from vizsla.search.ranking import Ranking

log = logging.getLogger("vizsla.choose")

STEPS = 10  # of the weight between two models
FACTORS = (0.0, 0.5, 2.0)  # of one weight among several
ROUNDS = 3
MAX_RISK = 0.5  # equal weights are no safer than others, as long as a gain is likelier than a loss


@dataclass(frozen=True)
class WeightsChoice:
    """weights: one for each model, adding up to 1. report: all trials, equal weights first."""

    weights: list[float]
    report: TrialReport

    def lines(self) -> list[str]:
        """For a terminal and the log."""
        kept = ", ".join(f"{w:.3g}" for w in self.weights)
        return [*self.report.lines("weights"), f"kept: {kept}"]

    def record(self) -> dict[str, Any]:
        """For the result file."""
        return self.report.record("weights")


def choose_weights(
    models: Sequence[Embeddings],
    chains: Sequence[Chain],
    drawn: EmbeddedDraws,
    *,
    method: str = "zscore",
    optimise: str = "mean",
    probabilities: Sequence[Probability] | None = None,
) -> WeightsChoice:
    """The weights that are best by `optimise` among those that are safe (`Trial.is_safe`).

    models: the vectors of the images of `drawn` by each model; images that one of them lacks are
    left out. chains: how each one's ranking is refined. UsageError unless there is one for each.
    """
    if len(models) != len(chains) or not models:
        raise UsageError(f"{len(models)} models, {len(chains)} chains: expected one for each")
    common = set(models[0].ids).intersection(*(m.ids for m in models[1:]))
    ids = [name for name in models[0].ids if name in common]
    images, share = drawn.images, drawn.relative_share
    validation = validation_set(
        images, ids, drawn.draws, relative_share=share, test_queries=drawn.test_queries
    )
    rankings = [
        _rankings(model, ids, chain, validation)
        for model, chain in zip(models, chains, strict=True)
    ]
    trials = Trials(validation, optimise, MAX_RISK)
    weights_of: dict[str, list[float]] = {}

    def trial(weights: Sequence[float]) -> Trial:
        weights = checked_weights(weights, len(models))
        name = " ".join(f"{w:.3f}" for w in weights)
        if name not in trials.by_name:
            by_draw = zip(*rankings, strict=True)
            joint = [
                fused(r, method=method, weights=weights, probabilities=probabilities)
                for r in by_draw
            ]
            trials.add(name, [ranking.positions for ranking in joint])
            weights_of[name] = weights
        return trials.by_name[name]

    trial([1.0] * len(models))
    _search(trial, len(models))
    best = trials.best()
    choice = WeightsChoice(weights_of[best.name], trials.report(best.name))
    for line in choice.lines():
        log.debug("%s", line)
    return choice


def _search(trial: Callable[[Sequence[float]], Trial], n_models: int) -> None:
    """A grid of weights for two models; for more, one weight at a time is changed."""
    for single in np.eye(n_models):
        trial(single.tolist())
    if n_models == 2:
        for i in range(1, STEPS):
            trial([i / STEPS, 1 - i / STEPS])
        return
    best = [1.0] * n_models
    for _ in range(ROUNDS):
        before = list(best)
        for m in range(n_models):
            changed = [[w * (f if i == m else 1) for i, w in enumerate(best)] for f in FACTORS]
            valid = [best, *(weights for weights in changed if sum(weights) > 0)]
            best = max(valid, key=lambda weights: trial(weights).value)
        if best == before:
            return


def _rankings(
    model: Embeddings, ids: Sequence[str], chain: Chain, validation: ValidationSet
) -> list[Ranking]:
    """The refined ranking of each draw. Its ids are numbers, in the order of the draw's images."""
    row_of = {name: i for i, name in enumerate(model.ids)}
    vectors = model.vectors[[row_of[name] for name in ids]]
    rankings = []
    for draw in validation.draws:
        G = len(draw.gallery)
        positions, scores = Refiner(vectors[draw.query], vectors[draw.gallery]).top_k(chain, G)
        queries = [f"{i:07}" for i in range(len(draw.query))]
        rankings.append(Ranking(queries, [f"{i:07}" for i in range(G)], positions, scores, G))
    return rankings
