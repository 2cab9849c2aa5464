"""Views of an image: what they are, that they are part of the model, and that they are kept."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vizsla.data.preprocess import Preprocess
from vizsla.errors import ModelError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.views import Views


def built(**options: object) -> Embedder:
    return Embedder.build("tiny", weights="random", image_size=64, **options)  # type: ignore[arg-type]


def pictures(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_views_are_read_and_said() -> None:
    assert Views.parse("flip") == Views(flip=True)
    assert Views.parse(" 1, 0.7 ,1.4") == Views((1.0, 0.7, 1.4))
    assert str(Views.parse("1.5,flip,1")) == "flip,1.5,1"
    assert Views.parse("none") is None and Views.parse("1") is None
    for text, message in [
        ("mirror", "neither flip"),
        ("1,1", "different"),
        ("9", "0.25 to 4"),
        ("nan", "0.25 to 4"),
        (",".join(f"{1 + i / 10}" for i in range(9)), "up to 8"),
    ]:
        with pytest.raises(UsageError, match=message):
            Views.parse(text)


def test_vectors_are_the_mean_of_the_views_unit_vectors() -> None:
    plain, images = built(), pictures()
    with torch.no_grad():
        single = [plain(images), plain(images.flip(3))]
        mirrored = built().with_views("flip")(images)
        torch.testing.assert_close(mirrored, F.normalize((single[0] + single[1]) / 2, dim=1))
        torch.testing.assert_close(mirrored, built().with_views("flip")(images.flip(3)))
        larger = F.interpolate(images, (96, 96), mode="bicubic", antialias=True)
        scaled = built().with_views("1,1.5")(images)
        expected = F.normalize((single[0] + plain(larger)) / 2, dim=1)
        torch.testing.assert_close(scaled, expected)


def test_views_are_part_of_the_model_and_of_its_folder(tmp_path: Path) -> None:
    plain = built()
    ids = {built().with_views(text).model_id for text in ("none", "flip", "1,0.7", "flip,1,0.7")}
    assert len(ids) == 4 and plain.model_id in ids
    seeing = built().with_views("flip,1,0.7")
    seeing.save(tmp_path / "e")
    again = Embedder.load(tmp_path / "e")
    assert again.views == seeing.views and again.model_id == seeing.model_id
    with torch.no_grad():
        np.testing.assert_array_equal(again(pictures()), seeing(pictures()))
    assert "flip,1,0.7" in (tmp_path / "e" / "README.md").read_text()
    assert again.with_views("none").model_id == plain.model_id


def test_a_network_of_one_size_refuses_other_scales() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3 * 32 * 32, 8)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.layer(images.flatten(1))
            return found

    embedder = Embedder.from_module(Fixed(), Preprocess((32, 32)))
    with pytest.raises(ModelError, match="32 pixels only"):
        embedder.with_views("1,2")
    assert embedder.views is None
    assert len(embedder.with_views("flip").views or ()) == 2
