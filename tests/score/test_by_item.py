"""Scores of items: by hand, and beside a plain count over random rankings."""

import numpy as np
import pytest

from vizsla.errors import DataError
from vizsla.score.by_item import by_group, by_query_group
from vizsla.score.evaluate import evaluate
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking

GALLERY = ["a1", "a2", "b1", "b2", "b3", "c1", "x"]
PRODUCT = {"a1": "A", "a2": "A", "b1": "B", "b2": "B", "b3": "B", "c1": "C"}
LABELS = {
    "a1": "shoe",
    "a2": "shoe",
    "b1": "hat",
    "b2": "hat",
    "b3": "hat",
    "c1": "shoe",
    "x": "hat",
}
ORDER = ["b2", "a2", "b1", "a1", "x", "c1", "b3"]


def ranking(queries: dict[str, list[str]], scores: dict[str, list[float]] | None = None) -> Ranking:
    positions = np.array([[GALLERY.index(name) for name in row] for row in queries.values()])
    values = np.array(
        [
            (scores or {}).get(q) or list(np.linspace(0.9, 0.1, len(row)))
            for q, row in queries.items()
        ]
    )
    return Ranking(list(queries), GALLERY, positions, values, len(GALLERY))


def truth(queries: dict[str, str], **more: object) -> Truth:
    return Truth(queries, LABELS, gallery_attributes={"product": PRODUCT}, **more)  # type: ignore[arg-type]


def test_a_group_is_one_result_and_relevant_if_one_of_its_images_is() -> None:
    grouped, of_groups = by_group(ranking({"q": ORDER}), truth({"q": "shoe"}), "product")
    assert grouped.row(0) == ["b1", "a1", "x", "c1"] and grouped.gallery_size == 4
    assert of_groups.relevant == {"q": {"a1", "c1"}}
    scores = evaluate(grouped, of_groups, ks=(1, 2))
    assert scores.mean("top_k_accuracy@1") == 0 and scores.mean("top_k_accuracy@2") == 1
    assert scores.mean("map") == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert scores.mean("precision@2") == 0.5


def test_junk_and_the_query_itself_are_in_no_group() -> None:
    junk = truth({"q": "shoe"}, junk={"q": ["a2", "a1", "b2"]})
    grouped, of_groups = by_group(ranking({"q": ORDER}), junk, "product")
    assert grouped.row(0) == ["b1", "x", "c1"] and of_groups.junk == {"q": {"a1"}}
    assert of_groups.relevant == {"q": {"c1"}}
    one = truth({"c1": "shoe", "a1": "shoe"}, one_set=True)
    grouped, of_groups = by_group(ranking({"c1": ORDER, "a1": ORDER}), one, "product")
    assert grouped.row(0) == ["b1", "a1", "x"] and grouped.row(1) == ["b1", "a1", "x", "c1"]
    assert of_groups.relevant == {"c1": {"a1"}, "a1": {"a1", "c1"}}
    assert of_groups.junk == {"c1": {"c1"}}
    assert evaluate(grouped, of_groups).mean("map") == pytest.approx(
        (1 / 2 + (1 / 2 + 2 / 4) / 2) / 2
    )


def test_pictures_of_an_item_are_one_query() -> None:
    first, second = (
        ["b2", "a2", "c1", "b1", "a1", "x", "b3"],
        ["a2", "x", "b1", "b2", "b3", "c1", "a1"],
    )
    scores = {"p": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], "r": [0.85, 0.8, 0.5, 0.4, 0.3, 0.2, 0.1]}
    both = ranking({"p": first, "r": second, "s": ORDER}, scores)
    known = truth({"p": "shoe", "r": "shoe", "s": "hat"}, attributes={"item": {"p": "I", "r": "I"}})
    joined, of_items = by_query_group(both, known, "item", "max")
    assert joined.queries == ["I", "s"] and of_items.query == {"I": "shoe", "s": "hat"}
    assert joined.row(0) == ["b2", "a2", "x", "c1", "b1", "a1", "b3"]
    joined, of_items = by_query_group(both, known, "item", "mean")
    assert joined.row(0)[:2] == ["a2", "b2"]
    assert joined.scores is not None and joined.scores[0, 0] == pytest.approx((0.8 + 0.85) / 2)
    assert joined.row(1) == ORDER
    found = evaluate(joined, of_items, ks=(1,))
    assert found.mean("top_k_accuracy@1") == 1 and len(found) == 2


def test_a_picture_that_the_ranking_lacks_is_an_item_that_counts_as_wrong() -> None:
    columns = {"item": {"p": "I", "r": "J"}}
    some = truth({"p": "shoe", "r": "shoe"}, attributes=columns)
    joined, of_items = by_query_group(ranking({"p": ORDER}), some, "item")
    assert evaluate(joined, of_items, ks=(2,)).mean("top_k_accuracy@2") == 0.5


def test_what_cannot_be_said_is_an_error() -> None:
    one = ranking({"q": ORDER})
    with pytest.raises(DataError, match="no column 'place' of the gallery images: it has product"):
        by_group(one, truth({"q": "shoe"}), "place")
    with pytest.raises(DataError, match="no column 'item' of the query images"):
        by_query_group(one, truth({"q": "shoe"}), "item")
    submitted = Ranking.from_lists({"q": ORDER})
    with pytest.raises(DataError, match="not known from a submission"):
        by_group(submitted, truth({"q": "shoe"}, gallery_complete=False), "product")


def test_groups_of_random_rankings_are_scored_as_by_a_plain_count() -> None:
    rng = np.random.default_rng(0)
    names = [f"g{i:02}" for i in range(40)]
    for _ in range(50):
        labels = {name: "abc"[i] for name, i in zip(names, rng.integers(3, size=40), strict=True)}
        product = {name: f"P{i}" for name, i in zip(names, rng.integers(9, size=40), strict=True)
                   if rng.random() < 0.8}  # fmt: skip
        order = [names[i] for i in rng.permutation(40)]
        positions = np.array([[names.index(name) for name in order]])
        ranked = Ranking(["q"], names, positions, np.linspace(1, 0, 40)[None], 40)
        known = Truth({"q": "a"}, labels, gallery_attributes={"product": product})
        key = {name: product.get(name, name) for name in names}
        seen = list(dict.fromkeys(key[name] for name in order))
        right = {key[name] for name in names if labels[name] == "a"}
        hits = np.array([group in right for group in seen])
        expected = float((np.cumsum(hits) / np.arange(1, len(seen) + 1))[hits].sum() / len(right))
        assert evaluate(*by_group(ranked, known, "product")).mean("map") == pytest.approx(expected)
