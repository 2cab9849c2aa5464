"""The addresses of the search page: one form each, and every link changes what it says."""

from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa
import pytest

from vizsla.web.search.facets import facets_of
from vizsla.web.search.page_state import State

ATTRIBUTES = pa.table(
    {
        "label": [f"class {i % 100}" for i in range(200)],
        "domain": [("photo", "drawing")[i % 2] for i in range(200)],
        "price": [None if i == 7 else i for i in range(200)],
    }
)
FACETS = facets_of(ATTRIBUTES)


def state(address: str) -> State:
    fields: dict[str, list[str]] = {}
    for name, value in parse_qsl(address, keep_blank_values=True):
        fields.setdefault(name, []).append(value)
    return State.parse(fields, max_k=200)


def test_empty_fields_are_left_out() -> None:
    given = "where.label=&from.price=+&filter=&filter=price<10&text=&k=24&where.domain=photo&id=a"
    assert state(given).address() == "id=a&filter=price%3C10&where.domain=photo"
    assert state("where.label=").address() == ""


def test_a_state_gives_its_address_back() -> None:
    fields = {"id": ["a b.jpg"], "where.x y": ["1&2"], "k": ["12"], "unknown": ["x"]}
    one = State.parse(fields, max_k=50)
    assert one.address() == "id=a+b.jpg&k=12&where.x+y=1%262"
    assert one.filtered_search.filter == ('x y="1&2"',)
    assert one.search_with("c.jpg") == "id=c.jpg&k=12&where.x+y=1%262"
    assert one.lacking("id", "a b.jpg") == "k=12&where.x+y=1%262"


def test_the_seed_stays_in_links_until_a_search() -> None:
    start = state("seed=7&where.domain=photo")
    assert start.address() == "where.domain=photo&seed=7"
    assert start.others() == "where.domain=photo"
    assert start.unfiltered() == "seed=7"
    assert start.search_with("a") == "id=a&where.domain=photo"
    assert state("seed=7&id=a").lacking("id", "a") == "seed=7"


def test_choices_become_conditions() -> None:
    chosen = state("where.domain=photo&from.price=5&to.price=10&filter=label!%3Dx")
    assert chosen.filtered_search.filter == (
        "label!=x", 'domain="photo"', 'price>="5"', 'price<="10"',
    )  # fmt: skip
    assert chosen.faults(ATTRIBUTES) == {} and chosen.fitted(FACETS) == chosen


def test_a_choice_without_a_control_becomes_a_written_condition() -> None:
    given = state("where.colour=red&where.price=21&to.domain=photo&where.label=class+1")
    fitted = given.fitted(FACETS)
    assert fitted.search.filter == ('colour="red"', 'price="21"', 'domain<="photo"')
    assert fitted.choices == (("where.label", "class 1"),)
    assert fitted.filtered_search.filter[:3] == fitted.search.filter
    assert state("where.price=null").fitted(FACETS).choices == (("where.price", "null"),)


@pytest.mark.parametrize(
    ("address", "field", "message"),
    [
        ("from.price=abc", "from.price", "“abc” cannot be a value here"),
        ("filter=domain%3Dphoto&filter=price", "filter.1", "not a condition"),
        ("filter=colour%3Dred", "filter.0", "no attribute 'colour'"),
        ("filter=id%3Da", "filter.0", "not by id"),
        ("filter=price%3C", "filter.0", "price"),
        ("filter=label%3D%22x", "filter.0", "quote"),
    ],
)
def test_an_invalid_condition_is_named(address: str, field: str, message: str) -> None:
    ((name, sentence),) = state(address).faults(ATTRIBUTES).items()
    assert name == field and message in sentence and "\n" not in sentence


def of(address: str) -> dict[str, Any]:
    search = state(address).search
    return {sort: value for sort in ("id", "not_id", "query", "not_query", "right", "wrong")
            if (value := getattr(search, sort))}  # fmt: skip


MARKED = "id=a&query=u1&not_id=b&right=c&wrong=d"


def test_examples_are_added_and_change_sides() -> None:
    one = state(MARKED)
    assert of(one.also("id", "b")) == {
        "id": ("a", "b"), "query": ("u1",), "right": ("c",), "wrong": ("d",),
    }  # fmt: skip
    turned = of(one.turned("query", "u1"))
    assert "query" not in turned and turned["not_query"] == ("u1",)
    back = of(state(one.turned("query", "u1")).turned("not_query", "u1"))
    assert back == of(MARKED)


def test_a_dropped_picture_replaces_joins_or_opposes_the_examples() -> None:
    one = state(MARKED + "&where.domain=photo")
    assert of(one.with_uploads(["u2"], "with").address()) == {"query": ("u2",), "not_id": ("b",)}
    assert of(one.with_uploads(["u2"], "also").address()) == {
        **of(MARKED), "query": ("u1", "u2"),
    }  # fmt: skip
    unwanted = of(one.with_uploads(["u2", "u1"], "not").address())
    assert unwanted["not_query"] == ("u2", "u1") and "query" not in unwanted
    assert unwanted["id"] == ("a",) and unwanted["right"] == ("c",)
    for use in ("with", "also", "not"):
        assert one.with_uploads(["u2"], use).choices == one.choices


def test_marks_stay_when_a_result_is_searched_with() -> None:
    assert of(state(MARKED).search_with("x")) == {"id": ("x",), "right": ("c",), "wrong": ("d",)}
    assert of(state(MARKED).search_with("d")) == {"id": ("d",), "right": ("c",)}
