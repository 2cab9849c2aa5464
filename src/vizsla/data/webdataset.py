"""WebDataset tar files → ImageSet: as if each tar file were a folder of the same name.

`part-0003.tar` with `ab/7.jpg` and `ab/7.cls` in it gives the image `part-0003/ab/7.jpg` with its
label. One pass over the headers finds the images; they are then read where they are, one after
another, and never unpacked to disk. Damaged parts of a tar file are listed as broken images.
"""

import bisect
import glob
import io
import logging
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol

import pyarrow as pa

from vizsla.data.file_hashes import current_state
from vizsla.data.images import TAR_MISSING, TAR_UNREADABLE
from vizsla.data.imageset import ImageSet, Source
from vizsla.data.listing import few, is_image_name
from vizsla.data.remote import BlockReader, is_url, open_filesystem
from vizsla.data.tar_index import ATTRIBUTES, TarContents, TarReader, read_tar_index
from vizsla.errors import DataError, ImageError, StorageError
from vizsla.storage import open_regular

log = logging.getLogger("vizsla.webdataset")

PARALLEL_SCANS = 8  # tar files whose headers are read at once
MAX_TARS = 1_000_000  # of one call
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


def is_tars(location: str) -> bool:
    """Whether it names tar files: one, several, a pattern, or a folder that holds only them.

    A folder that holds images or folders as well is a folder of images.
    """
    parts = [part.partition("?")[0] for part in location.split("::")]
    if any(part.endswith((".tar", *COMPRESSED)) for part in parts):
        return True
    folder = Path(location)
    if is_url(location) or not folder.is_dir():
        return False
    if not any(entry.name.endswith((".tar", *COMPRESSED)) for entry in folder.iterdir()):
        return False
    visible = (entry for entry in folder.iterdir() if entry.name[0] != ".")
    return not any(entry.is_dir() or is_image_name(entry.name) for entry in visible)


def image_set_from_tars(location: str) -> ImageSet:
    """The images of tar files: `x.tar`, `part-{0000..0099}.tar`, `s3://b/*.tar`, several of these
    joined by `::`, or a folder of tar files.

    Labels come from .cls, else from `label` in .json, else from .txt; .json may give group and
    domain too. A key without an image, and a truncated or damaged tar file, count as broken.
    """
    files, patterns = _files_at(location)
    tars = [tar for pattern in patterns for tar in _matching_tars(pattern, files)]
    names = _folder_names(tars)
    states = [files.state(tar) for tar in tars]
    with ThreadPoolExecutor(PARALLEL_SCANS, thread_name_prefix="headers") as pool:
        contents = list(pool.map(lambda tar: read_tar_index(tar, names[tar], files), tars))
    source, attributes = _joined(location, files, tars, states, contents)
    if not source.names:
        raise DataError(f"{location} holds no images: {len(tars)} tar files are empty")
    return ImageSet.from_source(list(source.names), source, attributes)


def _joined(
    location: str,
    files: "TarStorage",
    tars: Sequence[str],
    states: list[int],
    contents: list[TarContents],
) -> "tuple[TarImages, pa.Table]":
    """All tar files as one source, sorted by name; and a column for each attribute in use."""
    names = [name for each in contents for name in each.names]
    order = sorted(range(len(names)), key=names.__getitem__)  # of equal names the first stays first
    kept = array("q")
    for before, i in zip([-1, *order], order, strict=False):
        if before >= 0 and names[before] == names[i]:
            log.warning("%s occurs twice in its tar file: the first is used", names[i])
        else:
            kept.append(i)
    offsets, sizes, tar_of = array("q"), array("q"), array("q")
    broken: dict[int, str] = {}
    attributes: dict[str, dict[int, str]] = {name: {} for name in ATTRIBUTES}
    first = 0
    for t, each in enumerate(contents):
        offsets += each.offsets
        sizes += each.sizes
        tar_of.extend([t] * len(each.names))
        broken |= {first + i: why for i, why in each.broken.items()}
        for name, column in each.attributes.items():
            attributes[name].update((first + i, value) for i, value in column.items())
            column.clear()
        first += len(each.names)
    source = TarImages(
        location, files, [names[i] for i in kept], tars, states,
        array("q", (tar_of[i] for i in kept)),
        array("q", (offsets[i] for i in kept)),
        array("q", (sizes[i] for i in kept)),
        {n: broken[i] for n, i in enumerate(kept) if i in broken},
    )  # fmt: skip
    columns = {name: column for name, column in attributes.items() if column}
    return source, pa.table(
        {name: pa.array([c.get(i) for i in kept], pa.string()) for name, c in columns.items()}
    )


@dataclass(eq=False)
class TarImages:
    """N sorted names. The i-th image is in tars[tar_of[i]], sizes[i] bytes from offsets[i] on.

    By column, since there may be millions. broken: why an image cannot be read, by i.
    listed_states: of each tar file, before its headers were read.
    """

    location: str
    files: "TarStorage"
    names: Sequence[str]
    tars: Sequence[str]
    listed_states: Sequence[int]
    tar_of: "array[int]"
    offsets: "array[int]"
    sizes: "array[int]"
    broken: dict[int, str]

    @property
    def is_remote(self) -> bool:
        """Whether the tar files are read over a network."""
        return self.files.is_remote

    def _number(self, name: str) -> int:
        return bisect.bisect_left(self.names, name)

    def read(self, name: str) -> bytes:
        """The bytes of an image; ImageError if they are missing or damaged."""
        i = self._number(name)
        if i in self.broken:
            raise ImageError(self.broken[i])
        data = self.files.read(self.tars[self.tar_of[i]], self.offsets[i], self.sizes[i])
        if len(data) < self.sizes[i]:
            raise ImageError(
                f"truncated: {len(data):,} of its {self.sizes[i]:,} bytes are in the tar file"
            )
        return data

    def version(self, name: str) -> bytes:
        """Tar file, offset and size; on this machine's disk also a sample of the content."""
        i = self._number(name)
        tar, offset, size = self.tars[self.tar_of[i]], self.offsets[i], self.sizes[i]
        sample = b"" if i in self.broken else self.files.sample(tar, offset, size)
        position = f"{tar}|{offset}|{size}|{self.broken.get(i)}"
        return position.encode("utf-8", "surrogateescape") + sample

    def states(self, names: Sequence[str], *, now: bool) -> list[int]:
        """Of each image's tar file, as it is now or was before its headers were read."""
        tars = [self.tar_of[self._number(name)] for name in names]
        found = {
            t: self.files.state(self.tars[t]) if now else self.listed_states[t] for t in set(tars)
        }
        return [found[t] for t in tars]

    def subset(self, names: Sequence[str]) -> Source:
        """Only these images, with absolute paths: for a process in another current folder."""
        ordered = sorted(names)
        kept = [self._number(name) for name in ordered]
        used = sorted({self.tar_of[i] for i in kept})
        return TarImages(
            self.location, self.files, ordered, [self.files.absolute(self.tars[t]) for t in used],
            [self.listed_states[t] for t in used],
            array("q", (used.index(self.tar_of[i]) for i in kept)),
            array("q", (self.offsets[i] for i in kept)),
            array("q", (self.sizes[i] for i in kept)),
            {n: self.broken[i] for n, i in enumerate(kept) if i in self.broken},
        )  # fmt: skip

    def require_available(self) -> None:
        """DataError if the folder of the tar files is gone."""
        self.files.require_available()


# ── which tar files ──────────────────────────────────────────────────────────────────────────────


def _files_at(location: str) -> "tuple[TarStorage, list[str]]":
    """Where the tar files are, and their patterns as paths there."""
    patterns = location.split("::")
    if not is_url(location):
        if os.path.isdir(location):  # noqa: PTH112 (which takes any text)
            entries = sorted(path.name for path in Path(location).iterdir())
            skipped = [name for name in entries if name.endswith(COMPRESSED)]
            if skipped and any(Path(location).glob("*.tar")):
                log.warning("%s: compressed tar files are left out: %s", location, few(skipped))
            return LocalTars(location), [f"{glob.escape(location.rstrip('/'))}/*.tar"]
        return LocalTars(str(Path(re.split(r"[*?\[{]", patterns[0])[0]).parent)), patterns
    folders = [_split_url(pattern) for pattern in patterns]
    if len({(folder.split("/")[:3][0], query) for folder, _, query in folders}) > 1:
        raise DataError(f"{location}: all tar files of one call must be in one store")
    opened = [open_filesystem(folder + query) for folder, _, query in folders]
    paths = [
        f"{top.rstrip('/')}/{rest}" for (_, top), (_, rest, _) in zip(opened, folders, strict=True)
    ]
    return RemoteTars(opened[0][0], location), paths


def _split_url(pattern: str) -> tuple[str, str, str]:
    """`s3://b/x/p-*.tar?region=y` → (s3://b/x, p-*.tar, ?region=y)."""
    address, question, query = pattern.partition("?")
    fixed = re.split(r"[*\[{]", address)[0]
    folder = fixed[: fixed.rindex("/")]
    return folder, address[len(folder) + 1 :], question + query


def _matching_tars(pattern: str, files: "TarStorage") -> list[str]:
    """Paths, sorted; DataError if there is none."""
    found: list[str] = []
    for each in _braces(pattern):
        found += files.matching(each) if any(sign in each for sign in "*?[") else [each]
        if len(found) > MAX_TARS:
            raise _too_many_tars(pattern)
    candidates = found
    if not found and "{" not in pattern:  # the tar files may be compressed
        candidates = files.matching(pattern.removesuffix(".tar") + "*")
    compressed = [tar for tar in candidates if tar.endswith(COMPRESSED)]
    if compressed:
        raise DataError(
            f"compressed tar files cannot be read from the middle ({few(compressed)}): unpack them "
            "to .tar (gzip -d, xz -d, …); the images in them are compressed already"
        )
    if not found:
        raise DataError(f"{pattern} matches no tar files")
    return found


def _too_many_tars(pattern: str) -> DataError:
    return DataError(
        f"{pattern} names more than {MAX_TARS:,} tar files: embed them in several parts"
    )


def _braces(pattern: str) -> Iterator[str]:
    """`a-{08..11}.tar` → a-08.tar, a-09.tar, …; `{x,y}` → both. As webdataset expands them."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if numbers:
        first, last = numbers.groups()
        if len(last) > 18 or int(last) - int(first) >= MAX_TARS:
            raise _too_many_tars(pattern)
        choices = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    else:
        choices = found[1].split(",")
    for choice in choices:
        yield from _braces(pattern[: found.start()] + choice + pattern[found.end() :])


def _folder_names(tars: Sequence[str]) -> dict[str, str]:
    """What stands for a tar file in its images' ids: its path below the folder common to all."""
    repeated = sorted(tar for tar, times in Counter(tars).items() if times > 1)
    if repeated:
        raise DataError(f"named twice: {few(repeated)}")
    parts = [tar.removesuffix(".tar").split("/") for tar in tars]
    common = 0
    while all(len(p) > common + 1 for p in parts) and len({p[common] for p in parts}) == 1:
        common += 1
    return {tar: "/".join(p[common:]) for tar, p in zip(tars, parts, strict=True)}


# ── local folders and object stores ───────────────────────────────────────────────────────────────


class TarStorage(TarReader, Protocol):
    """Where tar files are."""

    @property
    def is_remote(self) -> bool:
        """Whether they are read over a network."""

    def sample(self, path: str, offset: int, size: int) -> bytes:
        """Bytes that change with the content; none if reading them takes long."""

    def state(self, path: str) -> int:
        """A number that changes when the file does, as in `Source.states`."""

    def matching(self, pattern: str) -> list[str]:
        """The paths that a pattern with `*`, `?` or `[…]` matches, sorted."""

    def absolute(self, path: str) -> str:
        """The path as seen from any folder."""

    def require_available(self) -> None:
        """DataError if all of it is gone."""


@dataclass(frozen=True)
class LocalTars:
    """Tar files on this machine; the system reads ahead by itself."""

    folder: str
    is_remote: ClassVar[bool] = False

    def open(self, path: str) -> BinaryIO:
        """The file from its start; DataError if it cannot be read."""
        try:
            return open(open_regular(path), "rb")  # noqa: PTH123 (a descriptor)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"cannot read {path}: {reason}") from error

    def read(self, path: str, offset: int, size: int) -> bytes:
        """A part of it, shorter if the file ends before; ImageError if it cannot be read."""
        try:
            with open(open_regular(path), "rb", buffering=0) as file:  # noqa: PTH123
                file.seek(offset)
                return file.read(size)
        except FileNotFoundError as error:
            raise ImageError(TAR_MISSING) from error
        except OSError as error:
            raise ImageError(f"{TAR_UNREADABLE}: {error.strerror}") from error

    def sample(self, path: str, offset: int, size: int) -> bytes:
        """Up to 512 bytes from the middle of the image."""
        return self.read(path, offset + max(0, size // 2 - 256), min(512, size))

    def state(self, path: str) -> int:
        """A number that changes with the file's size and times."""
        return current_state(path)

    def matching(self, pattern: str) -> list[str]:
        """The paths that the pattern matches, sorted."""
        return sorted(glob.glob(pattern))  # noqa: PTH207 (the pattern may be absolute)

    def absolute(self, path: str) -> str:
        """The path as seen from any folder."""
        return os.path.abspath(path)  # noqa: PTH100 (links stay as they are)

    def require_available(self) -> None:
        """DataError if the folder of the tar files is gone."""
        if not Path(self.folder).is_dir():
            raise DataError(
                f"{self.folder} is gone, so its tar files cannot be read: when it is back, run the "
                "same command again"
            )


class RemoteTars:
    """Tar files in an fsspec file system, read in large blocks."""

    is_remote: ClassVar[bool] = True

    def __init__(self, filesystem: Any, location: str) -> None:
        self.location, self.blocks = location, BlockReader(filesystem, location)

    def open(self, path: str) -> BinaryIO:
        """The file from its start; DataError if it cannot be read."""
        return io.BufferedReader(_SeekableFile(path, self.blocks))

    def read(self, path: str, offset: int, size: int) -> bytes:
        """A part of it, shorter if the file ends before; ImageError if it cannot be read."""
        return self.blocks.read(path, offset, size)

    def sample(self, path: str, offset: int, size: int) -> bytes:
        """Nothing: reading would take too long."""
        return b""

    def state(self, path: str) -> int:
        """0: changes are not noticed."""
        return 0

    def matching(self, pattern: str) -> list[str]:
        """As in a shell, `*` matches nothing hidden."""
        try:
            self.blocks.filesystem.invalidate_cache()
            paths = self.blocks.filesystem.glob(pattern)
        except Exception as error:  # each file system raises its own kinds
            raise StorageError(f"cannot list {pattern} of {self.location}: {error}") from error
        return sorted(path for path in paths if not _matches_hidden(path, pattern))

    def absolute(self, path: str) -> str:
        """The same path."""
        return path

    def require_available(self) -> None:
        """Does nothing: reading distinguishes missing files from a store that does not answer."""


def _matches_hidden(path: str, pattern: str) -> bool:
    parts = zip(path.split("/"), pattern.split("/"), strict=False)
    return any(name[:1] == "." and wanted[:1] != "." for name, wanted in parts)


class _SeekableFile(io.RawIOBase):
    """A remote file as tarfile reads it."""

    def __init__(self, path: str, blocks: BlockReader) -> None:
        self.path, self.blocks, self.position = path, blocks, 0
        self.size = blocks.size(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = start + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        data = self.blocks.read(self.path, self.position, len(buffer))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)
