"""One folder → the names of its images, which are not opened."""

import heapq
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vizsla.errors import DataError

log = logging.getLogger("vizsla.images")

_EXTENSIONS = """
    jpg jpeg jpe jfif mpo png apng webp gif bmp dib tif tiff avif avifs ppm pgm pbm pnm pfm ico
    jp2 j2k j2c jpc jpf jpx heic heif hif
"""
IMAGE_EXTENSIONS = frozenset(_EXTENSIONS.split())  # without the dot, in small letters


def few(names: Sequence[str], most: int = 3) -> str:
    """The first names and how many more there are, for a message; unprintable ones escaped."""
    shown = ", ".join(n if n.isprintable() else ascii(n)[1:-1] for n in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


@dataclass(frozen=True)
class Listing:
    """ids: posix paths below the root, sorted as UTF-8 bytes.

    links_outside: links that lead out of the root and were not followed. ignored: how many
    hidden entries and files of other kinds there are. bad_names: images left out because their
    names are not valid UTF-8 (in Python's escaped form); no artefact can contain such a name.
    """

    ids: list[str]
    links_outside: list[str] = field(default_factory=list)
    ignored: int = 0
    bad_names: list[str] = field(default_factory=list)


def is_image_name(name: str) -> bool:
    """By its extension, in any case; hidden files are not images."""
    stem, dot, extension = name.rpartition(".")
    return bool(stem) and bool(dot) and name[0] != "." and extension.lower() in IMAGE_EXTENSIONS


def list_images(root: str | Path, *, follow_links: bool = False) -> Listing:
    """All images below `root`, by name; they are not opened.

    A link to a file below the root is one more image. A linked folder is listed once, under its
    real name if that is below the root, so cyclic links end. A link that leads nowhere is
    listed too, and is broken when it is read. DataError for no folder, or no images in it.
    """
    start = Path(root)
    if not start.exists():
        raise DataError(f"{root} does not exist: give the folder that holds the images")
    if not start.is_dir():
        raise DataError(f"{root} is a file, expected a folder of images")
    walk = _Walk(os.path.realpath(start), follow_links)
    walk.run()
    found = walk.listing()
    if walk.unreadable:
        log.warning("%s: %s cannot be opened and are left out", root, few(walk.unreadable))
    if found.bad_names:
        log.warning(
            "%s: names that are not UTF-8, left out: %s%s",
            root, few(found.bad_names), _locale_hint(),
        )  # fmt: skip
    if not found.ids:
        raise DataError(_nothing_in(root, found))
    return found


def _locale_hint() -> str:
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        return ""
    return f" (this Python reads all names as {encoding}: start it with PYTHONUTF8=1)"


def _nothing_in(root: str | Path, found: Listing) -> str:
    message = f"{root} holds no images"
    if found.links_outside:
        message += (
            f", but {len(found.links_outside)} links that lead out of it "
            f"({few(found.links_outside)}): follow them with --follow-links"
        )
    elif found.bad_names:
        message += f" with a name that can be read, but {len(found.bad_names)} others"
    elif found.ignored:
        message += f" among {found.ignored} files: expected names that end in .jpg, .png, .webp, …"
    else:
        message += ": it is empty"
    return message


class _Walk:
    """One pass over a tree: real folders first, then the linked ones that were not among them."""

    def __init__(self, root: str, follow_links: bool) -> None:
        self.root, self.follow_links = root, follow_links
        self.ids: list[str] = []
        self.outside: list[str] = []
        self.bad_names: list[str] = []
        self.unreadable: list[str] = []
        self.ignored = 0
        self.visited: set[tuple[int, int]] = set()
        self.linked: list[tuple[int, str, str]] = []  # (depth, id prefix, folder), not yet walked

    def run(self) -> None:
        self._folders([("", self.root)])
        while self.linked:
            _, prefix, folder = heapq.heappop(self.linked)
            self._folders([(prefix, folder)])

    def listing(self) -> Listing:
        # Python sorts by code points, which is the order of their UTF-8 bytes.
        return Listing(sorted(self.ids), sorted(self.outside), self.ignored, sorted(self.bad_names))

    def _folders(self, waiting: list[tuple[str, str]]) -> None:
        while waiting:
            prefix, folder = waiting.pop()
            try:
                found = Path(folder).stat()
                if (found.st_dev, found.st_ino) in self.visited:
                    continue
                self.visited.add((found.st_dev, found.st_ino))
                with os.scandir(folder) as entries:
                    for entry in entries:
                        self._entry(entry, prefix, waiting)
            except OSError as error:
                self.unreadable.append(f"{prefix or folder} ({error.strerror})")

    def _entry(
        self, entry: "os.DirEntry[str]", prefix: str, waiting: list[tuple[str, str]]
    ) -> None:
        name = entry.name
        if name[0] == ".":
            self.ignored += 1
        elif entry.is_symlink():
            self._link(entry, prefix + name)
        elif entry.is_dir(follow_symlinks=False):
            waiting.append((f"{prefix}{name}/", entry.path))
        elif is_image_name(name) and entry.is_file(follow_symlinks=False):
            self._image(prefix + name)
        else:
            self.ignored += 1

    def _link(self, entry: "os.DirEntry[str]", name: str) -> None:
        is_folder = Path(entry.path).is_dir()  # False for cyclic links; entry.is_dir() raises
        if not is_folder and not is_image_name(entry.name):
            self.ignored += 1
        elif not is_folder and self.follow_links:
            self._image(name)
        else:
            target = os.path.realpath(entry.path)
            inside = target == self.root or target.startswith(self.root.rstrip(os.sep) + os.sep)
            if not inside and not self.follow_links:
                self.outside.append(name)
            elif is_folder:
                heapq.heappush(self.linked, (name.count("/"), f"{name}/", target))
            else:
                self._image(name)

    def _image(self, name: str) -> None:
        if name.isascii() or _is_utf8(name):
            self.ids.append(name)
        else:
            self.bad_names.append(ascii(name)[1:-1])


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # undecodable bytes of a name arrive as lone surrogates
        return False
    return True
