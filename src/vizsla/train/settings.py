"""What a training is asked to do, with every default; and what it computes with."""

from dataclasses import dataclass

from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.compute import Compute, has_fast_bf16
from vizsla.embed.inference import MAX_PIXELS
from vizsla.errors import UsageError
from vizsla.train.loop import SAVE_SECONDS

FINETUNES = ("none", "head", "last", "full", "lora")


@dataclass(frozen=True)
class TrainConfig:
    """What `vizsla train` was asked; see docs/training.md. None and "auto" are resolved in `train`.

    budget: seconds for everything from the first image read to the saved embedder; without it
    `epochs` count. train_size: pixels in training, None for a little less than the embedder's own.
    """

    finetune: str = "last"
    blocks: int | None = None  # the last ones that finetune="last" trains; None: two in three
    loss: str = "cross-entropy+0.5*supcon"
    miner: str | None = None
    memory: int = 0  # vectors of past batches that pair losses see; 0 turns it off
    batches: str = "auto"  # classes for pair losses, else plain
    per_class: int = 4
    batch_size: int = 32
    micro_batch: int | None = None
    augment: str = "light"
    train_size: int | None = None
    dim: int | None = None  # of the projection, None for the backbone's
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    layer_decay: float = 0.85
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 5.0  # 0 turns it off
    ema_decay: float = 0.99  # 0 turns it off
    batch_norm: str = "frozen"
    checkpointing: bool = False
    epochs: float = 10.0
    short_epochs: float = 0.0  # of a training that is tried before the long one; 0: none
    budget: float | None = None
    precision: str = "auto"
    device: str = "auto"
    workers: int | None = None
    max_pixels: int = MAX_PIXELS
    tensorboard: bool = False
    save_seconds: float = SAVE_SECONDS  # between checkpoints
    real_weights: bool = True  # False for random ones, of which nothing is expected
    seed: int = 0

    def __post_init__(self) -> None:
        if self.finetune not in FINETUNES:
            raise UsageError(f"--finetune {self.finetune}: choose one of {', '.join(FINETUNES)}")
        if self.batch_norm not in ("frozen", "trained"):
            raise UsageError(f"--batch-norm {self.batch_norm}: choose frozen or trained")
        if (
            self.batch_size < 2
            or self.epochs <= 0
            or self.short_epochs < 0
            or (self.budget or 1) <= 0
        ):
            raise UsageError(
                f"batch size {self.batch_size}, {self.epochs} epochs, short_epochs "
                f"{self.short_epochs}, budget {self.budget}: choose a batch of 2 images or more, "
                "epochs and budget above 0, short_epochs of 0 or more"
            )
        if self.memory and self.memory < self.batch_size:
            raise UsageError(
                f"--memory {self.memory} is less than a batch of {self.batch_size}: choose more"
            )


def training_compute(config: TrainConfig) -> Compute:
    """Every `auto` resolved: bf16 where the device multiplies it fast, else fp32."""
    compute = resolve_compute(
        device=config.device, precision="fp32", batch_size=32, workers=config.workers
    )
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(compute.device) else "fp32"
    return resolve_compute(
        device=compute.device, precision=precision, batch_size=32, workers=compute.workers
    )
