"""Labelled vectors → projections in closed form, fitted to them; vectors → projected ones."""

import dataclasses
from collections.abc import Callable

import numpy as np

from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError
from vizsla.model.closed_forms import closed_form_makers
from vizsla.model.projection import WHITENINGS, AnyProjection, project, whitening


def projection_makers(
    training: Embeddings, *, every: bool = False
) -> dict[str, Callable[[], AnyProjection]]:
    """Name, of FUSION_WHITENINGS → what fits this head to labelled vectors; unless `every` without
    those that they are too few for."""
    labels = training.labels or []
    rows = [i for i, label in enumerate(labels) if label is not None]
    classes = np.unique([str(labels[i]) for i in rows], return_inverse=True)[1]
    if not rows:
        raise DataError("no training image has a label, so that no head can be learned")
    return closed_form_makers(training.vectors[rows], classes, every=every)


def fitted_projection(training: Embeddings, kind: str) -> AnyProjection:
    """The projection of FUSION_WHITENINGS, fitted to labelled vectors. DataError: it needs labels,
    and there are none."""
    if kind in WHITENINGS:
        return whitening(training.vectors, kind)
    return projection_makers(training, every=True)[kind]()


def projected(part: Embeddings, projection: AnyProjection, kind: str) -> Embeddings:
    """The same images with projected vectors. kind: of FUSION_WHITENINGS."""
    return dataclasses.replace(
        part,
        vectors=project(projection, part.vectors).numpy(),
        model_id=f"{part.model_id}/{kind}",
    )
