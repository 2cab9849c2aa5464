"""Labelled images, and vectors of them along arcs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vizsla.data.imageset import ImageSet
from vizsla.embed.embeddings import Embeddings

Labelled = Callable[[int, int], ImageSet]
Curled = Callable[[ImageSet], Embeddings]


def _labelled(classes: int, each: int) -> ImageSet:
    ids = sorted(f"{c:02}/{i:02}.png" for c in range(classes) for i in range(each))
    labels = [name.split("/")[0] for name in ids]
    return ImageSet(Path("nowhere"), ids, pa.table({"label": labels}))


@pytest.fixture(scope="session")
def labelled() -> Labelled:
    """A set of so many classes with so many images each."""
    return _labelled


@pytest.fixture(scope="session")
def curled() -> Curled:
    """Vectors: each class lies along an arc, so that its ends are found only through its middle."""

    def vectors(images: ImageSet) -> Embeddings:
        rng = np.random.default_rng(0)
        rows = []
        for name in images.ids:
            c, i = int(name[:2]), int(name[3:5])
            base = np.random.default_rng((7, c)).standard_normal((2, 24))
            angle = 1.9 * i / 12
            point = np.cos(angle) * base[0] + np.sin(angle) * base[1]
            rows.append(point + 0.35 * rng.standard_normal(24))
        return Embeddings.from_arrays(np.array(rows), images.ids, images.labels)

    return vectors


@pytest.fixture(scope="session")
def images() -> ImageSet:
    """16 classes of 12 images."""
    return _labelled(16, 12)
