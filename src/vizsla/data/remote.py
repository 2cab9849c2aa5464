"""Images that do not lie on this machine's disk: s3://…, gs://…, or whatever fsspec knows.

A broken file is one image's matter. A store that does not answer, and a file that was listed and is
gone or has another size, end the job, which goes on when it is started again. Nothing is kept on
disk.
"""

import bisect
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.fs

from vizsla.data.images import MISSING, TAR_MISSING
from vizsla.data.imageset import ImageSet, Source
from vizsla.data.listing import few, is_image_name
from vizsla.errors import DataError, ImageError, StorageError

log = logging.getLogger("vizsla.images")

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
BLOCK = 8 * 2**20  # bytes of one request, when many small pieces of a large file are wanted
BLOCKS_KEPT = 16  # of all files together, more than are read at once
READERS = 16  # that wait for a store at once


def is_url(place: str) -> bool:
    return _URL.match(place) is not None


def open_filesystem(url: str) -> tuple[Any, str]:
    """A pyarrow FileSystem and the path in it. Arrow's own where it has one, else fsspec's."""
    try:
        found: tuple[Any, str] = pa.fs.FileSystem.from_uri(url)
        return found
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        reason = error
    except OSError as error:
        raise StorageError(f"cannot open {url}: {error}") from error
    try:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise StorageError(f"cannot open {url}: {error}") from error
    except (ValueError, OSError) as error:
        raise DataError(f"cannot open {url}: {error}; Arrow says: {reason}") from error
    return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(filesystem)), path


def image_set_at(url: str, *, class_folders: bool = False) -> ImageSet:
    """All images below a URL; the first folder is the label where class_folders is set."""
    filesystem, top = open_filesystem(url)
    found = sorted(_images_below(filesystem, top, url))
    if class_folders:
        stray = [name for name, _ in found if "/" not in name]
        if stray:
            raise DataError(
                f"{url} holds {len(stray)} images outside class folders ({few(stray)}): expected "
                "one folder for each class below it"
            )
    names = [name for name, _ in found]
    source = RemoteFolder(url, filesystem, top, names, [stamp for _, stamp in found])
    images = ImageSet.elsewhere(url, names, source)
    if class_folders:
        images = images.with_labels([name.partition("/")[0] for name in names])
    return images


def _images_below(filesystem: Any, top: str, url: str) -> list[tuple[str, str]]:
    """(name, stamp) of each. The stamp changes when the file does."""
    found = []
    for info in files_in(filesystem, top, url):
        name = info.path[len(top) :].lstrip("/")
        hidden = any(part.startswith(".") for part in name.split("/"))
        if not hidden and is_image_name(name.rpartition("/")[2]):
            found.append((name, f"{info.size} {info.mtime_ns}"))
    if not found:
        raise DataError(f"{url} holds no images: expected names that end in .jpg, .png, .webp, …")
    return found


def files_in(filesystem: Any, top: str, url: str) -> list[Any]:
    """pyarrow's FileInfo of each file below the path `top`."""
    selector = pa.fs.FileSelector(top, recursive=True)
    try:
        infos = filesystem.get_file_info(selector)
    except FileNotFoundError as error:
        raise DataError(f"{url} does not exist") from error
    except OSError as error:
        raise StorageError(f"cannot list {url}: {error}") from error
    found, bad = [], []
    for info in infos:
        try:
            if info.type == pa.fs.FileType.File and info.path:
                found.append(info)
        except UnicodeDecodeError as error:  # no artefact could hold such a name
            bad.append(error.object.rpartition(b"/")[2].decode("utf-8", "backslashreplace"))
    if bad:
        log.warning("%s: names that are not UTF-8, left out: %s", url, few(sorted(bad)))
    return found


@dataclass(frozen=True, eq=False)
class RemoteFolder:
    """names: sorted paths below `top`. stamps: size and time of each, as it was listed."""

    place: str
    filesystem: Any
    top: str
    names: Sequence[str]
    stamps: Sequence[str]

    def read(self, name: str) -> bytes:
        """DataError where it has another size than when it was listed."""
        data = read_whole(self.filesystem, f"{self.top.rstrip('/')}/{name}", self.place)
        listed = self.stamps[_place_of(name, self.names)].partition(" ")[0]
        if listed.isdigit() and int(listed) != len(data):
            raise DataError(
                f"{name} of {self.place} was listed with {listed} bytes and has {len(data)} now: "
                "it changed. Run the same command again when nothing changes it; with --overwrite "
                "if it is another one for good"
            )
        return data

    @property
    def waits(self) -> bool:
        return True

    def version(self, name: str) -> bytes:
        return self.stamps[_place_of(name, self.names)].encode()

    def states(self, names: Sequence[str], *, now: bool) -> list[int]:
        """Asking a store about each file would take as long as reading it: see `read`."""
        return [0] * len(names)

    def part(self, names: Sequence[str]) -> Source:
        """The same for a few names alone: small enough to be sent away."""
        stamps = [self.stamps[_place_of(name, self.names)] for name in names]
        return RemoteFolder(self.place, self.filesystem, self.top, list(names), stamps)

    def require(self) -> None:
        """What is missing was told apart already when it was read."""


def _place_of(name: str, names: Sequence[str]) -> int:
    return bisect.bisect_left(names, name)


def read_whole(filesystem: Any, path: str, place: str) -> bytes:
    """ImageError where the file is not there, StorageError where the store does not answer."""
    try:
        with filesystem.open_input_file(path) as file:
            data: bytes = file.read()
            return data
    except FileNotFoundError as error:
        raise ImageError(MISSING) from error
    except OSError as error:
        raise unanswered(path, place, error) from error


def unanswered(path: str, place: str, error: OSError) -> StorageError:
    said = " ".join(str(error).split())[:200]
    return StorageError(
        f"cannot read {path} of {place}: {said}. Run the same command again, it goes on where it "
        "stopped; a file that can never be read is left out with --exclude"
    )


@dataclass(eq=False)
class BlockReader:
    """Pieces of large remote files, read in large blocks that are kept for a moment.

    Neighbours in a file cost one request together. Several threads may read at once.
    """

    filesystem: Any
    place: str
    _kept: "OrderedDict[tuple[str, int], Future[bytes]]" = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Shorter where the file ends before."""
        first, last = offset // BLOCK, (offset + max(size, 1) - 1) // BLOCK
        if last - first >= BLOCKS_KEPT:
            return self._fetch(path, offset, size)
        joined = b"".join(self._block(path, number) for number in range(first, last + 1))
        start = offset - first * BLOCK
        return joined[start : start + size]

    def _block(self, path: str, number: int) -> bytes:
        key = path, number
        with self._lock:
            block = self._kept.get(key)
            mine = block is None
            if block is None:
                block = self._kept[key] = Future()
                while len(self._kept) > BLOCKS_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
        if mine:
            try:
                block.set_result(self._fetch(path, number * BLOCK, BLOCK))
            except BaseException as error:
                with self._lock:
                    self._kept.pop(key, None)
                block.set_exception(error)
        return block.result()  # a second reader of the same block waits instead of fetching it

    def size(self, path: str) -> int:
        """DataError where there is no such file."""
        try:
            (info,) = self.filesystem.get_file_info([path])
        except OSError as error:
            raise unanswered(path, self.place, error) from error
        if info.type != pa.fs.FileType.File:
            raise DataError(f"{path} does not exist in {self.place}")
        return int(info.size)

    def _fetch(self, path: str, offset: int, size: int) -> bytes:
        try:
            with self.filesystem.open_input_file(path) as file:
                size = max(0, min(size, file.size() - offset))
                data: bytes = file.read_at(size, offset) if size else b""
                return data
        except FileNotFoundError as error:
            raise ImageError(TAR_MISSING) from error
        except OSError as error:
            raise unanswered(path, self.place, error) from error

    def __getstate__(self) -> dict[str, Any]:
        return {"filesystem": self.filesystem, "place": self.place}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
