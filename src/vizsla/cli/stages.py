"""Commands of one stage each: embed, search, submission."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vizsla.cli.console import ProgressShown, app, print_json
from vizsla.cli.options import (
    AsJson,
    BatchSize,
    Device,
    Exclude,
    FollowLinks,
    ImageSize,
    Labels,
    LabelsFrom,
    MaxPixels,
    Model,
    Pooling,
    Precision,
    Quiet,
    Seed,
    TopK,
    Verbose,
    Weights,
    Workers,
)
from vizsla.cli.sources import names_in, open_engine, read_ranking

if TYPE_CHECKING:
    pass


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
    model: Model = "dinov2-s14",
    weights: Weights = "pretrained",
    pooling: Pooling = None,
    image_size: ImageSize = None,
    labels: Labels = None,
    labels_from: LabelsFrom = None,
    class_folders: Annotated[
        bool, typer.Option("--class-folders", help="The first folder is the label.")
    ] = False,
    role: Annotated[
        str | None, typer.Option("--role", help="Use the table's rows of this role alone.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: BatchSize = 32,
    workers: Workers = None,
    seed: Seed = 0,
    store: Annotated[str, typer.Option("--store", help="fp32, or fp16 at half the size.")] = "fp32",
    shard_images: Annotated[
        int,
        typer.Option("--shard-images", min=1, help="Of one file; an interruption costs as many."),
    ] = 1024,
    exclude: Exclude = None,
    max_pixels: MaxPixels = 100_000_000,
    follow_links: FollowLinks = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start over.")] = False,
    engine: Annotated[
        str, typer.Option("--engine", help="local, or ray for a cluster (see docs/scale.md).")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option("--address", help="A Ray cluster: auto or HOST:PORT. [default: one here]"),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Images → embeddings: Parquet shards and a manifest. Interrupted, it goes on where it was."""
    from vizsla import pipeline
    from vizsla.model import inference

    image_set = pipeline.image_set(
        images, labels=labels, labels_from=labels_from, class_folders=class_folders, role=role,
        exclude=exclude, follow_links=follow_links,
    )  # fmt: skip
    embedder = pipeline.load_embedder(
        model, weights=weights, pooling=pooling, image_size=image_size, seed=seed
    )
    with (
        open_engine(
            engine, address, device=device, precision=precision, batch_size=batch_size,
            workers=workers,
        ) as (compute, run_parts),
        ProgressShown(quiet) as progress,
    ):  # fmt: skip
        embeddings = inference.embed(
            image_set, embedder, out, compute=compute, store=store, max_pixels=max_pixels,
            overwrite=overwrite, engine=run_parts, shard_images=shard_images,
            progress=lambda done, total: progress("embedding", done, total),
        )  # fmt: skip
    about = {
        "embeddings": str(out), "images": len(embeddings), "broken": len(embeddings.broken),
        "dim": embeddings.dim, "model_id": embeddings.model_id, "compute_id": embeddings.compute_id,
    }  # fmt: skip
    if as_json:
        print_json(about)
    else:
        typer.echo(f"{len(embeddings)} embeddings of {embeddings.dim} dimensions in {out}")


@app.command(epilog="Example: vizsla search gallery.emb query.emb -k 10 -o ranking.parquet")
def search(
    gallery: Annotated[Path, typer.Argument(help="The gallery's embeddings.")],
    queries: Annotated[Path, typer.Argument(help="The queries' embeddings.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The ranking to write (Parquet).")],
    top_k: Annotated[
        int | None,
        typer.Option("-k", "--top-k", min=1, help="[default: all up to 20,000, else 1,000]"),
    ] = None,
    same_set: Annotated[
        bool, typer.Option("--same-set", help="Both are one set: leave each query itself out.")
    ] = False,
    device: Device = "cpu",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Embeddings → ranking: for every query the gallery by falling cosine, exactly."""
    from vizsla.model.embeddings import Embeddings
    from vizsla.model.inference import resolve_compute
    from vizsla.search.exact import rank

    device = resolve_compute(device=device).device
    ranking = rank(
        Embeddings.open(queries), Embeddings.open(gallery), top_k, same_set=same_set, device=device
    )
    ranking.save(out)
    if as_json:
        print_json({"ranking": str(out), "queries": len(ranking), "depth": ranking.depth})
    else:
        typer.echo(f"{len(ranking)} queries, {ranking.depth} gallery images each, in {out}")


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
    form: Annotated[str, typer.Option("--format", help="json, records, kaggle, trec.")] = "json",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Ranking → submission file, checked before it is written."""
    from vizsla.output.submission import write_submission

    queries, gallery = names_in(data)
    write_submission(
        read_ranking(ranking), out, k=top_k, format=form, queries=queries, gallery=gallery
    )
    typer.echo(str(out))
