"""Metrics of all queries together: weights, resamples, slices, and comparisons of two systems."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from vizsla.errors import DataError
from vizsla.score.evaluate import evaluate
from vizsla.score.metrics.pooled_metrics import adjusted_rand_index
from vizsla.score.paired_tests import NO_DIFFERENCE, compare_systems
from vizsla.score.run_table import row_of_scores, run_table
from vizsla.score.score_tables import slice_table
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking

Q, G, C = 40, 24, 6
NAMES = [f"q{i:02}" for i in range(Q)]
TRUTH = Truth(
    {name: str(i % C) for i, name in enumerate(NAMES)},
    {f"g{j}": str(j % C) for j in range(G)},
    attributes={"camera": {name: "ab"[i % 2] for i, name in enumerate(NAMES)}},
)
POOLED = ("µAP", "R@P50", "TPR(fpr=0.1)", "BAKS", "ARI(threshold=2.5)")


def system(
    strength: float, seed: int = 0, *, names: list[str] = NAMES, metrics: object = POOLED
) -> Scores:
    """Scores of a ranking that puts relevant images `strength` standard deviations higher."""
    generator = np.random.default_rng(seed)
    relevant = np.arange(Q)[:, None] % C == np.arange(G)[None] % C
    values = generator.normal(size=(Q, G)) + strength * relevant
    rows = [NAMES.index(name) for name in names]
    values = values[rows]
    order = np.argsort(-values, axis=1)
    ranked = np.take_along_axis(values, order, axis=1)
    ranking = Ranking(names, [f"g{j}" for j in range(G)], order, ranked, gallery_size=G)
    truth = Truth(
        {name: TRUTH.query[name] for name in names}, TRUTH.gallery, attributes=TRUTH.attributes
    )
    return evaluate(ranking, truth, metrics_named=metrics)  # type: ignore[arg-type]


def test_the_rand_index_with_weights_counts_pairs_of_different_images() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        labels, groups = generator.integers(0, 4, (2, 9))
        value = adjusted_rand_index(labels, groups)
        assert value(np.ones(9)) == pytest.approx(adjusted_rand_score(labels, groups), abs=1e-12)
        weights = np.append(generator.integers(1, 3, 8), 0)
        same = labelled = grouped = every = 0
        for i, j in itertools.combinations(range(9), 2):
            n = int(weights[i] * weights[j])
            every += n
            labelled += n * (labels[i] == labels[j])
            grouped += n * (groups[i] == groups[j])
            same += n * (labels[i] == labels[j] and groups[i] == groups[j])
        expected = labelled * grouped / every
        wanted = (same - expected) / ((labelled + grouped) / 2 - expected)
        assert value(weights) == pytest.approx(wanted, abs=1e-12)
    alone = adjusted_rand_index(np.array(["a"]), np.array([3]))
    assert alone(np.ones(1)) == adjusted_rand_score(["a"], [3]) == 1.0


def test_resamples_do_not_depend_on_the_order_of_the_queries() -> None:
    one, other = system(1.0), system(1.0, names=NAMES[::-1])
    for key in POOLED:
        figure = one[key]
        assert figure.low is not None and figure.high is not None and figure.mean is not None
        assert figure.low <= figure.mean <= figure.high and len(figure.draws) == 1000
        assert one.resampled(key) == pytest.approx(other.resampled(key), abs=1e-12)


def test_a_value_that_no_resample_changes_has_wilsons_interval() -> None:
    lists = {f"q{i}": ["g"] for i in range(20)}
    truth = Truth(dict.fromkeys(lists, "x"), {"g": "x"})
    ranking = Ranking([*lists], ["g"], np.zeros((20, 1), np.int64), np.ones((20, 1)), 1)
    figure = evaluate(ranking, truth, metrics_named="µAP")["µAP"]
    assert (figure.mean, figure.high) == (1.0, 1.0)
    assert figure.low == pytest.approx(0.8389, abs=1e-4)


def test_a_slice_is_the_metric_of_its_queries_alone() -> None:
    scores = system(1.0)
    for camera, part in scores.by("camera").items():
        alone = system(1.0, names=[n for n in NAMES if TRUTH.attributes["camera"][n] == camera])
        for key in POOLED[:-1]:
            assert part.mean(key) == pytest.approx(alone.mean(key), abs=1e-12)
            assert part[key].low == pytest.approx(alone[key].low, abs=1e-12)
    table = slice_table(scores, "camera")
    assert table.columns[:3] == ["camera", "queries", "µAP"]
    assert table.columns[-2:] == ["µAP 95 % low", "µAP 95 % high"]
    assert table.rows[0][2] < table.rows[1][2]  # the worst first


def test_saved_scores_keep_the_resamples(tmp_path: Path) -> None:
    scores = system(1.0)
    scores.save(tmp_path / "scores.json")
    loaded = Scores.load(tmp_path / "scores.json")
    assert loaded["µAP"] == scores["µAP"] and loaded.mean("µAP") == scores.mean("µAP")
    assert not loaded.by("camera")["a"].pooled  # they cannot be computed anew
    [same] = compare_systems({"a": scores, "b": loaded}, keys=["µAP"])
    assert same.difference == 0 and same.p == 1.0
    with pytest.raises(DataError, match=r"µAP with queries drawn by query, not by label"):
        compare_systems({"a": scores, "b": loaded}, keys=["µAP"], cluster="label")


def test_two_systems_are_compared_on_the_same_resamples() -> None:
    weak, strong = system(0.5, 1), system(2.0, 2)
    found = compare_systems({"weak": weak, "strong": strong}, keys=POOLED[:4])
    assert [d.verdict for d in found] == ["strong is better"] * 4
    [d] = compare_systems({"weak": weak, "strong": strong}, keys=["µAP"])
    drawn = weak.resampled("µAP") - strong.resampled("µAP")
    assert d.low is not None and d.high is not None
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert d.low < low < d.difference < high < d.high < 0  # a little wider than plain percentiles
    assert d.p == 1 / 1001 and d.n == Q
    by_class = compare_systems({"a": weak, "b": strong}, keys=["µAP"], cluster="label")[0]
    assert by_class.difference == d.difference and by_class.low != d.low
    for d in compare_systems({"a": system(1.0, 1), "b": system(1.0, 2)}, keys=POOLED):
        assert d.verdict == NO_DIFFERENCE


def test_rows_are_compared_with_the_best_by_a_pooled_metric() -> None:
    rows = [row_of_scores(n, system(s, i)) for i, (n, s) in enumerate({"a": 0.2, "b": 2.0}.items())]
    table = run_table(rows, "µAP")
    assert [row.run for row in table.rows] == ["b", "a"] and table.verdicts == ["best", "below"]


def test_too_many_pairs_have_no_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vizsla.score.metrics.pooled_metrics._DRAWN_PAIRS", 50 * Q * G)
    a, b = system(1.0, 1), system(1.0, 2)
    assert a["µAP"].mean is not None and a["µAP"].low is None
    with pytest.raises(DataError, match=r"µAP of a, b is one value .* has no resamples"):
        compare_systems({"a": a, "b": b}, keys=["µAP"])
    assert run_table([row_of_scores("a", a)] * 2, "µAP").verdicts == [None, None]


@pytest.mark.slow
def test_equal_systems_are_rarely_called_different() -> None:
    """At 5 %, about one in twenty."""
    p = [
        compare_systems(
            {"a": system(1.0, 2 * i, metrics="µAP"), "b": system(1.0, 2 * i + 1, metrics="µAP")},
            keys=["µAP"],
        )[0].p
        for i in range(200)
    ]
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.09
