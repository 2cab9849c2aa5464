"""Scores of ranked lists → log-odds that each match is right, by its score and by its list.

One score says more where a few images stand out from the list than where all are alike. The same is
true of other evidence, where there is some beside the scores. Fitted by logistic regression. Knows
nothing of cut-offs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vizsla.score.relevance import Relevance

LISTED = 100  # first ranks by which a list is described
NEAR = 10  # the nearest of them
FOLDS = 5  # of the classes
PENALTY = 1.0  # of squared weights of standardised features, as scikit-learn's LogisticRegression
MOST_PAIRS = 100_000  # that are fitted: more would only take longer
STEPS = 25
FEATURES = 5


@dataclass(frozen=True)
class MatchModel:
    """Logistic regression. weights: of each of the five features of scores, and of evidence if that
    is needed too, then the constant. depth: by how many first images a list is described."""

    weights: tuple[float, ...]
    depth: int = LISTED

    @property
    def needs_evidence(self) -> bool:
        """Whether it needs other evidence beside the scores."""
        return len(self.weights) > FEATURES + 1

    def log_odds(
        self,
        scores: np.ndarray,
        listed: np.ndarray | None = None,
        evidence: np.ndarray | None = None,
    ) -> np.ndarray:
        """(Q, K) that each match is right, nan for nan. It never rises along a row.

        scores: (Q, K), best first. listed: (Q, M) scores of the first images of each query, if
        `scores` are not all of them. evidence: (Q, K), if it `needs_evidence`.
        """
        listed = (scores if listed is None else listed)[:, : self.depth]
        known = features(scores, listed)
        if self.needs_evidence:
            assert evidence is not None
            known = np.concatenate([known, features(evidence, evidence[:, : self.depth])], axis=2)
        found = known @ np.array(self.weights[:-1]) + self.weights[-1]
        return np.where(np.isnan(scores), np.nan, np.fmin.accumulate(found, axis=1))


def features(scores: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """(Q, K, 5): the score, by how many standard deviations of the list it lies above its mean, the
    means of the ten nearest and of all listed images, and their standard deviation."""
    near, mean = _means(listed[:, :NEAR]), _means(listed)
    spread = _means((listed - mean) ** 2) ** 0.5
    standard = (scores - mean) / np.where(spread > 1e-9, spread, np.inf)
    columns = (scores, standard, near, mean, spread)
    return np.stack([np.broadcast_to(column, scores.shape) for column in columns], axis=2)


def estimated(judged: Sequence[Relevance]) -> tuple[MatchModel, list[np.ndarray]]:
    """The model fitted to the first LISTED ranks of all queries, and the log-odds of these ranks,
    (Q, LISTED) for each part, by models that were fitted to queries of other classes."""
    scores = [part.scores[:, :LISTED] for part in judged if part.scores is not None]
    evidence = [None if part.evidence is None else part.evidence[:, :LISTED] for part in judged]
    depth = max(part.shape[1] for part in scores)
    of_lists = [
        np.concatenate([features(values, values) for values in one if values is not None], axis=2)
        for one in zip(scores, evidence, strict=True)
    ]
    right = [part.hits[:, :LISTED] for part in judged]
    names = [
        label or query
        for part in judged
        for label, query in zip(part.labels, part.queries, strict=True)
    ]
    classes, code = np.unique(names, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(classes))[code] % FOLDS
    fold_of = np.split(fold, np.cumsum([len(part) for part in judged])[:-1])
    found = [np.full(part.shape, np.nan) for part in scores]

    def fitted(left_out: int | None) -> MatchModel:
        kept = [
            ~np.isnan(s) & (f != left_out)[:, None] for s, f in zip(scores, fold_of, strict=True)
        ]
        X, y = (
            np.concatenate([part[rows] for part, rows in zip(of, kept, strict=True)])
            for of in (of_lists, right)
        )
        return MatchModel(tuple(_logistic(X, y.astype(float)).tolist()), depth)

    every = fitted(None)
    for f in np.unique(fold):
        model = fitted(f) if len(classes) > 1 else every
        for part, also, folds, out in zip(scores, evidence, fold_of, found, strict=True):
            own = folds == f
            out[own] = model.log_odds(part[own], evidence=None if also is None else also[own])
    return every, found


def _logistic(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(F + 1,) weights and constant of a logistic regression with a ridge penalty. X: (n, F)."""
    if len(X) > MOST_PAIRS:
        some = np.random.default_rng(0).permutation(len(X))[:MOST_PAIRS]
        X, y = X[some], y[some]
    centre, scale = X.mean(axis=0), X.std(axis=0)
    scale = np.where(scale > 1e-9, scale, np.inf)
    standard = np.column_stack([(X - centre) / scale, np.ones(len(X))])
    penalty = np.full(standard.shape[1], PENALTY)
    penalty[-1] = 1e-3  # the constant is finite where all are right
    w = np.zeros(len(penalty))
    for _ in range(STEPS):  # Newton's method
        p = 1 / (1 + np.exp(-np.clip(standard @ w, -30, 30)))
        gradient = standard.T @ (p - y) + penalty * w
        curvature = (standard.T * (p * (1 - p))) @ standard + np.diag(penalty)
        change = np.linalg.solve(curvature, gradient)
        w -= change
        if np.abs(change).max() < 1e-8:
            break
    weights = w[:-1] / scale
    return np.append(weights, w[-1] - weights @ centre)


def _means(values: np.ndarray) -> np.ndarray:
    """(Q, 1) of each row, nan left out; 0 without any."""
    there = ~np.isnan(values)
    total = np.where(there, values, 0).sum(axis=1, keepdims=True)
    return np.asarray(total / np.maximum(there.sum(axis=1, keepdims=True), 1))
