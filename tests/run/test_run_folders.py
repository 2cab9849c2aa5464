"""What runs take on the disk, and which of them are removed."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vizsla import storage
from vizsla.cli.main import app
from vizsla.errors import DataError, UsageError
from vizsla.run.run_folders import run_folders
from vizsla.score.validation_scores import ValidationScores
from vizsla.workspace import Run

SCORES = {"a": 0.5, "b": 0.9, "c": 0.7, "d": 0.6}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Runs a to d of one data set, e of another, and f without a result; b fuses a and d."""
    for i, name in enumerate("abcdef"):
        run = Run(tmp_path, f"2026013{i}-235959-000{name}")
        run.folder.mkdir(parents=True)
        config: dict[str, object] = {"options": {"model": "net"}}
        if name == "b":
            config["members"] = [
                {"run": f"2026013{j}-235959-000{n}"} for j, n in ((0, "a"), (3, "d"))
            ]
        run.write_config(config)
        (run.folder / "vectors").write_bytes(bytes(1_000_000 * (i + 1)))
        if name != "f":
            record = {"model_name": "net", "run_id": run.id, "map": SCORES.get(name, 0.1),
                      "data_id": "2" if name == "e" else "1"}  # fmt: skip
            storage.write_sealed_json(run.result_path("net"), record)
    return tmp_path


def left(home: Path) -> str:
    return "".join(sorted(folder.name[-1] for folder in (home / "runs").iterdir()))


def test_runs_are_listed_with_size_and_score(home: Path) -> None:
    found = run_folders(home)
    table = found.table().records()
    assert [row["run"][-1] for row in table] == ["b", "c", "d", "a", "e", "f"]
    assert [row["size"].strip() for row in table[:2]] == ["2 MB", "3 MB"]
    assert table[0]["mAP"] == 0.9 and table[-1]["model"].startswith("still running")
    assert 21e6 < found.size < 21.1e6


@pytest.mark.parametrize(("keep", "names"), [("best", "abdef"), ("2", "abcdef")])
def test_the_best_of_each_data_set_and_what_it_needs_is_kept(
    home: Path, keep: str, names: str
) -> None:
    removable = {folder.run.id[-1] for folder in run_folders(home).superfluous(keep)}
    assert removable == set("abcdef") - set(names)


def test_a_run_whose_model_is_used_is_kept(home: Path) -> None:
    run = Run(home, "20260131-235959-000b")
    run.write_config({"options": {"model": "/x/runs/20260132-235959-000c"}})
    assert {folder.run.id[-1] for folder in run_folders(home).superfluous("best")} == {"a", "d"}


def test_wrong_use(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="keep none: write best, or a number"):
        run_folders(home).superfluous("none")
    with pytest.raises(DataError, match="holds no runs"):
        run_folders(tmp_path / "elsewhere")


def test_the_command_asks_before_it_removes(home: Path) -> None:
    words = ["runs", "clean", "--home", str(home)]
    asked = CliRunner().invoke(app, words, input="n\n")
    assert asked.exit_code == 1 and "Remove these 1 runs (3 MB)?" in asked.output
    assert left(home) == "abcdef"
    assert CliRunner().invoke(app, words, input="y\n").exit_code == 0
    assert left(home) == "abdef"
    shutil.rmtree(home / "runs/20260131-235959-000b")
    removed = json.loads(CliRunner().invoke(app, [*words, "-y", "--json"]).stdout)["removed"]
    assert [name[-1] for name in removed] == ["a"] and left(home) == "def"


def test_without_labels_the_best_on_validation_and_runs_without_any_score_are_kept(
    tmp_path: Path,
) -> None:
    sizes = {"draws": 3, "queries": 5, "gallery": 9}
    found = {"a": (0.5, "x"), "b": (0.9, "x"), "c": (0.2, "y"), "d": None, "e": (0.7, "x")}
    for i, (name, values) in enumerate(found.items()):
        run = Run(tmp_path, f"2026013{i}-235959-000{name}")
        run.folder.mkdir(parents=True)
        run.write_config({"options": {"model": "net"}})
        validation = None
        if values is not None:
            means = {"top1": 0.5, "map": values[0], "points": 500.0}
            on = {**sizes, "id": values[1]}
            validation = ValidationScores.on(on, means, "training").record()
        record = {"model_name": "net", "run_id": run.id, "map": None, "data_id": "1",
                  "validation": validation}  # fmt: skip
        storage.write_sealed_json(run.result_path("net"), record)
    folders = run_folders(tmp_path)
    assert {folder.run.id[-1] for folder in folders.superfluous("best")} == {"a", "e"}
    assert {folder.run.id[-1] for folder in folders.superfluous("2")} == {"a"}
    listed = CliRunner().invoke(app, ["runs", "--home", str(tmp_path)]).stdout
    assert listed.startswith("Validation, on held-out training images")
    assert listed.index("000b") < listed.index("000e") < listed.index("000a")
    assert "0.900" in listed
