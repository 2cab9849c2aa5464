"""Commands for searching a gallery: index (build, add, remove, info), search."""

import contextlib
import logging
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vizsla.cli.console import Commands, Group, print_json
from vizsla.cli.refining import print_refined
from vizsla.cli.results import (
    ResultPrinting,
    how_accepted,
    json_rows,
    print_csv,
    print_results,
    result_rows,
    shown_columns,
)
from vizsla.cli.sources import require_all_weights
from vizsla.errors import DataError, StorageError, UsageError
from vizsla.option_fields import REQUIRED, byte_count, option, same
from vizsla.options import (
    DEFAULT_BACKBONE,
    ComputeChoice,
    Conditions,
    GalleryOptions,
    ImageTable,
    ModelChoice,
    Printing,
    RunOptions,
    SearchOptions,
    SeveralLabels,
    TableImages,
    VectorFiles,
)
from vizsla.progress import LOADING, ProgressShown, waiting

log = logging.getLogger("vizsla")

if TYPE_CHECKING:
    from vizsla.search.filters import Filter
    from vizsla.search.index import Index
    from vizsla.search.ranking import Ranking

SHOWN = 10  # ranks of a query that are printed when no file is written


class IndexCommands(Group):
    """`vizsla index EMBEDDINGS -o INDEX` means `vizsla index build …`, and `vizsla index INDEX`,
    with nothing to build, `vizsla index info INDEX`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments that are left, after `build` or `info` was put before those that name no
        command."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["info" if len(args) == 1 and _is_index(args[0]) else "build", *args]
        rest: list[str] = super().parse_args(ctx, args)
        return rest


def _is_index(path: str) -> bool:
    from vizsla.search.index_files import is_index

    return is_index(path)


app = Commands()
index = Commands(cls=IndexCommands, no_args_is_help=True)
app.add_typer(
    index,
    name="index",
    help="Build and change an index: a gallery that can be searched.",
    epilog="Example: vizsla index gallery.emb -o gallery.index "
    "(the same as `vizsla index build …`)",
)
Where = Annotated[str, typer.Argument(metavar="INDEX", help="The index: a folder or a Milvus URL.")]


@dataclass(frozen=True, kw_only=True)
class FolderOptions(ImageTable, TableImages, SeveralLabels, ComputeChoice):
    """How a folder of images is embedded, where one is given in place of embeddings."""

    class_folders: bool = same(GalleryOptions, "class_folders")
    device: str = same(ComputeChoice, "device", usual=False)


@dataclass(frozen=True, kw_only=True)
class BuildOptions(ModelChoice, FolderOptions, Printing):
    """The options of `vizsla index build`."""

    model: str = same(
        ModelChoice, "model", shown=f"of an index that is replaced; else {DEFAULT_BACKBONE}"
    )
    pooling: str | None = same(ModelChoice, "pooling", usual=False)
    seed: int = same(RunOptions, "seed")

    out: str = option(
        REQUIRED, "A folder, milvus://HOST:PORT/COLLECTION, or a Milvus Lite file X.db.", "Output",
        "-o", "--out", usual=True,
    )  # fmt: skip
    kind: str = option(
        "auto", "{choices}; auto: by size and memory.", "Ranking", usual=True,
        choices=("auto", "exact", "hnsw", "ivf", "ivfsq8", "ivfpq"),
    )  # fmt: skip
    memory: int | None = option(
        None, "Memory that auto may use beside the vectors, such as 500MB or 4GB.", "Speed",
        shown="half of all", parse=byte_count,
    )  # fmt: skip
    recall: float | None = option(
        None, "Recall of the ten nearest; sets the search effort.", "Ranking", shown=".99",
        usual=True,
    )  # fmt: skip
    sample: Path | None = option(
        None, "Measure recall with (up to 1,000 of) these embeddings, not the gallery's.", "Ranking"
    )
    store: str = same(VectorFiles, "store")
    local: bool = option(
        False, "Also keep points of each image, for --refine verify; needs OpenCV.", "Ranking"
    )


@index.command(epilog="Example: vizsla index photos -o gallery.index --model dinov2-s14")
def build(
    gallery: Annotated[
        str, typer.Argument(help="A folder of images (a table, a URL, …), or embeddings.")
    ],
    *,
    options: BuildOptions,
) -> None:
    """Build an index from a folder of images, or from embeddings. It remembers its model."""
    from vizsla.embed.embeddings import Embeddings
    from vizsla.embed.local_features import opencv
    from vizsla.run.local_features import keep_features
    from vizsla.search.index import build_index

    if options.local:
        opencv()  # before the work: an error if it is not installed
    with ProgressShown(options.quiet) as shown, tempfile.TemporaryDirectory() as scratch:
        made = build_index(
            _embeddings_of(gallery, _replaced(options), options, scratch, shown), options.out,
            kind=options.kind, store=options.store,
            recall=options.recall, memory=options.memory,
            sample=None if options.sample is None else Embeddings.open(options.sample),
            progress=partial(shown, "building"),
        )  # fmt: skip
        if options.local:
            keep_features(made, made.ids, partial(shown, "finding points"))
    _print_index(made.about(), options.out, options.as_json)


def _replaced(options: BuildOptions) -> "Index | None":
    """The index that is replaced, if its model is to be used again."""
    from vizsla.model.open_model import is_chosen
    from vizsla.run.gallery_search import open_gallery
    from vizsla.search.index_files import is_index

    if is_chosen(options) or not is_index(options.out):
        return None
    with contextlib.suppress(StorageError):  # a damaged one
        found = open_gallery(options.out, "cpu")
        return None if found.source.model is None else found
    return None


def _embeddings_of(
    gallery: str,
    found: "Index | None",
    options: "BuildOptions | AddOptions",
    scratch: str,
    progress: ProgressShown,
    known: Collection[str] = (),
) -> Path:
    """The folder of the gallery's embeddings: as given, or made in `scratch` of images, by the
    model of the index that there is, unless another one was chosen. known: ids of images that need
    none. DataError: all are known."""
    from vizsla.data.image_sources import image_set
    from vizsla.embed.auto_compute import compute_of
    from vizsla.embed.embeddings import is_embeddings
    from vizsla.model.open_model import is_chosen, load_embedder
    from vizsla.run.gallery_search import embedded_folder, embedder_of
    from vizsla.run.tile_choice import embedder_with_chosen_tiles

    if is_embeddings(gallery):
        if is_chosen(options):
            raise UsageError(f"{gallery} holds vectors of their own model: leave --model out")
        return Path(gallery)
    images = image_set(
        gallery, labels=options.labels, labels_from=options.labels_from,
        class_folders=options.class_folders, exclude=options.exclude,
        follow_links=options.follow_links, label_separator=options.label_separator,
        root=options.root,
    )  # fmt: skip
    if known:
        count, images = len(images), images.without(known)
        if not len(images):
            raise DataError(f"the index holds all {count} images of {gallery} already")
        log.info("%d of %d images are in the index already", count - len(images), count)
    if found is None:
        require_all_weights([(options.model, options.weights)])
    with waiting(progress, LOADING):
        if found is None:
            embedder = load_embedder(options, seed=options.seed, tiles_later=True)
        else:
            embedder = embedder_of(found, options, options.seed)
    if found is None:
        embedder = embedder_with_chosen_tiles(
            embedder, images, options, partial(compute_of, options, images=images),
            seed=options.seed, max_pixels=options.max_pixels, cache=options.cache,
            progress=progress,
        )  # fmt: skip
    return embedded_folder(
        images, embedder, scratch, options, max_pixels=options.max_pixels, progress=progress
    )


@dataclass(frozen=True, kw_only=True)
class AddOptions(ModelChoice, FolderOptions, Printing):
    """The options of `vizsla index add`."""

    model: str = same(
        ModelChoice, "model", usual=False, shown="the index's own",
        help="The model of the index, if that does not record it.",
    )  # fmt: skip
    weights: str = same(ModelChoice, "weights", usual=False)
    pooling: str | None = same(ModelChoice, "pooling", usual=False)
    seed: int = same(RunOptions, "seed")
    skip_known: bool = option(
        False, "Leave out the images whose ids the index holds already.", "Data", usual=True
    )


@index.command(epilog="Example: vizsla index add gallery.index photos --skip-known")
def add(
    where: Where,
    gallery: Annotated[
        str, typer.Argument(help="A folder of new images (a table, a URL, …), or embeddings.")
    ],
    *,
    options: AddOptions,
) -> None:
    """Add images, embedded by the model of the index; the rest of it stays as it is."""
    from vizsla.embed.embeddings import Embeddings
    from vizsla.run.local_features import keep_features, keeps_features
    from vizsla.search.index import open_index

    with ProgressShown(options.quiet) as shown, tempfile.TemporaryDirectory() as scratch:
        found = open_index(where, progress=partial(shown, "adding"))
        known = set(found.ids) if options.skip_known else set()
        new = Embeddings.open(_embeddings_of(gallery, found, options, scratch, shown, known))
        if known:  # embeddings may hold them too
            new = new.subset([i for i, name in enumerate(new.ids) if name not in known])
        columns = found.attributes_of([]).column_names
        found.add(new)
        root = new.root or new.source.root
        if keeps_features(found):
            keep_features(found, new.ids, partial(shown, "finding points"), root=root)
    missing = [name for name in columns if name not in new.attributes.column_names]
    if missing and len(new) and not options.quiet:
        text = f"the new images have no {', '.join(missing)}: --table FILE would have given them"
        typer.echo(text, err=True)
    there = found.source.root
    if len(new) and root and there and not root.samefile(there) and not options.quiet:
        typer.echo(
            f"pages, sheets and --refine verify look for the images of this index in {there}, and "
            f"the new ones are in {root}: copy them there"
            + (" (their points are kept, so verify does not need them)" if keeps_features(found)
               else ""),
            err=True,
        )  # fmt: skip
    _print_index(found.about(), where, options.as_json)


@dataclass(frozen=True, kw_only=True)
class RemoveOptions(Conditions, Printing):
    """The options of `vizsla index remove`."""


@index.command(epilog="Example: vizsla index remove gallery.index --filter label=hat")
def remove(
    where: Where,
    ids: Annotated[list[str] | None, typer.Argument(help="The ids of the images.")] = None,
    *,
    options: RemoveOptions,
) -> None:
    """Remove images by id or by a condition."""
    from vizsla.search.index import open_index

    if bool(ids) == bool(options.filter):
        raise UsageError("say which images: their ids, or --filter")
    with ProgressShown(options.quiet) as shown:
        found = open_index(where, progress=partial(shown, "rebuilding"))
        removed_now = _remove(found, ids, options.filter)
    _print_index({"removed_now": removed_now, **found.about()}, where, options.as_json)


def _remove(found: "Index", ids: list[str] | None, conditions: tuple[str, ...]) -> int:
    """How many images were removed: those with these ids, or those that meet all conditions."""
    from vizsla.data.names import match_names
    from vizsla.search.folder_index import check_present

    chosen = _filter(conditions)
    if chosen is None:
        named = zip(ids or [], match_names(ids or [], found.ids, origin="the ids"), strict=True)
        return found.remove([image or name for name, image in named])
    check_present(chosen.named(found.ids)[1], ())
    mask = chosen.mask(found.ids, found.attributes)
    return found.remove([name for name, out in zip(found.ids, mask, strict=True) if out])


@index.command(epilog="Example: vizsla index rebuild gallery.index")
def rebuild(
    where: Where,
    *,
    options: Printing,
) -> None:
    """Rewrite an index without removed images, and measure its search effort again."""
    from vizsla.search.folder_index import FolderIndex

    with ProgressShown(options.quiet) as shown:
        found = FolderIndex.load(where, progress=partial(shown, "rebuilding"))
        found.rebuild()
    _print_index(found.about(), where, options.as_json)


@dataclass(frozen=True, kw_only=True)
class InfoOptions(Printing):
    """The options of `vizsla index info`."""

    verify: bool = option(False, "Check the hash of every file.", "Data", usual=True)


@index.command(epilog="Example: vizsla index info gallery.index --verify")
def info(
    where: Where,
    *,
    options: InfoOptions,
) -> None:
    """Show what an index holds, and the recall at every search effort that was measured."""
    from vizsla.search.index import open_index

    _print_index(open_index(where, verify=options.verify).about(), where, options.as_json)


def _print_index(about: dict[str, Any], where: str, as_json: bool) -> None:
    if as_json:
        print_json({"index": where, **about})
        return
    typer.echo(where)
    curve = about.pop("curve", [])
    for key, value in about.items():
        if isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        if value is not None:
            typer.echo(f"  {key.replace('_', ' '):<12} {value}")
    if curve:
        typer.echo(f"  {'effort':>10}  recall@10")
    for effort, recall in curve:
        mark = "  ← chosen" if effort == about["effort"] else ""
        typer.echo(f"  {effort:>10}  {recall:.4f}{mark}")


def _filter(conditions: tuple[str, ...]) -> "Filter | None":
    from vizsla.search.filters import Filter

    return Filter.parse(conditions) if conditions else None


@dataclass(frozen=True, kw_only=True)
class SearchCommand(SearchOptions, ResultPrinting):
    """The options of `vizsla search`."""

    out: Path | None = option(
        None, "The ranking to write (Parquet).", "Output", "-o", "--out", shown="printed",
        usual=True,
    )  # fmt: skip
    top_k: int | None = same(
        SearchOptions, "top_k",
        shown="10 on the terminal; in a file all up to 20,000, else 1,000",
    )  # fmt: skip


@app.command(epilog="Example: vizsla search gallery.index photo.jpg")
def search(
    gallery: Annotated[str, typer.Argument(help="A run, an index, or the gallery's embeddings.")],
    queries: Annotated[
        list[Path],
        typer.Argument(help="Images, a folder of them, embeddings, or words for a CLIP model."),
    ],
    *,
    options: SearchCommand,
) -> None:
    """Rank a gallery for every query, by cosine or refined. Queries are images or embeddings."""
    out = options.out
    _filter(options.filter)  # what cannot be read is an error at once
    with ProgressShown(options.quiet) as progress:
        progress(LOADING, 0, 1)
        from vizsla.run.gallery_search import search_gallery

        progress(LOADING, 1, 1)
        done = search_gallery(gallery, queries, options, progress, deep=out is not None)
    ranking, found = done.ranking, done.gallery
    if not options.as_json and not options.as_csv:
        print_refined(done.chain, done.choice)
    if out is not None:
        ranking.save(out)
        from vizsla.choose.refinement import refine_record

        record = refine_record(done.chain, done.choice)
        _print_written(ranking, out, options.as_json, refine=record)
        return
    known = found.attributes_of([]).column_names
    columns = shown_columns(known, options.show, options.group_by, every=options.as_json)
    rows = result_rows(ranking, found.attributes_of, columns)
    if options.as_json:
        grouped = options.group_by is not None
        listed = {query: json_rows(results, grouped=grouped) for query, results in rows.items()}
        print_json({"model_id": done.model_id, "rankings": listed})
    elif options.as_csv:
        print_csv(rows, columns)
    else:
        for i, (query, results) in enumerate(rows.items()):
            typer.echo("\n" * (i > 0) + query)
            print_results(results, columns)
        if ranking.accepted is not None:
            typer.echo(f"\n{how_accepted(ranking)}")


def _print_written(ranking: "Ranking", out: Path, as_json: bool, **more: Any) -> None:
    if as_json:
        about = {"ranking": str(out), "queries": len(ranking), "depth": ranking.depth}
        print_json({**about, **more})
    else:
        typer.echo(f"{len(ranking)} queries, {ranking.depth} gallery images each, in {out}")
