"""`run` and `embed` with what makes them fast: resolved once, written down, nothing done twice."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vizsla.cli.main import app
from vizsla.data.data_folders import open_data
from vizsla.embed.auto_compute import CPU_BATCH
from vizsla.embed.embeddings import Embeddings, read_manifest
from vizsla.embed.runtime import Runtime
from vizsla.run.config import RunConfig, recorded_config
from vizsla.run.members import Member
from vizsla.run.pipeline import run


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    original = Runtime.submit

    def counted(network: Runtime, pixels: Any) -> Any:
        seen.append(len(pixels))
        return original(network, pixels)

    monkeypatch.setattr(Runtime, "submit", counted)
    return seen


def test_a_second_run_with_a_cache_embeds_nothing(
    tinted: Path, tmp_path: Path, batches: list[int]
) -> None:
    config = RunConfig(
        data=str(tinted), model="tiny", weights="random", image_size=32, device="cpu", figures=0,
        top_k=5, home=str(tmp_path), cache=str(tmp_path / "cache"),
    )  # fmt: skip
    first = run(config)
    assert batches
    del batches[:]
    second = run(config)
    assert batches == []
    assert (second.ranking.positions == first.ranking.positions).all()
    options = first.run.config["options"]
    assert options["runtime"] == "torch" and options["batch_size"] == CPU_BATCH
    assert options["precision"] in ("fp32", "bf16") and options["cache"] is None
    assert json.loads(first.result_path.read_text())["batch_size"] == CPU_BATCH
    third = run(recorded_config(first.run.folder))
    assert batches and third.run.config["compute_id"] == first.run.config["compute_id"]


def test_members_of_a_joint_run_share_the_cache(
    tinted: Path, tmp_path: Path, batches: list[int]
) -> None:
    cache, images = str(tmp_path / "cache"), open_data(tinted).training
    assert images is not None
    for expected in (True, False):
        done = run(RunConfig(
            data=str(tinted), model="tiny", weights="random", image_size=32, device="cpu",
            figures=0, top_k=5, home=str(tmp_path), cache=cache,
        ))  # fmt: skip
        del batches[:]
        Member.of(done.run.folder, cache=cache).embed(images, "training", None)
        assert bool(batches) is expected


def test_embed_never_holds_all_vectors(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million vectors are gigabytes: the command writes them and does not read them."""

    def opened(*_: object) -> None:
        raise AssertionError("the command has read what it wrote")

    monkeypatch.setattr(Embeddings, "open", opened)
    out = tmp_path / "e"
    words = ["embed", str(tinted / "test/gallery"), "--model", "tiny", "--weights", "random",
             "--image-size", "32", "--precision", "fp32", "--batch-size", "5", "-o", str(out),
             "--json"]  # fmt: skip
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    facts = read_manifest(out)["compute"]
    assert printed["images"] == 24 and printed["compute"] == facts
    assert (facts["precision"], facts["batch_size"], facts["runtime"]) == ("fp32", 5, "torch")
    # the same folder again, now all by default: what is written stands
    again_words = [*words[:8], "-o", str(out)]
    assert CliRunner().invoke(app, again_words, catch_exceptions=False).exit_code == 0
    assert read_manifest(out)["compute"] == facts


@pytest.mark.parametrize("words", [["--batch-size", "no"], ["--runtime", "perhaps"]])
def test_wrong_flags_are_refused_in_one_line(
    tinted: Path, tmp_path: Path, words: list[str]
) -> None:
    arguments = [
        "embed",
        str(tinted / "test/query"),
        "--model",
        "tiny",
        "--weights",
        "random",
        *words,
    ]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "e")])
    assert result.exit_code != 0 and "choose" in str(result.exception)
    assert not (tmp_path / "e" / "manifest.json").exists()
