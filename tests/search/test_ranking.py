import dataclasses
from pathlib import Path

import numpy as np
import pytest

from vizsla.errors import DataError, StorageError
from vizsla.search.ranking import Ranking, self_positions, without_self


def example() -> Ranking:
    return Ranking(
        ["q1", "q2", "q 3"],
        ["a", "b/é", "c"],
        np.array([[2, 0, 1], [1, -1, -1], [-1, -1, -1]]),
        np.array([[0.9, 0.5, 0.5], [0.1, np.nan, np.nan], [np.nan] * 3]),
        gallery_size=7,
        origin={"model_id": "m"},
    )


def test_file_round_trip_keeps_all(tmp_path: Path) -> None:
    before = example()
    before.save(tmp_path / "r.parquet")
    after = Ranking.load(tmp_path / "r.parquet")
    assert after.to_lists() == {"q1": ["c", "a", "b/é"], "q2": ["b/é"], "q 3": []}
    assert after.to_lists() == before.to_lists()
    np.testing.assert_array_equal(after.scores, before.scores)
    assert (after.gallery_size, after.origin) == (7, {"model_id": "m"})
    assert after.lengths.tolist() == [3, 1, 0]


def test_the_images_of_groups_are_kept(tmp_path: Path) -> None:
    none = [-1, -1]
    members = np.array([[[2, 1], [0, -1], none], [[1, 0], none, none], [none, none, none]])
    values = np.where(members >= 0, 0.25 * (members + 1), np.nan)
    before = dataclasses.replace(example(), members=members, member_scores=values)
    before.save(tmp_path / "r.parquet")
    after = Ranking.load(tmp_path / "r.parquet")
    assert after.members is not None and after.to_lists() == {
        "q1": ["c", "a", "b/é"], "q2": ["b/é"], "q 3": []
    }  # fmt: skip

    def named(ranking: Ranking) -> list[list[list[str]]]:
        assert ranking.members is not None
        return [
            [[ranking.gallery[p] for p in of if p >= 0] for of in row] for row in ranking.members
        ]

    assert named(after) == named(before)
    np.testing.assert_array_equal(after.member_scores, values)
    empty = dataclasses.replace(before.head(0), members=members[:, :0], member_scores=values[:, :0])
    empty.save(tmp_path / "e.parquet")
    assert Ranking.load(tmp_path / "e.parquet").lengths.tolist() == [0, 0, 0]


def test_from_lists_without_scores(tmp_path: Path) -> None:
    ranking = Ranking.from_lists({"x": ["b", "a"], "y": ["a"]})
    ranking.save(tmp_path / "r.parquet")
    again = Ranking.load(tmp_path / "r.parquet")
    assert again.to_lists() == {"x": ["b", "a"], "y": ["a"]}
    assert again.scores is None and again.gallery_size is None
    assert again.to_lists(1) == {"x": ["b"], "y": ["a"]}


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        example().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="each query once"):
        Ranking(["a", "a"], [], np.zeros((2, 0), int))
    with pytest.raises(DataError, match="shape"):
        Ranking(["a"], [], np.zeros((2, 0), int))
    (tmp_path / "r.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(StorageError, match="no seal"):
        Ranking.load(tmp_path / "r.parquet")


def test_the_query_itself_is_left_out_of_full_short_and_foreign_rows() -> None:
    positions = np.array([[2, 0, 1], [1, 2, 0], [0, 1, -1]])
    scores = np.array([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4], [0.3, 0.2, np.nan]])
    self_at = self_positions(["a", "elsewhere", "b"], ["a", "b", "c"])
    np.testing.assert_array_equal(self_at, [0, -1, 1])

    found, kept = without_self(positions, scores, self_at, 2)
    np.testing.assert_array_equal(found, [[2, 1], [1, 2], [0, -1]])
    np.testing.assert_array_equal(kept, [[0.9, 0.7], [0.6, 0.5], [0.3, np.nan]])

    found, kept = without_self(positions, scores, self_at, 3)  # a filter left no more than three
    np.testing.assert_array_equal(found, [[2, 1, -1], [1, 2, 0], [0, -1, -1]])
    np.testing.assert_array_equal(np.isnan(kept), found < 0)
