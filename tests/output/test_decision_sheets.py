"""Sheets and the report of rankings in which it was decided what is accepted."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vizsla.output.query_sheets import draw_ranking
from vizsla.output.sheet_drawing import ACCEPTED
from vizsla.search.ranking import Ranking

BLUE = tuple(int(ACCEPTED[i : i + 2], 16) for i in (1, 3, 5))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i in range(12):
        Image.new("RGB", (60, 60), (10 * i, 40, 10)).save(folder / f"{i:02}.png")
    return folder


def drawn(
    images: Path, out: Path, accepted: int | None, k: int = 10, estimate: float | None = 0.5
) -> np.ndarray:
    names = [f"{i:02}.png" for i in range(12)]
    scores = np.linspace(0.9, 0.1, 11)[None]
    ranking = Ranking(
        names[:1], names[1:], np.arange(11)[None], scores, 11,
        accepted=None if accepted is None else np.array([accepted]), probability=scores,
        origin={"accept": {"sure": 0.95, "estimate": estimate}},
    )  # fmt: skip
    (path,) = draw_ranking(ranking, images, images, out, k=k)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def line(sheet: np.ndarray) -> np.ndarray:
    return (sheet == BLUE).all(axis=2)


def test_a_line_stands_where_acceptance_ends(images: Path, tmp_path: Path) -> None:
    stair, level, plain, all_of_them = (line(drawn(images, tmp_path, n)) for n in (3, 5, None, 10))
    assert stair.any() and level.any() and not plain.any() and not all_of_them.any()
    assert level.any(axis=1).sum() <= 3 < 100 < stair.any(axis=1).sum()  # straight, and a stair
    seven = line(drawn(images, tmp_path, 7))
    columns = np.flatnonzero(seven.any(axis=0))
    assert columns[-1] - columns[0] > 500  # above what is left of its row


def test_results_that_are_not_accepted_are_pale(images: Path, tmp_path: Path) -> None:
    some, whole = drawn(images, tmp_path, 3), drawn(images, tmp_path, None)
    dark = [(sheet.sum(axis=2) < 200).sum() for sheet in (some, whole)]
    assert dark[0] < 0.6 * dark[1]


def test_a_query_that_is_not_there_has_an_empty_sheet(images: Path, tmp_path: Path) -> None:
    sheet = drawn(images, tmp_path, 0)
    grid = sheet[70:, 380:]
    assert sheet.shape[1] < 1000 and not line(sheet).any()
    assert 0 < (grid != 255).any(axis=2).mean() < 0.1


def test_where_no_estimate_is_sure_a_sheet_does_not_say_what_is_there(
    images: Path, tmp_path: Path
) -> None:
    sheet, whole = (drawn(images, tmp_path, n, estimate=None) for n in (0, None))
    note = len(sheet) - len(whole)  # px of the line that says so
    assert note > 0 and np.array_equal(sheet[100:], whole[100 - note :])
