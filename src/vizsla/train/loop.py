"""Batches → weights: the loop over steps, planned into epochs or into a time, resumable.

Knows nothing of validation: it ends with the last weights and their moving average.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vizsla.data.batches import BatchPlan, training_batches
from vizsla.errors import DataError
from vizsla.model.embedder import Embedder
from vizsla.train import checkpoint
from vizsla.train.batch_gradient import GradientMaker, Processes
from vizsla.train.losses import TrainingLoss
from vizsla.train.optimizer import freeze_norms, moving_average, rate_at, set_rates
from vizsla.train.train_log import TrainLog

log = logging.getLogger("vizsla.train")

SAVE_SECONDS = 60.0  # between checkpoints
SAVE_SHARE, SAVE_COSTS = 0.05, 50.0  # of a budget; and so many times what writing one took
UNLIMITED = 2**31  # steps
SAFE_STEPS = 20  # between copies of weights that gave a finite loss
TOLD_STEPS = 10  # between lines in the log


class Budget:
    """The seconds that a training may take, None for any number, and those it has spent.

    clock: gives seconds from any origin. The time starts when the budget is made.
    """

    def __init__(
        self, seconds: float | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds, self.clock = seconds, clock
        self.started = clock()
        self.before = 0.0  # spent by the runs that were interrupted

    def spent(self) -> float:
        """Seconds, with those of interrupted runs."""
        return self.clock() - self.started + self.before

    def left(self) -> float:
        """Seconds; infinite without a limit, negative after an overrun."""
        return math.inf if self.seconds is None else self.seconds - self.spent()

    def count_earlier(self, seconds: float) -> None:
        """Counts what interrupted runs had spent. Each figure includes the smaller ones."""
        self.before = max(self.before, seconds)


@dataclass(frozen=True)
class LoopConfig:
    """steps: how many at most. seconds: when to end at the latest, None for never.

    batch_norm: "frozen" uses the statistics that came with the weights, "trained" new ones.
    """

    steps: int
    seconds: float | None
    warmup: float = 0.1
    clip: float = 5.0  # 0 turns it off
    ema_decay: float = 0.99  # 0 turns it off
    batch_norm: str = "frozen"
    workers: int = 1
    save_seconds: float = SAVE_SECONDS


@dataclass(eq=False)
class LoopResult:
    """final_loss: the mean over the last tenth of the steps. stopped: why, when before its end.

    averaged: the moving average of the weights, None without.
    """

    steps: int
    losses: list[float]
    averaged: dict[str, Tensor] | None
    stopped: str | None = None
    images_per_second: float = 0.0

    @property
    def final_loss(self) -> float:
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return float(np.mean(tail)) if tail else math.nan


class Loop:
    """The state of a training between two steps. `run` goes on from whatever step it is at.

    seconds: when to end at the latest, those before a resumption included; may be set until `run`.
    """

    def __init__(
        self,
        embedder: Embedder,
        loss: TrainingLoss,
        optimiser: torch.optim.Optimizer,
        maker: GradientMaker,
        plan: BatchPlan,
        config: LoopConfig,
        *,
        folder: Path,
        about: dict[str, Any],
        budget: Budget,
    ) -> None:
        self.embedder, self.loss, self.optimiser, self.maker = embedder, loss, optimiser, maker
        self.plan, self.config, self.budget = plan, config, budget
        self.folder, self.about = folder, about
        self.step, self.losses, self.spent = 0, [], 0.0  # type: int, list[float], float
        self.seconds = config.seconds
        self.ended, self.stopped = False, None  # type: bool, str | None
        self.saving = 0.0  # seconds that the last checkpoint took
        self.average = moving_average(embedder, config.ema_decay) if config.ema_decay else None

    # ── running ──────────────────────────────────────────────────────────────────────────────────

    def run(
        self,
        picture: Callable[[int], Image.Image],
        augment: Callable[[Image.Image, np.random.Generator], Tensor],
        log_file: TrainLog | None,
        progress: Callable[[int, int], None] | None = None,
    ) -> LoopResult:
        if self.ended:  # before it was interrupted
            return self._result(max(1e-9, self.spent))
        self._prepare()
        device = next(self.embedder.parameters()).device
        size, rank = self.processes.size, self.processes.rank
        each = self.plan.batch_size // size
        batches = training_batches(
            picture,
            augment,
            self.plan,
            start=self.step,
            workers=self.config.workers,
            part=slice(rank * each, (rank + 1) * each),
        )
        begun, first, saved = self.budget.clock() - self.spent, self.step, self.budget.clock()
        safe = self._safe_copy()
        for images, positions in batches:
            self.spent = self.budget.clock() - begun
            done = self.processes.from_first(self._done())
            if done >= 1:
                break
            _check_pixels(images)
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            labels = torch.as_tensor(self.plan.labels[positions], device=device)
            value = self.maker.gradients(images, labels)
            if not math.isfinite(value):
                self.stopped = self._stop(value, safe)
                break
            if self.step % SAFE_STEPS == 0:
                safe = self._safe_copy()
            norm = self._update(rate_at(done, self.config.warmup))
            self.losses.append(value)
            self.step += 1
            self._tell(log_file, value, norm, done, begun, first, progress)
            if self.processes.rank == 0 and self.budget.clock() - saved > self._save_seconds():
                self.save()
                saved = self.budget.clock()
        batches.close()
        self.ended, self.spent = True, self.budget.clock() - begun
        return self._result(max(1e-9, self.spent))

    def _result(self, took: float) -> LoopResult:
        speed = self.step * self.plan.batch_size / took
        return LoopResult(self.step, self.losses, self._averaged(), self.stopped, speed)

    @property
    def processes(self) -> Processes:
        return self.maker.processes

    def _prepare(self) -> None:
        self.embedder.train()
        if self.config.batch_norm == "frozen":
            freeze_norms(self.embedder)

    @property
    def by_clock(self) -> bool:
        """Whether its progress counts seconds, not steps."""
        return self.config.steps >= UNLIMITED

    def _done(self) -> float:
        """How far it is, 0…1: by steps, or by time where that is sooner."""
        by_steps = self.step / max(1, self.config.steps)
        if self.seconds is None:
            return by_steps
        if self.seconds <= 0:
            return 1.0
        return max(by_steps, self.spent / self.seconds)

    def _save_seconds(self) -> float:
        """Between checkpoints. What passes after the last one is lost to an interrupted run, so a
        short budget has them more often, as long as writing them takes little of it."""
        if self.budget.seconds is None:
            return self.config.save_seconds
        often = max(SAVE_SHARE * self.budget.seconds, SAVE_COSTS * self.saving)
        return min(self.config.save_seconds, often)

    def _update(self, share: float) -> float:
        """One step of the optimiser; the gradient's norm before clipping."""
        set_rates(self.optimiser, share)
        scaler = self.maker.scaler
        scaler.unscale_(self.optimiser)
        weights = [p for group in self.optimiser.param_groups for p in group["params"]]
        limit = self.config.clip or math.inf
        norm = float(nn.utils.clip_grad_norm_(weights, limit))
        if math.isfinite(norm) or scaler.is_enabled():  # the scaler skips such a step by itself
            scaler.step(self.optimiser)
            if self.average is not None:
                self.average.update_parameters(self.embedder)
        scaler.update()
        return norm

    def _tell(
        self,
        log_file: TrainLog | None,
        value: float,
        norm: float,
        done: float,
        begun: float,
        first: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        if self.step % TOLD_STEPS and self.step != 1:
            return
        seconds = max(1e-9, self.budget.clock() - begun)
        speed = self.step * self.plan.batch_size / seconds
        rates = [group["lr"] for group in self.optimiser.param_groups]
        if log_file:
            log_file.add(
                self.step,
                loss=value,
                rate=rate_at(done, self.config.warmup),
                learning_rates=rates,
                gradient_norm=norm,
                images_per_second=round(speed, 1),
                memory_mb=memory_mb(),
                micro_batch=self.maker.micro_batch,
                seconds=round(seconds, 1),
            )
        if progress and not self.by_clock:
            progress(self.step, self.config.steps)
        elif progress and self.seconds:
            progress(min(round(seconds), int(self.seconds)), int(self.seconds))

    # ── when the loss is no number ───────────────────────────────────────────────────────────────

    def _safe_copy(self) -> dict[str, Tensor]:
        return {
            n: p.detach().clone() for n, p in self.embedder.named_parameters() if p.requires_grad
        }

    def _stop(self, value: float, safe: dict[str, Tensor]) -> str:
        with torch.no_grad():
            for name, p in self.embedder.named_parameters():
                if name in safe:
                    p.copy_(safe[name])
        for p in self.embedder.parameters():
            p.grad = None
        return (
            f"the loss became {value} at step {self.step}: training stopped there and goes on with "
            "the last weights that gave a finite loss. Lower --learning-rate, or --precision fp32"
        )

    def _averaged(self) -> dict[str, Tensor] | None:
        if self.average is None or self.step == 0:
            return None
        state = self.average.module.state_dict()
        finite = all(bool(t.isfinite().all()) for t in state.values() if t.is_floating_point())
        return dict(state) if finite else None

    # ── resuming ─────────────────────────────────────────────────────────────────────────────────

    def save(self) -> None:
        """All that the next step depends on."""
        begun = self.budget.clock()
        state = {
            "step": self.step,
            "ended": self.ended,
            "stopped": self.stopped,
            "spent": self.spent,
            "clock": self.budget.spent(),
            "losses": self.losses,
            "micro_batch": self.maker.micro_batch,
            "embedder": self._trained_state(self.embedder),
            "loss": dict(self.loss.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.maker.scaler.state_dict(),
            "average": self._trained_state(self.average.module) if self.average else None,
            "averages": int(self.average.n_averaged) if self.average else 0,
            "generators": checkpoint.generator_states(),
        }
        checkpoint.save_state(self.folder, state, about=self.about)
        self.saving = self.budget.clock() - begun

    def resume(self) -> bool:
        """Takes over what an interrupted run left, if anything."""
        state = checkpoint.load_state(self.folder, about=self.about)
        if state is None:
            return False
        self.step, self.spent, self.losses = state["step"], state["spent"], state["losses"]
        self.ended, self.stopped = state["ended"], state["stopped"]
        self.budget.count_earlier(state["clock"])
        self.maker.micro_batch = state["micro_batch"]
        self.embedder.load_state_dict(state["embedder"], strict=False)
        self.loss.load_state_dict(state["loss"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.maker.scaler.load_state_dict(state["scaler"])
        if self.average is not None and state["average"] is not None:
            self.average.module.load_state_dict(state["average"], strict=False)
            self.average.n_averaged.fill_(state["averages"])
        checkpoint.set_generator_states(state["generators"])
        log.info("going on from step %d, after %.0f s", self.step, state["clock"])
        return True

    def _trained_state(self, module: nn.Module) -> dict[str, Tensor]:
        """What training changes: open weights, and the statistics of batch norms."""
        fixed = {n for n, p in self.embedder.named_parameters() if not p.requires_grad}
        return {n: t for n, t in module.state_dict().items() if n not in fixed}


def memory_mb() -> int:
    """Of the GPU where there is one, else of this process at its largest."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated() // 2**20)
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    except ImportError:  # Windows
        return 0
    import sys

    return int(peak // (2**20 if sys.platform == "darwin" else 2**10))


def _check_pixels(images: Tensor) -> None:
    if not bool(images.isfinite().all()):
        raise DataError(
            "some training images hold values that are no finite numbers after preprocessing: "
            "check the mean and std of the preprocessing, and images in floating point"
        )
