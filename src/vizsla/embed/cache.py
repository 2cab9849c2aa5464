"""Vectors kept by the content of their image, so that nothing is embedded twice. Knows no images.

One SQLite file in a folder. A vector is found by the SHA-256 of its file, in the space of one
model, one way of computing and one limit on pixels; a moved or renamed image is the same image. It
is a cache: what is damaged is computed again, and what was not asked for longest makes room.
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
AT_EASE = 1.0  # seconds for what can be left undone
FETCHED = 256 * 2**20  # bytes of images
AT_ONCE = 500  # keys of one question
_ODD = (sqlite3.Error, ValueError, TypeError, OverflowError, MemoryError)  # of a damaged file too
# Codes for which the file is not to blame:
_PLACE = {
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
    """What two vectors must share to be the same vector."""
    return f"{model_id} {compute_id} {max_pixels}"


def content_of(file: Path | bytes) -> bytes | None:
    """SHA-256 of a file; None where it cannot be read, which the decoder will put into words."""
    if isinstance(file, bytes):
        return hashlib.sha256(file).digest()
    try:
        with open(storage.open_regular(file), "rb") as opened:  # noqa: PTH123 (a descriptor)
            return hashlib.file_digest(opened, "sha256").digest()
    except (OSError, ValueError):
        return None


class Fetched:
    """Images that are fetched to be hashed, and kept until they are decoded: none comes twice.

    file: the i-th image, a path or its content. limit: bytes that are kept; what is beyond is
    fetched again, and is in `changed` where it is another one by then.
    """

    def __init__(self, file: Callable[[int], Path | bytes], limit: int = FETCHED) -> None:
        self.changed: set[int] = set()
        self._file, self._room = file, limit
        self._held: dict[int, bytes] = {}
        self._let_go: dict[int, bytes] = {}  # their hashes
        self._lock = threading.Lock()

    def content(self, i: int) -> bytes | None:
        """Its hash; None where it cannot be read."""
        try:
            found = self._file(i)
        except ImageError:
            return None
        content = content_of(found)
        if isinstance(found, bytes) and content is not None:
            with self._lock:
                if len(found) <= self._room:
                    self._held[i] = found
                    self._room -= len(found)
                else:
                    self._let_go[i] = content
        return content

    def take(self, i: int) -> Path | bytes:
        found = self._drop(i)
        if found is not None:
            return found
        again = self._file(i)
        before = self._let_go.pop(i, None)
        if before is not None and content_of(again) != before:
            self.changed.add(i)
        return again

    def drop(self, positions: Iterable[int]) -> None:
        for i in positions:
            self._drop(i)
            self._let_go.pop(i, None)

    def _drop(self, i: int) -> bytes | None:
        with self._lock:
            found = self._held.pop(i, None)
            self._room += len(found or b"")
            return found


class VectorCache:
    """Several processes may use one folder at once. Whatever is wrong with it costs time alone, and
    is told once: what is damaged or foreign is set aside and begun anew; what stays locked or
    cannot be opened is not used any more; where nothing can be written, what is there is read."""

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
        """content → (D,) float32, of those that are here whole. Needs to write nothing."""

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
        """Adds or replaces; the oldest make room where the cache grows beyond its limit."""
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
        """As far as it can be done at once: nobody waits for it."""
        try:
            with self._writing(AT_EASE) as base:
                for part in _parts(contents):
                    change = f"UPDATE vectors SET used = ? {_where(part)}"
                    base.execute(change, (int(time.time()), space, *part))
        except _ODD:
            self._marks = False

    def _make_room(self, base: sqlite3.Connection) -> None:
        size, free = _number(base, "page_size"), _number(base, "freelist_count")
        pages = _number(base, "page_count") - free
        over = pages * size - self.max_bytes
        if over <= 0:
            return
        (count,) = base.execute("SELECT count(*) FROM vectors").fetchone()
        share = min(1.0, over / (pages * size) + 0.1)  # and a tenth, not to do it again at once
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
        """None where it failed; a damaged file is tried once more, as a new one."""
        while True:
            try:
                with opened() as base:
                    return work(base)
            except _ODD as error:
                writing = opened == self._writing
                if not self._is_damaged(error):
                    self._give_up(error, writing)
                elif not self._renewed:
                    log.warning("%s is damaged (%s): begun anew", self.path, _said(error))
                    self._set_aside()
                    if writing:
                        continue
                else:
                    self._give_up(error, writing=False)
                return None

    def _is_damaged(self, error: Exception) -> bool:
        """Or else the place is: locked, full, read-only, out of memory."""
        code = getattr(error, "sqlite_errorcode", None)
        return not isinstance(error, MemoryError) and (code is None or code & 0xFF not in _PLACE)

    def _give_up(self, error: Exception, writing: bool) -> None:
        self._writes = False
        if writing and not _is_locked(error):  # what is there may still be read
            log.warning("%s keeps nothing new (%s)", self.path, _said(error))
            return
        self._reads = False
        log.warning("%s cannot be used (%s): goes on without", self.path, _said(error))

    def _set_aside(self) -> None:
        """Under another name, for it may be somebody's; the last one alone is kept."""
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
        """Also where neither the file nor its folder may be written."""
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
        base.text_factory = bytes  # where a blob was expected, anything may lie
        try:
            made = base.execute("SELECT 1 FROM sqlite_master WHERE name = 'vectors'").fetchone()
            if made is None:  # another process is just making it
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


def _said(error: Exception) -> str:
    if _is_locked(error):
        return f"another process has kept it locked for {WAIT:.0f} s"
    return ascii(str(error))[1:-1] or type(error).__name__


def _number(base: sqlite3.Connection, pragma: str) -> int:
    (value,) = base.execute(f"PRAGMA {pragma}").fetchone()
    return int(value)


def _digest(space: str, content: bytes, vector: bytes) -> bytes:
    return hashlib.sha256(space.encode() + content + vector).digest()
