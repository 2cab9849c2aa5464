"""Two pictures and their Embedder → where each of them makes the two alike.

Where pooling is a sum over places the maps are exact: the numbers of each map add up to the cosine.
Everywhere else (CLS tokens, a model's own pooling) parts of the picture are covered up, one after
the other (Zeiler & Fergus, 2014), and a number says how much the cosine falls.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vizsla.model.embedder import Embedder
from vizsla.model.pooling import GeM, as_tokens
from vizsla.model.projection import Projection

WINDOWS, FEWEST_WINDOWS = 8, 3  # covered places in a row and in a column
AT_ONCE = 16  # covered pictures in a batch
EXACT, COVERED = "exact", "covered"


@dataclass(frozen=True, eq=False)
class Explanation:
    """query, result: (h, w) float64, how much each place of the picture adds to `cosine`.

    method "exact": each map's numbers add up to the cosine. "covered": each is what the cosine
    loses while that place is covered, and they add up to nothing.
    """

    query: np.ndarray
    result: np.ndarray
    cosine: float
    method: str


def explain(
    embedder: Embedder, query: Image.Image, results: Sequence[Image.Image]
) -> list[Explanation]:
    """One Explanation for each of the results."""
    if not results:
        return []
    found = torch.stack([embedder.preprocess(image) for image in results])
    return explain_seen(embedder, embedder.preprocess(query), found)


def explain_seen(
    embedder: Embedder,
    query: Tensor,
    results: Tensor,
    *,
    seconds: float | None = None,
    precision: torch.dtype = torch.float32,
    give_way: Callable[[], None] | None = None,
) -> list[Explanation]:
    """The same for preprocessed pictures: query (3, H, W), results (R, 3, H, W).

    Where parts have to be covered: seconds, about how long that may take (fewer and larger parts
    are covered then); precision, what is multiplied with; give_way, called before each of the many
    passes, which then are of one picture.
    """
    embedder.eval()
    device = next((p.device for p in embedder.parameters()), torch.device("cpu"))
    asked, found = query.to(device), results.to(device)
    with torch.inference_mode():
        if is_sum(embedder, asked):
            return _exact(embedder, asked, found)

        def see(images: Tensor) -> Tensor:
            if give_way is not None:
                give_way()
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                vectors: Tensor = embedder(images)
            return vectors.float()

        return _covered(see, asked, found, seconds, AT_ONCE if give_way is None else 1)


# ── exact ────────────────────────────────────────────────────────────────────────────────────────


def is_sum(embedder: Embedder, image: Tensor) -> bool:
    """Whether the vector is a sum over places, up to linear maps and lengths."""
    if not isinstance(embedder.projection, nn.Identity | Projection):
        return False
    if embedder.pooling != "native":
        return embedder.pooling in ("gap", "gem", "max")
    if "gap" not in embedder.backbone.poolings:  # there is no map
        return False
    mean = as_tokens(embedder.backbone.features(image[None])).mean(1)  # (1, C)
    own = embedder.backbone.native(image[None])
    return own.shape == mean.shape and torch.allclose(own.float(), mean, rtol=1e-3, atol=1e-4)


def _exact(embedder: Embedder, query: Tensor, results: Tensor) -> list[Explanation]:
    parts = [_parts(embedder, image) for image in (query, *results)]  # [(T, C)]
    grids = [_grid(embedder, image) for image in (query, *results[:1])]
    vectors = [embedder.finished(part.sum(0)[None])[0] for part in parts]  # [(D,)]
    found = []
    for part, vector in zip(parts[1:], vectors[1:], strict=True):
        of_query = _contributions(embedder.projection, parts[0], vector)
        of_result = _contributions(embedder.projection, part, vectors[0])
        found.append(
            Explanation(
                _as_map(of_query, grids[0]),
                _as_map(of_result, grids[-1]),
                float(vectors[0] @ vector),
                EXACT,
            )
        )
    return found


def _parts(embedder: Embedder, image: Tensor) -> Tensor:
    """(T, C): what each place gives to the pooled vector; they add up to it."""
    tokens = as_tokens(embedder.backbone.features(image[None]))[0]  # (T, C)
    pool = embedder.pool
    if isinstance(pool, GeM):
        x = tokens.clamp(min=pool.eps)
        powers = (x / x.amax(0)).pow(pool.p.float().clamp(*pool.P_RANGE))
        return pool(tokens[None])[0] * powers / powers.sum(0)
    if embedder.pooling == "max":
        is_highest = (tokens == tokens.amax(0)).float()  # equal places share a channel
        return tokens * is_highest / is_highest.sum(0)
    return tokens / len(tokens)


def _contributions(projection: nn.Module, parts: Tensor, other: Tensor) -> Tensor:
    """(T,) of (T, C) parts: the terms of the cosine with the unit vector `other` (D,).

    With the lengths that the sum of all parts has, every later step is linear; a bias is dealt
    out evenly.
    """
    unit = parts / parts.sum(0).norm().clamp(min=1e-12)  # (T, C), their sum has length 1
    if not isinstance(projection, Projection):
        return unit @ other
    projected = F.linear(unit, projection.weight) + projection.bias / len(parts)  # (T, D)
    if not projection.share:
        return projected @ other / projected.sum(0).norm().clamp(min=1e-12)
    length = projected.sum(0).norm().clamp(min=1e-12)
    joined = [projected / length * (1 - projection.share) ** 0.5, unit * projection.share**0.5]
    return torch.cat(joined, dim=1) @ other


def _grid(embedder: Embedder, image: Tensor) -> tuple[int, int]:
    """Height and width of the places: those of the map, or of the patches as the picture lies."""
    features = embedder.backbone.features(image[None])
    if features.ndim == 4:
        return int(features.shape[2]), int(features.shape[3])
    tokens, (high, wide) = features.shape[1], image.shape[1:]
    rows = round(math.sqrt(tokens * high / wide))
    return (rows, tokens // rows) if rows and tokens % rows == 0 else (1, tokens)


def _as_map(contributions: Tensor, grid: tuple[int, int]) -> np.ndarray:
    return contributions.float().cpu().numpy().astype(np.float64).reshape(grid)


# ── covered ──────────────────────────────────────────────────────────────────────────────────────


See = Callable[[Tensor], Tensor]  # (B, 3, H, W) → (B, D)


def _covered(
    see: See, query: Tensor, results: Tensor, seconds: float | None, at_once: int
) -> list[Explanation]:
    started = time.perf_counter()
    vectors = torch.cat([see(image[None]) for image in (query, *results)])  # (1+R, D)
    windows = WINDOWS
    if seconds is not None:
        windows = windows_within(seconds, time.perf_counter() - started)
    asked, found = vectors[0], vectors[1:]
    without = _vectors_without(see, query, windows, at_once)  # (h·w, D)
    explanations = []
    for image, vector in zip(results, found, strict=True):
        cosine = asked @ vector
        of_query = cosine - without @ vector
        of_result = cosine - _vectors_without(see, image, windows, at_once) @ asked
        grid = (windows, windows)
        explanations.append(
            Explanation(_as_map(of_query, grid), _as_map(of_result, grid), float(cosine), COVERED)
        )
    return explanations


def windows_within(seconds: float, seconds_a_window: float) -> int:
    """How many windows a row may have, if one of every picture takes so long; 3 at least.

    Fewer would tell nothing: it then takes longer than it should.
    """
    most = int(math.sqrt(seconds / max(seconds_a_window, 1e-9)))
    return min(WINDOWS, max(FEWEST_WINDOWS, most))


def _vectors_without(see: See, image: Tensor, windows: int, at_once: int) -> Tensor:
    """(h·w, D): the picture's vectors with each window, and half of its neighbours, covered.

    Covered is 0: the mean colour, which tells a network the least.
    """
    high, wide = image.shape[1:]
    rows, columns = np.linspace(0, high, windows + 1), np.linspace(0, wide, windows + 1)
    half = (high / windows / 2, wide / windows / 2)
    copies = image.repeat(windows**2, 1, 1, 1)  # (h·w, 3, H, W)
    for i in range(windows**2):
        row, column = divmod(i, windows)
        top, left = (max(0, round(edge - h)) for edge, h in
                     zip((rows[row], columns[column]), half, strict=True))  # fmt: skip
        bottom, right = round(rows[row + 1] + half[0]), round(columns[column + 1] + half[1])
        copies[i, :, top:bottom, left:right] = 0
    return torch.cat([see(part) for part in copies.split(at_once)])
