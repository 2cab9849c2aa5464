"""Networks without their classifiers: one class for each library, all with the same methods.

`features`, `cls` and `native`, and `encode_text` if there is a text tower. A class also knows
the preprocessing of its library, and how position embeddings are resized.
"""

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vizsla.data.preprocess import Preprocess, check_image_size
from vizsla.errors import ModelError
from vizsla.model import transformers_clip
from vizsla.model.catalogue import WITH_CLS, BackboneSpec
from vizsla.model.hub import load_tokeniser
from vizsla.model.pooling import StageStatistics
from vizsla.model.timm_networks import (
    check_patch,
    check_timm_size,
    convert_timm,
    resize_timm,
    size_of_grid,
    stage_channels,
    timm_features,
    timm_network,
    timm_poolings,
    timm_preprocess,
    timm_size_in,
    timm_stages,
)
from vizsla.model.weights import State


class Backbone(nn.Module):
    """A network without its classifier. Images are (B, 3, H, W), as `preprocess` makes them.

    feature_dim: channels of `features`. native_dim: length of the vectors of `native`.
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
        self.network = network  # its parameters have the names of the library's weights files
        self.poolings = spec.poolings or ("native",)

    @property
    def identity(self) -> str:
        """Library and architecture, for the model_id."""
        return f"{self.spec.library}:{self.spec.architecture}"

    def features(self, images: Tensor) -> Tensor:
        """A map (B, C, H, W), or tokens (B, T, C) without prefix tokens (CLS, registers)."""
        raise NotImplementedError

    def cls(self, images: Tensor) -> Tensor:
        """(B, feature_dim): the CLS token of the last layer."""
        raise NotImplementedError

    def native(self, images: Tensor) -> Tensor:
        """(B, native_dim): the vectors that the model's authors compare."""
        raise NotImplementedError

    def stages(self, images: Tensor) -> list[Tensor]:
        """Maps (B, C, H, W): that of `features`, then those of the last stages."""
        raise NotImplementedError

    def encode_text(self, texts: list[str]) -> Tensor:
        """(B, native_dim): texts in the space of `native`."""
        raise ModelError(f"{self.spec.name} reads no text: CLIP, SigLIP and PE models do")

    def drop_text(self) -> None:
        """Removes the text tower, if any: only native pooling can be compared with texts."""

    def dim(self, pooling: str) -> int:
        """The length of the vectors of this pooling."""
        return self.native_dim if pooling == "native" else self.feature_dim

    def adapt(self, state: State) -> State:
        """A state dict of another form in the network's; takes on the image size of its tensors."""
        return state

    def check_size(self, size: int) -> None:
        """ModelError, or UsageError, unless the network can take square images of `size`."""
        check_image_size(size)

    def set_image_size(self, size: int) -> None:
        """Adapts the preprocessing and the network's position embeddings, if any."""
        self.preprocess = self.preprocess.with_size(size)
        self.resize_network(size)

    def resize_network(self, size: int) -> None:
        """Adapts the network's position embeddings, if any."""


# ── timm ─────────────────────────────────────────────────────────────────────────────────────────


class TimmBackbone(Backbone):
    """A timm network. `native` is the input of its classifier."""

    network: Any

    def __init__(self, spec: BackboneSpec) -> None:
        network = timm_network(spec)
        cfg = network.pretrained_cfg
        super().__init__(spec, network, timm_preprocess(cfg, spec))
        self.feature_dim = network.num_features
        self.native_dim = getattr(network, "head_hidden_size", None) or self.feature_dim
        heads = cfg.get("classifier") or ()
        self.heads = (heads,) if isinstance(heads, str) else tuple(heads)

    def features(self, images: Tensor) -> Tensor:
        """The network's map (B, C, H, W), or its patch tokens (B, T, C)."""
        return timm_features(self.network, images)[0]

    def cls(self, images: Tensor) -> Tensor:
        """(B, feature_dim): the CLS token of the last layer."""
        return timm_features(self.network, images)[1][:, 0]

    def stages(self, images: Tensor) -> list[Tensor]:
        """Maps (B, C, H, W): that of `features`, then those of the last stages."""
        return timm_stages(self.network, images)

    def dim(self, pooling: str) -> int:
        """The length of the vectors of this pooling."""
        if pooling == "stages":
            return StageStatistics.dim(self.feature_dim, stage_channels(self.network))
        return super().dim(pooling)

    def native(self, images: Tensor) -> Tensor:
        """(B, native_dim): the input of the network's classifier."""
        vectors: Tensor = self.network(images)
        return vectors

    def adapt(self, state: State) -> State:
        """Through timm's own conversion for this architecture, if it has one."""
        patch = state.get("patch_embed.proj.weight")
        expected = self.network.state_dict().get("patch_embed.proj.weight")
        if patch is not None and expected is not None and patch.shape != expected.shape:
            return state  # another network: timm would resize its patches
        size = timm_size_in(state, self.network)
        if size:
            self.resize_network(size)
        return convert_timm(state, self.network)

    def check_size(self, size: int) -> None:
        """ModelError if the network cannot take square images of `size`."""
        super().check_size(size)
        check_timm_size(self.spec.name, self.network, size)

    def resize_network(self, size: int) -> None:
        """Adapts the position embeddings."""
        resize_timm(self.spec.name, self.network, size)


# ── open_clip ────────────────────────────────────────────────────────────────────────────────────

TEXT_PARTS = (
    "text", "transformer", "token_embedding", "positional_embedding", "ln_final",
    "text_projection", "attn_mask", "logit_scale", "logit_bias",
)  # fmt: skip
OPENAI_SETTINGS = ("input_resolution", "context_length", "vocab_size")  # among OpenAI's weights


class ClipBackbone(Backbone):
    """An image and a text tower of open_clip. `native` is the space that they share."""

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
            self.feature_dim, self.poolings = self.trunk.num_features, timm_poolings(self.trunk)
        elif isinstance(visual, VisionTransformer) and visual.attn_pool is None:
            self.feature_dim, self.poolings = visual.conv1.out_channels, WITH_CLS
        self.reads_text = True
        self.tokeniser_folder: Path | None = None  # None: from open_clip or the hub
        self._tokeniser: Any = None

    @property
    def trunk(self) -> Any:
        """The timm network of the image tower (SigLIP, PE); None for open_clip's own towers."""
        return getattr(self.network.visual, "trunk", None)

    def _tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if self.trunk is not None:
            return timm_features(self.trunk, images)
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
        """The patch tokens (B, T, C) of the last layer of the image tower, or its map."""
        return self._tokens(images)[0]

    def cls(self, images: Tensor) -> Tensor:
        """(B, feature_dim): the CLS token of the last layer."""
        return self._tokens(images)[1][:, 0]

    def native(self, images: Tensor) -> Tensor:
        """(B, native_dim): images in the space that texts are projected into as well."""
        vectors: Tensor = self.network.encode_image(images)
        return vectors

    @property
    def tokeniser(self) -> Any:
        """open_clip's tokeniser, loaded at the first use (see `hub.load_tokeniser`)."""
        if self._tokeniser is None:
            self._tokeniser = load_tokeniser(self.spec.architecture, self.tokeniser_folder)
        return self._tokeniser

    def encode_text(self, texts: list[str]) -> Tensor:
        """(B, native_dim): texts in the space of `native`; ModelError without a text tower."""
        if not self.reads_text:
            return super().encode_text(texts)
        tokens = self.tokeniser(texts).to(next(self.parameters()).device)  # (B, T)
        vectors: Tensor = self.network.encode_text(tokens)
        return vectors

    def drop_text(self) -> None:
        """Removes the text tower."""
        for name in TEXT_PARTS:
            if hasattr(self.network, name):
                delattr(self.network, name)
        self.reads_text = False

    def adapt(self, state: State) -> State:
        """Through open_clip's conversions of older files, or from transformers' CLIP."""
        from open_clip.convert import convert_state_dict
        from open_clip.model import convert_to_custom_text_state_dict

        if transformers_clip.SIGN in state:
            state = transformers_clip.from_transformers(state)
        state = convert_state_dict(self.network, state)
        if "positional_embedding" in state and not hasattr(self.network, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        size = self._size_in(state)
        if size:
            self.resize_network(size)
        scalars = ("logit_scale", "logit_bias")  # older files hold them as lists of one
        return {
            name: tensor.reshape(()) if name in scalars else tensor
            for name, tensor in state.items()
            if name not in OPENAI_SETTINGS
        }

    def _size_in(self, state: State) -> int | None:
        """The image size that the position embeddings of the image tower are for."""
        if self.trunk is not None:
            return timm_size_in(state, self.trunk, "visual.trunk.")
        embedding = state.get("visual.positional_embedding")
        if embedding is None or not hasattr(self.network.visual, "grid_size"):
            return None
        return size_of_grid(len(embedding), self.network.visual.patch_size[0])

    def check_size(self, size: int) -> None:
        """ModelError if the image tower cannot take square images of `size`."""
        super().check_size(size)
        visual = self.network.visual
        if self.trunk is not None:
            check_timm_size(self.spec.name, self.trunk, size)
        elif hasattr(visual, "grid_size"):
            check_patch(self.spec.name, size, visual.patch_size[0])
        elif (size, size) != self.preprocess.size:
            only = self.preprocess.size[0]
            raise ModelError(f"{self.spec.name} takes images of {only} pixels only, not of {size}")

    def resize_network(self, size: int) -> None:
        """Adapts the position embeddings."""
        if self.trunk is not None:
            resize_timm(self.spec.name, self.trunk, size)
        elif hasattr(self.network.visual, "grid_size"):
            _resize_clip(self.network.visual, size)


def _clip_network(config: dict[str, Any], spec: BackboneSpec) -> Any:
    """Built here because open_clip's factory writes to the root logger."""
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

    cfg = {**dataclasses.asdict(PreprocessCfg()), **_tag_config(spec)}
    size = config["vision_cfg"]["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    mode = {"shortest": "crop", "squash": "squash"}[cfg["resize_mode"]]
    return Preprocess(
        (height, width), None, mode, cfg["interpolation"], tuple(cfg["mean"]), tuple(cfg["std"])
    )


def _tag_config(spec: BackboneSpec) -> dict[str, Any]:
    import open_clip

    config: dict[str, Any] = open_clip.get_pretrained_cfg(spec.architecture, spec.tag or "")
    return config


def _resize_clip(visual: Any, size: int) -> None:
    """Resizes the position embeddings of open_clip's own ViT."""
    from timm.layers import resample_abs_pos_embed

    grid = (size // visual.patch_size[0], size // visual.patch_size[1])
    if grid == tuple(visual.grid_size):
        return
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

        # Its weights expect another range of colours: transform_input converts ours to theirs.
        # torchvision sets it only if it loads the weights itself, not for a weights file.
        network = GoogLeNet(aux_logits=False, transform_input=True, init_weights=False)
        del network.avgpool, network.dropout, network.fc
        for module in network.modules():
            if isinstance(module, nn.Conv2d):  # with torchvision's initialisation, signals vanish
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        super().__init__(spec, network, Preprocess((224, 224), 256, interpolation="bilinear"))

    def features(self, images: Tensor) -> Tensor:
        """The map (B, 1024, H, W) before pooling."""
        x = self.network._transform_input(images)
        for stage in self.network.children():
            x = stage(x)
        return x  # (B, 1024, H, W)

    def native(self, images: Tensor) -> Tensor:
        """(B, 1024): the mean of the map."""
        return self.features(images).mean((2, 3))
