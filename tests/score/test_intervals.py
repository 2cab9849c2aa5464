"""Intervals: by hand, against scipy, and whether they hold the truth as often as they say."""

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from vizsla.errors import DataError
from vizsla.score.intervals import (
    bootstrap_intervals,
    difference_interval,
    holm,
    sign_flip_p,
    wilson,
)


def column(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=float)[:, None]


# ── Wilson ───────────────────────────────────────────────────────────────────────────────────────


def test_wilson_by_hand_and_as_scipy() -> None:
    low, high = wilson(0, 10)
    assert (low, high) == (0, pytest.approx(1.959964**2 / (10 + 1.959964**2), abs=1e-6))
    for hits, n in ((5, 10), (81, 90), (810, 810)):
        theirs = stats.binomtest(hits, n).proportion_ci(method="wilson")
        assert [float(v) for v in wilson(hits, n)] == pytest.approx([theirs.low, theirs.high])


@pytest.mark.parametrize("n", [100, 200, 1000])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_wilson_holds_the_truth(n: int, share: float) -> None:
    """Exactly (the chances of all counts whose interval holds the truth), and simulated."""
    counts = np.arange(n + 1)
    low, high = wilson(counts, n)
    held = stats.binom.pmf(counts, n, share)[(low <= share) & (share <= high)].sum()
    assert 0.93 <= held <= 0.97

    drawn = np.random.default_rng(0).binomial(n, share, 200_000)
    assert ((low <= share) & (share <= high))[drawn].mean() == pytest.approx(held, abs=0.003)


# ── bootstrap ────────────────────────────────────────────────────────────────────────────────────


def test_bootstrap_is_near_the_normal_interval_where_that_is_right() -> None:
    values = np.random.default_rng(0).uniform(0.2, 0.8, 2000)
    (low, high) = bootstrap_intervals(column(values), resamples=4000)[0]
    reach = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - reach, abs=0.1 * reach)
    assert high == pytest.approx(values.mean() + reach, abs=0.1 * reach)


def test_bootstrap_is_scipys_bca_on_skewed_values() -> None:
    """Shift and skewness both matter here: plain percentiles lie far off."""
    values = np.random.default_rng(3).uniform(0, 1, 200)
    values[:190] = 1
    ours = bootstrap_intervals(column(values), resamples=20_000)[0]
    theirs, plain = (
        stats.bootstrap((values,), np.mean, method=how, n_resamples=20_000, batch=500, rng=1)
        for how in ("BCa", "percentile")
    )
    tolerance = 0.03 * (ours[1] - ours[0])
    assert ours == pytest.approx(list(theirs.confidence_interval), abs=tolerance)
    assert abs(ours[0] - plain.confidence_interval.low) > 3 * tolerance


def test_few_queries_widen_the_interval_to_students() -> None:
    values = 0.5 + 0.1 * stats.norm.ppf((np.arange(12) + 0.5) / 12)
    student = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    low, high = difference_interval(values, resamples=20_000) or (0, 0)
    assert high - low == pytest.approx(student[1] - student[0], rel=0.06)
    low, high = bootstrap_intervals(column(values), resamples=20_000)[0]
    assert high - low == pytest.approx(student[1] - student[0], rel=0.06)


def test_same_seed_same_interval_for_every_column() -> None:
    values = np.random.default_rng(0).random((50, 2))
    both = bootstrap_intervals(values, seed=4)
    np.testing.assert_allclose(both[1], bootstrap_intervals(values[:, 1:], seed=4)[0])
    assert not np.array_equal(both, bootstrap_intervals(values, seed=5))


def test_values_without_spread_still_have_an_interval() -> None:
    """Twenty perfect queries do not prove a perfect system."""
    low, high = bootstrap_intervals(column(np.ones(20)))[0]
    assert (low, high) == (pytest.approx(float(wilson(20, 20)[0])), 1)
    points = bootstrap_intervals(column(np.full(20, 1000.0)), highest=1000.0)[0]
    assert points == pytest.approx([1000 * low, 1000])


def test_one_query_has_no_interval() -> None:
    assert np.isnan(bootstrap_intervals(column(np.ones(1)))).all()
    assert np.isnan(bootstrap_intervals(np.ones((5, 1)), clusters=np.zeros(5))).all()
    assert difference_interval(np.ones(1)) is None


def test_clusters_widen_the_interval_of_values_that_go_together() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 20)
    values = column(np.repeat(generator.random(30), 20))
    alone = bootstrap_intervals(values)[0]
    whole = bootstrap_intervals(values, clusters=labels)[0]
    assert whole[1] - whole[0] > 3 * (alone[1] - alone[0])
    each = bootstrap_intervals(values, clusters=np.arange(len(values)))[0]
    assert each[1] - each[0] == pytest.approx(alone[1] - alone[0], rel=0.2)


def test_unknown_values_are_refused() -> None:
    with pytest.raises(DataError, match="unknown values"):
        bootstrap_intervals(column(np.array([0.1, math.nan])))
    with pytest.raises(DataError, match="2 clusters for 3 queries"):
        bootstrap_intervals(np.ones((3, 1)), clusters=np.arange(2))


def test_10_000_queries_are_drawn_once_for_all_metrics_and_in_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = 0

    class Counting(np.random.Generator):
        def integers(self, *args: Any, **more: Any) -> Any:
            nonlocal drawn
            found = super().integers(*args, **more)
            drawn += found.size
            return found

    values = np.random.default_rng(0).beta(2, 0.5, (10_000, 20))
    bootstrap_intervals(values[:10])  # imports
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Counting(np.random.PCG64(seed)))
    tracemalloc.start()
    try:
        bootstrap_intervals(values, resamples=1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert drawn == 1000 * 10_000  # not times 20
    assert peak < 10 * values.nbytes  # all resamples at once take 1,000 times as much


# ── coverage ─────────────────────────────────────────────────────────────────────────────────────

Draw = Callable[[np.random.Generator, int], np.ndarray]


def mostly_right(generator: np.random.Generator, n: int) -> np.ndarray:
    """AP of a good system: 6 of 10 queries perfect, the others anywhere."""
    values = generator.beta(1.5, 1.5, n)
    values[generator.random(n) < 0.6] = 1
    return values


SKEWED: dict[str, tuple[Draw, float]] = {
    "high": (lambda generator, n: generator.beta(2, 0.3, n), 2 / 2.3),
    "low": (lambda generator, n: generator.beta(0.5, 3, n), 0.5 / 3.5),
    "mostly right": (mostly_right, 0.6 + 0.4 * 0.5),
}


def held(name: str, n: int, times: int, seed: int = 0) -> float:
    """How often the interval of the mean of n values holds the mean they are drawn from."""
    draw, truth = SKEWED[name]
    generator = np.random.default_rng(seed)
    inside = 0
    for i in range(times):
        low, high = bootstrap_intervals(column(draw(generator, n)), seed=i)[0]
        inside += low <= truth <= high
    return inside / times


@pytest.mark.parametrize("name", SKEWED)
def test_the_bootstrap_holds_the_truth_roughly(name: str) -> None:
    assert 0.91 <= held(name, 100, 300) <= 0.985  # two standard errors around .93 to .97


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 200, 1000])
@pytest.mark.parametrize("name", SKEWED)
def test_the_bootstrap_holds_the_truth(name: str, n: int) -> None:
    assert 0.93 <= held(name, n, 1000) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("classes", [10, 50])
def test_the_bootstrap_by_class_holds_the_truth(classes: int) -> None:
    """Classes differ; their queries gather around the class. By query it would hold .5 or less."""
    generator, inside = np.random.default_rng(0), 0
    for i in range(1000):
        level = generator.beta(4, 2, classes)
        of = generator.integers(0, classes, 500)
        values = generator.beta(8 * level[of], 8 * (1 - level[of]))
        low, high = bootstrap_intervals(column(values), clusters=of, seed=i)[0]
        inside += low <= 4 / 6 <= high
    assert 0.92 <= inside / 1000 <= 0.97


# ── differences ──────────────────────────────────────────────────────────────────────────────────


def test_differences_of_hits_by_hand() -> None:
    """Bonett and Price: 3 better, 1 worse of 8."""
    low, high = difference_interval(np.array([1, 1, 1, -1, 0, 0, 0, 0])) or (0, 0)
    better, worse = 4 / 10, 2 / 10
    reach = 1.959964 * math.sqrt((better + worse - (better - worse) ** 2) / 10)
    assert (low, high) == (
        pytest.approx(0.2 - reach, abs=1e-6),
        pytest.approx(0.2 + reach, abs=1e-6),
    )


@pytest.mark.parametrize(("better", "worse"), [(0.1, 0.05), (0.03, 0.01), (0.3, 0.2)])
@pytest.mark.parametrize("n", [100, 1000])
def test_differences_of_hits_hold_the_truth(better: float, worse: float, n: int) -> None:
    """Where few queries disagree the interval is wider than it says, never narrower."""
    generator, times = np.random.default_rng(1), 600
    inside = 0
    for _ in range(times):
        values = generator.choice([1.0, -1.0, 0.0], n, p=[better, worse, 1 - better - worse])
        low, high = difference_interval(values) or (0, 0)
        inside += low <= better - worse <= high
    assert inside / times >= 0.93


def test_differences_of_other_metrics() -> None:
    values = np.random.default_rng(0).normal(0.1, 0.3, 400)
    low, high = difference_interval(values) or (0, 0)
    reach = 1.96 * 0.3 / 20
    assert low == pytest.approx(values.mean() - reach, abs=0.15 * reach)
    assert high == pytest.approx(values.mean() + reach, abs=0.15 * reach)


# ── tests of significance ────────────────────────────────────────────────────────────────────────


def test_sign_flip_by_hand() -> None:
    """Five equal gains: 2 of 2^5 sign patterns reach as far."""
    assert sign_flip_p(np.ones(5)) == pytest.approx(2 / 32, abs=0.01)
    assert sign_flip_p(np.array([1.0, -1.0, 0.0])) == 1
    assert sign_flip_p(np.zeros(5)) == 1
    assert sign_flip_p(np.ones(100)) == pytest.approx(1 / 10_001)


def test_sign_flip_is_the_binomial_test_for_hits() -> None:
    values = np.array([1.0] * 14 + [-1.0] * 5 + [0.0] * 200)
    exact = stats.binomtest(14, 19).pvalue
    assert sign_flip_p(values) == pytest.approx(exact, abs=0.01)


def test_sign_flip_flips_whole_clusters() -> None:
    values, labels = np.ones(40), np.repeat(np.arange(4), 10)
    assert sign_flip_p(values) < 0.001
    assert sign_flip_p(values, clusters=labels) == pytest.approx(2 / 16, abs=0.02)


def test_sign_flip_errs_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    small = sum(
        sign_flip_p(generator.normal(0, 1, 40), permutations=400) <= 0.05 for _ in range(400)
    )
    assert 0.02 <= small / 400 <= 0.08


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
