"""`vizsla submit` against the contest's server: a run is handed in, its score comes back to it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vizsla.cli.main import app
from vizsla.errors import DataError
from vizsla.output.submission import read_submission, submission_sha256
from vizsla.run import pipeline
from vizsla.run.config import RunConfig
from vizsla.run.finish import RunResult
from vizsla.web.contest.rules import Rules
from vizsla.web.contest.server import read_truth


@pytest.fixture(scope="module")
def done(tinted: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(tinted, home / "data")
    config = RunConfig(data=str(home / "data"), model="tiny", weights="random", image_size=64,
                       top_k=5, figures=0, home=str(home))  # fmt: skip
    return pipeline.run(config)


@pytest.fixture
def contest(open_contest: Callable[..., Any], tinted: Path) -> Any:
    queries, gallery = read_truth(tinted / "labels.csv")
    return open_contest(Rules(top_k=5), queries=queries, gallery=gallery)


def submit(*words: object) -> str:
    result = CliRunner().invoke(app, ["submit", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_score_time_and_hash_are_written_to_the_run(done: RunResult, contest: Any) -> None:
    url, record = contest.url + "/retrieval/", done.run.folder / "submissions.jsonl"
    assert "would send 16 queries" in submit(done.run.folder, "--group", "us", "--dry-run")
    assert not record.exists() and contest.store.count() == 0
    output = submit(
        done.run.folder, "--group", "us", "--url", url, "--data", done.run.home / "data"
    )
    assert str(record) in output
    again = submit(done.submission_path, "--group", "us", "--url", url)
    assert "sent before          as submission 1: this cost nothing" in again
    first, second = map(json.loads, record.read_text().splitlines())
    assert done.scores is not None
    for line in (first, second):
        assert line["accuracy"] == pytest.approx(done.scores.mean("top_k_accuracy@5"))
        assert line["sha256"] == submission_sha256(read_submission(done.submission_path).to_lists())
        assert line["sent_at"].startswith("20") and line["url"] == url
    assert f"top_k_accuracy       {first['accuracy']:g} on all 16 queries (95 % interval" in output
    assert "rank                 1 of 1 group\n" in output and "accuracy  " in output
    assert "submissions left     no limit" in output and "sent before" not in output
    assert contest.store.count() == 1  # the same lists again cost nothing


def test_a_file_of_no_run_leaves_no_record(done: RunResult, contest: Any, tmp_path: Path) -> None:
    shutil.copy(done.submission_path, tmp_path / "sub.json")
    output = submit(tmp_path / "sub.json", "--group", "us", "--url", contest.url + "/retrieval/")
    assert "recorded" not in output and list(tmp_path.glob("**/*.jsonl")) == []


def test_names_are_checked_against_the_data_folder_before_sending(
    done: RunResult, contest: Any, tmp_path: Path
) -> None:
    shutil.copytree(done.run.home / "data", tmp_path / "data")
    next((tmp_path / "data/test/query").iterdir()).unlink()
    with pytest.raises(DataError, match="quer"):
        submit(done.run.folder, "--group", "us", "--url", contest.url + "/retrieval/",
               "--data", tmp_path / "data")  # fmt: skip
    assert contest.store.count() == 0
