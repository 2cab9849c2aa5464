"""Vectors stored by the content of their image, so that no image is embedded twice.

One SQLite file in a folder. The key of a vector is the SHA-256 of the image file and a space:
model_id, compute_id and pixel limit. A moved or renamed image has the same key. Damaged vectors are
computed again, and the least recently used ones are deleted to make room.
"""

import contextlib
import hashlib
import logging
import sqlite3
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from vizsla import storage
from vizsla.errors import ImageError, StorageError

log = logging.getLogger("vizsla.embed")
_Result = TypeVar("_Result")

FILE = "vectors.sqlite"
MAX_BYTES = 10 * 2**30
LOCK_TIMEOUT = 60.0  # seconds that another process may write
MARK_TIMEOUT = 1.0  # seconds to record when vectors were last used, which is optional
MAX_FETCHED_BYTES = 256 * 2**20
KEYS_PER_QUERY = 500
MOST_SHARED = 20_000  # images of a folder whose vectors all commands share, without --cache
# A damaged file may raise any of these:
_ERRORS = (sqlite3.Error, ValueError, TypeError, OverflowError, MemoryError)
# Error codes of the file's environment, not of its content:
_ENVIRONMENT_CODES = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_AUTH,
}  # fmt: skip
SCHEMA = """
    CREATE TABLE IF NOT EXISTS vectors (
        space TEXT, content BLOB, vector BLOB, sha256 BLOB, used INTEGER,
        PRIMARY KEY (space, content)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS by_age ON vectors (used);
"""


def space_key(model_id: str, compute_id: str, max_pixels: int) -> str:
    """The part of a vector's key that does not depend on the image."""
    return f"{model_id} {compute_id} {max_pixels}"


def shared_cache(given: str | Path | None, n_images: int) -> Path | None:
    """The folder of the vectors that `find`, `index` and `serve` share: as given, else in the
    user's cache; None for more than MOST_SHARED images, which would push all others out."""
    if given is not None:
        return Path(given)
    return storage.cache_folder() / "vectors" if n_images <= MOST_SHARED else None


def content_hash(file: Path | bytes) -> bytes | None:
    """SHA-256 of a file; None if it cannot be read (the decoder will report why)."""
    if isinstance(file, bytes):
        return hashlib.sha256(file).digest()
    try:
        with open(storage.open_regular(file), "rb") as opened:  # noqa: PTH123 (a descriptor)
            return hashlib.file_digest(opened, "sha256").digest()
    except (OSError, ValueError):
        return None


class FetchedImages:
    """Images that are fetched once: to be hashed, and kept until they are decoded.

    file: the i-th image, a path or its content. limit: bytes that are kept. Images beyond are
    fetched again; `changed` has the positions of those whose content has changed meanwhile.
    """

    def __init__(self, file: Callable[[int], Path | bytes], limit: int = MAX_FETCHED_BYTES) -> None:
        self.changed: set[int] = set()
        self._file, self._free_bytes = file, limit
        self._kept: dict[int, bytes] = {}
        self._hashes: dict[int, bytes] = {}  # of those not kept
        self._lock = threading.Lock()

    def content(self, i: int) -> bytes | None:
        """The hash of the i-th image; None if it cannot be read."""
        try:
            found = self._file(i)
        except ImageError:
            return None
        content = content_hash(found)
        if isinstance(found, bytes) and content is not None:
            with self._lock:
                if len(found) <= self._free_bytes:
                    self._kept[i] = found
                    self._free_bytes -= len(found)
                else:
                    self._hashes[i] = content
        return content

    def take(self, i: int) -> Path | bytes:
        """The i-th image, which is not kept any longer."""
        found = self._drop(i)
        if found is not None:
            return found
        again = self._file(i)
        before = self._hashes.pop(i, None)
        if before is not None and content_hash(again) != before:
            self.changed.add(i)
        return again

    def drop(self, positions: Iterable[int]) -> None:
        """Frees the memory of images that are not needed."""
        for i in positions:
            self._drop(i)
            self._hashes.pop(i, None)

    def _drop(self, i: int) -> bytes | None:
        with self._lock:
            found = self._kept.pop(i, None)
            self._free_bytes += len(found or b"")
            return found


class VectorCache:
    """Vectors by space and content, in a folder that several processes may use at once.

    Problems only cost time, and are logged once. A damaged or foreign file is renamed and replaced
    by a new one, a file that stays locked or cannot be opened is no longer used, and a file that
    cannot be written is only read.
    """

    def __init__(self, folder: str | Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.path, self.max_bytes = Path(folder) / FILE, max_bytes
        self._can_read = self._can_write = self._can_mark = True
        self._was_replaced = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise StorageError(
                f"{folder} is a file, but a cache is a folder: name an existing or a new folder"
            ) from error
        except OSError as error:
            raise storage.storage_error("write", self.path.parent, error) from error

    def get(self, space: str, contents: Sequence[bytes], dim: int) -> dict[bytes, np.ndarray]:
        """Content hash → (D,) float32, of those in the cache. Needs no write access."""
        found = self.get_bytes(space, contents)
        return {
            content: np.frombuffer(data, np.float32)
            for content, data in found.items()
            if len(data) == 4 * dim
        }

    def get_bytes(self, space: str, contents: Sequence[bytes]) -> dict[bytes, bytes]:
        """Content hash → what `put_bytes` stored, of those in the cache and not damaged."""

        def select(base: sqlite3.Connection) -> dict[bytes, bytes]:
            found = {}
            for part in _query_parts(contents):
                query = f"SELECT content, vector, sha256 FROM vectors {_where(part)}"
                for content, data, sha256 in base.execute(query, (space, *part)):
                    if _is_valid(space, content, data, sha256):
                        found[content] = data
            return found

        if not (contents and self._can_read and self.path.exists()):
            return {}
        found = self._attempt(self._reading, select) or {}
        if found and self._can_write and self._can_mark:
            self._mark_as_used(space, list(found))
        return found

    def put(self, space: str, vectors: dict[bytes, np.ndarray]) -> None:
        """Adds or replaces vectors; beyond the size limit the least recently used are deleted."""
        self.put_bytes(space, {c: v.astype(np.float32).tobytes() for c, v in vectors.items()})

    def put_bytes(self, space: str, found: dict[bytes, bytes]) -> None:
        """The same for other data of an image, such as its local features."""
        now = int(time.time())
        rows = [(space, c, data, _digest(space, c, data), now) for c, data in found.items()]

        def insert(base: sqlite3.Connection) -> None:
            base.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?)", rows)
            self._delete_oldest(base)

        if rows and self._can_write:
            self._attempt(self._writing, insert)

    def _mark_as_used(self, space: str, contents: Sequence[bytes]) -> None:
        """Skipped if the file is locked."""
        try:
            with self._writing(MARK_TIMEOUT) as base:
                for part in _query_parts(contents):
                    change = f"UPDATE vectors SET used = ? {_where(part)}"
                    base.execute(change, (int(time.time()), space, *part))
        except _ERRORS:
            self._can_mark = False

    def _delete_oldest(self, base: sqlite3.Connection) -> None:
        size, free = _number(base, "page_size"), _number(base, "freelist_count")
        pages = _number(base, "page_count") - free
        excess = pages * size - self.max_bytes
        if excess <= 0:
            return
        (count,) = base.execute("SELECT count(*) FROM vectors").fetchone()
        share = min(1.0, excess / (pages * size) + 0.1)  # a tenth more, so that it lasts
        base.execute(
            "DELETE FROM vectors WHERE (space, content) IN "
            "(SELECT space, content FROM vectors ORDER BY used LIMIT ?)",
            (max(1, int(count * share)),),
        )

    # ── errors ───────────────────────────────────────────────────────────────────────────────────

    def _attempt(
        self,
        opened: Callable[[], contextlib.AbstractContextManager[sqlite3.Connection]],
        work: Callable[[sqlite3.Connection], _Result],
    ) -> _Result | None:
        """The result of `work`, None if it failed; a damaged file is replaced once."""
        while True:
            try:
                with opened() as base:
                    return work(base)
            except _ERRORS as error:
                writing = opened == self._writing
                if not self._is_damaged(error):
                    self._give_up(error, writing)
                elif not self._was_replaced:
                    log.warning(
                        "%s is damaged (%s): replaced by a new one", self.path, _reason(error)
                    )
                    self._rename_damaged()
                    if writing:
                        continue
                else:
                    self._give_up(error, writing=False)
                return None

    def _is_damaged(self, error: Exception) -> bool:
        """False if its environment is the cause: locked, full, read-only, out of memory."""
        code = getattr(error, "sqlite_errorcode", None)
        return not isinstance(error, MemoryError) and (
            code is None or code & 0xFF not in _ENVIRONMENT_CODES
        )

    def _give_up(self, error: Exception, writing: bool) -> None:
        self._can_write = False
        if writing and not _is_locked(error):  # what is there may still be read
            log.warning("%s stores nothing new (%s)", self.path, _reason(error))
            return
        self._can_read = False
        log.warning("%s cannot be used (%s): continues without it", self.path, _reason(error))

    def _rename_damaged(self) -> None:
        """Renames the file, since it may hold something else; only the last one is kept."""
        self._was_replaced = True
        for end in ("-wal", "-shm"):
            with contextlib.suppress(OSError):
                Path(f"{self.path}{end}").unlink(missing_ok=True)
        try:
            self.path.replace(f"{self.path}.damaged")
        except OSError:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    # ── the file ─────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A read-only connection, even if neither file nor folder can be written."""
        address = f"file:{urllib.parse.quote(str(self.path.absolute()))}"
        try:
            base = self._open_to_read(f"{address}?mode=ro")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (
                sqlite3.SQLITE_CANTOPEN,
                sqlite3.SQLITE_READONLY,
            ):
                raise
            base = self._open_to_read(f"{address}?immutable=1")
        try:
            yield base
        finally:
            base.close()

    def _open_to_read(self, address: str) -> sqlite3.Connection:
        base = sqlite3.connect(address, uri=True, timeout=LOCK_TIMEOUT)
        base.text_factory = bytes  # a damaged file may have text in place of a blob
        try:
            exists = base.execute("SELECT 1 FROM sqlite_master WHERE name = 'vectors'").fetchone()
            if exists is None:  # another process is creating the file
                base.execute("CREATE TEMP TABLE vectors (space, content, vector, sha256, used)")
        except BaseException:
            base.close()
            raise
        return base

    @contextlib.contextmanager
    def _writing(self, timeout: float | None = None) -> Iterator[sqlite3.Connection]:
        """A transaction; the file is created if it does not exist."""
        base = sqlite3.connect(self.path, timeout=timeout or LOCK_TIMEOUT)
        try:
            base.execute("PRAGMA journal_mode = WAL")
            base.execute("PRAGMA synchronous = NORMAL")
            base.executescript(SCHEMA)
            with base:
                yield base
        finally:
            base.close()


def _query_parts(contents: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(contents), KEYS_PER_QUERY):
        yield contents[start : start + KEYS_PER_QUERY]


def _where(part: Sequence[bytes]) -> str:
    return f"WHERE space = ? AND content IN ({','.join('?' * len(part))})"


def _is_valid(space: str, content: object, data: object, sha256: object) -> bool:
    if not (isinstance(content, bytes) and isinstance(data, bytes)):
        return False
    return sha256 == _digest(space, content, data)


def _is_locked(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _reason(error: Exception) -> str:
    if _is_locked(error):
        return f"another process has kept it locked for {LOCK_TIMEOUT:.0f} s"
    return ascii(str(error))[1:-1] or type(error).__name__


def _number(base: sqlite3.Connection, pragma: str) -> int:
    (value,) = base.execute(f"PRAGMA {pragma}").fetchone()
    return int(value)


def _digest(space: str, content: bytes, vector: bytes) -> bytes:
    return hashlib.sha256(space.encode() + content + vector).digest()
