"""Embedder → an ONNX file for other runtimes, and a JSON file that describes its input and output.

The ONNX network takes normalised images and returns unit vectors; pooling, projection and
normalisation are inside. The JSON describes the preprocessing in words, without Python.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vizsla import __version__, storage
from vizsla.errors import MissingExtraError, ModelError, UsageError
from vizsla.model.embedder import Embedder

log = logging.getLogger("vizsla.model")

FORM = "onnx/1"
OPSET = 18
INPUT, OUTPUT = "images", "vectors"
CHECK_IMAGES = 3  # random images on which torch and ONNX Runtime are compared, both in fp32
MAX_DIFFERENCE = 1e-3  # 1 - cosine between their vectors


@dataclass(frozen=True)
class Exported:
    """What `export` wrote. difference: the largest 1 - cosine to torch; None if not checked."""

    path: Path
    description: Path
    dim: int
    difference: float | None


class ExportedNetwork(nn.Module):
    """An embedder without context managers, which ONNX does not support."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, images: Tensor) -> Tensor:
        """(B, D) unit vectors from preprocessed images (B, 3, H, W)."""
        vectors = self.embedder.projection(self.embedder.pooled(images))
        return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)


def export(embedder: Embedder, out: str | Path) -> Exported:
    """Writes `out` (ONNX, any batch size) and beside it `<stem>.json`; checks the file with ONNX
    Runtime. ModelError if the network cannot be exported or gives other vectors."""
    out = Path(out)
    if out.suffix.lower() != ".onnx":
        raise UsageError(f"{out}: name a file that ends in .onnx (a .json is written beside it)")
    storage.require_local(out)
    onnx = _onnx()
    embedder = embedder.to("cpu").to(memory_format=torch.contiguous_format).float().eval()
    height, width = embedder.preprocess.size
    rng = torch.Generator().manual_seed(0)
    images = torch.randn((2, 3, height, width), generator=rng)
    data = onnx_bytes(ExportedNetwork(embedder), images, embedder.name)
    onnx.checker.check_model(onnx.load_model_from_string(data))
    difference = _difference(embedder, data, rng)
    storage.write_bytes(out, data)
    description = out.with_suffix(".json")
    storage.write_json(description, describe(embedder, out))
    return Exported(out, description, embedder.dim, difference)


def describe(embedder: Embedder, path: Path) -> dict[str, Any]:
    """What is needed to use the file without this package, as JSON values."""
    preprocess = embedder.preprocess
    height, width = preprocess.size
    return {
        "form": FORM,
        "vizsla": __version__,
        "file": path.name,
        "sha256": storage.sha256_of(path),
        "name": embedder.name,
        "model_id": embedder.model_id,
        "pooling": embedder.pooling,
        "licence": embedder.backbone.spec.licence,
        "input": {
            "name": INPUT,
            "type": "float32",
            "shape": ["batch", 3, height, width],
            "channels": "RGB",
        },
        "output": {"name": OUTPUT, "type": "float32", "shape": ["batch", embedder.dim],
                   "length": 1},
        "preprocess": {**preprocess.to_dict(), "steps": _steps(embedder)},
    }  # fmt: skip


def _steps(embedder: Embedder) -> list[str]:
    p = embedder.preprocess
    height, width = p.size
    short = p.resize or max(p.size)
    first = [
        "where one side is more than 8 times as long as the other, keep its middle, 8 times as "
        "long, from pixel floor((longer - 8 * shorter) / 2) on",
        f"resize so that the shorter side is {short} pixels and the longer one floor({short} * "
        f"longer / shorter), {p.interpolation}, antialiased as Pillow does it",
    ]
    if p.mode == "squash":
        sides = f"{p.resize} × {p.resize}" if p.resize else f"{width} × {height}"
        first = [
            f"resize to {sides} (width × height), ignoring the aspect ratio, {p.interpolation}, "
            "antialiased as Pillow does it"
        ]
    return [
        "decode, turn upright by EXIF, RGB, transparency on white",
        *first,
        f"cut out the centre, {width} × {height}, from column round((width - {width}) / 2) and row "
        f"round((height - {height}) / 2) on, halves rounded to the even number",
        "divide by 255",
        f"subtract {list(p.mean)}, divide by {list(p.std)}, channel by channel",
        "order as batch, channel, row, column",
    ]


def onnx_bytes(network: nn.Module, images: Tensor, name: str) -> bytes:
    """The bytes of the ONNX file, weights included; ModelError if the network has none."""
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet(), torch.inference_mode(False), torch.no_grad():
            program = torch.onnx.export(
                network, (images,), dynamo=True, opset_version=OPSET, input_names=[INPUT],
                output_names=[OUTPUT], dynamic_shapes=({0: batch},), verbose=False,
                optimize=False,  # ONNX Runtime does it when it loads the file
            )  # fmt: skip
            assert program is not None
            data: bytes = program.model_proto.SerializeToString()
            return data
    except Exception as error:  # the exporter raises all kinds of errors
        first = next(iter(str(error).strip().splitlines()), "")
        raise ModelError(
            f"{name} cannot be exported to ONNX ({type(error).__name__}: {first[:300]})"
        ) from error


def _difference(embedder: Embedder, data: bytes, rng: torch.Generator) -> float | None:
    """The largest 1 - cosine between torch and ONNX Runtime, on another batch size than exported;
    None if ONNX Runtime is not installed."""
    try:
        import onnxruntime
    except ImportError:
        log.warning("onnxruntime is not installed, so the file was not checked against torch")
        return None
    height, width = embedder.preprocess.size
    images = torch.randn((CHECK_IMAGES, 3, height, width), generator=rng)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT], {INPUT: images.numpy()})
    with torch.inference_mode():
        expected = embedder(images).numpy()
    cosines = np.sum(found.astype(np.float64) * expected, axis=1)
    difference = float(np.max(np.abs(1 - cosines)))
    if not difference < MAX_DIFFERENCE:
        raise ModelError(
            f"the ONNX file of {embedder.name} gives other vectors than torch (1 - cosine is "
            f"{difference:.2g}, expected below {MAX_DIFFERENCE}): it was not written"
        )
    return difference


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's warnings about its own work."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401  # used by torch.onnx
    except ImportError as error:
        raise MissingExtraError("exporting to ONNX", "onnx") from error
    return onnx
