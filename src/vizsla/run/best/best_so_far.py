"""The best ranking so far: what `best` tries is compared with it, and it is made a complete run."""

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizsla.choose.validation import Trial
from vizsla.progress import Report
from vizsla.run.best.candidates import Candidate, HeldOut, Network
from vizsla.run.best.journal import BETTER, FAILED, NO_TIME, STOPPED, Journal, Step, TimeIsUp
from vizsla.run.config import RunConfig
from vizsla.run.finish import record_validation
from vizsla.run.fused_runs import CONCAT, FusionConfig
from vizsla.run.inputs import folders_of
from vizsla.run.members import Member
from vizsla.run.pipeline import run
from vizsla.run.several_models import joint_run
from vizsla.score.validation_scores import ValidationScores
from vizsla.search.chain import parse_chain
from vizsla.workspace import Run, is_run

log = logging.getLogger("vizsla.run")

LOADING, FINISHING = 2.0, 5.0  # seconds, before they are measured: of a model, of a run's files
FITTING = 1.5  # times as long as heads took, for the head of a complete run
LEFT_OUT = "left out"  # in the journal: a step that is not tried in later calls either
OVERRUN = 1.04  # of the budget, for what cannot be stopped at once


@dataclass(frozen=True, eq=False)
class Tried:
    """A candidate and its values on validation."""

    candidate: Candidate
    trial: Trial


class BestSoFar:
    """The best candidate so far, and how it becomes a complete run.

    first: the values of the first model. plain: the best candidate without a chain. untrained: the
    best values of networks as they are, without a head or a chain. singles: the networks that were
    tried alone, without a chain. skipped: steps that were not tried. times: measured seconds, see
    `HeldOut`; and of a complete `run` once its vectors are there.
    """

    def __init__(
        self, shared: RunConfig, folder: Path, journal: Journal, progress: Report | None
    ) -> None:
        self.shared, self.journal, self.progress = shared, journal, progress
        self.times: dict[str, float] = journal.known.setdefault("times", {})
        self.held = HeldOut(shared, folders_of(shared), folder, self.times)
        self.first: Trial | None = None
        self.plain: Tried | None = None
        self.best: Tried | None = None
        self.untrained: Trial | None = None
        self.singles: dict[Network, Trial] = {}
        self.skipped: list[Step] = []
        self._entered: set[str] = set()  # journal keys of the candidates that were entered
        self.test_images = 0
        self._kept_back = 0.0  # seconds that the current step must leave for a complete run

    @property
    def report(self) -> Report:
        """Stops a step when only the time is left that a complete run takes: of the best so far, or
        of what is tried, if that takes longer. All others are compared with the first one."""
        kept_back = max(self._kept_back, self.reserve())
        until = self.journal.budget - kept_back
        if self.first is None:
            until = OVERRUN * self.journal.budget
        return self.journal.guarded(self.progress, until)

    def reserve(self, candidate: Candidate | None = None) -> float:
        """Seconds that it takes to make a complete run of a candidate; by default of the best, 0 if
        there is one."""
        if candidate is None:
            if self.best is None or self._is_best_run(self.best.candidate):
                return 0.0
            candidate = self.best.candidate
        new = [one for one in candidate.networks if not self._has_run(one)]
        seconds = sum(LOADING + self.seconds(one, self.test_images) for one in new)
        if candidate.head != "none":
            rest = self.held.not_embedded
            seconds += sum(LOADING + self.seconds(one, rest) for one in candidate.projected)
            seconds += FITTING * self.times.get("heads", 0.0)
        return self.run_seconds + seconds

    @property
    def run_seconds(self) -> float:
        """Seconds that a complete run takes once its vectors are there."""
        return self.times.get("run", FINISHING)

    def seconds(self, network: Network, images: int) -> float:
        """Seconds that it takes to embed so many images, as far as is known."""
        return 1.15 * self.times.get(network.key, 0.0) * images

    def attempt(
        self,
        stage: str,
        name: str,
        what: Candidate | Callable[[], Candidate],
        *,
        needs: float = 0.0,
        like: Candidate | None = None,
    ) -> Candidate | None:
        """Tries a candidate, records it, and keeps it if it is better. None: it failed, or there
        was no time.

        needs: seconds that it takes at least; with less left it is skipped. like: a candidate whose
        complete run takes as long as that of the one which the function `what` returns.
        """
        key = f"{stage}: {name}"
        if key in self.journal.known:
            found = self.journal.known[key]
            if found in (None, LEFT_OUT):
                return None
            candidate = Candidate.of(found["candidate"])
            if key not in self._entered:
                self._entered.add(key)
                report = self.journal.guarded(self.progress, math.inf)  # it was in time
                self._enter(Tried(candidate, self.held.trial(candidate, report)), found["kept"])
            return candidate
        known = what if isinstance(what, Candidate) else None
        expected = known or like
        kept_back = max(self.reserve(), self.reserve(expected) if expected else 0.0)
        if self.journal.left() - kept_back < needs:
            budget = self.journal.spent() + kept_back + needs
            self._skip(Step(stage, name, verdict=NO_TIME, needs=round(budget, 1)))
            return None
        if not self.journal.begin(key):
            step = Step(stage, name, verdict=STOPPED)
            self.journal.end(key, step, LEFT_OUT)
            return None
        # the first step includes the first complete run
        started = self.journal.spent() if self.first else 0.0
        self._kept_back = kept_back
        try:
            candidate = what if isinstance(what, Candidate) else what()
            trial = self.held.trial(candidate, self.report)
        except TimeIsUp:
            self._skip(Step(stage, name, verdict=NO_TIME))
            return None
        except Exception as error:  # the next candidate may work
            log.debug("%s", key, exc_info=True)
            reason = " ".join(f"{error}".split()) or type(error).__name__
            log.warning("%s %s failed: %s", stage, name, reason)
            self.journal.end(key, Step(stage, name, verdict=f"{FAILED}{reason}"[:120]))
            return None
        finally:  # also after Ctrl-C
            self._kept_back = 0.0
            self.journal.begun.pop(key, None)
        tried = Tried(candidate, trial)
        kept = self._is_kept(tried)
        steps = " + ".join(step.name for step in parse_chain(candidate.chain).steps)
        shown = steps or "none" if stage == "chain" else str(candidate)
        taken = round(self.journal.spent() - started, 1)
        verdict = BETTER if kept else self._why_not(tried)
        step = Step(stage, shown, seconds=taken, verdict=verdict)
        step = step.scored(trial, self._compared(candidate))
        self.journal.end(key, step, {"candidate": candidate.to_dict(), "kept": kept})
        self._entered.add(key)
        return self._enter(tried, kept)

    def _skip(self, step: Step) -> None:
        """Notes a step without time, once."""
        others = [one for one in self.skipped if (one.stage, one.name) != (step.stage, step.name)]
        self.skipped = [*others, step]

    def _is_kept(self, tried: Tried) -> bool:
        """Whether it gains more than one standard error over the best without a chain, is more
        likely to gain than to lose contest points, and does not fall below the first model.

        A chain was already compared with no chain, by a stricter rule. It has to gain over the best
        only if that has other networks.
        """
        trial, before = tried.trial, self.plain
        if before is None or self.first is None or self.best is None:
            return True
        if trial.top1 < self.first.top1 or trial.map < self.first.map:
            return False
        if tried.candidate.chain == "none":
            return _gains(trial, before.trial)
        other = dataclasses.replace(self.best.candidate, chain="none") != before.candidate
        changed = tried.candidate != self.best.candidate
        return changed and (not other or _gains(trial, self.best.trial))

    def _compared(self, candidate: Candidate) -> Trial | None:
        """What the table compares it with: the best before it without a chain; models as they are
        (without a head, not tuned) are compared with the best of these."""
        if candidate.is_untrained:
            return self.untrained
        return self.plain.trial if self.plain else None

    def _why_not(self, tried: Tried) -> str:
        """Why it is not kept, in a few words."""
        assert self.plain is not None and self.best is not None
        compared = self._compared(tried.candidate)
        before = self.best.trial if tried.candidate.chain != "none" else compared
        trial = dataclasses.replace(tried.trial, baseline=before, max_risk=0.5)
        if tried.candidate in (self.plain.candidate, self.best.candidate):  # no chain is safe
            return "nothing gains"
        if trial.gain <= 0:
            return "worse"
        if trial.gain <= trial.error:
            return "unsure"
        if trial.risk > trial.max_risk:
            return "risky"
        assert self.first is not None
        is_below = trial.top1 < self.first.top1 or trial.map < self.first.map
        return "below first" if is_below else "below best"

    def _enter(self, tried: Tried, kept: bool) -> Candidate:
        candidate = tried.candidate
        if candidate == Candidate(candidate.networks[:1]):  # one network as it is
            self.singles[candidate.networks[0]] = tried.trial
            self._record_validation(self._has_run(candidate.networks[0]), tried.trial)
        before = self.untrained
        if candidate.is_untrained and (before is None or tried.trial.value > before.value):
            self.untrained = tried.trial
        if kept and candidate.chain == "none":
            self.plain = tried
        if kept and (
            self.best is None or candidate.chain != "none" or _gains(tried.trial, self.best.trial)
        ):
            self.best = tried
        return candidate

    def complete(self) -> None:
        """Makes a complete run of the best so far, unless it is one."""
        assert self.best is not None
        candidate = self.best.candidate
        if self._is_best_run(candidate):
            return
        if self.journal.best:
            known = Candidate.of(self.journal.best["candidate"])
            report = self.journal.guarded(self.progress, math.inf)
            if self.held.trial(known, report).value > self.best.trial.value:
                return  # a search that continues may first come to something worse
        started = self.journal.spent()
        known_parts = self.reserve() - self.run_seconds
        report = self.journal.guarded(self.progress, OVERRUN * self.journal.budget)
        try:
            done = self._run_of_candidate(candidate, report)
        except TimeIsUp:
            step = Step("run", str(candidate), verdict="no time to make it a run")
            self.skipped += [] if step in self.skipped else [step]
            return
        except Exception as error:  # the earlier run is still there
            log.debug("%s", candidate, exc_info=True)
            log.warning("no run of %s, so that an earlier one is the best: %s", candidate, error)
            return
        taken = self.journal.spent() - started - known_parts
        self.times["run"] = max(self.run_seconds, 1.2 * taken)
        self._record_validation(done, self.best.trial)
        self._set_best_run(candidate, done)

    def _is_best_run(self, candidate: Candidate) -> bool:
        """Whether the best complete run is of this candidate."""
        best = self.journal.best
        return best is not None and Candidate.of(best["candidate"]) == candidate

    def _record_validation(self, done: Run | None, trial: Trial) -> None:
        """Writes the values of a trial into its run's result file, for `compare`."""
        if done is not None:
            record_validation(done, ValidationScores.on(self.held.on.record(), trial.means, "best"))

    def _set_best_run(self, candidate: Candidate, done: Run) -> None:
        self.journal.best = {"candidate": candidate.to_dict(), "run": done.id}
        self.journal.save()
        held = ""
        if self.best is not None:
            trial = self.best.trial
            held = f", validation top-1 {trial.top1:.3f}, mAP {trial.map:.3f}"
        log.info("best so far: %s%s: runs/%s", candidate, held, done.id)

    def _run_of_candidate(self, candidate: Candidate, report: Report) -> Run:
        if len(candidate.networks) == 1 and candidate.head == "none":
            (network,) = candidate.networks
            if candidate.chain == "none":
                return self.run_of(network, report)
            return run(self.config_of(network, refine=candidate.chain), report).run
        members = [
            Member.of(self.run_of(one, report).folder, cache=self.shared.cache)
            for one in candidate.networks
        ]
        fusion = FusionConfig(
            CONCAT, list(candidate.weights), candidate.head, candidate.chain,
            beside=candidate.beside,
        )  # fmt: skip
        shared = dataclasses.replace(self.shared, figures=0)
        return joint_run(members, shared, fusion, report).run

    def run_of(self, network: Network, report: Report) -> Run:
        """The complete run of a network alone; a tuned one has it already."""
        found = self._has_run(network)
        if found is None:
            found = run(self.config_of(network), report).run
            self.journal.known[f"run {network.key}"] = found.id
        if self.journal.best is None:
            self._set_best_run(Candidate((network,)), found)
        return found

    def config_of(self, network: Network, **changes: Any) -> RunConfig:
        """The configuration of a run of the network, with the runtime of its other runs."""
        runtime = self.held.compute(network).runtime
        return network.config(self.shared, runtime=runtime, **changes)

    def _has_run(self, network: Network) -> Run | None:
        if network.name and is_run(network.model):  # a run that was given may rank otherwise
            return Run(Path(network.model).parent.parent, Path(network.model).name)
        known = self.journal.known.get(f"run {network.key}")
        found = Run(Path(self.shared.home), known) if known else None
        return found if found and found.result_file else None


def _gains(trial: Trial, before: Trial) -> bool:
    """Whether it gains over one standard error, and is likelier to gain than to lose points."""
    return dataclasses.replace(trial, baseline=before, max_risk=0.5).is_safe
