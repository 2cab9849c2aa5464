"""Embedder → the same network in OpenVINO or ONNX Runtime, on a CPU.

Both get the bytes of pixels, and each thread of `in_parts` calls them with one core.
"""

import importlib.util
import sys
import threading
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from vizsla.embed.compute import Compute
from vizsla.embed.torch_runtime import Vectors
from vizsla.model.embedder import Embedder
from vizsla.model.export import INPUT, ExportedNetwork, onnx_bytes

PACKAGES = {"openvino": ("openvino",), "onnx": ("onnx", "onnxruntime", "onnxscript")}
OPENVINO_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class _PixelNetwork(nn.Module):
    """Pixels (B, H, W, 3) uint8 → (B, D) unit vectors."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.network = ExportedNetwork(embedder)
        preprocess = embedder.preprocess
        for name, values in (("pixel_mean", preprocess.mean), ("pixel_std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.permute(0, 3, 1, 2).float().div(255)
        return self.network((images - self.pixel_mean) / self.pixel_std)


def openvino(embedder: Embedder, compute: Compute) -> Vectors:
    """The embedder in OpenVINO."""
    ov = openvino_package()
    network, example = _PixelNetwork(embedder).eval(), _example(embedder)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's and OpenVINO's, about tracing
        model = ov.convert_model(network, example_input=example, input=[-1, *example.shape[1:]])
    core = ov.Core()

    threads = torch.get_num_threads()
    options = {
        "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[compute.precision],
        "INFERENCE_NUM_THREADS": threads,
    }
    models = {  # by whether the caller is one of several threads, or has all cores
        alone: core.compile_model(model, "CPU", {**options, "NUM_STREAMS": threads if alone else 1})
        for alone in (True, False)
    }
    own = threading.local()

    def vectors(pixels: Tensor) -> Tensor:
        if not hasattr(own, "request"):  # requests are not shared by threads
            own.request = models[torch.get_num_threads() == 1].create_infer_request()
        found = own.request.infer({0: pixels.numpy()}, share_inputs=True)
        return torch.from_numpy(found[0].copy())

    return vectors


def openvino_package() -> Any:
    """The module `openvino`, without its telemetry.

    Importing OpenVINO and each conversion report to its makers, unless the package
    `openvino_telemetry` cannot be imported: then OpenVINO uses a class that does nothing.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


def onnx(embedder: Embedder, compute: Compute) -> Vectors:
    """The embedder in ONNX Runtime, in fp32."""
    import onnxruntime

    data = onnx_bytes(_PixelNetwork(embedder).eval(), _example(embedder), embedder.name)

    def session(threads: int) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    sessions = {True: session(1), False: session(torch.get_num_threads())}

    def vectors(pixels: Tensor) -> Tensor:
        (found,) = sessions[torch.get_num_threads() == 1].run(None, {INPUT: pixels.numpy()})
        return torch.from_numpy(found)

    return vectors


def installed(runtime: str) -> bool:
    """Whether this machine has the packages of the runtime."""
    return all(importlib.util.find_spec(name) is not None for name in PACKAGES.get(runtime, ()))


def _example(embedder: Embedder) -> Tensor:
    """Pixels of 2 images: torch takes a batch of 1 for a constant."""
    rng = torch.Generator().manual_seed(0)
    size = (2, *embedder.preprocess.size, 3)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=rng)
