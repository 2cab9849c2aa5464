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


def test_ids_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("b.jpg\nc|d.jpg\n\n")
    assert Filter.parse(f"id=@{tmp_path}/names.txt").ids == {"b.jpg", "c|d.jpg"}


@pytest.mark.parametrize("text", ["label", "=x", "price<1|2", "price<null", "id<3", 'label="a"b'])
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(UsageError):
        Filter.parse(text)


def test_what_does_not_fit_the_gallery() -> None:
    with pytest.raises(DataError, match=r"no attribute 'colour': it has label, price"):
        Filter.parse("colour=red").mask(IDS, TABLE)
    with pytest.raises(DataError, match="'cheap' is not one"):
        Filter.parse("price<cheap").mask(IDS, TABLE)
    with pytest.raises(UsageError, match="is not an operator"):
        Condition("price", "~", (1,))


def test_a_gallery_without_attributes_says_what_would_give_it_some() -> None:
    bare = pa.table({})
    with pytest.raises(DataError, match=r"nor any other: .* embedded without labels .*--labels"):
        Filter.parse(["label=shoes"]).mask(["a.jpg"], bare)
