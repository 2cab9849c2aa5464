"""Test-time views of an image, mirrored or scaled, whose vectors are averaged."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from vizsla.errors import UsageError

STEPS = (32, 16, 14)  # pixels; networks need sides that are a multiple of one of them
MAX_SCALES = 8


@dataclass(frozen=True)
class Views:
    """scales: factors of the model's image size. flip: each scale also mirrored.

    step: scaled sides are multiples of it; the embedder finds one that its network accepts.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    step: int = STEPS[0]

    @staticmethod
    def parse(text: str) -> "Views | None":
        """From words such as `flip`, `1,0.7,1.4` or `flip,1,1.4`; None for `none` and `1`."""
        words = [word.strip() for word in text.split(",") if word.strip() not in ("", "none")]
        scales: list[float] = []
        for word in words:
            if word == "flip":
                continue
            try:
                scales.append(float(word))
            except ValueError as error:
                raise UsageError(
                    f"--views {text!r}: {word!r} is neither flip nor a scale such as 0.7"
                ) from error
        if len(set(scales)) != len(scales) or len(scales) > MAX_SCALES:
            raise UsageError(f"--views {text!r}: give up to {MAX_SCALES} different scales")
        if not all(0.25 <= scale <= 4 for scale in scales):
            raise UsageError(f"--views {text!r}: scales go from 0.25 to 4")
        views = Views(tuple(scales) or (1.0,), "flip" in words)
        return None if views == Views() else views

    def __str__(self) -> str:
        return ",".join([*(["flip"] if self.flip else []), *(f"{s:g}" for s in self.scales)])

    def __len__(self) -> int:
        return len(self.scales) * (2 if self.flip else 1)

    def of(self, images: Tensor) -> Iterator[Tensor]:
        """Each view of the normalised images (B, 3, H, W); the sides differ between views."""
        for scale in self.scales:
            view = images if scale == 1 else self._scaled(images, scale)
            yield view
            if self.flip:
                yield view.flip(3)

    def _scaled(self, images: Tensor, scale: float) -> Tensor:
        height, width = (max(1, round(s * scale / self.step)) * self.step for s in images.shape[2:])
        return F.interpolate(
            images, (height, width), mode="bicubic", antialias=True, align_corners=False
        )
