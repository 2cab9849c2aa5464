"""What the steps of one training share: settings, device, folder, time, processes, warnings."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vizsla import storage
from vizsla.data.imageset import ImageSet
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.compute import Compute, has_fast_bf16
from vizsla.model.embedder import Embedder
from vizsla.options import TrainConfig
from vizsla.train.batch_gradient import Processes

log = logging.getLogger("vizsla.train")

# Options that decide how fast a training runs and what it logs, never what it computes.
WITHOUT_EFFECT = ("workers", "micro_batch", "tensorboard", "save_seconds")
Progress = Callable[[str, int, int], None]  # (stage, done, total)
CLOCK, FORM = "clock.json", "clock/1"
MIN_BUDGET = 120.0  # seconds, of which the start of another runtime than torch is a small part
STEPS = "steps of training"  # the part of the time that should be the largest
EARLIER, OTHER = "before an interruption", "other"


class Budget:
    """The seconds that a training may take, None for any number, and those it has spent.

    clock: gives seconds from any origin. The time starts when the budget is made. parts: the
    seconds that `timed` has counted, by what they went into.
    """

    def __init__(
        self, seconds: float | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds, self.clock = seconds, clock
        self.started = clock()
        self.before = 0.0  # spent by the runs that were interrupted
        self.parts: dict[str, float] = {}

    def spent(self) -> float:
        """Seconds, with those of interrupted runs."""
        return self.clock() - self.started + self.before

    def left(self) -> float:
        """Seconds; infinite without a limit, negative after an overrun."""
        return math.inf if self.seconds is None else self.seconds - self.spent()

    def count_earlier(self, seconds: float) -> None:
        """Counts what interrupted runs had spent. Each figure includes the smaller ones."""
        self.before = max(self.before, seconds)

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Counts the seconds of its block as spent on this part."""
        started = self.clock()
        try:
            yield
        finally:
            self.parts[part] = self.parts.get(part, 0.0) + self.clock() - started

    def spent_by_part(self) -> dict[str, float]:
        """All seconds spent, by what they went into, in the order of the steps."""
        found = {EARLIER: self.before, **self.parts}
        found[OTHER] = self.spent() - sum(found.values())
        return {part: seconds for part, seconds in found.items() if round(seconds, 1) > 0}


class Decisions:
    """What the clock decides in a training, by name, so that its steps can be repeated.

    given: those of the training to repeat; None to decide anew. made: all that were taken.
    """

    def __init__(self, given: dict[str, Any] | None = None) -> None:
        self.given = given
        self.made: dict[str, Any] = {}

    def decide(self, name: str, make: Callable[[], Any]) -> Any:
        """The decision that was given, or that of `make`."""
        given = self.given or {}
        self.made[name] = given[name] if name in given else make()
        return self.made[name]

    def shares(self, name: str) -> list[float] | None:
        """Of a loop to repeat: the share done before each step; None to go by the clock."""
        return None if self.given is None else self.given.get(name)

    def save(self, folder: Path) -> None:
        """Writes CLOCK into the folder of a training."""
        storage.write_sealed_json(folder / CLOCK, {"form": FORM, "decisions": self.made})

    @staticmethod
    def read(folder: Path) -> dict[str, Any] | None:
        """Those that a training has recorded in its folder; None if it has not."""
        if not (folder / CLOCK).exists():
            return None
        decisions: dict[str, Any] = storage.read_sealed_json(folder / CLOCK)["decisions"]
        return decisions


@dataclass(eq=False)
class TrainingJob:
    """One training. identity: what its checkpoints belong to. warnings: those given so far.

    inference: how candidates are embedded, which need no gradients.
    """

    config: TrainConfig
    compute: Compute
    inference: Compute
    out: Path
    identity: str
    budget: Budget
    processes: Processes = field(default_factory=Processes)
    progress: Progress = lambda stage, done, total: None
    warnings: list[str] = field(default_factory=list)
    decisions: Decisions = field(default_factory=Decisions)

    @property
    def is_first_process(self) -> bool:
        """Whether this process writes the files."""
        return self.processes.rank == 0

    def warn(self, *sentences: str) -> None:
        """Logs each sentence and keeps it for the result."""
        for sentence in sentences:
            log.warning("%s", sentence)
            self.warnings.append(sentence)


def identity_of(
    images: ImageSet, embedder: Embedder, config: TrainConfig, teacher: str = ""
) -> str:
    """A hash of images, model and settings: a checkpoint belongs to one training only.

    teacher: the model_id of the teacher, if there is one.
    """
    options = dataclasses.asdict(config)
    settings = {key: value for key, value in options.items() if key not in WITHOUT_EFFECT}
    models = [embedder.model_id, teacher]
    content = [images.ids, images.labels, models, settings, torch.__version__]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def training_compute(config: TrainConfig) -> Compute:
    """Every `auto` resolved: bf16 if the device multiplies it fast, else fp32."""
    compute = resolve_compute(
        device=config.device, precision="fp32", batch_size=32, workers=config.workers
    )
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(compute.device) else "fp32"
    return resolve_compute(
        device=compute.device, precision=precision, batch_size=32, workers=compute.workers
    )


def to_device(embedder: Embedder, compute: Compute) -> Embedder:
    """The embedder itself, moved to the device, its weights in the channels-last layout."""
    return embedder.to(device=compute.device).to(memory_format=torch.channels_last)
