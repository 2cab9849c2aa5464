import dataclasses

import numpy as np
import pytest
from sklearn import metrics as sk

from vizsla.score.calibration import SHOWN_RANKS
from vizsla.score.evaluate import evaluate
from vizsla.score.metrics import decision_metrics
from vizsla.score.metrics.decision_metrics import measure_decisions, reliability
from vizsla.score.relevance import Relevance, relevance
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking


def decided(seed: int = 0, Q: int = 60, G: int = 40) -> tuple[Ranking, Truth]:
    """Queries of ten classes, five of which the gallery lacks; scores with ties."""
    rng = np.random.default_rng(seed)
    of_query, of_gallery = rng.integers(10, size=Q), rng.integers(5, size=G)
    scores = rng.normal(size=(Q, G)) + 2 * (of_query[:, None] == of_gallery)
    scores = scores.round(1)
    positions = np.argsort(-scores, axis=1, kind="stable")
    scores = np.take_along_axis(scores, positions, axis=1)
    queries, gallery = [f"q{i}" for i in range(Q)], [f"g{i}" for i in range(G)]
    ranking = Ranking(
        queries, gallery, positions, scores, G,
        accepted=(scores >= 2).sum(axis=1), probability=1 / (1 + np.exp(1.5 - 1.3 * scores)),
    )  # fmt: skip
    truth = Truth(
        dict(zip(queries, map(str, of_query), strict=True)),
        dict(zip(gallery, map(str, of_gallery), strict=True)),
    )
    return ranking, truth


def values(judged: Relevance, weights: np.ndarray | None = None) -> dict[str, float]:
    weights = np.ones(len(judged)) if weights is None else weights
    return {
        key: metric.prepare(metric.at)(weights)
        for key, metric in measure_decisions(judged).items()
        if metric.prepare is not None
    }


@pytest.mark.parametrize("seed", range(3))
def test_they_equal_those_of_scikit_learn(seed: int) -> None:
    ranking, truth = decided(seed)
    judged = relevance(ranking, truth)
    weights = np.random.default_rng(seed).integers(0, 3, len(judged)).astype(float)
    found = values(judged, weights)
    assert judged.accepted is not None and judged.scores is not None
    right, accepted = judged.hits.ravel(), judged.accepted.ravel()  # lists of the whole gallery
    each = np.repeat(weights, judged.hits.shape[1])
    known, answered = judged.n_relevant > 0, judged.accepted.any(axis=1)
    best = judged.scores[:, 0]
    fpr, tpr, _ = sk.roc_curve(known, best, sample_weight=weights, drop_intermediate=False)
    expected = {
        "accepted_precision": sk.precision_score(right, accepted, sample_weight=each),
        "accepted_recall": sk.recall_score(right, accepted, sample_weight=each),
        "accepted_f1": sk.f1_score(right, accepted, sample_weight=each),
        "known_accuracy": sk.accuracy_score(known, answered, sample_weight=weights),
        "known_balanced_accuracy": sk.balanced_accuracy_score(
            known, answered, sample_weight=weights
        ),
        "known_auroc": sk.roc_auc_score(known, best, sample_weight=weights),
        "known_tpr": tpr[fpr <= decision_metrics.FPR + 1e-12].max(),
        "unknown_answered": 1 - sk.recall_score(
            known, answered, pos_label=False, sample_weight=weights
        ),
    }  # fmt: skip
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-9)
    of_query = [
        sk.precision_score(judged.hits[i], judged.accepted[i]) for i in np.flatnonzero(answered)
    ]
    by_query = np.average(of_query, weights=weights[answered])
    assert found["accepted_precision_by_query"] == pytest.approx(by_query, abs=1e-9)


def test_the_calibration_error_is_the_gap_of_the_reliability_curve() -> None:
    judged = relevance(*decided())
    assert judged.probability is not None
    bins = reliability(judged)
    total = sum(one.matches for one in bins)
    assert total == len(judged) * SHOWN_RANKS
    gap = sum(one.matches * abs(one.probability - one.right) for one in bins) / total
    assert values(judged)["calibration_error"] == pytest.approx(gap, abs=1e-12)
    probability = judged.probability[:, :SHOWN_RANKS].ravel()
    right = judged.hits[:, :SHOWN_RANKS].ravel()
    shares, means = calibration_curve_of(right, probability)
    assert [one.right for one in bins] == pytest.approx(shares, abs=1e-9)
    assert [one.probability for one in bins] == pytest.approx(means, abs=1e-9)


def calibration_curve_of(
    right: np.ndarray, probability: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.calibration import calibration_curve

    return calibration_curve(right, probability, n_bins=decision_metrics.BINS)


def test_a_ranking_without_decisions_has_none_of_these_scores() -> None:
    ranking, truth = decided()
    plain = dataclasses.replace(ranking, accepted=None, probability=None)
    assert not evaluate(plain, truth).pooled
    scores = evaluate(ranking, truth, metrics_named="AP")
    assert scores["accepted_precision"].low is not None
    assert "accepted_f1" in scores.shown and "known_auroc" in scores.to_dict()["metrics"]


def test_what_cannot_be_known_is_none() -> None:
    ranking, truth = decided()
    everything = dataclasses.replace(truth, query=dict.fromkeys(truth.query, "0"))
    found = evaluate(ranking, everything).figures
    assert found["known_auroc"].mean is None and found["unknown_answered"].mean is None
    unanswered = dataclasses.replace(ranking, accepted=np.zeros(len(ranking), np.int64))
    found = evaluate(unanswered, truth).figures
    assert found["accepted_precision"].mean is None and found["accepted_recall"].mean == 0
    partly = dataclasses.replace(ranking.head(5), gallery_size=None)
    found = evaluate(partly, dataclasses.replace(truth, gallery_complete=False)).figures
    assert found["accepted_precision"].mean is not None
    assert found["accepted_recall"].mean is None
    assert found["known_accuracy"].unknown == "the truth of the whole gallery is not known"


def test_junk_is_neither_accepted_nor_wrong() -> None:
    ranking = Ranking(
        ["q"], ["a", "b", "c"], np.array([[0, 1, 2]]), np.array([[0.9, 0.8, 0.1]]), 3,
        accepted=np.array([2]), probability=np.array([[0.9, 0.8, 0.1]]),
    )  # fmt: skip
    truth = Truth({"q": "x"}, {"a": "y", "b": "x", "c": "x"}, junk={"q": {"a"}})
    judged = relevance(ranking, truth)
    assert judged.accepted is not None and judged.probability is not None
    assert judged.accepted.tolist() == [[True, False, False]]
    assert judged.probability[0, :2].tolist() == [0.8, 0.1]
    found = values(judged)
    assert found["accepted_precision"] == 1 and found["accepted_recall"] == 0.5
