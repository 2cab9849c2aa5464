"""What can be filtered by: only what is taken, and finds what it names."""

import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from vizsla.data.table_files import read_rows
from vizsla.errors import DataError, UsageError
from vizsla.web.search.facets import (
    MAX_LISTED,
    MAX_SUGGESTED,
    UNKNOWN,
    as_choice,
    at_least,
    at_most,
    equals,
    facets_of,
    parse_filter,
)

N = 300
DAYS = [datetime.date(2024, 1, 1) + datetime.timedelta(days=i) for i in range(N)]


def table(**columns: object) -> pa.Table:
    return pa.table(columns)


def found(text: str, attributes: pa.Table) -> list[int]:
    condition = parse_filter([text], attributes)
    assert condition is not None
    mask = condition.mask([str(i) for i in range(len(attributes))], attributes)
    return [int(i) for i in mask.nonzero()[0]]


def test_few_values_are_listed_many_suggested_and_numbers_have_a_range() -> None:
    attributes = table(
        label=[f"class {i % 3}" for i in range(N)],
        maker=[f"maker {i % (MAX_LISTED + 1)}" for i in range(N)],
        price=[None if i % 2 else i / 4 for i in range(N)],
        taken=DAYS,
        at=[datetime.datetime.combine(day, datetime.time(12, 30)) for day in DAYS],
        stars=[i % 5 for i in range(N)],
        sold=[i % 2 == 0 for i in range(N)],
    )
    facets = {facet.column: facet for facet in facets_of(attributes)}
    kinds = {name: facet.kind for name, facet in facets.items()}
    assert kinds == {
        "label": "list", "sold": "list", "stars": "list", "maker": "text", "price": "number",
        "taken": "date", "at": "datetime-local",
    }  # fmt: skip
    assert list(facets)[:3] == ["label", "sold", "stars"]
    assert (facets["price"].lowest, facets["price"].highest) == ("0", "74.5")
    assert [(one.value, one.count) for one in facets["price"].choices] == [(UNKNOWN, 150)]
    assert facets["taken"].highest == str(DAYS[-1])
    assert [one.text for one in facets["stars"].choices] == ["0", "1", "2", "3", "4"]


def test_six_prices_of_a_table_are_a_range(tmp_path: Path) -> None:
    prices = [5, 9, 10, 25, 100, 1200]
    rows = [f"{i}.jpg,{price}" for i, price in enumerate(prices)]
    (tmp_path / "t.csv").write_text("\n".join(["file,price", *rows]))
    (facet,) = facets_of(read_rows(tmp_path / "t.csv").drop_columns(["file"]))
    assert (facet.kind, facet.lowest, facet.highest) == ("number", "5", "1200")


def test_a_label_is_never_a_range() -> None:
    (facet,) = facets_of(table(label=list(range(N))))
    assert facet.kind == "text" and len(facet.choices) == N


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("id", ["a", "b"]), (" id", ["a", "b"]), ("a=b", ["a", "b"]), ("a<b", ["a", "b"]),
        ("x ", ["a", "b"]), ("a!", ["a", "b"]), ("", ["a", "b"]), ("list", [[1], [2]]),
        ("same", ["a", "a"]), ("unknown", [None, None]), ("nan", [float("nan"), float("inf")]),
    ],
)  # fmt: skip
def test_unusable_and_constant_attributes_are_not_offered(column: str, values: list) -> None:
    assert facets_of(pa.table({column: values})) == []


@pytest.mark.parametrize("column", ["ID", "Id", "where.x", "k", "filter", "a|b", '"q"', "größe"])
def test_attributes_with_odd_names_are_offered_where_they_work(column: str) -> None:
    attributes = pa.table({column: ["a", "b", "a"]})
    (facet,) = facets_of(attributes)
    assert found(equals(facet.column, facet.choices[0].value), attributes) == [0, 2]


ODD = ["null", "", " x ", 'say "x"', '"x"', "a|b", "@file", "line\nbreak", "צבע", "plain", None]


def test_every_choice_finds_its_value_and_no_other() -> None:
    attributes = table(label=ODD)
    (facet,) = facets_of(attributes)
    assert len({one.value for one in facet.choices}) == len(ODD) == len(facet.choices)
    for choice in facet.choices:
        (place,) = found(equals("label", choice.value), attributes)
        value = ODD[place]
        assert choice.value == (UNKNOWN if value is None else as_choice(value))
        assert choice.value == choice.value.strip() != "" and "\n" not in choice.value


def test_quoted_values_stay_as_typed() -> None:
    attributes = table(label=["x", '"x"'])
    assert found(equals("label", '"x"'), attributes) == [1]
    assert found(equals("label", '"'), table(label=['"', "b"])) == [0]


def test_every_type_of_choice_works() -> None:
    for values in (
        [True, False],
        [1.5, 2.5],
        DAYS[:2],
        [datetime.datetime(2024, 1, 2, 3, 4), None],
    ):
        attributes = table(x=values)
        (facet,) = facets_of(attributes)
        for choice in facet.choices:
            assert len(found(equals("x", choice.value), attributes)) == choice.count == 1
    words = pa.table({"x": pa.array(["a", "b", "b"]).dictionary_encode()})
    assert [one.count for one in facets_of(words)[0].choices] == [1, 2]


def test_ranges_include_their_ends() -> None:
    attributes = table(price=[1, 2, 3, None], day=[*DAYS[:3], None])
    assert found(at_least("price", "2"), attributes) == [1, 2]
    assert found(at_most("price", "2.5"), attributes) == [0, 1]
    assert found(at_least("day", str(DAYS[1])), attributes) == [1, 2]


def test_suggestions_begin_with_what_was_typed_then_hold_it() -> None:
    names = [f"shoe {i}" for i in range(150)] + ["Red Shoe", "red hat", "hat"]
    facet = facets_of(table(label=[*names, "hat"]))[0]
    assert facet.choices[0].text == "hat" and facet.choices[0].count == 2  # the most frequent
    assert len(facet.suggestions()) == MAX_SUGGESTED
    assert [one.text for one in facet.suggestions("RED")] == ["red hat", "Red Shoe"]
    assert [one.text for one in facet.suggestions("hat")] == ["hat", "red hat"]
    assert facet.suggestions("shoe", 200)[-1].text == "Red Shoe"
    assert facet.suggestions("zebra") == []


def test_a_filter_is_refused_before_it_is_searched_with() -> None:
    attributes = table(price=[1, 2], ID=["a", "b"])
    for text, message in [
        ("price>x", "not one"), ("colour=red", "no attribute"), ("price", "condition"),
    ]:  # fmt: skip
        with pytest.raises((DataError, UsageError), match=message):
            parse_filter([text], attributes)
    for text in ("id=a", " id =@/etc/passwd", "id!=a"):
        with pytest.raises(UsageError, match="not by id"):
            parse_filter([text], attributes)
    assert found("ID=a", attributes) == [0]
