"""Several labels an image, paths as labels and grades: by hand, and against other libraries."""

import itertools
from pathlib import Path

import ir_measures
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ir_measures import nDCG
from sklearn.metrics import average_precision_score

from vizsla.data.label_sets import SharedLabels, are_sets, join_labels, labels_in, split_labels
from vizsla.data.tables import read_labels
from vizsla.errors import DataError, UsageError
from vizsla.score.evaluate import evaluate
from vizsla.score.relevance import relevance, relevant_and_ignored
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking


def test_a_text_stands_for_several_labels() -> None:
    assert labels_in("dog¦pet") == ["dog", "pet"]
    assert labels_in(None) == [] and join_labels([]) is None
    assert join_labels(["pet", "dog", "pet", None]) == "dog¦pet"
    assert are_sets(["dog", None, "dog¦pet"]) and not are_sets(["dog", "pet|dog"])
    column = pa.chunked_array([["pet|dog", None], ["cat", "pet | dog"]])
    assert split_labels(column, "|").to_pylist() == ["dog¦pet", None, "cat", "dog¦pet"]


def test_images_are_relevant_that_share_a_label() -> None:
    shared = SharedLabels(["a¦b", "c", None], ["b", "a¦c", None, "d"])
    assert shared.relevant([0, 1, 2]).tolist() == [
        [True, True, False, False], [False, True, False, False], [False] * 4
    ]  # fmt: skip


def test_levels_in_common() -> None:
    labels = ["animal/dog/vizsla", "animal/dog/pug", "animal/cat", "animal", "plant/dog", None]
    shared = SharedLabels(["animal/dog/vizsla", "animal"], labels, level=2)
    assert shared.depths([0, 1]).tolist() == [[3, 2, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]]
    # A label that ends before the level is equal to itself only.
    assert shared.relevant([0, 1]).tolist() == [
        [True, True, False, False, False, False], [False, False, False, True, False, False]
    ]  # fmt: skip


def test_relevance_and_grades_of_a_hierarchy() -> None:
    ranking = Ranking.from_lists({"q": ["b", "c", "a", "d"]})
    truth = Truth({"q": "x/y"}, {"a": "x/y", "b": "x/z", "c": "w", "d": "x/y"}).with_label_options(
        level=2
    )
    judged = relevance(ranking, truth)
    assert judged.grades is not None and judged.best_grades is not None
    assert judged.grades.tolist() == [[1, 0, 2, 2]]
    assert judged.best_grades.tolist() == [[2, 2, 1, 0]]
    assert judged.hits.tolist() == [[False, False, True, True]]
    wider = relevance(ranking, truth.with_label_options(level=1))
    assert wider.hits.tolist() == [[True, False, True, True]] and wider.n_relevant.tolist() == [3]
    with pytest.raises(UsageError, match="choose 1"):
        truth.with_label_options(level=0)


def random_case(seed: int) -> tuple[Ranking, dict[str, list[int]], dict[str, list[int]]]:
    """A ranking of the whole gallery and several labels for each image."""
    rng = np.random.default_rng(seed)
    G, Q = int(rng.integers(5, 40)), 10
    several = {
        name: sorted({int(c) for c in rng.integers(0, 8, rng.integers(1, 4))})
        for name in [f"{seed}-{i}" for i in range(G + Q)]
    }
    names = list(several)
    positions = np.stack([rng.permutation(G) for _ in range(Q)])
    ranking = Ranking(names[G:], names[:G], positions, gallery_size=G)
    return ranking, {n: several[n] for n in names[G:]}, {n: several[n] for n in names[:G]}


def as_texts(several: dict[str, list[int]], between: str) -> dict[str, str | None]:
    return {name: between.join(map(str, labels)) for name, labels in several.items()}


def test_multi_label_ap_is_scikit_learns() -> None:
    compared = 0
    for seed in range(100):
        ranking, queries, gallery = random_case(seed)
        truth = Truth(as_texts(queries, "|"), as_texts(gallery, "|")).with_label_options(
            separator="|"
        )
        scores = evaluate(ranking, truth, ks=(3,), resamples=10)
        for i, (query, value) in enumerate(
            zip(scores.queries, scores.per_query("map"), strict=True)
        ):
            row = [ranking.gallery[p] for p in ranking.positions[i]]
            right = [bool({*queries[query]} & {*gallery[name]}) for name in row]
            if any(right):
                expected = average_precision_score(right, -np.arange(len(row)))
                assert value == pytest.approx(expected, abs=1e-9)
                compared += 1
        relevant, _ = relevant_and_ignored(truth, ranking.queries, ranking.gallery)
        assert [len(found) for found in relevant] == scores.n_relevant.tolist()
    assert compared > 900


def levels_in_common(one: str, other: str) -> int:
    pairs = zip(one.split("/"), other.split("/"), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


@pytest.mark.parametrize("kind", ["levels", "a column", "judgements"])
def test_ndcg_by_grades_is_that_of_ir_measures(kind: str) -> None:
    qrels: dict[str, dict[str, int]] = {}
    run: dict[str, dict[str, float]] = {}
    ours: dict[tuple[str, int], float | None] = {}
    ks = (1, 3, 10)
    for seed in range(100):
        ranking, queries, gallery = random_case(seed)
        named, found = as_texts(queries, "/"), as_texts(gallery, "/")
        own = {name: seed % 3 + i % 4 for i, name in enumerate(gallery)}
        if kind == "a column":
            named = {name: text and text[:1] for name, text in named.items()}
            found = {name: text and text[:1] for name, text in found.items()}
        grades = {
            query: {
                name: own[name] * (named[query] == found[name]) if kind == "a column"
                else levels_in_common(str(named[query]), str(found[name]))
                for name in gallery
            }
            for query in queries
        }  # fmt: skip
        truth = Truth(
            named,
            found,
            gallery_attributes={"worth": as_texts({n: [g] for n, g in own.items()}, "")},
        )
        if kind == "judgements":
            truth = Truth.from_grades(grades)
        elif kind == "levels":
            truth = truth.with_label_options(level=1)
        else:
            truth = truth.with_label_options(grades_from="worth")
        names = [f"nDCG(grades)@{k}" for k in ks]
        scores = evaluate(ranking, truth, metrics_named=names, resamples=10)
        for i, query in enumerate(ranking.queries):
            if any(grades[query].values()):
                qrels[query] = grades[query]
                run[query] = {
                    ranking.gallery[p]: -float(rank) for rank, p in enumerate(ranking.positions[i])
                }
        for k, name in zip(ks, names, strict=True):
            values = zip(scores.queries, scores.per_query(name), strict=True)
            ours |= {(query, k): value for query, value in values}
    compared = 0
    for one in ir_measures.iter_calc([nDCG @ k for k in ks], qrels, run):
        value = ours[one.query_id, one.measure["cutoff"]]
        assert value == pytest.approx(one.value, abs=1e-9), one
        compared += 1
    assert compared == len(ks) * len(qrels) > 1000
    with pytest.raises(DataError, match="no column size, only worth"):
        Truth({"q": "a"}, {"g": "a"}, gallery_attributes={"worth": {"g": "1"}}).with_label_options(
            grades_from="size"
        )


def test_lists_in_parquet_and_json_are_several_labels(tmp_path: Path) -> None:
    rows = {"file": ["a", "b", "c"], "label": [["pet", "dog"], None, ["cat"]]}
    pq.write_table(pa.table(rows), tmp_path / "labels.parquet")
    (tmp_path / "labels.jsonl").write_text(
        '{"file": "a", "label": ["pet", "dog"]}\n{"file": "b"}\n{"file": "c", "label": ["cat"]}\n'
    )
    for name in ("labels.parquet", "labels.jsonl"):
        table = read_labels(tmp_path / name)
        assert table["label"].to_pylist() == ["dog¦pet", None, "cat"], name


def test_junk_and_self_have_no_grade() -> None:
    labels = {"a": "x/y", "b": "x/y", "c": "x/z"}
    ranking = Ranking.from_lists({"a": ["a", "b", "c"]})
    truth = Truth({"a": "x/y"}, labels, one_set=True, junk={"a": ["b"]}, label_level=1)
    judged = relevance(ranking, truth)
    assert judged.grades is not None and judged.best_grades is not None
    assert judged.grades[:, :1].tolist() == [[1]] and judged.best_grades.tolist() == [[1, 0, 0]]
