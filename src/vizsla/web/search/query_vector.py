"""Vectors of examples → one unit vector to search for. Knows no gallery and no HTTP.

All scores are linear in the vectors of the gallery, so a search by any mix of examples is a search
for one vector:

- Examples of one kind (images, or words) are averaged; what results should *not* be like is
  subtracted with half the weight.
- Marks are relevance feedback by Rocchio's rule: the mean of the right results is added with weight
  0.75, that of the wrong ones subtracted with 0.15 (Rocchio 1971; the weights are those of Manning
  et al. 2008, §9.1).
- Images and words score on different scales: cosines between images spread far wider than
  those between words and images. So the scores of each kind are standardised separately,
  s → (s - mean) / std over the gallery, and then added with the weights. The mean changes no rank,
  so it is enough to divide the vector of each kind by its std.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vizsla.errors import UsageError

NOT_WEIGHT = 0.5
RIGHT_WEIGHT, WRONG_WEIGHT = 0.75, 0.15


@dataclass(frozen=True, eq=False)
class Examples:
    """Unit vectors (D,) of the examples of one search."""

    images: list[np.ndarray] = field(default_factory=list)
    not_images: list[np.ndarray] = field(default_factory=list)
    texts: list[np.ndarray] = field(default_factory=list)
    not_texts: list[np.ndarray] = field(default_factory=list)
    right: list[np.ndarray] = field(default_factory=list)
    wrong: list[np.ndarray] = field(default_factory=list)


def query_vector(
    examples: Examples,
    spread: Callable[[np.ndarray], float],
    *,
    image_weight: float = 1.0,
    text_weight: float = 1.0,
) -> np.ndarray:
    """(D,) float32 of length 1, whose nearest neighbours are the results.

    spread: the standard deviation of a vector's scores over the gallery. UsageError if the
    examples cancel each other out.
    """
    positive = [*examples.images, *examples.texts, *examples.right]
    if len(positive) == 1 and not (examples.not_images or examples.not_texts or examples.wrong):
        return np.asarray(positive[0], np.float32)  # unchanged, to the last bit
    marks = RIGHT_WEIGHT * _mean(examples.right) - WRONG_WEIGHT * _mean(examples.wrong)
    images = _mean(examples.images) - NOT_WEIGHT * _mean(examples.not_images) + marks
    texts = _mean(examples.texts) - NOT_WEIGHT * _mean(examples.not_texts)
    parts = []
    if np.ndim(images):
        strength = _strength(
            examples.images or examples.right, examples.not_images, NOT_WEIGHT, WRONG_WEIGHT
        )
        parts.append((images, image_weight * strength))
    if np.ndim(texts):
        strength = _strength(examples.texts, examples.not_texts, NOT_WEIGHT, 0.0)
        parts.append((texts, text_weight * strength))
    if len(parts) == 1:
        return _unit(parts[0][0])
    return _unit(sum(weight / (spread(part) or 1.0) * part for part, weight in parts))


def _mean(vectors: Sequence[np.ndarray]) -> Any:
    """The mean (D,); 0.0 without vectors."""
    return np.mean(np.stack(vectors).astype(np.float64), axis=0) if vectors else 0.0


def _strength(
    positive: Sequence[Any], negative: Sequence[Any], negative_weight: float, otherwise: float
) -> float:
    """1 with positive examples, else less: standardising would inflate negative ones."""
    return 1.0 if positive else negative_weight if negative else otherwise


def _unit(vector: Any) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length < 1e-6:
        raise UsageError("the examples cancel each other out: remove one, or give one more weight")
    return np.asarray(vector / length, np.float32)
