"""The search page for those who do not use a mouse, or do not see it; and what is kept of a search.

In headless Chromium, as in test_serve_browser.
"""

from collections.abc import Callable
from typing import Any

import pytest

Open = Callable[..., Any]
REFUSED = ("Failed to load resource",)  # what the console says of every 4xx
GIVEN_UP = ("htmx:",)  # what htmx logs of a request that a later choice replaces
PHONE = {"width": 390, "height": 844}
SEARCH = "/?id=red/red-0.png&k=12"


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


def said(page: Any, text: str) -> None:
    page.wait_for_function(
        "text => document.getElementById('announcement').textContent.startsWith(text)", arg=text
    )


def test_the_focus_stays_where_it_was(served: Any, visit: Any) -> None:
    with visit(served.url + SEARCH, expected=GIVEN_UP) as page:
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


def test_answers_are_said(served: Any, visit: Any) -> None:
    with visit(served.url + SEARCH, expected=(*REFUSED, *GIVEN_UP)) as page:
        live = page.locator("#announcement")
        assert live.get_attribute("role") == "status"
        assert page.locator("#app #announcement").count() == 0  # it is not swapped
        page.evaluate("document.getElementById('announcement').marked = true")
        page.get_by_label("Label").select_option("red")
        said(page, "6 results, best: red, red-0.png, 1.000")
        assert page.evaluate("document.getElementById('announcement').marked")
        page.get_by_label("Domain").select_option("photo")
        said(page, "3 results, best: red, red-0.png")
        page.locator("#more-filters-summary").click()
        page.get_by_label("From").fill("1000")
        page.keyboard.press("Enter")
        said(page, "No matching pictures")
        assert page.title() == "0 results · Colours"
        page.get_by_role("link", name="Start over").click()
        said(page, "24 random pictures")


def test_what_is_typed_while_an_answer_comes_is_kept(served: Any, visit: Any, until: Any) -> None:
    with visit(served.url + SEARCH, expected=GIVEN_UP) as page:
        page.locator("#more-filters-summary").click()
        held: list[Any] = []
        page.route("**/?*", lambda route: held.append(route))
        page.get_by_label("Label").select_option("red")
        page.locator("#app[aria-busy=true]").wait_for()
        until(page, lambda: bool(held))  # the page is busy before its request goes out
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


def test_a_filter_that_cannot_be_used_is_said_in_its_place(served: Any, visit: Any) -> None:
    with visit(served.url + SEARCH, expected=(*REFUSED, *GIVEN_UP)) as page:
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


def test_many_values_are_typed_with_suggestions(open_search: Open, visit: Any, more: Any) -> None:
    served = open_search(columns={"maker": more})
    with visit(served.url + SEARCH, expected=GIVEN_UP) as page:
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


@pytest.fixture
def more(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """24 values, which are too many for a list."""
    monkeypatch.setattr("vizsla.web.search.facets.MAX_LISTED", 10)
    return [f"maker {i}" for i in range(24)]


def test_dropped_pictures_are_added_as_wanted_and_unwanted(
    served: Any, visit: Any, give: Any
) -> None:
    with visit(served.url + "/?id=red/red-0.png&right=red/red-1.png&k=12") as page:
        page.get_by_label("also like it").check()
        give(page, served.bytes_of("blue/blue-0.png"), "paste")
        page.locator(".example").nth(1).wait_for()
        settled(page, "12 results")
        assert "id=red" in page.url and "query=" in page.url and "right=red" in page.url
        (name,) = served.post(image="blue/blue-0.png").json()["queries"]
        asked = {"id": "red/red-0.png", "right": "red/red-1.png", "query": name, "k": 12}
        assert ids(page) == served.search(json=asked)
        give(page, served.bytes_of("green/green-0.png"), "drop", "#drop [data-use=not]")
        page.locator(".example.against").wait_for()
        settled(page, "12 results")
        assert page.locator(".example").count() == 3 and "not_query=" in page.url
        page.get_by_role("link", name="Like your picture 1 instead", exact=True).click()
        page.locator(".example.against").wait_for(state="detached")
        assert page.locator(".example").count() == 3
        page.get_by_role("link", name="Remove: like red-0.png").click()
        page.wait_for_function("() => document.querySelectorAll('.example').length === 2")
        assert "id=red" not in page.url and "right=red" in page.url


def test_marks_go_along_with_links_and_outlast_a_reload(served: Any, visit: Any) -> None:
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
        settled(page, "Random pictures")
        page.go_back()
        settled(page, "12 results")
        assert page.get_by_text("2 right, 1 wrong").is_visible()


def test_the_link_to_a_search_is_copied(served: Any, visit: Any) -> None:
    with visit(served.url + SEARCH + "&where.label=red") as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.get_by_role("link", name="Link to this search").click()
        said(page, "Link copied")
        copied = page.evaluate("() => navigator.clipboard.readText()")
        assert copied == served.url + "/?id=red%2Fred-0.png&k=12&where.label=red"


def test_going_back_to_the_start_shows_the_same_pictures(served: Any, visit: Any) -> None:
    with visit(served.url + "/?k=12") as page:
        start = ids(page)
        page.wait_for_url("**seed=**")
        page.locator(".tile [data-search]").nth(2).click()
        settled(page, "12 results")
        page.go_back()
        settled(page, "Random pictures")
        assert ids(page) == start
        page.get_by_role("link", name="Show others").click()
        page.wait_for_function(
            "seen => seen.some((id, i) => document.querySelectorAll('.tile')[i].dataset.id !== id)",
            arg=start,
        )


@pytest.mark.parametrize("prefix", ["/search", "/a/b"])
def test_it_works_below_a_prefix(open_search: Open, visit: Any, prefix: str, give: Any) -> None:
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
        settled(page, "Random pictures")
        assert page.url.startswith(served.url + "/") and outside == []


def test_a_picture_that_is_gone_leaves_no_broken_sign(served: Any, visit: Any) -> None:
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


def test_the_large_view_is_stepped_through_by_buttons(served: Any, visit: Any) -> None:
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
