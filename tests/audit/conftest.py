from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photo() -> Callable[..., Image.Image]:
    """photo(3) → an image of clouds and edges, another one for each number."""

    def generate(number: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
        rng = np.random.default_rng(number)
        picture = np.full((size[1], size[0], 3), 128.0)
        for cells in (3, 6, 12, 24):
            coarse = rng.uniform(-1, 1, (cells, cells, 3)) * 200 / cells**0.6
            for channel in range(3):
                layer = Image.fromarray(coarse[..., channel].astype(np.float32))
                picture[..., channel] += np.asarray(layer.resize(size, Image.Resampling.BICUBIC))
        return Image.fromarray(picture.clip(0, 255).astype(np.uint8))

    return generate
