"""The contest's pages in headless Chromium: widths, dark and light, with and without scripts."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from vizsla.web.contest.curve import MOST_POINTS, history_svg
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


@contextmanager
def opened(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """A page; a script error, a blocked resource or a dialog fails the test."""
    context = browser.new_context(**{"viewport": DESKTOP, **options})
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    page.on(
        "requestfailed",
        lambda request: None if "ABORTED" in request.failure else faults.append(request.url),
    )  # aborted: it became a download
    try:
        page.goto(url)
        yield page
        assert faults == []
    finally:
        context.close()


def fits(page: Any) -> bool:
    """The page is no wider than the window, and no cell of a table wider than its column."""
    clipped = """[...document.querySelectorAll("th, td")].filter(
        c => c.offsetWidth && c.scrollWidth > c.clientWidth + 1).map(c => c.innerText)"""
    assert page.evaluate(clipped) == []
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.parametrize("groups", [0, 1, 200])
def test_the_leaderboard_fits_every_width(browser: Any, open_contest: Open, groups: int) -> None:
    contest = open_contest(Rules(top_k=3, title="A contest with a rather long name for a phone"))
    fill(contest, groups)
    for viewport in (DESKTOP, PHONE):
        with opened(browser, contest.url, viewport=viewport) as page:
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


def test_light_and_dark_have_enough_contrast(
    browser: Any, open_contest: Open, contrast: Any
) -> None:
    contest = open_contest()
    fill(contest, 5)
    grounds = set()
    for scheme in ("light", "dark"):
        for path in ("/", "/groups/1"):
            with opened(browser, contest.url + path, color_scheme=scheme) as page:
                for selector in ("h1", ".note", "thead th", "td.score", "td.rank", "time", "a"):
                    ratio = contrast(page, selector)
                    assert ratio >= 4.5, (scheme, path, selector, ratio)
                grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


def test_all_can_be_read_without_javascript(browser: Any, contest: Any) -> None:
    fill(contest, 3)
    with opened(browser, contest.url, java_script_enabled=False) as page:
        assert page.locator("tbody tr").count() == 3
        refresh = page.locator("meta[http-equiv=refresh]")
        assert refresh.get_attribute("content") == "30"
        page.get_by_role("link", name=NASTY).click()
        assert page.locator("h1").inner_text() == NASTY
        assert page.locator("svg.curve circle").count() == 1


def test_the_leaderboard_follows_the_contest(browser: Any, contest: Any) -> None:
    fill(contest, 1)
    context = browser.new_context()
    page = context.new_page()
    page.clock.install()
    page.goto(contest.url)
    assert page.locator("tbody tr").count() == 1
    contest.post(contest.lists(1.0), group="Newcomers <b>")
    newcomers = page.get_by_role("link", name="Newcomers <b>")
    for _ in range(5):  # a board that took a busy server long is shown ten times as long
        page.clock.run_for(16_000)
        until = time.monotonic() + 5
        while newcomers.count() == 0 and time.monotonic() < until:
            time.sleep(0.05)
        if newcomers.count():
            break
    assert newcomers.is_visible()
    assert page.locator("tbody tr").count() == 2
    assert page.locator("#status").inner_text().startswith("Updated")
    context.close()


def test_the_history_of_a_group(browser: Any, open_contest: Open) -> None:
    contest = open_contest(Rules(top_k=3, metric="contest_points"))
    for right in (0.25, 0.75, 0.5):
        contest.post(contest.lists(right), group=NASTY)
    for viewport in (DESKTOP, PHONE):
        with opened(browser, contest.url + "/groups/1", viewport=viewport) as page:
            assert fits(page)
            assert page.locator("svg.curve circle").count() == 3
            heights = [
                float(dot.get_attribute("cy")) for dot in page.locator("svg.curve circle").all()
            ]
            assert heights[0] > heights[2] > heights[1]  # down is less
            assert page.locator("tbody tr.counted .rank").inner_text() == "2"
            assert "750.00" in page.locator("tbody tr.counted").inner_text()


def test_the_organiser_s_page(browser: Any, open_contest: Open) -> None:
    contest = open_contest(Rules(top_k=3, public_share=0.5, closes=9e9, seed=4_711_000))
    fill(contest, 20)
    contest.store.set_token_hash("Zoë", "0" * 64)
    login = {"username": "organiser", "password": "token-of-the-organiser"}
    for viewport in (DESKTOP, PHONE):
        url = contest.url + "/organiser"
        with opened(browser, url, viewport=viewport, http_credentials=login) as page:
            assert fits(page)
            assert page.get_by_text("Zoë").is_visible()
            assert page.get_by_text("4711000").is_visible()
            with page.expect_download() as download:
                page.get_by_role("link", name="All submissions").click()
            assert len(download.value.path().read_text().splitlines()) == contest.store.count()


# ── the curve, without a browser ─────────────────────────────────────────────────────────────────


def score(value: float, spread: float | None = 0.01) -> PartScore:
    return PartScore(value, None if spread is None else (value - spread, value + spread), {})


@pytest.mark.parametrize(
    "scores",
    [
        [],
        [score(0.5)],
        [score(0.5, None)] * 3,
        [score(1.0, None), score(0.0, None)],
        [score(0.9), score(0.91), score(0.2)],
        [score(i / 500) for i in range(MOST_POINTS + 50)],
    ],
)
def test_every_history_gives_a_curve_within_its_frame(scores: list[PartScore]) -> None:
    svg = history_svg(scores, "top_k_accuracy", 'a "title" <b>')
    assert svg.count("<circle") == min(len(scores), MOST_POINTS)
    assert 'aria-label="a &quot;title&quot; &lt;b&gt;"' in svg
    heights = [float(part.split('"')[0]) for part in svg.split('cy="')[1:]]
    assert all(0 <= height <= 260 for height in heights)
    assert "nan" not in svg and "style" not in svg
    assert 2 <= svg.count('class="grid"') <= 8
