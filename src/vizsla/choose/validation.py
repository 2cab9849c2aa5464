"""Labelled images → validation draws like the test part, and the scores of candidates on them.

Each draw takes queries and a gallery from training images: as many as the test part has, and as
many of a class, since the best size of a neighbourhood depends on both. No test image is used.
"""

import dataclasses
import functools
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vizsla.data.imageset import ImageSet
from vizsla.data.label_sets import share_a_label
from vizsla.data.splits import (
    Draw,
    Target,
    class_codes,
    draws_record,
    held_out,
    in_domain,
)
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError
from vizsla.options import OPTIMISED, TuneConfig
from vizsla.score.calibration_draws import share_like
from vizsla.score.metrics.formulas import average_precision, contest_points
from vizsla.score.text_table import WIDTH, Table
from vizsla.score.validation_scores import ValidationScores
from vizsla.search import exact

Progress = Callable[[int, int], None]  # (draws done for one share of RELATIVE_SHARES, draws)
RELATIVE_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of queries, to try
LARGE_DRAWS = 5  # of a test part of more than SMALL images
DRAWS, MOST_DRAWS = 8, 24  # of a smaller one: the fewer its queries, the more draws
SMALL = 1_000
MOST_POOL = 20_000  # labelled images that are all embedded to find the queries' relatives
SHOWN = 12  # rows of the table in the log
FEW = 3  # rows on the terminal, of the best trials that were not kept
MAX_RISK = 0.1  # of losing on the test part, see `Trial.risk`
REPLICATES = 1_000
MOST_QUERIES, MOST_GALLERY = 1_000, 5_000  # of a draw: more would only take longer


def validation_draws(
    images: ImageSet, config: TuneConfig, target: Target | None, *, frozen: bool
) -> list[Draw]:
    """Draws of the images that a model may be validated on.

    frozen: the model was trained on none of the images; else only the held-out ones are used.
    target: the test part, as far as it is known. DataError if there are too few images.
    """
    target = target or Target()
    if not frozen:  # those that a training holds out, whatever the limits
        config = dataclasses.replace(config, draws=max(config.draws, DRAWS))
        labels = class_codes(images)
        draws = held_out(images, config, target).draws
        return [_within_limits(d, labels, (config.seed, 53, i)) for i, d in enumerate(draws)]
    target = dataclasses.replace(
        target,
        queries=target.queries and min(target.queries, MOST_QUERIES),
        gallery=target.gallery and min(target.gallery, MOST_GALLERY),
    )
    if config.validate_on == "seen-classes":
        target = dataclasses.replace(target, per_class=None)  # as many of a class as there are
    config = dataclasses.replace(config, share=None, draws=1)
    usual = share_like(images, target)
    few = (target.queries or SMALL) + (target.gallery or 0) <= SMALL
    wanted = 2 * len(images) // max(1, target.queries or len(images))  # each image queries twice
    draws = []
    for i in range(
        int(np.clip(wanted, DRAWS, MOST_DRAWS)) if few else LARGE_DRAWS
    ):  # other classes, or other images, each time
        other = dataclasses.replace(config, seed=config.seed + i)
        draws += held_out(images, other, target, usual_share=usual).draws
    return draws


def _within_limits(draw: Draw, labels: np.ndarray, seed: tuple[int, ...]) -> Draw:
    """A part of a large draw, whose queries still have images of their class in the gallery."""
    rng = np.random.default_rng(seed)
    gallery, query = draw.gallery, draw.query
    if len(gallery) > MOST_GALLERY:
        gallery = np.sort(rng.permutation(gallery)[:MOST_GALLERY])
        query = query[np.isin(labels[query], labels[gallery])]
    if len(query) > MOST_QUERIES:
        query = np.sort(rng.permutation(query)[:MOST_QUERIES])
    return Draw(query, gallery)


# ── as near to the gallery as the test queries ───────────────────────────────────────────────────


def mean_nearest_cosine(
    queries: np.ndarray, gallery: np.ndarray, *, same_set: bool = False
) -> float:
    """The mean cosine of a query and its nearest gallery image. Needs no labels.

    same_set: queries and gallery are one set, so that each query finds itself first.
    """
    return float(exact.top_k(queries, gallery, 1 + same_set)[1][:, -1].mean())


def match_nearest_cosine(
    draws: Sequence[Draw],
    vectors: np.ndarray,
    labels: np.ndarray,
    wanted: float,
    *,
    can_answer: np.ndarray | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[list[Draw], float]:
    """The draws with galleries changed so that the mean nearest cosine is about `wanted`.

    Photos of one thing often come in series. If a test part was cut through the series, each
    query has a near relative in the gallery, which images drawn one by one seldom have. So a share
    of the queries, the second value, gets its nearest image of the same class into the gallery.
    vectors (N, D), labels (N,): of all labelled images, to which the draws' positions refer.
    can_answer: (N,) bool, which of them may be in a gallery; None: all.
    """
    if can_answer is None:
        can_answer = np.ones(len(labels), dtype=bool)
    relatives = [_nearest_of_same_class(draw, vectors, labels, can_answer) for draw in draws]
    best, best_share, smallest = list(draws), 0.0, np.inf
    changed, cosines = list(draws), [np.nan] * len(draws)
    for share in RELATIVE_SHARES:
        for i, (draw, nearest) in enumerate(zip(draws, relatives, strict=True)):
            if progress:
                progress(i, len(draws))
            rng = np.random.default_rng((seed, 51, i))
            new = _with_relatives(draw, nearest, labels, share, rng)
            if share == 0 or not np.array_equal(new.gallery, changed[i].gallery):
                cosines[i] = mean_nearest_cosine(vectors[new.query], vectors[new.gallery])
            changed[i] = new
        difference = float(np.mean(cosines)) - wanted
        if abs(difference) < smallest:
            best, best_share, smallest = list(changed), share, abs(difference)
        if difference >= 0:
            break
    return best, best_share


def _nearest_of_same_class(
    draw: Draw, vectors: np.ndarray, labels: np.ndarray, can_answer: np.ndarray
) -> np.ndarray:
    """(Q,) positions of each query's nearest image of its class that may be in the gallery and is
    not a query; -1: none."""
    nearest = np.full(len(draw.query), -1)
    is_query = np.zeros(len(labels), dtype=bool)
    is_query[draw.query] = True
    for label in np.unique(labels[draw.query]):
        rows = np.flatnonzero(labels[draw.query] == label)
        others = np.flatnonzero((labels == label) & can_answer & ~is_query)
        if len(others):
            found, _ = exact.top_k(vectors[draw.query[rows]], vectors[others], 1)
            nearest[rows] = others[found[:, 0]]
    return nearest


def _with_relatives(
    draw: Draw, relatives: np.ndarray, labels: np.ndarray, share: float, rng: np.random.Generator
) -> Draw:
    """Puts the relatives of a share of the queries into the gallery, each for one of its class."""
    chosen = relatives[rng.permutation(len(relatives))[: round(share * len(relatives))]]
    wanted = {int(i) for i in chosen if i >= 0}
    gallery = set(draw.gallery.tolist())
    for new in sorted(wanted - gallery):
        gallery.add(new)
        others = sorted(i for i in gallery - wanted if labels[i] == labels[new])
        if others:
            gallery.remove(others[int(rng.integers(len(others)))])
    return Draw(draw.query, np.array(sorted(gallery)))


# ── what candidates are tried on ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class EmbeddedDraws:
    """Validation draws with the vectors of their images.

    images: labelled images that have a vector. draws: positions in `images`.

    relative_share: of the queries whose nearest relative was put into the gallery; None if the
    nearest cosine was not matched. test_queries: how many the test part has, if known.
    """

    images: ImageSet
    vectors: Embeddings
    draws: list[Draw]
    relative_share: float | None = None
    test_queries: int | None = None

    @property
    def validation_set(self) -> "ValidationSet":
        """The draws as positions in the vectors."""
        return validation_set(
            self.images, self.vectors.ids, self.draws,
            relative_share=self.relative_share, test_queries=self.test_queries,
        )  # fmt: skip


def embedded_draws(
    images: ImageSet,
    config: TuneConfig,
    target: Target | None,
    *,
    frozen: bool,
    embed: Callable[[ImageSet], Embeddings],
    nearest_cosine: float | None = None,
    progress: Progress | None = None,
) -> EmbeddedDraws:
    """Draws like the test part, and the vectors of their images.

    frozen: see `validation_draws`. embed: gives the vectors of some of the images; broken ones may
    be missing. nearest_cosine: the test part's, to be matched. progress: of that.
    """
    draws = validation_draws(images, config, target, frozen=frozen)
    used = np.unique(np.concatenate([side for d in draws for side in (d.query, d.gallery)]))
    if nearest_cosine is not None and frozen and len(images) <= MOST_POOL:
        used = np.arange(len(images))
    vectors = embed(images.subset(used))
    known = set(vectors.ids)
    kept = images.subset([i for i in used if images.ids[i] in known])
    place = {name: i for i, name in enumerate(kept.ids)}
    draws = [_moved(draw, images.ids, place) for draw in draws]
    draws = [draw for draw in draws if len(draw.query) and len(draw.gallery)]
    share = None
    if nearest_cosine is not None and draws:
        labels = np.array([str(label) for label in kept.labels or []])
        rows = vectors.of_images(kept.ids).vectors
        draws, share = match_nearest_cosine(
            draws, rows, labels, nearest_cosine, seed=config.seed, progress=progress,
            can_answer=in_domain(kept, config.gallery_domain, "gallery"),
        )  # fmt: skip
    return EmbeddedDraws(kept, vectors, draws, share, target.queries if target else None)


def _moved(draw: Draw, ids: Sequence[str], place: dict[str, int]) -> Draw:
    """The draw with the positions of another list, without the images that it lacks."""
    query, gallery = (
        np.array([place[ids[i]] for i in side if ids[i] in place], np.int64)
        for side in (draw.query, draw.gallery)
    )
    return Draw(query, gallery)


@dataclass(frozen=True, eq=False)
class ValidationSet:
    """Draws as positions in embeddings.

    ids: N, of the embeddings. labels: (N,). n_relevant: for each draw (Q,).

    relative_share: see `EmbeddedDraws`. test_queries: how many the test part has, if known.
    """

    ids: Sequence[str]
    labels: np.ndarray
    draws: list[Draw]
    n_relevant: list[np.ndarray]
    relative_share: float | None = None
    test_queries: int | None = None

    @property
    def per_class(self) -> float:
        """Gallery images of a query's class, on average."""
        return float(np.concatenate(self.n_relevant).mean())

    def first_draws(self, count: int) -> "ValidationSet":
        """The first draws alone."""
        return dataclasses.replace(
            self, draws=self.draws[:count], n_relevant=self.n_relevant[:count]
        )

    def record(self) -> dict[str, Any]:
        """Its size, for the result file."""
        return {
            **draws_record(self.ids, self.draws),
            "per_class": round(self.per_class, 1),
            "relative_share": self.relative_share,
        }

    def description(self) -> str:
        """Its size in words."""
        size = self.record()
        text = (
            f"training images, in {size['draws']} draws of about {size['queries']} queries and "
            f"{size['gallery']} gallery images, {size['per_class']:g} of a query's class"
        )
        if not self.relative_share:
            return text
        return (
            f"{text}. For {100 * self.relative_share:.0f} % of the queries the gallery holds the "
            "most similar image of their class: this makes queries and gallery about as similar as "
            "those of the test part"
        )


def validation_set(
    images: ImageSet,
    ids: Sequence[str],
    draws: Sequence[Draw],
    *,
    relative_share: float | None = None,
    test_queries: int | None = None,
) -> ValidationSet:
    """The draws of `images` as positions in `ids`, those of the embeddings.

    Images without a vector and queries without a relevant image are left out. DataError if no
    query is left.
    """
    place = {name: i for i, name in enumerate(ids)}
    label_of = dict(zip(images.ids, images.labels or [], strict=False))
    labels = np.array([str(label_of.get(name)) for name in ids])
    kept, counts = [], []
    for draw in draws:
        moved = _moved(draw, images.ids, place)
        same = share_a_label(labels[moved.query].tolist(), labels[moved.gallery].tolist())
        relevant = same.sum(axis=1)  # (Q,)
        moved = Draw(moved.query[relevant > 0], moved.gallery)
        if len(moved.query) and len(moved.gallery) > 1:
            kept.append(moved)
            counts.append(relevant[relevant > 0])
    if not kept:
        raise DataError(
            "none of the images held out for validation has another one of its class in the "
            "gallery: give more labelled images"
        )
    return ValidationSet(ids, labels, kept, counts, relative_share, test_queries)


# ── what is tried ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Trial:
    """One candidate's values on the validation queries, means over their draws.

    top1_values, points_values, ap_values: (Q,), all 0…1 (contest points over 1000). optimise: what
    decides, see OPTIMISED. baseline: the trial that it is compared with, None for that one itself.
    test_queries: how many queries the test part has. cannot_lose: it leaves points and top-1 as
    they are for all queries. max_risk: the highest risk that is safe. is_reference: it is shown for
    comparison only.
    """

    name: str
    top1_values: np.ndarray
    points_values: np.ndarray
    ap_values: np.ndarray
    optimise: str = "mean"
    baseline: "Trial | None" = None
    test_queries: int | None = None
    uses: str = ""
    cannot_lose: bool = False
    max_risk: float = MAX_RISK
    is_reference: bool = False

    @property
    def top1(self) -> float:
        """The mean top-1."""
        return float(self.top1_values.mean())

    @property
    def map(self) -> float:
        """The mean AP."""
        return float(self.ap_values.mean())

    @property
    def points(self) -> float:
        """Contest points, 0…1000."""
        return 1000 * float(self.points_values.mean())

    @property
    def means(self) -> dict[str, float]:
        """top1, map, points."""
        return {"top1": self.top1, "map": self.map, "points": self.points}

    @property
    def values(self) -> np.ndarray:
        """(Q,) what is maximised."""
        of = {"points": self.points_values, "top-1": self.top1_values, "map": self.ap_values}
        return of.get(self.optimise, (self.top1_values + self.ap_values) / 2)

    @property
    def value(self) -> float:
        """The mean of what is maximised."""
        return float(self.values.mean())

    @property
    def gain(self) -> float:
        """What `value` gains over the baseline."""
        return self.value - self.baseline.value if self.baseline else 0.0

    @property
    def error(self) -> float:
        """The standard error of the gain, by query; 0 for a single query."""
        if self.baseline is None or len(self.values) < 2:
            return 0.0
        changes = self.values - self.baseline.values
        return float(changes.std(ddof=1) / len(changes) ** 0.5)

    @functools.cached_property
    def risk(self) -> float:
        """The probability that the test part has fewer points than with the baseline; if top-1 or
        AP is optimised, that it has less of that."""
        if self.baseline is None or (self.cannot_lose and self.optimise != "map"):
            return 0.0
        values = {"map": (self.ap_values, self.baseline.ap_values),
                  "top-1": (self.top1_values, self.baseline.top1_values)}  # fmt: skip
        ours, before = values.get(self.optimise, (self.points_values, self.baseline.points_values))
        return probability_of_loss(
            ours - before, self.test_queries or len(ours), unseen=self.max_risk <= MAX_RISK
        )

    @property
    def is_safe(self) -> bool:
        """Whether it gains more than one standard error, with a risk of at most max_risk."""
        return self.baseline is None or (self.gain > self.error and self.risk <= self.max_risk)


def probability_of_loss(changes: np.ndarray, queries: int, *, unseen: bool = True) -> float:
    """How likely the sum of the changes of `queries` other queries is below zero.

    changes: (N,) seen on validation, -1…1. By the Bayesian bootstrap (Rubin, 1981). unseen: with
    one query more that loses all: where none of N was seen to lose, a loss in 1 of N + 1 is still
    expected. For choices where one of the two is safe.
    """
    changes = np.append(changes, -1.0) if unseen else changes
    values, counts = np.unique(changes.round(6), return_counts=True)
    rng = np.random.default_rng((len(changes), 61))
    shares = rng.dirichlet(counts, REPLICATES)  # (R, V)
    sums = rng.multinomial(queries, shares) @ values
    return float((sums < -1e-9).mean())


class Trials:
    """Scores candidates on a validation set and keeps the results; the first is the baseline."""

    def __init__(
        self, on: ValidationSet, optimise: str = "mean", max_risk: float = MAX_RISK
    ) -> None:
        self.on, self.optimise, self.max_risk = on, optimise, max_risk
        self.by_name: dict[str, Trial] = {}

    def add(
        self,
        name: str,
        positions: Sequence[np.ndarray],
        uses: str = "",
        *,
        cannot_lose: bool = False,
        is_reference: bool = False,
    ) -> Trial:
        """Scores a candidate. positions: for each draw (Q, G), its gallery, best first."""
        baseline = next(iter(self.by_name.values()), None)
        top1, points, ap = self._by_query(positions)
        self.by_name[name] = Trial(
            name, top1, points, ap, self.optimise, baseline, self.on.test_queries, uses,
            cannot_lose, self.max_risk, is_reference,
        )  # fmt: skip
        return self.by_name[name]

    def _by_query(self, positions: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Top-1, points and AP of each different query, the mean over its draws."""
        labels = self.on.labels
        queries, values = [], []
        for draw, n, found in zip(self.on.draws, self.on.n_relevant, positions, strict=True):
            same = share_a_label(labels[draw.query].tolist(), labels[draw.gallery].tolist())
            hits = np.take_along_axis(same, found, axis=1)  # (Q, G)
            points = contest_points(hits) / 1000
            values.append(np.stack([hits[:, 0].astype(float), points, average_precision(hits, n)]))
            queries.append(draw.query)
        codes = np.unique(np.concatenate(queries), return_inverse=True)[1]
        joint = np.concatenate(values, axis=1)  # (3, queries of all draws)
        return [np.bincount(codes, row) / np.bincount(codes) for row in joint]

    def best(self) -> Trial:
        """The highest value among those that are safe; the baseline always is."""
        by_value = sorted(self.by_name.values(), key=lambda trial: -trial.value)
        return next(trial for trial in by_value if trial.is_safe and not trial.is_reference)

    def report(self, kept: str) -> "TrialReport":
        """All trials, and the one that was kept."""
        trials = list(self.by_name.values())
        return TrialReport(kept, trials, self.on.description(), self.on.record())


@dataclass(frozen=True)
class TrialReport:
    """All trials, the baseline first, and the name of the kept one.

    tried_on, sizes: the validation set in words and as numbers.
    """

    kept: str
    trials: list[Trial]
    tried_on: str
    sizes: dict[str, Any]

    @property
    def chosen(self) -> Trial:
        """The trial that was kept."""
        return next(trial for trial in self.trials if trial.name == self.kept)

    @property
    def references(self) -> list[Trial]:
        """The trials that could not be kept, such as a model alone beside joined ones."""
        return [trial for trial in self.trials if trial.is_reference]

    def validation(self, what: str) -> ValidationScores:
        """The scores of what was kept. what: the chosen thing."""
        return ValidationScores.on(self.sizes, self.chosen.means, what)

    def table(self, what: str, shown: int | None = None) -> Table:
        """By falling value, always with the baseline, the kept one and the best of each kind.

        what: the name of the candidates' column. shown: how many rows at least; None: all.
        """
        ordered = sorted(self.trials, key=lambda trial: -trial.value)
        best = ordered if shown is None else ordered[:shown]
        best_of_kind = {t.name.split("(")[0]: t for t in reversed(ordered) if "+" not in t.name}
        wanted = {t.name for t in [*best, *best_of_kind.values(), self.trials[0], self.chosen]}
        wanted |= {trial.name for trial in self.references}
        columns = ["", what, "top-1", "points", "mAP", "gain", "± error", "risk", "uses"]
        rows: list[list[Any]] = [
            [
                "kept" if t is self.chosen else
                "" if t.is_safe or t.is_reference else "rejected",
                t.name, round(t.top1, 4), round(t.points, 1), round(t.map, 4), round(t.gain, 4),
                round(t.error, 4), round(t.risk, 3), t.uses,
            ]
            for t in ordered
            if t.name in wanted
        ]  # fmt: skip
        return Table(columns, rows)

    def lines(self, what: str) -> list[str]:
        """The first rows of the table and how to read it, for the log."""
        return [
            *textwrap.wrap(f"{what} chosen on {self.tried_on}:", WIDTH),
            *self._rows(what, self.table(what, SHOWN)),
            *textwrap.wrap(self._how_to_read(), WIDTH),
        ]

    def short_lines(self, what: str) -> list[str]:
        """For a terminal: a table of the kept trial, the baseline, the references and the best
        others. If the baseline was kept: a sentence, and a table only if there are references."""
        count, on = len(self.trials) - len(self.references), self.tried_on.partition(". ")[0]
        best = sorted(self.trials, key=lambda trial: -trial.value)
        others = [one for one in best if one is not self.trials[0] and not one.is_reference]
        if self.chosen is self.trials[0]:
            why = self._refusal(others[0]) if others else "nothing else was tried"
            name = _spaced(self.chosen.name)
            first = f"{name} is kept, {count - 1} others were"
            if name == "none":
                first = f"no {what} is kept of {count - 1}"
            text = f"{first} tried on {on}: {why}"
            lines = textwrap.wrap(f"{text} (-v lists them)", WIDTH)
            if not self.references:
                return lines
            table = self._of(what, [t for t in best if t in (self.chosen, *self.references)])
            return [*lines, *self._rows(what, table)]
        shown = (self.chosen, self.trials[0], *self.references, *others[:FEW])
        return [
            *textwrap.wrap(f"{what} chosen on {on}:", WIDTH),
            *self._rows(what, self._of(what, [trial for trial in best if trial in shown])),
            *textwrap.wrap(f"{self._how_to_read()}; {count} were tried (-v lists them)", WIDTH),
        ]

    def _of(self, what: str, trials: Sequence[Trial]) -> Table:
        """The rows of these trials, in this order."""
        table, names = self.table(what), [trial.name for trial in trials]
        at = table.columns.index(what)
        rows = sorted((row for row in table.rows if row[at] in names),
                      key=lambda row: names.index(row[at]))  # fmt: skip
        return Table(table.columns, rows)

    def _rows(self, what: str, table: Table) -> list[str]:
        """The columns that fit a terminal; long chains have spaces where they may be wrapped."""
        table = table.select(["", "top-1", "points", "mAP", "gain", "risk", what])
        rows = [[*row[:-1], _spaced(row[-1])] for row in table.rows]
        return Table(table.columns, rows).lines(WIDTH, keep=table.columns, whole=("",))

    @property
    def _at_risk(self) -> str:
        return {"map": "AP", "top-1": "top-1"}.get(self.chosen.optimise, "points")

    def _how_to_read(self) -> str:
        notes = (
            f"gain: of {OPTIMISED[self.chosen.optimise]}; risk: the probability that the test part "
            f"loses {self._at_risk}"
        )
        if all(trial.is_safe or trial.is_reference for trial in self.trials):
            return notes
        limit = f"{self.chosen.max_risk:g}"
        if self.chosen.max_risk > MAX_RISK:
            limit += f" ({MAX_RISK:g} for re-ranking, where leaving it out is safe)"
        return (
            f"{notes}; rejected: gains no more than one standard error, or has a risk above {limit}"
        )

    def _refusal(self, trial: Trial) -> str:
        """Why the best of the others was not kept."""
        name = _spaced(trial.name)
        gain = (
            f"the best, {name}, gained {trial.gain:+.4f} ± {trial.error:.4f} of "
            f"{OPTIMISED[trial.optimise]}"
        )
        if trial.gain <= 0:
            return f"the best other one, {name}, gained nothing"
        if trial.gain <= trial.error:
            return f"{gain}, which may be chance"
        return (
            f"{gain}, but the test part would lose {self._at_risk} with a probability of "
            f"{trial.risk:.2f} (at most {trial.max_risk:g})"
        )

    def record(self, what: str) -> dict[str, Any]:
        """For the result file: on what it was chosen, and each candidate's gain."""
        keys = {"": "verdict", "top-1": "top1", "mAP": "map", "± error": "gain_error"}
        rows = [
            {keys.get(name, name): None if value == "" else value for name, value in row.items()}
            for row in self.table(what).records()
        ]
        return {**self.sizes, "candidates": rows}


def _spaced(name: str) -> str:
    """A chain's name with spaces, where a long one may be wrapped; other names as they are."""
    return name.replace("+", " + ").replace(",", ", ") if "(" in name else name
