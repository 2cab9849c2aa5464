"""The command `best`: the best ranking in the time that there is."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands, print_json
from vizsla.cli.sources import require_all_weights
from vizsla.options import BestOptions, Printing
from vizsla.progress import ProgressShown

app = Commands()


@dataclass(frozen=True, kw_only=True)
class BestCommand(BestOptions, Printing):
    """The options of `vizsla best`."""


@app.command(epilog="Example: vizsla best data --budget 10m")
def best(
    data: Annotated[
        Path, typer.Argument(help="The folder with training/ and test/query, test/gallery.")
    ],
    *,
    options: BestCommand,
) -> None:
    """Get the best ranking that a given time allows: models, training, fusion, re-ranking.

    Everything is tried on held-out images of training/, and kept where it is better.
    As soon as the first model is done there is a complete run with a submission,
    and from then on the best so far. The same command goes on after an
    interruption, or with a larger --budget, which is the time of all tries.
    """
    require_all_weights(zip(options.model, itertools.cycle(options.weights), strict=False))
    from vizsla.run.best.search import best as search
    from vizsla.run.best.search import best_config

    with ProgressShown(options.quiet) as progress:
        found = search(best_config(data, options), progress)
    if options.as_json:
        print_json(found.to_dict())
    else:
        typer.echo(found.text())
