"""Tuned weights → candidates for the final choice, the most promising first, until time runs out.

tuned weights ─► the line to the start ─► whole images ─► projections fitted again
"""

import copy
import functools
import logging
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from vizsla.data.preprocess import Preprocess
from vizsla.model.closed_forms import closed_forms
from vizsla.model.embedder import Embedder
from vizsla.train.heads import with_projection
from vizsla.train.job import Budget, Decisions
from vizsla.train.selection import Selection, interpolated

log = logging.getLogger("vizsla.train")

ALPHAS = (0.75, 0.5, 0.25)  # of the way from the start to the tuned weights
BETWEEN = 2  # of these are tried at most
PROJECTIONS = 7  # closed forms that are usually fitted to a tuned backbone
REFITTED = 2000  # images whose vectors a tuned backbone's projections are fitted to
MIN_REFITTED = 200
REFITTING_SHARE = 0.08  # of a budget that embedding these images may take
SCORED = 1 + BETWEEN + 2  # backbones of one training, usually: the end, between, framings
EMBEDDING_SHARE = 0.8  # of the time that is left, for the vectors that these are fitted to
CHOICE_SHARE = 0.18  # of a budget that scoring the candidates of one training may take
SAVING_SECONDS = 3.0  # reserved in a budget for writing the embedder
LARGER = 8 / 7  # of the side: to a convolution, objects then look as large as in training
STEP = 32  # total stride of most convolutional networks, in pixels


@dataclass(frozen=True)
class Costs:
    """Measured seconds for scoring one model and for embedding all training images.

    images: the number of training images. budget: seconds of the whole training, or None.
    """

    validation: float
    embedding: float
    images: int
    budget: float | None = None

    @property
    def image(self) -> float:
        """Seconds of embedding one image."""
        return self.embedding / max(1, self.images)

    @property
    def refitting(self) -> float:
        """Seconds of embedding the images that projections are fitted to, on larger images."""
        seconds = LARGER**2 * self.image * min(REFITTED, self.images)
        return min(seconds, REFITTING_SHARE * (self.budget or math.inf))

    def choice(self, framings: int) -> float:
        """Seconds to reserve in a budget for the candidates of one training: for all of them, or
        for those that can be scored in CHOICE_SHARE."""
        validations = 1 + BETWEEN + framings * LARGER**2
        seconds = validations * self.validation + self.refitting + SAVING_SECONDS
        least = self.validation + self.refitting + SAVING_SECONDS
        return min(seconds, max(least, CHOICE_SHARE * (self.budget or math.inf)))


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

    def enter(self, start: Embedder, name: str, end: Embedder) -> None:
        """start: before the training. name, end: what the training ended with."""
        self.total = 1 + BETWEEN + len(framings_of(start)) + PROJECTIONS

        best = self._score(self.prefix + name, end)
        tuned = end.state_dict()
        has_gained = best.value >= self.selection.frozen.value
        for alpha in ALPHAS[:BETWEEN] if has_gained else ALPHAS[-BETWEEN:]:
            if not self._time_for(f"{alpha:g} of the way", self.costs.validation):
                self.warn("no time was left to try all interpolations: give a longer --budget")
                break
            between = copy.deepcopy(start)
            between.load_state_dict(interpolated(start.state_dict(), tuned, alpha))
            candidate = self._score(f"{self.prefix}{alpha:g} of the way", between)
            is_better = candidate.value > best.value
            best = candidate if is_better else best
            if has_gained and not is_better:  # nor will a point that is farther from the end be
                break

        framed = [best]
        for name, preprocess in framings_of(best.embedder).items():
            if not self._time_for(name, LARGER**2 * self.costs.validation):
                break
            framing = with_preprocess(best.embedder, preprocess)
            framed.append(self._score(f"{best.name}, {name}", framing))

        self._refit_projections(max(framed, key=lambda c: c.value))
        self.progress(self.total, self.total)

    def _refit_projections(self, tuned: _Scored) -> None:
        """The same backbone with projections fitted to its own vectors, of as many images as there
        is time for."""
        height, width = tuned.embedder.preprocess.size
        each = self.costs.image * height * width / (self.selection.size[0] * self.selection.size[1])
        left = EMBEDDING_SHARE * (self.budget.left() - SAVING_SECONDS)
        most = int(min(REFITTED, len(self.labels), left / max(each, 1e-9)))
        count = int(self.decisions.decide(f"{self.prefix}images for projections", lambda: most))
        if count < min(MIN_REFITTED, len(self.labels)):
            return
        chosen = np.random.default_rng((self.seed, 31)).permutation(len(self.labels))[:count]
        chosen = np.sort(chosen)
        vectors = self.pooled(tuned.embedder, chosen)
        for name, projection in closed_forms(vectors, self.labels[chosen], self.dim).items():
            self._score(f"{tuned.name}, {name}", with_projection(tuned.embedder, projection))

    def _score(self, name: str, embedder: Embedder) -> _Scored:
        value = self.selection.enter(name, embedder.eval()).value
        self.done += 1
        self.progress(min(self.done, self.total - 1), self.total)  # the total is an estimate
        return _Scored(value, name, embedder)

    def _time_for(self, name: str, seconds: float) -> bool:
        """Whether there is time for a candidate, and then for projections, which add more."""
        needed = seconds + self.costs.refitting + SAVING_SECONDS
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
