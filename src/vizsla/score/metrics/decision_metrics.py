"""A judged ranking with decisions → how good they are, over all queries together.

A match is accepted or not; a query is answered if any is. A query is known if something in the
gallery is relevant to it.
"""

from dataclasses import dataclass

import numpy as np

from vizsla.score.calibration import SHOWN_RANKS
from vizsla.score.metrics.pooled_metrics import PooledMetric, Weighted, at_places
from vizsla.score.relevance import Relevance

FPR = 0.05  # of the unknown queries, at which the true positive rate is given
BINS = 15  # of the calibration error (Guo et al. 2017)
_NO_TRUTH = "the truth of the whole gallery is not known"
_NO_SCORES = "the ranking holds no scores"


@dataclass(frozen=True, eq=False)
class Decided:
    """Of each query (Q,): accepted and right matches, relevant images, and the best score (-inf
    without a match)."""

    accepted: np.ndarray
    right: np.ndarray
    relevant: np.ndarray
    best: np.ndarray

    @staticmethod
    def of(judged: Relevance) -> "Decided":
        """Of a judged ranking in which it was decided what is accepted."""
        assert judged.accepted is not None
        best = np.full(len(judged), -np.inf)
        if judged.scores is not None and judged.scores.shape[1]:
            best = np.where(judged.lengths > 0, judged.scores[:, 0], -np.inf)
        return Decided(
            judged.accepted.sum(axis=1),
            (judged.accepted & judged.hits).sum(axis=1),
            judged.n_relevant,
            best,
        )

    @property
    def known(self) -> np.ndarray:
        """(Q,) bool: something in the gallery is relevant."""
        return self.relevant > 0


def measure_decisions(judged: Relevance) -> dict[str, PooledMetric]:
    """Every metric of decisions by its key; empty where nothing was decided."""
    if judged.accepted is None:
        return {}
    decided = Decided.of(judged)
    no_truth = _NO_TRUTH if (judged.n_relevant < 0).any() else None
    no_scores = no_truth or (_NO_SCORES if judged.scores is None else None)
    answered, known, best = decided.accepted > 0, decided.known, decided.best

    Q = len(judged)

    def metric(title: str, value: Weighted, unknown: str | None = no_truth) -> PooledMetric:
        prepare = None if unknown else at_places(value, Q)
        return PooledMetric(title, prepare, np.arange(Q), Q, unknown)

    found = {
        "accepted_precision": metric(
            "precision of accepted", _ratio(decided.right, decided.accepted), None
        ),
        "accepted_precision_by_query": metric(
            "the same, each query once",
            _ratio(decided.right / np.maximum(decided.accepted, 1), answered),
            None,
        ),
        "accepted_recall": metric("recall of accepted", _ratio(decided.right, decided.relevant)),
        "accepted_f1": metric(
            "F1 of accepted", _ratio(2 * decided.right, decided.accepted + decided.relevant)
        ),
        "known_accuracy": metric(
            "known or not, accuracy", _ratio(answered == known, np.ones(len(known)))
        ),
        "known_balanced_accuracy": metric(
            "known or not, balanced accuracy", balanced_accuracy(answered, known)
        ),
        "known_auroc": metric("known or not, AUROC", auroc(best, known), no_scores),
        "known_tpr": metric(
            f"known found at {100 * FPR:g} % false alarms", tpr_at_fpr(best, known, FPR), no_scores
        ),
        "unknown_answered": metric(
            "unknown answered", _ratio(answered & ~known, (~known).astype(float))
        ),
    }
    if judged.probability is not None:
        found["calibration_error"] = PooledMetric(
            f"calibration error, ranks 1 to {SHOWN_RANKS}",
            at_places(calibration_error(*_probabilities(judged)), Q),
            np.arange(Q),
            int(judged.lengths.sum()),
        )
    return found


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> Weighted:
    """The weighted sum of the one over that of the other; nan where that is 0."""

    def value(weights: np.ndarray) -> float:
        below = float(weights @ denominator)
        return float(weights @ numerator) / below if below else np.nan

    return value


def balanced_accuracy(answered: np.ndarray, known: np.ndarray) -> Weighted:
    """The mean of the share of known queries answered and that of unknown ones not answered."""
    found, refused = _ratio(answered & known, known), _ratio(~answered & ~known, ~known)
    return lambda weights: (found(weights) + refused(weights)) / 2


def auroc(best: np.ndarray, known: np.ndarray) -> Weighted:
    """The chance that a known query scores above an unknown one, ties counted half. (Q,) each."""
    level = np.unique(best, return_inverse=True)[1]

    def value(weights: np.ndarray) -> float:
        of_known, of_unknown = (
            np.bincount(level, weights * kind) for kind in (known, ~known)
        )  # (levels,)
        below = np.cumsum(of_unknown) - of_unknown / 2
        pairs = of_known.sum() * of_unknown.sum()
        return float(of_known @ below / pairs) if pairs else np.nan

    return value


def tpr_at_fpr(best: np.ndarray, known: np.ndarray, most: float) -> Weighted:
    """The largest share of known queries above a cut-off that at most such a share of the unknown
    ones reaches. (Q,) each."""
    level = np.unique(-best, return_inverse=True)[1]

    def value(weights: np.ndarray) -> float:
        found, wrong = (np.bincount(level, weights * kind).cumsum() for kind in (known, ~known))
        if not found[-1] or not wrong[-1]:
            return np.nan
        allowed = wrong <= most * wrong[-1] * (1 + 1e-12)
        return float(found[allowed].max(initial=0) / found[-1])

    return value


def calibration_error(
    probability: np.ndarray, right: np.ndarray, queries: np.ndarray, bins: int = BINS
) -> Weighted:
    """The mean distance between probability and share of right matches, over bins of equal width
    (ECE). (pairs,) each; queries: the number of each pair's query."""
    at = np.minimum((probability * bins).astype(np.int64), bins - 1)
    gap = probability - right

    def value(weights: np.ndarray) -> float:
        weight = weights[queries].astype(float)
        total = float(weight.sum())
        return float(np.abs(np.bincount(at, weight * gap)).sum() / total) if total else np.nan

    return value


@dataclass(frozen=True)
class ReliabilityBin:
    """Matches whose probabilities are alike: their mean, the share that is right, how many."""

    probability: float
    right: float
    matches: int


def reliability(judged: Relevance, bins: int = BINS) -> list[ReliabilityBin]:
    """The bins of the calibration error that hold matches, by rising probability."""
    probability, right, _ = _probabilities(judged)
    at = np.minimum((probability * bins).astype(np.int64), bins - 1)
    return [
        ReliabilityBin(
            float(probability[at == i].mean()), float(right[at == i].mean()), int((at == i).sum())
        )
        for i in np.unique(at)
    ]


def _probabilities(judged: Relevance) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability, whether it is right, and the query, of each of the first ranks: (pairs,)."""
    assert judged.probability is not None
    probability = judged.probability[:, :SHOWN_RANKS]
    rows, columns = np.nonzero(~np.isnan(probability))
    return probability[rows, columns], judged.hits[rows, columns].astype(float), rows
