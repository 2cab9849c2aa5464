"""Embeddings + truth → Scores over the whole gallery, however large it is.

A ranking of a large gallery has a limited depth; later ranks are counted, not sorted.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vizsla.data.listing import few
from vizsla.data.names import match_names
from vizsla.data.tables import read_names
from vizsla.embed.arrays import own_embeddings
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.score.evaluate import evaluate
from vizsla.score.grade_table import GradeTable
from vizsla.score.protocols import Protocol, parse_protocol
from vizsla.score.relevance import relevant_and_ignored
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth, named_as
from vizsla.search import exact
from vizsla.search.chain import Chain, rank_refined
from vizsla.search.ranking import Ranking

WHOLE = 20_000_000  # scores; for more the ranking ends at DEPTH, and later ranks are counted
DEPTH = 1000


def evaluate_embeddings(
    queries: Any,
    gallery: Any = None,
    query_labels: Any = None,
    gallery_labels: Any = None,
    *,
    same_set: bool = False,
    ks: Sequence[int] = (1, 5, 10),
    device: str = "cpu",
    **options: Any,
) -> Scores:
    """The scores of your own vectors: by cosine, exactly, over the whole gallery.

    queries, gallery: NumPy arrays, torch tensors (anything with DLPack), .npy, .npz, .safetensors
    or Parquet files, embeddings folders. The labels: arrays, lists or files; None if the
    vectors' file holds them. same_set: only `queries`, each searched for among the others.
    options: of `evaluate`, such as cluster="label".
    """
    query_set, gallery_set = own_pair(
        queries, gallery, query_labels, gallery_labels, same_set=same_set
    )
    truth = truth_of(query_set, gallery_set, None, same_set)
    ranking = ranked(query_set, gallery_set, ks=ks, same_set=same_set, device=device)
    return evaluate_ranked(ranking, truth, query_set, gallery_set, device=device, ks=ks, **options)


def own_pair(
    queries: Any,
    gallery: Any = None,
    query_labels: Any = None,
    gallery_labels: Any = None,
    *,
    same_set: bool = False,
) -> tuple[Embeddings, Embeddings]:
    """Queries and gallery, the same twice for same_set. DataError: they cannot be compared."""
    if same_set != (gallery is None):
        raise UsageError(
            "if queries and gallery are one set, give it as queries, with --same-set"
            if same_set
            else "give the gallery's vectors too (--gallery), or --same-set if "
            "queries and gallery are one set"
        )
    if same_set and gallery_labels is not None:
        raise UsageError("one set has one list of labels: give only the query labels")
    query_set = own_embeddings(queries, query_labels, role="query")
    if same_set:
        return query_set, query_set
    gallery_set = own_embeddings(gallery, gallery_labels, role="gallery")
    exact.require_comparable(
        query_set.model_id, gallery_set.model_id, query_set.dim, gallery_set.dim
    )
    return query_set, gallery_set


def query_and_gallery_vectors(
    vectors: Any, ids: str | Path | None, labels: Any, table: GradeTable
) -> tuple[Embeddings, Embeddings]:
    """Queries and gallery of one set of vectors, as a list of judgements says.

    ids: a file with their names, one a line, if the vectors have none. The gallery is what the
    judgements list, or all that is no query. DataError: a query or a listed image has no vector.
    """
    found = own_embeddings(vectors, labels, role="image")
    if ids is not None:
        names = read_names(ids)
        if len(names) != len(found) or len({*names}) != len(names):
            raise DataError(
                f"{ids} has {len(names)} names ({len({*names})} different ones) for {len(found)} "
                "vectors: expected one each"
            )
        found = dataclasses.replace(found, ids=names)
    row_of = {name: i for i, name in enumerate(found.ids)}
    table = table.named_as(row_of)

    def rows(wanted: Sequence[str], role: str) -> list[int]:
        matched = match_names(wanted, row_of, roles=[role] * len(wanted), origin="the truth")
        lost = [name for name, known in zip(wanted, matched, strict=True) if known is None]
        if lost:
            raise DataError(
                f"{len(lost)} of {len(wanted)} {role} images of the truth have no vector "
                f"({few(lost)}): give their vectors, named as {found.ids[0]} is, or --ids FILE"
            )
        return [row_of[name] for name in matched if name is not None]

    of_query = rows(table.queries, "query")
    if table.gallery is not None:
        of_gallery = rows(table.gallery, "gallery")
    else:
        taken = {*of_query}
        of_gallery = [i for i in range(len(found)) if i not in taken]
    return found.subset(of_query), found.subset(of_gallery)


def truth_of(
    queries: Embeddings,
    gallery: Embeddings,
    grades: Mapping[str, Mapping[str, int]] | None = None,
    same_set: bool = False,
) -> Truth:
    """The truth by the labels of both, or by `grades`; then labels are only used for slices."""
    labelled = [bool(side.labels and any(side.labels)) for side in (queries, gallery)]
    labels = Truth.from_sets(queries, gallery, one_set=same_set) if all(labelled) else None
    if grades is not None:
        return Truth.from_grades(grades, labels=labels, one_set=same_set)
    if labels is None:
        role = "gallery" if labelled[0] else "query"
        raise DataError(
            f"the {role} vectors have no labels: give {role} labels (--{role}-labels FILE)"
        )
    return labels


def ranked(
    queries: Embeddings,
    gallery: Embeddings,
    *,
    ks: Sequence[int] = (),
    same_set: bool = False,
    device: str = "cpu",
    chain: Chain = Chain(),  # noqa: B008 (frozen)
) -> Ranking:
    """The ranking by cosine: of the whole gallery if that is small, else at least to max(ks).

    chain: refines it.
    """
    available = len(gallery) - (1 if same_set else 0)
    if available < 1:
        raise DataError(f"{len(gallery)} image: one set needs two or more to search among")
    deep = len(queries) * len(gallery) <= WHOLE
    depth = exact.default_depth(len(gallery)) if deep else max(DEPTH, *ks)
    k = min(depth, available)
    return rank_refined(queries, gallery, chain, k, same_set=same_set, device=device)


def evaluate_ranked(
    ranking: Ranking,
    truth: Truth,
    queries: Embeddings,
    gallery: Embeddings,
    *,
    device: str = "cpu",
    protocol: Protocol | str | None = None,
    **options: Any,
) -> Scores:
    """Scores over the whole gallery, however deep the ranking of these vectors is.

    A ranking that was refined, fused or made of tiles does not have the order of the vectors of
    whole images: its later ranks are unknown. options: of `evaluate`.
    """
    if protocol is not None:
        protocol = parse_protocol(protocol)
        truth = protocol.judging(named_as(truth, ranking), ranking.queries)
    full_ranks = None
    by_cosine = not {"refine", "fusion", "tiles"} & ranking.origin.keys()
    if by_cosine and ranking.depth < len(gallery) - (1 if truth.one_set else 0):
        relevant, ignored = relevant_and_ignored(truth, queries.ids, gallery.ids)
        full_ranks = relevant_ranks(
            queries.vectors, gallery.vectors, relevant, ignored=ignored, device=device
        )
    return evaluate(ranking, truth, full_ranks=full_ranks, protocol=protocol, **options)


# ── ranks beyond the end of a ranking ────────────────────────────────────────────────────────────


def relevant_ranks(
    queries: np.ndarray,
    gallery: exact.Gallery,
    relevant: Sequence[np.ndarray],
    *,
    ignored: Sequence[np.ndarray] | None = None,
    device: str = "cpu",
) -> list[np.ndarray]:
    """The ranks (from 1, rising) of each query's relevant images in the whole gallery.

    Counts the higher scores, chunk by chunk, so no ranking of the whole gallery is made.
    queries: (Q, D), gallery: (G, D) unit rows. relevant, ignored: gallery positions for each query;
    the ignored (junk, self) take no rank.
    """
    higher = [np.zeros(len(wanted), np.int64) for wanted in relevant]
    scores = []
    for query, at in zip(queries, relevant, strict=True):
        grid, wanted = exact.on_grid(query[None], device), exact.on_grid(gallery[at], device)
        scores.append(exact.exact_scores(grid, wanted)[0].cpu().numpy())
    for q_part in exact.slices(len(queries), 256):
        grid = exact.on_grid(queries[q_part], device)
        for g_part in exact.slices(len(gallery), exact.rows_per_chunk(256)):
            block = exact.exact_scores(grid, exact.on_grid(gallery[g_part], device)).cpu().numpy()
            for row, i in enumerate(range(q_part.start, q_part.stop)):
                skip = None if ignored is None else ignored[i]
                higher[i] += _count_higher(block[row], g_part, scores[i], relevant[i], skip)
    return [np.sort(counts) + 1 for counts in higher]


def _count_higher(
    block: np.ndarray, part: slice, scores: np.ndarray, at: np.ndarray, ignored: np.ndarray | None
) -> np.ndarray:
    """How many images of this block rank before each of the images with these scores, at `at`."""
    if ignored is not None and len(ignored):
        inside = ignored[(ignored >= part.start) & (ignored < part.stop)] - part.start
        block = block.copy()
        block[inside] = -np.inf
    ordered = np.sort(block)
    greater = len(ordered) - np.searchsorted(ordered, scores, side="right")
    tied = len(ordered) - np.searchsorted(ordered, scores, side="left") - greater
    for j in np.flatnonzero(tied):
        equal = np.flatnonzero(block == scores[j]) + part.start
        greater[j] += int((equal < at[j]).sum())
    return greater
