import dataclasses

import numpy as np
import pytest

from vizsla.score.match_model import FOLDS, MatchModel, _logistic, estimated, features
from vizsla.score.relevance import Relevance


def lists(classes: int = 40, each: int = 5, seed: int = 0) -> Relevance:
    """Queries whose scores are shifted by a level of their own, which says nothing of what is
    right."""
    rng = np.random.default_rng(seed)
    Q, K = classes * each, 30
    level = rng.normal(size=(Q, 1))
    hits = np.arange(K)[None] < rng.integers(0, 8, size=(Q, 1))
    scores = level + np.where(hits, 1.5, 0) + rng.normal(size=(Q, K)) * 0.3
    order = np.argsort(-scores, axis=1)
    hits, scores = (np.take_along_axis(part, order, axis=1) for part in (hits, scores))
    return Relevance(
        [f"q{i}" for i in range(Q)], [f"c{i // each}" for i in range(Q)], np.arange(Q), hits,
        np.full(Q, K), scores, np.ones(Q, bool), hits.sum(axis=1), [None] * Q, [], 0, K,
    )  # fmt: skip


def auc(estimates: np.ndarray, hits: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(hits.ravel(), estimates.ravel()))


def test_the_list_says_what_a_score_means() -> None:
    model, (estimates,) = estimated([lists()])
    other = lists(seed=1)
    assert other.scores is not None
    assert auc(other.scores, other.hits) < 0.9
    assert auc(model.log_odds(other.scores), other.hits) > 0.97
    assert auc(estimates, lists().hits) > 0.97


def test_it_is_the_logistic_regression_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    part = lists()
    assert part.scores is not None
    X = features(part.scores, part.scores).reshape(-1, 5)
    y = part.hits.ravel()
    standard = StandardScaler().fit(X)
    same = LogisticRegression(tol=1e-10, max_iter=1000).fit(standard.transform(X), y)
    w = _logistic(X, y.astype(float))
    expected = same.decision_function(standard.transform(X))
    assert X @ w[:-1] + w[-1] == pytest.approx(expected, rel=2e-3, abs=1e-2)


def test_estimates_come_from_queries_of_other_classes() -> None:
    part = lists(classes=FOLDS, each=20)  # a class is a fold
    _, (before,) = estimated([part])
    first = np.arange(len(part)) < 20
    flipped = dataclasses.replace(part, hits=part.hits ^ first[:, None])
    _, (after,) = estimated([flipped])
    assert np.array_equal(before[first], after[first])
    assert not np.isclose(before[~first], after[~first]).any(axis=None)


def test_log_odds_never_rise_along_a_list_and_end_with_it() -> None:
    model = MatchModel((-1.0, 0.0, 1.0, 0.0, 0.0, 2.0))  # the higher the score, the less sure
    found = model.log_odds(np.array([[0.9, 0.5, 0.1, np.nan], [np.nan] * 4]))
    assert (np.diff(found[0, :3]) <= 0).all() and np.isnan(found[0, 3])
    assert np.isnan(found[1]).all()
    assert model.log_odds(np.empty((2, 0))).shape == (2, 0)


def test_features_of_a_list_of_equal_scores_and_of_other_images() -> None:
    found = features(np.array([[0.5, 0.5]]), np.array([[0.5, 0.5]]))
    assert found[0, 1] == pytest.approx([0.5, 0.0, 0.5, 0.5, 0.0])
    listed = np.arange(12, 0, -1.0)[None]
    found = features(np.array([[12.0]]), listed)
    spread = np.std(listed)
    assert found[0, 0] == pytest.approx([12, (12 - 6.5) / spread, 7.5, 6.5, spread])


def test_evidence_beside_the_scores_counts_too() -> None:
    rng = np.random.default_rng(5)
    part, other = (
        dataclasses.replace(one, evidence=one.hits + rng.normal(size=one.hits.shape) * 0.3)
        for one in (lists(), lists(seed=1))
    )
    model, (estimates,) = estimated([part])
    plain, _ = estimated([dataclasses.replace(part, evidence=None)])
    assert model.needs_evidence and not plain.needs_evidence
    assert other.scores is not None and other.evidence is not None
    found = model.log_odds(other.scores, evidence=other.evidence)
    assert auc(found, other.hits) > auc(plain.log_odds(other.scores), other.hits)
    assert (np.diff(found) <= 0).all() and estimates.shape == part.hits.shape


def test_where_all_or_none_are_right_estimates_are_finite() -> None:
    part = lists()
    for right in (True, False):
        model, (estimates,) = estimated([dataclasses.replace(part, hits=part.hits | True == right)])
        assert np.isfinite(estimates).all() and np.isfinite(model.weights).all()
        assert ((estimates > 0) == right).all()
