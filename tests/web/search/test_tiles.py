"""A gallery whose images have tiles, over the API and on the page."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.web.conftest import colours, png
from vizsla.data.tiles import Tiles
from vizsla.errors import DataError
from vizsla.web.search.client import SearchClient

RED = (200, 30, 40)


@pytest.fixture
def parts(open_search: Callable[..., Any], tmp_path: Path) -> Any:
    """Grey images, one of them with a red corner at the lower right."""
    for name, tint in (("a", (90, 90, 90)), ("b", (120, 120, 120))):
        (tmp_path / "hosts" / name).mkdir(parents=True)
        for i in range(2):
            image = Image.new("RGB", (90, 90), tint)
            if (name, i) == ("b", 1):
                image.paste(RED, (30, 30, 90, 90))
            image.save(tmp_path / "hosts" / name / f"{i}.png")
    return open_search(colours().with_tiles("2x2"), folder=tmp_path / "hosts")


def test_the_part_that_was_found_is_named(parts: Any) -> None:
    answer = parts.post(image=png(RED)).json()["results"]
    tiles = Tiles.parse("2x2")
    assert tiles is not None
    assert answer[0]["id"] == "b/1.png" and answer[0]["box"] == list(tiles.boxes[4])
    with SearchClient(parts.url) as client:
        found = client.search(png(RED), k=4)
    assert found[0].box == list(tiles.boxes[4]) and len({hit.id for hit in found}) == 4


def test_the_part_is_framed_on_the_page(parts: Any) -> None:
    name = parts.post(image=png(RED)).json()["queries"][0]
    page = httpx.get(f"{parts.url}/", params={"query": name}).text
    x, y, w, h = parts.engine.gallery.index.view.snapshot.tiles.boxes[4]
    assert page.count(f'x="{x}" y="{y}" width="{w}" height="{h}"') == 2
    assert '<span class="fit">' in page


def test_an_image_is_not_added_with_the_vector_of_its_whole_alone(parts: Any) -> None:
    with pytest.raises(DataError, match=r"parts of its images.*vizsla index add"):
        parts.engine.add(png(RED), name="c")
    assert len(parts.engine.gallery.index) == 4


def test_whole_images_have_no_part(served: Any) -> None:
    answer = served.post(image=png(RED)).json()["results"]
    assert all(one["box"] is None for one in answer)


def test_an_image_is_searched_with_by_its_parts(parts: Any) -> None:
    halves = Image.new("RGB", (90, 90), RED)
    halves.paste((120, 120, 120), (0, 0, 90, 45))
    file = io.BytesIO()
    halves.save(file, "PNG")
    index = parts.engine.gallery.index
    wanted = index.search(
        Image.open(file), 4, query_tiles="1x2", embedder=colours().with_tiles("2x2")
    )
    sent = parts.post(image=file.getvalue(), data={"k": 4, "query_tiles": "1x2"}).json()
    found = [(one["id"], one["score"]) for one in sent["results"]]
    assert [name for name, _ in found] == wanted.row(0)
    assert [score for _, score in found] == pytest.approx(wanted.scores[0].tolist(), abs=1e-5)
    assert [one["score"] for one in parts.post(image=file.getvalue()).json()["results"]] != [
        score for _, score in found
    ]
    (kept,) = sent["queries"]
    for more in ({}, {"box": "0,0.5,1,0.5"}, {"group_by": "label"}):
        body = {"query": kept, "k": 4, "query_tiles": "1x2", **more}
        assert parts.post(json=body).json()["results"][0]["id"] == "b/1.png"
    page = httpx.get(f"{parts.url}/", params={"query": kept, "query_tiles": "1x2"}).text
    assert ">the whole picture</option>" in page
    of_part = httpx.get(f"{parts.url}/", params={"query": kept, "box": "0,0,0.5,0.5"}).text
    assert ">the whole part</option>" in of_part and ">the whole picture<" not in of_part
    assert "<option selected>1+1x2</option>" in page and f"{found[0][1]:.3f}" in page
    mixed = httpx.get(f"{parts.url}/?query={kept}&id=a/0.png&query_tiles=1x2").text
    assert "query_tiles" not in mixed and "No results" not in mixed


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"id": "a/0.png", "query_tiles": "2y2"}, "'2y2' is not a grid"),
        ({"id": "a/0.png", "query_tiles": "4x5"}, "are 21 parts: choose up to 16"),
        ({"id": ["a/0.png", "a/1.png"], "query_tiles": "2x2"}, "are parts of one image"),
        ({"id": "a/0.png", "not_id": "a/1.png", "query_tiles": "2x2"}, "are parts of one image"),
        ({"id": "a/0.png", "right": "a/1.png", "query_tiles": "2x2"}, "are parts of one image"),
    ],
)
def test_parts_that_cannot_be_searched_with_are_refused(
    parts: Any, body: dict[str, Any], message: str
) -> None:
    answer = parts.post(json=body)
    assert answer.status_code == 422 and message in answer.json()["error"]


def test_parts_are_chosen_on_the_page(parts: Any, visit: Callable[..., Any]) -> None:
    with visit(f"{parts.url}/?id=b/1.png") as page:
        page.locator("#query-tiles").select_option("1+2x2")
        page.wait_for_url("**query_tiles=1%2B2x2**")
        assert page.locator(".tile").first.get_attribute("data-id") == "b/1.png"


@pytest.mark.parametrize("viewport", [(1280, 900), (390, 844)])
def test_the_part_is_framed_in_the_large_view(
    parts: Any, visit: Callable[..., Any], viewport: tuple[int, int]
) -> None:
    name = parts.post(image=png(RED)).json()["queries"][0]
    x, y, w, h = parts.engine.gallery.index.view.snapshot.tiles.boxes[4]
    size = dict(zip(("width", "height"), viewport, strict=True))
    with visit(f"{parts.url}/?query={name}", viewport=size) as page:
        page.locator(".tile a.picture").first.click()
        frame = page.locator("#view .found .light")
        frame.wait_for()
        picture, found = page.locator("#view [data-framed]").bounding_box(), frame.bounding_box()
        side = min(picture["width"], picture["height"])
        left = picture["x"] + (picture["width"] - side) / 2  # as it is fitted into its place
        top = picture["y"] + (picture["height"] - side) / 2
        wanted = {"x": left + x * side, "y": top + y * side, "width": w * side, "height": h * side}
        assert found == {key: pytest.approx(value, abs=3) for key, value in wanted.items()}
        page.goto(f"{parts.url}/view?query={name}&result=b/1.png")
        assert page.locator(".found").count() == 0
    assert httpx.get(f"{parts.url}/view?result=b/1.png&found=a,b").status_code == 422
