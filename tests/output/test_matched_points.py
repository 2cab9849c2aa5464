"""Sheets of the points that match, of `show --points` and `show --why`."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from vizsla.cli.main import app
from vizsla.embed.local_features import Sift
from vizsla.output.matched_points import (
    BETWEEN,
    BOX,
    drawn_pair,
    in_words,
    labelled_pair,
    matches_sheet,
)
from vizsla.output.sheet_drawing import PAPER, Picture, draw_title
from vizsla.run import pipeline
from vizsla.run.config import RunConfig
from vizsla.search.geometry import geometry_of

pytest.importorskip("cv2", reason="needs the extra local")
Scene = Callable[..., Image.Image]


@pytest.fixture(scope="module")
def folder(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified run: each query is a crop of a gallery image."""
    home = tmp_path_factory.mktemp("home")
    for role in ("query", "gallery"):
        (home / "data/test" / role).mkdir(parents=True)
    for i in range(5):
        scene(i).save(home / f"data/test/gallery/g{i}.png")
    for i in (1, 3):
        scene(i).crop((30, 20, 210, 150)).save(home / f"data/test/query/q{i}.png")
    config = RunConfig(data=str(home / "data"), model="tiny", weights="random", image_size=64,
                       top_k=3, figures=0, home=str(home), refine="verify(n=5)")  # fmt: skip
    return pipeline.run(config).run.folder


def drawn(folder: Path, out: Path, *words: str) -> list[Path]:
    data = str(folder.parent.parent / "data")
    done = CliRunner().invoke(
        app, ["show", str(folder), "--data", data, "-o", str(out), *words], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return sorted(out.glob("*.png"))


def test_a_verified_run_ranks_the_whole_image_first(folder: Path) -> None:
    from vizsla.search.ranking import Ranking

    ranking = Ranking.load(folder / "ranking.parquet")
    assert {q: ranking.row(i)[0] for i, q in enumerate(ranking.queries)} == {
        "q1.png": "g1.png", "q3.png": "g3.png",
    }  # fmt: skip
    assert (folder / "local" / "vectors.sqlite").exists()


def test_why_draws_lines_of_a_verified_run(folder: Path, tmp_path: Path) -> None:
    lines = drawn(folder, tmp_path / "a", "--why")
    assert [path.name for path in lines] == ["q1.png", "q3.png"]
    same = drawn(folder, tmp_path / "b", "--points")
    assert lines[0].read_bytes() == same[0].read_bytes()
    plain = drawn(folder, tmp_path / "c")
    assert lines[0].read_bytes() != plain[0].read_bytes()


def test_an_unreadable_result_is_named(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "data"
    shutil.copytree(folder.parent.parent / "data", moved)
    (moved / "test/gallery/g1.png").write_bytes(b"nothing")
    done = CliRunner().invoke(
        app, ["show", str(folder), "--data", str(moved), "-o", str(tmp_path / "out"), "--points"]
    )
    assert done.exit_code == 0 and len(list((tmp_path / "out").glob("*.png"))) == 2


def test_lines_join_the_same_places(scene: Scene) -> None:
    photo = scene(1)
    part = photo.crop((40, 20, 200, 160))
    features = Sift()(photo), Sift()(part)
    found = geometry_of(*features)
    assert in_words(found).startswith(f"{len(found.a)} of {found.matches} matches agree")
    blank = Image.new("RGB", photo.size, "white"), Image.new("RGB", part.size, "white")
    pair = drawn_pair(*blank, features[0].size, features[1].size, found)
    assert pair.size == (2 * BOX + BETWEEN, BOX)
    pixels = np.asarray(pair).astype(int)
    coloured = (pixels.max(axis=2) - pixels.min(axis=2)) > 60
    assert coloured[:, :BOX].any() and coloured[:, BOX : BOX + BETWEEN].any()
    x, y = found.a[0] * BOX / 240 + (0, (BOX - 180 * BOX / 240) / 2)
    assert coloured[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4].any()
    none = geometry_of(features[0], Sift()(Image.new("RGB", (50, 50))))
    assert in_words(none) == "0 points match, but agree on no geometry"
    assert labelled_pair(photo, part, Sift(), box=100).size == (200 + BETWEEN, 136)


def test_what_is_known_of_a_query_is_not_shortened_for_the_words_on_lines(scene: Scene) -> None:
    notes = ["beaver", "AP 1.000 (whole ranking)", "first correct at rank 1", "5 of 10 correct"]
    pair = scene(0).resize((2 * BOX + BETWEEN, BOX)), "nothing matches"
    pictures = [Picture(Path(f"g{i}.png"), f"g{i}.png") for i in range(2)]
    query = Picture(Path("q.png"), "q.png")
    sheet = matches_sheet(query, pictures, [pair, pair], notes=notes)
    title = Image.new("RGB", sheet.size, PAPER)
    draw_title(ImageDraw.Draw(title), "q.png", notes, 10_000)
    above_lines = (0, 0, sheet.width, 76)
    assert sheet.crop(above_lines).tobytes() == title.crop(above_lines).tobytes()
