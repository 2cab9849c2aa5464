"""The search page in headless Chromium: dropping, clicking, filtering, keys, widths, errors."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from vizsla.model.embedder import Embedder

Open = Callable[..., Any]
PHONE = {"width": 390, "height": 844}
REFUSED = ("Failed to load resource",)  # what the console says of every 4xx


def ids(page: Any) -> list[str]:
    found: list[str] = page.locator(".tile").evaluate_all("all => all.map(t => t.dataset.id)")
    return found


def settled(page: Any, title: str) -> None:
    page.get_by_role("heading", name=title).wait_for()
    page.locator("#app[aria-busy=true]").wait_for(state="detached")


def fits(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.parametrize("kind", ["drop", "paste", "choose"])
def test_a_picture_finds_itself_first(served: Any, visit: Any, kind: str, give: Any) -> None:
    with visit(served.url) as page:
        assert len(ids(page)) == 24
        if kind == "choose":
            page.set_input_files("#image", served.folder / "green/green-4.png")
        else:
            give(page, served.bytes_of("green/green-4.png"), kind)
        settled(page, "24 results")
        assert ids(page)[0] == "green/green-4.png"
        assert page.locator(".example").inner_text().startswith("like")
        assert "query=" in page.url
        page.reload()  # the address is the search
        assert ids(page)[0] == "green/green-4.png"
        page.go_back()
        settled(page, "Random pictures")


def test_a_result_is_searched_with_and_seen_large(served: Any, visit: Any) -> None:
    with visit(served.url + "/?id=red/red-0.png&k=12") as page:
        page.locator(".picture").nth(1).click()
        view = page.get_by_role("dialog")
        view.wait_for()
        shown = ids(page)[1]
        assert view.get_by_text(shown).is_visible()
        heat = view.locator("img[data-similarity]")
        heat.evaluate_all("all => Promise.all(all.map(i => i.decode()))")
        sizes = heat.evaluate_all("all => all.map(i => i.naturalWidth)")
        assert sizes == [448, 448]
        page.keyboard.press("ArrowRight")  # the next one
        view.get_by_text(ids(page)[2]).wait_for()
        page.keyboard.press("Escape")
        view.wait_for(state="hidden")
        at = "id => document.activeElement.closest('.tile')?.dataset.id === id"
        page.wait_for_function(at, arg=ids(page)[2])  # a closed dialog says so a little later
        page.locator(".picture").nth(1).click()
        view.wait_for()
        view.get_by_role("link", name="Search with it").click()
        view.wait_for(state="hidden")
        page.wait_for_url("**/?id=" + shown.replace("/", "%2F") + "&k=12")
        settled(page, "12 results")
        assert ids(page)[0] == shown


GIVEN_UP = ("htmx:",)  # what htmx logs of a request that a later choice replaces


def test_filters_and_the_number_of_results(served: Any, visit: Any) -> None:
    with visit(served.url + "/?id=red/red-0.png", expected=GIVEN_UP) as page:
        page.get_by_label("Label").select_option("a & <b>")
        settled(page, "6 results")
        assert {name.partition("/")[0] for name in ids(page)} == {"a & <b>"}
        page.get_by_label("Domain").select_option("photo")
        settled(page, "3 results")
        page.get_by_label("unknown (5)").check()
        settled(page, "1 result")
        page.get_by_label("unknown (5)").uncheck()
        settled(page, "3 results")
        page.get_by_label("Label").select_option("")
        page.get_by_label("Results", exact=True).select_option("12")
        page.wait_for_url("**k=12*")
        settled(page, "12 results")
        assert page.url == served.url + "/?id=red%2Fred-0.png&k=12&where.domain=photo"


def test_a_choice_made_while_another_is_answered_is_kept(
    served: Any, visit: Any, until: Any
) -> None:
    with visit(served.url + "/?id=red/red-0.png", expected=GIVEN_UP) as page:
        held: list[Any] = []
        page.route("**/?*", lambda route: route.continue_() if held else held.append(route))
        page.get_by_label("Label").select_option("red")
        page.locator("#app[aria-busy=true]").wait_for()
        until(page, lambda: bool(held))  # the page is busy before its request goes out
        page.get_by_label("Domain").select_option("photo")
        held[0].continue_()
        page.wait_for_url("**where.domain=photo*")
        settled(page, "3 results")
        assert "where.label=red" in page.url
        assert page.locator("#app[aria-busy=true]").count() == 0


def test_words_with_a_model_that_reads_them(
    open_search: Open, tiny_clip: str, visit: Any, give: Any
) -> None:
    served = open_search(Embedder.build(tiny_clip, weights="random"))
    with visit(served.url) as page:
        page.keyboard.press("/")
        page.keyboard.type("a dog")
        page.keyboard.press("Enter")
        settled(page, "24 results")
        assert ids(page) == served.search(json={"text": "a dog", "k": 24})
        assert page.get_by_label("Words", exact=True).input_value() == "a dog"
        give(page, served.bytes_of("red/red-0.png"), "drop")  # both, mixed
        page.locator(".example").wait_for()
        settled(page, "24 results")
        assert "text=a%20dog" in page.url or "text=a+dog" in page.url
        plain = ids(page)
        page.get_by_text("More text options").click()
        page.get_by_label("Weight of words").fill("0")
        page.get_by_label("Weight of words").press("Enter")
        page.wait_for_url("**text_weight=0**")
        settled(page, "24 results")
        assert ids(page)[0] == "red/red-0.png" and ids(page) != plain


def test_no_words_box_for_other_models(served: Any, visit: Any) -> None:
    with visit(served.url) as page:
        assert page.get_by_label("Words", exact=True).count() == 0


def test_marks_are_used_by_the_next_search_and_exported(served: Any, visit: Any) -> None:
    with visit(served.url + "/?id=red/red-0.png&id=blue/blue-0.png&k=12") as page:
        before = ids(page)
        red = [i for i, name in enumerate(before) if name.startswith("red")]
        blue = [i for i, name in enumerate(before) if name.startswith("blue")]
        page.locator(".mark.right").nth(red[0]).click()
        page.locator(".mark.right").nth(red[1]).click()
        page.locator(".mark.right").nth(blue[0]).click()
        page.locator(".mark.wrong").nth(blue[0]).click()  # not both
        assert page.get_by_text("2 right, 1 wrong").is_visible()
        assert ids(page) == before  # nothing moves while marks are set
        with page.expect_download() as download:
            page.get_by_role("link", name="Export the marks").click()
        lines = download.value.path().read_text().splitlines()
        assert len(lines) == 4 and sum(line.endswith(",right") for line in lines) == 2
        page.get_by_role("button", name="Search again with the marks").click()
        page.wait_for_url("**right=**")
        settled(page, "12 results")
        assert ids(page) != before and all(name.startswith("red") for name in ids(page)[:4])
        assert page.get_by_text("2 right, 1 wrong").is_visible()
        page.get_by_role("link", name="Clear the marks").click()
        settled(page, "12 results")
        page.get_by_text("2 right, 1 wrong").wait_for(state="hidden")
        assert ids(page) == before


def test_not_like_that(served: Any, visit: Any) -> None:
    with visit(served.url + "/?id=red/red-0.png&id=blue/blue-0.png&k=12") as page:
        blue = next(i for i, name in enumerate(ids(page)) if name.startswith("blue/"))
        page.locator(".tile").nth(blue).get_by_label("Not like").click()
        page.locator(".example.against").wait_for()
        settled(page, "12 results")
        assert all(name.startswith("red") for name in ids(page)[:3])
        page.get_by_role("link", name="Remove: not like").click()
        page.locator(".example.against").wait_for(state="detached")


def test_keys_move_mark_and_search(served: Any, visit: Any) -> None:
    with visit(served.url + "/?id=red/red-0.png&k=12") as page:
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        at = "document.activeElement.closest('.tile').dataset.id"
        assert page.evaluate(at) == ids(page)[1]
        page.keyboard.press("ArrowDown")
        below = ids(page).index(page.evaluate(at))
        assert below > 2
        page.keyboard.press("ArrowUp")
        page.keyboard.press("r")
        page.keyboard.press("w")
        assert page.get_by_text("0 right, 1 wrong").is_visible()
        wanted = ids(page)[1]
        page.keyboard.press("s")
        page.wait_for_url("**/?id=" + wanted.replace("/", "%2F") + "&k=12")
        page.keyboard.press("Tab")
        assert page.locator("#app").count() == 1


def test_errors_are_said_on_the_page_and_one_can_go_on(
    open_search: Open, visit: Any, give: Any
) -> None:
    served = open_search(body_bytes=50_000)
    with visit(served.url, expected=REFUSED) as page:
        give(page, b"<html>this is no picture", "drop")
        fault = page.get_by_role("alert")
        fault.wait_for()
        assert "web page, not a picture" in fault.inner_text()
        give(page, b"x" * 60_000, "drop")
        page.get_by_text("larger than 0.0 MB").wait_for()
        give(page, served.bytes_of("red/red-0.png"), "drop")
        settled(page, "24 results")
        assert fault.count() == 0
        served.engine.uploads.clear()
        page.reload()
        assert "no longer kept" in page.get_by_role("alert").inner_text()
        assert page.get_by_role("heading", name="No results").is_visible()


def test_a_server_that_is_gone_is_said(served: Any, visit: Any) -> None:
    with visit(served.url, expected=(*REFUSED, "/?", "htmx:")) as page:
        page.route("**/?*", lambda route: route.abort("connectionrefused"))
        page.get_by_label("Label").select_option("red")
        page.get_by_text("The server cannot be reached").wait_for()
        page.unroute("**/?*")
        page.get_by_label("Label").select_option("blue")
        page.locator(".fault").wait_for(state="detached")
        assert len(ids(page)) == 6


def test_waiting_is_shown(served: Any, visit: Any) -> None:
    with visit(served.url) as page:
        waiting: list[Any] = []
        page.route("**/?*", lambda route: waiting.append(route))
        page.get_by_label("Label").select_option("red")
        page.locator("#app[aria-busy=true]").wait_for()
        assert page.locator("#busy").inner_text() == "Searching"
        waiting[0].continue_()
        page.locator("#app[aria-busy=true]").wait_for(state="detached")
        assert page.locator("#busy").inner_text() == ""


def test_the_page_of_progress_becomes_the_search(serving: Any, served: Any, visit: Any) -> None:
    from vizsla.web.search.app import create_app
    from vizsla.web.search.service import ServerState

    switch, url = serving
    state = ServerState("embedding", 3, 24)
    switch.app = create_app(state, title="Colours")
    with visit(url, expected=REFUSED) as page:
        assert page.get_by_text("3 of 24 pictures embedded").is_visible()
        state.done = 20
        page.get_by_text("20 of 24 pictures embedded").wait_for()
        assert page.locator("progress").get_attribute("value") == "20"
        state.engine = served.engine
        settled(page, "Random pictures")


def test_an_empty_gallery_and_a_missing_picture(served: Any, visit: Any) -> None:
    with visit(served.url + "/?id=red/red-0.png&where.label=red&where.price=21") as page:
        assert page.get_by_role("heading", name="1 result").is_visible()
    with visit(served.url + "/?id=red/red-0.png&filter=price>100") as page:
        assert page.get_by_text("No matching pictures").is_visible()


READ = ("h1", ".label", ".name", ".choose small", ".foot p", ".choices label", ".mark", ".score")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(
    served: Any, visit: Any, contrast: Any, scheme: str
) -> None:
    address = "/?id=red/red-0.png&not_id=blue/blue-0.png&k=12"
    with visit(served.url + address, color_scheme=scheme) as page:
        for selector in READ:
            assert contrast(page, selector) >= 4.5, (scheme, selector)
        page.locator("#more-filters-summary").click()
        for viewport in (PHONE, {"width": 320, "height": 600}, {"width": 1280, "height": 900}):
            page.set_viewport_size(viewport)
            assert fits(page)
            page.locator(".picture").first.click()
            page.get_by_role("dialog").wait_for()
            assert fits(page)
            page.get_by_role("link", name="Close").click()


def test_it_can_be_used_without_javascript(served: Any, visit: Any) -> None:
    with visit(served.url, java_script_enabled=False) as page:
        page.set_input_files("#image", served.folder / "blue/blue-2.png")
        with page.expect_navigation():
            page.get_by_role("button", name="Search with it").click()
        assert ids_without_script(page)[0] == "blue/blue-2.png"
        page.get_by_label("Label").select_option("blue")
        with page.expect_navigation():
            page.get_by_role("button", name="Filter", exact=True).click()
        assert len(ids_without_script(page)) == 6
        assert "where.label=blue" in page.url and "=&" not in page.url
        with page.expect_navigation():
            page.locator(".picture").nth(1).click()
        assert page.get_by_text("Searched with").is_visible()


def ids_without_script(page: Any) -> list[str]:
    return [one.get_attribute("data-id") for one in page.locator(".tile").all()]


def test_readers_of_screens_hear_what_things_are(served: Any, visit: Any) -> None:
    with visit(served.url + "/?id=red/red-0.png&k=12") as page:
        for role, name in [
            ("search", None), ("region", "What to search for"), ("region", "Results"),
            ("link", "1: red, red-0.png. Open"), ("link", "Search with red, red-0.png"),
            ("checkbox", "Mark red, red-0.png right"), ("combobox", "Label"),
            ("link", "Remove: like red-0.png"), ("link", "Skip to the results"),
        ]:  # fmt: skip
            found = page.get_by_role(role, name=name) if name else page.get_by_role(role)
            assert found.count() >= 1, (role, name)
        unnamed = "all => all.filter(e => !(e.ariaLabel || e.textContent.trim() || e.title)).length"
        assert page.locator("a, button").evaluate_all(unnamed) == 0
        assert page.locator("img:not([alt])").count() == 0


def test_a_picture_with_a_turn_is_shown_upright(served: Any, visit: Any, give: Any) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40), (220, 60, 50)).save(file, "JPEG", exif=exif)
    with visit(served.url) as page:
        give(page, file.getvalue(), "drop")
        image = page.locator(".example img")
        image.wait_for()
        image.evaluate("i => i.complete || new Promise(done => i.onload = done)")
        assert image.evaluate("i => [i.naturalWidth, i.naturalHeight]") == [40, 80]


def test_after_going_back_a_result_still_opens(served: Any, visit: Any) -> None:
    with visit(served.url + "/?id=red/red-0.png&k=12") as page:
        page.get_by_label("Label").select_option("red")
        page.wait_for_url("**where.label=red**")
        settled(page, "6 results")
        page.go_back()
        settled(page, "12 results")
        page.locator(".picture").nth(1).click()
        page.get_by_role("dialog").get_by_text(ids(page)[1]).wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("dialog").wait_for(state="hidden")


def test_an_answer_that_is_no_page_is_said_and_leaves_the_page(served: Any, visit: Any) -> None:
    with visit(served.url + "/?id=red/red-0.png&k=12", expected=REFUSED + GIVEN_UP) as page:
        page.route("**/?*", lambda route: route.fulfill(status=502, body="bad gateway"))
        page.get_by_label("Label").select_option("red")
        page.get_by_text("The server cannot answer now (502)").wait_for()
        assert len(ids(page)) == 12
