"""Values of columns as people read them."""

from typing import Any

import pytest

from vizsla.data.tables import number_format, value_text


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([60.7, 19.99, 5.0, None, "?", 3], ["60.70", "19.99", "5.00"]),
        ([4.5, 3.0], ["4.5", "3"]),
        ([0.125, 60.7], ["0.125", "60.7"]),
        ([1e-7, 0.25], ["1e-07", "0.25"]),
        ([float("nan"), 1.25], ["nan", "1.25"]),
    ],
)
def test_prices_have_two_places(values: list[Any], texts: list[str]) -> None:
    decimal = number_format(values)
    assert [value_text(value, decimal) for value in values if isinstance(value, float)] == texts
