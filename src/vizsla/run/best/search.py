"""`best`: the best ranking that data, machine and time allow; see docs/best.md.

    frozen models ─► image size, views ─► joined ─► chain ─► heads ─► fine-tuning ─► joined ─► chain

From cheap to dear. Each step is tried on held-out training images (best_candidates.py) and written
down (best_journal.py); what is better is made a complete run at once, so that there always is one.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.choose.validation import Trial
from vizsla.data.fingerprint import fingerprint
from vizsla.data.splits import NEW, training_part
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError, VizslaError
from vizsla.model.catalogue import find_backbone
from vizsla.model.hub import obtainable
from vizsla.options import BestOptions, RunOptions, TuneConfig
from vizsla.progress import Report, reporting
from vizsla.run.best.candidates import Candidate, HeldOut, Network
from vizsla.run.best.journal import (
    BETTER,
    Journal,
    Step,
    TimeIsUp,
    folder_of,
)
from vizsla.run.best.result import BestResult, finished
from vizsla.run.config import DOMAINS, RunConfig
from vizsla.run.fused_runs import CONCAT, FusionConfig
from vizsla.run.inputs import folders_of
from vizsla.run.members import Member
from vizsla.run.pipeline import run
from vizsla.run.several_models import joint_run
from vizsla.run.validate_on import before_training, keep_assigned_domains
from vizsla.workspace import Run, is_run

log = logging.getLogger("vizsla.run")

MODELS = (  # tried where their weights are here, or can be downloaded; the first is the fastest
    "efficientnet-lite0", "efficientnet-lite2", "efficientnet-lite1", "dinov2-s14", "dinov2-b14",
    "siglip2-b16", "clip-vit-b16", "convnext-tiny",
)  # fmt: skip
FEW_IMAGES, LARGE_SHARE = 200, 0.4  # for training; and the share that is then held out
HALVING_SHARE = 0.1  # of the budget: if all models take more, the worse half is left out early
SIZES = (1.3, 1.6)  # of the image size that a network was trained with
FROZEN_SHARE = 0.15  # of the budget that one frozen model may take
WEIGHTS = (0.25, 0.5, 1.0, 2.0)  # of one more network, beside the others'
JOINED, MOST_JOINABLE = 3, 5  # networks; and of how many they are chosen
DRAWS = 8
CHAIN_DRAWS = 4  # with less time than LONG
LONG = 480.0  # seconds: from here two networks are fine-tuned
THOROUGH = 1200.0  # and from here image size, views, heads and `verify` are tried too
LEAST_TUNING = 60.0  # seconds
PASSES, TRAINING_COST = 4, 2  # an image trained costs twice one embedded, with most blocks frozen
LOADING, FINISHING = 2.0, 5.0  # seconds, before they are measured: of a model, of a run's files
NO_TIME = "no time"
FAILURES = (VizslaError, RuntimeError, OSError, ValueError, MemoryError)  # of one candidate
OVERRUN = 1.04  # of the budget, for what cannot be stopped at once


@dataclass(frozen=True)
class BestConfig:
    """run: what all runs share: data, device, seed, …; its model and refinement are replaced.

    models: names or folders, none for all that can be had. weights: one for all, or one for each.
    budget: seconds.
    """

    run: RunConfig
    models: Sequence[str] = ()
    weights: Sequence[str] = ("pretrained",)
    budget: float = 600.0


VALIDATING = ("validate_on", "split_by", "optimise")
DECIDED = ("validate_on", "query_domain", "gallery_domain")


def best_config(data: str | Path, options: BestOptions) -> BestConfig:
    """From the options of the command."""
    shared = {f.name for f in dataclasses.fields(BestOptions)} & {
        f.name for f in dataclasses.fields(RunOptions)
    }
    given = {name: getattr(options, name) for name in shared - {"model", "weights"}}
    validating = {name: getattr(options, name) for name in VALIDATING}
    validating = {name: value for name, value in validating.items() if value is not None}
    return BestConfig(
        RunConfig(**given, data=str(data), validating=validating),
        options.model, options.weights, options.budget,
    )  # fmt: skip


def best(config: BestConfig, progress: Report | bool | None = None) -> BestResult:
    """Searches until the budget is spent or nothing is left to try; the same call continues.

    DataError without labelled training images. Whatever stops it, `<home>/best/…/best.json` names
    the best complete run so far.
    """
    if len(config.weights) not in (1, max(1, len(config.models))):
        raise UsageError(
            f"{len(config.weights)} --weights for {len(config.models)} --model: give one for all, "
            "or one for each"
        )
    data = folders_of(config.run)
    images = training_part(data.training, config.run.data, "best")
    options = dataclasses.asdict(config.run)
    for name in ("home", "workers", "figures", "cache"):
        options.pop(name)
    sets = [fingerprint(part) for part in (data.query, data.gallery, images)]
    folder = folder_of(
        Path(config.run.home), [options, config.models, config.weights, sets],
        Path(config.run.data).resolve().name,
    )  # fmt: skip
    with storage.locked(folder), reporting(progress) as report:
        journal = Journal.open(folder, config.budget)
        if journal.best:
            log.info("continuing after %.0f s: the best so far is runs/%s",
                     journal.spent_before, journal.best["run"])  # fmt: skip
        search = _Search(config, folder, journal, report)
        try:
            search.all_steps()
        except KeyboardInterrupt:
            if journal.best:
                log.warning("stopped: the best so far is %s/runs/%s, a complete run; the same "
                            "command continues", config.run.home, journal.best["run"])  # fmt: skip
            raise
        finally:
            journal.save()
        assert journal.best is not None  # the first run is complete
        return finished(config.run, journal, search.skipped, search.held_out)


@dataclass(frozen=True, eq=False)
class Tried:
    """A candidate and its values on validation."""

    candidate: Candidate
    trial: Trial


class _Search:
    """The steps, in order, and the best so far."""

    def __init__(
        self, config: BestConfig, folder: Path, journal: Journal, report: Report | None
    ) -> None:
        self.config, self.folder, self.journal, self.progress = config, folder, journal, report
        self.shared = dataclasses.replace(
            config.run, cache=config.run.cache or str(folder / "cache"), tuning=None
        )
        self.skipped: list[Step] = []
        self.singles: dict[Network, Trial] = {}  # networks alone, without a chain
        self.first: Trial | None = None  # of the first model
        self.plain: Tried | None = None  # the best without a chain
        self.best: Tried | None = None
        self.finishing = FINISHING  # seconds that a complete run takes once its vectors are there
        self.choosing = 0.0  # and the choice of a chain
        self.held_out = ""  # on what was chosen, in words
        self.held = HeldOut(self.shared, folders_of(self.shared), folder)

    @property
    def report(self) -> Report:
        """Stops a step where no more is left than the best so far needs for a complete run."""
        return self.journal.guarded(self.progress, self.config.budget - self._reserve())

    def _reserve(self, candidate: Candidate | None = None) -> float:
        """Seconds that it takes to make a complete run of a candidate; by default of the best."""
        if candidate is None and self.best is None:
            return 0.0
        candidate = candidate or self.best.candidate  # type: ignore[union-attr]
        new = [one for one in candidate.networks if not self._has_run(one)]
        return self.finishing + sum(LOADING + self._seconds(one, self.test_images) for one in new)

    def _seconds(self, network: Network, images: int) -> float:
        """Seconds that it takes to embed so many images, as far as is known."""
        return 1.15 * self.held.seconds_per_image.get(network.key, 0.0) * images

    def all_steps(self) -> None:
        """From cheap to dear, as far as the time goes."""
        networks = self._networks()
        try:
            self._start(networks[0])
        except DataError as error:
            if self.journal.best is None:
                raise
            self.held_out = f"nothing, so that the first model is kept: {error}"
            return
        self.held_out = self.held.on.description()
        frozen = self._frozen(networks)
        is_thorough = self.config.budget >= THOROUGH
        if is_thorough or self.validating["validate_on"] == NEW:  # there training gains least
            self._variants(frozen[0])
        self._join()
        self._chain()
        if is_thorough or self.journal.left() < 2 * LEAST_TUNING:
            for network in self._most_promising(2 if is_thorough else 1):
                self._head(network)
        self._fine_tune(2 if self.config.budget >= LONG else 1)
        if any(step.stage in ("head", "fine-tuned") for step in self.journal.steps):
            self._join()
            self._chain()

    # ── the first run ────────────────────────────────────────────────────────────────────────────

    def _networks(self) -> list[Network]:
        known = self.journal.known.get("networks")
        if known is None:
            models = list(self.config.models) or obtainable(MODELS)
            weights = list(self.config.weights) * (len(models) // len(self.config.weights))
            known = [[model, weight] for model, weight in zip(models, weights, strict=True)]
            self.journal.known["networks"] = known
        return [Network(model, weight) for model, weight in known]

    def _start(self, first: Network) -> None:
        """A complete run of the first model, and the images that all others are compared on."""
        report = self.journal.guarded(self.progress, math.inf)
        done = self._run_of(first, report)
        vectors = [
            Embeddings.open(done.folder / "embeddings" / role).vectors
            for role in ("query", "gallery")
        ]
        self._imitate_test_part(first, done, report)
        self.test_images = sum(map(len, vectors))
        splitting = TuneConfig.from_options({**self.validating, "draws": DRAWS})
        self.held.draw(splitting, first, vectors, report)
        self._try("frozen", str(first), Candidate((first,)), needs=-math.inf)
        self.first = self.singles[first]

    def _imitate_test_part(self, first: Network, done: Run, report: Report) -> None:
        """What all validation is to be like: seen or new classes, domains, and how much of it."""
        images = self.held.data.training
        assert images is not None
        known = self.journal.known.get("validating")
        if known is None:
            share = {"share": LARGE_SHARE} if len(images) < FEW_IMAGES else {}
            asked = {**(self.shared.validating or {}), **share}
            config = self._config(first, tuning={**asked, "finetune": "head"}, validating=None)
            network, data = self.held.runtime(first), self.held.data
            config, images = before_training(
                config, images, (data.query, data.gallery), network.embedder, network.compute,
                report,
            )  # fmt: skip
            keep_assigned_domains(done, images)
            found = {name: getattr(config.training, name) for name in DECIDED}
            known = {**asked, **{k: value for k, value in found.items() if value is not None}}
            self.journal.known["validating"] = known
        self.validating = known
        domains = done.folder / DOMAINS
        self.shared = dataclasses.replace(
            self.shared, validating=known, domains=str(domains) if domains.exists() else None
        )
        self.held.shared, self.held.data = self.shared, folders_of(self.shared)

    # ── steps ────────────────────────────────────────────────────────────────────────────────────

    def _frozen(self, networks: Sequence[Network]) -> list[Network]:
        """Every model as it is; where there are many, the better half of few images goes on."""
        tried = [networks[0]]
        others = list(networks[1:])
        if len(others) > 2:
            others = self._better_half(others)
        for network in others:
            if self._affords(network) and self._try("frozen", str(network), Candidate((network,))):
                tried.append(network)
        return sorted(tried, key=lambda network: -self.singles[network].value)

    def _better_half(self, networks: list[Network]) -> list[Network]:
        name = "frozen: on few images"
        values = dict(self.journal.known.get(name) or {})
        for network in networks:
            if network.key not in values and self.journal.begin(f"{name} {network}"):
                try:
                    values |= self.held.first_impressions([network], self.report)
                except TimeIsUp:
                    break
                except FAILURES as error:
                    log.warning("%s left out: %s", network, error)
                    values[network.key] = -1.0
                self.journal.end(f"{name} {network}", None, True)
                self.journal.known[name] = values
        ordered = sorted(networks, key=lambda network: -values.get(network.key, -1.0))
        images = len(self.held.drawn.images)
        if sum(self._seconds(one, images) for one in networks) < HALVING_SHARE * self.config.budget:
            return ordered
        kept = ordered[: max(2, (len(ordered) + 1) // 2)]
        for network in ordered[len(kept) :]:
            value = values.get(network.key)
            self.skipped.append(
                Step("frozen", str(network), value=value, verdict="worse on few images")
            )
            self.held.forget(network)
        return kept

    def _affords(self, network: Network) -> bool:
        """Whether the images can be embedded in FROZEN_SHARE of the budget, as far as is known."""
        images = self.test_images + len(self.held.drawn.images)
        if self._seconds(network, images) < FROZEN_SHARE * self.config.budget:
            return True
        self.skipped.append(Step("frozen", str(network), verdict="too slow for the budget"))
        return False

    def _variants(self, network: Network) -> None:
        """A frozen model with larger images, and mirrored."""
        if Path(network.model).is_dir():
            return
        size = find_backbone(network.model).image_size
        images = self.test_images + len(self.held.drawn.images)
        for factor in SIZES if size else ():
            larger = dataclasses.replace(network, image_size=round((size or 0) * factor / 32) * 32)
            needs = factor**2 * self._seconds(network, images)
            self._try("image size", str(larger), Candidate((larger,)), needs=needs)
            if self.plain is None or self.plain.candidate != Candidate((larger,)):
                break
            network = larger
        mirrored = dataclasses.replace(network, views="flip")
        needs = 2 * self._seconds(network, images)
        self._try("views", str(mirrored), Candidate((mirrored,)), needs=needs)

    def _join(self) -> None:
        """Other networks beside the best one, as long as one more of them is better."""
        start = max(self.singles, key=lambda network: self.singles[network].value)
        joined, value = Candidate((start,)), self.singles[start].value
        while len(joined.networks) < JOINED:
            try:
                found = [
                    (self.held.trial(one, self.report).value, one) for one in self._wider(joined)
                ]
            except TimeIsUp:
                return
            best, candidate = max(found, key=lambda pair: pair[0], default=(0.0, joined))
            if best <= value:
                return
            self._try("joined", str(candidate), candidate)
            joined, value = candidate, best

    def _wider(self, joined: Candidate) -> list[Candidate]:
        """The candidate with one more network, in each of WEIGHTS."""
        found = []
        for other in self._most_promising(MOST_JOINABLE):
            if other in joined.networks or _is_variant(other, joined.networks):
                continue
            for weight in WEIGHTS:
                total = 1 + weight / len(joined.networks)
                weights = [w / total for w in joined.weights]
                found.append(Candidate((*joined.networks, other), (*weights, 1 - sum(weights))))
        return found

    def _chain(self) -> None:
        """The chain of refinements after the best without one; the best is made a complete run."""
        assert self.plain is not None
        plain = self.plain.candidate
        started = self.journal.spent()

        def choose() -> Candidate:
            few = None if self.journal.left() > LONG else CHAIN_DRAWS
            verify = self.config.budget >= THOROUGH and len(plain.networks) == 1
            choice = self.held.chosen_chain(plain, self.report, draws=few, verify=verify)
            return dataclasses.replace(plain, chain=str(choice.chain))

        if self.shared.refine_uses != "nothing":
            found = self._try("chain", f"chain after {plain}", choose, needs=1.2 * self.choosing)
            if found is not None:
                self.choosing = max(self.choosing, self.journal.spent() - started)
        self._complete()

    def _head(self, network: Network) -> None:
        assert self.held.data.training is not None
        needs = self._seconds(network, len(self.held.data.training) + self.test_images) + LOADING
        self._tune(network, "head", {"finetune": "head"}, needs=needs + self.finishing)
        self._complete()

    def _fine_tune(self, count: int) -> None:
        """Fine-tunes the most promising networks with the time that is left."""
        images = self.test_images + len(self.held.drawn.images)
        for i in range(count):
            left = self.journal.left() - self._reserve() - 1.3 * self.choosing
            seconds = left / (count - i)
            network = self._to_tune(seconds, i)
            if network is None:
                return
            plan = f"plan {network}"
            if plan not in self.journal.known:
                seconds -= LOADING + self._seconds(network, images) + self.finishing
                if seconds < LEAST_TUNING:
                    self.skipped.append(Step("fine-tuned", str(network), verdict=NO_TIME))
                    return
                self.journal.known[plan] = round(seconds, 1)
            kind = "full" if self.held.compute(network).kind == "cuda" else "last"
            options = {"finetune": kind, "budget": self.journal.known[plan]}
            self._tune(network, "fine-tuned", options)
            self._complete()

    def _to_tune(self, seconds: float, i: int) -> Network | None:
        """The i-th network to fine-tune: of those that see all images PASSES times the best one, or
        the fastest if none does; None if there are no more."""
        known = [key.removeprefix("plan ") for key in self.journal.known if key[:5] == "plan "]
        others = self._most_promising(len(self.singles), heads=False)
        if i < len(known):  # an interrupted search continues
            return next((one for one in others if str(one) == known[i]), None)
        others = [network for network in others if str(network) not in known]
        assert self.held.data.training is not None
        images = TRAINING_COST * len(self.held.data.training)
        enough = [one for one in others if PASSES * self._seconds(one, images) < seconds]
        return next(iter(enough), min(others, key=lambda one: self._seconds(one, 1), default=None))

    def _tune(
        self, network: Network, stage: str, options: dict[str, Any], *, needs: float = 0.0
    ) -> bool:
        """A run of the network tuned, which is then a network of its own."""

        def tune() -> Candidate:
            until = OVERRUN * self.config.budget
            tuning = {**self.validating, **options}
            config = self._config(network, tuning=tuning, validating=None)
            self.held.forget(network)
            done = run(config, self.journal.guarded(self.progress, until))
            name = f"{network} {options['finetune']}"
            return Candidate((Network(str(done.run.folder.absolute()), name=name),))

        return self._try(stage, f"{network} {options['finetune']}", tune, needs=needs) is not None

    def _most_promising(self, count: int, *, heads: bool = True) -> list[Network]:
        """The best networks alone; without heads: those that a training can start from."""
        best: dict[str, tuple[float, Network]] = {}
        for network, trial in self.singles.items():
            source = network
            if not heads and network.name:
                source = next(n for n in self.singles if network.name.startswith(f"{n} "))
            if not heads and (network.image_size or network.views):
                continue
            value = max(trial.value, best.get(source.key, (0.0, source))[0])
            best[source.key] = (value, source)
        return [n for _, n in sorted(best.values(), key=lambda pair: -pair[0])][:count]

    # ── trying and completing ────────────────────────────────────────────────────────────────────

    def _try(
        self,
        stage: str,
        name: str,
        what: Candidate | Callable[[], Candidate],
        *,
        needs: float = 0.0,
    ) -> Candidate | None:
        """Tries one thing, writes it down, and keeps it if it is better; None if it has failed.

        needs: seconds, at least; with less left it is skipped.
        """
        key = f"{stage}: {name}"
        if key in self.journal.known:
            found = self.journal.known[key]
            if found is None:
                return None
            candidate = Candidate.of(found["candidate"])
            tried = Tried(candidate, self.held.trial(candidate, self.report))
            return self._entered(tried, found["kept"])
        known = what if isinstance(what, Candidate) else None
        if self.journal.left() - self._reserve(known) < needs:
            self.skipped.append(Step(stage, name, verdict=NO_TIME))
            return None
        if not self.journal.begin(key):
            step = Step(stage, name, verdict="left out: it stopped the command twice")
            self.journal.end(key, step)
            return None
        started = self.journal.spent()
        try:
            candidate = what if isinstance(what, Candidate) else what()
            trial = self.held.trial(candidate, self.report)
        except TimeIsUp:
            self.journal.begun.pop(key, None)
            self.skipped.append(Step(stage, name, verdict=NO_TIME))
            return None
        except FAILURES as error:
            reason = " ".join(f"{error}".split()) or type(error).__name__
            log.warning("%s %s failed: %s", stage, name, reason)
            self.journal.end(key, Step(stage, name, verdict=f"failed: {reason}"[:120]))
            return None
        tried = Tried(candidate, trial)
        kept = self._is_kept(tried)
        shown = candidate.chain if stage == "chain" else str(candidate)
        taken = round(self.journal.spent() - started, 1)
        step = Step(stage, shown, seconds=taken, verdict=BETTER if kept else "")
        step = step.scored(trial, self.plain.trial if self.plain else None)
        self.journal.end(key, step, {"candidate": candidate.to_dict(), "kept": kept})
        return self._entered(tried, kept)

    def _is_kept(self, tried: Tried) -> bool:
        """Whether it gains more than one standard error over the best of its kind, more likely wins
        than loses contest points, and is below the first model neither in top-1 nor in mAP.

        A chain was chosen by a stricter rule, against none; it has to gain over the best only if
        that is of other networks.
        """
        trial, before = tried.trial, self.plain
        if before is None or self.first is None or self.best is None:
            return True
        if trial.top1 < self.first.top1 or trial.map < self.first.map:
            return False
        if tried.candidate.chain == "none":
            return _gains(trial, before.trial)
        other = self.best.candidate.networks != before.candidate.networks
        changed = tried.candidate != self.best.candidate
        return changed and (not other or _gains(trial, self.best.trial))

    def _entered(self, tried: Tried, kept: bool) -> Candidate:
        candidate = tried.candidate
        if len(candidate.networks) == 1 and candidate.chain == "none":
            self.singles[candidate.networks[0]] = tried.trial
        if kept and candidate.chain == "none":
            self.plain = tried
        if kept and (
            self.best is None or candidate.chain != "none" or _gains(tried.trial, self.best.trial)
        ):
            self.best = tried
        return candidate

    def _complete(self) -> None:
        """Makes a complete run of the best so far, unless it is one."""
        assert self.best is not None
        candidate = self.best.candidate
        if self.journal.best and Candidate.of(self.journal.best["candidate"]) == candidate:
            return
        started = self.journal.spent()
        unknown = [one for one in candidate.networks if not self._has_run(one)]
        report = self.journal.guarded(self.progress, OVERRUN * self.config.budget)
        try:
            done = self._run_of_candidate(candidate, report)
        except TimeIsUp:
            self.skipped.append(Step("run", str(candidate), verdict=NO_TIME))
            return
        except FAILURES as error:
            log.warning("no run of %s, so that an earlier one is the best: %s", candidate, error)
            return
        new = sum(LOADING + self._seconds(one, self.test_images) for one in unknown)
        self.finishing = max(self.finishing, 1.2 * (self.journal.spent() - started) - new)
        self._is_complete(candidate, done)

    def _is_complete(self, candidate: Candidate, done: Run) -> None:
        self.journal.best = {"candidate": candidate.to_dict(), "run": done.id}
        self.journal.save()
        held = ""
        if self.best is not None:
            trial = self.best.trial
            held = f", validation top-1 {trial.top1:.3f}, mAP {trial.map:.3f}"
        log.info("best so far: %s%s: runs/%s", candidate, held, done.id)

    def _run_of_candidate(self, candidate: Candidate, report: Report) -> Run:
        if len(candidate.networks) == 1:
            (network,) = candidate.networks
            if candidate.chain == "none":
                return self._run_of(network, report)
            return run(self._config(network, refine=candidate.chain), report).run
        members = [Member.of(self._run_of(one, report).folder) for one in candidate.networks]
        fusion = FusionConfig(CONCAT, list(candidate.weights), "none", candidate.chain)
        shared = dataclasses.replace(self.shared, figures=0)
        return joint_run(members, shared, fusion, report).run

    def _run_of(self, network: Network, report: Report) -> Run:
        """The complete run of a network alone; a tuned one has it already."""
        if found := self._has_run(network):
            return found
        done = run(self._config(network), report)
        self.journal.known[f"run {network.key}"] = done.run.id
        if self.journal.best is None:
            self._is_complete(Candidate((network,)), done.run)
        return done.run

    def _config(self, network: Network, **changes: Any) -> RunConfig:
        """Of a run of the network, which computes as all others of it do."""
        runtime = self.held.compute(network).runtime
        return network.config(self.shared, runtime=runtime, **changes)

    def _has_run(self, network: Network) -> Run | None:
        if is_run(network.model):
            return Run(Path(network.model).parent.parent, Path(network.model).name)
        known = self.journal.known.get(f"run {network.key}")
        found = Run(Path(self.shared.home), known) if known else None
        return found if found and found.result_file else None


def _gains(trial: Trial, before: Trial) -> bool:
    """More than one standard error, and rather wins than loses contest points."""
    return dataclasses.replace(trial, baseline=before, max_risk=0.5).is_safe


def _is_variant(network: Network, others: Sequence[Network]) -> bool:
    """Whether one of the others is the same model with other images or views."""
    return not network.name and any(network.model == other.model for other in others)
