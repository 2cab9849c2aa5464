"""The command `check`."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands, print_json, print_remarks
from vizsla.cli.parameters import Without
from vizsla.cli.sources import require_all_weights
from vizsla.options import CheckOptions, Printing
from vizsla.progress import ProgressShown

app = Commands()

UNUSED = ("labels_from", "exclude")


@dataclass(frozen=True, kw_only=True)
class CheckCommand(CheckOptions, Printing):
    """The options of `vizsla check`."""


@app.command(
    "check", epilog="Example: vizsla check data --html check.html --write-exclude exclude.txt"
)
def check_data(
    data: Annotated[Path, typer.Argument(help="A data folder, one of classes, or one of images.")],
    *,
    options: Annotated[CheckCommand, Without(*UNUSED)],
) -> None:
    """Find broken files, copies, leaks and wrong labels before the work starts.

    Findings do not change the exit code. Nothing in DATA is changed.
    """
    if options.model:
        require_all_weights([(options.model, options.weights)])
    from vizsla.run.check_folder import check_folder, write_findings

    with ProgressShown(options.quiet) as progress:
        found = check_folder(data, options, progress)
    write_findings(found, options)
    if options.as_json:
        print_json(found.to_dict())
    else:
        exclude = options.write_exclude
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        typer.echo(found.text(width))
        print_remarks(*found.remarks(str(exclude) if exclude else None))
        for what, path in (("page", options.html), ("exclude", exclude), ("JSON", options.out)):
            if path:
                typer.echo(f"{what:<10}{path}")
