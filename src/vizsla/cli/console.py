"""What all commands share: the app they register with, messages, output."""

import functools
import json
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from vizsla.cli.parameters import with_options
from vizsla.errors import flags_named
from vizsla.options import Messages

if TYPE_CHECKING:
    from vizsla.score.run_table import RunTable
    from vizsla.score.text_table import Table


class _FlagsNamed:
    """Errors of commands name flags. In their help arguments are named like DATA, and flags have no
    type: Typer writes <bool> after one, as if it took a value."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Runs the command."""
        with flags_named():
            return super().main(*arguments, **options)  # type: ignore[misc]

    def get_params(self, context: Any) -> Any:
        parameters = super().get_params(context)  # type: ignore[misc]
        for parameter in parameters:
            if isinstance(parameter, TyperArgument) and parameter.metavar is None:
                parameter.metavar = str(parameter.name).upper()  # Typer writes {name} or [name]
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
                if parameter.default is None:  # Typer would import pydantic to find it is no bool
                    parameter.default = False
        return parameters


class Command(_FlagsNamed, TyperCommand):
    """A command whose flags have no type in the help."""


class Group(_FlagsNamed, TyperGroup):
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


def print_json(content: Any) -> None:
    """Prints the result as one JSON value on standard output. ValueError for nan and infinity."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(
    table: "Table",
    keep: Sequence[str] = (),
    *,
    whole: Sequence[str] = (),
    piped: int | None = None,
) -> None:
    """On a terminal folded to its width. keep, whole: of Table.lines.

    piped: the width in a file or a pipe; None is in full.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else piped
    typer.echo(table.text(width, keep=keep, whole=whole))


def print_remarks(alarms: list[str], notes: list[str]) -> None:
    """Prints alarms in red behind `!`, then notes behind `-`, a line each."""
    for line in alarms:
        typer.secho(f"! {line}", fg=typer.colors.RED)
    for line in notes:
        typer.echo(f"- {line}")


def print_validation(ranked: "RunTable") -> None:
    """Prints the scores of runs on held-out training images, below those of the test part."""
    from vizsla.score.validation_scores import validation_lines

    if lines := validation_lines(ranked.validated(), ranked.metric):
        above = [] if ranked.is_validated_only else [""]
        typer.echo("\n".join([*above, *lines]))
