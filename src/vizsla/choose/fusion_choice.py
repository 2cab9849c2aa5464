"""Ways to fuse, and weights → those that validation prefers. The test part is never used."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
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
from vizsla.score.validation_scores import ValidationScores
from vizsla.search.chain import Chain, Refiner
from vizsla.search.fusion import Probability, checked_weights, fused
from vizsla.search.ranking import Ranking

log = logging.getLogger("vizsla.choose")

STEPS = 10  # of the weight between two models
FACTORS = (0.0, 0.5, 2.0)  # of one weight among several
ROUNDS = 3
ZSCORE: Mapping[str, None] = {"zscore": None}
MAX_RISK = 0.5  # a gain must be likelier than a loss: equal weights are no safer than others


@dataclass(frozen=True)
class FusionChoice:
    """The chosen way to fuse.

    weights: one for each model, adding up to 1. report: all trials; the first has the first method
    and equal weights. without: the best model alone, for comparison. whiten: the projection of
    concatenated vectors, if one was chosen.
    """

    method: str
    weights: list[float]
    report: TrialReport
    without: Trial | None = None
    whiten: str | None = None

    @property
    def validation(self) -> ValidationScores:
        """The scores of the chosen weights."""
        return self.report.validation("fusion")

    def lines(self) -> list[str]:
        """For a terminal."""
        return [*self.report.short_lines("fusion"), self._kept()]

    def all_lines(self) -> list[str]:
        """For the log, with more candidates."""
        return [*self.report.lines("fusion"), self._kept()]

    def _kept(self) -> str:
        weights = ", ".join(f"{w:.3g}" for w in self.weights)
        projection = f", projection {self.whiten}" if self.whiten else ""
        return f"kept: {self.method}{projection}, weights {weights}"

    def record(self) -> dict[str, Any]:
        """For the result file."""
        return self.report.record("fusion")


def choose_fusion(
    models: Sequence[Embeddings],
    chains: Sequence[Chain],
    drawn: EmbeddedDraws,
    *,
    methods: Mapping[str, Sequence[Probability] | None] = ZSCORE,
    weights: Sequence[float] | None = None,
    optimise: str = "mean",
) -> FusionChoice:
    """What is best by `optimise` among what is safe (`Trial.is_safe`).

    models: the vectors of the images of `drawn` by each model; images that one of them lacks are
    left out. chains: how each one's ranking is refined. methods: those to try, each with what turns
    scores of each model into probabilities, for calibrated. weights: the only ones to try; by
    default they are chosen too. UsageError unless there is a chain for each model.
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
    by_draw = list(zip(*rankings, strict=True))
    trials = Trials(validation, optimise, MAX_RISK)
    tried: dict[str, tuple[str, list[float]]] = {}

    def trial(method: str, weights: Sequence[float]) -> Trial:
        weights = checked_weights(weights, len(models))
        name = f"{method}({','.join(f'{w:.3g}' for w in weights)})"
        if name not in trials.by_name:
            chances = methods[method]
            joint = [
                fused(r, method=method, weights=weights, probabilities=chances) for r in by_draw
            ]
            trials.add(name, [ranking.positions for ranking in joint])
            tried[name] = method, weights
        return trials.by_name[name]

    for method in methods:
        trial(method, [1.0] * len(models) if weights is None else weights)
        if weights is None:
            _search(functools.partial(trial, method), len(models))
    best = trials.best()
    alone = [trials.by_name[name] for name, (_, given) in tried.items() if max(given) == 1]
    without = max(alone, key=lambda trial: trial.value, default=None)
    choice = FusionChoice(*tried[best.name], trials.report(best.name), without)
    for line in choice.all_lines():
        log.debug("%s", line)
    return choice


def _search(trial: Callable[[Sequence[float]], Trial], n_models: int) -> None:
    """Tries a grid of weights for two models; for more, changes one weight at a time."""
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
