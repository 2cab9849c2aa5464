"""Embedder + training images → a trained backbone, whose candidates enter the selection.

If the test classes are new, a short training comes before the long one; both start at the same
weights.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from vizsla.data.splits import domain_codes
from vizsla.data.training_batches import BatchPlan
from vizsla.embed.compute import PRECISIONS
from vizsla.embed.validation_tensors import pooled_of
from vizsla.model.embedder import Embedder
from vizsla.model.projection import Projection
from vizsla.options import TrainConfig
from vizsla.train import checkpoint, train_warnings
from vizsla.train.augment import augmenter
from vizsla.train.batch_gradient import GradientMaker, fitting_micro_batch
from vizsla.train.candidates import STEP, Costs, TunedCandidates, framings_of, takes_any_size
from vizsla.train.frozen_vectors import READING_RUNTIME, TrainingSet
from vizsla.train.heads import batch_order, initial_loss
from vizsla.train.job import STEPS, TrainingJob, to_device
from vizsla.train.loop import SHORT_FOLDER, UNLIMITED, Loop, LoopResult, TrainLog
from vizsla.train.losses import TrainingLoss
from vizsla.train.optimizer import (
    add_adapters,
    checkpoint_activations,
    parameter_groups,
    unfreeze_weights,
    with_merged_adapters,
)
from vizsla.train.selection import Selection
from vizsla.workspace import SECONDS

SHORT_SHARE = 0.5  # of the time, or of the epochs, that a short training may take
TRAINING_COSTS = 2.0  # of an image, relative to reading and embedding it by torch
OTHER_RUNTIMES = 2.0  # times as much, relative to embedding it by another runtime
SMALLER = 6 / 7  # of the side in training: a third more images in the same time
MIN_SMALLER = 96  # pixels
PLAN = "plan"  # the folder of what was decided with a budget


@dataclass(frozen=True)
class Variant:
    """One of the two trainings that a backbone gets. prefix: of its candidates' names."""

    prefix: str
    stage: str

    def folder(self, out: Path) -> Path:
        """Holds its log and its checkpoint."""
        return out / SHORT_FOLDER if self.prefix else out

    def epochs(self, config: TrainConfig) -> float | None:
        """None if only the budget ends it."""
        if self.prefix:
            return config.short_epochs
        return None if config.budget else config.epochs


LONG, SHORT = Variant("", "training"), Variant("short: ", "short training")


def planned_variants(
    embedder: Embedder, data: TrainingSet, validation_seconds: float, job: TrainingJob
) -> tuple[list[Variant], Costs]:
    """The trainings to do, in order, and what their steps cost.

    With a budget the plan is written down before the heads: an interrupted training continues with
    it, since it cannot measure again how long embedding took.
    """
    config, budget = job.config, job.budget
    costs = Costs(validation_seconds, data.seconds, len(data.images), config.budget)
    if config.budget is None:
        short = 0 < config.short_epochs <= SHORT_SHARE * config.epochs
    else:
        state = {"short": False, "embedding": 0.0}
        if job.is_first_process:
            known = checkpoint.load_state(job.out / PLAN, identity=job.identity)
            if known is None:
                needed = config.short_epochs * TRAINING_COSTS * data.seconds
                if job.decisions.made.get(READING_RUNTIME) != "torch":
                    needed *= OTHER_RUNTIMES
                left = budget.left() - 2 * costs.choice(len(framings_of(embedder)))
                pays = config.short_epochs > 0 and needed <= SHORT_SHARE * left
                state = {
                    "short": job.decisions.decide("short", lambda: pays),
                    "embedding": data.seconds,
                    "spent": budget.spent(),
                }
                checkpoint.save_state(job.out / PLAN, state, identity=job.identity)
            else:
                state = known
                job.decisions.decide("short", lambda: state["short"])
                budget.count_earlier(state["spent"])
        short = job.processes.from_first(float(state["short"])) > 0
        embedding = job.processes.from_first(state["embedding"])
        costs = Costs(validation_seconds, embedding, len(data.images), config.budget)
    if config.finetune == "head":
        return [], costs
    return [SHORT, LONG] if short else [LONG], costs


def train_backbone(
    variant: Variant,
    start: Embedder,
    data: TrainingSet,
    selection: Selection,
    costs: Costs,
    job: TrainingJob,
) -> LoopResult:
    """Trains a copy of `start` and enters the results into the selection.

    Continues from the last checkpoint of an interrupted training.
    """
    config, folder = job.config, variant.folder(job.out)
    start = to_device(copy.deepcopy(start), job.compute)
    tuned, blocks = unfrozen_copy(start, config)
    projection = cast(Projection, start.projection)
    loss = initial_loss(projection, data, config, memory=config.memory).to(job.compute.device)
    loop = build_loop(tuned, blocks, loss, data, variant, job)
    loop.resume()
    loop.seconds = _loop_seconds(variant, loop.spent, costs.choice(len(framings_of(tuned))), job)
    first_step = loop.step
    before = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    size = size_in_training(start, config.train_size)
    shares = f"{variant.prefix}steps"
    loop.repeat(job.decisions.shares(shares))
    log_file = None
    if job.is_first_process:
        log_file = TrainLog(folder, from_step=first_step, tensorboard=config.tensorboard)
    stage = variant.stage + (SECONDS if loop.by_clock else "")
    with job.budget.timed(STEPS):
        result = loop.run(
            data.cache.__getitem__,
            augmenter(config.augment, start.preprocess.with_size(size)),
            log_file,
            lambda done, total: job.progress(stage, done, total),
        )
    job.decisions.decide(shares, lambda: loop.shares)
    if log_file:
        log_file.close()
        if variant is SHORT and result.steps > first_step:
            loop.save()  # an interrupted run continues after its end
    warnings = train_warnings.after_training(
        result.stopped,
        train_warnings.unmoved_weights(before, tuned, result.steps - first_step),
        result.final_loss,
        loss.chance(config.batch_size),
        config.loss,
        _vectors_of_some(tuned, data),
    )
    job.warn(*(variant.prefix + sentence for sentence in warnings))
    _enter_candidates(variant, start, tuned, loop, data, selection, costs, job)
    return result


def _loop_seconds(
    variant: Variant, spent: float, choice_seconds: float, job: TrainingJob
) -> float | None:
    """What the budget leaves for the loop, with what it had `spent` before an interruption.

    choice_seconds: kept back for scoring the candidates. None without a budget.
    """
    if job.budget.seconds is None:
        return None
    left = job.budget.left() + spent
    if variant is SHORT:
        return max(0.0, SHORT_SHARE * (left - 2 * choice_seconds))  # its epochs may end before
    seconds = left - min(choice_seconds, 0.5 * left)
    if seconds < 1:
        job.warn(
            f"the budget of {job.config.budget:.0f} s leaves no time to train the backbone: "
            f"{job.budget.spent():.0f} s went into reading and the head. Give more time"
        )
    return max(0.0, seconds)


def _vectors_of_some(embedder: Embedder, data: TrainingSet, n: int = 32) -> Tensor:
    """(n, D) of training images, evenly spread; fewer if there are fewer."""
    positions = np.linspace(0, len(data.images) - 1, min(n, len(data.images))).astype(int)
    batch = torch.stack([embedder.preprocess(data.cache[int(i)]) for i in positions])
    embedder.eval()
    with torch.inference_mode():
        vectors: Tensor = embedder(batch.to(next(embedder.parameters()).device))
    return vectors.clone()


def _enter_candidates(
    variant: Variant,
    start: Embedder,
    tuned: Embedder,
    loop: Loop,
    data: TrainingSet,
    selection: Selection,
    costs: Costs,
    job: TrainingJob,
) -> None:
    """The average of the last weights, or they themselves if there is none, and what candidates.py
    makes of it. (Where both are scored, they differ by less than chance.)"""
    config = job.config
    averaged = loop.finite_average()
    name, end = ("last weights", tuned) if averaged is None else ("average of weights", averaged)
    end.views = start.views
    if config.finetune == "lora":
        end = with_merged_adapters(end)
    candidates = TunedCandidates(
        selection,
        job.budget,
        costs,
        decisions=job.decisions,
        pooled=lambda embedder, positions: pooled_of(
            data.cache, positions, embedder, job.inference, max_pixels=config.max_pixels
        ),
        labels=data.labels,
        dim=config.dim,
        seed=config.seed,
        warn=lambda sentence: job.warn(variant.prefix + sentence),
        prefix=variant.prefix,
        progress=lambda done, total: job.progress(f"validating {variant.stage}", done, total),
    )
    with job.budget.timed("scoring candidates"):
        candidates.enter(start, name, end)
    for candidate in selection.candidates:
        if candidate.name == variant.prefix + name:
            warnings = train_warnings.tuned_like_frozen(candidate.values, selection.frozen.values)
            job.warn(*(variant.prefix + sentence for sentence in warnings))


# ── what the loop needs ──────────────────────────────────────────────────────────────────────────


def unfrozen_copy(
    embedder: Embedder, config: TrainConfig
) -> tuple[Embedder, list[list[nn.Parameter]]]:
    """A copy to be trained, and its trainable weights in blocks, first to last."""
    tuned = copy.deepcopy(embedder)
    tuned.views = None  # augmentation takes their place
    if config.checkpointing:
        checkpoint_activations(tuned)
    if config.finetune != "lora":
        return tuned, unfreeze_weights(tuned, config.finetune, config.blocks)
    adapters = add_adapters(tuned, seed=config.seed)
    unfreeze_weights(tuned, "head")
    for p in adapters:
        p.requires_grad_(True)
    return tuned, [adapters]


def build_loop(
    tuned: Embedder,
    blocks: list[list[nn.Parameter]],
    loss: TrainingLoss,
    data: TrainingSet,
    variant: Variant,
    job: TrainingJob,
) -> Loop:
    """A loop at its first step. blocks: the trainable weights, first to last."""
    config, processes = job.config, job.processes
    device = torch.device(job.compute.device)
    precision = PRECISIONS[job.compute.precision]
    groups = parameter_groups(
        tuned,
        blocks,
        loss,
        learning_rate=config.learning_rate,
        head_learning_rate=config.head_learning_rate,
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
    )
    each = -(-config.batch_size // processes.size)  # images of a batch that a process takes
    plan = BatchPlan(
        data.labels,
        each * processes.size,
        order=batch_order(config, loss),
        per_class=config.per_class,
        domains=domain_codes(data.images),
        seed=config.seed,
        label_sets=data.label_sets,
    )
    micro_batch = min(each, config.micro_batch or each)
    if device.type == "cpu":
        size = size_in_training(tuned, config.train_size)
        image = torch.zeros(1, 3, size, size)
        micro_batch = fitting_micro_batch(tuned, image, precision, micro_batch)
    maker = GradientMaker(
        tuned,
        loss,
        micro_batch=micro_batch,
        precision=precision,
        processes=processes,
        scaler=torch.amp.GradScaler(device.type, enabled=precision == torch.float16),
    )
    epochs = variant.epochs(config)
    steps = UNLIMITED if epochs is None else max(1, math.ceil(epochs * plan.steps_per_epoch))
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    folder = variant.folder(job.out) / "checkpoint"
    return Loop(
        tuned, loss, optimiser, maker, plan, job, steps=steps, folder=folder, teacher=data.teacher
    )


def size_in_training(embedder: Embedder, train_size: int | None) -> int:
    """Pixels of a side: `train_size`, else a little less than the embedder's own size.

    Crops show objects larger than whole images do, so training on smaller images gives objects
    the same size in both (Touvron et al., 2019). Only if the network takes any size.
    """
    if train_size is not None:
        return train_size
    height, width = embedder.preprocess.size
    smaller = round(height * SMALLER / STEP) * STEP
    fits = MIN_SMALLER <= smaller < height and height == width
    return smaller if fits and takes_any_size(embedder) else height
