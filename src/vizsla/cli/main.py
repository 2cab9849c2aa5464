"""The command line: every command parses, makes one library call and prints what came back.

Results go to standard output, messages and progress to standard error. Heavy modules are imported
inside the commands that need them, so that `vizsla --help` answers at once.
"""

import importlib
import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import vizsla
from vizsla.cli.console import Commands, Group, log_to_stderr
from vizsla.errors import UsageError, VizslaError
from vizsla.storage import storage_error

FILES = {
    "run": ["run", "demo", "train", "sweep"], "best": ["best"],
    "data": ["data"], "check": ["check"],
    "embed": ["embed", "submission"],
    "find": ["find"], "index": ["index", "search"], "cluster": ["cluster"], "fuse": ["fuse"],
    "evaluate": ["evaluate"], "protocols": ["protocols"], "crop": ["crop"],
    "compare": ["compare"], "runs": ["runs"], "show": ["report", "models", "show"],
    "export": ["export"], "serve": ["serve"], "contest": ["submit", "judge"],
}  # fmt: skip  # file → its commands, in the order of `vizsla --help`
INTERRUPTED = (
    "interrupted; nothing is half-written. Run again: `embed`, `train`, `best` and `run "
    "--finetune` continue, `run` starts over (with --cache DIR nothing is embedded twice)"
)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"vizsla {vizsla.__version__}")
        raise typer.Exit


class LazyGroup(Group):
    """The commands of all files; only the file of the command that was called is imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of all commands."""
        return [name for names in FILES.values() for name in names]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One command; None for an unknown name, after all were read to suggest similar ones."""
        known = cmd_name in self.list_commands(ctx)
        for file, names in FILES.items():
            if cmd_name not in self.commands and (cmd_name in names or not known):
                module = importlib.import_module(f"vizsla.cli.{file}")
                self.commands.update(typer.main.get_group(module.app).commands)
        return self.commands.get(cmd_name)


app = Commands(
    name="vizsla",
    cls=LazyGroup,
    epilog="Start with `vizsla demo`, then `vizsla run DATA`. Docs: README.md.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def vizsla_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Rank a gallery of images for every query, so that images of the same class come first."""


def main(arguments: list[str] | None = None) -> None:
    """Exit codes: 0 done; 1 could not be done, in one clear line; 2 wrong use; 130 Ctrl-C."""
    if arguments is None:
        _speak_utf8()
    log_to_stderr()
    if "" in (sys.argv[1:] if arguments is None else arguments):  # it would stand for this folder
        _fail("one of the arguments is empty: a variable that is not set, perhaps", 2)
    try:
        app(arguments)
    except SystemExit as end:  # so Typer ends, also after Ctrl-C or when its reader has gone
        if isinstance(end.__context__, BrokenPipeError):
            _end_without_reader()
        if end.code != 130:
            raise
        _fail(INTERRUPTED, 130)
    except UsageError as error:
        _fail(str(error), 2)
    except VizslaError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail(INTERRUPTED, 130)
    except BrokenPipeError:
        _end_without_reader()
    except OSError as error:
        if os.environ.get("VIZSLA_DEBUG"):
            raise
        _fail(str(storage_error("use", Path(error.filename or "a file"), error)), 1)
    except MemoryError:
        _fail("memory ran out: use a smaller --batch-size, or a machine with more memory", 1)
    except Exception as error:
        if os.environ.get("VIZSLA_DEBUG"):
            raise
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        _fail(f"{what} (unexpected; VIZSLA_DEBUG=1 shows where, please report it)", 1)


def _end_without_reader() -> None:
    """Ends as done: `vizsla models | head` has read all that it wanted."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _speak_utf8() -> None:
    """Names of files are UTF-8, whatever the locale says (LC_ALL=C in cron jobs and containers)."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # Python decides it as it starts, so it must start again
        os.execv(sys.executable, sys.orig_argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error does by itself


def _fail(message: str, code: int) -> None:
    typer.echo(f"vizsla: {message}", err=True)
    sys.exit(code)
