"""The sheets of `show --why`."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vizsla.cli.main import app
from vizsla.data.preprocess import Preprocess
from vizsla.errors import UsageError
from vizsla.output.similarity_sheet import as_seen, overlaid
from vizsla.run import pipeline
from vizsla.run.config import RunConfig


@pytest.fixture(scope="module")
def folder(tinted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(tinted, home / "data")
    config = RunConfig(data=str(home / "data"), model="tiny", weights="random", image_size=64,
                       top_k=5, figures=0, home=str(home))  # fmt: skip
    return pipeline.run(config).run.folder


def test_why_draws_a_sheet_for_each_query(folder: Path, tmp_path: Path) -> None:
    data = folder.parent.parent / "data"
    words = ["show", str(folder), "--data", str(data), "-k", "3", "--worst", "2", "--why"]
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    sheets = sorted(tmp_path.glob("*.png"))
    assert len(sheets) == 2
    with Image.open(sheets[0]) as sheet:
        assert sheet.width > 1100 and 600 < sheet.height < 800


def test_why_says_which_model_it_lacks(folder: Path, tmp_path: Path) -> None:
    ranking = tmp_path / "ranking.parquet"
    shutil.copy(folder / "ranking.parquet", ranking)
    words = ["show", str(ranking), "--data", str(folder.parent.parent / "data"), "--why"]
    with pytest.raises(UsageError, match="--model"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    done = CliRunner().invoke(
        app, [*words, "--model", str(folder), "--random", "1", "-k", "2", "-o", str(tmp_path)]
    )
    assert done.exit_code == 0 and len(list(tmp_path.glob("*.png"))) == 1


def test_pictures_that_cannot_be_read_are_named(
    tinted: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tinted, tmp_path / "data")
    for name in ("query/q-green-0.png", "gallery/g-green-0.png"):
        (tmp_path / "data/test" / name).write_bytes(b"nothing")
    words = ["show", str(folder), "--data", str(tmp_path / "data"), "--why", "-k", "4"]
    out = tmp_path / "out"
    done = CliRunner().invoke(app, [*words, "-o", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    assert len(list(out.glob("*.png"))) == 15


def test_heat_brightens_its_place() -> None:
    grey = Image.new("RGB", (40, 40), (128, 128, 128))
    heat = np.zeros((4, 4))
    heat[0, 3], heat[3, 0] = 1.0, -5.0
    shown = np.asarray(overlaid(grey, heat, 1.0)).mean(axis=2)
    assert shown[2, 37] > 2 * shown[20, 20] and shown[37, 2] <= shown[20, 20]


def test_the_model_sees_the_middle() -> None:
    wide = Image.new("RGB", (300, 100), (250, 0, 0))
    wide.paste((0, 250, 0), (100, 0, 200, 100))
    seen = as_seen(wide, Preprocess((50, 50)))
    assert seen.size == (50, 50) and seen.getpixel((25, 25)) == (0, 250, 0)
    assert seen.getpixel((1, 25))[1] > 200
