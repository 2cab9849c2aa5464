"""Plain numbers → charts: SVG inside pages, PNG files by matplotlib. Knows no source of numbers.

The colours and line styles of SVG are the page's (classes `s0`, `s1`, … in its style sheet), so
that it follows light and dark; each page chart has its numbers as a table below it. matplotlib is
used only through its objects: no pyplot, and no setting of the process is touched.
"""

import functools
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine

from vizsla import storage
from vizsla.errors import DataError
from vizsla.output.pages import render

Points = Sequence[tuple[float, float]]
Numbers = Sequence[float | None] | np.ndarray

# ── SVG inside pages ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Frame:
    """Places of values inside the drawing, in px, and the ticks of both axes."""

    x_name: str
    y_name: str
    xs: tuple[float, float]
    ys: tuple[float, float]
    log_x: bool = False
    whole_x: bool = False
    width: int = 480
    height: int = 300
    left: int = 56
    top: int = 12

    @property
    def right(self) -> int:
        return self.width - 14

    @property
    def bottom(self) -> int:
        return self.height - 42

    def x(self, value: float) -> float:
        low, high = self.xs
        if self.log_x:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.ys
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def path(self, points: Points) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)

    @property
    def x_ticks(self) -> list[tuple[str, float]]:
        low, high = self.xs
        if not self.log_x:
            steps = _round_steps(low, high, 6)
            if self.whole_x:
                steps = [value for value in steps if value.is_integer()]
            return [(f"{value:g}", self.x(value)) for value in steps]
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        return [(f"{value:g}", self.x(value)) for value in values if low <= value <= high]

    @property
    def y_ticks(self) -> list[tuple[str, float]]:
        return [(f"{value:g}", self.y(value)) for value in _round_steps(*self.ys, 5)]


def line_chart(
    title: str,
    series: Mapping[str, Points],
    *,
    x_name: str,
    y_name: str,
    y_range: tuple[float, float] | None = None,
    log_x: bool = False,
) -> Markup:
    """A figure with a line for each of `series` (name → points). y_range: None fits the points."""
    points = [point for line in series.values() for point in line]
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    xs = (low, high) if high > low else (low - 0.5, low + 0.5)
    frame = _Frame(
        x_name, y_name, xs, y_range or _padded([y for _, y in points]), log_x and xs[0] > 0,
        whole_x=all(float(x).is_integer() for x, _ in points),
    )  # fmt: skip
    shapes = [
        {"filled": False, "path": frame.path(line),
         "dots": [(frame.x(x), frame.y(y)) for x, y in line] if len(line) <= 20 else []}
        for line in series.values()
    ]  # fmt: skip
    known = [dict(line) for line in series.values()]
    rows = [
        [f"{x:g}", *("–" if x not in line else f"{line[x]:.4f}" for line in known)]
        for x in sorted({x for x, _ in points})
    ]
    return render(
        "chart.html", title=title, frame=frame, shapes=shapes, legend=list(series),
        columns=[x_name, *series], rows=rows,
    )  # fmt: skip


def histogram(title: str, series: Mapping[str, np.ndarray], *, x_name: str) -> Markup:
    """A figure with the distribution of each of `series`: shares of its values, on common bins."""
    edges, shares = _binned(series)
    top = max(float(part.max()) for part in shares.values())
    frame = _Frame(x_name, "share", (edges[0], edges[-1]), (0.0, top * 1.05 or 1.0))
    shapes = []
    for part in shares.values():
        steps = [(edges[j + side], float(n)) for j, n in enumerate(part) for side in (0, 1)]
        outline = [(edges[0], 0.0), *steps, (edges[-1], 0.0)]
        shapes.append({"filled": True, "path": frame.path(outline), "dots": []})
    rows = [
        [f"{edges[j]:.3f} to {edges[j + 1]:.3f}", *(f"{part[j]:.4f}" for part in shares.values())]
        for j in range(len(edges) - 1)
    ]
    return render(
        "chart.html", title=title, frame=frame, shapes=shapes,
        legend=[f"{name} ({len(values):,})" for name, values in series.items()],
        columns=[x_name, *series], rows=rows,
    )  # fmt: skip


def _binned(series: Mapping[str, np.ndarray]) -> tuple[list[float], dict[str, np.ndarray]]:
    """(edges of common bins, name → share of its values in each bin)."""
    values = np.concatenate(list(series.values()))
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9:
        low, high = low - 0.05, high + 0.05
    bins = min(40, max(8, round(2 * math.sqrt(len(values)))))
    edges = np.linspace(low, high, bins + 1)
    shares = {
        name: np.histogram(part, edges)[0] / max(1, len(part)) for name, part in series.items()
    }
    return edges.tolist(), shares


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with some room around it, from 0 if that is near."""
    low, high = min(values), max(values)
    if 0 <= low < 0.5 * high:
        low = 0.0
    room = 0.05 * (high - low) or 0.5
    return (low - room if low else low), high + room


def _round_steps(low: float, high: float, n: int) -> list[float]:
    """About n round numbers from `low` to `high`."""
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(digit * power for digit in (1, 2, 5, 10) if digit * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


# ── PNG files ────────────────────────────────────────────────────────────────────────────────────

INK, GREY, LINE = "#1f2328", "#59636e", "#d1d9e0"
# Okabe and Ito's colours, which colour-blind people can tell apart, without their yellow.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_BARS = 60  # of more classes the best and the worst are shown
DPI = 140


def cutoff_curve(
    path: str | Path, ks: Sequence[int], series: Mapping[str, Numbers], *, name: str = "recall@k"
) -> None:
    """One line for each of `series` (name → value at each k, 0 to 1; None if unknown)."""
    figure, axes = _figure(8, 5, f"{name} by cut-off")
    _draw_lines(axes, ks, series)
    _draw_legend(figure, axes, len(series))
    wide = max(ks) > 20 * min(ks) > 0
    if wide:
        axes.set_xscale("log")
    shown = _round_numbers(max(ks)) if wide else _few_of(sorted(set(ks)), 10)
    axes.set_xticks(shown, labels=[str(k) for k in shown])
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("k, length of the result list")
    axes.set_ylabel(name)
    _save(figure, path)


def training_curve(
    path: str | Path,
    log: Sequence[Mapping[str, Any]],
    title: str,
    *,
    short: Sequence[Mapping[str, Any]] = (),
) -> bool:
    """The loss and the learning rate by step, from a training's log; False if there is no loss.

    log, short: records with `step` and `loss`, of a training and of a short one before it.
    """
    points, before = _with_loss(log), _with_loss(short)
    if not (points or before):
        return False
    figure, axes = _figure(7, 4, title)
    rates = axes.twinx()
    rates.spines[["top"]].set_visible(False)
    rates.plot(*_by_step(points, "rate"), color=GREY, linewidth=1)
    rates.set_ylabel("share of the learning rate", color=GREY)
    rates.tick_params(colors=GREY, labelsize=9)
    if before:
        axes.plot(*_by_step(before, "loss"), color=COLOURS[1], label="short training")
    axes.plot(*_by_step(points, "loss"), color=COLOURS[0], label="training")
    axes.set_xlabel("step")
    axes.set_ylabel("loss", color=COLOURS[0])
    axes.set_zorder(rates.get_zorder() + 1)  # the loss in front of the rate
    axes.patch.set_visible(False)
    if before:
        axes.legend(loc="upper right", frameon=False)
    _save(figure, path)
    return True


def class_bars(
    path: str | Path,
    classes: Sequence[str],
    values: Numbers,
    counts: Sequence[int] | np.ndarray,
    *,
    name: str = "AP",
) -> None:
    """A bar for each class, best first, with its value (0 to 1) and its number of queries.

    Of more than 60 classes the 30 best and the 30 worst are drawn, and the title says so.
    """
    numbers = _numbers(values, len(classes))
    known = [i for i in np.argsort(-numbers, kind="stable") if not math.isnan(numbers[i])]
    if not known:
        raise DataError("nothing to draw: no class has a value")
    cut = len(known) > MOST_BARS
    shown = [*known[: MOST_BARS // 2], *known[-MOST_BARS // 2 :]] if cut else known
    title = f"{name} by class" + (
        f": the {MOST_BARS // 2} best and the {MOST_BARS // 2} worst of {len(known)}" if cut else ""
    )
    figure, axes = _figure(8, 1.4 + 0.26 * len(shown), title)
    rows = np.arange(len(shown)) + np.where(cut & (np.arange(len(shown)) >= MOST_BARS // 2), 0.8, 0)
    axes.barh(rows, numbers[shown], height=0.72, color=COLOURS[0])
    for row, i in zip(rows, shown, strict=True):
        text = f"{numbers[i]:.3f}  ({counts[i]})"
        axes.text(numbers[i] + 0.01, row, text, va="center", fontsize=8, color=GREY)
    axes.set_yticks(rows, labels=[drawable(classes[i], 40) for i in shown], fontsize=9)
    axes.set_ylim(rows[-1] + 0.8, -0.8)
    axes.set_xlim(0, 1.18)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.grid(False, axis="y")
    axes.set_xlabel(f"{name}  (number of queries)")
    _save(figure, path)


def score_histogram(
    path: str | Path, right: Numbers, wrong: Numbers, *, cut_off: float | None = None
) -> None:
    """The distributions of the scores of right and of wrong matches, on common bins."""
    parts = {"right": _finite(right), "wrong": _finite(wrong)}
    if not any(part.size for part in parts.values()):
        raise DataError("nothing to draw: no scores were given")
    figure, axes = _figure(8, 5, "scores of right and wrong matches")
    edges, shares = _binned(parts)
    hatches = {"right": "", "wrong": "////"}
    for (name, scores), colour in zip(parts.items(), (COLOURS[2], COLOURS[1]), strict=True):
        if scores.size == 0:
            continue
        label = f"{name} ({scores.size:,})"
        part = shares[name]
        axes.stairs(part, edges, fill=True, fc=colour, ec=colour, alpha=0.3, hatch=hatches[name])
        axes.stairs(part, edges, color=colour, linewidth=1.8, label=label)
    if cut_off is not None:
        axes.axvline(cut_off, color=INK, linestyle="--", label=f"cut-off {cut_off:.3f}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("score")
    axes.set_ylabel("share of the matches")
    axes.legend(frameon=False)
    _save(figure, path)


def _figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """A white figure with its title, and its axes."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)  # inches
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("white")
    axes.grid(True, color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelcolor=INK, labelsize=9)
    axes.set_title(drawable(title), loc="left", fontsize=12, fontweight="bold", color=INK)
    return figure, axes


def _with_loss(log: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [record for record in log if isinstance(record.get("loss"), int | float)]


def _by_step(log: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    return [record["step"] for record in log], [record.get(key, 0.0) for record in log]


def _draw_lines(axes: Axes, xs: Sequence[float], series: Mapping[str, Numbers]) -> None:
    if not series or len(xs) == 0:
        raise DataError("nothing to draw: no series, or no points, were given")
    for i, (name, values) in enumerate(series.items()):
        numbers = _numbers(values, len(xs))
        known = np.isfinite(numbers)
        axes.plot(
            np.asarray(xs, float)[known],
            numbers[known],
            color=COLOURS[i % len(COLOURS)],
            linestyle=STYLES[i // len(COLOURS) % len(STYLES)],
            marker=MARKERS[i % len(MARKERS)] if known.sum() <= 40 else "",
            markersize=5,
            linewidth=1.8,
            label=drawable(name, 60),
        )


def _draw_legend(figure: Figure, axes: Axes, n: int) -> None:
    """No legend for one line; for more than eight it is beside the axes, in a wider figure."""
    if 1 < n <= 8:
        axes.legend(frameon=False, fontsize=9)
    elif n > 8:
        columns = math.ceil(n / 20)
        width, height = figure.get_size_inches()
        figure.set_size_inches(width + 2.2 * columns, height)
        figure.legend(loc="outside right upper", ncols=columns, frameon=False, fontsize=9)


def _numbers(values: Numbers, n: int) -> np.ndarray:
    """(n,) float64, nan for None."""
    numbers = np.array([math.nan if v is None else float(v) for v in values])
    if len(numbers) != n:
        raise DataError(f"{len(numbers)} values for {n} places: each needs one")
    return numbers


def _finite(values: Numbers) -> np.ndarray:
    numbers = _numbers(values, len(values))
    return numbers[np.isfinite(numbers)]


def _few_of(values: Sequence[int], most: int) -> list[int]:
    """At most `most` of the values, evenly spread, with the first and the last."""
    wanted = np.linspace(values[0], values[-1], min(most, len(values)))
    nearest = [int(np.abs(np.asarray(values) - one).argmin()) for one in wanted]
    return [values[i] for i in sorted(set(nearest))]


def _round_numbers(largest: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, … up to the largest."""
    powers = range(len(str(largest)))
    return [
        step * 10**power for power in powers for step in (1, 2, 5) if step * 10**power <= largest
    ]


def drawable(text: str, most: int = 200) -> str:
    """The text for matplotlib: shortened, no formulas, □ for characters that its font lacks."""
    text = text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2) :]}"
    known = _characters()
    return "".join(c if ord(c) in known else "□" for c in text).replace("$", r"\$")


@functools.cache
def _characters() -> frozenset[int]:
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return frozenset(get_font(font).get_charmap())


def _save(figure: Figure, path: str | Path) -> None:
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    storage.write_bytes(path, data.getvalue())
