"""Names → networks with weights, ready to embed.

`BACKBONES` holds those that have a name here; any other is looked up in timm or open_clip.
"""

import dataclasses
import difflib
import logging
from pathlib import Path

import torch
from torch import Tensor

from vizsla.errors import UsageError
from vizsla.model.catalogue import (
    BACKBONES,
    OPEN_FORMS,
    BackboneSpec,
    did_you_mean,
    find_backbone,
    named_like,
)
from vizsla.model.hub import download
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


# ── any other, by its library's name ─────────────────────────────────────────────────────────────


def open_spec(library: str, rest: str) -> BackboneSpec:
    """The backbone `timm:NAME` or `openclip:ARCH/TAG`; UsageError where there is none."""
    if library == "timm":
        return _open_timm(rest)
    if library == "openclip":
        return _open_clip(rest)
    known = named_like(library, *rest.partition(".")[::2])
    if known is None:
        raise UsageError(f"no backbone is called '{library}:{rest}': expected {OPEN_FORMS}")
    return known


def _open_timm(name: str) -> BackboneSpec:
    import timm

    architecture, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if not timm.is_model(architecture) or (tag and tag not in tags):
        names = timm.list_models() + timm.list_pretrained()
        near = did_you_mean(difflib.get_close_matches(name, names, n=3))
        raise UsageError(f"timm has no model {name!r}{near}: timm.list_models() lists them")
    cfg = timm.get_pretrained_cfg(name)
    tag = tag or (cfg.tag if cfg else "") or ""
    quick = architecture.replace("_clip_", "_clip_quickgelu_")
    if cfg and "QuickGELU" in str(cfg.notes) and timm.is_model(quick):
        architecture = quick  # timm names the activation that these weights need apart
    alike = next((s for s in BACKBONES.values() if s.architecture == architecture), None)
    return named_like("timm", architecture, tag) or BackboneSpec(
        f"timm:{architecture}{'.' if tag else ''}{tag}",
        "timm",
        architecture,
        tag or None,
        alike.pooling if alike else "native",
        licence=(cfg.license if cfg else None) or "unknown",
    )


def _open_clip(name: str) -> BackboneSpec:
    import open_clip

    architecture, _, tag = name.partition("/")
    if architecture not in open_clip.list_models():
        near = did_you_mean(difflib.get_close_matches(architecture, open_clip.list_models(), n=3))
        raise UsageError(
            f"open_clip has no architecture {architecture!r}{near}: open_clip.list_models()"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tags and tag not in tags:
        nearest = difflib.get_close_matches(tag, tags, n=5, cutoff=0.4) or tags[:5]
        raise UsageError(
            f"openclip:{architecture}/TAG needs a TAG, which says also how pictures are prepared: "
            f"{', '.join(nearest)}, … (open_clip.list_pretrained_tags_by_model({architecture!r}))"
        )
    quick = f"{architecture}-quickgelu"
    needs_quick = open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu")
    if needs_quick and quick in open_clip.list_models():
        architecture = quick
    return named_like("openclip", architecture, tag or None) or BackboneSpec(
        f"openclip:{architecture}{'/' if tag else ''}{tag}",
        "openclip",
        architecture,
        tag or None,
        "native",
        reads_text=True,
    )


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
