"""Options are declared once: docs, help and saved configurations come from the fields."""

from dataclasses import fields
from pathlib import Path

import pytest

from vizsla import options
from vizsla.errors import UsageError

ROOT = Path(__file__).parents[1]
CLASSES = (options.RunOptions, options.FusionOptions, options.TuneConfig)


def test_the_docs_hold_the_table_of_all_options() -> None:
    text = (ROOT / "docs/options.md").read_text()
    assert text.endswith("\n\n" + options.options_table()), (
        "replace the table in docs/options.md by what vizsla.options.options_table() returns"
    )


@pytest.mark.parametrize("cls", CLASSES)
def test_every_option_has_a_group_and_a_help_that_ends_like_a_sentence(cls: type) -> None:
    for name, (about, _, _) in options.options_of(cls).items():
        assert about.group in options.GROUPS, name
        assert about.help.endswith((".", "…")), name


def test_about_ten_usual_options_stand_first() -> None:
    usual = {
        name
        for cls in CLASSES
        for name, (about, _, _) in options.options_of(cls).items()
        if about.usual
    }
    assert {"model", "weights", "top_k", "labels", "finetune"} <= usual
    assert len(usual) <= 10


def test_a_value_out_of_range_is_refused_where_the_object_is_made() -> None:
    with pytest.raises(UsageError, match="choose one of none, head, last, full, lora"):
        options.TuneConfig(finetune="all")
    with pytest.raises(UsageError, match="no option of training is called speed"):
        options.TuneConfig.from_options({"speed": 3})


def test_rates_follow_what_validation_holds_out() -> None:
    new = options.TuneConfig.from_options({})
    seen = options.TuneConfig.from_options({"validate_on": "seen-classes"})
    assert (new.learning_rate, new.short_epochs) == (1e-4, 2.5)
    assert (seen.learning_rate, seen.short_epochs) == (2e-4, 0.0)
    assert {f.name for f in fields(new)} >= {"share", "draws", "value"}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("30m", 1800.0), ("1.5h", 5400.0), ("2 m", 120.0)]
)
def test_a_time_has_a_unit(text: str, seconds: float) -> None:
    assert options.seconds(text) == seconds


@pytest.mark.parametrize("text", ["60", "soon", "-3s", "0m"])
def test_a_time_without_a_unit_or_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--budget"):
        options.seconds(text)
