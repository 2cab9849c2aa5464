"""Where vectors come from: what builds their model again, and the folder of their images.

It lies beside a manifest, in a file of its own: it names paths of this machine, which must not
decide whether two artefacts are equal. Each path is also recorded relative to the vectors, so that
all may be moved together.
"""

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.errors import StorageError

FILE, FORM = "source.json", "source/2"


@dataclass(frozen=True)
class VectorSource:
    """model: the options that build the embedder again. images: the folder of the images."""

    model: dict[str, Any] | None = None
    images: str | None = None

    def save(self, folder: str | Path, model_id: str) -> None:
        """Writes it into the folder of vectors of this model; removes an earlier one if empty."""
        path = Path(folder) / FILE
        if self == VectorSource():
            storage.remove(path)
        else:
            content = {"form": FORM, "model_id": model_id, **dataclasses.asdict(self)}
            places = (self.model or {}).get("model"), self.images
            content["relative_paths"] = [
                _relative_path(place, path.parent.absolute()) for place in places
            ]
            storage.write_sealed_json(path, content)

    @staticmethod
    def load(folder: str | Path, model_id: str) -> "VectorSource":
        """What was recorded of vectors of this model; empty if nothing was, or if it is damaged."""
        path = Path(folder) / FILE
        with contextlib.suppress(StorageError):
            found = storage.read_sealed_json(path) if path.is_file() else {}
            if (found.get("form"), found.get("model_id")) == (FORM, model_id):
                model, images, relative = found["model"], found["images"], found["relative_paths"]
                if model is not None:
                    model = {
                        **model,
                        "model": _present_path(model["model"], relative[0], path.parent),
                    }
                return VectorSource(model, _present_path(images, relative[1], path.parent))
        return VectorSource()

    @property
    def root(self) -> Path | None:
        """The folder of the images, if it is still there."""
        return Path(self.images) if self.images and Path(self.images).is_dir() else None


def _relative_path(place: str | None, start: Path) -> str | None:
    """The relative path to a folder, None if it is none; so too on another drive of Windows."""
    with contextlib.suppress(ValueError):
        return os.path.relpath(place, start) if place and Path(place).is_dir() else None
    return None


def _present_path(place: str | None, relative: str | None, start: Path) -> str | None:
    """Where the folder is now: where it was, else where it is relative to the vectors."""
    if place and relative and not Path(place).exists() and (start / relative).is_dir():
        return str((start / relative).resolve())
    return place
