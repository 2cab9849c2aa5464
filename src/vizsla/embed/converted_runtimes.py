"""Embedder → the same network in OpenVINO or ONNX Runtime, on a CPU.

Both get the bytes of pixels, and each thread of `in_parts` calls them with one core.
"""

import importlib.util
import threading
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vizsla.embed.compute import PACKAGES, Compute, runtime_package
from vizsla.embed.quantisation import quantise_known
from vizsla.embed.torch_runtime import Vectors
from vizsla.model.embedder import Embedder
from vizsla.model.export import INPUT, ExportedNetwork, onnx_bytes

COMPUTES_IN = {
    "torch": ("fp32", "bf16", "fp16"),
    "compiled": ("fp32", "bf16", "fp16"),
    "openvino": ("fp32", "bf16", "int8"),  # for fp16 x86 has no instructions
    "onnx": ("fp32",),
}
OPENVINO_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}


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
    """The embedder in OpenVINO. ValueError if it would compute in another precision."""
    ov, model = runtime_package("openvino"), openvino_model(embedder)
    if compute.precision == "int8":
        quantise_known(model, embedder)
    core, threads = ov.Core(), torch.get_num_threads()
    precision = OPENVINO_PRECISIONS[compute.precision]

    def compiled(alone: bool) -> Any:
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads if alone else 1,
            "ENABLE_CPU_PINNING": False,  # else two processes compute on the same cores
        }
        found = core.compile_model(model, "CPU", options)
        used = found.get_property("INFERENCE_PRECISION_HINT").to_string()
        if used != precision:
            raise ValueError(f"it computes in {used} here, not in {precision}")
        return found

    model_for = _made_when_needed(compiled)
    own = threading.local()

    def vectors(pixels: Tensor) -> Tensor:
        if not hasattr(own, "request"):  # requests are not shared by threads
            own.request = model_for(torch.get_num_threads() == 1).create_infer_request()
        found = own.request.infer({0: pixels.numpy()}, share_inputs=True)
        return torch.from_numpy(found[0].copy())

    return vectors


def openvino_model(embedder: Embedder) -> Any:
    """The network as an OpenVINO model, in fp32: pixels (B, H, W, 3) uint8 → unit vectors."""
    network, example = _PixelNetwork(embedder).eval(), _example(embedder)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's and OpenVINO's, about tracing
        return runtime_package("openvino").convert_model(
            network, example_input=example, input=[-1, *example.shape[1:]]
        )


def onnx(embedder: Embedder, compute: Compute) -> Vectors:
    """The embedder in ONNX Runtime, in fp32."""
    onnxruntime = runtime_package("onnx")
    data = onnx_bytes(_PixelNetwork(embedder).eval(), _example(embedder), embedder.name)
    threads = torch.get_num_threads()

    def session(alone: bool) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1 if alone else threads
        options.log_severity_level = 3  # errors
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    session_for = _made_when_needed(session)

    def vectors(pixels: Tensor) -> Tensor:
        (found,) = session_for(torch.get_num_threads() == 1).run(None, {INPUT: pixels.numpy()})
        return torch.from_numpy(found)

    return vectors


def _made_when_needed(make: Callable[[bool], Any]) -> Callable[[bool], Any]:
    """`make`, called once for each value: whether the caller is one of several threads, or has all
    cores. Most jobs need one of the two."""
    once, lock = cache(make), threading.Lock()

    def made(alone: bool) -> Any:
        with lock:
            return once(alone)

    return made


def installed(runtime: str) -> bool:
    """Whether this machine has the packages of the runtime."""
    return all(importlib.util.find_spec(name) is not None for name in PACKAGES.get(runtime, ()))


def _example(embedder: Embedder) -> Tensor:
    """Pixels of 2 images: torch takes a batch of 1 for a constant."""
    rng = torch.Generator().manual_seed(0)
    size = (2, *embedder.preprocess.size, 3)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=rng)
