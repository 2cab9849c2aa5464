import copy
import dataclasses
import json
import logging
import re
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vizsla import storage
from vizsla.data.preprocess import Preprocess
from vizsla.errors import MissingExtraError, ModelError, StorageError, UsageError
from vizsla.model.embedder import Embedder, read_config

PLAIN = Preprocess((16, 16), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class MeanColour(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def tiny(**options: Any) -> Embedder:
    return Embedder.build("tiny", weights="random", **{"image_size": 64, **options})


def pictures(embedder: Embedder, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *embedder.preprocess.size, generator=generator)


def embed(embedder: Embedder, images: Tensor | None = None) -> Tensor:
    with torch.inference_mode():
        vectors: Tensor = embedder(pictures(embedder) if images is None else images)
        return vectors


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# ── vectors ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("pooling", ["gap", "gem", "max", "native"])
def test_vectors_have_length_one(pooling: str) -> None:
    embedder = tiny(pooling=pooling)
    vectors = embed(embedder)
    assert vectors.shape == (3, embedder.dim) == (3, 512) and vectors.dtype == torch.float32
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-6)
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-3)


def test_it_shows_itself_in_few_lines() -> None:
    shown = repr(Embedder.build("tiny", weights="random"))
    assert shown.startswith("Embedder tiny, gap pooling") and len(shown) < 300


def test_poolings_differ() -> None:
    found = [embed(tiny(pooling=pooling)) for pooling in ("gap", "gem", "max")]
    for a in range(3):
        for b in range(a):
            assert not torch.allclose(found[a], found[b], atol=1e-3)
    staged = embed(tiny(pooling="stages"))
    assert staged.shape[1] == tiny(pooling="stages").dim == 512 + 2 * (256 + 512)
    torch.testing.assert_close(nn.functional.normalize(staged[:, :512], dim=1), found[0])


def test_under_autocast_vectors_are_float32_of_length_one() -> None:
    embedder = tiny(pooling="gem")
    with torch.autocast("cpu", torch.bfloat16):
        vectors = embed(embedder)
    assert vectors.dtype == torch.float32
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-6)


def test_the_projection_is_computed_in_float32_always() -> None:
    embedder = Embedder.from_module(MeanColour(), PLAIN)
    embedder.projection = nn.Linear(3, 8)
    plain = embed(embedder)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embed(embedder), plain)


def test_a_zero_vector_stays_zero() -> None:
    embedder = Embedder.from_module(MeanColour(), PLAIN)
    images = torch.zeros(2, 3, 16, 16)
    images[1, 0] = 1
    assert embed(embedder, images).tolist() == [[0, 0, 0], [1, 0, 0]]


def test_gradients_reach_the_first_layer_and_gem() -> None:
    embedder = tiny(pooling="gem").train()
    embedder(pictures(embedder))[:, 0].sum().backward()
    assert embedder.backbone.network.conv1[0].weight.grad.abs().sum() > 0
    assert embedder.pool.p.grad.abs() > 0  # type: ignore[union-attr, operator]


def test_a_picture_becomes_a_vector() -> None:
    embedder = tiny()
    image = Image.new("RGB", (50, 40), (200, 30, 30))
    assert embed(embedder, embedder.preprocess(image)[None]).shape == (1, 512)


def test_the_default_pooling_is_the_backbones() -> None:
    assert tiny().pooling == "gap"
    with torch.device("meta"):
        assert Embedder.build("dinov2-s14", weights="random").pooling == "cls"
        assert Embedder.build("dinov3-s16", weights="random").pooling == "native"


def test_a_pooling_that_is_not_there_is_refused_before_any_weights_are_looked_for() -> None:
    with pytest.raises(
        ModelError, match="resnet50 has no cls pooling: choose one of gap, gem, max"
    ):
        Embedder.build("resnet50", weights="no such file", pooling="cls")
    with pytest.raises(UsageError, match="gap, gem, max, cls, native"):
        Embedder.build("resnet50", weights="no such file", pooling="avg")


def test_what_it_is() -> None:
    embedder = tiny(pooling="gem")
    assert (embedder.name, embedder.pooling, embedder.dim) == ("tiny", "gem", 512)
    assert not embedder.reads_text and not embedder.training
    assert embedder.preprocess.size == (64, 64)
    config = embedder.config
    assert json.loads(json.dumps(config)) == config
    assert (config["image_size"], config["pooling"], config["projection"]) == (64, "gem", None)


# ── the folder ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "pooling", "image_size"),
    [
        ("tiny", "gem", 48),
        ("googlenet", "max", 64),
        ("timm:test_vit", "cls", 96),
        ("timm:test_efficientnet", "native", None),
        ("timm:test_convnext", "gap", 64),
    ],
)
def test_a_saved_embedder_comes_back_bit_for_bit(
    tmp_path: Path, no_network: None, name: str, pooling: str, image_size: int | None
) -> None:
    first = Embedder.build(name, weights="random", pooling=pooling, image_size=image_size, seed=9)
    first.save(tmp_path / "e")
    second = Embedder.load(tmp_path / "e")
    assert torch.equal(embed(first), embed(second))
    assert second.preprocess == first.preprocess and second.config == first.config
    assert second.model_id == first.model_id and not second.training
    second._known_digest = None  # and not because it was written down
    assert second.model_id == first.model_id


def test_the_preprocessing_comes_back_as_it_was_left(tmp_path: Path) -> None:
    embedder = tiny()
    embedder.preprocess = dataclasses.replace(embedder.preprocess, interpolation="lanczos")
    embedder.save(tmp_path)
    again = Embedder.load(tmp_path)
    assert again.preprocess == embedder.preprocess and again.model_id == embedder.model_id


def test_a_folder_holds_what_the_design_says(tmp_path: Path) -> None:
    embedder = tiny()
    embedder.save(tmp_path / "e")
    names = {p.name for p in (tmp_path / "e").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md"}
    config = read_config(tmp_path / "e")
    assert config["files"] == {
        "model.safetensors": storage.sha256_of(tmp_path / "e" / "model.safetensors")
    }
    assert config["model_id"] == embedder.model_id
    card = (tmp_path / "e" / "README.md").read_text()
    for fact in ("# tiny", "apache-2.0", "512 numbers", "Embedder.load", embedder.model_id, "gap"):
        assert fact in card


def test_saving_twice_gives_the_same_files(tmp_path: Path) -> None:
    embedder = tiny()
    for name in ("a", "b"):
        embedder.save(tmp_path / name)
    Embedder.load(tmp_path / "a").save(tmp_path / "c")
    for file in ("config.json", "model.safetensors", "README.md"):
        contents = {(tmp_path / name / file).read_bytes() for name in "abc"}
        assert len(contents) == 1, file


def test_a_moved_folder_still_loads(tmp_path: Path) -> None:
    tiny().save(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert Embedder.load(tmp_path / "there").dim == 512


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_found_before_anything_is_built(tmp_path: Path, file: str, damage: str) -> None:
    tiny().save(tmp_path)
    path = tmp_path / file
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    with pytest.raises((StorageError, ModelError), match=re.escape(str(tmp_path))):
        Embedder.load(tmp_path)


def test_what_is_no_embedder_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a saved embedder"):
        Embedder.load(tmp_path / "nothing")
    storage.write_sealed_json(tmp_path / "config.json", {"form": "run/1"})
    with pytest.raises(ModelError, match="not a saved embedder, but 'run/1'"):
        Embedder.load(tmp_path)


def test_an_interrupted_save_over_another_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(seed=1).save(tmp_path)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write_sealed_json", stop)
    with pytest.raises(KeyboardInterrupt):
        tiny(seed=2).save(tmp_path)
    with pytest.raises(StorageError, match="damaged"):
        Embedder.load(tmp_path)


def test_an_architecture_that_the_library_lost_is_named(tmp_path: Path) -> None:
    tiny().save(tmp_path)
    config = read_config(tmp_path)
    config["backbone"]["architecture"] = "resnet10q"
    storage.write_sealed_json(tmp_path / "config.json", config)
    with pytest.raises(ModelError, match="this timm has no model resnet10q"):
        Embedder.load(tmp_path)


def test_shared_tensors_are_saved(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    module[1].weight = module[0].weight
    embedder = Embedder.from_module(module, PLAIN)
    embedder.save(tmp_path)
    again = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    assert torch.equal(embed(Embedder.load(tmp_path, module=again)), embed(embedder))


# ── model_id ─────────────────────────────────────────────────────────────────────────────────────


def test_the_id_is_short_hex_and_the_same_for_the_same() -> None:
    first, second = tiny(), tiny()
    assert re.fullmatch("[0-9a-f]{16,}", first.model_id)
    assert first.model_id == first.model_id == second.model_id


def test_the_id_changes_with_weights_pooling_size_and_projection() -> None:
    ids = [
        tiny().model_id,
        tiny(seed=1).model_id,
        tiny(pooling="gem").model_id,
        tiny(pooling="max").model_id,
        tiny(pooling="native").model_id,
        tiny(image_size=48).model_id,
    ]
    prepared = tiny()
    prepared.preprocess = Preprocess((64, 64), None, "squash")
    projected = tiny()
    projected.projection = nn.Linear(512, 8)
    assert len({*ids, prepared.model_id, projected.model_id}) == len(ids) + 2


@pytest.mark.parametrize("how", ["in place", "optimiser", "data", "load", "p", "statistics"])
def test_the_id_is_never_stale(how: str) -> None:
    embedder = tiny(pooling="gem")
    before = embedder.model_id
    weight = embedder.backbone.network.layer1[0].conv1.weight
    if how == "in place":
        with torch.no_grad():
            weight[0, 0, 0, 0] += 0.01
    elif how == "optimiser":
        embedder.train()
        optimiser = torch.optim.AdamW(embedder.parameters(), 1e-4)
        embedder(pictures(embedder)).sum().backward()
        optimiser.step()
    elif how == "data":
        weight.data.mul_(0.99)
    elif how == "load":
        embedder.load_state_dict(tiny(pooling="gem", seed=3).state_dict())
    elif how == "p":
        with torch.no_grad():
            embedder.pool.p.fill_(4)  # type: ignore[union-attr, operator]
    else:
        embedder.train()(pictures(embedder))  # batch norm looks at them
    assert embedder.model_id != before


def test_the_id_does_not_change_with_anything_else() -> None:
    embedder = tiny()
    before = embedder.model_id
    embed(embedder)
    assert embedder.model_id == before
    embedder.train().eval().requires_grad_(False)
    assert embedder.model_id == before
    assert copy.deepcopy(embedder).model_id == before
    embedder.to(memory_format=torch.channels_last)
    assert embedder.model_id == before
    embedder.name = "another"
    embedder.backbone.network.bn1.num_batches_tracked += 5  # a counter: no vector depends on it
    assert embedder.model_id == before


@pytest.mark.parametrize("known", [True, False])
def test_a_cast_keeps_the_id_there_and_back(known: bool) -> None:
    expected, embedder = tiny().model_id, tiny()
    if known:
        assert embedder.model_id == expected
    assert embedder.to(torch.bfloat16).model_id == expected
    assert embedder.float().model_id == expected
    with torch.no_grad():
        embedder.backbone.network.conv1[0].weight.mul_(2)
    assert embedder.model_id != expected


def test_the_id_does_not_depend_on_what_the_model_was_called(tmp_path: Path) -> None:
    source = Embedder.build("resnet18", weights="random", seed=3)
    torch.save(source.backbone.network.state_dict(), tmp_path / "own.pth")
    for name in ("timm:resnet18.tv_in1k", "ResNet_18"):
        other = Embedder.build(name, weights=tmp_path / "own.pth")
        assert other.model_id == source.model_id


# ── a module of one's own ────────────────────────────────────────────────────────────────────────


class Map(nn.Module):
    """A map (B, 5, H/4, W/4), or its places as tokens."""

    def __init__(self, *, tokens: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4, stride=4)
        self.tokens = tokens

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.conv(images)
        return found.flatten(2).transpose(1, 2) if self.tokens else found


def test_a_module_that_gives_vectors() -> None:
    embedder = Embedder.from_module(MeanColour(), PLAIN, name="mean-colour")
    assert (embedder.name, embedder.dim, embedder.pooling) == ("mean-colour", 3, "native")
    red = embedder.preprocess(Image.new("RGB", (20, 20), (255, 0, 0)))
    assert embed(embedder, red[None]).tolist() == [[1, 0, 0]]
    with pytest.raises(ModelError, match="mean-colour has no gem pooling: choose one of native"):
        Embedder.from_module(MeanColour(), PLAIN, name="mean-colour", pooling="gem")


@pytest.mark.parametrize("tokens", [False, True])
def test_a_module_that_gives_a_map_or_tokens_can_be_pooled(tokens: bool) -> None:
    found = []
    for pooling in (None, "gem", "max"):
        torch.manual_seed(0)
        embedder = Embedder.from_module(Map(tokens=tokens), PLAIN, pooling=pooling)
        assert embedder.dim == 5 and embed(embedder).shape == (3, 5)
        found.append(embed(embedder))
    assert not torch.allclose(found[0], found[1]) and not torch.allclose(found[1], found[2])


@pytest.mark.parametrize(
    "module", [nn.Flatten(0), nn.LSTM(16, 4), nn.Linear(5, 2), nn.Unflatten(3, (4, 4))]
)
def test_a_module_that_gives_anything_else_is_refused(module: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"\(2, 3, 16, 16\)|expected vectors \(2, D\)"):
        Embedder.from_module(module, PLAIN)


def test_trying_a_module_changes_nothing() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = copy.deepcopy(module.state_dict())
    Embedder.from_module(module, PLAIN)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_module_is_needed_again_to_load(tmp_path: Path) -> None:
    embedder = Embedder.from_module(Map(), PLAIN, name="own", pooling="gem")
    embedder.save(tmp_path)
    with pytest.raises(ModelError, match=r"own was made from a module .*Map.* module="):
        Embedder.load(tmp_path)
    again = Embedder.load(tmp_path, module=Map())
    assert torch.equal(embed(again), embed(embedder))
    assert again.model_id == embedder.model_id and again.preprocess == PLAIN
    with pytest.raises(ModelError, match="does not match"):
        Embedder.load(tmp_path, module=nn.Conv2d(3, 5, 4))
    tiny().save(tmp_path / "tiny")
    with pytest.raises(UsageError, match="leave out module="):
        Embedder.load(tmp_path / "tiny", module=Map())


def test_modules_of_one_state_are_told_apart_by_name() -> None:
    a = Embedder.from_module(MeanColour(), PLAIN, name="a").model_id
    assert a == Embedder.from_module(MeanColour(), PLAIN, name="a").model_id
    assert a != Embedder.from_module(MeanColour(), PLAIN, name="b").model_id


# ── text ─────────────────────────────────────────────────────────────────────────────────────────


def test_texts_become_unit_vectors_beside_the_pictures(tiny_clip: str) -> None:
    embedder = Embedder.build(tiny_clip, weights="random")
    assert embedder.reads_text and embedder.pooling == "native"
    texts = [f"an image of {n} dogs" for n in range(70)]  # more than one portion
    with torch.inference_mode():
        vectors = embedder.encode_text(texts)
        alone = embedder.encode_text(texts[69:])
        assert embedder.encode_text([]).shape == (0, 16)
        assert torch.equal(embedder.encode_text("a dog"), embedder.encode_text(["a dog"]))  # type: ignore[arg-type]
    assert vectors.shape == (70, embedder.dim) and vectors.dtype == torch.float32
    assert torch.allclose(vectors.norm(dim=1), torch.ones(70), atol=1e-6)
    assert torch.allclose(vectors[69], alone[0], atol=1e-5)
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-4)


def test_texts_pass_through_the_projection(tiny_clip: str) -> None:
    embedder = Embedder.build(tiny_clip, weights="random")
    before = embedder.encode_text(["a dog"])
    embedder.projection = nn.Linear(16, 16, bias=False)
    expected = nn.functional.normalize(embedder.projection(before), dim=1)
    assert torch.allclose(embedder.encode_text(["a dog"]), expected, atol=1e-6)


def test_a_saved_text_model_reads_the_same(
    tiny_clip: str, tmp_path: Path, no_network: None
) -> None:
    first = Embedder.build(tiny_clip, weights="random", image_size=64)
    first.save(tmp_path)
    second = Embedder.load(tmp_path)
    with torch.inference_mode():
        assert torch.equal(first.encode_text(["a dog"]), second.encode_text(["a dog"]))
    assert torch.equal(embed(first), embed(second))
    assert second.reads_text and second.model_id == first.model_id


def test_another_pooling_has_no_use_for_the_text_tower(tiny_clip: str, tmp_path: Path) -> None:
    embedder = Embedder.build(tiny_clip, weights="random", pooling="gap")
    assert not embedder.reads_text and embedder.dim == 32
    assert not any("token_embedding" in name for name in embedder.state_dict())
    with pytest.raises(ModelError, match="native pooling: with gap pooling"):
        embedder.encode_text(["a dog"])
    embedder.save(tmp_path)
    assert torch.equal(embed(Embedder.load(tmp_path)), embed(embedder))


def test_a_model_without_text_says_so() -> None:
    with pytest.raises(ModelError, match="tiny reads no text: choose a CLIP"):
        tiny().encode_text(["a dog"])


@pytest.fixture
def siglip_like(tmp_path: Path) -> str:
    """Its tokeniser is said to be on the hub, as SigLIP's is."""
    import open_clip

    config = {
        "embed_dim": 64,
        "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_proj": "none"},
        "text_cfg": {
            "context_length": 8,
            "vocab_size": 100,
            "width": 16,
            "heads": 2,
            "layers": 1,
            "hf_tokenizer_name": "nobody/nothing",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "pool_type": "last",
        },
    }
    (tmp_path / "tiny-siglip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-siglip.json")
    return "openclip:tiny-siglip"


def test_a_tokeniser_of_the_hub_needs_the_extra(
    siglip_like: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    embedder = Embedder.build(siglip_like, weights="random")
    assert embed(embedder).shape == (3, 64)
    with pytest.raises(MissingExtraError, match=r"vizsla\[siglip\]"):
        embedder.encode_text(["a dog"])
    with caplog.at_level(logging.WARNING, "vizsla"):
        embedder.save(tmp_path / "e")
    assert "saved without its tokeniser" in caplog.text
    assert torch.equal(embed(Embedder.load(tmp_path / "e")), embed(embedder))


def test_a_tokeniser_travels_in_the_folder(
    siglip_like: str, tmp_path: Path, no_network: None
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", "a", "dog", "cat"])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(tmp_path / "tokeniser")
    embedder = Embedder.build(siglip_like, weights="random")
    embedder.backbone.tokeniser_folder = tmp_path / "tokeniser"
    embedder.save(tmp_path / "e")
    shutil.rmtree(tmp_path / "tokeniser")
    again = Embedder.load(tmp_path / "e")
    texts = ["a dog", "a cat"]
    assert torch.equal(again.encode_text(texts), embedder.encode_text(texts))
    assert not torch.allclose(*again.encode_text(texts))
    file = next((tmp_path / "e" / "tokeniser").glob("*.json"))
    file.write_text(file.read_text() + " ")
    with pytest.raises(StorageError, match="damaged"):
        Embedder.load(tmp_path / "e")
