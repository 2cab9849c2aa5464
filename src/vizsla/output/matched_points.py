"""A query, its results and their local features → pictures of the points that match, with lines.

One sheet for each query, as `query_sheets` and `similarity_sheet` draw them; or one pair alone.
"""

import colorsys
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vizsla.data.images import MAX_PIXELS, read_image
from vizsla.embed.local_features import Extractor, LocalFeatures
from vizsla.errors import ImageError
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
from vizsla.search.geometry import Geometry, geometry_of
from vizsla.search.ranking import Ranking

log = logging.getLogger("vizsla.figures")

BOX = 260  # px, the side of the square that each image is fitted into
BETWEEN = 12  # px between the two images of a pair
CAPTION = 86  # px below a pair
MOST_LINES = 60  # of a pair, evenly chosen: more would hide the images


def draw_matches(
    ranking: Ranking,
    query_root: str | Path,
    gallery_root: str | Path,
    out_folder: str | Path,
    extract: Extractor,
    *,
    model: str = "similarity",
    k: int = 10,
    rows: Iterable[int] | None = None,
    truth: RankingTruth | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """One PNG with matched points for each query; the rest is as in `query_sheets.draw_ranking`.

    model: of the geometry. A query whose own image cannot be read is skipped with a warning.
    """
    paths = []
    found = sheets(ranking, Path(query_root), Path(gallery_root), k=k, rows=rows, truth=truth)
    for done, sheet in enumerate(found, 1):
        try:
            image = read_image(sheet.query.file, max_pixels=max_pixels)
        except ImageError as error:
            log.warning("%s is skipped: %s", sheet.query.name, error)
            continue
        features = extract(image)
        pairs = [_matched(image, features, result, extract, model, max_pixels)
                 for result in sheet.results]  # fmt: skip
        path = Path(out_folder) / sheet.file_name
        write_png(matches_sheet(sheet.query, sheet.results, pairs, notes=sheet.notes), path)
        paths.append(path)
        if progress:
            progress(done, len(found))
    return paths


Pair = tuple[Image.Image, str]  # a picture of both images, and what it shows, in words


def _matched(
    image: Image.Image, of_query: LocalFeatures, result: Picture, extract: Extractor, model: str,
    max_pixels: int,
) -> Pair | str:  # fmt: skip
    """The pair, or the reason why there is none."""
    try:
        other = read_image(result.file, max_pixels=max_pixels)
    except ImageError as error:
        return str(error)
    of_result = extract(other)
    found = geometry_of(of_query, of_result, model)
    return drawn_pair(image, other, of_query.size, of_result.size, found), in_words(found)


def in_words(found: Geometry) -> str:
    """How many points match, how many agree on one geometry, and how sure that makes it."""
    if found.matrix is None:
        return f"{found.matches} points match, but agree on no geometry"
    return (
        f"{len(found.a)} of {found.matches} matches agree  ·  probability {found.probability:.2f}"
    )


def drawn_pair(
    query: Image.Image,
    result: Image.Image,
    query_size: tuple[int, int],
    result_size: tuple[int, int],
    found: Geometry,
    *,
    box: int = BOX,
) -> Image.Image:
    """Both images side by side, (2 · box + BETWEEN, box), with a line for each inlier.

    query_size, result_size: of the images in which the points were found.
    """
    canvas = Image.new("RGB", (2 * box + BETWEEN, box), PANEL)
    ends: list[np.ndarray] = []
    sides = ((query, query_size, found.a), (result, result_size, found.b))
    for side, (image, size, points) in enumerate(sides):
        scale = box / max(image.size)
        shown = image.resize([max(1, round(length * scale)) for length in image.size],
                             Image.Resampling.LANCZOS, reducing_gap=2.0)  # fmt: skip
        left = side * (box + BETWEEN) + (box - shown.width) // 2
        top = (box - shown.height) // 2
        canvas.paste(shown, (left, top))
        ends.append(points / size * shown.size + (left, top))
    _draw_lines(canvas, *ends)
    return canvas


def labelled_pair(
    query: Image.Image, result: Image.Image, extract: Extractor, *, box: int = BOX,
    text_size: int = 15,
) -> Image.Image:  # fmt: skip
    """`drawn_pair` of two images, with a line below it that says what is seen."""
    a, b = extract(query), extract(result)
    found = geometry_of(a, b)
    pair = drawn_pair(query, result, a.size, b.size, found, box=box)
    sheet = Image.new("RGB", (pair.width, pair.height + 2 * text_size + 6), PAPER)
    sheet.paste(pair, (0, 0))
    below = 8, pair.height + text_size // 2 + 2
    ImageDraw.Draw(sheet).text(below, in_words(found), INK, font_of(text_size))
    return sheet


def _draw_lines(canvas: Image.Image, starts: np.ndarray, stops: np.ndarray) -> None:
    """Drawn twice as large and made small, so that lines are smooth; the hue goes by height."""
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(len(starts), MOST_LINES)).astype(int))
    large = Image.new("RGBA", (2 * canvas.width, 2 * canvas.height))
    draw = ImageDraw.Draw(large)
    for i in chosen[np.argsort(starts[chosen, 1])] if len(starts) else []:
        hue = 0.85 * starts[i, 1] / canvas.height
        colour = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.9, 1.0))
        (x, y), (u, v) = 2 * starts[i], 2 * stops[i]
        draw.line((x, y, u, v), (0, 0, 0, 90), 5)  # so that light lines are seen on light ground
        draw.line((x, y, u, v), (*colour, 210), 3)
        for at, down in ((x, y), (u, v)):
            draw.ellipse((at - 5, down - 5, at + 5, down + 5), (*colour, 255), (0, 0, 0, 255))
    small = large.resize(canvas.size, Image.Resampling.BOX)
    canvas.paste(small, (0, 0), small)


def matches_sheet(
    query: Picture, results: Sequence[Picture], pairs: Sequence[Pair | str],
    *, notes: Sequence[str] = (),
) -> Image.Image:  # fmt: skip
    """The pairs in two columns, the query's image on the left of each."""
    columns = min(2, max(1, len(pairs)))
    rows = max(1, -(-len(pairs) // columns))
    wide, high = 2 * BOX + BETWEEN, BOX + CAPTION
    top = MARGIN + 78
    width = 2 * MARGIN + columns * wide + (columns - 1) * 2 * GAP
    sheet = Image.new("RGB", (width, top + rows * (high + GAP) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw_title(draw, query.name, notes, width - 2 * MARGIN)
    small = font_of(13)
    lines = "lines: points that match and agree on how one image lies in the other"
    draw.text((MARGIN, MARGIN + 51), lines, GREY, small)
    for i, (result, pair) in enumerate(zip(results, pairs, strict=True)):
        x = MARGIN + i % columns * (wide + 2 * GAP)
        y = top + i // columns * (high + GAP)
        if isinstance(pair, str):
            draw.rectangle((x, y, x + wide - 1, y + BOX - 1), PANEL)
            draw.text((x + 12, y + 12), f"no image: {pair}"[:70], GREY, small)
        else:
            sheet.paste(pair[0], (x, y))
            draw.text((x, y + BOX + 66), pair[1], GREY, small)
        if result.correct is not None:
            colour = RIGHT if result.correct else WRONG
            draw.rectangle((x - 2, y - 2, x + wide + 1, y + BOX + 1), outline=colour, width=3)
            badge = badge_of(result.correct, 30)
            sheet.paste(badge, (x + BOX + BETWEEN + 5, y + 5), badge)
        draw_caption(draw, result, i + 1, (x, y + BOX + 8), wide, 13)
    return sheet
