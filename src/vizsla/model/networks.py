"""One class for each library that builds networks; all give the same answers about images.

`features`, `cls` and `native`, and `encode_text` where there is a text tower. A class knows how its
library wants pictures prepared, and how position embeddings are fitted to another size.
"""

import dataclasses
import importlib
import math
import re
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vizsla.data.preprocess import Preprocess, check_image_size
from vizsla.errors import ModelError
from vizsla.model.catalogue import NO_CLS, WITH_CLS, BackboneSpec
from vizsla.model.hub import load_tokeniser
from vizsla.model.weights import State


class Backbone(nn.Module):
    """A network without its classifier. Images are (B, 3, H, W), as `preprocess` makes them.

    features: a map (B, C, H, W), or tokens (B, T, C) without the prefix ones (CLS, registers).
    feature_dim is their C; native_dim the width of the model's own vector.
    """

    spec: BackboneSpec
    preprocess: Preprocess
    poolings: tuple[str, ...]
    feature_dim: int
    native_dim: int
    heads: tuple[str, ...] = ()  # the original classifier's names in a weights file
    reads_text = False

    def __init__(self, spec: BackboneSpec, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.spec, self.preprocess = spec, preprocess
        self.network = network  # named inside as in the library's own weights files
        self.poolings = spec.poolings or ("native",)

    @property
    def identity(self) -> str:
        """What computes, apart from the weights: a part of the model_id."""
        return f"{self.spec.library}:{self.spec.architecture}"

    def features(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def cls(self, images: Tensor) -> Tensor:
        """(B, feature_dim): the CLS token of the last layer."""
        raise NotImplementedError

    def native(self, images: Tensor) -> Tensor:
        """(B, native_dim): the vector that the model's makers compare."""
        raise NotImplementedError

    def encode_text(self, texts: list[str]) -> Tensor:
        """(B, native_dim): texts in the space of `native`."""
        raise ModelError(f"{self.spec.name} reads no text: CLIP, SigLIP and PE models do")

    def drop_text(self) -> None:
        """Forgets the text tower, where there is one: it is of no use to another pooling."""

    def dim(self, pooling: str) -> int:
        return self.native_dim if pooling == "native" else self.feature_dim

    def convert(self, state: State) -> State:
        """A hub file's state dict, where it is in an older form, in today's."""
        return state

    def check_size(self, size: int) -> None:
        """ModelError, or UsageError, unless the network can take square images of `size`."""
        check_image_size(size)

    def set_image_size(self, size: int) -> None:
        """Fits the preprocessing and, where it has some, the network's position embeddings."""
        self.preprocess = self.preprocess.with_size(size)


def check_patch(name: str, size: int, patch: int) -> None:
    """ModelError that names the nearest two sizes, unless the patch divides this one."""
    if size % patch:
        below, above = size // patch * patch, math.ceil(size / patch) * patch
        raise ModelError(
            f"{name} cuts pictures into patches of {patch} × {patch} pixels, and {patch} does not "
            f"divide {size}: the nearest image sizes are {max(below, patch)} and {above}"
        )


# ── timm ─────────────────────────────────────────────────────────────────────────────────────────


class TimmBackbone(Backbone):
    """A timm network. `native` is what it would hand to its classifier."""

    network: Any

    def __init__(self, spec: BackboneSpec) -> None:
        network = _timm_network(spec)
        cfg = network.pretrained_cfg
        super().__init__(spec, network, _timm_preprocess(cfg, spec))
        self.feature_dim = network.num_features
        self.native_dim = getattr(network, "head_hidden_size", None) or self.feature_dim
        heads = cfg.get("classifier") or ()
        self.heads = (heads,) if isinstance(heads, str) else tuple(heads)

    def features(self, images: Tensor) -> Tensor:
        return trunk_features(self.network, images)[0]

    def cls(self, images: Tensor) -> Tensor:
        return trunk_features(self.network, images)[1][:, 0]

    def native(self, images: Tensor) -> Tensor:
        vectors: Tensor = self.network(images)
        return vectors

    def convert(self, state: State) -> State:
        module = importlib.import_module(type(self.network).__module__)
        convert = getattr(module, "checkpoint_filter_fn", None)
        return state if convert is None else convert(state, self.network)

    def check_size(self, size: int) -> None:
        super().check_size(size)
        check_trunk_size(self.spec.name, self.network, size)

    def set_image_size(self, size: int) -> None:
        super().set_image_size(size)
        resize_trunk(self.spec.name, self.network, size)


def _timm_network(spec: BackboneSpec) -> Any:
    import timm

    if not timm.is_model(spec.architecture):
        raise ModelError(f"this timm has no model {spec.architecture}")
    options: dict[str, Any] = {}
    if spec.architecture.startswith("vit") and "_dinov3" in spec.architecture:
        options["global_pool"] = "token"  # DINOv3's own; timm averages
    if re.match(r"resnet\d", spec.architecture):
        options["zero_init_last"] = False  # untrained, timm's blocks add nothing to their input
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mapping deprecated model name", UserWarning)
        return timm.create_model(
            spec.source.removeprefix("timm:"), pretrained=False, num_classes=0, **options
        )


def _timm_preprocess(cfg: dict[str, Any], spec: BackboneSpec) -> Preprocess:
    """At the size of the training, not at the larger one that timm names for tests."""
    modes = {"center": "crop", "squash": "squash"}
    if cfg["crop_mode"] not in modes:
        raise ModelError(
            f"{spec.name} prepares pictures in a way that is not supported ({cfg['crop_mode']})"
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


def trunk_features(trunk: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """A timm network's map (B, C, H, W) or patch tokens (B, T, C), and its prefix tokens."""
    found = trunk.forward_features(images)
    if found.ndim == 4:
        if getattr(trunk, "output_fmt", "NCHW") == "NHWC":
            found = found.permute(0, 3, 1, 2)  # (B, C, H, W)
        return found, found[:, :0]
    prefix = getattr(trunk, "num_prefix_tokens", 0)
    return found[:, prefix:], found[:, :prefix]


def trunk_poolings(trunk: Any) -> tuple[str, ...]:
    prefix: int = getattr(trunk, "num_prefix_tokens", 0)
    return WITH_CLS if prefix and getattr(trunk, "cls_token", None) is not None else NO_CLS


def check_trunk_size(name: str, trunk: Any, size: int) -> None:
    own = trunk.pretrained_cfg["input_size"][-1]
    if size != own and hasattr(trunk, "set_input_size"):
        patch: Any = getattr(getattr(trunk, "patch_embed", None), "patch_size", None) or 1
        check_patch(name, size, max(patch) if isinstance(patch, tuple) else int(patch))
    elif size != own and trunk.pretrained_cfg.get("fixed_input_size"):
        raise ModelError(f"{name} takes images of {own} pixels only, not of {size}")


def resize_trunk(name: str, trunk: Any, size: int) -> None:
    """Fits a timm network's position embeddings to square images of `size`."""
    current = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    if current != (size, size) and hasattr(trunk, "set_input_size"):
        try:
            trunk.set_input_size(img_size=(size, size))
        except (AssertionError, ValueError, RuntimeError) as error:
            raise ModelError(f"{name} does not take images of {size} pixels: {error}") from error


# ── open_clip ────────────────────────────────────────────────────────────────────────────────────

TEXT_PARTS = (
    "text", "transformer", "token_embedding", "positional_embedding", "ln_final",
    "text_projection", "attn_mask", "logit_scale", "logit_bias",
)  # fmt: skip


class ClipBackbone(Backbone):
    """An image and a text tower of open_clip. `native` is the space that both project into."""

    network: Any

    def __init__(self, spec: BackboneSpec) -> None:
        import open_clip
        from open_clip.transformer import VisionTransformer

        config = open_clip.get_model_config(spec.architecture)
        if config is None:
            raise ModelError(f"this open_clip has no architecture {spec.architecture}")
        super().__init__(spec, _clip_network(config, spec), _clip_preprocess(config, spec))
        self.native_dim = config["embed_dim"]
        self.feature_dim = self.native_dim
        visual = self.network.visual
        if self.trunk is not None:
            self.feature_dim, self.poolings = self.trunk.num_features, trunk_poolings(self.trunk)
        elif isinstance(visual, VisionTransformer) and visual.attn_pool is None:
            self.feature_dim, self.poolings = visual.conv1.out_channels, WITH_CLS
        self.reads_text = True
        self.tokeniser_folder: Path | None = None  # None: open_clip's own, or the hub's
        self._tokeniser: Any = None

    @property
    def trunk(self) -> Any:
        """The timm network inside, as SigLIP and PE have one; None for open_clip's own towers."""
        return getattr(self.network.visual, "trunk", None)

    def _tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.trunk is not None:
            return trunk_features(self.trunk, images)
        found = self.network.visual.forward_intermediates(
            images,
            indices=1,
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        return found["image_intermediates"][-1], found["image_intermediates_prefix"][-1]

    def features(self, images: Tensor) -> Tensor:
        return self._tokens(images)[0]

    def cls(self, images: Tensor) -> Tensor:
        return self._tokens(images)[1][:, 0]

    def native(self, images: Tensor) -> Tensor:
        vectors: Tensor = self.network.encode_image(images)
        return vectors

    @property
    def tokeniser(self) -> Any:
        if self._tokeniser is None:
            self._tokeniser = load_tokeniser(self.spec.architecture, self.tokeniser_folder)
        return self._tokeniser

    def encode_text(self, texts: list[str]) -> Tensor:
        if not self.reads_text:
            return super().encode_text(texts)
        tokens = self.tokeniser(texts).to(next(self.parameters()).device)  # (B, T)
        vectors: Tensor = self.network.encode_text(tokens)
        return vectors

    def drop_text(self) -> None:
        for name in TEXT_PARTS:
            if hasattr(self.network, name):
                delattr(self.network, name)
        self.reads_text = False

    def convert(self, state: State) -> State:
        from open_clip.convert import convert_state_dict
        from open_clip.model import convert_to_custom_text_state_dict

        state = convert_state_dict(self.network, state)
        if "positional_embedding" in state and not hasattr(self.network, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        scalars = ("logit_scale", "logit_bias")  # older files hold them as lists of one
        return {name: v.reshape(()) if name in scalars else v for name, v in state.items()}

    def check_size(self, size: int) -> None:
        super().check_size(size)
        visual = self.network.visual
        if self.trunk is not None:
            check_trunk_size(self.spec.name, self.trunk, size)
        elif hasattr(visual, "grid_size"):
            check_patch(self.spec.name, size, visual.patch_size[0])
        elif (size, size) != self.preprocess.size:
            own = self.preprocess.size[0]
            raise ModelError(f"{self.spec.name} takes images of {own} pixels only, not of {size}")

    def set_image_size(self, size: int) -> None:
        visual, changed = self.network.visual, (size, size) != self.preprocess.size
        super().set_image_size(size)
        if self.trunk is not None:
            resize_trunk(self.spec.name, self.trunk, size)
        elif changed:
            _resize_clip(visual, size)


def _clip_network(config: dict[str, Any], spec: BackboneSpec) -> Any:
    """Built here, not by open_clip's factory: that writes to the root logger as it goes."""
    import open_clip

    if "multimodal_cfg" in config or "hf_model_name" in config["text_cfg"]:
        raise ModelError(
            f"{spec.name}: open_clip models with a text decoder, or with a text tower of "
            "transformers, are not supported"
        )
    custom = config.pop("custom_text", False)
    return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)


def _clip_preprocess(config: dict[str, Any], spec: BackboneSpec) -> Preprocess:
    from open_clip.transform import PreprocessCfg

    own = {**dataclasses.asdict(PreprocessCfg()), **_tag_config(spec)}
    size = config["vision_cfg"]["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    mode = {"shortest": "crop", "squash": "squash"}[own["resize_mode"]]
    return Preprocess(
        (height, width), None, mode, own["interpolation"], tuple(own["mean"]), tuple(own["std"])
    )


def _tag_config(spec: BackboneSpec) -> dict[str, Any]:
    import open_clip

    config: dict[str, Any] = open_clip.get_pretrained_cfg(spec.architecture, spec.tag or "")
    return config


def _resize_clip(visual: Any, size: int) -> None:
    """Fits the position embeddings of open_clip's own ViT."""
    from timm.layers import resample_abs_pos_embed

    grid = (size // visual.patch_size[0], size // visual.patch_size[1])
    old = visual.positional_embedding  # (1 + T, C)
    new = resample_abs_pos_embed(
        old.detach()[None], new_size=grid, old_size=visual.grid_size, num_prefix_tokens=1
    )
    visual.positional_embedding = nn.Parameter(new[0], requires_grad=old.requires_grad)
    visual.grid_size, visual.image_size = grid, (size, size)


# ── torchvision ──────────────────────────────────────────────────────────────────────────────────


class GoogLeNetBackbone(Backbone):
    """torchvision's GoogLeNet without its classifiers, the auxiliary ones included."""

    network: Any
    heads = ("fc", "aux1", "aux2")
    feature_dim = native_dim = 1024

    def __init__(self, spec: BackboneSpec) -> None:
        from torchvision.models import GoogLeNet

        # Its weights expect their own range of colours: transform_input goes from ours to theirs.
        # torchvision sets it where it loads the weights itself, and not for a weights file.
        network = GoogLeNet(aux_logits=False, transform_input=True, init_weights=False)
        del network.avgpool, network.dropout, network.fc
        for module in network.modules():
            if isinstance(module, nn.Conv2d):  # torchvision's own fades to nothing layer by layer
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        super().__init__(spec, network, Preprocess((224, 224), 256, interpolation="bilinear"))

    def features(self, images: Tensor) -> Tensor:
        x = self.network._transform_input(images)
        for stage in self.network.children():
            x = stage(x)
        return x  # (B, 1024, H, W)

    def native(self, images: Tensor) -> Tensor:
        return self.features(images).mean((2, 3))
