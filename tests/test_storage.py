import errno
import multiprocessing
import random
from pathlib import Path

import pyarrow as pa
import pytest

from vizsla import storage
from vizsla.errors import StorageError


def test_sealed_json_and_table_come_back(tmp_path: Path) -> None:
    storage.write_sealed_json(tmp_path / "a.json", {"é": [1, None, "x"]})
    assert storage.read_sealed_json(tmp_path / "a.json") == {"é": [1, None, "x"]}
    table = pa.table({"x": [1, 2], "y": ["a", None]}).replace_schema_metadata({"k": "v"})
    storage.write_sealed_table(tmp_path / "a.parquet", table)
    again = storage.read_sealed_table(tmp_path / "a.parquet")
    assert again.to_pydict() == table.to_pydict()
    assert again.schema.metadata[b"k"] == b"v"


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_every_single_byte_change_is_found(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "json":
        storage.write_sealed_json(path, {"shards": [{"file": "a", "rows": 3}] * 5})
        read = storage.read_sealed_json
    else:
        storage.write_sealed_table(path, pa.table({"x": list(range(100)), "y": ["ab"] * 100}))
        read = storage.read_sealed_table
    good = path.read_bytes()
    dice = random.Random(0)
    for _ in range(1000):
        at = dice.randrange(len(good))
        bad = bytearray(good)
        bad[at] ^= 1 << dice.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(StorageError, match="damaged"):
            read(path)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(StorageError):
        read(path)


@pytest.mark.parametrize("size", [100, storage.MEMO_FROM_BYTES + 1])
def test_verify_finds_a_change_also_behind_the_memo(tmp_path: Path, size: int) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"a" * size)
    sha256 = storage.sha256_of(path)
    storage.verify(path, sha256)
    storage.verify(path, sha256)
    path.write_bytes(b"b" + b"a" * (size - 1))
    with pytest.raises(StorageError, match="damaged"):
        storage.verify(path, sha256)


def test_memo_saves_hashing_and_force_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"a" * (storage.MEMO_FROM_BYTES + 1))
    sha256 = storage.sha256_of(path)
    storage.verify(path, sha256)
    monkeypatch.setattr(storage, "sha256_of", lambda path: "another")
    storage.verify(path, sha256)
    with pytest.raises(StorageError):
        storage.verify(path, sha256, force=True)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    storage.write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), storage.writing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("step", ["_fsync", "replace"])
def test_a_full_disk_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((storage, step) if step == "_fsync" else (Path, step)), fail)
    with pytest.raises(StorageError, match=r"a\.txt: the disk is full"):
        storage.write_text(tmp_path / "a.txt", "new")
    assert list(tmp_path.iterdir()) == []


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(tmp_path / "a.json", {"score": float("nan")})
    assert list(tmp_path.iterdir()) == []


def _try_lock(folder: Path, answers: "multiprocessing.Queue[str]") -> None:
    try:
        with storage.locked(folder):
            answers.put("got it")
    except StorageError as error:
        answers.put(str(error))


def test_a_second_process_is_told(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[str] = context.Queue()
    with storage.locked(tmp_path):
        process = context.Process(target=_try_lock, args=(tmp_path, answers))
        process.start()
        assert "another process is writing" in answers.get(timeout=60)
        process.join()
    with storage.locked(tmp_path):
        pass
