"""Small grey pictures → which pairs show one photo: resized, compressed, cropped, mirrored, turned.

Knows nothing of files or labels. A blurred fingerprint of each picture is compared with all others
in blocks of a matrix product. The few pairs that are close are laid over each other, scaled and
shifted until they fit best, at two sizes and where that leaves doubts at a third; only pairs whose
edges agree at each of them count.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

SIDE = 64  # px of a grey picture; its sides are squashed to a square
COLOURS = 8  # px of a side of the two colour planes
WAVES = 10  # a fingerprint keeps WAVES × WAVES low frequencies, without the mean
CLOSE = 0.75  # cosine of two fingerprints above which they are compared further
ALIKE = 0.87  # least agreement of edges; different pictures of similar things stay below .80
SURE = 0.95  # at SIDE px: above this the files need not be read again
LARGE = 128  # px of the final comparison, if both files are that large
FLAT = 3.0  # grey levels (standard deviation) below which there is nothing to compare
BLOCK = 2048  # pictures; a block of similarities takes 16 MB
MOST = 20  # candidates of a picture within a block: a thousand copies still form one group
CHUNK = 64  # pairs aligned at once, so that they stay in the processor's cache
LEAST_SHOWN = 0.6  # share of either picture that must be in the other one too

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
CUTS = {"as it is": _MIDDLES + _SIDES, "mirrored": _MIDDLES}
# a cropped copy is nearer to one of these parts of its original than to the whole


@dataclass(frozen=True)
class Match:
    """Two positions, a < b; how b must be turned to look like a; how far their edges agree, …1."""

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
    """All pairs that show one photo, in order; of several turns the one that fits best.

    grey: (N, SIDE, SIDE) uint8. colours: (N, 2, COLOURS, COLOURS), Cb and Cr less 128. read: the
    file's picture again in mode L, None where it cannot be read. Work grows with N², memory with N.
    """
    some = np.flatnonzero(_deviations(grey) >= FLAT)
    grey, colours = grey[some], colours[some]
    best: dict[tuple[int, int], Match] = {}
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="compare") as pool:
        for done, (turn, found) in enumerate(_candidates(grey)):
            chunks = (slice(i, i + CHUNK) for i in range(0, len(found.a), CHUNK))
            parts = (found.part(chunk) for chunk in chunks)
            check = functools.partial(_checked, turn=turn, grey=grey, colours=colours)
            for checked in pool.map(check, parts):
                _keep_best(best, checked)
            if progress:
                progress(done + 1, _n_steps(len(grey)))
        in_order = sorted(best.values(), key=lambda match: (match.a, match.b))
        placed = (replace(m, a=int(some[m.a]), b=int(some[m.b])) for m in in_order)
        return [m for m in pool.map(lambda m: _looked_at_again(m, read), placed) if m]


def turned(pictures: np.ndarray, turn: str) -> np.ndarray:
    """(…, S, S) pictures, each turned or mirrored."""
    transposed, upside_down, mirrored = TURNS[turn]
    if transposed:
        pictures = pictures.swapaxes(-2, -1)
    return pictures[..., :: -1 if upside_down else 1, :: -1 if mirrored else 1]


# ── fingerprints ─────────────────────────────────────────────────────────────────────────────────


def fingerprints(pictures: np.ndarray, box: Box = WHOLE) -> np.ndarray:
    """(N, F) float32 unit vectors of a part of (N, S, S) pictures.

    Low frequencies of the cosine transform, the higher ones weighted up and all pulled together by
    a square root, so that no single edge decides.
    """
    side = pictures.shape[1]
    down, across = _cosines(side, *box[:2]), _cosines(side, *box[2:])
    waves = down @ pictures.astype(np.float32) @ across.T  # (N, WAVES, WAVES)
    u = np.arange(WAVES)
    waves *= np.hypot(u[:, None], u[None]).astype(np.float32)  # the mean goes
    prints = waves.reshape(len(waves), -1)
    prints = np.sign(prints) * np.sqrt(np.abs(prints))
    lengths: np.ndarray = np.linalg.norm(prints, axis=1, keepdims=True)
    return prints / np.maximum(lengths, 1e-6)


def _deviations(pictures: np.ndarray) -> np.ndarray:
    """Standard deviation of each of (N, S, S) pictures, block by block to stay small in memory."""
    starts = range(0, len(pictures), BLOCK)
    parts = [pictures[i : i + BLOCK].std(axis=(1, 2), dtype=np.float32) for i in starts]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _cosines(side: int, start: float, stop: float) -> np.ndarray:
    """(WAVES, side): cosine waves over a part of a side, zero outside of it."""
    start, stop = start * side, stop * side
    left = np.maximum(np.arange(side), start)
    right = np.minimum(np.arange(side) + 1, stop)
    cover = np.clip(right - left, 0, 1)  # how much of each pixel lies inside
    middle = (np.clip((left + right) / 2, start, stop) - start) / (stop - start)
    waves = np.cos(np.pi * np.arange(WAVES)[:, None] * middle) * cover
    return (waves / cover.sum()).astype(np.float32)


# ── candidates ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Pairs:
    """Positions a < b, (P,); place: (P, 4), see `_fitted`."""

    a: np.ndarray
    b: np.ndarray
    place: np.ndarray

    def part(self, which: slice | np.ndarray) -> "_Pairs":
        return _Pairs(self.a[which], self.b[which], self.place[which])


def _n_steps(n: int) -> int:
    blocks = -(-n // BLOCK)
    return len(TURNS) * blocks * (blocks + 1) // 2


def _candidates(grey: np.ndarray) -> Iterator[tuple[str, _Pairs]]:
    """Pairs whose fingerprints are close, for each two blocks and each turn."""
    starts = range(0, len(grey), BLOCK)
    for first in starts:
        block = grey[first : first + BLOCK]
        views = {box: fingerprints(block, box) for box in (WHOLE, *CUTS["as it is"])}
        for second in starts[first // BLOCK :]:
            for turn in TURNS:
                other = turned(grey[second : second + BLOCK], turn)
                found = _close_in_block(views, other, CUTS.get(turn, ()), same=first == second)
                yield turn, _Pairs(found.a + first, found.b + second, found.place)


def _close_in_block(
    views: dict[Box, np.ndarray], other: np.ndarray, cuts: Sequence[Box], *, same: bool
) -> _Pairs:
    """Whole against whole, and either picture's cuts against the other one's whole.

    same: both are one block, where each pair stands twice, and each picture beside itself.
    """
    whole = fingerprints(other)
    places: list[np.ndarray] = []
    rows = []
    for place, x, y in _comparisons(views, other, whole, cuts):
        similar = x @ y.T  # (block, block)
        at = np.flatnonzero(similar >= CLOSE)
        a, b = np.divmod(at, len(y))
        if same:
            kept = a < b
            a, b, at = a[kept], b[kept], at[kept]
        rows.append((a, b, similar.flat[at], np.full(len(at), len(places))))
        places.append(place)
    a, b, similar, which = (np.concatenate(column) for column in zip(*rows, strict=True))
    kept = _best_of_each(a, b, similar)
    return _Pairs(a[kept], b[kept], np.stack(places).astype(np.float32)[which[kept]])


def _comparisons(
    views: dict[Box, np.ndarray], other: np.ndarray, whole: np.ndarray, cuts: Sequence[Box]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(place to start from, a's fingerprints, b's)."""
    yield _place_of(WHOLE), views[WHOLE], whole
    for box in cuts:
        scale, shift = _place_of(box)[0::2], _place_of(box)[1::2]
        yield _place_of(box), views[box], whole
        back = np.stack([1 / scale, -shift / scale], axis=1).ravel()
        yield back, views[WHOLE], fingerprints(other, box)


def _place_of(box: Box) -> np.ndarray:
    """Where the box lies, as in `_fitted`."""
    top, bottom, left, right = box
    return np.array([bottom - top, top + bottom - 1, right - left, left + right - 1])


def _best_of_each(a: np.ndarray, b: np.ndarray, similar: np.ndarray) -> np.ndarray:
    """Each pair once, where it is most similar; at most MOST pairs of each a."""
    order = np.lexsort((-similar, b, a))
    order = order[(np.diff(a[order], prepend=-1) != 0) | (np.diff(b[order], prepend=-1) != 0)]
    order = order[np.lexsort((-similar[order], a[order]))]
    rank = np.arange(len(order)) - np.searchsorted(a[order], a[order])
    return order[rank < MOST]


# ── laid over each other ─────────────────────────────────────────────────────────────────────────


def _checked(pairs: _Pairs, turn: str, grey: np.ndarray, colours: np.ndarray) -> list[Match]:
    """The pairs whose edges agree at SIDE / 2 and at SIDE px, and whose colours do not differ."""
    a = grey[pairs.a].astype(np.float32)
    b = turned(grey[pairs.b], turn).astype(np.float32)
    place, similarity = _fitted(_half(a), _half(b), pairs.place, steps=3)
    kept = (similarity >= ALIKE) & ~_other_colours(colours[pairs.a], turned(colours[pairs.b], turn))
    pairs, a, b = pairs.part(kept), a[kept], b[kept]
    place, similarity = _fitted(a, b, place[kept], steps=2)
    return [
        Match(int(i), int(j), turn, float(value))
        for i, j, value in zip(pairs.a, pairs.b, similarity, strict=True)
        if value >= ALIKE
    ]


def _keep_best(best: dict[tuple[int, int], Match], found: Iterable[Match]) -> None:
    for match in found:
        known = best.setdefault((match.a, match.b), match)
        if match.similarity > known.similarity + 0.01 * (known.turn == "as it is"):
            best[match.a, match.b] = match


def _looked_at_again(match: Match, read: Callable[[int], Image.Image | None]) -> Match | None:
    """The match with its similarity at up to LARGE px, None where that is too small after all."""
    if match.similarity >= SURE:
        return match
    pictures = read(match.a), read(match.b)
    if pictures[0] is None or pictures[1] is None:
        return None
    side = max(SIDE // 2, min(LARGE, *pictures[0].size, *pictures[1].size))
    a, b = (_shrunk(picture, side)[None] for picture in pictures if picture)
    b = turned(b, match.turn)
    place = _place_of(WHOLE).astype(np.float32)[None]
    for size, steps in ((SIDE // 2, 5), (SIDE, 2), (side, 2)):
        small = [np.asarray(_shrunk(Image.fromarray(x[0]), size))[None] for x in (a, b)]
        place, similarity = _fitted(small[0], small[1], place, steps=steps)
    return (
        Match(match.a, match.b, match.turn, float(similarity[0])) if similarity >= ALIKE else None
    )


def _shrunk(picture: Image.Image, side: int) -> np.ndarray:
    small = picture.resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def _half(pictures: np.ndarray) -> np.ndarray:
    rows = (pictures[:, ::2] + pictures[:, 1::2]) / 2
    return (rows[:, :, ::2] + rows[:, :, 1::2]) / 2


def _other_colours(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P,) bool: the same shapes in other colours. A grey copy of a coloured picture is not meant.

    a, b: (P, 2, COLOURS, COLOURS).
    """
    a, b = a.astype(np.float32), b.astype(np.float32)
    strength = [(x**2).mean(axis=(1, 2, 3)) for x in (a, b)]
    difference = ((a - b) ** 2).mean(axis=(1, 2, 3))
    coloured = np.minimum(*strength) > 4**2
    return coloured & (difference > 12**2) & (difference > 0.3 * (strength[0] + strength[1]))


def _fitted(
    a: np.ndarray, b: np.ndarray, place: np.ndarray, *, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scales and shifts a, each axis by itself, until it fits b: where, and how far edges agree.

    a, b: (P, S, S) float32. place: (P, 4) scale and shift, down then across: a pixel of b at -1…1
    lies at scale · pixel + shift of a. Gauss-Newton (Lucas and Kanade 1981) on the squared
    difference of the two, each brought to mean 0 and deviation 1 where they overlap.
    """
    grid = np.linspace(-1, 1, a.shape[1], dtype=np.float32)
    for _ in range(steps):
        warped, inside = _warped(a, place, grid)
        weight = np.maximum(inside.sum(axis=(1, 2), keepdims=True), 1)
        x, y = _standard(warped, inside, weight), _standard(b, inside, weight)
        place = place + _step(x, y, inside, grid)
    warped, inside = _warped(a, place, grid)
    similarity = _agreement(warped, b, inside)
    similarity[_shown(place) < LEAST_SHOWN] = 0
    return place, similarity


def _warped(a: np.ndarray, place: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a as seen at the places of b's pixels, and which of these lie inside of a (1 or 0)."""
    side = len(grid)
    pixels = np.arange(side, dtype=np.float32)
    weights, insides = [], []
    for k in (0, 2):  # down, across
        at = (place[:, k, None] * grid + place[:, k + 1, None] + 1) * ((side - 1) / 2)  # (P, S)
        insides.append(((at >= -0.5) & (at <= side - 0.5)).astype(np.float32))
        at = np.clip(at, 0, side - 1)[:, :, None]
        weights.append(np.maximum(0, 1 - np.abs(at - pixels)))  # (P, S, S), bilinear
    warped = weights[0] @ a @ weights[1].swapaxes(1, 2)
    return warped, insides[0][:, :, None] * insides[1][:, None, :]


def _standard(values: np.ndarray, inside: np.ndarray, weight: np.ndarray) -> np.ndarray:
    mean = (values * inside).sum(axis=(1, 2), keepdims=True) / weight
    centred = (values - mean) * inside
    deviation = np.sqrt((centred**2).sum(axis=(1, 2), keepdims=True) / weight)
    return centred / np.maximum(deviation, 1e-3)


def _step(x: np.ndarray, y: np.ndarray, inside: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """(P, 4): how to change the place so that x comes nearer to y."""
    down, across = (slope * inside for slope in _slopes(x))
    moved = [down * grid[:, None], down, across * grid, across]
    slopes = np.stack(moved, axis=1).reshape(len(x), 4, len(grid) ** 2)  # (P, 4, S²)
    normal = slopes @ slopes.swapaxes(1, 2)
    damping = 1e-3 * np.trace(normal, axis1=1, axis2=2) + 1e-3
    normal += np.eye(4, dtype=np.float32) * damping[:, None, None]
    wrong = slopes @ ((y - x) * inside).reshape(len(x), len(grid) ** 2, 1)
    return np.clip(np.linalg.solve(normal, wrong)[:, :, 0], -0.1, 0.1)


def _slopes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How fast (P, S, S) pictures change down and across, on the scale of -1…1."""
    down, across = np.zeros_like(x), np.zeros_like(x)
    step = 4 / (x.shape[1] - 1)  # two pixels
    down[:, 1:-1] = (x[:, 2:] - x[:, :-2]) / step
    across[:, :, 1:-1] = (x[:, :, 2:] - x[:, :, :-2]) / step
    return down, across


def _agreement(x: np.ndarray, y: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(P,) float32: correlation of the slopes of both, slightly blurred, where they overlap."""
    together, alone = 0, [0, 0]
    for p, q in zip(_slopes(_blurred(x)), _slopes(_blurred(y)), strict=True):
        p, q = p * inside, q * inside
        together = together + (p * q).sum(axis=(1, 2))
        alone = [alone[0] + (p**2).sum(axis=(1, 2)), alone[1] + (q**2).sum(axis=(1, 2))]
    return together / np.sqrt(alone[0] * alone[1] + 1e-6)


def _blurred(x: np.ndarray) -> np.ndarray:
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)), "edge")
    x = (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]) / 4
    return (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 4


def _shown(place: np.ndarray) -> np.ndarray:
    """(P,): the share of a that b shows, or of b that a shows, whichever is smaller."""
    scale = np.maximum(place[:, 0::2], 1e-3)
    shift = place[:, 1::2]
    both = np.clip(np.minimum(shift + scale, 1) - np.maximum(shift - scale, -1), 0, None) / 2
    return np.minimum(both.prod(axis=1), (both / scale).prod(axis=1))
