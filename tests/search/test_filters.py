import datetime
import re
from pathlib import Path

import pyarrow as pa
import pytest

from vizsla.errors import DataError, UsageError
from vizsla.search.filters import Condition, Filter

IDS = ["a.jpg", "b.jpg", "c|d.jpg", "e.jpg", "f.jpg"]
TABLE = pa.table(
    {
        "label": pa.array(["shoe", "hat", None, "null", "a|b"]),
        "price": pa.array([1.5, 10.0, 20.0, None, -3.0]),
        "year": pa.array([2001, 2002, 2003, 2**60 + 1, None], pa.int64()),
        "new": pa.array([True, False, True, None, False]),
        "coded": pa.array(["x", "y", None, "x", "y"]).dictionary_encode(),
    }
)


@pytest.mark.parametrize(
    ("texts", "rows"),
    [
        ("label=shoe", [0]),
        (" label = shoe | hat ", [0, 1]),
        ("label!=shoe", [1, 3, 4]),
        ("label!=shoe|null", [1, 3, 4]),
        ("label=null", [2]),
        ("label=null|hat", [1, 2]),
        ("label!=null", [0, 1, 3, 4]),
        ('label="null"', [3]),
        ('label="a|b"|shoe', [0, 4]),
        ("label=", []),
        ("price<10", [0, 4]),
        ("price<=10", [0, 1, 4]),
        (["price>=1.5", "price<20"], [0, 1]),
        ("price=-3", [4]),
        ("year>2001.5", [1, 2, 3]),
        ("year=2002|2003", [1, 2]),
        ("year=1152921504606846977", [3]),
        ("year=1152921504606846976", []),
        ("year=2001.5|2002", [1]),
        ("new=true", [0, 2]),
        ("coded=x", [0, 3]),
        ("id=b.jpg|e.jpg", [1, 3]),
        ('id="c|d.jpg"', [2]),
        (["id=a.jpg|b.jpg", "id=b.jpg|e.jpg"], [1]),
        (["id=a.jpg|b.jpg", "price>5"], [1]),
        ([], [0, 1, 2, 3, 4]),
    ],
)
def test_what_a_text_lets_through(texts: str | list[str], rows: list[int]) -> None:
    parsed = Filter.parse(texts)
    assert parsed.mask(IDS, TABLE).nonzero()[0].tolist() == rows
    if parsed != Filter():
        again = Filter.parse(str(parsed).split(" and "))
        assert again.mask(IDS, TABLE).tolist() == parsed.mask(IDS, TABLE).tolist()


def test_days_and_times_have_an_order() -> None:
    days = [datetime.date(2026, 1, d) for d in (2, 10, 30)]
    times = [datetime.datetime(2026, 1, d, 12) for d in (2, 10, 30)]
    table = pa.table({"day": days, "at": pa.array(times, pa.timestamp("us"))})
    for text, rows in (
        ("day<2026-01-10", [0]), ("day<=2026-01-10", [0, 1]), ("day=2026-01-30", [2]),
        ("day>2026-01-09T12:00", [1, 2]), ("at<2026-01-10T12:00", [0]), ("at>2026-01-10", [1, 2]),
    ):  # fmt: skip
        assert Filter.parse(text).mask(["a", "b", "c"], table).nonzero()[0].tolist() == rows


def test_labels_are_found_in_both_unicode_forms() -> None:
    table = pa.table({"label": ["\u00e9", "x", "e\u0301"]})
    for text in ("label=\u00e9", "label=e\u0301"):
        assert Filter.parse(text).mask(["1", "2", "3"], table)[0]


def test_ids_from_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "names.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes("b.jpg\r\nc|d.jpg \r\n\r\n".encode(encoding))
        mask = Filter.parse(f"id=@{path}").mask(IDS, TABLE)
        assert mask.nonzero()[0].tolist() == [1, 2]
    assert "1 names differ from those of their images" in caplog.text
    path.write_text("file,label\nb.jpg,x\nnone.jpg,x\n")
    assert Filter.parse(f"id=@{path}").mask(IDS, TABLE).nonzero()[0].tolist() == [1]
    assert "the gallery does not hold 1 of the 2 ids: none.jpg" in caplog.text


@pytest.mark.parametrize("text", ["label", "=x", "price<1|2", "price<null", "id<3", 'label="a"b'])
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(UsageError):
        Filter.parse(text)


def test_what_does_not_fit_the_gallery() -> None:
    with pytest.raises(DataError, match=r"no attribute 'colour': it has label, price"):
        Filter.parse("colour=red").mask(IDS, TABLE)
    with pytest.raises(DataError, match="'cheap' is not one"):
        Filter.parse("price<cheap").mask(IDS, TABLE)
    with pytest.raises(DataError, match=r"holds text, such as 'shoe', which has no order"):
        Filter.parse("label<shoe").mask(IDS, TABLE)
    mixed = pa.table({"size": ["10", "9", "XL"]})
    with pytest.raises(DataError, match=r"size<11: size holds text, such as 'XL'"):
        Filter.parse("size<11").mask(IDS[:3], mixed)
    with pytest.raises(DataError, match="day holds days such as 2026-05-28, and 'May'"):
        Filter.parse("day<May").mask(IDS[:1], pa.table({"day": [datetime.date(2026, 1, 2)]}))
    with pytest.raises(UsageError, match="is not an operator"):
        Condition("price", "~", (1,))


@pytest.mark.parametrize(
    ("text", "meant"),
    [("price=<3", "price<=3"), ("price=> 3", "price>=3"), ("price==3", "price=3"),
     ("price<>3", "price!=3")],
)  # fmt: skip
def test_a_misspelt_operator_is_named(text: str, meant: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"is not a condition: write {meant} (")):
        Filter.parse(text)
    assert Filter.parse('label="<3"').conditions[0].values == ("<3",)


def test_a_value_that_no_image_has_is_named_with_the_nearest_ones(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kinds = ["cameras", "Canon lenses", "shoes", "bags", None, "bags"]
    table = pa.table(
        {"kind": kinds, "price": [9.5, 20, 3, 4, None, 7], "new": pa.nulls(6, pa.string())}
    )
    ids = [str(i) for i in range(6)]
    for text, said in (
        (
            "kind=canon",
            "no image has kind=canon; nearest values: Canon lenses, cameras, bags, shoes",
        ),
        ("kind=shoe|camera", "nearest values: shoes, "),
        ("price<3", "no image has price<3; its values are from 3 to 20"),
        ("price=5", "no image has price=5; its values are from 3 to 20"),
        ("new=1", "no image has new=1: none has a value there"),
    ):
        caplog.clear()
        assert not Filter.parse(text).mask(ids, table).any()
        assert len(caplog.messages) == 1 and said in caplog.text
    many = pa.table({"sku": [f"S{i:02}" for i in range(30)]})
    Filter.parse("sku=s7|S199").mask([str(i) for i in range(30)], many)
    assert caplog.messages[-1] == "no image has sku=s7|S199; nearest values: S27, S19"
    caplog.clear()
    assert not Filter.parse(["kind=bags", "price>9"]).mask(ids, table).any()
    assert Filter.parse("kind=bags").mask(ids, table).any() and not caplog.text


def test_a_gallery_without_attributes_says_what_would_give_it_some() -> None:
    bare = pa.table({})
    with pytest.raises(DataError, match=r"nor any other: .* embedded without a table .*--table"):
        Filter.parse(["label=shoes"]).mask(["a.jpg"], bare)
