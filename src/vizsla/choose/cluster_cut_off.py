"""A clustering → its cut-off: the one that agrees best with known labels or, without labels, the
one with the highest silhouette."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import adjusted_rand_score, silhouette_samples

from vizsla.errors import DataError
from vizsla.search import exact
from vizsla.search.clusters import CUT_OFFS, DEPTH, Fitted, fit
from vizsla.search.knn_graph import NeighbourGraph
from vizsla.search.merge_tree import UNKNOWN

DRAWS = 3
FEWEST_KNOWN = 20  # images; fewer say too little about the cut-off
SAMPLE = 4_000  # images whose silhouettes are computed
STEPS = 20  # cut-offs that are tried by silhouette
LEAST_WITHOUT_LABELS = 0.01  # the least similarity that is tried without labels


@dataclass(frozen=True)
class CutOff:
    """A cut-off. origin: how it was chosen, in words. ari: reached there, if chosen on labels."""

    value: float
    origin: str
    ari: float | None = None


@dataclass(frozen=True)
class OtherCutOff:
    """How many clusters a cut-off makes, and how many of them are of one image."""

    value: float
    clusters: int
    of_one_image: int


def other_cut_offs(fitted: Fitted, n_clusters: int) -> list[OtherCutOff]:
    """Up to three that make clearly more or fewer than `n_clusters` clusters, the finest first.

    With S images in a cluster on average, those that come nearest to S^(1/3), S^(2/3) and 3 S.
    """
    found: dict[int, OtherCutOff] = {}
    for value in fitted.cut_offs.tolist():
        sizes = np.bincount(fitted.at(value))
        found[len(sizes)] = OtherCutOff(value, len(sizes), int((sizes == 1).sum()))
    n = len(fitted.at(float(fitted.cut_offs[0])))
    size = n / n_clusters
    finer = [k for k in found if k > 1.2 * n_clusters]
    coarser = [k for k in found if 1 < k < n_clusters / 1.2]
    chosen = {
        min(among, key=lambda k: abs(np.log(n / k / wanted)))
        for wanted, among in (
            (size ** (1 / 3), finer), (size ** (2 / 3), finer), (3 * size, coarser),
        )
        if among
    }  # fmt: skip
    return [found[k] for k in sorted(chosen, reverse=True)]


def cut_off_by_silhouette(vectors: np.ndarray, fitted: Fitted, *, seed: int = 0) -> CutOff:
    """The one with the highest mean silhouette (Rousseeuw 1987) by cosine distance.

    Of more than SAMPLE images it is that of random ones among their neighbours. If it is not
    defined for any cut-off (all images in one cluster, or each alone) it is the middle one. None
    below LEAST_WITHOUT_LABELS is tried: a few clusters of nearly all images look compact.
    """
    rows, judged = _sample(vectors, seed)
    distances = np.maximum(1 - vectors[rows] @ vectors[rows].T, 0)
    np.fill_diagonal(distances, 0)
    candidates = fitted.cut_offs[fitted.cut_offs >= LEAST_WITHOUT_LABELS]
    candidates = candidates[:: max(1, len(candidates) // STEPS)]
    found = []
    for cut_off in candidates:
        clusters = np.unique(fitted.at(cut_off)[rows], return_inverse=True)[1]
        if 1 < clusters.max() + 1 < len(rows):
            values = silhouette_samples(distances, clusters, metric="precomputed")
            found.append((float(values[judged].mean()), float(cut_off)))
    best = max(found, key=lambda entry: entry[0], default=(0.0, float(np.median(candidates))))
    return CutOff(best[1], "by the silhouette, no labels")


def _sample(vectors: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of at most SAMPLE images, and which of them are judged: all, or random ones whose
    nearest DEPTH images are in the sample too."""
    n = len(vectors)
    if n <= SAMPLE:
        return np.arange(n), np.arange(n)
    drawn = np.random.default_rng((seed, 47)).permutation(n)[: SAMPLE // (DEPTH + 1)]
    nearest = exact.top_k(vectors[drawn], vectors, DEPTH + 1)[0]
    rows = np.union1d(nearest.ravel(), drawn)
    return rows, np.searchsorted(rows, drawn)


def learned_cut_off(
    vectors: np.ndarray, labels: Sequence[str | None], n: int, method: str, *, seed: int = 0
) -> CutOff:
    """The best by ARI on other images, of which all have labels: on draws of `n` of them.

    vectors: (M, D) unit rows, by the model of the images to cluster. DataError with fewer than two
    labels, or where no two images share one.
    """
    rows = np.flatnonzero([label is not None for label in labels])
    numbers = np.unique(np.array([str(labels[i]) for i in rows.tolist()]), return_inverse=True)[1]
    _require_labels(numbers, "the labelled images")
    curves = []
    for draw in range(DRAWS if n < len(rows) else 1):
        rng = np.random.default_rng((seed, 43, draw))
        part = np.sort(rng.permutation(len(rows))[:n])
        fitted = fit(vectors[rows[part]], method)
        curves.append([adjusted_rand_score(numbers[part], fitted.at(c)) for c in CUT_OFFS[method]])
    return _best(np.mean(curves, axis=0), method, f"learned on {len(rows):,} labelled images")


def cut_off_of_known(
    vectors: np.ndarray, known: np.ndarray, method: str, graph: NeighbourGraph | None = None
) -> CutOff | None:
    """The best by ARI for the known images among all, as if they were not known.

    known: (N,) see `clusters.fit`. None if they are too few.
    """
    rows = np.flatnonzero(known != UNKNOWN)
    things, counts = np.unique(known[rows], return_counts=True)
    if len(rows) < FEWEST_KNOWN or len(things) < 2 or counts.max() < 2:
        return None
    fitted = fit(vectors, method, graph=graph)
    curve = [adjusted_rand_score(known[rows], fitted.at(c)[rows]) for c in CUT_OFFS[method]]
    return _best(np.array(curve), method, f"chosen on {len(rows):,} known images")


def _best(curve: np.ndarray, method: str, origin: str) -> CutOff:
    best = int(curve.argmax())
    return CutOff(float(CUT_OFFS[method][best]), origin, float(curve[best]))


def _require_labels(numbers: np.ndarray, what: str) -> None:
    counts = np.bincount(numbers) if len(numbers) else np.zeros(1, int)
    if len(counts) < 2 or counts.max() < 2:
        raise DataError(
            f"{what} have {len(counts)} labels, the most common of {counts.max()} images: "
            "choosing a cut-off needs two labels, and two images of one"
        )
