"""Labelled images → validation draws like the test part, and the scores of candidates on them.

Several draws of queries and gallery from training images: as many of them as in the test part, and
as many of a class, since the best size of a neighbourhood depends on both. Never the test part.
"""

import dataclasses
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vizsla.data.imageset import ImageSet
from vizsla.data.label_sets import share_a_label
from vizsla.data.splits import Draw, Target, held_out
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError
from vizsla.options import TuneConfig
from vizsla.score.calibration_draws import share_like
from vizsla.score.metrics import average_precision
from vizsla.score.text_table import WIDTH, Table
from vizsla.search import exact

RELATIVE_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the queries; tried
DRAWS, MORE_DRAWS = 5, 8  # for a frozen model; the second if the test part is small
SMALL = 1_000  # images of a test part
MOST_POOL = 20_000  # labelled images that are all embedded to find the queries' relatives
SHOWN = 12  # rows of the table on the terminal and in the log
MOST_QUERIES, MOST_GALLERY = 1_000, 5_000  # of a draw: more would only take longer


def validation_draws(
    images: ImageSet, config: TuneConfig, target: Target | None, *, frozen: bool
) -> list[Draw]:
    """Draws of the images that a model may be validated on.

    frozen: the model was trained on none of the images; else only the held-out ones are used.
    target: the test part, as far as it is known. DataError if there are too few images.
    """
    target = target or Target()
    target = dataclasses.replace(
        target,
        queries=target.queries and min(target.queries, MOST_QUERIES),
        gallery=target.gallery and min(target.gallery, MOST_GALLERY),
    )
    if not frozen:
        return held_out(images, config, target).draws
    if config.validate_on == "seen-classes":
        target = dataclasses.replace(target, per_class=None)  # as many of a class as there are
    config = dataclasses.replace(config, share=share_like(images, target), draws=1)
    few = (target.queries or SMALL) + (target.gallery or 0) <= SMALL
    draws = []
    for i in range(MORE_DRAWS if few else DRAWS):  # other classes, or other images, each time
        draws += held_out(images, dataclasses.replace(config, seed=config.seed + i), target).draws
    return draws


# ── as near to the gallery as the test queries ───────────────────────────────────────────────────


def mean_nearest_cosine(queries: np.ndarray, gallery: np.ndarray) -> float:
    """The mean cosine of a query and its nearest gallery image. Needs no labels."""
    return float(exact.top_k(queries, gallery, 1)[1].mean())


def match_nearest_cosine(
    draws: Sequence[Draw], vectors: np.ndarray, labels: np.ndarray, wanted: float, *, seed: int = 0
) -> tuple[list[Draw], float]:
    """The draws with galleries changed so that the mean nearest cosine is about `wanted`.

    Photos of one thing often come in series. If a test part was cut through the series, each
    query has a near relative in the gallery, which images drawn one by one seldom have. So a share
    of the queries, the second value, gets its nearest image of the same class into the gallery.
    vectors (N, D), labels (N,): of all labelled images, to which the draws' positions refer.
    """
    relatives = [_nearest_of_same_class(draw, vectors, labels) for draw in draws]
    best, best_share, smallest = list(draws), 0.0, np.inf
    for share in RELATIVE_SHARES:
        changed = [
            _with_relatives(draw, nearest, labels, share, np.random.default_rng((seed, 51, i)))
            for i, (draw, nearest) in enumerate(zip(draws, relatives, strict=True))
        ]
        cosines = [mean_nearest_cosine(vectors[d.query], vectors[d.gallery]) for d in changed]
        difference = float(np.mean(cosines)) - wanted
        if abs(difference) < smallest:
            best, best_share, smallest = changed, share, abs(difference)
        if difference >= 0:
            break
    return best, best_share


def _nearest_of_same_class(draw: Draw, vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(Q,) positions of each query's nearest image of its class that is not a query; -1: none."""
    nearest = np.full(len(draw.query), -1)
    is_query = np.zeros(len(labels), dtype=bool)
    is_query[draw.query] = True
    for label in np.unique(labels[draw.query]):
        rows = np.flatnonzero(labels[draw.query] == label)
        others = np.flatnonzero((labels == label) & ~is_query)
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
    """draws: of positions in `images`, the labelled images that have a vector.

    relative_share: of the queries whose nearest relative was put into the gallery; None if the
    nearest cosine was not matched.
    """

    images: ImageSet
    vectors: Embeddings
    draws: list[Draw]
    relative_share: float | None = None

    @property
    def validation_set(self) -> "ValidationSet":
        """The draws as positions in the vectors."""
        return validation_set(
            self.images, self.vectors.ids, self.draws, relative_share=self.relative_share
        )


def embedded_draws(
    images: ImageSet,
    config: TuneConfig,
    target: Target | None,
    *,
    frozen: bool,
    embed: Callable[[ImageSet], Embeddings],
    nearest_cosine: float | None = None,
) -> EmbeddedDraws:
    """Draws like the test part, and the vectors of their images.

    frozen: see `validation_draws`. embed: gives the vectors of some of the images; broken ones may
    be missing. nearest_cosine: the test part's, to be matched.
    """
    draws = validation_draws(images, config, target, frozen=frozen)
    used = np.unique(np.concatenate([side for d in draws for side in (d.query, d.gallery)]))
    if nearest_cosine is not None and frozen and len(images) <= MOST_POOL:
        used = np.arange(len(images))
    vectors = embed(images.subset(used))
    row_of = {name: i for i, name in enumerate(vectors.ids)}
    kept = images.subset([i for i in used if images.ids[i] in row_of])
    place = {name: i for i, name in enumerate(kept.ids)}
    draws = [_moved(draw, images.ids, place) for draw in draws]
    draws = [draw for draw in draws if len(draw.query) and len(draw.gallery)]
    share = None
    if nearest_cosine is not None and draws:
        labels = np.array([str(label) for label in kept.labels or []])
        rows = vectors.vectors[[row_of[name] for name in kept.ids]]
        draws, share = match_nearest_cosine(draws, rows, labels, nearest_cosine, seed=config.seed)
    return EmbeddedDraws(kept, vectors, draws, share)


def _moved(draw: Draw, ids: Sequence[str], place: dict[str, int]) -> Draw:
    """The draw with the positions of another list, without the images that it lacks."""
    query, gallery = (
        np.array([place[ids[i]] for i in side if ids[i] in place], np.int64)
        for side in (draw.query, draw.gallery)
    )
    return Draw(query, gallery)


@dataclass(frozen=True, eq=False)
class ValidationSet:
    """labels: (N,) of the embeddings. draws: of positions in them. n_relevant: (Q,) of each draw.

    relative_share: see `EmbeddedDraws`.
    """

    labels: np.ndarray
    draws: list[Draw]
    n_relevant: list[np.ndarray]
    relative_share: float | None = None

    @property
    def per_class(self) -> float:
        """Gallery images of a query's class, on average."""
        return float(np.concatenate(self.n_relevant).mean())

    def record(self) -> dict[str, Any]:
        """Its size, for the result file."""
        return {
            "draws": len(self.draws),
            "queries": int(np.mean([len(draw.query) for draw in self.draws])),
            "gallery": int(np.mean([len(draw.gallery) for draw in self.draws])),
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
        if self.relative_share is None:
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
    return ValidationSet(labels, kept, counts, relative_share)


# ── what is tried ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Trial:
    """One candidate's means over the validation queries.

    change: of top-1 against the baseline. error: the standard error of that change, by query.
    """

    name: str
    top1: float
    map: float
    change: float = 0.0
    error: float = 0.0
    uses: str = ""

    @property
    def value(self) -> float:
        """What is maximised: the mean of top-1 and mAP."""
        return (self.top1 + self.map) / 2

    @property
    def costs_too_much(self) -> bool:
        """Whether it loses more top-1 than one standard error. One of several queries never is."""
        return self.change < -self.error * (1 + 1e-6)


class Trials:
    """Scores candidates on a validation set and keeps the results; the first is the baseline."""

    def __init__(self, on: ValidationSet) -> None:
        self.on = on
        self.by_name: dict[str, Trial] = {}
        self._baseline: np.ndarray | None = None

    def add(self, name: str, positions: Sequence[np.ndarray], uses: str = "") -> Trial:
        """positions: for each draw (Q, G), its gallery best first, as positions in that gallery."""
        top1, ap = self._by_query(positions)
        if self._baseline is None:
            self._baseline = top1
        change = top1 - self._baseline
        error = float(change.std(ddof=1) / len(change) ** 0.5) if len(change) > 1 else 0.0
        means = float(top1.mean()), float(ap.mean()), float(change.mean())
        self.by_name[name] = Trial(name, *means, error, uses)
        return self.by_name[name]

    def _by_query(self, positions: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Top-1 and AP of each different query, the mean over its draws."""
        labels = self.on.labels
        queries, values = [], []
        for draw, n, found in zip(self.on.draws, self.on.n_relevant, positions, strict=True):
            same = share_a_label(labels[draw.query].tolist(), labels[draw.gallery].tolist())
            hits = np.take_along_axis(same, found, axis=1)  # (Q, G)
            values.append(np.stack([hits[:, 0].astype(float), average_precision(hits, n)]))
            queries.append(draw.query)
        codes = np.unique(np.concatenate(queries), return_inverse=True)[1]
        both = np.concatenate(values, axis=1)  # (2, queries of all draws)
        top1, ap = (np.bincount(codes, row) / np.bincount(codes) for row in both)
        return top1, ap

    def best(self) -> Trial:
        """The highest value among those that do not cost too much; the baseline never does."""
        baseline, *others = self.by_name.values()
        allowed = [trial for trial in others if not trial.costs_too_much]
        return max([baseline, *allowed], key=lambda trial: trial.value)

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

    def table(self, what: str, shown: int | None = None) -> Table:
        """By falling value; the baseline, the kept one and the best of each kind are always there.

        what: the name of the candidates' column. shown: how many rows at least; None: all.
        """
        baseline = self.trials[0]
        ordered = sorted(self.trials, key=lambda trial: -trial.value)
        best = ordered if shown is None else ordered[:shown]
        best_of_kind = {t.name.split("(")[0]: t for t in reversed(ordered) if "+" not in t.name}
        wanted = {t.name for t in [*best, *best_of_kind.values(), baseline, self.chosen]}
        columns = ["", what, "top-1", "mAP", "mean", "gain", "top-1 change", "± error", "uses"]
        rows: list[list[Any]] = [
            [
                "kept" if t is self.chosen else "rejected" if t.costs_too_much else "",
                t.name,
                *(round(v, 4) for v in (t.top1, t.map, t.value, t.value - baseline.value)),
                round(t.change, 4),
                round(t.error, 4),
                t.uses,
            ]
            for t in ordered
            if t.name in wanted
        ]
        return Table(columns, rows)

    def lines(self, what: str) -> list[str]:
        """The first rows of the table and how to read it, for a terminal."""
        table = self.table(what, SHOWN).select(["", "top-1", "mAP", "gain", "uses", what])
        rows = [[*row[:-1], row[-1].replace("+", " + ").replace(",", ", ")] for row in table.rows]
        table = Table(table.columns, rows)  # with spaces, where long chains fold
        notes = "gain: of the mean of top-1 and mAP"
        if any(row[0] == "rejected" for row in rows):
            notes += "; rejected: loses more top-1 than one standard error"
        return [
            *textwrap.wrap(f"{what} chosen on {self.tried_on}:", WIDTH),
            *table.lines(WIDTH, keep=table.columns, whole=("",)),
            *textwrap.wrap(notes, WIDTH),
        ]

    def record(self, what: str) -> dict[str, Any]:
        """For the result file: on what it was chosen, and each candidate's gain."""
        keys = {"": "verdict", "top-1": "top1", "mAP": "map", "top-1 change": "top1_change",
                "± error": "top1_error"}  # fmt: skip
        rows = [
            {keys.get(name, name): None if value == "" else value for name, value in row.items()}
            for row in self.table(what).records()
        ]
        return {**self.sizes, "candidates": rows}
