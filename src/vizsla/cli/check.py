"""The command that comes before the work: check."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import ProgressShown, app, print_json, print_remarks
from vizsla.cli.inputs import text_or_none
from vizsla.cli.options import (
    AsJson,
    BatchSize,
    Device,
    FollowLinks,
    ImageSize,
    Labels,
    MaxPixels,
    Pooling,
    Precision,
    Quiet,
    Seed,
    Verbose,
    Weights,
    Workers,
)


@app.command(
    "check", epilog="Example: vizsla check data --html check.html --write-exclude exclude.txt"
)
def check_data(
    data: Annotated[Path, typer.Argument(help="The folder with training/ and test/….")],
    model: Annotated[
        str | None, typer.Option("--model", help="Also find doubtful labels, with this model.")
    ] = None,
    weights: Weights = "pretrained",
    pooling: Pooling = None,
    image_size: ImageSize = None,
    labels: Labels = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = "auto",
    workers: Workers = None,
    seed: Seed = 0,
    max_pixels: MaxPixels = 100_000_000,
    follow_links: FollowLinks = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Also write all of it there (JSON).")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write a page with the pictures.")
    ] = None,
    write_exclude: Annotated[
        Path | None, typer.Option("--write-exclude", help="Write what `run --exclude` reads.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find broken files, copies, leaks and wrong labels before the work starts.

    Findings do not change the exit code. Nothing in DATA is changed.
    """
    from vizsla import storage
    from vizsla.audit import check as audit
    from vizsla.data.imageset import open_data

    sets = audit.labelled_sets(open_data(data, follow_links=follow_links), labels)
    with ProgressShown(quiet) as progress, tempfile.TemporaryDirectory() as scratch:
        embed = None
        if model:
            from vizsla.embed.auto_compute import resolve_compute
            from vizsla.run import inputs

            embedder = inputs.load_embedder(
                model, weights=weights, pooling=pooling, image_size=image_size, seed=seed
            )
            largest = max(sets.values(), key=len)
            compute = resolve_compute(
                device=device, precision=precision, batch_size=batch_size, workers=workers,
                embedder=embedder, images=len(largest), sample=largest.file,
            )  # fmt: skip
            embed = audit.embedding_in(
                Path(scratch), embedder, compute, max_pixels=max_pixels, progress=progress
            )
        found = audit.check(
            data, sets, embed=embed, max_pixels=max_pixels, workers=workers, progress=progress
        )
    if out:
        storage.write_json(out, found.to_dict())
    if html:
        from vizsla.output.check_page import page

        storage.write_text(html, page(found, max_pixels=max_pixels))
    if write_exclude:
        storage.write_text(write_exclude, found.exclude_text())
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(found.text())
        print_remarks(*found.remarks(text_or_none(write_exclude)))
        for what, path in (("page", html), ("left out", write_exclude), ("JSON", out)):
            if path:
                typer.echo(f"{what:<10}{path}")
