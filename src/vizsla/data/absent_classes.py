"""Labelled images → draws of queries and gallery where half of the queries have nothing to find.

In each draw other classes are absent from the gallery. A draw depends only on the seed and the ids.
"""

import numpy as np

from vizsla.data.imageset import ImageSet
from vizsla.data.splits import NEW, Draw, Target, class_codes, group_codes, held_out, in_domain
from vizsla.errors import DataError
from vizsla.options import TuneConfig

FOLDS = 5  # of the images; those of one are the queries of a draw
ROUNDS = 4  # divisions into folds, so that each image is a query in so many draws at most
MOST_PRESENT = 0.75  # of the classes
FEWEST_CLASSES = 4


def draws_with_absent_classes(
    images: ImageSet,
    target: Target | None = None,
    *,
    query_domain: str | None = None,
    gallery_domain: str | None = None,
    trained: np.ndarray | None = None,
    absent: np.ndarray | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> list[Draw]:
    """FOLDS draws a round; half of the queries of each are of classes that its gallery lacks.

    The gallery has as many classes, as many images of each and as many in all as that of `target`,
    as far as this is known and there are enough; else half of the classes. Groups are never
    divided. trained: (N,) bool, images of classes that the model was trained on: they are no
    queries, and fill the gallery up, beside half of the other classes. absent: (N,) bool, images of
    classes that no gallery has; then queries of no other class have nothing to find. DataError for
    fewer than 4 classes, or if no draw has queries of both kinds.
    """
    target = target or Target()
    labels = class_codes(images)
    C = int(labels.max(initial=-1)) + 1
    trained = np.zeros(len(images), bool) if trained is None else trained
    is_new = ~np.isin(np.arange(C), labels[trained])
    if is_new.sum() < FEWEST_CLASSES:
        raise DataError(
            f"{is_new.sum()} classes: to learn when nothing is there, some must be absent from the "
            f"gallery: give labelled images of {FEWEST_CLASSES} classes or more"
        )
    present = C / 2
    if target.gallery and target.per_class:
        present = target.gallery / target.per_class
    P = int(np.clip(round(present), 2, int(MOST_PRESENT * C)))
    P_new = P if is_new.all() else min(P, int(is_new.sum()) // 2)
    can_query = in_domain(images, query_domain, "query") & ~trained
    can_answer = in_domain(images, gallery_domain, "gallery")
    is_possible = ~np.isin(np.arange(C), [] if absent is None else labels[absent])
    groups = group_codes(images)
    found = []
    for r in range(rounds):
        rng = np.random.default_rng((seed, 71, r))
        fold = _folds(labels, groups, rng)
        for f in range(FOLDS):
            order = rng.permutation(C)
            order = order[is_possible[order]]
            new, known = order[is_new[order]], order[~is_new[order]]
            is_present = np.isin(labels, [*new[:P_new], *known[: P - P_new]])
            pool = np.flatnonzero((fold != f) & is_present & can_answer)
            gallery = _limited(pool, labels, target, rng)
            queries = np.flatnonzero((fold == f) & can_query)
            there = queries[np.isin(labels[queries], labels[gallery])]
            lacking = queries[(~is_present if absent is None else absent)[queries]]
            n = min(len(there), len(lacking))
            if n:
                both = [rng.permutation(kind)[:n] for kind in (there, lacking)]
                found.append(Draw(np.sort(np.concatenate(both)), np.sort(gallery)))
    if not found:
        raise DataError(
            "no class has enough images for a query and a gallery: give more labelled images"
        )
    return found


def held_out_and_trained(
    images: ImageSet, config: TuneConfig, target: Target | None
) -> tuple[ImageSet, np.ndarray]:
    """The images that a training held out, with images of the classes that it was trained on, as
    many of each as the test part has of a class; and which these are, (N,) bool.

    There are none of these if all classes were trained on (validate on seen-classes).
    """
    parts = held_out(images, config, target)
    labels = class_codes(images)
    rng = np.random.default_rng((config.seed, 73))
    aside = ~np.isin(labels, labels[parts.held_out]) & (config.validate_on == NEW)
    others = rng.permutation(np.flatnonzero(aside))
    most = max(1, round((target and target.per_class) or len(images) / (labels.max() + 1)))
    order = others[np.argsort(labels[others], kind="stable")]
    of_class = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(of_class[1], of_class[2])
    trained = order[place < most]
    kept = np.sort(np.concatenate([parts.held_out, trained]))
    return images.subset(kept), np.isin(kept, trained)


def _folds(labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) the fold of each image: groups as wholes, those of a class dealt out evenly."""
    first = np.unique(groups, return_index=True)[1]  # an image of each group
    order = rng.permutation(len(first))
    order = order[np.argsort(labels[first[order]], kind="stable")]
    of_group = np.empty(len(first), np.int64)
    of_group[order] = (np.arange(len(first)) + rng.integers(FOLDS)) % FOLDS
    return of_group[groups]


def _limited(
    pool: np.ndarray, labels: np.ndarray, target: Target, rng: np.random.Generator
) -> np.ndarray:
    """At most so many of each class, and so many in all, as the target has."""
    pool = rng.permutation(pool)
    if target.per_class:
        most = max(1, round(target.per_class))
        order = np.argsort(labels[pool], kind="stable")
        counts = np.bincount(labels[pool])
        place = np.arange(len(pool)) - np.repeat(np.cumsum(counts) - counts, counts)
        pool = pool[np.sort(order[place < most])]
    return pool[: target.gallery]
