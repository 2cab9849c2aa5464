"""Labelled images + Embedder → a better Embedder, or the same one and the news that none is better.

    frozen vectors ─► head ─► backbone ─► candidates ─► the one that validation keeps

Validation is a callable that gives one value a query: what a score is, this room does not know.
"""

import copy
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vizsla import storage
from vizsla.data.image_cache import ImageCache
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import class_codes, label_warnings
from vizsla.embed.validation_tensors import pooled_of
from vizsla.model.embedder import Embedder
from vizsla.model.projection import Projection, identity_or_pca
from vizsla.options import TrainConfig
from vizsla.train import checkpoint, heads, train_warnings
from vizsla.train.augment import augmenter
from vizsla.train.batch_gradient import Processes
from vizsla.train.candidates import REFITTED, Costs, TunedEntries, behind, framings_of
from vizsla.train.frozen_vectors import DECISION, Read, read_features
from vizsla.train.loop import Budget, Loop, LoopResult
from vizsla.train.losses import TrainingLoss, build_loss
from vizsla.train.plan import (
    LONG,
    SHORT,
    Length,
    build_loop,
    identity_of,
    labelled,
    opened,
    order_of,
    size_in_training,
    some_of,
)
from vizsla.train.result import TrainResult
from vizsla.train.selection import Contest, Validate, table
from vizsla.train.settings import training_compute
from vizsla.train.train_log import LOG, SHORT_FOLDER, TrainLog
from vizsla.workspace import SECONDS

log = logging.getLogger("vizsla.train")

FEW_QUERIES = 50  # of the validation: a standard error of .05 and more
STARTS = ("pca", "centred", "head")  # whitening comes after training: before, it gave less
SHARES = (0.3, 0.6)  # of the frozen vector in a joined one
LAST = "last weights"
SHORT_TIMES = 2  # so much of the time, or of the epochs, has to be there for a short training first
TRAINING_COSTS = 2.0  # of an image, against reading and embedding it
OVER = 1.1  # times the budget: more is told
PLAN = "plan"
PARTS = (
    "heads",
    "checkpoint",
    f"{SHORT_FOLDER}/checkpoint",
    SHORT_FOLDER,
    PLAN,
    DECISION,
    "embedder",
)

Progress = Callable[[str, int, int], None]  # (stage, done, in all)


def train(
    images: ImageSet,
    embedder: Embedder,
    config: TrainConfig,
    validate: Validate,
    out: str | Path,
    *,
    budget: Budget | None = None,
    processes: Processes | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Trains on `images` and keeps the best candidate by `validate`, or the frozen model.

    validate: embedder → (Q,) values of the same queries each time, more is better. It may have
    `means` (other figures of its last call, by name) and `chance` (a random ranking's value).
    out: a folder for log, checkpoint and embedder; a run that was killed goes on from there.
    """
    run = _Training(images, embedder, config, validate, Path(out), budget, processes, progress)
    if run.processes.rank > 0:
        return run.result()
    with storage.locked(run.out, parts=PARTS):
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
        budget: Budget | None,
        processes: Processes | None,
        progress: Progress | None,
    ) -> None:
        self.config, self.validate, self.out = config, validate, out
        self.processes = processes or Processes()
        self.budget = budget or Budget(config.budget)
        self.progress = progress or (lambda stage, done, total: None)
        self.compute = training_compute(config)
        self.warnings: list[str] = []
        self.images = labelled(images)
        for sentence in label_warnings([str(label) for label in self.images.labels or []]):
            self._warn(sentence)
        self.embedder = self._placed(embedder).eval()
        self.pictures = ImageCache(
            self.images,
            short_side=2 * max(embedder.preprocess.size),
            max_pixels=config.max_pixels,
        )
        self.about = {"id": identity_of(self.images, embedder, config)}
        self.loss: TrainingLoss | None = None
        self.closed_forms: frozenset[str] = frozenset()
        self.head_loss = math.nan
        self.short_first = False
        self.loop_results: dict[Length, LoopResult] = {}
        self.choice_seconds = self.reading_seconds = 0.0

    # ── stage after stage ────────────────────────────────────────────────────────────────────────

    def result(self) -> TrainResult:
        contest = self._frozen()
        read = self._features()
        self.labels = class_codes(self.images)  # of the images that can be read
        self.classes = int(self.labels.max()) + 1
        if self.config.finetune != "none":
            self._planned()
            start = self._heads(contest, read.vectors)
            if self.config.finetune != "head":
                self._backbone(contest, start)
        return self._finished(contest, read.broken)

    def _frozen(self) -> Contest:
        before = self.budget.spent()
        contest = Contest(copy.deepcopy(self.embedder), self.validate)
        self.choice_seconds = self.budget.spent() - before
        frozen = contest.frozen
        log.info("validation: frozen %.4f over %d queries", frozen.value, len(frozen.values))
        if len(frozen.values) < FEW_QUERIES:
            self._warn(
                f"the choice rests on {len(frozen.values)} held-out queries alone: more training "
                "images, or a larger share of them, would make it surer"
            )
        chance, real = getattr(self.validate, "chance", None), self.config.real_weights
        self._warn_all(train_warnings.frozen_near_chance(frozen.values, chance, real_weights=real))
        return contest

    def _features(self) -> Read:
        """Frozen vectors; broken images, and those there is no time for, leave the set."""
        if self.config.finetune == "none":
            return Read(self.images, np.empty((0, 0)), [])
        before = self.budget.spent()
        read = read_features(
            self.pictures,
            self.embedder,
            self.out,
            compute=self.compute,
            budget=self.budget,
            seed=self.config.seed,
            about=self.about,
            processes=self.processes,
            progress=lambda done, total: self.progress("reading images", done, total),
        )
        self.reading_seconds = self.budget.spent() - before
        if read.left_out:
            self._warn(
                f"a quarter of the budget does for reading {len(read.images):,} of "
                f"{len(self.images):,} training images: the training goes on with these, drawn by "
                "class. A longer --budget takes more"
            )
        if read.broken:
            self._warn(f"{len(read.broken)} broken training images are left out")
        if len(read.images) < len(self.images):
            self.images = read.images
            self.pictures = self.pictures.subset(self.images)
        return read

    def _heads(self, contest: Contest, vectors: np.ndarray) -> Embedder:
        """Enters all heads; the best one of STARTS, or none, is where the backbone starts."""
        if self.processes.rank > 0:
            self.processes.wait()  # a head that stops by the clock is the first process's own
        saved = heads.load_heads(self.out / "heads", about=self.about)
        if saved is None:
            saved = self._fitted_heads(vectors)
            if self.processes.rank == 0:
                heads.save_heads(self.out / "heads", *saved, about=self.about)
        found, self.head_loss = saved
        if self.processes.rank == 0:
            self.processes.wait()
        names = list(found)
        self.closed_forms = frozenset(found) - {"head"}
        base = behind(self.embedder, identity_or_pca(vectors, self.config.dim))
        entered = [(contest.frozen.value, base)]
        for i, name in enumerate(names):
            head = behind(self.embedder, found[name])
            value = contest.enter(name, head).value
            if name in STARTS:
                entered.append((value, head))
            for share in SHARES if name == "head" else ():
                joined = behind(self.embedder, found[name].joined(share))
                contest.enter(f"{name} + {share:g} frozen", joined)
            self.progress("validating heads", i + 1, len(names))
        start_at = max(entered, key=lambda pair: pair[0])[1]
        projection = start_at.projection
        assert isinstance(projection, Projection)
        self.loss = self._new_loss(projection, vectors, memory=self.config.memory)
        return start_at

    def _fitted_heads(self, vectors: np.ndarray) -> tuple[dict[str, Projection], float]:
        """Closed forms, and a head that is trained from the first of them on; its loss."""
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
            clock=self.budget.clock,
            order=order_of(self.config, loss),
            per_class=self.config.per_class,
            seed=self.config.seed,
        )
        return {**found, "head": trained.projection}, trained.final_loss

    def _backbone(self, contest: Contest, start: Embedder) -> None:
        """A short training first, where it pays: what came of either is a candidate."""
        if self.short_first:
            loss, generators = copy.deepcopy(self.loss), checkpoint.generator_states()
            self._tuned(contest, start, SHORT)
            self.loss = loss
            checkpoint.set_generator_states(generators)
        self._tuned(contest, start, LONG)

    def _tuned(self, contest: Contest, start: Embedder, length: Length) -> None:
        """Trains a copy of `start` and enters what came of it."""
        assert self.loss is not None
        config, folder = self.config, length.folder(self.out)
        origin = self._placed(copy.deepcopy(start))
        tuned, blocks = opened(origin, config)
        self.loss.to(self.compute.device)
        loop = build_loop(
            tuned, blocks, self.loss, self.images, config, self.compute,
            epochs=length.epochs(config), processes=self.processes, budget=self.budget,
            folder=folder / "checkpoint", about=self.about,
        )  # fmt: skip
        resumed = loop.resume()
        loop.seconds = self._loop_seconds(tuned, length, loop.spent)
        before = {name: p.detach().clone() for name, p in tuned.named_parameters()}
        first_step = loop.step if resumed else 0
        board = None
        if self.processes.rank == 0:
            board = TrainLog(folder, from_step=loop.step, tensorboard=config.tensorboard)
        size = size_in_training(self.embedder, config.train_size)
        augment = augmenter(config.augment, self.embedder.preprocess.with_size(size))
        stage = length.stage + (SECONDS if loop.by_clock else "")
        result = self.loop_results[length] = loop.run(
            self.pictures.__getitem__,
            augment,
            board,
            lambda done, total: self.progress(stage, done, total),
        )
        if board:
            board.close()
            if length is SHORT and result.steps > first_step:
                loop.save()  # an interrupted run goes on behind its end
        signs = train_warnings.after_training(
            result.stopped,
            train_warnings.unmoved(before, tuned, result.steps - first_step),
            result.final_loss,
            self.loss.chance(config.batch_size),
            config.loss,
            self._some_vectors(tuned),
        )
        self._warn_all([length.prefix + sign for sign in signs])
        self._enter_tuned(contest, origin, tuned, loop, length)
        result.averaged = None  # a whole network that nobody needs any more

    def _enter_tuned(
        self, contest: Contest, origin: Embedder, tuned: Embedder, loop: Loop, length: Length
    ) -> None:
        from vizsla.train import lora

        ends: list[tuple[str, Embedder]] = []
        if loop.average is not None and self.loop_results[length].averaged is not None:
            averaged: Any = loop.average.module
            ends.append(("average of weights", averaged))
        ends.append((LAST, tuned))
        entries = TunedEntries(
            contest, self.budget, self._costs(), pooled=self._pooled, labels=self.labels,
            dim=self.config.dim, seed=self.config.seed, prefix=length.prefix,
            warn=lambda sentence: self._warn(length.prefix + sentence),
            progress=lambda done, total: self.progress(f"validating {length.stage}", done, total),
        )  # fmt: skip
        for _, end in ends:
            end.views = origin.views
        adapted = self.config.finetune == "lora"
        entries.enter(origin, [(n, lora.merged(m) if adapted else m) for n, m in ends])
        for candidate in contest.candidates:
            if candidate.name == length.prefix + LAST:
                signs = train_warnings.tuned_like_frozen(candidate.values, contest.frozen.values)
                self._warn_all([length.prefix + sign for sign in signs])

    def _planned(self) -> None:
        """Whether a short training comes first; with a budget decided once, and kept with what the
        first reading took: a resumed run finds the vectors on disk."""
        config, known = self.config, None
        if config.budget is None:
            self.short_first = 0 < SHORT_TIMES * config.short_epochs <= config.epochs
            return
        if self.processes.rank == 0:
            known = checkpoint.load_state(self.out / PLAN, about=self.about)
            if known is None:
                known = {
                    "short": self._time_for_short(),
                    "reading": self.reading_seconds,
                    "clock": self.budget.spent(),
                }
                checkpoint.save_state(self.out / PLAN, known, about=self.about)
            else:
                self.budget.count_earlier(known.get("clock", 0.0))
        known = known or {"short": False, "reading": 0.0}
        self.short_first = self.processes.from_first(float(known["short"])) > 0
        self.reading_seconds = self.processes.from_first(known["reading"])

    def _time_for_short(self) -> bool:
        """Whether SHORT_TIMES of it fit in, and two choices."""
        if not self.config.short_epochs or self.config.finetune == "head":
            return False
        wanted = self.config.short_epochs * TRAINING_COSTS * self.reading_seconds
        choices = 2 * self._costs().of_all(len(framings_of(self.embedder)))
        return SHORT_TIMES * wanted <= self.budget.left() - choices

    def _pooled(self, embedder: Embedder, chosen: np.ndarray) -> np.ndarray:
        """(n, C) of these training images."""
        return pooled_of(
            self.pictures, chosen, embedder, self.compute, max_pixels=self.config.max_pixels
        )

    def _finished(self, contest: Contest, broken: list[tuple[str, str]]) -> TrainResult:
        kept = contest.decided()
        assert kept.embedder is not None
        for p in kept.embedder.parameters():
            p.requires_grad_(False)
        if self.processes.rank == 0:
            kept.embedder.eval().save(self.out / "embedder")
        self._warn_of_overrun()
        log.debug("candidates on validation:\n%s", table(contest.candidates))
        length = SHORT if kept.name.startswith(SHORT.prefix) else LONG
        trained = self.loop_results.get(length)
        steps = trained.steps if trained else 0
        final = trained.final_loss if trained else self.head_loss
        epochs = steps * self.config.batch_size / max(1, len(self.images))
        result = TrainResult(
            embedder=kept.embedder,
            candidates=contest.candidates,
            loss_function=self.loss.title if self.loss else "",
            num_classes=len(set(self.images.labels or [])),
            num_epochs=max(1, round(epochs)) if steps else 0,
            final_train_loss=final if math.isfinite(final) else None,
            steps=steps,
            seconds=self.budget.spent(),
            warnings=self.warnings,
            folder=self.out,
            log_path=length.folder(self.out) / LOG,
            precision=self.compute.precision,
            images_per_second=trained.images_per_second if trained else 0.0,
            broken=broken,
            closed_forms=self.closed_forms,
        )
        log.debug("%s", result.verdict)
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

    def _loop_seconds(self, tuned: Embedder, length: Length, spent: float) -> float | None:
        """What a budget leaves for the loop, those spent before a resumption included: the choice
        at the end is planned for."""
        if self.config.budget is None:
            return None
        left = self.budget.left() + spent
        reserve = self._costs().of_all(len(framings_of(tuned)))
        if length is SHORT:
            return max(0.0, (left - 2 * reserve) / 2)  # at most: it goes by epochs
        seconds = left - min(reserve, 0.5 * left)
        if seconds < 1:
            self._warn(
                f"the budget of {self.config.budget:.0f} s leaves no time to train the backbone: "
                f"{self.budget.spent():.0f} s went into reading and the head. Give more time"
            )
        return max(0.0, seconds)

    def _costs(self) -> Costs:
        """Of the choice at the end, by the first reading."""
        share = min(1.0, REFITTED / max(1, len(self.images)))
        return Costs(self.choice_seconds, self.reading_seconds * share)

    def _warn_of_overrun(self) -> None:
        """What no budget can leave out: the frozen model's vectors, and scoring it once."""
        budget, spent = self.config.budget, self.budget.spent()
        if budget is None or spent < OVER * budget + 1:
            return
        self._warn(
            f"the work took {spent:.0f} s, {spent - budget:.0f} s more than the budget of "
            f"{budget:.0f} s: embedding {len(self.images):,} training images alone took "
            f"{self.reading_seconds:.0f} s, and scoring a model on the held-out ones "
            f"{self.choice_seconds:.0f} s. Give more time, or fewer images"
        )

    def _head_seconds(self) -> float:
        """Without a budget no clock decides: the same command must end with the same weights."""
        return min(heads.SECONDS, 0.06 * self.config.budget) if self.config.budget else math.inf

    def _some_vectors(self, embedder: Embedder) -> Tensor:
        chosen = some_of(len(self.images), 32)
        batch = torch.stack([self.embedder.preprocess(self.pictures[int(i)]) for i in chosen])
        embedder.eval()
        with torch.inference_mode():
            vectors: Tensor = embedder(batch.to(self.compute.device))
        return vectors.clone()

    def _warn(self, sentence: str) -> None:
        log.warning("%s", sentence)
        self.warnings.append(sentence)

    def _warn_all(self, sentences: list[str]) -> None:
        for sentence in sentences:
            self._warn(sentence)
