"""Commands that show something: models, show, report."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vizsla.cli.console import Commands, log, print_json
from vizsla.cli.sources import images_of_source, read_ranking, top_k_of
from vizsla.errors import ModelError, UsageError
from vizsla.option_fields import option, same
from vizsla.options import ImageOptions, Messages, ModelChoice, Printing, RunOptions, ShownColumns
from vizsla.progress import ProgressShown

if TYPE_CHECKING:
    from vizsla.model.embedder import Embedder

app = Commands()


@dataclass(frozen=True, kw_only=True)
class ReportOptions(ShownColumns, Messages):
    """The options of `vizsla report`."""

    out: Path = option(
        Path("report.html"), "The page to write.", "Output", "-o", "--out", usual=True
    )
    data: Path | None = option(
        None, "Where the images are now, if they were moved.", "Data", usual=True
    )
    map: str = option(
        "tsne", "Layout of the map: tsne, or pca (faster).", "Output", choices=("tsne", "pca")
    )


@app.command(epilog="Example: vizsla report runs/ID -o report.html")
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.")], *, options: ReportOptions
) -> None:
    """Write one self-contained HTML page about a run: scores, curves, images, a map."""
    from vizsla.run import finished_run

    with ProgressShown(options.quiet) as progress:
        page = finished_run.report(
            run, options.out, data=options.data, projection=options.map, show=options.show,
            progress=progress,
        )  # fmt: skip
    typer.echo(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")


@dataclass(frozen=True, kw_only=True)
class ModelsOptions(Printing):
    """The options of `vizsla models`."""

    fetch: bool = option(False, "Download the weights now, for use offline.", "Model", usual=True)


@app.command(epilog="Example: vizsla models")
def models(
    names: Annotated[list[str] | None, typer.Argument(help="Only these backbones.")] = None,
    *,
    options: ModelsOptions,
) -> None:
    """List the backbones: dimension, size, licence of the weights; with -v also the source."""
    if options.fetch:
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
        if options.as_json:
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
    if options.as_json:
        print_json(rows)
    else:
        typer.echo(_models_text(rows, all_columns=options.verbose))


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


@dataclass(frozen=True, kw_only=True)
class ShowOptions(Printing):
    """The options of `vizsla show`."""

    data: Path | None = option(
        None, "The folder with the images.", "Data", shown="a run's own", usual=True
    )
    out: Path | None = option(
        None, "The folder; earlier sheets in it are replaced.", "Output", "-o", "--out",
        shown="visualizations/<name>", usual=True,
    )  # fmt: skip
    labels: Path | None = same(ImageOptions, "labels")
    labels_from: str | None = same(ImageOptions, "labels_from")
    top_k: int | None = same(
        RunOptions, "top_k", None, shown="a run's own, or 10", help="Images per query."
    )
    worst: int | None = option(None, "Only the N worst queries.", "Output", minimum=1, usual=True)
    only_wrong: bool = option(
        False, "Only queries with nothing right in their top k.", "Output", usual=True
    )
    random: int | None = option(None, "N random queries.", "Output", minimum=1, usual=True)
    figures: int = same(
        RunOptions, "figures", usual=True,
        help="Sheets at most, where neither --worst nor --random says how many; -1: all.",
    )  # fmt: skip
    why: bool = option(
        False,
        "What made query and result similar: heat maps; after verify the matching points.",
        "Output",
        usual=True,
    )
    points: bool = option(
        False, "Lines between the points that match in query and result; needs OpenCV.", "Output"
    )
    model: str | None = same(
        ModelChoice, "model", None, shown=None, usual=False,
        help="The embedder of a ranking that is not from a run, for --why.",
    )  # fmt: skip
    augmentations: bool = option(
        False, "Draw augmented training images of each preset instead.", "Output"
    )
    seed: int = same(RunOptions, "seed")
    home: Path = same(RunOptions, "home", Path())


@app.command(epilog="Example: vizsla show runs/ID --data data --worst 10 -o sheets")
def show(
    source: Annotated[
        Path | None, typer.Argument(help="A run's folder, a ranking or a submission.")
    ] = None,
    *,
    options: ShowOptions,
) -> None:
    """Draw PNGs of queries: the query on the left, its top k on the right."""
    figures = options.home / "visualizations"
    if options.augmentations:
        if options.data is None:
            raise UsageError("--augmentations draws training images: give their folder with --data")
        from vizsla.output.augmentation_sheet import draw_augmentations

        drawn = draw_augmentations(
            options.data, options.out or figures / "augmentations", options.seed
        )
        typer.echo("\n".join(map(str, drawn)))
        return
    if source is None:
        raise UsageError("give a run, a ranking or a submission, or --augmentations")
    from vizsla.output import sheet_selection
    from vizsla.run import finished_run
    from vizsla.score.truth import truth_of_folders
    from vizsla.search.chain import parse_chain
    from vizsla.workspace import file_safe, is_run

    ranking = read_ranking(source)
    verified = parse_chain(ranking.origin.get("refine", {}).get("chain", "none")).verify
    by_points = verified is not None and verified["features"] == "sift"
    points = options.points or (options.why and by_points)
    embedder = _embedder_of(source, options.model) if options.why and not points else None
    folders, ranking = images_of_source(source, ranking, options.data)
    truth = truth_of_folders(folders, labels=options.labels, labels_from=options.labels_from)
    if truth is None and is_run(source):
        truth = finished_run.truth_of_run(source)
    with ProgressShown(options.quiet) as progress:
        paths = sheet_selection.show(
            ranking, folders, truth, options.out or figures / file_safe(source.stem),
            k=top_k_of(source, options.top_k), worst=options.worst, only_wrong=options.only_wrong,
            random=options.random, figures=options.figures, seed=options.seed, why=embedder,
            points=(verified["model"] if verified else "similarity") if points else None,
            broken=finished_run.broken_queries(source) if is_run(source) else (),
            progress=lambda done, total: progress("drawing", done, total),
        )  # fmt: skip
    if options.as_json:
        print_json([str(path) for path in paths])
    else:
        count = f"{len(paths)} sheet{'s' if len(paths) > 1 else ''}"
        typer.echo(f"{count} in {paths[0].parent}" if paths else "no such queries")


def _embedder_of(source: Path, model: str | None) -> "Embedder":
    """The embedder that made a ranking: the run's, or the named one. Of a joint run's models that
    with the largest weight, which a line says."""
    from vizsla.embed.auto_compute import resolve_compute
    from vizsla.model.open_model import load_embedder
    from vizsla.run.fused_runs import heaviest_first
    from vizsla.workspace import is_run

    if model is None and not is_run(source):
        raise UsageError(f"--why needs the model of {source}: give a run, or --model")
    if model is None and (joined := heaviest_first(source)):
        model = str(joined[0].run.folder)
        others = "; ".join(f"--model {one.run.folder}: of {one.name}" for one in joined[1:])
        log.info(
            "%s joins %d models, and a heat map is of one: these are of %s, whose cosines differ "
            "from the joint scores (%s)", source, len(joined), joined[0].name, others,
        )  # fmt: skip
    embedder = load_embedder(ModelChoice(model=model or str(source)))
    return embedder.to(resolve_compute().device)
