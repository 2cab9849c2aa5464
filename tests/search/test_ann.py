"""Structures: what they find is ordered by stored vectors; they grow without being written anew."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vizsla.embed.embeddings import Embeddings
from vizsla.errors import StorageError
from vizsla.search import ann, exact
from vizsla.search import index_files as disk
from vizsla.search.exact import Rows
from vizsla.search.folder_index import FolderIndex
from vizsla.search.index import build_index, open_index
from vizsla.search.index_view import View

D = 16


def unit(n: int, seed: int, d: int = D) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, d))
    rows = centres[rng.integers(40, size=n)] + 0.6 * rng.standard_normal((n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def embeddings(n: int, seed: int, prefix: str) -> Embeddings:
    return Embeddings([f"{prefix}{i:05}" for i in range(n)], unit(n, seed), pa.table({}), "m")


QUERIES = unit(50, 1)


def recall(index: Any, k: int = 10) -> float:
    """Of the k nearest, against exact search over all that the index holds."""
    found = index.search(QUERIES, k, model_id="m").positions
    expected, _ = exact.top_k(QUERIES, index.vectors(), k)
    assert all(len(set(row)) == k for row in found.tolist())
    pairs = zip(found.tolist(), expected.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / k for a, b in pairs]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("several", [True, False])
def test_scores_of_candidates(
    dtype: Any, several: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    np.save(tmp_path / "v.npy", unit(500, 0).astype(dtype))
    gallery = Rows(np.load(tmp_path / "v.npy", mmap_mode="c"))
    queries = QUERIES if several else QUERIES[:1]
    found = np.random.default_rng(0).integers(-1, 500, (len(queries), 30))
    found[0, :2] = -1
    monkeypatch.setattr(ann, "GATHER_BYTES", 7 * 30 * D * 4)  # seven queries at a time
    scores = ann.float_scores(queries, gallery, found)
    expected = np.take_along_axis(queries @ gallery[:].T, found.clip(0), axis=1)
    np.testing.assert_allclose(scores[found >= 0], expected[found >= 0], atol=1e-6)
    assert (scores[found < 0] == -np.inf).all()


@pytest.mark.parametrize("kind", ["ivf", "ivfsq8", pytest.param("ivfpq", marks=pytest.mark.slow)])
def test_cells_grow_without_being_written_anew(kind: str, tmp_path: Path) -> None:
    index: Any = build_index(embeddings(30_000, 0, "g"), tmp_path / "i", kind=kind)
    file = next(tmp_path.glob("i/structure-*"))
    before = file.read_bytes()
    for i in range(5):  # each is more than a hundredth, and goes in
        added = embeddings(1100 if i < 4 else 10, 10 + i, f"n{i}-")
        index.add(added)
        again: Any = open_index(tmp_path / "i", verify=True)
        for one in (index, again):
            assert recall(one) >= 0.98
            assert one.search(added, 1).to_lists() == {name: [name] for name in added.ids}
        if i == 0:
            assert file.read_bytes() == before and again.about()["recall"] >= 0.98
    assert not file.exists()  # 4,400 are more than a twentieth: written once meanwhile
    assert len(list(tmp_path.glob("i/structure-*"))) == 1


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_measuring_again_takes_in_what_was_added(kind: str, tmp_path: Path) -> None:
    index: Any = build_index(embeddings(3000, 0, "g"), tmp_path / "i", kind=kind)
    added = embeddings(200, 5, "n")
    index.add(added)  # too few to go into the structure
    index.measure(0.95)
    for one in (index, open_index(tmp_path / "i")):
        assert recall(one) >= 0.93 and one.about()["target"] == 0.95
        assert one.search(added, 1).to_lists() == {name: [name] for name in added.ids}


def test_a_structure_that_could_not_be_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows are there, the structure lacks them until the next addition; none is there twice."""
    index: Any = build_index(embeddings(3000, 0, "g"), tmp_path / "i", kind="ivf")

    def full(*_: Any) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "note", full)
        with pytest.raises(StorageError, match="full"):
            index.add(embeddings(1200, 5, "n"))
    assert len(index) == 4200 and recall(index) >= 0.98
    assert open_index(tmp_path / "i").ids == index.ids
    index.add(embeddings(1200, 6, "m"))
    assert len(index) == 5400 and recall(index) >= 0.98 and recall(open_index(index.folder)) >= 0.98


def test_a_structure_that_is_damaged_after_the_index_was_opened(tmp_path: Path) -> None:
    build_index(embeddings(2000, 0, "g"), tmp_path / "i", kind="hnsw")
    index = open_index(tmp_path / "i")  # reads the structure with the first search
    path = next(tmp_path.glob("i/structure-*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(StorageError, match="damaged"):
        index.search(QUERIES, 10, model_id="m")
    path.unlink()
    with pytest.raises(StorageError, match="no such file"):
        index.search(QUERIES, 10, model_id="m")
    path.write_bytes(whole)
    assert recall(index) >= 0.98


def test_many_more_than_ten_are_looked_for_in_more_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index: Any = build_index(embeddings(20_000, 0, "g"), tmp_path / "i", kind="ivf", recall=0.1)
    assert index.about()["effort"] == 1
    requested: list[int] = []
    monkeypatch.setattr(
        View, "exactly", lambda self, queries, *rest: requested.append(len(queries))
    )
    assert index.search(QUERIES, 500, model_id="m").positions.shape == (50, 500)
    assert requested == []


def test_building_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ann.ADD_ROWS, "hnsw", 1000)
    reports: list[tuple[int, int]] = []
    made = embeddings(2500, 0, "g")
    build_index(made, tmp_path / "i", kind="hnsw", progress=lambda *so_far: reports.append(so_far))
    assert reports == [(1000, 2375), (2000, 2375), (2375, 2375)]


def test_searches_and_changes_take_turns() -> None:
    """Who waits for a change comes before the next one, and the other way round."""
    lock, order = ann._FairLock(), []
    inside, go_on = threading.Event(), threading.Event()

    def change_twice() -> None:
        for i in range(2):
            with lock.changing():
                order.append(f"change {i}")
                inside.set()
                go_on.wait(10)

    def read() -> None:
        with lock.reading():
            order.append("read")

    threads = [threading.Thread(target=change_twice)]
    threads[0].start()
    inside.wait(10)
    threads += [threading.Thread(target=read) for _ in range(2)]
    for thread in threads[1:]:
        thread.start()
    while len(lock._reads) < 2:
        time.sleep(0.001)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert order == ["change 0", "read", "read", "change 1"]


@pytest.mark.parametrize("kind", [pytest.param("hnsw", marks=pytest.mark.slow), "ivf", "ivfsq8"])
def test_recall_with_many_equal_vectors_is_that_of_a_search(tmp_path: Path, kind: str) -> None:
    """A search answers queries with more equals than candidates exactly."""
    vectors = np.random.default_rng(0).standard_normal((4000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def built(vectors: np.ndarray) -> FolderIndex:
        gallery = Embeddings([f"{i:05}" for i in range(4000)], vectors, pa.table({}), "m")
        return FolderIndex.build(gallery, tmp_path / "i", kind=kind, recall=0.98)

    usual = built(vectors).about()
    vectors[np.random.default_rng(1).choice(4000, 250, replace=False)] = vectors[0]
    index = built(vectors)
    scores = index.search(vectors, 10, model_id="m").scores
    exactly = exact.top_k(vectors, vectors, 10)[1]
    assert scores is not None and usual["advice"] is None
    recall = float((scores >= exactly[:, -1:]).mean())
    assert abs(index.about()["recall"] - recall) < 0.02
    if kind != "hnsw":  # a graph does lose other images among so many equals
        assert recall > 0.97 and index.about()["effort"] <= 2 * usual["effort"]
