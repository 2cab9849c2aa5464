"""The command `check`."""

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands, print_json, print_remarks
from vizsla.cli.parameters import Without
from vizsla.cli.sources import require_all_weights
from vizsla.option_fields import option, same
from vizsla.options import ComputeChoice, ImageOptions, ModelChoice, Page, Printing, RunOptions
from vizsla.progress import ProgressShown

app = Commands()


UNUSED = ("labels_from", "exclude", "cache")


@dataclass(frozen=True, kw_only=True)
class CheckOptions(ModelChoice, ImageOptions, ComputeChoice, Page, Printing):
    """The options of `vizsla check`."""

    model: str | None = same(  # type: ignore[assignment]
        ModelChoice, "model", None, help="Also find doubtful labels, with this model.", shown=None
    )
    seed: int = same(RunOptions, "seed")
    out: Path | None = option(
        None, "Also write the findings there (JSON).", "Output", "-o", "--out", usual=True
    )
    write_exclude: Path | None = option(
        None, "Write a list of images to exclude, for `vizsla run --exclude`.", "Output", usual=True
    )


@app.command(
    "check", epilog="Example: vizsla check data --html check.html --write-exclude exclude.txt"
)
def check_data(
    data: Annotated[Path, typer.Argument(help="A data folder, one of classes, or one of images.")],
    *,
    options: Annotated[CheckOptions, Without(*UNUSED)],
) -> None:
    """Find broken files, copies, leaks and wrong labels before the work starts.

    Findings do not change the exit code. Nothing in DATA is changed.
    """
    if options.model:
        require_all_weights([(options.model, options.weights)])
    from vizsla import storage
    from vizsla.audit import check as audit

    sets = audit.image_sets(data, options.labels, follow_links=options.follow_links)
    with ProgressShown(options.quiet) as progress, tempfile.TemporaryDirectory() as scratch:
        embed = None
        if options.model:
            from vizsla.embed.auto_compute import resolve_compute
            from vizsla.model.open_model import load_embedder

            embedder = load_embedder(options, seed=options.seed)
            largest = max(sets.values(), key=len)
            compute = resolve_compute(
                device=options.device, precision=options.precision,
                runtime=options.runtime, batch_size=options.batch_size,
                workers=options.workers, embedder=embedder, images=len(largest),
                sample=largest.file,
            )  # fmt: skip
            embed = audit.embedding_in(
                Path(scratch), embedder, compute, max_pixels=options.max_pixels, progress=progress
            )
        found = audit.check(
            data,
            sets,
            embed=embed,
            max_pixels=options.max_pixels,
            workers=options.workers,
            progress=progress,
        )
    if options.out:
        storage.write_json(options.out, found.to_dict())
    if options.html:
        from vizsla.output.check_page import page

        storage.write_text(options.html, page(found, max_pixels=options.max_pixels))
    if options.write_exclude:
        storage.write_text(options.write_exclude, found.exclude_text())
    if options.as_json:
        print_json(found.to_dict())
    else:
        exclude = options.write_exclude
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        typer.echo(found.text(width))
        print_remarks(*found.remarks(str(exclude) if exclude else None))
        for what, path in (("page", options.html), ("exclude", exclude), ("JSON", options.out)):
            if path:
                typer.echo(f"{what:<10}{path}")
