"""Local features of N images → pairs of which one holds a part of the other.

Crops, collages, screenshots, overlays. Points whose descriptors have the same word and nearly the
same signature vote for pairs of images; the pairs with most votes are compared point by point, and
count if the pixels agree where the geometry lays one image over the other.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from vizsla.audit.same_pixels import share_of_same_pixels
from vizsla.embed.local_features import LocalFeatures
from vizsla.search.geometry import geometry_of

WORDS = 256  # of each half of a descriptor; a word is a pair of them
SAMPLE = 400  # images whose descriptors the words are learned from
BITS = 64  # of a signature
MAX_DISTANCE = 8  # bits by which the signatures of two votes may differ
MANY = 1500  # descriptors of a word, beyond which it says nothing
MIN_VOTES, MAX_CANDIDATES = 4, 20  # of a pair; pairs of an image that are compared
PERHAPS = 0.02  # probability by geometry, below which a pair is given up
FEATURES_AT_ONCE = 512  # images

Features = Callable[[Sequence[int]], list[LocalFeatures]]
Read = Callable[[int], Image.Image | None]


@dataclass(frozen=True)
class Part:
    """Positions a < b of two images with a part in common.

    similarity: the share of it, between the matching points, in which the edges agree. mirrored:
    one shows it mirrored.
    """

    a: int
    b: int
    similarity: float
    mirrored: bool = False


def partial_copies(
    n: int,
    features: Features,
    read: Read,
    *,
    known: frozenset[tuple[int, int]] = frozenset(),
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Part]:
    """All pairs of n images that have a part in common, those with a mirrored part last.

    read: the i-th image, None if it cannot be read. known: pairs (a, b), a < b, to leave out.
    progress: (images and pairs done, about how many in all). Time grows with the number of images
    times that of the images in which a word occurs, memory (about 30 KB an image) with the number.
    """
    report = progress or (lambda done, total: None)
    described, mirrored = _described(n, features, lambda done: report(done, 3 * n))
    found: list[Part] = []
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="compare") as pool:
        for is_mirrored in (False, True):
            a, b = (
                _mirrored_candidates(described, mirrored, n) if is_mirrored
                else candidates(*described, n)
            )  # fmt: skip
            known |= {(part.a, part.b) for part in found}
            pairs = zip(a.tolist(), b.tolist(), strict=True)
            new = np.array([pair not in known for pair in pairs], bool)
            a, b = a[new], b[new]
            for part in _blocks(a, b):
                used = np.unique([a[part], b[part]])
                of = dict(zip(used.tolist(), features(used.tolist()), strict=True))
                compared = partial(_compared, of=of, read=read, mirrored=is_mirrored)
                matches = pool.map(compared, a[part].tolist(), b[part].tolist())
                found += [match for match in matches if match]
                report((1 + is_mirrored) * n + n * part.stop // len(a), 3 * n)
    report(3 * n, 3 * n)
    return found


def _blocks(a: np.ndarray, b: np.ndarray) -> Iterator[slice]:
    """Slices of pairs with at most FEATURES_AT_ONCE images."""
    step = FEATURES_AT_ONCE // 2
    return (slice(i, min(i + step, len(a))) for i in range(0, len(a), step))


# ── words and signatures ─────────────────────────────────────────────────────────────────────────


Described = tuple[np.ndarray, np.ndarray, np.ndarray]  # word, signature (uint64) and image of each


def _described(
    n: int, features: Features, report: Callable[[int], None]
) -> tuple[Described, Described]:
    """All descriptors of all images, and of the same images mirrored."""
    sample = np.unique(np.linspace(0, n - 1, min(n, SAMPLE)).astype(int))
    rows = [f.descriptors for f in features(sample.tolist()) if len(f)]
    if not rows:
        none = np.zeros(0, np.int64)
        nothing = none, none.astype(np.uint64), none
        return nothing, nothing
    vocabulary = Vocabulary.learned(np.concatenate(rows))
    both: tuple[list[Described], list[Described]] = ([], [])
    for start in range(0, n, FEATURES_AT_ONCE):
        block = range(start, min(start + FEATURES_AT_ONCE, n))
        for i, found in zip(block, features(block), strict=True):
            for side, of in zip(both, (found, found.mirrored()), strict=True) if len(found) else ():
                side.append((*vocabulary(of.descriptors), np.full(len(of), i, np.int32)))
        report(block.stop)
    described, mirrored = (
        (np.concatenate(word), np.concatenate(signature), np.concatenate(image))
        for word, signature, image in (zip(*side, strict=True) for side in both)
    )
    return described, mirrored


def _mirrored_candidates(
    described: Described, mirrored: Described, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions a < b of pairs that are candidates if one of them is mirrored, sorted."""
    words, signatures, images = (
        np.concatenate(sides) for sides in zip(described, mirrored, strict=True)
    )
    images[len(described[0]) :] += n
    a, b = candidates(words, signatures, images, 2 * n)
    mixed = (a < n) & (b >= n) & (b - n != a)
    pairs = np.sort(np.stack([a[mixed], b[mixed] - n], axis=1), axis=1)
    found = np.unique(pairs, axis=0)
    return found[:, 0], found[:, 1]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Descriptors → words (the product of two coarse quantisers) and binary signatures.

    centres: (2, K, D/2), of each half of a descriptor. directions: (D, BITS). medians: (BITS,).
    """

    centres: np.ndarray
    directions: np.ndarray
    medians: np.ndarray

    @staticmethod
    def learned(descriptors: np.ndarray, seed: int = 0) -> "Vocabulary":
        """From a sample of descriptors (n, D)."""
        rows = descriptors.astype(np.float32)
        rng = np.random.default_rng(seed)
        halves = np.split(rows, 2, axis=1)
        centres = np.stack([_centres(half, rng) for half in halves])
        square = rng.standard_normal((rows.shape[1], rows.shape[1]))
        directions = np.linalg.qr(square)[0][:, :BITS].astype(np.float32)
        return Vocabulary(centres, directions, np.median(rows @ directions, axis=0))

    def __call__(self, descriptors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) int32 words and (n,) uint64 signatures of (n, D) descriptors."""
        rows = descriptors.astype(np.float32)
        first, second = (
            _nearest(half, centres)
            for half, centres in zip(np.split(rows, 2, axis=1), self.centres, strict=True)
        )
        bits = np.packbits(rows @ self.directions > self.medians, axis=1)  # (n, 8)
        words = first * self.centres.shape[1] + second
        return words.astype(np.int32), np.ascontiguousarray(bits).view(np.uint64).ravel()


def _centres(rows: np.ndarray, rng: np.random.Generator, rounds: int = 10) -> np.ndarray:
    """(K, D) means of k-means (Lloyd), from random rows; K at most WORDS."""
    rows = rows[rng.permutation(len(rows))[: 100 * WORDS]]
    centres = rows[: max(1, min(WORDS, len(rows) // 4))].copy()
    for _ in range(rounds):
        nearest = _nearest(rows, centres)
        count = np.bincount(nearest, minlength=len(centres))
        sums = np.stack([np.bincount(nearest, column, len(centres)) for column in rows.T], axis=1)
        centres[count > 0] = sums[count > 0] / count[count > 0, None]
    return centres


def _nearest(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(n,) positions of the nearest centres."""
    return (rows @ centres.T - (centres**2).sum(axis=1) / 2).argmax(axis=1)


# ── candidates ───────────────────────────────────────────────────────────────────────────────────


def candidates(
    words: np.ndarray, signatures: np.ndarray, images: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions a < b, sorted: of each image the MAX_CANDIDATES pairs with most votes."""
    order = np.argsort(words, kind="stable")
    words, signatures, images = words[order], signatures[order], images[order].astype(np.int64)
    ends = np.searchsorted(words, words, side="right")
    starts = np.searchsorted(words, words, side="left")
    left = np.where(ends - starts <= MANY, ends - np.arange(len(words)) - 1, 0)  # to compare with
    votes: list[np.ndarray] = []
    codes, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    at, shift = np.flatnonzero(left), 1
    while len(at):
        other = at + shift
        close = _bit_count(signatures[at] ^ signatures[other]) <= MAX_DISTANCE
        i, j = images[at[close]], images[other[close]]
        votes.append((np.minimum(i, j) * n + np.maximum(i, j))[i != j])
        shift += 1
        at = at[left[at] >= shift]
        if sum(map(len, votes)) > 20_000_000 or not len(at):
            codes, counts = _summed([codes, *votes], [counts, *(np.ones_like(v) for v in votes)])
            votes = []
    kept = counts >= MIN_VOTES
    a, b = np.divmod(codes[kept], n)
    counts = counts[kept]
    best = np.zeros(len(a), bool)
    for side in (a, b):
        by_votes = np.lexsort((-counts, side))
        rank = np.arange(len(side)) - np.searchsorted(side[by_votes], side[by_votes])
        best[by_votes[rank < MAX_CANDIDATES]] = True
    return a[best], b[best]


def _summed(codes: list[np.ndarray], counts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Each code once, and the sum of its counts."""
    found, at = np.unique(np.concatenate(codes), return_inverse=True)
    return found, np.bincount(at, np.concatenate(counts), len(found)).astype(np.int64)


_OF_BYTE = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


def _bit_count(values: np.ndarray) -> np.ndarray:
    """(n,) the bits that are set in (n,) uint64."""
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.bitwise_count(values)
    return _OF_BYTE[values.view(np.uint8)].reshape(-1, 8).sum(axis=1)


# ── the decision ─────────────────────────────────────────────────────────────────────────────────


def _compared(
    a: int, b: int, *, of: dict[int, LocalFeatures], read: Read, mirrored: bool
) -> Part | None:
    found = geometry_of(of[a], of[b].mirrored() if mirrored else of[b])
    if found.probability < PERHAPS:
        return None
    images = read(a), read(b)
    if images[0] is None or images[1] is None:
        return None
    grey_a, grey_b = (
        np.asarray(image.convert("L").resize(of[i].size, Image.Resampling.BOX), np.float32)
        for i, image in zip((a, b), images, strict=True)
        if image
    )
    share = share_of_same_pixels(found, grey_a, grey_b[:, ::-1].copy() if mirrored else grey_b)
    return Part(a, b, share, mirrored) if share else None
