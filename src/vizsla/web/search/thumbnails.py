"""Uploads kept for a while, and thumbnails kept on disk. Knows bytes and hashes, no requests."""

import contextlib
import hashlib
import logging
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vizsla import storage
from vizsla.web.search.decoder import Decoder

log = logging.getLogger("vizsla.serve")

SIDES = {"small": 384, "large": 1280}  # px of the longer side
PREVIEW = 1024  # the same, of an upload at most
LONGEST_NAME = 100  # characters
UPLOADS, UPLOAD_BYTES = 2000, 2**28
THUMBNAIL_BYTES = 2**30  # on disk; the oldest go first
PRUNED_EVERY = 2000  # thumbnails written


# ── uploads ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Upload:
    """A picture that somebody searched with. name: the SHA-256 of its file, 32 hex digits."""

    name: str
    size: tuple[int, int]
    vector: np.ndarray  # (D,) float32 of length 1
    pixels: np.ndarray  # (H, W, 3) uint8, as the model sees it
    jpeg: bytes
    is_large: bool = True  # the JPEG has PREVIEW px, where the picture has

    @property
    def n_bytes(self) -> int:
        return self.vector.nbytes + self.pixels.nbytes + len(self.jpeg) + 500


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


class Uploads:
    """The latest uploads by name; the one unused for longest goes where there is no more room."""

    def __init__(self, *, most: int = UPLOADS, most_bytes: int = UPLOAD_BYTES) -> None:
        self.most, self.most_bytes, self.n_bytes = most, most_bytes, 0
        self._kept: OrderedDict[str, Upload] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, upload: Upload) -> None:
        with self._lock:
            before = self._kept.pop(upload.name, None)
            self.n_bytes += upload.n_bytes - (before.n_bytes if before else 0)
            self._kept[upload.name] = upload
            while len(self._kept) > self.most or self.n_bytes > self.most_bytes:
                if len(self._kept) == 1:
                    break
                _, oldest = self._kept.popitem(last=False)
                self.n_bytes -= oldest.n_bytes

    def get(self, name: str) -> Upload | None:
        with self._lock:
            found = self._kept.get(name)
            if found is not None:
                self._kept.move_to_end(name)
            return found


# ── thumbnails ───────────────────────────────────────────────────────────────────────────────────


class Thumbnails:
    """JPEGs of the gallery's pictures in a folder that may be deleted at any time."""

    def __init__(
        self, decoder: Decoder, folder: Path | None = None, *, most_bytes: int = THUMBNAIL_BYTES
    ) -> None:
        self.decoder, self.most_bytes = decoder, most_bytes
        self.folder = folder or storage.cache_folder() / "thumbnails"
        self._written = 0
        self._prune()

    @staticmethod
    def tag(path: Path, side: str = "") -> str:
        """Changes when the file does; OSError where there is none."""
        state = path.stat()
        known = f"{path}|{state.st_size}|{state.st_mtime_ns}|{state.st_ino}|{SIDES.get(side)}"
        return hashlib.sha256(known.encode(errors="surrogateescape")).hexdigest()[:32]

    def get(self, path: Path, side: str) -> bytes:
        """ImageError where the picture cannot be read."""
        file = self.folder / f"{self.tag(path, side)}.jpg"
        with contextlib.suppress(OSError):
            data = file.read_bytes()
            if data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9"):
                return data
        decoded = self.decoder.decode(path, jpeg_side=SIDES[side]).result()
        assert decoded.jpeg is not None
        self._keep(file, decoded.jpeg)
        return decoded.jpeg

    def _keep(self, file: Path, data: bytes) -> None:
        """Without fsync: a thumbnail that is cut short is made again."""
        temporary = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(file)
        except OSError as error:
            log.debug("a thumbnail is not kept: %s", error)
            return
        self._written += 1
        if self._written % PRUNED_EVERY == 0:
            self._prune()

    def _prune(self) -> None:
        found = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.folder):
                with contextlib.suppress(OSError):
                    state = entry.stat()
                    found.append((state.st_mtime, state.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.most_bytes:
                return
            with contextlib.suppress(OSError):
                Path(path).unlink()
                total -= size


# ── files that browsers show as they are ─────────────────────────────────────────────────────────

MAGICS = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


def media_type(head: bytes) -> str | None:
    """By the content's first bytes; None for what browsers do not show everywhere."""
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in MAGICS if head.startswith(magic)), None)


EXTENSIONS = {"image/jpeg": ".jpg", "image/png": ".png", "image/gif": ".gif", "image/webp": ".webp"}


def safe_name(name: str) -> str:
    """A name without folders and extension, in characters that every file system takes."""
    stem = name.replace("\\", "/").rpartition("/")[2]
    stem = stem.rpartition(".")[0] or stem
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in stem)
    safe = safe.strip("-")[:LONGEST_NAME]
    return safe if safe == stem else f"{safe}-{_digest(stem)}".strip("-") if stem else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
