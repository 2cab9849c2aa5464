"""Results by group, and results that differ, over the API."""

from typing import Any

import pytest

from vizsla.web.search.client import SearchClient


def answer(served: Any, **body: Any) -> list[dict[str, Any]]:
    found = served.post(json={"id": served.ids()[0], **body})
    assert found.status_code == 200, found.text
    return list(found.json()["results"])


def product_of(served: Any) -> dict[str, Any]:
    values = served.engine.gallery.attributes["product"].to_pylist()
    return dict(zip(served.ids(), values, strict=True))


def test_one_result_for_each_product(shop: Any) -> None:
    every = answer(shop, k=24)
    found = answer(shop, k=24, group_by="product", per_group=2)
    product = product_of(shop)
    best: dict[Any, list[str]] = {}
    for one in every:
        best.setdefault(product[one["id"]] or one["id"], []).append(one["id"])
    assert [one["id"] for one in found] == [names[0] for names in best.values()]
    assert len(found) == 8 + 2
    for one in found:
        names = best[product[one["id"]] or one["id"]]
        assert [image["id"] for image in one["images"]] == names[:2]
        assert one["group_size"] == len(names)
        assert one["images"][0]["thumb"] == one["thumb"]
    assert "group_size" in every[0] and every[0]["group_size"] is None


def test_filters_decide_which_images_of_a_group_count(shop: Any) -> None:
    found = answer(shop, k=24, group_by="product", per_group=3, filter="stars=1")
    assert all(one["attributes"]["stars"] == 1 and one["group_size"] == 1 for one in found)
    assert len(answer(shop, k=3, group_by="stars")) == 3
    assert len(answer(shop, k=9, group_by="stars")) == 4
    assert len(answer(shop, k=9, group_by="label", group_score="best-two")) == 4


def test_varied_results_are_another_order(shop: Any) -> None:
    plain, varied = (
        [one["id"] for one in answer(shop, k=6, **more)] for more in ({}, {"diverse": 0.2})
    )
    assert plain[0] == varied[0] and plain != varied
    assert [one["id"] for one in answer(shop, k=6, diverse=1)] == plain


def test_several_images_find_what_all_or_any_of_them_are_like(shop: Any) -> None:
    names = shop.ids()[0], shop.ids()[-1]
    each = [{one["id"]: one["score"] for one in answer(shop, id=name, k=24)} for name in names]
    both = {"id": list(names), "k": 24}
    highest = {name: max(one[name] for one in each) for name in each[0]}
    found = answer(shop, **both, query_join="max")
    assert {one["id"]: one["score"] for one in found} == highest
    assert [one["score"] for one in found] == sorted(highest.values(), reverse=True)
    assert [one["score"] for one in found[:2]] == pytest.approx([1, 1], abs=1e-6)
    assert {one["id"] for one in found[:2]} == set(names)
    mean = answer(shop, **both)
    assert mean == answer(shop, **both, query_join="mean") and mean[0]["score"] < 0.999
    grouped = answer(shop, **both, query_join="max", group_by="product", per_group=2)
    product = product_of(shop)
    best: dict[Any, list[str]] = {}
    for one in found:
        best.setdefault(product[one["id"]] or one["id"], []).append(one["id"])
    assert [[image["id"] for image in one["images"]] for one in grouped] == [
        names[:2] for names in best.values()
    ]


def test_the_page_offers_the_join_where_there_are_several_images(shop: Any) -> None:
    first, *_, last = shop.ids()
    one = shop.get("/", params={"id": first, "query_join": "max"}).text
    both = shop.get("/", params={"id": [first, last], "query_join": "max"}).text
    assert "Several images" not in one and "Several images" in both
    assert '<option value="max" selected>' in both and "query_join=max" in both


def test_a_group_reaches_the_client(shop: Any) -> None:
    with SearchClient(shop.url) as client:
        name = shop.ids()[0]
        hit = client.search(id=name, group_by="product", per_group=2, k=3)[0]
        assert hit.group_size == 3 and hit.images[0]["id"] == hit.id == name
        images = [client.image(name) for name in (name, shop.ids()[-1])]
        found = client.search(images, k=2, query_join="max")
        assert {one.id for one in found} == {name, shop.ids()[-1]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"group_by": "colour"}, "no attribute 'colour'"),
        ({"per_group": 2}, "group"),
        ({"group_by": "product", "per_group": 0}, "per_group"),
        ({"group_by": "product", "group_score": "mean"}, "best-two"),
        ({"diverse": 2}, "diverse"),
        ({"query_join": "min"}, "query_join"),
    ],
)
def test_what_does_not_fit_is_said(shop: Any, body: dict[str, Any], words: str) -> None:
    refused = shop.post(json={"id": shop.ids()[0], **body})
    assert refused.status_code == 422 and words in refused.json()["error"]
