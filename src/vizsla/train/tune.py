"""A labelled set of images → a tuned embedder: hold out, build the validation, train, choose.

The stage of the main job that `vizsla train` and `vizsla run --finetune` share.
"""

import dataclasses
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vizsla.data.imageset import ImageSet
from vizsla.data.splits import DRAWS, SHARE, Split, Target, split
from vizsla.errors import DataError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.score.embedder_validation import BALANCED, Validation
from vizsla.train.batch_gradient import Processes
from vizsla.train.loop import Budget
from vizsla.train.training import Progress, TrainConfig, TrainResult, train, training_compute

log = logging.getLogger("vizsla.train")

# Test classes that are new lose by what the training classes gain beyond some point.
DEFAULTS = {
    "new-classes": {"learning_rate": 1e-4, "short_epochs": 2.5},
    "seen-classes": {"learning_rate": 2e-4, "short_epochs": 0.0},
}
# how a training is computed, and its chance: two with other ones are still the same training
OF_THE_MACHINE = ("seed", "device", "workers", "precision", "micro_batch", "checkpointing",
                  "max_pixels", "tensorboard", "save_seconds", "real_weights")  # fmt: skip
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class TuneConfig:
    """How a model is tuned, and how validation imitates the test part.

    validate_on: "new-classes" holds out classes, "seen-classes" images of every class.
    value: what decides between candidates; see score/validation.py.
    """

    train: TrainConfig = field(default_factory=TrainConfig)
    validate_on: str = "new-classes"
    query_domain: str | None = None
    gallery_domain: str | None = None
    value: str = BALANCED
    draws: int = DRAWS
    share: float = SHARE  # of the training images that are held out, at most

    @staticmethod
    def from_options(options: dict[str, Any]) -> "TuneConfig":
        """From one flat dict of both dataclasses' fields; UsageError for unknown names.

        Without a learning rate or `short_epochs` they are what suits what is validated on.
        """
        ours = {f.name for f in dataclasses.fields(TuneConfig)} - {"train"}
        theirs = {f.name for f in dataclasses.fields(TrainConfig)}
        unknown = sorted(set(options) - ours - theirs)
        if unknown:
            raise UsageError(
                f"no option of training is called {', '.join(unknown)}: there are "
                f"{', '.join(sorted(ours | theirs))}"
            )
        own = {k: v for k, v in options.items() if k in ours}
        default: dict[str, Any] = dict(
            DEFAULTS.get(str(own.get("validate_on", TuneConfig.validate_on)), {})
        )
        return TuneConfig(
            TrainConfig(**default | {k: v for k, v in options.items() if k in theirs}), **own
        )


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
    budget = Budget(config.train.budget, clock=clock)
    parts = held_out(images, config, target)
    log.info(
        "training on %d images; %d held out (%s), %d draws of %d queries and %d gallery images",
        len(parts.training), len(parts.held_out), config.validate_on, len(parts.draws),
        len(parts.draws[0].query), len(parts.draws[0].gallery),
    )  # fmt: skip
    validation = Validation(
        images,
        parts,
        training_compute(config.train),
        value=config.value,
        max_pixels=config.train.max_pixels,
    )
    chosen, origin = images.subset(parts.training), embedder.origin
    result = train(
        chosen,
        embedder,
        config.train,
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
    chosen = {**_flat(config), "finetune": config.train.finetune, "loss": config.train.loss}
    always = ("finetune", "loss")
    return {
        key: value
        for key, value in chosen.items()
        if key not in OF_THE_MACHINE and (key in always or value != _flat(usual)[key])
    }


def _flat(config: TuneConfig) -> dict[str, Any]:
    own = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return {**dataclasses.asdict(own.pop("train")), **own}


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
        seed=config.train.seed,
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


def seconds(text: str) -> float:
    """`90s`, `30m`, `1.5h` → seconds. A bare number is refused: each of the three may be meant."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not match or float(match[1]) <= 0:
        raise UsageError(f"--budget {text!r}: write a time such as 90s, 30m or 1.5h")
    number, unit = match.groups()
    if not unit:
        raise UsageError(
            f"--budget {number}: {number} what? Write {number}s, {number}m or {number}h for "
            "seconds, minutes or hours"
        )
    return float(number) * UNITS[unit]


def parse_setting(text: str) -> tuple[str, Any]:
    """`name=value` → the setting's name and its value, of the type that it has."""
    key, equals, value = text.partition("=")
    key = key.strip().replace("-", "_")
    kinds = {
        f.name: getattr(f.type, "__name__", str(f.type))  # "float", "int | None"
        for c in (TrainConfig, TuneConfig)
        for f in dataclasses.fields(c)
    }
    if not equals or key not in kinds or key == "train":
        names = ", ".join(sorted(set(kinds) - {"train"}))
        raise UsageError(f"--set {text!r}: expected name=value with a name of {names}")
    if key == "budget":
        return key, seconds(value)
    kind = kinds[key].split(" | ")[0]
    try:
        return key, _read(value.strip(), kind)
    except (ValueError, KeyError) as error:
        raise UsageError(f"--set {text!r}: {value!r} is no {kind}") from error


def _read(text: str, kind: str) -> Any:
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(text)
    if kind == "bool":
        return {"true": True, "false": False}[text.lower()]
    return text


def training_part(images: ImageSet | None, data: str, needed_by: str = "--finetune") -> ImageSet:
    """DataError where a data folder has nothing to train on."""
    if images is None or len(images) == 0:
        raise DataError(
            f"{data} has no training folder: put labelled images into {data}/training/<class>/, "
            f"or run without {needed_by}"
        )
    return images
