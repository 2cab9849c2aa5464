"""Scores of first matches → the score above which a match is right with a given probability.

Learned on a validation part, never on the test part: the cut-off would be fitted to the very images
that it is judged by.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vizsla.data.imageset import ImageSet
from vizsla.data.splits import SHARE, Split, Target, split
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.score.metrics import Cutoff, calibrated_cutoff, match_auc, threshold_table
from vizsla.score.relevance import Relevance, match_pairs, relevance
from vizsla.score.text_table import Table
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking

CONFIDENCE = 0.9  # one-sided, that the precision is reached
STEPS = 10  # rows of the table
Rank = Callable[[Sequence[Embeddings], Sequence[Embeddings]], Ranking]
MAX_SHARE = 0.9  # of the training images, held out


@dataclass(frozen=True)
class Calibration:
    """A cut-off on the score of first matches, and what it was learned from.

    wanted: the precision. learned_on: the queries, in words. right: how many first matches are.
    auc: of right over wrong matches; None if all are of one kind. cutoff: None if there are
    too few queries to be sure of the precision at any score.
    """

    wanted: float
    learned_on: str
    queries: int
    right: int
    auc: float | None
    thresholds: list[Cutoff]
    cutoff: Cutoff | None

    def lines(self) -> list[str]:
        """The calibration as text for a terminal."""
        share = self.right / self.queries
        lines = [
            f"first matches and their scores, learned on {self.learned_on}:",
            f"{self.right} of {self.queries} are right ({100 * share:.1f} %); "
            + ("all of one kind, so no AUC" if self.auc is None else f"AUC {self.auc:.4f}"),
            *self.table().lines(),
        ]
        percent = f"{100 * self.wanted:g} %"
        if self.cutoff is None:
            return [
                *lines,
                f"no cut-off: these queries are too few to be sure, at any score, that {percent} "
                "of the matches above it are right",
            ]
        return [
            *lines,
            f"cut-off {self.cutoff.score:.6f}: a match that scores this or more is right "
            f"{percent} of the time ({self.cutoff.called} of {self.queries} queries have one, "
            f"{100 * (self.cutoff.precision or 0):.1f} % of them right)",
        ]

    def table(self) -> Table:
        """One row for each of `thresholds`."""
        columns = ["score", "matches", "precision", "recall", "false alarms"]
        rows = [[c.score, c.called, c.precision, c.recall, c.false_alarms] for c in self.thresholds]
        return Table(columns, rows)

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)

    def applied(self, judged: Relevance) -> str:
        """In words, how many matches of other queries reach the cut-off, and how many are right."""
        if self.cutoff is None:
            return ""
        scores, matches = match_pairs(judged)
        above = matches[scores >= self.cutoff.score]
        share = f", {100 * above.mean():.1f} % of them right" if len(above) else ""
        return (
            f"on the {len(judged)} queries judged here {len(above)} have a match at or above the "
            f"cut-off{share}"
        )


def calibrate(
    judged: Relevance | Sequence[Relevance], *, precision: float = 0.95, learned_on: str = ""
) -> Calibration:
    """Learns the cut-off from the first match of every query.

    A query that is in several of the parts counts once, in the first of them. precision: how many
    of the matches above the cut-off must be right. DataError: rankings without scores.
    """
    if not 0 < precision < 1:
        raise UsageError(f"a precision of {precision}: choose one between 0 and 1, such as 0.95")
    parts = [judged] if isinstance(judged, Relevance) else list(judged)
    found = [_first_matches(part) for part in parts]
    names = np.concatenate([names for names, _, _ in found])
    once = np.sort(np.unique(names, return_index=True)[1])
    scores = np.concatenate([scores for _, scores, _ in found])[once]
    matches = np.concatenate([matches for _, _, matches in found])[once]
    if len(scores) == 0:
        raise DataError("no query has a match with a score, so no cut-off can be learned")
    steps = np.quantile(scores, np.linspace(0, 1, STEPS + 1)[:-1], method="inverted_cdf")
    return Calibration(
        precision,
        learned_on,
        len(scores),
        int(matches.sum()),
        match_auc(scores, matches),
        threshold_table(scores, matches, steps.tolist()),
        calibrated_cutoff(scores, matches, precision=precision, confidence=CONFIDENCE),
    )


def calibrate_on_split(
    vectors: Sequence[Embeddings],
    images: ImageSet,
    parts: Split,
    *,
    precision: float = 0.95,
    source: str,
    rank: Rank | None = None,
) -> Calibration:
    """Learns the cut-off on the validation part that `parts` holds out of `images`.

    vectors: of one model or several, at least those of the held-out images; an image that one of
    them lacks is left out. source: the name of the images in `learned_on`. rank: ranks a gallery
    for queries, each with the vectors of all models; by default by cosines of the only one.
    """
    common = set(vectors[0].ids).intersection(*(one.ids for one in vectors[1:]))
    judged = []
    for draw in parts.draws:
        query_sets, gallery_sets = (
            [_part(one, images, [i for i in side.tolist() if images.ids[i] in common])
             for one in vectors]
            for side in (draw.query, draw.gallery)
        )  # fmt: skip
        if len(query_sets[0]) and len(gallery_sets[0]):
            ranking = (rank or _by_cosine)(query_sets, gallery_sets)
            truth = Truth.from_sets(query_sets[0], gallery_sets[0])
            judged.append(relevance(ranking, truth))
    if not judged:
        raise DataError(
            f"the embeddings hold none of the {len(parts.held_out)} images that validation uses "
            f"({images.ids[parts.held_out[0]]}, …): embed these very images"
        )
    count = len({name for part in judged for name in part.queries})
    gallery = images.subset(parts.draws[0].gallery)
    learned_on = (
        f"{count} queries of a validation part of {source} (each among {len(gallery)} images of "
        f"{len(set(gallery.labels or []))} classes), drawn to imitate the test part"
    )
    return calibrate(judged, precision=precision, learned_on=learned_on)


def calibrate_on_training(
    training: Embeddings,
    *,
    target: Target | None = None,
    validate_on: str = "new-classes",
    precision: float = 0.95,
    source: str | Path = "training",
    model_id: str | None = None,
) -> Calibration:
    """Learns the cut-off on a validation part of labelled images, drawn to imitate the test part.

    Their model must not have been trained on them. target: the test part. validate_on: see `split`.
    model_id: of the vectors that the cut-off is for; DataError if `training` has another.
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
    images = ImageSet(Path(source), training.ids, training.attributes)
    parts = split(images, validate_on, target=target, share=share_like(images, target))
    return calibrate_on_split([training], images, parts, precision=precision, source=str(source))


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


def _first_matches(judged: Relevance) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Names, scores and matches of the queries that have a first image."""
    scores, matches = match_pairs(judged)
    there = judged.lengths > 0 if judged.hits.shape[1] else np.zeros(len(judged), dtype=bool)
    return np.array(judged.queries, dtype=object)[there], scores, matches


def _part(vectors: Embeddings, images: ImageSet, at: list[int]) -> Embeddings:
    kept = images.subset(at)
    row_of = {name: i for i, name in enumerate(vectors.ids)}
    rows = [row_of[name] for name in kept.ids]
    return Embeddings(kept.ids, vectors.vectors[rows], kept.attributes, vectors.model_id)


def _by_cosine(queries: Sequence[Embeddings], gallery: Sequence[Embeddings]) -> Ranking:
    from vizsla.search import exact  # imports torch, which a cut-off for a ranking does not need

    return exact.rank(queries[0], gallery[0], 1)
