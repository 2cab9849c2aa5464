"""`vizsla show` and the sheets of `vizsla run`: which queries, whose images, whose sheets."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vizsla.cli.main import app
from vizsla.errors import DataError, UsageError
from vizsla.output.sheet_drawing import BLANK
from vizsla.run import pipeline
from vizsla.run.config import RunConfig
from vizsla.run.finish import RunResult

BROKEN = "q-green-1.png"


def run(data: Path, home: Path, **options: object) -> RunResult:
    known = {"model": "tiny", "weights": "random", "image_size": 64, "top_k": 5, "figures": 0}
    return pipeline.run(RunConfig(data=str(data), home=str(home), **{**known, **options}))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def broken_data(tinted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tinted data set with one query that is no image."""
    data = tmp_path_factory.mktemp("broken") / "data"
    shutil.copytree(tinted, data)
    (data / "test/query" / BROKEN).write_bytes(b"no image at all")
    return data


@pytest.fixture(scope="module")
def done(broken_data: Path) -> RunResult:
    return run(broken_data, broken_data.parent, figures=4)


def show(*words: object) -> Result:
    return CliRunner().invoke(app, ["show", *map(str, words)], catch_exceptions=False)


def sheets(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.png")}


def blank_share(path: Path) -> float:
    """How much of a sheet is the grey of an image that is not there."""
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    grey = np.array([int(BLANK[i : i + 2], 16) for i in (1, 3, 5)])
    return float((pixels == grey).all(axis=2).mean())


def test_a_broken_query_has_its_sheet_in_a_run(done: RunResult) -> None:
    assert len(done.figure_paths) == 4
    assert [path.name for path in done.figure_paths].count(BROKEN) == 1
    assert blank_share(done.figure_paths[0].parent / BROKEN) > 0.1
    assert any(BROKEN in warning for warning in done.warnings)


def test_a_broken_query_is_among_the_wrong_and_the_worst(done: RunResult, tmp_path: Path) -> None:
    assert show(done.run.folder, "-o", tmp_path / "all").exit_code == 0
    assert len(sheets(tmp_path / "all")) == 16
    assert show(done.run.folder, "--only-wrong", "-k", 1, "-o", tmp_path / "wrong").exit_code == 0
    assert BROKEN in sheets(tmp_path / "wrong")
    assert 1 < len(sheets(tmp_path / "wrong")) < 16
    # nothing is worse than nothing: with an AP of 0 it is the first
    assert show(done.run.folder, "--worst", 1, "-k", 24, "-o", tmp_path / "worst").exit_code == 0
    assert sheets(tmp_path / "worst") == {BROKEN}


def test_broken_queries_do_not_crowd_out_all_others(tinted: Path, tmp_path: Path) -> None:
    shutil.copytree(tinted, tmp_path / "data")
    (tmp_path / "data/labels.csv").unlink()
    for path in sorted((tmp_path / "data/test/query").iterdir())[:10]:
        path.write_bytes(b"")
    drawn = run(tmp_path / "data", tmp_path, figures=5).figure_paths
    blank = [blank_share(path) > 0.1 for path in drawn]
    assert len(drawn) == 5 and blank[0]
    drawn = run(tmp_path / "data", tmp_path, figures=-1).figure_paths
    assert sum(blank_share(path) > 0.1 for path in drawn) == 10 and len(drawn) == 16


def test_of_many_queries_the_first_are_drawn(
    done: RunResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = done.run.folder
    logging.getLogger("vizsla").propagate = True  # which the command line turns off
    with caplog.at_level(logging.INFO, logger="vizsla.figures"):
        assert len(draw_figures(folder, tmp_path, 3)) == 3
        assert "the first 3 of 16 queries are drawn; --figures -1 draws all" in caplog.messages
        caplog.clear()
        assert len(draw_figures(folder, tmp_path, 16)) == len(draw_figures(folder, tmp_path, -1))
        show(folder, "--worst", 5, "--figures", 3, "-o", tmp_path)
        assert len(sheets(tmp_path)) == 5 and not caplog.messages


def draw_figures(folder: Path, out: Path, figures: int) -> set[str]:
    assert show(folder, "--figures", figures, "-o", out).exit_code == 0
    return sheets(out)


def test_only_the_sheets_of_this_call_stay(done: RunResult, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "holiday.png")
    (tmp_path / "odd.png").write_bytes(b"not even an image")
    show(done.run.folder, "--random", 9, "-o", tmp_path)
    assert len(sheets(tmp_path)) == 9 + 2
    show(done.run.folder, "--random", 2, "--seed", 5, "-o", tmp_path)
    assert len(sheets(tmp_path)) == 2 + 2
    assert {"holiday.png", "odd.png"} < sheets(tmp_path)  # what is not ours is left alone
    none = show(done.run.folder, "--only-wrong", "-k", 24, "--worst", 1, "-o", tmp_path)
    assert none.exit_code == 0 and sheets(tmp_path) == {"holiday.png", "odd.png", BROKEN}


def test_a_run_knows_where_its_images_lie(done: RunResult, tmp_path: Path) -> None:
    shown = show(done.run.folder, "--random", 3, "-o", tmp_path, "--json")
    assert shown.exit_code == 0
    assert {Path(path).name for path in json.loads(shown.stdout)} == sheets(tmp_path)
    with pytest.raises(UsageError, match="--data"):
        show(done.submission_path, "-o", tmp_path)


@pytest.mark.parametrize("source", ["run", "submission", "ranking"])
def test_the_wrong_data_folder_is_refused(
    done: RunResult, broken_data: Path, tmp_path: Path, source: str
) -> None:
    """One that lacks a query; and for a run, which knows them all, one that has more."""
    other = tmp_path / "data"
    shutil.copytree(broken_data, other)
    path = {
        "run": done.run.folder,
        "submission": done.submission_path,
        "ranking": done.run.folder / "ranking.parquet",
    }[source]
    (other / "test/query/q-blue-0.png").rename(other / "test/query/another.png")
    with pytest.raises(DataError, match=r"(?s)1 (of the 1[56] query|are missing).*give the data"):
        show(path, "--data", other, "-o", tmp_path / "out")
    (other / "test/query/another.png").rename(other / "test/query/q-blue-0.png")
    (other / "test/gallery/more.png").write_bytes(b"")
    if source == "run":
        with pytest.raises(DataError, match="0 are missing, and 1 others are there"):
            show(path, "--data", other, "-o", tmp_path / "out")
    else:
        assert show(path, "--data", other, "-o", tmp_path / "out", "--random", 1).exit_code == 0
    (other / "test/gallery/more.png").unlink()
    assert show(path, "--data", other, "-o", tmp_path / "out", "--random", 1).exit_code == 0
