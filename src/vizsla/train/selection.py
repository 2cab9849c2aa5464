"""Candidates → the one to keep, and the result of the training.

The frozen model is kept unless another one is better by more than chance explains. Knows weights
and one value a query, nothing of metrics.
"""

import copy
import dataclasses
import logging
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizsla.model.embedder import Embedder
from vizsla.model.model_card import Origin
from vizsla.model.projection import WithClasses
from vizsla.notebook import Shown, Summary
from vizsla.options import OPTIMISED
from vizsla.score.text_table import WIDTH, Table
from vizsla.score.validation_scores import ValidationScores

log = logging.getLogger("vizsla.train")

FROZEN, POINTS = "frozen", "points"
HEAD = "head"  # begins the names of trained projections of the unchanged network
Validate = Callable[[Embedder], np.ndarray]
State = Mapping[str, Tensor]


@dataclass(eq=False)
class Candidate:
    """One model and its score. values: (Q,).

    gain, error: over the frozen model, and its standard error. means: other figures of the
    validation, by name. costs_points: see `Selection`. embedder: None if it is not among the best.
    """

    name: str
    values: np.ndarray
    gain: float = 0.0
    error: float = 0.0
    means: dict[str, float] = field(default_factory=dict)
    kept: bool = False
    costs_points: bool = False
    embedder: Embedder | None = field(default=None, repr=False)

    @property
    def value(self) -> float:
        """The mean over all queries."""
        return float(self.values.mean())

    @property
    def beats_frozen(self) -> bool:
        """Whether the gain exceeds its standard error."""
        return self.gain > self.error

    @property
    def verdict(self) -> str:
        """In a word or two: kept, or why it cannot be; empty for one that others surpass."""
        if self.kept:
            return "kept"
        if self.costs_points:
            return "costs points"
        if self.name == FROZEN or self.beats_frozen:
            return ""
        return "unsure" if self.gain > 0 else "worse"

    def row(self) -> dict[str, Any]:
        """For the result file."""
        return {
            "name": self.name,
            "value": round(self.value, 6),
            "gain": round(self.gain, 6),
            "standard_error": round(self.error, 6),
            "kept": self.kept,
            **{key: round(value, 6) for key, value in self.means.items()},
        }


class Selection:
    """Scores candidates one by one on the same queries, and keeps the best embedder so far.

    The weights of the others are not kept in memory, except those of the frozen model. Candidates
    with class probabilities that cost contest points are scored, but not kept.
    """

    def __init__(self, frozen: Embedder, validate: Validate) -> None:
        self.validate, self.size = validate, frozen.preprocess.size
        self.optimise = getattr(validate, "optimise", "")
        self.candidates = [self._scored(FROZEN, frozen)]
        self.candidates[0].embedder = frozen

    @property
    def frozen(self) -> Candidate:
        """The first candidate."""
        return self.candidates[0]

    def enter(self, name: str, embedder: Embedder) -> Candidate:
        """Scores a candidate. `embedder` is copied if it is the best so far."""
        candidate = self._scored(name, embedder)
        candidate.gain, candidate.error = paired_gain(candidate.values, self.frozen.values)
        candidate.costs_points = self._costs_points(candidate, embedder)
        previous = self.best
        self.candidates.append(candidate)
        if self.best is candidate:
            candidate.embedder = copy.deepcopy(embedder)
            if previous is not self.frozen:
                previous.embedder = None
        log.debug(
            "validation: %-20s %.4f (%+.4f ± %.4f)",
            name, candidate.value, candidate.gain, candidate.error,
        )  # fmt: skip
        return candidate

    @property
    def best(self) -> Candidate:
        """The highest value among those whose gain exceeds its standard error, else frozen."""
        better = [c for c in self.candidates[1:] if c.beats_frozen and not c.costs_points]
        return max(better, key=lambda c: c.value, default=self.frozen)

    def _costs_points(self, candidate: Candidate, embedder: Embedder) -> bool:
        """Whether class probabilities bring fewer contest points than the best so far has: they
        order what follows the first hit, and may move the first hit itself."""
        if not isinstance(embedder.projection, WithClasses) or self.optimise == "map":
            return False
        return candidate.means.get(POINTS, 0.0) < self.best.means.get(POINTS, 0.0)

    def decided(self) -> Candidate:
        """The best candidate, marked as kept."""
        kept = self.best
        kept.kept = True
        return kept

    def _scored(self, name: str, embedder: Embedder) -> Candidate:
        values = np.asarray(self.validate(embedder), dtype=np.float64)
        return Candidate(name, values, means=dict(getattr(self.validate, "means", {})))


def paired_gain(values: np.ndarray, frozen: np.ndarray) -> tuple[float, float]:
    """Mean difference over the same queries, and its standard error (0 for a single query)."""
    difference = values - frozen
    spread = difference.std(ddof=1) if len(difference) > 1 else 0.0
    return float(difference.mean()), float(spread / len(difference) ** 0.5)


def interpolated(start: State, end: State, alpha: float) -> dict[str, Tensor]:
    """Weights on the line from start (0) to end (1) (Wortsman et al., 2022)."""
    found = {}
    for name, tensor in end.items():
        first = start[name].to(tensor.device)
        found[name] = torch.lerp(first, tensor, alpha) if tensor.is_floating_point() else tensor
    return found


def table(candidates: list[Candidate]) -> str:
    """All scores as text, 80 columns wide."""
    keys = list(candidates[0].means)
    titles = {"map": "mAP", "top1": "top-1"}
    head = ["", "candidate", "value", "gain", "± error", *(titles.get(key, key) for key in keys)]
    columns = [
        [c.verdict for c in candidates],
        [c.name for c in candidates],
        [f"{c.value:.4f}" for c in candidates],
        [f"{c.gain:+.4f}" for c in candidates],
        [f"{c.error:.4f}" for c in candidates],
        *(
            [f"{c.means[key]:.{1 if key == POINTS else 4}f}" if key in c.means else ""
             for c in candidates]
            for key in keys
        ),
    ]  # fmt: skip
    widths = [max(map(len, [name, *cells])) for name, cells in zip(head, columns, strict=True)]
    for i in range(2, len(head)):
        head[i] = head[i].rjust(widths[i])
        columns[i] = [cell.rjust(widths[i]) for cell in columns[i]]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Table(head, rows).text(
        WIDTH, keep=head, whole=[name for name in head if name != head[1]]
    )


def legend(candidates: list[Candidate]) -> list[str]:
    """What the names of these candidates mean, as lines; [] for the frozen model alone."""
    words = [
        (re.compile(r"\bcentred\b"), "centred: the mean of the vectors is subtracted"),
        (
            re.compile(r"\bwhitened [\d.]"),
            "whitened: directions that vary within classes count less",
        ),
        (
            re.compile(r"\bdiscriminant [\d.]"),
            "discriminant: those that separate classes count more",
        ),
        (re.compile(r"\bclasses [\d.]"), "classes: discriminant, joined with class probabilities"),
        (re.compile(r"\bpca\b"), "pca: fewer dimensions"),
        (re.compile(r"\bhead\b"), "head: a projection trained with the loss"),
        (re.compile(r"\bhead \+ [\d.]+ frozen"), "+ 0.6 frozen: joined with the frozen vector"),
    ]
    names = [c.name for c in candidates]
    found = [text for pattern, text in words if any(map(pattern.search, names))]
    if any(re.search(r"(whitened|discriminant|classes) [\d.]", name) for name in names):
        found.append("their number: how strongly it is smoothed, 0 to 1")
    if any(c.verdict == "unsure" for c in candidates):
        found.append("unsure: the gain is no more than its standard error")
    return textwrap.wrap("; ".join(found), WIDTH)


# ── the result of a training ─────────────────────────────────────────────────────────────────────


@dataclass(eq=False, repr=False)
class TrainResult(Shown):
    """The result of a training, with all that a result file needs.

    embedder: the one that was kept. closed_forms: names of candidates that are the frozen network
    with a projection that no loss has trained. num_epochs: passes over the training images,
    rounded. final_train_loss: None if nothing was trained. spent: seconds by what they went into.
    validated_on: the sizes of the draws of held-out images, if the candidates were scored on such.
    optimise: what their values are, see OPTIMISED. teacher: its name and model_id.
    """

    embedder: Embedder
    candidates: list[Candidate]
    loss_function: str
    num_classes: int
    num_epochs: int
    final_train_loss: float | None
    steps: int
    seconds: float
    warnings: list[str]
    folder: Path
    log_path: Path
    precision: str
    images_per_second: float
    broken: list[tuple[str, str]] = field(default_factory=list)
    closed_forms: frozenset[str] = frozenset()
    spent: dict[str, float] = field(default_factory=dict)
    validated_on: dict[str, Any] = field(default_factory=dict)
    optimise: str = ""
    teacher: dict[str, str] | None = None

    @property
    def validation(self) -> ValidationScores | None:
        """The scores of what was kept; None if candidates were not scored on draws of images."""
        if not self.validated_on:
            return None
        return ValidationScores.on(self.validated_on, self.kept.means, "training")

    @property
    def kept(self) -> Candidate:
        """The candidate whose embedder was kept."""
        return next(c for c in self.candidates if c.kept)

    @property
    def is_improved(self) -> bool:
        """Whether another model than the frozen one was kept."""
        return self.kept is not self.candidates[0]

    @property
    def is_finetuned(self) -> bool:
        """Whether what was kept was trained with a loss."""
        return self.is_improved and self.kept.name not in self.closed_forms

    @property
    def has_other_network(self) -> bool:
        """Whether the weights of the network itself are other ones, not only a projection."""
        return self.is_finetuned and not self.kept.name.startswith(HEAD)

    def origin(
        self, before: Origin, *, images: int, options: dict[str, Any], trained_on: str
    ) -> Origin:
        """The origin of the kept embedder. before: of the embedder that was trained. trained_on:
        see `data.fingerprint.name_sample`."""
        if not self.is_improved:
            return before
        earlier = before.training or {}
        facts = {
            "is_finetuned": True,
            "loss_function": self.loss_function,
            "num_epochs": self.num_epochs,
            "final_train_loss": self.final_train_loss,
        }
        if not self.is_finetuned:
            facts = {key: earlier.get(key) for key in facts}
            facts["is_finetuned"] = bool(before.is_finetuned)
        if earlier:
            options = {**options, "before": earlier["options"]}
        samples = earlier.get("trained_on", [None]) if earlier else []
        return dataclasses.replace(
            before,
            training={
                "kept": " → ".join(filter(None, [earlier.get("kept"), self.kept.name])),
                **facts,
                "num_classes": self.num_classes,
                "images": images,
                "options": options,
                "trained_on": [*samples, trained_on],
                "validation": self.validation.record() if self.validation else None,
            },
        )

    @property
    def verdict(self) -> str:
        """One sentence: which model is kept, and why."""
        frozen, kept = self.candidates[0], self.kept
        if not self.is_improved:
            others = [c for c in self.candidates[1:] if not c.costs_points]
            best = max(others, key=lambda c: c.value, default=None)
            if best is None:
                return "the frozen model is kept: nothing else was tried"
            return (
                f"the frozen model is kept: the best candidate, {best.name}, gained "
                f"{best.gain:+.4f} ± {best.error:.4f} on validation, which may be chance"
            )
        gain = (
            f"{frozen.value:.4f} → {kept.value:.4f} on validation "
            f"({kept.gain:+.4f}, standard error {kept.error:.4f})"
        )
        if self.is_finetuned:
            return f"{kept.name} is kept: {gain}"
        return f"{kept.name} is kept, a projection after the unchanged network: {gain}"

    def summary(self) -> Summary:
        """The verdict, and a table of the candidates."""
        return training_summary(self.record())

    def scores_text(self) -> str:
        """On what the candidates were scored, their table and its legend, the verdict, steps,
        epochs and loss, and where the time went."""
        loss = "" if self.final_train_loss is None else f", loss {self.final_train_loss:.4f}"
        backbone = "only heads were fitted"
        if self.steps:
            steps, epochs = _n(self.steps, "step"), _n(self.num_epochs, "epoch")
            backbone = f"backbone trained for {steps}, {epochs}"
        took = f"{backbone}{loss}; the training took {self.seconds:.0f} s"
        read = [*self._validated_lines(), table(self.candidates), *legend(self.candidates)]
        verdict = textwrap.wrap(self.verdict, WIDTH)
        return "\n".join([*read, "", *verdict, took, *self._time_lines()])

    def _validated_lines(self) -> list[str]:
        """What `value` is a mean of, and on how many queries."""
        if self.validation is None:
            return []
        value = f", value: {OPTIMISED[self.optimise]}" if self.optimise in OPTIMISED else ""
        text = f"candidates, by {self.validation.size} held out of the training images{value}:"
        return textwrap.wrap(text, WIDTH)

    def _time_lines(self) -> list[str]:
        """Where the time went, as a table."""
        total = sum(self.spent.values())
        if total < 1:
            return []
        rows = [
            [part, f"{seconds:.1f}", f"{seconds / total:.0%}"]
            for part, seconds in self.spent.items()
        ]
        return ["", *Table(["time", "seconds", "share"], rows).lines(WIDTH)]

    def text(self) -> str:
        """The same, with the paths of embedder and log."""
        paths = [f"embedder    {self.folder / 'embedder'}", f"log         {self.log_path}"]
        return "\n".join([self.scores_text(), *paths])

    def record(self) -> dict[str, Any]:
        """For the result file: the contest's keys, then the key `training`."""
        return {
            "is_finetuned": self.is_finetuned,
            "num_classes": self.num_classes,
            "loss_function": self.loss_function if self.is_finetuned else None,
            "num_epochs": self.num_epochs if self.is_finetuned else 0,
            "final_train_loss": self.final_train_loss if self.is_finetuned else None,
            "training": {
                "kept": self.kept.name,
                "verdict": self.verdict,
                "candidates": [c.row() for c in self.candidates],
                "steps": self.steps,
                "seconds": round(self.seconds, 1),
                "time": [
                    {"part": part, "seconds": round(seconds, 1)}
                    for part, seconds in self.spent.items()
                ],
                "images_per_second": round(self.images_per_second, 1),
                "precision": self.precision,
                "warnings": self.warnings,
                **({"teacher": self.teacher} if self.teacher else {}),
            },
        }


def training_summary(record: Mapping[str, Any]) -> Summary:
    """A training as a notebook shows it. record: of `TrainResult.record`."""
    training = record["training"]
    columns = ["name", "value", "gain", "standard_error", "kept"]
    rows = [[candidate[key] for key in columns] for candidate in training["candidates"]]
    took = f"{training['steps']:,} steps, {training['seconds']:.0f} s"
    facts, notes = [training["verdict"], took], training["warnings"]
    return Summary(
        "Training",
        facts,
        ["candidate", "validation", "gain", "standard error", "kept"],
        rows,
        notes=notes,
    )


def _n(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
