"""What `best` gives: the best complete run, and the table of what was tried."""

import dataclasses
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.notebook import Shown, Summary
from vizsla.output import pages
from vizsla.output.sheet_selection import draw_sample, with_unanswered
from vizsla.run.best.candidates import Candidate
from vizsla.run.best.journal import (
    GAIN,
    Journal,
    Step,
    in_words,
    most_gained,
    steps_lines,
    steps_table,
    without_time,
)
from vizsla.run.config import RunConfig
from vizsla.run.finish import unscored
from vizsla.run.inputs import folders_of, truth_in
from vizsla.score.scores import Scores
from vizsla.score.text_table import WIDTH
from vizsla.score.validation_scores import ValidationScores
from vizsla.search.ranking import Ranking
from vizsla.workspace import Run

PAGE = "best.html"
LONGER = {"frozen": "a further model", "head": "a head", "chain": "another chain",
          "joined": "joining", "image size": "larger images", "views": "mirrored images",
          "squashed": "squashed images", "fine-tuned": "a fine-tuning"}  # fmt: skip
MARGIN = 1.1  # on the time that a step needs: earlier steps may take longer than before
NOTHING = "nothing could be chosen, so this is the first model as it is:"
NOTHING_LEFT = "; nothing new was tried, since earlier calls left nothing to try"
NO_TIME_LEFT = "; nothing new was tried, since no step fits into what earlier calls left of it"
OTHER_DRAWS = "a single run draws its own queries, so its values differ a little"


@dataclass(frozen=True, repr=False)
class BestResult(Shown):
    """The best complete run, and what was tried. scores: None if no labels are known.

    candidate: how the run ranks. held_out: the images that it was chosen on, in words. seconds:
    spent by all calls. is_unchanged: whether an earlier call left nothing to try.
    """

    run: Run
    candidate: Candidate
    steps: list[Step]
    held_out: str
    budget: float
    seconds: float
    scores: Scores | None
    figures: list[Path]
    page: Path
    is_unchanged: bool = False

    @property
    def validation(self) -> ValidationScores | None:
        """top1, map and points of the best run on held-out images; None if nothing was chosen."""
        path = self.run.result_file
        return ValidationScores.of(storage.read_json(path).get("validation")) if path else None

    @property
    def has_values(self) -> bool:
        """Whether anything was compared on held-out images."""
        return any(step.value is not None for step in self.steps)

    @property
    def again(self) -> str:
        """The command that repeats the best run."""
        return f"vizsla run --again {self.run.folder}"

    def summary(self) -> Summary:
        """What was best, and the table of the steps."""
        table = steps_table(self.steps)
        scores = self.scores.summary().facts if self.scores else unscored(self.validation)
        facts = [self.candidate.readable, *scores, f"{self.seconds:.0f} of {self.budget:.0f} s",
                 f"in {self.run.folder}"]  # fmt: skip
        return Summary("Best", facts, table.columns, table.rows, notes=self.notes())

    def notes(self) -> list[str]:
        """Which steps gained most, and what the budget was too short for."""
        gained = [f"{in_words(step)} {step.gain:+.3f}" for step in most_gained(self.steps)]
        notes = [GAIN] if any(step.gain is not None for step in self.steps) else []
        notes += [f"most gained by: {'; '.join(gained)}"] if gained else []
        short = without_time(self.steps)
        notes += [short] if short else []
        tried = {step.stage for step in self.steps if step.value is not None}
        longer = self._longer()
        if tried and not tried & {"head", "fine-tuned"}:
            more = longer or "more time also tries heads and fine-tuning"
            notes.append(
                f"the budget of {self.budget:.0f} s was enough for frozen models only: {more}"
            )
        elif longer:
            notes.append(longer)
        elif tried and not short and not self.is_unchanged:
            notes.append("nothing else was left to try")
        return notes

    def _longer(self) -> str:
        """From which budgets on the steps without time would be tried on this data, by stage."""
        needs: dict[str, float] = {}
        for step in self.steps:
            if step.needs:
                needs[step.stage] = min(step.needs, needs.get(step.stage, math.inf))
        tried: dict[int, list[str]] = {}  # minutes → what
        for stage in sorted(needs, key=lambda stage: needs[stage]):
            minutes = math.ceil(MARGIN * needs[stage] / 60)
            tried.setdefault(minutes, []).append(LONGER.get(stage, stage))
        texts = [f"--budget {minutes}m also {_listed(what)}" for minutes, what in tried.items()]
        return f"with {'; with '.join(texts)} would be tried" if texts else ""

    def text(self) -> str:
        """All of it, for a terminal."""
        lines = wrapped(f"{NOTHING} {self.held_out}")
        if self.has_values:
            lines = [
                *wrapped(f"tried on {self.held_out} ({OTHER_DRAWS}):"),
                *steps_lines(self.steps),
                *[line for note in self.notes() for line in wrapped(note)],
            ]
        lines += [
            "",
            *wrapped(f"best: {self.candidate.readable}"),
            *wrapped(self._time),
            self.scores.text() if self.scores else "\n".join(wrapped(self._unscored)),
            f"tried       {self.page}",
        ]
        record = self.run.result_file
        if record is not None:
            name = str(storage.read_json(record)["model_name"])
            lines += [f"metrics     {record}", f"submission  {self.run.submission_path(name)}"]
        if self.figures:
            lines.append(f"figures     {self.figures[0].parent} ({len(self.figures)} queries)")
        return "\n".join([*lines, f"run         {self.run.folder}", f"again       {self.again}"])

    @property
    def _unscored(self) -> str:
        text = "No labels of the test part are known, so it has no scores"
        known = self.validation
        return f"{text}; {', '.join(known.facts)}" if known else f"{text}."

    @property
    def _time(self) -> str:
        text = f"after {self.seconds:.0f} of {self.budget:.0f} s"
        if not self.is_unchanged:
            return text
        is_spent = self.seconds >= self.budget or without_time(self.steps)
        return text + (NO_TIME_LEFT if is_spent else NOTHING_LEFT)

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "run": str(self.run.folder),
            "best": self.candidate.to_dict(),
            "steps": [dataclasses.asdict(step) for step in self.steps],
            "most_gained": [step.name for step in most_gained(self.steps)],
            "held_out": self.held_out,
            "budget": self.budget,
            "seconds": round(self.seconds, 1),
            "scores": self.scores and self.scores.to_dict(),
            "page": str(self.page),
            "again": self.again,
        }


def finished(config: RunConfig, journal: Journal, skipped: list[Step], held_out: str) -> BestResult:
    """The result of a search, after drawing the sheets of its best run and writing the page.

    skipped: steps that were not tried, for example for lack of time.
    """
    assert journal.best is not None
    best = Run(Path(config.home), journal.best["run"])
    scores, figures = best.folder / "scores.json", _figures(config, best)
    found = BestResult(
        best,
        Candidate.of(journal.best["candidate"]),
        [*journal.steps, *skipped],
        held_out,
        journal.budget,
        journal.spent(),
        Scores.load(scores) if scores.exists() else None,
        figures,
        journal.path.parent / PAGE,
        journal.is_unchanged,
    )
    remarks = [
        f"{'tried on' if found.has_values else NOTHING} {held_out}",
        *found.notes(),
        f"after {found.seconds:.0f} of {found.budget:.0f} s",
        f"to repeat it: {found.again}",
        f"all about it on one page: vizsla report {best.folder} -o report.html",
    ]
    page = pages.steps_page(steps_table(found.steps), remarks, found.candidate.readable)
    storage.write_text(found.page, page)
    return found


def wrapped(text: str) -> list[str]:
    """Lines for a terminal; names and paths are not cut."""
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False, break_long_words=False)


def _listed(words: list[str]) -> str:
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


def _figures(config: RunConfig, best: Run) -> list[Path]:
    """The query sheets of a run, drawn unless all are there."""
    if config.figures == 0 or best.result_file is None:
        return []
    name = str(storage.read_json(best.result_file)["model_name"])
    folder = best.figures_folder(name)
    data, scores = folders_of(config), best.folder / "scores.json"
    wanted = len(data.query) if config.figures < 0 else min(config.figures, len(data.query))
    drawn = sorted(folder.glob("*.png"))
    if len(drawn) >= wanted:
        return drawn
    ranking = Ranking.load(best.folder / "ranking.parquet")
    return draw_sample(
        with_unanswered(ranking, data.query.ids), data, truth_in(config, data),
        Scores.load(scores) if scores.exists() else None, folder,
        k=config.top_k, figures=config.figures, seed=config.seed, max_pixels=config.max_pixels,
    )  # fmt: skip
