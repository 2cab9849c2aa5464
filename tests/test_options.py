"""Options are declared once: docs, help and saved configurations come from the fields."""

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vizsla import option_fields, options
from vizsla.cli.options_table import every_command, options_table
from vizsla.errors import UsageError

ROOT = Path(__file__).parents[1]


def test_the_docs_hold_the_table_of_all_options() -> None:
    text = (ROOT / "docs/options.md").read_text()
    assert text.endswith("\n\n" + options_table()), "run `python -m vizsla.cli.options_table`"


def test_every_parameter_of_a_command_comes_from_a_field() -> None:
    for words, command in every_command():
        declared = getattr(command.callback, "options", {})
        for parameter in command.params:
            if words and parameter.param_type_name == "option":
                assert parameter.name in {*declared, "config_file", "settings"}, words


@pytest.mark.parametrize(("words", "command"), list(every_command()))
def test_options_have_groups_sentences_and_about_ten_usual_ones(words: str, command: Any) -> None:
    declared = getattr(command.callback, "options", {})
    for name, option in declared.items():
        assert option.about.group in option_fields.GROUPS, name
        assert option.about.text.endswith((".", "…")), name
    assert sum(option.about.usual for option in declared.values()) <= 10


def test_a_value_out_of_range_is_refused_where_the_object_is_made() -> None:
    with pytest.raises(UsageError, match="choose one of none, head, last, full, lora"):
        options.TuneConfig(finetune="all")
    with pytest.raises(UsageError, match="no option of training is called speed"):
        options.TuneConfig.from_options({"speed": 3})
    with pytest.raises(UsageError, match="so give one of them"):
        options.TuneConfig.from_options({"epochs": 3, "budget": 60.0})


def test_rates_follow_what_validation_holds_out() -> None:
    new = options.TuneConfig.from_options({})
    seen = options.TuneConfig.from_options({"validate_on": "seen-classes"})
    assert (new.learning_rate, new.short_epochs) == (1e-4, 2.5)
    assert (seen.learning_rate, seen.short_epochs) == (2e-4, 0.0)
    assert {f.name for f in fields(new)} >= {"share", "draws", "optimise"}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("30m", 1800.0), ("1.5h", 5400.0), ("2 m", 120.0)]
)
def test_a_time_has_a_unit(text: str, seconds: float) -> None:
    assert option_fields.seconds(text) == seconds


@pytest.mark.parametrize("text", ["60", "soon", "-3s", "0m"])
def test_a_time_without_a_unit_or_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="budget"):
        option_fields.seconds(text)


def test_choices_are_those_that_the_library_knows() -> None:
    from vizsla.cli import embed, evaluate, index, show
    from vizsla.data import splits, training_batches
    from vizsla.embed import compute, shards
    from vizsla.model import pooling, projection
    from vizsla.model.closed_forms import closed_forms
    from vizsla.output import embedding_map, submission_formats
    from vizsla.score import evaluate as scoring
    from vizsla.search import ann, chain, fusion
    from vizsla.train import augment, losses

    heads = closed_forms(np.random.default_rng(0).normal(size=(12, 4)), np.arange(12) // 4)
    known: dict[tuple[type, str], Iterable[str]] = {
        (options.ModelChoice, "pooling"): pooling.POOLINGS,
        (options.WhiteningChoice, "whiten"): projection.WHITENINGS,
        (options.FusionOptions, "fusion_whiten"): ["auto", *projection.WHITENINGS, *heads],
        (options.FusionOptions, "fusion"): [*fusion.METHODS, "concat", "auto"],
        (options.RankingOptions, "refine_uses"): chain.USES,
        (options.ComputeChoice, "precision"): ["auto", *compute.PRECISIONS],
        (options.TuneConfig, "augment"): augment.AUGMENTATIONS,
        (options.TuneConfig, "miner"): losses.MINERS,
        (options.TuneConfig, "batches"): ["auto", *training_batches.ORDERS],
        (options.TuneConfig, "validate_on"): ["auto", *splits.KINDS],
        (options.VectorFiles, "store"): shards.STORES,
        (embed.SubmissionOptions, "format"): submission_formats.FORMATS,
        (evaluate.EvaluateOptions, "missing_ranks"): scoring.MISSING_RANKS,
        (index.BuildOptions, "kind"): ["auto", *ann.KINDS],
        (show.ReportOptions, "map"): embedding_map.PROJECTIONS,
    }
    for (cls, name), names in known.items():
        assert set(option_fields.options_of(cls)[name][0].choices) == set(names), name
