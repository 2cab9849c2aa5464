"""What all commands share: the app they register with, messages, progress, output."""

import json
import logging
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from vizsla.score.tables import Table


class _FlagsWithoutType:
    """Typer writes <bool> behind a flag, as if it took a value."""

    def get_params(self, context: Any) -> Any:
        parameters = super().get_params(context)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters


class Command(_FlagsWithoutType, TyperCommand):
    pass


class Group(_FlagsWithoutType, TyperGroup):
    pass


app = typer.Typer(
    name="vizsla",
    cls=Group,
    help="Rank a gallery of images for every query, so that images of the same class come first.",
    epilog="Start with `vizsla demo`, then `vizsla run DATA`. Docs: README.md.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
log = logging.getLogger("vizsla")


class Messages(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        colour = {"WARNING": typer.colors.YELLOW, "ERROR": typer.colors.RED}.get(record.levelname)
        word = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        # `err=True` would write past what a progress bar puts in sys.stderr's place, into the bar.
        typer.secho(word + record.getMessage(), file=sys.stderr, fg=colour)


def log_to_stderr() -> None:
    log.setLevel(logging.DEBUG)
    handler = Messages()
    handler.setLevel(logging.INFO)
    log.handlers = [h for h in log.handlers if not isinstance(h, Messages)] + [handler]
    log.propagate = False


def set_level(level: int) -> None:
    for handler in log.handlers:
        if isinstance(handler, Messages):
            handler.setLevel(level)


class ProgressShown:
    """Called with (stage, done, total): a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.started: dict[str, float] = {}
        self.last = 0.0

    def __enter__(self) -> "ProgressShown":
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
        rate = said_rate(done, now - started) if now - started > 0.5 else ""
        if self.bar:
            if stage not in self.tasks:
                self.tasks[stage] = self.bar.add_task(stage, total=total, rate="")
            self.bar.update(self.tasks[stage], completed=done, rate=rate)
        elif not self.quiet and (now - self.last > 10 or done == total):
            self.last = now
            left = (now - started) / max(done, 1) * (total - done)
            wait = f", {left:.0f} s left" if done < total and rate else ""
            typer.echo(f"{stage}: {done} of {total}{rate and ' at ' + rate}{wait}", err=True)


def said_rate(done: int, seconds: float) -> str:
    rate = done / seconds
    return f"{rate:.0f}/s" if rate >= 9.95 else f"{rate:.1f}/s"


def print_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(table: "Table", **narrow: Any) -> None:
    """As it is to a file or a pipe; on a terminal no wider than that. narrow: of fitted_lines."""
    from vizsla.score.narrow import fitted_lines

    if not sys.stdout.isatty():
        typer.echo(table.text())
        return
    typer.echo("\n".join(fitted_lines(table, shutil.get_terminal_size().columns, **narrow)))


def print_remarks(alarms: list[str], notes: list[str]) -> None:
    for line in alarms:
        typer.secho(f"! {line}", fg=typer.colors.RED)
    for line in notes:
        typer.echo(f"- {line}")
