"""Vectors and their classes → projections that need no training, by name."""

import functools
from collections.abc import Callable
from functools import partial

import numpy as np
from torch import nn

from vizsla.model.projection import (
    ClassSpread,
    Projection,
    WithClasses,
    centred,
    class_logits,
    class_spread,
    discriminant,
    identity_or_pca,
    within_class_whitening,
)

SHRINKAGES = (0.9, 0.6)  # of whitening
DISCRIMINANT_SHRINKAGES = (0.6, 0.3)
CLASSES = ((0.3, 5.0), (0.1, 10.0))  # shrinkage and temperature of class probabilities
CLASS_SHARE = 0.3  # of a cosine, beside a discriminant; top-1 is lower with 0.5, mAP higher


def closed_forms(
    vectors: np.ndarray, labels: np.ndarray, dim: int | None = None
) -> dict[str, nn.Module]:
    """Name → projection that needs no training. vectors: (N, C); labels: (N,) class numbers."""
    if dim is not None and dim != vectors.shape[1]:
        return {"pca": identity_or_pca(vectors, dim)}
    return {name: make() for name, make in closed_form_makers(vectors, labels).items()}


def closed_form_makers(
    vectors: np.ndarray, labels: np.ndarray, *, every: bool = False
) -> dict[str, Callable[[], nn.Module]]:
    """Name → what makes the projection of (N, C) vectors to as many numbers or more.

    Where classes have few vectors (those with one do not count), or there are more classes than
    numbers, some are left out unless `every`.
    """
    start = identity_or_pca(vectors)
    found: dict[str, Callable[[], nn.Module]] = {"centred": lambda: centred(start, vectors)}
    sizes = np.unique(labels, return_counts=True)[1]
    several = sizes[sizes > 1]
    if not every and several.sum() <= 2 * len(several):
        return found
    spread = class_spread(vectors, labels)
    for shrinkage in SHRINKAGES:
        found[f"whitened {shrinkage:g}"] = partial(
            within_class_whitening, spread, shrinkage=shrinkage
        )
    for shrinkage in DISCRIMINANT_SHRINKAGES:
        found[f"discriminant {shrinkage:g}"] = partial(discriminant, spread, shrinkage=shrinkage)
    if every or len(spread.centers) <= vectors.shape[1]:  # vectors at most twice as long
        base = functools.cache(partial(discriminant, spread, shrinkage=DISCRIMINANT_SHRINKAGES[0]))
        found[f"discriminant {DISCRIMINANT_SHRINKAGES[0]:g}"] = base
        for shrinkage, temperature in CLASSES:
            found[f"classes {shrinkage:g}"] = partial(
                _with_classes, base, spread, shrinkage, temperature
            )
    return found


def _with_classes(
    make_base: Callable[[], Projection], spread: ClassSpread, shrinkage: float, temperature: float
) -> WithClasses:
    base = make_base()
    logits = class_logits(spread, shrinkage=shrinkage, temperature=temperature)
    return WithClasses(base, logits, share=CLASS_SHARE)
