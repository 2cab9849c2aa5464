"""Pictures kept in memory between epochs, as far as memory goes. Knows files and pixels only.

Decoding costs as much as a small network does, so what fits is decoded once. Pictures much larger
than the network looks at are kept smaller.
"""

import os
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from vizsla.data.images import read_image
from vizsla.data.imageset import ImageSet

SHARE_OF_MEMORY = 0.25  # of what is free may be filled with pictures


class Pictures:
    """`pictures[i]`: the i-th picture of a set, RGB, its shorter side `short_side` at most.

    ImageError where a picture cannot be read. Several threads may ask at once.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        short_side: int | None = None,  # None: as they are
        max_bytes: int | None = None,  # None: a share of what is free; 0 keeps nothing
        max_pixels: int = 100_000_000,
    ) -> None:
        self.images, self.short_side, self.max_pixels = images, short_side, max_pixels
        free = available_memory()
        self.room = max_bytes if max_bytes is not None else int(SHARE_OF_MEMORY * (free or 2**30))
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Image.Image:
        kept = self._kept.get(i)
        if kept is not None:
            return Image.fromarray(kept)
        picture = self._smaller(read_image(self.images.file(i), max_pixels=self.max_pixels))
        pixels = np.asarray(picture)
        with self._lock:
            if i not in self._kept and pixels.nbytes <= self.room:
                self._kept[i] = pixels
                self.room -= pixels.nbytes
        return picture

    def of(self, images: ImageSet) -> "Pictures":
        """The same memory for a part of the images."""
        part = Pictures(
            images, short_side=self.short_side, max_bytes=self.room, max_pixels=self.max_pixels
        )
        place = {name: i for i, name in enumerate(self.images.ids)}
        part._kept = {
            i: self._kept[place[name]]
            for i, name in enumerate(images.ids)
            if place.get(name) in self._kept
        }
        return part

    def _smaller(self, picture: Image.Image) -> Image.Image:
        short = min(picture.size)
        if self.short_side is None or short <= self.short_side:
            return picture
        scale = self.short_side / short
        size = tuple(max(self.short_side, round(side * scale)) for side in picture.size)
        return picture.resize((size[0], size[1]), Image.Resampling.BICUBIC, reducing_gap=3.0)


def available_memory() -> int | None:
    """Bytes that a program can still take without swapping; None where nothing tells."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, _cgroup_room())
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _cgroup_room() -> int:
    """What a container may still take; without a limit, everything."""
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        return max(0, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        return 2**62
