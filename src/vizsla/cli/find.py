"""The command `find`: the images of a folder that are nearest to a photo, or to words."""

import tempfile
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands, print_json
from vizsla.cli.parameters import Without
from vizsla.cli.sources import require_all_weights
from vizsla.option_fields import option
from vizsla.options import FindOptions, Printing
from vizsla.progress import LOADING, ProgressShown

app = Commands()

UNUSED = ("labels", "labels_from", "exclude")


@dataclass(frozen=True, kw_only=True)
class FindCommand(FindOptions, Printing):
    """The options of `vizsla find`."""

    show: bool = option(
        False, "Also show a sheet of the images, in the browser.", "Output", "--open", usual=True
    )


@app.command("find", epilog="Example: vizsla find photo.jpg photos/ --open")
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

        ranking = find(query, folder, options, progress)
    assert ranking.scores is not None
    found = list(zip(ranking.row(0), ranking.scores[0].tolist(), strict=True))
    if options.as_json:
        print_json([{"path": str(folder / name), "score": score} for name, score in found])
    else:
        for name, score in found:
            typer.echo(f"{score:.4f}  {folder / name}")
    if options.show:
        page = sheet(ranking, folder, Path(tempfile.mkdtemp(prefix="vizsla-found-")) / "found.html")
        typer.echo(f"sheet       {page}", err=True)
        webbrowser.open(page.as_uri())
