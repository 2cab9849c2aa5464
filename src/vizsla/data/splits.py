"""Labelled images → a training part and a validation part that imitates the test part.

Split by class if the test classes will be new, by image if they are the training classes.
Knows labels, groups and domains; opens images only for their EXIF. A split depends only on its
seed and the ids.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vizsla.data.exif_columns import grouped_by
from vizsla.data.imageset import ImageSet
from vizsla.data.label_sets import are_sets, distinct_labels, labels_in
from vizsla.errors import DataError, UsageError
from vizsla.options import TuneConfig

log = logging.getLogger("vizsla.splits")

KINDS = NEW, SEEN = ("new-classes", "seen-classes")
LIKE_QUERIES, LIKE_GALLERY = "like the queries", "like the gallery"  # domains by how images look
AUTO = "auto"  # decided by the test images, see run/validate_on.py
# The options that decide which images are held out.
SPLITTING = ("validate_on", "split_by", "query_domain", "gallery_domain", "share", "seed")
FEWEST_CLASSES = 4  # of which whole ones can be held out
SHARE = 0.2  # of the images goes to validation, at most
SHARE_OF_FEW = 0.4  # of seen classes with few images each
MOST_OF_PAIRED = 0.5  # of the images of classes with two or more, if some have one
DRAWS = 3
QUERY_SHARE = 0.2  # of the held-out images are queries, if the test part is unknown


@dataclass(frozen=True)
class Target:
    """The test part that validation imitates; None if it is not known."""

    queries: int | None = None
    gallery: int | None = None
    per_class: float | None = None  # gallery images of one class

    @property
    def query_share(self) -> float:
        """Queries over all images of the test part."""
        if not self.queries or not self.gallery:
            return QUERY_SHARE
        return self.queries / (self.queries + self.gallery)


@dataclass(frozen=True, eq=False)
class Draw:
    """Positions in the image set of queries, and of the gallery that they search. Disjoint."""

    query: np.ndarray
    gallery: np.ndarray


def draws_record(ids: Sequence[str], draws: Sequence[Draw]) -> dict[str, Any]:
    """The number of draws and their mean sizes, for result files. ids: of the images.

    `id` is the same for the same draws of the same images, in whatever order those of each are.
    """
    digest = hashlib.sha256()
    for draw in draws:
        for side in (draw.query, draw.gallery):
            names = "\0".join(sorted(ids[i] for i in side)) + "\n"
            digest.update(names.encode("utf-8", "surrogateescape"))
    return {
        "draws": len(draws),
        "queries": int(np.mean([len(draw.query) for draw in draws])),
        "gallery": int(np.mean([len(draw.gallery) for draw in draws])),
        "id": digest.hexdigest()[:16],
    }


@dataclass(frozen=True, eq=False)
class Split:
    """training: positions to train on. draws: several ways to divide the held-out images into
    queries and gallery.

    set_aside: how many images are in neither part, because their group is held out.
    """

    training: np.ndarray
    draws: list[Draw]
    set_aside: int = 0

    @property
    def held_out(self) -> np.ndarray:
        """All positions that some draw uses, ascending."""
        parts = [part for draw in self.draws for part in (draw.query, draw.gallery)]
        return np.unique(np.concatenate(parts))


def split(
    images: ImageSet,
    validate_on: str = NEW,
    *,
    target: Target | None = None,
    query_domain: str | None = None,
    gallery_domain: str | None = None,
    draws: int = DRAWS,
    share: float | None = None,
    usual_share: float = SHARE,
    split_by: str | None = None,
    seed: int = 0,
) -> Split:
    """Holds out about `share` of the images, fewer if the test part is smaller. Without it
    `usual_share`, or SHARE_OF_FEW where that would be one image of most seen classes.

    Images of one group are never both trained on and held out. split_by: time or place, which also
    make groups, see `exif_columns.grouped_by`. Every query has a relevant image in
    its gallery. DataError if the images do not allow such a split.
    """
    if validate_on not in KINDS:
        raise UsageError(f"validate on {validate_on!r}: choose {' or '.join(KINDS)}")
    wanted = usual_share if share is None else share
    if not 0 < wanted < 1 or draws < 1:
        raise UsageError(
            f"share={wanted}, draws={draws}: choose a share in (0, 1) and 1 draw or more"
        )
    target = target or Target()
    if split_by is not None:
        images = grouped_by(images, split_by)
    columns = _Columns(
        class_codes(images),
        group_codes(images),
        in_domain(images, query_domain, "query"),
        in_domain(images, gallery_domain, "gallery"),
    )
    rng = np.random.default_rng((seed, 11))
    if validate_on == NEW:
        held_out = _hold_out_classes(columns, wanted, rng)
    else:
        held_out = _hold_out_images(columns, target, wanted, rng)
        is_fixed = share is not None or wanted >= SHARE_OF_FEW
        if not is_fixed and not _can_many_be_queried(columns.labels, held_out):
            rng = np.random.default_rng((seed, 11))  # few images of a class: two are needed
            held_out = _hold_out_images(columns, target, SHARE_OF_FEW, rng)
    return _split_from(columns, held_out, target, draws, seed)


@dataclass(frozen=True, eq=False)
class _Columns:
    """Of each image (N,): the numbers of class and group, and the roles that it may have."""

    labels: np.ndarray
    groups: np.ndarray
    can_query: np.ndarray
    can_answer: np.ndarray


def without_assigned_domains(images: ImageSet) -> ImageSet:
    """The same, without domains that were assigned by how the images look."""
    if not has_assigned_domains(images):
        return images
    return replace(images, attributes=images.attributes.drop_columns(["domain"]))


def has_assigned_domains(images: ImageSet) -> bool:
    """Whether their domains are LIKE_QUERIES and LIKE_GALLERY."""
    if "domain" not in images.attributes.column_names:
        return False
    return not {LIKE_QUERIES, LIKE_GALLERY}.isdisjoint(images.attributes["domain"].to_pylist())


def class_codes(images: ImageSet) -> np.ndarray:
    """(N,) int64: the number of each image's class. DataError if a label is missing.

    Images with several labels are of one class if all are the same; see `label_sets`.
    """
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


def label_sets(images: ImageSet) -> np.ndarray | None:
    """(U, C) bool: which of the C labels each of the U classes of `class_codes` stands for; None if
    no image has several."""
    labels = images.labels or []
    if not are_sets(labels):
        return None
    texts = np.unique(np.array(labels))
    known = sorted(distinct_labels(labels))
    return np.array([np.isin(known, labels_in(text)) for text in texts])


def domain_codes(images: ImageSet) -> np.ndarray | None:
    """(N,) int64: the number of each image's domain, of all without one together; None if no
    domains are known."""
    if "domain" not in images.attributes.column_names:
        return None
    values = [value or "" for value in images.attributes["domain"].to_pylist()]
    return np.unique(np.array(values), return_inverse=True)[1]


def group_codes(images: ImageSet) -> np.ndarray:
    """(N,) int64: the number of each image's group; an image without one is a group of its own."""
    if "group" not in images.attributes.column_names:
        return np.arange(len(images))
    values = images.attributes["group"].to_pylist()
    keys = [f"\0{i}" if value is None else f"={value}" for i, value in enumerate(values)]
    return np.unique(np.array(keys), return_inverse=True)[1]


def in_domain(images: ImageSet, domain: str | None, role: str) -> np.ndarray:
    """(N,) bool: which images may have this role, "query" or "gallery". domain: None for all."""
    if domain is None:
        return np.ones(len(images), dtype=bool)
    if "domain" not in images.attributes.column_names:
        raise DataError(
            f"--{role}-domain {domain}, but the training images have no domain column: "
            "give one in a metadata file (file_name, domain) in the training folder"
        )
    found = np.array(images.attributes["domain"].to_pylist(), dtype=object) == domain
    if not found.any():
        known = sorted({str(v) for v in images.attributes["domain"].to_pylist() if v is not None})
        raise DataError(
            f"no training image has the domain {domain!r}: expected one of {', '.join(known)}"
        )
    return found


# ── which images are held out ─────────────────────────────────────────────────────────────────────


def _hold_out_classes(columns: _Columns, share: float, rng: np.random.Generator) -> np.ndarray:
    """(N,) bool: whole classes, drawn until they hold `share` of the images, two at least.

    Of the classes with a query, half stay for training, or 1 - share if that is less: those with a
    single image cannot show what images of one class have in common.
    """
    labels = columns.labels
    sizes = np.bincount(labels)
    usable = np.flatnonzero(_can_be_queried(columns))
    if len(usable) < 2 or len(sizes) < FEWEST_CLASSES:
        raise DataError(
            f"{len(sizes)} classes, {len(usable)} with enough images for a query: validating "
            f"on new classes needs {FEWEST_CLASSES} and 2. Use --validate-on seen-classes, or more "
            "data"
        )
    max_classes = len(sizes) - 2
    room = min(share * len(labels), max(share, MOST_OF_PAIRED) * sizes[usable].sum())
    order = rng.permutation(usable)
    order = order[np.argsort(sizes[order] > room / 2, kind="stable")]  # very large ones come last
    chosen: list[int] = []
    for c in order:
        fits = len(chosen) < 2 or sizes[chosen].sum() + sizes[c] / 2 <= room
        if fits and len(chosen) < max_classes:
            chosen.append(int(c))
    return np.isin(labels, chosen)


def _can_be_queried(columns: _Columns) -> np.ndarray:
    """(C,) bool: whether the class has a query and another image for the gallery."""
    can_query, can_answer = columns.can_query, columns.can_answer
    queries, answers, both = (
        np.bincount(columns.labels, weights=role.astype(float))
        for role in (can_query, can_answer, can_query & can_answer)
    )
    single = (queries == 1) & (answers == 1) & (both == 1)
    return (queries > 0) & (answers > 0) & ~single


def _hold_out_images(
    columns: _Columns, target: Target, share: float, rng: np.random.Generator
) -> np.ndarray:
    """(N,) bool: the same share of every class, in whole groups; one group stays for training."""
    labels, groups = columns.labels, columns.groups
    has_role = columns.can_query | columns.can_answer
    wanted = (target.queries or len(labels)) + (target.gallery or len(labels))
    pairs = 2 * (int(labels.max()) + 1)  # a query needs another image of its class
    share = min(share, max(wanted, pairs) / len(labels))
    held_out = np.zeros(len(labels), dtype=bool)
    due = 0.0  # images still to be held out, carried from class to class
    for c in rng.permutation(labels.max() + 1):
        members = np.flatnonzero((labels == c) & has_role)
        units = rng.permutation(np.unique(groups[members]))
        due += share * len(members)
        for unit in units[: max(0, len(units) - 1)]:
            size = int((groups[members] == unit).sum())
            if due < max(1.0, size / 2):
                break
            held_out[members[groups[members] == unit]] = True
            due -= size
    return held_out


def _can_many_be_queried(labels: np.ndarray, held_out: np.ndarray) -> bool:
    """Whether two images are held out of a quarter of the classes that have three or more."""
    sizes = np.bincount(labels)
    several = np.bincount(labels[held_out], minlength=len(sizes)) >= 2
    return bool(4 * several.sum() >= (sizes >= 3).sum() and several.any())


# ── queries and gallery ───────────────────────────────────────────────────────────────────────────


def _split_from(
    columns: _Columns, held_out: np.ndarray, target: Target, draws: int, seed: int
) -> Split:
    aside = ~held_out & np.isin(columns.groups, columns.groups[held_out])
    training = np.flatnonzero(~held_out & ~aside)
    if len(np.unique(columns.labels[training])) < 2:
        raise DataError(
            f"after holding out {int(held_out.sum())} images for validation, and "
            f"{int(aside.sum())} that share a group with them, fewer than 2 classes are left to "
            "train on: give more classes, or correct the group column"
        )
    if not held_out.any():
        raise DataError(
            "no class has enough images to hold one out for validation and keep one to train on: "
            "give more images of each class"
        )
    if aside.any():
        log.info("%d images are set aside: their group is held out", int(aside.sum()))
    found = [
        _draw(columns, held_out, target, np.random.default_rng((seed, 12, i))) for i in range(draws)
    ]
    different = {(draw.query.tobytes(), draw.gallery.tobytes()): draw for draw in found}
    found = [draw for draw in different.values() if len(draw.query)]
    if not found:
        raise DataError(
            f"the {int(held_out.sum())} images held out for validation give no query with a "
            "relevant gallery image: give more images of each class, or a larger share"
        )
    return Split(training, found, int(aside.sum()))


def _draw(
    columns: _Columns, held_out: np.ndarray, target: Target, rng: np.random.Generator
) -> Draw:
    labels = columns.labels
    query: list[np.ndarray] = []
    gallery: list[np.ndarray] = []
    for c in np.unique(labels[held_out]):
        members = np.flatnonzero(held_out & (labels == c))
        class_query, class_gallery = _divided(members, columns, target.query_share, rng)
        if target.per_class:
            class_gallery = rng.permutation(class_gallery)[: max(1, round(target.per_class))]
        query.append(class_query if len(class_gallery) else class_query[:0])
        gallery.append(class_gallery)
    queries = rng.permutation(np.concatenate(query))[: target.queries]
    kept = _limited(np.concatenate(gallery), labels, queries, target.gallery, rng)
    return Draw(np.sort(queries), np.sort(kept))


def _divided(
    members: np.ndarray, columns: _Columns, query_share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Queries and gallery of one class; whole groups if there is more than one."""
    can_query, can_answer = columns.can_query[members], columns.can_answer[members]
    either = members[can_query & can_answer]
    groups = columns.groups[either]
    units = groups if len(np.unique(groups)) > 1 else either
    names = rng.permutation(np.unique(units))
    n_query = min(max(1, round(query_share * len(names))), max(0, len(names) - 1))
    is_query = np.isin(units, names[:n_query])
    only_queries = members[can_query & ~can_answer]
    only_gallery = members[~can_query & can_answer]
    return (
        np.concatenate([either[is_query], only_queries]),
        np.concatenate([either[~is_query], only_gallery]),
    )


def _limited(
    gallery: np.ndarray,
    labels: np.ndarray,
    query: np.ndarray,
    size: int | None,
    rng: np.random.Generator,
) -> np.ndarray:
    """At most `size` of the gallery; the class of every query keeps one image."""
    if not size or len(gallery) <= size:
        return gallery
    shuffled = rng.permutation(gallery)
    first = np.unique(labels[shuffled], return_index=True)[1]  # one image of each class
    needed = shuffled[first][np.isin(labels[shuffled[first]], labels[query])]
    rest = shuffled[~np.isin(shuffled, needed)]
    return np.concatenate([needed, rest[: max(0, size - len(needed))]])


def label_warnings(labels: Sequence[str]) -> list[str]:
    """Sentences about suspicious class names and classes with one image."""
    names = sorted(set(labels))
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(name.casefold().strip(), []).append(name)
    alike = [" and ".join(map(repr, group)) for group in folded.values() if len(group) > 1]
    found = []
    if alike:
        found.append(
            f"{len(alike)} labels differ in upper and lower case only ({'; '.join(alike[:3])}): "
            "they are trained as different classes; rename one if they are the same"
        )
    counts = np.unique(np.array(labels), return_counts=True)[1]
    single = int((counts == 1).sum())
    if single:
        found.append(
            f"{single} of {len(names)} classes have one image: they are trained on, but pair "
            "losses use them only as negatives"
        )
    return found


# ── for a training or a choice ───────────────────────────────────────────────────────────────────


def held_out(
    images: ImageSet, config: TuneConfig, target: Target | None, *, usual_share: float = SHARE
) -> Split:
    """What training holds out for validation: the same for the same images, options and target.

    usual_share: see `split`.
    """
    return split(
        images,
        safer_kind(images.labels or []) if config.validate_on == AUTO else config.validate_on,
        target=target,
        query_domain=config.query_domain,
        gallery_domain=config.gallery_domain,
        draws=config.draws,
        share=config.share,
        usual_share=usual_share,
        split_by=config.split_by,
        seed=config.seed,
    )


def safer_kind(labels: Sequence[str | None]) -> str:
    """What to hold out if nothing is known of the test classes: whole ones, if there are enough."""
    return NEW if len(set(labels)) >= FEWEST_CLASSES else SEEN


def target_of(
    query: ImageSet | None, gallery: ImageSet | None, labels: Sequence[str | None] | None = None
) -> Target:
    """What is known of a test part. labels: of its gallery images, where they are known."""
    known = [label for label in labels or [] if label is not None]
    per_class = len(known) / len(Counter(known)) if known else None
    return Target(
        queries=len(query) if query else None,
        gallery=len(gallery) if gallery else None,
        per_class=per_class,
    )


def training_part(images: ImageSet | None, data: str, needed_by: str = "--finetune") -> ImageSet:
    """`images` themselves; DataError where the folder `data` has none to train on."""
    if images is None or len(images) == 0:
        raise DataError(
            f"{data} has no training folder: put labelled images into {data}/training/<class>/, "
            f"or run without {needed_by}"
        )
    return images
