import dataclasses

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
    best = rng.random(n)
    scores = np.concatenate([best, *(best - 0.05 * j * rng.random(n) for j in range(1, ranks))])
    query = np.tile(np.arange(n), ranks)
    own_class = np.arange(n) if classes is None else rng.integers(classes, size=n)
    shift = np.zeros(n) if classes is None else rng.normal(size=classes) * 0.3
    luck = rng.normal(size=n)[query]
    if ranks > 1:
        luck = 0.9 * luck + np.sqrt(1 - 0.9**2) * rng.normal(size=n * ranks)
    luck = (luck + shift[own_class[query]]) / np.sqrt(1 + shift.var())
    right = norm.cdf(luck) < 0.995 * expit(12 * (scores - 0.45))
    return Matches(scores, right, query, best, np.arange(n), own_class)


def matches(best: np.ndarray, right: np.ndarray, classes: np.ndarray | None = None) -> Matches:
    """One match of each query."""
    one = np.arange(len(best))
    return Matches(best, right, one, best, one, one if classes is None else classes)


@pytest.mark.parametrize(
    ("n", "ranks", "classes", "sure"),
    [(300, 1, None, 0.8), (1500, 1, None, 0.95), (1000, 5, None, 0.9), (1500, 5, 60, 0.8)],
)
def test_precision_falls_below_what_was_asked_in_few_of_many_draws(
    n: int, ranks: int, classes: int | None, sure: float
) -> None:
    rng = np.random.default_rng(1)
    many = drawn(rng, 50_000, ranks=ranks, classes=classes and 2000)
    by_query = many.right.reshape(ranks, -1).T  # (queries, ranks)
    scores = many.scores.reshape(ranks, -1).T
    draws, below, shares = 100, 0, []
    for _ in range(draws):
        level = sure_level(precision_levels(drawn(rng, n, ranks=ranks, classes=classes)), sure)
        if level is not None:
            taken = scores >= level.score
            below += by_query[taken].mean() < (sure if classes is None else level.lower_of_others)
            shares.append(taken.any(axis=1).mean())
    assert below <= binom.ppf(0.99, draws, 0.05)  # 5 %, as far as 100 draws can tell
    assert len(shares) > 0.8 * draws and np.mean(shares) > 0.3


def test_the_bound_of_single_independent_matches_is_the_exact_binomial_one() -> None:
    right = np.ones(200, bool)
    right[[50, 120]] = False
    last = precision_levels(matches(np.arange(200, 0, -1.0), right))[-1]
    assert (last.queries, last.share, last.precision) == (200, 1.0, 0.99)
    assert last.lower_of_others <= last.lower
    # the probability of 198 or more right ones, or of 198 or fewer, if that is the true precision
    assert binom.sf(197, 200, last.lower) == pytest.approx(0.05 / 2, rel=0.02)
    assert binom.cdf(198, 200, last.upper) == pytest.approx(0.05 / 2, rel=0.02)


def test_many_matches_of_a_query_count_as_one() -> None:
    rng = np.random.default_rng(0)
    best, right = rng.random(100), rng.random(100) < 0.9
    once = precision_levels(matches(best, right))[-1]
    query = np.tile(np.arange(100), 20)  # twenty equal matches of each query
    twenty = Matches(
        np.tile(best, 20), np.tile(right, 20), query, best, np.arange(100), np.arange(100)
    )
    assert dataclasses.astuple(precision_levels(twenty)[-1]) == pytest.approx(
        dataclasses.astuple(once)
    )
    halves = Matches(  # one of two is right
        np.repeat(best, 2), np.tile([True, False], 100), np.repeat(np.arange(100), 2),
        best, np.arange(100), np.arange(100),
    )  # fmt: skip
    assert precision_levels(halves)[-1].precision == 0.5


def test_matches_are_counted_together_and_without_a_wrong_one_as_alike() -> None:
    number = np.array([9] * 10 + [1] * 90)  # of matches of each query
    query = np.repeat(np.arange(100), number)
    best, right = np.ones(100), np.ones(len(query), bool)
    found = Matches(best[query], right, query, best, np.arange(100), np.arange(100))
    (level,) = precision_levels(found)
    assert level.precision == 1
    alike = 180**2 / (10 * 81 + 90)  # so many queries of one match
    assert 0.025 ** (1 / alike) == pytest.approx(level.lower)
    wrong = dataclasses.replace(found, right=query >= 10)
    assert precision_levels(wrong)[0].precision == 0.5


def test_a_query_asked_again_is_no_second_query() -> None:
    rng = np.random.default_rng(0)
    best, right = rng.random(100), rng.random(100) < 0.9
    again = Matches(
        np.tile(best, 3), np.tile(right, 3), np.arange(300), np.tile(best, 3),
        np.tile(np.arange(100), 3), np.tile(np.arange(100), 3),
    )  # fmt: skip
    once, thrice = (precision_levels(m)[-1] for m in (matches(best, right), again))
    assert thrice.queries == 100 and thrice.lower == pytest.approx(once.lower, abs=1e-3)


def test_queries_of_one_class_count_for_fewer_than_they_are() -> None:
    rng = np.random.default_rng(0)
    best, right = rng.random(200), np.ones(200, bool)
    alone = precision_levels(matches(best, right))[-1]
    tens = precision_levels(matches(best, right, np.arange(200) // 10))[-1]
    assert alone.lower_of_others == alone.lower == tens.lower > tens.lower_of_others
    right[:20] = False  # whole classes are wrong
    spread = precision_levels(matches(best, right, np.arange(200) % 20))[-1]
    whole = precision_levels(matches(best, right, np.arange(200) // 10))[-1]
    assert whole.lower == spread.lower
    assert whole.lower_of_others < spread.lower_of_others - 0.03


def test_by_class_the_bound_for_other_classes_decides() -> None:
    rng = np.random.default_rng(0)
    found = matches(rng.random(400), rng.random(400) < 0.97, np.arange(400) // 40)
    by_query, by_class = (precision_levels(found, by_class=by)[-1] for by in (False, True))
    assert by_class.lower == by_class.lower_of_others == by_query.lower_of_others
    assert by_class.lower < by_query.lower - 0.02


def test_too_few_queries_or_too_many_wrong_ones_accept_nothing() -> None:
    def level(n: int, wrong: int, sure: float) -> object:
        right = np.arange(n) % max(n // max(wrong, 1), 1) != 0 if wrong else np.ones(n, bool)
        return sure_level(precision_levels(matches(np.linspace(1, 0, n), right)), sure)

    assert level(40, 0, 0.95) is None
    assert level(400, 0, 0.95) is not None
    assert level(400, 200, 0.95) is None
    assert precision_levels(Matches(*(np.empty(0),) * 6)) == []
    assert sure_level([], 0.5) is None


def test_equal_scores_are_accepted_together() -> None:
    scores, right = np.repeat([0.9, 0.5], 100), np.repeat([True, False], 100)
    levels = precision_levels(matches(scores, right))
    assert [(level.score, level.queries) for level in levels] == [(0.9, 100), (0.5, 200)]
    found = sure_level(levels, 0.9)
    assert found is not None and found.score == 0.9


def test_matches_without_a_score_are_refused() -> None:
    with pytest.raises(DataError, match="no score"):
        Matches(np.array([np.nan]), *(np.zeros(1),) * 5)
