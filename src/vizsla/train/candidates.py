"""Tuned weights → candidates of the choice at the end, in order of promise, while there is time.

ends of the training ─► the line to the start ─► the whole picture ─► projections fitted anew
"""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from vizsla.data.preprocess import Preprocess
from vizsla.model.embedder import Embedder
from vizsla.model.projection import Projection
from vizsla.train import heads
from vizsla.train.loop import Budget
from vizsla.train.selection import Candidate, Contest, interpolated

log = logging.getLogger("vizsla.train")

ALPHAS = (0.5, 0.75, 0.25)  # of the way from the start to the tuned weights, in order of promise
PROJECTIONS = 5  # closed forms that a tuned backbone gets, mostly
REFITTED = 2000  # images whose vectors a tuned backbone's projections are fitted to
SAVING_SECONDS = 3.0  # kept back of a budget for writing the embedder
LARGER = 8 / 7  # of the side: what convolutions see then looks more like what they were trained on
STEP = 32  # pixels that a convolutional network divides a side by, mostly


@dataclass(frozen=True)
class Costs:
    """Seconds that one validation takes, and embedding REFITTED images; both as measured."""

    validating: float
    refitting: float

    def of_all(self, framings: int) -> float:
        """What is kept back of a budget for the choice at the end."""
        validations = 2 + len(ALPHAS) + framings * LARGER**2
        return validations * self.validating + LARGER**2 * self.refitting + SAVING_SECONDS


class TunedEntries:
    """Enters what came of a backbone's training into the contest.

    pooled: (embedder, positions) → (n, C), of training images. labels: (N,) class numbers.
    """

    def __init__(
        self,
        contest: Contest,
        budget: Budget,
        costs: Costs,
        *,
        pooled: Callable[[Embedder, np.ndarray], np.ndarray],
        labels: np.ndarray,
        dim: int | None,
        seed: int,
        warn: Callable[[str], None],
        prefix: str = "",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """prefix: of all names. progress: candidates scored, of about so many."""
        self.contest, self.budget, self.costs = contest, budget, costs
        self.pooled, self.labels, self.dim, self.seed = pooled, labels, dim, seed
        self.warn, self.prefix, self.progress = warn, prefix, progress
        self.done = self.most = 0

    def enter(self, origin: Embedder, ends: list[tuple[str, Embedder]]) -> None:
        """origin: where the training started. ends: name → what it ended with, the better first."""
        self.most = len(ends) + len(ALPHAS) + len(framings_of(origin)) + 2 * PROJECTIONS
        best = self._ends(ends)
        leader = self._between(origin, best)
        seen = [leader, *self._framings(leader)]
        for candidate in sorted(seen, key=lambda c: -c.value)[:2]:
            if self.budget.left() > self._fitting_seconds(candidate) + SAVING_SECONDS:
                self._refitted(candidate)
        if self.progress:
            self.progress(self.most, self.most)

    def _ends(self, ends: list[tuple[str, Embedder]]) -> Candidate:
        found: list[Candidate] = []
        for name, model in ends:
            if found and not self._time_for_one_more():
                break
            found.append(self._entered(self.prefix + name, model))
        return max(found, key=lambda c: c.value)

    def _between(self, origin: Embedder, end: Candidate) -> Candidate:
        """The best on the line from the start to the better end, the end included."""
        assert end.embedder is not None
        leader, tuned = end, end.embedder.state_dict()
        for alpha in ALPHAS:
            if not self._time_for_one_more():
                self.warn("no time was left to try all interpolations: a longer --budget does")
                break
            between = copy.deepcopy(origin)
            between.load_state_dict(interpolated(origin.state_dict(), tuned, alpha))
            candidate = self._entered(f"{self.prefix}{alpha:g} of the way", between)
            leader = max(leader, candidate, key=lambda c: c.value)
        return leader

    def _framings(self, tuned: Candidate) -> list[Candidate]:
        """The same weights on pictures prepared in other ways."""
        assert tuned.embedder is not None
        found = []
        for name, preprocess in framings_of(tuned.embedder).items():
            if not self._time_for_one_more(preprocess):
                break
            found.append(
                self._entered(f"{tuned.name}, {name}", seen_as(tuned.embedder, preprocess))
            )
        return found

    def _refitted(self, tuned: Candidate) -> None:
        """The same backbone behind projections that are fitted to its own vectors."""
        assert tuned.embedder is not None
        chosen = np.random.default_rng((self.seed, 31)).permutation(len(self.labels))[:REFITTED]
        vectors = self.pooled(tuned.embedder, np.sort(chosen))
        found = heads.closed_forms(vectors, self.labels[np.sort(chosen)], self.dim)
        for name, projection in found.items():
            self._entered(f"{tuned.name}, {name}", behind(tuned.embedder, projection))

    def _entered(self, name: str, embedder: Embedder) -> Candidate:
        """A copy of what the contest keeps of a candidate, with its weights still at hand."""
        entered = replace(self.contest.enter(name, embedder.eval()), embedder=embedder)
        self.done += 1
        if self.progress:  # which are worth projections, and how many, is seen on the way
            self.progress(min(self.done, self.most - 1), self.most)
        return entered

    def _time_for_one_more(self, preprocess: Preprocess | None = None) -> bool:
        larger = LARGER**2 if preprocess else 1.0
        return self.budget.left() > larger * self.costs.validating + SAVING_SECONDS

    def _fitting_seconds(self, tuned: Candidate) -> float:
        assert tuned.embedder is not None
        own = self.contest.size[0] * self.contest.size[1]
        height, width = tuned.embedder.preprocess.size
        return self.costs.refitting * height * width / own


# ── other eyes, other projections ────────────────────────────────────────────────────────────────


def framings_of(embedder: Embedder) -> dict[str, Preprocess]:
    """Name → preprocessing that leaves no border away; larger too where the network allows."""
    own = embedder.preprocess
    if own.mode != "crop" or own.size[0] != own.size[1]:
        return {}
    whole = replace(own, resize=None)
    found = {"whole picture": whole} if own.resize not in (None, own.size[0]) else {}
    larger = round(own.size[0] * LARGER / STEP) * STEP
    if larger > own.size[0] and takes_any_size(embedder):
        found[f"whole picture at {larger}"] = whole.with_size(larger)
    return found


def takes_any_size(embedder: Embedder) -> bool:
    """Whether the network ends in a map, as convolutional ones do: others know one size."""
    device = next(embedder.parameters()).device
    try:
        with torch.inference_mode():
            return embedder.backbone.features(torch.zeros(1, 3, 64, 64, device=device)).ndim == 4
    except (RuntimeError, ValueError, AssertionError, NotImplementedError):
        return False


def seen_as(embedder: Embedder, preprocess: Preprocess) -> Embedder:
    """The same network on pictures prepared in another way. It shares the weights."""
    other = copy.copy(embedder)
    other._modules = dict(embedder._modules)
    other.preprocess = preprocess
    return other


def behind(embedder: Embedder, projection: Projection) -> Embedder:
    """The same network behind another projection. It shares the network's weights."""
    other = copy.copy(embedder)
    other._modules = dict(embedder._modules)
    other.projection = copy.deepcopy(projection).to(next(embedder.parameters()).device)
    return other
