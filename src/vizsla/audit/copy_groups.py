"""Pairs of copies → groups that show one photo, which image of each to keep, which to exclude.

Knows facts of files and pairs, not how images are compared. Nothing is deleted.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vizsla.audit.duplicates import TEST, UNSURE, Pair, by_certainty, is_conflict
from vizsla.audit.file_scan import ImageFacts
from vizsla.errors import UsageError

MIN_LINKED = 0.4  # share of the pairs between two groups that must be copies to join them
EQUAL = ("same file", "same picture")
TURNED = ("mirrored", "turned")
LOSSLESS = ("PNG", "BMP", "DIB", "TIFF", "PPM", "ICO")

KEEP: dict[str, Callable[[ImageFacts], Any]] = {
    "largest": lambda facts: -facts.pixels,
    "sharpest": lambda facts: -round(20 * math.log(max(facts.sharpness, 1e-3))),  # in steps of 5 %
    "earliest": lambda facts: facts.exif.taken or datetime.max,
    "lossless": lambda facts: facts.form.split(" ")[0] not in LOSSLESS,
}  # rule → sort key, the image to keep first; the others in this order decide between equals


@dataclass(frozen=True)
class CopyGroup:
    """Positions of images that show one photo, ascending, and the position of the one to keep."""

    images: list[int]
    keep: int


def copy_groups(
    facts: Sequence[ImageFacts], pairs: Iterable[Pair], keep: str = "largest"
) -> list[CopyGroup]:
    """The groups that the pairs of copies make, the largest first. Copies of different items are in
    different groups: each item keeps an image.

    keep: which image is proposed, a key of KEEP; a test image, if there is one, comes before all
    others. Of equals the one that most others are not mirrored or turned against.
    """
    copies = [pair for pair in pairs if pair.how not in UNSURE]
    order = _order(facts, copies, keep)
    groups = [part for group in groups_of(len(facts), copies) for part in _by_item(facts, group)]
    groups.sort(key=lambda group: (-len(group), group))
    return [CopyGroup(group, min(group, key=order)) for group in groups if len(group) > 1]


def _by_item(facts: Sequence[ImageFacts], group: Sequence[int]) -> list[list[int]]:
    """The images of a group, those of each item on their own."""
    found: dict[str | None, list[int]] = {}
    for i in group:
        found.setdefault(facts[i].item, []).append(i)
    return list(found.values())


def _order(
    facts: Sequence[ImageFacts], pairs: Iterable[Pair], keep: str
) -> Callable[[int], tuple[Any, ...]]:
    """A sort key of positions: the image to keep comes first."""
    if keep not in KEEP:
        raise UsageError(f"keep {keep!r}: choose one of {', '.join(KEEP)}")
    others = [key for name, key in KEEP.items() if name != keep]
    turned: Counter[int] = Counter()  # by how many more copies than it is equal or near to
    for pair in pairs:
        for i in (pair.a, pair.b):
            turned[i] += 1 if pair.how in TURNED else -1
    return lambda i: (
        facts[i].role not in TEST, KEEP[keep](facts[i]), turned[i] > 0,
        *(rule(facts[i]) for rule in others), i,
    )  # fmt: skip


def groups_of(n: int, pairs: Iterable[Pair]) -> list[list[int]]:
    """Positions of copies, grouped; the largest groups first.

    Equal pictures are always together. Two groups of others are joined, the most similar first,
    while MIN_LINKED of the pairs between them are copies: so a copy that was found from one side
    only is in, but a long chain of pictures, each like the next one alone, is not one group.
    """
    pairs = sorted(pairs, key=by_certainty)
    groups = _Groups(n)
    for pair in pairs:
        if pair.how in EQUAL:
            groups.join(groups.top(pair.a), groups.top(pair.b))
    groups.weight = [1] * n  # each picture counts once, however many files it is in
    links = {tuple(sorted((groups.top(p.a), groups.top(p.b)))): None for p in pairs}
    near = [(a, b) for a, b in links if a != b]
    for a, b in near:
        groups.links[a][b] = groups.links[b][a] = 1
    joined = True
    while joined:
        joined = False
        for a, b in near:
            x, y = groups.top(a), groups.top(b)
            if x != y and groups.share_linked(x, y) >= MIN_LINKED:
                groups.join(x, y)
                joined = True
    found: dict[int, list[int]] = {}
    for i in range(n):
        found.setdefault(groups.top(i), []).append(i)
    return sorted((g for g in found.values() if len(g) > 1), key=lambda g: (-len(g), g))


class _Groups:
    """Disjoint sets of n positions, with how many pairs of pictures are linked between two."""

    def __init__(self, n: int) -> None:
        self.above = list(range(n))
        self.weight = [1] * n
        self.links: list[dict[int, int]] = [{} for _ in range(n)]

    def top(self, i: int) -> int:
        while self.above[i] != i:
            self.above[i] = self.above[self.above[i]]
            i = self.above[i]
        return i

    def share_linked(self, x: int, y: int) -> float:
        return self.links[x].get(y, 0) / (self.weight[x] * self.weight[y])

    def join(self, x: int, y: int) -> None:
        if x == y:
            return
        if len(self.links[x]) < len(self.links[y]):
            x, y = y, x
        self.above[y] = x
        self.weight[x] += self.weight[y]
        self.links[x].pop(y, None)
        self.links[y].pop(x, None)
        for other, count in self.links[y].items():
            del self.links[other][y]
            total = self.links[x].get(other, 0) + count
            self.links[x][other] = self.links[other][x] = total


def to_exclude(
    facts: Sequence[ImageFacts], pairs: Iterable[Pair], keep: str = "largest"
) -> dict[int, str]:
    """Position → the reason to exclude it. Never a test image: the test part stays as it is.

    Broken images; copies of a test image, or what has a part in common with one; all copies with
    contradicting labels; of every other group of copies of one item all but the one to keep. Parts
    of other training images, and pairs that only a model finds similar, are left to people.
    """
    reasons = {i: f"broken: {f.broken}" for i, f in enumerate(facts) if f.broken}
    pairs = sorted((pair for pair in pairs if pair.how != "model"), key=by_certainty)
    order = _order(facts, [pair for pair in pairs if pair.how not in UNSURE], keep)
    copies: dict[int, dict[int, str]] = {}
    for pair in pairs:
        copies.setdefault(pair.a, {})[pair.b] = pair.how
        copies.setdefault(pair.b, {})[pair.a] = pair.how
    training = [i for i in copies if facts[i].role not in TEST]
    for i in training:
        for other, how in copies[i].items():
            if facts[other].role in TEST:
                what = "has a part in common with" if how == "part" else "a copy of"
                reasons.setdefault(i, f"{what} {facts[other].name} ({how})")
            elif how != "part" and is_conflict(facts[i].label, facts[other].label):
                reasons.setdefault(i, f"a copy of {facts[other].name}, which has another label")
    linked = [
        sorted((p.a, p.b), key=order) for p in pairs
        if p.how not in UNSURE and facts[p.a].item == facts[p.b].item
    ]  # fmt: skip
    for group in [*(g.images for g in copy_groups(facts, pairs, keep)), *linked]:
        kept, *others = sorted((i for i in group if i not in reasons), key=order) or [-1]
        for i in others:
            how = copies[i].get(kept, "through other copies")
            reasons[i] = f"a copy of {facts[kept].name} ({how})"
    return {i: reasons[i] for i in sorted(reasons) if facts[i].role not in TEST}
