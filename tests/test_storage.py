import errno
import multiprocessing
import os
import random
import shutil
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
    rng = random.Random(0)
    for _ in range(1000):
        at = rng.randrange(len(good))
        bad = bytearray(good)
        bad[at] ^= 1 << rng.randrange(8)
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


@pytest.mark.parametrize("place", ["s3://b/x.emb", "memory://x", Path("s3://b/x.emb")])
def test_a_url_is_no_folder_to_write(
    tmp_path: Path, place: str | Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="is a URL"), storage.locked(place):
        pass
    assert list(tmp_path.iterdir()) == []


def test_without_a_home_the_cache_is_temporary_and_this_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("VIZSLA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(storage.Path, "home", homeless)
    storage._home_cache.cache_clear()
    try:
        folders = {storage.cache_folder() for _ in range(3)}
    finally:
        storage._home_cache.cache_clear()
    assert len(folders) == 1 and folders.pop().parent.is_dir()
    assert caplog.text.count("no home folder") == 1


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="regular file"):
            storage.open_regular(place)
    (tmp_path / "file").write_bytes(b"x")
    handle = storage.open_regular(tmp_path / "file")
    assert os.read(handle, 2) == b"x"
    os.close(handle)


def test_a_library_that_misses_a_deleted_folder_hears_of_the_folder(tmp_path: Path) -> None:
    """safetensors says in words of its own what the system said."""
    out = tmp_path / "out"
    with (
        pytest.raises(StorageError, match="was deleted or replaced"),
        storage.locked(out),
        storage.writing(out / "a.safetensors"),
    ):
        shutil.rmtree(out)
        raise RuntimeError("I/O error: No such file or directory (os error 2)")
