"""Embeddings → a map of them in the plane, and one sheet with their thumbnails.

Points that are close together are similar; large distances and the axes have no meaning.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vizsla.data.images import MAX_PIXELS, read_image
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import ImageError, UsageError
from vizsla.output.pages import data_uri
from vizsla.progress import Report, reported, waiting

MOST_POINTS = 2000  # queries and gallery images together; of more, a random choice
TILE, TILE_COLUMNS = 72, 25  # px of a small image; images in a row
WIDTH, HEIGHT, BORDER = 1000, 700, 24  # of the drawing
NAMED_CLASSES = 25  # of more classes only those are named that have room
NAME_SIZES = {"wide": 19, "narrow": 30}  # px in the drawing: on a desktop and on a phone
POINT = 9  # px: half of a point's width, and some room
COVERED = 60.0  # px that a name may be moved away from its class to cover one point less
REACH = 40  # px between a name and the nearest point of its class, at most
GOLDEN_ANGLE = 137.508


@dataclass(frozen=True)
class Point:
    """One image on the map."""

    id: str
    role: str  # "query" or "gallery"
    file: Path
    label: str | None


def choose(
    queries: Sequence[Point], gallery: Sequence[Point], *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the queries and of the gallery images to draw: all, or a random choice."""
    rng = np.random.default_rng(seed)
    wanted = min(len(queries), max(MOST_POINTS // 2, MOST_POINTS - len(gallery)))
    left = min(len(gallery), MOST_POINTS - wanted)
    return (
        np.sort(rng.permutation(len(queries))[:wanted]),
        np.sort(rng.permutation(len(gallery))[:left]),
    )


# ── vectors → the plane ──────────────────────────────────────────────────────────────────────────


def pca(vectors: np.ndarray, dim: int = 2) -> np.ndarray:
    """(N, dim): the first principal components; the same on every run."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)  # (min(N, D), D)
    kept = directions[:dim]
    kept = kept * np.sign(kept[np.arange(len(kept)), np.abs(kept).argmax(axis=1)])[:, None]
    found = centred @ kept.T  # (N, ≤ dim)
    return np.pad(found, ((0, 0), (0, dim - found.shape[1])))


def tsne(vectors: np.ndarray) -> np.ndarray:
    """(N, 2) by t-SNE (van der Maaten & Hinton, 2008), started from the PCA; PCA below 10."""
    if len(vectors) < 10:
        return pca(vectors)
    from sklearn.manifold import TSNE

    short = pca(vectors, min(50, *vectors.shape)).astype(np.float32)
    spread = float(short[:, 0].std()) or 1.0
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    start = short[:, :2] / spread * 1e-4
    model = TSNE(perplexity=perplexity, init=start, random_state=0, learning_rate="auto")
    found: np.ndarray = model.fit_transform(short)
    return found


PROJECTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"tsne": tsne, "pca": pca}


def in_the_plane(vectors: np.ndarray, projection: str = "tsne") -> np.ndarray:
    """(N, 2) places in the drawing, in px. UsageError for an unknown projection."""
    if projection not in PROJECTIONS:
        raise UsageError(f"no map {projection!r}: choose one of {', '.join(PROJECTIONS)}")
    places = PROJECTIONS[projection](vectors)  # (N, 2)
    low, high = places.min(axis=0), places.max(axis=0)
    room = np.array([WIDTH, HEIGHT]) - 2 * BORDER
    return BORDER + (places - low) / np.maximum(high - low, 1e-12) * room


# ── the drawing ──────────────────────────────────────────────────────────────────────────────────


def map_of(
    queries: tuple[Embeddings, Path, Mapping[str, str | None]],
    gallery: tuple[Embeddings, Path, Mapping[str, str | None]],
    projection: str = "tsne",
    *,
    max_pixels: int = MAX_PIXELS,
    progress: Report | None = None,
) -> dict[str, Any]:
    """What report.html needs to draw the map. queries, gallery: (embeddings, root, labels)."""
    parts = (("query", *queries), ("gallery", *gallery))
    all_points = [
        [Point(name, role, root / name, labels.get(name)) for name in embeddings.ids]
        for role, embeddings, root, labels in parts
    ]
    chosen = choose(*all_points)
    vectors = [part[1].vectors[rows] for part, rows in zip(parts, chosen, strict=True)]
    points = [p[i] for p, rows in zip(all_points, chosen, strict=True) for i in rows]
    with waiting(progress, f"laying out the map of {len(points)} images"):
        places = in_the_plane(np.concatenate(vectors), projection)  # (N, 2)
    classes = sorted({point.label for point in points if point.label is not None})
    number = {label: i for i, label in enumerate(classes)}
    marks = [
        {
            "role": point.role,
            "x": f"{x:.1f}",
            "y": f"{y:.1f}",
            "class_number": number.get(point.label or "", -1),
            "colour": colour(number.get(point.label or "", -1)),
            "title": f"{point.role} {point.id}" + (f", {point.label}" if point.label else ""),
        }
        for point, (x, y) in zip(points, places.tolist(), strict=True)
    ]
    roles = Counter(point.role for point in points)
    return {
        "method": {"tsne": "t-SNE", "pca": "the first two principal components"}[projection],
        "points": marks,
        "total": sum(map(len, all_points)),
        "classes": classes,
        "names": {kind: _names(points, places, classes, size) for kind, size in NAME_SIZES.items()},
        "tiles": draw_tiles(points, max_pixels=max_pixels, progress=progress),
        "tile": TILE,
        "tile_columns": TILE_COLUMNS,
        "width": WIDTH,
        "height": HEIGHT,
        "description": (
            f"Map of {roles['query']} queries and {roles['gallery']} gallery images"
            + (f" of {len(classes)} classes" if classes else "")
            + "; arrow keys go from image to image"
        ),
    }


def draw_tiles(
    points: Sequence[Point], *, max_pixels: int = MAX_PIXELS, progress: Report | None = None
) -> str:
    """All thumbnails as one WebP in a data URI; one that cannot be read stays grey."""
    rows = -(-len(points) // TILE_COLUMNS)
    sheet = Image.new("RGB", (TILE * TILE_COLUMNS, TILE * rows), "#8a8a8a")
    for i, point in enumerate(reported(points, "drawing the images of the map", progress)):
        try:
            picture = read_image(point.file, max_pixels=max_pixels, at_least=TILE)
        except ImageError:
            continue
        tile = ImageOps.pad(picture, (TILE, TILE), Image.Resampling.BILINEAR, color="#8a8a8a")
        sheet.paste(tile, (i % TILE_COLUMNS * TILE, i // TILE_COLUMNS * TILE))
    return data_uri(sheet, quality=60)


def colour(number: int) -> str:
    """A class's colour: hues by the golden angle in three lightnesses; grey if `number` < 0."""
    if number < 0:
        return "hsl(0 0% 55%)"
    return f"hsl({number * GOLDEN_ANGLE % 360:.0f} 70% {(48, 60, 38)[number % 3]}%)"


def _names(
    points: Sequence[Point], places: np.ndarray, classes: Sequence[str], size: int
) -> list[tuple[float, float, str]]:
    """(x, y, name) of each class, for letters of `size` px, centred at x above the line y.

    A name stands near its class, inside the drawing, on no other name, and on as few points as
    possible; of many classes, on none. Left out where there is no such place.
    """
    labels = np.array([point.label or "" for point in points], dtype=object)
    x, y = np.meshgrid(np.arange(0, WIDTH, 6), np.arange(0, HEIGHT, 6))  # centres to choose from
    bounds = [(0, WIDTH), (0, HEIGHT)]
    counts = np.histogram2d(places[:, 0], places[:, 1], [WIDTH, HEIGHT], bounds)[0]
    sums = np.pad(counts.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))  # points left and above
    taken: list[tuple[float, float, str, float]] = []
    for label in sorted(classes, key=lambda label: -(labels == label).sum()):
        text = label if len(label) <= 24 else label[:23] + "…"
        half, tall = 0.31 * size * len(text), 0.6 * size  # of the name's box
        left, right = (
            np.clip(x + by, 0, WIDTH).astype(int) for by in (-half - POINT, half + POINT)
        )
        top, low = (np.clip(y + by, 0, HEIGHT).astype(int) for by in (-tall - POINT, tall + POINT))
        covered = sums[right, low] - sums[left, low] - sums[right, top] + sums[left, top]
        clear = (
            (x >= half + 4) & (x <= WIDTH - half - 4) & (y >= tall + 4) & (y <= HEIGHT - tall - 4)
        )
        for a, b, _, other in taken:
            clear &= (np.abs(x - a) > half + other + 6) | (np.abs(y - b) > 2 * tall + 2)
        members = places[labels == label]
        middle = members[np.abs(members - np.median(members, axis=0)).sum(axis=1).argmin()]
        away = np.hypot(x - middle[0], y - middle[1])
        off = np.min([
            np.hypot(np.maximum(np.abs(x - a) - half, 0), np.maximum(np.abs(y - b) - tall, 0))
            for a, b in members
        ], axis=0)  # fmt: skip
        clear &= (off <= REACH) & ((covered == 0) | (len(classes) <= NAMED_CLASSES))
        cost = np.where(clear, COVERED * covered + 0.5 * away + 2 * off, np.inf)
        if not np.isfinite(cost.min()):
            continue
        row, column = np.unravel_index(cost.argmin(), cost.shape)
        taken.append((float(x[row, column]), float(y[row, column]), text, half))
    return [(a, round(b + 0.36 * size), text) for a, b, text, _ in taken]
