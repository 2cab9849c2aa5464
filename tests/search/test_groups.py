"""Results by group, beside an oracle that knows all scores, for every kind of index."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.search import exact
from vizsla.search.ann import KINDS
from vizsla.search.filters import Filter
from vizsla.search.groups import Grouping
from vizsla.search.index import Index, build_index, in_memory, open_index

G, Q, D = 1100, 3, 16
APPROXIMATE = ("hnsw", "ivf", "ivfsq8", "ivfpq")
COLUMNS = ("product", "stars", "sale", "price", "all")


def unit(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((60, D))
    rows = centres[rng.integers(60, size=n)] + 0.5 * rng.standard_normal((n, D))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def catalogue() -> Embeddings:
    rng = np.random.default_rng(3)

    def some(values: list[Any], without: int) -> list[Any]:
        return [None if i % without == 0 else value for i, value in enumerate(values)]

    columns = {
        "product": some([f"P{n}" for n in rng.integers(300, size=G)], 11),
        "stars": some(rng.integers(1, 6, size=G).tolist(), 13),
        "sale": [bool(n) for n in rng.integers(2, size=G)],
        "price": some([n / 4 for n in rng.integers(40, size=G).tolist()], 17),
        "all": ["one"] * G,
    }
    return Embeddings([f"g{i:04}" for i in range(G)], unit(G, 0), pa.table(columns), "m")


GALLERY = catalogue()
QUERIES = Embeddings([f"q{i}" for i in range(Q)], unit(Q, 1), pa.table({}), "m")


@pytest.fixture(
    scope="module",
    params=[
        "exact",
        "hnsw",
        "ivfpq",
        "milvus-lite",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("ivf", "ivfsq8")),
    ],
)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "milvus-lite":
        pytest.importorskip("milvus_lite", reason="no Milvus Lite: pip install 'vizsla[milvus]'")
    return str(request.param)


@pytest.fixture(scope="module")
def index(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    where = tmp_path_factory.mktemp(kind) / ("i.db" if kind == "milvus-lite" else "i")
    build_index(GALLERY, where, kind=kind if kind in KINDS else "auto")
    yield open_index(where)


def expected(
    images: list[tuple[str, float]], column: str, k: int, per_group: int, score: str
) -> list[tuple[str, float, list[str]]]:
    """(best image, score, best images) of the k best groups of images with scores, best first."""
    row_of = {name: i for i, name in enumerate(GALLERY.ids)}
    values = GALLERY.attributes[column].to_pylist()
    groups: dict[Any, list[tuple[str, float]]] = {}
    for name, value in images:
        group = values[row_of[name]]
        groups.setdefault(("alone", name) if group is None else group, []).append((name, value))
    found = [
        (members[0][0],
         members[0][1] if score == "best" else sum(s for _, s in members[:2]) / len(members[:2]),
         [name for name, _ in members[:per_group]])
        for members in groups.values()
    ]  # fmt: skip
    return sorted(found, key=lambda one: (-one[1], one[0]))[:k]


def conditions(rng: np.random.Generator) -> list[str]:
    """One to three random conditions."""
    stars, price = rng.integers(1, 6), rng.integers(40) / 4
    ids = "|".join(f"g{i:04}" for i in rng.integers(G, size=40))
    products = "|".join(f"P{i}" for i in rng.integers(300, size=rng.integers(1, 60)))
    every = [
        f"stars={stars}", f"stars!={stars}", f"stars>={stars}", "stars=null", f"price<{price}",
        f"price>{price}", "price=null", "sale=true", "sale=false", f"product={products}",
        "product=null", "product!=null", "product!=P7|P8", f"id={ids}",
    ]  # fmt: skip
    return [str(one) for one in rng.choice(every, size=rng.integers(1, 4), replace=False)]


def compare(ranking: Any, i: int, wanted: list[tuple[str, float, list[str]]], members: int) -> None:
    assert ranking.row(i) == [name for name, _, _ in wanted]
    scores = ranking.scores[i, : len(wanted)]
    np.testing.assert_array_equal(scores, [score for _, score, _ in wanted])
    if members > 1:
        shown = [
            [ranking.gallery[p] for p in row if p >= 0] for row in ranking.members[i, : len(wanted)]
        ]
        assert shown == [names for _, _, names in wanted]


def test_groups_equal_an_oracle_with_200_random_filters(kind: str, index: Index) -> None:
    """Approximate kinds: over the images that they give."""
    rng = np.random.default_rng(5)
    for _ in range(200):
        texts = conditions(rng)
        column, k = str(rng.choice(COLUMNS)), int(rng.integers(1, 40))
        per_group, score = int(rng.integers(1, 4)), str(rng.choice(["best", "best-two"]))
        if kind in APPROXIMATE:
            per_group, score = 1, "best"
        ranking = index.search(
            QUERIES, k, texts, group_by=column, per_group=per_group, group_score=score
        )
        if kind in APPROXIMATE:
            images = by_more_images(index, texts, column, k)
        else:
            images = all_images(texts)
        for i in range(Q):
            compare(ranking, i, expected(images[i], column, k, per_group, score), per_group)


def all_images(texts: list[str]) -> list[list[tuple[str, float]]]:
    """Every image that meets the conditions with its exact score, best first, for each query."""
    rows = np.flatnonzero(Filter.parse(texts).mask(GALLERY.ids, GALLERY.attributes))
    if not len(rows):
        return [[] for _ in range(Q)]
    found, scores = exact.top_k(QUERIES.vectors, GALLERY.vectors[rows], len(rows))
    return [
        [(GALLERY.ids[rows[at]], float(value)) for at, value in zip(*pair, strict=True)]
        for pair in zip(found, scores, strict=True)
    ]


def by_more_images(
    index: Index, texts: list[str], column: str, k: int
) -> list[list[tuple[str, float]]]:
    """The images that a plain search gives for each query, of as many as k groups take."""
    values = dict(zip(GALLERY.ids, GALLERY.attributes[column].to_pylist(), strict=True))
    found: list[list[tuple[str, float]]] = [[] for _ in range(Q)]
    n, left = Grouping.of(column, GALLERY.attributes).first(k), set(range(Q))
    while left:
        plain = index.search(QUERIES, min(n, G), texts)
        assert plain.scores is not None
        for i in list(left):
            row = plain.row(i)
            groups = {name if values[name] is None else values[name] for name in row}
            if len(groups) >= k or len(row) < n:
                found[i] = list(zip(row, plain.scores[i].tolist(), strict=False))
                left.remove(i)
        n *= 4
    return found


def test_there_are_k_groups_wherever_there_are_so_many(index: Index) -> None:
    for column, groups in (("stars", 5 + math.ceil(G / 13)), ("sale", 2), ("all", 1)):
        for k in (1, 2, 7, 150):
            ranking = index.search(QUERIES, k, group_by=column)
            assert ranking.lengths.tolist() == [min(k, groups)] * Q
            assert ranking.origin["group_by"] == column
    some = "|".join(sorted({p for p in GALLERY.attributes["product"].to_pylist() if p})[:3])
    three = index.search(QUERIES, 10, f"product={some}", group_by="product")
    assert three.lengths.tolist() == [3] * Q
    assert index.search(QUERIES, 10, "price<0", group_by="product", per_group=2).depth == 0


def test_an_image_of_the_gallery_is_not_in_its_own_group(index: Index) -> None:
    some = Embeddings(GALLERY.ids[:60], GALLERY.vectors[:60], GALLERY.attributes[:60], "m")
    ranking = index.search(some, 20, group_by="product", per_group=50, same_set=True)
    assert ranking.members is not None and ranking.lengths.tolist() == [20] * 60
    for query, row in zip(some.ids, ranking.members, strict=True):
        names = [ranking.gallery[p] for p in row.ravel() if p >= 0]
        assert query not in names and len(names) == len(set(names))
    every = index.search(some, 1, group_by="all", per_group=G, same_set=True)
    assert every.members is not None and ((every.members >= 0).sum(axis=2) == G - 1).all()


def test_several_pictures_of_an_item_are_one_query_by_their_highest_score(
    kind: str, index: Index
) -> None:
    rng, items = np.random.default_rng(6), {"A": [2, 0], "B": [1]}
    for _ in range(20):
        texts, k = conditions(rng), int(rng.integers(1, 30))
        if kind in APPROXIMATE:
            found = index.search(QUERIES, k, texts, items=items)
            assert found.scores is not None and found.queries == ["A", "B"]
            each = index.search(QUERIES, k, texts)
            assert found.row(1) == each.row(1)
            best: dict[str, float] = {}
            for i in items["A"]:
                for name, score in zip(each.row(i), each.scores[i], strict=False):  # type: ignore[index]
                    best[name] = max(score, best.get(name, -1.0))
            wanted = sorted(best, key=lambda name: (-best[name], name))[:k]
            assert found.row(0) == wanted
            assert found.scores[0, : len(wanted)].tolist() == [best[name] for name in wanted]
            continue
        column, per_group = str(rng.choice(COLUMNS)), int(rng.integers(1, 4))
        score = str(rng.choice(["best", "best-two"]))
        found = index.search(
            QUERIES, k, texts, group_by=column, per_group=per_group, group_score=score, items=items
        )
        every = [dict(images) for images in all_images(texts)]
        for i, pictures in enumerate(items.values()):
            highest = {name: max(every[p][name] for p in pictures) for name in every[0]}
            images = sorted(highest.items(), key=lambda one: (-one[1], one[0]))
            compare(found, i, expected(images, column, k, per_group, score), per_group)
    with pytest.raises(UsageError, match="find each other"):
        index.search(QUERIES, 3, items=items, same_set=True)


def test_groups_of_a_large_share_of_the_gallery_need_more_than_one_search() -> None:
    """The ten nearest groups are far down if one group holds the 700 nearest images."""
    vectors, order = unit(G, 0), np.argsort(-unit(G, 0) @ QUERIES.vectors[0], kind="stable")
    values = np.array([f"P{i}" for i in range(G)], dtype=object)
    values[order[:700]] = "large"
    table = pa.table({"product": pa.array(values.tolist())})
    gallery = Embeddings(GALLERY.ids, vectors, table, "m")
    ranking = in_memory(gallery).search(QUERIES.subset([0]), 10, group_by="product")
    assert ranking.row(0) == [GALLERY.ids[at] for at in (order[0], *order[700:709])]


def test_what_does_not_fit_is_said(index: Index) -> None:
    with pytest.raises(DataError, match="no attribute 'colour': it has product, stars"):
        index.search(QUERIES, 3, group_by="colour")
    with pytest.raises(UsageError, match="choose 1 image"):
        index.search(QUERIES, 3, group_by="product", per_group=0)
    with pytest.raises(UsageError, match="best or best-two"):
        index.search(QUERIES, 3, group_by="product", group_score="mean")
    with pytest.raises(UsageError, match="need groups"):
        index.search(QUERIES, 3, per_group=2)


# ── results that differ ──────────────────────────────────────────────────────────────────────────


def by_definition(images: list[tuple[str, float]], k: int, diverse: float) -> list[str]:
    """Maximal marginal relevance, one image at a time, over the 50 or 5 k best."""
    row_of = {name: i for i, name in enumerate(GALLERY.ids)}
    left, chosen = dict(images[: max(50, 5 * k)]), [images[0][0]]
    left.pop(chosen[0])
    while left and len(chosen) < k:
        vectors = GALLERY.vectors[[row_of[name] for name in chosen]].astype(np.float64)

        def worth(name: str, vectors: np.ndarray = vectors) -> float:
            nearest = (vectors @ GALLERY.vectors[row_of[name]].astype(np.float64)).max()
            return diverse * left[name] - (1 - diverse) * float(nearest)

        chosen.append(max(left, key=worth))
        left.pop(chosen[-1])
    return chosen


@pytest.mark.parametrize("diverse", [0.0, 0.3, 0.7, 1.0])
def test_diverse_results_are_those_of_the_definition(
    kind: str, index: Index, diverse: float
) -> None:
    if kind in APPROXIMATE:
        pytest.skip("the pool is what the index gives")
    texts = ["stars>=2"]
    images = all_images(texts)
    ranking = index.search(QUERIES, 12, texts, diverse=diverse)
    for i in range(Q):
        assert ranking.row(i) == by_definition(images[i], 12, diverse)
        scores = dict(images[i])
        assert ranking.scores is not None
        assert ranking.scores[i].tolist() == [scores[name] for name in ranking.row(i)]
    plain = index.search(QUERIES, 12, texts)
    assert (ranking.to_lists() == plain.to_lists()) == (diverse == 1)


def test_diverse_groups_are_of_different_groups(index: Index) -> None:
    ranking = index.search(QUERIES, 12, group_by="product", per_group=2, diverse=0.4)
    plain = index.search(QUERIES, 12, group_by="product")
    values = dict(zip(GALLERY.ids, GALLERY.attributes["product"].to_pylist(), strict=True))
    assert ranking.members is not None and ranking.to_lists() != plain.to_lists()
    for i in range(Q):
        row = ranking.row(i)
        assert len({values[name] or name for name in row}) == len(row) == 12
        for name, members in zip(row, ranking.members[i], strict=True):
            names = [ranking.gallery[p] for p in members if p >= 0]
            assert {values[one] or one for one in names} == {values[name] or name}
    with pytest.raises(UsageError, match="from 0"):
        index.search(QUERIES, 3, diverse=1.5)
