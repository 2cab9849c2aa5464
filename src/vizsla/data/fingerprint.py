"""A set of images → one number that changes when an image, its name or its attributes do.

And a sample of its names and labels, by which some of the images are found in another set.
"""

import hashlib
import threading
from dataclasses import dataclass

import numpy as np

from vizsla.data.file_hashes import UNREADABLE, hash_files
from vizsla.data.imageset import ImageSet

SAMPLED, DIGITS = 256, 10  # images of a sample, and hexadecimal digits of each


@dataclass(frozen=True)
class FileInspection:
    """fingerprint: of the whole set. unreadable: positions of images that could not be read.

    states: (N,) int64, see `file_hashes.state_of`, when the files were hashed.
    """

    fingerprint: str
    unreadable: frozenset[int]
    states: np.ndarray


def fingerprint(images: ImageSet) -> str:
    """SHA-256 over ids, contents and attributes: what vectors and their table are made from.

    Of a file's content its size and three samples are read.
    """
    return inspect_files(images).fingerprint


def inspect_files(images: ImageSet, *, cancelled: threading.Event | None = None) -> FileInspection:
    """The fingerprint, which images could not be read, and the states of the files.

    concurrent.futures.CancelledError soon after `cancelled` is set.
    """
    if images.source is None:
        paths = [images.path_text(i) for i in range(len(images))]
        hashes = hash_files(paths, cancelled=cancelled)
        contents = [content for content, _ in hashes]
        states = np.array([state for _, state in hashes], np.int64)
    else:
        contents = [images.source.version(name) for name in images.ids]
        states = images.states(range(len(images)), now=False)
    digest = hashlib.sha256()
    for name, content in zip(images.ids, contents, strict=True):
        digest.update(f"{name}\0".encode("utf-8", "surrogateescape") + content)
    for column in images.attributes.column_names:
        digest.update(f"{column}\0".encode())
        for value in images.attributes[column].to_pylist():
            digest.update(f"{value!r}\n".encode("utf-8", "surrogateescape"))
    unreadable = frozenset(i for i, content in enumerate(contents) if content == UNREADABLE)
    return FileInspection(digest.hexdigest(), unreadable, states)


def name_sample(images: ImageSet) -> str:
    """The smallest hashes of the images' ids and labels, SAMPLED at most, for `in_sample`."""
    return "".join(sorted(_name_hashes(images))[:SAMPLED])


def in_sample(images: ImageSet, sample: str) -> np.ndarray:
    """(N,) bool: which of the images are in a `name_sample`. If the set that it was taken from has
    many of them, some are."""
    known = [sample[i : i + DIGITS] for i in range(0, len(sample), DIGITS)]
    return np.isin(_name_hashes(images), known)


def _name_hashes(images: ImageSet) -> list[str]:
    rows = zip(images.ids, images.labels or [None] * len(images), strict=True)
    texts = (f"{name}\0{label}".encode("utf-8", "surrogateescape") for name, label in rows)
    return [hashlib.sha256(text).hexdigest()[:DIGITS] for text in texts]
