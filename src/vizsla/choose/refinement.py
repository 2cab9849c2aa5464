"""Which chain of refinements: tried on a validation part, never on the test part."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vizsla import storage
from vizsla.choose.validation import (
    Ground,
    Judge,
    Trial,
    Tried,
    drawn_like,
    nearness,
)
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Target
from vizsla.embed.embeddings import Embeddings
from vizsla.search.chain import LEVELS, QUERIES, USES, Chain, Refiner, Step, check_uses
from vizsla.train.tune import TuneConfig

FORM = "refinement/1"
log = logging.getLogger("vizsla.choose")

Progress = Callable[[int, int], None]  # (chains tried, of about so many)
STAGE = "trying refinements"
WEIGHTS = (0.1, 0.2, 0.5, 0.7, 0.85)  # of the cosine in re-ranking, beside its default
# what is varied at the end, of the last step; (): sizes of a neighbourhood
VARIED: dict[str, dict[str, tuple[int | float | bool, ...]]] = {
    "kreciprocal": {
        "weight": (0.3, *WEIGHTS),
        "k1": (),
        "k2": (1, 2, 3, 6),
        "program": (True, False),
    },
    "diffusion": {"weight": (0.05, 0.1, 0.2, 0.3, 0.5), "alpha": (0.5, 0.8, 0.95), "k": ()},
}


@dataclass(frozen=True)
class Choice:
    """chain: what was chosen. tried: all that was."""

    chain: Chain
    tried: Tried

    @property
    def trials(self) -> list[Trial]:
        return self.tried.trials

    @property
    def chosen(self) -> Trial:
        return self.tried.chosen

    def lines(self) -> list[str]:
        """For a terminal and the log."""
        return [
            *self.tried.lines("refinement"),
            f"kept: {self.chain} (uses {USES[self.chain.uses]})",
        ]

    def record(self) -> dict[str, Any]:
        """For the result file: on what it was chosen, and each candidate's gain."""
        return self.tried.record("refinement")

    def save(self, path: str | Path) -> None:
        """Sealed JSON, so that a repeated run need not choose again."""
        content = {"form": FORM, **self.chain.record(), **self.record()}
        storage.write_sealed_json(path, content)


def kept_chain(path: str | Path) -> str | None:
    """The chain that `Choice.save` wrote down; None where nothing was."""
    return str(storage.read_sealed_json(path)["chain"]) if Path(path).exists() else None


def chain_for(
    images: ImageSet,
    config: TuneConfig,
    target: Target | None,
    *,
    frozen: bool,
    embed: Callable[[ImageSet], Embeddings],
    near: float | None = None,
    uses: str = QUERIES,
    progress: Progress | None = None,
) -> Choice:
    """The chain for a test part of which `target` and `near` are known, chosen on labelled images.

    See `drawn_like` for frozen, embed and near.
    """
    drawn = drawn_like(images, config, target, frozen=frozen, embed=embed, near=near)
    return choose_chain(drawn.vectors, drawn.ground, uses=uses, progress=progress)


def chain_learned_on(
    training: Embeddings,
    queries: Embeddings,
    gallery: Embeddings,
    *,
    validate_on: str,
    uses: str = QUERIES,
    progress: Progress | None = None,
) -> Choice:
    """The chain for these queries and this gallery, chosen on labelled training embeddings.

    They must be of images that the model was not trained on. DataError without labels.
    """
    images = ImageSet(Path("the embeddings to learn on"), training.ids, training.attributes)
    return chain_for(
        images,
        TuneConfig(validate_on=validate_on),
        Target(len(queries), len(gallery)),
        frozen=True,
        embed=lambda _: training,
        near=nearness(queries.vectors, gallery.vectors),
        uses=uses,
        progress=progress,
    )


def choose_chain(
    vectors: Embeddings,
    ground: Ground,
    *,
    uses: str = QUERIES,
    progress: Progress | None = None,
) -> Choice:
    """The chain with the highest mean of top-1 and mAP among those that keep top-1.

    Steps alone first, then the best of each together. uses: the most that a chain may use.
    """
    check_uses(uses)
    judge = Judge(ground)
    search = _Search(vectors.vectors, judge, LEVELS.index(uses), progress)
    search.try_out([Chain()])
    if uses != LEVELS[0]:
        search.together(search.alone())
        search.varied(search.chains[judge.best(judge.trials).name])
    search.report(ended=True)
    best = judge.best(judge.trials)
    chain = search.chains[best.name]
    choice = Choice(chain, judge.tried(best.name))
    for line in choice.lines():
        log.debug("%s", line)
    return choice


class _Search:
    """Tries chains on every part; what chains share is made once."""

    def __init__(
        self, vectors: np.ndarray, judge: Judge, level: int, progress: Progress | None = None
    ) -> None:
        self.judge, self.level, self.progress = judge, level, progress
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
                self.report()
        trials = [(self.judge.trials[str(chain)], chain) for chain in allowed]
        return max(trials, key=lambda pair: (not pair[0].costs_too_much, pair[0].value))[1]

    def report(self, *, ended: bool = False) -> None:
        """How many chains are tried, of about how many: what comes last depends on the first."""
        if self.progress:
            most = self.about()
            self.progress(most if ended else min(len(self.chains), most - 1), most)

    def about(self) -> int:
        """How many chains are tried, nearly."""
        if not self.level:
            return 1
        per_class = self.judge.ground.per_class
        sizes, ks = len(self._sizes()), len(neighbourhood_sizes(per_class))
        weights = len(WEIGHTS) * (1 + (self.level == LEVELS.index(QUERIES)))
        return 1 + 6 * sizes + 4 * min(ks, 2) + 4 * ks + weights + 9 + 10

    def _sizes(self) -> list[int]:
        """How many neighbours expansion takes."""
        return [n for n in (1, 3, 8) if n == 1 or n <= self.judge.ground.per_class]

    def alone(self) -> dict[str, Step]:
        """The best form of each step."""
        per_class = self.judge.ground.per_class
        found = {}
        for name in ("dba", "aqe"):
            tried = [Step.of(name, n=n, alpha=a) for n in self._sizes() for a in (0.0, 3.0, 8.0)]
            found[name] = self._best_step(tried)
        ks = neighbourhood_sizes(per_class)
        spread = [
            Step.of("diffusion", k=k, alpha=a, weight=w)
            for k in ks[:2] for a in (0.5, 0.8) for w in (0.1, 0.3)
        ]  # fmt: skip
        found["diffusion"] = self._best_step(spread)
        both = (True, False) if self.level == LEVELS.index(QUERIES) else (False,)
        first = self._best_step(
            Step.of("kreciprocal", k1=k, k2=k2, together=both[0], program=program)
            for k in ks
            for k2 in (3, 6)
            for program in (True, False)
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

    def varied(self, chain: Chain) -> None:
        """Other forms of the last step behind these first ones, one option at a time."""
        if not chain.steps or chain.steps[-1].name not in VARIED:
            return
        *first, last = chain.steps
        ks = neighbourhood_sizes(self.judge.ground.per_class)
        for option, values in VARIED[last.name].items():
            tried = [{**dict(last.options), option: value} for value in values or ks]
            steps = [Step.of(last.name, **options) for options in tried]
            last = self.try_out([Chain((*first, step)) for step in [last, *steps]]).steps[-1]

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
