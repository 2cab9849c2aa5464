"""Chains of refinements → the one that validation prefers. The test part is never used."""

import importlib.util
import logging
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vizsla import storage
from vizsla.choose.validation import (
    Trial,
    TrialReport,
    Trials,
    ValidationSet,
    embedded_draws,
    mean_nearest_cosine,
)
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Target
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import VizslaError
from vizsla.model.open_model import recorded_embedder
from vizsla.options import TuneConfig
from vizsla.score.text_table import WIDTH
from vizsla.score.validation_scores import ValidationScores
from vizsla.search.chain import (
    BALANCE,
    KEEP,
    KEPT,
    LEVELS,
    MAXSIM,
    QUERIES,
    USES,
    VERIFY,
    Chain,
    Refiner,
    SharedPairs,
    Step,
    check_uses,
)
from vizsla.search.refine import FEWEST_VOTERS
from vizsla.search.verify import AllFeatures, all_features, of_subsets

FORM = "refinement/1"
log = logging.getLogger("vizsla.choose")

Progress = Callable[[int, int], None]  # (draws ranked by all chains so far, expected number)
STAGE = "trying refinements"
COMPARED_N = (10, 50)  # values of n that are tried in steps that compare parts of images
COMPARED_WEIGHTS = (0.05, 0.2, 0.5)
MOST_TOKEN_WORK = 2e10  # parameters of a network times images, up to which tokens are tried
SCREENING_QUERIES = 150  # at least, in the draws on which all chains are compared first
FINALISTS = 2  # of several chains, those that are then compared on all draws
KEEPING = 3  # chains that are tried with `keep`, besides the best
WEIGHTS = (0.1, 0.2, 0.5, 0.7, 0.85)  # of the cosine in re-ranking, besides the default
TEMPERATURES = (0.02, 0.05, 0.1)  # of `balance`
# options of the last step that are varied at the end, and their values; (): neighbourhood sizes
VARIED: dict[str, dict[str, tuple[int | float | bool, ...]]] = {
    "kreciprocal": {
        "weight": (0.3, *WEIGHTS),
        "k1": (),
        "k2": (1, 2, 3, 6),
        "program": (True, False),
    },
    "diffusion": {"weight": (0.05, 0.1, 0.2, 0.3, 0.5), "alpha": (0.5, 0.8, 0.95), "k": ()},
    "balance": {"temperature": (0.02, 0.03, 0.05, 0.07, 0.1, 0.2)},
}


@dataclass(frozen=True)
class RefinementChoice:
    """The chain that was chosen, and all trials."""

    chain: Chain
    report: TrialReport
    cost: str = ""  # of comparing parts, in words; a time, so it is not in any file
    screened: int = 0  # chains that were compared on a few draws only

    @property
    def trials(self) -> list[Trial]:
        """All trials, the baseline first."""
        return self.report.trials

    @property
    def without(self) -> Trial:
        """The trial without any refinement."""
        return self.report.trials[0]

    @property
    def chosen(self) -> Trial:
        """The trial of the chosen chain."""
        return self.report.chosen

    @property
    def validation(self) -> ValidationScores:
        """The scores of the chosen chain."""
        return self.report.validation("refinement")

    def lines(self) -> list[str]:
        """For a terminal."""
        lines = [*self.report.short_lines("refinement"), *self._notes()]
        return [*lines, *self._kept()] if self.chain.steps else lines

    def all_lines(self) -> list[str]:
        """For the log, with more candidates."""
        return [*self.report.lines("refinement"), *self._notes(), *self._kept()]

    def _notes(self) -> list[str]:
        others = f"{self.screened} others were worse on a few draws" if self.screened else ""
        return [line for text in (others, self.cost) for line in textwrap.wrap(text, WIDTH)]

    def _kept(self) -> list[str]:
        return textwrap.wrap(
            f"kept: {str(self.chain).replace(',', ', ')} (uses {USES[self.chain.uses]})", WIDTH
        )

    def record(self) -> dict[str, Any]:
        """For the result file: what it was chosen on, and each candidate's gain."""
        return self.report.record("refinement")

    def save(self, path: str | Path) -> None:
        """Writes sealed JSON, so that a repeated run need not choose again."""
        content = {"form": FORM, **self.chain.record(), **self.record()}
        storage.write_sealed_json(path, content)


def saved_chain(path: str | Path) -> str | None:
    """The chain that `RefinementChoice.save` wrote; None if there is no such file."""
    return str(storage.read_sealed_json(path)["chain"]) if Path(path).exists() else None


def choose_chain_on_images(
    images: ImageSet,
    config: TuneConfig,
    target: Target | None,
    *,
    frozen: bool,
    embed: Callable[[ImageSet], Embeddings],
    nearest_cosine: float | None = None,
    uses: str = QUERIES,
    features_in: str | Path | None = None,
    progress: Progress | None = None,
) -> RefinementChoice:
    """The chain chosen on labelled images, by draws like the test part (see `embedded_draws`).

    uses: the most that the chain may use of the other test images. features_in: where local
    features are kept for later calls; `verify` is tried where the images are files and OpenCV is
    installed; with tokens, and `maxsim`, only if `tokens_are_affordable`.
    """
    drawn = embedded_draws(
        images, config, target, frozen=frozen, embed=embed, nearest_cosine=nearest_cosine
    )
    with tempfile.TemporaryDirectory(prefix="vizsla-local-") as scratch:
        features = None
        if drawn.vectors.root is not None and importlib.util.find_spec("cv2"):
            features = all_features(drawn.vectors, features_in or scratch)
        return choose_chain(
            drawn.vectors, drawn.validation_set,
            optimise=config.optimise, uses=uses, features=features,
            tokens=features is not None and tokens_are_affordable(
                drawn.vectors, drawn.validation_set
            ),
            progress=progress,
        )  # fmt: skip


def tokens_are_affordable(vectors: Embeddings, validation: ValidationSet) -> bool:
    """Whether steps that use tokens are tried: the model is recorded, can be loaded, and is not too
    large for the number of validation images."""
    try:
        embedder = recorded_embedder(vectors.source.model, vectors.model_id, "the vectors")
    except VizslaError:
        return False
    used = np.unique(np.concatenate([np.r_[d.query, d.gallery] for d in validation.draws]))
    return sum(p.numel() for p in embedder.parameters()) * len(used) <= MOST_TOKEN_WORK


def choose_chain_on_embeddings(
    training: Embeddings,
    queries: Embeddings,
    gallery: Embeddings,
    *,
    validate_on: str,
    same_set: bool = False,
    optimise: str = "mean",
    uses: str = QUERIES,
    progress: Progress | None = None,
) -> RefinementChoice:
    """The chain for these queries and this gallery, chosen on labelled training embeddings.

    They must be of images that the model was not trained on. DataError without labels.
    """
    images = ImageSet(Path("the training embeddings"), training.ids, training.attributes)
    return choose_chain_on_images(
        images,
        TuneConfig(validate_on=validate_on, optimise=optimise),
        Target(len(queries), len(gallery)),
        frozen=True,
        embed=lambda _: training,
        nearest_cosine=mean_nearest_cosine(queries.vectors, gallery.vectors, same_set=same_set),
        uses=uses,
        progress=progress,
    )


def choose_chain(
    vectors: Embeddings,
    validation: ValidationSet,
    *,
    optimise: str = "mean",
    uses: str = QUERIES,
    features: AllFeatures | None = None,
    tokens: bool = False,
    progress: Progress | None = None,
) -> RefinementChoice:
    """The chain that is best by `optimise` among those that are safe (`Trial.is_safe`).

    Tries single steps, combinations of the best of each, variations of the last step, and then
    `verify` and `maxsim` after the best of all. Of several chains only the FINALISTS on a few draws
    are compared on all. uses: the most that the chain may use of the other test images. features:
    the local features of the images of `vectors`; None: no such step. tokens: whether steps that
    compare tokens are tried.
    """
    check_uses(uses)
    level = LEVELS.index(uses)
    search = _Search(vectors, validation, optimise, level, features, tokens, progress)
    search.best_of([Chain()])
    if uses != LEVELS[0] and vectors.tiles is not None:
        search.best_expansion("aqe")  # the other steps are not defined for tiles
        search.try_keeping()
    elif uses != LEVELS[0]:
        search.try_combinations(search.best_single_steps())
        search.vary_last_step(search.best_chain())
        search.try_keeping()
    if features is not None:
        search.try_comparing(search.chains[search.trials.best().name], tokens=tokens)
    search.report(ended=True)
    best = search.trials.best()
    choice = RefinementChoice(
        search.chains[best.name],
        search.trials.report(best.name),
        search.cost_of_comparing(),
        len(search.chains) - len(search.trials.by_name),
    )
    for line in choice.all_lines():
        log.debug("%s", line)
    return choice


class _Search:
    """Tries chains; what they share is computed once.

    level: position in LEVELS of the most that a chain may use. trials: on all draws. screening: on
    the first draws.
    """

    def __init__(
        self,
        vectors: Embeddings,
        validation: ValidationSet,
        optimise: str,
        level: int,
        features: AllFeatures | None = None,
        tokens: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.level, self.progress, self.ranked = level, progress, 0
        self.reported = 0, 1  # the last report
        self.kept = 1 if optimise == "top-1" else KEPT[-1]
        per_class = validation.per_class
        self.trials = Trials(validation, optimise)
        self.screening = Trials(_first_draws(validation), optimise)
        T = len(vectors.tiles) if vectors.tiles else 1
        rows = vectors.all_vectors
        if rows.shape[1] > len(rows):  # the same cosines in as many dimensions as there are vectors
            rows = np.asarray(np.linalg.qr(rows.T, mode="r")).T.copy()
        tiles = rows.reshape(len(vectors), T, -1)
        shared: SharedPairs = {}  # an image is in several draws
        self.refiners = [
            Refiner(tiles[d.query, 0], tiles[d.gallery].reshape(-1, rows.shape[1]),
                    vectors_each=T, features=features and of_subsets(features, d.query, d.gallery),
                    shared_pairs=shared, numbers=(d.query, d.gallery), progress=self._go_on)
            for d in validation.draws
        ]  # fmt: skip
        self.comparisons = 0 if features is None else 3 if tokens else 1
        self.expansion_sizes = [n for n in (1, 3, 8) if n == 1 or n <= per_class]
        self.ks = neighbourhood_sizes(per_class)
        self.chains: dict[str, Chain] = {}

    def best_of(self, chains: Iterable[Chain]) -> Chain:
        """The allowed chain with the highest value on all draws. Of several, only the FINALISTS
        on a few draws are compared on all."""
        allowed = [c for c in chains if LEVELS.index(c.uses) <= self.level]
        new = [c for c in allowed if str(c) not in self.trials.by_name]
        if len(new) > FINALISTS and self.screening.on is not self.trials.on:
            value = {chain: self._tried(chain, self.screening).value for chain in new}
            finalists = sorted(new, key=lambda chain: -value[chain])[:FINALISTS]
            allowed = [c for c in allowed if c not in new or c in finalists]
        found = {chain: self._tried(chain, self.trials) for chain in allowed}
        return max(found, key=lambda chain: found[chain].value)

    def _tried(self, chain: Chain, trials: Trials) -> Trial:
        if str(chain) not in trials.by_name:
            found = []
            for refiner, draw in zip(self.refiners, trials.on.draws, strict=False):
                found.append(refiner.top_k(chain, len(draw.gallery))[0])
                self.report()
            trials.add(str(chain), found, chain.uses, cannot_lose=chain.keeps(self.kept))
            self.chains[str(chain)] = chain
        return trials.by_name[str(chain)]

    def best_chain(self) -> Chain:
        """The chain with the highest value so far, safe or not."""
        return self.chains[max(self.trials.by_name.values(), key=lambda trial: trial.value).name]

    def try_keeping(self) -> None:
        """Tries the best chain with `keep` after it, so that the first ranks cannot get worse; and
        those with the highest mAP, which is what is then left to gain."""
        best = self.best_chain()
        ordered = sorted(self.trials.by_name.values(), key=lambda trial: -trial.map)
        others = [self.chains[trial.name] for trial in ordered[:KEEPING]]
        for chain, sizes in ((best, KEPT), *((chain, (self.kept,)) for chain in others)):
            for n in sizes if chain.steps else ():  # one by one: each is compared on all draws
                self.best_of([Chain((*chain.steps, Step.of(KEEP, n=n)))])

    def report(self, *, ended: bool = False) -> None:
        """Reports progress in draws that were ranked by a chain; the total is an estimate, as later
        chains depend on earlier ones."""
        self.ranked += not ended
        if not self.progress:
            return
        few, draws = len(self.screening.on.draws), len(self.trials.on.draws)
        compared = self.comparisons * len(COMPARED_N) * len(COMPARED_WEIGHTS)
        total = draws * (1 + compared)
        if self.level:
            weights = len(WEIGHTS) * (1 + (self.level == LEVELS.index(QUERIES)))
            sizes, ks = len(self.expansion_sizes), len(self.ks)
            many = 6 * sizes + 4 * min(ks, 2) + 4 * ks + weights + len(TEMPERATURES) + 12 + 10
            total += (len(KEPT) + KEEPING - 1) * draws
            total += many * draws if few == draws else many * few + 20 * draws
        self.reported = total if ended else min(self.ranked, total - 1), total
        self.progress(*self.reported)

    def _go_on(self, done: int, total: int) -> None:
        """Within a draw: whoever listens may stop it here."""
        if self.progress:
            self.progress(*self.reported)

    def best_single_steps(self) -> dict[str, Step]:
        """Each step's name → its best setting on its own."""
        best = {}
        for name in ("dba", "aqe"):
            best[name] = self.best_expansion(name)
        best["diffusion"] = self._best_step(
            Step.of("diffusion", k=k, alpha=a, weight=w)
            for k in self.ks[:2]
            for a in (0.5, 0.8)
            for w in (0.1, 0.3)
        )
        together = (True, False) if self.level == LEVELS.index(QUERIES) else (False,)
        first = self._best_step(
            Step.of("kreciprocal", k1=k, k2=k2, together=together[0], program=program)
            for k in self.ks
            for k2 in (3, 6)
            for program in (True, False)
        )
        best["kreciprocal"] = self._best_step(
            Step.of("kreciprocal", **{**dict(first.options), "together": t, "weight": w})
            for t in together
            for w in (first["weight"], *WEIGHTS)
        )
        fewest = min(len(draw.query) for draw in self.trials.on.draws)
        if self.level == LEVELS.index(QUERIES) and fewest >= FEWEST_VOTERS:
            best[BALANCE] = self._best_step(Step.of(BALANCE, temperature=t) for t in TEMPERATURES)
        return best

    def best_expansion(self, name: str) -> Step:
        """The best setting of `dba` or `aqe` on its own."""
        return self._best_step(
            Step.of(name, n=n, alpha=a) for n in self.expansion_sizes for a in (0.0, 3.0, 8.0)
        )

    def _best_step(self, steps: Iterable[Step]) -> Step:
        return self.best_of([Chain((step,)) for step in steps]).steps[0]

    def try_combinations(self, best: dict[str, Step]) -> None:
        """Tries expansions, each on its own and followed by each re-ranking."""
        dba, aqe = best["dba"], best["aqe"]
        expansions: list[tuple[Step, ...]] = [(dba,), (aqe,), (dba, aqe)]
        last: list[tuple[Step, ...]] = [(), (best["kreciprocal"],), (best["diffusion"],)]
        last += [(best[BALANCE],)] if BALANCE in best else []
        self.best_of([Chain((*steps, *end)) for steps in expansions for end in last])

    def vary_last_step(self, chain: Chain) -> None:
        """Tries other values for the last step's options, one option at a time."""
        if not chain.steps or chain.steps[-1].name not in VARIED:
            return
        *first, last = chain.steps
        for option, values in VARIED[last.name].items():
            options = [{**dict(last.options), option: value} for value in values or self.ks]
            steps = [last, *(Step.of(last.name, **changed) for changed in options)]
            last = self.best_of([Chain((*first, step)) for step in steps]).steps[-1]

    def try_comparing(self, chain: Chain, *, tokens: bool) -> None:
        """Tries the chain with a step after it that compares parts of images; on all draws only if
        it gains on a few, and with many candidates only if it gains with few."""
        steps = [Step.of(VERIFY)]
        if tokens:
            steps += [Step.of(MAXSIM), Step.of(VERIFY, features="tokens")]
        for step in steps:
            few, many = ([
                Chain((*chain.steps, step.with_changes(n=n, weight=weight)))
                for weight in COMPARED_WEIGHTS
            ] for n in COMPARED_N)  # fmt: skip
            if self.best_of([chain, *self._gaining(chain, few)]) != chain:
                self.best_of(many)

    def _gaining(self, chain: Chain, others: Sequence[Chain]) -> list[Chain]:
        """Those that are better than the chain on a few draws; all if all draws are few."""
        if self.screening.on is self.trials.on:
            return list(others)
        value = self._tried(chain, self.screening).value
        return [one for one in others if self._tried(one, self.screening).value > value]

    def cost_of_comparing(self) -> str:
        """The time that comparing parts takes, in words; empty if nothing was compared."""
        seconds: dict[str, float] = {}
        compared: dict[str, int] = {}
        for refiner in self.refiners:
            for (name, kind, _), pairs in refiner.pairs.items():
                what = f"{name}(n={COMPARED_N[-1]}{f',features={kind}' * (name == VERIFY)})"
                seconds[what] = seconds.get(what, 0.0) + pairs.seconds
                compared[what] = compared.get(what, 0) + pairs.compared
        costs = [
            f"{what} {1000 * COMPARED_N[-1] * seconds[what] / compared[what]:.0f}"
            for what in seconds
            if compared[what]
        ]
        if not costs:
            return ""
        return f"milliseconds a query, once the features are there: {', '.join(costs)}"


def _first_draws(validation: ValidationSet) -> ValidationSet:
    """As many as have SCREENING_QUERIES queries; all if that is more than half."""
    sizes = np.cumsum([len(draw.query) for draw in validation.draws])
    few = int(np.searchsorted(sizes, SCREENING_QUERIES)) + 1
    return validation.first_draws(few) if 2 * few <= len(sizes) else validation


def neighbourhood_sizes(per_class: float) -> list[int]:
    """k1 to try: about 0.5, 1 and 1.5 times the size of a class, and the paper's 20."""
    wanted = [20, *(int(np.clip(round(per_class * f), 3, 60)) for f in (0.5, 1.0, 1.5))]
    sizes: list[int] = []
    for k in wanted:
        if all(abs(k - other) > 0.15 * other for other in sizes):
            sizes.append(k)
    return sorted(sizes)


def refine_record(chain: Chain, choice: RefinementChoice | None) -> dict[str, Any]:
    """For result files: the chain, what it uses of the other test images, how it was chosen."""
    return {**chain.record(), "chosen_on": choice and choice.record()}
