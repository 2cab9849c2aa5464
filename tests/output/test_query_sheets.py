"""The sheets: every pixel that has a meaning is checked."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from vizsla.data.tiles import Tiles
from vizsla.errors import DataError, StorageError, UsageError
from vizsla.output import query_sheets
from vizsla.output.query_sheets import RankingTruth, draw_ranking, sheet_names
from vizsla.output.sheet_drawing import (
    BLANK,
    LINE,
    PAPER,
    PART,
    RIGHT,
    WRONG,
    Picture,
    badge_of,
    draw_sheet,
    font_of,
    shortened,
    thumbnail_of,
    write_png,
)
from vizsla.search.ranking import Ranking

RIGHT, WRONG, LINE, BLANK, PAPER = (
    ImageColor.getrgb(colour) for colour in (RIGHT, WRONG, LINE, BLANK, PAPER)
)
LEFT, TOP, TOP_WITH_NOTES = 360, 70, 94  # of the first tile


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, Path]:
    """A query and a gallery folder of small images, each of one colour of its own."""
    for role, n in (("query", 6), ("gallery", 12)):
        (tmp_path / role).mkdir()
        for i in range(n):
            Image.new("RGB", (40, 30), (20 * i, 90, 130)).save(
                tmp_path / role / f"{role[0]}{i}.png"
            )
    return tmp_path / "query", tmp_path / "gallery"


def ranking(n_queries: int = 6, k: int = 12) -> Ranking:
    lists = {f"q{i}.png": [f"g{j}.png" for j in range(k)] for i in range(n_queries)}
    return Ranking.from_lists(lists, {q: np.linspace(1, 0.1, k).tolist() for q in lists})


def colours(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as sheet:
        return {colour for _, colour in sheet.convert("RGB").getcolors(2**24) or []}


def pixel(path: Path, x: int, y: int) -> object:
    with Image.open(path) as sheet:
        return sheet.getpixel((x, y))


def draw(photos: tuple[Path, Path], out: Path, **options: object) -> list[Path]:
    return draw_ranking(ranking(), *photos, out, **options)  # type: ignore[arg-type]


def write_sheet(
    path: Path, query: Picture, results: list[Picture], notes: Sequence[str] = ()
) -> None:
    write_png(draw_sheet(query, results, notes, thumbnail_of), path)


def truth(
    hits: np.ndarray, judged: np.ndarray | bool = True, ap: np.ndarray | None = None
) -> RankingTruth:
    """hits: (Q, K) bool. judged: (Q, 1) or (Q, K) bool."""
    return RankingTruth(np.where(judged, hits, -1).astype(np.int8), ap)


# ── one sheet ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6, 10, 20, 21, 30, 31, 50])
def test_every_k_gives_a_sheet_of_a_sensible_size(
    photos: tuple[Path, Path], tmp_path: Path, k: int
) -> None:
    queries, gallery = photos
    results = [Picture(gallery / f"g{i % 12}.png", f"g{i}.png", "dog", 0.5) for i in range(k)]
    write_sheet(tmp_path / "s.png", Picture(queries / "q0.png", "q0.png"), results)
    with Image.open(tmp_path / "s.png") as sheet:
        assert 600 <= sheet.width <= 1400
        assert 400 <= sheet.height <= 1500
        corners = [
            sheet.getpixel((x, y)) for x in (0, sheet.width - 1) for y in (0, sheet.height - 1)
        ]
        assert set(corners) == {PAPER}


def test_two_rows_of_five_at_ten(photos: tuple[Path, Path], tmp_path: Path) -> None:
    (path,) = draw(photos, tmp_path, rows=[0], k=10)
    with Image.open(path) as sheet:
        middle = np.asarray(sheet)[TOP + 94]  # across the middle of the first row
    expected = [(20 * i, 90, 130) for i in range(5)]
    assert [tuple(middle[LEFT + 205 * i + 94]) for i in range(5)] == expected


def test_green_and_red_where_the_truth_is_known_and_grey_elsewhere(
    photos: tuple[Path, Path], tmp_path: Path
) -> None:
    hits = np.zeros((6, 12), bool)
    hits[0, 1] = True
    (known,) = draw(photos, tmp_path / "a", rows=[0], k=2, truth=truth(hits))
    assert pixel(known, LEFT + 1, TOP_WITH_NOTES + 100) == WRONG
    assert pixel(known, LEFT + 268 + 16 + 1, TOP_WITH_NOTES + 100) == RIGHT
    (unknown,) = draw(photos, tmp_path / "b", rows=[0], k=2)
    assert pixel(unknown, LEFT, TOP + 100) == LINE
    assert not {RIGHT, WRONG} & colours(unknown)


def test_the_mark_tells_right_from_wrong_without_colour() -> None:
    right, wrong = (badge_of(correct, 40).getchannel("G") for correct in (True, False))
    white = [np.asarray(mark) > 200 for mark in (right, wrong)]
    assert (white[0] != white[1]).mean() > 0.03


def test_what_is_unjudged_has_no_frame(photos: tuple[Path, Path], tmp_path: Path) -> None:
    hits = np.zeros((6, 12), bool)
    of_queries = np.array([[False], [True], [True], [True], [True], [True]])
    first, second = draw(photos, tmp_path / "a", rows=[0, 1], k=3, truth=truth(hits, of_queries))
    assert not {RIGHT, WRONG} & colours(first)
    assert WRONG in colours(second)
    of_images = np.ones((6, 12), bool)
    of_images[0, 0] = False
    (mixed,) = draw(photos, tmp_path / "b", rows=[0], k=2, truth=truth(hits, of_images))
    assert pixel(mixed, LEFT, TOP_WITH_NOTES + 100) == LINE
    assert pixel(mixed, LEFT + 284, TOP_WITH_NOTES + 100) == WRONG


def test_a_broken_picture_is_a_grey_tile_and_no_error(
    photos: tuple[Path, Path], tmp_path: Path
) -> None:
    queries, gallery = photos
    (gallery / "g0.png").write_bytes(b"not an image")
    (gallery / "g1.png").unlink()
    (queries / "q0.png").write_bytes(b"")
    hits = np.ones((6, 12), bool)
    (path,) = draw(photos, tmp_path, rows=[0], k=3, truth=truth(hits))
    for x in (MARGIN_OF_QUERY, LEFT + 20, LEFT + 284 + 20):
        assert pixel(path, x, TOP_WITH_NOTES + 250) == BLANK
    assert pixel(path, LEFT, TOP_WITH_NOTES + 100) == RIGHT  # it counts, seen or not
    assert pixel(path, LEFT + 2 * 284 + 100, TOP_WITH_NOTES + 100) == (40, 90, 130)


MARGIN_OF_QUERY = 28 + 16 + 4


def test_the_shared_odd_files_are_drawn_or_named(shared: Path, tmp_path: Path) -> None:
    files = sorted((shared / "data" / "edge").iterdir())
    results = [Picture(file, file.name) for file in files]
    write_sheet(tmp_path / "s.png", results[0], results)
    assert BLANK in colours(tmp_path / "s.png")


@pytest.mark.parametrize(
    "name",
    [
        "x" * 4000 + ".png",
        "猫の写真.png",
        "tab\there\nand\x07.png",
        "\ud800",
        "",
        "מזל טוב",
        "🐕.png",
    ],
)
def test_any_name_can_be_drawn(photos: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    picture = Picture(photos[1] / "g0.png", name, name or None, float("nan"), True)
    write_sheet(tmp_path / "s.png", picture, [picture] * 12, notes=[name, name])
    assert (tmp_path / "s.png").stat().st_size > 1000


def test_long_names_lose_their_middle() -> None:
    font = font_of(14)
    short = shortened("a_long_name_of_a_picture_0001.jpg", font, 150)
    assert re.fullmatch(r"a_long.*….*01\.jpg", short)
    assert font.getlength(short) <= 150
    assert shortened("short.jpg", font, 150) == "short.jpg"
    assert shortened("a\nb\ud800", font, 150) == "a\ufffdb\ufffd"
    assert shortened("anything", font, 5) == "…"


def test_a_query_without_results(tmp_path: Path, photos: tuple[Path, Path]) -> None:
    empty = Ranking.from_lists({"q0.png": [], "q1.png": ["g0.png"]})
    paths = draw_ranking(empty, *photos, tmp_path, truth=truth(np.array([[False], [True]])))
    assert len(paths) == 2


def test_the_notes_say_what_is_known() -> None:
    hits = np.array([False, False, True, True])
    results = [Picture(Path(), "", correct=bool(hit)) for hit in hits[:3]]
    assert query_sheets.notes_of("dog", hits, results, 0.25) == [
        "dog",
        "AP 0.250 (whole ranking)",
        "first correct at rank 3",
        "1 of 3 correct",
    ]
    assert query_sheets.notes_of(None, hits & False, results, float("nan")) == [
        "nothing correct among the first 4"
    ]
    assert query_sheets.notes_of(None, None, results, None) == []


def test_the_same_sheet_twice_is_the_same_file(photos: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = (draw(photos, tmp_path / name, rows=[2])[0] for name in "ab")
    assert first.read_bytes() == second.read_bytes()


# ── many sheets ──────────────────────────────────────────────────────────────────────────────────


def test_a_sheet_for_each_query_named_after_it(photos: tuple[Path, Path], tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    paths = draw(photos, tmp_path / "out", rows=[4, 1], progress=lambda *n: reports.append(n))
    assert [path.name for path in paths] == ["q4.png", "q1.png"]
    assert all(path.is_file() for path in paths)
    assert reports == [(1, 2), (2, 2)]
    assert len(draw(photos, tmp_path / "all")) == 6


def test_names_are_safe_and_never_clash() -> None:
    queries = [
        "a/b.png",
        "a_b.png",
        "A_B.jpg",
        "..",
        "../..",
        "x" * 300,
        "ü/ö.jpg",
        "u\u0308_o\u0308.png",
    ]
    names = sheet_names(queries)
    assert len({name.casefold() for name in names}) == len(queries)
    for name in names:
        assert re.fullmatch(r"[^/\\:*?\"<>|]+\.png", name)
        assert not name.startswith(".")
        assert len(name.encode()) < 200
    for twins in (["a.png", "A.png"], ["ü.png", "u\u0308.png"]):  # one file on a Mac
        assert all(re.search(r"-[0-9a-f]{8}\.png$", name) for name in sheet_names(twins))
    assert sheet_names(["dogs/rex 1.jpg", "cat.JPEG"]) == ["dogs_rex_1.png", "cat.png"]
    first = names[0].removesuffix(".png")
    assert re.fullmatch(r"a_b-[0-9a-f]{8}", first)
    hostile = sheet_names(["a/b.png", "a_b.png", f"{first}.png"])  # imitates the hash
    assert len(set(hostile)) == 3


def test_a_ranking_of_another_data_set_is_an_error(
    photos: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"none of the 6 query images is in .*'q0.png', …"):
        draw_ranking(ranking(), photos[1], photos[1], tmp_path)
    with pytest.raises(DataError, match="none of the 12 gallery images is in"):
        draw_ranking(ranking(), photos[0], photos[0], tmp_path, k=12)
    with pytest.raises(DataError, match=r"shape \(2, 2\), expected \(6, K\)"):
        draw(photos, tmp_path, truth=truth(np.ones((2, 2), bool)))
    with pytest.raises(UsageError, match="k=0"):
        draw(photos, tmp_path, k=0)
    with pytest.raises(StorageError, match="cannot write"):
        draw(photos, photos[0] / "q0.png")


def test_no_name_leads_out_of_the_folder(photos: tuple[Path, Path], tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (30, 30), (255, 0, 255)).save(secret)
    names = ["../secret.png", str(secret), "a/../../secret.png", "g0.png\0", "g0.png"]
    (path,) = draw_ranking(Ranking.from_lists({"q0.png": names}), *photos, tmp_path / "out")
    assert (255, 0, 255) not in colours(path)
    assert (0, 90, 130) in colours(path)


# ── real photos ──────────────────────────────────────────────────────────────────────────────────


def test_real_photos_are_drawn(shared: Path, tmp_path: Path) -> None:
    root = shared / "data" / "caltech101" / "test"
    queries = sorted(path.name for path in (root / "query").iterdir())[:20]
    gallery = sorted(path.name for path in (root / "gallery").iterdir())
    lists = {query: gallery[i * 10 : i * 10 + 10] for i, query in enumerate(queries)}
    hits = np.zeros((20, 10), bool)
    paths = draw_ranking(
        Ranking.from_lists(lists), root / "query", root / "gallery", tmp_path, truth=truth(hits)
    )
    assert len(paths) == 20
    assert all(BLANK not in colours(path) for path in paths[:3])


def test_the_part_that_was_found_is_framed(photos: tuple[Path, Path], tmp_path: Path) -> None:
    tiles = Tiles.parse("2x2")
    found = replace(ranking(1, 2), tiles=tiles, best_tile=np.array([[4, 0]], np.int8))
    (path,) = draw_ranking(found, *photos, tmp_path / "out", k=2)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    frame = np.argwhere((abs(pixels - ImageColor.getrgb(PART)) < 3).all(axis=2))
    (top, left), (bottom, right) = frame.min(axis=0), frame.max(axis=0)
    beside = np.arange(pixels.shape[1]) > LEFT
    image = np.argwhere((abs(pixels - (0, 90, 130)) < 3).all(axis=2) & beside)
    low, far = image.max(axis=0)
    wide, high = far - LEFT, low - image[:, 0].min()
    assert right <= far and bottom <= low and right - left == pytest.approx(5 / 9 * wide, abs=8)
    assert bottom - top == pytest.approx(5 / 9 * high, abs=8)
