"""Feature maps or tokens → one vector for each image. Knows nothing of the networks.

Every pooling takes a map (B, C, H, W), several of them, or tokens (B, T, C), and computes in
float32: a sum of cubes over a map exceeds the range of fp16.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizsla.errors import ModelError, UsageError


def as_tokens(features: Tensor) -> Tensor:
    """(B, T, C) float32 from a map (B, C, H, W) or from tokens."""
    if features.ndim == 4:
        features = features.flatten(2).transpose(1, 2)  # (B, H·W, C)
    if features.ndim != 3:
        raise ModelError(
            f"features have shape {tuple(features.shape)}: expected a map (B, C, H, W) "
            "or tokens (B, T, C)"
        )
    return features.float()


class GlobalAverage(nn.Module):
    """The mean over all positions."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C) float32."""
        return as_tokens(features).mean(1)


class GlobalMax(nn.Module):
    """The maximum over all positions."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C) float32."""
        return as_tokens(features).amax(1)


class GeM(nn.Module):
    """The generalised mean, (mean of x^p)^(1/p), with learned p (Radenović et al., 2018).

    p = 1 is the mean, a large p approaches the maximum. Values below `eps` count as `eps`.
    """

    P_RANGE = (1.0, 20.0)

    def __init__(self, p: float = 3.0, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(float(p)))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """(B, C) float32."""
        x = as_tokens(features).clamp(min=self.eps)  # (B, T, C)
        p = self.p.float().clamp(*self.P_RANGE)
        # Dividing by the largest value first changes nothing and keeps powers from overflowing.
        largest = x.amax(1, keepdim=True).detach()  # (B, 1, C)
        mean = (x / largest).pow(p).mean(1)  # (B, C)
        return mean.pow(1 / p) * largest[:, 0]


class StageStatistics(nn.Module):
    """The mean over a network's map, and means and standard deviations over maps of its stages.

    Each is made a vector of length 1; those of stages count SHARE times as much as the first. Under
    a head of known classes earlier stages say what the last one has forgotten (Evci et al., 2022);
    compared as they are, they blur what it says.
    """

    SHARE = 0.6

    @staticmethod
    def dim(channels: int, of_stages: Sequence[int]) -> int:
        """The length of the vectors, from the channels of the map and of those of stages."""
        return channels + 2 * sum(of_stages)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, C + 2 · the stages' channels) float32 from maps (B, C, H, W), the network's first."""
        parts = [F.normalize(as_tokens(maps[0]).mean(1), dim=1)]
        for stage in maps[1:]:
            tokens = as_tokens(stage)  # (B, T, C)
            mean = tokens.mean(1)
            deviation = ((tokens - mean[:, None]) ** 2).mean(1).clamp(min=1e-10).sqrt()
            parts += [F.normalize(one, dim=1) * self.SHARE for one in (mean, deviation)]
        return torch.cat(parts, dim=1)


# `cls` and `native` vectors come from the network itself, already pooled.
POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "gap": GlobalAverage,
    "gem": GeM,
    "max": GlobalMax,
    "cls": nn.Identity,
    "native": nn.Identity,
    "stages": StageStatistics,
}


def check_pooling(name: str, available: tuple[str, ...], model: str) -> str:
    """The pooling's name in lower case; an error with the available ones where it is not one."""
    pooling = name.strip().lower()
    if pooling not in POOLINGS:
        raise UsageError(f"pooling {name!r}: choose one of {', '.join(POOLINGS)}")
    if pooling not in available:
        raise ModelError(f"{model} has no {pooling} pooling: choose one of {', '.join(available)}")
    return pooling
