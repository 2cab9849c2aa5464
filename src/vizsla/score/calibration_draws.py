"""Labelled images and their vectors → a Calibration, by draws in which classes are absent.

The images must be new to the model: else its scores would look better than they are.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vizsla.data.absent_classes import draws_with_absent_classes
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import SHARE, Draw, Target, class_codes
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError
from vizsla.score.calibration import SURE, Calibration, calibrate, made_by
from vizsla.score.relevance import Relevance, relevance
from vizsla.score.truth import Truth
from vizsla.search.ranking import NEAR, Ranking

MAX_SHARE = 0.9  # of the training images, held out
MOST_IMAGES = 5_000  # that are learned from: more would only take longer

Rank = Callable[[Sequence[Embeddings], Sequence[Embeddings]], Ranking]


@dataclass(frozen=True, eq=False)
class JudgedDraws:
    """Rankings of the galleries of some draws, judged.

    judged: one for each draw. sizes: images and classes of each draw's gallery. made_by: the model
    and the refinement that gave the scores. near: of each draw's evidence, if it has any.
    """

    judged: list[Relevance]
    sizes: list[tuple[int, int]]
    made_by: dict[str, Any]
    near: list[float]

    def __add__(self, other: "JudgedDraws") -> "JudgedDraws":
        return JudgedDraws(
            self.judged + other.judged, self.sizes + other.sizes, self.made_by,
            self.near + other.near,
        )  # fmt: skip

    def calibration(
        self, *, sure: float = SURE, source: str, by_class: bool = False
    ) -> Calibration:
        """What is learned from them; with evidence, also what is learned without it. source: the
        name of the images in `learned_on`. by_class: see `precision_levels`."""
        queries = {name for part in self.judged for name in part.queries}
        size, classes = np.mean(self.sizes, axis=0).round().astype(int)
        learned_on = (
            f"{len(queries)} queries of {source}, in {len(self.judged)} draws, each with about "
            f"{size} gallery images of {classes} classes"
        )
        learned = functools.partial(
            calibrate, self.judged, sure=sure, made_by=self.made_by, by_class=by_class,
            learned_on=learned_on,
        )  # fmt: skip
        if len(self.near) < len(self.judged):
            return learned()
        found = learned(queries_near=float(np.mean(self.near)))
        return dataclasses.replace(found, of_scores=learned())


def judged_draws(
    vectors: Sequence[Embeddings], images: ImageSet, draws: Sequence[Draw], rank: Rank | None = None
) -> JudgedDraws:
    """Ranks the gallery of each draw for its queries, and judges the rankings.

    vectors: of one model or several; an image that one of them lacks is left out. rank: ranks a
    gallery for queries, each with the vectors of all models; by default by cosines of the only one.
    DataError: no image has vectors.
    """
    row_of = [{name: i for i, name in enumerate(one.ids)} for one in vectors]
    judged, sizes, near, source_of_scores = [], [], [], None
    for draw in draws:
        query, gallery = (
            [name for name in (images.ids[i] for i in side) if all(name in of for of in row_of)]
            for side in (draw.query, draw.gallery)
        )
        if not query or not gallery:
            continue
        asked, searched = (
            [_part(one, of, images, names) for one, of in zip(vectors, row_of, strict=True)]
            for names in (query, gallery)
        )
        ranking = (rank or by_cosine)(asked, searched)
        source_of_scores = made_by(ranking.origin)
        near += [ranking.origin[NEAR]] if ranking.evidence is not None else []
        judged.append(relevance(ranking, Truth.from_sets(asked[0], searched[0])))
        sizes.append((len(gallery), len(set(searched[0].labels or []))))
    if source_of_scores is None:
        raise DataError(
            f"the embeddings hold none of the images that validation uses ({images.ids[0]}, …): "
            "embed these very images"
        )
    return JudgedDraws(judged, sizes, source_of_scores, near)


def calibrate_on_training(
    training: Embeddings,
    *,
    target: Target | None = None,
    sure: float = SURE,
    source: str | Path = "training",
    model_id: str | None = None,
    rank: Rank | None = None,
    seed: int = 0,
) -> Calibration:
    """Learned on labelled embeddings, by draws that imitate the test part.

    target: the test part. model_id: of the vectors that the decisions are for; DataError if
    `training` has another, or no labels.
    """
    if model_id not in (None, training.model_id):
        raise DataError(
            f"{source} was embedded by model {training.model_id}, the vectors to be judged by "
            f"{model_id}: scores of two models cannot share a cut-off; embed both with one model"
        )
    if not training.labels or not any(training.labels):
        raise DataError(
            f"{source} has no labels: embed the training images with --class-folders or --labels"
        )
    every = ImageSet(Path(source), training.ids, training.attributes)
    images = at_most(every, seed=seed)
    draws = draws_with_absent_classes(images, target, seed=seed)
    return judged_draws([training], images, draws, rank).calibration(sure=sure, source=str(source))


def at_most(images: ImageSet, most: int = MOST_IMAGES, *, seed: int = 0) -> ImageSet:
    """So many images at most: whole classes at random, then images of these."""
    if len(images) <= most:
        return images
    rng = np.random.default_rng((seed, 72))
    labels = class_codes(images)
    order = rng.permutation(labels.max() + 1)
    sizes = np.bincount(labels)[order]
    kept = order[: max(8, int((sizes.cumsum() <= most).sum()))]  # classes
    at = rng.permutation(np.flatnonzero(np.isin(labels, kept)))[:most]
    return images.subset(np.sort(at))


def share_like(images: ImageSet, target: Target | None) -> float:
    """The share of the images to hold out, so that validation is as hard as the test part.

    Among few classes a first match is more often right than among many. A frozen model needs no
    training images, so nearly all may be held out.
    """
    target = target or Target()
    if target.gallery is None or target.queries is None:
        return MAX_SHARE
    if target.per_class:
        share = target.gallery / target.per_class / len(set(images.labels or []))
    else:
        share = (target.gallery + target.queries) / len(images)
    return float(np.clip(share, SHARE, MAX_SHARE))


def _part(
    vectors: Embeddings, row_of: dict[str, int], images: ImageSet, names: list[str]
) -> Embeddings:
    """The vectors of these images, with the attributes that the images have."""
    place = {name: i for i, name in enumerate(images.ids)}
    kept = images.subset([place[name] for name in names])
    rows = [row_of[name] for name in kept.ids]
    return dataclasses.replace(
        vectors.subset(rows), ids=kept.ids, attributes=kept.attributes, root=None
    )


def by_cosine(queries: Sequence[Embeddings], gallery: Sequence[Embeddings]) -> Ranking:
    """The first hundred images for each query by one model."""
    from vizsla.search import exact  # imports torch, which a cut-off for a ranking does not need

    return exact.rank(queries[0], gallery[0], min(100, len(gallery[0])))
