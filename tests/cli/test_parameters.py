"""Dataclasses become options of a command; --config and --set reach every one of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from vizsla.cli.console import Commands
from vizsla.cli.main import app
from vizsla.cli.parameters import Given, Without
from vizsla.errors import UsageError, VizslaError
from vizsla.option_fields import Options, option
from vizsla.options import ComputeChoice, ModelChoice, TuneConfig


@dataclass(frozen=True, kw_only=True)
class Seeded(Options):
    """An option with a range, one with choices, and a list."""

    seed: int = option(0, "A seed.", "Speed", minimum=0, maximum=9)
    store: str = option("fp32", "{choices}.", "Output", choices=("fp32", "fp16"))
    by: tuple[str, ...] = option((), "Columns.", "Output")


def called(words: list[str]) -> dict[str, Any]:
    """What a command with these dataclass arguments is called with."""
    result: dict[str, Any] = {}
    small = Commands()

    @small.command()
    def embed(
        images: Annotated[str, typer.Argument()],
        *,
        seeded: Seeded,
        choice: ModelChoice,
        computing: Annotated[ComputeChoice, Without("cache")],
        training: Annotated[dict[str, Any], Given(TuneConfig)],
    ) -> None:
        result.update(
            seeded=seeded,
            images=images,
            seed=seeded.seed,
            choice=choice,
            computing=computing,
            training=training,
        )

    CliRunner().invoke(small, words, catch_exceptions=False)
    return result


def test_the_function_gets_objects() -> None:
    got = called(["pictures", "--model", "resnet18", "--image-size", "64", "--seed", "3"])
    assert got["images"] == "pictures" and got["seeded"].seed == 3
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
    assert called(["x", "--set", "runtime=torch"])["computing"].runtime == "torch"
    assert called(["x", "--set", "image-size=48"])["choice"].image_size == 48


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "imagesize=3"], "no option 'imagesize'. Similar: image_size"),
        (["--set", "warmup"], "expected name=value"),
        (["--config", "missing.toml"], "cannot be read"),
        (["--config", "broken.toml"], "is not a TOML file"),
        (["--config", "list.toml"], "takes one value, not the list"),
        (["--config", "table.toml"], r"no table is called \[trainig\]; there are data, model"),
        (["--set", "runtime=ONNX"], "--runtime ONNX: choose one of"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.toml").write_text("model = resnet")
    Path("list.toml").write_text('pooling = ["gem", "gap"]')
    Path("table.toml").write_text("[trainig]\nbatch_size = 16")
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


@pytest.mark.parametrize("way", ["flag", "set", "config"])
def test_a_value_that_is_none_of_the_choices_is_refused_on_every_way(
    tmp_path: Path, way: str
) -> None:
    (tmp_path / "options.toml").write_text('store = "fp8"\naugment = "wild"\n')
    words = {
        "flag": ["--store", "fp8"],
        "set": ["--set", "store=fp8"],
        "config": ["--config", str(tmp_path / "options.toml")],
    }
    with pytest.raises(UsageError, match="--store fp8: choose one of fp32, fp16"):
        called(["x", *words[way]])
    with pytest.raises(UsageError, match="--augment wild: choose one of none, light"):
        called(["x", "--set", "augment=wild"])  # also where only given options are asked for


def test_a_number_out_of_range_is_refused() -> None:
    assert called(["x", "--seed", "10"]) == {}
    assert called(["x", "--set", "seed=-1"]) == {}
    with pytest.raises(UsageError, match="seed=10: choose 9 or less"):
        Seeded(seed=10)


def test_an_option_that_may_be_repeated_comes_as_a_tuple() -> None:
    assert called(["x"])["seeded"] == Seeded()
    assert called(["x", "--by", "a", "--by", "b"])["seeded"].by == ("a", "b")


def test_the_shell_completes_choices() -> None:
    words = {"_VIZSLA_COMPLETE": "complete_bash", "COMP_WORDS": "vizsla run --refine-uses ",
             "COMP_CWORD": "3"}  # fmt: skip
    shown = CliRunner().invoke(app, [], env=words, prog_name="vizsla")
    assert shown.output.split() == ["queries", "gallery", "nothing"]
