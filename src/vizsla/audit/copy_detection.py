"""Small grey images → which pairs show one photo: resized, compressed, cropped, mirrored, turned.

Knows nothing of files or labels. A blurred fingerprint of each image is compared with all others
in blocks of a matrix product. The images of close pairs are aligned by scaling and shifting, at
two sizes and, in case of doubt, at a third; only pairs whose edges agree at each size count.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

SIDE = 64  # px of a grey image; its sides are squashed to a square
COLOURS = 8  # px of a side of the two colour planes
FREQUENCIES = 10  # of a fingerprint, down and across; the mean is left out
MIN_COSINE = 0.75  # cosine of two fingerprints above which they are compared further
MIN_AGREEMENT = 0.87  # of edges; different images of similar things stay below .80
SURE_AGREEMENT = 0.95  # at SIDE px: above this the files need not be read again
FINAL_SIDE = 128  # px of the final comparison, if both files are that large
MIN_CONTRAST = 3.0  # grey levels (standard deviation) below which there is nothing to compare
BLOCK = 2048  # images; a block of similarities takes 16 MB
MAX_CANDIDATES = 20  # of an image within a block: a thousand copies still form one group
CHUNK = 64  # pairs aligned at once, so that they stay in the processor's cache
MIN_OVERLAP = 0.6  # share of either image that must be in the other one too

TURNS: dict[str, tuple[bool, bool, bool]] = {
    "as it is": (False, False, False),
    "mirrored": (False, False, True),
    "upside down": (False, True, True),
    "upside down, mirrored": (False, True, False),
    "turned right": (True, False, True),
    "turned left": (True, True, False),
    "turned right, mirrored": (True, False, False),
    "turned left, mirrored": (True, True, True),
}  # name → transposed, then flipped top to bottom, left to right

Box = tuple[float, float, float, float]  # top, bottom, left, right as shares of the sides
WHOLE: Box = (0, 1, 0, 1)
_MIDDLES: tuple[Box, ...] = ((0.03, 0.97, 0.03, 0.97), (0.06, 0.94, 0.06, 0.94))
_SIDES: tuple[Box, ...] = ((0.08, 1, 0, 1), (0, 0.92, 0, 1), (0, 1, 0.08, 1), (0, 1, 0, 0.92))
CROPS = {"as it is": _MIDDLES + _SIDES, "mirrored": _MIDDLES}
# a cropped copy is nearer to one of these parts of its original than to the whole


@dataclass(frozen=True)
class Match:
    """A pair of positions, a < b.

    turn: how b must be turned to look like a. similarity: correlation of their edges, at most 1.
    """

    a: int
    b: int
    turn: str
    similarity: float


def matches(
    grey: np.ndarray,
    colours: np.ndarray,
    read: Callable[[int], Image.Image | None],
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Match]:
    """All pairs that show one photo, in order; each with the turn that fits best.

    grey: (N, SIDE, SIDE) uint8. colours: (N, 2, COLOURS, COLOURS), Cb and Cr less 128. read: the
    file's image again in mode L, None if it cannot be read. Work grows with N², memory with N.
    """
    blocks = [grey[i : i + BLOCK] for i in range(0, len(grey), BLOCK)]
    contrasts = [block.std(axis=(1, 2), dtype=np.float32) for block in blocks]
    kept = np.flatnonzero(np.concatenate([np.zeros(0), *contrasts]) >= MIN_CONTRAST)
    grey, colours = grey[kept], colours[kept]
    n_blocks = -(-len(grey) // BLOCK)
    steps = len(TURNS) * n_blocks * (n_blocks + 1) // 2
    best: dict[tuple[int, int], Match] = {}
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="compare") as pool:
        for step, (turn, found) in enumerate(_candidates(grey), 1):
            chunks = (slice(i, i + CHUNK) for i in range(0, len(found.a), CHUNK))
            verify = functools.partial(_verified, turn=turn, grey=grey, colours=colours)
            for verified in pool.map(verify, map(found.part, chunks)):
                for match in verified:
                    known = best.setdefault((match.a, match.b), match)
                    margin = 0.01 * (known.turn == "as it is")
                    if match.similarity > known.similarity + margin:
                        best[match.a, match.b] = match
            if progress:
                progress(step, steps)
        in_order = sorted(best.values(), key=lambda match: (match.a, match.b))
        moved = (replace(m, a=int(kept[m.a]), b=int(kept[m.b])) for m in in_order)
        return [m for m in pool.map(lambda m: _verified_at_full_size(m, read), moved) if m]


def turned(images: np.ndarray, turn: str) -> np.ndarray:
    """(…, S, S) images, each turned or mirrored."""
    transposed, upside_down, mirrored = TURNS[turn]
    if transposed:
        images = images.swapaxes(-2, -1)
    return images[..., :: -1 if upside_down else 1, :: -1 if mirrored else 1]


# ── fingerprints ─────────────────────────────────────────────────────────────────────────────────


def fingerprints(images: np.ndarray, box: Box = WHOLE) -> np.ndarray:
    """(N, F) float32 unit vectors of a part of (N, S, S) images.

    Low frequencies of the cosine transform, the higher ones with more weight, and the square root
    of all, so that no single edge dominates.
    """
    side = images.shape[1]
    down, across = _cosines(side, *box[:2]), _cosines(side, *box[2:])
    waves = down @ images.astype(np.float32) @ across.T  # (N, FREQUENCIES, FREQUENCIES)
    u = np.arange(FREQUENCIES)
    waves *= np.hypot(u[:, None], u[None]).astype(np.float32)  # removes the mean
    prints = waves.reshape(len(waves), -1)
    prints = np.sign(prints) * np.sqrt(np.abs(prints))
    lengths: np.ndarray = np.linalg.norm(prints, axis=1, keepdims=True)
    return prints / np.maximum(lengths, 1e-6)


def _cosines(side: int, start: float, stop: float) -> np.ndarray:
    """(FREQUENCIES, side): cosine waves over a part of a side, zero outside of it."""
    start, stop = start * side, stop * side
    left = np.maximum(np.arange(side), start)
    right = np.minimum(np.arange(side) + 1, stop)
    cover = np.clip(right - left, 0, 1)  # the share of each pixel that is inside
    middle = (np.clip((left + right) / 2, start, stop) - start) / (stop - start)
    waves = np.cos(np.pi * np.arange(FREQUENCIES)[:, None] * middle) * cover
    return (waves / cover.sum()).astype(np.float32)


# ── candidates ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Pairs:
    """Positions a < b, (P,); placement: (P, 4), see `_align`."""

    a: np.ndarray
    b: np.ndarray
    placement: np.ndarray

    def part(self, which: slice | np.ndarray) -> "_Pairs":
        return _Pairs(self.a[which], self.b[which], self.placement[which])


def _candidates(grey: np.ndarray) -> Iterator[tuple[str, _Pairs]]:
    """Pairs whose fingerprints are close, for each two blocks and each turn."""
    starts = range(0, len(grey), BLOCK)
    for first in starts:
        block = grey[first : first + BLOCK]
        views = {box: fingerprints(block, box) for box in (WHOLE, *CROPS["as it is"])}
        for second in starts[first // BLOCK :]:
            for turn in TURNS:
                other = turned(grey[second : second + BLOCK], turn)
                found = _close_in_block(views, other, CROPS.get(turn, ()), same=first == second)
                yield turn, _Pairs(found.a + first, found.b + second, found.placement)


def _close_in_block(
    views: dict[Box, np.ndarray], other: np.ndarray, crops: Sequence[Box], *, same: bool
) -> _Pairs:
    """Whole against whole, and the crops of either image against the whole other one.

    same: both are one block, so each pair would be found twice, and each image with itself.
    """
    whole = fingerprints(other)
    places: list[np.ndarray] = []
    rows = []
    for placement, x, y in _comparisons(views, other, whole, crops):
        similar = x @ y.T  # (block, block)
        at = np.flatnonzero(similar >= MIN_COSINE)
        a, b = np.divmod(at, len(y))
        if same:
            kept = a < b
            a, b, at = a[kept], b[kept], at[kept]
        rows.append((a, b, similar.flat[at], np.full(len(at), len(places))))
        places.append(placement)
    a, b, similar, which = (np.concatenate(column) for column in zip(*rows, strict=True))
    kept = _best_of_each(a, b, similar)
    return _Pairs(a[kept], b[kept], np.stack(places).astype(np.float32)[which[kept]])


def _comparisons(
    views: dict[Box, np.ndarray], other: np.ndarray, whole: np.ndarray, crops: Sequence[Box]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (placement to start from, a's fingerprints, b's)."""
    yield _placement_of(WHOLE), views[WHOLE], whole
    for box in crops:
        scale, shift = _placement_of(box)[0::2], _placement_of(box)[1::2]
        yield _placement_of(box), views[box], whole
        back = np.stack([1 / scale, -shift / scale], axis=1).ravel()
        yield back, views[WHOLE], fingerprints(other, box)


def _placement_of(box: Box) -> np.ndarray:
    """The placement of the box, as in `_align`."""
    top, bottom, left, right = box
    return np.array([bottom - top, top + bottom - 1, right - left, left + right - 1])


def _best_of_each(a: np.ndarray, b: np.ndarray, similar: np.ndarray) -> np.ndarray:
    """Each pair once, where it is most similar; at most MAX_CANDIDATES pairs of each a."""
    order = np.lexsort((-similar, b, a))
    order = order[(np.diff(a[order], prepend=-1) != 0) | (np.diff(b[order], prepend=-1) != 0)]
    order = order[np.lexsort((-similar[order], a[order]))]
    rank = np.arange(len(order)) - np.searchsorted(a[order], a[order])
    return order[rank < MAX_CANDIDATES]


# ── alignment ────────────────────────────────────────────────────────────────────────────────────


def _verified(pairs: _Pairs, turn: str, grey: np.ndarray, colours: np.ndarray) -> list[Match]:
    """The pairs whose edges agree at SIDE / 2 and at SIDE px, and whose colours agree."""
    a = grey[pairs.a].astype(np.float32)
    b = turned(grey[pairs.b], turn).astype(np.float32)
    placement, similarity = _align(_halved(a), _halved(b), pairs.placement, steps=3)
    kept = (similarity >= MIN_AGREEMENT) & ~_colours_differ(
        colours[pairs.a], turned(colours[pairs.b], turn)
    )
    pairs, a, b = pairs.part(kept), a[kept], b[kept]
    placement, similarity = _align(a, b, placement[kept], steps=2)
    return [
        Match(int(i), int(j), turn, float(value))
        for i, j, value in zip(pairs.a, pairs.b, similarity, strict=True)
        if value >= MIN_AGREEMENT
    ]


def _verified_at_full_size(match: Match, read: Callable[[int], Image.Image | None]) -> Match | None:
    """The match with its similarity at up to FINAL_SIDE px, None if that is too low."""
    if match.similarity >= SURE_AGREEMENT:
        return match
    images = read(match.a), read(match.b)
    if images[0] is None or images[1] is None:
        return None
    side = max(SIDE // 2, min(FINAL_SIDE, *images[0].size, *images[1].size))
    a, b = (_resized(image, side)[None] for image in images if image)
    b = turned(b, match.turn)
    placement = _placement_of(WHOLE).astype(np.float32)[None]
    for size, steps in ((SIDE // 2, 5), (SIDE, 2), (side, 2)):
        small = [np.asarray(_resized(Image.fromarray(x[0]), size))[None] for x in (a, b)]
        placement, similarity = _align(small[0], small[1], placement, steps=steps)
    return (
        Match(match.a, match.b, match.turn, float(similarity[0]))
        if similarity >= MIN_AGREEMENT
        else None
    )


def _resized(image: Image.Image, side: int) -> np.ndarray:
    small = image.resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def _halved(images: np.ndarray) -> np.ndarray:
    rows = (images[:, ::2] + images[:, 1::2]) / 2
    return (rows[:, :, ::2] + rows[:, :, 1::2]) / 2


def _colours_differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P,) bool: whether both are coloured, but differently. A grey copy does not count.

    a, b: (P, 2, COLOURS, COLOURS).
    """
    a, b = a.astype(np.float32), b.astype(np.float32)
    strength = [(x**2).mean(axis=(1, 2, 3)) for x in (a, b)]
    difference = ((a - b) ** 2).mean(axis=(1, 2, 3))
    coloured = np.minimum(*strength) > 4**2
    return coloured & (difference > 12**2) & (difference > 0.3 * (strength[0] + strength[1]))


def _align(
    a: np.ndarray, b: np.ndarray, placement: np.ndarray, *, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scales and shifts a, each axis separately, until it fits b; (placement, (P,) similarity).

    a, b: (P, S, S) float32. placement: (P, 4) scale and shift, down then across: a pixel of b at
    -1…1 is at scale · pixel + shift of a. Gauss-Newton (Lucas and Kanade 1981) on the squared
    difference of the two, each brought to mean 0 and deviation 1 where they overlap.
    """
    grid = np.linspace(-1, 1, a.shape[1], dtype=np.float32)
    for _ in range(steps):
        warped, inside = _warped(a, placement, grid)
        weight = np.maximum(inside.sum(axis=(1, 2), keepdims=True), 1)
        x, y = _standardised(warped, inside, weight), _standardised(b, inside, weight)
        placement = placement + _gauss_newton_step(x, y, inside, grid)
    warped, inside = _warped(a, placement, grid)
    similarity = _edge_correlation(warped, b, inside)
    similarity[_overlap_share(placement) < MIN_OVERLAP] = 0
    return placement, similarity


def _warped(
    a: np.ndarray, placement: np.ndarray, grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """a at the places of b's pixels, and whether each is inside a (1 or 0); both (P, S, S)."""
    side = len(grid)
    pixels = np.arange(side, dtype=np.float32)
    weights, insides = [], []
    for k in (0, 2):  # down, across
        at = (placement[:, k, None] * grid + placement[:, k + 1, None] + 1) * (
            (side - 1) / 2
        )  # (P, S)
        insides.append(((at >= -0.5) & (at <= side - 0.5)).astype(np.float32))
        at = np.clip(at, 0, side - 1)[:, :, None]
        weights.append(np.maximum(0, 1 - np.abs(at - pixels)))  # (P, S, S), bilinear
    warped = weights[0] @ a @ weights[1].swapaxes(1, 2)
    return warped, insides[0][:, :, None] * insides[1][:, None, :]


def _standardised(values: np.ndarray, inside: np.ndarray, weight: np.ndarray) -> np.ndarray:
    mean = (values * inside).sum(axis=(1, 2), keepdims=True) / weight
    centred = (values - mean) * inside
    deviation = np.sqrt((centred**2).sum(axis=(1, 2), keepdims=True) / weight)
    return centred / np.maximum(deviation, 1e-3)


def _gauss_newton_step(
    x: np.ndarray, y: np.ndarray, inside: np.ndarray, grid: np.ndarray
) -> np.ndarray:
    """(P, 4): the change of the placement that brings x nearer to y."""
    down, across = (slope * inside for slope in _gradients(x))
    moved = [down * grid[:, None], down, across * grid, across]
    gradients = np.stack(moved, axis=1).reshape(len(x), 4, len(grid) ** 2)  # (P, 4, S²)
    normal = gradients @ gradients.swapaxes(1, 2)
    damping = 1e-3 * np.trace(normal, axis1=1, axis2=2) + 1e-3
    normal += np.eye(4, dtype=np.float32) * damping[:, None, None]
    wrong = gradients @ ((y - x) * inside).reshape(len(x), len(grid) ** 2, 1)
    return np.clip(np.linalg.solve(normal, wrong)[:, :, 0], -0.1, 0.1)


def _gradients(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes of (P, S, S) images down and across, in grey levels per half side."""
    down, across = np.zeros_like(x), np.zeros_like(x)
    step = 4 / (x.shape[1] - 1)  # two pixels
    down[:, 1:-1] = (x[:, 2:] - x[:, :-2]) / step
    across[:, :, 1:-1] = (x[:, :, 2:] - x[:, :, :-2]) / step
    return down, across


def _edge_correlation(x: np.ndarray, y: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(P,) float32: correlation of both slightly blurred images' gradients where they overlap."""
    joint, separate = 0, [0, 0]
    for p, q in zip(_gradients(_blurred(x)), _gradients(_blurred(y)), strict=True):
        p, q = p * inside, q * inside
        joint = joint + (p * q).sum(axis=(1, 2))
        separate = [separate[0] + (p**2).sum(axis=(1, 2)), separate[1] + (q**2).sum(axis=(1, 2))]
    return joint / np.sqrt(separate[0] * separate[1] + 1e-6)


def _blurred(x: np.ndarray) -> np.ndarray:
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)), "edge")
    x = (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]) / 4
    return (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 4


def _overlap_share(placement: np.ndarray) -> np.ndarray:
    """(P,): the share of a that is inside b, or of b that is inside a, whichever is smaller."""
    scale = np.maximum(placement[:, 0::2], 1e-3)
    shift = placement[:, 1::2]
    both = np.clip(np.minimum(shift + scale, 1) - np.maximum(shift - scale, -1), 0, None) / 2
    return np.minimum(both.prod(axis=1), (both / scale).prod(axis=1))
