"""The search page in headless Chromium: images, filters, marks, keys, focus and errors."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from vizsla.model.embedder import Embedder

Open = Callable[..., Any]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
REFUSED = ("Failed to load resource",)  # what the console says of every 4xx
REPLACED = ("htmx:",)  # what htmx logs of a request that a later choice replaces
SEARCH = "/?id=red/red-0.png&k=12"
READ = ("h1", ".label", ".name", ".choose small", ".foot p", ".choices label", ".mark", ".score")


def ids(page: Any) -> list[str]:
    found: list[str] = page.locator(".tile").evaluate_all("all => all.map(t => t.dataset.id)")
    return found


def settled(page: Any, title: str) -> None:
    page.get_by_role("heading", name=title).wait_for()
    page.locator("#app[aria-busy=true]").wait_for(state="detached")


def focused(page: Any, wanted: str) -> None:
    page.wait_for_function(
        "id => (document.activeElement.id || document.activeElement.dataset.act) === id",
        arg=wanted,
    )


def announced(page: Any, text: str) -> None:
    page.wait_for_function(
        "text => document.getElementById('announcement').textContent.startsWith(text)", arg=text
    )


def fits(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


# ── searching with images and words ────────────────────────────────────────────────────────────


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
        settled(page, "Random images")


def test_dropped_pictures_are_added_as_positive_or_negative_examples(
    served: Any, visit: Any, give: Any
) -> None:
    with visit(served.url + "/?id=red/red-0.png&right=red/red-1.png&k=12") as page:
        page.get_by_label("also like it").check()
        give(page, served.bytes_of("blue/blue-0.png"), "paste")
        page.locator(".example").nth(1).wait_for()
        settled(page, "12 results")
        assert "id=red" in page.url and "query=" in page.url and "right=red" in page.url
        (name,) = served.post(image="blue/blue-0.png").json()["queries"]
        search = {"id": "red/red-0.png", "right": "red/red-1.png", "query": name, "k": 12}
        assert ids(page) == served.search(json=search)
        give(page, served.bytes_of("green/green-0.png"), "drop", "#drop [data-use=not]")
        page.locator(".example.against").wait_for()
        settled(page, "12 results")
        assert page.locator(".example").count() == 3 and "not_query=" in page.url
        page.get_by_role("link", name="Like your image 1 instead", exact=True).click()
        page.locator(".example.against").wait_for(state="detached")
        assert page.locator(".example").count() == 3
        page.get_by_role("link", name="Remove: like red-0.png").click()
        page.wait_for_function("() => document.querySelectorAll('.example').length === 2")
        assert "id=red" not in page.url and "right=red" in page.url


def test_a_result_becomes_a_negative_example(served: Any, visit: Any) -> None:
    with visit(served.url + "/?id=red/red-0.png&id=blue/blue-0.png&k=12") as page:
        blue = next(i for i, name in enumerate(ids(page)) if name.startswith("blue/"))
        page.locator(".tile").nth(blue).get_by_label("Not like").click()
        page.locator(".example.against").wait_for()
        settled(page, "12 results")
        assert all(name.startswith("red") for name in ids(page)[:3])
        page.get_by_role("link", name="Remove: not like").click()
        page.locator(".example.against").wait_for(state="detached")


def test_words_are_searched_and_mixed_with_a_picture(
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


def test_a_rotated_photo_is_shown_upright(served: Any, visit: Any, give: Any) -> None:
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


# ── filters ──────────────────────────────────────────────────────────────────────────────────────


def test_filters_and_the_number_of_results_are_applied(served: Any, visit: Any) -> None:
    with visit(served.url + "/?id=red/red-0.png", expected=REPLACED) as page:
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


def test_a_choice_made_during_a_request_is_kept(served: Any, visit: Any, wait_in_page: Any) -> None:
    with visit(served.url + "/?id=red/red-0.png", expected=REPLACED) as page:
        held: list[Any] = []
        page.route("**/?*", lambda route: route.continue_() if held else held.append(route))
        page.get_by_label("Label").select_option("red")
        page.locator("#app[aria-busy=true]").wait_for()
        assert page.locator("#busy").inner_text() == "Searching"
        wait_in_page(page, lambda: bool(held))  # the page is busy before its request goes out
        page.get_by_label("Domain").select_option("photo")
        held[0].continue_()
        page.wait_for_url("**where.domain=photo*")
        settled(page, "3 results")
        assert "where.label=red" in page.url
        assert page.locator("#app[aria-busy=true]").count() == 0
        assert page.locator("#busy").inner_text() == ""


def test_text_typed_during_a_request_is_kept(served: Any, visit: Any, wait_in_page: Any) -> None:
    with visit(served.url + SEARCH, expected=REPLACED) as page:
        page.locator("#more-filters-summary").click()
        held: list[Any] = []
        page.route("**/?*", lambda route: held.append(route))
        page.get_by_label("Label").select_option("red")
        page.locator("#app[aria-busy=true]").wait_for()
        wait_in_page(page, lambda: bool(held))  # the page is busy before its request goes out
        page.get_by_label("Other filter").fill("price<")
        held[0].continue_()
        settled(page, "6 results")
        focused(page, "filter-written-0")
        assert page.get_by_label("Other filter").input_value() == "price<"
        assert page.get_by_label("Other filter").is_visible()  # still unfolded
        page.unroute("**/?*")
        page.keyboard.press("End")
        page.keyboard.type("20")
        page.keyboard.press("Enter")
        settled(page, "2 results")
        assert page.get_by_label("Other filter").first.input_value() == "price<20"
        page.get_by_label("Other filter").first.fill("")  # emptied, it is gone
        page.keyboard.press("Enter")
        settled(page, "6 results")
        assert page.url.endswith("/?id=red%2Fred-0.png&k=12&where.label=red")


def test_an_invalid_filter_is_explained_below_its_field(served: Any, visit: Any) -> None:
    with visit(served.url + SEARCH, expected=(*REFUSED, *REPLACED)) as page:
        page.locator("#more-filters-summary").click()
        page.get_by_label("Other filter").fill("colour=red")
        page.keyboard.press("Enter")
        fault = page.get_by_role("alert")
        fault.wait_for()
        assert "The gallery has no attribute 'colour'" in fault.inner_text()
        focused(page, "filter-written-0")
        field = page.locator("#filter-written-0")
        assert field.get_attribute("aria-invalid") == "true"
        assert field.input_value() == "colour=red"
        field.fill("domain=photo")
        page.keyboard.press("Enter")
        settled(page, "12 results")
        assert fault.count() == 0


@pytest.fixture
def many_makers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """24 values, which are too many for a list."""
    monkeypatch.setattr("vizsla.web.search.facets.MAX_LISTED", 10)
    return [f"maker {i}" for i in range(24)]


def test_an_attribute_with_many_values_suggests_some(
    open_search: Open, visit: Any, many_makers: Any
) -> None:
    served = open_search(columns={"maker": many_makers})
    with visit(served.url + SEARCH, expected=REPLACED) as page:
        page.locator("#more-filters-summary").click()
        field = page.get_by_label("Maker")
        options = page.locator("#" + str(field.get_attribute("list")) + " option")
        field.press_sequentially("7")
        page.wait_for_function(
            "list => [...document.getElementById(list).options].map(o => o.value).join() === "
            "'maker 7,maker 17'",
            arg=field.get_attribute("list"),
        )
        assert options.count() == 2
        field.fill("maker 17")
        page.keyboard.press("Enter")
        settled(page, "1 result")
        assert page.url.endswith("&where.maker=maker+17")
        field.fill("aker 1")
        page.keyboard.press("Enter")
        settled(page, "No results")
        page.get_by_role("link", name="maker 11", exact=True).click()
        settled(page, "1 result")
        field.evaluate(
            """field => {  // as a browser does when one of the list is picked
              field.value = "maker 3";
              const how = {bubbles: true, inputType: "insertReplacementText"};
              field.dispatchEvent(new InputEvent("input", how));
            }"""
        )
        page.wait_for_url("**where.maker=maker+3")


# ── marks, links and history ─────────────────────────────────────────────────────────────────────


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


def test_marks_stay_in_links_and_after_a_reload(served: Any, visit: Any) -> None:
    with visit(served.url + SEARCH) as page:
        page.locator(".mark.right").nth(1).click()
        page.locator(".mark.wrong").nth(5).click()
        right, wrong = ids(page)[1], ids(page)[5]
        page.get_by_text("1 right, 1 wrong").wait_for()
        page.reload()
        assert page.get_by_text("1 right, 1 wrong").is_visible()
        page.locator(".mark.right").nth(2).click()
        page.locator(".tile").nth(3).get_by_label("Also like").click()
        page.locator(".example").nth(1).wait_for()
        settled(page, "12 results")
        assert page.get_by_text("2 right, 1 wrong").is_visible()
        page.locator(".tile [data-search]").nth(4).click()
        page.locator(".example").nth(1).wait_for(state="detached")
        settled(page, "12 results")
        assert page.get_by_text("2 right, 1 wrong").is_visible()
        for name in (right, wrong):
            assert name.replace("/", "%2F") in page.url
        page.get_by_role("link", name="Start over").click()
        settled(page, "Random images")
        page.go_back()
        settled(page, "12 results")
        assert page.get_by_text("2 right, 1 wrong").is_visible()


def test_the_link_to_a_search_is_copied(served: Any, visit: Any) -> None:
    with visit(served.url + SEARCH + "&where.label=red") as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.get_by_role("link", name="Link to this search").click()
        announced(page, "Link copied")
        copied = page.evaluate("() => navigator.clipboard.readText()")
        assert copied == served.url + "/?id=red%2Fred-0.png&k=12&where.label=red"


def test_going_back_to_the_start_shows_the_same_pictures(served: Any, visit: Any) -> None:
    with visit(served.url + "/?k=12") as page:
        start = ids(page)
        page.wait_for_url("**seed=**")
        page.locator(".tile [data-search]").nth(2).click()
        settled(page, "12 results")
        page.go_back()
        settled(page, "Random images")
        assert ids(page) == start
        page.get_by_role("link", name="Show others").click()
        page.wait_for_function(
            "seen => seen.some((id, i) => document.querySelectorAll('.tile')[i].dataset.id !== id)",
            arg=start,
        )


def test_a_result_opens_after_going_back(served: Any, visit: Any) -> None:
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


# ── the large view ───────────────────────────────────────────────────────────────────────────────


def test_a_result_opens_large_and_is_searched_with(served: Any, visit: Any) -> None:
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


def test_buttons_step_through_the_large_view(served: Any, visit: Any) -> None:
    with visit(served.url + SEARCH, viewport=PHONE) as page:
        page.locator(".picture").first.click()
        view = page.get_by_role("dialog", name="red")
        view.wait_for()
        focused(page, "view-title")
        assert view.get_by_role("button", name="Previous result").is_disabled()
        view.get_by_role("button", name="Next result").click()
        view.get_by_text(ids(page)[1]).wait_for()
        assert view.get_by_role("button", name="Previous result").is_enabled()
        assert page.title() == "12 results · Colours"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


# ── keys, focus and screen readers ───────────────────────────────────────────────────────────────


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


def test_the_focus_stays_where_it_was(served: Any, visit: Any) -> None:
    with visit(served.url + SEARCH, expected=REPLACED) as page:
        page.get_by_label("Label").focus()
        page.keyboard.press("r")  # red
        page.wait_for_url("**where.label=red**")
        settled(page, "6 results")
        focused(page, "filter-0")
        page.get_by_label("Results", exact=True).focus()
        page.keyboard.press("4")
        page.wait_for_url("**k=48**")
        focused(page, "k")
        page.get_by_label("Label").select_option("")
        settled(page, "24 results")
        tile = page.locator(".tile").nth(3)
        name = tile.get_attribute("data-id")
        tile.get_by_label("Not like").press("Enter")
        page.locator(".example.against").wait_for()
        focused(page, "not")  # the same picture's, wherever it went
        at = "name => document.activeElement.closest('.tile').dataset.id === name"
        assert page.evaluate(at, name)
        page.get_by_role("link", name="Remove: not like").press("Enter")
        page.locator(".example.against").wait_for(state="detached")
        focused(page, "results")  # what had it is gone
        page.keyboard.press("ArrowRight")
        focused(page, "open")


def test_answers_are_announced(served: Any, visit: Any) -> None:
    with visit(served.url + SEARCH, expected=(*REFUSED, *REPLACED)) as page:
        live = page.locator("#announcement")
        assert live.get_attribute("role") == "status"
        assert page.locator("#app #announcement").count() == 0  # it is not swapped
        page.evaluate("document.getElementById('announcement').marked = true")
        page.get_by_label("Label").select_option("red")
        announced(page, "6 results, best: red, red-0.png, 1.000")
        assert page.evaluate("document.getElementById('announcement').marked")
        page.get_by_label("Domain").select_option("photo")
        announced(page, "3 results, best: red, red-0.png")
        page.locator("#more-filters-summary").click()
        page.get_by_label("From").fill("1000")
        page.keyboard.press("Enter")
        announced(page, "No matching images")
        assert page.title() == "0 results · Colours"
        page.get_by_role("link", name="Start over").click()
        announced(page, "24 random images")


def test_controls_have_roles_and_names(served: Any, visit: Any) -> None:
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


# ── small screens and wide ones ──────────────────────────────────────────────────────────────────


def test_on_a_phone_the_first_result_is_on_the_first_screen_and_filters_unfold(
    open_search: Open, visit: Any, tiny_clip: str, give: Any
) -> None:
    served = open_search(
        Embedder.build(tiny_clip, weights="random"),
        columns={"cost": [i + 0.25 for i in range(24)], "sku": [f"S-{i}" for i in range(24)]},
        show=("cost", "sku"),
    )
    with visit(served.url, viewport=PHONE) as page:
        give(page, served.bytes_of("red/red-0.png"), "paste")
        settled(page, "24 results")
        page.keyboard.press("/")
        page.keyboard.type("a dog")
        page.keyboard.press("Enter")
        page.wait_for_url("**text=a+dog**")
        settled(page, "24 results")
        first = page.locator(".tile").first.bounding_box()
        assert page.evaluate("scrollY") == 0 and first["y"] + first["height"] < PHONE["height"]
        price = page.get_by_role("group", name="Cost").get_by_label("From")
        assert not price.is_visible() and fits(page)
        page.get_by_role("button", name="Filters", exact=True).click()
        price.fill("10")
        price.press("Enter")
        settled(page, "14 results")
        page.get_by_role("button", name="Filters (1)").wait_for()
        assert not price.is_visible()
        shown = page.locator(".tile .fact bdi").all_inner_texts()
        assert len(shown) == 28 and all(float(text) >= 10 for text in shown[::2])
        assert shown[1].startswith("S-")


def test_on_a_phone_a_result_has_one_menu_on_a_wide_screen_words(served: Any, visit: Any) -> None:
    with visit(served.url + SEARCH) as page:
        tile = page.locator(".tile").nth(2)
        words = tile.locator(".actions span").all_inner_texts()
        assert words == ["Search with it", "Also like", "Not like", "Right", "Wrong"]
        assert tile.get_by_text("Not like").is_visible()
        assert not tile.get_by_role("button", name="Actions").is_visible()
        widths = "all => all.every(s => s.scrollWidth <= s.parentElement.clientWidth)"
        assert page.locator(".actions span").evaluate_all(widths)
    with visit(served.url + SEARCH, viewport=PHONE) as page:
        tile = page.locator(".tile").nth(2)
        menu = tile.get_by_role("button", name="Actions")
        assert not tile.get_by_text("Not like").is_visible()
        menu.click()
        assert tile.get_by_text("Not like").is_visible()
        assert menu.get_attribute("aria-expanded") == "true"
        page.keyboard.press("Escape")
        assert not tile.get_by_text("Not like").is_visible()
        focused(page, "menu")
        menu.click()
        page.locator(".tile").nth(1).get_by_role("button", name="Actions").click()
        assert page.locator(".tile.open").count() == 1
        menu.click()
        tile.get_by_label("right").check()
        assert page.locator(".tile.open").count() == 0 and "right=" in page.url
        menu.click()
        tile.get_by_label("Also like").click()
        page.locator(".example").nth(1).wait_for()
        settled(page, "12 results")
        focused(page, "menu")  # of the same result, wherever it is now


# ── errors and waiting ───────────────────────────────────────────────────────────────────────────


def test_errors_are_shown_and_the_page_still_works(
    open_search: Open, visit: Any, give: Any
) -> None:
    served = open_search(body_bytes=50_000)
    with visit(served.url, expected=REFUSED) as page:
        give(page, b"<html>this is no image", "drop")
        fault = page.get_by_role("alert")
        fault.wait_for()
        assert "web page, not an image" in fault.inner_text()
        give(page, b"x" * 60_000, "drop")
        page.get_by_text("larger than 0.0 MB").wait_for()
        give(page, served.bytes_of("red/red-0.png"), "drop")
        settled(page, "24 results")
        assert fault.count() == 0
        served.engine.uploads.clear()
        page.reload()
        assert "no longer kept" in page.get_by_role("alert").inner_text()
        assert page.get_by_role("heading", name="No results").is_visible()


def test_an_unreachable_server_is_reported(served: Any, visit: Any) -> None:
    with visit(served.url, expected=(*REFUSED, "/?", "htmx:")) as page:
        page.route("**/?*", lambda route: route.abort("connectionrefused"))
        page.get_by_label("Label").select_option("red")
        page.get_by_text("The server cannot be reached").wait_for()
        page.unroute("**/?*")
        page.get_by_label("Label").select_option("blue")
        page.locator(".fault").wait_for(state="detached")
        assert len(ids(page)) == 6


def test_an_answer_that_is_no_page_leaves_the_page_as_it_is(served: Any, visit: Any) -> None:
    with visit(served.url + "/?id=red/red-0.png&k=12", expected=REFUSED + REPLACED) as page:
        page.route("**/?*", lambda route: route.fulfill(status=502, body="bad gateway"))
        page.get_by_label("Label").select_option("red")
        page.get_by_text("The server cannot answer now (502)").wait_for()
        assert len(ids(page)) == 12


def test_a_missing_picture_shows_no_broken_image(served: Any, visit: Any) -> None:
    with visit(served.url + "/", expected=REFUSED) as page:
        scripts: list[Any] = []
        page.route("**/search.js", lambda route: scripts.append(route))
        with page.expect_response("**/thumb"):  # it fails before a script could hear of it
            page.goto(served.url + "/?id=gone.png", wait_until="commit")
        page.wait_for_function("() => document.images.length > 1 && document.images[1].complete")
        scripts[0].continue_()
        page.locator(".example img.gone").wait_for(state="attached")
        assert page.locator(".example img.gone").evaluate(
            "i => getComputedStyle(i).visibility"
        ) == ("hidden")


def test_the_progress_page_becomes_the_search(serving: Any, served: Any, visit: Any) -> None:
    from vizsla.web.search.app import create_app
    from vizsla.web.search.service import ServerState

    switch, url = serving
    state = ServerState("embedding", 3, 24)
    switch.app = create_app(state, title="Colours")
    with visit(url, expected=REFUSED) as page:
        assert page.get_by_text("3 of 24 images embedded").is_visible()
        state.done = 20
        page.get_by_text("20 of 24 images embedded").wait_for()
        assert page.locator("progress").get_attribute("value") == "20"
        state.engine = served.engine
        settled(page, "Random images")


# ── where it must work ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_has_enough_contrast(
    served: Any, visit: Any, contrast: Any, scheme: str
) -> None:
    address = "/?id=red/red-0.png&not_id=blue/blue-0.png&k=12"
    with visit(served.url + address, color_scheme=scheme) as page:
        for selector in READ:
            assert contrast(page, selector) >= 4.5, (scheme, selector)
        page.locator("#more-filters-summary").click()
        for viewport in (PHONE, {"width": 320, "height": 600}, DESKTOP):
            page.set_viewport_size(viewport)
            assert fits(page)
            page.locator(".picture").first.click()
            page.get_by_role("dialog").wait_for()
            assert fits(page)
            page.get_by_role("link", name="Close").click()


def ids_without_script(page: Any) -> list[str]:
    return [one.get_attribute("data-id") for one in page.locator(".tile").all()]


def test_the_page_works_without_javascript(served: Any, visit: Any) -> None:
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


@pytest.mark.parametrize("prefix", ["/search", "/a/b"])
def test_the_page_works_below_a_prefix(
    open_search: Open, visit: Any, prefix: str, give: Any
) -> None:
    served = open_search(prefix=prefix)
    with visit(served.url + "/", expected=REFUSED) as page:
        outside: list[str] = []
        page.on(
            "request", lambda r: None if r.url.startswith(served.url) else outside.append(r.url)
        )
        give(page, served.bytes_of("red/red-0.png"), "drop")
        settled(page, "24 results")
        page.get_by_label("Label").select_option("red")
        settled(page, "6 results")
        page.locator(".picture").first.click()
        view = page.get_by_role("dialog")
        view.wait_for()
        heat = view.locator("img[data-similarity]")
        heat.evaluate_all("all => Promise.all(all.map(i => i.decode()))")
        page.keyboard.press("Escape")
        give(page, b"<html>", "drop")
        page.get_by_role("alert").wait_for()
        assert page.url.startswith(served.url + "/?")  # which can be loaded again
        page.goto(served.url + "/no/such/page")
        page.get_by_role("link", name="Back to the search").click()
        settled(page, "Random images")
        assert page.url.startswith(served.url + "/") and outside == []
