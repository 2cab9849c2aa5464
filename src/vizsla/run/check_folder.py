"""A folder and the options of `check` → its report, and the files that were asked for."""

import tempfile
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.audit import check as audit
from vizsla.audit.findings import CheckReport
from vizsla.embed.local_features import opencv
from vizsla.options import CheckOptions
from vizsla.progress import Report


def check_folder(
    data: str | Path, options: CheckOptions, progress: Report | None = None
) -> CheckReport:
    """The findings in a data folder, one of classes, or one of images. options.model: also an
    Embedder."""
    sets = audit.image_sets(data, options.labels, follow_links=options.follow_links)
    item_column = audit.item_column_of(sets, options.group_by, options.labels)
    if options.partial:
        opencv()  # before the work: an error if it is not installed
    with tempfile.TemporaryDirectory() as scratch:
        features_in = (options.cache or Path(scratch) / "local") if options.partial else None
        embed = _embedding(options, sets, Path(scratch), progress) if options.model else None
        return audit.check(
            data, sets, embed=embed, features_in=features_in, keep=options.keep,
            item_column=item_column, max_pixels=options.max_pixels,
            workers=options.workers, progress=progress,
        )  # fmt: skip


def _embedding(
    options: CheckOptions, sets: dict[str, Any], scratch: Path, progress: Report | None
) -> audit.Embed:
    """What embeds the images of a role; imports torch."""
    from vizsla.embed.auto_compute import compute_of
    from vizsla.model.open_model import as_embedder

    embedder = as_embedder(options.model, options, seed=options.seed)
    largest = max(sets.values(), key=len)
    compute = compute_of(options, embedder, largest)
    return audit.embedding_in(
        scratch, embedder, compute, max_pixels=options.max_pixels, progress=progress
    )


def write_findings(found: CheckReport, options: CheckOptions) -> None:
    """Writes the JSON, the page and the list of images to exclude that the options name."""
    if options.out:
        storage.write_json(options.out, found.to_dict())
    if options.html:
        from vizsla.output.check_page import page

        storage.write_text(options.html, page(found, max_pixels=options.max_pixels))
    if options.write_exclude:
        storage.write_text(options.write_exclude, found.exclude_text())
