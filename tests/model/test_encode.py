"""Embedder.encode, and a network of one's own with the transform that it was trained with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import models, transforms
from torchvision.transforms import v2

import vizsla
from vizsla.data.preprocess import Preprocess
from vizsla.data.transforms import preprocess_of
from vizsla.errors import DataError, UsageError


@pytest.fixture(scope="module")
def embedder() -> vizsla.Embedder:
    return vizsla.Embedder.build("tiny", weights="random", image_size=32)


def test_paths_pictures_and_arrays_have_one_vector(tinted: Path, embedder: vizsla.Embedder) -> None:
    path = tinted / "test/gallery/g-blue-1.png"
    picture = Image.open(path)
    found = embedder.encode([path, str(path), path.read_bytes(), picture, np.asarray(picture)])
    assert found.shape == (5, embedder.dim) and found.dtype == torch.float32
    assert not found.requires_grad and torch.allclose(found, found[:1].expand(5, -1), atol=1e-6)
    assert torch.allclose(embedder.encode(picture), found[:1], atol=1e-6)
    assert embedder.encode([]).shape == (0, embedder.dim)


def test_they_are_the_vectors_of_embed(
    tinted: Path, embedder: vizsla.Embedder, tmp_path: Path
) -> None:
    gallery = vizsla.open_data(tinted).gallery
    written = vizsla.embed(gallery, embedder, tmp_path / "g.emb")
    found = embedder.encode([gallery.path(i) for i in range(len(gallery))])
    assert (found.numpy() * written.vectors).sum(axis=1).min() > 0.999  # those may be in bf16


def test_a_picture_is_turned_upright_and_alpha_is_on_white(embedder: vizsla.Embedder) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(noise)))
    turned.getexif()[0x0112] = 6  # to be turned by 90 degrees
    assert torch.allclose(embedder.encode(turned), embedder.encode(noise), atol=1e-6)
    clear = np.zeros((40, 60, 4), np.uint8)
    white = np.full((40, 60, 3), 255, np.uint8)
    assert torch.allclose(embedder.encode(clear), embedder.encode(white), atol=1e-6)


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (5, UsageError, "images is of type int: expected a path"),
        ([5], UsageError, r"images\[0\] is of type int"),
        ([np.zeros((3, 8, 8))], UsageError, r"images\[0\] is an array \(3, 8, 8\) of float64"),
        ("nonesuch.jpg", DataError, r"images\[0\]: nonesuch.jpg cannot be read: .* missing"),
        (b"no image", DataError, "cannot be read"),
    ],
)
def test_what_is_no_image_is_refused(
    images: Any, error: type[Exception], words: str, embedder: vizsla.Embedder
) -> None:
    with pytest.raises(error, match=words):
        embedder.encode(images)


HALF = [0.5, 0.5, 0.5]
KNOWN = {
    "torchvision's weights": models.ResNet18_Weights.DEFAULT.transforms(),
    "torchvision": transforms.Compose(
        [transforms.Resize(40), transforms.CenterCrop(32), transforms.ToTensor(),
         transforms.Normalize(HALF, HALF)]
    ),
    "v2, squashed": v2.Compose(
        [v2.ToImage(), v2.Resize((32, 48)), v2.ToDtype(torch.float32, scale=True)]
    ),
    "timm": create_transform(224, is_training=False, crop_pct=0.9, interpolation="bicubic"),
    "timm, squashed": create_transform(64, is_training=False, crop_mode="squash"),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_a_transform_is_read_as_what_it_does(name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    picture = Image.fromarray(noise)
    theirs, ours = KNOWN[name](picture), preprocess_of(KNOWN[name])(picture)
    assert theirs.shape == ours.shape
    assert float((theirs - ours).abs().mean()) < 0.02  # v2 resizes tensors, not pictures


def test_an_image_size_is_enough() -> None:
    assert preprocess_of(96) == Preprocess((96, 96))
    assert preprocess_of(KNOWN["timm"]) == Preprocess((224, 224), 248)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("big", "preprocess is of type str: expected a Preprocess, an image size such as 224"),
        (lambda image: image, "preprocess is of type function"),
        (transforms.Compose([transforms.RandomCrop(8)]), "contains RandomCrop"),
        (transforms.Compose([transforms.Resize(8)]), "different sizes: add CenterCrop"),
        (transforms.Compose([transforms.CenterCrop(8)]), "contains no Resize"),
    ],
)
def test_other_transforms_are_refused(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        preprocess_of(given)


def test_a_module_is_a_network(embedder: vizsla.Embedder) -> None:
    with pytest.raises(UsageError, match="is of type str: expected Module"):
        vizsla.Embedder.from_module("resnet18", 224)  # type: ignore[arg-type]
    own = vizsla.Embedder.from_module(embedder.backbone.network, KNOWN["torchvision"])
    assert own.preprocess == Preprocess((32, 32), 40, "crop", "bilinear", (0.5,) * 3, (0.5,) * 3)
