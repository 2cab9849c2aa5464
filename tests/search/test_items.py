"""Several query pictures of one item, joined by vector or by score."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from vizsla.choose.query_join import choose_query_join
from vizsla.data.tiles import Tiles
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.run.functions import search
from vizsla.search import exact
from vizsla.search.groups import ResultForm
from vizsla.search.items import joined_rankings, joined_vectors
from vizsla.search.results import regrouped


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


RNG = np.random.default_rng(2)
GALLERY = Embeddings(
    [f"g{i:03}" for i in range(300)], unit(RNG.standard_normal((300, 8))),
    pa.table({"product": [f"P{i // 3}" for i in range(300)]}), "m",
)  # fmt: skip
ITEMS = {"A": [0, 1, 2], "B": [3, 4], "q5": [5]}
QUERIES = Embeddings(
    [f"q{i}" for i in range(6)], unit(RNG.standard_normal((6, 8))),
    pa.table({"item": ["A", "A", "A", "B", "B", None]}), "m",
)  # fmt: skip


def test_the_mean_of_vectors_ranks_as_the_mean_of_scores() -> None:
    by_vector = exact.rank(joined_vectors(QUERIES, ITEMS), GALLERY, 300)
    by_score = joined_rankings(exact.rank(QUERIES, GALLERY, 300), ITEMS, "mean")
    assert by_vector.queries == by_score.queries == ["A", "B", "q5"]
    assert by_vector.to_lists() == by_score.to_lists()


@pytest.mark.parametrize("k", [1, 7, 50])
def test_the_highest_score_needs_no_more_than_k_of_each_picture(k: int) -> None:
    every = QUERIES.vectors.astype(np.float64) @ GALLERY.vectors.astype(np.float64).T
    found = joined_rankings(exact.rank(QUERIES, GALLERY, k), ITEMS, "max")
    for row, pictures in zip(found.positions, ITEMS.values(), strict=True):
        assert row.tolist() == np.argsort(-every[pictures].max(axis=0), kind="stable")[:k].tolist()


@pytest.mark.parametrize("refine", ["none", "aqe(n=2)"])
def test_search_by_items_with_groups_and_filters(refine: str) -> None:
    options = {"query_group": "item", "refine": refine, "top_k": 12}
    for join in ("mean", "max"):
        plain = search(GALLERY, QUERIES, query_join=join, **options)  # type: ignore[arg-type]
        assert plain.queries == list(ITEMS) and plain.lengths.tolist() == [12, 12, 12]
        grouped = search(GALLERY, QUERIES, query_join=join, group_by="product", **options)  # type: ignore[arg-type]
        for many, few in zip(plain.to_lists().values(), grouped.to_lists().values(), strict=True):
            groups = list(dict.fromkeys(int(name[1:]) // 3 for name in many))
            assert [int(name[1:]) // 3 for name in few[: len(groups)]] == groups and len(few) == 12
        some = search(
            GALLERY,
            QUERIES,
            query_join=join,
            filter=("product=P1|P2|P3|P4",),
            diverse=0.5,
            **options,
        )  # type: ignore[arg-type]
        assert {int(name[1:]) // 3 for row in some.to_lists().values() for name in row} == {
            1,
            2,
            3,
            4,
        }
    every = search(GALLERY, QUERIES, query_group="all", top_k=3)
    assert every.queries == ["all"]


def test_joined_and_regrouped_rankings_keep_nothing_of_the_earlier_results() -> None:
    plain = exact.rank(QUERIES, GALLERY, 300)
    shape = plain.positions.shape
    ranking = replace(
        plain, accepted=np.ones(6, int), probability=np.ones(shape), tiles=Tiles.parse("1+2x2"),
        best_tile=np.zeros(shape, np.int8), members=plain.positions[..., None],
        member_scores=plain.scores[..., None],  # type: ignore[index]
    )  # fmt: skip
    joined = joined_rankings(ranking, ITEMS, "max")
    grouped = regrouped(ranking, GALLERY, 5, ResultForm("product", 2))
    for found in (joined, grouped):
        assert found.accepted is found.probability is None
        assert found.head(3).depth == 3
    assert joined.tiles is joined.best_tile is None  # of which picture?
    assert grouped.tiles == ranking.tiles and (grouped.best_tile == 0).all()  # type: ignore[union-attr]
    assert joined.members is None and grouped.members.shape == (6, 5, 2)  # type: ignore[union-attr]
    cut = ranking.only_accepted()
    assert cut.members.shape == (6, 1, 1) and (cut.members >= 0).all()  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"members has shape \(6, 300, 1\), expected \(\*\(6, 2\)"):
        replace(ranking, positions=plain.positions[:, :2], scores=None, probability=None,
                best_tile=None)  # fmt: skip


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(DataError, match="have the columns item"):
        search(GALLERY, QUERIES, query_group="place")
    with pytest.raises(DataError, match="no table says anything of the queries"):
        search(GALLERY, QUERIES.vectors, query_group="place")
    with pytest.raises(UsageError, match="find each other"):
        search(GALLERY, GALLERY, query_group="product", same_set=True)
    with pytest.raises(UsageError, match=r"give --learn-on|give learn_on"):
        search(GALLERY, QUERIES, query_group="item", query_join="auto")
    with pytest.raises(UsageError, match="joins the pictures of items"):
        search(GALLERY, QUERIES, query_join="max")
    opposite = Embeddings(["a", "b"], unit(np.array([[1.0, 0], [-1, 0]])), pa.table({}), "m")
    with pytest.raises(DataError, match="cancel each other out"):
        joined_vectors(opposite, {"A": [0, 1]})


def training(noise: float, stray: float, items_a_class: int) -> Embeddings:
    """Items of four pictures near their class; a share of the pictures shows something else."""
    rng = np.random.default_rng(4)
    centres = rng.standard_normal((10, 16))
    rows, labels, items = [], [], []
    for i in range(10 * items_a_class):
        for _ in range(4):
            point = rng.standard_normal(16) if rng.random() < stray else centres[i % 10]
            rows.append(point + noise * rng.standard_normal(16))
            labels.append(str(i % 10))
            items.append(f"I{i}")
    names = [f"t{i:03}" for i in range(len(rows))]
    return Embeddings(names, unit(np.array(rows)), pa.table({"label": labels, "item": items}), "m")


@pytest.mark.parametrize("items_a_class", [1, 4])
def test_the_join_is_chosen_on_training_items(items_a_class: int) -> None:
    noisy = choose_query_join(training(1.2, 0.0, items_a_class), "item")
    assert noisy.join == "mean" and noisy.values["mean"] > noisy.values["max"]
    if items_a_class > 1:  # an item has four query pictures, most of them useless
        strays = choose_query_join(training(0.05, 0.6, items_a_class), "item")
        assert strays.join == "max" and strays.values["max"] > strays.values["mean"]
    with pytest.raises(DataError, match="several training images"):
        choose_query_join(training(1, 0, 1).subset(np.arange(0, 40, 4)), "item")


def test_the_join_is_chosen_by_what_is_optimised() -> None:
    found = {
        optimise: choose_query_join(training(1.2, 0.3, 4), "item", optimise=optimise).values
        for optimise in ("mean", "map", "top-1", "points")
    }
    for join in ("mean", "max"):
        top1, ap = found["top-1"][join], found["map"][join]
        assert found["mean"][join] == pytest.approx((top1 + ap) / 2) and top1 > ap
        assert top1 < found["points"][join] < 1  # ranks up to 10 count
