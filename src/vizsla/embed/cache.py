"""A cache of vectors by the content of their image, so that nothing is embedded twice.

One SQLite file in a folder. The key of a vector is the SHA-256 of its image file, together with
model_id, compute_id and the limit on pixels; a moved or renamed image is the same image. Damaged
vectors are computed again; the least recently used are deleted when the cache is full.
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
WAIT = 60.0  # seconds for another process to finish writing
SHORT_WAIT = 1.0  # seconds, for writing what is not necessary
FETCHED = 256 * 2**20  # bytes of images
AT_ONCE = 500  # keys of one query
_ERRORS = (
    sqlite3.Error,
    ValueError,
    TypeError,
    OverflowError,
    MemoryError,
)  # of a damaged file too
# Codes for which the file is not to blame:
_NOT_THE_FILE = {
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


def space_of(model_id: str, compute_id: str, max_pixels: int) -> str:
    """The part of a vector's key that does not depend on its image."""
    return f"{model_id} {compute_id} {max_pixels}"


def content_of(file: Path | bytes) -> bytes | None:
    """SHA-256 of a file; None where it cannot be read, which the decoder will report."""
    if isinstance(file, bytes):
        return hashlib.sha256(file).digest()
    try:
        with open(storage.open_regular(file), "rb") as opened:  # noqa: PTH123 (a descriptor)
            return hashlib.file_digest(opened, "sha256").digest()
    except (OSError, ValueError):
        return None


class Fetched:
    """Images that are fetched to be hashed, and kept until they are decoded: none is fetched twice.

    file: gives the i-th image, a path or its content. limit: bytes that are kept; images beyond it
    are fetched again, and are in `changed` if their content has changed.
    """

    def __init__(self, file: Callable[[int], Path | bytes], limit: int = FETCHED) -> None:
        self.changed: set[int] = set()
        self._file, self._room = file, limit
        self._kept: dict[int, bytes] = {}
        self._not_kept: dict[int, bytes] = {}  # their hashes
        self._lock = threading.Lock()

    def content(self, i: int) -> bytes | None:
        """SHA-256 of the i-th image; None where it cannot be read."""
        try:
            found = self._file(i)
        except ImageError:
            return None
        content = content_of(found)
        if isinstance(found, bytes) and content is not None:
            with self._lock:
                if len(found) <= self._room:
                    self._kept[i] = found
                    self._room -= len(found)
                else:
                    self._not_kept[i] = content
        return content

    def take(self, i: int) -> Path | bytes:
        """The i-th image, which is then no longer kept."""
        found = self._drop(i)
        if found is not None:
            return found
        again = self._file(i)
        before = self._not_kept.pop(i, None)
        if before is not None and content_of(again) != before:
            self.changed.add(i)
        return again

    def drop(self, positions: Iterable[int]) -> None:
        """Forgets these images."""
        for i in positions:
            self._drop(i)
            self._not_kept.pop(i, None)

    def _drop(self, i: int) -> bytes | None:
        with self._lock:
            found = self._kept.pop(i, None)
            self._room += len(found or b"")
            return found


class VectorCache:
    """Vectors in an SQLite file, which several processes may use at once.

    No fault of the file is an error; each is logged once. A damaged or foreign file is renamed, and
    a new one begun; a file that stays locked or cannot be opened is no longer used; where nothing
    can be written, the cache is only read.
    """

    def __init__(self, folder: str | Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.path, self.max_bytes = Path(folder) / FILE, max_bytes
        self._reads = self._writes = self._marks = True  # what still works
        self._renewed = False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise StorageError(
                f"{folder} is a file, but a cache is a folder: name one, or a place for a new one"
            ) from error
        except OSError as error:
            raise storage.storage_error("write", self.path.parent, error) from error

    def get(self, space: str, contents: Sequence[bytes], dim: int) -> dict[bytes, np.ndarray]:
        """{content: (D,) float32} of the vectors that are here and undamaged. Need not write."""

        def ask(base: sqlite3.Connection) -> dict[bytes, np.ndarray]:
            found = {}
            for part in _parts(contents):
                question = f"SELECT content, vector, sha256 FROM vectors {_where(part)}"
                for content, vector, sha256 in base.execute(question, (space, *part)):
                    if _is_whole(space, content, vector, sha256, dim):
                        found[content] = np.frombuffer(vector, np.float32)
            return found

        if not (contents and self._reads and self.path.exists()):
            return {}
        found = self._tried(self._reading, ask) or {}
        if found and self._writes and self._marks:
            self._mark_as_used(space, list(found))
        return found

    def put(self, space: str, vectors: dict[bytes, np.ndarray]) -> None:
        """Adds or replaces vectors; beyond max_bytes the least recently used are deleted."""
        now = int(time.time())
        rows = []
        for content, vector in vectors.items():
            data = vector.astype(np.float32).tobytes()
            rows.append((space, content, data, _digest(space, content, data), now))

        def add(base: sqlite3.Connection) -> None:
            base.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?)", rows)
            self._make_room(base)

        if rows and self._writes:
            self._tried(self._writing, add)

    def _mark_as_used(self, space: str, contents: Sequence[bytes]) -> None:
        """Marks them as used now, if that needs no long wait."""
        try:
            with self._writing(SHORT_WAIT) as base:
                for part in _parts(contents):
                    change = f"UPDATE vectors SET used = ? {_where(part)}"
                    base.execute(change, (int(time.time()), space, *part))
        except _ERRORS:
            self._marks = False

    def _make_room(self, base: sqlite3.Connection) -> None:
        size, free = _number(base, "page_size"), _number(base, "freelist_count")
        pages = _number(base, "page_count") - free
        over = pages * size - self.max_bytes
        if over <= 0:
            return
        (count,) = base.execute("SELECT count(*) FROM vectors").fetchone()
        share = min(1.0, over / (pages * size) + 0.1)  # a tenth more: not again soon
        base.execute(
            "DELETE FROM vectors WHERE (space, content) IN "
            "(SELECT space, content FROM vectors ORDER BY used LIMIT ?)",
            (max(1, int(count * share)),),
        )

    # ── what may go wrong ────────────────────────────────────────────────────────────────────────

    def _tried(
        self,
        opened: Callable[[], contextlib.AbstractContextManager[sqlite3.Connection]],
        work: Callable[[sqlite3.Connection], _Result],
    ) -> _Result | None:
        """The result; None where it failed. A damaged file is replaced and tried once more."""
        while True:
            try:
                with opened() as base:
                    return work(base)
            except _ERRORS as error:
                writing = opened == self._writing
                if not self._is_damaged(error):
                    self._give_up(error, writing)
                elif not self._renewed:
                    log.warning(
                        "%s is damaged (%s): a new one is begun", self.path, _description(error)
                    )
                    self._set_aside()
                    if writing:
                        continue
                else:
                    self._give_up(error, writing=False)
                return None

    def _is_damaged(self, error: Exception) -> bool:
        """Whether the file is at fault, not its folder, a lock or the memory."""
        code = getattr(error, "sqlite_errorcode", None)
        return not isinstance(error, MemoryError) and (
            code is None or code & 0xFF not in _NOT_THE_FILE
        )

    def _give_up(self, error: Exception, writing: bool) -> None:
        self._writes = False
        if writing and not _is_locked(error):  # its vectors can still be read
            log.warning("%s takes nothing new (%s)", self.path, _description(error))
            return
        self._reads = False
        log.warning("%s cannot be used (%s): continuing without it", self.path, _description(error))

    def _set_aside(self) -> None:
        """Renames the file, as it may be somebody else's. Only the last one is kept."""
        self._renewed = True
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
        """Works too where neither the file nor its folder may be written."""
        address = f"file:{urllib.parse.quote(str(self.path.absolute()))}"
        try:
            base = self._to_read(f"{address}?mode=ro")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (
                sqlite3.SQLITE_CANTOPEN,
                sqlite3.SQLITE_READONLY,
            ):
                raise
            base = self._to_read(f"{address}?immutable=1")
        try:
            yield base
        finally:
            base.close()

    def _to_read(self, address: str) -> sqlite3.Connection:
        base = sqlite3.connect(address, uri=True, timeout=WAIT)
        base.text_factory = bytes  # a column may hold anything where a blob is expected
        try:
            made = base.execute("SELECT 1 FROM sqlite_master WHERE name = 'vectors'").fetchone()
            if made is None:  # another process is creating it
                base.execute("CREATE TEMP TABLE vectors (space, content, vector, sha256, used)")
        except BaseException:
            base.close()
            raise
        return base

    @contextlib.contextmanager
    def _writing(self, wait: float | None = None) -> Iterator[sqlite3.Connection]:
        base = sqlite3.connect(self.path, timeout=WAIT if wait is None else wait)
        try:
            base.execute("PRAGMA journal_mode = WAL")
            base.execute("PRAGMA synchronous = NORMAL")
            base.executescript(SCHEMA)
            with base:
                yield base
        finally:
            base.close()


def _parts(contents: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(contents), AT_ONCE):
        yield contents[start : start + AT_ONCE]


def _where(part: Sequence[bytes]) -> str:
    return f"WHERE space = ? AND content IN ({','.join('?' * len(part))})"


def _is_whole(space: str, content: object, vector: object, sha256: object, dim: int) -> bool:
    if not (isinstance(content, bytes) and isinstance(vector, bytes)):
        return False
    return len(vector) == 4 * dim and sha256 == _digest(space, content, vector)


def _is_locked(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _description(error: Exception) -> str:
    if _is_locked(error):
        return f"another process has kept it locked for {WAIT:.0f} s"
    return ascii(str(error))[1:-1] or type(error).__name__


def _number(base: sqlite3.Connection, pragma: str) -> int:
    (value,) = base.execute(f"PRAGMA {pragma}").fetchone()
    return int(value)


def _digest(space: str, content: bytes, vector: bytes) -> bytes:
    return hashlib.sha256(space.encode() + content + vector).digest()
