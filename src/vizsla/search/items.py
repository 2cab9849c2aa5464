"""Several query pictures of one item → one query: its vectors, or its rankings, joined."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError
from vizsla.search.ranking import Ranking

JOINS = ("mean", "max")


def items_of(
    names: Sequence[str], values: Mapping[str, object], column: str
) -> dict[str, list[int]]:
    """Item → the positions of its pictures, in their order. A picture without a value is an item of
    its own, under its own name. DataError: no picture has a value.
    """
    if not any(values.get(name) is not None for name in names):
        raise DataError(
            f"--query-group {column}: no query has a value in this column: give it in a table of "
            "the queries (metadata.csv in their folder, or embed them with --labels)"
        )
    items: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        value = values.get(name)
        items.setdefault(name if value is None else str(value), []).append(i)
    return items


def joined_vectors(queries: Embeddings, items: Mapping[str, Sequence[int]]) -> Embeddings:
    """One unit vector for each item: the mean of its pictures' vectors.

    The mean of cosines orders images as the cosine with the mean does. The attributes are those of
    the first picture. DataError: the vectors of an item cancel each other out.
    """
    rows = []
    for name, pictures in items.items():
        if len(pictures) == 1:
            rows.append(queries.vectors[pictures[0]])
            continue
        mean = queries.vectors[list(pictures)].astype(np.float64).mean(axis=0)
        length = float(np.linalg.norm(mean))
        if length < 1e-6:
            raise DataError(f"the {len(pictures)} pictures of {name} cancel each other out")
        rows.append((mean / length).astype(np.float32))
    first = [pictures[0] for pictures in items.values()]
    return replace(queries.subset(first), ids=list(items), vectors=np.stack(rows))


def joined_rankings(ranking: Ranking, items: Mapping[str, Sequence[int]], join: str) -> Ranking:
    """One row for each item, by the highest (max) or the mean score over its pictures.

    For a mean, an image that a picture's list lacks counts with the last score of that list. The
    rows are as deep as before. DataError: the ranking has no scores.
    """
    if ranking.scores is None:
        raise DataError("--query-group joins the scores of pictures, and this ranking has none")
    positions = np.full((len(items), ranking.depth), -1, np.int64)
    scores = np.full(positions.shape, np.nan)
    for i, pictures in enumerate(items.values()):
        rows, values = ranking.positions[list(pictures)], ranking.scores[list(pictures)]
        there = rows >= 0
        known, at = np.unique(rows[there], return_inverse=True)
        every = np.full((len(pictures), len(known)), -np.inf)
        if join == "mean":
            last = np.where(there, values, np.inf).min(axis=1, initial=np.inf)
            every[:] = np.where(np.isfinite(last), last, -1.0)[:, None]
        every[np.nonzero(there)[0], at] = values[there]
        joined = every.max(axis=0) if join == "max" else every.mean(axis=0)
        order = np.lexsort((known, -joined))[: ranking.depth]
        positions[i, : len(order)], scores[i, : len(order)] = known[order], joined[order]
    origin = {**ranking.origin, "query_join": join}
    return replace(ranking, queries=list(items), positions=positions, scores=scores, origin=origin)
