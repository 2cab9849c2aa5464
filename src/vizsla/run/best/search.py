"""`best`: the best ranking that data, machine and time allow; see docs/best.md.

    frozen models ─► joined ─► chain ─► head ─► chain ─► slower models, squashed images,
                       ▲                                 fine-tuning, image size ────────┐
                       └────────────────────── once more, with these ◄───────────────────┘

Steps go from cheap to expensive; from 20 minutes image size comes before fine-tuning. Each is tried
on held-out training images (candidates.py) and recorded (journal.py). An improvement becomes a
complete run at once, so that there always is one.
"""

import dataclasses
import importlib.util
import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.choose.projection_choice import share_held_out
from vizsla.data.fingerprint import fingerprint
from vizsla.data.splits import NEW, SEEN, target_of
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.model.build import resolve_backbone
from vizsla.model.catalogue import find_backbone
from vizsla.model.embedder import read_config
from vizsla.model.hub import obtainable
from vizsla.model.model_card import Origin
from vizsla.model.open_model import embedder_folder
from vizsla.options import COVER, SQUASH, BestOptions, RunOptions
from vizsla.progress import Report, reporting, waiting
from vizsla.run.best.best_so_far import FITTING, LOADING, OVERRUN, BestSoFar
from vizsla.run.best.candidates import Candidate, Network
from vizsla.run.best.journal import (
    NO_TIME,
    STOPPED,
    USED,
    Journal,
    Step,
    TimeIsUp,
    folder_of,
)
from vizsla.run.best.result import BestResult, finished
from vizsla.run.config import DOMAINS, RunConfig
from vizsla.run.earlier_training import MAY_HAVE_SEEN, domains_beside, held_out_before
from vizsla.run.inputs import folders_of, with_domains
from vizsla.run.pipeline import run
from vizsla.run.validate_on import before_training, keep_assigned_domains
from vizsla.train.optimizer import suits_adapters
from vizsla.workspace import Run, is_run

log = logging.getLogger("vizsla.run")

MODELS = (  # tried where their weights are here, or can be downloaded; the first is the fastest
    "efficientnet-lite0", "efficientnet-lite2", "efficientnet-lite1", "dinov2-s14", "dinov2-b14",
    "siglip2-b16", "clip-vit-b16", "convnext-tiny",
)  # fmt: skip
HALVING_SHARE = 0.15  # of the budget: if all models take more, the worse half is left out early
SQUASHED_SHARE = 0.2  # of the budget that the vectors of squashed images may take, for each network
STAGES = "stages"  # the pooling
SIZES = (1.3, 1.6)  # times the image size that a network was trained with
FROZEN_SHARE = 0.15  # of the budget that a model may take that is tried before heads and chains
# of the budget, that a head of the first model may take before others are tried
EARLY_HEAD_SHARE = {SEEN: 0.4, NEW: 0.03}
WEIGHTS = (0.25, 0.5, 1.0, 2.0)  # of a further network, relative to the mean of the others
JOINED, MOST_JOINABLE = 3, 5  # networks that are joined, out of how many
LAST, FULL, LORA = TUNED = ("last", "full", "lora")
SHARES = (0.3, 0.5, 0.7)  # weight of a tuned network that is joined with a head of others
DRAWS = 8
CHAIN_DRAWS = 4  # on which a chain is chosen, unless there is time for all
CHOOSING_SHARE = 0.1  # of the time left that choosing a chain on all draws may take
THOROUGH = 1200.0  # from here two networks are fine-tuned, after image size and views, and `verify`
LEAST_TUNING = 60.0  # seconds
TUNING_MARGIN = 0.02  # of the budget, kept back since a fine-tuning may take longer than planned
LEAST_PASSES = 1  # through the training images: a shorter fine-tuning is not tried
MOST_PASSES = 50  # what time is left then goes to the next network
PLAN = "plans "  # before a network, the journal's key of the seconds that each training may take
LONGER = 2  # times an earlier training of a network, from which it is trained once more
TUNED_RUN = "tuned "  # before its name, the journal's key of the run that tuned it
PASSES = 2  # through the training images that a fine-tuning should have time for
TRAINING_COST = 4  # training on an image takes as long as embedding so many, on a CPU without bf16


@dataclass(frozen=True)
class BestConfig:
    """run: what all runs share: data, device, seed, …; its model and refinement are replaced.

    models: names or folders; none: all whose weights can be obtained. weights: one for all, or one
    for each. budget: seconds.
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

    Without labelled training images nothing can be chosen, and the result is a run of the first
    model. Whatever stops it, `<home>/best/…/best.json` names the best complete run so far.
    """
    if len(config.weights) not in (1, max(1, len(config.models))):
        raise UsageError(
            f"{len(config.weights)} --weights for {len(config.models)} --model: give one for all, "
            "or one for each"
        )
    given = zip(config.models, _weights(config, config.models), strict=True)
    names = [str(Network(*one)) for one in given]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(
            f"--model: {twice[0]} is given twice; weights files of one name cannot be told apart: "
            "rename one of them"
        )
    data = folders_of(config.run)
    images = data.training
    options = {**dataclasses.asdict(config.run), "data": str(Path(config.run.data).resolve())}
    for name in ("home", "workers", "figures", "cache"):
        options.pop(name)
    sets = [fingerprint(part) for part in (data.query, data.gallery, images) if part is not None]
    folder = folder_of(
        Path(config.run.home), [options, config.models, config.weights, sets],
        Path(config.run.data).resolve().name,
    )  # fmt: skip
    with storage.locked(folder), reporting(progress) as report:
        journal = Journal.open(folder, config.budget)
        if journal.best and Run(Path(config.run.home), journal.best["run"]).result_file is None:
            journal.best = None  # its run was removed, and is made again
        if journal.best:
            log.info("continuing after %.0f s: the best so far is runs/%s",
                     journal.spent_before, journal.best["run"])  # fmt: skip
        shared = dataclasses.replace(
            config.run, cache=config.run.cache or str(folder / "cache"), tuning=None
        )
        search = _Search(config, BestSoFar(shared, folder, journal, report))
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
        return finished(config.run, journal, search.so_far.skipped, search.held_out)


def _weights(config: BestConfig, models: Sequence[str]) -> list[str]:
    """One for each of the models."""
    return list(config.weights) * (len(models) // len(config.weights))


class _Search:
    """The steps, in order."""

    def __init__(self, config: BestConfig, so_far: BestSoFar) -> None:
        self.config, self.so_far = config, so_far
        self.held, self.journal = so_far.held, so_far.journal
        self.held_out = ""  # what images the choices were made on, in words
        self.given_split: dict[str, Any] = {}  # options of the training of a given model

    def all_steps(self) -> None:
        """All steps, from cheap to expensive, until the time is spent."""
        networks = self._with_one_split(self._networks())
        try:
            self._start(networks[0])
        except DataError as error:
            if self.journal.best is None:
                raise
            self.held_out = str(error)
            return
        except TimeIsUp:
            self.held_out = self.journal.known.get("held out", "")
            if self.held_out:
                return
            minutes = math.ceil(2 * self.journal.spent() / 60)
            self.held_out = (
                f"it took the whole budget; with --budget {minutes}m others would be compared with "
                "it"
            )
            return
        self.held_out = self.journal.known["held out"] = self.held.on.description()
        networks = self._framed(networks)
        if self._head_gains_early(networks[0]):
            networks = self._with_stages(networks)
            self._head()
        slower = self._try_frozen(networks)
        self._join()
        self._chain()  # is cheap, so that a short budget has one
        self._head()
        self._chain(quickly=bool(slower))
        if slower:
            if self._try_slower(slower):
                self._join()
                self._head()
            self._chain()
        if self._join_squashed():
            self._chain()
        is_thorough = self.config.budget >= THOROUGH
        if is_thorough:
            self._try_larger_and_mirrored()
        self._fine_tune(2 if is_thorough else 1)
        is_tuned = "fine-tuned" in self._stages
        if is_tuned:
            self._join_tuned()
            self._chain()
        if not is_thorough:  # with what time is left
            self._try_larger_and_mirrored()
        if {"image size", "views"} & self._stages or (is_thorough and is_tuned):
            self._join()
            if is_thorough or not is_tuned:  # of tuned vectors it rarely gains
                self._head()
            self._chain()

    @property
    def chain_seconds(self) -> float:
        """Of the slowest choice of a chain so far."""
        return self.so_far.times.get("chain", 0.0)

    @property
    def _stages(self) -> set[str]:
        """Of the steps that were tried."""
        return {step.stage for step in self.journal.steps}

    # ── the first run ────────────────────────────────────────────────────────────────────────────

    def _networks(self) -> list[Network]:
        known = self.journal.known.get("networks")
        if known is None:
            models = list(self.config.models) or obtainable(MODELS)
            known = [[*one] for one in zip(models, _weights(self.config, models), strict=True)]
            self.journal.known["networks"] = known
        return [Network(model, weight) for model, weight in known]

    def _with_one_split(self, networks: Sequence[Network]) -> list[Network]:
        """The networks without those that were, or may have been, trained on images that are held
        out. The first one whose training used some of these images decides what is held out."""
        data, left_out = self.held.data, []
        for network in networks:
            folder = Path(network.model)
            if not data.training or not folder.is_dir():
                continue
            folder = embedder_folder(folder)
            domains = domains_beside(folder)
            images = with_domains(data.training, domains) if domains else data.training
            own = held_out_before(
                Origin(**read_config(folder).get("origin") or {}), images,
                target_of(data.query, data.gallery),
                {**(self.so_far.shared.validating or {}), **self.given_split},
            )  # fmt: skip
            if own is None or (own and self.given_split not in ({}, own)):
                left_out.append(network)
            elif own and not self.given_split:
                self.given_split = own
                self.held.data = dataclasses.replace(data, training=images)
        if len(left_out) == len(networks):  # they are compared with each other
            log.warning(MAY_HAVE_SEEN, ", ".join(map(str, networks)))
            return list(networks)
        for network in left_out:
            log.warning("%s is left out: it was, or may have been, trained on images that are held "
                        "out here", network)  # fmt: skip
            step = Step("frozen", str(network), verdict="trained on what is held out")
            self.so_far.skipped.append(step)
        return [network for network in networks if network not in left_out]

    def _start(self, first: Network) -> None:
        """A complete run of the first model, and the images that all others are compared on."""
        report = self.journal.guarded(self.so_far.progress, math.inf)
        done = self.so_far.run_of(first, report)
        vectors = [
            Embeddings.open(done.folder / "embeddings" / role).vectors
            for role in ("query", "gallery")
        ]
        if not self.held.data.training:
            raise DataError(
                f"models, training and re-ranking are chosen on labelled images, and there are "
                f"none in {self.config.run.data}/training/<class>/"
            )
        report = self.journal.guarded(self.so_far.progress, OVERRUN * self.config.budget)
        self._imitate_test_part(first, report)
        self.so_far.test_images = sum(map(len, vectors))
        splitting = dataclasses.replace(self.so_far.shared.training, draws=DRAWS)
        self.held.draw(splitting, first, vectors, report)
        if self.so_far.attempt("frozen", str(first), Candidate((first,)), needs=-math.inf) is None:
            if not self.journal.steps:
                raise TimeIsUp
            raise DataError(f"{first}: {self.journal.steps[0].verdict}")
        self.so_far.first = self.so_far.singles[first]

    def _imitate_test_part(self, first: Network, report: Report) -> None:
        """Decides what validation holds out, and its domains, as the test part looks."""
        images = self.held.data.training
        assert images is not None
        known = self.journal.known.get("validating")
        if known is None:
            asked = {**(self.so_far.shared.validating or {}), **self.given_split}
            config = self.so_far.config_of(
                first, tuning={**asked, "finetune": "head"}, validating=None
            )
            with waiting(report, f"loading {first}"):
                network, data = self.held.runtime(first), self.held.data
            config, images = before_training(
                config, images, (data.query, data.gallery), network.embedder, network.compute,
                report,
            )  # fmt: skip
            keep_assigned_domains(self.held.folder, images)  # runs may be removed
            found = {name: getattr(config.training, name) for name in DECIDED}
            known = {**asked, **{k: value for k, value in found.items() if value is not None}}
            assert images is not None
            if known["validate_on"] == NEW and "share" not in known:
                known["share"] = share_held_out(images, target_of(data.query, data.gallery))
            self.journal.known["validating"] = known
        self.validating = known
        domains = self.held.folder / DOMAINS
        self.so_far.shared = dataclasses.replace(
            self.so_far.shared, validating=known, domains=str(domains) if domains.exists() else None
        )
        self.held.shared = self.so_far.shared
        self.held.data = folders_of(self.held.shared)

    # ── steps ────────────────────────────────────────────────────────────────────────────────────

    def _framed(self, networks: list[Network]) -> list[Network]:
        """The networks without the border of images cut off, if the first one is better so, however
        little: then it takes no more time. Not tried where the first one is slow."""
        first = networks[0]
        if Path(first.model).is_dir():
            return networks
        if self.held.runtime(first).embedder.preprocess.framed_as is not None:
            return networks
        framed = dataclasses.replace(first, framing=COVER)
        needs = LOADING + self.so_far.seconds(first, self._ranked)
        if needs > FROZEN_SHARE * self.config.budget:
            return networks
        self.so_far.attempt("framing", str(framed), Candidate((framed,)), needs=needs)
        values = self.so_far.singles
        if framed not in values or values[framed].value <= values[first].value:
            return networks
        self.held.forget(first)
        self.journal.steps[:] = [
            dataclasses.replace(step, verdict=USED) if step.stage == "framing" else step
            for step in self.journal.steps
        ]
        return [
            one if Path(one.model).is_dir() else dataclasses.replace(one, framing=COVER)
            for one in networks
        ]

    def _with_stages(self, networks: list[Network]) -> list[Network]:
        """The networks with statistics of their last stages beside their vectors: under a head of
        seen classes these gain, without a head they lose."""
        staged = [_pooling_stages(network) for network in networks]
        if self.validating["validate_on"] != SEEN or staged[0] == networks[0]:
            return networks
        try:
            trial = self.held.trial(Candidate((staged[0],)), self.so_far.report)
        except TimeIsUp:
            return networks
        self.so_far.singles = {staged[0]: trial}
        self.held.forget(networks[0])
        return staged

    def _try_frozen(self, networks: Sequence[Network]) -> list[Network]:
        """Tries models as they are; of many, only the better half on few images. Slow ones are not
        tried yet, but returned."""
        others = self._better_half(networks[1:])
        slower = [network for network in others if self._is_slow(network)]
        for network in others:
            if network not in slower:
                self.so_far.attempt("frozen", str(network), Candidate((network,)))
        return slower

    def _is_slow(self, network: Network) -> bool:
        """Whether it would take more than FROZEN_SHARE of the budget to try it and to use it."""
        return self.so_far.seconds(network, self._ranked) > FROZEN_SHARE * self.config.budget

    @property
    def _ranked(self) -> int:
        """Number of images that a model embeds if it is tried and becomes the best."""
        return self.so_far.test_images + len(self.held.drawn.images)

    @property
    def _seconds_of_heads(self) -> float:
        """To fit all once to choose one, and that one once more for a complete run."""
        return 2 * FITTING * self.so_far.times.get("heads", 0.0)

    def _try_slower(self, networks: Sequence[Network]) -> bool:
        """Tries those for which there also is time to fit a head and choose a chain afterwards;
        whether there were any."""
        rest = len(self.held.others) + self.held.not_embedded  # for a head and its complete run
        later, tried = self.chain_seconds, False
        for network in networks:
            head = LOADING + self.so_far.seconds(network, rest) + self._seconds_of_heads
            needs = self.so_far.seconds(network, len(self.held.drawn.images)) + head + later
            candidate = Candidate((network,))
            if self.so_far.attempt("frozen", str(network), candidate, needs=needs):
                later += head + LOADING + self.so_far.seconds(network, self.so_far.test_images)
                tried = True
        return tried

    def _better_half(self, networks: Sequence[Network]) -> list[Network]:
        """The better half of the networks by their values on few images; all if they are two at
        most, or fast. Slow networks are not tried on few images, and are all returned, last."""
        name = "frozen: on few images"
        values: dict[str, float] = self.journal.known.setdefault(name, {})
        stopped: list[Network] = []
        for network in networks:
            is_known_as_slow = network.key in self.so_far.times and self._is_slow(network)
            if network.key in values or is_known_as_slow:
                continue
            if not self.journal.begin(f"{name} {network}"):
                stopped.append(network)
                continue
            try:
                self.held.timed(network, self.so_far.report)
                if self._is_slow(network):
                    self.held.forget(network)
                else:
                    values[network.key] = self.held.first_impression(network, self.so_far.report)
            except TimeIsUp:
                break
            except Exception:  # it fails again when it is tried, and the table then says so
                log.debug("%s", network, exc_info=True)
            finally:
                self.journal.begun.pop(f"{name} {network}")
                self.journal.save()
        known = [network for network in networks if network.key in values]
        ordered = sorted(known, key=lambda network: -values[network.key])
        images = len(self.held.drawn.images)
        seconds = sum(self.so_far.seconds(one, images) for one in ordered)
        kept = len(ordered)
        if kept > 2 and seconds >= HALVING_SHARE * self.config.budget:
            kept = max(2, (kept + 1) // 2)
        for network in ordered[kept:]:
            value = values[network.key]
            self.so_far.skipped.append(
                Step("frozen", str(network), value=value, verdict="worse early")
            )
            self.held.forget(network)
        self.so_far.skipped += [Step("frozen", str(one), verdict=STOPPED) for one in stopped]
        return ordered[:kept] + [one for one in networks if one not in [*known, *stopped]]

    def _join_squashed(self) -> bool:
        """Joins the best with the vectors of squashed images by its networks, and fits its head to
        all of them. Returns whether one was kept.

        If the test classes are seen, one network is tried, since fine-tuning gains more; if they
        are new, one after another, until one does not gain.
        """
        has_gained, is_new = False, self.validating["validate_on"] == NEW
        for network in self._most_promising(JOINED if is_new else 1):
            assert self.so_far.plain is not None
            plain = self.so_far.plain.candidate
            if network not in plain.networks or network.name or Path(network.model).is_dir():
                continue
            if self.held.runtime(network).embedder.preprocess.framed_as == SQUASH:
                continue  # it sees images so as it is
            squashed = dataclasses.replace(network, framing=SQUASH)
            self.so_far.times.setdefault(squashed.key, self.so_far.times.get(network.key, 0.0))
            needs = self.so_far.seconds(squashed, len(self.held.drawn.images))
            if plain.head != "none":
                needs += self.so_far.seconds(squashed, len(self.held.others))
                needs += FITTING * self.so_far.times.get("heads", 0.0)
            if needs > SQUASHED_SHARE * self.config.budget:
                continue
            weights = [*plain.weights, plain.weights[plain.networks.index(network)]]
            joined = dataclasses.replace(
                plain, networks=(*plain.networks, squashed),
                weights=tuple(weight / sum(weights) for weight in weights),
            )  # fmt: skip
            self.so_far.attempt("squashed", str(joined), joined, needs=needs)
            if self.so_far.plain.candidate != joined:
                break
            has_gained = True
        return has_gained

    def _try_larger_and_mirrored(self) -> None:
        """Tries the best frozen model with larger images, and with mirrored ones. Where a head is
        best, only if there also is time to fit one to these."""
        assert self.so_far.plain is not None
        network = max(
            (one for one in self.so_far.singles if not (one.image_size or one.views or one.name)),
            key=lambda one: self.so_far.singles[one].value,
        )
        if Path(network.model).is_dir():
            return
        backbone = find_backbone(network.model)
        size = backbone.image_size
        images = self._ranked
        if self.so_far.plain.candidate.head != "none":
            images += len(self.held.others)
        for factor in SIZES if size else ():
            step = 14 if "14" in backbone.architecture else 32  # patches of 14 × 14 pixels
            pixels = step * round((size or 0) * factor / step)
            larger = dataclasses.replace(network, image_size=pixels)
            needs = factor**2 * self.so_far.seconds(network, images)
            self.so_far.attempt("image size", str(larger), Candidate((larger,)), needs=needs)
            if self.so_far.plain.candidate != Candidate((larger,)):
                break
            network = larger
        mirrored = dataclasses.replace(network, views="flip")
        needs = 2 * self.so_far.seconds(network, images)
        self.so_far.attempt("views", str(mirrored), Candidate((mirrored,)), needs=needs)

    def _join(self) -> None:
        """Joins other networks with the best one, as long as one more of them gains."""
        start = max(self.so_far.singles, key=lambda network: self.so_far.singles[network].value)
        joined, value = Candidate((start,)), self.so_far.singles[start].value
        while len(joined.networks) < JOINED:
            try:
                found = [
                    (self.held.trial(one, self.so_far.report).value, one)
                    for one in self._wider(joined)
                ]
            except TimeIsUp:
                return
            best, candidate = max(found, key=lambda pair: pair[0], default=(0.0, joined))
            if best <= value:
                return
            self.so_far.attempt("joined", str(candidate), candidate)
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

    def _chain(self, *, quickly: bool = False) -> None:
        """A chain of refinements after the best without one: a chosen one, or the earlier one if
        there is no time to choose, or not yet (`quickly`). The best is made a complete run."""
        assert self.so_far.plain is not None and self.so_far.best is not None
        plain, earlier = self.so_far.plain.candidate, self.so_far.best.candidate.chain
        started = self.journal.spent()

        def choose() -> Candidate:
            on_all = DRAWS / CHAIN_DRAWS * self.chain_seconds  # unknown for the first chain
            is_affordable = 0 < on_all < CHOOSING_SHARE * self.journal.left()
            few = None if is_affordable else CHAIN_DRAWS
            verify = self.config.budget >= THOROUGH and len(plain.networks) == 1
            choice = self.held.chosen_chain(plain, self.so_far.report, draws=few, verify=verify)
            return dataclasses.replace(plain, chain=str(choice.chain))

        if self.so_far.shared.refine_uses != "nothing":
            found = None
            if not quickly or earlier == "none":
                name, needs = f"chain after {plain}", 1.2 * self.chain_seconds
                found = self.so_far.attempt("chain", name, choose, needs=needs, like=plain)
            if found is not None:
                taken = self.journal.spent() - started
                self.so_far.times["chain"] = max(self.chain_seconds, taken)
            elif (once := dataclasses.replace(plain, chain=earlier)) != self.so_far.best.candidate:
                # to try one takes a small part of the time of choosing
                self.so_far.attempt("chain", str(once), once, needs=self.chain_seconds / 4)
        self.so_far.complete()

    def _head(self) -> None:
        """A projection of the joined vectors of the most promising networks: of as many as there
        is time for, and of so many the best."""
        promising = self._most_promising(JOINED)
        counts = range(len(promising), 0, -1)
        for networks in (n for count in counts for n in itertools.combinations(promising, count)):
            joined = Candidate(networks, (1 / len(networks),) * len(networks))
            new = [n for n in networks if not self.held.is_embedded(n, "others")]
            needs = sum(self.so_far.seconds(n, len(self.held.others)) for n in new)

            def best_head(joined: Candidate = joined) -> Candidate:
                heads = self.held.fit_heads(joined, self.so_far.report)
                best = max(heads, key=lambda one: self.held.trial(one, self.so_far.report).value)
                plain = self.so_far.plain
                self.held.forget_heads(best, plain.candidate if plain else None)
                return best

            with_head = dataclasses.replace(joined, head="?")
            name = f"head after {joined}"
            if self.so_far.attempt("head", name, best_head, needs=needs, like=with_head):
                self.so_far.complete()
                return

    def _head_gains_early(self, first: Network) -> bool:
        """Whether a head of the first network comes before other networks: of seen classes it
        usually gains more than they do, of new ones it may, and of few images it takes no time."""
        seconds = self.so_far.seconds(first, len(self.held.others))
        share = EARLY_HEAD_SHARE[self.validating["validate_on"]]
        return seconds < share * self.config.budget

    def _join_tuned(self) -> None:
        """Joins the vectors of a tuned network with those of the best head; without a head, joins
        networks. That head is not fitted to the tuned network's vectors: it would overfit to images
        that the network was trained on."""
        assert self.so_far.plain is not None
        plain = self.so_far.plain.candidate
        tuned = [
            network for network in self._most_promising(len(self.so_far.singles))
            if network.name.endswith(TUNED) and network not in plain.networks
        ]  # fmt: skip
        if plain.head == "none":
            self._join()
            return
        if plain.beside or not tuned:
            return
        networks = (*plain.networks, tuned[0])
        found = [
            dataclasses.replace(
                plain, networks=networks, beside=1,
                weights=(*((1 - share) * weight for weight in plain.weights), share),
            )
            for share in SHARES
        ]  # fmt: skip

        def best_share() -> Candidate:
            return max(found, key=lambda one: self.held.trial(one, self.so_far.report).value)

        self.so_far.attempt("joined", f"{plain} beside {tuned[0]}", best_share, like=found[0])

    def _fine_tune(self, count: int) -> None:
        """Fine-tunes the most promising networks with the time that is left, in `count` equal
        parts; what is left after these, perhaps since more time was given, goes to further ones. A
        network for which there now is LONGER times the time is tuned once more."""
        assert self.so_far.plain is not None
        plain = self.so_far.plain.candidate  # what a tuned network may be joined with

        def seconds_each(parts: int) -> float:
            left = self.journal.left() - self.so_far.reserve(plain) - 1.2 * self.chain_seconds
            return left / max(1, parts)

        for i in itertools.count():
            network = self._next_to_tune(seconds_each(count - i), i)
            if network is None:
                return
            plans = self.journal.known.get(f"{PLAN}{network}", [])
            for times, planned in enumerate(plans):
                self._tune(network, planned, times)
                self.so_far.complete()
            seconds = seconds_each(count - i)
            seconds -= 2 * LOADING + self.so_far.seconds(network, self._ranked)
            seconds -= self.so_far.run_seconds + TUNING_MARGIN * self.config.budget
            if i == 0 and count > 1:  # then a head is fitted to this and the other networks
                seconds -= self.so_far.seconds(network, len(self.held.others))
                seconds -= self._seconds_of_heads
            if one_pass := self._pass_seconds(network):
                seconds = min(seconds, max(LEAST_TUNING, MOST_PASSES * one_pass))
            if plans and seconds < LONGER * plans[-1]:
                continue
            least = max(LEAST_TUNING, LEAST_PASSES * self._pass_seconds(network))
            if seconds < least:
                missing = max(1, count - i) * (least - seconds)
                budget = self.config.budget + missing / (1 - TUNING_MARGIN)
                skipped = Step("fine-tuned", str(network), verdict=NO_TIME, needs=round(budget, 1))
                self.so_far.skipped += [skipped] if i < count else []
                return
            self.journal.known[f"{PLAN}{network}"] = [*plans, round(seconds, 1)]
            self._tune(network, round(seconds, 1), len(plans))
            self.so_far.complete()

    def _pass_seconds(self, network: Network) -> float:
        """Of a fine-tuning, to see each training image once."""
        return TRAINING_COST * self.so_far.seconds(network, len(self.held.others))

    def _next_to_tune(self, seconds: float, i: int) -> Network | None:
        """The i-th network to fine-tune: of those that see all images PASSES times the best one, or
        the fastest if none does; None if there are no more."""
        known = [key[len(PLAN) :] for key in self.journal.known if key.startswith(PLAN)]
        others = self._most_promising(len(self.so_far.singles), tuned=False)
        known = [name for name in known if name in map(str, others)]
        if i < len(known):  # an interrupted search continues
            return next((one for one in others if str(one) == known[i]), None)
        others = [network for network in others if str(network) not in known]
        enough = [one for one in others if PASSES * self._pass_seconds(one) < seconds]
        return next(
            iter(enough), min(others, key=lambda one: self.so_far.seconds(one, 1), default=None)
        )

    def _tune(self, network: Network, seconds: float, times: int = 0) -> None:
        """Fine-tunes the network in a run, whose model is then a further network. times: how often
        it was tuned before, for less time."""
        kind = self._trained_part(network)
        name = " ".join([str(network), *["longer"] * times, kind])
        run_key = f"{TUNED_RUN}{name}"

        def tune() -> Candidate:
            if not is_run(self.journal.known.get(run_key, "")):
                until = OVERRUN * self.config.budget
                tuning = {**self.validating, "finetune": kind, "budget": seconds}
                config = self.so_far.config_of(network, tuning=tuning, validating=None)
                self.held.forget(network)
                done = run(config, self.journal.guarded(self.so_far.progress, until))
                self.journal.known[run_key] = str(done.run.folder.absolute())
                self.journal.save()
            return Candidate((Network(self.journal.known[run_key], name=name),))

        self.so_far.attempt("fine-tuned", name, tune)

    def _trained_part(self, network: Network) -> str:
        """What --finetune says of it: its last blocks on a CPU; on a GPU all, or adapters of a
        large transformer if they can be had."""
        if self.held.compute(network).kind != "cuda":
            return LAST
        has_adapters = importlib.util.find_spec("peft") is not None
        if has_adapters and suits_adapters(self.held.runtime(network).embedder):
            return LORA
        return FULL

    def _most_promising(self, count: int, *, tuned: bool = True) -> list[Network]:
        """The best networks alone, each as it is best: larger, mirrored or tuned. Without tuned
        ones: those that a training can start from."""
        best: dict[tuple[str, str], tuple[float, Network]] = {}
        for network, trial in self.so_far.singles.items():
            source = network
            if not tuned and network.name:
                sources = [n for n in self.so_far.singles if network.name.startswith(f"{n} ")]
                source = max(sources, key=lambda one: len(str(one)))  # "a (w) last" is not of "a"
            if not tuned and (network.image_size or network.views):
                continue
            key = source.model, source.weights
            if key not in best or trial.value > best[key][0]:
                best[key] = trial.value, source
        return [n for _, n in sorted(best.values(), key=lambda pair: -pair[0])][:count]


def _pooling_stages(network: Network) -> Network:
    """The network with the pooling `stages`; as it is if it has none, or is an embedder."""
    is_given = Path(network.model).is_dir()
    poolings = () if is_given else resolve_backbone(network.model).poolings or ()
    return dataclasses.replace(network, pooling=STAGES) if STAGES in poolings else network


def _is_variant(network: Network, others: Sequence[Network]) -> bool:
    """Whether one of the others is the same model with other images or views."""
    return not network.name and any(network.model == other.model for other in others)
