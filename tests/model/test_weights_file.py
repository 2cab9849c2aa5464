"""Weights in all the forms in which people have them: each must give the same vectors."""

import argparse
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vizsla.errors import ModelError
from vizsla.model.backbones import Backbone
from vizsla.model.build import build_backbone
from vizsla.model.weights_file import read_state

State = dict[str, Tensor]


def state_of(backbone: Backbone) -> State:
    return {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}


def vectors(backbone: Backbone) -> np.ndarray:
    """(2, D)"""
    images = torch.randn(2, 3, *backbone.preprocess.size, generator=torch.manual_seed(0))
    with torch.inference_mode():
        found: np.ndarray = backbone.native(images).numpy()
    return found


def require_equal(name: str, file: Path, source: Backbone) -> None:
    assert np.array_equal(vectors(build_backbone(name, file)), vectors(source))
    assert not np.allclose(vectors(source), vectors(build_backbone(name, "random", seed=77)))


# ── forms of the makers ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("registers", [False, True])
def test_the_makers_file_of_dinov2(tmp_path: Path, registers: bool) -> None:
    """With a mask token; with registers, whose position embeddings are held in another way."""
    name = "dinov2-s14-reg" if registers else "dinov2-s14"
    source = build_backbone(name, "random", seed=3, image_size=518)  # the makers' size
    state = {**state_of(source), "mask_token": torch.zeros(1, 384)}
    source.set_image_size(224)
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        for_class = torch.full((1, 1, 384), 1e-6)
        state["pos_embed"] = torch.cat([for_class, state["pos_embed"]], 1)
        state["cls_token"] = state["cls_token"] - 1e-6
    torch.save(state, tmp_path / "dinov2_vits14_pretrain.pth")
    found = build_backbone(name, tmp_path / "dinov2_vits14_pretrain.pth")
    assert np.allclose(vectors(found), vectors(source), atol=1e-5)


@pytest.mark.parametrize("makers", [False, True])
def test_dinov2_saved_at_another_size_loses_nothing(tmp_path: Path, makers: bool) -> None:
    source = build_backbone("dinov2-s14", "random", seed=3, image_size=112)
    with torch.no_grad():
        source.network.pos_embed.copy_(torch.randn_like(source.network.pos_embed))
    state = state_of(source)
    torch.save({**state, **({"mask_token": torch.zeros(1, 384)} if makers else {})}, tmp_path / "w")
    found = build_backbone("dinov2-s14", tmp_path / "w", image_size=112)
    assert torch.equal(found.network.pos_embed, source.network.pos_embed)  # not resized and back
    assert np.array_equal(vectors(found), vectors(source))
    source.set_image_size(224)
    assert np.array_equal(vectors(build_backbone("dinov2-s14", tmp_path / "w")), vectors(source))


def test_convnext_in_the_names_of_its_makers(tmp_path: Path) -> None:
    source = build_backbone("timm:convnext_atto", "random", seed=3)
    makers = {"head.weight": torch.zeros(1000, 320), "head.bias": torch.zeros(1000)}
    for name, tensor in state_of(source).items():
        name = name.replace("stem.", "downsample_layers.0.").replace(".blocks.", ".")
        name = re.sub(r"stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        name = name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        makers[name.replace("head.norm", "norm")] = tensor
    assert "downsample_layers.1.0.weight" in makers and "stages.0.0.pwconv1.bias" in makers
    torch.save({"model": makers}, tmp_path / "convnext_atto_1k_224_ema.pth")
    require_equal("timm:convnext_atto", tmp_path / "convnext_atto_1k_224_ema.pth", source)


def test_patches_of_another_size_are_another_network(tmp_path: Path) -> None:
    """timm would resize them without a word."""
    torch.save(state_of(build_backbone("timm:vit_tiny_patch16_224", "random")), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"patch_embed.proj.weight is 192×3×16×16, expected"):
        build_backbone("timm:vit_tiny_r_s16_p8_224", tmp_path / "w.pt")
    state = state_of(build_backbone("timm:vit_tiny_patch16_224", "random"))
    state["patch_embed.proj.weight"] = torch.zeros(192, 3, 14, 14)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="192×3×14×14, expected 192×3×16×16"):
        build_backbone("timm:vit_tiny_patch16_224", tmp_path / "w.pt")


# ── CLIP ─────────────────────────────────────────────────────────────────────────────────────────


def test_openclip_with_a_scale_in_a_list(tmp_path: Path, tiny_clip: str) -> None:
    source = build_backbone(tiny_clip, "random", seed=3)
    state = state_of(source)
    state["logit_scale"] = state["logit_scale"].reshape(1)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "e.pt")
    require_equal(tiny_clip, tmp_path / "e.pt", source)


def test_openclip_saved_at_another_size_loses_nothing(tmp_path: Path, tiny_clip: str) -> None:
    source = build_backbone(tiny_clip, "random", seed=3, image_size=64)
    save_file(state_of(source), tmp_path / "w.safetensors")
    found = build_backbone(tiny_clip, tmp_path / "w.safetensors", image_size=64)
    assert np.array_equal(vectors(found), vectors(source))
    source.set_image_size(32)
    require_equal(tiny_clip, tmp_path / "w.safetensors", source)


def test_the_clip_of_transformers(tmp_path: Path, tiny_clip: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**sizes, "intermediate_size": 128, "vocab_size": 49408, "eos_token_id": 49407,
                     "max_position_embeddings": 16, "hidden_act": "gelu"},
        vision_config={**sizes, "intermediate_size": 128, "image_size": 32, "patch_size": 8,
                       "hidden_act": "gelu"},
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(1)
    theirs = transformers.CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = build_backbone(tiny_clip, tmp_path / "model.safetensors")
    images = torch.randn(2, 3, 32, 32)
    tokens = ours.tokeniser(["a dog", "a red shoe on grass"])  # type: ignore[attr-defined]
    with torch.inference_mode():
        vision = theirs.vision_model(pixel_values=images).pooler_output
        assert torch.allclose(ours.native(images), theirs.visual_projection(vision), atol=1e-5)
        text = theirs.text_model(input_ids=tokens).pooler_output
        found = ours.encode_text(["a dog", "a red shoe on grass"])
        assert torch.allclose(found, theirs.text_projection(text), atol=1e-5)


def test_another_model_of_transformers_is_said_to_be_one(tmp_path: Path) -> None:
    save_file({"encoder.layer.0.norm1.weight": torch.ones(384)}, tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="names are those of transformers, of which only CLIP"):
        build_backbone("dinov2-s14", tmp_path / "m.safetensors")


# ── prefixes ─────────────────────────────────────────────────────────────────────────────────────

Wrap = Callable[[State], Any]
PREFIXES = ["model.", "backbone.", "net.", "module.", "model.backbone.", "module._orig_mod."]


@pytest.mark.parametrize(
    ("name", "makers", "prefix"),
    [*(("tiny", False, one) for one in PREFIXES), ("dinov2-s14", True, "model.backbone.")],
)
def test_a_prefix_is_left_out_and_named(
    tmp_path: Path, name: str, makers: bool, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = build_backbone(name, "random", seed=3)
    state = {**state_of(source), **({"mask_token": torch.zeros(1, 384)} if makers else {})}
    torch.save({f"{prefix}{k}": v for k, v in state.items()}, tmp_path / "w.ckpt")
    with caplog.at_level(logging.INFO, "vizsla"):
        require_equal(name, tmp_path / "w.ckpt", source)
    assert f"w.ckpt: the prefix {prefix!r} of the names is left out" in caplog.text


def test_what_is_beside_the_prefix_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = build_backbone("tiny", "random", seed=3)
    state = {f"backbone.{k}": v for k, v in state_of(source).items()}
    torch.save({**state, "head.fc.weight": torch.ones(5, 512)}, tmp_path / "w.pth")
    with caplog.at_level(logging.INFO, "vizsla"):
        require_equal("tiny", tmp_path / "w.pth", source)
    assert "what is not under it is not used (head.fc.weight)" in caplog.text


def test_two_networks_in_one_file(tmp_path: Path) -> None:
    one, other = (state_of(build_backbone("tiny", "random", seed=seed)) for seed in (3, 4))

    def both(first: str, second: str) -> State:
        return {
            **{f"{first}.{k}": v for k, v in one.items()},
            **{f"{second}.{k}": v for k, v in other.items()},
        }

    torch.save(both("encoder_q", "encoder_k"), tmp_path / "moco.pth")
    with pytest.raises(ModelError, match=r"several networks, under encoder_q\., encoder_k\."):
        build_backbone("tiny", tmp_path / "moco.pth")
    torch.save(both("student", "teacher"), tmp_path / "dino.pth")
    require_equal("tiny", tmp_path / "dino.pth", build_backbone("tiny", "random", seed=4))


def test_names_as_they_are_come_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All names of this network begin with `model.`: that is no prefix to leave out."""
    from vizsla.model.weights import load_state

    target = nn.ModuleDict({"model": nn.ModuleDict({"model": nn.Linear(2, 2)})})
    source = {"model.model.weight": torch.ones(2, 2), "model.model.bias": torch.ones(2)}
    with caplog.at_level(logging.INFO, "vizsla"):
        load_state(target, source, origin="f")
    assert torch.equal(target.state_dict()["model.model.bias"], torch.ones(2))
    assert "prefix" not in caplog.text


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["w.ckpt", "w.pth.tar", "pytorch_model.bin", "w", "w.safetensors"])
@pytest.mark.parametrize("form", ["zip", "older", "safetensors"])
def test_the_content_decides_what_a_file_is(tmp_path: Path, name: str, form: str) -> None:
    state, path = {"weight": torch.arange(3.0)}, tmp_path / name
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    assert torch.equal(read_state(path)["weight"], state["weight"])


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "photo.pth").write_bytes(b"\xff\xd8\xff\xe0 a photo")
    with pytest.raises(ModelError, match=r"photo\.pth is not a weights file: expected a \.safe"):
        read_state(tmp_path / "photo.pth")


def averaged(state: State) -> State:
    module = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 1))
    module.module.load_state_dict(state)
    return module.state_dict()


@pytest.mark.parametrize(
    ("key", "wrapped"),
    [
        ("state_dict_ema", lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema}),
        ("model_ema", lambda raw, ema: {"model": raw, "model_ema": averaged(ema), "epoch": 3}),
        ("ema", lambda raw, ema: {"model": raw, "ema": {"decay": 0.9, "shadow": ema}}),
        ("ema_state_dict", lambda raw, ema: {"module": raw, "ema_state_dict": {"module": ema}}),
        ("teacher", lambda raw, ema: {"student": raw, "teacher": {"state_dict": ema}}),
    ],
)
def test_the_average_is_taken_and_named(
    tmp_path: Path, key: str, wrapped: Callable[[State, State], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    raw = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
    ema = {"weight": torch.full((1, 2), 2.0), "bias": torch.full((1,), 2.0)}
    torch.save(wrapped(raw, ema), tmp_path / "w.pt")
    with caplog.at_level(logging.INFO, "vizsla"):
        found = {name.rpartition(".")[2]: t for name, t in read_state(tmp_path / "w.pt").items()}
    assert found.keys() == ema.keys() and torch.equal(found["weight"], ema["weight"])
    assert f"w.pt: the averaged weights {key!r} are used" in caplog.text


def test_settings_of_an_average_are_not_an_average(tmp_path: Path) -> None:
    for beside in (
        {"ema": {"decay": 0.9}, "teacher": "b16"},
        {"ema": {"decay": torch.tensor(0.9)}},
        {"teacher": {"layer": torch.ones(5), "bias": torch.ones(5), "more": torch.ones(5)}},
    ):
        state = {"weight": torch.ones(2), "bias": torch.ones(1)}
        torch.save({"model": state, **beside}, tmp_path / "w.pt")
        assert torch.equal(read_state(tmp_path / "w.pt")["weight"], state["weight"])


def test_wrappers_without_an_end_are_refused(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["state_dict"] = endless
    torch.save(endless, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="has no weights"):
        read_state(tmp_path / "w.pt")


# ── objects and programs ─────────────────────────────────────────────────────────────────────────


def run_command_in(message: str, folder: Path) -> None:
    command = re.search(r'python -c "(.*)"$', message)
    assert command, message
    subprocess.run([sys.executable, "-c", command[1]], cwd=folder, check=True, timeout=100)


@pytest.mark.parametrize("place", ["args", "hyper_parameters"])
def test_the_message_about_a_namespace_says_how_to_save_the_weights(
    tmp_path: Path, place: str
) -> None:
    options = argparse.Namespace(lr=0.1)
    inside = options if place == "args" else {"args": options}
    file = tmp_path / "ckpt.pth.tar"
    torch.save({"state_dict": {"weight": torch.ones(2)}, place: inside, "epoch": 3}, file)
    with pytest.raises(ModelError, match=r"more than tensors \(argparse\.Namespace\)") as caught:
        read_state(file)
    run_command_in(str(caught.value), tmp_path)
    assert torch.equal(read_state(tmp_path / "weights.pt")["weight"], torch.ones(2))


def test_the_message_about_torchscript_says_how_to_save_the_weights(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # people have such files all the same
        torch.jit.trace(module, torch.ones(1, 2)).save(tmp_path / "ViT-B-32.pt")
    with pytest.raises(ModelError, match=r"ViT-B-32\.pt is a TorchScript program") as caught:
        read_state(tmp_path / "ViT-B-32.pt")
    run_command_in(str(caught.value), tmp_path)
    assert torch.equal(read_state(tmp_path / "weights.pt")["weight"], module.weight)


def test_openais_settings_among_the_weights_are_left_out(tmp_path: Path, tiny_clip: str) -> None:
    source = build_backbone(tiny_clip, "random", seed=3)
    settings = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16),
                "vocab_size": torch.tensor(49408)}  # fmt: skip
    torch.save({**state_of(source), **settings}, tmp_path / "w.pt")
    require_equal(tiny_clip, tmp_path / "w.pt", source)
