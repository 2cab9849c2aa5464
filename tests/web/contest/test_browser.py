"""The contest's pages in headless Chromium: widths, dark and light, with and without scripts."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vizsla.web.contest.pages import MOST_POINTS, history_chart
from vizsla.web.contest.rules import Rules
from vizsla.web.contest.scoring import PartScore, canonical
from vizsla.web.contest.store import packed

Open = Callable[..., Any]
NASTY = "<script>alert(1)</script>"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def fill(contest: Any, groups: int) -> None:
    """`groups` groups with one to four submissions each, straight into the store."""
    names = [NASTY, "W" * 60, "图像检索", *(f"Group {n}" for n in range(groups))][:groups]
    futures = []
    for n, name in enumerate(names):
        for m in range(1 + n % 4):
            lists = contest.lists(right=(n + m) % 13 / 12, seed=n)
            text = canonical(lists)
            futures.append(
                contest.store.add(
                    name,
                    packed(text),
                    hashlib.sha256(text).hexdigest(),
                    contest.scorer.scores(lists),
                    received=1000.0 + 60 * n + m,
                    rules=contest.rules,
                )
            )
    for future in futures:
        future.result()


def fits(page: Any) -> bool:
    """The page is no wider than the window, and no cell of a table wider than its column."""
    clipped = """[...document.querySelectorAll("th, td")].filter(
        c => c.offsetWidth && c.scrollWidth > c.clientWidth + 1).map(c => c.innerText)"""
    assert page.evaluate(clipped) == []
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_on_a_phone_intervals_stay_in_their_cells_and_the_form_takes_a_file(
    visit: Any, open_contest: Open, tmp_path: Path
) -> None:
    contest = open_contest(Rules(top_k=3, metrics=("contest_points",), per_hour=3))
    contest.post(contest.lists(1.0), group="W" * 60)
    (tmp_path / "sub.json").write_text(json.dumps(contest.lists(0.5)))
    with visit(contest.url, viewport={"width": 320, "height": 700}) as page:
        assert fits(page)
        outside = """all => all.filter(one => { const box = one.getBoundingClientRect();
            const cell = one.closest("td, .card").getBoundingClientRect();
            return box.width && (box.right > cell.right || box.left < cell.left); }).length"""
        assert page.locator("td .interval, .upload input").evaluate_all(outside) == 0
        assert "1000.00" in page.locator("td .interval:visible").inner_text()
        page.get_by_label("Group", exact=True).fill("Hounds")
        page.get_by_label("Submission file").set_input_files(tmp_path / "sub.json")
        page.get_by_role("button", name="Submit").click()
        page.get_by_role("heading", name="Submitted").wait_for()
        assert fits(page) and page.get_by_text("2 this hour").is_visible()
        page.get_by_role("link", name="All submissions of Hounds").click()
        page.get_by_role("heading", name="Hounds").wait_for()
        assert page.get_by_text("left: 2 this hour").is_visible()


@pytest.mark.parametrize("groups", [0, 1, 200])
def test_the_leaderboard_fits_every_width(visit: Any, open_contest: Open, groups: int) -> None:
    contest = open_contest(Rules(top_k=3, title="A contest with a rather long name for a phone"))
    fill(contest, groups)
    for viewport in (DESKTOP, PHONE):
        with visit(contest.url, viewport=viewport) as page:
            assert fits(page)
            assert page.locator("tbody tr").count() == groups
            assert page.get_by_text("No submissions yet").is_visible() == (groups == 0)
            if groups == 200:
                ranks = [int(text) for text in page.locator("td.rank").all_inner_texts()]
                assert ranks == sorted(ranks) and ranks[0] == 1
            if groups == 1:
                assert page.get_by_role("link", name=NASTY).is_visible()
                assert page.get_by_role("columnheader", name="Submissions").is_visible() == (
                    viewport is DESKTOP
                )


def test_further_metrics_stand_beside_the_score(visit: Any, open_contest: Open) -> None:
    contest = open_contest(Rules(top_k=3, metrics=("top_k_accuracy", "contest_points", "AP@3")))
    fill(contest, 3)
    for viewport in (DESKTOP, PHONE):
        with visit(contest.url, viewport=viewport) as page:
            assert fits(page)
            texts = page.locator("tbody tr").all_inner_texts()
            assert all(
                re.search(r"\d\.\d\d\b(?!\d)", text) for text in texts
            )  # points: two decimals
            heading = page.get_by_role("columnheader", name="Contest points")
            assert heading.is_visible() == (viewport is DESKTOP)
            assert page.locator("tbody").get_by_text("AP@3").count() == 3
            assert page.locator(".narrow", has_text="AP@3").first.is_visible() == (
                viewport is PHONE
            )
        with visit(contest.url + "/groups/1", viewport=viewport) as page:
            assert fits(page) and page.locator("dt", has_text="AP@3").is_visible()


def test_light_and_dark_have_enough_contrast(visit: Any, open_contest: Open, contrast: Any) -> None:
    contest = open_contest()
    fill(contest, 5)
    grounds = set()
    for scheme in ("light", "dark"):
        for path in ("/", "/groups/1"):
            with visit(contest.url + path, color_scheme=scheme) as page:
                for selector in ("h1", ".note", "thead th", "td.score", "td.rank", "time", "a"):
                    ratio = contrast(page, selector)
                    assert ratio >= 4.5, (scheme, path, selector, ratio)
                grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


def test_all_can_be_read_without_javascript(visit: Any, contest: Any) -> None:
    fill(contest, 3)
    with visit(contest.url, java_script_enabled=False) as page:
        assert page.locator("tbody tr").count() == 3
        refresh = page.locator("meta[http-equiv=refresh]")
        assert refresh.get_attribute("content") == "30"
        page.get_by_role("link", name=NASTY).click()
        assert page.locator("h1").inner_text() == NASTY
        assert page.locator(".chart circle.s0").count() == 1


def test_the_leaderboard_follows_the_contest(
    browser: Any, contest: Any, wait_in_page: Callable[[Any, Callable[[], bool]], None]
) -> None:
    fill(contest, 1)
    context = browser.new_context()
    page = context.new_page()
    page.clock.install()
    page.goto(contest.url)
    assert page.locator("tbody tr").count() == 1
    contest.post(contest.lists(1.0), group="Newcomers <b>")
    newcomers = page.get_by_role("link", name="Newcomers <b>")

    def shown() -> bool:  # each look is a refresh: after a slow one the board may be an old one
        page.clock.run_for(16_000)
        return bool(newcomers.count())

    wait_in_page(page, shown)
    assert newcomers.is_visible()
    assert page.locator("tbody tr").count() == 2
    assert page.locator("#status").inner_text().startswith("Updated")
    context.close()


def test_the_history_of_a_group(visit: Any, open_contest: Open) -> None:
    contest = open_contest(Rules(top_k=3, metrics=("contest_points",)))
    for right in (0.25, 0.75, 0.5):
        contest.post(contest.lists(right), group=NASTY)
    for viewport in (DESKTOP, PHONE):
        with visit(contest.url + "/groups/1", viewport=viewport) as page:
            assert fits(page)
            assert page.locator(".chart circle.s0").count() == 3
            heights = [
                float(dot.get_attribute("cy")) for dot in page.locator(".chart circle.s0").all()
            ]
            assert heights[0] > heights[2] > heights[1]  # down is less
            assert page.locator("tbody tr.counted .rank").inner_text() == "2"
            assert "750.00" in page.locator("tbody tr.counted").inner_text()


def test_the_organiser_s_page(visit: Any, open_contest: Open) -> None:
    contest = open_contest(Rules(top_k=3, public_share=0.5, closes=9e9, seed=4_711_000))
    fill(contest, 20)
    contest.store.set_token_hash("Zoë", "0" * 64)
    login = {"username": "organiser", "password": "token-of-the-organiser"}
    for viewport in (DESKTOP, PHONE):
        url = contest.url + "/organiser"
        with visit(url, viewport=viewport, http_credentials=login) as page:
            assert fits(page)
            assert page.get_by_text("Zoë").is_visible()
            assert page.get_by_text("4711000").is_visible()
            with page.expect_download() as download:
                page.get_by_role("link", name="All submissions").click()
            assert len(download.value.path().read_text().splitlines()) == contest.store.count()


# ── the chart, without a browser ─────────────────────────────────────────────────────────────────


def score(value: float, spread: float | None = 0.01) -> PartScore:
    return PartScore(value, None if spread is None else (value - spread, value + spread), {})


@pytest.mark.parametrize(
    "scores",
    [
        [score(0.5)],
        [score(0.5, None)] * 3,
        [score(1.0, None), score(0.0, None)],
        [score(0.9), score(0.91), score(0.2)],
        [score(i / 500) for i in range(MOST_POINTS + 50)],
    ],
)
def test_every_history_gives_a_chart_within_its_frame(scores: list[PartScore]) -> None:
    svg = str(history_chart('a "title" <b>', scores, "top_k_accuracy"))
    assert "<b>" not in svg and "&lt;b&gt;" in svg
    assert "nan" not in svg and "style=" not in svg
    lines = [
        [float(point.split(",")[1]) for point in part.split('"')[0].split()]
        for part in svg.split('points="')[1:]
    ]
    assert len(lines[0]) == min(len(scores), MOST_POINTS)
    assert all(0 <= height <= 300 for line in lines for height in line)
    assert lines[1] == sorted(lines[1], reverse=True)  # the best so far only rises
    assert len(lines) == (2 if scores[0].interval is None else 4)
