"""An image → a training tensor: cropped, mirrored, recoloured. The preset `none` changes nothing.

Random numbers come from a generator, so the same generator gives the same tensor.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vizsla.data.preprocess import Preprocess
from vizsla.data.resize import INTERPOLATIONS
from vizsla.errors import UsageError

GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """How far images are changed. Each default turns its change off."""

    min_area: float = 1.0  # of the image, that a crop keeps; 1.0 crops nothing
    max_aspect: float = 4 / 3  # of a crop's longer side to the shorter one
    mirror: bool = False
    rotation: float = 0.0  # degrees to either side
    colour: float = 0.0  # brightness, contrast and saturation change by this share
    grey: float = 0.0  # probability of greyscale
    blur: float = 0.0  # probability
    erase: float = 0.0  # probability that a rectangle is filled with the mean colour


AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "light": Augmentation(min_area=0.5, mirror=True),
    "medium": Augmentation(min_area=0.3, mirror=True, colour=0.2),
    "strong": Augmentation(
        min_area=0.2, mirror=True, rotation=15, colour=0.4, grey=0.1, blur=0.15, erase=0.25
    ),
}


def augmenter(
    name: str, preprocess: Preprocess
) -> Callable[[Image.Image, np.random.Generator], Tensor]:
    """(image, generator) → tensor, by the preset of this name; UsageError if there is none."""
    if name not in AUGMENTATIONS:
        raise UsageError(f"augmentation {name!r}: choose one of {', '.join(AUGMENTATIONS)}")
    preset = AUGMENTATIONS[name]
    if preset is None:
        return lambda picture, rng: preprocess(picture)
    chosen = preset
    return lambda picture, rng: augmented(picture, rng, chosen, preprocess)


def augmented(
    picture: Image.Image, rng: np.random.Generator, preset: Augmentation, preprocess: Preprocess
) -> Tensor:
    """(3, H, W) float32 of the preprocessing's size, normalised by its mean and std."""
    height, width = preprocess.size
    if preset.rotation:
        picture = picture.rotate(
            rng.uniform(-preset.rotation, preset.rotation),
            Image.Resampling.BILINEAR,
            fillcolor=(127,) * 3,
        )
    box = random_box(picture.size, preset, rng)
    picture = picture.resize((width, height), INTERPOLATIONS[preprocess.interpolation], box=box)
    pixels = np.array(picture)  # (H, W, 3)
    if preset.mirror and rng.random() < 0.5:
        pixels = pixels[:, ::-1].copy()
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(255)
    tensor = _recoloured(tensor, preset, rng)
    if preset.erase and rng.random() < preset.erase:
        _erase(tensor, rng)
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    return tensor.sub_(mean[:, None, None]).div_(std[:, None, None])  # (3, H, W)


def random_box(
    size: tuple[int, int], preset: Augmentation, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a crop of random area and shape (Szegedy et al., 2015)."""
    wide, high = size
    for _ in range(10):
        area = wide * high * rng.uniform(preset.min_area, 1.0)
        ratio = math.exp(rng.uniform(-1, 1) * math.log(preset.max_aspect))
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if width <= wide and height <= high:
            left, top = rng.uniform(0, wide - width), rng.uniform(0, high - height)
            return left, top, left + width, top + height
    side = min(wide, high)  # a long strip: the largest square, anywhere along it
    left, top = rng.uniform(0, wide - side), rng.uniform(0, high - side)
    return left, top, left + side, top + side


def _recoloured(tensor: Tensor, preset: Augmentation, rng: np.random.Generator) -> Tensor:
    if preset.colour:
        brightness, contrast, saturation = rng.uniform(1 - preset.colour, 1 + preset.colour, 3)
        tensor = tensor * brightness
        tensor = torch.lerp(tensor.mean(), tensor, float(contrast))
        tensor = torch.lerp(_grey(tensor), tensor, float(saturation)).clamp_(0, 1)
    if preset.grey and rng.random() < preset.grey:
        tensor = _grey(tensor).expand(3, -1, -1).clone()
    if preset.blur and rng.random() < preset.blur:
        tensor = _blurred(tensor, rng.uniform(0.3, 1.5))
    return tensor


def _grey(tensor: Tensor) -> Tensor:
    """(1, H, W)."""
    return (tensor * torch.tensor(GREY)[:, None, None]).sum(0, keepdim=True)


def _blurred(tensor: Tensor, sigma: float) -> Tensor:
    radius = max(1, math.ceil(2 * sigma))
    if min(tensor.shape[1:]) <= radius:
        return tensor
    kernel = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum())[None, None, None].expand(3, 1, 1, -1)
    padded = F.pad(tensor[None], (radius,) * 4, mode="reflect")
    across = F.conv2d(padded, kernel, groups=3)
    return F.conv2d(across, kernel.transpose(2, 3), groups=3)[0]


def _erase(tensor: Tensor, rng: np.random.Generator) -> None:
    """Fills one rectangle of 5 to 25 % of the image with its mean colour, in place."""
    _, high, wide = tensor.shape
    side = math.sqrt(rng.uniform(0.05, 0.25))
    height, width = max(1, int(high * side)), max(1, int(wide * side))
    top, left = rng.integers(0, high - height + 1), rng.integers(0, wide - width + 1)
    tensor[:, top : top + height, left : left + width] = tensor.mean((1, 2))[:, None, None]
