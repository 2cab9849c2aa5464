from pathlib import Path

import ir_measures
import numpy as np
import pytest
from ir_measures import AP, RR, P, R, Rprec, Success, nDCG

from vizsla.errors import DataError
from vizsla.output.submission import read_submission
from vizsla.output.trec import grades_of, read_qrels, write_qrels, write_run
from vizsla.score.evaluate import evaluate
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking

PAIRS = {
    AP: "map", Rprec: "r_precision", RR: "mrr", P@3: "precision@3", R@3: "recall@3",
    nDCG@3: "ndcg@3", Success@3: "top_k_accuracy@3",
}  # fmt: skip


def made_up(seed: int, *, one_set: bool = False) -> tuple[Ranking, Truth]:
    """12 queries on 30 images with ties, junk, names with spaces, and queries without a match."""
    rng = np.random.default_rng(seed)
    gallery = [f"sub dir/g {i} 50%25.jpg" for i in range(30)]
    queries = gallery[:12] if one_set else [f"q {i}.jpg" for i in range(12)]
    labels = {name: str(rng.integers(5)) for name in gallery}
    query_labels = {q: labels[q] if one_set else str(rng.integers(7)) for q in queries}
    values = rng.integers(0, 6, (12, 30)) / 7
    order = np.stack([np.lexsort((np.arange(30), -row)) for row in values])
    ranking = Ranking(
        queries, gallery, order, np.take_along_axis(values, order, 1), gallery_size=30
    )
    junk = {q: set(rng.choice(gallery, 3, replace=False)) for q in queries[::2]}
    return ranking, Truth(query_labels, labels, one_set=one_set, junk=junk)


def evaluated(ranking: Ranking, truth: Truth, **options: str) -> Scores:
    return evaluate(ranking, truth, ks=(1, 3), top_k=3, resamples=10, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("one_set", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_written_files_give_the_same_scores_here_and_in_ir_measures(
    seed: int, one_set: bool, tmp_path: Path
) -> None:
    ranking, truth = made_up(seed, one_set=one_set)
    before = evaluated(ranking, truth)
    write_run(ranking, truth, tmp_path / "run.trec")
    write_qrels(grades_of(ranking, truth), tmp_path / "qrels.txt")

    grades = read_qrels(tmp_path / "qrels.txt")
    after = evaluated(read_submission(tmp_path / "run.trec"), Truth.from_grades(grades))
    assert after.queries == before.queries
    for key in [*PAIRS.values(), "ap@3", "map_at_r", "contest_points"]:
        assert after.per_query(key) == before.per_query(key), key
        assert after.mean(key) == before.mean(key), key

    run = [*ir_measures.read_trec_run(str(tmp_path / "run.trec"))]
    qrels = [*ir_measures.read_trec_qrels(str(tmp_path / "qrels.txt"))]
    ours = {
        key: dict(zip(before.queries, before.per_query(key), strict=True)) for key in PAIRS.values()
    }
    compared = 0
    for found in ir_measures.iter_calc([*PAIRS], qrels, run):
        query = found.query_id.replace("%20", " ").replace("%2525", "%25")
        expected = ours[PAIRS[found.measure]][query]
        if expected is None:  # nothing relevant: left out of our means, 0 in theirs
            assert found.value == 0
            continue
        assert found.value == pytest.approx(expected, abs=1e-9), (found, query)
        compared += 1
    assert compared >= len(PAIRS) * 6


@pytest.mark.parametrize("seed", range(5))
def test_short_runs_give_what_trec_gives_when_missing_ranks_are_absent(seed: int) -> None:
    ranking, truth = made_up(seed)
    grades = grades_of(ranking, truth)
    lists = {
        q: [name for name in row if grades[q].get(name, 0) >= 0][: 2 + i % 9]
        for i, (q, row) in enumerate(ranking.to_lists().items())
    }
    short, judged = Ranking.from_lists(lists), Truth.from_grades(grades)
    assert evaluated(short, judged).mean("map") is None
    scores = evaluated(short, judged, missing_ranks="absent")
    run = {q: {n: -float(i) for i, n in enumerate(row)} for q, row in lists.items()}
    answerable = {q: row for q, row in grades.items() if max(row.values()) > 0}
    found = ir_measures.calc_aggregate([AP, Rprec, RR, P @ 3, R @ 3, nDCG @ 3], answerable, run)
    for measure, value in found.items():
        assert scores.mean(PAIRS[measure]) == pytest.approx(value, abs=1e-9), measure


def test_grades_are_kept_and_negative_ones_are_junk(tmp_path: Path) -> None:
    text = "q1 0 a 2\n\nq1 Q0 b -1\nq1 0 a 2\r\nq2 0 c 0\n"
    (tmp_path / "qrels.txt").write_text(text)
    grades = read_qrels(tmp_path / "qrels.txt")
    assert grades == {"q1": {"a": 2, "b": -1}, "q2": {"c": 0}}
    truth = Truth.from_grades(grades)
    assert truth.relevant == {"q1": {"a"}, "q2": set()}
    assert truth.junk == {"q1": {"b"}}
    assert truth.grades == {"q1": {"a": 2}, "q2": {}}
    write_qrels(grades, tmp_path / "again.txt")
    assert read_qrels(tmp_path / "again.txt") == grades
    ranking = Ranking.from_lists({"q1": ["a", "b"], "q2": ["c", "a"]})
    assert grades_of(ranking, truth)["q1"] == {"a": 2, "b": -1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no judgement"),
        ("q1 0 a\n", "line 1: expected four fields"),
        ("q1 0 a 1\nq1 0 b high\n", "line 2: expected a whole number as grade, got 'high'"),
        ("q1 0 a 1\nq1 0 a 0\n", "line 2: 'q1' and 'a' have the grades 1 and 0"),
    ],
)
def test_a_line_that_is_no_judgement_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_qrels(tmp_path / "bad.txt")
    assert str(tmp_path / "bad.txt") in str(caught.value)


def test_an_incomplete_truth_gives_no_qrels() -> None:
    ranking = Ranking.from_lists({"cat_1.jpg": ["cat_2.jpg"]})
    with pytest.raises(DataError, match="judgements would be incomplete"):
        grades_of(ranking, Truth.from_pattern(ranking))
