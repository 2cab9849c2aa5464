"""Embeddings → findings that need a model: pairs of almost equal vectors, and doubtful labels.

Knows unit vectors and labels, no files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg, optimize

from vizsla.data.imageset import ImageSet
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError
from vizsla.search.ranking import without_self

DENSITY_RANK = 10  # the distance of the neighbour of this rank measures the local density
NEAR_SHARE = 1 / 3  # of that distance: two images below it count as almost the same
KERNEL_SCALE = 2.0  # of the kernel exp(KERNEL_SCALE · (cosine − 1)) on centred vectors
LABEL_NOISE = 0.1  # variance: 0 trusts every label fully
LOGIT_SCALE = 5.0  # of fits, before confusions between classes are learned
RIDGE = 5.0  # pulls the learned confusions towards none
FOLDS = 3
TEMPERATURE = 2.0  # of the doubt
MAX_CONFUSION_CLASSES = 200  # above it no confusions are learned (C² numbers, few examples each)
MAX_KERNEL = 6000  # images of one kernel matrix (140 MB); more are split into stratified parts


def stacked(sets: Mapping[str, ImageSet], embeddings: Mapping[str, Embeddings]) -> np.ndarray:
    """(N, D) float32 for the images of all sets in order; rows of nan for those without a vector.

    DataError if roles were embedded by different models.
    """
    models = {found.model_id for found in embeddings.values()}
    if len(models) != 1:
        raise DataError(
            f"embeddings by {len(models)} models cannot be compared: embed all images with one"
        )
    dim = next(iter(embeddings.values())).dim
    rows = []
    for role, images in sets.items():
        vectors = np.full((len(images), dim), np.nan, np.float32)
        if role in embeddings:
            places = {name: i for i, name in enumerate(images.ids)}
            found = embeddings[role]
            known = [k for k, name in enumerate(found.ids) if name in places]
            vectors[[places[found.ids[k]] for k in known]] = found.vectors[known]
        rows.append(vectors)
    return np.concatenate(rows)


# ── almost equal vectors ─────────────────────────────────────────────────────────────────────────


def near_pairs(vectors: np.ndarray) -> list[tuple[int, int, float]]:
    """(a, b, cosine), a < b: nearest neighbours much nearer to each other than to all others.

    vectors: (N, D) unit rows, each photo once. Cosines of different models mean different things,
    so the distance is measured against that of the 10th neighbours of both.
    """
    from vizsla.search import exact  # loads torch

    k = min(DENSITY_RANK, len(vectors) - 1)
    if k < 3:  # too few to know what is usual
        return []
    positions, scores = exact.top_k(vectors, vectors, k + 1)
    nearest, scores = without_self(positions, scores, np.arange(len(vectors)), k)
    distances = np.maximum(1 - scores, 0)
    usual = distances[:, -1]
    pairs = {}
    for a, b, distance in zip(
        np.repeat(np.arange(len(vectors)), k), nearest.ravel(), distances.ravel(), strict=True
    ):
        if a in nearest[b] and distance <= NEAR_SHARE * np.sqrt(usual[a] * usual[b]):
            pairs[int(min(a, b)), int(max(a, b))] = 1 - float(distance)
    return [(a, b, cosine) for (a, b), cosine in sorted(pairs.items())]


# ── doubtful labels ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Suspect:
    """The position of an image whose label contradicts similar images.

    fit, other_fit: probability of its label and of the other class, given all other images.
    doubt: what suspects are ranked by; 0 for a certain label.
    """

    i: int
    label: str
    fit: float
    other: str
    other_fit: float
    doubt: float


def suspects(vectors: np.ndarray, labels: Sequence[str], *, seed: int = 0) -> list[Suspect]:
    """Images that resemble another class more than their own, the most doubtful first.

    vectors: (N, D) unit rows, without copies of one label, which would support each other.
    Every image is judged by all others (kernel ridge regression on the classes, leave-one-out in
    closed form, then the confusions between classes), so its own label has no influence.
    Classes of one image are not judged.
    """
    classes, y = np.unique(np.asarray(labels, dtype=object), return_inverse=True)
    counts = np.bincount(y)
    judged = np.flatnonzero(counts[y] > 1)
    if len(np.unique(y[judged])) < 2:
        return []
    fits = np.empty((len(judged), len(classes)))
    for part in _parts(y[judged], seed):
        fits[part] = _fits_without_self(vectors[judged[part]], y[judged[part]], len(classes))
    logs = _calibrated(fits, y[judged], seed)
    doubts = -_log_softmax(logs / TEMPERATURE)[np.arange(len(judged)), y[judged]]
    found = []
    for i, row, doubt in zip(judged, np.exp(logs), doubts, strict=True):
        label, best = int(y[i]), int(row.argmax())
        if best != label:
            fit, other = float(row[label]), float(row[best])
            found.append(Suspect(int(i), classes[label], fit, classes[best], other, float(doubt)))
    return sorted(found, key=lambda suspect: (-suspect.doubt, suspect.i))


def _parts(y: np.ndarray, seed: int) -> list[np.ndarray]:
    """Positions in parts of at most MAX_KERNEL, each class spread evenly over them."""
    n_parts = -(-len(y) // MAX_KERNEL)
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    return [np.sort(order[k::n_parts]) for k in range(n_parts)]


def _fits_without_self(vectors: np.ndarray, y: np.ndarray, n_classes: int) -> np.ndarray:
    """(N, C): how well each image fits each class, by a regression without that image.

    With A = (K + LABEL_NOISE · I)⁻¹ the residual without i is (A Y)ᵢ / Aᵢᵢ (Rasmussen and Williams
    2006, equation 5.12).
    """
    centred = vectors - vectors.mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    kernel = centred @ centred.T
    np.exp(KERNEL_SCALE * (kernel - 1), out=kernel)
    kernel.flat[:: len(kernel) + 1] += LABEL_NOISE
    inverse = linalg.inv(kernel, overwrite_a=True, check_finite=False)
    targets = np.full((len(y), n_classes), -1 / n_classes)
    targets[np.arange(len(y)), y] += 1
    residuals = (inverse @ targets) / np.diag(inverse)[:, None]
    fits: np.ndarray = targets - residuals + 1 / n_classes
    return fits


def _calibrated(fits: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """(N, C) log-probabilities of the classes, given the fits.

    That a longsleeve fits the class shirt says little if many do. A softmax regression from fits
    to labels, regularised to the identity by RIDGE, learns such confusions; each image is judged
    by one that was learned on the other folds (FOLDS).
    """
    n, classes = fits.shape
    inputs = np.column_stack([LOGIT_SCALE * fits, np.ones(n)])
    weights = np.eye(classes + 1, classes)
    logs = np.empty_like(fits)
    fold = np.random.default_rng(seed).permutation(n) % FOLDS
    for k in range(FOLDS):
        inside, outside = fold == k, fold != k
        if classes <= MAX_CONFUSION_CLASSES:
            weights = _softmax_regression(inputs[outside], y[outside], classes)
        logs[inside] = _log_softmax(inputs[inside] @ weights)
    return logs


def _softmax_regression(inputs: np.ndarray, y: np.ndarray, classes: int) -> np.ndarray:
    """(K, C) weights; inputs: (N, K), the last column a constant."""
    identity = np.eye(inputs.shape[1], classes)
    hits = np.eye(classes)[y]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        off = flat.reshape(identity.shape) - identity
        logs = _log_softmax(inputs @ (identity + off))
        slope = inputs.T @ (np.exp(logs) - hits) + RIDGE * off
        return RIDGE / 2 * float((off**2).sum()) - float((logs * hits).sum()), slope.ravel()

    found = optimize.minimize(
        loss, identity.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 30}
    )
    weights: np.ndarray = found.x.reshape(identity.shape)
    return weights


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=1, keepdims=True)
    logs: np.ndarray = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logs
