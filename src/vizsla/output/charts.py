"""Plain numbers → small drawings (SVG) that stand inside a page, light or dark, wide or narrow.

Colours and line styles are the page's (`s0`, `s1`, … in report.css). Every drawing names itself to
a screen reader, and its numbers stand below it as a table. curves.py draws the same as PNGs.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from vizsla.output.markup import table

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 42  # of the plot inside the drawing
BINS = 40

Points = Sequence[tuple[float, float]]


def line_chart(
    title: str,
    series: Mapping[str, Points],
    *,
    x_name: str,
    y_name: str,
    y_range: tuple[float, float] | None = None,
    log_x: bool = False,
) -> str:
    """A line for each of `series` (name → points). y_range: None fits the points."""
    points = [point for line in series.values() for point in line]
    low, high = y_range or _padded([y for _, y in points])
    place = _Place((min(x for x, _ in points), max(x for x, _ in points)), (low, high), log_x)
    parts = [_frame(place, x_name, y_name)]
    for i, line in enumerate(series.values()):
        path = " ".join(f"{place.x(x):.1f},{place.y(y):.1f}" for x, y in line)
        parts.append(f'<polyline class="line s{i}" points="{path}"/>')
        if len(line) <= 20:
            parts += [
                f'<circle class="dot s{i}" cx="{place.x(x):.1f}" cy="{place.y(y):.1f}" r="3"/>'
                for x, y in line
            ]
    numbers = {name: dict(line) for name, line in series.items()}
    xs = sorted({x for line in numbers.values() for x in line})
    rows = [[f"{x:g}", *(_cell(line.get(x)) for line in numbers.values())] for x in xs]
    return _figure(
        title, parts, list(series), table([x_name, *series], rows, numbers=range(len(series) + 1))
    )


def histogram(
    title: str, series: Mapping[str, np.ndarray], *, x_name: str, y_name: str = "share"
) -> str:
    """How the values of each of `series` lie: shares of each, on common bins."""
    everything = np.concatenate(list(series.values()))
    low, high = float(everything.min()), float(everything.max())
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    bins = min(BINS, max(8, round(2 * math.sqrt(len(everything)))))
    edges = np.linspace(low, high, bins + 1)
    shares = {
        name: np.histogram(values, edges)[0] / max(1, len(values))
        for name, values in series.items()
    }
    top = max(float(part.max()) for part in shares.values())
    place = _Place((low, high), (0.0, top * 1.05 or 1.0))
    parts = [_frame(place, x_name, y_name)]
    for i, part in enumerate(shares.values()):
        steps = [(edges[0], 0.0)]
        for j, share in enumerate(part):
            steps += [(edges[j], float(share)), (edges[j + 1], float(share))]
        path = " ".join(f"{place.x(x):.1f},{place.y(y):.1f}" for x, y in [*steps, (edges[-1], 0.0)])
        parts.append(f'<polygon class="area s{i}" points="{path}"/>')
    legend = [f"{name} ({len(values):,})" for name, values in series.items()]
    rows = [
        [f"{edges[j]:.3f} to {edges[j + 1]:.3f}", *(f"{part[j]:.4f}" for part in shares.values())]
        for j in range(bins)
    ]
    return _figure(
        title, parts, legend, table([x_name, *series], rows, numbers=range(len(series) + 1))
    )


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


class _Place:
    """Values → where they stand in the drawing."""

    def __init__(
        self, xs: tuple[float, float], ys: tuple[float, float], log_x: bool = False
    ) -> None:
        self.log_x = log_x and xs[0] > 0
        self.xs = xs if xs[1] > xs[0] else (xs[0] - 0.5, xs[0] + 0.5)
        self.ys = ys

    def x(self, value: float) -> float:
        low, high = self.xs
        if self.log_x:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.ys
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def x_ticks(self) -> list[float]:
        if not self.log_x:
            return _round_steps(*self.xs, 6)
        powers = range(math.floor(math.log10(self.xs[0])), math.ceil(math.log10(self.xs[1])) + 1)
        wanted = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        return [value for value in wanted if self.xs[0] <= value <= self.xs[1]]


def _frame(place: _Place, x_name: str, y_name: str) -> str:
    bottom, middle = HEIGHT - BOTTOM, (LEFT + WIDTH - RIGHT) / 2
    parts = []
    for value in _round_steps(*place.ys, 5):
        y = place.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 4:.1f}">{value:g}</text>')
    for value in place.x_ticks():
        x = place.x(value)
        parts.append(f'<path class="grid" d="M{x:.1f} {bottom}v5"/>')
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{bottom + 18}">{value:g}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>')
    name = f'<text class="tick mid" x="{middle}" y="{HEIGHT - 6}">{escape(x_name)}</text>'
    turned = f'<text class="tick mid" transform="translate(12 {(TOP + bottom) / 2}) rotate(-90)">'
    return "".join([*parts, name, f"{turned}{escape(y_name)}</text>"])


def _figure(title: str, parts: Sequence[str], legend: Sequence[str], numbers: str) -> str:
    keys = "".join(
        f'<li><svg class="key" viewBox="0 0 28 10" aria-hidden="true">'
        f'<path class="line s{i}" d="M1 5h26"/></svg>{escape(name)}</li>'
        for i, name in enumerate(legend)
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}; the numbers are in the table below">{"".join(parts)}</svg>'
        f'<ul class="legend">{keys}</ul>'
        f"<details><summary>Numbers</summary>{numbers}</details></figure>"
    )


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values, from 0 where that is near, with some room around it."""
    low, high = min(values), max(values)
    if 0 <= low < 0.5 * high:
        low = 0.0
    room = 0.05 * (high - low) or 0.5
    return (low - room if low else low), high + room


def _round_steps(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, about so many."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]
