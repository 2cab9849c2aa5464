"""Two images and the geometry between them → whether one holds pixels of the other.

A copy is a copy of pixels: where one image is laid over the other, edges agree but for what JPEG
and resizing did. Two photos of one thing agree here and there, and nearly in many places.
"""

import numpy as np

from vizsla.embed.local_features import opencv
from vizsla.search.geometry import Geometry

CELL = 16  # px of a cell in which the edges of both are compared
AGREES, CLOSELY = 0.95, 0.98  # correlation of the edges in a cell of a copy; in most of its cells
DIFFERS = 0.6  # correlation below which a cell shows something else
COVERED = 0.1  # share of cells that differ, above which a part is covered, or none is a copy
MAX_OFF = 0.5  # px: the median inlier of a copy is so near to where the geometry sends it
# From here on: cells that must agree (photos on one rug agree in a few), their share, clearness.
EXACT_CELLS, EXACT_SHARE, EXACT = 6, 0.3, 1.5  # of a copy beyond doubt
MIN_CELLS, MIN_SHARE, UNSURE_SHARE = 15, 0.2, 0.5  # of another one
# Of many points in the very place that the geometry gives them:
PLACED, PLACED_POINTS, PLACED_CELLS = 0.2, 18, 8  # px at most in the median, points, cells
# Of many points in images that nowhere differ between them:
SAME, SAME_POINTS, SAME_CELLS, SAME_SHARE = 0.02, 30, 10, 0.15  # share that differs, at most
# Where edges are strong JPEG changes little, so there nearly all uncovered cells of a copy agree:
STRONG, STRONG_CELLS, STRONG_SHARE, STRONG_OFF = 56.0, 10, 0.8, 0.4
CLEAN, CLEAN_CELLS, CLEAN_SHARE, CLEAN_OFF = 32.0, 5, 0.95, 0.45  # or fewer, but all of them
SURE, VERY_SURE = 0.5, 0.99  # probability by geometry
CLEAR, UNSURE_CLEAR = 0.7, 1.0  # of a copy that is covered: if geometry is very sure, and if not


def share_of_same_pixels(found: Geometry, a: np.ndarray, b: np.ndarray) -> float:
    """The share of the cells between the inliers in which the edges agree; 0 if it is no copy.

    a, b: (H, W) float32 grey images of the sizes that the geometry was found in.
    """
    offset, points = _median_offset(found), len(found.a)
    if offset > MAX_OFF:
        return 0.0
    (cells, edges), p = correlations(found, a, b), found.probability
    agree = cells >= AGREES
    if not agree.any():
        return 0.0
    n, share, clear = int(agree.sum()), float(agree.mean()), clearness(cells)
    if n >= EXACT_CELLS and share >= EXACT_SHARE and clear >= EXACT:
        return share
    if p >= SURE and (
        (offset <= STRONG_OFF and _agree_where(cells, edges >= STRONG, STRONG_CELLS, STRONG_SHARE))
        or (offset <= CLEAN_OFF and _agree_where(cells, edges >= CLEAN, CLEAN_CELLS, CLEAN_SHARE))
    ):
        return share
    if offset <= PLACED and points >= PLACED_POINTS and n >= PLACED_CELLS and share >= MIN_SHARE:
        return share
    differs = float((cells < DIFFERS).mean())
    is_same = p >= VERY_SURE and points >= SAME_POINTS and differs <= SAME
    if is_same and n >= SAME_CELLS and share >= SAME_SHARE:
        return share
    if n < MIN_CELLS or share < (MIN_SHARE if p >= SURE else UNSURE_SHARE):
        return 0.0
    if differs > COVERED and clear < (CLEAR if p >= VERY_SURE else UNSURE_CLEAR):
        return 0.0
    return share


def _agree_where(cells: np.ndarray, chosen: np.ndarray, n: int, share: float) -> bool:
    """Whether n of these cells agree, and this share of those that do not differ."""
    agree = int((cells[chosen] >= AGREES).sum())
    return agree >= n and agree >= share * int((cells[chosen] >= DIFFERS).sum())


def clearness(cells: np.ndarray) -> float:
    """From 0 to 2, of correlations (n,): the share that agrees of those that do not differ, plus
    the share that agrees closely of those that agree. In a copy, cells agree closely or, where it
    is covered, differ; those of two photos are spread."""
    agree = int((cells >= AGREES).sum())
    if not agree:
        return 0.0
    return float(agree / (cells >= DIFFERS).sum() + (cells >= CLOSELY).sum() / agree)


def _median_offset(found: Geometry) -> float:
    """Of the inliers, from where the geometry sends them, in px of the image that shows them
    smaller."""
    assert found.matrix is not None
    sent = np.c_[found.a, np.ones(len(found.a))] @ found.matrix.T
    offsets = np.linalg.norm(sent[:, :2] / sent[:, 2:] - found.b, axis=1)
    return float(np.median(offsets) / max(1.0, _scale(found.matrix)))


def _scale(matrix: np.ndarray) -> float:
    return float(abs(np.linalg.det(matrix[:2, :2])) ** 0.5)


def correlations(found: Geometry, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) of the edges of both images, in each cell between the inliers that has edges, and (n,)
    how strong they are in the image where they are stronger.

    The larger view of the two is brought to the smaller one.
    """
    cv2 = opencv()
    assert found.matrix is not None
    matrix, points = found.matrix, found.b
    if _scale(matrix) > 1:  # b shows it larger
        a, b, matrix, points = b, a, np.linalg.inv(matrix), found.a
    blurred = cv2.GaussianBlur(a, (0, 0), max(0.3, 0.5 / _scale(matrix)))
    size = b.shape[1], b.shape[0]
    laid = cv2.warpPerspective(blurred, matrix, size, flags=cv2.INTER_LINEAR)
    inside = np.zeros(b.shape, np.uint8)
    cv2.fillConvexPoly(inside, cv2.convexHull(np.round(points).astype(np.int32)), 1)
    b = cv2.GaussianBlur(b, (0, 0), 0.7)
    sums = [np.zeros(b.shape, np.float32)] * 3
    for across, down in ((1, 0), (0, 1)):
        x, y = (cv2.Sobel(side, cv2.CV_32F, across, down) for side in (laid, b))
        sums = [
            total + cv2.boxFilter(value, -1, (CELL, CELL))
            for total, value in zip(sums, (x * y, x * x, y * y), strict=True)
        ]
    both, of_a, of_b = sums
    half = CELL // 2
    cells = np.zeros(b.shape, bool)
    cells[half::CELL, half::CELL] = True
    stronger = np.maximum(of_a, of_b)
    cells &= (inside > 0) & (stronger > 8.0**2)  # there are edges in one of them
    found_in: np.ndarray = both[cells] / np.sqrt(of_a[cells].clip(0) * of_b[cells].clip(0) + 1e-3)
    return found_in, np.sqrt(stronger[cells])
