"""Commands that do the whole job: run, demo, train, sweep."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vizsla.cli.console import ProgressShown, app, print_json, print_table
from vizsla.cli.inputs import text_or_none
from vizsla.cli.options import (
    AsJson,
    Augment,
    BatchSize,
    Budget,
    Cache,
    Compile,
    Device,
    Dim,
    Epochs,
    Exclude,
    Finetune,
    FollowLinks,
    Fusion,
    FusionWeights,
    FusionWhiten,
    GalleryDomain,
    Home,
    ImageSize,
    Interpolation,
    Labels,
    LabelsFrom,
    LearningRate,
    Loss,
    MaxPixels,
    Model,
    Pooling,
    Precision,
    QueryDomain,
    Quiet,
    Refine,
    RefineUses,
    Seed,
    Settings,
    TopK,
    TrainBatchSize,
    ValidateOn,
    Verbose,
    Views,
    Weights,
    Whiten,
    Workers,
    fusion_weights,
    training_options,
)
from vizsla.cli.refining import print_refined
from vizsla.errors import UsageError

if TYPE_CHECKING:
    from vizsla.run.pipeline import RunResult
    from vizsla.run.sweep import SweepResult


VALIDATING = ("validate_on", "query_domain", "gallery_domain")  # of use without training too


@app.command(epilog="Example: vizsla run data --model mobilenetv2 --pooling gem --top-k 10")
def run(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Argument(help="The folder with training/ and test/query, test/gallery.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="A backbone's name (see `vizsla models`), or a folder. Repeated: all of them, "
            "fused.",
            show_default="dinov2-s14",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights",
            help="pretrained, random, or a file: one for all models, or one for each.",
            show_default="pretrained",
        ),
    ] = None,
    pooling: Pooling = None,
    image_size: ImageSize = None,
    interpolation: Interpolation = None,
    top_k: TopK = 10,
    labels: Labels = None,
    labels_from: LabelsFrom = None,
    device: Device = "auto",
    precision: Precision = "auto",
    compiling: Compile = "auto",
    batch_size: BatchSize = "auto",
    workers: Workers = None,
    cache: Cache = None,
    seed: Seed = 0,
    exclude: Exclude = None,
    max_pixels: MaxPixels = 100_000_000,
    follow_links: FollowLinks = False,
    figures: Annotated[
        int, typer.Option("--figures", min=-1, help="Query sheets to draw; -1: all of them.")
    ] = 20,
    home: Home = Path(),
    finetune: Finetune = None,
    loss: Loss = None,
    budget: Budget = None,
    epochs: Epochs = None,
    augment: Augment = None,
    learning_rate: LearningRate = None,
    validate_on: ValidateOn = None,
    query_domain: QueryDomain = None,
    gallery_domain: GalleryDomain = None,
    settings: Settings = None,
    views: Views = None,
    whiten: Whiten = "none",
    dim: Dim = None,
    refine: Refine = "none",
    refine_uses: RefineUses = "queries",
    fusion: Fusion = "zscore",
    weights_of_fusion: FusionWeights = None,
    whiten_of_fusion: FusionWhiten = "shrunk",
    repeat: Annotated[
        Path | None, typer.Option("--again", help="Repeat runs/ID from its configuration.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Embed, rank, score, hand in and draw: the whole main job."""
    from vizsla.run import config, pipeline, several_models

    of_fusion = several_models.FusionConfig(
        fusion, fusion_weights(weights_of_fusion), whiten_of_fusion,
        *((refine, refine_uses) if fusion == several_models.CONCAT else ()),
    )  # fmt: skip
    if repeat is not None:
        _refuse_others(context, "repeat", "data", "as_json", "quiet", "verbose")
        several = several_models.again_models(repeat, data=data)
        configs, of_fusion = several or ([config.again(repeat, data=data)], of_fusion)
    elif data is None:
        raise UsageError("give the DATA folder, or --again runs/ID")
    else:
        tuning = training_options(
            settings, finetune=finetune, loss=loss, budget=budget, epochs=epochs, augment=augment,
            learning_rate=learning_rate, validate_on=validate_on, query_domain=query_domain,
            gallery_domain=gallery_domain,
        )  # fmt: skip
        validating = None
        if "auto" in (refine, weights_of_fusion) and finetune is None:
            validating = {key: tuning.pop(key) for key in VALIDATING if key in tuning} or None
        if tuning and finetune is None:
            raise UsageError(f"{', '.join(tuning)}: options of training need --finetune")
        models = _by_model(model or ["dinov2-s14"], weights or ["pretrained"])
        if len(models) == 1:
            _refuse_fusion(context)
        shared = config.RunConfig(
            data=str(data), pooling=pooling, image_size=image_size, tuning=tuning or None,
            interpolation=interpolation, views=views, whiten=whiten, dim=dim, refine=refine,
            refine_uses=refine_uses, validating=validating, top_k=top_k,
            labels=text_or_none(labels), labels_from=labels_from, device=device,
            precision=precision, batch_size=batch_size, compiling=compiling,
            cache=text_or_none(cache),
            workers=workers, seed=seed, exclude=text_or_none(exclude), max_pixels=max_pixels,
            follow_links=follow_links, figures=figures, home=str(home),
        )  # fmt: skip
        configs = [replace(shared, model=name, weights=own) for name, own in models]
    with ProgressShown(quiet) as progress:
        if len(configs) == 1:
            result = pipeline.run(configs[0], progress)
        else:
            result = several_models.run_models(configs, of_fusion, progress)
    if as_json:
        print_json(result.to_dict())
    else:
        _print_run(result)


def _by_model(models: list[str], weights: list[str]) -> list[tuple[str, str]]:
    """(model, weights) of each model."""
    if len(weights) not in (1, len(models)):
        raise UsageError(
            f"{len(weights)} --weights for {len(models)} --model: give one for all, or one for each"
        )
    return list(zip(models, weights * (len(models) // len(weights)), strict=True))


def _refuse_fusion(context: typer.Context) -> None:
    """UsageError where one model is to be fused with itself."""
    names = ("fusion", "weights_of_fusion", "whiten_of_fusion")
    if any(_given_here(context, name) for name in names):
        raise UsageError("--fusion… joins several models: give --model twice or more")


def _given_here(context: typer.Context, name: str) -> bool:
    return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"


def _refuse_others(context: typer.Context, *allowed: str) -> None:
    """UsageError where an option was given that would go unheeded."""
    given = [
        option.opts[-1]
        for option in context.command.params
        if option.name not in allowed and _given_here(context, str(option.name))
    ]
    if given:
        raise UsageError(
            f"--again repeats a run as it was, so {', '.join(given)} would change nothing: leave "
            "it out, or start a new run without --again (DATA may be given, where it has moved)"
        )


def _print_run(result: "RunResult") -> None:
    for one in result.members:
        _print_run(one)
        typer.echo("")
    typer.echo(
        f"{result.model_name}: {len(result.ranking)} queries, "
        f"{result.ranking.gallery_size} gallery images, {result.seconds:.1f} s"
    )
    if result.tuned is not None:
        kept = "tuned" if result.tuned.is_finetuned else "frozen, as it came"
        typer.echo(f"the model is {kept}, chosen on a held-out part of training/:")
        typer.echo(result.tuned.judged() + "\n")
    print_refined(result.chain, result.choice)
    if result.weights is not None:
        typer.echo("\n".join([*result.weights.lines(), ""]))
    if result.scores is None:
        typer.echo("No labels are known, so there are no scores (give --labels or --labels-from).")
    else:
        typer.echo(result.scores.text())
    typer.echo(f"metrics     {result.result_path}")
    typer.echo(f"submission  {result.submission_path}")
    if result.figure_paths:
        count = len(result.figure_paths)
        drawn = "1 query" if count == 1 else f"{count} queries"
        typer.echo(f"figures     {result.figure_paths[0].parent} ({drawn})")
    typer.echo(f"run         {result.run.folder}")


@app.command(epilog="Example: vizsla demo")
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to put it all.")] = Path("vizsla-demo"),
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """The main job on a small generated data set, without any download."""
    from vizsla.run import demo

    with ProgressShown(quiet) as progress:
        done = demo.demo(folder, seed=seed, progress=progress)
    if as_json:
        print_json(done.to_dict())
    else:
        typer.echo(done.text())


@app.command(epilog="Example: vizsla train data --model resnet18 --budget 10m -o tuned")
def train(
    data: Annotated[
        Path, typer.Argument(help="A data folder with training/, or a folder of class folders.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Log, checkpoint and embedder go there.")
    ],
    model: Model = "dinov2-s14",
    weights: Weights = "pretrained",
    pooling: Pooling = None,
    image_size: ImageSize = None,
    interpolation: Interpolation = None,
    views: Views = None,
    finetune: Annotated[
        str, typer.Option("--finetune", help="none, head, last, full, lora.")
    ] = "last",
    blocks: Annotated[
        int | None,
        typer.Option(
            "--blocks", min=1, help="How many, with --finetune last.", show_default="most"
        ),
    ] = None,
    loss: Loss = None,
    miner: Annotated[
        str | None, typer.Option("--miner", help="Of pairs or triplets: semihard, hard, …")
    ] = None,
    memory: Annotated[
        int | None, typer.Option("--memory", help="Vectors of past batches for pair losses.")
    ] = None,
    batches: Annotated[
        str | None,
        typer.Option("--batches", help="plain, balanced, classes.", show_default="by loss"),
    ] = None,
    per_class: Annotated[
        int | None, typer.Option("--per-class", help="Images of a class in a batch of classes.")
    ] = None,
    train_size: Annotated[
        int | None,
        typer.Option("--train-size", help="Pixels in training.", show_default="the model's"),
    ] = None,
    dim: Annotated[
        int | None, typer.Option("--dim", help="Of the vectors.", show_default="the backbone's")
    ] = None,
    budget: Budget = None,
    epochs: Epochs = None,
    augment: Augment = None,
    learning_rate: LearningRate = None,
    layer_decay: Annotated[
        float | None, typer.Option("--layer-decay", help="Of the learning rate, block by block.")
    ] = None,
    ema_decay: Annotated[
        float | None, typer.Option("--ema-decay", help="Of the weights' average; 0 turns it off.")
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Less memory for more time.")
    ] = False,
    validate_on: ValidateOn = None,
    query_domain: QueryDomain = None,
    gallery_domain: GalleryDomain = None,
    settings: Settings = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", help="Labels of the images, by file, where the folder does not tell them."
        ),
    ] = None,
    labels_from: LabelsFrom = None,
    devices: Annotated[
        int, typer.Option("--devices", min=1, help="Processes on this machine; 1 for torchrun.")
    ] = 1,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: TrainBatchSize = 32,
    workers: Workers = None,
    seed: Seed = 0,
    exclude: Exclude = None,
    max_pixels: MaxPixels = 100_000_000,
    follow_links: FollowLinks = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write for TensorBoard (an extra).")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over, and replace what a training left.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Tune a model on labelled images; the frozen one is kept unless validation is sure."""
    from vizsla.run import train_folder
    from vizsla.run.config import RunConfig

    options = training_options(
        settings, finetune=finetune, blocks=blocks, loss=loss, miner=miner, memory=memory,
        batches=batches, per_class=per_class, train_size=train_size, dim=dim, budget=budget,
        epochs=epochs, augment=augment, learning_rate=learning_rate, layer_decay=layer_decay,
        ema_decay=ema_decay, checkpointing=checkpointing or None, validate_on=validate_on,
        query_domain=query_domain, gallery_domain=gallery_domain, batch_size=batch_size,
        tensorboard=tensorboard or None,
    )  # fmt: skip
    config = RunConfig(
        data=str(data), model=model, weights=weights, pooling=pooling, image_size=image_size,
        interpolation=interpolation, views=views, labels=text_or_none(labels),
        labels_from=labels_from, device=device, precision=precision, workers=workers, seed=seed,
        exclude=text_or_none(exclude), max_pixels=max_pixels, follow_links=follow_links,
        tuning=options,
    )  # fmt: skip
    with ProgressShown(quiet) as progress:
        result = train_folder.train_once(
            config, out, overwrite=overwrite, devices=devices, progress=progress
        )
    if result is None:  # a process that helps the first one
        return
    if as_json:
        print_json({**result.record(), "embedder": str(out / "embedder"), "log": str(out)})
    else:
        typer.echo(result.text())
        typer.echo(f"\nNext: {_next_run(data, out / 'embedder')}")


def _next_run(data: Path, embedder: Path) -> str:
    """The command that uses a tuned model, on the same data where it has a test part."""
    from vizsla.run.inputs import has_layout

    place = str(data) if has_layout(data) else "YOUR_DATA"
    return shlex.join(["vizsla", "run", place, "--model", str(embedder)])


@app.command(
    epilog="Example: vizsla sweep data --model resnet50 --pooling gap,gem --finetune none,head"
)
def sweep(
    data: Annotated[Path, typer.Argument(help="The folder with training/ and test/.")],
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Repeatable.", show_default="dinov2-s14")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option("--weights", help="One for all models, or one for each.")
    ] = None,
    pooling: Annotated[
        str | None, typer.Option("--pooling", help="With commas.", show_default="each model's")
    ] = None,
    finetune: Annotated[str, typer.Option("--finetune", help="With commas.")] = "none",
    loss: Annotated[
        list[str] | None, typer.Option("--loss", help="Repeatable.", show_default="the training's")
    ] = None,
    trials: Annotated[
        int,
        typer.Option("--trials", min=0, help="Search rates and losses instead; an extra."),
    ] = 0,
    image_size: ImageSize = None,
    top_k: TopK = 10,
    labels: Labels = None,
    labels_from: LabelsFrom = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = "auto",
    workers: Workers = None,
    cache: Cache = None,
    seed: Seed = 0,
    exclude: Exclude = None,
    max_pixels: MaxPixels = 100_000_000,
    follow_links: FollowLinks = False,
    figures: Annotated[int, typer.Option("--figures", min=-1, help="Sheets of each run.")] = 0,
    home: Home = Path(),
    budget: Budget = None,
    epochs: Epochs = None,
    augment: Augment = None,
    learning_rate: LearningRate = None,
    validate_on: ValidateOn = None,
    query_domain: QueryDomain = None,
    gallery_domain: GalleryDomain = None,
    settings: Settings = None,
    html: Annotated[Path | None, typer.Option("--html", help="Also write an HTML page.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Models × pooling × fine-tuning: a run of each, one table. Run again, it goes on."""
    from vizsla import storage
    from vizsla.run import sweep as sweeping
    from vizsla.run.config import RunConfig

    tuning = training_options(
        settings, budget=budget, epochs=epochs, augment=augment, learning_rate=learning_rate,
        validate_on=validate_on, query_domain=query_domain, gallery_domain=gallery_domain,
    )  # fmt: skip
    shared = RunConfig(
        data=str(data), image_size=image_size, top_k=top_k, labels=text_or_none(labels),
        labels_from=labels_from, device=device, precision=precision, batch_size=batch_size,
        cache=text_or_none(cache),
        workers=workers, seed=seed, exclude=text_or_none(exclude), max_pixels=max_pixels,
        follow_links=follow_links, figures=figures, home=str(home), tuning=tuning or None,
    )  # fmt: skip
    config = sweeping.SweepConfig(
        shared, model or ["dinov2-s14"], weights or ["pretrained"],
        pooling.split(",") if pooling else [None], finetune.split(","), loss or [], trials,
    )  # fmt: skip
    with ProgressShown(quiet) as progress:
        result = sweeping.sweep(config, progress)
    if html:
        storage.write_text(html, result.html())
    if as_json:
        print_json(result.to_dict())
    else:
        _print_sweep(result)
    if result.failures:
        raise typer.Exit(1)


def _print_sweep(result: "SweepResult") -> None:
    if any(outcome.result for outcome in result.outcomes):
        print_table(result.table())
    alarms, notes = result.remarks()
    for line in alarms:
        typer.secho(f"! {line}", fg=typer.colors.RED)
    for line in notes:
        typer.echo(f"- {line}")
