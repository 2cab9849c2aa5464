"""Images of which only a region counts, such as the queries of Oxford and Paris → a Source of them.

The columns x0, y0, x1, y1 give the box in pixels; an image without one counts as a whole.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from vizsla.data.file_hashes import current_state, hash_files
from vizsla.data.images import read_image
from vizsla.errors import DataError, ImageError

BOX_COLUMNS = ("x0", "y0", "x1", "y1")
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


@dataclass(frozen=True)
class Regions:
    """The boxes of some files below a folder."""

    root: Path
    boxes: dict[str, Box]

    @property
    def location(self) -> str:
        """The folder."""
        return str(self.root)

    @property
    def is_remote(self) -> bool:
        """False: the files are on this machine."""
        return False

    def read(self, name: str) -> bytes:
        """The file itself, or its region as a BMP. ImageError: it cannot be read, or the region is
        outside of it."""
        path = self._path(name)
        if name not in self.boxes:
            try:
                return Path(path).read_bytes()
            except OSError as error:
                raise ImageError(f"it cannot be read: {error.strerror}") from error
        image = read_image(path)
        left, top, right, bottom = (round(side) for side in self.boxes[name])
        box = max(0, left), max(0, top), min(image.width, right), min(image.height, bottom)
        if box[0] >= box[2] or box[1] >= box[3]:
            raise ImageError(
                f"the box {self.boxes[name]} is outside the image of {image.width} × {image.height}"
            )
        content = io.BytesIO()
        image.crop(box).save(content, "BMP")
        return content.getvalue()

    def version(self, name: str) -> bytes:
        """The hash of the file, and the box."""
        [(content, _)] = hash_files([self._path(name)])
        return content + repr(self.boxes.get(name)).encode()

    def states(self, names: Sequence[str], *, now: bool) -> list[int]:
        """The state of each file: it changes with the file."""
        return [current_state(self._path(name)) for name in names]

    def subset(self, names: Sequence[str]) -> "Regions":
        """Only these images."""
        return Regions(self.root, {name: self.boxes[name] for name in names if name in self.boxes})

    def require_available(self) -> None:
        """DataError if the folder is gone."""
        if not self.root.is_dir():
            raise DataError(f"{self.root} is gone, so its images cannot be read")

    def _path(self, name: str) -> str:
        return os.path.join(str(self.root), name)  # noqa: PTH118


def regions_in(root: Path, ids: Sequence[str], attributes: pa.Table) -> Regions | None:
    """The boxes in the columns of N images; None if none has one."""
    if not set(BOX_COLUMNS) <= set(attributes.column_names):
        return None
    rows = zip(*(attributes[name].to_pylist() for name in BOX_COLUMNS), strict=True)
    found = {
        name: (float(left), float(top), float(right), float(bottom))
        for name, (left, top, right, bottom) in zip(ids, rows, strict=True)
        if None not in (left, top, right, bottom)
    }
    return Regions(root, found) if found else None
