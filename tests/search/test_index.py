"""One suite for every kind of index."""

import datetime
import importlib
import itertools
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, StorageError, UsageError
from vizsla.search import exact
from vizsla.search.ann import KINDS
from vizsla.search.filters import Filter
from vizsla.search.index import Index, build_index, open_index

D = 16
Make = Callable[..., Any]


def unit(n: int, seed: int, d: int = D) -> np.ndarray:
    """Clustered, as images are: 40 centres and some noise."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, d))
    rows = centres[rng.integers(40, size=n)] + 0.6 * rng.standard_normal((n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def embeddings(vectors: np.ndarray, prefix: str, model_id: str = "m") -> Embeddings:
    n = len(vectors)
    table = pa.table(
        {
            "label": pa.array(
                [None if i % 7 == 3 else "abc"[i % 3] for i in range(n)], pa.string()
            ),
            "price": pa.array([i * 0.5 for i in range(n)], pa.float64()),
        }
    )
    return Embeddings([f"{prefix}{i:04}" for i in range(n)], vectors, table, model_id)


GALLERY = embeddings(unit(2500, 0), "g")
QUERIES = embeddings(unit(12, 1), "q")


CLOSE = {"ivf", "ivfsq8"}  # to ivfpq, in all but what a cell holds: tested with the slow ones


@pytest.fixture(
    scope="module",
    params=[
        *(kind for kind in KINDS if kind not in CLOSE),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in sorted(CLOSE)),
        "milvus-lite",
        pytest.param("milvus-server", marks=pytest.mark.milvus),
    ],
)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "milvus-lite":
        pytest.importorskip("milvus_lite", reason="no Milvus Lite: pip install 'vizsla[milvus]'")
    return str(request.param)


@pytest.fixture(scope="module")
def place(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """place() → where the next index goes."""
    folder, numbers = tmp_path_factory.mktemp(kind), itertools.count()
    if kind == "milvus-server":
        with milvus_server(folder / "server") as address:
            yield lambda: f"milvus://{address}/c{next(numbers)}"
    else:
        suffix = ".db" if kind == "milvus-lite" else ""
        yield lambda: str(folder / f"index-{next(numbers)}{suffix}")


@pytest.fixture(scope="module")
def built(kind: str, place: Callable[[], str]) -> str:
    """The gallery's index, to be copied where it is a folder."""
    where = place()
    build_index(GALLERY, where, kind=kind if kind in KINDS else "auto")
    return where


@pytest.fixture(scope="module")
def index(built: str) -> Index:
    """The gallery's index, for tests that only search it."""
    return open_index(built)


@pytest.fixture
def make(kind: str, built: str, place: Callable[[], str]) -> Make:
    """make(embeddings) → an index of the kind under test."""

    def made(gallery: Embeddings = GALLERY, **options: Any) -> Index:
        where = place()
        if kind in KINDS and gallery is GALLERY and not options:
            shutil.copytree(built, where)
            return open_index(where)
        return build_index(gallery, where, kind=kind if kind in KINDS else "auto", **options)

    return made


@contextmanager
def milvus_server(folder: Path) -> Iterator[str]:
    """The one that runs at MILVUS_ADDRESS, or one by the package `milvus` of MILVUS_PYTHON.

    That package wants an environment of its own, and only one of its servers runs at a time.
    """
    if address := os.environ.get("MILVUS_ADDRESS"):
        yield address
        return
    python = os.environ.get("MILVUS_PYTHON")
    if not python:
        pytest.skip(
            "no Milvus server: MILVUS_PYTHON names the Python of an environment with milvus"
        )
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    code = (
        "import sys\nfrom milvus import MilvusServer\nserver = MilvusServer()\n"
        "server.set_base_dir(sys.argv[1])\nserver.listen_port = int(sys.argv[2])\n"
        "server.start()\nprint('ready', flush=True)\nsys.stdin.read()\nserver.stop()"
    )
    words = [python, "-c", code, str(folder), str(port)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        if "ready" not in process.stdout.readline():
            pytest.fail(f"the Milvus server of {python} does not start: see {folder}/logs")
        yield f"127.0.0.1:{port}"
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def nearest(queries: Embeddings, gallery: Embeddings, k: int, rows: np.ndarray) -> list[list[str]]:
    """By exact search over these rows alone."""
    found, _ = exact.top_k(queries.vectors, gallery.vectors[rows], k)
    return [[gallery.ids[rows[i]] for i in row] for row in found]


def agreement(found: list[list[str]], expected: list[list[str]]) -> float:
    pairs = zip(found, expected, strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))


def lists(index: Index, k: int, **options: Any) -> list[list[str]]:
    return list(index.search(QUERIES, k, **options).to_lists().values())


# ── what it finds ────────────────────────────────────────────────────────────────────────────────


def test_finds_what_exact_search_finds(index: Index) -> None:
    ranking = index.search(QUERIES, 10)
    expected = exact.rank(QUERIES, GALLERY, 10)
    assert ranking.queries == QUERIES.ids and ranking.gallery_size == len(GALLERY) == len(index)
    assert agreement(lists(index, 10), list(expected.to_lists().values())) >= 0.97
    assert ranking.scores is not None and expected.scores is not None
    for i in range(len(QUERIES)):  # the same images have the very same scores
        known = dict(zip(expected.row(i), expected.scores[i], strict=True))
        for name, score in zip(ranking.row(i), ranking.scores[i], strict=True):
            assert known.get(name, score) == score
    assert (np.diff(ranking.scores, axis=1) <= 0).all()


def test_an_index_shows_itself_in_three_lines(tmp_path: Path) -> None:
    shown = repr(build_index(GALLERY, tmp_path / "i", kind="exact"))
    assert f"{len(GALLERY):,} × {GALLERY.dim}, exact, model m" in " ".join(shown.split())
    assert shown.count("\n") < 3


def test_finds_after_faiss_was_patched_for_torch(tmp_path: Path) -> None:
    """As pytorch-metric-learning does on import: its `search` knows no parameters."""
    importlib.import_module("faiss.contrib.torch_utils")
    index = build_index(GALLERY, tmp_path / "index", kind="ivf")
    expected = list(exact.rank(QUERIES, GALLERY, 10).to_lists().values())
    assert agreement(lists(index, 10), expected) >= 0.97


def test_a_ranking_is_the_same_on_every_run(index: Index) -> None:
    one, other = index.search(QUERIES, 10), index.search(QUERIES, 10)
    np.testing.assert_array_equal(one.scores, other.scores)
    assert one.to_lists() == other.to_lists()


def test_equal_vectors_get_equal_scores_and_the_order_of_the_gallery(make: Make) -> None:
    vectors = unit(2500, 0)
    vectors[5::3] = vectors[5]  # far more than there are candidates
    index = make(embeddings(vectors, "g"))
    ranking = index.search(vectors[5:6], 50, model_id="m")
    assert ranking.row(0) == [f"g{i:04}" for i in range(5, 5 + 150, 3)]
    assert ranking.scores is not None and len(set(ranking.scores[0])) == 1


def test_numbers_are_queries_too(index: Index) -> None:
    assert index.search(3 * QUERIES.vectors, 1, model_id="m").queries[:2] == ["0", "1"]
    assert index.search(QUERIES.vectors, 1).to_lists() == (
        index.search(QUERIES.vectors, 1, model_id="m").to_lists()
    )
    with pytest.raises(DataError, match="model"):
        index.search(QUERIES.vectors, 1, model_id="n")


def test_one_set_leaves_itself_out(index: Index) -> None:
    some = Embeddings(GALLERY.ids[:20], GALLERY.vectors[:20], GALLERY.attributes[:20], "m")
    ranking = index.search(some, 5, same_set=True)
    assert all(query not in row and len(row) == 5 for query, row in ranking.to_lists().items())
    assert index.search(some, 1).to_lists() == {name: [name] for name in some.ids}


# ── filters ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "texts",
    [["label=a"], ["label=b|c", "price<300"], ["label=null"], ["price>=1240"], ["label!=a"],
     ["price>300", "price<=303"], ["id=g0007|g0011|g2001|nowhere"]],
)  # fmt: skip
def test_a_filter_gives_k_where_there_are_k(index: Index, texts: list[str]) -> None:
    chosen = Filter.parse(texts)
    rows = np.flatnonzero(chosen.mask(GALLERY.ids, GALLERY.attributes))
    k = min(10, len(rows))
    found = lists(index, 10, filter=chosen)
    assert [len(row) for row in found] == [k] * len(QUERIES)
    allowed = {GALLERY.ids[row] for row in rows}
    assert all(name in allowed for row in found for name in row)
    expected = nearest(QUERIES, GALLERY, k, rows)
    assert agreement(found, expected) >= 0.97
    if len(rows) < 0.05 * len(GALLERY):
        assert found == expected


def test_columns_keep_their_types_in_every_kind(make: Make) -> None:
    n = 300
    days = [datetime.date(2026, 1, 1) + datetime.timedelta(days=i) for i in range(n)]
    times = [datetime.datetime(2026, 1, 1, 12) + datetime.timedelta(hours=i) for i in range(n)]
    table = pa.table({
        "price": pa.array(range(n), pa.int64()), "day": days,
        "at": pa.array(times, pa.timestamp("us")), "new": [i % 2 == 0 for i in range(n)],
        "size": ["XL" if i % 3 else "10" for i in range(n)],
    })  # fmt: skip
    gallery = Embeddings(GALLERY.ids[:n], GALLERY.vectors[:n], table, "m")
    index = make(gallery)
    more = pa.table({"price": pa.nulls(5, pa.string()), "new": pa.nulls(5, pa.string())})
    index.add(Embeddings([f"x{i}" for i in range(5)], GALLERY.vectors[-5:], more, "m"))
    assert index.attributes.schema.equals(table.schema)
    assert index.attributes.slice(0, n).to_pydict() == table.to_pydict()
    assert index.attributes["price"].to_pylist()[-5:] == [None] * 5
    for text, size in (
        ("price<11", 11), ("price>=100", 200), ("day<2026-01-10", 9), ("day>2026-01-10T12:00", 290),
        ("at<2026-01-01T15:00", 3), ("new=true", 150), ("day=2026-01-02|2026-01-03", 2),
    ):  # fmt: skip
        found = lists(index, 305, filter=Filter.parse(text))
        assert {len(row) for row in found} == {size}, text
    for text in ("size<11", "new<true"):
        with pytest.raises(DataError, match="which has no order"):
            lists(index, 5, filter=Filter.parse(text))


def test_ids_of_a_filter_may_be_spelled_differently(make: Make) -> None:
    ids = ["e\u0301.jpg", *GALLERY.ids[1:60]]
    index = make(Embeddings(ids, GALLERY.vectors[:60], GALLERY.attributes[:60], "m"))
    found = lists(index, 5, filter=Filter.parse("id=\u00e9.jpg|g0003 |nowhere"))
    assert all({*row} == {"e\u0301.jpg", "g0003"} for row in found)


def test_a_filter_that_nothing_fulfils(index: Index) -> None:
    assert lists(index, 10, filter=Filter.parse("price<0")) == [[]] * len(QUERIES)
    with pytest.raises(DataError, match="no attribute 'colour'"):
        lists(index, 10, filter=Filter.parse("colour=red"))


# ── add, remove ──────────────────────────────────────────────────────────────────────────────────


def test_what_is_added_is_found_and_what_is_removed_is_not(make: Make) -> None:
    index = make()
    added = embeddings(unit(30, 2), "new")
    index.add(added)
    assert len(index) == 2530 and index.ids[-30:] == added.ids
    assert index.search(added, 1).to_lists() == {name: [name] for name in added.ids}
    assert index.remove(added.ids[:10] + GALLERY.ids[:5]) == 15
    assert len(index) == 2515 and index.ids[0] == "g0005" and index.labels[0] == "c"  # type: ignore[index]
    gone = {*added.ids[:10], *GALLERY.ids[:5]}
    assert not gone & {name for row in index.search(added, 10).to_lists().values() for name in row}
    index.add(embeddings(unit(30, 2)[:10], "new"))  # once removed, an id may come back
    assert index.search(added, 1).to_lists() == {name: [name] for name in added.ids}


def test_after_many_changes_it_finds_what_a_new_index_finds(make: Make) -> None:
    index = make(embeddings(unit(1500, 0), "g"))
    everything = dict(zip(GALLERY.ids, unit(1500, 0), strict=False))
    rng = np.random.default_rng(0)
    for step in range(4):
        fresh = embeddings(unit(400, 10 + step), f"s{step}-")
        index.add(fresh)
        everything |= dict(zip(fresh.ids, fresh.vectors, strict=True))
        gone = rng.choice(sorted(everything), 250, replace=False).tolist()
        index.remove(gone)
        for name in gone:
            del everything[name]
    assert index.ids == list(everything)
    ids, vectors = list(everything), np.stack(list(everything.values()))
    whole = Embeddings(ids, vectors, pa.table({}), "m")
    expected = exact.rank(QUERIES, whole, 10)
    assert agreement(lists(index, 10), list(expected.to_lists().values())) >= 0.97
    index.verify()


def test_a_change_that_cannot_be_made_changes_nothing(make: Make) -> None:
    index = make()
    for wrong, message in [
        (embeddings(unit(3, 3), "g"), "holds 'g0000' already"),
        (embeddings(unit(3, 3), "x", "other"), "cannot be compared"),
        (embeddings(unit(3, 3, 8), "x"), "8 dimensions"),
        (embeddings(2 * unit(3, 3), "x"), "length 2, expected 1"),
        (Embeddings(["x", "x"], unit(2, 3), pa.table({}), "m"), "holds 'x' already"),
        (Embeddings(["x"], unit(1, 3), pa.table({"price": ["cheap"]}), "m"), "do not fit"),
    ]:
        with pytest.raises(DataError, match=message):
            index.add(wrong)
    with pytest.raises(DataError, match=r"holds no 'nobody' \(and 1 more\)"):
        index.remove(["g0001", "nobody", "nothing"])
    assert index.ids == GALLERY.ids
    index.verify()
    index.add(embeddings(unit(0, 3), "x"))
    assert index.remove([]) == 0 and len(index) == 2500


# ── wrong questions ──────────────────────────────────────────────────────────────────────────────


def test_questions_that_do_not_fit(index: Index) -> None:
    with pytest.raises(DataError, match=r"k=2501.*choose k from 1 to 2500"):
        index.search(QUERIES, 2501)
    with pytest.raises(DataError, match="k=0"):
        index.search(QUERIES, 0)
    with pytest.raises(DataError, match="cannot be compared"):
        index.search(embeddings(unit(2, 0), "q", "other"), 1)
    with pytest.raises(DataError, match="8 dimensions"):
        index.search(embeddings(unit(2, 0, 8), "q"), 1)
    with pytest.raises(DataError, match="zero or not finite"):
        index.search(np.zeros((1, D)), 1, model_id="m")
    assert index.search(embeddings(unit(0, 0), "q"), 3).positions.shape == (0, 3)


def test_an_empty_gallery_can_be_filled(make: Make) -> None:
    index = make(embeddings(unit(0, 0), "g"))
    assert len(index) == 0 and index.ids == []
    with pytest.raises(DataError, match="holds no image"):
        index.search(QUERIES, 1)
    few = embeddings(unit(40, 0), "g")
    index.add(few)
    assert lists(index, 10) == nearest(QUERIES, few, 10, np.arange(40))
    index.remove(index.ids)
    assert len(index) == 0


def test_the_whole_gallery_can_be_asked_for(index: Index) -> None:
    expected = exact.rank(QUERIES, GALLERY, len(GALLERY))
    assert index.search(QUERIES, len(GALLERY)).to_lists() == expected.to_lists()


# ── threads ──────────────────────────────────────────────────────────────────────────────────────


def test_many_threads_search_while_one_changes(make: Make) -> None:
    index = make()
    wrong: list[object] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                for query, row in index.search(QUERIES, 10).to_lists().items():
                    if len(set(row)) != 10:
                        wrong.append((query, row))
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for step in range(2):
        index.add(embeddings(unit(300, 20 + step), f"t{step}-"))
        index.remove(index.ids[:350])
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(index) == 2500 + 2 * 300 - 2 * 350


# ── on disk ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def in_folder(kind: str) -> None:
    if kind not in KINDS:
        pytest.skip("Milvus keeps its own files")


def test_round_trip(in_folder: None, make: Make, tmp_path: Path) -> None:
    index = make()
    index.add(embeddings(unit(30, 2), "new"))
    index.remove(["g0001"])
    index.save(tmp_path / "copy")
    for opened in (open_index(index.folder), open_index(tmp_path / "copy", verify=True)):
        assert opened.ids == index.ids and opened.attributes.equals(index.attributes)
        assert opened.kind == index.kind and opened.model_id == "m" and opened.dim == D
        assert lists(opened, 10) == lists(index, 10)
    copied = open_index(tmp_path / "copy")
    copied.remove(["g0002"])
    assert "g0002" in index.ids and "g0002" not in open_index(tmp_path / "copy").ids


def test_half_the_size(in_folder: None, make: Make) -> None:
    index, half = make(), make(store="fp16")
    sizes = [i.folder.joinpath("vectors.npy").stat().st_size - 128 for i in (index, half)]
    assert sizes[0] == 2 * sizes[1] == 2500 * D * 4
    assert agreement(lists(half, 10), lists(index, 10)) >= 0.97
    np.testing.assert_allclose(half.vectors(), GALLERY.vectors, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(half.vectors(), axis=1), 1, atol=1e-6)


def test_numpy_reads_the_vectors(in_folder: None, make: Make) -> None:
    index = make()
    index.add(embeddings(unit(30, 2), "new"))
    np.testing.assert_array_equal(np.load(index.folder / "vectors.npy"), index.vectors())


def test_every_changed_byte_is_found(in_folder: None, make: Make) -> None:
    index = make(embeddings(unit(1100, 0), "g"))
    index.add(embeddings(unit(20, 2), "new"))
    index.remove(["g0001"])
    assert change_bytes(index.folder, 60) == 60


@pytest.mark.parametrize("close", sorted(CLOSE))
def test_changed_bytes_of_close_kinds_are_found(close: str, tmp_path: Path) -> None:
    index: Any = build_index(embeddings(unit(1100, 0), "g"), tmp_path / "i", kind=close)
    assert index.about()["structure_bytes"] > 0
    assert change_bytes(index.folder, 40) == 40


@pytest.mark.slow
def test_a_thousand_changed_bytes_are_found(in_folder: None, make: Make) -> None:
    index = make(embeddings(unit(1100, 0), "g"))
    index.add(embeddings(unit(20, 2), "new"))
    index.remove(["g0001"])
    assert change_bytes(index.folder, 1000) == 1000


def change_bytes(folder: Path, changes: int) -> int:
    """How many of so many single-byte changes keep the index from opening.

    Half of them anywhere, half in a file drawn first, so that small files get their share.
    """
    files = sorted(path for path in folder.iterdir() if path.name != ".lock")
    sizes = np.array([path.stat().st_size for path in files])
    rng = np.random.default_rng(0)
    found = 0
    for i in range(changes):
        path = files[rng.choice(len(files), p=sizes / sizes.sum() if i % 2 else None)]
        at, by = int(rng.integers(path.stat().st_size)), int(rng.integers(1, 256))
        with path.open("r+b") as file:
            file.seek(at)
            old = file.read(1)[0]
            file.seek(at)
            file.write(bytes([old ^ by]))
        try:
            open_index(folder)
        except (StorageError, DataError):
            found += 1
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([old]))
    assert len(open_index(folder)) > 0
    return found


def test_a_missing_or_truncated_file_is_found(in_folder: None, make: Make) -> None:
    index = make()
    for path in sorted(index.folder.iterdir()):
        whole = path.read_bytes()
        if path.name == ".lock":
            continue
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises((StorageError, DataError)):
            open_index(index.folder)
        path.unlink()
        with pytest.raises((StorageError, DataError)):
            open_index(index.folder)
        path.write_bytes(whole)
    assert open_index(index.folder).ids == GALLERY.ids


def test_an_add_that_was_cut_short(in_folder: None, make: Make) -> None:
    """Rows that no manifest names count for nothing; a header that is behind is put right."""
    index = make()
    path = index.folder / "vectors.npy"
    before = path.read_bytes()
    path.write_bytes(before + b"rows of an add that never ended")
    again = open_index(index.folder)
    assert lists(again, 5) == lists(index, 5)
    again.add(embeddings(unit(30, 2), "new"))
    after = path.read_bytes()
    assert len(after) == len(before) + 30 * D * 4
    path.write_bytes(before[:128] + after[128:])
    once_more = open_index(index.folder)
    assert len(once_more) == 2530
    once_more.add(embeddings(unit(30, 3), "newer"))
    assert np.load(path).shape == (2560, D)
    assert len(open_index(index.folder, verify=True)) == 2560


def test_two_processes_do_not_mix(in_folder: None, make: Make) -> None:
    index = make()
    other = open_index(index.folder)
    other.add(embeddings(unit(30, 2), "new"))
    with pytest.raises(StorageError, match="open it again"):
        index.add(embeddings(unit(30, 3), "newer"))
    assert len(index) == 2500 and lists(index, 10)
    assert index.refresh() and len(index) == 2530 and not index.refresh()
    other.remove(other.ids[:600])  # a fifth: everything is written anew
    assert len(lists(index, 10)[0]) == 10  # the old files are still open here
    index.refresh()
    assert len(index) == 1930


def test_a_fifth_removed_is_rewritten(in_folder: None, make: Make) -> None:
    index = make()
    index.remove(index.ids[:499])
    assert index.about()["removed"] == 499
    index.remove(index.ids[:1])
    assert index.about()["removed"] == 0 and len(open_index(index.folder)) == 2000
    assert len([*index.folder.glob("vectors*"), *index.folder.glob("items*")]) == 2


def test_many_small_adds_leave_few_files(in_folder: None, make: Make) -> None:
    index = make()
    for i in range(40):
        index.add(embeddings(unit(1, 100 + i), f"one-{i}-"))
    assert len(list(index.folder.iterdir())) < 15
    assert open_index(index.folder, verify=True).ids == index.ids


def test_what_is_kept_beside_goes_with_a_change(in_folder: None, make: Make) -> None:
    index = make()
    assert index.kept("graph") is None
    index.keep("graph", ".txt", lambda path: path.write_text("1 2"), k=7)
    path, about = open_index(index.folder).kept("graph")  # type: ignore[misc]
    assert path.read_text() == "1 2" and about["k"] == 7
    path.write_text("1 3")
    with pytest.raises(StorageError, match="damaged"):
        open_index(index.folder)
    path.write_text("1 2")
    index.remove(["g0001"])
    assert index.kept("graph") is None and not path.exists()


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("x")
    with pytest.raises(DataError, match=r"thesis\.doc"):
        build_index(GALLERY, tmp_path / "mine")
    with pytest.raises(DataError, match="no index"):
        open_index(tmp_path / "mine")
    with pytest.raises(UsageError, match="choose one of"):
        build_index(GALLERY, tmp_path / "x", kind="magic")


def test_built_again_in_its_place(in_folder: None, make: Make) -> None:
    index = make()
    again = build_index(embeddings(unit(1200, 5), "h"), index.folder, kind=index.kind)
    assert len(again) == 1200 and len(index) == 2500 and lists(index, 10)
    index.refresh()
    assert index.ids == again.ids


def test_from_a_folder_of_embeddings(in_folder: None, make: Make, tmp_path: Path) -> None:
    GALLERY.save(tmp_path / "g.emb")
    index = build_index(tmp_path / "g.emb", tmp_path / "i", kind=make().kind)
    assert index.ids == GALLERY.ids and index.attributes.equals(GALLERY.attributes)
    np.testing.assert_array_equal(index.embeddings().vectors, GALLERY.vectors)


# ── Milvus ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def in_milvus(kind: str) -> None:
    if kind in KINDS:
        pytest.skip("a folder")


def test_milvus_opens_again_and_copies_itself_to_a_folder(
    in_milvus: None, make: Make, tmp_path: Path
) -> None:
    index: Any = make()
    index.remove(["g0001"])
    again: Any = open_index(index.where)
    assert again.ids == index.ids and again.dim == D and again.model_id == "m"
    assert again.attributes.equals(index.attributes)
    again.add(embeddings(unit(3, 2), "new"))
    assert "new0002" not in index.ids and index.refresh() and index.ids == again.ids
    index.save(tmp_path / "copy")
    copied = open_index(tmp_path / "copy", verify=True)
    assert copied.kind == "exact" and copied.ids == index.ids
    assert lists(copied, 10) == lists(index, 10)


def test_milvus_is_written_to_where_it_is_asked(in_milvus: None, make: Make) -> None:
    index: Any = make()
    again = build_index(embeddings(unit(20, 5), "h"), index.where)
    assert again.kind == "milvus" and len(again) == 20 and len(again.ids) == 20
    with pytest.raises(UsageError, match="leave kind out"):
        build_index(GALLERY, index.where, kind="hnsw")


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("milvus://nowhere", UsageError, "milvus://HOST:PORT/COLLECTION"),
        ("missing.db", DataError, "no such file"),
    ],
)
def test_where_there_is_no_milvus(where: str, error: type[Exception], message: str) -> None:
    pytest.importorskip("pymilvus")
    with pytest.raises(error, match=message):
        open_index(where)
