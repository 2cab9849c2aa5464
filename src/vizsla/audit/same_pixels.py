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
MIN_CELLS = 15  # that must agree: photos on one rug or floor agree in a few
MIN_SHARE, MOST_SHARE = (
    0.2,
    0.5,
)  # of the cells that must agree: if the geometry is sure, and if not
COVERED = 0.1  # share of cells that differ, from which a part must be covered, or none is a copy
MIN_CLEAR = 0.8  # see `are_clear`
MAX_OFF = 0.5  # px: the median inlier of a copy is so near to where the geometry sends it


def share_of_same_pixels(found: Geometry, a: np.ndarray, b: np.ndarray, *, sure: bool) -> float:
    """The share of the cells between the inliers in which the edges agree; 0 if it is no copy.

    a, b: (H, W) float32 grey images of the sizes that the geometry was found in. sure: whether the
    geometry alone decides that both show one thing.
    """
    if _median_offset(found) > MAX_OFF:
        return 0.0
    cells = correlations(found, a, b)
    agree = cells >= AGREES
    if agree.sum() < MIN_CELLS or agree.mean() < (MIN_SHARE if sure else MOST_SHARE):
        return 0.0
    if (cells < DIFFERS).mean() > COVERED and not are_clear(cells):
        return 0.0
    return float(agree.mean())


def are_clear(cells: np.ndarray) -> bool:
    """Whether the correlations (n,) are those of a copy that is covered in part: of the cells that
    do not differ most agree, and of these many do so closely. Those of two photos are spread."""
    agree = cells >= AGREES
    clear = agree.sum() / (cells >= DIFFERS).sum() + (cells >= CLOSELY).sum() / agree.sum()
    return bool(clear >= MIN_CLEAR)


def _median_offset(found: Geometry) -> float:
    """Of the inliers, from where the geometry sends them, in px of the image that shows them
    smaller."""
    assert found.matrix is not None
    sent = np.c_[found.a, np.ones(len(found.a))] @ found.matrix.T
    offsets = np.linalg.norm(sent[:, :2] / sent[:, 2:] - found.b, axis=1)
    return float(np.median(offsets) / max(1.0, _scale(found.matrix)))


def _scale(matrix: np.ndarray) -> float:
    return float(abs(np.linalg.det(matrix[:2, :2])) ** 0.5)


def correlations(found: Geometry, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) of the edges of both images, in each cell between the inliers that has edges.

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
    cells &= (inside > 0) & (np.maximum(of_a, of_b) > 8.0**2)  # there are edges in one of them
    found_in: np.ndarray = both[cells] / np.sqrt(of_a[cells] * of_b[cells] + 1e-3)
    return found_in
