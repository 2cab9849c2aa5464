"""Vectors of the frozen backbone → heads: projections in closed form, and a trained one."""

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import nn

from vizsla.data.splits import domain_codes
from vizsla.data.training_batches import BatchPlan
from vizsla.model.closed_forms import closed_forms
from vizsla.model.embedder import Embedder
from vizsla.model.projection import (
    Projection,
    build_projection,
    identity_or_pca,
    project,
)
from vizsla.options import TrainConfig
from vizsla.progress import waiting
from vizsla.train import checkpoint
from vizsla.train.frozen_vectors import TrainingSet
from vizsla.train.job import TrainingJob
from vizsla.train.losses import TrainingLoss, build_loss
from vizsla.train.optimizer import rate_at, set_rates
from vizsla.train.selection import HEAD, Selection

log = logging.getLogger("vizsla.train")

HEAD_SHARES = "head steps"  # the name of what the clock decided
HEADS = "heads"  # the folder that an interrupted training continues from
TRAINED = HEAD  # the name of the trained head; all others are closed forms
STARTS = (
    "pca",
    "centred",
    TRAINED,
)  # without whitening, which gains less before training than after it
FROZEN_SHARES = (0.3, 0.6)  # of the frozen vector in a joined one
BATCH = 256
SECONDS = 8.0  # of training at most
BUDGET_SHARE = 0.03  # of a budget, at most


@dataclass(frozen=True, eq=False)
class HeadResult:
    """projection, and how its loss ended (the mean of the last tenth of the steps).

    shares: of the time that had passed before each step.
    """

    projection: Projection
    final_loss: float
    steps: int
    shares: list[float]


def class_means(
    vectors: torch.Tensor,
    labels: np.ndarray,
    classes: int,
    label_sets: np.ndarray | None = None,
) -> torch.Tensor:
    """(C, D): the mean direction of each class (or label, with `label_sets`); unit rows."""
    if label_sets is not None:
        members = torch.as_tensor(label_sets[labels], dtype=vectors.dtype)  # (N, C)
        return F.normalize(members.T @ F.normalize(vectors, dim=1), dim=1)
    sums = torch.zeros(classes, vectors.shape[1], dtype=vectors.dtype)
    sums.index_add_(0, torch.as_tensor(labels), F.normalize(vectors, dim=1))
    return F.normalize(sums, dim=1)


def train_head(
    start: Projection,
    vectors: np.ndarray,
    labels: np.ndarray,
    loss: TrainingLoss,
    *,
    learning_rate: float = 1e-3,
    steps: int = 240,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
    shares: Sequence[float] | None = None,
    order: str = "plain",
    per_class: int = 4,
    seed: int = 0,
    label_sets: np.ndarray | None = None,
    domains: np.ndarray | None = None,
    teacher: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> HeadResult:
    """A copy of `start`, trained on vectors (N, C) together with `loss`. Runs on the CPU.

    It ends after `steps` or `seconds`, whichever comes first. shares: of the time that had passed
    before each step of a training to repeat, in place of the clock. teacher: (N, D'), if the loss
    takes a teacher's vectors.
    """
    head = start.joined(0.0)
    data = F.normalize(torch.from_numpy(np.asarray(vectors, np.float32)), dim=1)
    batch = min(BATCH, max(2 * per_class, len(labels)))
    plan = BatchPlan(
        labels, batch, order=order, per_class=per_class, domains=domains, seed=seed,
        label_sets=label_sets,
    )  # fmt: skip
    groups = [
        {"params": list(head.parameters()), "lr": learning_rate * 0.1},
        {"params": list(loss.parameters()), "lr": learning_rate},
    ]
    groups = [{**group, "full_lr": group["lr"]} for group in groups if group["params"]]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    losses: list[float] = []
    passed: list[float] = []
    started = clock()
    if progress:
        progress(0, steps)
    for step in range(steps):
        spent = (clock() - started) / max(seconds, 1e-9)
        if shares is not None:
            spent = shares[step] if step < len(shares) else 1.0
        if spent >= 1:
            break
        passed.append(spent)
        set_rates(optimiser, rate_at(max(step / steps, spent), 0.05))
        chosen = plan.batch(step)
        wanted = None if teacher is None else torch.from_numpy(teacher[chosen])
        value = loss(
            F.normalize(head(data[chosen]), dim=1), torch.as_tensor(labels[chosen]), wanted
        )
        if not torch.isfinite(value):
            log.warning(
                "the head's loss became %s at step %d: its training ends there", value.item(), step
            )
            break
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.item())
        if progress:
            progress(step + 1, steps)
    if progress:
        progress(steps, steps)
    tail = losses[-max(1, len(losses) // 10) :] or [float("nan")]
    for p in head.parameters():
        p.requires_grad_(False)
    return HeadResult(head, float(np.mean(tail)), len(losses), passed)


# ── the step of a training ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Heads:
    """Projections by name; final_loss, shares: of the one that was trained, `head`."""

    projections: dict[str, nn.Module]
    final_loss: float
    shares: list[float]

    @property
    def closed_forms(self) -> frozenset[str]:
        """The names of the heads that no loss has trained."""
        return frozenset(self.projections) - {TRAINED}


def fit_heads(data: TrainingSet, job: TrainingJob) -> Heads:
    """Closed forms and a trained head; those of an interrupted run if it had fitted them.

    All processes use the first one's: a head ended by the clock would differ between them.
    """
    folder = job.out / HEADS
    if not job.is_first_process:
        job.processes.wait()
    found = _load_heads(folder, job.identity)
    if found is None:
        # Threads that wait for each other for every small product stall on a machine in use.
        with threadpool_limits(1):
            found = _fitted(data, job)
        if job.is_first_process:
            state = {
                "heads": {
                    name: [p.description, dict(p.state_dict())]
                    for name, p in found.projections.items()
                },
                "final_loss": found.final_loss if math.isfinite(found.final_loss) else None,
                "shares": found.shares,
            }
            checkpoint.save_state(folder, state, identity=job.identity)
    if job.is_first_process:
        job.processes.wait()
    job.decisions.decide(HEAD_SHARES, lambda: found.shares)
    return found


def _fitted(data: TrainingSet, job: TrainingJob) -> Heads:
    config = job.config
    with waiting(job.progress, "whitening"):
        projections = closed_forms(data.vectors, data.labels, config.dim)
    start = next(iter(projections.values()))  # centred, or the PCA
    assert isinstance(start, Projection)
    loss = initial_loss(start, data, config, memory=0)
    trained = train_head(
        start,
        data.vectors,
        data.labels,
        loss,
        learning_rate=config.head_learning_rate,
        steps=config.head_steps,
        # Without a budget no clock decides: the same command must end with the same weights.
        seconds=min(SECONDS, BUDGET_SHARE * config.budget) if config.budget else math.inf,
        clock=job.budget.clock,
        shares=job.decisions.shares(HEAD_SHARES),
        order=batch_order(config, loss),
        per_class=config.per_class,
        seed=config.seed,
        label_sets=data.label_sets,
        domains=domain_codes(data.images),
        teacher=data.teacher,
        progress=partial(job.progress, "fitting heads"),
    )
    return Heads({**projections, TRAINED: trained.projection}, trained.final_loss, trained.shares)


def _load_heads(folder: Path, identity: str) -> Heads | None:
    """None if none are saved, or those of another training."""
    state = checkpoint.load_state(folder, identity=identity)
    if state is None:
        return None
    projections = {}
    for name, (description, weights) in state["heads"].items():
        projections[name] = build_projection(description)
        projections[name].load_state_dict(weights)
    loss = state["final_loss"]
    return Heads(projections, math.nan if loss is None else loss, state["shares"])


def enter_heads(
    heads: Heads, embedder: Embedder, data: TrainingSet, selection: Selection, job: TrainingJob
) -> Embedder:
    """Enters each head into the selection, the trained one also joined to the frozen vectors.

    Returns the embedder from which training of the backbone starts: the best of the heads in STARTS
    and of no head.
    """
    no_head = with_projection(embedder, identity_or_pca(data.vectors, job.config.dim))
    starts = [(selection.frozen.value, no_head)]
    for i, (name, projection) in enumerate(heads.projections.items()):
        candidate = with_projection(embedder, projection)
        value = selection.enter(name, candidate).value
        if name in STARTS:
            starts.append((value, candidate))
        if name == TRAINED and isinstance(projection, Projection):
            for share in FROZEN_SHARES:
                joined = with_projection(embedder, projection.joined(share))
                selection.enter(f"{name} + {share:g} frozen", joined)
        job.progress("validating heads", i + 1, len(heads.projections))
    return max(starts, key=lambda pair: pair[0])[1]


def initial_loss(
    projection: Projection, data: TrainingSet, config: TrainConfig, *, memory: int
) -> TrainingLoss:
    """The loss of a training that starts at this projection. Seeds torch's generator.

    A class's weight or proxy starts at the mean of its projected vectors.
    """
    torch.manual_seed(config.seed)
    sizes = np.bincount(data.labels)
    if data.label_sets is not None:
        sizes = sizes @ data.label_sets
    loss = build_loss(
        config.loss, len(sizes), projection.outputs, sizes, miner=config.miner, memory=memory,
        label_sets=data.label_sets,
    )  # fmt: skip
    means = class_means(project(projection, data.vectors), data.labels, len(sizes), data.label_sets)
    loss.start_from(means)
    return loss


def batch_order(config: TrainConfig, loss: TrainingLoss) -> str:
    """How batches are drawn: as configured, or as the loss needs them."""
    if config.batches != "auto":
        return config.batches
    return "classes" if loss.of_classes else "plain"


def with_projection(embedder: Embedder, projection: nn.Module) -> Embedder:
    """The same network with another projection. It shares the network's weights."""
    other = copy.copy(embedder)
    other._modules = dict(embedder._modules)
    other.projection = copy.deepcopy(projection).to(next(embedder.parameters()).device)
    return other
