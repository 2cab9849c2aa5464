"""Scores of first matches → the score above which a match is right with a wanted probability.

Learned on a validation part, never on the test part: there the cut-off would fit what it is to be
judged by.
"""

from collections.abc import Sequence
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
from vizsla.score.tables import Table
from vizsla.score.truth import Truth

CONFIDENCE = 0.9  # one-sided, that the precision is reached
STEPS = 10  # rows of the table
MOST = 0.9  # of the training images, held out


@dataclass(frozen=True)
class Calibration:
    """wanted: the precision. learned_on: the queries, in words. auc: of right over wrong matches;
    None where all are of one kind. cutoff: None where no score is sure enough."""

    wanted: float
    learned_on: str
    queries: int
    right: int
    auc: float | None
    thresholds: list[Cutoff]
    cutoff: Cutoff | None

    def lines(self) -> list[str]:
        share = self.right / self.queries
        told = [
            f"first matches and their scores, learned on {self.learned_on}:",
            f"{self.right} of {self.queries} are right ({100 * share:.1f} %); "
            + ("all of one kind, so no AUC" if self.auc is None else f"AUC {self.auc:.4f}"),
            *self.table().lines(),
        ]
        percent = f"{100 * self.wanted:g} %"
        if self.cutoff is None:
            return [
                *told,
                f"no cut-off: at no score are these queries enough to be sure that {percent} of "
                "the matches above are right",
            ]
        return [
            *told,
            f"cut-off {self.cutoff.score:.6f}: a match that scores this or more is right "
            f"{percent} of the time ({self.cutoff.called} of {self.queries} queries have one, "
            f"{100 * (self.cutoff.precision or 0):.1f} % of them right)",
        ]

    def table(self) -> Table:
        columns = ["score", "matches", "precision", "recall", "false alarms"]
        rows = [[c.score, c.called, c.precision, c.recall, c.false_alarms] for c in self.thresholds]
        return Table(columns, rows)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def applied(self, judged: Relevance) -> str:
        """What the cut-off does on other queries, in words."""
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
    """From the first match of every query; of several parts each query counts once, where it stands
    first. DataError where the rankings hold no scores."""
    if not 0 < precision < 1:
        raise UsageError(f"a precision of {precision}: choose one between 0 and 1, such as 0.95")
    parts = [judged] if isinstance(judged, Relevance) else list(judged)
    found = [_first_matches(part) for part in parts]
    names = np.concatenate([names for names, _, _ in found])
    once = np.sort(np.unique(names, return_index=True)[1])
    scores = np.concatenate([scores for _, scores, _ in found])[once]
    matches = np.concatenate([matches for _, _, matches in found])[once]
    if len(scores) == 0:
        raise DataError("no query has a match with a score: there is nothing to learn from")
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
    vectors: Embeddings, images: ImageSet, parts: Split, *, precision: float = 0.95, source: str
) -> Calibration:
    """From the validation part that `parts` holds out of `images`.

    vectors: of the images held out, at least; those that could not be read are missing. source:
    what the images are called in the text.
    """
    place = {name: i for i, name in enumerate(vectors.ids)}
    judged = []
    for draw in parts.draws:
        asked, searched = (
            _part(vectors, images, [i for i in side.tolist() if images.ids[i] in place], place)
            for side in (draw.query, draw.gallery)
        )
        if len(asked) and len(searched):
            judged.append(_judged(asked, searched))
    if not judged:
        raise DataError(
            f"the embeddings hold none of the {len(parts.held_out)} images that validation uses "
            f"({images.ids[parts.held_out[0]]}, …): embed these very images"
        )
    count = len({name for part in judged for name in part.queries})
    gallery = images.subset(parts.draws[0].gallery)
    told = (
        f"{count} queries of a validation part of {source} (each among {len(gallery)} images of "
        f"{len(set(gallery.labels or []))} classes), drawn to imitate the test part"
    )
    return calibrate(judged, precision=precision, learned_on=told)


def calibrate_on_training(
    training: Embeddings,
    *,
    target: Target | None = None,
    validate_on: str = "new-classes",
    precision: float = 0.95,
    source: str | Path = "training",
    model_id: str | None = None,
) -> Calibration:
    """From a validation part of labelled images, drawn to imitate the test part `target`.

    Their model must not have been trained on them. validate_on: see `split`. model_id: of the
    vectors that the cut-off is for; DataError where it is another.
    """
    if model_id not in (None, training.model_id):
        raise DataError(
            f"{source} was embedded by model {training.model_id}, what is judged by {model_id}: "
            "scores of two models cannot share a cut-off; embed both with one model"
        )
    if not training.labels or not any(training.labels):
        raise DataError(
            f"{source} holds no labels: embed the training images with --class-folders or --labels"
        )
    images = ImageSet(Path(source), training.ids, training.attributes)
    parts = split(images, validate_on, target=target, share=share_like(images, target))
    return calibrate_on_split(training, images, parts, precision=precision, source=str(source))


def share_like(images: ImageSet, target: Target | None) -> float:
    """The share of the images to hold out, so that validation is as hard as the test part.

    Among few classes a first match is more often right than among many. A frozen model needs no
    image to train on, so nearly all may be held out.
    """
    target = target or Target()
    if target.gallery is None or target.queries is None:
        return MOST
    if target.per_class:
        share = target.gallery / target.per_class / len(set(images.labels or []))
    else:
        share = (target.gallery + target.queries) / len(images)
    return float(np.clip(share, SHARE, MOST))


def _first_matches(judged: Relevance) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Names, scores and matches of the queries that have a first image."""
    scores, matches = match_pairs(judged)
    there = judged.lengths > 0 if judged.hits.shape[1] else np.zeros(len(judged), dtype=bool)
    return np.array(judged.queries, dtype=object)[there], scores, matches


def _part(
    vectors: Embeddings, images: ImageSet, at: list[int], place: dict[str, int]
) -> Embeddings:
    kept = images.subset(at)
    rows = [place[name] for name in kept.ids]
    return Embeddings(kept.ids, vectors.vectors[rows], kept.attributes, vectors.model_id)


def _judged(asked: Embeddings, searched: Embeddings) -> Relevance:
    from vizsla.search import exact  # torch: not where a cut-off is learned on a ranking

    return relevance(exact.rank(asked, searched, 1), Truth.from_sets(asked, searched))
