import io
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from vizsla.audit import copy_detection
from vizsla.audit.copy_detection import COLOURS, SIDE, TURNS, Match, fingerprints, matches

Photo = Callable[..., Image.Image]


def found(pictures: Sequence[Image.Image], **options: object) -> list[Match]:
    sides = (SIDE, COLOURS, COLOURS)
    planes = [
        [
            np.asarray(channel.resize((side, side), Image.Resampling.BOX))
            for channel, side in zip(picture.convert("YCbCr").split(), sides, strict=True)
        ]
        for picture in pictures
    ]
    grey = np.stack([light for light, *_ in planes])
    colours = np.stack([np.stack(rest).astype(int) - 128 for _, *rest in planes]).astype(np.int8)
    return matches(grey, colours, lambda i: pictures[i].convert("L"), **options)  # type: ignore[arg-type]


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def cropped(
    picture: Image.Image, left: float, top: float, right: float, bottom: float
) -> Image.Image:
    width, height = picture.size
    return picture.crop(
        (int(width * left), int(height * top), int(width * (1 - right)), int(height * (1 - bottom)))
    )


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "compressed": lambda p: jpeg(p, 25),
    "half": lambda p: p.resize((p.width // 2, p.height // 2)),
    "larger": lambda p: p.resize((p.width * 2, p.height * 2)),
    "squashed": lambda p: p.resize((p.width, p.height * 2 // 3)),
    "brighter": lambda p: jpeg(ImageEnhance.Brightness(p).enhance(1.25), 80),
    "darker": lambda p: ImageEnhance.Brightness(p).enhance(0.6),
    "paler": lambda p: ImageEnhance.Contrast(p).enhance(0.6),
    "grey": lambda p: p.convert("L").convert("RGB"),
    "middle": lambda p: cropped(p, 0.05, 0.05, 0.05, 0.05),
    "left off": lambda p: cropped(p, 0.09, 0, 0, 0),
    "corner": lambda p: cropped(p, 0.05, 0.01, 0.0, 0.05),
    "all of it": lambda p: jpeg(
        cropped(ImageEnhance.Brightness(p).enhance(0.8), 0.03, 0.02, 0.04, 0.01).resize((99, 80)),
        50,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(photo: Photo, change: str) -> None:
    pictures = [photo(i) for i in range(12)]
    pairs = found([*pictures, *(CHANGES[change](picture) for picture in pictures)])
    assert [(m.a, m.b) for m in pairs] == [(i, i + 12) for i in range(12)]
    assert {m.turn for m in pairs} == {"as it is"}
    assert all(copy_detection.MIN_AGREEMENT <= m.similarity <= 1.001 for m in pairs)


@pytest.mark.parametrize("turn", [name for name in TURNS if name != "as it is"])
def test_a_turned_copy_is_found_with_its_turn(photo: Photo, turn: str) -> None:
    transposed, upside_down, mirrored = TURNS[turn]
    picture = photo(1)
    copy = picture
    if upside_down:
        copy = copy.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if mirrored:
        copy = copy.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if transposed:  # undoing goes in the other order
        copy = copy.transpose(Image.Transpose.TRANSPOSE)
    (match,) = found([picture, photo(2), jpeg(copy, 70)])
    assert (match.a, match.b, match.turn) == (0, 2, turn)


def test_turning_once_more_gives_the_names_their_meaning(photo: Photo) -> None:
    right = photo(1).transpose(Image.Transpose.ROTATE_270)  # Pillow counts to the left
    (match,) = found([right, photo(1)])
    assert match.turn == "turned right"


def test_hundred_different_photos_have_no_copies_among_them(photo: Photo) -> None:
    assert found([photo(i) for i in range(100)]) == []


def test_photos_of_one_layout_are_not_copies(photo: Photo) -> None:
    """The same light and dark areas, as products on one table have, but other details."""
    base = np.asarray(photo(0).resize((4, 3), Image.Resampling.BOX).resize((160, 120)), float)
    pictures = [
        Image.fromarray((base * 0.6 + np.asarray(photo(i), float) * 0.4).astype(np.uint8))
        for i in range(1, 30)
    ]
    assert found(pictures) == []


def test_the_same_shapes_in_other_colours_are_not_copies(photo: Photo) -> None:
    light = photo(3).convert("L")
    red, blue = (
        Image.merge(
            "YCbCr", (light, Image.new("L", light.size, cb), Image.new("L", light.size, cr))
        )
        for cb, cr in ((90, 200), (200, 90))
    )
    assert found([red.convert("RGB"), blue.convert("RGB")]) == []
    assert len(found([red.convert("RGB"), light.convert("RGB")])) == 1


def test_pictures_without_anything_to_see_never_match() -> None:
    plain = [Image.new("RGB", (64, 64), (level, level, level)) for level in (0, 90, 90, 91, 255)]
    assert found(plain) == []
    none = np.zeros((0, SIDE, SIDE), np.uint8), np.zeros((0, 2, COLOURS, COLOURS), np.int8)
    assert matches(*none, lambda i: None) == []


def test_blocks_and_workers_change_nothing(photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [photo(i) for i in range(15)]
    pictures += [CHANGES["middle"](picture) for picture in pictures[::2]]
    reports: list[tuple[int, int]] = []
    whole = found(pictures, progress=lambda done, total: reports.append((done, total)))
    assert reports[-1] == (8, 8) and len(whole) == 8
    monkeypatch.setattr(copy_detection, "BLOCK", 4)
    monkeypatch.setattr(copy_detection, "CHUNK", 3)
    reports.clear()
    parts = found(pictures, workers=3, progress=lambda done, total: reports.append((done, total)))
    assert [(m.a, m.b, m.turn) for m in parts] == [(m.a, m.b, m.turn) for m in whole]
    assert reports[-1][0] == reports[-1][1] == 8 * 21


def test_hundred_equal_pictures_give_no_flood_of_pairs(photo: Photo) -> None:
    pairs = found([photo(0)] * 100)
    assert len(pairs) <= 100 * copy_detection.MAX_CANDIDATES
    assert {m.a for m in pairs} | {m.b for m in pairs} == set(range(100))


def test_a_file_that_is_gone_when_it_is_read_again_is_no_copy(photo: Photo) -> None:
    pictures = [photo(0), CHANGES["all of it"](photo(0))]
    grey = np.stack([np.asarray(p.convert("L").resize((SIDE, SIDE))) for p in pictures])
    colours = np.zeros((2, 2, COLOURS, COLOURS), np.int8)
    found = matches(grey, colours, lambda i: None)
    assert all(match.similarity >= copy_detection.SURE_AGREEMENT for match in found)


def test_a_fingerprint_does_not_depend_on_light(photo: Photo) -> None:
    picture = np.asarray(photo(0).convert("L").resize((SIDE, SIDE)), np.float32)[None]
    prints = fingerprints(picture)
    assert prints.dtype == np.float32 and np.linalg.norm(prints) == pytest.approx(1)
    assert fingerprints(picture * 0.5 + 40) == pytest.approx(prints, abs=1e-3)
    part = picture[:, 4:60, 4:60]
    box = (4 / SIDE, 60 / SIDE, 4 / SIDE, 60 / SIDE)
    assert (fingerprints(picture, box) @ fingerprints(part).T)[0, 0] > 0.999
