"""One tar file → the images in it, where they are, and their labels. Only headers are read, and
labels.

Members with one key, `ab/7.jpg` and `ab/7.cls`, belong together; a name that occurs again begins
another sample with that key. The key ends at the file name's first dot, as WebDataset has it; but
labels that have an image's name up to its last dot are its own, `7.2.cls` of `7.2.jpg`, and come
first. Links to other members are followed. Damaged members, and links that
lead nowhere, are listed with the reason.
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

from vizsla.data.listing import few, is_image_name
from vizsla.data.names import nfc
from vizsla.errors import ImageError

log = logging.getLogger("vizsla.webdataset")

LABEL_EXTENSIONS = ("cls", "txt", "json")
MAX_LABEL_BYTES = 2**20  # a longer label, text or JSON is not read
ATTRIBUTES = ("label", "group", "domain")  # of a .json member; all other keys are ignored
LINK_TYPES = (tarfile.LNKTYPE, tarfile.SYMTYPE)
MAX_LINKS = 40  # from one to the next
HEADER_BYTES = 512
_UNPACK_COMMANDS = {
    b"\x1f\x8b": "gzip -d",
    b"BZh": "bzip2 -d",
    b"\xfd7zXZ": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
}  # by the first bytes of a compressed file


class TarReader(Protocol):
    """What reads tar files, wherever they are."""

    def open(self, path: str) -> BinaryIO:
        """The file from its start; DataError if it cannot be read."""

    def read(self, path: str, offset: int, size: int) -> bytes:
        """A part of it; shorter if the file ends before."""


@dataclass
class TarContents:
    """The images of a tar file: the i-th has sizes[i] bytes from offsets[i] on.

    broken: why an image cannot be read, by i. attributes: of each attribute the values, by i.
    """

    names: list[str] = field(default_factory=list)
    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    broken: dict[int, str] = field(default_factory=dict)
    attributes: dict[str, dict[int, str]] = field(
        default_factory=lambda: {name: {} for name in ATTRIBUTES}
    )

    def add(self, name: str, offset: int, size: int, broken: str | None) -> int:
        """Appends an image; its number."""
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


def read_tar_index(tar: str, folder: str, reader: TarReader) -> TarContents:
    """The images of one tar file, their names below `folder`.

    What comes after damage cannot be found: it is one broken image, named as the tar file.
    """
    members, damage = _Members(), None
    try:
        with reader.open(tar) as file:
            for info in _headers(file):
                extension = members.add(info)
                if extension in LABEL_EXTENSIONS and info.isfile() and info.size <= MAX_LABEL_BYTES:
                    members.add_label(extension, reader.read(tar, info.offset_data, info.size))
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError,
            ImageError) as error:  # fmt: skip
        damage = _damage(tar, reader, error)
    members.follow_links(tar, reader)
    contents = TarContents()
    members.list_images(contents, folder, tar, reader)
    if damage:
        log.warning("%s: %s", tar, damage)
        contents.add(f"{folder}.tar", 0, 0, damage)
    return contents


def _headers(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Headers of the relevant members that are not hidden, also of tar files joined to the first.

    TarError if one is not complete to its end mark."""
    start: int | None = 0
    while start is not None:
        file.seek(start)
        last = -1
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                if info.offset <= last or info.size < 0:
                    raise tarfile.ReadError("a header that points backwards")
                last = info.offset
                archive.members = []  # type: ignore[attr-defined]  # it would keep every header
                info.name = info.name.removeprefix("./")
                if _is_relevant(info) and not any(p[:1] == "." for p in info.name.split("/")):
                    yield info
            end = archive.offset
        file.seek(end)  # tarfile takes a garbled header for the end
        if file.read(HEADER_BYTES) != bytes(HEADER_BYTES):
            raise tarfile.ReadError("no end mark")
        start = _next_start(file, end + HEADER_BYTES)


def _is_relevant(info: tarfile.TarInfo) -> bool:
    """Whether it is a file, or has the name of an image or a label."""
    if info.isfile() or is_image_name(info.name.rpartition("/")[2]):
        return True
    return info.type in LINK_TYPES and info.name.rpartition(".")[2].lower() in LABEL_EXTENSIONS


def _next_start(file: BinaryIO, position: int) -> int | None:
    """Where data begin after an end mark, as in the result of `cat a.tar b.tar`."""
    while data := file.read(128 * HEADER_BYTES):
        rest = data.lstrip(b"\0")
        if rest:
            return position + (len(data) - len(rest)) // HEADER_BYTES * HEADER_BYTES
        position += len(data)
    return None


def _damage(tar: str, reader: TarReader, error: Exception) -> str:
    with contextlib.suppress(ImageError):
        head = reader.read(tar, 0, 8)
        for magic, command in _UNPACK_COMMANDS.items():
            if head.startswith(magic):
                return f"a compressed tar file, which is not read: unpack it with {command}"
    return f"damaged tar file: what follows in it cannot be found ({error})"


class _Members:
    """The members of one tar file, by column: a large one has millions."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.offsets, self.sizes, self.samples = array("q"), array("q"), array("q")
        self.latest_sample: dict[str, int] = {}  # by key
        self.sample_count = 0
        self.known: set[int] = set()  # hashes of (sample, name)
        # by extension and sample; texts: each one once
        self.labels: dict[str, dict[int, str]] = {kind: {} for kind in LABEL_EXTENSIONS}
        self.own: dict[tuple[int, str, str], int] = {}  # (sample, stem, kind) → label member
        self.texts: dict[str, str] = {}  # each label once
        self.broken: dict[int, str] = {}
        self.links: dict[int, str | None] = {}  # the target's name, None outside the tar file

    def add(self, info: tarfile.TarInfo) -> str:
        """Appends a member; its extension."""
        key, extension = split_key(info.name)
        sample = self.latest_sample.get(key)
        if sample is None or hash((sample, info.name)) in self.known:
            sample = self.latest_sample[key] = self.sample_count
            self.sample_count += 1
        self.known.add(hash((sample, info.name)))
        number = len(self.names)
        if info.islnk() or info.issym():
            self.links[number] = _link_target(info)
        elif not info.isfile():
            self.broken[number] = "not a regular file"
        elif info.sparse is not None:
            self.broken[number] = "a sparse member, whose bytes are not contiguous"
        self.names.append(info.name)
        self.offsets.append(info.offset_data)
        self.sizes.append(info.size)
        self.samples.append(sample)
        stem, _, last = info.name.rpartition(".")
        if stem != key and last.lower() in LABEL_EXTENSIONS:
            self.own.setdefault((sample, stem, last.lower()), number)
        return extension

    def add_label(self, extension: str, data: bytes, number: int = -1) -> None:
        """The content of a label member (the last one) belongs to the sample of that member."""
        text = data.decode("utf-8", "replace").strip()
        text = self.texts.setdefault(text, text)
        self.labels[extension].setdefault(self.samples[number], text)

    def follow_links(self, tar: str, reader: TarReader) -> None:
        """Links get the place of what they lead to."""
        if not self.links:
            return
        targets = {self.names[i]: target for i, target in self.links.items()}
        files: dict[str, int] = {}
        for i, name in enumerate(self.names):
            if i not in self.links and i not in self.broken:
                files.setdefault(name, i)
        for number, first in self.links.items():
            target = first
            for _ in range(MAX_LINKS):
                if target is None or target in files:
                    break
                target = targets.get(target)
            if target not in files:
                self.broken[number] = (
                    f"a link to {first or 'a file outside'}, which is not in its tar file"
                )
                continue
            end = files[target]
            self.offsets[number], self.sizes[number] = self.offsets[end], self.sizes[end]
            extension = split_key(self.names[number])[1]
            if extension in LABEL_EXTENSIONS and self.sizes[end] <= MAX_LABEL_BYTES:
                with contextlib.suppress(ImageError):
                    data = reader.read(tar, self.offsets[end], self.sizes[end])
                    self.add_label(extension, data, number)

    def _own_labels(self, sample: int, stem: str, tar: str, reader: TarReader) -> dict[str, str]:
        """By kind the content of the label members that have this stem."""
        found = {}
        for kind in LABEL_EXTENSIONS:
            number = self.own.get((sample, stem, kind))
            if number is None or self.sizes[number] > MAX_LABEL_BYTES or number in self.broken:
                continue
            with contextlib.suppress(ImageError):
                data = reader.read(tar, self.offsets[number], self.sizes[number])
                found[kind] = data.decode("utf-8", "replace").strip()
        return found

    def list_images(self, contents: TarContents, folder: str, tar: str, reader: TarReader) -> None:
        """Adds the images with their attributes, and samples without an image as broken."""
        has_image = bytearray(self.sample_count)
        doubtful: list[str] = []
        shared = bytearray(self.sample_count)  # whose labels are those of an image with one dot
        for sample, name in zip(self.samples, self.names, strict=True):
            if (
                is_image_name(name.rpartition("/")[2])
                and name.rpartition(".")[0] == split_key(name)[0]
            ):
                shared[sample] = 1
        for number, name in enumerate(self.names):
            if not is_image_name(name.rpartition("/")[2]):
                continue
            sample = self.samples[number]
            has_image[sample] = 1
            i = contents.add(
                f"{folder}/{name}", self.offsets[number], self.sizes[number],
                self.broken.get(number),
            )  # fmt: skip
            stem, key = name.rpartition(".")[0], split_key(name)[0]
            own = {} if stem == key else self._own_labels(sample, stem, tar, reader)
            labels = {kind: texts[sample] for kind, texts in self.labels.items() if sample in texts}
            if labels and stem != key and not own and shared[sample]:
                doubtful.append(name)
            values = _attributes(labels, f"{folder}/{key}") | _attributes(own, f"{folder}/{stem}")
            for attribute, value in values.items():
                contents.attributes[attribute][i] = self.texts.setdefault(value, value)
        if doubtful:
            log.warning(
                "%s: %d images have no label of their own and take that of another image: %s",
                tar, len(doubtful), few(doubtful),
            )  # fmt: skip
        if all(has_image):
            return
        without: dict[int, list[str]] = {}
        for number, sample in enumerate(self.samples):
            if not has_image[sample]:
                without.setdefault(sample, []).append(self.names[number])
        for names in without.values():
            found = ", ".join(split_key(name)[1] or "no extension" for name in names)
            key = split_key(names[0])[0]
            contents.add(f"{folder}/{key}", 0, 0, f"no image with this key, only {found}")


def _link_target(info: tarfile.TarInfo) -> str | None:
    """The name that a link leads to; None if that is outside the tar file."""
    if info.islnk():
        return info.linkname.removeprefix("./")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(info.name), info.linkname))
    return None if target.startswith(("/", "../")) else target


def split_key(name: str) -> tuple[str, str]:
    """Key and extension: `a/7.left.jpg` → (a/7, left.jpg), split at the file name's first dot."""
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return f"{folder}{slash}{key}", extension.lower()


def _attributes(labels: dict[str, str], key: str) -> dict[str, str]:
    """Attributes of a sample from the content of its label members; .cls wins over the others."""
    found: dict[str, Any] = {}
    if "json" in labels:
        try:
            content = json.loads(labels["json"])
        except (ValueError, RecursionError) as error:
            log.warning("%s.json is not JSON (%s): not used", key, error)
            content = {}
        if isinstance(content, dict):
            known = {name: content.get(name) for name in ATTRIBUTES}
            found = {k: v for k, v in known.items() if isinstance(v, str | int | float)}
    if "txt" in labels:
        found.setdefault("label", labels["txt"])
    if "cls" in labels:
        found["label"] = labels["cls"]
    return {k: nfc(str(v).encode("utf-8", "replace").decode()) for k, v in found.items()}
