"""An image → local features: points and a descriptor of each, by SIFT. Imports no torch.

They are extracted when they are first asked for, and kept by content in the cache of vectors.
"""

import functools
import hashlib
import importlib
import logging
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vizsla.data.images import MAX_PIXELS, read_image
from vizsla.data.regions import regions_in
from vizsla.embed.cache import VectorCache
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, ImageError, MissingExtraError

log = logging.getLogger("vizsla.embed")

LOCAL = "local"  # the folder beside vectors in which the features of their images are kept
POINTS = 400  # of an image, the strongest ones
SIDE = 480  # px: larger images are made smaller, so that their longer side has so many
CONTRAST = 0.02  # half of Lowe's: images of few points keep their faint ones
BEYOND = 0.25  # px that OpenCV's points lie too far to the right: it doubles the image first
SCALE = 512  # a stored descriptor is a byte, SCALE times its value
IN_MEMORY = 1024  # images whose features are kept there, about 54 KB each
REACH = 0.012  # of the longer side: how far from its place an inlier may be
_HEAD = struct.Struct("<4if3s")  # points, dimensions, width, height, reach, kind of numbers


@dataclass(frozen=True, eq=False)
class LocalFeatures:
    """points: (n, 2) float32, x and y in pixels of an image of `size`, (width, height).

    descriptors: (n, D), uint8 of SCALE times the value (of SIFT), or float16 (of tokens).
    reach: how far from the place that a geometry gives it a point may be, in pixels.
    """

    points: np.ndarray
    descriptors: np.ndarray
    size: tuple[int, int]
    reach: float

    @property
    def kind(self) -> str:
        """What made them: sift or tokens."""
        return "sift" if self.descriptors.dtype == np.uint8 else "tokens"

    def __len__(self) -> int:
        return len(self.points)

    @functools.cached_property
    def unit(self) -> np.ndarray:
        """(n, D) float32 descriptors of length 1."""
        rows = self.descriptors.astype(np.float32)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)

    def mirrored(self) -> "LocalFeatures":
        """Those of SIFT of the image mirrored left to right.

        In the frame of a point the rows of its 4 x 4 cells are then in the other order, and
        directions turn the other way.
        """
        cells = self.descriptors.reshape(-1, 4, 4, 8)[:, ::-1, :, -np.arange(8) % 8]
        points = self.points.copy()
        points[:, 0] = self.size[0] - 1 + 2 * BEYOND - points[:, 0]
        rows = np.ascontiguousarray(cells).reshape(self.descriptors.shape)
        return replace(self, points=points, descriptors=rows)

    def to_bytes(self) -> bytes:
        """For the cache; `from_bytes` reads it."""
        kind = self.descriptors.dtype.str.encode()  # "|u1" or "<f2"
        head = _HEAD.pack(*self.descriptors.shape, *self.size, self.reach, kind)
        return head + self.points.astype("<f4").tobytes() + self.descriptors.tobytes()

    @staticmethod
    def from_bytes(data: bytes) -> "LocalFeatures":
        """What `to_bytes` wrote."""
        n, dim, wide, high, reach, kind = _HEAD.unpack_from(data)
        points = np.frombuffer(data, "<f4", 2 * n, _HEAD.size).reshape(n, 2)
        rows = np.frombuffer(data, np.dtype(kind.decode()), n * dim, _HEAD.size + 8 * n)
        return LocalFeatures(points, rows.reshape(n, dim), (wide, high), reach)


class Extractor(Protocol):
    """Image → local features. space: changes with everything that they depend on."""

    @property
    def space(self) -> str:
        """The part of a cache's key that does not depend on the image."""

    @property
    def side(self) -> int:
        """How many pixels of an image's shorter side are enough."""

    def __call__(self, image: Image.Image) -> LocalFeatures:
        """The features of one upright RGB image."""


@functools.cache
def opencv() -> Any:
    """The module cv2, computing in the caller's thread only. MissingExtraError without it."""
    try:
        found = importlib.import_module("cv2")
    except ImportError as error:
        raise MissingExtraError("finding matching points (OpenCV)", "local") from error
    found.setNumThreads(1)  # images are distributed over threads, and sums keep their order
    return found


@dataclass(frozen=True)
class Sift:
    """RootSIFT (Lowe, 2004; Arandjelović and Zisserman, 2012): needs no weights."""

    points: int = POINTS
    side: int = SIDE

    @property
    def space(self) -> str:
        """See Extractor."""
        return f"rootsift/1 {self.points} {self.side} {CONTRAST} opencv {opencv().__version__}"

    def __call__(self, image: Image.Image) -> LocalFeatures:
        """At most `points` points, the strongest ones, in a fixed order; perhaps none."""
        cv2 = opencv()
        grey = image.convert("L")
        shrink = self.side / max(grey.size)
        if shrink < 1:
            wide, high = (max(1, round(side * shrink)) for side in grey.size)
            grey = grey.resize((wide, high), Image.Resampling.BILINEAR, reducing_gap=2)
        sift = cv2.SIFT_create(nfeatures=self.points, contrastThreshold=CONTRAST)
        found, values = sift.detectAndCompute(np.asarray(grey), None)
        reach = REACH * max(grey.size)
        if values is None or not found:
            none = np.zeros((0, 2), np.float32)
            return LocalFeatures(none, np.zeros((0, 128), np.uint8), grey.size, reach)
        points = np.array([point.pt for point in found], np.float32)
        strength = np.array([point.response for point in found])
        kept = np.lexsort((points[:, 1], points[:, 0], -strength))[: self.points]
        values = values[kept] / np.maximum(values[kept].sum(axis=1, keepdims=True), 1e-6)
        rows = np.minimum(np.round(np.sqrt(values) * SCALE), 255).astype(np.uint8)
        return LocalFeatures(points[kept], rows, grey.size, reach)


class LocalSource:
    """The local features of N images: `source.of(positions)`; empty ones of unreadable images.

    read: the i-th image. key: the key of its features in `cache`; None: not kept there. Many
    threads may ask at once; the latest IN_MEMORY images stay in memory.
    """

    def __init__(
        self,
        read: Callable[[int], Image.Image],
        extract: Extractor,
        *,
        cache: VectorCache | None = None,
        key: Callable[[int], bytes | None] = lambda i: None,
        workers: int = 1,
    ) -> None:
        self._read, self._extract, self._cache, self._key = read, extract, cache, key
        self._workers = workers
        self._latest: OrderedDict[int, LocalFeatures] = OrderedDict()
        self._lock = threading.Lock()
        self._warned = False  # whether an unreadable image was reported: only the first one is

    def of(self, positions: Sequence[int] | np.ndarray) -> list[LocalFeatures]:
        """One for each position: from memory, from the cache, else of the image itself."""
        wanted = [int(i) for i in positions]
        with self._lock:
            found = {i: self._latest[i] for i in wanted if i in self._latest}
        found |= self._kept([i for i in wanted if i not in found])
        new = [i for i in dict.fromkeys(wanted) if i not in found]
        with ThreadPoolExecutor(self._workers, thread_name_prefix="local") as pool:
            found |= zip(new, pool.map(self._new, new), strict=True)
        self._keep({i: found[i] for i in new if found[i] is not NO_FEATURES})
        with self._lock:
            for i in wanted:
                self._latest[i] = found[i]
                self._latest.move_to_end(i)
            while len(self._latest) > IN_MEMORY:
                self._latest.popitem(last=False)
        return [found[i] for i in wanted]

    def _kept(self, positions: Sequence[int]) -> dict[int, LocalFeatures]:
        keys = {i: self._key(i) for i in positions} if self._cache is not None else {}
        if self._cache is None or not keys:
            return {}
        known = [key for key in keys.values() if key is not None]
        kept = self._cache.get_bytes(self._extract.space, known)
        return {i: LocalFeatures.from_bytes(kept[k]) for i, k in keys.items() if k in kept}

    def _keep(self, new: dict[int, LocalFeatures]) -> None:
        if self._cache is not None:
            keys = {i: self._key(i) for i in new}
            rows = {key: new[i].to_bytes() for i, key in keys.items() if key is not None}
            self._cache.put_bytes(self._extract.space, rows)

    def _new(self, i: int) -> LocalFeatures:
        try:
            return self._extract(self._read(i))
        except ImageError as error:
            if not self._warned:
                log.warning("points cannot be found, so nothing matches: %s", error)
            self._warned = True
            return NO_FEATURES


NO_FEATURES = LocalFeatures(np.zeros((0, 2), np.float32), np.zeros((0, 1), np.uint8), (1, 1), 1.0)


def features_of(
    vectors: Embeddings,
    extract: Extractor,
    folder: str | Path | None = None,
    *,
    workers: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> LocalSource:
    """The local features of the images of these vectors, kept in `folder` where there is one.

    Of an image with BOX_COLUMNS they are those of its box. They are kept by id and vector, so that
    they are valid as long as the vector is. DataError, when features are asked for that are not
    kept, unless the folder of the images is known.
    """
    root = vectors.root or vectors.source.root
    regions = regions_in(root or Path(), vectors.ids, vectors.attributes)

    def read(i: int) -> Image.Image:
        if root is None:
            raise DataError(
                f"the image {vectors.ids[i]} is needed, but the folder of the images is not known: "
                "embed a folder of images, or leave verify out"
            )
        try:
            if regions is not None and vectors.ids[i] in regions.boxes:
                return read_image(regions.read(vectors.ids[i]), max_pixels=max_pixels)
            path = root / vectors.ids[i]
            if not path.exists():
                raise DataError(
                    f"the image {vectors.ids[i]} is needed, and it is not in {root}, the folder of "
                    "the images: put it there, or leave verify out (an index built with --local "
                    "keeps the points of images from any folder, and needs them no longer)"
                )
            return read_image(path, max_pixels=max_pixels, at_least=extract.side)
        except ImageError as error:
            raise ImageError(f"{vectors.ids[i]}: {error}") from error

    def key(i: int) -> bytes:
        row = np.ascontiguousarray(vectors.vectors[i], np.float32)
        return hashlib.sha256(vectors.ids[i].encode() + b"\0" + row.tobytes()).digest()

    cache = None if folder is None else VectorCache(folder)
    return LocalSource(read, extract, cache=cache, key=key, workers=workers)
