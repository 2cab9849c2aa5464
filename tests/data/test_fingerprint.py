"""The number that says whether a set of images is still the same."""

import os
import sys
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from vizsla.data import file_hashes
from vizsla.data.file_hashes import hash_files
from vizsla.data.fingerprint import fingerprint
from vizsla.data.imageset import ImageSet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files below and above what is read at once."""
    for i, size in enumerate((0, 10, 5000, 70_000, 200_000)):
        (tmp_path / f"{i} é.jpg").write_bytes(bytes(n % 251 for n in range(size)))
    return tmp_path


def of(folder: Path) -> str:
    return fingerprint(ImageSet(folder, sorted(p.name for p in folder.iterdir())))


def test_it_stays_while_nothing_changes(folder: Path) -> None:
    assert of(folder) == of(folder)


@pytest.mark.parametrize("where", [0, 100_000, 199_999])
def test_a_byte_at_start_middle_or_end_is_seen(folder: Path, where: int) -> None:
    before, path = of(folder), folder / "4 é.jpg"
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    assert of(folder) != before


def test_a_name_a_size_and_a_missing_file_are_seen(folder: Path) -> None:
    images = ImageSet(folder, sorted(p.name for p in folder.iterdir()))
    seen = {fingerprint(images)}
    (folder / "3 é.jpg").write_bytes((folder / "3 é.jpg").read_bytes() + b"\0")
    seen.add(fingerprint(images))
    (folder / "3 é.jpg").unlink()
    seen.add(fingerprint(images))
    (folder / "2 é.jpg").rename(folder / "2.jpg")
    seen.add(of(folder))
    assert len(seen) == 4


def test_an_attribute_is_seen(folder: Path) -> None:
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    seen = {
        fingerprint(ImageSet(folder, ["a.png"], pa.table({"colour": [colour]})))
        for colour in ("red", "blue", None)
    }
    assert len(seen) == 3


@pytest.fixture
def in_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "MANY_FILES", 2)
    monkeypatch.setattr(file_hashes, "FILES_PER_REQUEST", 3)
    monkeypatch.setattr(file_hashes, "available_cores", lambda: 4)


def test_child_processes_give_the_same_hashes(
    folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(path) for path in sorted(folder.iterdir())] + [str(folder / "none"), str(folder)]
    paths.append(os.fsdecode(os.fsencode(str(folder)) + b"/\xff.jpg"))
    expected = hash_files(paths)
    request.getfixturevalue("in_children")
    monkeypatch.setattr(file_hashes, "_hash_here", None)  # the children do all of it
    assert hash_files(paths) == expected


@pytest.mark.usefixtures("in_children")
def test_hashing_ends_soon_after_it_is_cancelled(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    cancelled = threading.Event()
    threading.Timer(0.5, cancelled.set).start()
    with pytest.raises(CancelledError):
        hash_files([str(path) for path in sorted(folder.iterdir())], cancelled=cancelled)


def test_pipes_devices_and_impossible_names_do_not_hold_it_up(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    paths = [str(folder / name) for name in ("pipe.jpg", "zero.jpg", "none.jpg", "a\0b.jpg")]
    assert len(set(hash_files(paths))) == 1


def test_an_absolute_name_is_taken_as_it_is(folder: Path) -> None:
    path = folder / "4 é.jpg"
    seen = set()
    for content in (b"one", b"two"):
        path.write_bytes(content)
        seen.add(fingerprint(ImageSet(Path("anywhere"), [str(path)])))
    assert len(seen) == 2


def test_hashing_goes_on_where_no_child_process_starts(
    folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(path) for path in sorted(folder.iterdir())]
    expected = hash_files(paths)
    request.getfixturevalue("in_children")
    monkeypatch.setattr(sys, "executable", str(folder / "no python"))
    assert hash_files(paths) == expected
