"""An OpenVINO network → the same network in int8, by ranges of activations that come with Vizsla.

The ranges were measured once, on training photos of two data sets (benchmarks/int8_ranges.py). So
quantisation does not depend on a user's images, only on the weights and on Vizsla, and embeddings
that are continued, also on another machine, are computed with the same network.
"""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from vizsla.embed.compute import INT8_RANGES, runtime_package
from vizsla.model.embedder import Embedder
from vizsla.model.weights import digest_of, without_counters

CONVOLUTIONS = ("Convolution", "GroupConvolution")
ACTIVATION_LEVELS, WEIGHT_LEVELS = 256, 255  # the latter without -128, so symmetric
INSTEAD = "choose --precision auto, which takes bf16 where the CPU has it"
Range = tuple[float, float]  # the lowest and the highest value


@cache
def known_networks() -> dict[str, dict[str, Any]]:
    """By name: the digest of the weights, the image size, and the ranges of the activations."""
    networks: dict[str, dict[str, Any]] = json.loads(INT8_RANGES.read_text())["networks"]
    return networks


def why_not_int8(embedder: Embedder) -> str | None:
    """Why this embedder is not computed in int8, as a sentence; None if it can be."""
    known = _known(embedder)
    if known is None:
        name, names = embedder.name, known_networks()
        return (
            f"int8 is offered for {', '.join(names)} with the weights that come with Vizsla, and "
            f"{f'this {name} has others' if name in names else f'not for {name}'}: {INSTEAD}"
        )
    size = known["image_size"]
    if embedder.preprocess.size != (size, size):
        return (
            f"int8 is offered for {embedder.name} at {size} pixels, not at "
            f"{embedder.preprocess.size[0]}: leave out --image-size, or {INSTEAD}"
        )
    if embedder.views is not None:
        return f"int8 is offered without views: leave out --views, or {INSTEAD}"
    return None


def quantise_known(model: Any, embedder: Embedder) -> None:
    """`quantise` by the ranges of this embedder's network; ValueError if it has none."""
    known = _known(embedder)
    if known is None:
        raise ValueError(why_not_int8(embedder))
    quantise(model, known["ranges"])


def quantise(model: Any, ranges: Sequence[Range]) -> None:
    """Makes every convolution of an OpenVINO model one of 8-bit activations and weights.

    ranges: of the input of each convolution, in the order in which they are computed. ValueError if
    the model has another number of them. Activations are quantised by tensor, weights by output
    channel. All else, pooling, projection and normalisation, stays in fp32.
    """
    convolutions = convolutions_of(model)
    if len(convolutions) != len(ranges):
        raise ValueError(
            f"the network has {len(convolutions)} convolutions, but there are ranges for "
            f"{len(ranges)}"
        )
    for convolution, (low, high) in zip(convolutions, ranges, strict=True):
        limit = max(-low, high)
        lowest = -limit * 128 / 127 if low < 0 else 0.0  # 0, which pads, is a level
        activation = activation_input(convolution)
        _replace(activation, np.float32(lowest), np.float32(limit), ACTIVATION_LEVELS)
        weights = convolution.input(1)
        largest = _largest_of_channels(weights, convolution.get_type_name())
        _replace(weights, -largest, largest, WEIGHT_LEVELS)
    model.validate_nodes_and_infer_types()


def convolutions_of(model: Any) -> list[Any]:
    """The convolutions of an OpenVINO model, in the order in which they are computed."""
    return [op for op in model.get_ordered_ops() if op.get_type_name() in CONVOLUTIONS]


def activation_input(convolution: Any) -> Any:
    """Where a convolution's activations come in: before zeros are padded, if they are."""
    source = convolution.input(0).get_source_output().get_node()
    return source.input(0) if source.get_type_name() == "Pad" else convolution.input(0)


def _replace(place: Any, low: Any, high: Any, levels: int) -> None:
    """Rounds what comes in here to so many levels from low to high."""
    rounded = runtime_package("openvino").opset13.fake_quantize(
        place.get_source_output(), low, high, low, high, levels
    )
    place.replace_source_output(rounded.output(0))


def _largest_of_channels(weights: Any, kind: str) -> np.ndarray:
    """The largest magnitude of each output channel's weights, in a shape that fits theirs."""
    constant = weights.get_source_output().get_node()
    if constant.get_type_name() != "Constant":
        raise ValueError(f"weights are computed by {constant.get_type_name()}, not constant")
    first = 2 if kind == "GroupConvolution" else 1  # axis that is not an output channel
    axes = tuple(range(first, constant.data.ndim))
    largest = np.abs(constant.data).max(axis=axes, keepdims=True)
    return np.maximum(largest, 1e-6)  # a channel of zeros has a range too


def _known(embedder: Embedder) -> dict[str, Any] | None:
    """What is known of the network with exactly these weights."""
    digest = digest_of(without_counters(embedder.backbone.state_dict()))
    return next((n for n in known_networks().values() if n["weights"] == digest), None)
