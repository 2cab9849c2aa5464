"""A query and its results → one PNG: the query on the left, its top-k in order on the right.

Composed with Pillow only; text in the DejaVu fonts that come with matplotlib, so that every
machine draws the same.
"""

import functools
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import matplotlib
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from vizsla import storage
from vizsla.data.images import MAX_PIXELS, read_image
from vizsla.data.tiles import WHOLE, Box
from vizsla.errors import ImageError

Thumbnail = Callable[[Path, int], "Image.Image | str"]  # (file, box) → image, or why not

INK, GREY, LINE = "#1f2328", "#59636e", "#d1d9e0"
PAPER, PANEL, BLANK = "white", "#f3f5f8", "#dfe4ea"
RIGHT, WRONG = "#1a7f37", "#cf222e"
ACCEPTED = "#0969da"  # the line where acceptance ends
PART = "#ffd33d"  # the frame of the part of an image that was found

MARGIN, GAP, PANEL_PAD = 28, 16, 16
MAKER = "vizsla sheet"  # in the metadata of every sheet
QUERY_BOX = 268  # px, the side of the query's square
GRID_WIDTH = 1012  # px at most, so that a sheet is 1400 wide


@dataclass(frozen=True)
class Picture:
    """One image of a sheet. name: the text below it. None: unknown.

    probability: that it is right, where it was decided what is accepted. box: the part of the image
    that was found, which is framed.
    """

    file: Path
    name: str
    label: str | None = None
    score: float | None = None
    correct: bool | None = None
    probability: float | None = None
    box: Box | None = None


def draw_sheet(
    query: Picture,
    results: Sequence[Picture],
    notes: Sequence[str],
    thumbnail: Thumbnail,
    *,
    accepted: int | None = None,
) -> Image.Image:
    """One sheet, up to 1400 px wide: the query on the left, the results beside it, best first.

    A result whose `correct` is known has a green or red frame, and a mark for people who cannot
    tell the two colours apart. accepted: a line is drawn after so many results, and the others are
    pale; with 0 the sheet says that the query is perhaps not in the gallery, and has no results.
    """
    absent = bool(results) and accepted == 0
    nearest, results = results[:1], [] if absent else results
    columns = _columns(len(results)) + absent  # the title and what stands there need two
    box = min(QUERY_BOX, (GRID_WIDTH - GAP * (columns - 1)) // columns)
    small = 14 if box > 180 else 13 if box > 140 else 11
    labelled = any(picture.label for picture in results)
    cell = box + (3 if labelled else 2) * (small + 6) + 10  # the image and the lines below it
    rows = max(1, math.ceil(len(results) / columns))
    panel = QUERY_BOX + 2 * PANEL_PAD
    left = MARGIN + panel + 2 * GAP  # of the grid
    top = MARGIN + (66 if notes else 42)
    height = max(rows * cell + (rows - 1) * GAP, panel + 46)
    width = left + columns * box + (columns - 1) * GAP + MARGIN
    sheet = Image.new("RGB", (width, top + height + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw_title(draw, query.name, notes, width - 2 * MARGIN)
    _draw_query(sheet, draw, query, (MARGIN, top, MARGIN + panel, top + height), thumbnail)
    if absent:
        _draw_absent(draw, nearest[0], (left, top + 8))
    elif not results:
        broken = isinstance(thumbnail(query.file, QUERY_BOX), str)
        why = "No results: the query cannot be read." if broken else "No results."
        draw.text((left, top + 8), why, GREY, font_of(15))
    for i, picture in enumerate(results):
        x = left + i % columns * (box + GAP)
        y = top + i // columns * (cell + GAP)
        _draw_tile(sheet, draw, picture, (x, y), box, thumbnail)
        draw_caption(draw, picture, i + 1, (x, y + box + 8), box, small)
        if accepted is not None and i >= accepted:
            tile = (x, y, x + box, y + cell)
            sheet.paste(
                Image.blend(sheet.crop(tile), Image.new("RGB", (box, cell), PAPER), 0.6), tile
            )
    if accepted is not None and 0 < accepted < len(results):
        _draw_end(draw, accepted, columns, (left, top), (box + GAP, cell + GAP), len(results))
    return sheet


def _draw_absent(draw: ImageDraw.ImageDraw, nearest: Picture, at: tuple[int, int]) -> None:
    """What stands in place of results that are not accepted."""
    draw.text(at, "Perhaps not in the gallery.", INK, font_of(20, bold=True))
    chance = "" if nearest.probability is None else f": {100 * nearest.probability:.0f} % sure"
    lines = ["No match is sure enough.", f"The nearest{chance}",
             shortened(PurePosixPath(nearest.name).name, font_of(15), QUERY_BOX)]  # fmt: skip
    for i, line in enumerate(lines):
        draw.text((at[0], at[1] + 36 + 22 * i), line, GREY, font_of(15))


def _draw_end(
    draw: ImageDraw.ImageDraw,
    accepted: int,
    columns: int,
    corner: tuple[int, int],
    step: tuple[int, int],
    n: int,
) -> None:
    """A line between the accepted results and the others: a stair, if it is within a row.

    corner: of the grid. step: from one result to the next, to the right and down.
    """
    row, column = divmod(accepted, columns)
    left, right = corner[0], corner[0] + min(n, columns) * step[0] - GAP
    above = corner[1] + row * step[1] - GAP // 2
    below, middle = above + step[1], left + column * step[0] - GAP // 2
    points = [(right, above), (middle, above), (middle, below), (left, below)]
    if column == 0:
        points = [(right, above), (left, above)]
    elif row == 0:
        points = points[1:]
        points[0] = (middle, corner[1])
    if column and row == (n - 1) // columns:  # nothing stands below
        points = points[:-1]
    draw.line(points, ACCEPTED, 3)


def _columns(k: int) -> int:
    """Rows of five up to 20; smaller tiles beyond."""
    for most, columns in ((1, 1), (2, 2), (3, 3), (4, 4), (20, 5), (30, 6)):
        if k <= most:
            return columns
    return 8


def draw_title(draw: ImageDraw.ImageDraw, name: str, notes: Sequence[str], width: int) -> None:
    """Draws the name and the line of notes below it, shortened to `width` px."""
    bold, plain = font_of(22, bold=True), font_of(15)
    draw.text((MARGIN, MARGIN - 6), shortened(name, bold, width), INK, bold)
    draw.text((MARGIN, MARGIN + 28), shortened("  ·  ".join(notes), plain, width), GREY, plain)


def _draw_query(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    query: Picture,
    panel: tuple[int, int, int, int],
    thumbnail: Thumbnail,
) -> None:
    draw.rectangle((panel[0], panel[1], panel[2] - 1, panel[3] - 1), PANEL)
    x, y = panel[0] + PANEL_PAD, panel[1] + PANEL_PAD
    draw.text((x, y - 4), "QUERY", GREY, font_of(12, bold=True))
    y += 20
    found = thumbnail(query.file, QUERY_BOX)
    if isinstance(found, str):
        draw.rectangle((x, y, x + QUERY_BOX - 1, y + QUERY_BOX - 1), BLANK)
        _draw_reason(draw, found, (x, y), QUERY_BOX)
        y += QUERY_BOX + 8
    else:
        sheet.paste(found, (x + (QUERY_BOX - found.width) // 2, y))
        y += found.height + 8
    caption = query.label or PurePosixPath(query.name).name
    font = font_of(15, bold=query.label is not None)
    draw.text((x, y), shortened(caption, font, QUERY_BOX), INK, font)


def _draw_tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    picture: Picture,
    at: tuple[int, int],
    box: int,
    thumbnail: Thumbnail,
) -> None:
    """The image in the middle of a square, in its frame."""
    x, y = at
    square = (x, y, x + box - 1, y + box - 1)
    border = max(3, box // 45) if picture.correct is not None else 1
    colour = {True: RIGHT, False: WRONG, None: LINE}[picture.correct]
    found = thumbnail(picture.file, box - 2 * border)
    if isinstance(found, str):
        draw.rectangle(square, BLANK)
        _draw_reason(draw, found, at, box)
    else:
        draw.rectangle(square, PANEL)
        left, top = x + (box - found.width) // 2, y + (box - found.height) // 2
        sheet.paste(found, (left, top))
        if picture.box is not None and picture.box != WHOLE:
            _draw_part(draw, picture.box, (left, top), found.size)
    draw.rectangle(square, outline=colour, width=border)
    if picture.correct is not None:
        badge = badge_of(picture.correct, max(20, box // 7))
        sheet.paste(badge, (x + border + 3, y + border + 3), badge)


def _draw_part(
    draw: ImageDraw.ImageDraw, part: Box, corner: tuple[int, int], size: tuple[int, int]
) -> None:
    """A light frame with dark edges around a part of an image: seen on any image."""
    x, y = corner[0] + part[0] * size[0], corner[1] + part[1] * size[1]
    right, bottom = x + part[2] * size[0] - 1, y + part[3] * size[1] - 1
    for inset, colour, width in ((0, INK, 4), (1, PART, 2)):
        draw.rectangle(
            (x + inset, y + inset, right - inset, bottom - inset), outline=colour, width=width
        )


def _draw_reason(draw: ImageDraw.ImageDraw, reason: str, at: tuple[int, int], box: int) -> None:
    """Why there is no image, in the middle of its tile."""
    size = 13 if box > 140 else 10
    font = font_of(size)
    lines = ["no image:", *_wrapped(reason, font, box - 20, box // (size + 4) - 3)]
    y = at[1] + (box - len(lines) * (size + 4)) // 2
    for i, line in enumerate(lines):
        used = font_of(size, bold=i == 0)
        draw.text((at[0] + box // 2, y + i * (size + 4)), line, GREY, used, anchor="ma")


def draw_caption(
    draw: ImageDraw.ImageDraw, picture: Picture, rank: int, at: tuple[int, int], box: int, size: int
) -> None:
    """Rank and score; the label if it is known; the file's name."""
    x, y = at
    plain, bold = font_of(size), font_of(size, bold=True)
    draw.text((x, y), str(rank), INK, bold)
    if picture.score is not None and not math.isnan(picture.score):
        chance = "" if picture.probability is None else f"{100 * picture.probability:.0f} %  "
        draw.text((x + box, y), f"{chance}{picture.score:.3f}", GREY, plain, anchor="ra")
    if picture.label:
        y += size + 6
        draw.text((x, y), shortened(picture.label, plain, box), INK, plain)
    y += size + 6
    draw.text((x, y), shortened(PurePosixPath(picture.name).name, plain, box), GREY, plain)


@functools.cache
def badge_of(correct: bool, size: int) -> Image.Image:
    """✓ or ✗, white on a disc; drawn large and made small, so that its edge is smooth."""
    large = size * 4
    badge = Image.new("RGBA", (large, large), "#ffffff00")
    draw = ImageDraw.Draw(badge)
    draw.ellipse((0, 0, large - 1, large - 1), "white")
    draw.ellipse((6, 6, large - 7, large - 7), RIGHT if correct else WRONG)
    font = font_of(int(large * 0.62), bold=True)
    draw.text((large / 2, large / 2), "✓" if correct else "✗", "white", font, anchor="mm")
    return badge.resize((size, size), Image.Resampling.LANCZOS)


# ── images and text ────────────────────────────────────────────────────────────────────────────


def thumbnail_of(file: Path, box: int, *, max_pixels: int = MAX_PIXELS) -> Image.Image | str:
    """The image with its longer side `box` long; the reason if there is none."""
    try:
        image = read_image(file, max_pixels=max_pixels)
    except ImageError as error:
        return str(error)
    scale = box / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def write_png(image: Image.Image, path: Path) -> None:
    """Writes the sheet, marked as one of ours for `remove_other_sheets`."""
    mark = PngImagePlugin.PngInfo()
    mark.add_text("Software", MAKER)
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=4, pnginfo=mark)
    storage.write_bytes(path, data.getvalue())


def remove_other_sheets(folder: Path, kept: Sequence[Path]) -> None:
    """Deletes all other sheets in the folder; images from other programs stay."""
    names = {path.name for path in kept}
    for path in folder.glob("*.png"):
        if path.name not in names and _is_sheet(path):
            path.unlink()


def _is_sheet(path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == MAKER
    except Exception:  # any file that Pillow cannot open is none of our sheets
        return False


@functools.cache
def font_of(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans in px, the file that comes with matplotlib."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text on one line, its middle left out if it is wider than `width` pixels."""
    text = _printable(text)
    if font.getlength(text) <= width:
        return text
    fits, too_many = 0, len(text)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if font.getlength(_without_middle(text, middle)) <= width:
            fits = middle
        else:
            too_many = middle
    return _without_middle(text, fits)


def _without_middle(text: str, kept: int) -> str:
    """More of the start than of the end, where numbers and the extension are."""
    tail = kept // 2
    return text[: kept - tail] + "…" + (text[-tail:] if tail else "")


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    lines = [""]
    for word in _printable(text).split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(shortened(word, font, width))
    lines = [line for line in lines if line]
    return lines if len(lines) <= most else [*lines[: max(1, most) - 1], "…"]


def _printable(text: str) -> str:
    """No line breaks, control characters or halves of characters; at most 400 characters."""
    text = text if len(text) <= 400 else f"{text[:200]}…{text[-199:]}"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
