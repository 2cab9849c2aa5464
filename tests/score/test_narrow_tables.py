"""Tables on a terminal: no line wider than it, and what is folded or left out is said."""

import re
from typing import Any

import pytest

from vizsla.score.narrow_tables import fitted_lines
from vizsla.score.tables import Table

COLUMNS = ["model_name", "is_finetuned", "data", "run", "top_k_accuracy", "runtime_seconds"]
ROWS: list[list[Any]] = [
    ["resnet50", False, "clothing (1b2c)", "20261127-010500-f2fd", 0.75, 10.5],
    ["dinov2 small", True, "clothing (1b2c)", "20261127-010502-67ae", 0.5, 3.25],
]


def test_what_fits_is_as_it_was() -> None:
    table = Table(COLUMNS, ROWS)
    assert fitted_lines(table, 200) == table.lines()
    assert fitted_lines(Table(["a"], []), 1) == ["a"]


@pytest.mark.parametrize("width", [40, 50, 60, 80])
def test_no_line_is_wider_and_scores_stay_whole(width: int) -> None:
    lines = fitted_lines(Table(COLUMNS, ROWS), width, drop=["runtime_seconds"])
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "0.7500" in text and "0.5000" in text and "f2fd" in text and "resnet50" in text
    said = "left out for want of width: runtime_seconds" in " ".join(text.split())
    assert said is (re.search(r"^resnet50 .*10\.50$", text, re.MULTILINE) is None)


def test_what_all_rows_share_stands_above_but_for_what_is_to_be_kept() -> None:
    lines = fitted_lines(Table(COLUMNS, ROWS), 80)
    assert lines[0] == "in every row: data clothing (1b2c)"
    assert "clothing" not in "".join(lines[1:])
    kept = fitted_lines(Table(COLUMNS, ROWS), 80, keep=["data"])
    assert not any("in every row" in line for line in kept)


def test_ids_whose_last_digits_are_the_same_stay_whole() -> None:
    rows = [[*ROWS[0]], [*ROWS[1][:3], "20261127-010502-f2fd", *ROWS[1][4:]]]
    text = "\n".join(fitted_lines(Table(COLUMNS, rows), 90))
    assert len(re.findall(r"\d{8}-\d{6}-f2fd", text)) == 2 and "last four digits" not in text
    text = "\n".join(fitted_lines(Table(COLUMNS, ROWS), 90))
    assert "runs are named by the last four digits" in text and "20261127" not in text


def test_headers_fold_behind_underscores_and_take_their_short_forms() -> None:
    table = Table(["model", "top_k_accuracy", "low (Bonferroni)"], [["a", 0.5, 0.25]] * 2)
    short = {"low (Bonferroni)": "low", "a": "the first"}
    lines = fitted_lines(table, 30, keep=table.columns, short=short)
    assert [line.split() for line in lines[:2]] == [["top_k_"], ["model", "accuracy", "low"]]
    assert lines[2].startswith("the first ")
    table = Table(["training.finetune", "training.loss"], [["head", "cross-entropy"]] * 2)
    lines = fitted_lines(table, 19, keep=table.columns)
    assert [line.split() for line in lines[:2]] == [
        ["training.", "training."],
        ["finetune", "loss"],
    ]
    assert "cross-e" in lines[2]


def test_a_name_without_spaces_is_cut_as_the_last_resort() -> None:
    table = Table(["name", "x"], [["a" * 50, 0.5], ["b" * 50, 0.25]])
    lines = fitted_lines(table, 30)
    assert max(map(len, lines)) == 30
    assert lines[1].startswith("aaaa") and "…" in lines[1] and lines[1].endswith("0.5000")
