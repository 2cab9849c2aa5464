"""The command that reads published data sets: data."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vizsla.cli.console import Commands, print_json, print_table
from vizsla.errors import UsageError
from vizsla.option_fields import option
from vizsla.options import Printing

if TYPE_CHECKING:
    from vizsla.data.data_folders import DataFolders

app = Commands()


@dataclass(frozen=True, kw_only=True)
class DataOptions(Printing):
    """The options of `vizsla data`."""

    source: Path | None = option(
        None, "The folder that the data set was unpacked into.", "Data", "--from", usual=True
    )
    out: Path | None = option(
        None, "The data folder to write, a few tables.", "Output", "-o", "--out", usual=True,
        shown="one of the set's name",
    )  # fmt: skip
    crop: bool = option(
        False, "Cut every image to the box of its object, or of each object.", "Data", usual=True
    )


@app.command(epilog="Example: vizsla data cub --from CUB_200_2011 -o cub")
def data(
    name: Annotated[
        str | None, typer.Argument(help="A data set; without one all are listed.")
    ] = None,
    *,
    options: DataOptions,
) -> None:
    """Use a published data set (CUB, SOP, Market-1501, COCO, …) as it lies on disk.

    Nothing is copied and nothing is fetched. Without --from it says what to download, and from
    where.
    """
    from vizsla.run.standard_data import SETS, standard_set, write_data_folder
    from vizsla.score.text_table import Table

    if name is None:
        if options.source:
            raise UsageError(f"--from needs the name of a data set: one of {', '.join(SETS)}")
        rows = [[key, one.title, one.protocol or ""] for key, one in SETS.items()]
        table = Table(["name", "data set", "protocol"], rows)
        if options.as_json:
            print_json(table.records())
        else:
            print_table(table)
            typer.echo("\n`vizsla data NAME` says what to download, and from where.")
        return
    known = standard_set(name)
    if options.source is None:
        about = {"name": name, "title": known.title, "layout": known.layout,
                 "download": known.download, "protocol": known.protocol}  # fmt: skip
        if options.as_json:
            print_json(about)
        else:
            typer.echo(
                f"{known.title}\n  download  {known.download}\n  layout    {known.layout}\n"
                f"  then      vizsla data {name} --from FOLDER"
            )
        return
    out = options.out or Path(name)
    folders = write_data_folder(name, options.source, out, crop=options.crop)
    _print(folders, out, options.as_json)


def _print(folders: "DataFolders", out: Path, as_json: bool) -> None:
    sizes = {
        role: len(part)
        for role in ("training", "query", "gallery")
        if (part := getattr(folders, role)) is not None
    }
    from vizsla.data.label_sets import distinct_labels  # imports numpy

    labels = distinct_labels(folders.training.labels or []) if folders.training else set()
    if as_json:
        about = {"data": str(out), "images": sizes, "training_classes": len(labels),
                 "one_set": folders.one_set, "protocol": folders.protocol}  # fmt: skip
        print_json(about)
        return
    for role, size in sizes.items():
        more = f" of {len(labels):,} classes" if role == "training" and labels else ""
        typer.echo(f"{role:<10}{size:,} images{more}")
    if folders.one_set:
        typer.echo("query and gallery are one set: no image is its own match")
    protocol = ["--protocol", folders.protocol] if folders.protocol else []
    typer.echo(f"data      {out}\n\nNext: {shlex.join(['vizsla', 'run', str(out), *protocol])}")
