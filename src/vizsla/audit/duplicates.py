"""Scanned files → pairs that show one photo, and which of them are leaks or conflicts.

Knows roles and labels, but not how images are compared.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vizsla.audit import copy_detection
from vizsla.audit.file_scan import ImageFacts, Scan
from vizsla.audit.partial_copies import partial_copies
from vizsla.data.images import MAX_PIXELS, read_image
from vizsla.embed.cache import VectorCache
from vizsla.embed.local_features import SIDE, LocalSource, Sift
from vizsla.errors import ImageError

TEST = ("query", "gallery")
PAIR_KINDS = {
    "same file": "byte for byte",
    "same picture": "the same pixels in another file",
    "near": "resized, compressed, cropped or retouched",
    "mirrored": "as in a mirror",
    "turned": "on its side or upside down",
    "part": "one holds a part of the other: a crop, collage, screenshot or overlay",
    "model": "almost the same vector: perhaps two photos of one thing",
}  # what two files have in common, the most certain kind first


UNSURE = ("part", "model")  # kinds of pairs that are not two copies of one whole picture
MANY = 8  # equal files in a group: up to this many, every pair is listed


@dataclass(frozen=True)
class Pair:
    """Positions of two files, a < b, and what kind of copy they are: a key of PAIR_KINDS.

    similarity: 1 for equal files.
    """

    a: int
    b: int
    how: str
    similarity: float
    turn: str = "as it is"


# ── finding pairs ────────────────────────────────────────────────────────────────────────────────


def find_pairs(
    scan: Scan,
    *,
    max_pixels: int = MAX_PIXELS,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair]:
    """All pairs of copies, the most certain kind first.

    If more than MANY files are equal, each is paired only with the first one. That is a test
    image if there is one, so every leak is among the pairs.
    """
    facts = scan.facts
    whole = [i for i in range(len(facts)) if not facts[i].broken]
    roles = {role: rank for rank, role in enumerate(TEST)}
    by_hash: dict[str, list[int]] = {}
    for i in sorted(whole, key=lambda i: (roles.get(facts[i].role, len(TEST)), i)):
        by_hash.setdefault(facts[i].pixel_hash, []).append(i)
    groups = {group[0]: group for group in by_hash.values()}
    pictures = sorted(groups)  # one file of each image
    pairs = {}
    for group in groups.values():
        for a, b in _within(group):
            same = facts[a].file_hash == facts[b].file_hash
            pairs[a, b] = Pair(a, b, "same file" if same else "same picture", 1.0)

    def read(i: int) -> Image.Image | None:
        try:
            image = read_image(
                facts[pictures[i]].path, max_pixels=max_pixels, at_least=copy_detection.FINAL_SIDE
            )
            return image.convert("L")
        except ImageError:  # removed since the scan
            return None

    for match in copy_detection.matches(
        scan.grey[pictures], scan.colours[pictures], read, workers=workers, progress=progress
    ):
        how = {"as it is": "near", "mirrored": "mirrored"}.get(match.turn, "turned")
        similarity = min(match.similarity, 1.0)
        for a, b in _between(groups[pictures[match.a]], groups[pictures[match.b]]):
            pairs[a, b] = Pair(a, b, how, similarity, match.turn)
    return sorted(pairs.values(), key=by_certainty)


def by_certainty(pair: Pair) -> tuple[int, float, int, int]:
    """Sort key: the most certain kind first, then the most similar pair."""
    return list(PAIR_KINDS).index(pair.how), -pair.similarity, pair.a, pair.b


def _within(group: Sequence[int]) -> Iterator[tuple[int, int]]:
    firsts = group if len(group) <= MANY else group[:1]
    for k, first in enumerate(firsts):
        for other in group[k + 1 :]:
            yield min(first, other), max(first, other)


def _between(a: Sequence[int], b: Sequence[int]) -> Iterator[tuple[int, int]]:
    few = max(len(a), len(b)) <= MANY
    pairs = ((x, y) for i, x in enumerate(a) for j, y in enumerate(b) if few or not (i and j))
    return ((min(pair), max(pair)) for pair in pairs)


def find_parts(
    scan: Scan,
    pairs: Iterable[Pair],
    features: LocalSource,
    *,
    max_pixels: int = MAX_PIXELS,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair]:
    """Pairs of which one holds a part of the other, without those that are known already.

    Of equal pictures in one part of the data only the first one is compared. features: of all files
    of the scan.
    """
    facts = scan.facts
    whole = [i for i in reversed(range(len(facts))) if not facts[i].broken]
    kept = sorted({(facts[i].role, facts[i].pixel_hash): i for i in whole}.values())
    place = {i: k for k, i in enumerate(kept)}
    known = frozenset((place[p.a], place[p.b]) for p in pairs if p.a in place and p.b in place)

    def read(i: int) -> Image.Image | None:
        try:
            return read_image(facts[kept[i]].path, max_pixels=max_pixels, at_least=SIDE)
        except ImageError:  # removed since the scan
            return None

    found = partial_copies(
        len(kept), lambda positions: features.of([kept[i] for i in positions]), read,
        known=known, workers=workers, progress=progress,
    )  # fmt: skip
    pairs = [
        Pair(kept[p.a], kept[p.b], "part", p.similarity, "mirrored" if p.mirrored else "as it is")
        for p in found
    ]
    return sorted(pairs, key=by_certainty)


def file_features(
    scan: Scan, folder: str | Path, *, max_pixels: int = MAX_PIXELS, workers: int = 1
) -> LocalSource:
    """The local features of the files of a scan, kept in `folder` by the hash of each file."""

    def read(i: int) -> Image.Image:
        return read_image(scan.facts[i].path, max_pixels=max_pixels, at_least=SIDE)

    def key(i: int) -> bytes:
        return bytes.fromhex(scan.facts[i].file_hash)

    return LocalSource(read, Sift(), cache=VectorCache(folder), key=key, workers=workers)


# ── what pairs mean ──────────────────────────────────────────────────────────────────────────────


def leaks(facts: Sequence[ImageFacts], pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs of images in two different parts, such as training and query."""
    return [pair for pair in pairs if facts[pair.a].role != facts[pair.b].role]


def conflicts(facts: Sequence[ImageFacts], pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs of copies whose labels differ. A collage may well have another than its part."""
    return [
        pair for pair in pairs
        if pair.how != "part" and is_conflict(facts[pair.a].label, facts[pair.b].label)
    ]  # fmt: skip


def between_items(facts: Sequence[ImageFacts], pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs of copies that belong to different items, such as two products."""
    return [
        pair for pair in pairs
        if pair.how != "part" and is_conflict(facts[pair.a].item, facts[pair.b].item)
    ]  # fmt: skip


def is_conflict(a: str | None, b: str | None) -> bool:
    """Whether both labels, or items, are known, and differ."""
    return a is not None and b is not None and a != b
