"""Scores of blur and darkness: they rise with the change, and ignore contrast and size."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.metrics import roc_auc_score

from vizsla.audit.file_scan import BLURRED, DARK, scan_files
from vizsla.audit.image_quality import MOST_BLUR, SIDE, blur_of, brightness_of
from vizsla.data.images import read_image
from vizsla.data.imageset import ImageSet


def step(blur: float = 0.0, contrast: int = 200) -> Image.Image:
    """A white square on black, its edges blurred by a Gaussian."""
    pixels = np.full((SIDE, SIDE), 20, np.uint8)
    pixels[60:200, 60:200] = 20 + contrast
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(blur))


@pytest.mark.parametrize("blur", [1.0, 1.5, 2.0, 3.0])
def test_the_width_of_a_blurred_step_is_measured(blur: float) -> None:
    assert blur_of(step(blur)) == pytest.approx(blur, abs=0.25)
    assert blur_of(step(blur, contrast=60)) == pytest.approx(blur_of(step(blur)), abs=0.15)


def test_a_sharp_edge_is_sharp_and_a_slope_is_not() -> None:
    assert blur_of(step()) < 0.6
    slope = Image.fromarray(np.tile(np.arange(SIDE, dtype=np.uint8), (SIDE, 1)))
    assert blur_of(slope) > 4 and blur_of(Image.new("L", (5, 90))) <= MOST_BLUR


def test_a_large_image_is_measured_as_its_reduced_copy() -> None:
    large = step(2.0).resize((4 * SIDE, 4 * SIDE), Image.Resampling.BICUBIC)
    assert blur_of(large) == pytest.approx(blur_of(step(2.0)), abs=0.2)


def test_a_dark_photo_is_dark_and_a_bright_subject_on_black_is_not() -> None:
    assert brightness_of(step()) > 0.8 > DARK > brightness_of(step(contrast=10))


def test_the_scan_lists_blurred_and_dark_images(
    photo: Callable[..., Image.Image], tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    sharp = Image.blend(photo(0), Image.fromarray(noise), 0.3)
    sharp.save(tmp_path / "a.png")
    sharp.filter(ImageFilter.GaussianBlur(4)).save(tmp_path / "b.png")
    ImageEnhance.Brightness(sharp).enhance(0.15).save(tmp_path / "c.png")
    a, b, c = scan_files({"images": ImageSet.from_folder(tmp_path)}).facts
    assert a.odd == () and b.odd == ("blurred",) and c.odd == ("dark",)
    assert a.blur < BLURRED < b.blur and c.brightness < DARK < a.brightness
    assert a.sharpness > b.sharpness


def test_blurred_copies_of_real_photos_are_told_from_the_photos(shared: Path) -> None:
    photos = sorted((shared / "data/caltech101/training").rglob("*.jpg"))[::60]
    pictures = [read_image(path).convert("L") for path in photos]
    scores = [blur_of(picture) for picture in pictures]
    blurred = [
        blur_of(picture.filter(ImageFilter.GaussianBlur(2 * min(picture.size) / 224)))
        for picture in pictures
    ]
    truth = [0] * len(scores) + [1] * len(blurred)
    assert roc_auc_score(truth, scores + blurred) >= 0.95
