"""What Vizsla knows about timm's networks: building, preprocessing, tokens, sizes, weights."""

import importlib
import logging
import math
import re
import warnings
from typing import Any

from torch import Tensor

from vizsla.data.preprocess import Preprocess
from vizsla.errors import ModelError
from vizsla.model.catalogue import NO_CLS, WITH_CLS, WITH_STAGES, BackboneSpec
from vizsla.model.weights import State

log = logging.getLogger("vizsla.model")

LAST_STAGES = 2  # whose maps the pooling of this name takes
MAX_PREFIX_TOKENS = 8  # CLS and registers, before the tokens of a grid


def check_patch(name: str, size: int, patch: int) -> None:
    """ModelError with the nearest two sizes, unless the patch divides this one."""
    if size % patch:
        below, above = size // patch * patch, math.ceil(size / patch) * patch
        raise ModelError(
            f"{name} divides images into patches of {patch} × {patch} pixels, and {patch} does not "
            f"divide {size}: the nearest image sizes are {max(below, patch)} and {above}"
        )


def timm_network(spec: BackboneSpec) -> Any:
    """Without a classifier, with random weights; ModelError if this timm has no such model."""
    with warnings.catch_warnings():  # tqdm, which it imports, advises to install ipywidgets
        warnings.filterwarnings("ignore", "IProgress not found")
        import timm

    if not timm.is_model(spec.architecture):
        raise ModelError(f"this timm has no model {spec.architecture}")
    options: dict[str, Any] = {}
    if spec.architecture.startswith("vit") and "_dinov3" in spec.architecture:
        options["global_pool"] = "token"  # as its authors use it; timm averages
    if re.match(r"resnet\d", spec.architecture):
        options["zero_init_last"] = False  # otherwise untrained blocks return their input
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mapping deprecated model name", UserWarning)
        return timm.create_model(spec.library_name, pretrained=False, num_classes=0, **options)


def timm_preprocess(cfg: dict[str, Any], spec: BackboneSpec) -> Preprocess:
    """At the training size, not at the larger size that timm gives for tests."""
    modes = {"center": "crop", "squash": "squash"}
    if cfg["crop_mode"] not in modes:
        raise ModelError(
            f"{spec.name} has a preprocessing that is not supported ({cfg['crop_mode']})"
        )
    if spec.resize and spec.image_size:
        size, resize = spec.image_size, spec.resize
    else:
        size = cfg["input_size"][-1]
        resize = int(size / (cfg["crop_pct"] or 1))
    return Preprocess(
        (size, size),
        None if resize == size else resize,
        modes[cfg["crop_mode"]],
        cfg["interpolation"],
        tuple(cfg["mean"]),
        tuple(cfg["std"]),
    )


def timm_features(network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """A timm network's map (B, C, H, W) or patch tokens (B, T, C), and its prefix tokens."""
    found = network.forward_features(images)
    if found.ndim == 4:
        if getattr(network, "output_fmt", "NCHW") == "NHWC":
            found = found.permute(0, 3, 1, 2)  # (B, C, H, W)
        return found, found[:, :0]
    prefix = getattr(network, "num_prefix_tokens", 0)
    return found[:, prefix:], found[:, :prefix]


def timm_stages(network: Any, images: Tensor) -> list[Tensor]:
    """A convolutional timm network's map (B, C, H, W) and those of its LAST_STAGES last stages."""
    final, maps = network.forward_intermediates(images, indices=LAST_STAGES, output_fmt="NCHW")
    return [final, *maps]


def stage_channels(network: Any) -> list[int]:
    """Channels of the LAST_STAGES last stages of a convolutional timm network."""
    return [info["num_chs"] for info in list(network.feature_info)[-LAST_STAGES:]]


def timm_poolings(network: Any) -> tuple[str, ...]:
    """The poolings of a timm network: with CLS if it has such a token."""
    prefix: int = getattr(network, "num_prefix_tokens", 0)
    return WITH_CLS if prefix and getattr(network, "cls_token", None) is not None else NO_CLS


def timm_map_poolings(network: Any, images: Tensor) -> tuple[str, ...]:
    """The poolings of a timm network that gives a map: with its stages if it can give their maps
    too."""
    try:
        found = [tuple(one.shape[:2]) for one in timm_stages(network, images)[1:]]
        expected = [(len(images), channels) for channels in stage_channels(network)]
    except (AttributeError, TypeError, ValueError, AssertionError, KeyError):
        return NO_CLS
    return WITH_STAGES if found == expected else NO_CLS


def check_timm_size(name: str, network: Any, size: int) -> None:
    """ModelError, with `name`, unless a timm network can take square images of `size`."""
    default = network.pretrained_cfg["input_size"][-1]
    if size != default and hasattr(network, "set_input_size"):
        patch: Any = getattr(getattr(network, "patch_embed", None), "patch_size", None) or 1
        check_patch(name, size, max(patch) if isinstance(patch, tuple) else int(patch))
    elif size != default and network.pretrained_cfg.get("fixed_input_size"):
        raise ModelError(f"{name} takes images of {default} pixels only, not of {size}")


def resize_timm(name: str, network: Any, size: int) -> None:
    """Resizes a timm network's position embeddings for square images of `size`."""
    current = getattr(getattr(network, "patch_embed", None), "img_size", None)
    if current != (size, size) and hasattr(network, "set_input_size"):
        try:
            network.set_input_size(img_size=(size, size))
        except (AssertionError, ValueError, RuntimeError) as error:
            raise ModelError(f"{name} does not take images of {size} pixels: {error}") from error


def timm_size_in(state: State, network: Any, prefix: str = "") -> int | None:
    """The image size that position embeddings in a timm network's state dict are for."""
    embedding = state.get(f"{prefix}pos_embed")
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if embedding is None or patch is None or not hasattr(network, "set_input_size"):
        return None
    return size_of_grid(embedding.shape[1], patch[0])


def size_of_grid(tokens: int, patch: int) -> int | None:
    """The size of square images with so many tokens; None if they are no grid and a few more."""
    side = math.isqrt(tokens)
    return side * patch if tokens - side * side <= MAX_PREFIX_TOKENS else None


def convert_timm(state: State, network: Any) -> State:
    """From the names of the makers of an architecture: by timm's conversion, or by ours."""
    module = importlib.import_module(type(network).__module__)
    convert = getattr(module, "checkpoint_filter_fn", None)
    if "_conv_stem.weight" in state:
        convert = efficientnet_in_timm
    if convert is None:
        return state
    try:
        converted: State = convert(dict(state), network)
    except Exception as error:  # it expects certain names, and this may be any file
        log.debug("these weights cannot be converted: %s", error)
        return state
    return converted


# EfficientNet in the PyTorch port that its first weights files were made with → in timm.
_AROUND_BLOCKS = {
    "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
    "_fc": "classifier",
}  # fmt: skip
_BLOCK = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
_BLOCK_WITHOUT_EXPANSION = {
    "_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2",
}  # fmt: skip


def efficientnet_in_timm(state: State, network: Any) -> State:
    """The weights of that port by the names of timm, which counts the blocks within each stage."""
    blocks = [(i, block) for i, stage in enumerate(network.blocks) for block in range(len(stage))]

    def renamed(name: str) -> str:
        *block, layer, kind = name.split(".")  # _blocks.3._bn0.weight, _bn0.weight
        if not block:
            return f"{_AROUND_BLOCKS[layer]}.{kind}"
        stage, place = blocks[int(block[1])]
        expands = f"_blocks.{block[1]}._expand_conv.weight" in state
        layers = _BLOCK if expands else _BLOCK_WITHOUT_EXPANSION
        return f"blocks.{stage}.{place}.{layers[layer]}.{kind}"

    return {renamed(name): tensor for name, tensor in state.items()}
