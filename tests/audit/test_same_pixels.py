"""A part is a copy if its pixels are; two photos of one thing are none."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from vizsla.audit.same_pixels import are_clear, correlations, share_of_same_pixels
from vizsla.search.geometry import Geometry

Scene = Callable[..., Image.Image]


def geometry(spread: float = 0.0) -> Geometry:
    """That of an image with itself. spread: px by which the points of one image are off."""
    rng = np.random.default_rng(0)
    a = rng.uniform(4, 236, (60, 2)).astype(np.float32)
    return Geometry(a, a + spread * rng.standard_normal((60, 2)), np.eye(3), 60, 0.9)


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
    assert share_of_same_pixels(geometry(), grey, grey + noise, sure=True) > 0.95
    share = share_of_same_pixels(geometry(), grey, covered(grey) + noise, sure=True)
    assert 0.4 < share < 0.7
    assert share_of_same_pixels(geometry(), grey, grey[::-1].copy(), sure=True) == 0


def test_a_geometry_that_fits_its_points_badly_is_of_two_photos(grey: np.ndarray) -> None:
    assert share_of_same_pixels(geometry(0.2), grey, grey, sure=True) > 0.95
    assert share_of_same_pixels(geometry(1.0), grey, grey, sure=True) == 0


def test_cells_of_two_photos_agree_more_or_less(grey: np.ndarray) -> None:
    strength = np.kron(np.linspace(3, 24, 225).reshape(15, 15), np.ones((16, 16)))
    noise = np.random.default_rng(4).normal(0, 1, grey.shape) * strength
    other = (covered(grey) + noise).astype(np.float32)
    cells = correlations(geometry(), grey, other)
    assert (cells >= 0.95).sum() >= 15 and not are_clear(cells)
    assert share_of_same_pixels(geometry(), grey, other, sure=True) == 0


def test_an_unsure_geometry_needs_more_cells(grey: np.ndarray) -> None:
    other = covered(grey, 0.65)
    share = share_of_same_pixels(geometry(), grey, other, sure=True)
    assert 0.2 <= share < 0.5
    assert share_of_same_pixels(geometry(), grey, other, sure=False) == 0
