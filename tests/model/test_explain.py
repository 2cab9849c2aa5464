"""Where two images are alike: the maps add up, and point at what was put there."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vizsla.data.preprocess import Preprocess
from vizsla.model import explain as module
from vizsla.model.embedder import Embedder
from vizsla.model.explain import COVERED, EXACT, explain
from vizsla.model.projection import Projection

SIZE = 64


class Colours(nn.Module):
    """Images → a map of 8 × 8 cells: how red, how green, how blue each cell is."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, SIZE // 8).relu() + 1e-3


class Vector(nn.Module):
    """The same as one vector, in which places cannot be seen; not a plain mean."""

    def forward(self, images: Tensor) -> Tensor:
        return Colours()(images).square().mean((2, 3))


def plain(network: nn.Module, pooling: str | None = None) -> Embedder:
    as_they_are = Preprocess((SIZE, SIZE), mean=(0, 0, 0), std=(1, 1, 1), interpolation="nearest")
    return Embedder.from_module(network, as_they_are, pooling=pooling)


def spotted(spot: tuple[int, int, int], at: tuple[int, int]) -> Image.Image:
    """Black, with a spot of a quarter of the side at a (row, column) of 4 × 4."""
    picture = Image.new("RGB", (SIZE, SIZE))
    side = SIZE // 4
    picture.paste(spot, (at[1] * side, at[0] * side, (at[1] + 1) * side, (at[0] + 1) * side))
    return picture


def noise(seed: int, size: tuple[int, int] = (90, 70)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "network, pooling, method",
    [(Colours(), "gap", EXACT), (Colours(), "gem", EXACT), (Colours(), "max", EXACT),
     (Vector(), "native", COVERED)],
)  # fmt: skip
def test_the_maps_point_at_what_both_pictures_show(
    network: nn.Module, pooling: str, method: str
) -> None:
    query = spotted((255, 0, 0), (0, 1))
    query.paste((0, 0, 255), (48, 48, 64, 64))  # in the query alone
    result = spotted((255, 0, 0), (2, 3))
    result.paste((0, 255, 0), (0, 0, 16, 16))  # in the result alone
    (found,) = explain(plain(network, pooling), query, [result])
    assert found.method == method and found.query.shape == found.result.shape == (8, 8)
    row, column = np.unravel_index(found.query.argmax(), (8, 8))
    assert (row // 2, column // 2) == (0, 1)
    row, column = np.unravel_index(found.result.argmax(), (8, 8))
    assert (row // 2, column // 2) == (2, 3)
    blue = found.query[6:, 6:].max()
    assert blue < 0.2 * found.query.max()


@pytest.mark.parametrize("share", [None, 0.0, 0.4])
@pytest.mark.parametrize("pooling", ["gap", "gem", "max"])
def test_exact_maps_add_up_to_the_score(pooling: str, share: float | None) -> None:
    embedder = Embedder.build("tiny", weights="random", pooling=pooling, image_size=SIZE)
    if share is not None:
        width = embedder.dim
        embedder.projection = Projection(width, 20, frozen_share=share)
        with torch.no_grad():
            embedder.projection.weight += 0.1 * torch.randn(20, width)
            embedder.projection.bias += 0.1 * torch.randn(20)
    pictures = [noise(i) for i in range(3)]
    with torch.inference_mode():
        vectors = embedder(torch.stack([embedder.preprocess(p) for p in pictures]))
    for found, expected in zip(
        explain(embedder, pictures[0], pictures[1:]), vectors[1:] @ vectors[0], strict=True
    ):
        assert found.method == EXACT
        assert found.cosine == pytest.approx(float(expected), abs=1e-5)
        assert found.query.sum() == pytest.approx(found.cosine, abs=1e-4)
        assert found.result.sum() == pytest.approx(found.cosine, abs=1e-4)


def test_tokens_are_laid_out_as_they_lie_in_the_picture() -> None:
    class Tokens(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return Colours()(images).flatten(2).transpose(1, 2)  # (B, 64, 3)

    pictures = spotted((0, 255, 0), (1, 2)), [spotted((0, 255, 0), (3, 0))]
    (as_map,), (as_tokens,) = (explain(plain(n, "gap"), *pictures) for n in (Colours(), Tokens()))
    assert np.allclose(as_map.query, as_tokens.query, atol=1e-6)
    assert np.allclose(as_map.result, as_tokens.result, atol=1e-6)


def test_a_native_average_is_explained_exactly() -> None:
    embedder = Embedder.build("tiny", weights="random", pooling="native", image_size=SIZE)
    image = embedder.preprocess(noise(0))
    average = torch.allclose(
        embedder.backbone.native(image[None]), embedder.backbone.features(image[None]).mean((2, 3)),
        atol=1e-5,
    )  # fmt: skip
    (found,) = explain(embedder, noise(0), [noise(1)])
    assert found.method == (EXACT if average else COVERED)


def test_an_unknown_projection_is_explained_by_covering() -> None:
    embedder = plain(Colours(), "gap")
    embedder.projection = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    (found,) = explain(embedder, noise(0), [noise(1)])
    assert found.method == COVERED


def test_covering_measures_what_the_score_loses() -> None:
    """By hand: the image with that window black gives the lower score."""
    embedder = plain(Vector(), "native")
    query, result = spotted((200, 90, 0), (1, 1)), noise(3, (SIZE, SIZE))
    (found,) = explain(embedder, query, [result])
    covered = embedder.preprocess(query)
    step = SIZE // module.WINDOWS
    covered[:, 2 * step - step // 2 : 3 * step + step // 2,
            3 * step - step // 2 : 4 * step + step // 2] = 0  # fmt: skip
    pictures = [embedder.preprocess(query), covered, embedder.preprocess(result)]
    with torch.inference_mode():
        whole, part, other = embedder(torch.stack(pictures))
    assert found.query[2, 3] == pytest.approx(float(whole @ other - part @ other), abs=1e-5)


def test_no_results_need_no_explanation() -> None:
    assert explain(plain(Colours(), "gap"), noise(0), []) == []


class Slow(Vector):
    """Takes 4 ms for every image, by a clock of its own."""

    seen = 0

    def forward(self, images: Tensor) -> Tensor:
        type(self).seen += len(images)
        return super().forward(images)

    @classmethod
    def clock(cls) -> float:
        return 0.004 * cls.seen


@pytest.mark.parametrize("seconds, expected", [(0.01, 3), (0.3, 6), (100.0, 8), (None, 8)])
def test_where_time_is_short_fewer_parts_are_covered(
    seconds: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "perf_counter", Slow.clock)
    embedder = plain(Slow(), "native")
    pictures = [spotted((255, 0, 0), at) for at in ((0, 1), (2, 3))]
    pictures[0].paste((0, 0, 255), (48, 48, 64, 64))  # in the query alone
    pictures[1].paste((0, 255, 0), (0, 0, 16, 16))
    query, result = (embedder.preprocess(picture) for picture in pictures)
    Slow.seen = 0
    (found,) = module.explain_tensors(embedder, query, result[None], seconds=seconds)
    windows = len(found.query)
    assert found.query.shape == found.result.shape == (windows, windows)
    assert windows == expected and Slow.seen == 2 + 2 * windows**2
    row, column = np.unravel_index(found.query.argmax(), found.query.shape)
    assert (row + 0.5) / windows == pytest.approx(0.125, abs=1 / windows)
    assert (column + 0.5) / windows == pytest.approx(0.375, abs=1 / windows)


def test_half_precision_covers_the_same_places() -> None:
    embedder = plain(Vector(), "native")
    query, result = (embedder.preprocess(noise(i, (SIZE, SIZE))) for i in (0, 1))
    (whole,) = module.explain_tensors(embedder, query, result[None])
    (half,) = module.explain_tensors(embedder, query, result[None], precision=torch.bfloat16)
    assert half.cosine == pytest.approx(whole.cosine, abs=1e-2)
    assert np.corrcoef(half.query.ravel(), whole.query.ravel())[0, 1] > 0.9
