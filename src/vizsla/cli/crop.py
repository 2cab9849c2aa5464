"""The command that cuts the regions of queries out of their images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands, print_json
from vizsla.option_fields import REQUIRED, option
from vizsla.options import Printing

app = Commands()


@dataclass(frozen=True, kw_only=True)
class CropOptions(Printing):
    """The options of `vizsla crop`."""

    images: Path = option(REQUIRED, "The folder with the queries' images.", "Data", usual=True)
    out: Path = option(
        REQUIRED, "The folder to write, such as data/test/query.", "Output", "-o", "--out",
        usual=True,
    )  # fmt: skip


@app.command(epilog="Example: vizsla crop gnd_roxford5k.json --images jpg -o data/test/query")
def crop(
    truth: Annotated[Path, typer.Argument(help="A truth with boxes, as --truth takes it.")],
    *,
    options: CropOptions,
) -> None:
    """Cut queries that are a part of their image out of it, by the boxes in a truth."""
    from vizsla.data.query_regions import crop_queries
    from vizsla.score.grade_table import read_grade_table

    table = read_grade_table(truth)
    written = crop_queries(options.images, table.queries, table.boxes, options.out)
    if options.as_json:
        print_json({"cropped": len(table.boxes), "images": [str(path) for path in written]})
    else:
        typer.echo(f"{len(written)} queries, {len(table.boxes)} of them cropped, in {options.out}")
