"""Sweeps: every combination once, on past failures, nothing embedded twice."""

import dataclasses
import gc
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from vizsla.cli.main import app
from vizsla.data.data_folders import open_data
from vizsla.data.image_sources import image_set
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import embed
from vizsla.embed.runtime import Runtime
from vizsla.embed.shared_vectors import embed_together
from vizsla.errors import UsageError
from vizsla.model.embedder import Embedder
from vizsla.run import sweep
from vizsla.run.config import RunConfig
from vizsla.run.sweep import Combination, SweepConfig, combinations

pytestmark = pytest.mark.usefixtures("short_heads")


def config(data: Path, home: Path, **options: Any) -> SweepConfig:
    run = RunConfig(data=str(data), image_size=64, top_k=5, figures=0, home=str(home), workers=1,
                    precision="fp32",  # `auto` would look at a few images first
                    tuning={"budget": 4.0, "draws": 1, "batch_size": 8})  # fmt: skip
    known: dict[str, Any] = {"models": ["tiny"], "weights": ["random"], "poolings": ["gap", "gem"]}
    return SweepConfig(run, **{**known, **options})


@pytest.fixture(autouse=True)
def only_what_is_new_is_collected() -> Iterator[None]:
    """A sweep collects garbage after each run: half a second for all that other tests left."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images every batch that is embedded holds, in order."""
    sizes: list[int] = []
    original = Runtime.submit

    def counted(network: Runtime, pixels: Any) -> Any:
        sizes.append(len(pixels))
        return original(network, pixels)

    monkeypatch.setattr(Runtime, "submit", counted)
    return sizes


# ── the grid ─────────────────────────────────────────────────────────────────────────────────────


def test_the_grid_holds_every_combination_once(tmp_path: Path) -> None:
    sweep_config = config(tmp_path, tmp_path, models=["a", "b"], weights=["x", "y"],
                   finetunes=["none", "full"], losses=["triplet", "supcon"])  # fmt: skip
    grid = combinations(sweep_config)
    assert len(grid) == 2 * 2 * (1 + 2) == len(set(grid))
    assert grid[0] == Combination("a", "x", "gap", "none")
    assert Combination("b", "y", "gem", "full", "supcon") in grid
    assert not any(one.loss for one in grid if one.finetune == "none")


def test_what_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    for wrong in ({"weights": ["a", "b", "c"]}, {"poolings": ["best"]}, {"finetunes": ["most"]}):
        with pytest.raises(UsageError, match=r"choose|one for each"):
            combinations(config(tmp_path, tmp_path, **wrong))
    with pytest.raises(UsageError, match="finetune head"):
        sweep.sweep(config(tmp_path, tmp_path, trials=3))
    in_int8 = config(tmp_path, tmp_path)
    in_int8 = dataclasses.replace(in_int8, run=dataclasses.replace(in_int8.run, precision="int8"))
    with pytest.raises(UsageError, match="computes by torch, which has no int8"):
        sweep.sweep(in_int8)


# ── a sweep ──────────────────────────────────────────────────────────────────────────────────────


def test_a_sweep_shares_resumes_and_continues(
    tinted: Path, tmp_path: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep_config = config(
        tinted, tmp_path, models=["tiny", "no-such-model"], finetunes=["none", "head"]
    )
    first = sweep.sweep(sweep_config)
    assert [bool(o.result) for o in first.outcomes] == [True] * 4 + [False] * 4
    assert len(first.failures) == 4 and "no-such-model" in str(first.failures[0].error)
    # query and gallery once for both poolings; for each, once a sample that tells whether the test
    # classes are new, the held-out and the training images;
    # where "head" keeps a projection, its own vectors come on top of that
    records = [json.loads(o.result.read_text()) for o in first.outcomes[:4] if o.result]
    kept = [record.get("training", {}).get("kept", "frozen") for record in records]
    own = sum(1 for name in kept if name != "frozen")
    assert len(seen) == 2 + 2 * 3 + 2 * own
    assert first.ranked is not None
    rows = first.ranked.rows
    assert sorted(row.setup.split(",")[0] for row in rows) == ["GAP", "GAP", "GeM", "GeM"]
    values = [row.means["map"] for row in rows]
    assert values == sorted(values, reverse=True)
    assert any("failed" in line for line in first.remarks()[0])
    runs = sorted((tmp_path / "runs").iterdir())

    again = sweep.sweep(sweep_config)
    assert [o.reused for o in again.outcomes[:4]] == [True] * 4 and len(again.failures) == 4
    assert sorted((tmp_path / "runs").iterdir()) == runs
    assert again.ranked is not None
    assert again.ranked.table().rows == first.ranked.table().rows

    lost = first.outcomes[1].result
    assert lost
    lost.unlink()
    third = sweep.sweep(sweep_config)
    assert [o.reused for o in third.outcomes[:4]] == [True, False, True, True]


def test_other_data_or_options_are_another_result(tinted: Path, tmp_path: Path) -> None:
    shutil.copytree(tinted, tmp_path / "data")
    sweep_config = config(tmp_path / "data", tmp_path, poolings=["gap"])
    assert not sweep.sweep(sweep_config).outcomes[0].reused
    assert sweep.sweep(sweep_config).outcomes[0].reused
    larger = dataclasses.replace(sweep_config, run=dataclasses.replace(sweep_config.run, top_k=6))
    assert not sweep.sweep(larger).outcomes[0].reused
    labels = tmp_path / "data/labels.csv"
    labels.write_text(labels.read_text().replace("green", "verdant"))
    assert not sweep.sweep(sweep_config).outcomes[0].reused
    next((tmp_path / "data/test/gallery").iterdir()).unlink()
    assert not sweep.sweep(sweep_config).outcomes[0].reused


def test_a_pooling_that_a_model_lacks_is_left_out(tinted: Path, tmp_path: Path) -> None:
    result = sweep.sweep(config(tinted, tmp_path, poolings=["gap", "cls"]))
    assert [bool(o.result) for o in result.outcomes] == [True, False]
    assert not result.failures and "left out" in result.remarks()[1][0]


def test_shared_embeddings_are_those_of_each_alone(
    tinted: Path, tmp_path: Path, seen: list[int]
) -> None:
    shutil.copytree(tinted / "test/query", tmp_path / "query")
    (tmp_path / "query/broken.png").write_bytes(b"\x89PNG")
    images = image_set(tmp_path / "query")
    build = {"weights": "random", "image_size": 64}
    embedders = [Embedder.build("tiny", pooling=p, **build) for p in ("gap", "gem", "max")]
    compute = resolve_compute(device="cpu", batch_size=8, workers=1)
    embed_together(images, embedders, tmp_path / "cache", compute=compute)
    for embedder in embedders:
        alone = embed(images, embedder, tmp_path / embedder.pooling, compute=compute)
        del seen[:]
        shared = embed(
            images, embedder, tmp_path / f"{embedder.pooling}-shared",
            compute=compute, cache=tmp_path / "cache",
        )  # fmt: skip
        assert seen == []  # what the broken one was tried with is no batch
        assert np.array_equal(alone.vectors, shared.vectors) and alone.ids == shared.ids
        assert alone.broken == shared.broken and len(shared.broken) == 1
        assert (alone.model_id, alone.compute_id) == (shared.model_id, shared.compute_id)


def test_trials_choose_by_validation_and_never_see_the_test_part(
    tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    tried: list[dict[str, Any]] = []
    original = sweep.train
    training = open_data(tinted).training
    assert training is not None
    gone = tmp_path / "gone.txt"
    gone.write_text(f"training/{training.ids[0]}\n")

    def watched(run_config: RunConfig, out: Path, **more: Any) -> Any:
        tried.append(run_config.tuning or {})
        result = original(run_config, out, **more)
        assert set(Embeddings.open(Path(out) / "features").ids) <= set(training.ids[1:])
        return result

    monkeypatch.setattr(sweep, "train", watched)
    monkeypatch.setattr(sys.modules["vizsla.run.train"], "drop_resumption", lambda out: None)
    sweep_config = config(tinted, tmp_path, poolings=["gap"], finetunes=["head"], trials=2,
                   losses=["cross-entropy", "supcon"])  # fmt: skip
    paths = {"labels": str(tinted / "labels.csv"), "exclude": str(gone)}
    sweep_config = dataclasses.replace(
        sweep_config, run=dataclasses.replace(sweep_config.run, **paths)
    )
    result = sweep.sweep(sweep_config)
    assert not result.failures, result.failures
    assert len(tried) == 2 and {t["loss"] for t in tried} <= {"cross-entropy", "supcon"}
    rates = [t["head_learning_rate"] for t in tried]
    assert len(set(rates)) == 2 and all(3e-4 <= rate <= 1e-2 for rate in rates)
    settings = result.outcomes[0].settings
    assert any(settings.items() <= t.items() for t in tried)
    kept = json.loads((Path(result.outcomes[0].result or "")).read_text())
    assert kept["training"]["candidates"]
    assert sweep.sweep(sweep_config).outcomes[0].settings == settings and len(tried) == 2


def test_the_command_says_what_failed(tinted: Path, tmp_path: Path) -> None:
    words = ["sweep", str(tinted), "--model", "tiny", "--model", "nonesuch", "--weights", "random",
             "--image-size", "64", "-k", "5", "--home", str(tmp_path),
             "--html", str(tmp_path / "t.html")]  # fmt: skip
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 1
    assert "tiny" in done.output and "nonesuch" in done.output and "failed" in done.output
    assert "nonesuch" in (tmp_path / "t.html").read_text()
    done = CliRunner().invoke(app, [*words[:4], *words[6:], "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["runs"][0]["reused"]
