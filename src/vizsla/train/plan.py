"""What was asked for → a loop that is ready to run: weights, rates, batches, steps or seconds."""

import copy
import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vizsla.data.batches import BatchPlan
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import class_codes, domain_codes
from vizsla.embed.compute import PRECISIONS, Compute
from vizsla.errors import DataError
from vizsla.model.embedder import Embedder
from vizsla.options import TrainConfig
from vizsla.train.batch_gradient import GradientMaker, Processes, fitting_micro_batch
from vizsla.train.candidates import STEP, takes_any_size
from vizsla.train.loop import UNLIMITED, Budget, Loop, LoopConfig
from vizsla.train.losses import TrainingLoss
from vizsla.train.optimizer import checkpoint_activations, open_weights, parameter_groups
from vizsla.train.train_log import SHORT_FOLDER

SMALLER = 6 / 7  # of the side in training: a third more pictures in the time
NEVER_SMALLER = 96  # pixels


@dataclass(frozen=True)
class Length:
    """One of the trainings that a backbone gets. prefix: of its candidates' names."""

    prefix: str
    stage: str

    def folder(self, out: Path) -> Path:
        """Of its log and checkpoint."""
        return out / SHORT_FOLDER if self.prefix else out

    def epochs(self, config: TrainConfig) -> float | None:
        if self.prefix:
            return config.short_epochs
        return None if config.budget else config.epochs


LONG, SHORT = Length("", "training"), Length("short: ", "short training")


def opened(origin: Embedder, config: TrainConfig) -> tuple[Embedder, list[list[nn.Parameter]]]:
    """A copy to be trained, and its open weights, first to last."""
    from vizsla.train import lora

    tuned = copy.deepcopy(origin)
    tuned.views = None  # training draws views of its own
    if config.checkpointing:
        checkpoint_activations(tuned)
    if config.finetune != "lora":
        return tuned, open_weights(tuned, config.finetune, config.blocks)
    lora.add_adapters(tuned, seed=config.seed)
    open_weights(tuned, "head", config.blocks)
    adapters = lora.adapter_parameters(tuned)
    for p in adapters:
        p.requires_grad_(True)
    return tuned, [adapters]


def build_loop(
    tuned: Embedder,
    blocks: list[list[nn.Parameter]],
    loss: TrainingLoss,
    images: ImageSet,
    config: TrainConfig,
    compute: Compute,
    *,
    epochs: float | None,
    processes: Processes,
    budget: Budget,
    folder: Path,
    about: dict[str, str],
) -> Loop:
    """blocks: the open weights, first to last. epochs: None for no such limit. Its seconds
    are set when it is known what an interrupted run has spent."""
    groups = parameter_groups(
        tuned,
        blocks,
        loss,
        learning_rate=config.learning_rate,
        head_learning_rate=config.head_learning_rate,
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
    )
    batch = -(-config.batch_size // processes.size) * processes.size
    plan = BatchPlan(
        class_codes(images),
        batch,
        order=order_of(config, loss),
        per_class=config.per_class,
        domains=domain_codes(images),
        seed=config.seed,
    )
    precision = PRECISIONS[compute.precision]
    maker = GradientMaker(
        tuned,
        loss,
        micro_batch=_micro_batch(tuned, config, batch // processes.size, compute),
        precision=precision,
        processes=processes,
        scaler=torch.amp.GradScaler(
            torch.device(compute.device).type, enabled=precision == torch.float16
        ),
    )
    steps = UNLIMITED if epochs is None else math.ceil(epochs * plan.steps_per_epoch)
    settings = LoopConfig(
        steps=max(1, steps),
        seconds=None,
        warmup=config.warmup,
        clip=config.clip,
        ema_decay=config.ema_decay,
        batch_norm=config.batch_norm,
        workers=compute.workers,
        save_seconds=config.save_seconds,
    )
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    return Loop(
        tuned, loss, optimiser, maker, plan, settings, folder=folder, about=about, budget=budget
    )


def order_of(config: TrainConfig, loss: TrainingLoss) -> str:
    if config.batches != "auto":
        return config.batches
    return "classes" if loss.of_pairs else "plain"


def size_in_training(embedder: Embedder, asked: int | None) -> int:
    """Pixels. Unasked, a network that takes any size trains on smaller pictures than it sees later:
    cuts show things larger, so that they look alike (Touvron et al., 2019)."""
    own = embedder.preprocess.size[0]
    if asked is not None:
        return asked
    smaller = round(own * SMALLER / STEP) * STEP
    fits = NEVER_SMALLER <= smaller < own and len(set(embedder.preprocess.size)) == 1
    return smaller if fits and takes_any_size(embedder) else own


def _micro_batch(tuned: Embedder, config: TrainConfig, batch: int, compute: Compute) -> int:
    wanted = min(batch, config.micro_batch or batch)
    if torch.device(compute.device).type != "cpu":
        return wanted
    size = size_in_training(tuned, config.train_size)
    precision = PRECISIONS[compute.precision]
    return fitting_micro_batch(tuned, torch.zeros(1, 3, size, size), precision, wanted)


# ── before the start ─────────────────────────────────────────────────────────────────────────────


def labelled(images: ImageSet) -> ImageSet:
    """DataError unless there is something to learn from."""
    if len(images) == 0:
        raise DataError(f"{images.root} holds no images to train on")
    codes = class_codes(images)
    if codes.max() < 1:
        raise DataError(
            f"all {len(images)} training images are of one class: telling classes apart needs two "
            "or more. Give a folder for each class"
        )
    if len(codes) == codes.max() + 1:
        raise DataError(
            f"each of the {len(images)} training images is a class of its own: give two or more "
            "images of a class, or correct the labels"
        )
    return images


def identity_of(images: ImageSet, embedder: Embedder, config: TrainConfig) -> str:
    """What a checkpoint belongs to: the same images, model and settings."""
    settings = dataclasses.asdict(config)
    for key in ("workers", "micro_batch", "tensorboard", "save_seconds"):
        settings.pop(key)  # they do not change what is computed
    content = [images.ids, images.labels, embedder.model_id, settings, torch.__version__]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def some_of(n: int, most: int) -> np.ndarray:
    """Positions of at most `most` of n images, evenly spread."""
    return np.linspace(0, n - 1, min(most, n)).astype(int)
