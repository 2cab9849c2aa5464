"""Explanations + images → a sheet that shows where a query and each result are similar.

Warm areas raised the similarity; dark ones did not count, or lowered it.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from vizsla.data.images import MAX_PIXELS, read_image
from vizsla.data.preprocess import Preprocess
from vizsla.errors import ImageError
from vizsla.model.embedder import Embedder
from vizsla.model.explain import EXACT, Explanation, explain
from vizsla.output.query_sheets import RankingTruth, sheets
from vizsla.output.sheet_drawing import (
    GAP,
    GREY,
    INK,
    MARGIN,
    PANEL,
    PAPER,
    RIGHT,
    WRONG,
    Picture,
    badge_of,
    draw_caption,
    draw_title,
    font_of,
    write_png,
)
from vizsla.search.ranking import Ranking

log = logging.getLogger("vizsla.figures")

BOX = 224  # px, the side of each image
CAPTION = 66  # px below a pair
COLOURS = "inferno"


@dataclass(frozen=True, eq=False)
class ExplainedResult:
    """One result. image: its image, or the reason why there is none, and then no explanation."""

    result: Picture
    image: Image.Image | str
    explanation: Explanation | None = None


def draw_similarity(
    ranking: Ranking,
    query_root: str | Path,
    gallery_root: str | Path,
    out_folder: str | Path,
    embedder: Embedder,
    *,
    k: int = 10,
    rows: Iterable[int] | None = None,
    truth: RankingTruth | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """One PNG with heat maps for each query; the rest is as in `query_sheets.draw_ranking`.

    A query whose own image cannot be read is skipped with a warning.
    """
    paths = []
    found = sheets(ranking, Path(query_root), Path(gallery_root), k=k, rows=rows, truth=truth)
    for done, sheet in enumerate(found, 1):
        try:
            image = read_image(sheet.query.file, max_pixels=max_pixels)
        except ImageError as error:
            log.warning("%s is skipped: %s", sheet.query.name, error)
            continue
        results = explained(embedder, image, sheet.results, max_pixels=max_pixels)
        path = Path(out_folder) / sheet.file_name
        write_png(
            similarity_sheet(sheet.query, image, results, embedder.preprocess, notes=sheet.notes),
            path,
        )
        paths.append(path)
        if progress:
            progress(done, len(found))
    return paths


def explained(
    embedder: Embedder, query: Image.Image, results: Sequence[Picture], *, max_pixels: int
) -> list[ExplainedResult]:
    """Each result with its image and the explanation of its score."""
    images: list[Image.Image | str] = []
    for result in results:
        try:
            images.append(read_image(result.file, max_pixels=max_pixels))
        except ImageError as error:
            images.append(str(error))
    readable = [image for image in images if isinstance(image, Image.Image)]
    explanations = iter(explain(embedder, query, readable))
    return [
        ExplainedResult(result, image, None if isinstance(image, str) else next(explanations))
        for result, image in zip(results, images, strict=True)
    ]


def similarity_sheet(
    query: Picture,
    image: Image.Image,
    pairs: Sequence[ExplainedResult],
    preprocess: Preprocess,
    *,
    notes: Sequence[str] = (),
) -> Image.Image:
    """The query's image on the left; beside it the pairs, query and result side by side."""
    columns = min(2, max(1, len(pairs)))
    rows = -(-len(pairs) // columns)
    pair_width, pair_height = 2 * BOX + 6, BOX + CAPTION
    left, top = MARGIN + BOX + 2 * GAP, MARGIN + 66
    width = left + columns * pair_width + (columns - 1) * GAP + MARGIN
    height = top + max(1, rows) * (pair_height + GAP) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw_title(draw, query.name, notes, width - 2 * MARGIN)
    seen = as_seen(image, preprocess)
    sheet.paste(seen.resize((BOX, BOX)), (MARGIN, top))
    draw.text((MARGIN, top + BOX + 8), query.label or "query", INK, font_of(15, bold=True))
    small = font_of(13)
    draw.text((MARGIN, top + BOX + 30), "as the model sees it", GREY, small)
    methods = {pair.explanation.method for pair in pairs if pair.explanation}
    for line, text in enumerate(_legend(methods)):
        draw.text((MARGIN, top + BOX + 62 + 18 * line), text, GREY, small)
    for i, pair in enumerate(pairs):
        x = left + i % columns * (pair_width + GAP)
        y = top + i // columns * (pair_height + GAP)
        _draw_pair(sheet, draw, pair, i + 1, seen, preprocess, (x, y))
    return sheet


def _legend(methods: set[str]) -> list[str]:
    """How to read the maps, in lines that fit below the query."""
    if not methods:
        return []
    if methods == {EXACT}:
        return ["bright: adds to the score;", "the sum of all places", "is the score"]
    return ["bright: the score falls", "while this is covered"]


def as_seen(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """The part of an image that the model sees, with the model's own proportions."""
    tensor = preprocess(image)  # (3, H, W)
    mean, std = (np.array(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
    pixels = (tensor.numpy() * std + mean).clip(0, 1) * 255
    return Image.fromarray(pixels.round().astype(np.uint8).transpose(1, 2, 0))


def overlaid(picture: Image.Image, heat: np.ndarray, highest: float) -> Image.Image:
    """The image, dark where `heat` (h, w) is 0 or below, glowing where it is near `highest`."""
    scaled = np.clip(heat / max(highest, 1e-12), 0, 1).astype(np.float32)
    field = Image.fromarray(scaled).resize(picture.size, Image.Resampling.BICUBIC)
    level = np.asarray(field).clip(0, 1)[..., None]  # (H, W, 1)
    glow = matplotlib.colormaps[COLOURS](level[..., 0])[..., :3] * 255
    colours = np.asarray(picture, dtype=np.float32)
    grey = colours.mean(axis=2, keepdims=True)
    shown = (0.2 + 0.5 * level) * (level * colours + (1 - level) * grey) + 0.5 * glow
    return Image.fromarray(shown.clip(0, 255).astype(np.uint8))


def _draw_pair(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    pair: ExplainedResult,
    rank: int,
    query: Image.Image,
    preprocess: Preprocess,
    at: tuple[int, int],
) -> None:
    """Both images under one scale, so that the two can be compared."""
    x, y = at
    right = (x + BOX + 6, y)
    explained = pair.explanation
    if isinstance(pair.image, str) or explained is None:
        draw.rectangle((x, y, x + 2 * BOX + 5, y + BOX - 1), PANEL)
        draw.text((x + 12, y + 12), f"no image: {pair.image}"[:70], GREY, font_of(13))
    else:
        densities = [heat * heat.size for heat in (explained.query, explained.result)]
        highest = max(float(heat.max()) for heat in densities)
        seen = (query, as_seen(pair.image, preprocess))
        for one, heat, place in zip(seen, densities, (at, right), strict=True):
            sheet.paste(overlaid(one.resize((BOX, BOX)), heat, highest), place)
    if pair.result.correct is not None:
        colour = RIGHT if pair.result.correct else WRONG
        draw.rectangle((x - 2, y - 2, x + 2 * BOX + 7, y + BOX + 1), outline=colour, width=3)
        badge = badge_of(pair.result.correct, 30)
        sheet.paste(badge, (right[0] + 5, y + 5), badge)
    draw_caption(draw, pair.result, rank, (x, y + BOX + 8), 2 * BOX + 6, 13)
