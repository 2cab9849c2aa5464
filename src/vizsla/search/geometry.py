"""Two images' local features → the points that match, and the geometry that they agree on.

Matches are mutual nearest neighbours that pass the ratio test (Lowe, 2004). A similarity, an
affine map or a homography is fitted to them by RANSAC, the same one on every run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vizsla.embed.local_features import LocalFeatures, opencv

LEAST = 5  # matches, and inliers, below which there is no geometry
MAX_SCALE = 12.0  # of one image to the other
TRIES, CERTAINTY = 2000, 0.995  # of RANSAC


@dataclass(frozen=True)
class Rule:
    """How evidence becomes a probability: 1 / (1 + exp(-(bias + Σ weight · value)))."""

    bias: float
    weights: dict[str, float]


# Ratio test: the greatest distance to the nearest, over that to the second nearest descriptor.
RATIOS = {"sift": 0.85, "tokens": 0.95}
# Fitted by benchmarks/closer.py to pairs made of training images, one right and hundreds of wrong
# ones for each query, as in a gallery of hundreds. No weight may be negative.
RULES = {
    "sift": Rule(-9.6, {"log inliers": 1.13, "inlier share": 11.41, "area": 4.55}),
    "tokens": Rule(-6.79, {"log inliers": 2.99, "inlier share": 2.42, "area": 0.0}),
}


@dataclass(frozen=True, eq=False)
class Geometry:
    """What two images have in common.

    a, b: (m, 2) the inliers' points in each image, in its pixels. matrix: (3, 3) from a to b; None
    without geometry. matches: how many there were before RANSAC. probability: of showing one thing.
    """

    a: np.ndarray
    b: np.ndarray
    matrix: np.ndarray | None
    matches: int
    probability: float


NONE = np.zeros((0, 2), np.float32)


def geometry_of(a: LocalFeatures, b: LocalFeatures, model: str = "similarity") -> Geometry:
    """The geometry that two images' matches agree on; probability 0 where there is none.

    model: one of MODELS.
    """
    at_a, at_b = mutual_matches(a, b)
    nothing = Geometry(NONE, NONE, None, len(at_a), 0.0)
    if len(at_a) < LEAST:
        return nothing
    p, q = a.points[at_a], b.points[at_b]
    matrix, inside = MODELS[model](p, q, b.reach)
    if matrix is None or not _is_plausible(matrix, a.size, b.size):
        return nothing
    inside &= _first_of_each_place(p, q)
    if inside.sum() < LEAST:
        return nothing
    values = evidence(p[inside], q[inside], len(p), a.size, b.size)
    return Geometry(p[inside], q[inside], matrix, len(p), probability(values, RULES[b.kind]))


def mutual_matches(a: LocalFeatures, b: LocalFeatures) -> tuple[np.ndarray, np.ndarray]:
    """(m,) positions in a and (m,) in b of descriptors that are each other's nearest."""
    none = np.zeros(0, np.int64)
    if min(len(a), len(b)) < 2 or a.descriptors.shape[1] != b.descriptors.shape[1]:
        return none, none
    cosines = a.unit @ b.unit.T  # (n, m)
    rows = np.arange(len(a))
    nearest = cosines.argmax(axis=1)
    mutual = cosines.argmax(axis=0)[nearest] == rows
    best = cosines[rows, nearest]
    cosines[rows, nearest] = -1
    second = cosines.max(axis=1)
    clear = 1 - best < RATIOS[b.kind] ** 2 * (1 - second)  # squared distances are 2 - 2 cosines
    kept = np.flatnonzero(mutual & clear)
    return kept, nearest[kept]


def evidence(
    p: np.ndarray, q: np.ndarray, matches: int, a: tuple[int, int], b: tuple[int, int]
) -> dict[str, float]:
    """The values of a rule, for inliers p and q (m, 2) of images of sizes a and b.

    area: of the image that is covered more, the share inside the hull of the inliers.
    """
    area = max(_hull(p) / (a[0] * a[1]), _hull(q) / (b[0] * b[1]))
    return {
        "log inliers": float(np.log(len(p))),
        "inlier share": len(p) / matches,
        "area": min(1.0, area),
    }


def probability(values: dict[str, float], rule: Rule) -> float:
    """Of what the rule was fitted to: that two images show one thing, or that one is a copy."""
    logit = rule.bias + sum(weight * values[name] for name, weight in rule.weights.items())
    return float(1 / (1 + np.exp(-logit)))


def _hull(points: np.ndarray) -> float:
    cv2 = opencv()
    return float(cv2.contourArea(cv2.convexHull(points.astype(np.float32))))


def _first_of_each_place(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """(m,) bool: SIFT gives a place several points; each pair of places counts once."""
    places = np.round(np.concatenate([p, q], axis=1) / 2)
    _, first = np.unique(places, axis=0, return_index=True)
    kept = np.zeros(len(p), bool)
    kept[first] = True
    return kept


def _is_plausible(matrix: np.ndarray, a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Not mirrored, not collapsed, and of a scale that could be seen: at a's centre."""
    x, y = a[0] / 2, a[1] / 2
    depth = matrix[2] @ [x, y, 1]
    if abs(depth) < 1e-6:
        return False
    place = matrix @ [x, y, 1] / depth
    slope = (matrix[:2, :2] - np.outer(place[:2], matrix[2, :2])) / depth
    area = np.linalg.det(slope)
    if area <= 0:
        return False
    long, short = np.linalg.svd(slope, compute_uv=False)
    return bool(1 / MAX_SCALE < np.sqrt(area) < MAX_SCALE and long < 3 * short)


# ── models ───────────────────────────────────────────────────────────────────────────────────────

Fitted = tuple[np.ndarray | None, np.ndarray]  # (3, 3) or None, and (m,) bool


def _by_ransac(estimator: str) -> Callable[[np.ndarray, np.ndarray, float], Fitted]:
    """A model of 4 or 6 numbers, by that function of OpenCV."""

    def fitted(p: np.ndarray, q: np.ndarray, reach: float) -> Fitted:
        cv2 = opencv()
        cv2.setRNGSeed(0)
        return _whole(*getattr(cv2, estimator)(
            p, q, method=cv2.RANSAC, ransacReprojThreshold=reach, maxIters=TRIES,
            confidence=CERTAINTY,
        ))  # fmt: skip

    return fitted


def _homography(p: np.ndarray, q: np.ndarray, reach: float) -> Fitted:
    """By MAGSAC++ (Barath et al., 2020), where this build of OpenCV has it."""
    cv2 = opencv()
    cv2.setRNGSeed(0)
    method = getattr(cv2, "USAC_MAGSAC", cv2.RANSAC)
    return _whole(*cv2.findHomography(
        p, q, method, reach, maxIters=TRIES, confidence=CERTAINTY
    ))  # fmt: skip


def _whole(matrix: Any, inside: Any) -> Fitted:
    if matrix is None or inside is None or not np.isfinite(matrix).all():
        return None, np.zeros(0, bool)
    whole = np.eye(3)
    whole[: len(matrix)] = matrix
    return whole, inside.ravel().astype(bool)


MODELS: dict[str, Callable[[np.ndarray, np.ndarray, float], Fitted]] = {
    "similarity": _by_ransac("estimateAffinePartial2D"),
    "affine": _by_ransac("estimateAffine2D"),
    "homography": _homography,
}
