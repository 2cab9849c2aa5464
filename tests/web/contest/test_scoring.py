import hashlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vizsla.errors import DataError, UsageError
from vizsla.output.submission import check_submission, submission_sha256
from vizsla.score.evaluate import evaluate
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking
from vizsla.web.contest.rules import METRICS, Rules
from vizsla.web.contest.scoring import Scorer, canonical

QUERIES: dict[str, str | None] = {"a": "x", "b": "y", "c": "x"}
GALLERY: dict[str, str | None] = {"a": "x", "1": "x", "2": "y", "3": "z", "4": None, "5": "y"}


def made_up(
    seed: int, *, n_queries: int, n_gallery: int, k: int, classes: int
) -> tuple[dict, dict, dict]:
    """Labels of queries and gallery, and a submission. Some classes are in one of them alone."""
    draw = random.Random(seed)
    queries = {f"q{i}": str(draw.randrange(classes + 1)) for i in range(n_queries)}
    gallery = {f"g{i}": str(draw.randrange(1, classes + 2)) for i in range(n_gallery)}
    lists = {query: draw.sample(sorted(gallery), k) for query in queries}
    return queries, gallery, lists


def test_a_score_by_hand() -> None:
    scorer = Scorer(QUERIES, GALLERY, Rules(top_k=2))
    found = scorer.scores({"a": ["3", "1"], "b": ["2", "5"], "c": ["3", "4"]})["all"]
    assert found.score == found.metrics["top_k_accuracy"] == pytest.approx(2 / 3)
    assert found.metrics["top_1_accuracy"] == pytest.approx(1 / 3)
    assert found.metrics["precision_at_k"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found.metrics["contest_points"] == pytest.approx((400 + 1000 + 0) / 3)
    assert found.metrics["map_at_k"] == pytest.approx((1 / 4 + 1 + 0) / 3)
    assert found.metrics["recall_at_k"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found.metrics["mrr_at_k"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found.interval is not None
    assert found.interval[0] < found.score < found.interval[1]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("seed", "k"), [(0, 1), (1, 5), (2, 10), (3, 12)])
def test_scores_are_those_of_evaluate(metric: str, seed: int, k: int) -> None:
    queries, gallery, lists = made_up(seed, n_queries=57, n_gallery=80, k=k, classes=9)
    found = Scorer(queries, gallery, Rules(top_k=k, metrics=(metric,))).scores(lists)["all"]
    scores = evaluate(
        Ranking.from_lists(lists), Truth(queries, gallery), top_k=k, missing_ranks="wrong"
    )
    n, answerable = len(queries), int(scores.answerable.sum())
    assert answerable < n  # some queries have nothing to find

    def over_all(key: str) -> float:
        figure = scores[key]
        return figure.mean if figure.n == n else figure.mean * answerable / n

    assert found.metrics == {
        "top_k_accuracy": pytest.approx(over_all(f"top_k_accuracy@{k}"), abs=1e-12),
        "top_1_accuracy": pytest.approx(over_all("top_k_accuracy@1"), abs=1e-12),
        "contest_points": pytest.approx(over_all("contest_points"), abs=1e-9),
        "precision_at_k": pytest.approx(over_all(f"precision@{k}"), abs=1e-12),
        "recall_at_k": pytest.approx(over_all(f"recall@{k}"), abs=1e-12),
        "map_at_k": pytest.approx(over_all(f"ap@{k}"), abs=1e-12),
        "mrr_at_k": pytest.approx(over_all(f"mrr@{k}"), abs=1e-12),
        "ndcg_at_k": pytest.approx(over_all(f"ndcg@{k}"), abs=1e-12),
    }
    assert found.score == found.metrics[metric]
    if metric != "map_at_k":  # evaluate's interval of AP leaves queries out
        key = "contest_points" if metric == "contest_points" else f"top_k_accuracy@{k}"
        assert found.interval == (scores[key].low, scores[key].high)


def test_parts_together_are_the_whole_and_are_drawn_by_the_seed() -> None:
    queries, gallery, lists = made_up(5, n_queries=100, n_gallery=80, k=4, classes=9)
    whole = Scorer(queries, gallery, Rules(top_k=4)).scores(lists)["all"].metrics
    drawn = set()
    for seed in range(5):
        rules = Rules(top_k=4, public_share=0.3, seed=seed, closes=1.0)
        scorer = Scorer(queries, gallery, rules)
        assert scorer.part_sizes() == {"public": 30, "private": 70}
        parts = scorer.scores(lists)
        for name, value in whole.items():
            both = 0.3 * parts["public"].metrics[name] + 0.7 * parts["private"].metrics[name]
            assert both == pytest.approx(value)
        assert scorer.scores(lists) == Scorer(queries, gallery, rules).scores(lists)
        drawn.add(parts["public"].metrics["mrr_at_k"])
    assert len(drawn) > 1


def test_removing_a_query_hardly_changes_the_split() -> None:
    queries, gallery, _ = made_up(6, n_queries=100, n_gallery=80, k=4, classes=9)
    rules = Rules(top_k=4, public_share=0.5, closes=1.0, seed=0)

    def public(labels: dict) -> set[str]:
        scorer = Scorer(labels, gallery, rules)
        return {scorer.queries[row] for row in scorer._rows["public"]}

    before, after = public(queries), public({q: v for q, v in queries.items() if q != "q7"})
    assert len(before ^ after) <= 3


def test_a_list_longer_than_the_gallery_is_refused() -> None:
    queries, gallery = {"q": "a"}, {"g0": "a", "g1": "b"}
    Scorer(queries, gallery, Rules(top_k=2))
    with pytest.raises(DataError, match="top_k=3, but the gallery has 2 images"):
        Scorer(queries, gallery, Rules(top_k=3))


def test_a_part_without_queries_is_refused() -> None:
    with pytest.raises(DataError, match="both parts need at least one"):
        Scorer(QUERIES, GALLERY, Rules(top_k=2, public_share=0.01, closes=1.0, seed=0))


def test_queries_without_a_label_are_required_but_do_not_count() -> None:
    queries = {**QUERIES, "d": None}
    scorer = Scorer(queries, GALLERY, Rules(top_k=1))
    lists = {"a": ["1"], "b": ["2"], "c": ["1"]}
    assert scorer.problems(lists) == ["missing queries: 'd'"]
    lists["d"] = ["4"]
    assert scorer.problems(lists) == []
    assert scorer.scores(lists)["all"].score == 1.0
    with pytest.raises(DataError, match="none of its queries"):
        Scorer({"d": None}, GALLERY, Rules(top_k=2))


def test_old_submissions_can_be_scored_by_a_corrected_truth() -> None:
    scorer = Scorer(QUERIES, GALLERY, Rules(top_k=3))
    whole = scorer.scores({"a": ["1", "2", "3"], "b": ["9", "2", "2"], "gone": ["1", "2", "3"]})
    assert whole["all"].metrics["contest_points"] == pytest.approx((1000 + 400 + 0) / 3)
    assert whole["all"].metrics["precision_at_k"] == pytest.approx((1 / 3 + 1 / 3 + 0) / 3)
    assert scorer.scores({})["all"].score == 0.0


names = st.sampled_from(["a", "1", "2", "3", "4", "5", "unknown"])
rows = st.one_of(
    st.lists(names, min_size=2, max_size=2),
    st.permutations(sorted(GALLERY)).map(lambda row: row[:2]),
    st.lists(st.one_of(names, st.none(), st.booleans(), st.integers(), st.lists(names))),
    st.none(),
    st.text(),
    st.dictionaries(names, names),
)
sound = st.permutations(sorted(GALLERY)).map(lambda row: row[:2])


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(
        st.fixed_dictionaries(dict.fromkeys(QUERIES, sound)),
        st.fixed_dictionaries(dict.fromkeys(QUERIES, rows)),
        st.dictionaries(st.sampled_from([*QUERIES, "other"]), rows),
        st.none(),
        st.lists(rows),
    )
)
def test_the_quick_check_agrees_with_check_submission(lists: object) -> None:
    scorer = Scorer(QUERIES, GALLERY, Rules(top_k=2))
    problems = check_submission(lists, queries=list(QUERIES), gallery=set(GALLERY), k=2)
    assert scorer.problems(lists) == problems
    assert (scorer._positions(lists) is None) == bool(problems)


def test_the_canonical_form_is_the_one_that_clients_hash() -> None:
    lists = {"ü": ["b", "a"], "a": ["é", '"']}
    assert hashlib.sha256(canonical(lists)).hexdigest() == submission_sha256(lists)
    assert canonical(lists) == canonical(dict(reversed(lists.items())))


def test_the_fingerprint_covers_what_scores_depend_on() -> None:
    def fingerprint(queries: dict = QUERIES, **rules: object) -> str:
        return Scorer(queries, GALLERY, Rules(**{"top_k": 2, **rules})).fingerprint

    split = {"public_share": 0.5, "closes": 9.0, "seed": 0}
    different = {
        fingerprint(),
        fingerprint({**QUERIES, "c": "y"}),
        fingerprint(top_k=3),
        fingerprint(metrics=("map_at_k",)),
        fingerprint(**split),
        fingerprint(**{**split, "seed": 1}),
    }
    assert len(different) == 6
    assert fingerprint() == fingerprint(title="another", per_hour=3, seed=9, counts="last")


def test_names_in_another_unicode_form_are_those_of_the_truth() -> None:
    nfc, nfd = "\u00e9", "e\u0301"
    scorer = Scorer({f"{nfc}.jpg": "a"}, {f"{nfc}1.jpg": "a", "x.jpg": "b"}, Rules(top_k=2))
    lists = {f"{nfd}.jpg": [f"{nfd}1.jpg", "x.jpg"]}
    assert scorer.problems(lists)
    spelled = scorer.with_known_names(lists)
    assert spelled == {f"{nfc}.jpg": [f"{nfc}1.jpg", "x.jpg"]} and not scorer.problems(spelled)
    odd: Any = {f"{nfd}.jpg": [f"{nfd}1.jpg", 7], "q": None}
    assert scorer.problems(scorer.with_known_names(odd))


@pytest.mark.parametrize("name", ["AP@5", "top-3", "P@4", "R@10", "RR@10", "nDCG@10"])
def test_a_contest_may_rank_by_a_metric_by_name(name: str) -> None:
    queries, gallery, lists = made_up(5, n_queries=57, n_gallery=80, k=10, classes=9)
    found = Scorer(queries, gallery, Rules(top_k=10, metrics=(name,))).scores(lists)["all"]
    scores = evaluate(Ranking.from_lists(lists), Truth(queries, gallery), metrics_named=name)
    figure = scores[name]
    assert figure.mean is not None
    expected = figure.mean * figure.n / len(queries)  # a contest divides by all queries
    assert found.score == found.metrics[name] == pytest.approx(expected, abs=1e-12)
    assert found.interval is not None and found.interval[0] < found.score < found.interval[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("accuracy", "choose of top_k_accuracy, contest_points, map_at_k and metrics by name"),
        ("AP@11", "submissions have only 10 images"),
        ("mINP", "is not known from lists with labels: choose of top-K, P@K"),
        ("nDCG(grades)@5", "is not known from lists with labels"),
    ],
)
def test_a_metric_that_lists_cannot_give_ranks_no_contest(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Rules(top_k=10, metrics=(name,))


def test_several_labels_an_image_are_refused() -> None:
    with pytest.raises(DataError, match="one label an image"):
        Scorer({"q": "a¦b"}, {"g": "a"}, Rules(top_k=1))
