"""Evidence that a query and its results are of one class, beside their cosines: shared neighbours.

A query and an image of another class may be similar by chance, but their nearest images are then
others. How far their neighbourhoods overlap says more where there are other queries too, since the
queries of a class that the gallery lacks are neighbours of each other.
"""

import dataclasses

import numpy as np

from vizsla.embed.embeddings import Embeddings
from vizsla.search import exact
from vizsla.search.knn_graph import build_graph
from vizsla.search.ranking import FEWER, NEAR, Ranking, without_self
from vizsla.search.refine import neighbourhoods, overlaps

K1 = 20  # nearest images by which queries and images are compared
MOST_IMAGES = 20_000  # of a gallery: for more, its graph of neighbours takes too long
BATCHES = (1, 2, 4, 8)  # in which queries are compared, to have fewer near by


def with_evidence(
    ranking: Ranking, queries: Embeddings, gallery: Embeddings, *, near: float | None = None
) -> Ranking:
    """The ranking with, for each result, the overlap (0 to 1) of its k-reciprocal neighbours with
    those of the query (Zhong et al., 2017), all queries and the gallery being one set.

    near: about as many other queries may be among the neighbours of a query, as a share: with more,
    the queries are compared in batches, or each alone. By default as many as there are. Large
    galleries, those with tiles and leave-one-out rankings get no evidence.
    """
    same_set = ranking.origin.get("same_set", False)
    if same_set or gallery.tiles is not None or not 2 <= len(gallery) <= MOST_IMAGES:
        return ranking
    queries, gallery = queries.of_images(ranking.queries), gallery.of_images(ranking.gallery)
    if [*queries.ids, *gallery.ids] != [*ranking.queries, *ranking.gallery]:
        return ranking  # of images without vectors
    graph = build_graph(gallery.vectors, K1)
    order = np.random.default_rng(0).permutation(len(queries))
    for count in BATCHES:
        batches = [np.sort(part) for part in np.array_split(order, count)]
        found = float(np.mean([_near(queries.vectors[part], gallery.vectors) for part in batches]))
        if near is None or found <= FEWER * near:
            break
    else:
        batches, found = [np.arange(len(queries))], 0.0
    evidence = np.full(ranking.positions.shape, np.nan)
    for part in batches:
        around = neighbourhoods(
            queries.vectors[part], gallery.vectors, graph, k1=K1, together=found > 0
        )
        evidence[part] = overlaps(around, ranking.positions[part])
    return dataclasses.replace(
        ranking, evidence=evidence, origin={**ranking.origin, NEAR: round(found, 6)}
    )


def _near(queries: np.ndarray, gallery: np.ndarray) -> float:
    """The mean share of other queries among the K1 nearest images of a query. Both unit rows."""
    Q, G = len(queries), len(gallery)
    k = min(K1, Q - 1)
    if k < 1:
        return 0.0
    at, others = exact.top_k(queries, queries, k + 1)
    _, others = without_self(at, others, np.arange(Q), k)
    _, images = exact.top_k(queries, gallery, min(K1, G))
    every = np.concatenate([others, images], axis=1)
    nearest = np.argsort(-every, axis=1, kind="stable")[:, :K1]
    return float((nearest < k).mean())
