"""A person draws a rectangle over the picture searched with: by mouse, touch and keys."""

import io
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def both(pictures: Any) -> bytes:
    """red-2 on the left, blue-3 on the right."""
    image = Image.new("RGB", (320, 120))
    for left, name in ((0, "red/red-2.png"), (160, "blue/blue-3.png")):
        image.paste(Image.open(pictures / name).resize((160, 120)), (left, 0))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def box_of(page: Any) -> list[float] | None:
    """The box in the address."""
    given = parse_qs(urlsplit(page.url).query).get("box")
    return [float(value) for value in given[0].split(",")] if given else None


def stage_of(page: Any) -> Any:
    """The picture to draw on, unfolded."""
    if page.locator("#part").get_attribute("open") is None:
        page.locator("#part-summary").click()
    stage = page.locator("#stage")
    stage.locator("img").evaluate("image => image.decode()")
    stage.scroll_into_view_if_needed()
    return stage


def points(stage: Any, *fractions: tuple[float, float]) -> list[tuple[float, float]]:
    at = stage.locator("img").bounding_box()
    return [(at["x"] + x * at["width"], at["y"] + y * at["height"]) for x, y in fractions]


def drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    first, last = points(page.locator("#stage"), start, end)
    page.mouse.move(*first)
    page.mouse.down()
    page.mouse.move(*last, steps=4)
    page.mouse.up()


def drawn(page: Any) -> list[float] | None:
    text = page.locator("#stage").get_attribute("data-box")
    return None if text is None else [float(value) for value in text.split(",")]


def first_result(page: Any) -> str:
    page.locator("#app[aria-busy=true]").wait_for(state="detached")
    name: str = page.locator(".tile").first.get_attribute("data-id")
    return name


def wait_for_box(page: Any, *, there: bool = True) -> None:
    page.wait_for_url(lambda url: ("box=" in url) == there)
    page.locator("#app[aria-busy=true]").wait_for(state="detached")


def test_a_part_is_drawn_with_the_mouse_searched_with_and_cleared(
    served: Any, visit: Any, give: Any, both: bytes
) -> None:
    with visit(served.url) as page:
        assert page.locator("#stage").count() == 0  # nothing to draw on
        give(page, both, "paste")
        page.locator(".example").wait_for()
        stage = stage_of(page)
        button = page.get_by_role("button", name="Search with this part")
        assert button.is_disabled()
        drag(page, (0.52, 0.05), (0.98, 0.95))
        assert drawn(page) == pytest.approx([0.52, 0.05, 0.46, 0.9], abs=0.01)
        assert box_of(page) is None  # not before it is asked for
        button.click()
        wait_for_box(page)
        assert first_result(page) == "blue/blue-3.png"
        assert box_of(page) == pytest.approx([0.52, 0.05, 0.46, 0.9], abs=0.01)
        assert page.locator(".thumb rect").count() == 1
        page.reload()  # the address is the search, and shows the rectangle
        assert first_result(page) == "blue/blue-3.png"
        stage = stage_of(page)
        frame = stage.locator(".frame").bounding_box()
        (left, _), (right, _) = points(stage, (0.52, 0), (0.98, 0))
        assert frame["x"] == pytest.approx(left, abs=3)
        assert frame["x"] + frame["width"] == pytest.approx(right, abs=3)
        drag(page, (0.75, 0.5), (0.2, 0.5))  # moved to the left
        assert drawn(page) == pytest.approx([0, 0.05, 0.46, 0.9], abs=0.02)
        page.get_by_role("button", name="Search with this part").click()
        page.wait_for_function("() => !location.search.includes('box=0.5')")
        assert first_result(page) == "red/red-2.png"
        page.go_back()
        page.wait_for_function("() => location.search.includes('box=0.5')")
        page.locator(".tile").first.and_(page.locator("[data-id='blue/blue-3.png']")).wait_for()
        page.locator(".whole-link").click()
        wait_for_box(page, there=False)
        assert page.locator(".thumb rect").count() == 0


def test_corners_change_the_size_and_a_click_leaves_the_rectangle(served: Any, visit: Any) -> None:
    with visit(served.url + "/?id=green/green-1.png&k=12") as page:
        stage_of(page)
        drag(page, (0.2, 0.2), (0.6, 0.6))
        drag(page, (0.6, 0.6), (0.9, 0.8))
        assert drawn(page) == pytest.approx([0.2, 0.2, 0.7, 0.6], abs=0.02)
        drag(page, (0.2, 0.2), (0.95, 0.9))  # beyond the opposite corner
        assert drawn(page) == pytest.approx([0.9, 0.8, 0.05, 0.1], abs=0.02)
        before = drawn(page)
        page.mouse.click(*points(page.locator("#stage"), (0.1, 0.1))[0])
        assert drawn(page) == before
        drag(page, (0.3, 0.3), (2.0, -1.0))  # outside of the picture
        assert drawn(page) == pytest.approx([0.3, 0, 0.7, 0.3], abs=0.02)


def test_a_part_is_drawn_with_keys(served: Any, visit: Any) -> None:
    with visit(served.url + "/?id=green/green-1.png&k=12") as page:
        stage_of(page)
        page.keyboard.press("Tab")
        page.wait_for_function("() => document.activeElement.id === 'stage'")
        outline = page.locator("#stage").evaluate("one => getComputedStyle(one).outlineStyle")
        assert outline == "solid"
        page.keyboard.press("ArrowRight")
        assert drawn(page) == [0.25, 0.25, 0.5, 0.5]
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Shift+ArrowDown")
        page.keyboard.press("Shift+ArrowLeft")
        assert drawn(page) == [0.31, 0.23, 0.48, 0.52]
        where = "From the left 31 %, from the top 23 %, 48 % wide, 52 % high"
        assert page.locator("#stage-where").inner_text() == where
        page.keyboard.press("Enter")
        wait_for_box(page)
        assert box_of(page) == [0.31, 0.23, 0.48, 0.52]
        wanted = {"id": "green/green-1.png", "k": 12, "box": "0.31,0.23,0.48,0.52"}
        shown = page.locator(".tile").evaluate_all("all => all.map(t => t.dataset.id)")
        assert shown == served.search(json=wanted)
        page.wait_for_function("() => document.activeElement.id === 'stage'")
        page.keyboard.press("Escape")
        wait_for_box(page, there=False)
        assert drawn(page) is None


def test_a_part_is_drawn_with_a_finger(served: Any, visit: Any) -> None:
    address = served.url + "/?id=green/green-1.png&k=12"
    with visit(address, viewport=PHONE, has_touch=True, is_mobile=True) as page:
        stage = stage_of(page)
        session = page.context.new_cdp_session(page)

        def swipe(*fractions: tuple[float, float]) -> None:
            for kind, place in zip(
                ("touchStart", "touchMove", "touchMove"), points(stage, *fractions), strict=True
            ):
                touch = [{"x": place[0], "y": place[1]}]
                session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touch})
            session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

        scrolled = page.evaluate("scrollY")
        swipe((0.1, 0.9), (0.3, 0.5), (0.5, 0.3))
        assert drawn(page) == pytest.approx([0.1, 0.3, 0.4, 0.6], abs=0.02)
        assert page.evaluate("scrollY") == scrolled  # the page stays where it is
        corner = stage.locator(".corner.se").bounding_box()
        assert min(corner["width"], corner["height"]) >= 44
        swipe((0.53, 0.93), (0.6, 0.9), (0.83, 0.83))  # beside the corner: a thumb is thick
        assert drawn(page) == pytest.approx([0.1, 0.3, 0.7, 0.5], abs=0.02)
        page.get_by_role("button", name="Search with this part").click()
        wait_for_box(page)
        assert page.locator("#part").get_attribute("open") is None  # the results are in sight
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_another_picture_is_searched_with_as_a_whole(
    served: Any, visit: Any, give: Any, both: bytes
) -> None:
    start = served.url + "/?id=green/green-1.png&k=12&box=0,0,0.5,0.5"
    with visit(start) as page:
        page.locator(".picture").nth(1).click()
        page.get_by_role("dialog").get_by_text("Searched with this part").wait_for()
        heat = page.get_by_role("dialog").locator("img[data-similarity]")
        heat.evaluate_all("all => Promise.all(all.map(i => i.decode()))")
        page.keyboard.press("Escape")
        page.get_by_label("Label").select_option("green")
        page.wait_for_url("**where.label=green**")
        assert box_of(page) == [0, 0, 0.5, 0.5]  # a filter leaves it
        give(page, both, "paste")
        wait_for_box(page, there=False)
        page.goto(start)
        page.locator("[data-act=search]").nth(2).click()
        wait_for_box(page, there=False)
        page.goto(start)
        page.locator("[data-act=also]").nth(2).click()  # two pictures have no one part
        wait_for_box(page, there=False)
        assert page.locator(".example").count() == 2 and page.locator("#stage").count() == 0


def test_a_part_in_pixels_and_an_impossible_one(served: Any, visit: Any) -> None:
    start = served.url + "/?id=green/green-1.png&k=12&box="
    with visit(start + "8,6,40,30") as page:
        found = page.locator(".tile").evaluate_all("all => all.map(t => t.dataset.id)")
        wanted = {"id": "green/green-1.png", "k": 12, "box": "0.1,0.1,0.5,0.5"}
        assert found == served.search(json=wanted)
        assert page.get_by_text("like a part of").is_visible()
    with visit(start + "0,0,90,5", expected=("Failed to load resource",)) as page:
        assert page.get_by_text("beyond the picture, which is 80 × 60 pixels").is_visible()
        page.locator(".whole-link").click()
        page.get_by_role("heading", name="12 results").wait_for()


def test_a_part_is_written_without_javascript(served: Any, visit: Any) -> None:
    address = served.url + "/?id=green/green-1.png&k=12"
    with visit(address, java_script_enabled=False) as page:
        page.get_by_label("Part of the picture").fill("0.1,0.1,0.5,0.5")
        with page.expect_navigation():
            page.get_by_role("button", name="Filter", exact=True).click()
        assert box_of(page) == [0.1, 0.1, 0.5, 0.5]
        assert page.locator(".thumb rect").count() == 1


def test_matching_points_fit_a_phone(served: Any, visit: Any) -> None:
    pytest.importorskip("cv2", reason="needs the extra local")
    with visit(served.url + "/?id=green/green-1.png&k=12", viewport=PHONE) as page:
        page.locator(".picture").nth(1).click()
        view = page.get_by_role("dialog")
        view.get_by_text("Matching points").click()
        drawing = view.locator(".points img")
        drawing.scroll_into_view_if_needed()
        page.wait_for_function("() => document.querySelector('.points img').naturalWidth > 0")
        natural, shown = drawing.evaluate("image => [image.naturalWidth, image.clientWidth]")
        assert natural > shown > 250
        assert view.evaluate("one => one.scrollWidth <= one.clientWidth")
        assert drawing.evaluate("image => image.currentSrc").endswith("&narrow=1")
        large = view.get_by_title("Open it at full size").get_attribute("href")
        assert large == drawing.get_attribute("src")


def test_the_place_of_matching_points_says_what_happens(served: Any, visit: Any) -> None:
    pytest.importorskip("cv2", reason="needs the extra local")
    said = "a => getComputedStyle(a, '::before').content"
    waiting: list[Any] = []
    address = served.url + "/view?id=green/green-1.png&result=green/green-2.png"
    with visit(address, expected=("Failed to load resource",)) as page:
        page.route("**/points.png**", lambda route: waiting.append(route))
        page.get_by_text("Matching points").click()
        place = page.locator(".points a")
        place.scroll_into_view_if_needed()
        while not waiting:
            page.wait_for_timeout(20)
        assert place.evaluate(said) == '"Drawing …"' and place.bounding_box()["height"] > 80
        waiting[0].fulfill(status=503)
        page.locator(".points img.gone").wait_for(state="attached")
        assert place.evaluate(said) == '"cannot be drawn"'
