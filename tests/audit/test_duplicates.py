from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vizsla.audit.copy_groups import to_exclude
from vizsla.audit.duplicates import MANY, Pair, conflicts, find_pairs, leaks
from vizsla.audit.file_scan import ImageFacts, scan_files
from vizsla.data.imageset import ImageSet

Photo = Callable[..., Image.Image]


def facts(*files: str) -> list[ImageFacts]:
    """`training/a:cat` or `query/b`: role, id and label; a `!` behind it makes it broken."""
    made = []
    for i, file in enumerate(files):
        name, _, label = file.rstrip("!").partition(":")
        role, _, below = name.partition("/")
        broken = "cut off" if file.endswith("!") else None
        size = (100 + i, 100)
        made.append(ImageFacts(role, below, Path(name), label or None, broken, size=size))
    return made


def pair(a: int, b: int, how: str = "near", similarity: float = 0.95) -> Pair:
    return Pair(a, b, how, similarity)


# ── finding them ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def sets(photo: Photo, tmp_path: Path) -> dict[str, ImageSet]:
    files = {
        "training/cat/a.jpg": photo(0), "training/cat/b.png": photo(1),
        "training/dog/a-smaller.jpg": photo(0).resize((80, 60)), "training/dog/c.png": photo(2),
        "query/b.bmp": photo(1), "query/d.png": photo(3),
        "gallery/c-mirrored.png": photo(2).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "gallery/e.png": photo(4), "gallery/broken.png": photo(5),
    }  # fmt: skip
    for name, picture in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / name)
    (tmp_path / "gallery/broken.png").write_bytes(b"\x89PNG")
    (tmp_path / "query/d2.png").write_bytes((tmp_path / "query/d.png").read_bytes())
    return {
        "training": ImageSet.from_class_folders(tmp_path / "training"),
        "query": ImageSet.from_folder(tmp_path / "query"),
        "gallery": ImageSet.from_folder(tmp_path / "gallery"),
    }


def test_copies_inside_and_between_roles_are_found_and_named(sets: dict[str, ImageSet]) -> None:
    scan = scan_files(sets)
    pairs = find_pairs(scan)
    named = {(scan.facts[p.a].name, scan.facts[p.b].name): p.how for p in pairs}
    assert named == {
        ("query/d.png", "query/d2.png"): "same file",
        ("training/cat/b.png", "query/b.bmp"): "same picture",
        ("training/cat/a.jpg", "training/dog/a-smaller.jpg"): "near",
        ("training/dog/c.png", "gallery/c-mirrored.png"): "mirrored",
    }
    assert [p.how for p in pairs] == ["same file", "same picture", "near", "mirrored"]
    assert [p.similarity for p in pairs][:2] == [1.0, 1.0]
    assert {scan.facts[p.b].name for p in leaks(scan.facts, pairs)} == {
        "query/b.bmp", "gallery/c-mirrored.png",
    }  # fmt: skip
    assert [scan.facts[p.a].name for p in conflicts(scan.facts, pairs)] == ["training/cat/a.jpg"]


def test_of_many_equal_files_every_leak_is_still_a_pair(photo: Photo, tmp_path: Path) -> None:
    for i in range(MANY + 4):
        (tmp_path / "training/x").mkdir(parents=True, exist_ok=True)
        photo(0).save(tmp_path / f"training/x/{i:02d}.png")
    (tmp_path / "query").mkdir()
    photo(0).save(tmp_path / "query/q.png")
    photo(0).resize((80, 60)).save(tmp_path / "query/small.png")
    scan = scan_files(
        {
            "training": ImageSet.from_class_folders(tmp_path / "training"),
            "query": ImageSet.from_folder(tmp_path / "query"),
        }
    )
    n = MANY + 4
    pairs = find_pairs(scan)
    assert {(p.a, p.b) for p in pairs if p.how == "same file"} == {(i, n) for i in range(n)}
    assert {(p.a, p.b) for p in pairs if p.how == "near"} == {(i, n + 1) for i in range(n + 1)}
    assert len(to_exclude(scan.facts, pairs)) == n


# ── what they mean ───────────────────────────────────────────────────────────────────────────────


def test_a_conflict_needs_two_known_labels() -> None:
    known = facts("training/a:cat", "training/b:dog", "query/c", "query/d:cat")
    pairs = [pair(0, 1), pair(0, 2), pair(0, 3), pair(1, 3)]
    assert conflicts(known, pairs) == [pair(0, 1), pair(1, 3)]
