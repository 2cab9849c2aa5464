"""Scores of a ranking → the probability that a match is right, and what is accepted.

Learned on a validation part, never on the test part: the cut-off would be fitted to the very images
that it is judged by.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vizsla import storage
from vizsla.errors import DataError, UsageError
from vizsla.notebook import Shown, Summary, counted
from vizsla.score.judged_matches import (
    ClassLevels,
    answered,
    levels_of_classes,
    matches_of,
    most_confused,
)
from vizsla.score.match_model import MatchModel, estimated
from vizsla.score.metrics.formulas import match_auc
from vizsla.score.precision_levels import Level, precision_levels, sure_level
from vizsla.score.relevance import Relevance
from vizsla.score.text_table import Table
from vizsla.search.ranking import FEWER, NEAR, Ranking

FORM = "calibration/6"
SHOWN_RANKS = 10  # whose probabilities are learned: of one score, later ranks are more often wrong
SURE = 0.95  # the default precision
SHOWN_CLASSES = 5
SURES = (0.5, 0.8, 0.9, 0.95, 0.99)  # rows of the table
WORDS = (
    (0.95, "very likely the same"), (0.8, "likely the same"), (0.5, "perhaps the same"),
    (0.2, "perhaps another"), (0.05, "likely another"), (0.0, "very likely another"),
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class Calibration(Shown):
    """What the scores of one kind of ranking mean.

    sure: the precision wanted of accepted matches. made_by: the model, refinement and fusion whose
    scores these are (`made_by`). learned_on: the validation part, in words. queries: how many
    different ones it has. absent: the share of them that had nothing in the gallery. auc: that a
    query with something in the gallery has a better match than another; None if all are of one
    kind. model: cut-offs are on the log-odds that it estimates from scores. levels: possible
    cut-offs. knots: (log-odds, probability) pairs, both rising. by_class: whether the cut-off
    is sure for other classes. queries_near: of the draws' evidence (`evidence.with_evidence`), None
    if decisions need none. confused: two classes, and their share of the wrong first matches
    among the better half of the queries, if it is large. of_scores: the same
    without evidence, if there is any. of_searches: the same for what `search` and `serve` give,
    which is not refined, if that ranks otherwise. of_classes: possible cut-offs
    where the first image is of a class. class_column: of the gallery, that names it.
    """

    sure: float
    made_by: dict[str, Any]
    learned_on: str
    queries: int
    absent: float
    auc: float | None
    model: MatchModel
    levels: tuple[Level, ...]
    knots: tuple[tuple[float, float], ...]
    by_class: bool = False
    queries_near: float | None = None
    confused: tuple[str, str, float] | None = None
    of_scores: "Calibration | None" = None
    of_searches: "Calibration | None" = None
    of_classes: ClassLevels = ()
    class_column: str = "label"

    def __post_init__(self) -> None:
        if not 0 < self.sure < 1:
            raise UsageError(
                f"sure of {self.sure:g}: choose a probability between 0 and 1, such as 0.95"
            )

    def with_sure(self, sure: float) -> "Calibration":
        """The same for another precision."""
        return dataclasses.replace(self, sure=sure)

    @property
    def cutoff(self) -> Level | None:
        """From which log-odds on matches are accepted; None if the queries are too few or the
        scores too poor to be sure: then nothing is."""
        return sure_level(self.levels, self.sure)

    def class_cutoffs(self) -> dict[str, float]:
        """From which log-odds on matches are accepted where the first image is of a class whose
        matches are for sure less often right than `sure` at the common cut-off; inf where none are
        sure enough."""
        common = self.cutoff
        if common is None:
            return {}
        found = {}
        for name, levels in self.of_classes:
            above = [level for level in levels if level.score >= common.score]
            if above and above[-1].upper < self.sure:
                own = sure_level(levels, self.sure)
                found[name] = np.inf if own is None else max(own.score, common.score)
        return found

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """That matches are right, (Q, K), nan for nan. scores: (Q, K), best first."""
        return self.decided(scores)[0]

    @property
    def without_evidence(self) -> "Calibration":
        """The one that needs no evidence beside the scores."""
        return self if self.of_scores is None else self.of_scores.with_sure(self.sure)

    def decided(
        self,
        scores: np.ndarray,
        listed: np.ndarray | None = None,
        first_labels: Sequence[object] | None = None,
        evidence: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The probability that matches are right, (Q, K), nan for nan, and whether they are
        accepted. scores, listed, evidence: see `MatchModel.log_odds`. first_labels: the class of
        each query's first image, by which classes have cut-offs of their own."""
        log_odds = self.model.log_odds(scores, listed, evidence)
        known, values = np.array(self.knots).T
        level = self.cutoff
        cutoffs = np.full((len(scores), 1), np.inf if level is None else level.score)
        if first_labels is not None and (of_classes := self.class_cutoffs()):
            for i, label in enumerate(first_labels):
                cutoffs[i] = of_classes.get(str(label), cutoffs[i, 0])
        accepted = np.logical_and.accumulate(log_odds >= cutoffs, axis=1)  # none after a nan
        return np.interp(log_odds, known, values), accepted

    def decide(
        self,
        ranking: Ranking,
        *,
        scores: np.ndarray | None = None,
        listed: np.ndarray | None = None,
        first_labels: Sequence[object] | None = None,
    ) -> Ranking:
        """The same ranking with probabilities, and with how many first ranks are accepted.

        scores: (Q, K) to decide by, in place of the ranking's and of its evidence. listed: (Q, M)
        those of the first images of each query, if `scores` are not (but of groups). first_labels:
        see `decided`. DataError: they are of another
        model, refinement or fusion, there are none, or the ranking is shorter than those that were
        learned from.
        """
        evidence = ranking.evidence if scores is None else None
        scores = ranking.scores if scores is None else scores
        if scores is None:
            raise DataError("the ranking holds no scores: a cut-off on scores needs them")
        near = None if evidence is None else ranking.origin[NEAR]
        own = self.for_scores_of(ranking.origin, queries_near=near)
        needed = min(own.model.depth, ranking.gallery_size or own.model.depth)
        if listed is None and len(ranking) and ranking.depth < needed:
            raise DataError(
                f"the ranking holds {ranking.depth} images for a query, but the calibration needs "
                f"the scores of the first {needed}: search deeper, or give --accept to the search"
            )
        probability, accepted = own.decided(scores, listed, first_labels, evidence)
        level = own.cutoff
        about = {"sure": self.sure, "estimate": None if level is None else _estimate(level.score)}
        return dataclasses.replace(
            ranking,
            accepted=accepted.sum(axis=1),
            probability=probability,
            origin={**ranking.origin, "accept": about},
        )

    def for_scores_of(
        self, origin: Mapping[str, Any], *, queries_near: float | None = None
    ) -> "Calibration":
        """This one, that without evidence or that of searches: whichever is for rankings of this
        origin. DataError if none is, since their scores mean something else.

        queries_near: of the ranking's evidence, None without any. With fewer other queries near by
        than in the draws, evidence looks better than it is, so that scores alone decide.
        """
        own = made_by(origin)
        needed = self.queries_near
        if own == self.made_by and (
            needed is None or (queries_near is not None and needed <= FEWER * queries_near)
        ):
            return self
        if own == self.made_by:
            return self.without_evidence
        if self.of_searches is not None and own == self.of_searches.made_by:
            return self.of_searches.with_sure(self.sure)
        raise DataError(
            f"the calibration is for scores of {_in_words(self.made_by)}, this ranking is of "
            f"{_in_words(own)}: learn one for it (run --accept 0.95, or evaluate --calibrate)"
        )

    # ── for people and files ──

    def table(self) -> Table:
        """What can be accepted at several degrees of certainty, and at the chosen one."""
        rows = []
        for sure in sorted({*SURES, self.sure}):
            level = sure_level(self.levels, sure)
            values: tuple[float | None, ...] = (None, None, None)
            if level is not None:
                values = (_estimate(level.score), level.share, level.precision)
            rows.append([f"{100 * sure:g} %", *values])
        return Table(["sure", "cut-off", "answered", "precision"], rows)

    def lines(self) -> list[str]:
        """As text for a terminal."""
        known = "" if self.auc is None else f" (the AUC of telling which is {self.auc:.4f})"
        return [
            f"decisions, learned on {self.learned_on};",
            f"{100 * self.absent:.0f} % of the queries had nothing in the gallery{known}",
            *self.table().lines(),
            self.verdict,
            *self._about_classes,
            *self._about_confused,
        ]

    @property
    def verdict(self) -> str:
        """What is accepted, in a sentence."""
        level, percent = self.cutoff, f"{100 * self.sure:g} %"
        if level is None:
            usable = [sure for sure in SURES if sure_level(self.levels, sure) is not None]
            less = f"; --accept {max(usable):g} accepts some" if usable else ""
            return (
                f"nothing is accepted: on these {self.queries} queries no match is {percent} sure"
                + less
            )
        others = 100 * level.lower_of_others
        start = f"accepted from an estimate of {_estimate(level.score):.4f}: at least "
        if self.by_class:
            return f"{start}{percent} right, for other classes too"
        return f"{start}{percent} right for queries like these, {others:.0f} % for other classes"

    @property
    def _about_classes(self) -> list[str]:
        """A line about the classes with cut-offs of their own, if there are such."""
        found = (self.of_searches or self.without_evidence).with_sure(self.sure).class_cutoffs()
        if not found:
            return []
        shown = [
            f"{name} ({'none' if np.isinf(at) else f'{_estimate(at):.4f}'})"
            for name, at in sorted(found.items(), key=lambda one: -one[1])[:SHOWN_CLASSES]
        ]
        more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
        return [
            f"searches accept fewer where the first image is of {', '.join(shown)}{more}: less is "
            "right there"
        ]

    @property
    def _about_confused(self) -> list[str]:
        """A line about two classes that the model hardly tells apart, if there are such."""
        if self.confused is None:
            return []
        one, other, share = self.confused
        return [
            f"{100 * share:.0f} % of the wrong first matches with high scores are between {one} "
            f"and {other}: if these are one thing, give them one label, and more can be accepted"
        ]

    def summary(self) -> Summary:
        """The precision that was wanted and the cut-off; the table."""
        table = self.table()
        return Summary(
            "Calibration",
            [counted(self.queries, "query", "queries"), f"{100 * self.sure:g} % sure"],
            table.columns,
            table.rows,
            notes=[self.verdict],
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what it was learned on, the cut-off and the table, on estimates."""
        return {
            "sure": self.sure,
            "cutoff": self.cutoff and _cutoff_record(self.cutoff),
            "made_by": self.made_by,
            "learned_on": self.learned_on,
            "queries": self.queries,
            "absent": self.absent,
            "auc": self.auc,
            "confused": self.confused,
            "class_cutoffs": {
                name: None if np.isinf(at) else _estimate(at)
                for name, at in self.class_cutoffs().items()
            },
            "table": self.table().records(),
        }

    def save(self, path: str | Path) -> None:
        """One sealed JSON file, from which another precision can be asked too."""
        storage.write_sealed_json(path, {"form": FORM, **asdict(self)})

    @staticmethod
    def load(path: str | Path) -> "Calibration":
        """Reads what `save` wrote. StorageError: damaged; DataError: another kind of file."""
        content = storage.read_sealed_json(path)
        if content.get("form") != FORM:
            raise DataError(
                f"{path} is no calibration that this version reads: it says "
                f"form={content.get('form')!r}, expected {FORM!r}: learn it again"
            )
        try:
            return Calibration._from(content)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} is no calibration that this version reads ({error}): learn it again"
            ) from error

    @staticmethod
    def _from(content: Mapping[str, Any]) -> "Calibration":
        fields = {f.name: content[f.name] for f in dataclasses.fields(Calibration)}
        fields["model"] = MatchModel(tuple(fields["model"]["weights"]), fields["model"]["depth"])
        fields["levels"] = tuple(Level(**level) for level in fields["levels"])
        fields["knots"] = tuple((score, value) for score, value in fields["knots"])
        fields["of_classes"] = tuple(
            (name, tuple(Level(**level) for level in levels))
            for name, levels in fields["of_classes"]
        )
        if fields["confused"] is not None:
            fields["confused"] = tuple(fields["confused"])
        for name in ("of_scores", "of_searches"):
            if fields[name] is not None:
                fields[name] = Calibration._from(fields[name])
        return Calibration(**fields)


def calibrate(
    judged: Sequence[Relevance],
    *,
    sure: float = SURE,
    made_by: Mapping[str, Any],
    learned_on: str,
    by_class: bool = False,
    queries_near: float | None = None,
) -> Calibration:
    """Learned from the first ranks of queries, some of which have nothing in the gallery.

    by_class: see `precision_levels`. queries_near: of their evidence, which is not used without. A
    query may be in several of the parts. DataError: rankings without scores, or without matches.
    """
    if queries_near is None:
        judged = [dataclasses.replace(part, evidence=None) for part in judged]
    if any(part.scores is None for part in judged):
        raise DataError("the ranking holds no scores: a cut-off on scores needs them")
    if not any(answered(part).any() for part in judged):
        raise DataError("no query has a match with a score, so nothing can be learned")
    model, log_odds = estimated(judged)
    judged = [
        dataclasses.replace(part, scores=scores)
        for part, scores in zip(judged, log_odds, strict=True)
    ]
    found = matches_of(judged)
    absent = np.concatenate([part.nothing_relevant[answered(part)] for part in judged])
    queries = len(np.unique(found.queries))
    ranks = np.arange(len(found.asks)) - np.searchsorted(found.asks, found.asks)
    shown = ranks < SHOWN_RANKS
    return Calibration(
        sure,
        dict(made_by),
        learned_on,
        queries,
        float(absent.mean()),
        match_auc(found.best, ~absent),
        model,
        tuple(precision_levels(found, by_class=by_class)),
        _knots(found.scores[shown], found.right[shown], queries),
        by_class,
        queries_near,
        most_confused(judged),
        of_classes=() if by_class else levels_of_classes(judged),
    )


def _knots(scores: np.ndarray, right: np.ndarray, queries: int) -> tuple[tuple[float, float], ...]:
    """Isotonic regression of right on score, linear between its blocks.

    No probability is nearer to 0 or 1 than so many queries can show.
    """
    from scipy.optimize import isotonic_regression

    values, at, weights = np.unique(scores, return_inverse=True, return_counts=True)
    shares = np.bincount(at, right.astype(float)) / weights
    fitted = isotonic_regression(shares, weights=weights)
    starts, ends = fitted.blocks[:-1], fitted.blocks[1:] - 1
    least = 1 / (queries + 2)
    levels = np.clip(fitted.x[starts], least, 1 - least)
    knots = {}
    for start, end, value in zip(starts, ends, levels, strict=True):
        knots[float(values[start])] = float(value)
        knots[float(values[end])] = float(value)
    return tuple(knots.items())


# ── what scores can be compared ──────────────────────────────────────────────────────────────────


def made_by(origin: Mapping[str, Any]) -> dict[str, Any]:
    """What gave a ranking its scores: the model and the refinement, of each part of a fusion."""
    fusion = origin.get("fusion", {})
    if "of" in fusion:
        weights = [round(float(w), 6) for w in fusion["weights"]]
        parts = [made_by(part) for part in fusion["of"]]
        return {"fusion": fusion["method"], "weights": weights, "of": parts}
    refine = origin.get("refine", {}).get("chain", "none")
    searched = {key: origin[key] for key in ("searched_as",) if key in origin}
    return {"model_id": origin.get("model_id"), "refine": refine, **searched}


def _in_words(source: Mapping[str, Any]) -> str:
    if "of" in source:
        parts = " and ".join(_in_words(part) for part in source["of"])
        weights = ", ".join(f"{w:g}" for w in source["weights"])
        return f"{parts}, fused by {source['fusion']} with weights {weights}"
    model = source["model_id"] or "an unknown model"
    refine = source["refine"]
    searched = f", searched as {source['searched_as']}" if "searched_as" in source else ""
    return f"model {model}" + ("" if refine == "none" else f" refined by {refine}") + searched


def _cutoff_record(level: Level) -> dict[str, Any]:
    values = asdict(level)
    return {"estimate": _estimate(values.pop("score")), **values}


def _estimate(log_odds: float) -> float:
    """The probability of these log-odds."""
    return float(1 / (1 + np.exp(-log_odds)))


def in_words(probability: float) -> str:
    """`very likely the same (97 %)`: how probable it is that a match is right."""
    words = next(words for least, words in WORDS if probability >= least)
    return f"{words} ({100 * probability:.0f} %)"
