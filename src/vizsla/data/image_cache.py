"""Decoded images kept in memory between epochs, as many as fit. Knows only files and pixels.

Decoding costs as much as a small network does, so images that fit are decoded once. Images much
larger than the network's input are kept smaller.
"""

import os
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from vizsla.data.images import read_image
from vizsla.data.imageset import ImageSet

SHARE_OF_MEMORY = 0.25  # of the free memory may be filled with images


class ImageCache:
    """`cache[i]`: the i-th image of a set, RGB, its shorter side `short_side` at most.

    ImageError where an image cannot be read. Several threads may read at once.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        short_side: int | None = None,  # None: as they are
        max_bytes: int | None = None,  # None: a share of the free memory; 0 keeps nothing
        max_pixels: int = 100_000_000,
    ) -> None:
        self.images, self.short_side, self.max_pixels = images, short_side, max_pixels
        free = available_memory()
        self.free_bytes = (
            max_bytes if max_bytes is not None else int(SHARE_OF_MEMORY * (free or 2**30))
        )
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Image.Image:
        kept = self._kept.get(i)
        if kept is not None:
            return Image.fromarray(kept)
        picture = self._reduced(read_image(self.images.file(i), max_pixels=self.max_pixels))
        pixels = np.asarray(picture)
        with self._lock:
            if i not in self._kept and pixels.nbytes <= self.free_bytes:
                self._kept[i] = pixels
                self.free_bytes -= pixels.nbytes
        return picture

    def subset(self, images: ImageSet) -> "ImageCache":
        """A cache for some of the images, which keeps what is decoded already."""
        part = ImageCache(
            images,
            short_side=self.short_side,
            max_bytes=self.free_bytes,
            max_pixels=self.max_pixels,
        )
        position = {name: i for i, name in enumerate(self.images.ids)}
        part._kept = {
            i: self._kept[position[name]]
            for i, name in enumerate(images.ids)
            if position.get(name) in self._kept
        }
        return part

    def _reduced(self, picture: Image.Image) -> Image.Image:
        short = min(picture.size)
        if self.short_side is None or short <= self.short_side:
            return picture
        scale = self.short_side / short
        size = tuple(max(self.short_side, round(side * scale)) for side in picture.size)
        return picture.resize((size[0], size[1]), Image.Resampling.BICUBIC, reducing_gap=3.0)


def available_memory() -> int | None:
    """Bytes that a program can allocate without swapping; None where that is unknown."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, _cgroup_memory())
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _cgroup_memory() -> int:
    """Bytes that a container may still allocate; 2**62 without a limit."""
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        return max(0, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        return 2**62
