"""Images of several vectors: found by the best one, beside an oracle, for every kind of index."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from vizsla.data.tiles import Tiles
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.options import SearchOptions
from vizsla.run.gallery_search import search_gallery
from vizsla.search import exact, milvus_search
from vizsla.search.ann import KINDS
from vizsla.search.chain import parse_chain, rank_refined
from vizsla.search.filters import Filter
from vizsla.search.folder_index import FolderIndex
from vizsla.search.index import Index, build_index, in_memory, open_index
from vizsla.search.ranking import Ranking

G, Q, D = 420, 4, 16
TILES = Tiles.parse("1+2x2")
assert TILES is not None
T = len(TILES)
APPROXIMATE = ("hnsw", "ivf", "ivfsq8", "ivfpq")


def unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


def made(n: int, seed: int, first: int = 0) -> Embeddings:
    """Images whose tiles are alike, some of them equal to a tile of another image."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.standard_normal((n, 1, D)) + 0.8 * rng.standard_normal((n, T, D)))
    vectors[3:6, 2] = vectors[0, 4]
    columns = {
        "product": [None if i % 7 == 0 else f"P{i}" for i in rng.integers(60, size=n).tolist()],
        "stars": rng.integers(1, 6, size=n).tolist(),
    }
    ids = [f"bild {i:04} ä.jpg" for i in range(first, first + n)]
    return Embeddings(ids, vectors[:, 0], pa.table(columns), "m", tiles=TILES, tile_vectors=vectors)


GALLERY = made(G, 0)
QUERIES = Embeddings(
    [f"q{i}" for i in range(Q)], unit(np.random.default_rng(9).standard_normal((Q, D))),
    pa.table({}), "m",
)  # fmt: skip


@pytest.fixture(
    scope="module",
    params=[
        "memory", "exact", "hnsw", "ivfpq", "milvus-lite",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("ivf", "ivfsq8")),
    ],
)  # fmt: skip
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "milvus-lite":
        pytest.importorskip("milvus_lite", reason="no Milvus Lite: pip install 'vizsla[milvus]'")
    return str(request.param)


def built(embeddings: Embeddings, kind: str, folder: Path) -> Index:
    if kind == "memory":
        return in_memory(embeddings)
    where = folder / ("i.db" if kind == "milvus-lite" else "i")
    build_index(embeddings, where, kind=kind if kind in KINDS else "auto")
    return open_index(where)


@pytest.fixture(scope="module")
def index(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    yield built(GALLERY, kind, tmp_path_factory.mktemp(kind))


Row = list[tuple[str, float, int]]  # image, score, best tile


def oracle(gallery: Embeddings, texts: list[str], queries: Embeddings = QUERIES) -> list[Row]:
    """Every image that meets the conditions by the best of its tiles, best first."""
    mask = Filter.parse(texts).mask(gallery.ids, gallery.attributes)
    assert gallery.tile_vectors is not None
    grid = np.rint(gallery.tile_vectors.astype(np.float64) * 2**26)
    rows = []
    for query in np.rint(queries.vectors.astype(np.float64) * 2**26):
        scores = np.minimum(grid @ query / 2**52, 1)  # (G, T)
        row = [
            (name, float(scores[i].max()), int(scores[i].argmax()))
            for i, name in enumerate(gallery.ids)
            if mask[i]
        ]
        rows.append(sorted(row, key=lambda one: (-one[1], gallery.ids.index(one[0]))))
    return rows


def results(ranking: Ranking, i: int) -> Row:
    assert ranking.scores is not None and ranking.best_tile is not None
    there = ranking.positions[i] >= 0
    names = [ranking.gallery[p] for p in ranking.positions[i][there]]
    tiles = ranking.best_tile[i][there].tolist()
    return list(zip(names, ranking.scores[i][there].tolist(), tiles, strict=True))


@pytest.mark.parametrize(
    "texts", [[], ["stars>=3"], ["stars=2", "product=P1|P2|P3|P30"], ["stars=9"]]
)
def test_images_are_found_by_their_best_tile(kind: str, index: Index, texts: list[str]) -> None:
    wanted = oracle(GALLERY, texts)
    for k in (1, 7, 60, G):
        ranking = index.search(QUERIES, k, texts or None)
        for i in range(Q):
            found = results(ranking, i)
            if kind in APPROXIMATE:
                truth = {name: (score, tile) for name, score, tile in wanted[i]}
                assert len(found) == min(k, len(truth)) == len({name for name, *_ in found})
                assert [score for _, score, _ in found] == sorted(
                    (score for _, score, _ in found), reverse=True
                )
                right = [one for one in found if truth[one[0]] == one[1:]]
                assert len(right) >= 0.95 * len(found)
            else:
                assert found == wanted[i][:k]


def test_an_approximate_kind_gives_the_best_of_the_tiles_that_it_finds(
    kind: str, index: Index
) -> None:
    """Of its own nearest tiles the images in their order, as long as they are k."""
    if kind not in APPROXIMATE:
        pytest.skip("all tiles are compared")
    assert isinstance(index, FolderIndex)
    k, view = 10, index.view
    found, n = index.search(QUERIES, k), min((k - 1) * T + 1, max(54, 4 * k))
    rows, scores = view.nearest(QUERIES.vectors, n, None)
    for i in range(Q):
        images: dict[str, tuple[float, int]] = {}
        for row, score in zip(rows[i], scores[i], strict=True):
            images.setdefault(GALLERY.ids[row // T], (float(score), int(row % T)))
        assert len(images) >= k
        assert results(found, i) == [(name, *rest) for name, rest in images.items()][:k]


@pytest.mark.parametrize("group_score", ["best", "best-two"])
def test_groups_of_images_with_tiles(kind: str, index: Index, group_score: str) -> None:
    if kind in APPROXIMATE:
        pytest.skip("the groups are those of what it finds")
    values = dict(zip(GALLERY.ids, GALLERY.attributes["product"].to_pylist(), strict=True))
    for texts in ([], ["stars>=3"]):
        ranking = index.search(
            QUERIES, 12, texts or None, group_by="product", per_group=2, group_score=group_score
        )
        assert ranking.members is not None
        for i, images in enumerate(oracle(GALLERY, texts)):
            groups: dict[Any, Row] = {}
            for one in images:
                groups.setdefault(values[one[0]] or one, []).append(one)
            scored = [
                (members[0][0],
                 members[0][1] if group_score == "best"
                 else sum(m[1] for m in members[:2]) / len(members[:2]),
                 members[0][2], [m[0] for m in members[:2]])
                for members in groups.values()
            ]  # fmt: skip
            wanted = sorted(scored, key=lambda one: (-one[1], GALLERY.ids.index(one[0])))[:12]
            assert results(ranking, i) == [one[:3] for one in wanted]
            shown = [[ranking.gallery[p] for p in row if p >= 0] for row in ranking.members[i]]
            assert shown == [one[3] for one in wanted]


def test_an_image_does_not_find_itself_by_any_of_its_tiles(index: Index) -> None:
    some = GALLERY.subset(np.arange(30)).only_whole()
    ranking = index.search(some, 20, same_set=True)
    assert ranking.lengths.tolist() == [20] * 30
    for i, name in enumerate(some.ids):
        assert name not in ranking.row(i)


def test_images_are_added_and_removed_with_all_their_tiles(kind: str, tmp_path: Path) -> None:
    if kind == "memory":
        pytest.skip("it can only be searched")
    index, more = built(GALLERY, kind, tmp_path), made(50, 1, first=G)
    index.add(more)
    gone = GALLERY.ids[10:40] + more.ids[:5]
    assert index.remove(gone) == 35
    left = [i for i, name in enumerate([*GALLERY.ids, *more.ids]) if name not in gone]
    assert GALLERY.tile_vectors is not None and more.tile_vectors is not None
    vectors = np.concatenate([GALLERY.tile_vectors, more.tile_vectors])
    both = Embeddings(
        [*GALLERY.ids, *more.ids], vectors[:, 0],
        pa.concat_tables([GALLERY.attributes, more.attributes], promote_options="permissive"), "m",
        tiles=TILES, tile_vectors=vectors,
    ).subset(left)  # fmt: skip
    assert len(index) == len(both) == G + 15 and index.about()["images"] == G + 15
    wanted = oracle(both, [])
    again = open_index(tmp_path / ("i.db" if kind == "milvus-lite" else "i"))
    for found in (index, again):
        assert found.ids == both.ids
        ranking = found.search(QUERIES, 15)
        same = [set(results(ranking, i)) & set(wanted[i][:15]) for i in range(Q)]
        assert min(map(len, same)) >= (13 if kind in APPROXIMATE else 15)
    again.save(tmp_path / "copy")
    copied = open_index(tmp_path / "copy")
    assert isinstance(copied, FolderIndex) and copied.embeddings().tiles == TILES
    np.testing.assert_array_equal(copied.embeddings().tile_vectors, both.tile_vectors)
    if isinstance(again, FolderIndex):
        again.rebuild()
        again.verify()
        np.testing.assert_array_equal(again.embeddings().tile_vectors, both.tile_vectors)
    with pytest.raises(DataError, match=r"whole images only.*1\+2x2.*the same tiles"):
        found.add(
            dataclasses.replace(made(1, 2, first=1000).only_whole(), model_id="m without tiles")
        )


def test_an_index_in_half_precision_holds_tiles(tmp_path: Path) -> None:
    build_index(GALLERY, tmp_path / "i", kind="exact", store="fp16")
    ranking = open_index(tmp_path / "i").search(QUERIES, 5)
    for i, wanted in enumerate(oracle(GALLERY, [])):
        assert {name for name, *_ in results(ranking, i)} == {name for name, *_ in wanted[:5]}


def test_rank_and_its_file_name_the_winning_tile(tmp_path: Path) -> None:
    ranking = exact.rank(QUERIES, GALLERY)
    assert ranking.depth == G and TILES is not None
    for i, wanted in enumerate(oracle(GALLERY, [])):
        assert results(ranking, i) == wanted
        assert ranking.box(i, 0) == TILES.boxes[wanted[0][2]]
    ranking.save(tmp_path / "r.parquet")
    loaded = Ranking.load(tmp_path / "r.parquet")
    assert loaded.tiles == TILES
    np.testing.assert_array_equal(loaded.head(3).best_tile, ranking.best_tile[:, :3])  # type: ignore[index]
    some = exact.rank(GALLERY.subset(np.arange(9)).only_whole(), GALLERY, 5, same_set=True)
    assert all(name not in some.row(i) for i, name in enumerate(GALLERY.ids[:9]))


def test_query_expansion_adds_the_best_tiles_and_keep_keeps_the_first() -> None:
    assert GALLERY.tile_vectors is not None
    plain, rows = oracle(GALLERY, []), []
    for i, query in enumerate(QUERIES.vectors):
        best = [GALLERY.tile_vectors[GALLERY.ids.index(name), t] for name, _, t in plain[i][:3]]
        rows.append(unit(query.astype(np.float64) + np.sum(best, axis=0, dtype=np.float64)))
    expanded = dataclasses.replace(QUERIES, vectors=np.stack(rows))
    wanted = oracle(GALLERY, [], expanded)
    found = rank_refined(QUERIES, GALLERY, parse_chain("aqe(n=3)"))
    kept = rank_refined(QUERIES, GALLERY, parse_chain("aqe(n=3)+keep(n=5)"))
    for i in range(Q):
        tile_of = {name: tile for name, _, tile in plain[i]}
        assert [name for name, *_ in results(found, i)] == [name for name, *_ in wanted[i]]
        assert {name: tile for name, _, tile in results(found, i)} == tile_of
        assert found.scores is not None
        np.testing.assert_allclose(found.scores[i], [row[1] for row in wanted[i]], atol=1e-7)
        first = {name for name, *_ in results(kept, i)[:5]}
        assert first == {name for name, *_ in plain[i][:5]}
    own = GALLERY.subset(np.arange(6))
    alone = rank_refined(own, GALLERY, parse_chain("aqe(n=2)"), 9, same_set=True)
    assert all(own.ids[i] not in alone.row(i) and len(alone.row(i)) == 9 for i in range(6))


def test_refined_results_are_grouped_with_their_tiles(tmp_path: Path) -> None:
    GALLERY.save(tmp_path / "g.emb")
    plain = rank_refined(QUERIES, GALLERY, parse_chain("aqe(n=3)"))
    ranking = search_gallery(
        tmp_path / "g.emb", QUERIES,
        SearchOptions(refine="aqe(n=3)", group_by="product", top_k=7, filter=("stars>=2",)),
    ).ranking  # fmt: skip
    assert ranking.depth == 7
    for i in range(Q):
        products = [GALLERY.attributes["product"][GALLERY.ids.index(n)] for n in ranking.row(i)]
        known = [p.as_py() for p in products if p.as_py() is not None]
        assert len(known) == len(set(known))
        tile_of = {name: tile for name, _, tile in results(plain, i)}
        assert all(tile == tile_of[name] for name, _, tile in results(ranking, i))


def test_deep_rankings_use_vectors_that_are_on_the_device_already() -> None:
    resident = torch.from_numpy(GALLERY.all_vectors.copy())
    rows = exact.Rows(np.zeros_like(GALLERY.all_vectors), resident=resident)
    found = exact.top_k_of_tiles(QUERIES.vectors, rows, T, G)
    wanted = exact.top_k_of_tiles(QUERIES.vectors, GALLERY.all_vectors, T, G)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_milvus_gives_fewer_groups_than_asked_for_when_it_gives_no_more_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("milvus_lite", reason="no Milvus Lite: pip install 'vizsla[milvus]'")
    monkeypatch.setattr(milvus_search, "TOP_K", 60)
    index = built(GALLERY, "milvus-lite", tmp_path)
    ranking = index.search(QUERIES, 70, group_by="product")
    assert 0 < ranking.lengths.min() <= ranking.lengths.max() < 70
    assert "Milvus gives at most 60 vectors: there are fewer results" in caplog.text
    for i in range(Q):
        assert len(set(ranking.row(i))) == ranking.lengths[i]


@pytest.mark.parametrize("step", ["dba", "kreciprocal", "diffusion", "balance"])
def test_what_compares_one_vector_refuses_tiles(step: str) -> None:
    with pytest.raises(UsageError, match=f"{step} compares gallery images with each other"):
        rank_refined(QUERIES, GALLERY, parse_chain(step))


def test_tiles_that_are_not_there_are_refused() -> None:
    with pytest.raises(DataError, match="not those of their first tiles"):
        Embeddings(
            GALLERY.ids, GALLERY.vectors[::-1], pa.table({}), "m",
            tiles=TILES, tile_vectors=GALLERY.tile_vectors,
        )  # fmt: skip
    with pytest.raises(DataError, match=r"\(420, 5, 16\)"):
        Embeddings(GALLERY.ids, GALLERY.vectors, pa.table({}), "m", tiles=TILES)
