"""Bars and lines: on by default in a notebook only, and never in the way of a function given."""

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import vizsla
from vizsla import progress
from vizsla.data.data_folders import open_data
from vizsla.progress import Stage


class Cell:
    """The output of a notebook's cell: what is displayed, and each update of it, as text."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def display(self, content: Any, *, display_id: bool) -> "Cell":
        assert display_id
        self.update(content)
        return self

    def update(self, content: Any) -> None:
        text = io.StringIO()
        Console(file=text, width=100).print(content)
        self.shown.append(text.getvalue())


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """As in a Jupyter kernel."""
    cell, shell = Cell(), SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=cell.display))
    return cell


@pytest.fixture
def embed(tinted: Path, tmp_path: Path) -> Any:
    embedder = vizsla.Embedder.build("tiny", weights="random", image_size=32)
    images = open_data(tinted).query
    return lambda **options: vizsla.embed(images, embedder, tmp_path / "q.emb", **options)


def test_a_script_shows_nothing_unless_asked(
    embed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    embed()
    assert capsys.readouterr() == ("", "")
    embed(progress=True, overwrite=True)
    out, err = capsys.readouterr()
    assert out == "" and "embedding: 16 of 16" in err


def test_a_notebook_shows_a_bar_unless_told_not_to(
    cell: Cell, embed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    embed()
    assert "embedding" in cell.shown[-1] and "16/16" in cell.shown[-1]
    cell.shown.clear()
    embed(progress=False, overwrite=True)
    assert not cell.shown and capsys.readouterr() == ("", "")


def test_a_function_gets_the_reports_and_nothing_is_shown(cell: Cell, embed: Any) -> None:
    reports: list[tuple[int, int]] = []
    embed(progress=lambda *report: reports.append(report))
    assert reports[-1] == (16, 16) and not cell.shown


def test_each_stage_of_a_run_has_a_bar(cell: Cell, tinted: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "model": "tiny", "weights": "random", "image_size": 32, "home": tmp_path, "top_k": 3,
        "figures": 0,
    }  # fmt: skip
    vizsla.run(tinted, **options)
    assert re.search(r"embedding query .* 16/16.*\nembedding gallery .* 24/24", cell.shown[-1])
    cell.shown.clear()
    vizsla.run(tinted, **options, progress=False)
    assert not cell.shown


def test_what_cannot_be_counted_is_named_and_moves(
    cell: Cell, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.ProgressShown() as shown, progress.waiting(shown, "loading"):
        assert shown.bar is not None and shown.bar.tasks[0].total is None
    assert Stage("loading", 1, 0, 0.0, 1).rate(9.0) is None
    assert shown.bar.tasks[0].finished and capsys.readouterr().err == ""


def test_without_a_terminal_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        with progress.ProgressShown(quiet) as shown:
            for _ in range(2):
                with progress.waiting(shown, "loading"):
                    pass
    assert capsys.readouterr().err == "loading …\n"


def test_fitting_heads_is_a_stage(tinted: Path, tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    vizsla.train(
        tinted, tmp_path / "t", model="tiny", weights="random", image_size=32, finetune="head",
        head_steps=5, progress=lambda *report: reports.append(report),
    )  # fmt: skip
    heads = [(done, total) for stage, done, total in reports if stage == "fitting heads"]
    assert heads[:3] == [(0, 5), (1, 5), (2, 5)] and heads[-1] == (5, 5)


def test_without_ipython_there_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not progress.in_notebook()
    nothing = SimpleNamespace(get_ipython=lambda: None)  # IPython imported by a plain script
    monkeypatch.setitem(sys.modules, "IPython", nothing)
    assert not progress.in_notebook()


def test_the_estimate_of_the_time_left_only_falls() -> None:
    stage = Stage("embedding", 100, 0, 0.0)
    shown = []
    for now, stage.done in ((1.0, 10), (2.0, 12), (10.0, 14), (11.0, 90)):
        shown.append(stage.seconds_left(now))
    assert shown == ["9 s left", "9 s left", "9 s left", "1 s left"]
    stage.done = 100
    assert stage.seconds_left(12.0) == ""
