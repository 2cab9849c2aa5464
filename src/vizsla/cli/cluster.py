"""The command `cluster`: which images show one thing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands, print_json
from vizsla.options import ClusterOptions, Printing
from vizsla.progress import ProgressShown

app = Commands()


@dataclass(frozen=True, kw_only=True)
class ClusterCommand(ClusterOptions, Printing):
    """The options of `vizsla cluster`."""


@app.command(
    "cluster", epilog="Example: vizsla cluster photos.emb -o clusters.csv --html clusters.html"
)
def cluster_source(
    source: Annotated[Path, typer.Argument(help="Embeddings, a run or an index.")],
    *,
    options: ClusterCommand,
) -> None:
    """Find which images show one thing, without knowing how many things there are.

    On the page a person merges, splits and names the clusters, and saves the labels.
    """
    from vizsla.run.clustering import cluster_images, write_clusters

    with ProgressShown(options.quiet) as progress:
        found = cluster_images(source, options, progress)
    write_clusters(found, options)
    if options.as_json:
        print_json(found.to_dict())
        return
    for line in found.lines():
        typer.echo(line)
    for what, path in (("table", options.out), ("page", options.html)):
        if path:
            typer.echo(f"{what:<10}{path}")
