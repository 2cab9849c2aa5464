"""Curves and bars: drawn from plain numbers, without warnings, whatever the numbers."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vizsla.errors import DataError
from vizsla.output.charts import (
    class_bars,
    cutoff_curve,
    drawable,
    histogram,
    line_chart,
    score_histogram,
    training_curve,
)

NAN = float("nan")
ODD = "猫 $x_1$ \\alpha _^{"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def coloured(path: Path) -> int:
    """How many pixels are neither grey nor white."""
    content = pixels(path)
    return int((content.max(axis=2) - content.min(axis=2) > 40).sum())


@pytest.mark.parametrize(
    "write",
    [
        lambda p: cutoff_curve(p, [1, 5, 10], {"a": [0.5, 0.7, 0.8], ODD: [0.4, None, NAN]}),
        lambda p: cutoff_curve(p, [1], {"a": [0.5]}),
        lambda p: cutoff_curve(
            p, range(1, 1001), {f"m{i}": np.linspace(0, 1, 1000) for i in range(30)}
        ),
        lambda p: class_bars(p, ["a", ODD, "c" * 300], [0.5, 1.0, None], [3, 1, 0]),
        lambda p: class_bars(p, [f"c{i}" for i in range(500)], np.linspace(0, 1, 500), range(500)),
        lambda p: score_histogram(p, [0.9, 0.8, 0.85], [0.1, 0.2, NAN], cut_off=0.5),
        lambda p: score_histogram(p, [0.5, 0.5], []),
        lambda p: training_curve(p, [{"step": 1, "loss": 3, "rate": 1}, {"step": 2}], ODD),
        lambda p: training_curve(p, [], "t", short=[{"step": i, "loss": 1 / i} for i in (1, 2)]),
    ],
)
def test_each_is_a_white_png_with_something_on_it(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "figure.png"
    write(path)
    content = pixels(path)
    assert (content[0] == 255).all() and (content[:, -1] == 255).all()
    assert coloured(path) > 20
    again = tmp_path / "again.png"
    write(again)
    assert path.read_bytes() == again.read_bytes()


def test_a_longer_bar_has_more_ink(tmp_path: Path) -> None:
    class_bars(tmp_path / "low.png", ["a", "b"], [0.9, 0.1], [1, 1])
    class_bars(tmp_path / "high.png", ["a", "b"], [0.9, 0.8], [1, 1])
    assert coloured(tmp_path / "high.png") > 1.5 * coloured(tmp_path / "low.png")


def test_many_lines_have_their_legend_beside_them(tmp_path: Path) -> None:
    for n in (8, 9, 30):
        cutoff_curve(tmp_path / f"{n}.png", [1, 5], {f"m{i}": [0.1, 0.5] for i in range(n)})
    widths = [pixels(tmp_path / f"{n}.png").shape[1] for n in (8, 9, 30)]
    assert widths[0] < widths[1] < widths[2]


def test_many_classes_are_cut_to_best_and_worst(tmp_path: Path) -> None:
    for n in (60, 61, 500):
        class_bars(tmp_path / f"{n}.png", [f"c{i}" for i in range(n)], np.ones(n), np.ones(n, int))
    heights = [pixels(tmp_path / f"{n}.png").shape[0] for n in (60, 61, 500)]
    assert heights[0] == heights[1] == heights[2]


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (lambda p: cutoff_curve(p, [1, 5], {}), "nothing to draw"),
        (lambda p: cutoff_curve(p, [1, 5], {"a": [0.5]}), "1 values for 2 places"),
        (lambda p: cutoff_curve(p, [], {"a": []}), "nothing to draw"),
        (lambda p: class_bars(p, ["a"], [None], [1]), "no class has a value"),
        (lambda p: class_bars(p, ["a", "b"], [1.0], [1, 1]), "1 values for 2 places"),
        (lambda p: score_histogram(p, [NAN], []), "no scores were given"),
    ],
)
def test_nothing_to_draw_is_said(
    write: Callable[[Path], None], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=problem):
        write(tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


def test_a_training_without_a_loss_has_no_curve(tmp_path: Path) -> None:
    assert not training_curve(tmp_path / "curve.png", [{"step": 1, "loss": "nan"}], "t")
    assert list(tmp_path.iterdir()) == []


def test_a_page_chart_holds_its_numbers_as_a_table() -> None:
    drawn = line_chart("T", {"a": [(1, 0.5), (10, 0.25)], "b": [(1, 0.1)]}, x_name="k",
                       y_name="y", log_x=True)  # fmt: skip
    assert "0.2500" in drawn and "–" in drawn and drawn.count("<polyline") == 2
    assert "nan" not in line_chart("T", {"a": [(3, 0.0)]}, x_name="k", y_name="y")
    assert "nan" not in histogram("T", {"right": np.array([0.5])}, x_name="s")
    assert "<b>" not in line_chart("<b>", {"<b>": [(3, 0.0)]}, x_name="<b>", y_name="<b>")


def test_text_is_made_harmless() -> None:
    assert drawable("a $b$ 猫") == r"a \$b\$ □"
    assert drawable("x" * 300, 10) == "xxxxx…xxxxx"


def test_pyplot_is_never_loaded() -> None:
    import subprocess

    code = (
        "import sys, vizsla.output.charts, vizsla.output.query_sheets; print(sorted(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'matplotlib.pyplot'" not in found.stdout
    assert "'torch'" not in found.stdout
