"""Commands that show something: models, show, report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vizsla.cli.console import Commands, ProgressShown, log, print_json
from vizsla.cli.shared_options import AsJson, Home, Labels, LabelsFrom, Quiet, Seed, Verbose
from vizsla.cli.sources import images_of_source, read_ranking
from vizsla.errors import ModelError, UsageError
from vizsla.options import ModelChoice

if TYPE_CHECKING:
    from vizsla.model.embedder import Embedder

app = Commands()


@app.command(epilog="Example: vizsla report runs/ID -o report.html")
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")] = Path(
        "report.html"
    ),
    data: Annotated[
        Path | None, typer.Option("--data", help="Where the images are now, if they were moved.")
    ] = None,
    projection: Annotated[
        str, typer.Option("--map", help="Layout of the map: tsne, or pca (faster).")
    ] = "tsne",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write one self-contained HTML page about a run: scores, curves, images, a map."""
    from vizsla.run import finished_run

    page = finished_run.report(run, out, data=data, projection=projection)
    typer.echo(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")


@app.command(epilog="Example: vizsla models")
def models(
    names: Annotated[list[str] | None, typer.Argument(help="Only these backbones.")] = None,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Download the weights now, for use offline.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the backbones: dimension, size, licence of the weights; with -v also the source."""
    if fetch:
        from vizsla.model.hub import fetch as fetch_weights

        if not names:
            raise UsageError("--fetch needs the names of models: vizsla models --fetch dinov2-s14")
        fetched, failed = {}, []
        for name in names:
            try:
                fetched[name] = str(fetch_weights(name))
            except ModelError as error:  # try the others
                failed.append(error)
                log.error("%s", error)
        if as_json:
            print_json(fetched)
        else:
            typer.echo("".join(f"{name}: {path}\n" for name, path in fetched.items()), nl=False)
        if failed:
            raise ModelError(f"{len(failed)} of {len(names)} models could not be fetched")
        return
    from vizsla.model.catalogue import find_backbone, model_table

    specs = [find_backbone(name) for name in names] if names else None
    if specs and any(spec.dim is None for spec in specs):
        from vizsla.model.build import complete_spec  # imports torch; the catalogue does not

        specs = [spec if spec.dim else complete_spec(spec) for spec in specs]
    rows = model_table(specs)
    if as_json:
        print_json(rows)
    else:
        typer.echo(_models_text(rows, all_columns=verbose))


def _models_text(rows: list[dict[str, Any]], *, all_columns: bool) -> str:
    from vizsla.score.text_table import Table

    shown = ["name", "dim", "parameters", "image_size", "reads_text", "licence", "pooling"]
    shown += ["poolings", "source"] * all_columns
    cells = [
        {
            **row,
            "parameters": f"{row['parameters'] / 1e6:.1f} M",
            "poolings": ", ".join(row["poolings"]),
        }
        for row in rows
    ]
    text = Table([key.replace("_", " ") for key in shown], [[c[k] for k in shown] for c in cells])
    smaller = sorted({r["trained_size"] for r in rows if r["trained_size"] != r["image_size"]})
    notes = [
        f"\n{', '.join(r['name'] for r in rows if r['trained_size'] == size)}: last trained at "
        f"{size} pixels; --image-size {size} uses that size and takes several times as long"
        for size in smaller
    ]
    return text.text() + "".join(notes)


@app.command(epilog="Example: vizsla show runs/ID --data data --worst 10 -o sheets")
def show(
    source: Annotated[
        Path | None, typer.Argument(help="A run's folder, a ranking or a submission.")
    ] = None,
    *,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="The folder with the images.", show_default="a run's own"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="The folder; earlier sheets in it are replaced.",
            show_default="visualizations/<name>",
        ),
    ] = None,
    labels: Labels = None,
    labels_from: LabelsFrom = None,
    top_k: Annotated[int, typer.Option("-k", "--top-k", min=1, help="Images per query.")] = 10,
    worst: Annotated[
        int | None, typer.Option("--worst", min=1, help="Only the N worst queries.")
    ] = None,
    only_wrong: Annotated[
        bool, typer.Option("--only-wrong", help="Only queries with nothing right in their top k.")
    ] = False,
    random: Annotated[int | None, typer.Option("--random", min=1, help="N random queries.")] = None,
    why: Annotated[
        bool,
        typer.Option("--why", help="Heat maps of the parts that made query and result similar."),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="The embedder of a ranking that is not from a run, for --why."
        ),
    ] = None,
    augmentations: Annotated[
        bool,
        typer.Option(
            "--augmentations", help="Draw augmented training images of each preset instead."
        ),
    ] = False,
    seed: Seed = 0,
    home: Home = Path(),
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Draw a PNG for each query: the query on the left, its top k on the right."""
    if augmentations:
        if data is None:
            raise UsageError("--augmentations draws training images: give their folder with --data")
        from vizsla.output.augmentation_sheet import draw_augmentations

        drawn = draw_augmentations(data, out or home / "visualizations" / "augmentations", seed)
        typer.echo("\n".join(map(str, drawn)))
        return
    if source is None:
        raise UsageError("give a run, a ranking or a submission, or --augmentations")
    from vizsla.output import sheet_selection
    from vizsla.run import finished_run
    from vizsla.score.truth import truth_of_folders
    from vizsla.workspace import file_safe, is_run

    ranking = read_ranking(source)
    embedder = _embedder_of(source, model) if why else None
    folders = images_of_source(source, ranking, data)
    truth = truth_of_folders(folders, labels=labels, labels_from=labels_from)
    if truth is None and is_run(source):
        truth = finished_run.truth_of_run(source)
    with ProgressShown(quiet) as progress:
        paths = sheet_selection.show(
            ranking, folders, truth, out or home / "visualizations" / file_safe(source.stem),
            k=top_k, worst=worst, only_wrong=only_wrong, random=random, seed=seed, why=embedder,
            broken=finished_run.broken_queries(source) if is_run(source) else (),
            progress=lambda done, total: progress("drawing", done, total),
        )  # fmt: skip
    if as_json:
        print_json([str(path) for path in paths])
    else:
        count = f"{len(paths)} sheet{'s' if len(paths) > 1 else ''}"
        typer.echo(f"{count} in {paths[0].parent}" if paths else "no such queries")


def _embedder_of(source: Path, model: str | None) -> "Embedder":
    """The embedder that made a ranking: the run's, or the named one."""
    from vizsla.embed.auto_compute import resolve_compute
    from vizsla.run import inputs
    from vizsla.workspace import is_run

    if model is None and not is_run(source):
        raise UsageError(f"--why needs the model of {source}: give a run, or --model")
    embedder = inputs.load_embedder(ModelChoice(model=model or str(source)))
    return embedder.to(resolve_compute().device)
