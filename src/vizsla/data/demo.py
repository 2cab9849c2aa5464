"""A seed → a small data set to try everything on: 24 kinds of objects as photos and as drawings.

Queries are "photos" (filled, lit, textured, noisy), the gallery holds "drawings" (dark lines on
paper), the training part has both. Colour, position, size and rotation are random for each image,
so that only the shape determines the class. A network trained on photos finds about a third of the
classes at rank 1, and nine in ten with a projection fitted to the training part.
"""

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vizsla import storage
from vizsla.errors import DataError

SIDE = 96  # pixels
FINE = 3  # shapes are drawn this many times larger, then scaled down
TRAINING_EACH = 8  # photos of each class in the training part, and as many drawings
QUERIES_EACH = 5
GALLERY_EACH = 10
MARKER = ".vizsla-demo"  # marks a folder that may be overwritten

Points = np.ndarray  # (P, 2): x to the right and y down, about -1…1


@dataclass(frozen=True)
class Part:
    """One part of an object: an area, possibly with a hole, or a line."""

    outline: Points
    hole: Points | None = None
    is_line: bool = False


def make_demo(folder: str | Path, *, seed: int = 0, classes: int | None = None) -> Path:
    """Writes training/, test/query/, test/gallery/ and labels.csv into `folder` and returns it.

    The same seed gives the same images. classes: only so many kinds of objects; None: all 24.
    labels.csv names the domain (photo, drawn) of every image, those of the training part included.
    DataError if the folder holds something else.
    """
    folder = Path(folder)
    _claim(folder, seed)
    rows = []
    for role, name, label, domain, image in _demo_images(seed, classes):
        path = folder / ("training" if role == "training" else f"test/{role}") / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=90)
        except OSError as error:
            raise storage.storage_error("write", path, error) from error
        rows.append((role, name, label, domain))
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([("role", "file", "label", "domain"), *rows])
    storage.write_text(folder / "labels.csv", table.getvalue())
    return folder


def _claim(folder: Path, seed: int) -> None:
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: name a folder for the demo's data set")
    marker = folder / MARKER
    if folder.is_dir() and any(folder.iterdir()) and not marker.is_file():
        raise DataError(
            f"{folder} is not empty and was not made by the demo: name a new folder, "
            "so that none of your files is overwritten"
        )
    storage.write_text(marker, f"made by `vizsla demo`, seed {seed}\n")


def _demo_images(
    seed: int, classes: int | None
) -> Iterator[tuple[str, str, str, str, Image.Image]]:
    """(role, file, label, domain, image) of the whole data set, role after role."""
    names = list(things())[:classes]
    for label in names:
        for domain, extension in (("photo", "jpg"), ("drawn", "png")):
            for i in range(TRAINING_EACH):
                file = f"{label}/{domain}_{i:03d}.{extension}"
                yield "training", file, label, domain, _demo_image(label, domain, seed, i)
    for role, domain, each, extension in (
        ("query", "photo", QUERIES_EACH, "jpg"),
        ("gallery", "drawn", GALLERY_EACH, "png"),
    ):
        shuffled = np.random.default_rng([seed, each]).permutation(len(names) * each)
        for place, mixed in enumerate(shuffled):  # file names must not reveal the class
            label, i = names[mixed // each], TRAINING_EACH + int(mixed) % each
            file = f"{role}_{place:04d}.{extension}"
            yield role, file, label, domain, _demo_image(label, domain, seed, i)


def _demo_image(label: str, domain: str, seed: int, i: int) -> Image.Image:
    # A generator for each image: adding images does not change the others.
    rng = np.random.default_rng([seed, list(things()).index(label), domain == "drawn", i])
    parts = _placed(things()[label], rng)
    return _photo(parts, rng) if domain == "photo" else _drawing(parts, rng)


# ── placing ──────────────────────────────────────────────────────────────────────────────────────


def _placed(parts: list[Part], rng: np.random.Generator) -> list[Part]:
    """In pixels of the fine canvas: bent, stretched, turned, mirrored, scaled and moved."""
    phase = rng.uniform(0, 2 * math.pi, 2)
    bend = rng.uniform(0.04, 0.12, 2)
    angle = math.radians(rng.normal(0, 20))
    stretch = np.exp(rng.normal(0, 0.15, 2))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    flip = np.array([rng.choice([-1, 1]), 1])
    scale = SIDE * FINE * rng.uniform(0.24, 0.40)
    centre = SIDE * FINE * (0.5 + rng.uniform(-0.1, 0.1, 2))

    def place(points: Points) -> Points:
        bent = points + bend * np.sin(2.5 * points[:, ::-1] + phase)
        return (bent * stretch * flip) @ turn.T * scale + centre

    return [
        Part(place(p.outline), None if p.hole is None else place(p.hole), p.is_line) for p in parts
    ]


def _mask(part: Part, width: int) -> Image.Image:
    """(fine canvas) white inside the part; lines are `width` pixels wide."""
    mask = Image.new("L", (SIDE * FINE, SIDE * FINE))
    draw = ImageDraw.Draw(mask)
    if part.is_line:
        draw.line(_flat(part.outline), fill=255, width=width, joint="curve")
        return mask
    draw.polygon(_flat(part.outline), fill=255)
    if part.hole is not None:
        draw.polygon(_flat(part.hole), fill=0)
    return mask


def _flat(points: Points) -> list[float]:
    flat: list[float] = points.ravel().tolist()
    return flat


# ── photos ───────────────────────────────────────────────────────────────────────────────────────


def _photo(parts: list[Part], rng: np.random.Generator) -> Image.Image:
    canvas = _background(rng)  # (SIDE, SIDE, 3) float, 0…1
    masks = [_mask(part, 3 * FINE).reduce(FINE) for part in parts]
    whole = Image.new("L", (SIDE, SIDE))
    for mask in masks:
        whole.paste(255, mask=mask)
    light = rng.normal(0, 1, 2)
    light /= np.linalg.norm(light)
    canvas *= 1 - 0.45 * _shadow(whole, light)[..., None]
    background = canvas.mean()
    for mask in masks:
        colour = _colour_apart_from(background, rng)
        surface = colour * (1 + 0.06 * _cloud(rng, 14) + _relief(mask, light))[..., None]
        alpha = np.asarray(mask, np.float32)[..., None] / 255
        canvas = canvas * (1 - alpha) + np.clip(surface, 0.02, 1) * alpha
    canvas *= 1 + 0.2 * _ramp(rng)[..., None]  # the light falls off to one side
    canvas += rng.uniform(0.01, 0.03) * rng.standard_normal(canvas.shape, np.float32)
    return Image.fromarray((np.clip(canvas, 0, 1) * 255).astype(np.uint8))


def _background(rng: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE, 3) out of focus: two muted colours that run into each other, and soft discs."""
    colours = rng.uniform(0.2, 0.8, (2, 1)) + rng.uniform(-0.2, 0.2, (2, 3))
    first, second = colours.astype(np.float32)
    mix = np.clip(0.5 + 0.7 * _ramp(rng) + 0.15 * _cloud(rng, 5), 0, 1)[..., None]
    discs = Image.new("L", (SIDE, SIDE), 128)
    draw = ImageDraw.Draw(discs)
    for x, y, radius, grey in rng.uniform((0, 0, 4, 60), (SIDE, SIDE, 16, 200), (7, 4)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=int(grey))
    soft = discs.filter(ImageFilter.GaussianBlur(2))
    lights = (np.asarray(soft, np.float32)[..., None] / 128 - 1) * np.float32(
        rng.uniform(0.15, 0.45)
    )
    mixed: np.ndarray = first * mix + second * (1 - mix) + lights
    return mixed.clip(0, 1)


def _colour_apart_from(grey: float, rng: np.random.Generator) -> np.ndarray:
    """(3,) any colour, but lighter or darker than the background, or nobody could see it."""
    while True:
        colour = rng.uniform(0.05, 1, 3).astype(np.float32)
        if abs(colour.mean() - grey) > 0.2:
            return colour


def _ramp(rng: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE) from -1 to 1 in some direction."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    ramp = (x * math.cos(angle) + y * math.sin(angle)) / math.sqrt(2)
    return ramp.astype(np.float32)


def _cloud(rng: np.random.Generator, cells: int) -> np.ndarray:
    """(SIDE, SIDE) smooth noise around 0 with spots about SIDE / cells wide."""
    coarse = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _relief(mask: Image.Image, light: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE) brighter on edges that face the light, darker on the others."""
    soft = np.asarray(mask.filter(ImageFilter.GaussianBlur(4)), np.float32) / 255
    down, right = np.gradient(soft)
    relief: np.ndarray = np.add(right * float(light[0]), down * float(light[1])) * 3.5
    return relief


def _shadow(whole: Image.Image, light: np.ndarray) -> np.ndarray:
    soft = whole.filter(ImageFilter.GaussianBlur(3))
    moved = np.roll(np.asarray(soft, np.float32), np.rint(4 * light[::-1]).astype(int), (0, 1))
    return moved / 255


# ── drawings ─────────────────────────────────────────────────────────────────────────────────────


def _drawing(parts: list[Part], rng: np.random.Generator) -> Image.Image:
    page = Image.new("L", (SIDE * FINE, SIDE * FINE), 255)
    width = int(rng.integers(6, 9))
    for part in parts:
        if not part.is_line:
            page.paste(255, mask=_mask(part, width))  # hides the parts drawn before
        outlines = [part.outline] if part.hole is None else [part.outline, part.hole]
        for outline in outlines:
            _stroke(page, outline, rng, width, closed=not part.is_line)
    ink = 1 - np.asarray(page.reduce(FINE), np.float32)[..., None] / 255
    paper = rng.uniform(0.88, 1.0) + rng.uniform(-0.03, 0.03, 3)
    pencil = rng.uniform(0.02, 0.22) + rng.uniform(-0.02, 0.06, 3)
    grain = 1 + 0.12 * rng.standard_normal((SIDE, SIDE, 1), np.float32)
    sheet = paper + 0.015 * _cloud(rng, 7)[..., None]
    drawn = sheet + (pencil - sheet) * np.clip(ink * grain, 0, 1)
    return Image.fromarray((np.clip(drawn, 0, 1) * 255).astype(np.uint8))


def _stroke(
    page: Image.Image, outline: Points, rng: np.random.Generator, width: int, *, closed: bool
) -> None:
    """Two passes by an unsteady hand; the fainter one first."""
    draw = ImageDraw.Draw(page)
    points = _even(np.vstack([outline, outline[:1]]) if closed else outline, 5.0)
    for grey, share in ((150, 0.6), (0, 1.0)):
        steps = rng.normal(0, 1, (len(points) // 6 + 3, 2))
        at = np.linspace(0, len(steps) - 1, len(points))
        tremor = np.stack([np.interp(at, np.arange(len(steps)), s) for s in steps.T], axis=1)
        line = points + tremor * FINE * 0.55
        draw.line(_flat(line), fill=grey, width=max(2, round(width * share)), joint="curve")


def _even(points: Points, step: float) -> Points:
    """The same line with a point every `step` pixels."""
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    at = np.linspace(0, along[-1], max(2, int(along[-1] / step)))
    return np.stack([np.interp(at, along, values) for values in points.T], axis=1)


# ── the things ───────────────────────────────────────────────────────────────────────────────────


def _points(*numbers: float) -> Points:
    return np.array(numbers, np.float64).reshape(-1, 2)


def _area(*numbers: float) -> Part:
    return Part(_points(*numbers))


def _box(left: float, top: float, right: float, bottom: float) -> Part:
    return _area(left, top, right, top, right, bottom, left, bottom)


def _line(*numbers: float) -> Part:
    return Part(_points(*numbers), is_line=True)


def _arc(
    x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360, tilt: float = 0
) -> Points:
    """Part of an ellipse, degrees clockwise from the right."""
    t = np.radians(np.linspace(start, stop, 41))
    a = math.radians(tilt)
    u, v = rx * np.cos(t), ry * np.sin(t)
    return np.stack(
        [x + u * math.cos(a) - v * math.sin(a), y + u * math.sin(a) + v * math.cos(a)], 1
    )


def _disc(x: float, y: float, rx: float, ry: float | None = None, tilt: float = 0) -> Part:
    return Part(_arc(x, y, rx, rx if ry is None else ry, tilt=tilt))


def _ring(x: float, y: float, outer: float, inner: float) -> Part:
    return Part(_arc(x, y, outer, outer), _arc(x, y, inner, inner))


def _curved(*numbers: float) -> Part:
    """A smooth area through these points (Catmull and Rom's spline)."""
    p = _points(*numbers)
    before, after, beyond = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = np.linspace(0, 1, 8, endpoint=False)[:, None, None]
    curve = 0.5 * (
        2 * p
        + (after - before) * t
        + (2 * before - 5 * p + 4 * after - beyond) * t**2
        + (3 * p - before - 3 * after + beyond) * t**3
    )  # (8, P, 2)
    return Part(curve.transpose(1, 0, 2).reshape(-1, 2))


def _mirrored(*numbers: float) -> Part:
    """An area from its right half, top to bottom."""
    right = _points(*numbers)
    return Part(np.vstack([right, right[::-1] * (-1, 1)]))


@cache
def things() -> dict[str, list[Part]]:
    """Class → its parts in drawing order, back to front. Names in sorted order."""
    both = (-1, 1)  # sides
    parts: dict[str, list[Part]] = {}
    # fmt: off

    hook = np.vstack([_arc(0, 0.05, 0.85, 0.85, 15, 165), _arc(0, 0.0, 0.66, 0.66, 158, 22)])
    flukes = [_area(s * 0.62, 0.4, s * 1.0, 0.35, s * 0.9, -0.05) for s in both]
    shank, stock = _box(-0.1, -0.6, 0.1, 0.85), _box(-0.42, -0.42, 0.42, -0.24)
    parts["anchor"] = [Part(hook), shank, stock, _ring(0, -0.78, 0.22, 0.11), *flukes]

    body = _curved(0, -0.4, 0.45, -0.55, 0.85, -0.2, 0.75, 0.45, 0.35, 0.9, 0, 0.8,
                   -0.35, 0.9, -0.75, 0.45, -0.85, -0.2, -0.45, -0.55)
    stem = _area(-0.06, -0.4, 0.0, -0.9, 0.12, -0.9, 0.06, -0.4)
    parts["apple"] = [body, stem, _disc(0.38, -0.78, 0.3, 0.13, -25)]

    dome = _mirrored(0.12, -0.75, 0.4, -0.55, 0.5, -0.1, 0.58, 0.3, 0.85, 0.55)
    rim, eye = _box(-0.9, 0.5, 0.9, 0.68), _ring(0, -0.84, 0.16, 0.07)
    parts["bell"] = [_disc(0, 0.72, 0.2), dome, rim, eye]

    sails = [_area(0.1, -0.9, 0.8, 0.25, 0.1, 0.25), _area(-0.1, -0.65, -0.6, 0.25, -0.1, 0.25)]
    hull = _area(-0.95, 0.38, 0.95, 0.38, 0.6, 0.85, -0.6, 0.85)
    parts["boat"] = [_box(-0.05, -0.95, 0.05, 0.4), *sails, hull]

    glass = _mirrored(0.14, -0.8, 0.14, -0.4, 0.36, -0.1, 0.38, 0.95)
    parts["bottle"] = [glass, _box(-0.18, -1.0, 0.18, -0.8), _box(-0.38, 0.15, 0.38, 0.65)]

    upper = [_disc(s * 0.5, -0.35, 0.5, 0.33, s * -35) for s in both]
    lower = [_disc(s * 0.4, 0.4, 0.38, 0.27, s * 35) for s in both]
    feelers = [_line(s * 0.03, -0.5, s * 0.15, -0.8, s * 0.35, -0.95) for s in both]
    parts["butterfly"] = [*upper, *lower, *feelers, _disc(0, 0, 0.1, 0.6)]

    trunk = _mirrored(0.0, -0.95, 0.15, -0.9, 0.22, -0.75, 0.22, 0.5)
    left = _area(-0.2, 0.15, -0.75, 0.15, -0.75, -0.45, -0.5, -0.45, -0.5, -0.08, -0.2, -0.08)
    right = _area(0.2, -0.1, 0.75, -0.1, 0.75, -0.65, 0.5, -0.65, 0.5, -0.33, 0.2, -0.33)
    parts["cactus"] = [left, right, trunk, _area(-0.45, 0.45, 0.45, 0.45, 0.33, 0.98, -0.33, 0.98)]

    cabin = _area(-0.55, -0.1, -0.35, -0.5, 0.3, -0.5, 0.55, -0.1)
    body = _area(-0.98, -0.1, 0.9, -0.1, 0.98, 0.1, 0.98, 0.4, -0.98, 0.4)
    back = _area(-0.42, -0.12, -0.3, -0.4, -0.05, -0.4, -0.05, -0.12)
    front = _area(0.05, -0.12, 0.05, -0.4, 0.26, -0.4, 0.42, -0.12)
    wheels = [_ring(s * 0.52, 0.4, 0.25, 0.1) for s in both]
    parts["car"] = [cabin, back, front, body, *wheels]

    spikes = _area(-0.8, 0.45, -0.95, -0.5, -0.45, 0.0, 0, -0.75, 0.45, 0.0, 0.95, -0.5, 0.8, 0.45)
    tips = [_disc(-0.95, -0.55, 0.12), _disc(0, -0.8, 0.12), _disc(0.95, -0.55, 0.12)]
    parts["crown"] = [spikes, *tips, _box(-0.8, 0.42, 0.8, 0.72)]

    handle = Part(_arc(0.5, -0.1, 0.42, 0.36), _arc(0.5, -0.1, 0.25, 0.2))
    body = _area(-0.75, -0.6, 0.55, -0.6, 0.4, 0.55, -0.6, 0.55)
    parts["cup"] = [handle, body, _disc(-0.1, 0.68, 0.9, 0.16), _disc(-0.1, -0.6, 0.65, 0.13)]

    tail = _area(0.45, 0, 0.98, -0.5, 0.85, 0, 0.98, 0.5)
    fin = _area(-0.25, -0.35, 0.1, -0.75, 0.3, -0.3)
    body = _curved(-0.95, 0.05, -0.55, -0.38, 0, -0.45, 0.55, -0.1, 0.55, 0.12, 0, 0.45,
                   -0.55, 0.38)
    gill = _line(-0.35, -0.36, -0.25, 0, -0.35, 0.36)
    parts["fish"] = [tail, fin, body, _disc(-0.6, -0.08, 0.09), gill]

    leaves = [_disc(0.27, 0.62, 0.3, 0.11, -30), _disc(-0.27, 0.72, 0.3, 0.11, 30)]
    petals = [
        _disc(0.36 * math.cos(t), -0.35 + 0.36 * math.sin(t), 0.26, 0.17, math.degrees(t))
        for t in (math.pi / 3 * i for i in range(6))
    ]
    parts["flower"] = [_box(-0.05, -0.2, 0.05, 1.0), *leaves, *petals, _disc(0, -0.35, 0.18)]

    handle = _area(-0.1, -0.45, 0.12, -0.45, 0.17, 0.98, -0.15, 0.98)
    head = _area(-0.7, -0.85, 0.3, -0.85, 0.75, -0.6, 0.3, -0.42, -0.7, -0.42)
    parts["hammer"] = [handle, head, _box(-0.85, -0.9, -0.6, -0.37)]

    chimney, walls = _box(0.35, -0.85, 0.58, -0.3), _box(-0.68, -0.15, 0.68, 0.85)
    door, window = _box(-0.45, 0.25, -0.1, 0.85), _box(0.15, 0.1, 0.5, 0.45)
    parts["house"] = [chimney, walls, _area(-0.9, -0.1, 0, -0.9, 0.9, -0.1), door, window]

    scoops = [_disc(-0.28, -0.25, 0.34), _disc(0.28, -0.25, 0.34), _disc(0, -0.62, 0.34)]
    lattice = [_line(-0.3, 0.0, 0.15, 0.6), _line(0.3, 0.0, -0.15, 0.6)]
    parts["ice_cream"] = [*scoops, _area(-0.52, -0.05, 0.52, -0.05, 0, 1.0), *lattice]

    shaft = _area(-0.2, -0.1, 0.95, -0.1, 0.95, 0.42, 0.75, 0.42, 0.75, 0.1, 0.6, 0.1,
                  0.6, 0.32, 0.42, 0.32, 0.42, 0.1, -0.2, 0.1)
    parts["key"] = [shaft, _ring(-0.55, 0, 0.42, 0.2)]

    sail = _area(0, -0.98, 0.58, -0.35, 0, 0.45, -0.58, -0.35)
    spars = [_line(0, -0.98, 0, 0.45), _line(-0.58, -0.35, 0.58, -0.35)]
    bow = _points(0, 0, -0.2, -0.1, -0.2, 0.1, 0, 0, 0.2, -0.1, 0.2, 0.1)
    bows = [Part(bow + np.array([0.1, 0.66])), Part(bow + np.array([-0.08, 0.92]))]
    parts["kite"] = [sail, *spars, _line(0, 0.45, 0.1, 0.66, -0.08, 0.92), *bows]

    shade = _area(-0.35, -0.9, 0.35, -0.9, 0.75, -0.1, -0.75, -0.1)
    cord = _line(0.4, -0.1, 0.4, 0.25)
    parts["lamp"] = [_box(-0.07, -0.2, 0.07, 0.8), shade, _disc(0, 0.82, 0.48, 0.14), cord]

    blade = _mirrored(0, -0.98, 0.3, -0.65, 0.55, -0.15, 0.5, 0.3, 0.25, 0.6, 0, 0.72)
    veins = [_line(0, y + 0.25, s * 0.36, y) for y in (-0.45, -0.12, 0.2) for s in both]
    parts["leaf"] = [blade, _line(0, -0.8, 0, 1.0), *veins]

    cap = Part(_arc(0, 0.05, 0.92, 0.9, 180, 360))
    stem = _mirrored(0.25, 0.05, 0.2, 0.5, 0.34, 0.92)
    spots = [_disc(-0.4, -0.3, 0.16), _disc(0.1, -0.55, 0.16), _disc(0.5, -0.2, 0.14)]
    parts["mushroom"] = [stem, cap, *spots]

    hull = _mirrored(0, -1.0, 0.2, -0.7, 0.3, -0.3, 0.3, 0.3, 0.2, 0.55)
    fins = [_area(s * 0.28, 0.05, s * 0.68, 0.65, s * 0.2, 0.55) for s in both]
    flame = _area(-0.18, 0.55, 0.18, 0.55, 0.1, 0.8, 0, 1.0, -0.1, 0.8)
    parts["rocket"] = [flame, *fins, hull, _ring(0, -0.25, 0.17, 0.09)]

    arms = [_line(s * 0.3, 0.0, s * 0.85, -0.3) for s in both]
    balls = [_disc(0, 0.6, 0.4), _disc(0, 0.0, 0.32), _disc(0, -0.48, 0.24)]
    hat = [_box(-0.36, -0.72, 0.36, -0.64), _box(-0.2, -1.0, 0.2, -0.68)]
    parts["snowman"] = [*arms, *balls, *hat]

    low, top = _area(0, -0.1, 0.75, 0.68, -0.75, 0.68), _area(0, -0.98, 0.45, -0.28, -0.45, -0.28)
    parts["tree"] = [_box(-0.12, 0.6, 0.12, 0.98), low, _area(0, -0.55, 0.6, 0.2, -0.6, 0.2), top]

    scallops = [_arc(x, 0.0, 0.31, 0.16, 0, -180) for x in (0.62, 0.0, -0.62)]
    roof = Part(np.vstack([_arc(0, 0.0, 0.93, 0.85, 180, 360), *scallops]))
    pole = _line(0, -0.1, 0, 0.75, 0.05, 0.9, 0.17, 0.95, 0.29, 0.88, 0.33, 0.72)
    parts["umbrella"] = [pole, roof, _line(0, -0.85, 0.0, -0.15), _line(0, -0.85, 0, -1.0)]
    # fmt: on
    return parts
