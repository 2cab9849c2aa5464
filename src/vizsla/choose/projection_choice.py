"""Joined vectors → the projection that ranks best, on images that it was not fitted to."""

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vizsla.choose.fusion_choice import MAX_RISK, FusionChoice
from vizsla.choose.validation import Trials, ValidationSet
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Target
from vizsla.embed.embeddings import Embeddings
from vizsla.model.projection import AnyProjection, project
from vizsla.score.calibration_draws import share_like
from vizsla.search import exact

log = logging.getLogger("vizsla.choose")

MOST_HELD_OUT = 0.5  # of the images; something is fitted to the others


def share_held_out(images: ImageSet, target: Target | None) -> float:
    """The share of the classes to hold out if the test classes are new and something is fitted to
    the others: as many as the test part has, since among few classes everything looks good."""
    return min(MOST_HELD_OUT, share_like(images, target))


def choose_projection(
    held: Embeddings,
    validation: ValidationSet,
    fits: Mapping[str, Callable[[], AnyProjection]],
    *,
    weights: Sequence[float],
    alone: Mapping[str, np.ndarray],
    optimise: str = "mean",
) -> FusionChoice:
    """What is best by `optimise` among what is safe (`Trial.is_safe`); its `whiten` is a name.

    held: the joined vectors of held-out images, of which `validation` has draws. fits: name → what
    fits a projection to others. alone: model → its own vectors of the same images, for comparison;
    the best of them is what the choice gains over.
    """
    trials = Trials(validation, optimise, MAX_RISK)
    names = {}
    for name, fit in {"none": None, **fits}.items():
        vectors = held.vectors if fit is None else project(fit(), held.vectors).numpy()
        names[trials.add(f"concat({name})", _ranked(vectors, validation)).name] = name
    singles = [
        trials.add(f"{model} alone", _ranked(vectors, validation), is_reference=True)
        for model, vectors in alone.items()
    ]
    best = trials.best()
    choice = FusionChoice(
        "concat", list(weights), trials.report(best.name),
        max(singles, key=lambda trial: trial.value, default=None), whiten=names[best.name],
    )  # fmt: skip
    for line in choice.all_lines():
        log.debug("%s", line)
    return choice


def _ranked(vectors: np.ndarray, validation: ValidationSet) -> list[np.ndarray]:
    """(Q, G) of each draw: its gallery by falling cosine, as positions in that gallery."""
    return [
        exact.top_k(vectors[draw.query], vectors[draw.gallery], len(draw.gallery))[0]
        for draw in validation.draws
    ]
