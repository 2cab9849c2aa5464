"""Dataclasses become options of a command; --config and --set reach every one of them."""

from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from vizsla.cli.console import Commands
from vizsla.cli.main import app
from vizsla.cli.parameters import Given, Without
from vizsla.errors import VizslaError
from vizsla.options import ComputeChoice, ModelChoice, TuneConfig


def called(words: list[str]) -> dict[str, Any]:
    """What a command with these dataclass arguments is called with."""
    result: dict[str, Any] = {}
    small = Commands()

    @small.command()
    def embed(
        images: Annotated[str, typer.Argument()],
        seed: Annotated[int, typer.Option("--seed")] = 0,
        *,
        choice: ModelChoice,
        computing: Annotated[ComputeChoice, Without("cache")],
        training: Annotated[dict[str, Any], Given(TuneConfig)],
    ) -> None:
        result.update(
            images=images, seed=seed, choice=choice, computing=computing, training=training
        )

    CliRunner().invoke(small, words, catch_exceptions=False)
    return result


def test_the_function_gets_objects() -> None:
    got = called(["pictures", "--model", "resnet18", "--image-size", "64", "--seed", "3"])
    assert got["images"] == "pictures" and got["seed"] == 3
    assert got["choice"] == ModelChoice(model="resnet18", image_size=64)
    assert got["computing"] == ComputeChoice()
    assert got["training"] == {}  # nothing was given


def test_options_that_were_given_come_as_a_dict_even_if_they_equal_the_default() -> None:
    got = called(["pictures", "--finetune", "last", "--budget", "4m", "--set", "warmup=0.2"])
    assert got["training"] == {"finetune": "last", "budget": 240.0, "warmup": 0.2}


def test_a_name_that_two_dataclasses_share_has_a_prefix_in_the_second() -> None:
    got = called(["pictures", "--batch-size", "8", "--set", "training_batch_size=16"])
    assert got["computing"].batch_size == "8" and got["training"] == {"batch_size": 16}


def test_a_flag_wins_over_set_and_set_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text('model = "a"\npooling = "gem"\n[speed]\nimage-size = 32\nworkers = 2\n')
    words = ["x", "--config", str(file), "--set", "pooling=max", "--set", "workers=3"]
    got = called([*words, "--workers", "4"])
    assert got["choice"] == ModelChoice(model="a", pooling="max", image_size=32)
    assert got["computing"].workers == 4


def test_a_table_of_the_file_reaches_the_names_with_its_prefix(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text('[training]\nbatch-size = 16\nprecision = "fp32"\nbudget = "4m"\n')
    got = called(["x", "--config", str(file)])
    assert got["training"] == {"batch_size": 16, "precision": "fp32", "budget": 240.0}
    assert got["computing"] == ComputeChoice()


def test_a_flag_s_name_counts_as_well() -> None:
    assert called(["x", "--set", "compile=off"])["computing"].compiling == "off"
    assert called(["x", "--set", "image-size=48"])["choice"].image_size == 48


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "imagesize=3"], "no option 'imagesize'. Similar: image_size"),
        (["--set", "warmup"], "expected name=value"),
        (["--config", "missing.toml"], "cannot be read"),
        (["--config", "broken.toml"], "is not a TOML file"),
        (["--config", "list.toml"], "takes one value, not the list"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.toml").write_text("model = resnet")
    Path("list.toml").write_text('pooling = ["gem", "gap"]')
    with pytest.raises(VizslaError, match=message):
        called(["x", *words])


def test_a_list_in_the_file_repeats_the_option(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text('model = ["tiny", "resnet18"]\nweights = ["random", "random", "random"]\n')
    done = CliRunner().invoke(app, ["run", str(tmp_path), "--config", str(file)])
    assert "3 --weights for 2 --model" in str(done.exception)


def test_rare_options_are_no_part_of_the_help() -> None:
    shown = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output
    assert "--set" in shown and "--config" in shown
    for rare in ("--interpolation", "--fusion-whiten", "--layer-decay", "--max-pixels"):
        assert rare not in shown
    assert shown.index("--model") < shown.index("─ Data ─") < shown.index("--exclude")


def test_training_options_that_a_run_hides_are_shown_by_train() -> None:
    run, train = (
        CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        for command in ("run", "train")
    )
    for flag in ("--seed", "--precision", "--batch-size"):
        assert run.count(flag) == train.count(flag) == 1
    assert "Precision of training" in train and "Precision of training" not in run
    assert "--training" not in run
