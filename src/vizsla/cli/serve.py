"""The command that serves a search page: serve."""

from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands, ProgressShown
from vizsla.cli.parameters import Without
from vizsla.cli.shared_options import Quiet, Verbose
from vizsla.options import GalleryOptions

UNUSED = ("interpolation", "views", "exclude", "compiling", "batch_size", "workers", "cache")

app = Commands()


@app.command(epilog="Example: vizsla serve runs/20260131-235959-0a1b --port 8000")
def serve(
    source: Annotated[
        Path, typer.Argument(help="A run, an index, or a folder of images to embed first.")
    ],
    host: Annotated[
        str, typer.Option("--host", help="0.0.0.0 accepts other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free port.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            "--token", envvar="VIZSLA_SERVE_TOKEN", help="A token that every request needs."
        ),
    ] = None,
    allow_changes: Annotated[
        bool,
        typer.Option("--allow-changes", help="Images may be added and removed, with a token."),
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="A host name of this server. Repeatable."),
    ] = None,
    rate: Annotated[
        float, typer.Option("--rate", min=0, help="Searches per minute and address; 0: unlimited.")
    ] = 600.0,
    most_k: Annotated[int, typer.Option("--most-k", min=1, help="Largest k of a search.")] = 200,
    max_body: Annotated[
        float,
        typer.Option("--max-body", hidden=True, min=0.001, help="Largest request in MiB."),
    ] = 16.0,
    title: Annotated[
        str,
        typer.Option("--title", help="The page's title.", show_default="the source's name"),
    ] = "",
    quiet: Quiet = False,
    verbose: Verbose = False,
    *,
    gallery: Annotated[GalleryOptions, Without(*UNUSED)],
) -> None:
    """Serve a page and an API to search by image and by text, until Ctrl-C."""
    from vizsla.web.search import server as serving

    def started(about: serving.Started) -> None:
        typer.echo(f"page  {about.url}/")
        typer.echo(f"API   {about.url}/docs")
        if about.token:
            typer.echo(f"token {about.token} (to change the gallery; shown this once)")

    with ProgressShown(quiet) as progress:
        serving.serve(
            serving.GallerySource(source, gallery),
            host=host, port=port, token=token, allow_changes=allow_changes,
            allow_hosts=tuple(allow_host or ()), per_minute=rate, most_k=most_k,
            body_bytes=int(max_body * 2**20), title=title, started=started, progress=progress,
        )  # fmt: skip
