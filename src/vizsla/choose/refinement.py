"""Which refinement and which fusion weights: chosen on a validation part, never on the test part.

A validation part is several draws of queries and gallery from labelled training images, like the
test part in size and in images of a class, since the best neighbourhood size depends on both.
"""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Draw, Target
from vizsla.errors import DataError, UsageError
from vizsla.model.embeddings import Embeddings
from vizsla.score.calibration import share_like
from vizsla.score.metrics import average_precision
from vizsla.score.tables import Table
from vizsla.search.chain import LEVELS, QUERIES, USES, Chain, Refiner, Step
from vizsla.tuning import TuneConfig, held_out

log = logging.getLogger("vizsla.choose")

DRAWS = 5  # where a frozen model may be tried on any training images
MOST_QUERIES, MOST_GALLERY = 1_000, 5_000  # of a draw: more would only take longer
WEIGHTS = (0.1, 0.2, 0.5, 0.7, 0.85)  # of the cosine in re-ranking, beside its default
SHOWN = 12  # rows of the table in terminal and log


# ── the validation part ──────────────────────────────────────────────────────────────────────────


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
    for i in range(DRAWS):  # other classes, or other images, each time
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
        }

    def words(self) -> str:
        about = self.record()
        return (
            f"{about['draws']} draws of about {about['queries']} queries and {about['gallery']} "
            f"gallery images, {about['per_class']:g} of a class, all from the training images"
        )


def ground_of(images: ImageSet, embeddings: Sequence[str], draws: Sequence[Draw]) -> Ground:
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
    return Ground(labels, parts, counts)


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
        """Whether it loses more top-1 than one standard error."""
        return self.change < -self.error


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


@dataclass(frozen=True)
class Choice:
    """chain: what was chosen. trials: all that was tried, `none` first. ground: in words."""

    chain: Chain
    trials: list[Trial]
    ground: str
    about: dict[str, Any]

    @property
    def chosen(self) -> Trial:
        return next(trial for trial in self.trials if trial.name == str(self.chain))

    def table(self, shown: int | None = None) -> Table:
        """By falling value; `none` and the chosen one are always there."""
        base = self.trials[0]
        ordered = sorted(self.trials, key=lambda trial: -trial.value)
        kept = [t for i, t in enumerate(ordered) if shown is None or i < shown]
        best_of_kind = {t.name.split("(")[0]: t for t in reversed(ordered) if "+" not in t.name}
        wanted = {t.name for t in [*kept, *best_of_kind.values(), base, self.chosen]}
        columns = ["", "refinement", "top-1", "mAP", "mean", "gain", "top-1 change", "± error",
                   "uses"]  # fmt: skip
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

    def lines(self) -> list[str]:
        return [
            f"refinement chosen on {self.ground}:",
            *self.table(SHOWN).lines(),
            "rejected: loses more top-1 than one standard error",
            f"kept: {self.chain} (uses {USES[self.chain.uses]})",
        ]

    def record(self) -> dict[str, Any]:
        """For the result file."""
        return {**self.about, "candidates": self.table().records()}


def choose_chain(vectors: Embeddings, ground: Ground, *, uses: str = QUERIES) -> Choice:
    """The chain with the highest mean of top-1 and mAP among those that keep top-1.

    Steps alone first, then the best of each together. uses: the most that a chain may use.
    """
    if uses not in LEVELS:
        raise UsageError(f"refinements that use {uses!r}: choose one of {', '.join(LEVELS)}")
    judge = Judge(ground)
    search = _Search(vectors.vectors, judge, LEVELS.index(uses))
    search.try_out([Chain()])
    if uses != LEVELS[0]:
        alone = search.alone()
        search.together(alone)
    best = judge.best(judge.trials)
    chain = search.chains[best.name]
    choice = Choice(chain, list(judge.trials.values()), ground.words(), ground.record())
    for line in choice.lines():
        log.info("%s", line)
    return choice


class _Search:
    """Tries chains on every part; what chains share is made once."""

    def __init__(self, vectors: np.ndarray, judge: Judge, level: int) -> None:
        self.judge, self.level = judge, level
        self.refiners = [Refiner(vectors[p.query], vectors[p.gallery]) for p in judge.ground.parts]
        self.chains: dict[str, Chain] = {}

    def try_out(self, chains: Iterable[Chain]) -> Chain:
        """The best of them that is not too costly; of costly ones alone the best anyway."""
        allowed = [c for c in chains if LEVELS.index(c.uses) <= self.level]
        for chain in allowed:
            if str(chain) not in self.judge.trials:
                found = [
                    refiner.top_k(chain, len(part.gallery))[0]
                    for refiner, part in zip(self.refiners, self.judge.ground.parts, strict=True)
                ]
                self.judge.judge(str(chain), found, chain.uses)
                self.chains[str(chain)] = chain
        trials = [(self.judge.trials[str(chain)], chain) for chain in allowed]
        return max(trials, key=lambda pair: (not pair[0].costs_too_much, pair[0].value))[1]

    def alone(self) -> dict[str, Step]:
        """The best form of each step."""
        per_class = self.judge.ground.per_class
        sizes = [n for n in (1, 3, 8) if n == 1 or n <= per_class]
        found = {}
        for name in ("dba", "aqe"):
            tried = [Step.of(name, n=n, alpha=a) for n in sizes for a in (0.0, 3.0, 8.0)]
            found[name] = self._best_step(tried)
        ks = neighbourhood_sizes(per_class)
        spread = [
            Step.of("diffusion", k=k, alpha=a, weight=w)
            for k in ks[:2] for a in (0.5, 0.8) for w in (0.1, 0.3)
        ]  # fmt: skip
        found["diffusion"] = self._best_step(spread)
        both = (True, False) if self.level == LEVELS.index(QUERIES) else (False,)
        first = self._best_step(
            [Step.of("kreciprocal", k1=k, k2=k2, together=both[0]) for k in ks for k2 in (3, 6)]
        )
        found["kreciprocal"] = self._best_step(
            Step.of("kreciprocal", **{**dict(first.options), "together": b, "weight": w})
            for b in both
            for w in (first["weight"], *WEIGHTS)
        )
        return found

    def together(self, best: dict[str, Step]) -> None:
        """Expansion by gallery and queries, then re-ranking."""
        dba, aqe = best["dba"], best["aqe"]
        expansions: list[tuple[Step, ...]] = [(dba,), (aqe,), (dba, aqe)]
        last: list[tuple[Step, ...]] = [(), (best["kreciprocal"],), (best["diffusion"],)]
        self.try_out([Chain((*some, *end)) for some in expansions for end in last])

    def _best_step(self, steps: Iterable[Step]) -> Step:
        return self.try_out([Chain((step,)) for step in steps]).steps[0]


def neighbourhood_sizes(per_class: float) -> list[int]:
    """k1 to be tried: about half a class, a whole one, one and a half; and the paper's 20."""
    wanted = [20, *(int(np.clip(round(per_class * f), 3, 60)) for f in (0.5, 1.0, 1.5))]
    found: list[int] = []
    for k in wanted:
        if all(abs(k - other) > 0.15 * other for other in found):
            found.append(k)
    return sorted(found)
