"""Names of metrics, and their values against ir_measures and by hand."""

import ir_measures
import numpy as np
import pytest
from ir_measures import AP, RR, P, R, Rprec, Success, nDCG

from vizsla.errors import UsageError
from vizsla.score.evaluate import evaluate
from vizsla.score.metrics.metric_names import KINDS, MetricName, parse_metrics
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("AP", "AP"), ("mAP", "AP"), ("map", "AP"), ("AP@100", "AP@100"), ("ap @ 5", "AP@5"),
        ("AP(interpolated)", "AP(interpolated)"), ("AP(rel=2)@100", "AP(rel=2)@100"),
        ("AP@100(rel=2)", "AP(rel=2)@100"), ("AP(over=R)@10", "AP(over=R)@10"),
        ("nDCG@10(grades)", "nDCG(grades)@10"), ("nDCG(dcg='exp-log2')@10",
                                                 "nDCG(dcg=exp-log2,grades)@10"),
        ("nDCG(dcg='log2')", "nDCG(grades)"), ("NDCG@3", "nDCG@3"), ("P@10", "P@10"),
        ("precision@10", "P@10"), ("R@5", "R@5"), ("top-5", "top-5"), ("top_k_accuracy@5", "top-5"),
        ("Success(rel=2)@5", "top-5(rel=2)"), ("Success@1", "top-1"), ("CMC@20", "top-20"),
        ("RR", "RR"), ("MRR@10", "RR@10"), ("Rprec", "Rprec"), ("P@R", "Rprec"),
        ("MAP@R", "MAP@R"), ("map_at_r", "MAP@R"), ("mINP", "mINP"), ("TPR(fpr=0.01)",
                                                                     "TPR(fpr=0.01)"),
        ("R@P90", "R@P90"), ("recall@P95", "R@P95"), ("uAP", "µAP"), ("contest_points",
                                                                    "contest_points"),
        ("BAUS(threshold=0.6)", "BAUS(threshold=0.6)"), ("mP@10", "mP@10"),
        ("nDCG(cutoff=10)", "nDCG@10"), ("P(cutoff=5,rel=2)", "P(rel=2)@5"),
        ("Rank-1", "top-1"), ("CMC-5", "top-5"),
    ],
)  # fmt: skip
def test_a_name_is_read_and_written(text: str, written: str) -> None:
    name = MetricName.parse(text)
    assert str(name) == written
    assert MetricName.parse(str(name)) == name


def test_names_of_ir_measures_are_understood() -> None:
    for measure in [AP, AP @ 5, AP(rel=2), P @ 3, R @ 5, Rprec, RR, RR @ 10, Success @ 5,
                    nDCG @ 10, AP(rel=2) @ 100, nDCG(dcg="exp-log2") @ 5]:  # fmt: skip
        assert MetricName.parse(str(measure)).kind in KINDS


def test_a_list_is_parted_outside_of_brackets() -> None:
    names = parse_metrics("AP(interpolated,rel=2)@100,mINP, top-5,AP(rel=2,interpolated)@100")
    assert [str(name) for name in names] == ["AP(interpolated,rel=2)@100", "mINP", "top-5"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy", "no metric is called 'accuracy': choose of AP, P"),
        ("P", "needs a cut-off, such as P@10"),
        ("mINP@5", "mINP has no cut-off: leave out @5"),
        ("AP@0", "the cut-off '0' is not a whole number from 1"),
        ("AP(grades)", "AP has no option 'grades': there are interpolated, over, rel"),
        ("AP(rel)", "write rel=VALUE"),
        ("AP(interpolated=1)", "write interpolated"),
        ("AP(rel=0)", "'0' is no value of rel"),
        ("TPR", r"needs fpr, as in TPR\(fpr=0.5\)"),
        ("TPR(fpr=2)", "'2' is no value of fpr"),
        ("nDCG(dcg=ln)", "'ln' is no value of dcg"),
        ("BAUS(threshold=nan)", "'nan' is no value of threshold"),
        ("P@²", "the cut-off '²' is not a whole number from 1"),
        ("AP((", "is not the name of a metric"),
    ],
)
def test_what_is_not_understood_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MetricName.parse(text)


def graded_case(seed: int) -> tuple[Ranking, dict[str, dict[str, int]], dict[str, list[str]]]:
    generator = np.random.default_rng(seed)
    G, Q = 40, 10
    names = [f"g{i}" for i in range(G)]
    lists = {f"{seed}-q{i}": [names[j] for j in generator.permutation(G)] for i in range(Q)}
    grades = {
        q: {n: int(g) for n, g in zip(names, generator.choice([0, 1, 2, 3], G), strict=True)}
        for q in lists
    }
    ranking = Ranking.from_lists(lists)
    return ranking, grades, lists


def test_graded_metrics_are_those_of_ir_measures() -> None:
    """On 200 random rankings with grades 0 to 3; the largest difference is below 1e-9."""
    pairs = {
        nDCG @ 10: "nDCG(grades)@10", nDCG: "nDCG(grades)", AP(rel=2): "AP(rel=2)",
        AP(rel=2) @ 10: "AP(over=R,rel=2)@10", P(rel=2) @ 5: "P(rel=2)@5", R(rel=3) @ 5:
        "R(rel=3)@5", Success(rel=3) @ 3: "top-3(rel=3)", RR(rel=2): "RR(rel=2)",
        Rprec(rel=2): "Rprec(rel=2)",
    }  # fmt: skip
    compared = 0
    for seed in range(20):
        ranking, grades, lists = graded_case(seed)
        scores = evaluate(
            ranking, Truth.from_grades(grades), metrics_named=[*pairs.values()],
            missing_ranks="absent", resamples=10,
        )  # fmt: skip
        run = {q: {n: float(-i) for i, n in enumerate(row)} for q, row in lists.items()}
        for found in ir_measures.iter_calc([*pairs], grades, run):
            mine = scores.per_query(pairs[found.measure])[scores.queries.index(found.query_id)]
            assert mine == pytest.approx(found.value, abs=1e-9), found
            compared += 1
    assert compared == 200 * len(pairs)


def test_exponential_gains_by_hand() -> None:
    ranking = Ranking.from_lists({"q": ["a", "b", "c"]})
    truth = Truth.from_grades({"q": {"a": 1, "c": 3}})
    scores = evaluate(
        ranking, truth, metrics_named="nDCG(dcg='exp-log2')@3,nDCG@3", missing_ranks="absent"
    )
    gained = 1 / np.log2(2) + 7 / np.log2(4)
    assert scores.mean("nDCG(dcg=exp-log2,grades)@3") == pytest.approx(
        gained / (7 / np.log2(2) + 1 / np.log2(3))
    )
    equal = (1 / np.log2(2) + 1 / np.log2(4)) / (1 / np.log2(2) + 1 / np.log2(3))
    assert scores.mean("nDCG@3") == pytest.approx(equal) == scores.mean("ndcg@3")


def test_metrics_that_were_asked_for_are_shown_alone_and_saved(tmp_path) -> None:  # type: ignore[no-untyped-def]
    ranking = Ranking.from_lists({"q": ["a", "b"], "r": ["b", "a"]})
    truth = Truth({"q": "x", "r": "x"}, {"a": "x", "b": "y"})
    scores = evaluate(ranking, truth, metrics_named="mINP,top-1,TPR(fpr=0.5)")
    assert list(scores.shown) == ["mINP", "top-1"]
    assert scores.mean("mINP") == 0.75 and scores.headline == "mINP"
    assert scores["TPR(fpr=0.5)"].unknown == "the ranking holds no scores"
    assert list(scores.to_dict()["metrics"]) == ["mINP", "top-1", "TPR(fpr=0.5)"]
    assert "the ranking holds no scores" in scores.text()
    scores.save(tmp_path / "scores.json")
    again = type(scores).load(tmp_path / "scores.json")
    assert again.to_dict() == scores.to_dict()
    assert scores.subset([0]).mean("mINP") == 1.0


def test_a_metric_that_a_short_list_cannot_give_is_unknown() -> None:
    ranking = Ranking.from_lists({"q": ["a"]})
    scores = evaluate(ranking, Truth({"q": "x"}, {"a": "x", "b": "x", "c": "y"}),
                      metrics_named="mINP,AP(interpolated),mP@2,AP@1")  # fmt: skip
    assert [scores.mean(key) for key in scores.chosen] == [None, None, None, 1.0]
