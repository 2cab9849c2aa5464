"""The command `check`."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands, ProgressShown, print_json, print_remarks
from vizsla.cli.parameters import Without
from vizsla.cli.shared_options import AsJson, Quiet, Seed, Verbose
from vizsla.options import ComputeChoice, ImageOptions, ModelChoice

app = Commands()


@app.command(
    "check", epilog="Example: vizsla check data --html check.html --write-exclude exclude.txt"
)
def check_data(
    data: Annotated[Path, typer.Argument(help="The folder with training/ and test/….")],
    model: Annotated[
        str | None, typer.Option("--model", help="Also find doubtful labels, with this model.")
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Also write the findings there (JSON).")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Also write an HTML page with the images.")
    ] = None,
    write_exclude: Annotated[
        Path | None,
        typer.Option(
            "--write-exclude", help="Write a list of images to exclude, for `vizsla run --exclude`."
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    *,
    choice: ModelChoice,
    images: Annotated[ImageOptions, Without("labels_from", "exclude")],
    computing: Annotated[ComputeChoice, Without("compiling", "cache")],
) -> None:
    """Find broken files, copies, leaks and wrong labels before the work starts.

    Findings do not change the exit code. Nothing in DATA is changed.
    """
    from vizsla import storage
    from vizsla.audit import check as audit
    from vizsla.data.imageset import open_data

    sets = audit.labelled_sets(open_data(data, follow_links=images.follow_links), images.labels)
    with ProgressShown(quiet) as progress, tempfile.TemporaryDirectory() as scratch:
        embed = None
        if model:
            from vizsla.embed.auto_compute import resolve_compute
            from vizsla.run import inputs

            embedder = inputs.load_embedder(replace(choice, model=model), seed=seed)
            largest = max(sets.values(), key=len)
            compute = resolve_compute(
                device=computing.device, precision=computing.precision,
                batch_size=computing.batch_size, workers=computing.workers, embedder=embedder,
                images=len(largest), sample=largest.file,
            )  # fmt: skip
            embed = audit.embedding_in(
                Path(scratch), embedder, compute, max_pixels=images.max_pixels, progress=progress
            )
        found = audit.check(
            data,
            sets,
            embed=embed,
            max_pixels=images.max_pixels,
            workers=computing.workers,
            progress=progress,
        )
    if out:
        storage.write_json(out, found.to_dict())
    if html:
        from vizsla.output.check_page import page

        storage.write_text(html, page(found, max_pixels=images.max_pixels))
    if write_exclude:
        storage.write_text(write_exclude, found.exclude_text())
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(found.text())
        print_remarks(*found.remarks(str(write_exclude) if write_exclude else None))
        for what, path in (("page", html), ("exclude", write_exclude), ("JSON", out)):
            if path:
                typer.echo(f"{what:<10}{path}")
