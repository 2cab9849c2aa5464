"""What a training computes with."""

from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.compute import Compute, has_fast_bf16
from vizsla.options import TrainConfig


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
