"""Labelled images → what to train on and what to validate on, so that validation imitates the test.

By class when the test classes will be new, by image when they are the training classes. Knows
labels, groups and domains, opens no picture. A split depends on its seed and the ids alone.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vizsla.data.imageset import ImageSet
from vizsla.errors import DataError, UsageError

log = logging.getLogger("vizsla.splits")

KINDS = ("new-classes", "seen-classes")
SHARE = 0.2  # of the images goes to validation at most
DRAWS = 3
QUERY_SHARE = 0.2  # of the images held out, where the test part is unknown


@dataclass(frozen=True)
class Target:
    """The test part that validation imitates; None where it is not known."""

    queries: int | None = None
    gallery: int | None = None
    per_class: float | None = None  # gallery images of one class

    @property
    def query_share(self) -> float:
        if not self.queries or not self.gallery:
            return QUERY_SHARE
        return self.queries / (self.queries + self.gallery)


@dataclass(frozen=True, eq=False)
class Draw:
    """Positions in the image set: who asks, and who is searched. Disjoint."""

    query: np.ndarray
    gallery: np.ndarray


@dataclass(frozen=True, eq=False)
class Split:
    """training: positions to train on. draws: several ways to query what was held out.

    set_aside: how many images are in neither, because their group lies on the other side.
    """

    training: np.ndarray
    draws: list[Draw]
    set_aside: int = 0

    @property
    def held_out(self) -> np.ndarray:
        """All positions that some draw uses, rising."""
        parts = [part for draw in self.draws for part in (draw.query, draw.gallery)]
        return np.unique(np.concatenate(parts))


def split(
    images: ImageSet,
    validate_on: str = "new-classes",
    *,
    target: Target | None = None,
    query_domain: str | None = None,
    gallery_domain: str | None = None,
    draws: int = DRAWS,
    share: float = SHARE,
    seed: int = 0,
) -> Split:
    """Holds out about `share` of the images (fewer where the test part is smaller).

    Images of one group are never both trained on and held out. Every query has a relevant image in
    its gallery. DataError where the images do not allow such a split.
    """
    if validate_on not in KINDS:
        raise UsageError(f"validate on {validate_on!r}: choose {' or '.join(KINDS)}")
    if not 0 < share < 1 or draws < 1:
        raise UsageError(
            f"share={share}, draws={draws}: choose a share in (0, 1) and 1 draw or more"
        )
    target = target or Target()
    labels = class_codes(images)
    groups = _codes(images, "group", default=np.arange(len(images)))
    asks = _in_domain(images, query_domain, "query")
    answers = _in_domain(images, gallery_domain, "gallery")
    rng = np.random.default_rng((seed, 11))
    if validate_on == "new-classes":
        held = _hold_out_classes(labels, asks, answers, share, rng)
    else:
        held = _hold_out_images(labels, groups, asks | answers, target, share, rng)
    return _finished(labels, groups, held, asks, answers, target, draws, seed)


def class_codes(images: ImageSet) -> np.ndarray:
    """(N,) int64: the number of each image's class. DataError where a label is missing."""
    labels = images.labels
    if labels is None:
        raise DataError(f"{images.root} has no labels: training needs one for every image")
    missing = [name for name, label in zip(images.ids, labels, strict=True) if not label]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(images)} training images have no label ({missing[0]}, …): "
            "label them, or leave them out"
        )
    return np.unique(np.array(labels), return_inverse=True)[1]


def domain_codes(images: ImageSet) -> np.ndarray | None:
    """(N,) int64: the number of each image's domain; None where no domains are known."""
    if "domain" not in images.attributes.column_names:
        return None
    return _codes(images, "domain", default=np.arange(len(images)))


def _codes(images: ImageSet, column: str, default: np.ndarray) -> np.ndarray:
    """(N,) int64; an image without a value stands for itself."""
    if column not in images.attributes.column_names:
        return default
    values = images.attributes[column].to_pylist()
    own = [f"\0{i}" if value is None else f"={value}" for i, value in enumerate(values)]
    return np.unique(np.array(own), return_inverse=True)[1]


def _in_domain(images: ImageSet, domain: str | None, role: str) -> np.ndarray:
    """(N,) bool: which images may play this role."""
    if domain is None:
        return np.ones(len(images), dtype=bool)
    if "domain" not in images.attributes.column_names:
        raise DataError(
            f"--{role}-domain {domain}, but the training images have no domain column: "
            "give one in a metadata file (file_name, domain) in the training folder"
        )
    found = np.array(images.attributes["domain"].to_pylist(), dtype=object) == domain
    if not found.any():
        there = sorted({str(v) for v in images.attributes["domain"].to_pylist() if v is not None})
        raise DataError(
            f"no training image has the domain {domain!r}: there are {', '.join(there)}"
        )
    return found


# ── what is held out ─────────────────────────────────────────────────────────────────────────────


def _hold_out_classes(
    labels: np.ndarray,
    asks: np.ndarray,
    answers: np.ndarray,
    share: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """(N,) bool: whole classes, drawn until they hold `share` of the images, two at least."""
    sizes = np.bincount(labels)
    usable = np.flatnonzero(_can_be_queried(labels, asks, answers))
    if len(usable) < 2 or len(sizes) < 4:
        raise DataError(
            f"{len(sizes)} classes, of which {len(usable)} have images enough to be queried: "
            "validating on new classes needs 4 and 2. Use --validate-on seen-classes, or more data"
        )
    most = len(sizes) - 2
    chosen: list[int] = []
    for c in rng.permutation(usable):
        if len(chosen) >= 2 and (sizes[chosen].sum() + sizes[c] / 2 > share * len(labels)):
            break
        if len(chosen) < most:
            chosen.append(int(c))
    return np.isin(labels, chosen)


def _can_be_queried(labels: np.ndarray, asks: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """(C,) bool: whether one image of the class can ask and another one answer."""
    one, other, both = (
        np.bincount(labels, weights=role.astype(float)) for role in (asks, answers, asks & answers)
    )
    alone = (one == 1) & (other == 1) & (both == 1)
    return (one > 0) & (other > 0) & ~alone


def _hold_out_images(
    labels: np.ndarray,
    groups: np.ndarray,
    roles: np.ndarray,
    target: Target,
    share: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """(N,) bool: of every class the same share, whole groups; one group stays for training."""
    wanted = (target.queries or len(labels)) + (target.gallery or len(labels))
    share = min(share, wanted / len(labels))
    held = np.zeros(len(labels), dtype=bool)
    owed = 0.0  # images that rounding did not hold out yet, carried from class to class
    for c in rng.permutation(labels.max() + 1):
        members = np.flatnonzero((labels == c) & roles)
        units = rng.permutation(np.unique(groups[members]))
        owed += share * len(members)
        for unit in units[: max(0, len(units) - 1)]:
            size = int((groups[members] == unit).sum())
            if owed < max(1.0, size / 2):
                break
            held[members[groups[members] == unit]] = True
            owed -= size
    return held


# ── who asks and who answers ─────────────────────────────────────────────────────────────────────


def _finished(
    labels: np.ndarray,
    groups: np.ndarray,
    held: np.ndarray,
    asks: np.ndarray,
    answers: np.ndarray,
    target: Target,
    draws: int,
    seed: int,
) -> Split:
    aside = ~held & np.isin(groups, groups[held])
    training = np.flatnonzero(~held & ~aside)
    if len(np.unique(labels[training])) < 2:
        raise DataError(
            f"after holding out {int(held.sum())} images for validation, and {int(aside.sum())} "
            "that share a group with them, fewer than 2 classes are left to train on: give more "
            "classes, or correct the group column"
        )
    if not held.any():
        raise DataError(
            "no class has images enough to hold one out for validation and keep one to train on: "
            "give more images of each class"
        )
    if aside.any():
        log.info("%d images are set aside: their group is held out", int(aside.sum()))
    found = [
        _draw(labels, groups, held, asks, answers, target, np.random.default_rng((seed, 12, i)))
        for i in range(draws)
    ]
    found = [draw for draw in found if len(draw.query)]
    if not found:
        raise DataError(
            f"the {int(held.sum())} images held out for validation give no query with a relevant "
            "gallery image: give more images of each class"
        )
    return Split(training, found, int(aside.sum()))


def _draw(
    labels: np.ndarray,
    groups: np.ndarray,
    held: np.ndarray,
    asks: np.ndarray,
    answers: np.ndarray,
    target: Target,
    rng: np.random.Generator,
) -> Draw:
    query: list[np.ndarray] = []
    gallery: list[np.ndarray] = []
    for c in np.unique(labels[held]):
        members = np.flatnonzero(held & (labels == c))
        one, other = _sides(members, groups, asks, answers, target.query_share, rng)
        if target.per_class:
            other = rng.permutation(other)[: max(1, round(target.per_class))]
        query.append(one if len(other) else one[:0])
        gallery.append(other)
    asked = rng.permutation(np.concatenate(query))[: target.queries]
    searched = _limited(np.concatenate(gallery), labels, asked, target.gallery, rng)
    return Draw(np.sort(asked), np.sort(searched))


def _sides(
    members: np.ndarray,
    groups: np.ndarray,
    asks: np.ndarray,
    answers: np.ndarray,
    query_share: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The members that ask and those that answer; whole groups where there is more than one."""
    either = members[asks[members] & answers[members]]
    units = groups[either] if len(np.unique(groups[either])) > 1 else either
    names = rng.permutation(np.unique(units))
    n_query = min(max(1, round(query_share * len(names))), max(0, len(names) - 1))
    asking = np.isin(units, names[:n_query])
    only_asks = members[asks[members] & ~answers[members]]
    only_answers = members[~asks[members] & answers[members]]
    return (
        np.concatenate([either[asking], only_asks]),
        np.concatenate([either[~asking], only_answers]),
    )


def _limited(
    gallery: np.ndarray,
    labels: np.ndarray,
    query: np.ndarray,
    size: int | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """At most `size` of the gallery; every query's class keeps one image."""
    if not size or len(gallery) <= size:
        return gallery
    shuffled = rng.permutation(gallery)
    first = np.unique(labels[shuffled], return_index=True)[1]  # one image of each class
    needed = shuffled[first][np.isin(labels[shuffled[first]], labels[query])]
    rest = shuffled[~np.isin(shuffled, needed)]
    return np.concatenate([needed, rest[: max(0, size - len(needed))]])


def warn_of_labels(labels: Sequence[str]) -> list[str]:
    """What is odd about the class names, in sentences; empty where nothing is."""
    names = sorted(set(labels))
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(name.casefold().strip(), []).append(name)
    alike = [" and ".join(map(repr, group)) for group in folded.values() if len(group) > 1]
    said = []
    if alike:
        said.append(
            f"{len(alike)} labels differ in upper and lower case only ({'; '.join(alike[:3])}): "
            "they are trained as different classes; rename one where they are the same"
        )
    counts = np.unique(np.array(labels), return_counts=True)[1]
    single = int((counts == 1).sum())
    if single:
        said.append(
            f"{single} of {len(names)} classes have one image: they are trained on, but pair "
            "losses see them only as something to keep away from"
        )
    return said
