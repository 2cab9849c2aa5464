"""Which fusion weights: tried on a validation part, never on the test part."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vizsla.choose.validation import Drawn, Ground, Judge, Trial, Tried, ground_of
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import UsageError
from vizsla.search.chain import Chain, Refiner
from vizsla.search.fusion import checked_weights, fused
from vizsla.search.ranking import Ranking

log = logging.getLogger("vizsla.choose")

STEPS = 10  # of the weight between two models
FACTORS = (0.0, 0.5, 2.0)  # by which the weight of one among several is changed
ROUNDS = 3


@dataclass(frozen=True)
class WeightsChoice:
    """weights: one for each model, adding up to 1. tried: all that was, equal weights first."""

    weights: list[float]
    tried: Tried

    def lines(self) -> list[str]:
        kept = ", ".join(f"{w:.3g}" for w in self.weights)
        return [*self.tried.lines("weights"), f"kept: {kept}"]

    def record(self) -> dict[str, Any]:
        """For the result file."""
        return self.tried.record("weights")


def choose_weights(
    models: Sequence[Embeddings],
    chains: Sequence[Chain],
    drawn: Drawn,
    *,
    method: str = "zscore",
) -> WeightsChoice:
    """The weights with the highest mean of top-1 and mAP among those that keep top-1.

    models: the vectors of the images of `drawn` by each model; images that one of them lacks are
    left out. chains: how each one's ranking is refined.
    """
    if len(models) != len(chains) or not models:
        raise UsageError(f"{len(models)} models, {len(chains)} chains: expected one for each")
    common = set(models[0].ids).intersection(*(m.ids for m in models[1:]))
    ids = [name for name in models[0].ids if name in common]
    ground = ground_of(drawn.images, ids, drawn.draws, near=drawn.near)
    rankings = [_rankings(m, ids, chain, ground) for m, chain in zip(models, chains, strict=True)]
    judge, weights_of = Judge(ground), {}

    def trial(weights: Sequence[float]) -> Trial:
        weights = checked_weights(weights, len(models))
        name = " ".join(f"{w:.3f}" for w in weights)
        if name not in judge.trials:
            parts = zip(*rankings, strict=True)
            found = [fused(part, method=method, weights=weights).positions for part in parts]
            judge.judge(name, found)
            weights_of[name] = weights
        return judge.trials[name]

    trial([1.0] * len(models))
    _search(trial, len(models))
    best = judge.best(judge.trials)
    choice = WeightsChoice(weights_of[best.name], judge.tried(best.name))
    for line in choice.lines():
        log.debug("%s", line)
    return choice


def _search(trial: Callable[[Sequence[float]], Trial], M: int) -> None:
    """A line between two models; for more, one weight at a time."""
    for alone in np.eye(M):
        trial(alone.tolist())
    if M == 2:
        for i in range(1, STEPS):
            trial([i / STEPS, 1 - i / STEPS])
        return
    best = [1.0] * M
    for _ in range(ROUNDS):
        before = list(best)
        for m in range(M):
            changed = [[w * (f if i == m else 1) for i, w in enumerate(best)] for f in FACTORS]
            able = [best, *(weights for weights in changed if sum(weights) > 0)]
            best = max(able, key=lambda weights: trial(weights).value)
        if best == before:
            return


def _rankings(model: Embeddings, ids: Sequence[str], chain: Chain, ground: Ground) -> list[Ranking]:
    """One for each part, its ids such that their order is that of the part's positions."""
    place = {name: i for i, name in enumerate(model.ids)}
    vectors = model.vectors[[place[name] for name in ids]]
    found = []
    for part in ground.parts:
        G = len(part.gallery)
        positions, scores = Refiner(vectors[part.query], vectors[part.gallery]).top_k(chain, G)
        queries = [f"{i:07}" for i in range(len(part.query))]
        found.append(Ranking(queries, [f"{i:07}" for i in range(G)], positions, scores, G))
    return found
