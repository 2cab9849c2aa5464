"""Two images and the geometry between them → whether one holds pixels of the other.

A copy is a copy of pixels: where one image is laid over the other, edges and tones agree but for
what JPEG and resizing did. Two photos of one thing agree in few places, and roughly in many.
"""

from dataclasses import dataclass

import numpy as np

from vizsla.embed.local_features import opencv
from vizsla.search import geometry
from vizsla.search.geometry import Geometry, Rule

CELL = 16  # px, the side of the cells in which edges and tones are compared
EDGES = 8.0  # least strength of the edges in one of the images, for a cell to be compared
AGREES, CLOSELY = 0.95, 0.98  # correlation of edges that agree, and of those that agree closely
DIFFERS = 0.6  # correlation below which the edges differ
BOTH = 16.0  # least strength of the edges in both images, for a cell to count in `differ`
TONED, LEAST = 0.9, 4  # correlation in cells whose tones are compared, and the fewest such cells

# Fitted to pairs of training photos and pictures made of them, as `benchmarks/closer.py fit-copies`
# does it, but with photos that a set holds twice found by eye. Of two pairs with as many cells that
# agree, that with more inliers is less likely a copy: two photos of one floor have many, too.
RULE = Rule(
    -4.78,
    {
        "log inliers": -1.65, "inlier share": 9.4, "log area": 1.59, "log agree": 2.3,
        "closely": 5.76, "differ": -6.23, "log tones": -1.86,
    },
)  # fmt: skip
SURE = 0.8  # probability from which a pair is a copy


@dataclass(frozen=True)
class Cells:
    """The n cells between the inliers in which one of the images has edges.

    correlation: (n,) of the edges of both images. weaker: (n,) the strength of the edges in the
    image that has the weaker ones. a, b: (n,) the mean grey of the larger view, and of the other.
    """

    correlation: np.ndarray
    weaker: np.ndarray
    a: np.ndarray
    b: np.ndarray


def share_of_same_pixels(found: Geometry, a: np.ndarray, b: np.ndarray) -> float:
    """The share of the cells between the inliers in which the edges agree; 0 if it is no copy.

    a, b: (H, W) float32 grey images of the sizes that the geometry was found in.
    """
    cells = compared(found, a, b)
    sizes = [(image.shape[1], image.shape[0]) for image in (a, b)]
    values = evidence(found, cells, sizes[0], sizes[1])
    if values is None or geometry.probability(values, RULE) < SURE:
        return 0.0
    return float((cells.correlation >= AGREES).mean())


def evidence(
    found: Geometry, cells: Cells, a: tuple[int, int], b: tuple[int, int]
) -> dict[str, float] | None:
    """The values of RULE; None where too little can be compared.

    a, b: (width, height) of the images. log inliers, inlier share, log area: as in
    `geometry.evidence`. log agree: of the number of cells whose edges agree. closely: the share of
    these that agree closely. differ: of cells with edges in both images the share that differs; 1
    without such cells. log tones: of the median distance of the cells' mean greys (0 to 255) from a
    linear function of those of the larger view, where edges nearly agree (TONED).
    """
    toned = cells.correlation >= TONED
    if toned.sum() < LEAST:
        return None
    ours, others = (mean[toned] - mean[toned].mean(dtype=float) for mean in (cells.a, cells.b))
    slope = ours @ others / max(ours @ ours, 1e-9)  # they may all be of one tone
    tones = np.median(np.abs(others - slope * ours))
    agree = int((cells.correlation >= AGREES).sum())
    in_both = cells.correlation[cells.weaker > BOTH]
    values = geometry.evidence(found.a, found.b, found.matches, a, b)
    return {
        "log inliers": values["log inliers"],
        "inlier share": values["inlier share"],
        "log area": float(np.log(values["area"] + 1e-3)),
        "log agree": float(np.log(agree + 1)),
        "closely": float((cells.correlation >= CLOSELY).sum() / max(1, agree)),
        "differ": float((in_both < DIFFERS).mean()) if len(in_both) else 1.0,
        "log tones": float(np.log(tones + 0.1)),
    }


def compared(found: Geometry, a: np.ndarray, b: np.ndarray) -> Cells:
    """Both images in each cell, after the larger view is warped onto the other one."""
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
    tones = [cv2.blur(image, (CELL, CELL)) for image in (laid, b)]
    b = cv2.GaussianBlur(b, (0, 0), 0.7)
    sums = [np.zeros(b.shape, np.float32)] * 3
    for across, down in ((1, 0), (0, 1)):
        x, y = (cv2.Sobel(side, cv2.CV_32F, across, down) for side in (laid, b))
        sums = [
            total + cv2.blur(value, (CELL, CELL))
            for total, value in zip(sums, (x * y, x * x, y * y), strict=True)
        ]
    both, of_a, of_b = sums[0], sums[1].clip(0), sums[2].clip(0)
    half = CELL // 2
    cells = np.zeros(b.shape, bool)
    cells[half::CELL, half::CELL] = True
    cells &= (inside > 0) & (np.maximum(of_a, of_b) > EDGES**2)
    return Cells(
        both[cells] / np.sqrt(of_a[cells] * of_b[cells] + 1e-3),
        np.sqrt(np.minimum(of_a, of_b)[cells]),
        tones[0][cells],
        tones[1][cells],
    )


def _scale(matrix: np.ndarray) -> float:
    return float(abs(np.linalg.det(matrix[:2, :2])) ** 0.5)
