"""The backbones that have a name here: facts alone, no network. Costs no torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

NO_CLS = ("gap", "gem", "max", "native")  # convolutional networks, and SigLIP
WITH_CLS = ("gap", "gem", "max", "cls", "native")
OPEN_FORMS = "timm:NAME or openclip:ARCH/TAG"


@dataclass(frozen=True)
class BackboneSpec:
    """Which network with which weights, and what is known of it without building it.

    A None is looked up where it is needed. dim: of the default pooling. parameters: of all that
    is loaded, the text tower included. licence: of the weights, as the page says that offers them.
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
    resize: int | None = None  # with image_size in place of what the library's configuration says
    trained_size: int | None = None  # pixels of the last training phase, where image_size is less

    @property
    def source(self) -> str:
        """The weights' name in their own library, and a name for this backbone as well."""
        tag = f"{'/' if self.library == 'openclip' else '.'}{self.tag}" if self.tag else ""
        return f"{self.library}:{self.architecture}{tag}"


# OpenAI's weights need QuickGELU: the architecture of that name has it, the plain one has not.
# ResNet has torchvision's first weights: trained with plain cross-entropy and little augmentation,
# they carry over to new classes better than those of later recipes, which are better classifiers.
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


def _named(line: str) -> BackboneSpec:
    name, source, pooling, dim, parameters, image_size, licence = line.split()
    library, _, rest = source.partition(":")
    clip = library == "openclip"
    architecture, _, tag = rest.partition("/" if clip else ".")
    has_cls = "SigLIP" not in architecture if clip else architecture.startswith("vit")
    return BackboneSpec(
        name,
        library,
        architecture,
        tag,
        pooling,
        int(dim),
        int(parameters),
        int(image_size),
        WITH_CLS if has_cls else NO_CLS,
        licence,
        reads_text=clip,
        # timm gives DINOv2 at 518 pixels, the size of its last training phase: over five times the
        # patches of 224, at which its paper evaluates (shorter side to 256, centre 224).
        resize=256 if "dinov2" in architecture else None,
        trained_size=518 if "dinov2" in architecture else None,
    )


BACKBONES: dict[str, BackboneSpec] = {
    spec.name: spec for spec in map(_named, _TABLE.strip().splitlines())
}


def named_like(library: str, architecture: str, tag: str | None) -> BackboneSpec | None:
    """The named backbone with just this network and these weights, if there is one."""
    for spec in BACKBONES.values():
        if (spec.library, spec.architecture, spec.tag) == (library, architecture, tag):
            return spec
    return None


def model_table(specs: Iterable[BackboneSpec] | None = None) -> list[dict[str, Any]]:
    """One row a backbone: of all that have a name, or of these. Nothing is downloaded or built."""
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


def did_you_mean(near: Any) -> str:
    names = list(near)
    return f" (did you mean {' or '.join(names)}?)" if names else ""
