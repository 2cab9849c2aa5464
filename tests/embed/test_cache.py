"""No image is embedded twice: whatever it is called, wherever it lies, whoever asks."""

import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vizsla.data.imageset import ImageSet
from vizsla.embed import cache as cache_module
from vizsla.embed.cache import FILE, FetchedImages, VectorCache, content_hash
from vizsla.embed.compute import Compute
from vizsla.embed.inference import embed
from vizsla.embed.runtime import Runtime
from vizsla.errors import StorageError
from vizsla.model.embedder import Embedder

COMPUTE = Compute("cpu", "fp32", 4, 1)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.build("tiny", weights="random", image_size=32)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(10):
        pixels = rng.integers(0, 255, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every batch that goes through a network."""
    seen: list[int] = []
    original = Runtime.submit

    def counted(network: Runtime, pixels: object) -> object:
        seen.append(1)
        return original(network, pixels)  # type: ignore[arg-type]

    monkeypatch.setattr(Runtime, "submit", counted)
    return seen


def run(photos: Path, embedder: Embedder, out: Path, **options: object) -> object:
    known = {"compute": COMPUTE, "cache": photos.parent / "cache", "shard_images": 4, **options}
    return embed(ImageSet.from_folder(photos), embedder, out, **known)  # type: ignore[arg-type]


def test_moved_and_renamed_images_cost_nothing(
    photos: Path, embedder: Embedder, tmp_path: Path, batches: list[int]
) -> None:
    (photos / "broken.png").write_bytes(b"broken")
    alone = run(photos, embedder, tmp_path / "alone", cache=None)
    first = run(photos, embedder, tmp_path / "a")
    assert len(batches) == 3 + 3
    del batches[:]
    (photos / "sub").mkdir()
    for i in range(10):
        (photos / f"{i}.png").rename(photos / "sub" / f"{9 - i}.png")
    second = run(photos, embedder, tmp_path / "b")
    assert batches == []
    np.testing.assert_array_equal(second.vectors, first.vectors[::-1])
    np.testing.assert_array_equal(alone.vectors, first.vectors)
    assert [name for name, _ in second.broken] == ["broken.png"]


def test_a_grown_gallery_costs_its_growth(
    photos: Path, embedder: Embedder, tmp_path: Path, batches: list[int]
) -> None:
    run(photos, embedder, tmp_path / "a")
    for i in (3, 20, 21):
        Image.new("RGB", (30, 30), (i, 2 * i, 100)).save(photos / f"{i}.png")
    del batches[:]
    seen: list[int] = []
    found = run(photos, embedder, tmp_path / "b", progress=lambda done, total: seen.append(done))
    assert len(batches) == 2 and seen[-1] == 12  # three new ones, in two of the three shards
    alone = run(photos, embedder, tmp_path / "c", cache=None)
    assert found.ids == alone.ids
    np.testing.assert_allclose(found.vectors, alone.vectors, atol=1e-6)


def test_another_model_computation_or_limit_is_another_vector(
    photos: Path, embedder: Embedder, tmp_path: Path, batches: list[int]
) -> None:
    other = Embedder.build("tiny", weights="random", image_size=32, seed=1)
    ways = [(embedder, {}), (other, {}), (embedder, {"compute": Compute("cpu", "fp32", 5, 1)}),
            (embedder, {"max_pixels": 10**6})]  # fmt: skip
    for i, (model, options) in enumerate(ways):
        del batches[:]
        run(photos, model, tmp_path / str(i), **options)
        assert len(batches) >= 2, i


def test_damaged_entries_are_computed_again(
    photos: Path, embedder: Embedder, tmp_path: Path, batches: list[int]
) -> None:
    first = run(photos, embedder, tmp_path / "a")
    path = tmp_path / "cache" / FILE
    base = sqlite3.connect(path)
    (content,) = base.execute("SELECT content FROM vectors LIMIT 1").fetchone()
    (vector,) = base.execute("SELECT vector FROM vectors WHERE content = ?", (content,)).fetchone()
    wrong = bytes([vector[0] ^ 1]) + vector[1:]
    base.execute("UPDATE vectors SET vector = ? WHERE content = ?", (wrong, content))
    base.commit()
    base.close()
    del batches[:]
    again = run(photos, embedder, tmp_path / "b")
    assert len(batches) == 1
    np.testing.assert_allclose(again.vectors, first.vectors, atol=1e-6)


def test_a_file_that_is_no_cache_any_more_is_begun_anew(
    photos: Path, embedder: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(photos, embedder, tmp_path / "a")
    (tmp_path / "cache" / FILE).write_bytes(b"no database at all" * 1000)
    again = run(photos, embedder, tmp_path / "b")
    assert "replaced by a new one" in caplog.text
    np.testing.assert_array_equal(again.vectors, first.vectors)
    caplog.clear()
    run(photos, embedder, tmp_path / "c")
    assert not caplog.text


def test_it_stays_within_its_limit_and_forgets_what_was_not_asked_for_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(cache_module.time, "time", lambda: clock[0])
    cache = VectorCache(tmp_path, max_bytes=400_000)
    vector = np.ones(256, np.float32)
    first = b"first".ljust(32)
    for i in range(30):
        clock[0] += 10
        cache.put("s", {b"%032d" % (100 * i + j): vector for j in range(40)} | {first: vector})
        assert first in cache.get("s", [first], 256)
    kept = [i for i in range(30) if cache.get("s", [b"%032d" % (100 * i)], 256)]
    assert kept and kept[-1] == 29 and 0 not in kept
    assert (tmp_path / FILE).stat().st_size < 600_000


FILL = """
import sys
import numpy as np
from vizsla.embed.cache import VectorCache
cache, start = VectorCache(sys.argv[1]), int(sys.argv[2])
for first in range(start, start + 200, 10):  # a writer that waits 60 s for the others gives up
    some = range(first, first + 10)
    cache.put("s", {b"%032d" % i: np.full(8, i, np.float32) for i in some})
"""


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", FILL, str(tmp_path), str(150 * n)])
        for n in range(3)
    ]
    for writer in writers:
        assert writer.wait(120) == 0
    keys = [b"%032d" % i for i in range(500)]
    found = VectorCache(tmp_path).get("s", keys, 8)
    assert len(found) == 500 and all((v == int(k)).all() for k, v in found.items())


def test_a_cache_that_cannot_be_used_costs_time_alone(
    photos: Path, embedder: Embedder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache" / FILE).mkdir(parents=True)
    assert len(run(photos, embedder, tmp_path / "a")) == 10  # type: ignore[arg-type]
    assert "cannot be used" in caplog.text
    assert content_hash(tmp_path / "nowhere") is None


def test_what_is_no_file_has_no_content(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for place in (tmp_path / "pipe.jpg", Path("/dev/zero"), tmp_path, Path("a\0b")):
        assert content_hash(place) is None


def filled(folder: Path) -> tuple[list[bytes], dict[bytes, np.ndarray]]:
    rng = np.random.default_rng(0)
    keys = [hashlib.sha256(bytes([i])).digest() for i in range(60)]
    vectors = {key: rng.standard_normal(96).astype(np.float32) for key in keys}
    VectorCache(folder).put("s", vectors)
    return keys, vectors


def test_whatever_happened_to_the_file_nothing_wrong_comes_out_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys, vectors = filled(tmp_path)
    good = (tmp_path / FILE).read_bytes()
    rng = random.Random(1)
    for i in range(200):
        bad = bytearray(good)
        for _ in range(rng.choice([1, 1, 3, 20])):
            end = len(bad) if rng.random() < 0.5 else 3 * 4096  # the first pages hold the schema
            bad[rng.randrange(end)] = rng.randrange(256)
        for path in tmp_path.iterdir():
            path.unlink()
        (tmp_path / FILE).write_bytes(bad[: rng.randrange(len(bad))] if i % 10 == 0 else bad)
        caplog.clear()
        cache = VectorCache(tmp_path)
        found = cache.get("s", keys, 96)
        assert all(np.array_equal(vector, vectors[key]) for key, vector in found.items())
        cache.put("s", vectors)
        assert len(cache.get("s", keys, 96)) > 50
        assert len(caplog.records) <= 1, caplog.text


ODD = {
    "other columns": "DROP TABLE vectors; CREATE TABLE vectors (a, b)",
    "text for a vector": "UPDATE vectors SET vector = 'abc'",
    "text that is none": "UPDATE vectors SET vector = CAST(x'ff' AS TEXT)",
    "a number": "UPDATE vectors SET vector = 3, sha256 = 2.5",
    "too short": "UPDATE vectors SET vector = x'00'",
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_an_odd_cache_is_no_cache(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    keys, vectors = filled(tmp_path)
    base = sqlite3.connect(tmp_path / FILE)
    base.executescript(change)
    base.close()
    cache = VectorCache(tmp_path)
    assert cache.get("s", keys, 96) == {}
    cache.put("s", vectors)
    assert len(cache.get("s", keys, 96)) == 60
    assert len(caplog.records) <= 1


def test_a_format_of_the_future_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys, vectors = filled(tmp_path)
    data = bytearray((tmp_path / FILE).read_bytes())
    data[47] = 9
    (tmp_path / FILE).write_bytes(data)
    cache = VectorCache(tmp_path)
    assert cache.get("s", keys, 96) == {}
    cache.put("s", vectors)
    assert len(cache.get("s", keys, 96)) == 60
    assert (tmp_path / f"{FILE}.damaged").read_bytes() == data
    assert len(caplog.records) == 1


def test_one_that_stays_locked_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_module, "LOCK_TIMEOUT", 0.5)
    monkeypatch.setattr(cache_module, "MARK_TIMEOUT", 0.1)
    keys, vectors = filled(tmp_path)
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    cache = VectorCache(tmp_path)
    assert len(cache.get("s", keys, 96)) == 60  # reading waits for nobody
    connect, connections = sqlite3.connect, []

    def counted(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connections.append(arguments)
        return connect(*arguments, **options)

    monkeypatch.setattr(sqlite3, "connect", counted)
    for _ in range(20):
        cache.put("s", vectors)
        cache.get("s", keys, 96)
    assert len(connections) == 1
    assert len(caplog.records) == 1 and "locked" in caplog.text
    other.close()


READ_ONLY = """
import logging, os, sys
from vizsla.embed.cache import VectorCache
if os.getuid() == 0:
    os.setuid(65534)
logging.basicConfig(format="%(message)s")
cache = VectorCache(sys.argv[1])
for _ in range(3):
    found = cache.get("s", [bytes.fromhex(sys.argv[2])], 96)
    cache.put("s", found)
print(len(found))
"""


@pytest.mark.parametrize("walled", [False, True])
def test_one_that_cannot_be_written_still_gives_its_vectors(walled: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "cache"
        keys, _ = filled(place)
        if walled:  # as after a kill
            (place / f"{FILE}-wal").write_bytes(b"")
        for path in place.iterdir():
            path.chmod(0o444)
        place.chmod(0o555)
        Path(folder).chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(place), keys[7].hex()],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        place.chmod(0o755)
    assert done.stdout == "1\n", done.stderr
    assert done.stderr.count("stores nothing new") == 1 == done.stderr.count("\n")


def test_a_file_is_no_folder_for_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="is a file, but a cache is a folder"):
        VectorCache(tmp_path / "file")


@dataclass
class Counted:
    """A store far away, as a Source: what is read is counted."""

    folder: Path
    reads: list[str]
    location = "store"
    is_remote = True

    def read(self, name: str) -> bytes:
        self.reads.append(name)
        return (self.folder / name).read_bytes()

    def version(self, name: str) -> bytes:
        return name.encode()

    def states(self, names: Sequence[str], *, now: bool) -> list[int]:
        return [0] * len(names)

    def subset(self, names: Sequence[str]) -> "Counted":
        return self

    def require_available(self) -> None:
        pass


def test_what_is_far_away_is_fetched_once(
    photos: Path, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = run(photos, embedder, tmp_path / "here", cache=None)
    names = sorted(path.name for path in photos.iterdir())
    for limit, times in ((2**28, 1), (0, 2)):
        cache = tmp_path / f"cache-{limit}"
        monkeypatch.setattr(FetchedImages.__init__, "__defaults__", (limit,))
        for again in (False, True):
            source = Counted(photos, [])
            images = ImageSet.from_source(names, source)
            found = embed(
                images, embedder, tmp_path / f"{limit}-{again}", compute=COMPUTE, shard_images=4,
                cache=cache,
            )  # fmt: skip
            np.testing.assert_array_equal(found.vectors, here.vectors)  # type: ignore[attr-defined]
            assert sorted(source.reads) == sorted(names * (1 if again else times))


def test_what_changed_between_two_fetches_is_not_kept(tmp_path: Path) -> None:
    contents = [b"one", b"two"]
    fetched = FetchedImages(lambda i: contents.pop(0), limit=0)
    assert fetched.content(7) == content_hash(b"one")
    assert fetched.take(7) == b"two" and fetched.changed == {7}


def test_copies_in_one_shard_are_embedded_once(
    photos: Path, embedder: Embedder, tmp_path: Path, batches: list[int]
) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    folder = tmp_path / "copies"
    folder.mkdir()
    originals = [*sorted(path.name for path in photos.iterdir())[:4], "broken.png"]
    for n in range(20):
        shutil.copy(photos / originals[n % 5], folder / f"{n:02}.png")
    alone: Any = run(folder, embedder, tmp_path / "alone", cache=None)
    del batches[:]
    found: Any = run(folder, embedder, tmp_path / "cached", shard_images=20)
    assert found.ids == alone.ids and found.broken == alone.broken and len(found.broken) == 4
    np.testing.assert_array_equal(found.vectors, alone.vectors)
    assert len(batches) == 1  # of 4 images; the broken one goes through no network
