"""Image sizes in training, and the identity of a training."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from vizsla.data.imageset import ImageSet
from vizsla.data.preprocess import Preprocess
from vizsla.model.embedder import Embedder
from vizsla.options import TrainConfig
from vizsla.train.backbone import size_in_training
from vizsla.train.job import identity_of


class Tokens(nn.Module):
    """A network of one patch size and one image size, as transformers are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(2).transpose(1, 2) * self.weight


@pytest.mark.parametrize(
    ("side", "train_size", "expected"),
    [(224, None, 192), (288, None, 256), (64, None, 64), (224, 160, 160), (112, None, 96)],
)
def test_convolutional_networks_train_on_smaller_images(
    side: int, train_size: int | None, expected: int
) -> None:
    model = Embedder.from_module(nn.Conv2d(3, 4, 3), Preprocess((side, side)))
    assert size_in_training(model, train_size) == expected


def test_other_networks_train_on_their_own_size() -> None:
    model = Embedder.from_module(Tokens(), Preprocess((224, 224)))
    assert size_in_training(model, None) == 224


def test_the_identity_depends_on_images_model_and_settings() -> None:
    images = ImageSet(Path("nowhere"), ["a", "b"]).with_labels(["x", "y"])
    model = Embedder.from_module(nn.Conv2d(3, 4, 3), Preprocess((32, 32)))
    config = TrainConfig()
    first = identity_of(images, model, config)
    assert first == identity_of(images, model, dataclasses.replace(config, workers=3))
    assert first != identity_of(images, model, dataclasses.replace(config, loss="arcface"))
    assert first != identity_of(images.with_labels(["x", "x"]), model, config)
    assert first != identity_of(images.subset([0]), model, config)
