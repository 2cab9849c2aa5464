"""What validation says of a run, apart from its scores on the test part.

A run that chose something on held-out training images has such scores without any labels of the
test part. Those of two runs compare only where both were held out alike.
"""

import dataclasses
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vizsla.score.text_table import WIDTH, Table

# heading → the key that a score has in result files
KEYS = {"top-1": "top_k_accuracy@1", "mAP": "map", "points": "contest_points"}
HOW = "--refine auto, --finetune head or `vizsla best DATA`"  # to have such scores
HEADING = "Validation, on held-out training images (not the test part):"


@dataclass(frozen=True)
class ValidationScores:
    """Of what a run ranks by. points: 0…1000.

    draws, queries, gallery: how often images were drawn, and how many each time. id: the same for
    the same draws of the same images. chosen: what was chosen on them.
    """

    top1: float
    map: float
    points: float
    draws: int
    queries: int
    gallery: int
    id: str
    chosen: str

    @staticmethod
    def of(record: Any) -> "ValidationScores | None":
        """What `record` gave; None for anything else."""
        if not isinstance(record, dict):
            return None
        try:
            return ValidationScores.on(record, record, str(record["chosen"]))
        except (KeyError, TypeError, ValueError):
            return None

    @staticmethod
    def on(sizes: dict[str, Any], means: dict[str, Any], chosen: str) -> "ValidationScores":
        """sizes: of the draws, see `data.splits.draws_record`. means: top1, map, points."""
        top1, map_, points = (round(float(means[key]), 6) for key in ("top1", "map", "points"))
        draws, queries, gallery = (int(sizes[key]) for key in ("draws", "queries", "gallery"))
        return ValidationScores(top1, map_, points, draws, queries, gallery, sizes["id"], chosen)

    def record(self) -> dict[str, Any]:
        """For the result file."""
        return dataclasses.asdict(self)

    @property
    def means(self) -> dict[str, float]:
        """The scores by their keys in result files."""
        return dict(zip(KEYS.values(), (self.top1, self.map, self.points), strict=True))

    @property
    def facts(self) -> list[str]:
        """Top-1 and mAP, as short phrases."""
        return [f"validation top-1 {self.top1:.4f}", f"validation mAP {self.map:.4f}"]

    @property
    def size(self) -> str:
        """On what they were measured, in words."""
        draws = "1 draw" if self.draws == 1 else f"{self.draws} draws"
        return f"{draws} of {self.queries} queries and {self.gallery} gallery images"


@dataclass(frozen=True)
class ValidatedRun:
    """One run: its id, model and time as tables show them, and its validation, if it has any."""

    run: str
    model: str | None
    time: str | None
    validation: ValidationScores | None


def validation_table(runs: Sequence[ValidatedRun], metric: str) -> tuple[Table, list[str]]:
    """One row a run, and how to read them, a line each.

    Best first by `metric` (by mAP if validation has no such score) among the runs that were held
    out alike; `set` names those where there are several. Runs without validation come last.
    """
    key = metric if metric in KEYS.values() else KEYS["mAP"]
    sets: dict[str, list[ValidatedRun]] = {}
    for run in runs:
        if run.validation is not None:
            sets.setdefault(run.validation.id, []).append(run)
    ordered = sorted(sets.values(), key=len, reverse=True)
    rows: list[list[Any]] = []
    for name, members in zip(_letters(len(ordered)), ordered, strict=True):
        best_first = sorted(members, key=lambda one: -_means(one)[key])
        rows += [[one.run, one.model, *_means(one).values(), name, one.time] for one in best_first]
    rows += [[r.run, r.model, None, None, None, None, r.time] for r in runs if not r.validation]
    table = Table(["run", "model", *KEYS, "set", "time"], rows, digits=3)
    title = next(title for title, known in KEYS.items() if known == key)
    about = [_of_set(members) for members in ordered]
    if len(ordered) < 2:
        table = table.select([name for name in table.columns if name != "set"])
        notes = [f"validated on {one}" for one in about] + [f"best first by {title}"]
    else:
        named = "; ".join(f"{n}: {one}" for n, one in zip(_letters(len(about)), about, strict=True))
        notes = [
            f"validated on different images, so that only scores of one set compare. {named}",
            f"best first by {title} in each set",
        ]
    known = [i for i in range(len(table.columns)) if any(row[i] is not None for row in table.rows)]
    return table.select([table.columns[i] for i in known]), notes


def validation_lines(runs: Sequence[ValidatedRun], metric: str) -> list[str]:
    """The table and its notes below their heading, for a terminal; [] without runs."""
    if not runs:
        return []
    table, notes = validation_table(runs, metric)
    below = [
        line for note in notes
        for line in textwrap.wrap(f"- {note}", WIDTH, subsequent_indent="  ")
    ]  # fmt: skip
    return [HEADING, *table.lines(WIDTH, keep=table.columns, whole=("run", "time")), *below]


def _means(run: ValidatedRun) -> dict[str, float]:
    assert run.validation is not None
    return run.validation.means


def _of_set(members: Sequence[ValidatedRun]) -> str:
    """The size of the draws, and what was chosen on them."""
    found = [run.validation for run in members if run.validation is not None]
    chosen = ", ".join(dict.fromkeys(one.chosen for one in found))
    return f"{found[0].size} ({chosen})"


def _letters(count: int) -> list[str]:
    """A, B, …, Z, A2, …"""
    return [chr(65 + i % 26) + (str(i // 26 + 1) if i >= 26 else "") for i in range(count)]
