"""WebDataset tar files → ImageSet: as if each tar file were a folder of the same name.

`part-0003.tar` that holds `ab/7.jpg` and `ab/7.cls` gives the image `part-0003/ab/7.jpg` with its
label. One pass over the headers finds what there is; images are then read where they lie, one after
another, and never unpacked to disk. What of a tar file is damaged is listed like a broken image.
"""

import bisect
import fnmatch
import glob
import io
import itertools
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
from vizsla.data.remote import BlockReader, files_in, is_url, open_filesystem
from vizsla.data.tar_index import ATTRIBUTES, Found, pictures_in
from vizsla.errors import DataError, ImageError
from vizsla.storage import open_regular

log = logging.getLogger("vizsla.webdataset")

READERS = 8  # tar files whose headers are read at once
MOST = 1_000_000  # tar files of one call
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


class Reader(Protocol):
    """Pieces of tar files, wherever they are. waits: as of a Source."""

    @property
    def waits(self) -> bool: ...

    def opened(self, path: str) -> BinaryIO: ...

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Shorter where the file ends before."""

    def version(self, member: "Member") -> bytes: ...

    def state(self, path: str) -> int:
        """As of `Source.states`."""

    def matching(self, pattern: str) -> list[str]: ...

    def absolute(self, path: str) -> str: ...

    def require(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Member:
    """Where an image lies: tar is a path, offset and size are bytes; broken: why it cannot be."""

    name: str
    tar: str
    offset: int
    size: int
    broken: str | None = None


@dataclass(eq=False)
class TarFiles:
    """names: N, sorted. The i-th lies in tars[tar_of[i]], sizes[i] bytes from offsets[i] on.

    broken: why not, by i. By column, since there may be millions. states_listed: of each tar
    file, before its headers were read.
    """

    place: str
    reader: Reader
    names: Sequence[str]
    tars: Sequence[str]
    states_listed: Sequence[int]
    tar_of: "array[int]"
    offsets: "array[int]"
    sizes: "array[int]"
    broken: dict[int, str]

    def member(self, name: str) -> Member:
        i = bisect.bisect_left(self.names, name)
        tar = self.tars[self.tar_of[i]]
        return Member(name, tar, self.offsets[i], self.sizes[i], self.broken.get(i))

    def read(self, name: str) -> bytes:
        member = self.member(name)
        if member.broken:
            raise ImageError(member.broken)
        data: bytes = self.reader.read(member.tar, member.offset, member.size)
        if len(data) < member.size:
            raise ImageError(
                f"truncated: {len(data):,} of its {member.size:,} bytes are in the tar file"
            )
        return data

    @property
    def waits(self) -> bool:
        return self.reader.waits

    def version(self, name: str) -> bytes:
        """Where it lies, and pieces of what lies there on this machine's disk."""
        member = self.member(name)
        where = f"{member.tar}|{member.offset}|{member.size}|{member.broken}"
        return where.encode("utf-8", "surrogateescape") + self.reader.version(member)

    def states(self, names: Sequence[str], *, now: bool) -> list[int]:
        tars = [self.tar_of[bisect.bisect_left(self.names, name)] for name in names]
        found = {
            t: self.reader.state(self.tars[t]) if now else self.states_listed[t] for t in set(tars)
        }
        return [found[t] for t in tars]

    def part(self, names: Sequence[str]) -> Source:
        """To be sent to another process, whose current folder is another one."""
        ordered = sorted(names)
        kept = [bisect.bisect_left(self.names, name) for name in ordered]
        used = sorted({self.tar_of[i] for i in kept})
        return TarFiles(
            self.place, self.reader, ordered, [self.reader.absolute(self.tars[t]) for t in used],
            [self.states_listed[t] for t in used],
            array("q", (used.index(self.tar_of[i]) for i in kept)),
            array("q", (self.offsets[i] for i in kept)),
            array("q", (self.sizes[i] for i in kept)),
            {n: self.broken[i] for n, i in enumerate(kept) if i in self.broken},
        )  # fmt: skip

    def require(self) -> None:
        self.reader.require()


def is_tars(place: str) -> bool:
    """Whether `place` names tar files: one, several, a pattern, or a folder that holds them alone.

    A folder that holds images or folders as well is a folder of images.
    """
    if any(part.partition("?")[0].endswith((".tar", *PACKED)) for part in place.split("::")):
        return True
    folder = Path(place)
    if is_url(place) or not folder.is_dir():
        return False
    if not any(entry.name.endswith((".tar", *PACKED)) for entry in folder.iterdir()):
        return False
    shown = (entry for entry in folder.iterdir() if entry.name[0] != ".")
    return not any(entry.is_dir() or is_image_name(entry.name) for entry in shown)


def image_set_in_tars(place: str) -> ImageSet:
    """The images of tar files: `x.tar`, `part-{0000..0099}.tar`, `s3://b/*.tar`, several of these
    joined by `::`, or a folder of tar files.

    Labels come from .cls, else from `label` in .json, else from .txt; .json may give group and
    domain too. A key without an image, and a tar file that is cut off or damaged, count as broken.
    """
    reader, patterns = _reader_of(place)
    tars = [tar for pattern in patterns for tar in _expanded(pattern, reader)]
    names = _folder_names(tars)
    states = [reader.state(tar) for tar in tars]
    with ThreadPoolExecutor(READERS, thread_name_prefix="headers") as pool:
        found = list(pool.map(lambda tar: pictures_in(tar, names[tar], reader), tars))
    source, table = _joined(place, reader, tars, states, found)
    if not source.names:
        raise DataError(f"{place} holds no images: {len(tars)} tar files are empty")
    return ImageSet.elsewhere(place, list(source.names), source, table)


def _joined(
    place: str, reader: Reader, tars: Sequence[str], states: list[int], found: list[Found]
) -> tuple[TarFiles, pa.Table]:
    """All tar files as one, sorted by name; and a column for each attribute that any image has."""
    names = [name for each in found for name in each.names]
    order = sorted(range(len(names)), key=names.__getitem__)  # of equal ones the first stays first
    kept = array("q")
    for before, i in zip([-1, *order], order, strict=False):
        if before >= 0 and names[before] == names[i]:
            log.warning("%s occurs twice in its tar file: the first is used", names[i])
        else:
            kept.append(i)
    offsets, sizes, tar_of = array("q"), array("q"), array("q")
    broken: dict[int, str] = {}
    first = 0
    told: dict[str, dict[int, str]] = {name: {} for name in ATTRIBUTES}
    for t, each in enumerate(found):
        offsets += each.offsets
        sizes += each.sizes
        tar_of.extend([t] * len(each.names))
        broken |= {first + i: why for i, why in each.broken.items()}
        for name, column in each.told.items():
            told[name].update((first + i, value) for i, value in column.items())
            column.clear()
        first += len(each.names)
    source = TarFiles(
        place, reader, [names[i] for i in kept], tars, states,
        array("q", (tar_of[i] for i in kept)),
        array("q", (offsets[i] for i in kept)),
        array("q", (sizes[i] for i in kept)),
        {n: broken[i] for n, i in enumerate(kept) if i in broken},
    )  # fmt: skip
    columns = {name: column for name, column in told.items() if column}
    return source, pa.table(
        {name: pa.array([c.get(i) for i in kept], pa.string()) for name, c in columns.items()}
    )


# ── which tar files ──────────────────────────────────────────────────────────────────────────────


def _reader_of(place: str) -> tuple[Reader, list[str]]:
    """What reads there, and the patterns as paths in it."""
    patterns = place.split("::")
    if not is_url(place):
        if os.path.isdir(place):  # noqa: PTH112 (which takes any text)
            left = sorted(p.name for p in Path(place).iterdir() if p.name.endswith(PACKED))
            if left and any(Path(place).glob("*.tar")):
                log.warning("%s: compressed tar files are left out: %s", place, few(left))
            return DiskReader(place), [f"{glob.escape(place.rstrip('/'))}/*.tar"]
        return DiskReader(str(Path(re.split(r"[*?\[{]", patterns[0])[0]).parent)), patterns
    folders = [_split_url(pattern) for pattern in patterns]
    if len({(folder.split("/")[:3][0], query) for folder, _, query in folders}) > 1:
        raise DataError(f"{place}: all tar files of one call must lie in one store")
    opened = [open_filesystem(folder + query) for folder, _, query in folders]
    paths = [
        f"{top.rstrip('/')}/{rest}" for (_, top), (_, rest, _) in zip(opened, folders, strict=True)
    ]
    return RemoteReader(opened[0][0], place), paths


def _split_url(pattern: str) -> tuple[str, str, str]:
    """`s3://b/x/p-*.tar?region=y` → (s3://b/x, p-*.tar, ?region=y)."""
    address, question, query = pattern.partition("?")
    fixed = re.split(r"[*\[{]", address)[0]
    folder = fixed[: fixed.rindex("/")]
    return folder, address[len(folder) + 1 :], question + query


def _expanded(pattern: str, reader: Reader) -> list[str]:
    """Paths, sorted; DataError where there is none."""
    found: list[str] = []
    for each in _braces(pattern):
        found += reader.matching(each) if any(sign in each for sign in "*?[") else [each]
        if len(found) > MOST:
            raise _too_many(pattern)
    packed = [tar for tar in found or _beside(pattern, reader) if tar.endswith(PACKED)]
    if packed:
        raise DataError(
            f"compressed tar files cannot be read from the middle ({few(packed)}): unpack them to "
            ".tar (gzip -d, xz -d, …); pictures are compressed by themselves"
        )
    if not found:
        raise DataError(f"{pattern} matches no tar files")
    return found


def _beside(pattern: str, reader: Reader) -> list[str]:
    """What else the pattern may have been meant for."""
    return reader.matching(pattern.removesuffix(".tar") + "*") if "{" not in pattern else []


def _too_many(pattern: str) -> DataError:
    return DataError(f"{pattern} names more than {MOST:,} tar files: embed them in several parts")


def _braces(pattern: str) -> Iterator[str]:
    """`a-{08..11}.tar` → a-08.tar, a-09.tar, …; `{x,y}` → both. As webdataset expands them."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if numbers:
        first, last = numbers.groups()
        if len(last) > 18 or int(last) - int(first) >= MOST:
            raise _too_many(pattern)
        choices = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    else:
        choices = found[1].split(",")
    for choice in choices:
        yield from _braces(pattern[: found.start()] + choice + pattern[found.end() :])


def _folder_names(tars: Sequence[str]) -> dict[str, str]:
    """What stands for a tar file in its images' ids: its path below what all have in common."""
    repeated = sorted(tar for tar, times in Counter(tars).items() if times > 1)
    if repeated:
        raise DataError(f"named twice: {few(repeated)}")
    parts = [tar.removesuffix(".tar").split("/") for tar in tars]
    common = 0
    while all(len(p) > common + 1 for p in parts) and len({p[common] for p in parts}) == 1:
        common += 1
    return {tar: "/".join(p[common:]) for tar, p in zip(tars, parts, strict=True)}


# ── where they are read ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class DiskReader:
    """Pieces of files on this machine; the system reads ahead by itself."""

    folder: str
    waits: ClassVar[bool] = False

    def opened(self, path: str) -> BinaryIO:
        try:
            return open(open_regular(path), "rb")  # noqa: PTH123 (a descriptor)
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise DataError(f"cannot read {path}: {said}") from error

    def read(self, path: str, offset: int, size: int) -> bytes:
        try:
            with open(open_regular(path), "rb", buffering=0) as file:  # noqa: PTH123
                file.seek(offset)
                return file.read(size)
        except FileNotFoundError as error:
            raise ImageError(TAR_MISSING) from error
        except OSError as error:
            raise ImageError(f"{TAR_UNREADABLE}: {error.strerror}") from error

    def state(self, path: str) -> int:
        return current_state(path)

    def matching(self, pattern: str) -> list[str]:
        return sorted(glob.glob(pattern))  # noqa: PTH207 (the pattern may be absolute)

    def absolute(self, path: str) -> str:
        return os.path.abspath(path)  # noqa: PTH100 (links stay as they are)

    def version(self, member: Member) -> bytes:
        if member.broken:
            return b""
        middle = member.offset + max(0, member.size // 2 - 256)
        return self.read(member.tar, middle, min(512, member.size))

    def require(self) -> None:
        if not Path(self.folder).is_dir():
            raise DataError(
                f"{self.folder} is gone, so its tar files cannot be read: when it is back, run the "
                "same command again"
            )


class RemoteReader:
    """The same for paths in a filesystem of pyarrow's, in large blocks."""

    waits: ClassVar[bool] = True

    def __init__(self, filesystem: Any, place: str) -> None:
        self.place, self.blocks = place, BlockReader(filesystem, place)

    def opened(self, path: str) -> BinaryIO:
        return io.BufferedReader(_Seekable(path, self.blocks))

    def read(self, path: str, offset: int, size: int) -> bytes:
        return self.blocks.read(path, offset, size)

    def state(self, path: str) -> int:
        return 0

    def matching(self, pattern: str) -> list[str]:
        folder = pattern[: re.split(r"[*\[]", pattern)[0].rindex("/")]
        paths = [info.path for info in files_in(self.blocks.filesystem, folder, self.place)]
        return sorted(path for path in paths if _matches(path, pattern))

    def absolute(self, path: str) -> str:
        return path

    def version(self, member: Member) -> bytes:
        return b""  # the place and size of each member, found in the tar file's own headers

    def require(self) -> None:
        """What is missing was told apart already when it was read."""


def _matches(path: str, pattern: str) -> bool:
    """As in a shell: a star crosses no folder and finds nothing hidden."""
    pairs = list(itertools.zip_longest(path.split("/"), pattern.split("/"), fillvalue=""))
    return all(
        fnmatch.fnmatchcase(name, wanted) and (name[:1] != "." or wanted[:1] == ".")
        for name, wanted in pairs
    )


class _Seekable(io.RawIOBase):
    """A remote file as tarfile wants it."""

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
