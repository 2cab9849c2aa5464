"""A labelled set of images → a tuned embedder: hold out, build the validation, train, choose.

The stage of the main job that `vizsla train` and `vizsla run --finetune` share.
"""

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Split, Target, split
from vizsla.errors import DataError
from vizsla.model.embedder import Embedder
from vizsla.options import TuneConfig
from vizsla.score.embedder_validation import Validation
from vizsla.train.batch_gradient import Processes
from vizsla.train.job import Budget, Progress, training_compute
from vizsla.train.result import TrainResult
from vizsla.train.training import train

log = logging.getLogger("vizsla.train")

# how a training is computed, and its chance: two with other ones are still the same training
OF_THE_MACHINE = ("seed", "device", "workers", "precision", "micro_batch", "checkpointing",
                  "max_pixels", "tensorboard", "save_seconds", "real_weights")  # fmt: skip


def tune(
    images: ImageSet,
    embedder: Embedder,
    config: TuneConfig,
    out: str | Path,
    *,
    target: Target | None = None,
    processes: Processes | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> TrainResult:
    """Trains on a part of the labelled `images` and keeps what scores best on the rest.

    target: the test part, as far as it is known, for validation to imitate.
    """
    budget = Budget(config.budget, clock=clock)
    parts = held_out(images, config, target)
    log.info(
        "training on %d images; %d held out (%s), %d draws of %d queries and %d gallery images",
        len(parts.training), len(parts.held_out), config.validate_on, len(parts.draws),
        len(parts.draws[0].query), len(parts.draws[0].gallery),
    )  # fmt: skip
    validation = Validation(
        images,
        parts,
        training_compute(config),
        value=config.value,
        max_pixels=config.max_pixels,
    )
    chosen, origin = images.subset(parts.training), embedder.origin
    result = train(
        chosen,
        embedder,
        config,
        validation,
        out,
        budget=budget,
        processes=processes,
        progress=progress,
    )
    result.embedder.origin = result.origin(
        origin, images=len(chosen), options=options_given(config)
    )
    if processes is None or processes.rank == 0:
        result.embedder.save_origin(result.folder / "embedder")
    return result


def options_given(config: TuneConfig) -> dict[str, Any]:
    """What decides a training and is not the default; what is trained and the loss in any case."""
    usual = TuneConfig.from_options({"validate_on": config.validate_on})
    chosen = {**dataclasses.asdict(config), "finetune": config.finetune, "loss": config.loss}
    always = ("finetune", "loss")
    return {
        key: value
        for key, value in chosen.items()
        if key not in OF_THE_MACHINE and (key in always or value != getattr(usual, key))
    }


def held_out(images: ImageSet, config: TuneConfig, target: Target | None) -> Split:
    """What training holds out for validation; the same for the same images and settings."""
    return split(
        images,
        config.validate_on,
        target=target,
        query_domain=config.query_domain,
        gallery_domain=config.gallery_domain,
        draws=config.draws,
        share=config.share,
        seed=config.seed,
    )


def target_of(
    query: ImageSet | None, gallery: ImageSet | None, labels: Sequence[str | None] | None = None
) -> Target:
    """What is known of a test part. labels: of its gallery images, where they are."""
    known = [label for label in labels or [] if label is not None]
    per_class = len(known) / len(Counter(known)) if known else None
    return Target(
        queries=len(query) if query else None,
        gallery=len(gallery) if gallery else None,
        per_class=per_class,
    )


def training_part(images: ImageSet | None, data: str, needed_by: str = "--finetune") -> ImageSet:
    """DataError where a data folder has nothing to train on."""
    if images is None or len(images) == 0:
        raise DataError(
            f"{data} has no training folder: put labelled images into {data}/training/<class>/, "
            f"or run without {needed_by}"
        )
    return images
