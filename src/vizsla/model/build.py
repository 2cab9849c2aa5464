"""A backbone's name → the network with its weights, ready to embed."""

import dataclasses
import logging
from pathlib import Path

import torch
from torch import Tensor

from vizsla.model.backbones import (
    Backbone,
    ClipBackbone,
    GoogLeNetBackbone,
    TimmBackbone,
)
from vizsla.model.catalogue import BackboneSpec, find_backbone
from vizsla.model.hub import download
from vizsla.model.timm_networks import timm_map_poolings, timm_poolings
from vizsla.model.weights import load_state, seeded
from vizsla.model.weights_file import read_state

log = logging.getLogger("vizsla.model")

PRETRAINED, RANDOM = "pretrained", "random"
BACKBONE_CLASSES = {
    "timm": TimmBackbone,
    "openclip": ClipBackbone,
    "torchvision": GoogLeNetBackbone,
}  # by library


def build_backbone(
    name: str | BackboneSpec,
    weights: str | Path = PRETRAINED,
    *,
    image_size: int | None = None,
    seed: int = 0,
) -> Backbone:
    """The backbone of this name with its weights, in evaluation mode.

    weights: "pretrained" (from the cache or the hub), "random" (drawn from `seed`), or a file,
    used with the preprocessing of the named backbone. image_size: None is the size of the weights.
    """
    spec = resolve_backbone(name) if isinstance(name, str) else name
    with seeded(seed):
        backbone = BACKBONE_CLASSES[spec.library](spec)
    size = backbone.preprocess.size[0] if image_size is None else image_size
    backbone.check_size(size)  # before the download
    if weights != RANDOM:
        pretrained = weights == PRETRAINED
        state = read_state(download(spec) if pretrained else weights)
        origin = f"the pretrained weights of {spec.name}" if pretrained else str(weights)
        load_state(
            backbone.network,
            state,
            heads=backbone.heads,
            origin=origin,
            adapt=backbone.adapt,
            heads_level=logging.DEBUG if pretrained else logging.INFO,  # always so: no news
        )
    backbone.set_image_size(size)
    if weights not in (PRETRAINED, RANDOM):
        log.info(
            "%s is used with the preprocessing of %s: %s", weights, spec.name, backbone.preprocess
        )
    return backbone.eval()


def resolve_backbone(name: str) -> BackboneSpec:
    """The complete spec of this backbone; UsageError for an unknown name."""
    spec = find_backbone(name)
    return spec if spec.poolings is not None else complete_spec(spec)


def complete_spec(spec: BackboneSpec) -> BackboneSpec:
    """`spec` with poolings, dim, parameters and image size, from a network built without memory."""
    try:
        return _complete_spec_on(torch.device("meta"), spec)
    except (NotImplementedError, RuntimeError):  # some networks need values while they are built
        return _complete_spec_on(torch.device("cpu"), spec)


def _complete_spec_on(device: torch.device, spec: BackboneSpec) -> BackboneSpec:
    with device, torch.no_grad(), seeded(0):
        backbone = BACKBONE_CLASSES[spec.library](spec).eval()
        backbone.set_image_size(backbone.preprocess.size[0])
        images = torch.zeros(1, 3, *backbone.preprocess.size)
        poolings, native_dim = backbone.poolings, backbone.native(images).shape[1]
        if isinstance(backbone, TimmBackbone):
            poolings = _working_poolings(backbone, images)
    return dataclasses.replace(
        spec,
        poolings=poolings,
        dim=native_dim if spec.pooling == "native" else backbone.feature_dim,
        parameters=sum(p.numel() for p in backbone.parameters()),
        image_size=backbone.preprocess.size[0],
    )


def _working_poolings(backbone: TimmBackbone, images: Tensor) -> tuple[str, ...]:
    """The poolings of a timm network, by its output: some networks return lists, or maps with
    another channel order than they declare."""
    found = backbone.network.forward_features(images)
    if not isinstance(found, Tensor) or found.ndim not in (3, 4):
        return ("native",)
    features = backbone.features(images)
    width = features.shape[1] if features.ndim == 4 else features.shape[2]
    if width != backbone.feature_dim:
        return ("native",)
    if features.ndim == 4:
        return timm_map_poolings(backbone.network, images)
    return timm_poolings(backbone.network)
