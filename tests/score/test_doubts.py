"""Names that are no labels must not give a number without a word about it."""

import pytest

from vizsla.score.evaluate import evaluate
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking


def submission(queries: list[str], gallery: list[str]) -> Ranking:
    """A list of the first half of the gallery for every query; what else there is is unknown."""
    half = len(gallery) // 2
    rows = [gallery[i % half :][:half] for i in range(len(queries))]
    return Ranking.from_lists(dict(zip(queries, rows, strict=True)))


def by_name(queries: list[str], gallery: list[str]) -> Scores:
    ranking = submission(queries, gallery)
    return evaluate(ranking, Truth.from_pattern(ranking), ks=[1, 2])


def whole(queries: list[str], gallery: list[str]) -> Scores:
    ranking = submission(queries, gallery)
    truth = Truth.from_pattern(ranking, queries=queries, gallery=gallery)
    return evaluate(ranking, truth, ks=[1, 2])


def names(*stems: str) -> list[str]:
    return [f"{stem}.jpg" for stem in stems]


CATS = names(*(f"cat_{i}" for i in range(4)), *(f"dog_{i}" for i in range(4)))


def test_labels_of_their_kind_are_not_doubted() -> None:
    assert by_name(names("cat_9", "dog_9"), CATS).doubts == []
    assert whole(names("cat_9", "dog_9"), CATS).doubts == []
    assert whole(names("cat_9", "owl_9"), CATS).doubts == []  # reported as a query without any


def test_other_labels_in_the_gallery() -> None:
    [doubt] = whole(names("a_1", "a_2", "b_1"), CATS).doubts
    assert doubt.startswith("there is nothing to find: no gallery image carries the label")
    assert "queries are labelled a, b, gallery images cat." in doubt


def test_every_image_of_a_class_of_its_own() -> None:
    scores = whole(names("q1_0", "q2_0", "q3_0", "q4_0"), names(*(f"g{i}_0" for i in range(8))))
    [doubt] = scores.doubts
    assert "every query has a label of its own, and no gallery image carries" in doubt
    assert "queries are labelled q1, q2, q3 and 1 more, gallery images g0, g1" in doubt
    one_set = names(*(f"image{i}_0" for i in range(8)))
    ranking = Ranking.from_lists({name: [o for o in one_set if o != name] for name in one_set})
    truth = Truth.from_pattern(ranking, queries=one_set, gallery=one_set, one_set=True)
    assert "a label of its own" in evaluate(ranking, truth).doubts[0]


def test_a_submission_without_any_hit() -> None:
    scores = by_name(names("x_1", "y_2"), CATS)
    assert scores["top_k_accuracy@1"].mean == 0
    [doubt] = scores.doubts
    assert "not one right image in 2 lists" in doubt
    assert "labelled x, y, the images found first cat" in doubt
    assert (
        scores.notes[0] == doubt and doubt in scores.text() and doubt in scores.to_dict()["notes"]
    )


@pytest.mark.parametrize("score", [by_name, whole])
def test_one_label_for_everything_is_no_label(score) -> None:  # type: ignore[no-untyped-def]
    scores = score(names("IMG_1", "IMG_2"), names(*(f"IMG_{i}" for i in range(10, 18))))
    assert scores["precision@2"].mean == 1
    [doubt] = scores.doubts
    assert "any ranking is right" in doubt and "IMG" in doubt
