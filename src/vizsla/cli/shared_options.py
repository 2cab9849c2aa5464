"""The flags that mean the same in every command."""

import logging
import re
from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import set_level
from vizsla.cli.parameters import typer_option
from vizsla.errors import UsageError
from vizsla.options import ComputeChoice, ImageOptions, ModelChoice, RunOptions, TuneConfig


def _quiet(value: bool) -> bool:
    if value:
        set_level(logging.ERROR)
    return value


def _verbose(value: bool) -> bool:
    if value:
        set_level(logging.DEBUG)
    return value


def comma_ints(text: str) -> list[int]:
    """The numbers of 1,5,10. UsageError where one is not a whole number."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{text!r} is not a list of numbers such as 1,5,10") from error


def byte_count(text: str) -> int:
    """The bytes of 500MB, 4GB, 2.5GiB or a plain number. UsageError for anything else."""
    units = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
             "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip
    found = re.fullmatch(r"\s*([\d.]+)\s*([a-z]*)\s*", text.lower())
    try:
        return int(float(found[1]) * units[found[2]]) if found else int("")
    except (KeyError, ValueError) as error:
        raise UsageError(f"{text!r} is not an amount of memory such as 500MB or 4GB") from error


# those of options.py, for commands that take a few of them and not the whole dataclass
Model = Annotated[str, typer_option(ModelChoice, "model")]
Device = Annotated[str, typer_option(ComputeChoice, "device")]
Seed = Annotated[int, typer_option(RunOptions, "seed")]
TopK = Annotated[int, typer_option(RunOptions, "top_k")]
Labels = Annotated[Path | None, typer_option(ImageOptions, "labels")]
LabelsFrom = Annotated[str | None, typer_option(ImageOptions, "labels_from")]
Home = Annotated[Path, typer_option(RunOptions, "home")]
ValidateOn = Annotated[str | None, typer_option(TuneConfig, "validate_on")]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster", help="Resample whole classes (label or another column) for the intervals."
    ),
]
LearnOn = Annotated[
    Path | None,
    typer.Option(
        "--learn-on",
        help="For auto: embeddings of labelled images that the model was not trained on "
        "(vizsla embed --class-folders).",
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the result as JSON on standard output.", rich_help_panel="Output"
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "-q",
        "--quiet",
        callback=_quiet,
        is_eager=True,
        help="Print errors only.",
        rich_help_panel="Output",
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "-v", "--verbose", callback=_verbose, is_eager=True, help="Print more messages.",
        rich_help_panel="Output",
    ),
]  # fmt: skip


def fusion_weights(text: str | None) -> str | list[float] | None:
    """--fusion-weights as `FusionConfig` takes them: auto, a number for each model, or None."""
    if text is None or text == "auto":
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--fusion-weights {text!r}: write auto, or a number for each model such as 0.7,0.3"
        ) from error
