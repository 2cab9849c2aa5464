"""Queries of several vectors (MaxSim), beside an oracle in loops, for every kind of index."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vizsla import search
from vizsla.cli.main import app
from vizsla.data.query_box import QueryBox
from vizsla.data.tiles import Tiles
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.model.embedder import Embedder, Preprocess
from vizsla.search import exact
from vizsla.search.ann import KINDS
from vizsla.search.filters import Filter
from vizsla.search.index import Index, build_index, in_memory, open_index
from vizsla.search.queries import encoded
from vizsla.search.query_tiles import mean_over_tiles, rank
from vizsla.search.ranking import Ranking

G, Q, D = 420, 3, 16
GRIDS = "1+2x1"
APPROXIMATE = ("hnsw", "ivfpq")


def made(n: int, grids: str | None, seed: int, name: str) -> Embeddings:
    """Images whose tiles are alike, some of them equal to tiles of another image."""
    rng = np.random.default_rng(seed)
    tiles = Tiles.parse(grids or "none")
    T = len(tiles) if tiles else 1
    rows = rng.standard_normal((n, 1, D)) + 0.8 * rng.standard_normal((n, T, D))
    if n > 20:
        rows[11:14] = rows[10]  # equal images: ties go to the earlier one
    rows = np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)
    columns = {
        "product": [None if i % 7 == 0 else f"P{i}" for i in rng.integers(60, size=n).tolist()],
        "stars": rng.integers(1, 6, size=n).tolist(),
    }
    return Embeddings(
        [f"{name} {i:04} ä.jpg" for i in range(n)], rows[:, 0], pa.table(columns), "m", tiles=tiles,
        tile_vectors=rows if tiles else None,
    )  # fmt: skip


QUERIES = made(Q, GRIDS, 9, "q")


@pytest.fixture(scope="module", params=["1+2x2", None])
def gallery(request: pytest.FixtureRequest) -> Embeddings:
    return made(G, request.param, 0, "bild")


@pytest.fixture(scope="module", params=["memory", "exact", *APPROXIMATE, "milvus-lite"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "milvus-lite":
        pytest.importorskip("milvus_lite", reason="no Milvus Lite: pip install 'vizsla[milvus]'")
    return str(request.param)


@pytest.fixture(scope="module")
def index(
    kind: str, gallery: Embeddings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Index]:
    if kind == "memory":
        yield in_memory(gallery)
        return
    where = tmp_path_factory.mktemp(kind) / ("i.db" if kind == "milvus-lite" else "i")
    build_index(gallery, where, kind=kind if kind in KINDS else "auto")
    yield open_index(where)


def oracle(gallery: Embeddings, i: int, texts: list[str]) -> list[tuple[str, float, int]]:
    """Images that meet the conditions, their scores and the tiles with the highest cosine."""
    mask = Filter.parse(texts).mask(gallery.ids, gallery.attributes)
    T = len(gallery.tiles or [0])
    assert QUERIES.tile_vectors is not None
    theirs = np.rint(gallery.all_vectors.astype(np.float64) * 2**26).reshape(G, T, D)
    ours = np.rint(QUERIES.tile_vectors[i].astype(np.float64) * 2**26)
    rows = []
    for g in np.flatnonzero(mask):
        cosines = np.minimum(ours @ theirs[g].T / 2**52, 1)  # (S, T)
        score = sum(round(cosine * 2**40) for cosine in cosines.max(axis=1).tolist())
        tile = int(cosines[cosines.max(axis=1).argmax()].argmax())
        rows.append((gallery.ids[g], score / len(ours) / 2**40, tile))
    return sorted(rows, key=lambda row: (-row[1], gallery.ids.index(row[0])))


def results(ranking: Ranking, i: int) -> list[tuple[str, float, int]]:
    assert ranking.scores is not None
    n = int(ranking.lengths[i])
    tiles = [0] * n if ranking.best_tile is None else ranking.best_tile[i, :n].tolist()
    names = [ranking.gallery[p] for p in ranking.positions[i, :n]]
    return list(zip(names, ranking.scores[i, :n].tolist(), tiles, strict=True))


@pytest.mark.parametrize("texts", [[], ["stars>=3"], ["stars=2", "product=P1|P2|P3|P30"]])
def test_images_are_found_by_the_mean_over_the_tiles_of_a_query(
    kind: str, index: Index, gallery: Embeddings, texts: list[str]
) -> None:
    for k in (1, 10, G):
        ranking = index.search(QUERIES, k, texts or None, query_tiles=GRIDS)
        for i in range(Q):
            wanted, found = oracle(gallery, i, texts), results(ranking, i)
            if kind not in APPROXIMATE:
                assert found == wanted[:k]
                continue
            scores = {name: (score, tile) for name, score, tile in wanted}
            assert len(found) == min(k, len(wanted))
            assert all(scores[name] == (score, tile) for name, score, tile in found)
            best = {name for name, *_ in wanted[:k]}
            assert len(best & {name for name, *_ in found}) >= 0.9 * len(found)


@pytest.mark.parametrize("group_score", ["best", "best-two"])
def test_groups_and_items(kind: str, index: Index, gallery: Embeddings, group_score: str) -> None:
    if kind in APPROXIMATE:
        pytest.skip("the groups are those of what it finds")
    ranking = index.search(
        QUERIES, 12, "stars>=2", group_by="product", group_score=group_score, query_tiles=GRIDS
    )
    values = dict(zip(gallery.ids, gallery.attributes["product"].to_pylist(), strict=True))
    for i in range(Q):
        groups: dict[Any, list[float]] = {}
        for name, score, _ in oracle(gallery, i, ["stars>=2"]):
            groups.setdefault(values[name] or name, []).append(score)
        n = 1 if group_score == "best" else 2
        wanted = {group: sum(s[:n]) / len(s[:n]) for group, s in groups.items()}
        found = [(values[name] or name, score) for name, score, _ in results(ranking, i)]
        assert [score for _, score in found] == pytest.approx(
            sorted(wanted.values(), reverse=True)[:12], abs=1e-12
        )
        assert all(wanted[group] == pytest.approx(score, abs=1e-12) for group, score in found)
    joint = index.search(QUERIES, 5, items={"a": [0, 2], "b": [1]}, query_tiles=GRIDS)
    both: dict[str, float] = {}
    for i in (0, 2):
        for name, score, _ in oracle(gallery, i, []):
            both[name] = max(score, both.get(name, -1))
    assert [s for _, s, _ in results(joint, 0)] == sorted(both.values(), reverse=True)[:5]
    assert results(joint, 1) == oracle(gallery, 1, [])[:5]


def test_an_images_own_is_left_out(kind: str, index: Index, gallery: Embeddings) -> None:
    if gallery.tiles is None:
        pytest.skip("the queries are images with tiles")
    grids = str(gallery.tiles)
    alone = gallery.subset(np.arange(5))
    ranking = index.search(alone, 4, same_set=True, query_tiles=grids)
    every = index.search(alone, 5, query_tiles=grids)
    for i in range(5):
        others = [row for row in results(every, i) if row[0] != alone.ids[i]]
        assert len(others) == 4 and results(ranking, i) == others


@pytest.mark.parametrize("chunk", [2**26, 8 * 60])
def test_a_run_ranks_by_all_scores(
    gallery: Embeddings, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "CHUNK_BYTES", chunk)
    ranking = rank(QUERIES, gallery, same_set=False, device="cpu")
    for i in range(Q):
        assert results(ranking, i) == oracle(gallery, i, [])
    if gallery.tiles is None:
        return
    few = gallery.subset(np.arange(60))
    alone = rank(few, few, same_set=True, device="cpu")
    first = in_memory(few).search(few, 7, same_set=True, query_tiles=str(few.tiles))
    for i in (0, 11, 12):
        assert results(alone, i)[:7] == results(first, i)


def test_the_mean_does_not_depend_on_the_order() -> None:
    scores = np.random.default_rng(0).uniform(-1, 1, (64, 50))
    for _ in range(5):
        mixed = np.random.default_rng(1).permutation(scores)
        assert np.array_equal(mean_over_tiles(mixed), mean_over_tiles(scores))


def test_queries_of_other_tiles_are_refused() -> None:
    index = in_memory(made(30, "1+2x2", 0, "g"))
    with pytest.raises(DataError, match=r"query_tiles 1.2x2: the queries have vectors of 1.2x1"):
        index.search(QUERIES, 3, query_tiles="2x2")
    with pytest.raises(UsageError, match="query_tiles='2y2': '2y2' is not a grid"):
        index.search(QUERIES, 3, query_tiles="2y2")


class MeanColour(torch.nn.Module):
    """A network whose vectors are colours."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


def test_a_picture_or_its_part_is_embedded_by_its_tiles() -> None:
    plain = Preprocess((16, 16), mean=(0.0,) * 3, std=(1.0,) * 3)
    embedder = Embedder.from_module(MeanColour(), plain)
    picture = Image.new("RGB", (64, 64), "red")
    picture.paste((0, 0, 255), (32, 0, 64, 64))
    tiles = Tiles.parse("2x1")
    found = encoded([picture], embedder, tiles=tiles)
    assert found.tiles == tiles and found.tile_vectors is not None
    whole, left, right = found.tile_vectors[0]
    assert abs(whole[0] - whole[2]) < 0.1 and left[0] > 0.95 and right[2] > 0.95
    part = encoded([picture], embedder, QueryBox.of((0, 0, 20, 64)), tiles).tile_vectors
    assert part is not None and part[0, :, 0].min() > 0.99
    with pytest.raises(UsageError, match=r"parts of an image, but 'red' is a text"):
        encoded(["red"], embedder, tiles=tiles)


def test_search_and_find_take_tiles_of_the_query(
    small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path / "cache"))
    tiny = ["--model", "tiny", "--weights", "random", "--image-size", "32"]
    photos, index = small_demo / "test/gallery", tmp_path / "i"
    photo = sorted(photos.iterdir())[3]

    def done(*words: object) -> Any:
        result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    done("index", photos, "-o", index, "--tiles", "1+2x2", "--json", "-q", *tiny)
    words = ["--query-tiles", "2x2", "-k", 4, "--json", "-q"]
    [rows] = done("search", index, photo, *words)["rankings"].values()
    assert rows[0]["id"] == photo.name and rows[0]["score"] > 0.999
    every = done("search", index, small_demo / "test/query", *words)["rankings"]
    assert {len(found) for found in every.values()} == {4}
    [first, *_] = done("find", photo, photos, *words, "--tiles", "1+2x2", *tiny)
    assert first["path"] == str(photo) and first["score"] == pytest.approx(
        rows[0]["score"], abs=1e-3
    )
    for name, value in {"refine": "verify", "accept": 0.9, "query_group": "all"}.items():
        with pytest.raises(UsageError, match="leave it out, or query_tiles"):
            search(index, photo, query_tiles="2x2", **{name: value})
