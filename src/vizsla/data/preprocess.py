"""An image → the tensor that a network expects. Knows only sizes and colours, no networks."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vizsla.data.resize import INTERPOLATIONS, Framing
from vizsla.errors import ModelError, UsageError
from vizsla.options import COVER, FRAMINGS, SQUASH

MODES = ("crop", "squash")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """How an RGB image becomes a (3, H, W) float32 tensor.

    mode "crop": the shorter side is brought to `resize`, the aspect ratio kept, and the centre
    of `size` (H, W) cut out. mode "squash": both sides are brought to `resize` (or to `size`
    where it is None), whatever the aspect ratio, and the centre is cut out.
    """

    size: tuple[int, int] = (224, 224)
    resize: int | None = None  # None: no border is cut off
    mode: str = "crop"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ModelError(f"preprocessing mode {self.mode!r}: expected {' or '.join(MODES)}")
        if self.interpolation not in INTERPOLATIONS:
            raise ModelError(
                f"interpolation {self.interpolation!r}: expected one of {', '.join(INTERPOLATIONS)}"
            )
        if len(self.size) != 2 or min(self.size) < 1:
            raise ModelError(f"image size {self.size}: expected (height, width) in pixels")
        if self.resize is not None and self.resize < max(self.size):
            raise ModelError(f"resize {self.resize} is smaller than the image size {self.size}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ModelError("mean and std: expected three numbers each, std above 0")

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, H, W) float32, the colours normalised by mean and std."""
        pixels = torch.from_numpy(np.array(self.framing.pixels(image)))  # (H, W, 3)
        return self.normalised(pixels[None])[0].contiguous()

    @cached_property
    def framing(self) -> Framing:
        """What happens to an image before it becomes a tensor."""
        return Framing(self.size, self.resize, self.mode, self.interpolation)

    def normalised(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) float32, channels last, from (B, H, W, 3) uint8, on the same device."""
        mean, std = (torch.tensor(v, device=pixels.device) for v in (self.mean, self.std))
        colours = pixels.permute(0, 3, 1, 2).float().div(255)
        return colours.sub(mean[:, None, None]).div(std[:, None, None])

    def with_size(self, size: int) -> "Preprocess":
        """The same for square tensors of another size; the share that is cropped stays."""
        if self.size == (size, size):
            return self
        border = None if self.resize is None else round(size * self.resize / max(self.size))
        return replace(self, size=(size, size), resize=border)

    def framed(self, name: str) -> "Preprocess":
        """The same with more of the image: "cover" brings the shorter side to the frame, so that
        only the ends of the longer one are cut off; "squash" brings both sides to it."""
        if name not in FRAMINGS:
            raise UsageError(f"framing {name!r}: choose {' or '.join(FRAMINGS)}")
        return replace(self, resize=None, mode="squash" if name == SQUASH else "crop")

    @property
    def framed_as(self) -> str | None:
        """What `framed` calls it; None if a border is cut off on all sides."""
        if self.resize not in (None, max(self.size)):
            return None
        return SQUASH if self.mode == "squash" else COVER

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` gives an equal Preprocess back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_dict(content: Any) -> "Preprocess":
        """From what `to_dict` gave; ModelError for anything else."""
        try:
            known: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in content.items()
            }
            return Preprocess(**known)
        except (TypeError, AttributeError, UsageError) as error:
            raise ModelError(f"not a description of preprocessing ({error}): {content}") from error

    def __str__(self) -> str:
        height, width = self.size
        size = f"{width}×{height}, {self.interpolation}"
        if self.mode == "squash":
            return f"squashed to {size}"
        return f"shorter side to {self.resize or max(self.size)}, centre {size}"


def check_image_size(size: int) -> None:
    """UsageError unless a network can be expected to take square images of this size."""
    if not 16 <= size <= 4096:
        raise UsageError(f"image size {size}: choose from 16 to 4096 pixels")
