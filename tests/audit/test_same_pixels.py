"""A part is a copy if its pixels are; two photos of one thing are none."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from vizsla.audit import same_pixels
from vizsla.audit.same_pixels import clearness, correlations, share_of_same_pixels
from vizsla.search.geometry import Geometry

Scene = Callable[..., Image.Image]


def geometry(spread: float = 0.0, p: float = 0.9) -> Geometry:
    """That of an image with itself. spread: px by which the points of one image are off."""
    rng = np.random.default_rng(0)
    a = rng.uniform(4, 236, (60, 2)).astype(np.float32)
    return Geometry(a, a + spread * rng.standard_normal((60, 2)), np.eye(3), 60, p)


@pytest.fixture
def grey(scene: Scene) -> np.ndarray:
    """(240, 240), with texture everywhere."""
    image = np.asarray(scene(1).convert("L").resize((240, 240)), np.float32)
    texture = np.random.default_rng(1).normal(0, 25, (60, 60)).astype(np.float32)
    return image / 2 + 60 + np.kron(texture, np.ones((4, 4), np.float32))


def covered(image: np.ndarray, share: float = 0.4) -> np.ndarray:
    """With something else on this share of it."""
    other, wide = image.copy(), round(240 * share)
    noise = np.random.default_rng(2).uniform(0, 255, (48, 48))
    other[:, :wide] = np.kron(noise, np.ones((5, 5)))[:, :wide]
    return other


def test_a_copy_is_found_though_a_part_of_it_is_covered(grey: np.ndarray) -> None:
    noise = np.random.default_rng(3).normal(0, 2, grey.shape).astype(np.float32)
    assert share_of_same_pixels(geometry(), grey, grey + noise) > 0.95
    share = share_of_same_pixels(geometry(), grey, covered(grey) + noise)
    assert 0.4 < share < 0.7
    assert share_of_same_pixels(geometry(), grey, grey[::-1].copy()) == 0


def test_a_geometry_that_fits_its_points_badly_is_of_two_photos(grey: np.ndarray) -> None:
    assert share_of_same_pixels(geometry(0.2), grey, grey) > 0.95
    assert share_of_same_pixels(geometry(1.0), grey, grey) == 0


def test_cells_of_two_photos_agree_more_or_less(grey: np.ndarray) -> None:
    strength = np.kron(np.linspace(3, 24, 225).reshape(15, 15), np.ones((16, 16)))
    noise = np.random.default_rng(4).normal(0, 1, grey.shape) * strength
    other = (covered(grey) + noise).astype(np.float32)
    cells, _ = correlations(geometry(), grey, other)
    assert (cells >= 0.95).sum() >= 15 and clearness(cells) < 1
    assert share_of_same_pixels(geometry(), grey, other) == 0


def test_an_unsure_geometry_needs_more_cells(grey: np.ndarray) -> None:
    strength = np.kron(np.linspace(2, 9, 225).reshape(15, 15), np.ones((16, 16)))
    noise = np.random.default_rng(5).normal(0, 1, grey.shape) * strength
    other = (covered(grey, 0.5) + noise).astype(np.float32)
    assert 0.2 <= share_of_same_pixels(geometry(0.25, p=0.995), grey, other) < 0.5
    assert share_of_same_pixels(geometry(0.25, p=0.4), grey, other) == 0


def test_a_few_cells_that_agree_closely_are_enough(grey: np.ndarray) -> None:
    small = np.array([point for point in geometry().a if point[0] > 180 and point[1] < 130])
    part = Geometry(small, small, np.eye(3), 20, 0.9)
    cells, _ = correlations(part, grey, grey)
    assert 8 <= len(cells) < 15 and share_of_same_pixels(part, grey, grey) == 1


def test_strong_edges_of_a_copy_agree_though_compression_changes_the_weak_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(6)
    contrast = np.kron(rng.permutation(np.repeat([6.0, 40.0], [185, 40])), np.ones(256))
    contrast = contrast.reshape(15, 15, 16, 16).swapaxes(1, 2).reshape(240, 240)
    texture = np.kron(rng.standard_normal((60, 60)), np.ones((4, 4)))
    image = (128 + contrast * texture).astype(np.float32)
    noise = rng.normal(0, 5, image.shape).astype(np.float32)
    cells, edges = correlations(geometry(), image, covered(image) + noise)
    assert (cells >= 0.95).mean() < 0.2 and (cells[edges > 56] >= 0.95).sum() >= 10
    assert share_of_same_pixels(geometry(0.25, p=0.995), image, covered(image) + noise) > 0
    strong = np.where(contrast > 20, rng.normal(0, 18, image.shape), noise).astype(np.float32)
    assert share_of_same_pixels(geometry(0.25, p=0.995), image, covered(image) + strong) == 0
    for name in ("STRONG", "CLEAN"):  # by all cells it would be none
        monkeypatch.setattr(same_pixels, name, 1e9)
    assert share_of_same_pixels(geometry(0.25, p=0.995), image, covered(image) + noise) == 0


def test_clearness_is_that_of_the_formula() -> None:
    assert clearness(np.array([0.99, 0.99, 0.96, 0.7, 0.1])) == pytest.approx(3 / 4 + 2 / 3)
    assert clearness(np.array([0.5, 0.9])) == 0


def test_images_without_edges_are_no_copies() -> None:
    plain = np.full((240, 240), 128, np.float32)
    assert share_of_same_pixels(geometry(), plain, plain) == 0
