"""Candidates → the one to keep. Frozen stays unless another is better by more than chance explains.

Knows weights and one value a query, nothing of metrics.
"""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizsla.model.embedder import Embedder

log = logging.getLogger("vizsla.train")

FROZEN = "frozen"
Validate = Callable[[Embedder], np.ndarray]
State = Mapping[str, Tensor]


@dataclass(eq=False)
class Candidate:
    """One model and what it scored: values, one a query; gain and its standard error over frozen.

    means: other figures that the validation gave, by name.
    """

    name: str
    values: np.ndarray
    gain: float = 0.0
    error: float = 0.0
    means: dict[str, float] = field(default_factory=dict)
    kept: bool = False
    embedder: Embedder | None = field(default=None, repr=False)

    @property
    def value(self) -> float:
        return float(self.values.mean())

    @property
    def beats_frozen(self) -> bool:
        return self.gain > self.error

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


class Contest:
    """Takes candidates one by one, each measured on the same queries, and keeps the best weights.

    Only the best embedder so far stays in memory.
    """

    def __init__(self, frozen: Embedder, validate: Validate) -> None:
        self.validate, self.size = validate, frozen.preprocess.size
        self.candidates = [self._measured(FROZEN, frozen)]
        self.candidates[0].embedder = frozen

    @property
    def frozen(self) -> Candidate:
        return self.candidates[0]

    def enter(self, name: str, embedder: Embedder) -> Candidate:
        """Measures a candidate. `embedder` is copied if it leads."""
        candidate = self._measured(name, embedder)
        candidate.gain, candidate.error = paired_gain(candidate.values, self.frozen.values)
        leader = self.best
        self.candidates.append(candidate)
        if self.best is candidate:
            candidate.embedder = copy.deepcopy(embedder)
            if leader is not self.frozen:
                leader.embedder = None
        log.debug(
            "validation: %-20s %.4f (%+.4f ± %.4f)",
            name, candidate.value, candidate.gain, candidate.error,
        )  # fmt: skip
        return candidate

    @property
    def best(self) -> Candidate:
        """The highest value among those whose gain exceeds its standard error, else frozen."""
        able = [c for c in self.candidates[1:] if c.beats_frozen]
        return max(able, key=lambda c: c.value, default=self.frozen)

    def decided(self) -> Candidate:
        kept = self.best
        kept.kept = True
        return kept

    def _measured(self, name: str, embedder: Embedder) -> Candidate:
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
    """What each scored, as lines of text; the word that matters stands where nothing wraps it."""
    keys = list(candidates[0].means)
    head = ["", "candidate", "value", "gain", "± error", *keys]
    rows = [
        [
            "kept" if c.kept else "", c.name, f"{c.value:.4f}", f"{c.gain:+.4f}", f"{c.error:.4f}",
            *(f"{c.means[key]:.4f}" if key in c.means else "" for key in keys),
        ]
        for c in candidates
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join(lines)
