"""Batches → weights: the loop over steps, for some epochs or some time, which can be resumed.

Knows nothing of validation: it ends with the last weights and their moving average.
"""

import json
import logging
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vizsla import storage
from vizsla.data.training_batches import BatchPlan, training_batches
from vizsla.errors import DataError, MissingExtraError
from vizsla.model.embedder import Embedder
from vizsla.train import checkpoint
from vizsla.train.batch_gradient import GradientMaker
from vizsla.train.job import TrainingJob
from vizsla.train.losses import TrainingLoss
from vizsla.train.optimizer import freeze_norms, moving_average, rate_at, set_rates

log = logging.getLogger("vizsla.train")

SAVE_SHARE = 0.05  # of a budget, between two checkpoints
SAVE_COSTS = 50.0  # or this many times what writing one took
UNLIMITED = 2**31  # steps
SAFE_STEPS = 20  # between copies of weights that gave a finite loss
LOGGED_STEPS = 10  # between lines in the log
LOG = "log.jsonl"
SHORT_FOLDER = "short"  # of a short training, in the folder of the long one


# ── the log ──────────────────────────────────────────────────────────────────────────────────────


class TrainLog:
    """log.jsonl, one record a line, and TensorBoard's files if requested.

    from_step: the step that an interrupted training continues from; later records are dropped.
    """

    def __init__(self, folder: Path, *, from_step: int = 0, tensorboard: bool = False) -> None:
        self.path = folder / LOG
        kept = [r for r in read_log(folder) if r.get("step", 0) <= from_step] if from_step else []
        text = "".join(json.dumps(record) + "\n" for record in kept)
        storage.write_text(self.path, text)
        self.board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MissingExtraError("--tensorboard", "tensorboard") from error
            self.board = SummaryWriter(str(folder / "tensorboard"))

    def add(self, step: int, **values: Any) -> None:
        """Writes one record."""
        record = {"step": step, **values}
        for key, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                record[key] = str(value)  # JSON has no NaN
        storage.append_line(self.path, json.dumps(record))
        if self.board:
            for key, value in record.items():
                if isinstance(value, int | float) and key != "step":
                    self.board.add_scalar(key, value, step)

    def close(self) -> None:
        """Closes TensorBoard's files."""
        if self.board:
            self.board.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All records of log.jsonl; without a line that a killed process left half-written."""
    path = folder / LOG
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


# ── the loop ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(eq=False)
class LoopResult:
    """losses: of every step. stopped: why it ended early, None if it did not."""

    steps: int
    losses: list[float]
    stopped: str | None = None
    images_per_second: float = 0.0

    @property
    def final_loss(self) -> float:
        """The mean over the last tenth of the steps; nan without any."""
        tail = self.losses[-max(1, len(self.losses) // 10) :]
        return float(np.mean(tail)) if tail else math.nan


class Loop:
    """The state of a training between two steps. `run` continues from whatever step it is at.

    steps: how many at most. seconds: when to end at the latest, with the time before an
    interruption; None for never. It may be set until `run`.
    """

    def __init__(
        self,
        embedder: Embedder,
        loss: TrainingLoss,
        optimiser: torch.optim.Optimizer,
        maker: GradientMaker,
        plan: BatchPlan,
        job: TrainingJob,
        *,
        steps: int,
        folder: Path,
        teacher: np.ndarray | None = None,
    ) -> None:
        """folder: of the checkpoint. teacher: (N, D'), a teacher's vectors of all images."""
        self.embedder, self.loss, self.optimiser, self.maker = embedder, loss, optimiser, maker
        self.plan, self.config, self.job, self.folder = plan, job.config, job, folder
        self.steps = steps
        self.teacher = None if teacher is None else torch.from_numpy(teacher)
        self.seconds: float | None = None
        self.step, self.spent = 0, 0.0
        self.losses: list[float] = []
        self.shares: list[float] = []  # that were done before each step
        self.repeated: list[float] | None = None
        self.ended = False
        self.stopped: str | None = None  # why it ended early
        self.saving = 0.0  # seconds that the last checkpoint took
        decay = job.config.ema_decay
        self.average = moving_average(embedder, decay) if decay else None

    def repeat(self, shares: list[float] | None) -> None:
        """Takes the steps of another training, with its learning rates, instead of the clock's.

        shares: that were done before each of its steps; None to go by the clock.
        """
        self.repeated = shares
        if shares is not None:
            self.steps = max(1, len(shares))

    # ── running ──────────────────────────────────────────────────────────────────────────────────

    def run(
        self,
        picture: Callable[[int], Image.Image],
        augment: Callable[[Image.Image, np.random.Generator], Tensor],
        log_file: TrainLog | None,
        progress: Callable[[int, int], None],
    ) -> LoopResult:
        """Trains to the end of the steps or of the time. picture: position → training image."""
        if self.ended:  # before an interruption
            return self._result()
        self.embedder.train()
        if self.config.batch_norm == "frozen":
            freeze_norms(self.embedder)
        device, processes = next(self.embedder.parameters()).device, self.job.processes
        each = self.plan.batch_size // processes.size
        batches = training_batches(
            picture,
            augment,
            self.plan,
            start=self.step,
            workers=self.job.compute.workers,
            part=slice(processes.rank * each, (processes.rank + 1) * each),
        )
        clock = self.job.budget.clock
        started, saved = clock() - self.spent, clock()
        safe_weights = self._trainable_weights()
        for images, positions in batches:
            self.spent = clock() - started
            done = processes.from_first(self._done())
            if done >= 1:
                break
            _check_pixels(images)
            images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
            labels = torch.as_tensor(self.plan.labels[positions], device=device)
            teacher = None if self.teacher is None else self.teacher[positions].to(device)
            value = self.maker.gradients(images, labels, teacher)
            if not math.isfinite(value):
                self._stop(value, safe_weights)
                break
            if self.step % SAFE_STEPS == 0:
                safe_weights = self._trainable_weights()
            rate = rate_at(done, self.config.warmup)
            norm = self._update(rate)
            self.losses.append(value)
            self.shares.append(done)
            self.step += 1
            if self.step % LOGGED_STEPS == 0 or self.step == 1:
                self._report(log_file, progress, clock() - started, loss=value, rate=rate,
                             gradient_norm=norm)  # fmt: skip
            if processes.rank == 0 and clock() - saved > self._save_seconds():
                self.save()
                saved = clock()
        batches.close()
        self.ended, self.spent = True, clock() - started
        return self._result()

    def _result(self) -> LoopResult:
        speed = self.step * self.plan.batch_size / max(1e-9, self.spent)
        return LoopResult(self.step, self.losses, self.stopped, speed)

    @property
    def by_clock(self) -> bool:
        """Whether its progress counts seconds, not steps."""
        return self.steps >= UNLIMITED

    def _done(self) -> float:
        """The share that is done, 0…1: of the steps or of the time, whichever is larger."""
        if self.repeated is not None:
            return self.repeated[self.step] if self.step < len(self.repeated) else 1.0
        by_steps = self.step / max(1, self.steps)
        if self.seconds is None:
            return by_steps
        if self.seconds <= 0:
            return 1.0
        return max(by_steps, self.spent / self.seconds)

    def _save_seconds(self) -> float:
        """Between checkpoints; less with a short budget, as long as writing takes little of it.

        An interrupted run loses what came after its last checkpoint.
        """
        budget = self.job.budget.seconds
        if budget is None:
            return self.config.save_seconds
        return min(self.config.save_seconds, max(SAVE_SHARE * budget, SAVE_COSTS * self.saving))

    def _update(self, rate: float) -> float:
        """One step of the optimiser; returns the gradient's norm before clipping.

        rate: the share of the full learning rates.
        """
        set_rates(self.optimiser, rate)
        scaler = self.maker.scaler
        scaler.unscale_(self.optimiser)
        weights = [p for group in self.optimiser.param_groups for p in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(weights, self.config.clip or math.inf))
        if math.isfinite(norm) or scaler.is_enabled():  # the scaler skips such a step by itself
            scaler.step(self.optimiser)
            if self.average is not None:
                self.average.update_parameters(self.embedder)
        scaler.update()
        return norm

    def _report(
        self,
        log_file: TrainLog | None,
        progress: Callable[[int, int], None],
        seconds: float,
        **values: float,
    ) -> None:
        """seconds: that the loop has taken so far. values: of the last step."""
        speed = self.step * self.plan.batch_size / max(1e-9, seconds)
        if log_file:
            log_file.add(
                self.step,
                **values,
                learning_rates=[group["lr"] for group in self.optimiser.param_groups],
                images_per_second=round(speed, 1),
                memory_mb=memory_mb(),
                micro_batch=self.maker.micro_batch,
                seconds=round(seconds, 1),
            )
        if not self.by_clock:
            progress(self.step, self.steps)
        elif self.seconds:
            progress(min(round(seconds), int(self.seconds)), int(self.seconds))

    # ── after a loss that is not finite ──────────────────────────────────────────────────────────

    def _trainable_weights(self) -> dict[str, Tensor]:
        return {
            n: p.detach().clone() for n, p in self.embedder.named_parameters() if p.requires_grad
        }

    def _stop(self, value: float, safe_weights: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.embedder.named_parameters():
                if name in safe_weights:
                    p.copy_(safe_weights[name])
                p.grad = None
        self.stopped = (
            f"the loss became {value} at step {self.step}: training stopped there and continues "
            "with the last weights that gave a finite loss. Lower --learning-rate, or use "
            "--precision fp32"
        )

    def finite_average(self) -> Embedder | None:
        """The moving average of the weights; None without one, or if a weight is not finite."""
        if self.average is None or self.step == 0:
            return None
        state = self.average.module.state_dict()
        finite = all(bool(t.isfinite().all()) for t in state.values() if t.is_floating_point())
        return cast(Embedder, self.average.module) if finite else None

    # ── resuming ─────────────────────────────────────────────────────────────────────────────────

    def save(self) -> None:
        """Writes a checkpoint: all that the next step depends on."""
        started = self.job.budget.clock()
        state = {
            "step": self.step,
            "ended": self.ended,
            "stopped": self.stopped,
            "spent": self.spent,
            "clock": self.job.budget.spent(),
            "losses": self.losses,
            "shares": self.shares,
            "micro_batch": self.maker.micro_batch,
            "embedder": self._trained_state(self.embedder),
            "loss": dict(self.loss.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.maker.scaler.state_dict(),
            "average": self._trained_state(self.average.module) if self.average else None,
            "averages": int(self.average.n_averaged) if self.average else 0,
            "generators": checkpoint.generator_states(),
        }
        checkpoint.save_state(self.folder, state, identity=self.job.identity)
        self.saving = self.job.budget.clock() - started

    def resume(self) -> bool:
        """Loads the checkpoint of an interrupted run. False if there is none."""
        state = checkpoint.load_state(self.folder, identity=self.job.identity)
        if state is None:
            return False
        self.step, self.spent, self.losses = state["step"], state["spent"], state["losses"]
        self.shares = state["shares"]
        self.ended, self.stopped = state["ended"], state["stopped"]
        self.job.budget.count_earlier(state["clock"])
        self.maker.micro_batch = state["micro_batch"]
        self.embedder.load_state_dict(state["embedder"], strict=False)
        self.loss.load_state_dict(state["loss"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.maker.scaler.load_state_dict(state["scaler"])
        if self.average is not None and state["average"] is not None:
            self.average.module.load_state_dict(state["average"], strict=False)
            self.average.n_averaged.fill_(state["averages"])
        checkpoint.set_generator_states(state["generators"])
        log.info("continuing from step %d, after %.0f s", self.step, state["clock"])
        return True

    def _trained_state(self, module: nn.Module) -> dict[str, Tensor]:
        """What training changes: trainable weights, and the statistics of batch norms."""
        frozen = {n for n, p in self.embedder.named_parameters() if not p.requires_grad}
        return {n: t for n, t in module.state_dict().items() if n not in frozen}


def memory_mb() -> int:
    """The peak use of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated() // 2**20)
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    except ImportError:  # Windows
        return 0
    return int(peak // (2**20 if sys.platform == "darwin" else 2**10))


def _check_pixels(images: Tensor) -> None:
    if not bool(images.isfinite().all()):
        raise DataError(
            "some training images have values that are not finite after preprocessing: check the "
            "mean and std of the preprocessing, and images in floating point"
        )
