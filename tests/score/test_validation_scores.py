"""What `compare` shows of runs without labels: the scores of their validation."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vizsla.cli.main import app
from vizsla.data.splits import Draw, draws_record
from vizsla.output.pages import comparison_page
from vizsla.score.result_file import read_result
from vizsla.score.run_table import Row, best_so_far, row_of_result, run_table
from vizsla.score.validation_scores import HEADING, ValidationScores

SIZES = {"draws": 3, "queries": 20, "gallery": 65}


def validation(value: float, id: str = "a", chosen: str = "training") -> ValidationScores:
    means = {"top1": 1 - value, "map": value, "points": 900.0}
    return ValidationScores.on({**SIZES, "id": id}, means, chosen)


def row(run: str, found: ValidationScores | None, **means: float) -> Row:
    return Row(run, "net", "head", means, 30.0, validation=found)


def test_runs_without_labels_are_ordered_by_their_validation() -> None:
    found = run_table([row("r1", validation(0.5)), row("r2", validation(0.7)), row("r3", None)])
    lines = found.text().splitlines()
    assert lines[0] == HEADING and lines[1].split() == [
        "run", "model", "top-1", "mAP", "points", "time",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[2:5]] == ["r2", "r1", "r3"]
    assert lines[4].split()[3:6] == ["–", "–", "–"]
    assert lines[5:] == [
        "- validated on 3 draws of 20 queries and 65 gallery images (training)",
        "- best first by mAP",
    ]
    by_top1 = run_table(found.rows, "top-1").text().splitlines()
    assert [line.split()[0] for line in by_top1[2:4]] == ["r1", "r2"]
    page = comparison_page(found)
    assert "the best is" not in page and "Runs, the best first" not in page
    assert page.index("r2") < page.index("r1") and HEADING.strip(":") in page
    assert repr(found).startswith("Comparison: 3 runs, best on validation r2")
    assert [one["validation"] and one["validation"]["map"] for one in found.records()] == [
        0.5, 0.7, None,
    ]  # fmt: skip


def test_validation_on_other_images_is_a_set_of_its_own() -> None:
    many = [row("r1", validation(0.9, "b", "refinement"))]
    many += [row(f"r{i}", validation(i / 10)) for i in (2, 3)]
    lines = run_table(many).text().splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["r3", "r2", "r1"]
    assert [line.split()[6] for line in lines[2:5]] == ["A", "A", "B"]
    note = " ".join(lines[5:])
    assert "only scores of one set compare" in note
    assert "B: 3 draws of 20 queries and 65 gallery images (refinement)" in " ".join(note.split())


def test_scores_of_the_test_part_stand_apart() -> None:
    ranked = run_table([row("r1", validation(0.5), map=0.2), row("r2", None, map=0.3)])
    test, below = ranked.text().split("\n\n")
    assert "0.500" not in test and "0.200" in test
    assert below.startswith(HEADING) and "0.500" in below and "r2" not in below
    assert HEADING.strip(":") in comparison_page(ranked)
    assert HEADING not in run_table([row("r1", None, map=0.2)]).text()


def test_the_command_reads_them_from_result_files(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    files = []
    for i, found in enumerate((validation(0.5), validation(0.75), None)):
        run = f"20260131-23595{i}-0a1b"
        content = {"model_name": "net", "run_id": run, "map": None, "scores": {},
                   "validation": found and found.record()}  # fmt: skip
        files.append(tmp_path / f"results/net_metrics_{run}.json")
        files[-1].write_text(json.dumps(content))
    assert row_of_result(read_result(files[0])).validation == validation(0.5)
    done = CliRunner().invoke(app, ["compare", str(tmp_path / "results")])
    assert done.exit_code == 0, done.output
    assert "no labels of the test part" in done.output and done.output.count("0.750") == 1
    assert done.output.index("235951") < done.output.index("235950")
    sentence = "20260131-235951-0a1b (validation mAP 0.7500, here 0.5000): net, on the same"
    assert best_so_far(files[0]).startswith(sentence)
    assert best_so_far(files[1]).startswith("this run (validation mAP 0.7500), of 2 on")
    assert best_so_far(files[2]) == ""


@pytest.mark.parametrize("record", [None, {}, {"top1": "x"}, [1], {**SIZES, "map": 0.5}])
def test_what_is_no_validation_is_left_out(record: object) -> None:
    assert ValidationScores.of(record) is None


def test_the_same_draws_have_the_same_id_in_any_order() -> None:
    first = draws_record(["a", "b", "c"], [Draw(np.array([0]), np.array([1, 2]))])
    other = draws_record(["c", "a", "b"], [Draw(np.array([1]), np.array([0, 2]))])
    swapped = draws_record(["a", "b", "c"], [Draw(np.array([1]), np.array([0, 2]))])
    assert first == other and first["id"] != swapped["id"]
    assert (first["draws"], first["queries"], first["gallery"]) == (1, 1, 2)
