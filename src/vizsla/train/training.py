"""Labelled images + Embedder → a better Embedder, or the same one if none is surely better.

The steps are those of docs/training.md. `fine_tune` holds out a part for validation, `train` does:

    frozen vectors ─► heads ─► backbone ─► candidates ─► the one that validation keeps

`train` takes the validation as a callable that gives one value a query.
"""

import contextlib
import copy
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.data.fingerprint import name_sample
from vizsla.data.imageset import ImageSet
from vizsla.data.label_sets import distinct_labels
from vizsla.data.splits import (
    AUTO,
    SPLITTING,
    Target,
    class_codes,
    held_out,
    label_warnings,
    safer_kind,
)
from vizsla.embed.auto_compute import fastest_runtime
from vizsla.embed.compute import Compute
from vizsla.embed.converted_runtimes import installed
from vizsla.errors import DataError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.options import TEACHER, TrainConfig, TuneConfig
from vizsla.score.embedder_validation import Validation
from vizsla.train import checkpoint, train_warnings
from vizsla.train.backbone import LONG, PLAN, SHORT, Variant, planned_variants, train_backbone
from vizsla.train.batch_gradient import Processes
from vizsla.train.candidates import REFITTED, SCORED
from vizsla.train.frozen_vectors import DECISION, embed_training_images
from vizsla.train.heads import HEADS, Heads, enter_heads, fit_heads
from vizsla.train.job import (
    MIN_BUDGET,
    WITHOUT_EFFECT,
    Budget,
    Decisions,
    Progress,
    TrainingJob,
    identity_of,
    to_device,
    training_compute,
)
from vizsla.train.loop import LOG, SHORT_FOLDER, LoopResult
from vizsla.train.losses import loss_title, parse_loss
from vizsla.train.selection import Selection, TrainResult, Validate, table
from vizsla.train.teacher import Teacher

log = logging.getLogger("vizsla.train")

INFERENCE = "inference"  # the folder and the decision of which runtime embeds candidates
# They decide how a training is computed, and its random numbers, not which training it is.
COMPUTE_OPTIONS = (*WITHOUT_EFFECT, "seed", "device", "precision", "checkpointing", "max_pixels",
                   "real_weights", "replay")  # fmt: skip
PARTS = (
    HEADS,
    "checkpoint",
    f"{SHORT_FOLDER}/checkpoint",
    SHORT_FOLDER,
    PLAN,
    DECISION,
    INFERENCE,
    "embedder",
)


def fine_tune(
    images: ImageSet,
    embedder: Embedder,
    config: TuneConfig,
    out: str | Path,
    *,
    target: Target | None = None,
    teacher: Teacher | None = None,
    processes: Processes | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> TrainResult:
    """Trains on a part of the labelled `images` and keeps what scores best on the rest.

    All steps of docs/training.md. target: the test part, as far as it is known, for validation to
    imitate. teacher: whose vectors the term `teacher` of the loss takes. clock: for the budget.
    The embedder is saved in `out`/embedder with its origin.
    """
    budget = Budget(None if config.replay else config.budget, clock=clock)
    # 1. Hold out a part of the images.
    if config.validate_on == AUTO:
        config = dataclasses.replace(config, validate_on=safer_kind(images.labels or []))
    parts = held_out(images, config, target)
    log.info(
        "training on %d images; %d held out (%s), %d draws of %d queries and %d gallery images",
        len(parts.training), len(parts.held_out), config.validate_on, len(parts.draws),
        len(parts.draws[0].query), len(parts.draws[0].gallery),
    )  # fmt: skip
    chosen, origin = images.subset(parts.training), embedder.origin
    with budget.timed("choosing a runtime"):
        inference = candidates_compute(chosen, embedder, config, Path(out), len(parts.held_out),
                                       processes or Processes())  # fmt: skip
    validation = Validation(
        images,
        parts,
        inference,
        optimise=config.optimise,
        max_pixels=config.max_pixels,
    )
    result = train(
        chosen,
        embedder,
        config,
        validation,
        out,
        inference=inference,
        budget=budget,
        teacher=teacher,
        processes=processes,
        progress=progress,
    )
    result.validated_on = validation.record()
    result.embedder.origin = result.origin(
        origin, images=len(chosen), options=options_given(config), trained_on=name_sample(chosen)
    )
    if processes is None or processes.rank == 0:
        result.embedder.save_origin(result.folder / "embedder")
    return result


def train(
    images: ImageSet,
    embedder: Embedder,
    config: TrainConfig,
    validate: Validate,
    out: str | Path,
    *,
    inference: Compute | None = None,
    budget: Budget | None = None,
    teacher: Teacher | None = None,
    processes: Processes | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Trains on `images` and keeps the best candidate by `validate`, or the frozen model.

    validate: embedder → (Q,) values of the same queries each time, more is better. It may have
    `means` (other figures of its last call, by name), `chance` (a random ranking's value) and
    `optimise` (what the values are, see OPTIMISED).
    out: a folder for log, checkpoint and embedder; an interrupted training continues there.
    inference: how candidates are embedded, by default as it trains. DataError if the labels leave
    nothing to learn, UsageError if only one of a teacher and the loss's term for it is given.
    """
    require_classes(images)
    _require_teacher(teacher, config, embedder)
    compute = training_compute(config)
    job = TrainingJob(
        config,
        compute,
        inference or compute,
        Path(out),
        identity_of(images, embedder, config, teacher.model_id if teacher else ""),
        budget or Budget(None if config.replay else config.budget),
        processes or Processes(),
        progress or (lambda stage, done, total: None),
        decisions=Decisions(config.replay),
    )
    job.decisions.decide(INFERENCE, lambda: job.inference.runtime)
    locked = storage.locked(job.out, parts=PARTS) if job.is_first_process else None
    with locked or contextlib.nullcontext():
        return _train(images, embedder, validate, teacher, job)


def _require_teacher(teacher: Teacher | None, config: TrainConfig, embedder: Embedder) -> None:
    """UsageError unless the loss takes a teacher and there is one, another model, or neither."""
    takes = any(term.spec.of_teacher for term in parse_loss(config.loss))
    if takes != (teacher is not None):
        raise UsageError(
            f"--loss {config.loss!r} {'needs' if takes else 'does not use'} a teacher: the term "
            f"{TEACHER} and --teacher go together"
        )
    if teacher is not None:
        teacher.require_other(embedder.model_id)


def candidates_compute(
    images: ImageSet,
    embedder: Embedder,
    config: TrainConfig,
    out: Path,
    held_out: int,
    processes: Processes,
) -> Compute:
    """How candidates are embedded, for validation and to refit projections: by the runtime that is
    soonest, started anew for each. A training that continues, or is repeated, keeps to its choice.

    By torch if only a head is trained (one backbone is embedded), beside a GPU, in half precision
    (it saves less, and the vectors differ), in several processes, or with a budget of less than
    MIN_BUDGET, of which another runtime's start could take a good part.
    """
    compute = training_compute(config)
    if config.replay is not None:
        return dataclasses.replace(compute, runtime=config.replay.get(INFERENCE, "torch"))
    if (
        (compute.kind, compute.precision) != ("cpu", "fp32")
        or config.finetune in ("none", "head")
        or processes.size > 1
        or (config.budget is not None and config.budget < MIN_BUDGET)
    ):
        return compute
    identity = identity_of(images, embedder, config)
    with storage.locked(out, parts=(INFERENCE,)):
        chosen = checkpoint.load_state(out / INFERENCE, identity=identity)
        if chosen is None or not installed(chosen["runtime"]):
            embedded = SCORED * held_out + min(REFITTED, len(images))
            runtime = fastest_runtime(
                embedder.without_projection(), compute, embedded, starts=SCORED + 1
            )
            chosen = {"runtime": runtime}
            checkpoint.save_state(out / INFERENCE, chosen, identity=identity)
    return dataclasses.replace(compute, runtime=chosen["runtime"])


def _train(
    images: ImageSet,
    embedder: Embedder,
    validate: Validate,
    teacher: Teacher | None,
    job: TrainingJob,
) -> TrainResult:
    """Steps 2 to 7 of docs/training.md."""
    config = job.config
    job.warn(*label_warnings([str(label) for label in images.labels or []]))
    embedder = to_device(embedder, job.compute).eval()

    # 2. Score the frozen model: the first candidate.
    started = job.budget.spent()
    job.progress("validating the frozen model", 0, 1)
    with job.budget.timed("scoring the frozen model"):
        selection = Selection(copy.deepcopy(embedder), validate)
    job.progress("validating the frozen model", 1, 1)
    validation_seconds = job.budget.spent() - started
    frozen = selection.frozen
    log.info("validation: frozen %.4f over %d queries", frozen.value, len(frozen.values))
    chance = getattr(validate, "chance", None)
    job.warn(*train_warnings.few_queries(len(frozen.values)))
    job.warn(
        *train_warnings.frozen_near_chance(frozen.values, chance, real_weights=config.real_weights)
    )

    broken: list[tuple[str, str]] = []
    embedding_seconds = 0.0
    heads: Heads | None = None
    loops: dict[Variant, LoopResult] = {}
    if config.finetune != "none":
        # 3. Embed the training images once, by the frozen model.
        with job.budget.timed("reading and embedding"):
            data = embed_training_images(images, embedder, job)
        if teacher is not None:
            with job.budget.timed("the teacher's vectors"):
                report = functools.partial(job.progress, "embedding by the teacher")
                vectors = teacher.vectors(data.images, job.processes, report)
                data = dataclasses.replace(data, teacher=vectors)
        images, broken = data.images, data.broken
        variants, costs = planned_variants(embedder, data, validation_seconds, job)
        embedding_seconds = costs.embedding

        # 4. Fit heads to the vectors; each is a candidate.
        with job.budget.timed("heads"):
            heads = fit_heads(data, job)
            start = enter_heads(heads, embedder, data, selection, job)

        # 5. and 6. Train the backbone under the best head; the result is a candidate.
        for variant in variants:
            loops[variant] = train_backbone(variant, start, data, selection, costs, job)

    # 7. Keep the best, if it is surely better than the frozen model.
    kept = selection.decided()
    assert kept.embedder is not None
    kept.embedder.requires_grad_(False).eval()
    if job.is_first_process:
        with job.budget.timed("saving"):
            kept.embedder.save(job.out / "embedder")
        if config.budget is not None:
            job.decisions.save(job.out)
    job.warn(
        *train_warnings.budget_overrun(
            job.budget.seconds,
            job.budget.spent(),
            len(images),
            embedding_seconds,
            validation_seconds,
        )
    )
    log.debug("candidates on validation:\n%s", table(selection.candidates))
    result = _result(selection, images, broken, heads, loops, job)
    if teacher is not None:
        result.teacher = {"name": teacher.name, "model_id": teacher.model_id}
    log.debug("%s", result.verdict)
    _log_text_score(result, embedder)
    return result


def _result(
    selection: Selection,
    images: ImageSet,
    broken: list[tuple[str, str]],
    heads: Heads | None,
    loops: dict[Variant, LoopResult],
    job: TrainingJob,
) -> TrainResult:
    """images, broken: the training images that could be read, and the others."""
    kept = next(c for c in selection.candidates if c.kept)
    assert kept.embedder is not None
    variant = SHORT if kept.name.startswith(SHORT.prefix) else LONG
    loop = loops.get(variant)
    steps = loop.steps if loop else 0
    final_loss = loop.final_loss if loop else heads.final_loss if heads else math.nan
    epochs = steps * job.config.batch_size / len(images)
    return TrainResult(
        embedder=kept.embedder,
        candidates=selection.candidates,
        loss_function=loss_title(job.config.loss) if heads else "",
        num_classes=len(distinct_labels(images.labels or [])),
        num_epochs=max(1, round(epochs)) if steps else 0,
        final_train_loss=final_loss if math.isfinite(final_loss) else None,
        steps=steps,
        seconds=job.budget.spent(),
        warnings=job.warnings,
        folder=job.out,
        log_path=variant.folder(job.out) / LOG,
        precision=job.compute.precision,
        images_per_second=loop.images_per_second if loop else 0.0,
        broken=broken,
        closed_forms=heads.closed_forms if heads else frozenset(),
        spent=job.budget.spent_by_part(),
        optimise=selection.optimise,
    )


def _log_text_score(result: TrainResult, embedder: Embedder) -> None:
    """What training did to a model that reads text, or why it reads none."""
    before, after = (c.means.get("text") for c in (result.candidates[0], result.kept))
    if before is not None and after is not None:
        log.info(
            "text: for %.3f of the held-out images the text of their label is the nearest one, "
            "%.3f with the frozen model", after, before,
        )  # fmt: skip
    elif embedder.backbone.spec.reads_text and not embedder.reads_text:
        log.info(
            "text is off: %s pooling shares no space with texts, native pooling does",
            embedder.pooling,
        )


def require_classes(images: ImageSet) -> None:
    """DataError unless there are two classes or more, and one of two images or more."""
    if len(images) == 0:
        raise DataError(f"{images.root} holds no images to train on")
    classes = int(class_codes(images).max()) + 1
    if classes < 2:
        raise DataError(
            f"all {len(images)} training images are of one class, but training needs two or more: "
            "give a folder for each class"
        )
    if classes == len(images):
        raise DataError(
            f"each of the {len(images)} training images is a class of its own: give two or more "
            "images of a class, or correct the labels"
        )


# ── before and after ─────────────────────────────────────────────────────────────────────────────


def options_given(config: TuneConfig) -> dict[str, Any]:
    """The options that decide a training: `finetune`, `loss`, what decides which images are held
    out, and others that are not the defaults with this `validate_on`."""
    defaults = TuneConfig.from_options({"validate_on": config.validate_on})
    return {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name in ("finetune", "loss", *SPLITTING)
        or (name not in COMPUTE_OPTIONS and value != getattr(defaults, name))
    }
