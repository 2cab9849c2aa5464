"""`--tiles auto` of run, embed, index and find: chosen where there are labels, none without."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import vizsla
from vizsla.choose import tile_choice
from vizsla.cli.main import app
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.open_model import load_embedder
from vizsla.options import ModelChoice
from vizsla.run import config as run_config
from vizsla.run.config import TILES, RunConfig
from vizsla.run.pipeline import run
from vizsla.search.folder_index import FolderIndex

TINY = ["--model", "tiny", "--weights", "random", "--image-size", "32"]


@pytest.fixture
def data(small_demo: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_demo, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def prefers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation prefers 1+2x2, whatever the vectors are."""
    best = tile_choice.Trials.best
    monkeypatch.setattr(
        tile_choice.Trials, "best", lambda self: self.by_name.get("1+2x2") or best(self)
    )


def config(data: Path, **options: Any) -> RunConfig:
    known = {"model": "tiny", "weights": "random", "image_size": 32, "top_k": 5, "figures": 0}
    return RunConfig(data=str(data), home=str(data.parent), tiles="auto", **{**known, **options})


def done(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.usefixtures("prefers")
def test_a_run_takes_what_training_images_prefer_and_is_repeated_so(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vizsla")
    result = run(config(data))
    gallery = Embeddings.open(result.run.folder / "embeddings" / "gallery")
    assert str(gallery.tiles) == "1+2x2"
    assert Embedder.load(result.run.folder / "embedder").tiles == gallery.tiles
    rows = result.record["tiles_chosen_on"]["candidates"]
    assert {row["tiles"] for row in rows} == {"none", "1+2x2", "1+2x2+3x3"}
    said = caplog.text
    assert "trying none, 1+2x2, 1+2x2+3x3 on" in said
    assert said.index("tiles 1+2x2+3x3: 14 vectors for each of") < said.index("tiles kept: 1+2x2")
    again = run_config.recorded_config(result.run.folder)
    assert again.tiles == "1+2x2"
    (data / "training").rename(data.parent / "training")
    repeated = run(again)
    assert np.array_equal(repeated.ranking.positions, result.ranking.positions)
    assert np.array_equal(repeated.ranking.scores, result.ranking.scores)


def test_without_labels_no_tiles_are_made_and_it_is_said(
    data: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(data / "training")
    caplog.set_level(logging.INFO, "vizsla")
    result = run(config(data))
    assert "chooses on labelled images, and there are no training images: no tiles" in caplog.text
    gallery = Embeddings.open(result.run.folder / "embeddings" / "gallery")
    assert gallery.tiles is None and not (result.run.folder / TILES).exists()
    assert run_config.recorded_config(result.run.folder).tiles == "none"
    caplog.clear()
    found = vizsla.embed(
        data / "test" / "query", load_embedder(ModelChoice(model="tiny", weights="random")),
        tiles="auto",
    )  # fmt: skip
    assert found.tiles is None and "these images have no labels" in caplog.text


@pytest.mark.usefixtures("prefers")
def test_embed_index_and_find_choose_on_their_own_labels(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path / "cache"))
    images, out = data / "training", tmp_path / "g.emb"
    done("embed", images, "--class-folders", "--tiles", "auto", "-o", out, *TINY)
    assert str(Embeddings.open(out).tiles) == "1+2x2"
    done("index", images, "--class-folders", "--tiles", "auto", "-o", tmp_path / "i", *TINY)
    index = FolderIndex.load(tmp_path / "i")
    assert (
        str(index.view.snapshot.tiles) == "1+2x2"
        and index.model_id == Embeddings.open(out).model_id
    )
    photos = sorted(images.rglob("*.jpg"))
    names = [photo.relative_to(images).as_posix() for photo in photos]
    lines = ["file_name,label", *(f"{name},{name.split('/')[0]}" for name in names)]
    (images / "metadata.csv").write_text("\n".join(lines))
    words = ("find", photos[0], images, "--tiles", "auto", "-k", 3, "--json", *TINY, "-q")
    first = json.loads(done(*words))
    assert first[0]["score"] > 0.99 and "w" in first[0]
    (images / "metadata.csv").unlink()
    again = json.loads(done(*words))  # with the tiles that the first call chose
    assert [{**row, "label": None} for row in again] == [{**row, "label": None} for row in first]


def test_where_nothing_is_embedded_auto_is_refused(data: Path) -> None:
    with pytest.raises(UsageError, match="tiles auto is decided when a gallery is embedded"):
        load_embedder(ModelChoice(model="tiny", weights="random", tiles="auto"))
    with pytest.raises(UsageError, match="with tiles: diffusion compares gallery images"):
        run(config(data, refine="diffusion"))
