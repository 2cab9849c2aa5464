"""WebDataset tar files → ImageSet: as if each tar file were a folder of the same name.

`part-0003.tar` that holds `ab/7.jpg` and `ab/7.cls` gives the image `part-0003/ab/7.jpg` with its
label. One pass over the headers finds what there is; images are then read where they lie, one after
another, and never unpacked to disk. What of a tar file is damaged is listed like a broken image.
"""

import fnmatch
import glob
import io
import json
import logging
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from vizsla.data.imageset import ImageSet, Source
from vizsla.data.listing import few, is_image_name
from vizsla.data.remote import BlockReader, files_in, is_url, open_filesystem
from vizsla.errors import DataError, ImageError
from vizsla.storage import open_regular

log = logging.getLogger("vizsla.webdataset")

SIDE_BYTES = 2**20  # a label, a text or a JSON that is longer is not read
ATTRIBUTES = ("label", "group", "domain")  # of a .json member; it may hold anything else besides
READERS = 8  # tar files whose headers are read at once


class Reader(Protocol):
    """Pieces of tar files, wherever they are."""

    def opened(self, path: str) -> BinaryIO: ...

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Shorter where the file ends before."""

    def stamp(self, member: "Member") -> bytes: ...

    def matching(self, pattern: str) -> list[str]: ...

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
    """members: by name, sorted."""

    place: str
    reader: Reader
    members: dict[str, Member]

    def read(self, name: str) -> bytes:
        member = self.members[name]
        if member.broken:
            raise ImageError(member.broken)
        data: bytes = self.reader.read(member.tar, member.offset, member.size)
        if len(data) < member.size:
            raise ImageError(_cut(len(data), member.size))
        return data

    def stamp(self, name: str) -> bytes:
        """Where it lies, and pieces of what lies there on this machine's disk."""
        member = self.members[name]
        where = f"{member.tar}|{member.offset}|{member.size}|{member.broken}"
        return where.encode("utf-8", "surrogateescape") + self.reader.stamp(member)

    def part(self, names: Sequence[str]) -> Source:
        return TarFiles(self.place, self.reader, {name: self.members[name] for name in names})

    def require(self) -> None:
        self.reader.require()


def is_tars(place: str) -> bool:
    """Whether `place` names tar files: one, several, a pattern, or a folder that holds them alone.

    A folder that holds images or folders as well is a folder of images.
    """
    if any(part.partition("?")[0].endswith(".tar") for part in place.split("::")):
        return True
    folder = Path(place)
    if is_url(place) or not folder.is_dir() or not any(folder.glob("*.tar")):
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
    with ThreadPoolExecutor(READERS, thread_name_prefix="headers") as pool:
        listed = pool.map(lambda tar: list(_members(tar, names[tar], reader)), tars)
        found = [pair for each in listed for pair in each]
    members, told = {}, {}
    for member, attributes in found:
        if member.name in members:
            log.warning("%s occurs twice in its tar file: the first is used", member.name)
            continue
        members[member.name], told[member.name] = member, attributes
    if not members:
        raise DataError(f"{place} holds no images: {len(tars)} tar files are empty")
    order = sorted(members)
    source = TarFiles(place, reader, {name: members[name] for name in order})
    return ImageSet.elsewhere(place, order, source, _table([told[name] for name in order]))


def _table(rows: Sequence[dict[str, str]]) -> pa.Table:
    """A column for each attribute that any image has."""
    columns = [name for name in ATTRIBUTES if any(name in row for row in rows)]
    return pa.table({c: pa.array([row.get(c) for row in rows], pa.string()) for c in columns})


# ── which tar files ──────────────────────────────────────────────────────────────────────────────


def _reader_of(place: str) -> tuple[Reader, list[str]]:
    """What reads there, and the patterns as paths in it."""
    patterns = place.split("::")
    if not is_url(place):
        if Path(place).is_dir():
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
    found = []
    for each in _braces(pattern):
        found += reader.matching(each) if any(sign in each for sign in "*?[") else [each]
    if not found:
        raise DataError(f"{pattern} matches no tar files")
    return found


def _braces(pattern: str) -> Iterator[str]:
    """`a-{08..11}.tar` → a-08.tar, a-09.tar, …; `{x,y}` → both. As webdataset expands them."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if numbers:
        first, last = numbers.groups()
        choices = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    else:
        choices = found[1].split(",")
    for choice in choices:
        yield from _braces(pattern[: found.start()] + choice + pattern[found.end() :])


def _folder_names(tars: Sequence[str]) -> dict[str, str]:
    """What stands for a tar file in its images' ids: its path below what all have in common."""
    repeated = sorted({tar for tar in tars if tars.count(tar) > 1}) if len(tars) < 1000 else []
    if repeated:
        raise DataError(f"named twice: {few(repeated)}")
    parts = [tar.removesuffix(".tar").split("/") for tar in tars]
    common = 0
    while all(len(p) > common + 1 for p in parts) and len({p[common] for p in parts}) == 1:
        common += 1
    return {tar: "/".join(p[common:]) for tar, p in zip(tars, parts, strict=True)}


# ── what is in one ───────────────────────────────────────────────────────────────────────────────


def _members(tar: str, folder: str, reader: Reader) -> Iterator[tuple[Member, dict[str, str]]]:
    """Its images with their attributes; a damaged rest is one broken member, named as the file."""
    groups: dict[str, list[tarfile.TarInfo]] = {}
    sides: dict[str, dict[str, str]] = {}
    damage = None
    try:
        with reader.opened(tar) as file:
            for info in _headers(file):
                key, extension = _key(info.name)
                groups.setdefault(key, []).append(info)
                if extension in ("cls", "txt", "json") and info.size <= SIDE_BYTES:
                    data = reader.read(tar, info.offset_data, info.size)
                    sides.setdefault(key, {})[extension] = data.decode("utf-8", "replace").strip()
    except (tarfile.TarError, EOFError, ValueError, ImageError) as error:
        damage = f"damaged tar file: what follows in it cannot be found ({error})"
    for key, infos in groups.items():
        yield from _images_of(key, infos, sides.get(key, {}), tar, folder)
    if damage:
        log.warning("%s: %s", tar, damage)
        yield Member(f"{folder}.tar", tar, 0, 0, damage), {}


def _headers(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Of each file that is not hidden. TarError where the archive is not whole to its end mark."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]  # or it would keep every header
            info.name = info.name.removeprefix("./")
            if info.isfile() and not any(part[:1] == "." for part in info.name.split("/")):
                yield info
        file.seek(archive.offset)  # tarfile takes a garbled header for the end
        if file.read(512) != bytes(512):
            raise tarfile.ReadError("no end mark")


def _images_of(
    key: str, infos: list[tarfile.TarInfo], side: dict[str, str], tar: str, folder: str
) -> Iterator[tuple[Member, dict[str, str]]]:
    attributes = _attributes(side, f"{folder}/{key}")
    pictures = [info for info in infos if is_image_name(info.name.rpartition("/")[2])]
    for info in pictures:
        yield Member(f"{folder}/{info.name}", tar, info.offset_data, info.size), attributes
    if not pictures:
        held = ", ".join(_key(info.name)[1] or "no extension" for info in infos)
        yield Member(f"{folder}/{key}", tar, 0, 0, f"no picture under this key, but {held}"), {}


def _key(name: str) -> tuple[str, str]:
    """`a/7.left.jpg` → (a/7, left.jpg): a key ends at the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return f"{folder}{slash}{key}", extension.lower()


def _attributes(side: dict[str, str], where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    if "json" in side:
        try:
            content = json.loads(side["json"])
        except ValueError as error:
            log.warning("%s.json is not JSON (%s): not used", where, error)
            content = {}
        if isinstance(content, dict):
            known = {name: content.get(name) for name in ATTRIBUTES}
            found = {k: str(v) for k, v in known.items() if isinstance(v, str | int | float)}
    if "txt" in side:
        found.setdefault("label", side["txt"])
    if "cls" in side:
        found["label"] = side["cls"]
    return found


def _cut(found: int, expected: int) -> str:
    return f"truncated: {found:,} of its {expected:,} bytes are in the tar file"


# ── where they are read ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class DiskReader:
    """Pieces of files on this machine; the system reads ahead by itself."""

    folder: str

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
            raise ImageError("its tar file is missing") from error
        except OSError as error:
            raise ImageError(f"its tar file cannot be read: {error.strerror}") from error

    def matching(self, pattern: str) -> list[str]:
        return sorted(glob.glob(pattern))  # noqa: PTH207 (the pattern may be absolute)

    def stamp(self, member: Member) -> bytes:
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

    def __init__(self, filesystem: Any, place: str) -> None:
        self.place, self.blocks = place, BlockReader(filesystem, place)

    def opened(self, path: str) -> BinaryIO:
        return io.BufferedReader(_Seekable(path, self.blocks))

    def read(self, path: str, offset: int, size: int) -> bytes:
        return self.blocks.read(path, offset, size)

    def matching(self, pattern: str) -> list[str]:
        folder = pattern[: re.split(r"[*\[]", pattern)[0].rindex("/")]
        paths = [info.path for info in files_in(self.blocks.filesystem, folder, self.place)]
        return sorted(path for path in paths if fnmatch.fnmatchcase(path, pattern))

    def stamp(self, member: Member) -> bytes:
        return b""  # the place and size of each member, found in the tar file's own headers

    def require(self) -> None:
        """What is missing was told apart already when it was read."""


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
