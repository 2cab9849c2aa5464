import csv
import io
from typing import Any

import pytest

from vizsla.score.text_table import Table, to_csv, to_markdown

TABLE = Table(
    ["model", "tuned", "score", "seconds"],
    [["a|b", True, 0.5, 12.345], ["<i>", None, None, 1.0]],
)


def test_terminal_columns_line_up() -> None:
    assert TABLE.lines() == [
        "model  tuned   score  seconds",
        "a|b    yes    0.5000    12.35",
        "<i>    –           –     1.00",
    ]


def test_markdown_escapes_its_own_signs() -> None:
    lines = to_markdown(TABLE).splitlines()
    assert lines[1] == "| --- | --- | ---: | ---: |"
    assert lines[2] == "| a\\|b | yes | 0.5000 | 12.35 |"
    assert lines[3] == "| <i> | – | – | 1.00 |"


def test_csv_keeps_values_and_leaves_unknown_empty() -> None:
    rows = list(csv.reader(io.StringIO(to_csv(TABLE))))
    assert rows[1:] == [["a|b", "true", "0.5", "12.345"], ["<i>", "", "", "1.0"]]


def test_records_for_json() -> None:
    assert TABLE.records()[1] == {"model": "<i>", "tuned": None, "score": None, "seconds": 1.0}


WIDE = Table(
    ["model_name", "is_finetuned", "data", "run", "top_k_accuracy", "runtime_seconds"],
    [
        ["resnet50", False, "clothing (1b2c)", "20261127-010500-f2fd", 0.75, 10.5],
        ["dinov2 small", True, "clothing (1b2c)", "20261127-010502-67ae", 0.5, 3.25],
    ],
)


def test_a_table_that_fits_the_terminal_is_unchanged() -> None:
    assert WIDE.lines(200) == WIDE.lines()


@pytest.mark.parametrize("width", [50, 60, 80])
def test_a_wide_table_is_folded_and_its_scores_stay_whole(width: int) -> None:
    lines = WIDE.lines(width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "0.7500" in text and "0.5000" in text and "10.50" in text
    assert "data clothing (1b2c)" in " ".join(text.split())
    assert "The same in every row" not in "\n".join(WIDE.lines(width, keep=["data"]))


def test_brackets_are_no_markup() -> None:
    assert Table(["a[b]"], [["[red]x[/red]"]]).lines() == ["a[b]", "[red]x[/red]"]


def test_columns_are_chosen_and_constant_ones_split_off() -> None:
    assert WIDE.select(["run", "data"]).rows[0] == ["20261127-010500-f2fd", "clothing (1b2c)"]
    same, rest = WIDE.without_constant_columns()
    assert same == {"data": "clothing (1b2c)"} and "data" not in rest.columns
    one = Table(["a"], [[1]])
    assert one.without_constant_columns() == ({}, one)


def test_a_table_without_rows_still_shows_its_columns() -> None:
    empty = Table(["a"], [])
    assert empty.lines() == ["a"]
    assert to_markdown(empty) == "| a |\n| --- |\n"


def test_no_column_is_cut_off_beside_one_that_stays_whole() -> None:
    columns = ["run", "model", "data", "top-1", "mAP", "points", "time", "vs best"]
    row = ["20261129-184538-8835", "efficientnet-lite0 GAP", "clothing (52ad4b80)", 0.7351, 0.602,
           824.9, "  69 s", "level"]  # fmt: skip
    lines = Table(columns, [row, [*row[:-1], "best"]], 3).lines(80, keep=columns, whole=("run",))
    assert lines[0].endswith("vs best") and row[0] in lines[1] and "level" in lines[1]
    assert max(map(len, lines)) <= 80


def test_headings_of_numbers_fold_between_words() -> None:
    columns = ["model", "AP(interpolated)", "mP@10", "seconds"]
    rows: list[list[Any]] = [["efficientnet-lite0 with a head", 0.3, 0.5, 12.25],
                             ["mobilenetv2, frozen", 0.25, 0.375, 8.5]]  # fmt: skip
    lines = Table(columns, rows).lines(52)
    assert [line.split() for line in lines[:2]] == [
        ["AP"], ["model", "(interpolated)", "mP@10", "seconds"],
    ]  # fmt: skip
    assert lines[2].endswith("0.3000  0.5000    12.25") and max(map(len, lines)) <= 52
    narrow = Table(columns, rows).lines(38)  # too narrow for whole words: the numbers stay whole
    assert any(line.endswith("0.3000  0.5000  12.25") for line in narrow)
