"""A part is a copy if its pixels are; two photos of one thing are none."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from vizsla.audit.same_pixels import Cells, compared, evidence, share_of_same_pixels
from vizsla.search.geometry import Geometry

Scene = Callable[..., Image.Image]
SIZE = 240, 240


def geometry(right: float = 236, bottom: float = 236, *, n: int = 60, others: int = 20) -> Geometry:
    """That of an image with itself, with points from its upper left corner to there.

    others: matches that do not fit; a copy has few.
    """
    at = np.random.default_rng(0).uniform(4, (right, bottom), (n, 2)).astype(np.float32)
    return Geometry(at, at, np.eye(3), n + others, 0.9)


@pytest.fixture
def grey(scene: Scene) -> np.ndarray:
    """(240, 240), with texture everywhere."""
    image = np.asarray(scene(1).convert("L").resize(SIZE), np.float32)
    texture = np.random.default_rng(1).normal(0, 25, (60, 60)).astype(np.float32)
    return image / 2 + 60 + np.kron(texture, np.ones((4, 4), np.float32))


def noise(strength: float | np.ndarray) -> np.ndarray:
    return (np.random.default_rng(3).normal(0, 1, SIZE) * strength).astype(np.float32)


def covered(image: np.ndarray, by: np.ndarray | float) -> np.ndarray:
    """With something else on 40 % of it."""
    return np.where(np.arange(240) < 96, by, image).astype(np.float32)


def test_a_copy_is_found_though_a_banner_covers_a_part_of_it(grey: np.ndarray) -> None:
    assert share_of_same_pixels(geometry(), grey, grey + noise(2)) > 0.95
    assert 0.4 < share_of_same_pixels(geometry(), grey, covered(grey, 90) + noise(2)) < 0.7
    assert share_of_same_pixels(geometry(), grey, grey[::-1].copy()) == 0


def test_a_copy_that_was_made_lighter_and_flatter_is_found(grey: np.ndarray) -> None:
    assert share_of_same_pixels(geometry(), grey, 0.7 * grey + 60 + noise(2)) > 0.9


def test_another_light_counts_against_a_copy(grey: np.ndarray) -> None:
    light = np.linspace(0.8, 1.2, 240)[:, None]
    assert share_of_same_pixels(geometry(), grey, grey + noise(12)) > 0.3
    assert share_of_same_pixels(geometry(), grey, (grey * light + noise(12)).astype("f4")) == 0


def test_two_photos_of_one_floor_are_no_copies(grey: np.ndarray) -> None:
    found, floor = geometry(others=60), covered(grey, np.roll(grey, 57, axis=0)) + noise(12)
    assert (compared(found, grey, floor).correlation >= 0.95).sum() > 40
    assert share_of_same_pixels(found, grey, floor) == 0
    assert share_of_same_pixels(found, grey, grey + noise(12)) > 0.3


def test_a_small_part_that_both_have_is_no_copy_of_a_picture(grey: np.ndarray) -> None:
    other = np.where(np.arange(240) < 40, grey, np.roll(grey, 91, axis=0)).astype(np.float32)
    assert share_of_same_pixels(geometry(36, 40, n=8), grey, other) == 0


def test_evidence_is_that_of_the_images(grey: np.ndarray) -> None:
    half = covered(grey, np.roll(grey, 57, axis=0))
    cells = compared(geometry(), grey, half)
    found = evidence(geometry(), cells, SIZE, SIZE)
    assert found is not None
    agree = int((cells.correlation >= 0.95).sum())
    assert found["log agree"] == pytest.approx(np.log(agree + 1)) and found["closely"] > 0.95
    assert found["log inliers"] == pytest.approx(np.log(60)) and found["inlier share"] == 0.75
    assert found["log tones"] < -1  # they are the same
    assert 0.3 < found["differ"] < 0.5  # 40 % of it


def enlarged(image: np.ndarray, times: int) -> np.ndarray:
    """By cubic interpolation."""
    height, width = image.shape
    large = Image.fromarray(image).resize((width * times, height * times), Image.Resampling.BICUBIC)
    return np.asarray(large, np.float32)


@pytest.mark.parametrize("times", [2, 8])
def test_either_image_may_show_it_larger(grey: np.ndarray, times: int) -> None:
    same, large = geometry(), enlarged(grey, times)
    matrix = np.array([[times, 0, (times - 1) / 2], [0, times, (times - 1) / 2], [0, 0, 1]])
    points = times * same.a + (times - 1) / 2
    up = Geometry(same.a, points, matrix, same.matches, 0.9)
    down = Geometry(points, same.a, np.linalg.inv(matrix), same.matches, 0.9)
    found = evidence(down, compared(down, large, grey), large.shape[::-1], SIZE)
    assert found == pytest.approx(evidence(up, compared(up, grey, large), SIZE, large.shape[::-1]))
    assert share_of_same_pixels(up, grey, large) == share_of_same_pixels(down, large, grey) > 0.9


def test_cells_may_all_be_of_one_tone() -> None:
    one = np.full(9, 100, np.float32)
    for b, tones in ((one, 0), (one + np.arange(9), 2)):
        found = evidence(geometry(), Cells(one * 0.0099, one, one, b), SIZE, SIZE)
        assert found is not None and found["log tones"] == pytest.approx(np.log(tones + 0.1))


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (1, 40), (17, 20)])
def test_images_of_hardly_a_cell_are_no_copies(grey: np.ndarray, size: tuple[int, int]) -> None:
    tiny, at = grey[: size[0], : size[1]].copy(), geometry().a * size[::-1] / 240
    found = Geometry(at, at, np.eye(3), 60, 0.9)
    assert len(compared(found, tiny, tiny).a) <= 1 and share_of_same_pixels(found, tiny, tiny) == 0


def test_images_without_edges_are_no_copies() -> None:
    plain = np.full(SIZE, 128, np.float32)
    assert evidence(geometry(), compared(geometry(), plain, plain), SIZE, SIZE) is None
    assert share_of_same_pixels(geometry(), plain, plain) == 0
