"""What is asked of an index: queries as unit vectors, and how many results."""

from collections.abc import Sequence

import numpy as np

from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.search import exact


def as_queries(
    queries: Embeddings | np.ndarray, model_id: str | None, gallery: list[str] | None = None
) -> Embeddings:
    """Embeddings as they are; numbers as unit vectors of that model, called 0, 1, …"""
    if isinstance(queries, Embeddings):
        return queries
    if model_id is None:
        raise UsageError("which model made these vectors? Give their model_id, or Embeddings")
    if gallery is not None:
        raise UsageError("same_set needs the queries' ids: give Embeddings")
    return Embeddings.from_arrays(queries, model_id=model_id)


def check_k(k: int, available: int) -> None:
    if available < 1:
        raise DataError("the index holds no image to be found: add some first (`vizsla index add`)")
    exact.check_k(k, available)


def without_self(
    query_ids: Sequence[str], gallery_ids: Sequence[str],
    positions: np.ndarray, scores: np.ndarray, k: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Each row without the query itself, k long; the last may be missing (-1, nan)."""
    wanted = set(query_ids)
    place = {name: i for i, name in enumerate(gallery_ids) if name in wanted}
    own = np.array([place.get(name, -2) for name in query_ids])
    found = positions == own[:, None]
    order = np.argsort(found, axis=1, kind="stable")  # the own one last
    positions = np.where(np.take_along_axis(found, order, 1), -1,
                         np.take_along_axis(positions, order, 1))[:, :k]  # fmt: skip
    scores = np.take_along_axis(scores, order, 1)[:, :k]
    return positions, np.where(positions < 0, np.nan, scores)
