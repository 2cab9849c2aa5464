"""Augmentation presets: shapes, randomness by their generator alone, and `none`."""

import numpy as np
import pytest
import torch
from PIL import Image

from vizsla.data.preprocess import Preprocess
from vizsla.errors import UsageError
from vizsla.train.augment import AUGMENTATIONS, Augmentation, augmented, augmenter, random_box

PREPROCESS = Preprocess((24, 20), 30)


@pytest.fixture
def photo() -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return small.resize((60, 40), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_same_generator_gives_the_same_tensor(name: str, photo: Image.Image) -> None:
    change = augmenter(name, PREPROCESS)
    one, again, other = (change(photo, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.shape == (3, 24, 20)
    assert one.dtype == torch.float32
    assert torch.equal(one, again)
    assert torch.isfinite(one).all()
    assert torch.equal(one, other) == (name == "none")


def test_none_is_the_preprocessing_of_the_evaluation(photo: Image.Image) -> None:
    assert torch.equal(
        augmenter("none", PREPROCESS)(photo, np.random.default_rng(0)), PREPROCESS(photo)
    )


@pytest.mark.parametrize(
    "preset",
    [
        Augmentation(mirror=True), Augmentation(rotation=90), Augmentation(colour=0.9),
        Augmentation(grey=1.0), Augmentation(blur=1.0), Augmentation(erase=1.0),
        Augmentation(min_area=0.1),
    ],
)  # fmt: skip
def test_each_change_has_an_effect(preset: Augmentation, photo: Image.Image) -> None:
    plain = augmented(photo, np.random.default_rng(0), Augmentation(max_aspect=1.0), PREPROCESS)
    seen = [augmented(photo, np.random.default_rng(s), preset, PREPROCESS) for s in range(4)]
    assert any(not torch.allclose(plain, tensor, atol=1e-3) for tensor in seen)


def test_grey_has_no_colour(photo: Image.Image) -> None:
    plain = Preprocess((16, 16), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    tensor = augmented(photo, np.random.default_rng(0), Augmentation(grey=1.0), plain)
    assert torch.allclose(tensor[0], tensor[1])


@pytest.mark.parametrize("size", [(60, 40), (1, 500), (500, 1), (7, 7)])
def test_crops_stay_inside_and_keep_the_minimal_area(size: tuple[int, int]) -> None:
    preset = Augmentation(min_area=0.3)
    for seed in range(50):
        left, top, right, bottom = random_box(size, preset, np.random.default_rng(seed))
        assert 0 <= left < right <= size[0] + 1e-9
        assert 0 <= top < bottom <= size[1] + 1e-9
        if min(size) > 5:
            assert (right - left) * (bottom - top) >= 0.29 * size[0] * size[1]


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="none, light, medium, strong"):
        augmenter("wild", PREPROCESS)
