import numpy as np
import pytest
from scipy import stats

from vizsla.errors import DataError, UsageError
from vizsla.score.evaluate import evaluate
from vizsla.score.intervals import difference_interval
from vizsla.score.paired_tests import (
    NO_DIFFERENCE,
    compare_systems,
    correction_note,
    differences_table,
    in_words,
    short_table,
)
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking

Q, G, C = 120, 40, 8
TRUTH = Truth({f"q{i}": str(i % C) for i in range(Q)}, {f"g{j}": str(j % C) for j in range(G)})


def system(strength: float, seed: int = 0, truth: Truth = TRUTH) -> Scores:
    """Scores of a ranking that puts relevant images `strength` standard deviations higher."""
    generator = np.random.default_rng(seed)
    relevant = np.arange(Q)[:, None] % C == np.arange(G)[None] % C
    values = generator.normal(size=(Q, G)) + strength * relevant
    names, gallery = [f"q{i}" for i in range(Q)], [f"g{j}" for j in range(G)]
    ranking = Ranking(names, gallery, np.argsort(-values, axis=1), gallery_size=G)
    return evaluate(ranking, truth)


def test_a_clear_difference_is_found() -> None:
    found = compare_systems({"weak": system(0.5, 1), "strong": system(2.0, 2)})
    assert [d.key for d in found] == ["top_k_accuracy@10", "map"]
    ap = found[1]
    assert ap.verdict == "strong is better"
    assert ap.difference == ap.mean_a - ap.mean_b < 0
    assert ap.low is not None and ap.high is not None and ap.low < ap.difference < ap.high < 0
    assert ap.p_corrected <= 0.05 and ap.n == Q


def test_equal_systems_show_no_difference() -> None:
    for d in compare_systems({"a": system(1.0, 1), "b": system(1.0, 2)}):
        assert d.verdict == NO_DIFFERENCE
        assert d.low is not None and d.high is not None and d.low < 0 < d.high


def test_a_system_is_equal_to_itself_whatever_the_order_of_its_queries() -> None:
    backwards = Truth(dict(reversed(TRUTH.query.items())), TRUTH.gallery)
    other = system(1.0, truth=backwards)
    assert other.queries[0] == "q119"
    for d in compare_systems({"a": system(1.0), "b": other}, keys=["map", "precision@10"]):
        assert d.difference == 0 and d.p == 1 and d.verdict == NO_DIFFERENCE


def test_queries_with_nothing_relevant_are_left_out_as_in_the_means() -> None:
    truth = Truth({**TRUTH.query, "q0": "none like it"}, TRUTH.gallery)
    hits, ap = compare_systems({"a": system(1.0, 1, truth), "b": system(1.0, 2, truth)})
    assert (hits.n, ap.n) == (Q, Q - 1)
    assert ap.mean_a == system(1.0, 1, truth).mean("map")


def test_pairs_by_hand() -> None:
    """The difference of each query, whatever the order of the queries in each."""
    a, b = system(1.0, 1), system(1.0, 2)
    [d] = compare_systems({"a": a, "b": b}, keys=["map"])
    assert d.mean_a == pytest.approx(np.mean(a.per_query("map")))  # type: ignore[arg-type]
    by_class = compare_systems({"a": a, "b": b}, keys=["map"], cluster="label")[0]
    assert by_class.difference == d.difference
    assert (by_class.low, by_class.p) != (d.low, d.p)


def test_more_comparisons_ask_for_more() -> None:
    """Holm's correction over all pairs and metrics."""
    systems = {name: system(1.0 + 0.1 * i, i) for i, name in enumerate("abcd")}
    found = compare_systems(systems, keys=["map"])
    assert len(found) == 6
    assert all(d.p_corrected >= d.p for d in found)
    smallest = min(found, key=lambda d: d.p)
    assert smallest.p_corrected == pytest.approx(min(1, 6 * smallest.p))


def test_other_queries_or_another_truth_do_not_compare() -> None:
    fewer = system(1.0).subset(range(Q - 1))
    with pytest.raises(
        DataError, match=r"not judged on the same queries: 1 are in only one of them \(q119"
    ):
        compare_systems({"a": system(1.0), "b": fewer})
    other = Truth(TRUTH.query, {**TRUTH.gallery, "g0": "1"})
    with pytest.raises(DataError, match="different truths or galleries"):
        compare_systems({"a": system(1.0), "b": system(1.0, truth=other)})


def test_one_system_or_an_unknown_metric_is_refused() -> None:
    with pytest.raises(UsageError, match="two or more"):
        compare_systems({"a": system(1.0)})
    with pytest.raises(DataError, match="recall@7 is not known for a, b"):
        compare_systems({"a": system(1.0), "b": system(1.0)}, keys=["recall@7"])


def test_the_table_says_it_in_words() -> None:
    table = differences_table(compare_systems({"a": system(1.0, 1), "b": system(1.0, 2)}))
    assert table.records()[0]["verdict"] == NO_DIFFERENCE
    assert "A − B" in table.lines()[0]


def test_the_table_of_a_terminal_fits_it() -> None:
    names = ["20260131-235959-0a1b", "20260131-235959-7c9d", "20260131-235959-11ff"]
    found = compare_systems({name: system(1.0 + i, i) for i, name in enumerate(names)})
    lines = short_table(found).lines(80, keep=short_table(found).columns)
    assert max(map(len, lines)) <= 80 and len(lines) == 1 + len(found)
    assert "…0a1b  …7c9d" in lines[1] and lines[-1].endswith("B better")
    same = compare_systems({"a": system(1.0, 1), "b": system(1.0, 2)})
    assert short_table(same).rows[0][1:3] == ["a", "b"] and short_table(same).rows[0][-1] == "level"


def test_a_comparison_in_words_names_the_better_system_first() -> None:
    found = compare_systems({"weak": system(0.5, 1), "strong": system(2.0, 2)}, keys=["map"])[0]
    assert found.low is not None and found.high is not None
    assert in_words(found) == (
        f"mAP: strong is better than weak by {-found.difference:.4f}, 95 % interval "
        f"{-found.high:.4f} to {-found.low:.4f}"
    )
    same = compare_systems({"a": system(1.0, 1), "b": system(1.0, 2)}, keys=["map"])[0]
    assert NO_DIFFERENCE in in_words(same)


def test_intervals_are_corrected_as_the_p_values_are() -> None:
    alone = compare_systems({"a": system(1.0, 0), "b": system(1.1, 1)}, keys=["map"])[0]
    systems = {name: system(1.0 + 0.1 * i, i) for i, name in enumerate("abcd")}
    found = compare_systems(systems, keys=["map"])
    [same] = [d for d in found if (d.a, d.b) == ("a", "b")]
    assert (same.difference, same.p) == (alone.difference, alone.p)
    assert same.comparisons == 6 and alone.comparisons == 1
    wider = stats.norm.ppf(1 - 0.025 / 6) / stats.norm.ppf(1 - 0.025)
    for end, other in ((alone.low, same.low), (alone.high, same.high)):
        assert end is not None and other is not None
        assert other - same.difference == pytest.approx((end - same.difference) * wider, rel=0.03)
    assert "6 comparisons" in correction_note(found) and "99.17 %" in correction_note(found)
    assert "had to be corrected" in correction_note([alone])
    assert {"low (Bonferroni)", "p (Holm)"} <= set(differences_table(found).columns)


def test_intervals_of_many_comparisons_hold_all_together() -> None:
    """Of three pairs of systems that are equal, in 19 of 20 cases every interval holds 0."""
    generator, held = np.random.default_rng(3), 0
    for _ in range(400):
        values = generator.beta(2, 0.5, (3, 150))
        values = 0.5 * values + 0.5 * generator.random(150)  # the queries are hard or easy for all
        pairs = [values[0] - values[1], values[0] - values[2], values[1] - values[2]]
        intervals = [
            difference_interval(pair, comparisons=3, resamples=400) or (1, 1) for pair in pairs
        ]
        held += all(low <= 0 <= high for low, high in intervals)
    assert held / 400 >= 0.93


def test_a_clear_difference_stands_out_among_hundreds_of_comparisons() -> None:
    """With 10,000 permutations no p-value could be small enough after Holm's correction."""
    systems = {f"s{i}": system(1.0, 1) for i in range(32)}
    systems["strong"] = system(4.0, 2)
    found = compare_systems(systems, keys=["map"])
    assert len(found) == 528
    assert {d.verdict for d in found if d.b == "strong"} == {"strong is better"}
    assert {d.verdict for d in found if d.b != "strong"} == {NO_DIFFERENCE}
