"""The search page as it is sent, without a browser: every address gives back what it says."""

import csv
import io
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from vizsla.model.embedder import Embedder
from vizsla.web.serve_pages import State

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


def test_it_starts_with_pictures_at_random(served: Any) -> None:
    first, second = (tiles(page_at(served, "/?k=12")) for _ in range(2))
    assert len(first) == 12 and first != second
    assert tiles(page_at(served, "/?seed=7")) == tiles(page_at(served, "/?seed=7"))
    only = tiles(page_at(served, "/?where.label=red&k=48"))
    assert len(only) == 6 and all(str(name).startswith("red/") for name in only)


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


def test_words_are_asked_for_where_the_model_reads_them(open_search: Open, tiny_clip: str) -> None:
    served = open_search(Embedder.build(tiny_clip, weights="random"))
    page = page_at(served, "/?text=a+dog&not_text=cat&k=12")
    assert page.all("input", name="text", value="a dog")
    assert page.all("input", name="not_text", value="cat") and page.all("details")
    assert tiles(page) == served.search(json={"text": "a dog", "not_text": "cat", "k": 12})


def test_no_words_box_where_the_model_reads_none(served: Any) -> None:
    assert not page_at(served, "/").all("input", name="text")
    answer = served.get("/?text=a+dog", headers=HTML)
    assert answer.status_code == 422 and "Colours reads no text" in answer.text


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
    (shown,) = [a for a in page.all("img") if str(a["src"]).startswith("queries/")]
    assert served.get("/" + str(shown["src"])).headers["content-type"] == "image/jpeg"
    served.engine.uploads._kept.clear()
    gone = served.get(address, headers=HTML)
    assert gone.status_code == 404 and "no longer kept" in gone.text
    assert page_at(served, address, 404).all("form", id="search")  # one can go on


@pytest.mark.parametrize(
    ("files", "said"),
    [({"image": ("x", b"<html>")}, "a web page"), ({"image": ("", b"")}, "Choose a picture first"),
     ({"other": ("x", b"1")}, "Choose a picture first")],
)  # fmt: skip
def test_uploads_that_cannot_be_used_say_so_on_the_page(
    served: Any, files: dict, said: str
) -> None:
    answer = served.client.post("/queries", files=files)
    assert answer.status_code == 422 and said in answer.text and 'role="alert"' in answer.text


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


def test_why_is_drawn_for_a_search_with_a_picture(served: Any) -> None:
    asked = "id=red/red-0.png&result=red/red-1.png"
    page = page_at(served, f"/view?{asked}")
    heat = [str(a["src"]) for a in page.all("img") if str(a["src"]).startswith("why/")]
    assert len(heat) == 2
    drawn = [served.get("/" + path) for path in heat]
    assert [one.headers["content-type"] for one in drawn] == ["image/jpeg"] * 2
    assert drawn[0].content != drawn[1].content
    assert served.get("/" + heat[0]).content == drawn[0].content
    (upload,) = served.post(image="red/red-0.png").json()["queries"]
    assert served.get(f"/why/query.jpg?query={upload}&result=red/red-1.png").status_code == 200
    assert served.get("/why/query.jpg?text=a&result=red/red-1.png").status_code == 404
    assert served.get(f"/why/other.jpg?{asked}").status_code == 422
    assert not [a for a in page_at(served, "/view?result=red/red-1.png").all("img") if "why" in a]


@pytest.mark.parametrize(
    "address", ["/?k=9999", "/?seed=-1", "/?seed=" + "9" * 400, "/?where.label=none-such-label",
                "/?where.colour=red", "/?filter=x", "/?id=gone.png", "/view?result=gone.png",
                "/?" + "a=1&" * 3000, "/?id=%ff", "/?text=%00", "/?right=x"],
)  # fmt: skip
def test_odd_addresses_get_a_page(served: Any, address: str) -> None:
    answer = served.get(address, headers=HTML)
    assert answer.status_code in (200, 404, 422)
    assert 'id="search"' in answer.text and ("role=\"alert\"" in answer.text or "No picture fits"
                                             in answer.text)  # fmt: skip


def test_pages_that_are_not_there(served: Any) -> None:
    answer = served.get("/a/b/c", headers=HTML)
    assert answer.status_code == 404 and 'href="../../static/serve.css"' in answer.text
    assert served.get("/a/b/c").json() == {"error": "there is nothing here"}


def test_a_state_gives_its_address_back() -> None:
    fields = {"id": ["a b.jpg"], "where.x y": ["1&2"], "k": ["12"], "unknown": ["x"]}
    state = State.parse(fields, most_k=50)
    assert state.address() == "id=a+b.jpg&k=12&where.x+y=1%262"
    assert state.conditions.filter == ('x y="1&2"',)
    assert "not_id=c.jpg" in state.also("not_id", "c.jpg")
    assert state.search_with("c.jpg") == "id=c.jpg&k=12&where.x+y=1%262"
    assert state.lacking("id", "a b.jpg") == "k=12&where.x+y=1%262"
