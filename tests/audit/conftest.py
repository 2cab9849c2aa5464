from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw


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
        made = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(made)
        for _ in range(8):  # sharp edges
            x, y = rng.uniform(0, 0.8, 2) * size
            width, height = rng.uniform(0.05, 0.2, 2) * size
            draw.ellipse((x, y, x + width, y + height), tuple(rng.integers(0, 256, 3).tolist()))
        return made

    return generate
