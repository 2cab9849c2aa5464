"""Pairs of which one holds a part of the other: candidates by votes, decided by geometry."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps
from typer.testing import CliRunner

from vizsla.audit.check import check, image_sets
from vizsla.audit.partial_copies import Vocabulary, candidates, partial_copies
from vizsla.cli.main import app
from vizsla.embed import local_features
from vizsla.embed.local_features import LocalSource, Sift
from vizsla.search.geometry import mutual_matches

pytest.importorskip("cv2", reason="needs the extra local")
Scene = Callable[..., Image.Image]


def crop(photo: Image.Image, host: Image.Image) -> Image.Image:
    return photo.crop((60, 40, 220, 150)).resize((240, 165))


def collage(photo: Image.Image, host: Image.Image) -> Image.Image:
    made = host.copy()
    made.paste(photo.crop((40, 30, 200, 150)).resize((128, 96)), (60, 50))
    return made


def screenshot(photo: Image.Image, host: Image.Image) -> Image.Image:
    made = Image.new("RGB", (220, 400), "white")
    made.paste(photo.resize((200, 150)), (10, 120))
    ImageDraw.Draw(made).rectangle((20, 20, 180, 40), "grey")
    return made


def overlay(photo: Image.Image, host: Image.Image) -> Image.Image:
    made = photo.copy()
    draw = ImageDraw.Draw(made)
    draw.rectangle((0, 110, 240, 160), "navy")
    draw.ellipse((10, 10, 80, 80), "yellow")
    return made


MAKE = (crop, collage, screenshot, overlay)


def found_in(images: list[Image.Image]) -> list[tuple[int, int]]:
    source = LocalSource(images.__getitem__, Sift())
    found = partial_copies(len(images), source.of, images.__getitem__)
    assert all(0.2 <= part.similarity <= 1 for part in found)
    return [(part.a, part.b) for part in found]


@pytest.mark.parametrize("make", MAKE, ids=lambda make: make.__name__)
def test_a_part_is_found_and_nothing_else(
    make: Callable[[Image.Image, Image.Image], Image.Image], scene: Scene
) -> None:
    images = [scene(i) for i in range(20)]
    images[7] = make(images[3], scene(99))
    assert found_in(images) == [(3, 7)]
    assert found_in(images) == [(3, 7)]  # the same on every run


@pytest.mark.parametrize("make", [*MAKE, lambda photo, host: photo], ids=[*map(str, range(5))])
def test_a_mirrored_part_is_found(
    make: Callable[[Image.Image, Image.Image], Image.Image], scene: Scene
) -> None:
    images = [scene(i) for i in range(12)]
    images[7] = ImageOps.mirror(make(images[3], scene(99)))
    source = LocalSource(images.__getitem__, Sift())
    [part] = partial_copies(12, source.of, images.__getitem__)
    assert (part.a, part.b, part.mirrored) == (3, 7, True)


def test_mirrored_features_are_those_of_the_mirrored_image(scene: Scene) -> None:
    ours = Sift()(scene(1))
    theirs = Sift()(ImageOps.mirror(scene(1)))
    at_a, at_b = mutual_matches(ours.mirrored(), theirs)
    assert len(at_a) > 0.8 * len(ours) > 3 * len(mutual_matches(ours, theirs)[0])
    offsets = ours.mirrored().points[at_a] - theirs.points[at_b]
    assert np.abs(np.median(offsets, axis=0)).max() < 0.1
    again = ours.mirrored().mirrored()
    np.testing.assert_array_equal(again.descriptors, ours.descriptors)
    np.testing.assert_allclose(again.points, ours.points, atol=1e-4)


def test_known_pairs_are_left_out(scene: Scene) -> None:
    images = [scene(i) for i in range(4)]
    images[2] = collage(images[0], images[2])
    source = LocalSource(images.__getitem__, Sift())
    known = frozenset({(0, 2)})
    assert partial_copies(4, source.of, images.__getitem__, known=known) == []


def test_the_same_points_with_other_pixels_are_no_copy(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points agree, as on two photos of one thing, but the pixels between them do not."""
    images = [scene(i) for i in range(4)]
    images[2] = collage(images[0], images[2])
    source = LocalSource(images.__getitem__, Sift())
    changed = [images[0].rotate(180), *images[1:]]
    assert partial_copies(4, source.of, changed.__getitem__) == []


def test_images_without_points_are_no_pairs() -> None:
    assert found_in([Image.new("RGB", (90, 90), colour) for colour in ("red", "blue")]) == []
    assert found_in([]) == []


def test_votes_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    n, m = 12, 600
    words = rng.integers(40, size=m)
    images = np.sort(rng.integers(n, size=m))
    signatures = rng.integers(2, size=m).astype(np.uint64) * np.uint64(2**60 - 1)
    a, b = candidates(words, signatures, images, n)
    votes = np.zeros((n, n), int)
    for i in range(m):
        for j in range(i + 1, m):
            if words[i] == words[j] and signatures[i] == signatures[j]:
                votes[images[i], images[j]] += images[i] != images[j]
    expected = {(i, j) for i in range(n) for j in range(n) if votes[i, j] >= 4}
    assert expected and set(zip(a.tolist(), b.tolist(), strict=True)) == expected


def test_equal_descriptors_have_equal_words_and_near_ones_near_signatures() -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 200, (3000, 128)).astype(np.uint8)
    vocabulary = Vocabulary.learned(rows)
    words, signatures = vocabulary(rows)
    again = vocabulary(rows)
    np.testing.assert_array_equal(words, again[0])
    noisy = np.clip(rows.astype(int) + rng.integers(-8, 9, rows.shape), 0, 255).astype(np.uint8)
    _, near = vocabulary(noisy)
    bits = [bin(int(x ^ y)).count("1") for x, y in zip(signatures, near, strict=True)]
    assert np.mean(bits) < 8


# ── the whole check ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def data(scene: Scene, tmp_path: Path) -> Path:
    """A data folder where a training image is a collage with a gallery image in it."""
    for below, first, n in (("training/a", 0, 6), ("training/b", 10, 6),
                            ("test/query", 20, 3), ("test/gallery", 30, 4)):  # fmt: skip
        (tmp_path / "data" / below).mkdir(parents=True)
        for i in range(n):
            scene(first + i).save(tmp_path / "data" / below / f"{first + i}.png")
    training = tmp_path / "data" / "training"
    collage(scene(31), scene(2)).save(training / "a" / "2.png")
    crop(scene(11), scene(99)).save(training / "a" / "4.png")
    return tmp_path / "data"


def test_check_reports_parts_and_leaks(data: Path, tmp_path: Path) -> None:
    assert check(data, image_sets(data)).pairs == []
    report = check(data, image_sets(data), features_in=tmp_path / "local")
    names = [{report.facts[p.a].name, report.facts[p.b].name} for p in report.pairs]
    assert [pair.how for pair in report.pairs] == ["part", "part"]
    leaked, inside = (
        {"training/a/2.png", "gallery/31.png"},
        {"training/a/4.png", "training/b/11.png"},
    )
    assert leaked in names and inside in names
    [leak] = report.leaks()
    assert {report.facts[leak.a].name, report.facts[leak.b].name} == leaked
    assert report.conflicts() == []  # a part may well have another label
    assert list(report.excluded()) == ["training/a/2.png"]
    assert report.excluded()["training/a/2.png"].startswith("has a part in common with gallery/31")


def test_the_command_takes_partial(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    words = ["check", str(data), "--partial", "-o", str(out), "--cache", str(tmp_path / "kept"),
             "--html", str(tmp_path / "check.html")]  # fmt: skip
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    said = " ".join((result.output + result.stderr).split())
    assert result.exit_code == 0
    assert "1 training image has a part in common with images of the gallery part" in said
    assert "also in the" not in said
    page = (tmp_path / "check.html").read_text()
    assert "Images with a part in common" in page and "pairs with a part in common" in page
    pairs = json.loads(out.read_text())["pairs"]
    assert {pair["how"] for pair in pairs} == {"part"} and sum(p["leak"] for p in pairs) == 1
    assert (tmp_path / "kept" / "vectors.sqlite").exists()


def test_without_opencv_it_says_what_to_install(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_cv2(name: str, *more: str) -> ModuleType:
        if name == "cv2":
            raise ImportError(name)
        return import_module(name, *more)

    import_module = local_features.importlib.import_module
    local_features.opencv.cache_clear()
    monkeypatch.setattr(local_features.importlib, "import_module", without_cv2)
    result = CliRunner().invoke(app, ["check", str(data), "--partial"])
    local_features.opencv.cache_clear()
    assert result.exit_code == 1 and "vizsla[local]" in str(result.exception) + result.output
