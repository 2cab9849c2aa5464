"""What `best` has tried and how long it took, on disk after every step, and as a table."""

import dataclasses
import hashlib
import json
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.choose.validation import Trial
from vizsla.progress import Report
from vizsla.score.text_table import WIDTH, Table

FORM, FILE = "best/1", "best.json"
LONGEST_VERDICT, FOLDED_VERDICT = 14, 12  # letters, of one that is not folded in the table or is
SAVE_SECONDS = 5.0  # between two records of the time spent
FAILED = "failed: "  # begins the verdict of a step that did
STOPS = 2  # times that a step may stop the whole command; then it is skipped
BETTER, NO_TIME = "kept", "no time"
STOPPED = "left out: it stopped the command twice"
USED = f"{BETTER} for all"  # of a framing: it takes no more time, so any gain is enough
IN_WORDS = {
    "frozen": "the model", "joined": "joining", "head": "a head for", "chain": "re-ranking by",
    "image size": "larger images of", "views": "mirrored images of", "fine-tuned": "fine-tuning",
    "squashed": "squashed images in",
}  # fmt: skip
SHORT = {"image size": "size", "fine-tuned": "tuned"}  # stages in the table, so that names fit
GAIN = (
    "gain: in what is optimised (the mean of top-1 and mAP, unless --optimise says otherwise), "
    "over the best earlier step without re-ranking, ± its standard error; models as they "
    "are (without a head, not tuned) are compared with each other only; unsure: no more than that "
    "error; below best: better than the models before, but a trained one is better; risky: more "
    "likely to lose contest points on the test part than to gain some; below first: top-1 or mAP "
    "is below that of the first model"
)


class TimeIsUp(Exception):
    """A step has used up its time. It is caught inside `best`."""


@dataclass(frozen=True)
class Step:
    """A candidate that was tried. value, gain, error: of what is optimised, on validation; None
    where it was not compared. gain: over the best earlier one without a chain; of models without
    a head, over the best earlier such ones. verdict: why it is kept or not, in words. needs: for a
    step without time, the budget in seconds that would allow it.
    """

    stage: str
    name: str
    top1: float | None = None
    map: float | None = None
    points: float | None = None
    value: float | None = None
    gain: float | None = None
    error: float | None = None
    seconds: float = 0.0
    verdict: str = ""
    needs: float | None = None

    def scored(self, trial: Trial, best: Trial | None) -> "Step":
        """The step with the values of its trial and its gain over the best earlier one."""
        compared = dataclasses.replace(trial, baseline=best)
        return dataclasses.replace(
            self, top1=round(trial.top1, 4), map=round(trial.map, 4),
            points=round(trial.points, 1), value=round(trial.value, 4),
            gain=round(compared.gain, 4) if best else None,
            error=round(compared.error, 4) if best else None,
        )  # fmt: skip


@dataclass
class Journal:
    """The steps so far, the seconds spent, and the best complete run.

    known: what steps have found, by name, so that a continued search does not repeat them. begun:
    how often each step that has not ended was begun. best: the candidate of the best run, and that
    run's id.
    """

    path: Path
    budget: float
    spent_before: float = 0.0
    steps: list[Step] = field(default_factory=list)
    known: dict[str, Any] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    clock: Callable[[], float] = time.monotonic
    steps_before: int | None = None  # of an earlier call, which this one continues

    def __post_init__(self) -> None:
        self.started = self.saved = self.clock()

    @staticmethod
    def open(folder: Path, budget: float) -> "Journal":
        """The journal in this folder, continued; a new one if there is none. What failed is tried
        again: a hub may be reached now, or a GPU free."""
        path = folder / FILE
        if not path.exists():
            return Journal(path, budget)
        found = storage.read_sealed_json(path)
        steps = [Step(**step) for step in found["steps"]]
        steps = [step for step in steps if not step.verdict.startswith(FAILED)]
        known = {name: value for name, value in found["known"].items() if value is not None}
        return Journal(
            path, budget, found["spent"], steps, known, found["begun"], found["best"],
            steps_before=len(steps),
        )  # fmt: skip

    @property
    def is_unchanged(self) -> bool:
        """Whether this call continued an earlier one and found nothing left to try."""
        return self.steps_before == len(self.steps)

    # ── time ─────────────────────────────────────────────────────────────────────────────────────

    def spent(self) -> float:
        """Seconds of this call and the earlier ones."""
        return self.spent_before + self.clock() - self.started

    def left(self) -> float:
        """Seconds of the budget; negative after its end."""
        return self.budget - self.spent()

    def guarded(self, report: Report | None, until: float) -> Report:
        """Passes reports on; raises TimeIsUp at the first one after `until` seconds were spent."""

        def guard(stage: str, done: int, total: int) -> None:
            if self.clock() - self.saved > SAVE_SECONDS:
                self.save()
            if self.spent() > until:
                raise TimeIsUp
            if report:
                report(stage, done, total)

        return guard

    # ── steps ────────────────────────────────────────────────────────────────────────────────────

    def begin(self, name: str) -> bool:
        """Records that a step begins; False if it has already stopped the whole command STOPS
        times."""
        stopped = self.begun.get(name, 0)
        if stopped >= STOPS:
            return False
        self.begun[name] = stopped + 1
        self.save()
        return True

    def end(self, name: str, step: Step | None, found: Any = None) -> None:
        """Records what a step has found; None: a failure, which only a later call tries again."""
        self.begun.pop(name, None)
        self.known[name] = found
        if step is not None:
            self.steps.append(step)
        self.save()

    def save(self) -> None:
        """Writes the file, whole or not at all."""
        self.saved = self.clock()
        content = {
            "form": FORM, "budget": self.budget, "spent": round(self.spent(), 1),
            "steps": [dataclasses.asdict(step) for step in self.steps], "known": self.known,
            "begun": self.begun, "best": self.best,
        }  # fmt: skip
        storage.write_sealed_json(self.path, content)


def steps_table(steps: list[Step]) -> Table:
    """A row for each step, in the order in which they were tried; without those that had no
    time."""
    columns = ["step", "what", "top-1", "mAP", "gain", "time", "verdict"]
    rows = [
        [SHORT.get(step.stage, step.stage), step.name, step.top1, step.map,
         None if step.gain is None else f"{step.gain:+.3f} ± {step.error:.3f}",
         f"{step.seconds:.0f} s" if step.value is not None else None, step.verdict]
        for step in steps
        if step.verdict != NO_TIME
    ]  # fmt: skip
    return Table(columns, rows)


def steps_lines(steps: list[Step]) -> list[str]:
    """The table for a terminal. Long verdicts, as of what failed, are folded: names need room."""
    table = steps_table(steps)
    whole = table.columns[2:]
    if max((len(row[-1]) for row in table.rows), default=0) > LONGEST_VERDICT:
        folded = [
            [*row[:-1], "\n".join(textwrap.wrap(row[-1], FOLDED_VERDICT))] for row in table.rows
        ]
        table, whole = Table(table.columns, folded), whole[:-1]
    return table.lines(WIDTH, keep=table.columns, whole=whole)


def without_time(steps: list[Step]) -> str:
    """The steps for which there was no time, as a sentence; "" if there was for all. Of heads only
    the first, which is that of most models."""
    late = [step for step in steps if step.verdict == NO_TIME]
    heads = [step for step in late if step.stage == "head"]
    named = [
        step.name if step.stage in step.name else f"{step.stage} {step.name}"
        for step in late
        if step not in heads[1:]
    ]
    return f"no time for: {'; '.join(named)}" if named else ""


def in_words(step: Step) -> str:
    """What was done in a step: re-ranking by diffusion."""
    return f"{IN_WORDS.get(step.stage, step.stage)} {step.name}"


def most_gained(steps: list[Step], count: int = 3) -> list[Step]:
    """The steps that were kept, those with the largest gains first."""
    kept = [step for step in steps if step.verdict.startswith(BETTER) and step.gain]
    return sorted(kept, key=lambda step: -(step.gain or 0))[:count]


def folder_of(home: Path, content: Any, name: str) -> Path:
    """The folder of a search: another one for other data or options."""
    text = json.dumps(content, sort_keys=True, default=str)
    return home / "best" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
