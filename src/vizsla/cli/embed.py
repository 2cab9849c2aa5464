"""Commands of one stage each: embed, submission."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands, print_json
from vizsla.cli.sources import (
    names_in,
    open_engine,
    read_ranking,
    require_all_weights,
    top_k_of,
)
from vizsla.errors import DataError, UsageError
from vizsla.option_fields import REQUIRED, option, same
from vizsla.options import (
    Accepting,
    ComputeChoice,
    ExifColumns,
    GalleryOptions,
    ImageTable,
    Messages,
    ModelChoice,
    Printing,
    RunOptions,
    SeveralLabels,
    TableImages,
    VectorFiles,
    WhiteningChoice,
)
from vizsla.progress import ProgressShown

app = Commands()


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(
    ModelChoice, WhiteningChoice, ImageTable, TableImages, SeveralLabels, ExifColumns,
    ComputeChoice,
    VectorFiles, Printing,
):  # fmt: skip
    """The options of `vizsla embed`."""

    out: Path = option(REQUIRED, "The folder to write.", "Output", "-o", "--out", usual=True)
    class_folders: bool = same(GalleryOptions, "class_folders", usual=True)
    role: str | None = option(None, "Use only the table's rows of this role.", "Data")
    seed: int = same(RunOptions, "seed")
    shard_images: int = option(
        1024, "Images in one file of the result.", "Output", minimum=1, rare=True
    )
    whiten_on: Path | None = option(
        None,
        "For --whiten and --dim: embeddings of training images by the same model and views, "
        "without whitening.",
        "Model",
    )
    save_embedder: Path | None = option(
        None, "Also save the embedder, to be used as --model.", "Output"
    )
    overwrite: bool = option(False, "Start over.", "Output")
    engine: str = option(
        "local", "local, or ray for a cluster (see docs/scale.md).", "Speed",
        choices=("local", "ray"),
    )  # fmt: skip
    address: str | None = option(
        None, "A Ray cluster: auto or HOST:PORT.", "Speed", shown="one started here"
    )


@app.command(epilog="Example: vizsla embed data/test/gallery --model resnet50 -o gallery.emb")
def embed(
    images: Annotated[
        str,
        typer.Argument(
            help="A folder of images, a CSV/Parquet table, a URL (s3://…), or WebDataset tar files "
            "(a folder of them, 'part-{000..099}.tar', 's3://b/*.tar')."
        ),
    ],
    *,
    options: EmbedOptions,
) -> None:
    """Embed images: write their vectors as Parquet shards. Continues after an interruption."""
    require_all_weights([(options.model, options.weights)])
    from vizsla import storage
    from vizsla.data.exif_columns import with_exif
    from vizsla.data.image_sources import image_set
    from vizsla.embed.auto_compute import compute_of, written_compute
    from vizsla.embed.embeddings import Embeddings
    from vizsla.embed.inference import write_embeddings
    from vizsla.model.open_model import load_embedder
    from vizsla.run.inputs import whiten_embedder
    from vizsla.run.tile_choice import embedder_with_chosen_tiles

    out = options.out
    storage.require_local(out)
    if options.engine == "ray":
        _refuse_on_ray(images, options.cache)
    images_there = image_set(
        images, labels=options.labels, labels_from=options.labels_from,
        class_folders=options.class_folders, role=options.role, exclude=options.exclude,
        follow_links=options.follow_links, label_separator=options.label_separator,
        root=options.root,
    )  # fmt: skip
    if options.exif:
        images_there = with_exif(images_there)
    embedder = load_embedder(options, seed=options.seed, tiles_later=True)
    if (options.whiten != "none" or options.dim is not None) != (options.whiten_on is not None):
        raise UsageError(
            "--whiten and --dim are learned on training images: give them together with "
            "--whiten-on EMBEDDINGS (vizsla embed data/training --class-folders -o training.emb)"
        )
    if options.whiten_on is not None:
        whiten_embedder(embedder, Embeddings.open(options.whiten_on), options.whiten, options.dim)
    with ProgressShown(options.quiet) as progress:
        embedder = embedder_with_chosen_tiles(
            embedder, images_there, options, partial(compute_of, options, images=images_there),
            seed=options.seed, max_pixels=options.max_pixels,
            cache=options.cache, progress=progress,
        )  # fmt: skip
    if options.save_embedder is not None:
        embedder.save(options.save_embedder)
    with (
        open_engine(
            options.engine, options.address, device=options.device, precision=options.precision,
            runtime=options.runtime, batch_size=options.batch_size,
            workers=options.workers, embedder=embedder, images=len(images_there),
            sample=images_there.file, written=None if options.overwrite else written_compute(out),
        ) as (compute, engine_there),
        ProgressShown(options.quiet) as progress,
    ):  # fmt: skip
        written = write_embeddings(
            images_there, embedder, out, compute=compute, store=options.store,
            max_pixels=options.max_pixels, overwrite=options.overwrite, cache=options.cache,
            shard_images=options.shard_images, engine=engine_there,
            progress=lambda done, total: progress("embedding", done, total),
        )  # fmt: skip
    about = {
        "embeddings": str(out), "images": written.images, "broken": len(written.broken),
        "dim": written.dim, "model_id": written.model_id, "compute_id": written.compute.id,
        "compute": written.compute.facts,
    }  # fmt: skip
    if options.as_json:
        print_json(about)
    else:
        typer.echo(f"{written.images} embeddings of {written.dim} dimensions in {out}")


def _refuse_on_ray(images: str, cache: str | None) -> None:
    """UsageError for what other machines cannot have, before any is asked."""
    if cache is not None:
        raise UsageError("--engine ray takes no --cache: its machines share no folder for it")
    if images.startswith("memory:"):
        raise UsageError(
            f"{images} is in the memory of this process: --engine ray needs images that all "
            "machines can read, in a shared folder or a bucket"
        )


@dataclass(frozen=True, kw_only=True)
class SubmissionOptions(Accepting, Messages):
    """The options of `vizsla submission`."""

    accept: float | str | None = same(
        Accepting, "accept",
        help="Hand in only matches that are right with this probability, such as 0.95, of a run's "
        "calibration; or by a FILE, or FILE@0.9. Lists then differ in length.",
    )  # fmt: skip
    new_label: str | None = option(
        None, "What stands in the list of a query without an accepted match.", "Output",
        shown="an empty list",
    )  # fmt: skip

    out: Path = option(REQUIRED, "The file to write.", "Output", "-o", "--out", usual=True)
    top_k: int | None = same(
        RunOptions, "top_k", None, shown="a run's own, or 10",
        help="Images per query in the submission.",
    )  # fmt: skip
    data: Path | None = option(
        None, "Check the names against this data folder.", "Data", usual=True
    )
    format: str = option(
        "json", "{choices}.", "Output", usual=True, choices=("json", "records", "kaggle", "trec")
    )


@app.command(
    epilog="Example: vizsla submission ranking.parquet -k 10 --data data -o submission.json"
)
def submission(
    ranking: Annotated[Path, typer.Argument(help="A ranking or another submission.")],
    *,
    options: SubmissionOptions,
) -> None:
    """Write a submission file from a ranking; it is checked first."""
    from vizsla.output.submission import write_submission

    top_k, out = top_k_of(ranking, options.top_k), options.out
    queries, gallery = names_in(options.data)
    ranked = read_ranking(ranking, {*(queries or ()), *(gallery or ())})
    accepting = options.accept is not None
    if options.accept is not None:
        from vizsla.run.accepting import Accept

        ranked = Accept.parse(options.accept).load(ranking).decide(ranked)
    elif options.new_label is not None:
        raise UsageError("--new-label is for queries without an accepted match: give --accept too")
    if len(ranked) and ranked.depth < top_k and not accepting:
        whole = ranked.depth == ranked.gallery_size
        way = f"choose --top-k {ranked.depth} or less"
        raise DataError(
            f"--top-k {top_k}, but {ranking} holds {ranked.depth} images for a query"
            + (f", the whole gallery: {way}" if whole else f": {way}, or search deeper")
        )
    write_submission(
        ranked, out, k=top_k, format=options.format, queries=queries, gallery=gallery,
        only_accepted=accepting, new_label=options.new_label,
    )  # fmt: skip
    typer.echo(str(out))
    if accepting and ranked.accepted is not None:
        answered = int((ranked.accepted > 0).sum())
        typer.echo(f"{answered} of {len(ranked)} queries have an accepted match")
