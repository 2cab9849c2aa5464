"""Images that are not on this machine's disk: s3://…, gs://…, https://…, whatever fsspec opens.

A broken file costs one image. A store that does not answer, and a file that was listed and is gone
or has another size, end the job, which continues when it is started again. Nothing is kept on disk.
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

import fsspec
import pyarrow as pa
import pyarrow.fs
from fsspec.implementations.arrow import ArrowFSWrapper

from vizsla.data.images import MISSING, TAR_MISSING
from vizsla.data.imageset import ImageSet, Source
from vizsla.data.listing import few, is_image_name
from vizsla.errors import DataError, ImageError, StorageError

log = logging.getLogger("vizsla.images")

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
BLOCK_BYTES = 8 * 2**20  # of one request, when many small parts of a large file are read
KEPT_BLOCKS = 16  # of all files together; more than are read at once
PARALLEL_READS = 16  # from one store
_VERSION_KEYS = ("mtime", "LastModified", "updated", "last_modified", "ETag", "etag", "created")


def is_url(location: str) -> bool:
    """Whether it starts as a URL does: `s3://`."""
    return _URL.match(location) is not None


class ArrowFileSystem(ArrowFSWrapper):
    """Arrow's S3, GCS and HDFS for fsspec: they need no further package, and options in the URL."""

    cachable = False  # fsspec would find a closed one again

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False,
        detail: bool = False, **options: Any,
    ) -> Any:  # fmt: skip
        """As in fsspec; all files below a path by one listing instead of one for each folder."""
        if maxdepth is not None or withdirs:
            return super().find(path, maxdepth, withdirs, detail=detail, **options)
        infos = self.fs.get_file_info(pa.fs.FileSelector(path, recursive=True))
        files = [self._make_entry(info) for info in infos if info.type == pa.fs.FileType.File]
        found = {entry["name"]: entry for entry in files}
        return found if detail else list(found)

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        """The bytes from `start` to `end` (default: all), by one request."""
        with self.fs.open_input_file(path) as file:
            begin = start or 0
            data: bytes = file.read() if end is None else file.read_at(end - begin, begin)
            return data


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it.

    DataError if nothing knows the scheme, StorageError if it cannot be reached.
    """
    reason: Exception | None = None
    if not url.startswith(("file:", "local:")):  # fsspec's own reads any file name
        try:
            filesystem, path = pa.fs.FileSystem.from_uri(url)
            return ArrowFileSystem(filesystem), path
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            reason = error
        except OSError as error:
            raise StorageError(f"cannot open {url}: {error}") from error
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
        return found
    except ImportError as error:
        raise StorageError(f"cannot open {url}: {error}") from error
    except (ValueError, OSError) as error:
        raise DataError(f"cannot open {url}: {error}; Arrow says: {reason}") from error


def image_set_from_url(url: str, *, class_folders: bool = False) -> ImageSet:
    """All images below a URL, hidden ones left out.

    class_folders: the first folder is the label. DataError if there are no images.
    """
    filesystem, top = open_filesystem(url)
    versions = {
        name: version for name, version in list_files(filesystem, top, url)
        if is_image_name(name.rpartition("/")[2])
        and not any(part.startswith(".") for part in name.split("/"))
    }  # fmt: skip
    if not versions:
        raise DataError(f"{url} holds no images: expected names that end in .jpg, .png, .webp, …")
    names = sorted(versions)
    if class_folders and (outside := [name for name in names if "/" not in name]):
        raise DataError(
            f"{url} holds {len(outside)} images outside class folders ({few(outside)}): expected "
            "one folder for each class below it"
        )
    source = RemoteFolder(url, filesystem, top, names, [versions[name] for name in names])
    images = ImageSet.from_source(names, source)
    if class_folders:
        images = images.with_labels([name.partition("/")[0] for name in names])
    return images


def list_files(filesystem: Any, top: str, url: str) -> list[tuple[str, str]]:
    """(name below `top`, version) of each file. A version is its size, and what dates it.

    DataError if there is no such folder, StorageError if it cannot be listed.
    """
    try:
        filesystem.invalidate_cache()
        found = filesystem.find(top, detail=True)
        if not found and not filesystem.exists(top):
            raise FileNotFoundError(top)
    except FileNotFoundError as error:
        raise DataError(f"{url} does not exist") from error
    except Exception as error:  # each file system raises its own kinds
        raise StorageError(f"cannot list {url}: {error}") from error
    files, not_utf8 = [], []
    for path, info in found.items():
        name = path[len(top) :].lstrip("/")
        if not name:
            continue
        try:
            name.encode()
        except UnicodeEncodeError:  # no artefact could hold such a name
            not_utf8.append(ascii(name.rpartition("/")[2])[1:-1].replace(r"\udc", r"\x"))
            continue
        dates = [str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None]
        files.append((name, " ".join([str(info.get("size")), *dates])))
    if not_utf8:
        log.warning("%s: names that are not UTF-8, left out: %s", url, few(sorted(not_utf8)))
    return files


@dataclass(frozen=True, eq=False)
class RemoteFolder:
    """Images below a URL. names: sorted paths below `top`. versions: of each, as it was listed."""

    location: str
    filesystem: Any
    top: str
    names: Sequence[str]
    versions: Sequence[str]

    @property
    def is_remote(self) -> bool:
        """True."""
        return True

    def read(self, name: str) -> bytes:
        """DataError if it has another size than when it was listed."""
        data = read_file(self.filesystem, f"{self.top.rstrip('/')}/{name}", self.location)
        listed = self._version(name).partition(" ")[0]
        if listed.isdigit() and int(listed) != len(data):
            raise DataError(
                f"{name} of {self.location} was listed with {listed} bytes and has {len(data)} "
                "now: it changed. Run the same command again when nothing changes it; with "
                "--overwrite if the new one is to be used"
            )
        return data

    def version(self, name: str) -> bytes:
        """Size and dates, as listed."""
        return self._version(name).encode()

    def _version(self, name: str) -> str:
        return self.versions[bisect.bisect_left(self.names, name)]

    def states(self, names: Sequence[str], *, now: bool) -> list[int]:
        """Zeros: asking a store about each file would take as long as reading it (see `read`)."""
        return [0] * len(names)

    def subset(self, names: Sequence[str]) -> Source:
        """Only these images: small enough to be sent to another machine."""
        versions = [self._version(name) for name in names]
        return RemoteFolder(self.location, self.filesystem, self.top, list(names), versions)

    def require_available(self) -> None:
        """Does nothing: reading distinguishes missing files from a store that does not answer."""


def read_file(filesystem: Any, path: str, location: str) -> bytes:
    """ImageError if the file is not there, StorageError if the store does not answer."""
    try:
        data: bytes = filesystem.cat_file(path)
        return data
    except FileNotFoundError as error:
        raise ImageError(MISSING) from error
    except Exception as error:  # each file system raises its own kinds
        raise _read_error(path, location, error) from error


def _read_error(path: str, location: str, error: Exception) -> StorageError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return StorageError(
        f"cannot read {path} of {location}: {reason}. Run the same command again: it continues "
        "where it stopped; a file that can never be read is left out with --exclude"
    )


@dataclass(eq=False)
class BlockReader:
    """Parts of large remote files, read in large blocks that are kept for a moment.

    Neighbouring parts share one request. Several threads may read at once.
    """

    filesystem: Any
    location: str
    _sizes: dict[str, int] = field(default_factory=dict)
    _blocks: "OrderedDict[tuple[str, int], Future[bytes]]" = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def size(self, path: str) -> int:
        """Bytes of the file, requested once; DataError if there is no such file."""
        if path not in self._sizes:
            try:
                info = self.filesystem.info(path)
            except FileNotFoundError:
                info = {}
            except Exception as error:
                raise _read_error(path, self.location, error) from error
            if info.get("type") != "file" or info.get("size") is None:
                raise DataError(f"{path} does not exist in {self.location}")
            self._sizes[path] = int(info["size"])
        return self._sizes[path]

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Shorter if the file ends before."""
        first, last = offset // BLOCK_BYTES, (offset + max(size, 1) - 1) // BLOCK_BYTES
        if last - first >= KEPT_BLOCKS:
            return self._fetch(path, offset, size)
        joined = b"".join(self._block(path, number) for number in range(first, last + 1))
        start = offset - first * BLOCK_BYTES
        return joined[start : start + size]

    def _block(self, path: str, number: int) -> bytes:
        key = path, number
        with self._lock:
            block = self._blocks.get(key)
            is_new = block is None
            if block is None:
                block = self._blocks[key] = Future()
                while len(self._blocks) > KEPT_BLOCKS:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(key)
        if is_new:
            try:
                block.set_result(self._fetch(path, number * BLOCK_BYTES, BLOCK_BYTES))
            except BaseException as error:
                with self._lock:
                    self._blocks.pop(key, None)
                block.set_exception(error)
        return block.result()  # a second reader of the same block waits instead of fetching it

    def _fetch(self, path: str, offset: int, size: int) -> bytes:
        try:
            end = min(offset + size, self.size(path))
            data: bytes = self.filesystem.cat_file(path, offset, end) if end > offset else b""
            return data
        except (DataError, FileNotFoundError) as error:
            raise ImageError(TAR_MISSING) from error
        except StorageError:
            raise
        except Exception as error:
            raise _read_error(path, self.location, error) from error

    def __getstate__(self) -> dict[str, Any]:
        return {"filesystem": self.filesystem, "location": self.location}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
