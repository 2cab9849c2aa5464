import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from vizsla.data.preprocess import Preprocess, check_image_size
from vizsla.errors import ModelError, UsageError

SIZES = [(300, 300), (640, 427), (427, 640), (97, 31), (31, 97), (224, 256), (1, 1)]


def noise(size: tuple[int, int]) -> Image.Image:
    wide, high = size
    values = np.random.default_rng(wide * 1000 + high).integers(0, 256, (high, wide, 3))
    return Image.fromarray(values.astype(np.uint8))


def theirs(preprocess: Preprocess, resize: object, crop: int, image: Image.Image) -> torch.Tensor:
    """The same by torchvision, an independent library."""
    steps = transforms.Compose(
        [
            transforms.Resize(resize, InterpolationMode(preprocess.interpolation)),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize(preprocess.mean, preprocess.std),
        ]
    )
    tensor: torch.Tensor = steps(image)
    return tensor


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", SIZES)
def test_crop_agrees_with_torchvision(size: tuple[int, int], interpolation: str) -> None:
    ours = Preprocess((224, 224), 256, "crop", interpolation)
    assert torch.equal(ours(noise(size)), theirs(ours, 256, 224, noise(size)))


@pytest.mark.parametrize("size", SIZES)
def test_crop_without_border_agrees_with_torchvision(size: tuple[int, int]) -> None:
    ours = Preprocess((64, 64))
    assert torch.equal(ours(noise(size)), theirs(ours, 64, 64, noise(size)))


@pytest.mark.parametrize("size", SIZES)
def test_squash_agrees_with_torchvision(size: tuple[int, int]) -> None:
    ours = Preprocess((64, 64), None, "squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert torch.equal(ours(noise(size)), theirs(ours, (64, 64), 64, noise(size)))
    border = Preprocess((64, 64), 72, "squash")
    assert torch.equal(border(noise(size)), theirs(border, (72, 72), 64, noise(size)))


@pytest.mark.parametrize("size", SIZES)
def test_other_framings_agree_with_torchvision(size: tuple[int, int]) -> None:
    border = Preprocess((64, 64), 72)
    cover, squash = border.framed("cover"), border.framed("squash")
    assert torch.equal(cover(noise(size)), theirs(cover, 64, 64, noise(size)))
    assert torch.equal(squash(noise(size)), theirs(squash, (64, 64), 64, noise(size)))
    assert [one.framed_as for one in (border, cover, squash)] == [None, "cover", "squash"]
    with pytest.raises(UsageError, match="cover or squash"):
        border.framed("fit")


def test_squash_keeps_the_edges_that_crop_cuts_off() -> None:
    striped = Image.new("RGB", (300, 100), (0, 0, 0))
    striped.paste((255, 255, 255), (0, 0, 60, 100))  # white at the far left
    squash = Preprocess((32, 32), mode="squash", mean=(0.5,) * 3, std=(0.5,) * 3)
    crop = Preprocess((32, 32), mode="crop", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert squash(striped)[:, :, 0].mean() > 0.9
    assert crop(striped).max() == -1


def test_colours_are_normalised_channel_by_channel() -> None:
    preprocess = Preprocess((8, 8), mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    tensor = preprocess(Image.new("RGB", (10, 10), (255, 0, 51)))
    assert tensor.shape == (3, 8, 8) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert torch.allclose(tensor[:, 4, 4], torch.tensor([1.0, -1.0, -3.2]))


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (30_000, 2)])
def test_a_long_strip_costs_neither_time_nor_memory(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    resize, resized = Image.Image.resize, []

    def recorded(image: Image.Image, size: tuple[int, int], *more: object, **named: object) -> Any:
        resized.append(size)
        return resize(image, size, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", recorded)
    strip = Image.new("RGB", size, (0, 0, 255))
    x, y = size[0] // 2, size[1] // 2
    strip.paste((255, 0, 0), (x - 8, y - 8, x + 8, y + 8))
    tensor = Preprocess((224, 224), 256)(strip)
    assert [wide * high for wide, high in resized] == [8 * 256 * 256]
    assert tensor.shape == (3, 224, 224)
    assert tensor[0].max() > 0  # the red is at the centre


def test_a_picture_is_neither_changed_nor_seen_differently_twice() -> None:
    image = noise((120, 80))
    before = image.tobytes()
    preprocess = Preprocess((32, 32), 40)
    assert torch.equal(preprocess(image), preprocess(image))
    assert image.tobytes() == before


def test_survives_json() -> None:
    first = Preprocess((224, 224), 235, "squash", "bilinear", (0.1, 0.2, 1 / 3), (0.4, 0.5, 0.6))
    assert Preprocess.from_dict(json.loads(json.dumps(first.to_dict()))) == first


@pytest.mark.parametrize(
    "content", [{"sizes": [1, 1]}, {"size": 224}, {"size": [224, 224], "mode": "stretch"}, []]
)
def test_a_wrong_description_is_a_model_error(content: dict[str, object]) -> None:
    with pytest.raises(ModelError):
        Preprocess.from_dict(content)


def test_another_size_keeps_the_share_that_is_cut_off() -> None:
    assert Preprocess((224, 224), 256).with_size(448) == Preprocess((448, 448), 512)
    assert Preprocess((224, 224), None).with_size(96) == Preprocess((96, 96), None)
    assert Preprocess((224, 224), 235).with_size(224) == Preprocess((224, 224), 235)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"mode": "pad"}, "crop or squash"),
        ({"interpolation": "random"}, "bicubic"),
        ({"resize": 200}, "smaller"),
        ({"size": (0, 5)}, "height, width"),
        ({"std": (1.0, 1.0, 0.0)}, "above 0"),
        ({"mean": (1.0,)}, "three"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, object], word: str) -> None:
    with pytest.raises(ModelError, match=word):
        Preprocess(**change)  # type: ignore[arg-type]


def test_sizes_have_bounds() -> None:
    check_image_size(16)
    for size in (-224, 0, 15, 5000):
        with pytest.raises(UsageError, match="16 to 4096"):
            check_image_size(size)


def test_reads_as_a_sentence() -> None:
    assert str(Preprocess((224, 224), 256)) == "shorter side to 256, centre 224×224, bicubic"
    assert str(Preprocess((64, 64), mode="squash")) == "squashed to 64×64, bicubic"
