"""The HTML of the search pages, without a browser: each address reproduces its search."""

import csv
import io
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image

from vizsla.model.embedder import Embedder
from vizsla.web.search.page_state import State

Open = Callable[..., Any]
HTML = {"Accept": "text/html"}


class Page(HTMLParser):
    """The tags of a page: (name, attributes)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and wanted.items() <= a.items()]


def page_at(served: Any, address: str, status: int = 200) -> Page:
    answer = served.get(address, headers=HTML)
    assert answer.status_code == status, answer.text[-2000:]
    return Page(answer.text)


def tiles(page: Page) -> list[str | None]:
    return [a["data-id"] for a in page.all("li") if "data-id" in a]


def test_the_start_page_shows_random_pictures(served: Any) -> None:
    first, second = (tiles(page_at(served, "/?k=12")) for _ in range(2))
    assert len(first) == 12 and first != second
    assert tiles(page_at(served, "/?seed=7")) == tiles(page_at(served, "/?seed=7"))
    only = tiles(page_at(served, "/?where.label=red&k=48"))
    assert len(only) == 6 and all(str(name).startswith("red/") for name in only)


def test_an_address_with_empty_fields_is_redirected(served: Any) -> None:
    answer = served.get("/?id=red/red-0.png&where.label=&filter=&k=24&from.price=+", headers=HTML)
    assert (answer.status_code, answer.headers["location"]) == (303, "./?id=red%2Fred-0.png")
    assert served.get("/?where.label=&text=", headers=HTML).headers["location"] == "./"


def test_an_address_is_a_search(served: Any) -> None:
    page = page_at(served, "/?id=red/red-0.png&k=12&where.domain=photo&right=red/red-2.png")
    body = {"id": "red/red-0.png", "k": 12, "right": "red/red-2.png", "filter": "domain=photo"}
    assert tiles(page) == served.search(json=body)
    assert page.all("input", name="id", value="red/red-0.png")
    assert "checked" in page.all("input", name="right", value="red/red-2.png")[0]
    (chosen,) = [a for a in page.all("option", value="photo") if "selected" in a]
    assert chosen["value"] == "photo"


def test_every_link_of_a_page_leads_to_a_search(served: Any) -> None:
    page = page_at(served, "/?id=a%20%26%20%3Cb%3E/a-0.png&where.label=a%20%26%20%3Cb%3E&k=12")
    links = {str(a["href"]) for a in page.all("a") if str(a["href"]).startswith("./")}
    assert len(links) > 18
    for link in links:
        assert served.get(link[1:], headers=HTML).status_code == 200, link
    images = {str(a["src"]) for a in page.all("img")}
    for image in images:
        assert served.get("/" + image).status_code == 200, image


def test_a_text_field_is_shown_if_the_model_reads_text(open_search: Open, tiny_clip: str) -> None:
    served = open_search(Embedder.build(tiny_clip, weights="random"))
    page = page_at(served, "/?text=a+dog&not_text=cat&k=12")
    assert page.all("input", name="text", value="a dog")
    assert page.all("input", name="not_text", value="cat") and page.all("details")
    assert tiles(page) == served.search(json={"text": "a dog", "not_text": "cat", "k": 12})


def test_no_text_field_is_shown_if_the_model_reads_none(served: Any) -> None:
    assert not page_at(served, "/").all("input", name="text")
    answer = served.get("/?text=a+dog", headers=HTML)
    assert answer.status_code == 422 and "Colours does not read text" in answer.text


def test_an_upload_leads_to_its_search_and_keeps_the_choices(served: Any) -> None:
    data = {"state": "where.label=red&k=12&id=blue%2Fblue-0.png&right=blue%2Fblue-1.png"}
    files = {"image": ("x", served.bytes_of("red/red-3.png"))}
    answer = served.client.post("/queries", files=files, data=data)
    assert answer.status_code == 303
    address = answer.headers["location"][1:]
    page = page_at(served, address)
    assert tiles(page)[0] == "red/red-3.png" and len(tiles(page)) == 6
    assert "where.label=red" in address and "k=12" in address
    assert "blue" not in address  # another search begins
    shown = {str(a["src"]) for a in page.all("img") if str(a["src"]).startswith("queries/")}
    assert len(shown) == 1  # small, and large to draw a part on
    assert served.get("/" + shown.pop()).headers["content-type"] == "image/jpeg"
    served.engine.uploads.clear()
    gone = served.get(address, headers=HTML)
    assert gone.status_code == 404 and "no longer kept" in gone.text
    assert page_at(served, address, 404).all("form", id="search")  # one can go on


@pytest.mark.parametrize(
    ("files", "message"),
    [({"image": ("x", b"<html>")}, "a web page"), ({"image": ("", b"")}, "Choose an image first"),
     ({"other": ("x", b"1")}, "Choose an image first")],
)  # fmt: skip
def test_unusable_uploads_are_explained_on_the_page(served: Any, files: dict, message: str) -> None:
    answer = served.client.post("/queries", files=files)
    assert answer.status_code == 422 and message in answer.text and 'role="alert"' in answer.text


def test_marks_are_exported(served: Any) -> None:
    address = "/marks.csv?id=red/red-0.png&right=red/red-1.png&wrong=a+%26+%3Cb%3E/a-0.png"
    answer = served.get(address)
    assert answer.headers["content-type"].startswith("text/csv")
    assert "attachment" in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["image"], row["label"], row["mark"]) for row in rows] == [
        ("red/red-1.png", "red", "right"),
        ("a & <b>/a-0.png", "a & <b>", "wrong"),
    ]
    assert {row["search"] for row in rows} == {"id=red%2Fred-0.png"}
    assert tiles(page_at(served, "/?" + rows[0]["search"]))[0] == "red/red-0.png"


def test_heat_maps_are_drawn_for_a_search_with_a_picture(served: Any) -> None:
    address = "id=red/red-0.png&result=red/red-1.png"
    page = page_at(served, f"/view?{address}")
    heat = [str(a["src"]) for a in page.all("img") if str(a["src"]).startswith("similarity/")]
    assert len(heat) == 2
    drawn = [served.get("/" + path) for path in heat]
    assert [one.headers["content-type"] for one in drawn] == ["image/jpeg"] * 2
    assert drawn[0].content != drawn[1].content
    assert served.get("/" + heat[0]).content == drawn[0].content
    (upload,) = served.post(image="red/red-0.png").json()["queries"]
    assert (
        served.get(f"/similarity/query.jpg?query={upload}&result=red/red-1.png").status_code == 200
    )
    assert served.get("/similarity/query.jpg?text=a&result=red/red-1.png").status_code == 404
    assert served.get(f"/similarity/other.jpg?{address}").status_code == 422
    assert not [a for a in page_at(served, "/view?result=red/red-1.png").all("img") if "why" in a]


@pytest.mark.parametrize(
    "address", ["/?k=9999", "/?seed=-1", "/?seed=" + "9" * 400, "/?where.label=none-such-label",
                "/?where.colour=red", "/?filter=x", "/?id=gone.png", "/view?result=gone.png",
                "/?id=%ff", "/?text=%00", "/?right=x"],
)  # fmt: skip
def test_odd_addresses_get_a_page(served: Any, address: str) -> None:
    answer = served.get(address, headers=HTML)
    assert answer.status_code in (200, 404, 422)
    assert 'id="search"' in answer.text
    assert 'role="alert"' in answer.text or "No matching images" in answer.text


def test_matching_points_are_drawn_where_opencv_is(served: Any) -> None:
    pytest.importorskip("cv2", reason="needs the extra local")
    address = "id=red/red-0.png&result=red/red-1.png"
    [shown] = [str(image["src"]) for image in page_at(served, f"/view?{address}").all("img")
               if str(image["src"]).startswith("points.png")]  # fmt: skip
    drawn = served.get("/" + shown)
    assert drawn.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(drawn.content)).size == (2 * 448 + 12, 448 + 36)
    for_phones = Image.open(io.BytesIO(served.get(f"/{shown}&narrow=1").content))
    assert for_phones.size == (2 * 448 + 12, 448 + 70)  # with larger words
    assert served.get("/points.png?text=a&result=red/red-1.png").status_code == 404
    (upload,) = served.post(image="red/red-0.png").json()["queries"]
    assert served.get(f"/points.png?query={upload}&result=red/red-1.png").status_code == 200


def links(page: Page) -> list[str]:
    return [str(a["href"]) for a in page.all("a") if str(a["href"]).startswith("./?")]


def test_links_keep_the_seed_of_random_pictures(served: Any) -> None:
    page = page_at(served, "/?k=12")
    address = str(page.all("main")[0]["data-address"])
    assert "seed=" in address and tiles(page_at(served, "/?" + address)) == tiles(page)
    (seed,) = page.all("input", name="seed")
    assert f"seed={seed['value']}" in address
    views = [str(a["href"]) for a in page.all("a") if "data-open" in a]
    assert len(views) == 12 and all(f"seed={seed['value']}" in view for view in views)
    (others,) = page.all("a", id="others")
    assert "seed" not in str(others["href"])
    assert not page_at(served, "/?id=red/red-0.png").all("input", name="seed")


def test_an_invalid_condition_is_explained_at_its_field(served: Any) -> None:
    page = page_at(served, "/?filter=price<5&filter=colour%3Dred&from.price=abc", 422)
    wrong = [a for t, a in page.tags if a.get("aria-invalid")]
    assert [a["name"] for a in wrong] == ["from.price", "filter"]
    assert wrong[1]["value"] == "colour=red"
    for field in wrong:
        (fault,) = page.all("span", id=str(field["aria-describedby"]).split()[0])
        assert fault["role"] == "alert"
    assert [a["value"] for a in page.all("input", name="filter")] == [
        "price<5", "colour=red", "",
    ]  # fmt: skip
    assert "open" in page.all("details", id="more-filters")[0]
    assert not page.all("div", **{"class": "fault"}) and not tiles(page)


def test_ranges_and_written_conditions_filter(served: Any) -> None:
    page = page_at(served, "/?id=red/red-0.png&from.price=3&to.price=8&filter=label!%3Dgreen")
    wanted = ["price>=3", "price<=8", "label!=green"]
    assert tiles(page) == served.search(json={"id": "red/red-0.png", "filter": wanted})
    assert page.all("input", name="from.price", value="3")
    assert len(page.all("input", name="filter")) == 2  # it, and room for another


def test_values_are_suggested(open_search: Open) -> None:
    maker = [f"<b> {i}" for i in range(24)]
    numbers = [str(i) for i in range(24)]
    served = open_search(columns={"maker & co": maker, "n": numbers, "label2": numbers})
    engine = served.engine
    assert engine.gallery.facets[0].column == "label"
    answer = served.get("/values", params={"column": "n", "where.n": "2"})
    assert answer.headers["content-type"].startswith("text/html")
    assert [a["value"] for a in Page(answer.text).all("option")] == ["2", "20", "21", "22", "23",
                                                                    "12"]  # fmt: skip
    odd = served.get("/values", params={"column": "maker & co", "where.maker & co": "<b>"})
    assert "&lt;b&gt;" in odd.text and "<b>" not in odd.text
    assert served.get("/values?column=none").status_code == 404
    assert served.get("/values").status_code == 404


def test_attributes_are_offered_only_if_their_filter_works(open_search: Open) -> None:
    letters = [chr(97 + i % 3) for i in range(24)]
    served = open_search(columns={"ID": letters, "a=b": letters, "same": ["x"] * 24})
    page = page_at(served, "/")
    names = [str(a["name"]) for a in page.all("select")]
    assert names == ["where.label", "where.ID", "where.domain", "k", "group_by"]
    assert len(tiles(page_at(served, "/?where.ID=b&k=48"))) == 8
    assert len(page.all("input", name="filter")) == 1
    assert len(tiles(page_at(served, "/?where.same=x&k=24"))) == 24  # shown as a condition
    assert page_at(served, "/?where.same=x").all("input", name="filter", value='same="x"')
    named = served.get("/", headers=HTML).text.partition('id="written-note"')[2].partition("<")[2]
    assert "label, ID, domain, price" in named and "a=b" not in named


def test_a_dropped_picture_joins_others(served: Any) -> None:
    files = {"image": ("x", served.bytes_of("red/red-3.png"))}

    def dropped(use: str) -> str:
        data = {"state": "id=blue/blue-0.png&right=blue/blue-1.png", "use": use}
        answer = served.client.post("/queries", files=files, data=data)
        assert answer.status_code == 303, answer.text
        return str(answer.headers["location"])[1:]

    (name,) = served.post(image="red/red-3.png").json()["queries"]
    both, against = dropped("also"), dropped("not")
    body = {"id": "blue/blue-0.png", "right": "blue/blue-1.png"}
    assert tiles(page_at(served, both)) == served.search(json={**body, "query": name})
    assert tiles(page_at(served, against)) == served.search(json={**body, "not_query": name})
    page = page_at(served, against)
    assert page.all("input", name="not_query", value=name)
    answer = served.client.post("/queries", files=files, data={"use": "x"})
    assert answer.status_code == 422 and "choose with, also, not" in answer.text


def test_missing_pages_are_404(served: Any) -> None:
    answer = served.get("/a/b/c", headers=HTML)
    assert answer.status_code == 404 and 'href="../../static/search.css"' in answer.text
    assert served.get("/a/b/c").json() == {"error": "there is nothing here"}


def test_errors_and_open_routes_work_below_a_prefix(open_search: Open) -> None:
    served = open_search(prefix="/deep/search", token="a-token-that-is-long")
    for path in ("/healthz", "/static/search.css"):
        assert served.client.get(served.url + path).status_code == 200
    assert served.client.get(served.url + "/").status_code == 401
    served.client.headers["Authorization"] = "Bearer a-token-that-is-long"
    answer = served.client.get(served.url + "/a/b", headers=HTML)
    assert answer.status_code == 404 and 'href="../static/search.css"' in answer.text


# ── groups ───────────────────────────────────────────────────────────────────────────────────────


def test_the_page_shows_groups(shop: Any) -> None:
    first = "red/red-0.png"
    page = page_at(shop, f"/?id={first}&group_by=product&k=12")
    assert tiles(page) == shop.search(json={"id": first, "group_by": "product", "k": 12})
    chosen = page.all("option", value="product")
    assert len(chosen) == 1 and "selected" in chosen[0]
    assert {a.get("value") for a in page.all("option")} >= {"label", "domain", "product", "stars"}
    links = [a["href"] for a in page.all("a") if "where.product=" in str(a.get("href"))]
    assert len(links) == 7  # of those with several images
    of_first = tiles(page_at(shop, str(links[0]).removeprefix(".")))
    assert len(of_first) == 3 and of_first[0] == first
    assert page_at(shop, f"/?id={first}&k=12").all("option", value="product")


def test_the_page_varies_its_results(shop: Any) -> None:
    first = "red/red-0.png"
    assert "checked" not in switch(page_at(shop, f"/?id={first}"))
    page = page_at(shop, f"/?id={first}&diverse=0.2&k=12")
    assert "checked" in switch(page) and switch(page)["value"] == "0.2"
    assert tiles(page) == shop.search(json={"id": first, "diverse": 0.2, "k": 12})


def switch(page: Page) -> dict[str, str | None]:
    (found,) = page.all("input", name="diverse")
    return found


def test_searching_with_a_result_keeps_what_a_result_is() -> None:
    fields = {"id": ["a.png"], "group_by": ["product"], "diverse": ["0.5"], "filter": ["price<9"]}
    state = State.parse(fields, max_k=50)
    assert state.search_with("b.png") == "id=b.png&filter=price%3C9&group_by=product&diverse=0.5"
    assert "group_by" not in state.among("product", "P1")
    assert "where.product=P1" in state.among("product", "P1")


def test_prices_on_results_have_two_places(open_search: Open) -> None:
    cost = [i + (0.5 if i % 2 else 0.25) for i in range(24)]
    served = open_search(columns={"cost": cost}, show=("cost",))
    titles = [str(a.get("title")) for a in page_at(served, "/?k=24").all("p")]
    shown = {title for title in titles if title.startswith("cost: ")}
    assert shown == {f"cost: {value:.2f}" for value in cost}
