"""`--validate-on auto` in runs: what is embedded for it, what is decided and written down."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vizsla.choose.seen_classes import SeenShare
from vizsla.embed.embeddings import Embeddings
from vizsla.run import seen_or_new
from vizsla.run.config import RunConfig, again
from vizsla.run.fused_runs import FusionConfig
from vizsla.run.pipeline import run
from vizsla.run.several_models import run_models
from vizsla.run.train import train

KINDS = [(0.9, "seen-classes"), (0.2, "new-classes")]
HEAD = {"finetune": "head", "head_steps": 2, "share": 0.6}


def config(data: Path, home: Path, **options: Any) -> RunConfig:
    known = {"model": "tiny", "weights": "random", "image_size": 32, "top_k": 5, "figures": 0}
    return RunConfig(data=str(data), home=str(home), **{**known, **options})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, low: float) -> list[tuple[int, list[str], int]]:
    """The calls of the estimate: training images, their classes, test images."""
    found: list[tuple[int, list[str], int]] = []

    def estimate(
        training: np.ndarray, labels: list[str], test: np.ndarray, *, seed: int
    ) -> SeenShare:
        found.append((len(training), sorted(set(labels)), len(test)))
        return SeenShare(1.0, low, 1.1)

    monkeypatch.setattr(seen_or_new, "seen_share", estimate)
    return found


def nothing_more(*_: object, **__: object) -> Embeddings:
    raise AssertionError("images were embedded for the estimate alone")


ALL = (24, ["any", "blue", "green", "red & <b>"], 40)  # of the tinted images


@pytest.mark.parametrize(("low", "kind"), KINDS)
def test_a_choice_without_training_is_decided_by_the_vectors_that_it_needs(
    kind: str, asked: list[Any], tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen_or_new, "embed", nothing_more)
    done = run(config(tinted, tmp_path, refine="auto"))
    assert asked == [ALL]
    assert {p.name for p in (done.run.folder / "embeddings").iterdir()} == {
        "query", "gallery", "validation",
    }  # fmt: skip
    assert again(done.run.folder).training.validate_on == kind
    assert f"validating on {kind}" in (done.run.folder / "log.txt").read_text()


@pytest.mark.parametrize("low", [0.9])
def test_nothing_is_asked_where_nothing_is_chosen(
    asked: list[Any], tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen_or_new, "embed", nothing_more)
    done = run(config(tinted, tmp_path, refine="aqe"))
    assert not asked
    assert {p.name for p in (done.run.folder / "embeddings").iterdir()} == {"query", "gallery"}


@pytest.mark.parametrize(("low", "kind"), KINDS)
def test_a_training_is_decided_by_a_sample(
    kind: str, asked: list[Any], tinted: Path, tmp_path: Path
) -> None:
    done = run(config(tinted, tmp_path, tuning=HEAD))
    assert asked == [ALL]
    written = again(done.run.folder)
    assert written.training.validate_on == kind
    assert written.training.learning_rate == {"seen-classes": 2e-4, "new-classes": 1e-4}[kind]
    assert f"held out ({kind})" in (done.run.folder / "log.txt").read_text()


@pytest.mark.parametrize("low", [0.9])
def test_a_folder_without_a_test_part_is_validated_on_new_classes(
    asked: list[Any], tinted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="vizsla")
    train(config(tinted / "training", tmp_path, tuning=HEAD), tmp_path / "out")
    assert not asked and "there is no test part to compare with" in caplog.text
    assert "held out (new-classes)" in caplog.text


@pytest.mark.parametrize(("low", "kind"), KINDS)
def test_fusion_weights_are_decided_by_the_first_models_vectors(
    kind: str, asked: list[Any], tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen_or_new, "embed", nothing_more)
    both = [config(tinted, tmp_path, seed=seed) for seed in (0, 1)]
    joint = run_models(both, FusionConfig(weights="auto"))
    assert asked == [ALL]
    assert f"validating on {kind}" in (joint.run.folder / "log.txt").read_text()
    chosen_on = json.loads(joint.result_path.read_text())["fusion"]["chosen_on"]
    assert chosen_on["draws"] >= 8
