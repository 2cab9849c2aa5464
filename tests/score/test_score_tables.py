import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from vizsla.errors import UsageError
from vizsla.score.evaluate import evaluate
from vizsla.score.score_tables import confusion_table, query_table, slice_table, write_queries
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking

TRUTH = Truth(
    {"a": "cat", "b": "cat", "c": "dog", "d": "owl"},
    {"g1": "cat", "g2": "dog", "g3": "cat", "g4": "fox"},
    attributes={"domain": {"a": "photo", "b": "drawn", "c": "photo"}},
)
LISTS = {
    "a": ["g1", "g3", "g2", "g4"],  # AP 1
    "b": ["g2", "g1", "g3", "g4"],  # AP (1/2 + 2/3) / 2
    "c": ["g1", "g2", "g3", "g4"],  # AP 1/2
    "d": ["g4", "g1", "g2", "g3"],  # nothing to find
}


@pytest.fixture
def scores() -> Scores:
    return evaluate(Ranking.from_lists(LISTS), TRUTH, ks=[1, 2], top_k=2)


def test_slices_stand_worst_first_and_unknown_last(scores: Scores) -> None:
    table = slice_table(scores, "label")
    assert [row[:3] for row in table.rows] == [
        ["dog", 1, 0.5],
        ["cat", 2, pytest.approx((1 + 7 / 12) / 2)],
        ["owl", 1, None],
    ]
    assert table.columns[:4] == ["label", "queries", "mAP", "top-1 accuracy"]
    assert slice_table(scores, "label", 1).rows == table.rows[:1]
    domains = {row[0]: row[1] for row in slice_table(scores, "domain").rows}
    assert domains == {"photo": 2, "drawn": 1, "(none)": 1}


def test_a_slices_interval_is_that_of_its_own_queries(scores: Scores) -> None:
    row = next(row for row in slice_table(scores, "label").rows if row[0] == "cat")
    figure = scores.by("label")["cat"]["map"]
    assert row[-2:] == [figure.low, figure.high]
    with pytest.raises(UsageError, match="no column 'group'"):
        slice_table(scores, "group")


def test_confused_pairs_have_their_share_of_the_class(scores: Scores) -> None:
    assert confusion_table(scores).rows == [
        ["cat", "dog", 1, 0.5],
        ["dog", "cat", 1, 1.0],
        ["owl", "fox", 1, 1.0],
    ]
    assert len(confusion_table(scores, 1).rows) == 1


def test_every_query_has_all_its_values(scores: Scores) -> None:
    rows = {row["query"]: row for row in query_table(scores).records()}
    assert rows["b"]["map"] == pytest.approx(7 / 12)
    assert rows["b"]["first_hit_rank"] == 2 and rows["b"]["first_image_label"] == "dog"
    assert rows["d"]["map"] is None and rows["d"]["top_k_accuracy@1"] == 0
    assert rows["d"]["first_hit_rank"] is None and rows["d"]["n_relevant"] == 0
    assert rows["a"]["domain"] == "photo"


def test_written_files_say_the_same(scores: Scores, tmp_path: Path) -> None:
    write_queries(scores, tmp_path / "q.parquet")
    write_queries(scores, tmp_path / "q.csv")
    parquet = pq.read_table(tmp_path / "q.parquet").to_pylist()
    assert parquet == query_table(scores).records()
    with (tmp_path / "q.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["map"] for row in rows][-1] == ""
    assert float(rows[1]["map"]) == parquet[1]["map"]
    with pytest.raises(UsageError, match=r"\.csv or \.parquet"):
        write_queries(scores, tmp_path / "q.json")


def test_columns_without_any_value_keep_their_type(tmp_path: Path) -> None:
    truth = Truth({"a": "cat"}, {"g1": "cat"}, gallery_complete=False)
    scores = evaluate(Ranking.from_lists({"a": ["g1"]}), truth, ks=[1, 5])
    write_queries(scores, tmp_path / "q.parquet")
    schema = pq.read_schema(tmp_path / "q.parquet")
    assert str(schema.field("map").type) == "double"
    assert str(schema.field("n_relevant").type) == "int64"


def test_judgements_without_labels_make_one_nameless_class() -> None:
    truth = Truth.from_grades({"a": {"g1": 1}, "b": {"g9": 1}})
    lists = {"a": ["g2", "g1"], "b": ["g1", "g2"]}
    scores = evaluate(Ranking.from_lists(lists), truth, ks=[2], missing_ranks="absent")
    assert scores.per_query("map") == [0.5, 0]
    assert scores.zero_classes() == [] and scores.worst() == [] and scores.confused() == []
    assert [row[0] for row in slice_table(scores, "label").rows] == ["(none)"]
    assert evaluate(Ranking.from_lists(lists), truth, ks=[1]).top_k == 1  # not the run's length
    assert np.isclose(scores.mean("map") or 0, 0.25)
