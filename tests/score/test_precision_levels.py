import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binom, norm

from vizsla.errors import DataError
from vizsla.score.precision_levels import Matches, precision_levels, sure_level


def drawn(
    rng: np.random.Generator, n: int, *, ranks: int = 1, classes: int | None = None
) -> Matches:
    """n queries. A match with score s is right with a probability that rises with s; the matches of
    a query are alike, and so are the queries of a class, if there are classes."""
    first = rng.random(n)
    scores = np.concatenate([first, *(first - 0.05 * j * rng.random(n) for j in range(1, ranks))])
    query = np.tile(np.arange(n), ranks)
    own_class = np.arange(n) if classes is None else rng.integers(classes, size=n)
    shift = np.zeros(n) if classes is None else rng.normal(size=classes) * 0.3
    luck = rng.normal(size=n)[query]
    if ranks > 1:
        luck = 0.9 * luck + np.sqrt(1 - 0.9**2) * rng.normal(size=n * ranks)
    luck = (luck + shift[own_class[query]]) / np.sqrt(1 + shift.var())
    right = norm.cdf(luck) < 0.995 * expit(12 * (scores - 0.45))
    return Matches(scores, right, query, own_class[query], first, np.arange(n))


@pytest.mark.parametrize(
    ("n", "ranks", "classes", "sure"),
    [(300, 1, None, 0.8), (1500, 1, None, 0.95), (1000, 5, None, 0.9), (1500, 5, 60, 0.8)],
)
def test_precision_falls_below_what_was_asked_in_few_of_many_draws(
    n: int, ranks: int, classes: int | None, sure: float
) -> None:
    rng = np.random.default_rng(1)
    many = drawn(rng, 200_000, ranks=ranks, classes=classes and 4000)
    order = np.argsort(-many.scores)
    scores = many.scores[order]
    precision = many.right[order].cumsum() / np.arange(1, len(order) + 1)
    draws, below, shares = 200, 0, []
    for _ in range(draws):
        level = sure_level(precision_levels(drawn(rng, n, ranks=ranks, classes=classes)), sure)
        if level is not None:
            below += precision[np.searchsorted(-scores, -level.score, side="right") - 1] < sure
            shares.append(level.share)
    assert below <= binom.ppf(0.99, draws, 0.05)  # 5 %, as far as 200 draws can tell
    possible = (many.first >= scores[np.flatnonzero(precision >= sure)[-1]]).mean()
    assert np.mean(shares) > 0.75 * possible


def test_the_bound_of_single_independent_matches_is_the_exact_binomial_one() -> None:
    n = 200
    scores = np.arange(n, 0, -1.0)
    right = np.ones(n, bool)
    right[[50, 120]] = False
    one = np.arange(n)
    levels = precision_levels(Matches(scores, right, one, one, scores, one))
    last = levels[-1]
    assert (last.queries, last.matches, last.share) == (200, 200, 1.0)
    assert last.precision == 0.99
    assert last.effective == pytest.approx(200, rel=0.01)
    # the probability of 198 or more right ones is .05/3 where that is the true precision
    assert binom.sf(197, 200, last.lower) == pytest.approx(0.05 / 3, rel=0.02)


def test_matches_of_one_query_count_for_fewer_than_they_are() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(100)
    right = np.tile(rng.random(100) < 0.9, 20)  # twenty equal matches of each query
    query = np.tile(np.arange(100), 20)
    level = precision_levels(
        Matches(np.tile(first, 20), right, query, query, first, np.arange(100))
    )[-1]
    assert level.matches == 2000 and level.effective <= 100
    of_one_class = precision_levels(
        Matches(np.tile(first, 20), right, query, query % 10 * 0 + right, first, np.arange(100))
    )[-1]
    assert of_one_class.lower < level.lower


def test_too_few_queries_or_too_many_wrong_ones_accept_nothing() -> None:
    def level(n: int, wrong: int, sure: float) -> object:
        scores, one = np.linspace(1, 0, n), np.arange(n)
        right = np.arange(n) % max(n // max(wrong, 1), 1) != 0 if wrong else np.ones(n, bool)
        return sure_level(precision_levels(Matches(scores, right, one, one, scores, one)), sure)

    assert level(40, 0, 0.95) is None
    assert level(400, 0, 0.95) is not None
    assert level(400, 200, 0.95) is None
    assert precision_levels(Matches(*(np.empty(0),) * 6)) == []
    assert sure_level([], 0.5) is None


def test_equal_scores_are_accepted_together() -> None:
    scores, one = np.repeat([0.9, 0.5], 100), np.arange(200)
    right = np.repeat([True, False], 100)
    levels = precision_levels(Matches(scores, right, one, one, scores, one))
    assert [(level.score, level.matches) for level in levels] == [(0.9, 100), (0.5, 200)]
    found = sure_level(levels, 0.9)
    assert found is not None and found.score == 0.9


def test_matches_without_a_score_are_refused() -> None:
    with pytest.raises(DataError, match="no score"):
        Matches(np.array([np.nan]), *(np.zeros(1),) * 5)
