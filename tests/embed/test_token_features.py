"""Tokens of a network as local features."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import load_checkpoint
from timm.models.vision_transformer import checkpoint_filter_fn

from vizsla.embed.embeddings import Embeddings
from vizsla.embed.local_features import LocalFeatures
from vizsla.embed.token_features import Tokens, tokens_of
from vizsla.embed.vector_source import VectorSource
from vizsla.errors import DataError
from vizsla.model.embedder import Embedder
from vizsla.search.chain import parse_chain, rank_refined
from vizsla.search.geometry import geometry_of

Scene = Callable[..., Image.Image]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.build("tiny", weights="random", image_size=128, seed=0)


@pytest.fixture
def vectors(embedder: Embedder, scene: Scene, tmp_path: Path) -> Embeddings:
    """Of five images, with vectors that say nothing."""
    folder = tmp_path / "images"
    folder.mkdir()
    names = [f"{i}.png" for i in range(5)]
    for i, name in enumerate(names):
        scene(i, (160, 160)).save(folder / name)
    made = Embeddings.from_arrays(np.eye(5), names, model_id=embedder.model_id)
    return Embeddings(
        names, made.vectors, made.attributes, embedder.model_id, root=folder,
        source=VectorSource(embedder.source, str(folder)),
    )  # fmt: skip


def test_each_token_is_a_point_of_what_the_network_sees(
    embedder: Embedder, vectors: Embeddings, scene: Scene
) -> None:
    found = Tokens.of(embedder, vectors, None)(scene(1, (160, 160)))
    side = round(len(found) ** 0.5)
    cell = 128 / side
    assert found.kind == "tokens" and found.size == (128, 128) and found.reach == cell
    np.testing.assert_allclose(found.points[0], [cell / 2, cell / 2])
    np.testing.assert_allclose(found.points[1] - found.points[0], [cell, 0])
    np.testing.assert_allclose(np.linalg.norm(found.unit, axis=1), 1, atol=1e-3)
    again = LocalFeatures.from_bytes(found.to_bytes())
    np.testing.assert_array_equal(again.descriptors, found.descriptors)
    assert again.kind == "tokens" and again.reach == found.reach


def test_tokens_of_a_vit_are_those_of_its_patches(scene: Scene, tmp_path: Path) -> None:
    """DINOv2 with registers, from a checkpoint of random weights: no class token, no register."""
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, img_size=518)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    vit = Embedder.build("dinov2-s14-reg", weights=str(tmp_path / "vit.safetensors"), image_size=70)
    names = [f"{i}.png" for i in range(4)]
    for i, name in enumerate(names):
        scene(i, (160, 160)).save(tmp_path / name)
    same = np.tile(np.eye(4)[:1], (4, 1))  # vectors that say nothing
    made = Embeddings.from_arrays(same, names, model_id=vit.model_id)
    gallery = dataclasses.replace(
        made, root=tmp_path, source=VectorSource(vit.source, str(tmp_path))
    )
    rows, grid, size = tokens_of(vit, scene(1, (160, 160)))
    assert grid == (5, 5) and size == (70, 70)
    own = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, img_size=70).eval()
    load_checkpoint(own, str(tmp_path / "vit.safetensors"), filter_fn=checkpoint_filter_fn)
    with torch.inference_mode():
        tokens = own.forward_features(vit.preprocess(scene(1, (160, 160)))[None])[0, 1 + 4 :]
    np.testing.assert_allclose(
        rows, torch.nn.functional.normalize(tokens, dim=1).numpy(), atol=1e-4
    )
    for chain in ("maxsim(n=4)", "verify(n=4,features=tokens)"):
        ranking = rank_refined(gallery.subset([2]), gallery, parse_chain(chain))
        assert ranking.row(0)[0] == "2.png"


def test_the_axes_are_learned_once(
    embedder: Embedder, vectors: Embeddings, scene: Scene, tmp_path: Path
) -> None:
    first = Tokens.of(embedder, vectors, tmp_path / "kept")
    assert vectors.root is not None
    shutil.rmtree(vectors.root)
    again = Tokens.of(embedder, vectors, tmp_path / "kept")
    assert first.space == again.space
    np.testing.assert_array_equal(first.axes, again.axes)
    with pytest.raises(DataError, match="none of them can be read"):
        Tokens.of(embedder, vectors, None)


def test_an_image_matches_itself_where_it_is(
    embedder: Embedder, vectors: Embeddings, scene: Scene
) -> None:
    pytest.importorskip("cv2", reason="needs the extra local")
    found = Tokens.of(embedder, vectors, None)(scene(1, (160, 160)))
    geometry = geometry_of(found, found)
    assert geometry.matrix is not None
    np.testing.assert_allclose(geometry.matrix, np.eye(3), atol=1e-3)


def test_verify_takes_tokens_of_the_gallerys_model(vectors: Embeddings) -> None:
    pytest.importorskip("cv2", reason="needs the extra local")
    chain = parse_chain("verify(n=4,features=tokens)")
    found = rank_refined(vectors, vectors, chain, same_set=True)
    assert found.origin["refine"]["chain"] == str(chain)
    again = rank_refined(vectors, vectors, chain, same_set=True)
    np.testing.assert_array_equal(found.scores, again.scores)
    unknown = Embeddings(
        vectors.ids, vectors.vectors, vectors.attributes, vectors.model_id, root=vectors.root
    )
    with pytest.raises(DataError, match="record"):
        rank_refined(unknown, unknown, chain, same_set=True)
