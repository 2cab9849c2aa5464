"""Two images and their Embedder → maps of where each contributes to their similarity.

If pooling is a sum over positions, the maps are exact: the values of each add up to the cosine.
Otherwise (CLS tokens, native pooling) parts of the image are covered one after another (Zeiler &
Fergus, 2014), and each value is how much the cosine falls.
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

WINDOWS, MIN_WINDOWS = 8, 3  # covered windows in a row and in a column
BATCH = 16  # images with a covered window
EXACT, COVERED = "exact", "covered"


@dataclass(frozen=True, eq=False)
class Explanation:
    """query, result: (h, w) float64, how much each position of the image contributes to `cosine`.

    method "exact": the values of each map add up to the cosine. "covered": each value is how much
    the cosine falls while that position is covered; their sum means nothing.
    """

    query: np.ndarray
    result: np.ndarray
    cosine: float
    method: str


def explain(
    embedder: Embedder, query: Image.Image, results: Sequence[Image.Image]
) -> list[Explanation]:
    """One Explanation for each result."""
    if not results:
        return []
    tensors = torch.stack([embedder.preprocess(image) for image in results])
    return explain_tensors(embedder, embedder.preprocess(query), tensors)


def explain_tensors(
    embedder: Embedder,
    query: Tensor,
    results: Tensor,
    *,
    seconds: float | None = None,
    precision: torch.dtype = torch.float32,
    before_pass: Callable[[], None] | None = None,
) -> list[Explanation]:
    """The same for preprocessed images: query (3, H, W), results (R, 3, H, W).

    Only if windows are covered: seconds, about how long it may take (with fewer and larger
    windows if needed); precision of the network; before_pass, called before each pass through
    the network, each of one image then.
    """
    embedder.eval()
    device = next((p.device for p in embedder.parameters()), torch.device("cpu"))
    query, results = query.to(device), results.to(device)
    with torch.inference_mode():
        if _is_sum_over_positions(embedder, query):
            return _exact(embedder, query, results)

        def embed(images: Tensor) -> Tensor:
            if before_pass is not None:
                before_pass()
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                vectors: Tensor = embedder(images)
            return vectors.float()

        return _covered(embed, query, results, seconds, BATCH if before_pass is None else 1)


# ── exact ────────────────────────────────────────────────────────────────────────────────────────


def _is_sum_over_positions(embedder: Embedder, image: Tensor) -> bool:
    """Whether the vector is a sum over positions, up to linear maps and lengths."""
    if not isinstance(embedder.projection, nn.Identity | Projection):
        return False
    if embedder.pooling != "native":
        return embedder.pooling in ("gap", "gem", "max")
    if "gap" not in embedder.backbone.poolings:  # there is no map
        return False
    mean = as_tokens(embedder.backbone.features(image[None])).mean(1)  # (1, C)
    native = embedder.backbone.native(image[None])
    return native.shape == mean.shape and torch.allclose(native.float(), mean, rtol=1e-3, atol=1e-4)


def _exact(embedder: Embedder, query: Tensor, results: Tensor) -> list[Explanation]:
    parts = [_parts(embedder, image) for image in (query, *results)]  # [(T, C)]
    grids = [grid_of(embedder, image) for image in (query, *results[:1])]
    vectors = [embedder.project(part.sum(0)[None])[0] for part in parts]  # [(D,)]
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
    """(T, C): the contribution of each position to the pooled vector, which is their sum."""
    tokens = as_tokens(embedder.backbone.features(image[None]))[0]  # (T, C)
    pool = embedder.pool
    if isinstance(pool, GeM):
        x = tokens.clamp(min=pool.eps)
        powers = (x / x.amax(0)).pow(pool.p.float().clamp(*pool.P_RANGE))
        return pool(tokens[None])[0] * powers / powers.sum(0)
    if embedder.pooling == "max":
        is_highest = (tokens == tokens.amax(0)).float()  # equal maxima share a channel
        return tokens * is_highest / is_highest.sum(0)
    return tokens / len(tokens)


def _contributions(projection: nn.Module, parts: Tensor, other: Tensor) -> Tensor:
    """(T,) of (T, C) parts: the terms of the cosine with the unit vector `other` (D,).

    Divided by the length of the sum of all parts, every later step is linear; a bias is divided
    equally among the parts.
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


def grid_of(embedder: Embedder, image: Tensor) -> tuple[int, int]:
    """Rows and columns: of the map, or of the patches, by the image's aspect ratio."""
    features = embedder.backbone.features(image[None])
    if features.ndim == 4:
        return int(features.shape[2]), int(features.shape[3])
    tokens, (high, wide) = features.shape[1], image.shape[1:]
    rows = round(math.sqrt(tokens * high / wide))
    return (rows, tokens // rows) if rows and tokens % rows == 0 else (1, tokens)


def _as_map(contributions: Tensor, grid: tuple[int, int]) -> np.ndarray:
    return contributions.float().cpu().numpy().astype(np.float64).reshape(grid)


# ── covered ──────────────────────────────────────────────────────────────────────────────────────


Embed = Callable[[Tensor], Tensor]  # (B, 3, H, W) → (B, D)


def _covered(
    embed: Embed, query: Tensor, results: Tensor, seconds: float | None, batch: int
) -> list[Explanation]:
    started = time.perf_counter()
    vectors = torch.cat([embed(image[None]) for image in (query, *results)])  # (1+R, D)
    windows = WINDOWS
    if seconds is not None:  # fewer than MIN_WINDOWS would show nothing: then it takes longer
        seconds_per_window = max(time.perf_counter() - started, 1e-9)  # of every image
        windows = min(WINDOWS, max(MIN_WINDOWS, int(math.sqrt(seconds / seconds_per_window))))
    grid = (windows, windows)
    query_vector = vectors[0]
    without = _vectors_without(embed, query, windows, batch)  # (h·w, D)
    explanations = []
    for image, vector in zip(results, vectors[1:], strict=True):
        cosine = query_vector @ vector
        of_query = cosine - without @ vector
        of_result = cosine - _vectors_without(embed, image, windows, batch) @ query_vector
        explanations.append(
            Explanation(_as_map(of_query, grid), _as_map(of_result, grid), float(cosine), COVERED)
        )
    return explanations


def _vectors_without(embed: Embed, image: Tensor, windows: int, batch: int) -> Tensor:
    """(h·w, D): the image's vectors with each window, and half of its neighbours, covered.

    Covered pixels are 0, the mean colour.
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
    return torch.cat([embed(part) for part in copies.split(batch)])
