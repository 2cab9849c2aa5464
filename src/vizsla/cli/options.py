"""The flags that mean the same in every command."""

import logging
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from vizsla.cli.console import set_level
from vizsla.errors import UsageError


def _quiet(value: bool) -> bool:
    if value:
        set_level(logging.ERROR)
    return value


def _verbose(value: bool) -> bool:
    if value:
        set_level(logging.DEBUG)
    return value


def comma_ints(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{text!r} is not a list of numbers such as 1,5,10") from error


def byte_count(text: str) -> int:
    """From 500MB, 4GB, 2.5GiB or a plain number."""
    units = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
             "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip
    found = re.fullmatch(r"\s*([\d.]+)\s*([a-z]*)\s*", text.lower())
    try:
        return int(float(found[1]) * units[found[2]]) if found else int("")
    except (KeyError, ValueError) as error:
        raise UsageError(f"{text!r} is no amount of memory such as 500MB or 4GB") from error


Model = Annotated[
    str, typer.Option("--model", help="A backbone's name (see `vizsla models`), or a folder.")
]
Weights = Annotated[
    str, typer.Option("--weights", help="pretrained, random, or a .safetensors/.pt/.pth file.")
]
Pooling = Annotated[
    str | None,
    typer.Option("--pooling", help="gap, gem, max, cls, native.", show_default="the model's"),
]
ImageSize = Annotated[
    int | None, typer.Option("--image-size", min=1, help="Pixels.", show_default="the weights' own")
]
Interpolation = Annotated[
    str | None,
    typer.Option(
        "--interpolation",
        help="bilinear, bicubic, …: how pictures are resized, for a weights file trained so.",
        show_default="the named model's own",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, mps.")]
Precision = Annotated[str, typer.Option("--precision", help="auto, fp32, bf16, fp16.")]
Compile = Annotated[
    str, typer.Option("--compile", help="auto, on, off: pays from some hundred images on.")
]
BatchSize = Annotated[
    str, typer.Option("--batch-size", help="A number; auto: by a GPU's memory, 32 on a CPU.")
]
TrainBatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images at once.")]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", help="A folder of vectors: no image is embedded twice."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="That decode.", show_default="by cores")
]
Seed = Annotated[int, typer.Option("--seed", help="For random weights and random choices.")]
TopK = Annotated[int, typer.Option("-k", "--top-k", min=1, help="Images handed in for a query.")]
Labels = Annotated[
    Path | None, typer.Option("--labels", help="The truth: CSV or Parquet with label and file.")
]
LabelsFrom = Annotated[
    str | None,
    typer.Option("--labels-from", help="Labels from file names: '{label}_{n}'."),
]
Exclude = Annotated[
    Path | None, typer.Option("--exclude", help="A file that lists images to leave out.")
]
FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Also read links that lead out of the folder.")
]
MaxPixels = Annotated[
    int, typer.Option("--max-pixels", min=1, help="Larger images count as broken.")
]
Home = Annotated[
    Path,
    typer.Option("--home", help="Holds results/, submissions/, visualizations/, runs/."),
]
Cluster = Annotated[
    str | None,
    typer.Option("--cluster", help="Draw whole classes (label, or a column) for the intervals."),
]
Refine = Annotated[
    str,
    typer.Option(
        "--refine",
        help="none; auto: chosen on validation images; or a chain such as "
        "'aqe+kreciprocal(k1=20)' of dba, aqe (expand gallery, queries), "
        "kreciprocal, diffusion (re-rank). All of them use the other gallery images, kreciprocal "
        "also the other queries unless together=false: contests may forbid it. docs/refine.md",
    ),
]
RefineUses = Annotated[
    str,
    typer.Option(
        "--refine-uses",
        help="The most that --refine may use of the other test images: queries (and gallery), "
        "gallery, nothing.",
    ),
]
Views = Annotated[
    str | None,
    typer.Option(
        "--views",
        help="Average over views of each picture: flip, scales, or both: 'flip,1,0.7,1.4'.",
        show_default="one, or the saved embedder's",
    ),
]
Whiten = Annotated[
    str,
    typer.Option(
        "--whiten",
        help="none, plain, shrunk (for few images): learned on training images alone, kept in the "
        "embedder.",
    ),
]
Dim = Annotated[
    int | None,
    typer.Option(
        "--dim", min=1, help="Of the vectors, by PCA on training images.", show_default="all"
    ),
]
Fusion = Annotated[
    str,
    typer.Option(
        "--fusion",
        help="zscore, minmax (of scores), rrf (of ranks); concat: the vectors in a row (of runs).",
    ),
]
FusionWeights = Annotated[
    str | None,
    typer.Option(
        "--fusion-weights",
        help="One a model, as 0.5,0.3,0.2; auto: chosen on validation images.",
        show_default="equal",
    ),
]
FusionWhiten = Annotated[
    str,
    typer.Option("--fusion-whiten", help="For concat: shrunk, plain, none; by training images."),
]
LearnOn = Annotated[
    Path | None,
    typer.Option(
        "--learn-on",
        help="For auto: embeddings of labelled training images (embed --class-folders), such as "
        "the model was not trained on.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="The result as JSON on standard output.")]
Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", callback=_quiet, help="Errors only.", is_eager=True)
]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", callback=_verbose, help="More messages.", is_eager=True)
]

# of training
Finetune = Annotated[
    str | None,
    typer.Option("--finetune", help="none, head, last, full, lora.", show_default="frozen"),
]
Loss = Annotated[
    str | None, typer.Option("--loss", help="E.g. arcface, or 'cross-entropy+0.5*supcon'.")
]
Budget = Annotated[
    str | None,
    typer.Option("--budget", help="Time for all of training, with its unit: 90s, 30m, 1.5h."),
]
Epochs = Annotated[
    float | None, typer.Option("--epochs", help="Passes over the images, without --budget.")
]
Augment = Annotated[str | None, typer.Option("--augment", help="none, light, medium, strong.")]
LearningRate = Annotated[
    float | None, typer.Option("--learning-rate", help="Of the last block; it falls with depth.")
]
ValidateOn = Annotated[
    str | None,
    typer.Option("--validate-on", help="new-classes (default), or seen-classes."),
]
QueryDomain = Annotated[
    str | None, typer.Option("--query-domain", help="Validate with queries of this domain.")
]
GalleryDomain = Annotated[
    str | None, typer.Option("--gallery-domain", help="Validate on a gallery of this domain.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any setting of docs/training.md as name=value. Repeatable."),
]


def fusion_weights(text: str | None) -> str | list[float] | None:
    """--fusion-weights as ensemble.FusionConfig takes them."""
    if text is None or text == "auto":
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--fusion-weights {text!r}: write auto, or a number for each model such as 0.7,0.3"
        ) from error


def training_options(settings: list[str] | None, **given: Any) -> dict[str, Any]:
    """What was given, by the names that TuneConfig has; --set values by their type there."""
    from vizsla.train.tune import parse_setting, seconds

    options = {key: value for key, value in given.items() if value is not None}
    if "budget" in options:
        options["budget"] = seconds(options["budget"])
    for setting in settings or []:
        key, value = parse_setting(setting)
        options[key] = value
    return options
