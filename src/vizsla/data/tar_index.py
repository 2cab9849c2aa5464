"""One tar file → the pictures in it, where they lie, and what is told of them. Headers alone are
read, and labels.

Members of one key, `ab/7.jpg` and `ab/7.cls`, belong together; a name that comes again begins
another sample of that key. Links to other members are followed. What is damaged, or leads nowhere,
is listed with the reason.
"""

import contextlib
import json
import logging
import posixpath
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

from vizsla.data.listing import is_image_name
from vizsla.errors import ImageError

log = logging.getLogger("vizsla.webdataset")

SIDES = ("cls", "txt", "json")
SIDE_BYTES = 2**20  # a label, a text or a JSON that is longer is not read
ATTRIBUTES = ("label", "group", "domain")  # of a .json member; it may hold anything else besides
LINK_TYPES = (tarfile.LNKTYPE, tarfile.SYMTYPE)
LINKS = 40  # from one to the next, at most
BLOCK = 512  # bytes of a header
_UNPACKERS = {
    b"\x1f\x8b": "gzip -d",
    b"BZh": "bzip2 -d",
    b"\xfd7zXZ": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
}  # by the first bytes of what they unpack


class Readable(Protocol):
    def opened(self, path: str) -> BinaryIO: ...

    def read(self, path: str, offset: int, size: int) -> bytes: ...


@dataclass
class Found:
    """The i-th picture: its name, and the bytes where it lies. broken: by i. told: of each
    attribute by i."""

    names: list[str] = field(default_factory=list)
    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    broken: dict[int, str] = field(default_factory=dict)
    told: dict[str, dict[int, str]] = field(default_factory=lambda: {c: {} for c in ATTRIBUTES})

    def add(self, name: str, offset: int, size: int, broken: str | None) -> int:
        try:
            name.encode()
        except UnicodeEncodeError:  # no artefact could hold it
            name, broken = ascii(name)[1:-1], "its name is not UTF-8"
        if broken:
            self.broken[len(self.names)] = broken
        self.names.append(name)
        self.offsets.append(offset)
        self.sizes.append(size)
        return len(self.names) - 1


def pictures_in(tar: str, folder: str, reader: Readable) -> Found:
    """folder: what stands before the names. A damaged rest is one broken picture, named as the
    tar file."""
    contents, damage = _Contents(), None
    try:
        with reader.opened(tar) as file:
            for info in _headers(file):
                data = None
                extension = contents.add(info)
                if extension in SIDES and info.isfile() and info.size <= SIDE_BYTES:
                    data = reader.read(tar, info.offset_data, info.size)
                    contents.tell(extension, data)
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError,
            ImageError) as error:  # fmt: skip
        damage = _damage(tar, reader, error)
    contents.follow(tar, reader)
    found = Found()
    contents.list_in(found, folder)
    if damage:
        log.warning("%s: %s", tar, damage)
        found.add(f"{folder}.tar", 0, 0, damage)
    return found


def _headers(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Of each member that counts and is not hidden, also of further tar files joined to the first.
    TarError where one is not whole to its end mark."""
    start: int | None = 0
    while start is not None:
        file.seek(start)
        last = -1
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                if info.offset <= last or info.size < 0:
                    raise tarfile.ReadError("a header that leads back")
                last = info.offset
                archive.members = []  # type: ignore[attr-defined]  # it would keep every header
                info.name = info.name.removeprefix("./")
                if _counts(info) and not any(p[:1] == "." for p in info.name.split("/")):
                    yield info
            end = archive.offset
        file.seek(end)  # tarfile takes a garbled header for the end
        if file.read(BLOCK) != bytes(BLOCK):
            raise tarfile.ReadError("no end mark")
        start = _next_start(file, end + BLOCK)


def _counts(info: tarfile.TarInfo) -> bool:
    """Files, and what has the name of a picture or a label but is none."""
    if info.isfile():
        return True
    named = is_image_name(info.name.rpartition("/")[2])
    return named or (info.type in LINK_TYPES and split_key(info.name)[1] in SIDES)


def _next_start(file: BinaryIO, position: int) -> int | None:
    """Where something begins behind an end mark, as after `cat a.tar b.tar`."""
    while data := file.read(128 * BLOCK):
        rest = data.lstrip(b"\0")
        if rest:
            return position + (len(data) - len(rest)) // BLOCK * BLOCK
        position += len(data)
    return None


def _damage(tar: str, reader: Readable, error: Exception) -> str:
    with contextlib.suppress(ImageError):
        head = reader.read(tar, 0, 8)
        for magic, command in _UNPACKERS.items():
            if head.startswith(magic):
                return f"a compressed tar file, which is not read: unpack it with {command}"
    return f"damaged tar file: what follows in it cannot be found ({error})"


class _Contents:
    """The members of one tar file, by column: a large one has millions."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.offsets, self.sizes, self.samples = array("q"), array("q"), array("q")
        self.latest: dict[str, int] = {}  # key → its last sample
        self.count = 0  # of samples
        self.held: set[int] = set()  # hashes of (sample, name)
        self.told: dict[str, dict[int, str]] = {side: {} for side in SIDES}  # by sample
        self.texts: dict[str, str] = {}  # each label once
        self.reasons: dict[int, str] = {}
        self.links: dict[int, str | None] = {}  # the target's name, None outside

    def add(self, info: tarfile.TarInfo) -> str:
        """The extension."""
        key, extension = split_key(info.name)
        sample = self.latest.get(key)
        if sample is None or hash((sample, info.name)) in self.held:
            sample = self.latest[key] = self.count
            self.count += 1
        self.held.add(hash((sample, info.name)))
        place = len(self.names)
        if info.islnk() or info.issym():
            self.links[place] = _target(info)
        elif not info.isfile():
            self.reasons[place] = "not a regular file"
        elif info.sparse is not None:
            self.reasons[place] = "a sparse member, whose bytes do not lie together"
        self.names.append(info.name)
        self.offsets.append(info.offset_data)
        self.sizes.append(info.size)
        self.samples.append(sample)
        return extension

    def tell(self, extension: str, data: bytes) -> None:
        """What the last member says of its sample."""
        self._tell(len(self.names) - 1, extension, data)

    def _tell(self, place: int, extension: str, data: bytes) -> None:
        text = data.decode("utf-8", "replace").strip()
        text = self.texts.setdefault(text, text)
        self.told[extension].setdefault(self.samples[place], text)

    def follow(self, tar: str, reader: Readable) -> None:
        """Links become what they lead to."""
        if not self.links:
            return
        targets = {self.names[i]: target for i, target in self.links.items()}
        files: dict[str, int] = {}
        for i, name in enumerate(self.names):
            if i not in self.links and i not in self.reasons:
                files.setdefault(name, i)
        for place, first in self.links.items():
            target = first
            for _ in range(LINKS):
                if target is None or target in files:
                    break
                target = targets.get(target)
            if target not in files:
                where = first or "what lies outside"
                self.reasons[place] = f"a link to {where}, not in its tar file"
                continue
            end = files[target]
            self.offsets[place], self.sizes[place] = self.offsets[end], self.sizes[end]
            extension = split_key(self.names[place])[1]
            if extension in SIDES and self.sizes[end] <= SIDE_BYTES:
                with contextlib.suppress(ImageError):
                    data = reader.read(tar, self.offsets[end], self.sizes[end])
                    self._tell(place, extension, data)

    def list_in(self, found: Found, folder: str) -> None:
        pictured = bytearray(self.count)
        for place, name in enumerate(self.names):
            if not is_image_name(name.rpartition("/")[2]):
                continue
            sample = self.samples[place]
            pictured[sample] = 1
            i = found.add(
                f"{folder}/{name}", self.offsets[place], self.sizes[place], self.reasons.get(place)
            )
            side = {kind: texts[sample] for kind, texts in self.told.items() if sample in texts}
            if side:
                about = _attributes(side, f"{folder}/{split_key(name)[0]}")
                for attribute, value in about.items():
                    found.told[attribute][i] = self.texts.setdefault(value, value)
        if not all(pictured):
            self._list_unpictured(found, folder, pictured)

    def _list_unpictured(self, found: Found, folder: str, pictured: bytearray) -> None:
        held: dict[int, list[str]] = {}
        for place, sample in enumerate(self.samples):
            if not pictured[sample]:
                held.setdefault(sample, []).append(self.names[place])
        for names in held.values():
            what = ", ".join(split_key(name)[1] or "no extension" for name in names)
            key = split_key(names[0])[0]
            found.add(f"{folder}/{key}", 0, 0, f"no picture under this key, but {what}")


def _target(info: tarfile.TarInfo) -> str | None:
    """The name that a link leads to; None where that lies outside the tar file."""
    if info.islnk():
        return info.linkname.removeprefix("./")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(info.name), info.linkname))
    return None if target.startswith(("/", "../")) else target


def split_key(name: str) -> tuple[str, str]:
    """`a/7.left.jpg` → (a/7, left.jpg): a key ends at the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return f"{folder}{slash}{key}", extension.lower()


def _attributes(side: dict[str, str], where: str) -> dict[str, str]:
    found: dict[str, Any] = {}
    if "json" in side:
        try:
            content = json.loads(side["json"])
        except (ValueError, RecursionError) as error:
            log.warning("%s.json is not JSON (%s): not used", where, error)
            content = {}
        if isinstance(content, dict):
            known = {name: content.get(name) for name in ATTRIBUTES}
            found = {k: v for k, v in known.items() if isinstance(v, str | int | float)}
    if "txt" in side:
        found.setdefault("label", side["txt"])
    if "cls" in side:
        found["label"] = side["cls"]
    return {k: str(v).encode("utf-8", "replace").decode() for k, v in found.items()}
