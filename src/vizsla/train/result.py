"""What a training gave: the embedder that was kept, what the others scored, and what was odd."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vizsla.model.embedder import Embedder
from vizsla.model.model_card import Origin
from vizsla.train.selection import Candidate, table


@dataclass(eq=False)
class TrainResult:
    """What a training gave, all that a result file needs.

    embedder: the one that was kept. is_finetuned: whether it is not the frozen one. closed_forms:
    names of candidates that are the frozen network behind a projection that no loss has trained.
    num_epochs: passes over the training images, rounded. final_train_loss: None where none was.
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

    @property
    def kept(self) -> Candidate:
        return next(c for c in self.candidates if c.kept)

    @property
    def is_finetuned(self) -> bool:
        return self.kept is not self.candidates[0]

    @property
    def is_trained(self) -> bool:
        """Whether a loss had to do with what was kept."""
        return self.is_finetuned and self.kept.name not in self.closed_forms

    def origin(self, before: Origin, *, images: int, options: dict[str, Any]) -> Origin:
        """Where the kept embedder comes from. before: of the embedder that was trained."""
        if not self.is_finetuned:
            return before
        earlier = before.training or {}
        facts = {
            "is_finetuned": True,
            "loss_function": self.loss_function,
            "num_epochs": self.num_epochs,
            "final_train_loss": self.final_train_loss,
        }
        if not self.is_trained:
            facts = {key: earlier.get(key) for key in facts}
            facts["is_finetuned"] = bool(before.is_finetuned)
        if earlier:
            options = {**options, "before": earlier["options"]}
        return dataclasses.replace(
            before,
            training={
                "kept": " → ".join(filter(None, [earlier.get("kept"), self.kept.name])),
                **facts,
                "num_classes": self.num_classes,
                "images": images,
                "options": options,
            },
        )

    @property
    def verdict(self) -> str:
        """In a sentence, what became of it."""
        frozen, kept = self.candidates[0], self.kept
        if not self.is_finetuned:
            best = max(self.candidates[1:], key=lambda c: c.value, default=None)
            reason = (
                f"the best candidate, {best.name}, gained {best.gain:+.4f} ± {best.error:.4f}"
                if best
                else "there was no candidate"
            )
            return f"the frozen model stays: {reason} on validation, which chance may explain"
        gain = (
            f"{frozen.value:.4f} → {kept.value:.4f} on validation "
            f"({kept.gain:+.4f}, standard error {kept.error:.4f})"
        )
        if self.is_trained:
            return f"{kept.name} is kept: {gain}"
        return f"{kept.name} is kept, the frozen network behind a fitted projection: {gain}"

    def judged(self) -> str:
        """For people: what each candidate scored, and what was kept."""
        loss = "" if self.final_train_loss is None else f", loss {self.final_train_loss:.4f}"
        counts = f"{_n(self.steps, 'step')}, {_n(self.num_epochs, 'epoch')}"
        took = f"{counts}{loss}, {self.seconds:.0f} s"
        return "\n".join([table(self.candidates), "", self.verdict, took])

    def text(self) -> str:
        """The same, and where it is."""
        where = [f"embedder    {self.folder / 'embedder'}", f"log         {self.log_path}"]
        return "\n".join([self.judged(), *where])

    def record(self) -> dict[str, Any]:
        """For the result file: the starting document's keys, then ours."""
        return {
            "is_finetuned": self.is_trained,
            "num_classes": self.num_classes,
            "loss_function": self.loss_function if self.is_trained else None,
            "num_epochs": self.num_epochs if self.is_trained else 0,
            "final_train_loss": self.final_train_loss if self.is_trained else None,
            "training": {
                "kept": self.kept.name,
                "verdict": self.verdict,
                "candidates": [c.row() for c in self.candidates],
                "steps": self.steps,
                "seconds": round(self.seconds, 1),
                "images_per_second": round(self.images_per_second, 1),
                "precision": self.precision,
                "warnings": self.warnings,
            },
        }


def _n(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
