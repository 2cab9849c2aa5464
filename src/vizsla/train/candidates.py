"""Tuned weights → candidates for the final choice, the most promising first, until time runs out.

last weights and their average ─► the line to the start ─► whole images ─► projections fitted again
"""

import copy
import functools
import logging
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from vizsla.data.preprocess import Preprocess
from vizsla.model.embedder import Embedder
from vizsla.train.heads import closed_forms, with_projection
from vizsla.train.job import Budget, Decisions
from vizsla.train.selection import Selection, interpolated

log = logging.getLogger("vizsla.train")

ALPHAS = (0.5, 0.75, 0.25)  # of the way from the start to the tuned weights, most promising first
PROJECTIONS = 5  # closed forms that are usually fitted to a tuned backbone
REFITTED = 2000  # images whose vectors a tuned backbone's projections are fitted to
SCORED = 2 + len(ALPHAS) + 2  # backbones of one training, usually: ends, between, framings
SAVING_SECONDS = 3.0  # reserved in a budget for writing the embedder
LARGER = 8 / 7  # of the side: to a convolution, objects then look as large as in training
STEP = 32  # total stride of most convolutional networks, in pixels


@dataclass(frozen=True)
class Costs:
    """Measured seconds for scoring one model and for embedding all training images.

    images: the number of training images.
    """

    validation: float
    embedding: float
    images: int

    @property
    def refitting(self) -> float:
        """Seconds of embedding the REFITTED images."""
        return self.embedding * min(1.0, REFITTED / max(1, self.images))

    def choice(self, framings: int) -> float:
        """Seconds to reserve in a budget for all candidates of one training."""
        validations = 2 + len(ALPHAS) + framings * LARGER**2
        return validations * self.validation + LARGER**2 * self.refitting + SAVING_SECONDS


class _Scored(NamedTuple):
    """A candidate with its weights, whether or not the selection keeps them."""

    value: float
    name: str
    embedder: Embedder


class TunedCandidates:
    """Enters the results of one training of the backbone into the selection.

    pooled: (embedder, positions) → (n, C), of training images. labels: (N,) class numbers.
    prefix: of all names. progress: (candidates scored, expected number).
    """

    def __init__(
        self,
        selection: Selection,
        budget: Budget,
        costs: Costs,
        *,
        pooled: Callable[[Embedder, np.ndarray], np.ndarray],
        labels: np.ndarray,
        dim: int | None,
        seed: int,
        warn: Callable[[str], None],
        prefix: str = "",
        decisions: Decisions | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.selection, self.budget, self.costs = selection, budget, costs
        self.pooled, self.labels, self.dim, self.seed = pooled, labels, dim, seed
        self.warn, self.prefix, self.progress = warn, prefix, progress
        self.decisions = decisions or Decisions()
        self.done = self.total = 0

    def enter(self, start: Embedder, ends: list[tuple[str, Embedder]]) -> None:
        """start: before the training. ends: (name, what the training ended with), best first."""
        self.total = len(ends) + len(ALPHAS) + len(framings_of(start)) + 2 * PROJECTIONS

        scored: list[_Scored] = []
        for name, end in ends:
            if not scored or self._time_for(name):
                scored.append(self._score(self.prefix + name, end))
        best = max(scored, key=lambda c: c.value)

        tuned = best.embedder.state_dict()
        for alpha in ALPHAS:
            if not self._time_for(f"{alpha:g} of the way"):
                self.warn("no time was left to try all interpolations: give a longer --budget")
                break
            between = copy.deepcopy(start)
            between.load_state_dict(interpolated(start.state_dict(), tuned, alpha))
            candidate = self._score(f"{self.prefix}{alpha:g} of the way", between)
            best = max(best, candidate, key=lambda c: c.value)

        framed = [best]
        for name, preprocess in framings_of(best.embedder).items():
            if not self._time_for(name, LARGER**2 * self.costs.validation):
                break
            framing = with_preprocess(best.embedder, preprocess)
            framed.append(self._score(f"{best.name}, {name}", framing))

        pixels = self.selection.size[0] * self.selection.size[1]
        for candidate in sorted(framed, key=lambda c: -c.value)[:2]:
            height, width = candidate.embedder.preprocess.size
            seconds = self.costs.refitting * height * width / pixels
            if self._time_for(f"projections of {candidate.name}", seconds):
                self._refit_projections(candidate)
        self.progress(self.total, self.total)

    def _refit_projections(self, tuned: _Scored) -> None:
        """The same backbone with projections fitted to its own vectors."""
        chosen = np.random.default_rng((self.seed, 31)).permutation(len(self.labels))[:REFITTED]
        chosen = np.sort(chosen)
        vectors = self.pooled(tuned.embedder, chosen)
        for name, projection in closed_forms(vectors, self.labels[chosen], self.dim).items():
            self._score(f"{tuned.name}, {name}", with_projection(tuned.embedder, projection))

    def _score(self, name: str, embedder: Embedder) -> _Scored:
        value = self.selection.enter(name, embedder.eval()).value
        self.done += 1
        self.progress(min(self.done, self.total - 1), self.total)  # the total is an estimate
        return _Scored(value, name, embedder)

    def _time_for(self, name: str, seconds: float | None = None) -> bool:
        """Whether there is time for a candidate. seconds: by default those of the frozen model."""
        needed = (self.costs.validation if seconds is None else seconds) + SAVING_SECONDS
        decide = functools.partial(operator.gt, self.budget.left(), needed)
        return bool(self.decisions.decide(f"{self.prefix}time for {name}", decide))


# ── other preprocessing ──────────────────────────────────────────────────────────────────────────


def framings_of(embedder: Embedder) -> dict[str, Preprocess]:
    """Name → preprocessing without cropping; a larger one too if the network allows it."""
    current = embedder.preprocess
    height, width = current.size
    if current.mode != "crop" or height != width:
        return {}
    whole = replace(current, resize=None)
    found = {"whole image": whole} if current.resize not in (None, height) else {}
    larger = round(height * LARGER / STEP) * STEP
    if larger > height and takes_any_size(embedder):
        found[f"whole image at {larger}"] = whole.with_size(larger)
    return found


def takes_any_size(embedder: Embedder) -> bool:
    """Whether the network gives a feature map for images of any size, as convolutional ones do."""
    device = next(embedder.parameters()).device
    try:
        with torch.inference_mode():
            return embedder.backbone.features(torch.zeros(1, 3, 64, 64, device=device)).ndim == 4
    except (RuntimeError, ValueError, AssertionError, NotImplementedError):
        return False


def with_preprocess(embedder: Embedder, preprocess: Preprocess) -> Embedder:
    """The same network on images that are preprocessed in another way. It shares the weights."""
    other = copy.copy(embedder)
    other._modules = dict(embedder._modules)
    other.preprocess = preprocess
    return other
