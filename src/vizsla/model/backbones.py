"""Names → networks with weights, ready to embed.

lookup.py finds what a name means.
"""

import dataclasses
import logging
from pathlib import Path

import torch
from torch import Tensor

from vizsla.model.catalogue import BackboneSpec
from vizsla.model.hub import download
from vizsla.model.lookup import find_backbone
from vizsla.model.networks import (
    Backbone,
    ClipBackbone,
    GoogLeNetBackbone,
    TimmBackbone,
    trunk_poolings,
)
from vizsla.model.weights import load_state, read_state, seeded

log = logging.getLogger("vizsla.model")

PRETRAINED, RANDOM = "pretrained", "random"


def build_backbone(
    name: str | BackboneSpec,
    weights: str | Path = PRETRAINED,
    *,
    image_size: int | None = None,
    seed: int = 0,
) -> Backbone:
    """The network of this name with its weights.

    weights: "pretrained" (from the cache or the hub), "random" (drawn from `seed`), or a file,
    which takes the named backbone's preprocessing. image_size: None is the weights' own.
    """
    spec = resolve(name) if isinstance(name, str) else name
    with seeded(seed):
        backbone = _construct(spec)
    size = backbone.preprocess.size[0] if image_size is None else image_size
    backbone.check_size(size)  # before the download
    if weights == PRETRAINED:
        origin = f"the pretrained weights of {spec.name}"
        state, convert = read_state(download(spec)), backbone.convert
        load_state(backbone.network, state, heads=backbone.heads, origin=origin, convert=convert)
    elif weights != RANDOM:
        load_state(backbone.network, read_state(weights), heads=backbone.heads, origin=str(weights))
    backbone.set_image_size(size)
    if weights not in (PRETRAINED, RANDOM):
        log.info("%s takes the preprocessing of %s: %s", weights, spec.name, backbone.preprocess)
    return backbone.eval()


def resolve(name: str) -> BackboneSpec:
    """The backbone of this name, with nothing left to be looked up."""
    spec = find_backbone(name)
    return spec if spec.poolings is not None else measured(spec)


def _construct(spec: BackboneSpec) -> Backbone:
    kinds = {"timm": TimmBackbone, "openclip": ClipBackbone, "torchvision": GoogLeNetBackbone}
    return kinds[spec.library](spec)


def measured(spec: BackboneSpec) -> BackboneSpec:
    """`spec` with the numbers that only a build shows, from one that holds no memory."""
    try:
        return _measured_on(torch.device("meta"), spec)
    except (NotImplementedError, RuntimeError):  # some networks compute with values as they start
        return _measured_on(torch.device("cpu"), spec)


def _measured_on(device: torch.device, spec: BackboneSpec) -> BackboneSpec:
    with device, torch.no_grad(), seeded(0):
        backbone = _construct(spec).eval()
        backbone.set_image_size(backbone.preprocess.size[0])
        images = torch.zeros(1, 3, *backbone.preprocess.size)
        poolings, native_dim = backbone.poolings, backbone.native(images).shape[1]
        if isinstance(backbone, TimmBackbone):
            poolings = _timm_poolings(backbone, images)
    return dataclasses.replace(
        spec,
        poolings=poolings,
        dim=native_dim if spec.pooling == "native" else backbone.feature_dim,
        parameters=sum(p.numel() for p in backbone.parameters()),
        image_size=backbone.preprocess.size[0],
    )


def _timm_poolings(backbone: TimmBackbone, images: Tensor) -> tuple[str, ...]:
    """By what the network gives: some give lists, or maps whose channels are not where they say."""
    found = backbone.network.forward_features(images)
    if not isinstance(found, Tensor) or found.ndim not in (3, 4):
        return ("native",)
    features = backbone.features(images)
    width = features.shape[1] if features.ndim == 4 else features.shape[2]
    return trunk_poolings(backbone.network) if width == backbone.feature_dim else ("native",)
