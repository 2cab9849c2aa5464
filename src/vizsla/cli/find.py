"""The command `find`: the images of a folder that are nearest to a photo, or to words."""

import tempfile
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands, print_json
from vizsla.cli.parameters import Without
from vizsla.cli.results import (
    ResultPrinting,
    json_rows,
    print_csv,
    print_results,
    result_rows,
    shown_columns,
)
from vizsla.cli.sources import require_all_weights
from vizsla.option_fields import option
from vizsla.options import FindOptions
from vizsla.progress import LOADING, ProgressShown

app = Commands()

UNUSED = ("labels_from", "exclude")


@dataclass(frozen=True, kw_only=True)
class FindCommand(FindOptions, ResultPrinting):
    """The options of `vizsla find`."""

    open_sheet: bool = option(
        False, "Also show a sheet of the images, in the browser.", "Output", "--open", usual=True
    )


@app.command(
    "find", epilog="Example: vizsla find photo.jpg photos/ --table products.csv --show price"
)
def find_images(
    query: Annotated[str, typer.Argument(help="A photo; or words, for a model that reads text.")],
    folder: Annotated[Path, typer.Argument(help="The folder of images to search in.")],
    *,
    options: Annotated[FindCommand, Without(*UNUSED)],
) -> None:
    """Find the images of a folder that are nearest to a photo or to words.

    The folder is embedded once: the next time, only what was added or changed is.
    """
    require_all_weights([(options.model, options.weights)])
    with ProgressShown(options.quiet) as progress:
        progress(LOADING, 0, 1)
        from vizsla.run.find import find, sheet

        found = find(query, folder, options, progress)
    known = found.attributes_of([]).column_names
    columns = shown_columns(known, options.show, None, every=options.as_json)
    (results,) = result_rows(found.ranking, found.attributes_of, columns).values()
    for images in results:
        images[0]["id"] = str(folder / images[0]["id"])
    if options.as_json:
        listed = json_rows(results, grouped=False)
        print_json([{"path": row.pop("id"), **row} for row in listed])
    elif options.as_csv:
        print_csv({query: results}, columns)
    else:
        print_results(results, columns)
    if options.open_sheet:
        out = Path(tempfile.mkdtemp(prefix="vizsla-found-")) / "found.html"
        page = sheet(found.ranking, folder, out)
        typer.echo(f"sheet       {page}", err=True)
        webbrowser.open(page.as_uri())
