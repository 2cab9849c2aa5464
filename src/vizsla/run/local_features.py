"""An index → the local features of its images, kept beside its vectors for `verify`."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from vizsla.embed.local_features import LOCAL, Sift, features_of
from vizsla.errors import UsageError
from vizsla.processes import available_cores
from vizsla.search.folder_index import FolderIndex
from vizsla.search.index import Index

AT_ONCE = 128  # images whose features are in memory, about 7 MB


def keep_features(
    index: Index,
    ids: Sequence[str],
    progress: Callable[[int, int], None],
    *,
    root: Path | None = None,
) -> None:
    """Finds the features of these images of the index and keeps them in its folder.

    root: the folder of the images, if it is not the index's own. UsageError: it is no folder.
    """
    if not isinstance(index, FolderIndex):
        raise UsageError("--local keeps points in the index's folder, and this one is on a server")
    gallery = index.embeddings()
    if root is not None:
        gallery = dataclasses.replace(gallery, root=root)
    position = {name: i for i, name in enumerate(gallery.ids)}
    wanted = [position[name] for name in ids]
    source = features_of(gallery, Sift(), index.folder / LOCAL, workers=available_cores())
    for start in range(0, len(wanted), AT_ONCE):
        source.of(wanted[start : start + AT_ONCE])
        progress(min(start + AT_ONCE, len(wanted)), len(wanted))


def keeps_features(index: Index) -> bool:
    """Whether the features of its images are kept."""
    return isinstance(index, FolderIndex) and (index.folder / LOCAL).is_dir()
