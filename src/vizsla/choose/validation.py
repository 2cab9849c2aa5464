"""Labelled images → a validation part that imitates the test part, and what candidates score on it.

Several draws of queries and gallery from training images: as many of them as in the test part, and
as many of a class, since the best size of a neighbourhood depends on both. Never the test part.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Draw, Target
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError
from vizsla.score.calibration import share_like
from vizsla.score.metrics import average_precision
from vizsla.score.tables import Table
from vizsla.search import exact
from vizsla.train.tune import TuneConfig, held_out

NEARNESS_STEPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
DRAWS, MORE_DRAWS = 5, 8  # where a frozen model may be tried on any images; of small test parts
SMALL = 1_000  # images of a test part
MOST_POOL = 20_000  # labelled images that are embedded to find relatives among
SHOWN = 12  # rows of the table in terminal and log
MOST_QUERIES, MOST_GALLERY = 1_000, 5_000  # of a draw: more would only take longer


def validation_draws(
    images: ImageSet, config: TuneConfig, target: Target | None, *, frozen: bool
) -> list[Draw]:
    """Draws of the images that may judge a model: all for a frozen one, else those held out.

    target: the test part, as far as it is known. DataError where the images do not allow it.
    """
    target = limited(target)
    if not frozen:
        return held_out(images, config, target).draws
    if config.validate_on == "seen-classes":
        target = dataclasses.replace(target, per_class=None)  # as many of a class as there are
    config = dataclasses.replace(config, share=share_like(images, target), draws=1)
    found = []
    few = (target.queries or SMALL) + (target.gallery or 0) <= SMALL
    for i in range(MORE_DRAWS if few else DRAWS):  # other classes, or other images, each time
        train = dataclasses.replace(config.train, seed=config.train.seed + i)
        found += held_out(images, dataclasses.replace(config, train=train), target).draws
    return found


def limited(target: Target | None) -> Target:
    """The same, no larger than a draw needs to be."""
    target = target or Target()
    return dataclasses.replace(
        target,
        queries=target.queries and min(target.queries, MOST_QUERIES),
        gallery=target.gallery and min(target.gallery, MOST_GALLERY),
    )


# ── nearness ─────────────────────────────────────────────────────────────────────────────────────


def nearness(queries: np.ndarray, gallery: np.ndarray) -> float:
    """The mean cosine of a query and its nearest gallery image. Needs no labels."""
    return float(exact.top_k(queries, gallery, 1)[1].mean())


def as_near(
    draws: Sequence[Draw], vectors: np.ndarray, labels: np.ndarray, wanted: float, *, seed: int = 0
) -> tuple[list[Draw], float]:
    """The draws, with so many queries' nearest image of their class in the gallery that the mean
    nearness is the wanted one; and that share of the queries.

    Photos of one thing often come together. Where a test part was cut between them, each query has
    a near one in the gallery, and drawing images one by one would tear them apart. vectors, labels:
    of all labelled images that may be put in, which the draws' positions point into.
    """
    kin = [_kin(draw, vectors, labels) for draw in draws]
    found, share, apart = list(draws), 0.0, np.inf
    for tried in NEARNESS_STEPS:
        moved = [
            _with_kin(draw, near, labels, tried, np.random.default_rng((seed, 51, i)))
            for i, (draw, near) in enumerate(zip(draws, kin, strict=True))
        ]
        there = float(np.mean([nearness(vectors[d.query], vectors[d.gallery]) for d in moved]))
        if abs(there - wanted) < apart:
            found, share, apart = moved, tried, abs(there - wanted)
        if there >= wanted:
            break
    return found, share


def _kin(draw: Draw, vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(Q,) for each query the nearest image of its class that is no query; -1 where none is."""
    nearest = np.full(len(draw.query), -1)
    asking = np.zeros(len(labels), dtype=bool)
    asking[draw.query] = True
    for label in np.unique(labels[draw.query]):
        rows = np.flatnonzero(labels[draw.query] == label)
        able = np.flatnonzero((labels == label) & ~asking)
        if len(able):
            at, _ = exact.top_k(vectors[draw.query[rows]], vectors[able], 1)
            nearest[rows] = able[at[:, 0]]
    return nearest


def _with_kin(
    draw: Draw, kin: np.ndarray, labels: np.ndarray, share: float, rng: np.random.Generator
) -> Draw:
    """A share of the queries get their nearest image into the gallery, for another of the class."""
    chosen = kin[rng.permutation(len(kin))[: round(share * len(kin))]]
    wanted = {int(i) for i in chosen if i >= 0}
    gallery = set(draw.gallery.tolist())
    for new in sorted(wanted - gallery):
        gallery.add(new)
        others = sorted(i for i in gallery - wanted if labels[i] == labels[new])
        if others:
            gallery.remove(others[int(rng.integers(len(others)))])
    return Draw(draw.query, np.array(sorted(gallery)))


@dataclass(frozen=True, eq=False)
class Drawn:
    """draws: positions in `images`, the labelled images that were embedded. near: the share of the
    queries whose nearest relative was put into the gallery; None where nearness was not asked."""

    images: ImageSet
    vectors: Embeddings
    draws: list[Draw]
    near: float | None = None

    @property
    def ground(self) -> "Ground":
        return ground_of(self.images, self.vectors.ids, self.draws, near=self.near)


def drawn_like(
    images: ImageSet,
    config: TuneConfig,
    target: Target | None,
    *,
    frozen: bool,
    embed: Callable[[ImageSet], Embeddings],
    near: float | None = None,
) -> Drawn:
    """A validation part like the test part, with vectors.

    frozen: the model has seen none of the images; else only those count that its training held out.
    embed: gives the vectors of some of the images. near: the test part's nearness.
    """
    draws = validation_draws(images, config, target, frozen=frozen)
    used = positions_of(draws)
    if near is not None and frozen and len(images) <= MOST_POOL:
        used = np.arange(len(images))
    vectors = embed(images.subset(used))
    place = {name: i for i, name in enumerate(vectors.ids)}
    kept = images.subset([i for i in used if images.ids[i] in place])  # without the broken ones
    at = {name: i for i, name in enumerate(kept.ids)}
    draws = [
        Draw(*(np.array([at[images.ids[i]] for i in side if images.ids[i] in at], np.int64)
               for side in (draw.query, draw.gallery)))
        for draw in draws
    ]  # fmt: skip
    draws = [draw for draw in draws if len(draw.query) and len(draw.gallery)]
    share = None
    if near is not None and draws:
        labels = np.array([str(label) for label in kept.labels or []])
        rows = vectors.vectors[[place[name] for name in kept.ids]]
        draws, share = as_near(draws, rows, labels, near, seed=config.train.seed)
    return Drawn(kept, vectors, draws, share)


def positions_of(draws: Iterable[Draw]) -> np.ndarray:
    """All positions that some draw uses, rising."""
    return np.unique(np.concatenate([side for d in draws for side in (d.query, d.gallery)]))


@dataclass(frozen=True, eq=False)
class Part:
    """One draw as positions in the embeddings of the images that could be read."""

    query: np.ndarray
    gallery: np.ndarray


@dataclass(frozen=True, eq=False)
class Ground:
    """What candidates are tried on. labels: of the embeddings. n_relevant: for each part, (Q,)."""

    labels: np.ndarray
    parts: list[Part]
    n_relevant: list[np.ndarray]
    near: float | None = None  # see Drawn

    @property
    def queries(self) -> int:
        """How many different queries there are."""
        return len(np.unique(np.concatenate([part.query for part in self.parts])))

    @property
    def per_class(self) -> float:
        """Gallery images of a query's class, on average."""
        return float(np.concatenate(self.n_relevant).mean())

    def record(self) -> dict[str, Any]:
        return {
            "draws": len(self.parts),
            "queries": int(np.mean([len(part.query) for part in self.parts])),
            "gallery": int(np.mean([len(part.gallery) for part in self.parts])),
            "per_class": round(self.per_class, 1),
            "near": self.near,
        }

    def words(self) -> str:
        about = self.record()
        near = ""
        if self.near is not None:
            near = (
                f"; {100 * self.near:.0f} % of the queries have their nearest relative there, so "
                "that they are as near to the gallery as in the test part"
            )
        return (
            f"{about['draws']} draws of about {about['queries']} queries and {about['gallery']} "
            f"gallery images, {about['per_class']:g} of a class, all from the training images{near}"
        )


def ground_of(
    images: ImageSet,
    embeddings: Sequence[str],
    draws: Sequence[Draw],
    *,
    near: float | None = None,
) -> Ground:
    """embeddings: the ids in the order of the vectors; images that have none are left out."""
    place = {name: i for i, name in enumerate(embeddings)}
    of_image = dict(zip(images.ids, images.labels or [], strict=False))
    labels = np.array([str(of_image.get(name)) for name in embeddings])
    parts, counts = [], []
    for draw in draws:
        query, gallery = (
            np.array([place[images.ids[i]] for i in side if images.ids[i] in place], np.int64)
            for side in (draw.query, draw.gallery)
        )
        relevant = (labels[query][:, None] == labels[gallery]).sum(axis=1)
        query, relevant = query[relevant > 0], relevant[relevant > 0]
        if len(query) and len(gallery) > 1:
            parts.append(Part(query, gallery))
            counts.append(relevant)
    if not parts:
        raise DataError(
            "none of the images held out for validation can be queried: give more labelled images"
        )
    return Ground(labels, parts, counts, near)


# ── what is tried ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Trial:
    """One candidate's means over the validation queries, and its change of top-1 against `none`.

    error: the standard error of that change, by query.
    """

    name: str
    top1: float
    map: float
    change: float = 0.0
    error: float = 0.0
    uses: str = ""

    @property
    def value(self) -> float:
        """What is maximised."""
        return (self.top1 + self.map) / 2

    @property
    def costs_too_much(self) -> bool:
        """Whether it loses more top-1 than one standard error. One of several queries never is."""
        return self.change < -self.error * (1 + 1e-6)


class Judge:
    """Tries rankings on a Ground and remembers what came of it; the first one is the baseline."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.trials: dict[str, Trial] = {}
        self._base: np.ndarray | None = None

    def judge(self, name: str, positions: Sequence[np.ndarray], uses: str = "") -> Trial:
        """positions: for each part (Q, G), its gallery best first, as positions in the part."""
        top1, ap = self._values(positions)
        if self._base is None:
            self._base = top1
        apart = top1 - self._base
        error = float(apart.std(ddof=1) / len(apart) ** 0.5) if len(apart) > 1 else 0.0
        trial = Trial(name, float(top1.mean()), float(ap.mean()), float(apart.mean()), error, uses)
        self.trials[name] = trial
        return trial

    def _values(self, positions: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Top-1 and AP of each different query, the mean over its draws."""
        labels, names = self.ground.labels, []
        values: list[np.ndarray] = []
        for part, n, at in zip(self.ground.parts, self.ground.n_relevant, positions, strict=True):
            hits = labels[part.gallery][at] == labels[part.query][:, None]
            values.append(np.stack([hits[:, 0].astype(float), average_precision(hits, n)]))
            names.append(part.query)
        codes = np.unique(np.concatenate(names), return_inverse=True)[1]
        both = np.concatenate(values, axis=1)
        top1, ap = (np.bincount(codes, row) / np.bincount(codes) for row in both)
        return top1, ap

    def best(self, names: Iterable[str]) -> Trial:
        """The highest value among those that do not cost too much; the baseline is one of them."""
        base = next(iter(self.trials.values()))
        allowed = [self.trials[name] for name in names if not self.trials[name].costs_too_much]
        return max([base, *allowed], key=lambda trial: trial.value)

    def tried(self, kept: str) -> "Tried":
        return Tried(kept, list(self.trials.values()), self.ground.words(), self.ground.record())


@dataclass(frozen=True)
class Tried:
    """All that was tried, the baseline first, and which was kept. ground: in words. about: too."""

    kept: str
    trials: list[Trial]
    ground: str
    about: dict[str, Any]

    @property
    def chosen(self) -> Trial:
        return next(trial for trial in self.trials if trial.name == self.kept)

    def table(self, what: str, shown: int | None = None) -> Table:
        """By falling value; the baseline, the kept one and the best of each kind are always there.

        what: the candidates' column.
        """
        base = self.trials[0]
        ordered = sorted(self.trials, key=lambda trial: -trial.value)
        best = [t for i, t in enumerate(ordered) if shown is None or i < shown]
        best_of_kind = {t.name.split("(")[0]: t for t in reversed(ordered) if "+" not in t.name}
        wanted = {t.name for t in [*best, *best_of_kind.values(), base, self.chosen]}
        columns = ["", what, "top-1", "mAP", "mean", "gain", "top-1 change", "± error", "uses"]
        rows: list[list[Any]] = [
            [
                "kept" if t is self.chosen else "rejected" if t.costs_too_much else "",
                t.name,
                *(round(v, 4) for v in (t.top1, t.map, t.value, t.value - base.value)),
                round(t.change, 4),
                round(t.error, 4),
                t.uses,
            ]
            for t in ordered
            if t.name in wanted
        ]
        return Table(columns, rows)

    def lines(self, what: str) -> list[str]:
        return [
            f"{what} chosen on {self.ground}:",
            *self.table(what, SHOWN).lines(),
            "rejected: loses more top-1 than one standard error",
        ]

    def record(self, what: str) -> dict[str, Any]:
        """For the result file: on what it was chosen, and each candidate's gain."""
        rows = self.table(what).records()
        return {**self.about, "candidates": [_plain(row) for row in rows]}


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table by names for machines."""
    keys = {"": "verdict", "top-1": "top1", "mAP": "map", "top-1 change": "top1_change",
            "± error": "top1_error"}  # fmt: skip
    return {keys.get(name, name): value if value != "" else None for name, value in row.items()}
