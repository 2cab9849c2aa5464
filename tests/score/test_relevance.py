from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from vizsla.data.imageset import ImageSet
from vizsla.errors import DataError, UsageError
from vizsla.score.relevance import match_pairs, relevance, relevant_and_ignored
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking

LISTS = {"q1": ["g1", "g2", "g3"], "q2": ["g3", "g1", "g2"]}
QUERY = {"q1": "cat", "q2": "dog"}
GALLERY = {"g1": "cat", "g2": "dog", "g3": "cat"}


def test_hits_by_hand() -> None:
    judged = relevance(Ranking.from_lists(LISTS), Truth(QUERY, GALLERY))
    assert judged.queries == ["q1", "q2"]
    assert judged.hits.tolist() == [[True, False, True], [False, False, True]]
    assert judged.n_relevant.tolist() == [2, 1]
    assert judged.first_labels == ["cat", "cat"]
    assert judged.whole.all()


def test_junk_takes_no_rank_and_is_not_relevant() -> None:
    truth = Truth(QUERY, GALLERY, junk={"q1": {"g1"}, "q2": ["g1", "unheard of"]})
    judged = relevance(Ranking.from_lists(LISTS), truth)
    assert judged.hits.tolist() == [[False, True, False], [False, True, False]]
    assert judged.lengths.tolist() == [2, 2]
    assert judged.n_relevant.tolist() == [1, 1]
    assert judged.whole.all()


def test_junk_moves_scores_along_with_ranks() -> None:
    ranking = Ranking.from_lists(LISTS, {"q1": [0.9, 0.8, 0.7], "q2": [0.6, 0.5, 0.4]})
    judged = relevance(ranking, Truth(QUERY, GALLERY, junk={"q1": ["g1"]}))
    assert judged.scores is not None
    np.testing.assert_array_equal(judged.scores, [[0.8, 0.7, np.nan], [0.6, 0.5, 0.4]])
    scores, matches = match_pairs(judged, 3)
    assert scores.tolist() == [0.8, 0.7, 0.6, 0.5, 0.4]
    assert matches.tolist() == [False, True, False, False, True]


def test_match_pairs_need_scores() -> None:
    with pytest.raises(DataError, match="holds no scores"):
        match_pairs(relevance(Ranking.from_lists(LISTS), Truth(QUERY, GALLERY)))


def test_self_is_removed_only_where_query_and_gallery_are_one_set() -> None:
    lists = {"a": ["a", "b", "c"], "b": ["b", "c", "a"]}
    labels = {"a": "x", "b": "x", "c": "y"}
    query = {name: labels[name] for name in lists}
    two = relevance(Ranking.from_lists(lists), Truth(query, labels))
    assert two.hits.tolist() == [[True, True, False], [True, False, True]]
    assert two.n_relevant.tolist() == [2, 2]
    one = relevance(Ranking.from_lists(lists), Truth(query, labels, one_set=True))
    assert one.hits.tolist() == [[True, False, False], [False, True, False]]
    assert one.n_relevant.tolist() == [1, 1]
    assert one.whole.all()


def test_a_list_that_left_self_out_already_is_whole_all_the_same() -> None:
    lists = {"a": ["b", "c"], "b": ["c"]}
    labels = {"a": "x", "b": "x", "c": "y"}
    truth = Truth({name: labels[name] for name in lists}, labels, one_set=True)
    judged = relevance(Ranking.from_lists(lists), truth)
    assert judged.whole.tolist() == [True, False]


def test_queries_that_the_ranking_lacks_are_there_and_wrong() -> None:
    lists = {"q2": LISTS["q2"], "q3": []}
    truth = Truth({**QUERY, "q3": "cat"}, GALLERY)
    judged = relevance(Ranking.from_lists(lists), truth)
    assert judged.queries == ["q1", "q2", "q3"]
    assert judged.lacking.tolist() == [True, False, True]
    assert judged.hits.any(axis=1).tolist() == [False, True, False]
    assert judged.first_labels == [None, "cat", None]


def test_queries_without_label_are_left_out_and_named() -> None:
    judged = relevance(Ranking.from_lists(LISTS), Truth({"q1": None, "q2": "dog"}, GALLERY))
    assert judged.queries == ["q2"]
    assert judged.unlabelled == ["q1"]


def test_gallery_images_without_label_are_wrong_and_counted() -> None:
    judged = relevance(Ranking.from_lists(LISTS), Truth(QUERY, {**GALLERY, "g1": None}))
    assert judged.hits.tolist() == [[False, False, True], [False, False, True]]
    assert judged.n_relevant.tolist() == [1, 1]
    assert judged.unlabelled_gallery == 1


def test_names_that_the_truth_does_not_hold_are_an_error_that_shows_some() -> None:
    with pytest.raises(DataError, match=r"2 of the ranking's queries \(q1, q2\)"):
        relevance(Ranking.from_lists(LISTS), Truth({"other": "cat"}, GALLERY))
    with pytest.raises(DataError, match=r"1 of the ranking's gallery images \(g3\)"):
        relevance(Ranking.from_lists(LISTS), Truth(QUERY, {"g1": "cat", "g2": "dog"}))


def test_a_list_that_names_an_image_twice_is_refused() -> None:
    with pytest.raises(DataError, match="query q1 names g1 twice"):
        relevance(Ranking.from_lists({"q1": ["g1", "g2", "g1"]}), Truth(QUERY, GALLERY))


def test_a_truth_without_any_label_is_refused() -> None:
    with pytest.raises(DataError, match="labels none of its 1 query images"):
        Truth({"q1": None}, GALLERY)


def test_an_incomplete_gallery_leaves_the_number_of_relevant_unknown() -> None:
    judged = relevance(Ranking.from_lists(LISTS), Truth(QUERY, GALLERY, gallery_complete=False))
    assert judged.n_relevant.tolist() == [-1, -1]
    assert not judged.whole.any()


def test_a_ranking_that_knows_its_gallery_completes_the_truth() -> None:
    known = Ranking(["q1"], ["g1", "g2", "g3"], np.array([[0, 1]]), gallery_size=3)
    truth = Truth(QUERY, GALLERY, query_complete=False, gallery_complete=False)
    judged = relevance(known, truth)
    assert judged.queries == ["q1"]
    assert judged.n_relevant.tolist() == [2]


def test_lists_of_another_length_are_told() -> None:
    with pytest.raises(DataError, match="2 labels for 1 query ids"):
        Truth.from_lists(["q1"], ["cat", "dog"], list(GALLERY), list(GALLERY.values()))
    with pytest.raises(DataError, match="occur twice"):
        Truth.from_lists(["q1", "q1"], ["cat", "dog"], list(GALLERY), list(GALLERY.values()))


def table(**columns: list[str | None]) -> pa.Table:
    return pa.table(columns)


def test_from_labels_with_roles_keeps_equal_names_apart() -> None:
    truth = Truth.from_labels(
        table(
            file=["a.jpg", "a.jpg", "b.jpg", "c.jpg"],
            label=["cat", "dog", "cat", "x"],
            role=["query", "gallery", "gallery", "training"],
            domain=["photo", "drawn", "drawn", None],
        )
    )
    assert truth.query == {"a.jpg": "cat"}
    assert truth.gallery == {"a.jpg": "dog", "b.jpg": "cat"}
    assert truth.query_complete and truth.gallery_complete
    assert truth.attributes == {"domain": {"a.jpg": "photo"}}


def test_from_labels_without_roles_judges_the_queries_of_the_ranking() -> None:
    truth = Truth.from_labels(
        table(file=["q1", "q2", "g1", "g2", "g3"], label=["cat", "dog", "cat", "dog", "cat"])
    )
    judged = relevance(Ranking.from_lists({"q1": LISTS["q1"]}), truth)
    assert judged.queries == ["q1"]
    assert judged.n_relevant.tolist() == [-1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"file": ["a"]}, "needs file and label"),
        ({"file": ["a", "a"], "label": ["x", "y"]}, "two values of label, x and y"),
        ({"file": ["a"], "label": ["x"], "role": ["query"]}, "no rows with role gallery"),
    ],
)
def test_from_labels_says_what_is_wrong(columns: dict[str, list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Truth.from_labels(pa.table(columns))


def test_from_file_reads_a_labels_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "labels.csv"
    path.write_text("role,file,label\nquery,q1,cat\ngallery,g1,cat\n")
    assert Truth.from_file(path).gallery == {"g1": "cat"}


def test_from_pattern_knows_a_submission_only_in_part() -> None:
    ranking = Ranking.from_lists({"big_cat_1.jpg": ["big_cat_2.jpg", "dog_1.jpg"]})
    truth = Truth.from_pattern(ranking, "{label}_{n}")
    assert truth.query == {"big_cat_1.jpg": "big_cat"}
    assert not truth.gallery_complete
    whole = ["big_cat_2.jpg", "dog_1.jpg", "big_cat_3.jpg"]
    judged = relevance(ranking, Truth.from_pattern(ranking, "{label}_{n}", gallery=whole))
    assert judged.n_relevant.tolist() == [2]


def test_from_pattern_that_fits_no_name_is_refused() -> None:
    with pytest.raises(DataError, match="labels none of its"):
        Truth.from_pattern(Ranking.from_lists({"0af3.jpg": ["99bc.jpg"]}), "{label}_{n}")


def test_from_sets_takes_labels_and_attributes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    query = ImageSet(tmp_path, ["q1", "q2"], table(label=["cat", "dog"], domain=["photo", None]))
    gallery = ImageSet(tmp_path, list(GALLERY), table(label=list(GALLERY.values())))
    truth = Truth.from_sets(query, gallery)
    assert truth.query == QUERY and truth.gallery == GALLERY
    assert truth.attributes == {"domain": {"q1": "photo", "q2": None}}


def test_relevant_and_ignored_positions() -> None:
    truth = Truth({**QUERY, "g1": "cat"}, GALLERY, one_set=True, junk={"q1": ["g3"]})
    relevant, ignored = relevant_and_ignored(truth, ["q1", "q2", "g1"], ["g3", "g2", "g1"])
    assert [list(found) for found in relevant] == [[2], [1], [0]]
    assert [list(found) for found in ignored] == [[0], [], [2]]


# ── judgements instead of labels ─────────────────────────────────────────────────────────────────

GRADES = {"q1": {"g1": 0, "g2": 3, "g3": 1}, "q2": {"g3": -1, "g1": 1}, "q3": {"g1": 0}}


def test_judgements_by_hand() -> None:
    lists = {**LISTS, "q3": ["g2", "g1"], "q4": ["g1"]}
    judged = relevance(Ranking.from_lists(lists), Truth.from_grades(GRADES))
    assert judged.queries == ["q1", "q2", "q3"]
    assert judged.unlabelled == ["q4"]
    assert judged.hits.tolist() == [
        [False, True, True],
        [True, False, False],  # g3 is junk: g1 closes up to rank 1
        [False, False, False],
    ]
    assert judged.lengths.tolist() == [3, 2, 2]
    assert judged.n_relevant.tolist() == [2, 1, 0]
    assert judged.labels == [None, None, None]


def test_judged_images_that_the_ranking_never_shows_count_as_relevant() -> None:
    truth = Truth.from_grades({"q1": {"g1": 1, "elsewhere": 1}})
    judged = relevance(Ranking.from_lists({"q1": ["g1", "g2"]}), truth)
    assert judged.n_relevant.tolist() == [2]


def test_judgements_take_labels_for_slices_alone() -> None:
    labels = Truth(QUERY, GALLERY, attributes={"domain": {"q1": "photo"}})
    truth = Truth.from_grades({"q1": {"g2": 1}, "q2": {"g2": 1}}, labels=labels)
    judged = relevance(Ranking.from_lists(LISTS), truth)
    assert judged.hits.tolist() == [[False, True, False], [False, False, True]]
    assert judged.labels == ["cat", "dog"]
    assert judged.first_labels == ["cat", "cat"]
    assert truth.attributes["domain"] == {"q1": "photo"}


def test_judgements_without_self_in_one_set() -> None:
    truth = Truth.from_grades({"a": {"a": 1, "b": 1}}, one_set=True)
    judged = relevance(Ranking.from_lists({"a": ["a", "c", "b"]}), truth)
    assert judged.hits.tolist() == [[False, True, False]]
    assert judged.n_relevant.tolist() == [1]


def test_judgements_of_another_data_set_are_refused() -> None:
    ranking = Ranking(["q1"], ["g1", "g2"], np.array([[0, 1]]), gallery_size=2)
    with pytest.raises(DataError, match=r"none of the ranking's 1 queries \(q1"):
        relevance(ranking, Truth.from_grades({"other": {"g1": 1}}))
    with pytest.raises(DataError, match="none of the gallery's 2 images"):
        relevance(ranking, Truth.from_grades({"q1": {"x.jpg": 1}}))
    with pytest.raises(DataError, match="judges no query"):
        Truth.from_grades({})


def test_relevant_positions_come_from_judgements_too() -> None:
    relevant, ignored = relevant_and_ignored(
        Truth.from_grades(GRADES), ["q1", "q2", "q3"], ["g1", "g2", "g3"]
    )
    assert [row.tolist() for row in relevant] == [[1, 2], [0], []]
    assert [row.tolist() for row in ignored] == [[], [2], []]


def test_grades_follow_their_images_past_junk_and_other_spellings() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    grades = {composed: {"g1": -1, composed: 3, "g3": 1, "lost": 2}, "q2": {"g1": 0}}
    ranking = Ranking.from_lists({decomposed: ["g1", decomposed, "g3"], "q2": ["g3", "g1"]})
    judged = relevance(ranking, Truth.from_grades(grades))
    assert judged.grades is not None and judged.best_grades is not None
    assert judged.grades.tolist() == [[3, 1, 0], [0, 0, 0]]
    assert judged.best_grades.tolist() == [[3, 2, 1], [0, 0, 0]]
    assert judged.n_relevant.tolist() == [3, 0]
    assert relevance(Ranking.from_lists(LISTS), Truth(QUERY, GALLERY)).grades is None


def test_a_truth_of_several_levels_is_judged_by_the_one_that_is_chosen() -> None:
    levels = {"strict": {"q1": {"g1": 1, "g3": -1}}, "lenient": {"q1": {"g1": 1, "g3": 1}}}
    truth = replace(Truth.from_grades(levels["lenient"]), levels=levels)
    ranking = Ranking.from_lists(LISTS)
    assert relevance(ranking, truth.at_level("strict")).hits[0].tolist() == [True, False, False]
    again = truth.at_level("strict").at_level("lenient")
    assert relevance(ranking, again).hits[0].tolist() == [True, False, True]
    with pytest.raises(UsageError, match="no level 'hard': its levels are strict, lenient"):
        truth.at_level("hard")
