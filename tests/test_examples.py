"""The contest entry's own commands, from inside examples/contest, as written there."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest

CONTEST = Path(__file__).parents[1] / "examples" / "contest"
SCRIPTS = [*sorted((CONTEST / "models").glob("*.py")), *sorted((CONTEST / "src").glob("*.py"))]
OFFLINE = ["--model", "tiny", "--weights", "random", "--image-size", "64", "--figures", "2"]


@pytest.fixture(scope="module")
def contest(short_heads: None, small_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contest") / "here"
    shutil.copytree(CONTEST, folder)
    shutil.copytree(small_demo, folder / "data")
    return folder


def python(script: str, *words: str) -> int:
    """Runs a script as `python script words…` would; its exit code."""
    before = sys.argv
    sys.argv = [script, *words]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


@pytest.mark.parametrize("script", [*SCRIPTS, CONTEST / "submit.py"], ids=lambda p: p.name)
def test_scripts_are_short(script: Path) -> None:
    code = script.read_text().split('"""')[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_the_commands_work_as_written(
    contest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(contest)
    monkeypatch.setenv("VIZSLA_SUBMIT_URL", "http://127.0.0.1:9/retrieval/")
    for early in ("src/visualize_submission.py", "submit.py"):
        assert python(early) == 1
        assert "submissions holds no submissions" in capsys.readouterr().err
    models = sorted(p.relative_to(contest).as_posix() for p in contest.glob("models/*.py"))
    assert len(models) == 6
    for script in models:
        tuning = ["--finetune", "head", "--epochs", "1"] if script.endswith("_finetune.py") else []
        if script.endswith("no_finetune.py"):
            tuning = []
        assert python(script, *OFFLINE, *tuning) == 0, capsys.readouterr().err
    assert len(list(contest.glob("submissions/*.json"))) == len(models)
    records = [json.loads(path.read_text()) for path in contest.glob("results/*.json")]
    assert {record["pooling_type"] for record in records} == {"internal", "GeM", "GAP"}
    assert {record["model_name"] for record in records} == {"tiny"}  # in place of, not besides
    capsys.readouterr()
    assert python("src/metrics_analysis.py") == 0
    shown = capsys.readouterr().out
    assert "tiny GAP" in shown and "tiny GeM" in shown
    assert python("src/visualize_submission.py", "--random", "2") == 0
    assert len(list(contest.glob("visualizations/submissions/*.png"))) == 2
    assert python("submit.py", "--dry-run") == 0
    assert "would send 12 queries" in capsys.readouterr().out
    assert python("submit.py") == 1  # nobody listens there
    assert "127.0.0.1:9" in capsys.readouterr().err
