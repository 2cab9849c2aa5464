"""What --refine and --learn-on say → a chain, and a gallery searched by it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vizsla.errors import UsageError

if TYPE_CHECKING:
    from vizsla.choose.refinement import RefinementChoice
    from vizsla.embed.embeddings import Embeddings
    from vizsla.search.chain import Chain
    from vizsla.search.filters import Filter
    from vizsla.search.index import Index
    from vizsla.search.ranking import Ranking


def chain_of(
    refine: str,
    uses: str,
    learn_on: Path | None,
    validate_on: str | None,
    *,
    queries: "Embeddings",
    gallery: "Callable[[], Embeddings]",
    progress: Callable[[str, int, int], None],
) -> "tuple[Chain, RefinementChoice | None]":
    """The chain that was given, or chosen on the labelled embeddings of --learn-on."""
    from vizsla.search.chain import parse_chain

    if refine != "auto":
        if learn_on or validate_on:
            raise UsageError("--learn-on and --validate-on are for --refine auto: leave them out")
        return parse_chain(refine, uses=uses), None
    if learn_on is None:
        raise UsageError(
            "--refine auto chooses on labelled images: give --learn-on EMBEDDINGS of training "
            "images (vizsla embed data/training --class-folders -o training.emb), or name a chain"
        )
    from vizsla.choose.refinement import STAGE, choose_chain_on_embeddings
    from vizsla.embed.embeddings import Embeddings
    from vizsla.search.exact import require_comparable

    training = Embeddings.open(learn_on)
    require_comparable(queries.model_id, training.model_id, queries.dim, training.dim)
    choice = choose_chain_on_embeddings(
        training, queries, gallery(), validate_on=validate_on or "new-classes", uses=uses,
        progress=lambda done, total: progress(STAGE, done, total),
    )  # fmt: skip
    return choice.chain, choice


def vectors_of(found: "Index", where: str) -> "Embeddings":
    """The gallery's vectors; UsageError if they are on a server."""
    from vizsla.search.folder_index import FolderIndex

    if not isinstance(found, FolderIndex):
        raise UsageError(
            f"--refine needs the gallery's vectors here, and those of {where} are on a server: "
            "leave it out"
        )
    return found.embeddings()


def search_refined(
    found: "Index",
    where: str,
    queries: "Embeddings",
    chain: "Chain",
    k: int,
    condition: "Filter | None" = None,
    *,
    same_set: bool,
    device: str,
    progress: Callable[[int, int], None],
) -> "Ranking":
    """The gallery of an index by a chain. The neighbour graph is kept in the index, or beside the
    embeddings; with a condition it is that of the images allowed, and not kept."""
    import numpy as np

    from vizsla.search.chain import rank_refined
    from vizsla.search.folder_index import FolderIndex
    from vizsla.search.index_files import is_index
    from vizsla.search.knn_graph import GraphFolder, Keeper

    gallery = vectors_of(found, where)
    keeper: Keeper | None = GraphFolder(Path(where))
    if is_index(where) and isinstance(found, FolderIndex):
        keeper = found
    if condition is not None:
        rows = np.flatnonzero(condition.mask(gallery.ids, gallery.attributes))
        gallery, keeper = _subset(gallery, rows), None
        k = min(k, len(gallery))
        if len(gallery) < 2:
            raise UsageError(
                f"--refine among {len(gallery)} images: loosen --filter, or leave it out"
            )
    return rank_refined(
        queries, gallery, chain, k, same_set=same_set, device=device, graphs=keeper,
        progress=progress,
    )  # fmt: skip


def _subset(gallery: "Embeddings", rows: Any) -> "Embeddings":
    taken = gallery.attributes.take(rows) if gallery.attributes.num_columns else gallery.attributes
    return dataclasses.replace(
        gallery, ids=[gallery.ids[i] for i in rows], vectors=gallery.vectors[rows], attributes=taken
    )


def print_refined(chain: "Chain", choice: "RefinementChoice | None") -> None:
    """How the chain was chosen, and what it uses."""
    if choice is not None:
        typer.echo("\n".join([*choice.lines(), ""]))
    elif chain.steps:
        typer.echo(f"refined by {chain}, which uses {chain.words}")
