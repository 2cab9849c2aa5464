"""Commands of one stage each: embed, submission."""

from pathlib import Path
from typing import Annotated

import typer

from vizsla.cli.console import Commands, ProgressShown, print_json
from vizsla.cli.shared_options import AsJson, Quiet, Seed, TopK, Verbose
from vizsla.cli.sources import names_in, open_engine, read_ranking
from vizsla.errors import DataError, UsageError
from vizsla.options import ComputeChoice, ImageOptions, ModelChoice, WhiteningChoice

app = Commands()


@app.command(epilog="Example: vizsla embed data/test/gallery --model resnet50 -o gallery.emb")
def embed(
    images: Annotated[
        str,
        typer.Argument(
            help="A folder of images, a CSV/Parquet table, a URL (s3://…), or WebDataset tar files "
            "(a folder of them, 'part-{000..099}.tar', 's3://b/*.tar')."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    class_folders: Annotated[
        bool, typer.Option("--class-folders", help="Labels are the names of the folders.")
    ] = False,
    role: Annotated[
        str | None, typer.Option("--role", help="Use only the table's rows of this role.")
    ] = None,
    seed: Seed = 0,
    store: Annotated[
        str, typer.Option("--store", help="Store vectors as fp32, or as fp16 at half the size.")
    ] = "fp32",
    shard_images: Annotated[
        int,
        typer.Option(
            "--shard-images", min=1, hidden=True, help="Images in one file of the result."
        ),
    ] = 1024,
    whiten_on: Annotated[
        Path | None,
        typer.Option(
            "--whiten-on",
            help="For --whiten and --dim: embeddings of training images by the same model and "
            "views, without whitening.",
        ),
    ] = None,
    save_embedder: Annotated[
        Path | None,
        typer.Option("--save-embedder", help="Also save the embedder, to be used as --model."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over.")] = False,
    engine: Annotated[
        str, typer.Option("--engine", help="local, or ray for a cluster (see docs/scale.md).")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            "--address", help="A Ray cluster: auto or HOST:PORT.", show_default="one started here"
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    *,
    choice: ModelChoice,
    whitening: WhiteningChoice,
    read: ImageOptions,
    computing: ComputeChoice,
) -> None:
    """Embed images: write their vectors as Parquet shards. Continues after an interruption."""
    from vizsla import storage
    from vizsla.embed.auto_compute import written_compute
    from vizsla.embed.embeddings import Embeddings
    from vizsla.embed.inference import write_embeddings
    from vizsla.run import inputs

    storage.require_local(out)
    if engine == "ray":
        _refuse_on_ray(images, computing.cache)
    image_set = inputs.image_set(
        images, labels=read.labels, labels_from=read.labels_from, class_folders=class_folders,
        role=role, exclude=read.exclude, follow_links=read.follow_links,
    )  # fmt: skip
    embedder = inputs.load_embedder(choice, seed=seed)
    if (whitening != WhiteningChoice()) != (whiten_on is not None):
        raise UsageError(
            "--whiten and --dim are learned on training images: give them together with "
            "--whiten-on EMBEDDINGS (vizsla embed data/training --class-folders -o training.emb)"
        )
    if whiten_on is not None:
        inputs.whiten_embedder(
            embedder, Embeddings.open(whiten_on), whitening.whiten, whitening.dim
        )
    if save_embedder is not None:
        embedder.save(save_embedder)
    with (
        open_engine(
            engine, address, device=computing.device, precision=computing.precision,
            compiling=computing.compiling, batch_size=computing.batch_size,
            workers=computing.workers, embedder=embedder, images=len(image_set),
            sample=image_set.file, written=None if overwrite else written_compute(out),
        ) as (compute, engine_there),
        ProgressShown(quiet) as progress,
    ):  # fmt: skip
        written = write_embeddings(
            image_set, embedder, out, compute=compute, store=store, max_pixels=read.max_pixels,
            overwrite=overwrite, cache=computing.cache, shard_images=shard_images,
            engine=engine_there,
            progress=lambda done, total: progress("embedding", done, total),
        )  # fmt: skip
    about = {
        "embeddings": str(out), "images": written.images, "broken": len(written.broken),
        "dim": written.dim, "model_id": written.model_id, "compute_id": written.compute.id,
        "compute": written.compute.facts,
    }  # fmt: skip
    if as_json:
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


@app.command(
    epilog="Example: vizsla submission ranking.parquet -k 10 --data data -o submission.json"
)
def submission(
    ranking: Annotated[Path, typer.Argument(help="A ranking or another submission.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write.")],
    top_k: TopK = 10,
    data: Annotated[
        Path | None, typer.Option("--data", help="Check the names against this data folder.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="json, records, kaggle or trec.")] = "json",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a submission file from a ranking; it is checked first."""
    from vizsla.output.submission import write_submission

    queries, gallery = names_in(data)
    ranked = read_ranking(ranking)
    if len(ranked) and ranked.depth < top_k:
        whole = ranked.depth == ranked.gallery_size
        way = f"choose --top-k {ranked.depth} or less"
        raise DataError(
            f"--top-k {top_k}, but {ranking} holds {ranked.depth} images for a query"
            + (f", the whole gallery: {way}" if whole else f": {way}, or search deeper")
        )
    write_submission(ranked, out, k=top_k, format=form, queries=queries, gallery=gallery)
    typer.echo(str(out))
