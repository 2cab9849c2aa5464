"""Commands for searching a gallery: index (build, add, remove, info), search."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vizsla.cli.console import Commands, Group, ProgressShown, print_json
from vizsla.cli.refining import chain_of, print_refined, search_refined, vectors_of
from vizsla.cli.shared_options import AsJson, LearnOn, Quiet, Seed, ValidateOn, Verbose, byte_count
from vizsla.cli.sources import embedded_queries, open_gallery
from vizsla.errors import UsageError
from vizsla.options import ModelChoice, RankingOptions

if TYPE_CHECKING:
    from vizsla.search.filters import Filter
    from vizsla.search.index import Index
    from vizsla.search.ranking import Ranking

SHOWN = 10  # ranks of a query that are printed when no file is written


class IndexCommands(Group):
    """`vizsla index EMBEDDINGS -o INDEX` means `vizsla index build …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments that are left, after `build` was put before those that name no command."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["build", *args]
        rest: list[str] = super().parse_args(ctx, args)
        return rest


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
Conditions = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        help="Only images with label=shoe, label=shoe|hat, 'price<10', label=null, id=@names.txt, "
        "… Repeatable: all conditions must hold.",
    ),
]


@index.command(epilog="Example: vizsla index gallery.emb -o gallery.index --kind hnsw")
def build(
    embeddings: Annotated[Path, typer.Argument(help="The gallery's embeddings.")],
    out: Annotated[
        str,
        typer.Option(
            "-o",
            "--out",
            help="A folder, milvus://HOST:PORT/COLLECTION, or a Milvus Lite file X.db.",
        ),
    ],
    kind: Annotated[
        str,
        typer.Option("--kind", help="exact, hnsw, ivf, ivfsq8 or ivfpq; auto: by size and memory."),
    ] = "auto",
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            help="Memory that auto may use beside the vectors, such as 500MB or 4GB.",
            show_default="half of all",
        ),
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(
            "--recall",
            help="Recall of the ten nearest; sets the search effort.",
            show_default=".99",
        ),
    ] = None,
    sample: Annotated[
        Path | None,
        typer.Option(
            "--sample",
            help="Measure recall with (up to 1,000 of) these embeddings, not the gallery's.",
        ),
    ] = None,
    store: Annotated[
        str, typer.Option("--store", help="Store vectors as fp32, or as fp16 at half the size.")
    ] = "fp32",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Build an index from embeddings."""
    from vizsla.embed.embeddings import Embeddings
    from vizsla.search.index import build_index

    with ProgressShown(quiet) as shown:
        made = build_index(
            embeddings, out, kind=kind, store=store, recall=recall,
            memory=None if memory is None else byte_count(memory),
            sample=None if sample is None else Embeddings.open(sample),
            progress=partial(shown, "building"),
        )  # fmt: skip
    _print_index(made.about(), out, as_json)


@index.command(epilog="Example: vizsla index add gallery.index new.emb")
def add(
    where: Where,
    embeddings: Annotated[Path, typer.Argument(help="Embeddings of the new images.")],
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Add images that the same model embedded; the rest of the index stays as it is."""
    from vizsla.embed.embeddings import Embeddings
    from vizsla.search.index import open_index

    with ProgressShown(quiet) as shown:
        found = open_index(where, progress=partial(shown, "adding"))
        found.add(Embeddings.open(embeddings))
    _print_index(found.about(), where, as_json)


@index.command(epilog="Example: vizsla index remove gallery.index --filter label=hat")
def remove(
    where: Where,
    ids: Annotated[list[str] | None, typer.Argument(help="The ids of the images.")] = None,
    conditions: Conditions = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Remove images by id or by a condition."""
    from vizsla.search.index import open_index

    if bool(ids) == bool(conditions):
        raise UsageError("say which images: their ids, or --filter")
    with ProgressShown(quiet) as shown:
        found = open_index(where, progress=partial(shown, "rebuilding"))
        removed_now = _remove(found, ids, conditions)
    _print_index({"removed_now": removed_now, **found.about()}, where, as_json)


def _remove(found: "Index", ids: list[str] | None, conditions: list[str] | None) -> int:
    """How many images were removed: those with these ids, or those that meet all conditions."""
    chosen = _filter(conditions)
    if chosen is not None:
        mask = chosen.mask(found.ids, found.attributes)
        ids = [name for name, out in zip(found.ids, mask, strict=True) if out]
    return found.remove(ids or [])


@index.command(epilog="Example: vizsla index rebuild gallery.index")
def rebuild(
    where: Where,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Rewrite an index without removed images, and measure its search effort again."""
    from vizsla.search.folder_index import FolderIndex

    with ProgressShown(quiet) as shown:
        found = FolderIndex.load(where, progress=partial(shown, "rebuilding"))
        found.rebuild()
    _print_index(found.about(), where, as_json)


@index.command(epilog="Example: vizsla index info gallery.index --verify")
def info(
    where: Where,
    verify: Annotated[bool, typer.Option("--verify", help="Check the hash of every file.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what an index holds, and the recall at every search effort that was measured."""
    from vizsla.search.index import open_index

    _print_index(open_index(where, verify=verify).about(), where, as_json)


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


def _filter(conditions: list[str] | None) -> "Filter | None":
    from vizsla.search.filters import Filter

    return Filter.parse(conditions) if conditions else None


@app.command(epilog="Example: vizsla search gallery.emb query.emb -k 10 -o ranking.parquet")
def search(
    gallery: Annotated[str, typer.Argument(help="An index, or the gallery's embeddings.")],
    queries: Annotated[
        list[Path], typer.Argument(help="Embeddings, a folder of images, or image files.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The ranking to write (Parquet).", show_default="printed"),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            "-k",
            "--top-k",
            min=1,
            help="Images per query.",
            show_default="10 on the terminal; in a file all up to 20,000, else 1,000",
        ),
    ] = None,
    conditions: Conditions = None,
    same_set: Annotated[
        bool,
        typer.Option(
            "--same-set", help="Queries and gallery are one set: leave out each query's own image."
        ),
    ] = False,
    seed: Seed = 0,
    learn_on: LearnOn = None,
    validate_on: ValidateOn = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, mps.")] = "cpu",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    *,
    model_choice: ModelChoice,
    refining: RankingOptions,
) -> None:
    """Rank a gallery for every query, by cosine or refined. Queries are embeddings or images."""
    from vizsla.embed.auto_compute import resolve_compute
    from vizsla.search.exact import default_depth

    device = resolve_compute(device=device).device
    found = open_gallery(gallery, device)
    with ProgressShown(quiet) as progress:
        query_set = embedded_queries(
            queries, found.model_id, choice=model_choice, seed=seed, device=device,
            progress=lambda done, total: progress("embedding", done, total),
        )  # fmt: skip
        chain, choice = chain_of(
            refining.refine,
            refining.refine_uses,
            learn_on,
            validate_on,
            queries=query_set,
            gallery=lambda: vectors_of(found, gallery),
            progress=progress,
        )
    most = len(found) - same_set
    k = min(SHOWN if out is None else default_depth(len(found)), most) if top_k is None else top_k
    condition = _filter(conditions)
    if chain.steps:
        with ProgressShown(quiet) as progress:
            ranking = search_refined(
                found, gallery, query_set, chain, max(k, 1), condition, same_set=same_set,
                device=device, progress=lambda done, total: progress("graph", done, total),
            )  # fmt: skip
    else:
        ranking = found.search(query_set, max(k, 1), condition, same_set=same_set)
    if not as_json:
        print_refined(chain, choice)
    if out is not None:
        ranking.save(out)
        from vizsla.choose.refinement import refine_record

        _print_written(ranking, out, as_json, refine=refine_record(chain, choice))
    elif as_json:
        print_json({"model_id": found.model_id, "rankings": _listed(ranking)})
    else:
        _print_ranking(ranking)


def _print_written(ranking: "Ranking", out: Path, as_json: bool, **more: Any) -> None:
    if as_json:
        about = {"ranking": str(out), "queries": len(ranking), "depth": ranking.depth}
        print_json({**about, **more})
    else:
        typer.echo(f"{len(ranking)} queries, {ranking.depth} gallery images each, in {out}")


def _listed(ranking: "Ranking") -> dict[str, list[dict[str, Any]]]:
    """Query → its gallery images, best first."""
    assert ranking.scores is not None
    return {
        query: [
            {"id": ranking.gallery[at], "score": float(score)}
            for at, score in zip(ranking.positions[i], ranking.scores[i], strict=True)
            if at >= 0
        ]
        for i, query in enumerate(ranking.queries)
    }


def _print_ranking(ranking: "Ranking") -> None:
    for query, row in _listed(ranking).items():
        typer.echo(query)
        for rank, found in enumerate(row, 1):
            typer.echo(f"{rank:>5}  {found['score']:.4f}  {found['id']}")
