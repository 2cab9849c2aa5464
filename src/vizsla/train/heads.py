"""Vectors of the frozen backbone → projections, in seconds: closed forms, and one that is trained.

The backbone's vectors are computed once and kept on disk, as embeddings.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from vizsla.data.batches import BatchPlan
from vizsla.model.projection import (
    Projection,
    centred,
    discriminant,
    identity_or_pca,
    spread_of,
    whitened,
)
from vizsla.train import checkpoint
from vizsla.train.losses import TrainingLoss
from vizsla.train.optimizer import rate_at, set_rates

log = logging.getLogger("vizsla.train")

SHRINKAGES = (0.9, 0.6)  # of whitening
DISCRIMINANT_SHRINKAGES = (0.6, 0.3)
STEPS = 240
BATCH = 256
SECONDS = 8.0  # of training at most


@dataclass(frozen=True, eq=False)
class HeadResult:
    """projection, and how its loss ended (the mean of the last tenth of the steps)."""

    projection: Projection
    final_loss: float
    steps: int


def closed_forms(
    vectors: np.ndarray, labels: np.ndarray, dim: int | None = None
) -> dict[str, Projection]:
    """Name → projection that needs no training. vectors: (N, C); labels: (N,) class numbers."""
    start = identity_or_pca(vectors, dim)
    if start.outputs != start.inputs:
        return {"pca": start}
    found = {"centred": centred(start, vectors)}
    if len(vectors) > 2 * len(np.unique(labels)):
        spread = spread_of(vectors, labels)
        for shrinkage in SHRINKAGES:
            name = f"whitened {shrinkage:g}"
            found[name] = whitened(spread, shrinkage=shrinkage)
        for shrinkage in DISCRIMINANT_SHRINKAGES:
            name = f"discriminant {shrinkage:g}"
            found[name] = discriminant(spread, shrinkage=shrinkage)
    return found


def class_means(vectors: torch.Tensor, labels: np.ndarray, classes: int) -> torch.Tensor:
    """(C, D): the mean direction of each class; unit rows."""
    sums = torch.zeros(classes, vectors.shape[1], dtype=vectors.dtype)
    sums.index_add_(0, torch.as_tensor(labels), F.normalize(vectors, dim=1))
    return F.normalize(sums, dim=1)


def project(projection: Projection, vectors: np.ndarray) -> torch.Tensor:
    """(N, D) of length 1, on the CPU, wherever the projection is."""
    with torch.inference_mode():
        pooled = torch.from_numpy(np.asarray(vectors, np.float32)).to(projection.weight.device)
        found = F.normalize(projection(pooled), dim=1)
    return found.cpu().clone()


def train_head(
    start: Projection,
    vectors: np.ndarray,
    labels: np.ndarray,
    loss: TrainingLoss,
    *,
    learning_rate: float = 1e-3,
    steps: int = STEPS,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
    order: str = "plain",
    per_class: int = 4,
    seed: int = 0,
) -> HeadResult:
    """A copy of `start`, trained on vectors (N, C); `loss` is trained along. Runs on the CPU.

    It stops early where `seconds` would not do.
    """
    head = start.joined(0.0)
    data = F.normalize(torch.from_numpy(np.asarray(vectors, np.float32)), dim=1)
    batch = min(BATCH, max(2 * per_class, len(labels)))
    plan = BatchPlan(labels, batch, order=order, per_class=per_class, seed=seed)
    groups = [
        {"params": list(head.parameters()), "lr": learning_rate * 0.1},
        {"params": list(loss.parameters()), "lr": learning_rate},
    ]
    groups = [{**group, "full_lr": group["lr"]} for group in groups if group["params"]]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    losses, started = [], clock()
    for step in range(steps):
        spent = (clock() - started) / max(seconds, 1e-9)
        if spent >= 1:
            break
        set_rates(optimiser, rate_at(max(step / steps, spent), 0.05))
        chosen = plan.batch(step)
        value = loss(F.normalize(head(data[chosen]), dim=1), torch.as_tensor(labels[chosen]))
        if not torch.isfinite(value):
            log.warning("the head's loss became %s at step %d: it ends there", value.item(), step)
            break
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.item())
    tail = losses[-max(1, len(losses) // 10) :] or [float("nan")]
    for p in head.parameters():
        p.requires_grad_(False)
    return HeadResult(head, float(np.mean(tail)), len(losses))


# ── kept for a run that goes on ──────────────────────────────────────────────────────────────────


def save_heads(
    folder: Path, found: dict[str, Projection], final_loss: float, *, about: dict[str, str]
) -> None:
    known = {name: dict(head.state_dict()) for name, head in found.items()}
    loss = final_loss if math.isfinite(final_loss) else None  # JSON has no NaN
    checkpoint.save_state(folder, {"heads": known, "final_loss": loss}, about=about)


def load_heads(
    folder: Path, *, about: dict[str, str]
) -> tuple[dict[str, Projection], float] | None:
    """The heads and the trained one's loss; None where none are saved, or other ones."""
    state = checkpoint.load_state(folder, about=about)
    if state is None:
        return None
    found = {}
    for name, head in state["heads"].items():
        outputs, inputs = head["weight"].shape
        found[name] = Projection(inputs, outputs)
        found[name].load_state_dict(head)
    loss = state["final_loss"]
    return found, math.nan if loss is None else loss
