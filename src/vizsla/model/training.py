"""Labelled images + Embedder → a better Embedder, or the same one and the news that none is better.

    frozen vectors ─► head ─► backbone ─► candidates ─► the one that validation keeps

Validation is a callable that gives one value a query: what a score is, this room does not know.
"""

import copy
import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizsla import storage
from vizsla.data.augment import augmenter
from vizsla.data.batches import BatchPlan, Loader, in_chunks
from vizsla.data.imageset import ImageSet
from vizsla.data.pictures import Pictures
from vizsla.data.splits import class_codes, domain_codes, warn_of_labels
from vizsla.errors import DataError
from vizsla.model import checkpoint, heads, silence
from vizsla.model.choice import Contest, Validate, interpolated, table
from vizsla.model.compute import PRECISIONS
from vizsla.model.embedder import Embedder
from vizsla.model.inference import embed
from vizsla.model.loop import Clock, Loop, LoopConfig, LoopResult
from vizsla.model.losses import TrainingLoss, build_loss
from vizsla.model.microbatch import GradientMaker, Processes, fitting_micro_batch
from vizsla.model.optimise import checkpoint_activations, open_weights, parameter_groups
from vizsla.model.outcome import TrainResult
from vizsla.model.projection import Projection, identity_or_pca
from vizsla.model.settings import TrainConfig, training_compute
from vizsla.model.trainlog import TrainLog, draw_curve

log = logging.getLogger("vizsla.train")

ALPHAS = (0.5, 0.75, 0.25)  # of the way from the start to the tuned weights, in order of promise
SHARES = (0.3, 0.6)  # of the frozen vector in a joined one
REFITTED = 1000  # images whose vectors a tuned backbone's projections are fitted to
SAVING_SECONDS = 3.0  # kept back of a budget for writing the embedder

Progress = Callable[[str, int, int], None]  # (stage, done, in all)


def train(
    images: ImageSet,
    embedder: Embedder,
    config: TrainConfig,
    validate: Validate,
    out: str | Path,
    *,
    clock: Clock | None = None,
    processes: Processes | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Trains on `images` and keeps the best candidate by `validate`, or the frozen model.

    validate: embedder → (Q,) values of the same queries each time, more is better. It may have
    `means` (other figures of its last call, by name) and `chance` (a random ranking's value).
    out: a folder for log, checkpoint and embedder; a run that was killed goes on from there.
    """
    run = _Training(images, embedder, config, validate, Path(out), clock, processes, progress)
    if run.processes.rank > 0:
        return run.result()
    with storage.locked(run.out, parts=("heads", "checkpoint", "embedder")):
        return run.result()


class _Training:
    """The stages of one training, in order, and what they hand on."""

    def __init__(
        self,
        images: ImageSet,
        embedder: Embedder,
        config: TrainConfig,
        validate: Validate,
        out: Path,
        clock: Clock | None,
        processes: Processes | None,
        progress: Progress | None,
    ) -> None:
        self.config, self.validate, self.out = config, validate, out
        self.processes = processes or Processes()
        self.clock = clock or Clock(config.budget)
        self.progress = progress or (lambda stage, done, total: None)
        self.compute = training_compute(config)
        self.warnings: list[str] = []
        self.images = _labelled(images)
        for sentence in warn_of_labels([str(label) for label in self.images.labels or []]):
            self._warn(sentence)
        self.embedder = self._placed(embedder).eval()
        self.pictures = Pictures(
            self.images,
            short_side=2 * max(embedder.preprocess.size),
            max_pixels=config.max_pixels,
        )
        self.about = {"id": _identity(self.images, embedder, config)}
        self.loss: TrainingLoss | None = None
        self.head_loss, self.loop_result = math.nan, None  # type: float, LoopResult | None
        self.choice_seconds = self.reading_seconds = 0.0

    # ── stage after stage ────────────────────────────────────────────────────────────────────────

    def result(self) -> TrainResult:
        contest = self._frozen()
        vectors, kept = self._features()
        self.labels = class_codes(self.images)  # of the images that can be read
        self.classes = int(self.labels.max()) + 1
        if self.config.finetune != "none":
            start = self._heads(contest, vectors)
            if self.config.finetune != "head":
                self._backbone(contest, start)
        return self._finished(contest, kept)

    def _frozen(self) -> Contest:
        before = self.clock.spent()
        contest = Contest(copy.deepcopy(self.embedder), self.validate)
        self.choice_seconds = self.clock.spent() - before
        frozen = contest.frozen
        log.info("validation: frozen %.4f over %d queries", frozen.value, len(frozen.values))
        self._warn_all(
            silence.frozen_near_chance(
                frozen.values,
                getattr(self.validate, "chance", None),
                real_weights=self.config.real_weights,
            )
        )
        return contest

    def _features(self) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """Vectors of the frozen backbone (N, C), kept on disk; broken images leave the set."""
        if self.config.finetune == "none":
            return np.empty((0, 0)), []
        if self.processes.rank > 0:
            self.processes.wait()
        plain = self.embedder
        before = self.clock.spent()
        own, plain.projection = plain.projection, torch.nn.Identity()
        try:
            found = embed(
                self.images,
                plain,
                self.out / "features",
                compute=self.compute,
                max_pixels=self.config.max_pixels,
                picture=self.pictures.__getitem__,
                progress=lambda done, total: self.progress("reading images", done, total),
            )
        finally:
            plain.projection = own
        self.reading_seconds = self.clock.spent() - before
        if self.processes.rank == 0:
            self.processes.wait()
        if found.broken:
            self.images = self.images.without({name for name, _ in found.broken})
            self.pictures = self.pictures.of(self.images)
            self._warn(f"{len(found.broken)} broken training images are left out")
            if len(set(self.images.labels or [])) < 2:
                raise DataError("without the broken images fewer than 2 classes are left")
        return found.vectors, found.broken

    def _heads(self, contest: Contest, vectors: np.ndarray) -> Embedder:
        """Enters all heads; the best one without a frozen part is where the backbone starts."""
        if self.processes.rank > 0:
            self.processes.wait()  # a head that stops by the clock is the first process's own
        found = self._saved_heads()
        if found is None:
            found = self._fitted_heads(vectors)
            self._save_heads(found)
        if self.processes.rank == 0:
            self.processes.wait()
        names = list(found)
        base = self._with_projection(identity_or_pca(vectors, self.config.dim))
        entered = [(contest.frozen.value, base)]
        for i, name in enumerate(names):
            head = self._with_projection(found[name])
            entered.append((contest.enter(name, head).value, head))
            for share in SHARES if name == "head" else ():
                joined = self._with_projection(found[name].joined(share))
                contest.enter(f"{name} + {share:g} frozen", joined)
            self.progress("validating heads", i + 1, len(names))
        start_at = max(entered, key=lambda pair: pair[0])[1]
        projection = start_at.projection
        assert isinstance(projection, Projection)
        self.loss = self._new_loss(projection, vectors, memory=self.config.memory)
        return start_at

    def _fitted_heads(self, vectors: np.ndarray) -> dict[str, Projection]:
        """Closed forms, and a head that is trained from the first of them on."""
        found = heads.closed_forms(vectors, self.labels, self.config.dim)
        start = found.get("centred") or next(iter(found.values()))
        loss = self._new_loss(start, vectors, memory=0)
        trained = heads.train_head(
            start,
            vectors,
            self.labels,
            loss,
            learning_rate=self.config.head_learning_rate,
            seconds=self._head_seconds(),
            order=self._order(loss),
            per_class=self.config.per_class,
            seed=self.config.seed,
        )
        self.head_loss = trained.final_loss
        return {**found, "head": trained.projection}

    def _backbone(self, contest: Contest, start: Embedder) -> None:
        from vizsla.model import lora

        assert self.loss is not None
        config = self.config
        origin = self._placed(copy.deepcopy(start))
        tuned = copy.deepcopy(origin)
        if config.checkpointing:
            checkpoint_activations(tuned)
        adapted = config.finetune == "lora"
        if adapted:
            lora.add_adapters(tuned, seed=config.seed)
        blocks = open_weights(tuned, "head" if adapted else config.finetune, config.blocks)
        if adapted:
            blocks = [lora.adapter_parameters(tuned)]
            for p in blocks[0]:
                p.requires_grad_(True)
        self.loss.to(self.compute.device)
        loop = self._loop(tuned, blocks)
        resumed = loop.resume()
        before = {name: p.detach().clone() for name, p in tuned.named_parameters()}
        first_step = loop.step if resumed else 0
        board = None
        if self.processes.rank == 0:
            board = TrainLog(self.out, from_step=loop.step, tensorboard=config.tensorboard)
        size = config.train_size or self.embedder.preprocess.size[0]
        augment = augmenter(config.augment, self.embedder.preprocess.with_size(size))
        self.loop_result = loop.run(
            self.pictures.__getitem__,
            augment,
            board,
            lambda done, total: self.progress("training", done, total),
        )
        if board:
            board.close()
        self._warn_of_silence(before, tuned, self.loop_result, first_step)
        self._enter_tuned(contest, origin, tuned, loop, adapted)

    def _enter_tuned(
        self, contest: Contest, origin: Embedder, tuned: Embedder, loop: Loop, adapted: bool
    ) -> None:
        """The last weights, their average, and the line between the better one and the start."""
        from vizsla.model import lora

        ends: list[tuple[str, Embedder]] = []
        if loop.average is not None and self.loop_result and self.loop_result.averaged is not None:
            averaged: Any = loop.average.module
            ends.append(("average of weights", averaged))
        ends.append(("last weights", tuned))
        best: tuple[float, Embedder] | None = None
        for name, model in ends:
            if best is not None and not self._time_for_one_more():
                break
            plain = (lora.merged(model) if adapted else model).eval()
            candidate = contest.enter(name, plain)
            if name == "last weights" and contest.frozen.values is not None:
                self._warn_all(silence.tuned_like_frozen(candidate.values, contest.frozen.values))
            if best is None or candidate.value > best[0]:
                best = candidate.value, plain
        assert best is not None
        leader = best
        between = copy.deepcopy(origin)
        for alpha in ALPHAS:
            if not self._time_for_one_more():
                self._warn("no time was left to try all interpolations: a longer --budget does")
                break
            state = interpolated(origin.state_dict(), best[1].state_dict(), alpha)
            between.load_state_dict(state)
            candidate = contest.enter(f"{alpha:g} of the way", between)
            if candidate.value > leader[0]:
                leader = candidate.value, copy.deepcopy(between)
        if self.clock.left() > self._refit_seconds() + SAVING_SECONDS:
            self._enter_whitened(contest, leader[1])

    def _enter_whitened(self, contest: Contest, tuned: Embedder) -> None:
        """The best tuned backbone behind projections that are fitted to its own vectors."""
        chosen = np.random.default_rng((self.config.seed, 31)).permutation(len(self.images))
        chosen = np.sort(chosen[:REFITTED])
        vectors = np.concatenate(list(self._pooled(tuned, chosen)))
        found = heads.closed_forms(vectors, self.labels[chosen], self.config.dim)
        for name, projection in found.items():
            candidate = copy.copy(tuned)
            candidate._modules = dict(tuned._modules)
            candidate.projection = projection.to(self.compute.device)
            contest.enter(f"tuned, {name}", candidate)

    def _pooled(self, embedder: Embedder, chosen: np.ndarray) -> Iterator[np.ndarray]:
        """(b, C) of these images, batch by batch."""
        device, precision = torch.device(self.compute.device), PRECISIONS[self.compute.precision]
        embedder.eval()
        loader = Loader(
            self.images.file,
            embedder.preprocess.framing,
            batch_size=self.compute.batch_size,
            workers=self.compute.workers,
            max_pixels=self.config.max_pixels,
            picture=self.pictures.__getitem__,
        )
        chunks = in_chunks([int(i) for i in chosen], self.compute.batch_size)
        with loader:
            for batch in loader.batches(chunks):
                with (
                    torch.inference_mode(),
                    torch.autocast(device.type, precision, enabled=precision != torch.float32),
                ):
                    images = embedder.preprocess.normalised(batch.pixels.to(device))
                    yield embedder.pooled(images).float().cpu().numpy()[: batch.filled]

    def _finished(self, contest: Contest, broken: list[tuple[str, str]]) -> TrainResult:
        kept = contest.decided()
        assert kept.embedder is not None
        for p in kept.embedder.parameters():
            p.requires_grad_(False)
        curve = None
        if self.processes.rank == 0:
            kept.embedder.eval().save(self.out / "embedder")
            curve = draw_curve(self.out, self.config.loss)
        log.info("candidates on validation:\n%s", table(contest.candidates))
        steps = self.loop_result.steps if self.loop_result else 0
        final = self.loop_result.final_loss if self.loop_result else self.head_loss
        epochs = steps * self.config.batch_size / max(1, len(self.images))
        result = TrainResult(
            embedder=kept.embedder,
            candidates=contest.candidates,
            loss_function=self.loss.title if self.loss else "",
            num_classes=len(set(self.images.labels or [])),
            num_epochs=max(1, round(epochs)) if steps else 0,
            final_train_loss=final if math.isfinite(final) else None,
            steps=steps,
            seconds=self.clock.spent(),
            warnings=self.warnings,
            folder=self.out,
            log_path=self.out / "log.jsonl",
            curve_path=curve,
            precision=self.compute.precision,
            images_per_second=self.loop_result.images_per_second if self.loop_result else 0.0,
            broken=broken,
        )
        log.info("%s", result.verdict)
        self._tell_of_text(result)
        return result

    def _tell_of_text(self, result: TrainResult) -> None:
        before, after = (c.means.get("text") for c in (result.candidates[0], result.kept))
        if before is not None and after is not None:
            log.info("text: %.3f of the held-out images are nearest to their label's text, "
                     "%.3f with the frozen model", after, before)  # fmt: skip
        elif self.embedder.backbone.spec.reads_text and not self.embedder.reads_text:
            log.info(
                "text is off: %s pooling shares no space with texts, native pooling does",
                self.embedder.pooling,
            )

    # ── parts ────────────────────────────────────────────────────────────────────────────────────

    def _placed(self, embedder: Embedder) -> Embedder:
        return embedder.to(device=self.compute.device).to(memory_format=torch.channels_last)

    def _order(self, loss: TrainingLoss) -> str:
        if self.config.batches != "auto":
            return self.config.batches
        return "classes" if loss.of_pairs else "plain"

    def _new_loss(
        self, projection: Projection, vectors: np.ndarray, *, memory: int
    ) -> TrainingLoss:
        """What stands for a class starts at the mean of its projected vectors."""
        torch.manual_seed(self.config.seed)
        sizes = np.bincount(self.labels, minlength=self.classes)
        loss = build_loss(
            self.config.loss,
            self.classes,
            projection.outputs,
            sizes,
            miner=self.config.miner,
            memory=memory,
        )
        means = heads.class_means(heads.project(projection, vectors), self.labels, self.classes)
        loss.start_from(means)
        return loss

    def _with_projection(self, projection: Projection) -> Embedder:
        """The frozen embedder behind another projection. It shares the backbone's weights."""
        embedder = copy.copy(self.embedder)
        embedder._modules = dict(self.embedder._modules)
        embedder.projection = projection.to(self.compute.device)
        return embedder.eval()

    def _loop(self, tuned: Embedder, blocks: list[list[torch.nn.Parameter]]) -> Loop:
        config = self.config
        assert self.loss is not None
        groups = parameter_groups(
            tuned,
            blocks,
            self.loss,
            learning_rate=config.learning_rate,
            head_learning_rate=config.head_learning_rate,
            layer_decay=config.layer_decay,
            weight_decay=config.weight_decay,
        )
        optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.99))
        batch = -(-config.batch_size // self.processes.size) * self.processes.size
        plan = BatchPlan(
            self.labels,
            batch,
            order=self._order(self.loss),
            per_class=config.per_class,
            domains=domain_codes(self.images),
            seed=config.seed,
        )
        precision = PRECISIONS[self.compute.precision]
        maker = GradientMaker(
            tuned,
            self.loss,
            micro_batch=self._micro_batch(tuned, batch // self.processes.size, precision),
            precision=precision,
            processes=self.processes,
            scaler=torch.amp.GradScaler(
                torch.device(self.compute.device).type,
                enabled=precision == torch.float16,
            ),
        )
        return Loop(
            tuned,
            self.loss,
            optimiser,
            maker,
            plan,
            LoopConfig(
                steps=self._steps(plan),
                seconds=self._loop_seconds(),
                warmup=config.warmup,
                clip=config.clip,
                ema_decay=config.ema_decay,
                batch_norm=config.batch_norm,
                workers=self.compute.workers,
                save_seconds=config.save_seconds,
            ),
            folder=self.out / "checkpoint",
            about=self.about,
            clock=self.clock,
        )

    def _micro_batch(self, tuned: Embedder, batch: int, precision: torch.dtype) -> int:
        wanted = min(batch, self.config.micro_batch or batch)
        size = self.config.train_size or self.embedder.preprocess.size[0]
        device = torch.device(self.compute.device)
        if device.type != "cpu":
            return wanted
        return fitting_micro_batch(tuned, torch.zeros(1, 3, size, size), precision, wanted)

    def _steps(self, plan: BatchPlan) -> int:
        if self.config.budget is not None:
            return 2**31
        return max(1, math.ceil(self.config.epochs * plan.steps_per_epoch))

    def _loop_seconds(self) -> float | None:
        """What a budget leaves for the loop: the choice at the end is planned for."""
        if self.config.budget is None:
            return None
        reserve = (2 + len(ALPHAS)) * self.choice_seconds + SAVING_SECONDS + self._refit_seconds()
        seconds = self.clock.left() - min(reserve, 0.5 * self.clock.left())
        if seconds < 1:
            self._warn(
                f"the budget of {self.config.budget:.0f} s leaves no time to train the backbone: "
                f"{self.clock.spent():.0f} s went into reading and the head. Give more time"
            )
        return max(0.0, seconds)

    def _head_seconds(self) -> float:
        """Without a budget no clock decides: the same command must end with the same weights."""
        return min(heads.SECONDS, 0.06 * self.config.budget) if self.config.budget else math.inf

    def _refit_seconds(self) -> float:
        """How long fitting projections to the tuned backbone will take, by the first reading."""
        return self.reading_seconds * min(1.0, REFITTED / max(1, len(self.images)))

    def _time_for_one_more(self) -> bool:
        return self.clock.left() > self.choice_seconds + SAVING_SECONDS

    def _warn_of_silence(
        self, before: dict[str, Tensor], tuned: Embedder, result: LoopResult, first_step: int
    ) -> None:
        if result.stopped:
            self._warn(result.stopped)
        else:
            self._warn_all(silence.unmoved(before, tuned, result.steps - first_step))
        assert self.loss is not None
        chance = self.loss.chance(self.config.batch_size)
        if result.steps:
            self._warn_all(silence.loss_near_chance(result.final_loss, chance, self.config.loss))
        self._warn_all(silence.collapsed(self._some_vectors(tuned)))

    def _some_vectors(self, embedder: Embedder) -> Tensor:
        chosen = np.linspace(0, len(self.images) - 1, min(32, len(self.images))).astype(int)
        batch = torch.stack([self.embedder.preprocess(self.pictures[int(i)]) for i in chosen])
        embedder.eval()
        with torch.inference_mode():
            vectors: Tensor = embedder(batch.to(self.compute.device))
        return vectors.clone()

    def _saved_heads(self) -> dict[str, Projection] | None:
        state = checkpoint.load_state(self.out / "heads", about=self.about)
        if state is None:
            return None
        found = {}
        for name, head in state["heads"].items():
            outputs, inputs = head["weight"].shape
            found[name] = Projection(inputs, outputs)
            found[name].load_state_dict(head)
        self.head_loss = state["final_loss"]
        return found

    def _save_heads(self, found: dict[str, Projection]) -> None:
        if self.processes.rank > 0:
            return
        known = {name: dict(head.state_dict()) for name, head in found.items()}
        final = self.head_loss if math.isfinite(self.head_loss) else 0.0
        state = {"heads": known, "final_loss": final}
        checkpoint.save_state(self.out / "heads", state, about=self.about)

    def _warn(self, sentence: str) -> None:
        log.warning("%s", sentence)
        self.warnings.append(sentence)

    def _warn_all(self, sentences: list[str]) -> None:
        for sentence in sentences:
            self._warn(sentence)


# ── before the start ─────────────────────────────────────────────────────────────────────────────


def _labelled(images: ImageSet) -> ImageSet:
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


def _identity(images: ImageSet, embedder: Embedder, config: TrainConfig) -> str:
    """What a checkpoint belongs to: the same images, model and settings."""
    settings = dataclasses.asdict(config)
    for key in ("workers", "micro_batch", "tensorboard", "save_seconds"):
        settings.pop(key)  # they do not change what is computed
    content = [images.ids, images.labels, embedder.model_id, settings, torch.__version__]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
