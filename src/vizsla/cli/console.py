"""What all commands share: the app they register with, messages, progress, output."""

import functools
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from vizsla.cli.parameters import with_options
from vizsla.options import Messages
from vizsla.workspace import SECONDS

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from vizsla.score.text_table import Table


class _FlagsWithoutType:
    """Typer writes <bool> after a flag, as if it took a value."""

    def get_params(self, context: Any) -> Any:
        parameters = super().get_params(context)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
                if parameter.default is None:  # Typer would import pydantic to find it is no bool
                    parameter.default = False
        return parameters


class Command(_FlagsWithoutType, TyperCommand):
    """A command whose flags have no type in the help."""


class Group(_FlagsWithoutType, TyperGroup):
    """A group of commands, the same."""


class Commands(typer.Typer):
    """A Typer whose commands take dataclasses of options, --config and --set (parameters.py)."""

    def command(self, *names: Any, **settings: Any) -> Callable[[Any], Any]:
        """Registers a function as a command, as Typer's does."""
        register = super().command(*names, cls=Command, **settings)
        return lambda function: register(with_options(_with_level(function)))

    def callback(self, **settings: Any) -> Callable[[Any], Any]:
        """Registers what a group does; with options, if it does something by itself."""
        register = super().callback(**settings)
        if not settings.get("invoke_without_command"):
            return register
        return lambda function: register(with_options(_with_level(function)))


def _with_level(function: Callable[..., Any]) -> Callable[..., Any]:
    """The command, which prints the messages that its --quiet and --verbose ask for."""

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        for shown in values.values():
            if isinstance(shown, Messages) and (shown.quiet or shown.verbose):
                set_level(logging.ERROR if shown.quiet else logging.DEBUG)
        return function(**values)

    return command


log = logging.getLogger("vizsla")


class TerminalHandler(logging.Handler):
    """Prints log records on standard error: warnings in yellow, errors in red."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one record; from WARNING on, its level stands before the message."""
        colour = {"WARNING": typer.colors.YELLOW, "ERROR": typer.colors.RED}.get(record.levelname)
        word = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        # `err=True` would bypass the stream that a progress bar puts in place of sys.stderr.
        typer.secho(word + record.getMessage(), file=sys.stderr, fg=colour)


def log_to_stderr() -> None:
    """Prints the messages of vizsla from INFO on; in place of an earlier call's handler."""
    log.setLevel(logging.DEBUG)
    handler = TerminalHandler()
    handler.setLevel(logging.INFO)
    log.handlers = [h for h in log.handlers if not isinstance(h, TerminalHandler)] + [handler]
    log.propagate = False


def set_level(level: int) -> None:
    """Sets the lowest level that is printed, such as logging.ERROR."""
    for handler in log.handlers:
        if isinstance(handler, TerminalHandler):
            handler.setLevel(level)


@dataclass
class Stage:
    """One stage under way.

    first: the count at its first report, when its clock starts; earlier work is not in the rate.
    """

    name: str
    total: int
    first: int
    started: float
    done: int = -1

    def is_continued_by(self, name: str, done: int, total: int) -> bool:
        """Whether a report is of this stage, and not of a later one of the same name."""
        return (name, total) == (self.name, self.total) and done >= self.done

    def rate(self, now: float) -> float | None:
        """None where there is none yet; seconds have none."""
        seconds = now - self.started
        if self.name.endswith(SECONDS):
            return None
        return (self.done - self.first) / seconds if seconds > 0.5 else None


class ProgressShown:
    """Called with (stage, done, total): a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.stage = Stage("", 0, 0, 0.0)
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
        now, new = time.monotonic(), not self.stage.is_continued_by(stage, done, total)
        if new:
            self.stage = Stage(stage, total, done, now)
        elif done == self.stage.done:
            return
        self.stage.done = done
        rate = self.stage.rate(now)
        rate_text = format_rate(rate) if rate else ""
        if self.bar:
            self._move_bar(stage, done, total, rate_text, new=new)
        elif not self.quiet and (now - self.last > 10 or done == total):
            self.last = now
            wait = f", {(total - done) / rate:.0f} s left" if done < total and rate else ""
            what, unit = stage.removesuffix(SECONDS), " s" if stage.endswith(SECONDS) else ""
            typer.echo(
                f"{what}: {done} of {total}{unit}{rate_text and ' at ' + rate_text}{wait}", err=True
            )

    def _move_bar(self, stage: str, done: int, total: int, rate: str, *, new: bool) -> None:
        assert self.bar is not None
        if stage not in self.tasks:
            self.tasks[stage] = self.bar.add_task(stage, total=total, rate="")
        elif new:  # the same words for another stage: its clock starts anew
            self.bar.reset(self.tasks[stage], total=total)
        self.bar.update(self.tasks[stage], completed=done, rate=rate)


def format_rate(rate: float) -> str:
    """A rate per second as text: 30/s, below ten with one decimal: 1.2/s."""
    return f"{rate:.0f}/s" if rate >= 9.95 else f"{rate:.1f}/s"


def print_json(content: Any) -> None:
    """Prints the result as one JSON value on standard output. ValueError for nan and infinity."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(table: "Table", keep: Sequence[str] = ()) -> None:
    """In full to a file or a pipe; on a terminal folded to its width. keep: of Table.lines."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    typer.echo(table.text(width, keep=keep))


def print_remarks(alarms: list[str], notes: list[str]) -> None:
    """Prints alarms in red behind `!`, then notes behind `-`, a line each."""
    for line in alarms:
        typer.secho(f"! {line}", fg=typer.colors.RED)
    for line in notes:
        typer.echo(f"- {line}")
