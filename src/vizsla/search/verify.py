"""The first images of a ranking → re-ranked by how alike their parts and the query's are.

A pair's score becomes (1 - weight) · score + weight · likeness: the probability of `geometry`, or
the similarity of `late_interaction`. Below the first n nothing is compared, and it counts as 0.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vizsla.embed.embeddings import Embeddings
from vizsla.embed.local_features import LOCAL, Extractor, LocalFeatures, Sift, features_of
from vizsla.errors import DataError, UsageError
from vizsla.search.geometry import geometry_of

FEATURES = ("sift", "tokens")
Features = Callable[[Sequence[int] | np.ndarray], list[LocalFeatures]]  # of these positions
AllFeatures = Callable[[str], Features]  # a name of FEATURES → those of all images
BothFeatures = Callable[[str], tuple[Features, Features]]  # the same, of queries and of gallery
# a query and n images → (n,) how alike their parts are, from 0 to 1
Compare = Callable[[LocalFeatures, Sequence[LocalFeatures]], np.ndarray]


class Pairs:
    """How alike the parts of a query and of a gallery image are; each pair is compared once.

    known: the values of pairs, which may be shared with other draws of the same images. numbers: of
    these queries and gallery images there. compared: how many pairs so far. seconds: the time for
    these, without extracting features.
    """

    def __init__(
        self,
        queries: Features,
        gallery: Features,
        compare: Compare,
        known: dict[tuple[int, int], float] | None = None,
        numbers: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.queries, self.gallery, self.compare = queries, gallery, compare
        self.seconds, self.compared = 0.0, 0
        self._known = {} if known is None else known
        self._numbers = numbers

    def likeness(self, query: int, positions: np.ndarray) -> np.ndarray:
        """(n,) for the gallery images at these positions."""
        at = positions.tolist()
        keys = [(query, position) for position in at]
        if self._numbers is not None:
            of_queries, of_gallery = self._numbers
            keys = [(int(of_queries[query]), int(of_gallery[position])) for position in at]
        new = [i for i, key in enumerate(keys) if key not in self._known]
        if new:
            [of_query], others = self.queries([query]), self.gallery([at[i] for i in new])
            started = time.perf_counter()
            for i, value in zip(new, self.compare(of_query, others), strict=True):
                self._known[keys[i]] = float(value)
            self.seconds += time.perf_counter() - started
            self.compared += len(new)
        return np.array([self._known[key] for key in keys])


def same_thing(model: str) -> Compare:
    """Compares by the probability of a geometry of that model."""
    return lambda query, others: np.array(
        [geometry_of(query, other, model).probability for other in others]
    )


def reranked(
    positions: np.ndarray,
    scores: np.ndarray,
    pairs: Pairs,
    *,
    n: int,
    weight: float,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The ranking (Q, K) with the first n of each query re-ranked, and its new scores."""
    positions, scores = positions.copy(), (1 - weight) * scores.astype(np.float64)
    for q in range(len(positions)):
        first = positions[q, :n]
        joined = scores[q, :n] + weight * pairs.likeness(q, first)
        order = np.argsort(-joined, kind="stable")
        positions[q, :n], scores[q, :n] = first[order], joined[order]
        if progress:
            progress(q + 1, len(positions))
    return positions, scores


def features_of_both(
    queries: Embeddings,
    gallery: Embeddings,
    folder: str | Path | None = None,
    *,
    keep_queries: bool = False,
) -> BothFeatures:
    """The local features of the images of queries and gallery, made when they are needed.

    folder: where those of the gallery are kept, and of the queries if `keep_queries`.
    """

    def both(name: str) -> tuple[Features, Features]:
        extract = extractor(name, gallery, folder)
        of_queries = features_of(queries, extract, folder if keep_queries else None)
        return of_queries.of, features_of(gallery, extract, folder).of

    return both


def folder_of(where: str | Path) -> Path | None:
    """Where the local features of an index or of embeddings are kept; None if it is no folder."""
    return Path(where) / LOCAL if Path(where).is_dir() else None


def all_features(vectors: Embeddings, folder: str | Path | None = None) -> AllFeatures:
    """The local features of the images of these vectors, kept in `folder`; see `features_of`."""
    return lambda name: features_of(vectors, extractor(name, vectors, folder), folder).of


def of_subsets(features: AllFeatures, queries: np.ndarray, gallery: np.ndarray) -> BothFeatures:
    """The features of queries and gallery that are some of the images, at these positions."""

    def both(name: str) -> tuple[Features, Features]:
        found = features(name)
        return lambda at: found(queries[list(at)]), lambda at: found(gallery[list(at)])

    return both


def extractor(
    name: str, gallery: Embeddings | None = None, folder: str | Path | None = None
) -> Extractor:
    """What makes the features of that name. UsageError: none of FEATURES.

    gallery: for tokens, whose network it names and whose axes it gives. DataError: it names none.
    """
    if name not in FEATURES:
        raise UsageError(f"features={name}: choose one of {', '.join(FEATURES)}")
    if name == "sift":
        return Sift()
    from vizsla.embed.token_features import Tokens
    from vizsla.model.open_model import recorded_embedder

    if gallery is None:
        raise DataError("tokens are those of the gallery's model: give its embeddings")
    embedder = recorded_embedder(gallery.source.model, gallery.model_id, "the gallery")
    return Tokens.of(embedder, gallery, folder)
