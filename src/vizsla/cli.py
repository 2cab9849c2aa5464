"""The command line: every command parses, makes one library call and prints what came back.

Results go to standard output, messages and progress to standard error. Heavy modules are imported
inside the commands that need them, so that `vizsla --help` answers at once.
"""

import dataclasses
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vizsla.errors import UsageError, VizslaError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from vizsla.model.embedder import Embedder
    from vizsla.pipeline import RunResult
    from vizsla.score.calibration import Calibration
    from vizsla.score.relevance import Relevance, Truth
    from vizsla.score.scores import Scores
    from vizsla.score.tables import Table
    from vizsla.search.ranking import Ranking
    from vizsla.sweep import SweepResult

app = typer.Typer(
    name="vizsla",
    help="Rank a gallery of images for every query, so that images of the same class come first.",
    epilog="Start with `vizsla demo`, then `vizsla run DATA`. Docs: README.md.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
log = logging.getLogger("vizsla")
INTERRUPTED = "interrupted; nothing is half-written, and `embed` and `train` go on when run again"


def main(arguments: list[str] | None = None) -> None:
    """Exit codes: 0 done; 1 could not be done, in one clear line; 2 wrong use; 130 Ctrl-C."""
    _log_to_stderr()
    try:
        app(arguments)
    except SystemExit as end:  # so Typer ends, also after Ctrl-C
        if end.code != 130:
            raise
        _fail(INTERRUPTED, 130)
    except UsageError as error:
        _fail(str(error), 2)
    except VizslaError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail(INTERRUPTED, 130)
    except BrokenPipeError:  # `vizsla models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MemoryError:
        _fail("memory ran out: use a smaller --batch-size, or a machine with more memory", 1)
    except Exception as error:
        if os.environ.get("VIZSLA_DEBUG"):
            raise
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        _fail(f"{what} (unexpected; VIZSLA_DEBUG=1 shows where, please report it)", 1)


def _fail(message: str, code: int) -> None:
    typer.echo(f"vizsla: {message}", err=True)
    sys.exit(code)


# ── what commands share ──────────────────────────────────────────────────────────────────────────


class _Messages(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        colour = {"WARNING": typer.colors.YELLOW, "ERROR": typer.colors.RED}.get(record.levelname)
        word = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        typer.secho(word + record.getMessage(), err=True, fg=colour)


def _log_to_stderr() -> None:
    log.setLevel(logging.DEBUG)
    handler = _Messages()
    handler.setLevel(logging.INFO)
    log.handlers = [h for h in log.handlers if not isinstance(h, _Messages)] + [handler]
    log.propagate = False


def _set_level(level: int) -> None:
    for handler in log.handlers:
        if isinstance(handler, _Messages):
            handler.setLevel(level)


def _quiet(value: bool) -> bool:
    if value:
        _set_level(logging.ERROR)
    return value


def _verbose(value: bool) -> bool:
    if value:
        _set_level(logging.DEBUG)
    return value


def _comma_ints(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{text!r} is not a list of numbers such as 1,5,10") from error


class _Progress:
    """Called with (stage, done, total): a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.started: dict[str, float] = {}
        self.last = 0.0

    def __enter__(self) -> "_Progress":
        if not self.quiet and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self.bar = progress.Progress(
                progress.TextColumn("{task.description:<18}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[rate]}"),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        started = self.started.setdefault(stage, now)
        rate = f"{done / (now - started):.0f}/s" if now - started > 0.5 else ""
        if self.bar:
            if stage not in self.tasks:
                self.tasks[stage] = self.bar.add_task(stage, total=total, rate="")
            self.bar.update(self.tasks[stage], completed=done, rate=rate)
        elif not self.quiet and (now - self.last > 10 or done == total):
            self.last = now
            left = (now - started) / max(done, 1) * (total - done)
            wait = f", {left:.0f} s left" if done < total and rate else ""
            typer.echo(f"{stage}: {done} of {total}{rate and ' at ' + rate}{wait}", err=True)


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


Model = Annotated[
    str, typer.Option("--model", help="A backbone's name (see `vizsla models`), or a folder.")
]
Weights = Annotated[
    str, typer.Option("--weights", help="pretrained, random, or a .safetensors/.pt/.pth file.")
]
Pooling = Annotated[
    str | None, typer.Option("--pooling", help="gap, gem, max, cls, native. [default: the model's]")
]
ImageSize = Annotated[
    int | None, typer.Option("--image-size", min=1, help="Pixels. [default: the weights' own]")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, mps.")]
Precision = Annotated[str, typer.Option("--precision", help="auto, fp32, bf16, fp16.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1)]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Decoding threads. [default: by cores]")
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
AsJson = Annotated[bool, typer.Option("--json", help="The result as JSON on standard output.")]
Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", callback=_quiet, help="Errors only.", is_eager=True)
]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", callback=_verbose, help="More.", is_eager=True)
]


Finetune = Annotated[
    str | None, typer.Option("--finetune", help="none, head, last, full, lora. [default: frozen]")
]
Loss = Annotated[
    str | None, typer.Option("--loss", help="E.g. arcface, or 'cross-entropy+0.5*supcon'.")
]
Budget = Annotated[
    str | None, typer.Option("--budget", help="Time for all of training: 90s, 30m, 1.5h.")
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


def _training_options(settings: list[str] | None, **given: Any) -> dict[str, Any]:
    """What was given, by the names that TuneConfig has; --set values by their type there."""
    from vizsla.tuning import parse_setting, seconds

    options = {key: value for key, value in given.items() if value is not None}
    if "budget" in options:
        options["budget"] = seconds(options["budget"])
    for setting in settings or []:
        key, value = parse_setting(setting)
        options[key] = value
    return options


# ── the main job ─────────────────────────────────────────────────────────────────────────────────


@app.command(epilog="Example: vizsla run data --model mobilenetv2 --pooling gem --top-k 10")
def run(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Argument(help="The folder with training/ and test/query, test/gallery.")
    ] = None,
    model: Model = "dinov2-s14",
    weights: Weights = "pretrained",
    pooling: Pooling = None,
    image_size: ImageSize = None,
    top_k: TopK = 10,
    labels: Labels = None,
    labels_from: LabelsFrom = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = 32,
    workers: Workers = None,
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
    repeat: Annotated[
        Path | None, typer.Option("--again", help="Repeat runs/ID from its configuration.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Embed, rank, score, hand in and draw: the whole main job."""
    from vizsla import pipeline

    if repeat is not None:
        _refuse_others(context, "repeat", "data", "as_json", "quiet", "verbose")
        config = pipeline.again(repeat, data=data)
    elif data is None:
        raise UsageError("give the DATA folder, or --again runs/ID")
    else:
        tuning = _training_options(
            settings, finetune=finetune, loss=loss, budget=budget, epochs=epochs, augment=augment,
            learning_rate=learning_rate, validate_on=validate_on, query_domain=query_domain,
            gallery_domain=gallery_domain,
        )  # fmt: skip
        if tuning and finetune is None:
            raise UsageError(f"{', '.join(tuning)}: options of training need --finetune")
        config = pipeline.RunConfig(
            data=str(data), model=model, weights=weights, pooling=pooling, image_size=image_size,
            tuning=tuning or None, top_k=top_k, labels=_text(labels), labels_from=labels_from,
            device=device, precision=precision, batch_size=batch_size, workers=workers, seed=seed,
            exclude=_text(exclude), max_pixels=max_pixels, follow_links=follow_links,
            figures=figures, home=str(home),
        )  # fmt: skip
    with _Progress(quiet) as progress:
        result = pipeline.run(config, progress)
    if as_json:
        _print_json(result.to_dict())
    else:
        _print_run(result)


def _refuse_others(context: typer.Context, *allowed: str) -> None:
    """UsageError where an option was given that would go unheeded."""
    given = [
        option.opts[-1]
        for option in context.command.params
        if option.name not in allowed
        and getattr(context.get_parameter_source(str(option.name)), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise UsageError(
            f"--again repeats a run as it was, so {', '.join(given)} would change nothing: leave "
            "it out, or start a new run without --again (DATA may be given, where it has moved)"
        )


def _print_run(result: "RunResult") -> None:
    typer.echo(
        f"{result.model_name}: {len(result.ranking)} queries, "
        f"{result.ranking.gallery_size} gallery images, {result.seconds:.1f} s"
    )
    if result.scores is None:
        typer.echo("No labels are known, so there are no scores (give --labels or --labels-from).")
    else:
        typer.echo(result.scores.text())
    typer.echo(f"metrics     {result.result_path}")
    typer.echo(f"submission  {result.submission_path}")
    if result.figure_paths:
        count = len(result.figure_paths)
        typer.echo(f"figures     {result.figure_paths[0].parent} ({count} queries)")
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
    from vizsla import pipeline

    with _Progress(quiet) as progress:
        done = pipeline.demo(folder, seed=seed, progress=progress)
    if as_json:
        _print_json(done.to_dict())
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
    finetune: Finetune = "full",
    blocks: Annotated[
        int | None, typer.Option("--blocks", min=1, help="How many, with --finetune last.")
    ] = None,
    loss: Loss = None,
    miner: Annotated[
        str | None, typer.Option("--miner", help="Of pairs or triplets: semihard, hard, …")
    ] = None,
    memory: Annotated[
        int | None, typer.Option("--memory", help="Vectors of past batches for pair losses.")
    ] = None,
    batches: Annotated[
        str | None, typer.Option("--batches", help="plain, balanced, classes. [default: by loss]")
    ] = None,
    per_class: Annotated[
        int | None, typer.Option("--per-class", help="Images of a class in a batch of classes.")
    ] = None,
    train_size: Annotated[
        int | None, typer.Option("--train-size", help="Pixels in training. [default: the model's]")
    ] = None,
    dim: Annotated[
        int | None, typer.Option("--dim", help="Of the vectors. [default: the backbone's]")
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
    batch_size: BatchSize = 32,
    workers: Workers = None,
    seed: Seed = 0,
    max_pixels: MaxPixels = 100_000_000,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write for TensorBoard (an extra).")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Tune a model on labelled images; the frozen one is kept unless validation is sure."""
    from vizsla import pipeline

    options = _training_options(
        settings, finetune=finetune, blocks=blocks, loss=loss, miner=miner, memory=memory,
        batches=batches, per_class=per_class, train_size=train_size, dim=dim, budget=budget,
        epochs=epochs, augment=augment, learning_rate=learning_rate, layer_decay=layer_decay,
        ema_decay=ema_decay, checkpointing=checkpointing or None, validate_on=validate_on,
        query_domain=query_domain, gallery_domain=gallery_domain, batch_size=batch_size,
        tensorboard=tensorboard or None,
    )  # fmt: skip
    config = pipeline.RunConfig(
        data=str(data), model=model, weights=weights, pooling=pooling, image_size=image_size,
        labels=_text(labels), labels_from=labels_from, device=device, precision=precision,
        workers=workers, seed=seed, max_pixels=max_pixels, tuning=options,
    )  # fmt: skip
    with _Progress(quiet) as progress:
        result = pipeline.train(config, out, devices=devices, progress=progress)
    if result is None:  # a process that helps the first one
        return
    if as_json:
        _print_json({**result.record(), "embedder": str(out / "embedder"), "log": str(out)})
    else:
        typer.echo(result.text())


@app.command(
    epilog="Example: vizsla sweep data --model resnet50 --pooling gap,gem --finetune none,head"
)
def sweep(
    data: Annotated[Path, typer.Argument(help="The folder with training/ and test/.")],
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Repeatable. [default: dinov2-s14]")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option("--weights", help="One for all models, or one for each.")
    ] = None,
    pooling: Annotated[
        str | None, typer.Option("--pooling", help="With commas. [default: each model's]")
    ] = None,
    finetune: Annotated[str, typer.Option("--finetune", help="With commas.")] = "none",
    loss: Annotated[
        list[str] | None, typer.Option("--loss", help="Repeatable. [default: the training's]")
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
    batch_size: BatchSize = 32,
    workers: Workers = None,
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
    from vizsla import sweep as sweeping
    from vizsla.pipeline import RunConfig

    tuning = _training_options(
        settings, budget=budget, epochs=epochs, augment=augment, learning_rate=learning_rate,
        validate_on=validate_on, query_domain=query_domain, gallery_domain=gallery_domain,
    )  # fmt: skip
    shared = RunConfig(
        data=str(data), image_size=image_size, top_k=top_k, labels=_text(labels),
        labels_from=labels_from, device=device, precision=precision, batch_size=batch_size,
        workers=workers, seed=seed, exclude=_text(exclude), max_pixels=max_pixels,
        follow_links=follow_links, figures=figures, home=str(home), tuning=tuning or None,
    )  # fmt: skip
    config = sweeping.SweepConfig(
        shared, model or ["dinov2-s14"], weights or ["pretrained"],
        pooling.split(",") if pooling else [None], finetune.split(","), loss or [], trials,
    )  # fmt: skip
    with _Progress(quiet) as progress:
        result = sweeping.sweep(config, progress)
    if html:
        storage.write_text(html, result.html())
    if as_json:
        _print_json(result.to_dict())
    else:
        _print_sweep(result)
    if result.failures:
        raise typer.Exit(1)


def _print_sweep(result: "SweepResult") -> None:
    if any(outcome.result for outcome in result.outcomes):
        typer.echo(result.table().text())
    alarms, notes = result.remarks()
    for line in alarms:
        typer.secho(f"! {line}", fg=typer.colors.RED)
    for line in notes:
        typer.echo(f"- {line}")


# ── before the work ──────────────────────────────────────────────────────────────────────────────


@app.command(
    "check", epilog="Example: vizsla check data --html check.html --write-exclude exclude.txt"
)
def check_data(
    data: Annotated[Path, typer.Argument(help="The folder with training/ and test/….")],
    model: Annotated[
        str | None, typer.Option("--model", help="Also find labels in doubt, with this model.")
    ] = None,
    weights: Weights = "pretrained",
    pooling: Pooling = None,
    image_size: ImageSize = None,
    labels: Labels = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = 32,
    workers: Workers = None,
    seed: Seed = 0,
    max_pixels: MaxPixels = 100_000_000,
    follow_links: FollowLinks = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Also write all of it there (JSON).")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write a page with the pictures.")
    ] = None,
    write_exclude: Annotated[
        Path | None, typer.Option("--write-exclude", help="Write what `run --exclude` reads.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find broken files, copies, leaks and wrong labels before the work starts.

    Findings do not change the exit code. Nothing in DATA is changed.
    """
    from vizsla import storage
    from vizsla.audit import check as audit
    from vizsla.data.imageset import open_data

    sets = audit.labelled_sets(open_data(data, follow_links=follow_links), labels)
    with _Progress(quiet) as progress, tempfile.TemporaryDirectory() as scratch:
        embed = None
        if model:
            from vizsla import pipeline
            from vizsla.model.inference import resolve_compute

            embedder = pipeline.load_embedder(
                model, weights=weights, pooling=pooling, image_size=image_size, seed=seed
            )
            compute = resolve_compute(
                device=device, precision=precision, batch_size=batch_size, workers=workers
            )
            embed = audit.embedding_in(
                Path(scratch), embedder, compute, max_pixels=max_pixels, progress=progress
            )
        found = audit.check(
            data, sets, embed=embed, max_pixels=max_pixels, workers=workers, progress=progress
        )
    if out:
        storage.write_json(out, found.to_dict())
    if html:
        from vizsla.output.audit_page import page

        storage.write_text(html, page(found, max_pixels=max_pixels))
    if write_exclude:
        storage.write_text(write_exclude, found.exclude_text())
    if as_json:
        _print_json(found.to_dict())
    else:
        typer.echo(found.text())
        _print_remarks(*found.remarks())


def _print_remarks(alarms: list[str], notes: list[str]) -> None:
    for line in alarms:
        typer.secho(f"! {line}", fg=typer.colors.RED)
    for line in notes:
        typer.echo(f"- {line}")


# ── stage by stage ───────────────────────────────────────────────────────────────────────────────


@app.command(epilog="Example: vizsla embed data/test/gallery --model resnet50 -o gallery.emb")
def embed(
    images: Annotated[Path, typer.Argument(help="A folder of images, or a CSV/Parquet table.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    model: Model = "dinov2-s14",
    weights: Weights = "pretrained",
    pooling: Pooling = None,
    image_size: ImageSize = None,
    labels: Labels = None,
    labels_from: LabelsFrom = None,
    class_folders: Annotated[
        bool, typer.Option("--class-folders", help="The first folder is the label.")
    ] = False,
    role: Annotated[
        str | None, typer.Option("--role", help="Use the table's rows of this role alone.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = 32,
    workers: Workers = None,
    seed: Seed = 0,
    store: Annotated[str, typer.Option("--store", help="fp32, or fp16 at half the size.")] = "fp32",
    exclude: Exclude = None,
    max_pixels: MaxPixels = 100_000_000,
    follow_links: FollowLinks = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Images → embeddings: Parquet shards and a manifest. Interrupted, it goes on where it was."""
    from vizsla import pipeline
    from vizsla.model import inference

    image_set = pipeline.image_set(
        images, labels=labels, labels_from=labels_from, class_folders=class_folders, role=role,
        exclude=exclude, follow_links=follow_links,
    )  # fmt: skip
    embedder = pipeline.load_embedder(
        model, weights=weights, pooling=pooling, image_size=image_size, seed=seed
    )
    compute = inference.resolve_compute(
        device=device, precision=precision, batch_size=batch_size, workers=workers
    )
    with _Progress(quiet) as progress:
        embeddings = inference.embed(
            image_set, embedder, out, compute=compute, store=store, max_pixels=max_pixels,
            overwrite=overwrite, progress=lambda done, total: progress("embedding", done, total),
        )  # fmt: skip
    about = {
        "embeddings": str(out), "images": len(embeddings), "broken": len(embeddings.broken),
        "dim": embeddings.dim, "model_id": embeddings.model_id, "compute_id": embeddings.compute_id,
    }  # fmt: skip
    if as_json:
        _print_json(about)
    else:
        typer.echo(f"{len(embeddings)} embeddings of {embeddings.dim} dimensions in {out}")


@app.command(epilog="Example: vizsla search gallery.emb query.emb -k 10 -o ranking.parquet")
def search(
    gallery: Annotated[Path, typer.Argument(help="The gallery's embeddings.")],
    queries: Annotated[Path, typer.Argument(help="The queries' embeddings.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The ranking to write (Parquet).")],
    top_k: Annotated[
        int | None,
        typer.Option("-k", "--top-k", min=1, help="[default: all up to 20,000, else 1,000]"),
    ] = None,
    same_set: Annotated[
        bool, typer.Option("--same-set", help="Both are one set: leave each query itself out.")
    ] = False,
    device: Device = "cpu",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Embeddings → ranking: for every query the gallery by falling cosine, exactly."""
    from vizsla.model.embeddings import Embeddings
    from vizsla.model.inference import resolve_compute
    from vizsla.search.exact import rank

    device = resolve_compute(device=device).device
    ranking = rank(
        Embeddings.open(queries), Embeddings.open(gallery), top_k, same_set=same_set, device=device
    )
    ranking.save(out)
    if as_json:
        _print_json({"ranking": str(out), "queries": len(ranking), "depth": ranking.depth})
    else:
        typer.echo(f"{len(ranking)} queries, {ranking.depth} gallery images each, in {out}")


@app.command(
    epilog="Example: vizsla submission ranking.parquet -k 10 --data data -o submission.json"
)
def submission(
    ranking: Annotated[Path, typer.Argument(help="A ranking or another submission.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write.")],
    top_k: TopK = 10,
    data: Annotated[
        Path | None, typer.Option("--data", help="Check the names against this data folder.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="json, records, kaggle, trec.")] = "json",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Ranking → submission file, checked before it is written."""
    from vizsla.output.submission import write_submission

    queries, gallery = _names_in(data)
    write_submission(
        _read_ranking(ranking), out, k=top_k, format=form, queries=queries, gallery=gallery
    )
    typer.echo(str(out))


def _names_in(data: Path | None) -> tuple[list[str] | None, list[str] | None]:
    """The query and gallery names of a data folder, to check a submission against."""
    from vizsla.data.imageset import open_data

    folders = open_data(data) if data else None
    return (folders.query.ids, folders.gallery.ids) if folders else (None, None)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _read_ranking(path: Path) -> "Ranking":
    """From a run's folder, a ranking or a submission in any form."""
    from vizsla.output.submission import read_submission
    from vizsla.runs import is_run, submission_in
    from vizsla.search.ranking import Ranking

    if path.is_dir() or not path.suffix:
        path = path / "ranking.parquet" if is_run(path) else submission_in(path)
    return Ranking.load(path) if path.suffix == ".parquet" else read_submission(path)


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────


@app.command(epilog="Example: vizsla evaluate submission.json --labels-from '{label}_{n}' -k 10")
def evaluate(
    source: Annotated[
        Path | None,
        typer.Argument(help="A ranking, a submission, a TREC run or a run's folder."),
    ] = None,
    labels: Labels = None,
    labels_from: LabelsFrom = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="The data folder: tells the whole gallery, finds labels.csv."),
    ] = None,
    qrels: Annotated[
        Path | None, typer.Option("--qrels", help="TREC judgements in place of labels.")
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            "--queries",
            help="Vectors instead of a ranking: .npy, .npz, .safetensors, Parquet, a folder.",
        ),
    ] = None,
    gallery: Annotated[
        Path | None, typer.Option("--gallery", help="The gallery's vectors.")
    ] = None,
    query_labels: Annotated[
        Path | None,
        typer.Option("--query-labels", help=".npy, CSV with a column label, or one a line."),
    ] = None,
    gallery_labels: Annotated[
        Path | None, typer.Option("--gallery-labels", help="The same for the gallery.")
    ] = None,
    same_set: Annotated[
        bool, typer.Option("--same-set", help="Queries and gallery are one set: leave self out.")
    ] = False,
    top_k: Annotated[
        str, typer.Option("-k", "--top-k", help="Cut-offs, such as 1,5,10.")
    ] = "1,5,10",
    missing_ranks: Annotated[
        str,
        typer.Option(
            "--missing-ranks",
            help="Behind a list's end: unknown; wrong; or absent, as trec_eval has it.",
        ),
    ] = "unknown",
    cluster: Cluster = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="Slices by label, group, domain, any column. Repeatable."),
    ] = None,
    worst: Annotated[
        int | None,
        typer.Option(
            "--worst", min=1, help="The N worst classes (or slices), most confused pairs."
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="AUC, thresholds, and the score that can be trusted."),
    ] = False,
    sure: Annotated[
        float, typer.Option("--sure", help="How often a match above that score is right.")
    ] = 0.95,
    training: Annotated[
        Path | None,
        typer.Option("--training", help="Embeddings of labelled training images to calibrate on."),
    ] = None,
    validate_on: ValidateOn = None,
    per_query: Annotated[
        Path | None, typer.Option("--per-query", help="Every query's values: .csv or .parquet.")
    ] = None,
    curve: Annotated[
        Path | None, typer.Option("--curve", help="Draw recall by cut-off (PNG).")
    ] = None,
    bars: Annotated[Path | None, typer.Option("--bars", help="Draw the classes (PNG).")] = None,
    histogram: Annotated[
        Path | None, typer.Option("--histogram", help="Draw scores of right and wrong (PNG).")
    ] = None,
    write_run: Annotated[
        Path | None, typer.Option("--write-run", help="The ranking as a TREC run.")
    ] = None,
    write_qrels: Annotated[
        Path | None, typer.Option("--write-qrels", help="The truth as TREC judgements.")
    ] = None,
    device: Device = "cpu",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Also write all of it there (JSON).")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Ranking, submission or vectors + truth → scores, with intervals."""
    from vizsla import storage
    from vizsla.output import evaluation
    from vizsla.output import qrels as trec
    from vizsla.score.relevance import relevance
    from vizsla.score.slices import write_queries

    if (source is None) == (queries is None):
        raise UsageError("give either a ranking, submission or run, or --queries with vectors")
    if (training or validate_on) and not calibrate:
        raise UsageError("--training and --validate-on are options of --calibrate: give it too")
    told = _Truth(labels, labels_from, data, qrels, query_labels, gallery_labels, same_set)
    options = {"ks": _comma_ints(top_k), "missing_ranks": missing_ranks, "cluster": cluster}
    if queries is not None:
        ranking, truth, scores = _evaluate_vectors(queries, gallery, told, device, options)
    else:
        assert source is not None
        ranking, truth, scores = _evaluate_ranking(source, told, options)
    judged = relevance(ranking, truth) if calibrate or curve or histogram else None
    calibration, applied = None, ""
    if calibrate and judged is not None:
        calibration, elsewhere = _calibrated(
            source or queries, ranking, judged, told, sure, training, validate_on, quiet
        )
        applied = calibration.applied(judged) if elsewhere else ""
    found = evaluation.detailed(
        scores, by=by or (), worst=worst, calibration=calibration, applied=applied
    )
    if out:
        storage.write_json(out, found.to_dict())
    if per_query:
        write_queries(scores, per_query)
    if curve and judged is not None:
        evaluation.draw_curve(curve, judged)
    if bars:
        evaluation.draw_bars(bars, scores)
    if histogram and judged is not None:
        evaluation.draw_histogram(histogram, judged, calibration)
    if write_run:
        trec.write_run(ranking, truth, write_run)
    if write_qrels:
        trec.write_qrels(trec.grades_of(ranking, truth), write_qrels)
    if as_json:
        _print_json(found.to_dict())
    else:
        typer.echo(found.text())


@dataclasses.dataclass(frozen=True)
class _Truth:
    """What the options say of the truth."""

    labels: Path | None = None
    labels_from: str | None = None
    data: Path | None = None
    qrels: Path | None = None
    query_labels: Path | None = None
    gallery_labels: Path | None = None
    same_set: bool = False

    @property
    def given(self) -> bool:
        return bool(self.labels or self.labels_from or self.data or self.qrels)


def _evaluate_vectors(
    queries: Path, gallery: Path | None, told: _Truth, device: str, options: dict[str, Any]
) -> "tuple[Ranking, Truth, Scores]":
    from vizsla.model.inference import resolve_compute
    from vizsla.score.embedded import evaluate_ranked, own_pair, ranked, truth_of

    if told.labels_from or told.data:
        raise UsageError("vectors take --query-labels and --gallery-labels, --labels or --qrels")
    query_labels = told.query_labels or told.labels
    gallery_labels = told.gallery_labels or (None if told.same_set else told.labels)
    device = resolve_compute(device=device).device
    asked, searched = own_pair(
        queries, gallery, query_labels, gallery_labels, same_set=told.same_set
    )
    grades = _read_grades(told.qrels) if told.qrels else None
    truth = truth_of(asked, searched, grades, told.same_set)
    ranking = ranked(asked, searched, ks=options["ks"], same_set=told.same_set, device=device)
    return (
        ranking,
        truth,
        evaluate_ranked(ranking, truth, asked, searched, device=device, **options),
    )


def _evaluate_ranking(
    source: Path, told: _Truth, options: dict[str, Any]
) -> "tuple[Ranking, Truth, Scores]":
    """A run without any word on the truth has its own."""
    from vizsla.runs import is_run
    from vizsla.score.scores import evaluate as score

    if told.query_labels or told.gallery_labels:
        raise UsageError("--query-labels and --gallery-labels are for vectors: give --labels")
    if is_run(source) and not told.given:
        from vizsla import pipeline

        return pipeline.judge_run(source, **options)
    ranking = _read_ranking(source)
    truth = _read_truth(ranking, told)
    if is_run(source) and ranking.depth < (ranking.gallery_size or 0):
        from vizsla import pipeline

        return pipeline.rescore(source, truth, **options)
    return ranking, truth, score(ranking, truth, **options)


def _calibrated(
    source: Path | None,
    ranking: "Ranking",
    judged: "Relevance",
    told: _Truth,
    sure: float,
    training: Path | None,
    validate_on: str | None,
    quiet: bool,
) -> "tuple[Calibration, bool]":
    """The cut-off, and whether it was learned on other queries than those that are judged."""
    from vizsla.runs import is_run
    from vizsla.score.calibration import calibrate

    if training is not None:
        from vizsla.data.imageset import open_data
        from vizsla.model.embeddings import Embeddings
        from vizsla.score.calibration import calibrate_on_training
        from vizsla.tuning import target_of

        folders = open_data(told.data) if told.data else None
        target = target_of(folders.query, folders.gallery) if folders else None
        learned = calibrate_on_training(
            Embeddings.open(training), target=target, validate_on=validate_on or "new-classes",
            precision=sure, source=training, model_id=ranking.origin.get("model_id"),
        )  # fmt: skip
        return learned, True
    if source is not None and is_run(source) and not told.given:
        from vizsla import pipeline

        with _Progress(quiet) as progress:
            learned = pipeline.calibrate_run(
                source, precision=sure, validate_on=validate_on, progress=progress
            )
        return learned, True
    words = f"the {len(judged)} queries of {source} (this must be a validation part: a cut-off "
    words += "learned on the test part looks better than it is)"
    return calibrate(judged, precision=sure, learned_on=words), False


def _read_grades(path: Path) -> "dict[str, dict[str, int]]":
    from vizsla.output.qrels import read_qrels

    return read_qrels(path)


def _read_truth(ranking: "Ranking", told: _Truth) -> "Truth":
    """From --qrels, --labels, --labels-from, or the labels file in --data."""
    from vizsla.data.imageset import open_data
    from vizsla.score.relevance import Truth

    if told.labels and told.labels_from:
        raise UsageError("--labels and --labels-from exclude each other: give one")
    folders = open_data(told.data) if told.data else None
    file = told.labels or (folders.labels_file if folders else None)
    one_set = told.same_set or bool(ranking.origin.get("same_set"))
    labels = None
    if told.labels_from:
        labels = Truth.from_pattern(
            ranking, told.labels_from, one_set=one_set,
            queries=folders.query.ids if folders else None,
            gallery=folders.gallery.ids if folders else None,
        )  # fmt: skip
    elif file is not None:
        labels = Truth.from_file(file, one_set=one_set)
    if told.qrels is not None:
        return Truth.from_grades(_read_grades(told.qrels), labels=labels, one_set=one_set)
    if labels is None:
        raise UsageError(
            "the truth is needed: --labels FILE, --labels-from '{label}_{n}', --qrels FILE, "
            "or --data DATA with a labels.csv in it"
        )
    return labels


@app.command(epilog="Example: vizsla compare results")
def compare(
    sources: Annotated[
        list[Path],
        typer.Argument(help="Folders of result files, the files; or runs and rankings, by pairs."),
    ],
    group: Annotated[
        str | None, typer.Option("--group", help="Keys to group by, with commas.")
    ] = None,
    sort: Annotated[str | None, typer.Option("--sort", help="The column to sort by.")] = None,
    labels: Labels = None,
    labels_from: LabelsFrom = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="The data folder of rankings to compare.")
    ] = None,
    qrels: Annotated[
        Path | None, typer.Option("--qrels", help="TREC judgements of rankings to compare.")
    ] = None,
    cluster: Cluster = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Also write a CSV file.")] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Also write a Markdown file.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Also write an HTML page.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Many result files → one table: grouped averages, and what cannot be true.

    Of runs' folders (or of rankings and submissions with the truth): every pair's difference on the
    same queries, with interval and p-value.
    """
    from vizsla import storage
    from vizsla.runs import is_run
    from vizsla.score import compare, tables

    told = _Truth(labels, labels_from, data, qrels)
    if told.given or all(is_run(source) for source in sources):
        table, page, content = _compare_pairs(sources, told, cluster)
        alarms: list[str] = []
        notes: list[str] = []
    else:
        results = compare.read_results(sources)
        by = group.split(",") if group else compare.GROUPS
        table, page = results.grouped(by, sort=sort), results.html(by, sort=sort)
        content = results.to_dict(by, sort=sort)
        alarms, notes = results.remarks()
    for path, text in (
        (csv, tables.to_csv(table)), (markdown, tables.to_markdown(table)), (html, page),
    ):  # fmt: skip
        if path:
            storage.write_text(path, text)
    if as_json:
        _print_json(content)
        return
    typer.echo(table.text())
    _print_remarks(alarms, notes)


def _compare_pairs(
    sources: list[Path], told: _Truth, cluster: str | None
) -> tuple["Table", str, Any]:
    from vizsla.score.paired import compare_systems, differences_table
    from vizsla.score.scores import Scores, evaluate
    from vizsla.score.tables import Section, to_html

    systems = {}
    for source in sources:
        if told.given:
            ranking = _read_ranking(source)
            scores = evaluate(ranking, _read_truth(ranking, told))
        else:
            scores = Scores.load(source / "scores.json")
        name = source.name if source.name not in systems else str(source)
        systems[name] = scores
    table = differences_table(compare_systems(systems, cluster=cluster))
    return table, to_html("Systems compared", [Section("Differences", table)]), table.records()


@app.command(epilog="Example: vizsla report runs/ID -o report.html")
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")] = Path(
        "report.html"
    ),
    data: Annotated[
        Path | None, typer.Option("--data", help="Where its images lie now, if elsewhere.")
    ] = None,
    projection: Annotated[str, typer.Option("--map", help="tsne, or pca (faster).")] = "tsne",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """A run → one HTML page without network: scores, curves, pictures, a map."""
    from vizsla import pipeline

    page = pipeline.report(run, out, data=data, projection=projection)
    typer.echo(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")


@app.command(epilog="Example: vizsla models")
def models(
    names: Annotated[list[str] | None, typer.Argument(help="Only these.")] = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Fetch their weights now, for use without network.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """The backbones by name: size, dimension, licence of the weights."""
    if fetch:
        from vizsla.model.weights import fetch as fetch_weights

        if not names:
            raise UsageError("--fetch needs the names of models: vizsla models --fetch dinov2-s14")
        fetched = {name: str(fetch_weights(name)) for name in names}
        if as_json:
            _print_json(fetched)
        else:
            typer.echo("\n".join(f"{name}: {where}" for name, where in fetched.items()))
        return
    from vizsla.model.catalogue import model_table

    rows = model_table(names)
    if as_json:
        _print_json(rows)
    else:
        from vizsla.score.tables import Table

        columns = [key.replace("_", " ") for key in rows[0]]
        typer.echo(Table(columns, [[_plain(cell) for cell in row.values()] for row in rows]).text())


def _plain(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


@app.command(epilog="Example: vizsla show runs/ID --data data --worst 10 -o sheets")
def show(
    source: Annotated[
        Path | None, typer.Argument(help="A run's folder, a ranking or a submission.")
    ] = None,
    *,
    data: Annotated[Path, typer.Option("--data", help="The data folder with the images.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder. [default: visualizations/<name>]")
    ] = None,
    labels: Labels = None,
    labels_from: LabelsFrom = None,
    top_k: TopK = 10,
    worst: Annotated[int | None, typer.Option("--worst", min=1, help="The N worst only.")] = None,
    only_wrong: Annotated[
        bool, typer.Option("--only-wrong", help="Queries whose first result is wrong.")
    ] = False,
    random: Annotated[int | None, typer.Option("--random", min=1, help="N at random.")] = None,
    why: Annotated[
        bool, typer.Option("--why", help="Heat maps of what made query and result alike.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", help="With --why, for a ranking that is no run: its embedder."),
    ] = None,
    augmentations: Annotated[
        bool, typer.Option("--augmentations", help="Training pictures of each preset instead.")
    ] = False,
    seed: Seed = 0,
    home: Home = Path(),
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """A PNG for each query: the query on the left, its top k on the right."""
    if augmentations:
        from vizsla.output.augmentations import draw_augmentations

        drawn = draw_augmentations(data, out or home / "visualizations" / "augmentations", seed)
        typer.echo("\n".join(map(str, drawn)))
        return
    if source is None:
        raise UsageError("give a run, a ranking or a submission, or --augmentations")
    from vizsla import pipeline
    from vizsla.data.imageset import open_data
    from vizsla.runs import file_safe

    ranking = _read_ranking(source)
    embedder = _embedder_behind(source, model) if why else None
    folders = open_data(data)
    known = bool(labels or labels_from or folders.labels_file)
    truth = _read_truth(ranking, _Truth(labels, labels_from, data)) if known else None
    with _Progress(quiet) as progress:
        paths = pipeline.show(
            ranking, folders, truth, out or home / "visualizations" / file_safe(source.stem),
            k=top_k, worst=worst, only_wrong=only_wrong, random=random, seed=seed,
            why=embedder, progress=lambda done, total: progress("drawing", done, total),
        )  # fmt: skip
    if as_json:
        _print_json([str(path) for path in paths])
    else:
        typer.echo(f"{len(paths)} figures in {paths[0].parent}" if paths else "no such queries")


def _embedder_behind(source: Path, model: str | None) -> "Embedder":
    """The embedder that made a ranking: the run's own, or the one that is named."""
    from vizsla import pipeline
    from vizsla.model.inference import resolve_compute
    from vizsla.runs import is_run

    if model is None and not is_run(source):
        raise UsageError(f"--why needs the model behind {source}: give a run, or --model")
    embedder = pipeline.load_embedder(model or str(source))
    return embedder.to(resolve_compute().device)


@app.command(epilog="Example: vizsla submit submissions/sub_resnet50_….json --group us --url URL")
def submit(
    file: Annotated[Path, typer.Argument(help="A submission file, or a run's folder.")],
    group: Annotated[str, typer.Option("--group", help="The group's name.")],
    url: Annotated[
        str | None, typer.Option("--url", help="The server. [default: $VIZSLA_SUBMIT_URL]")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Check the names against this data folder first.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option("--token", envvar="VIZSLA_SUBMIT_TOKEN", help="If it asks for one."),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds.")] = 30.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show, send nothing.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Post a submission to the contest's server and print the score."""
    from vizsla.output.client import record_submission, submit
    from vizsla.runs import run_of_submission, submission_in

    file = submission_in(file) if file.is_dir() or not file.suffix else file
    queries, gallery = _names_in(data)
    receipt = submit(
        file, group, url, token=token, timeout=timeout, dry_run=dry_run,
        queries=queries, gallery=gallery,
    )  # fmt: skip
    run_folder = None if dry_run else run_of_submission(file)
    record = run_folder and record_submission(run_folder, receipt)
    if as_json:
        _print_json(dataclasses.asdict(receipt))
    else:
        if receipt.accuracy is None:
            typer.echo(f"would send {receipt.queries} queries, {receipt.bytes} bytes")
        else:
            numbers = {"accuracy": receipt.accuracy, **receipt.metrics}
            typer.echo("\n".join(f"{name:<20} {value:g}" for name, value in numbers.items()))
        typer.echo(f"to          {receipt.url} as {receipt.groupname}")
        typer.echo(f"sha256      {receipt.sha256}")
        if record:
            typer.echo(f"recorded    {record}")


# ── the contest's server ─────────────────────────────────────────────────────────────────────────

judge_commands = typer.Typer(
    help="Run a contest: a server that takes submissions and shows a leaderboard.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
token_commands = typer.Typer(help="Tokens of groups.", no_args_is_help=True)
judge_commands.add_typer(token_commands, name="token")
app.add_typer(judge_commands, name="judge")

Database = Annotated[
    Path, typer.Option("--database", help="The contest's file: submissions, scores, tokens.")
]
Share = Annotated[
    float | None,
    typer.Option("--public-share", help="Share of the queries scored live; needs --closes."),
]


@judge_commands.callback(
    invoke_without_command=True,
    epilog="Example: vizsla judge --labels labels.csv --top-k 10 --port 3001",
)
def judge(
    context: typer.Context,
    labels: Labels = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Check the labels against this data folder.")
    ] = None,
    top_k: TopK = 10,
    metric: Annotated[
        str, typer.Option("--metric", help="top_k_accuracy, contest_points or map_at_k.")
    ] = "top_k_accuracy",
    title: Annotated[str, typer.Option("--title")] = "Image retrieval contest",
    public_share: Share = None,
    seed: Annotated[int, typer.Option("--seed", help="Which queries are public.")] = 0,
    groups: Annotated[
        str, typer.Option("--groups", help="open: any name; token: those with a token.")
    ] = "open",
    per_hour: Annotated[
        int | None, typer.Option("--per-hour", min=1, help="Submissions of a group an hour.")
    ] = None,
    in_all: Annotated[
        int | None, typer.Option("--in-all", min=1, help="Submissions of a group in all.")
    ] = None,
    opens: Annotated[
        str | None, typer.Option("--opens", help="Such as 2026-05-28T12:00 (local) or …Z (UTC).")
    ] = None,
    closes: Annotated[str | None, typer.Option("--closes")] = None,
    counts: Annotated[str, typer.Option("--counts", help="best or last submission.")] = "best",
    database: Database = Path("judge.sqlite"),
    host: Annotated[
        str, typer.Option("--host", help="0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 3001,
    organiser_token: Annotated[
        str | None,
        typer.Option(
            "--organiser-token", envvar="VIZSLA_ORGANISER_TOKEN", help="[default: made once]"
        ),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Take submissions at /retrieval/ and show the leaderboard, until Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    from vizsla.web import judge as judging
    from vizsla.web.judge_rules import Rules, parse_time

    if labels is None:
        raise UsageError("give the truth: --labels FILE")
    rules = Rules(
        title=title, top_k=top_k, metric=metric, public_share=public_share, seed=seed,
        groups=groups, per_hour=per_hour, in_all=in_all, counts=counts,
        opens=parse_time(opens) if opens else None,
        closes=parse_time(closes) if closes else None,
    )  # fmt: skip

    def started(url: str, made: str | None) -> None:
        typer.echo(f"submissions  {url}/retrieval/")
        typer.echo(f"leaderboard  {url}/")
        typer.echo(f"organiser    {url}/organiser")
        if made:
            typer.echo(f"             token {made} (shown this once; any user name)")

    judging.judge(
        labels, database=database, data=data, rules=rules, host=host, port=port,
        organiser_token=organiser_token, started=started,
    )  # fmt: skip


@judge_commands.command(epilog="Example: vizsla judge rescore --labels mended.csv")
def rescore(
    labels: Annotated[Path, typer.Option("--labels", help="The truth to score with.")],
    data: Annotated[Path | None, typer.Option("--data")] = None,
    top_k: Annotated[int | None, typer.Option("-k", "--top-k", min=1, help="[as before]")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="[as before]")] = None,
    public_share: Annotated[
        float | None, typer.Option("--public-share", help="[as before]")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="[as before]")] = None,
    database: Database = Path("judge.sqlite"),
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score every stored submission anew, as after a mended label. Stop the server first."""
    from vizsla.web import judge as judging

    done = judging.rescore(
        labels, database=database, data=data, top_k=top_k, metric=metric,
        public_share=public_share, seed=seed,
    )  # fmt: skip
    if as_json:
        _print_json(dataclasses.asdict(done))
    else:
        typer.echo(f"{done.submissions} submissions scored anew, {done.changed} scores changed")
        if done.misfits:
            typer.echo(f"{done.misfits} name images that the truth lacks, or lack queries of it")


@token_commands.command("add", epilog="Example: vizsla judge token add 'Team 7'")
def token_add(
    name: Annotated[str, typer.Argument(help="The group.")],
    database: Database = Path("judge.sqlite"),
) -> None:
    """Make a token for a group and print it; an older one is no longer valid."""
    from vizsla.web.judge import add_token

    typer.echo(add_token(name, database=database))


@token_commands.command("list")
def token_list(database: Database = Path("judge.sqlite")) -> None:
    """The groups that have a token."""
    from vizsla.web.judge import list_tokens

    typer.echo("\n".join(list_tokens(database=database)))


@token_commands.command("remove")
def token_remove(
    name: Annotated[str, typer.Argument(help="The group.")],
    database: Database = Path("judge.sqlite"),
) -> None:
    """Take a group's token away; its submissions stay."""
    from vizsla.web.judge import remove_token

    remove_token(name, database=database)
