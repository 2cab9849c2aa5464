"""A group's scores → a curve as SVG. Knows nothing else of the contest."""

import math
from collections.abc import Sequence
from html import escape

from vizsla.web.contest.rules import METRICS
from vizsla.web.contest.scoring import PartScore

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 70, 16, 14, 38
MOST_POINTS = 400  # the newest of a longer history


def shown_score(score: float, metric: str) -> str:
    """0.9605, or 791.82: as many digits as tell two systems apart."""
    return f"{score:.4f}" if METRICS[metric] == 1 else f"{score:.2f}"


def history_svg(scores: Sequence[PartScore], metric: str, title: str) -> str:
    """Each submission's score as a dot with its interval, and the best so far as a step line.

    Colours come from the page's style sheet by class: the picture carries no style of its own.
    """
    first = max(0, len(scores) - MOST_POINTS)
    shown = scores[first:]
    axis = _Axis.around(shown, METRICS[metric])
    parts = [
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg">',
        *map(axis.grid_line, axis.ticks()),
    ]
    for i in _numbered(first, len(shown)):
        parts.append(
            f'<text class="tick" x="{_x(i, len(shown))}" y="{HEIGHT - 12}" '
            f'text-anchor="middle">{first + i + 1}</text>'
        )
    parts.append(_best_line(scores, first, axis))
    radius = 4 if len(shown) <= 60 else 2
    for i, one in enumerate(shown):
        x = _x(i, len(shown))
        if one.interval is not None:
            ends = f'y1="{axis.y(one.interval[0])}" y2="{axis.y(one.interval[1])}"'
            parts.append(f'<line class="whisker" x1="{x}" x2="{x}" {ends}/>')
        parts.append(
            f'<circle class="dot" cx="{x}" cy="{axis.y(one.score)}" r="{radius}">'
            f"<title>{first + i + 1}: {shown_score(one.score, metric)}</title></circle>"
        )
    return "".join([*parts, "</svg>"])


class _Axis:
    """The scores' axis, from `low` to `high` in round steps."""

    def __init__(self, low: float, high: float, step: float) -> None:
        self.low, self.high, self.step = low, high, step
        self.decimals = len(f"{step:.8f}".rstrip("0").partition(".")[2])

    @staticmethod
    def around(scores: Sequence[PartScore], largest: float) -> "_Axis":
        """Holds all scores and their intervals, and nothing below 0 or above `largest`."""
        low = min((s.interval[0] if s.interval else s.score for s in scores), default=0.0)
        high = max((s.interval[1] if s.interval else s.score for s in scores), default=largest)
        span = max(high - low, largest / 50)
        step = _round_step(span / 4)
        bottom = max(0.0, math.floor((low - span * 0.02) / step) * step)
        top = min(largest, math.ceil((high + span * 0.02) / step) * step)
        return _Axis(bottom, max(top, bottom + step), step)

    def ticks(self) -> list[float]:
        count = math.floor((self.high - self.low) / self.step + 1e-6) + 1
        return [self.low + i * self.step for i in range(count)]

    def y(self, value: float) -> str:
        share = (self.high - value) / (self.high - self.low)
        return f"{TOP + (HEIGHT - TOP - BOTTOM) * share:.1f}"

    def grid_line(self, tick: float) -> str:
        y = self.y(tick)
        return (
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
            f'<text class="tick" x="{LEFT - 8}" y="{y}" dy="4" text-anchor="end">'
            f"{tick:.{self.decimals}f}</text>"
        )


def _best_line(scores: Sequence[PartScore], first: int, axis: _Axis) -> str:
    n = len(scores) - first
    if n < 2:
        return ""
    best = max(s.score for s in scores[: first + 1])
    steps = f"M{_x(0, n)} {axis.y(best)}"
    for i in range(1, n):
        best = max(best, scores[first + i].score)
        steps += f"H{_x(i, n)}V{axis.y(best)}"
    return f'<path class="best" d="{steps}"/>'


def _x(i: int, n: int) -> str:
    share = 0.5 if n == 1 else 0.02 + 0.96 * i / (n - 1)
    return f"{LEFT + (WIDTH - LEFT - RIGHT) * share:.1f}"


def _round_step(about: float) -> float:
    power = 10.0 ** math.floor(math.log10(about))
    return next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= about * 0.999)


def _numbered(first: int, n: int) -> list[int]:
    """Which of n submissions, numbered from first + 1, get their number below the axis."""
    step = next((s for s in (1, 2, 5, 10, 20, 50, 100) if n <= 8 * s), 200)
    return [i for i in range(n) if (first + i + 1) % step == 0]
