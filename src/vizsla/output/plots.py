"""Plain numbers → pictures of them: curves, bars, histograms. Knows not where numbers come from.

matplotlib through its objects alone: no pyplot, no settings of the process are touched.
"""

import functools
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from vizsla import storage
from vizsla.errors import DataError

INK, GREY, LINE = "#1f2328", "#59636e", "#d1d9e0"
# Okabe and Ito's colours, which colour-blind people can tell apart, without their yellow.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_BARS = 60  # more classes than that: the best and the worst are shown
DPI = 140

Numbers = Sequence[float | None] | np.ndarray


def recall_curve(
    path: str | Path, ks: Sequence[int], series: Mapping[str, Numbers], *, name: str = "recall@k"
) -> None:
    """One line for each of `series` (name → value at each k, 0 to 1; None where unknown)."""
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
    axes.set_xlabel("k, images looked at")
    axes.set_ylabel(name)
    _save(figure, path)


def training_curve(
    path: str | Path, steps: Sequence[float], series: Mapping[str, Numbers], *, unit: str = "epoch"
) -> None:
    """A strip for each of `series`, since a loss and a score share no scale; None is left out."""
    if not series:
        raise DataError("nothing to draw: no series was given")
    figure, first = _figure(8, 1.2 + 2.2 * len(series), "training", strips=len(series))
    strips = [first, *figure.axes[1:]]
    for i, (axes, (name, values)) in enumerate(zip(strips, series.items(), strict=True)):
        _draw_lines(axes, steps, {name: values}, colour=i)
        axes.set_ylabel(drawable(name))
        axes.yaxis.set_major_locator(MaxNLocator(5))
    strips[-1].set_xlabel(unit)
    if unit == "epoch":
        strips[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, path)


def class_bars(
    path: str | Path,
    classes: Sequence[str],
    values: Numbers,
    counts: Sequence[int] | np.ndarray,
    *,
    name: str = "AP",
) -> None:
    """A bar for each class, best first, with its value (0 to 1) and how many queries it has.

    Of more than 60 classes the 30 best and the 30 worst are drawn, and that is said.
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
    """How the scores of right and of wrong matches lie: shares of each, on common bins."""
    parts = {"right": _finite(right), "wrong": _finite(wrong)}
    both = np.concatenate(list(parts.values()))
    if both.size == 0:
        raise DataError("nothing to draw: no scores were given")
    figure, axes = _figure(8, 5, "scores of right and wrong matches")
    low, high = float(both.min()), float(both.max())
    bins = min(40, max(8, round(2 * math.sqrt(both.size))))
    edges = np.linspace(low, high, bins + 1) if high > low else np.array([low - 0.05, low + 0.05])
    hatches = {"right": "", "wrong": "////"}
    for (name, scores), colour in zip(parts.items(), (COLOURS[2], COLOURS[1]), strict=True):
        if scores.size == 0:
            continue
        shares = np.histogram(scores, edges)[0] / scores.size
        label = f"{name} ({scores.size:,})"
        axes.stairs(shares, edges, fill=True, fc=colour, ec=colour, alpha=0.3, hatch=hatches[name])
        axes.stairs(shares, edges, color=colour, linewidth=1.8, label=label)
    if cut_off is not None:
        axes.axvline(cut_off, color=INK, linestyle="--", label=f"cut-off {cut_off:.3f}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("score")
    axes.set_ylabel("share of the matches")
    axes.legend(frameon=False)
    _save(figure, path)


# ── what they share ──────────────────────────────────────────────────────────────────────────────


def _figure(width: float, height: float, title: str, strips: int = 1) -> tuple[Figure, Axes]:
    """A white figure with its title, and the first of its axes."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)  # inches
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(strips, sharex=True, squeeze=False)[:, 0]
    for one in axes:
        one.set_facecolor("white")
        one.grid(True, color=LINE, linewidth=0.7)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(GREY)
        one.tick_params(colors=GREY, labelcolor=INK, labelsize=9)
    axes[0].set_title(drawable(title), loc="left", fontsize=12, fontweight="bold", color=INK)
    return figure, axes[0]


def _draw_lines(
    axes: Axes, xs: Sequence[float], series: Mapping[str, Numbers], colour: int = 0
) -> None:
    if not series or len(xs) == 0:
        raise DataError("nothing to draw: no series, or no points, were given")
    for i, (name, values) in enumerate(series.items(), colour):
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
    """None for one line; that of many lines stands beside the axes, and widens the figure."""
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
    """At most so many of them, evenly spread, the first and the last among them."""
    wanted = np.linspace(values[0], values[-1], min(most, len(values)))
    nearest = [int(np.abs(np.asarray(values) - one).argmin()) for one in wanted]
    return [values[i] for i in sorted(set(nearest))]


def _round_numbers(largest: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, … up to the largest: cut-offs that people ask for."""
    powers = range(len(str(largest)))
    return [
        step * 10**power for power in powers for step in (1, 2, 5) if step * 10**power <= largest
    ]


def drawable(text: str, most: int = 200) -> str:
    """For matplotlib: no formulas, □ for what its font lacks (it would warn), not too long."""
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
