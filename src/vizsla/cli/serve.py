"""The command that serves a search page: serve."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands
from vizsla.cli.parameters import Without
from vizsla.cli.sources import require_all_weights
from vizsla.option_fields import option
from vizsla.options import GalleryOptions, Messages
from vizsla.progress import ProgressShown

UNUSED = ("interpolation", "framing", "views", "exclude", "batch_size", "workers", "cache")

app = Commands()


@dataclass(frozen=True, kw_only=True)
class ServeOptions(GalleryOptions, Messages):
    """The options of `vizsla serve`."""

    host: str = option("127.0.0.1", "0.0.0.0 accepts other machines.", "Server", usual=True)
    port: int = option(8000, "0: any free port.", "Server", minimum=0, maximum=65535, usual=True)
    token: str | None = option(
        None, "A token that every request needs.", "Server", envvar="VIZSLA_SERVE_TOKEN"
    )
    allow_changes: bool = option(False, "Images may be added and removed, with a token.", "Server")
    allow_host: tuple[str, ...] = option((), "A host name of this server. Repeatable.", "Server")
    rate_limit: float = option(
        600.0, "Searches per minute and address; 0: unlimited.", "Server", minimum=0
    )
    max_k: int = option(200, "Largest k of a search.", "Server", minimum=1)
    max_body: float = option(16.0, "Largest request in MiB.", "Server", minimum=0.001, rare=True)
    title: str = option("", "The page's title.", "Server", shown="the name of the data")


@app.command(epilog="Example: vizsla serve runs/20260131-235959-0a1b --port 8000")
def serve(
    source: Annotated[
        Path, typer.Argument(help="A run, an index, or a folder of images to embed first.")
    ],
    *,
    options: Annotated[ServeOptions, Without(*UNUSED)],
) -> None:
    """Serve a page and an API to search by image and by text, until Ctrl-C."""
    if options.model:
        require_all_weights([(options.model, options.weights)])
    from vizsla.web.search import server as serving

    def started(about: serving.Started) -> None:
        typer.echo(f"page  {about.url}/  (it shows the progress until the search is ready)")
        typer.echo(f"API   {about.url}/docs")
        if about.token:
            typer.echo(f"token {about.token} (to change the gallery; shown this once)")

    with ProgressShown(options.quiet) as progress:
        serving.serve(
            serving.GallerySource(source, options),
            host=options.host, port=options.port, token=options.token,
            allow_changes=options.allow_changes, allow_hosts=options.allow_host,
            per_minute=options.rate_limit, max_k=options.max_k,
            body_bytes=int(options.max_body * 2**20), title=options.title,
            started=started, progress=progress,
        )  # fmt: skip
