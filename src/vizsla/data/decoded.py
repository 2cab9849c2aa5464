"""Paths, Pillow images and arrays → the pixels of a network's input."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from vizsla.data.images import MAX_PIXELS, read_image
from vizsla.data.resize import Framing
from vizsla.data.rgb import rawmode_of, to_upright_rgb
from vizsla.errors import DataError, ImageError, UsageError

Read = TypeVar("Read")
EXPECTED = "a path, the bytes of a file, a PIL image, or a uint8 array (H, W, 3) or (H, W)"


def as_list(images: Any) -> list[Any]:
    """One image or several, as a list."""
    single = isinstance(images, str | os.PathLike | bytes | Image.Image) or (
        isinstance(images, np.ndarray) and images.ndim < 4
    )
    if single:
        return [images]
    if isinstance(images, Sequence | np.ndarray):
        return list(images)
    raise UsageError(
        f"images is of type {type(images).__name__}: expected {EXPECTED}, or a list of them"
    )


def pixels_of(images: Sequence[Any], framing: Framing, *, first: int = 0) -> np.ndarray:
    """(B, H, W, 3) uint8. first: the position of images[0], for messages. DataError: one cannot be
    read; UsageError: one is no image."""
    return np.stack([_pixels(image, framing, first + i) for i, image in enumerate(images)])


def _pixels(image: Any, framing: Framing, i: int) -> np.ndarray:
    if isinstance(image, str | os.PathLike | bytes):
        return _read(image, framing.read, i)
    return framing.pixels(upright(image, i))


def _read(image: Any, read: Callable[[Any], Read], i: int) -> Read:
    try:
        return read(image if isinstance(image, bytes) else Path(image))
    except ImageError as error:
        name = "the image" if isinstance(image, bytes) else str(image)
        raise DataError(f"images[{i}]: {name} cannot be read: {error}") from error


def upright(image: Any, i: int = 0) -> Image.Image:
    """The image as people see it, in RGB. i: its position, for messages; see `pixels_of`."""
    if isinstance(image, str | os.PathLike | bytes):
        return _read(image, read_image, i)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or image.shape[2:] in ((3,), (4,))):
            raise UsageError(
                f"images[{i}] is an array {image.shape} of {image.dtype}: expected {EXPECTED}"
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise UsageError(f"images[{i}] is of type {type(image).__name__}: expected {EXPECTED}")
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"images[{i}] has {image.size} pixels: expected at most {MAX_PIXELS:,}")
    rawmode = rawmode_of(image) if hasattr(image, "tile") else ""
    try:
        image.load()
    except OSError as error:
        raise DataError(f"images[{i}] cannot be read: {error}") from error
    return to_upright_rgb(image, rawmode)
