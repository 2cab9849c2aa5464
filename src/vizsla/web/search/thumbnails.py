"""Uploads in memory, thumbnails on disk, and types of image files. Knows no requests."""

import contextlib
import hashlib
import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cachetools import LRUCache

from vizsla import storage
from vizsla.web.search.decoder import Decoder

log = logging.getLogger("vizsla.serve")

SIDES = {"small": 384, "large": 1280}  # px of the longer side
UPLOAD_SIDE = 1024  # px of the longer side of an upload's JPEG, at most
MAX_NAME_CHARACTERS = 100
MAX_UPLOADS, MAX_UPLOAD_BYTES = 2000, 2**28
MAX_FILE_BYTES = 2**22  # of an upload's file that is kept
MAX_THUMBNAIL_BYTES = 2**30  # on disk; the oldest are deleted
PRUNE_EVERY = 2000  # thumbnails written


# ── uploads ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Upload:
    """An image that was searched with. name: the first 32 hex digits of its file's SHA-256.

    file: as it was sent, up to MAX_FILE_BYTES: parts of the image are cut out of it.
    """

    name: str
    size: tuple[int, int]
    vector: np.ndarray  # (D,) float32 of length 1
    pixels: np.ndarray  # (H, W, 3) uint8, as the model takes it
    jpeg: bytes
    is_large: bool = True  # the JPEG has UPLOAD_SIDE px, if the image has
    file: bytes | None = None

    @property
    def n_bytes(self) -> int:
        """Memory that it takes."""
        files = len(self.jpeg) + len(self.file or b"")
        return self.vector.nbytes + self.pixels.nbytes + files + 500


def upload_name(data: bytes) -> str:
    """The name of an upload, from the content of its file."""
    return hashlib.sha256(data).hexdigest()[:32]


class Uploads:
    """The latest uploads by name; the one unused for longest is forgotten first."""

    def __init__(
        self, *, max_uploads: int = MAX_UPLOADS, max_bytes: int = MAX_UPLOAD_BYTES
    ) -> None:
        least = max_bytes / max_uploads  # each counts as at least so many bytes
        self._uploads: LRUCache[str, Upload] = LRUCache(
            max_bytes, getsizeof=lambda upload: min(max(upload.n_bytes, least), max_bytes)
        )
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._uploads)

    def add(self, upload: Upload) -> None:
        """Keeps it, in place of an older one of the same name."""
        with self._lock:
            self._uploads[upload.name] = upload

    def get(self, name: str) -> Upload | None:
        """The upload; None if it is not kept, or no longer."""
        with self._lock:
            return self._uploads.get(name)

    def clear(self) -> None:
        """Forgets all."""
        with self._lock:
            self._uploads.clear()


# ── thumbnails ───────────────────────────────────────────────────────────────────────────────────


class Thumbnails:
    """JPEGs of the gallery's images, in a cache folder that may be deleted at any time."""

    def __init__(
        self, decoder: Decoder, folder: Path | None = None, *, max_bytes: int = MAX_THUMBNAIL_BYTES
    ) -> None:
        self.decoder, self.max_bytes = decoder, max_bytes
        self.folder = folder or storage.cache_folder() / "thumbnails"
        self._written = 0
        self._prune()

    @staticmethod
    def tag(path: Path, side: str = "") -> str:
        """32 hex digits that change when the file does; OSError if there is none."""
        state = path.stat()
        known = f"{path}|{state.st_size}|{state.st_mtime_ns}|{state.st_ino}|{SIDES.get(side)}"
        return hashlib.sha256(known.encode(errors="surrogateescape")).hexdigest()[:32]

    def get(self, path: Path, side: str) -> bytes:
        """A JPEG with sides up to SIDES[side]; ImageError for an image that is unreadable."""
        file = self.folder / f"{self.tag(path, side)}.jpg"
        with contextlib.suppress(OSError):
            data = file.read_bytes()
            if data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9"):
                return data
        decoded = self.decoder.decode(path, jpeg_side=SIDES[side]).result()
        assert decoded.jpeg is not None
        self._store(file, decoded.jpeg)
        return decoded.jpeg

    def _store(self, file: Path, data: bytes) -> None:
        """Writes a thumbnail without fsync: an incomplete one is made again."""
        temporary = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(file)
        except OSError as error:
            log.debug("a thumbnail cannot be stored: %s", error)
            return
        self._written += 1
        if self._written % PRUNE_EVERY == 0:
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
            if total <= self.max_bytes:
                return
            with contextlib.suppress(OSError):
                Path(path).unlink()
                total -= size


# ── types and names of files ──────────────────────────────────────────────────────────────────────

MAGICS = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


def media_type(head: bytes) -> str | None:
    """From the first bytes of a file; None for a format that not all browsers show."""
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in MAGICS if head.startswith(magic)), None)


EXTENSIONS = {"image/jpeg": ".jpg", "image/png": ".png", "image/gif": ".gif", "image/webp": ".webp"}


def safe_name(name: str) -> str:
    """A file name without folder and extension, in characters that every file system takes."""
    stem = name.replace("\\", "/").rpartition("/")[2]
    stem = stem.rpartition(".")[0] or stem
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in stem)
    safe = safe.strip("-")[:MAX_NAME_CHARACTERS]
    if safe == stem:
        return safe
    digest = hashlib.sha256(stem.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{safe}-{digest}".strip("-")
