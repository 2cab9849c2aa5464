"""Vectors kept by the content of their image, so that nothing is embedded twice. Knows no images.

One SQLite file in a folder. A vector is found by the SHA-256 of its file, in the space of one
model, one way of computing and one limit on pixels; a moved or renamed image is the same image. It
is a cache: what is damaged is computed again, and what was not asked for longest makes room.
"""

import contextlib
import hashlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from vizsla import storage

log = logging.getLogger("vizsla.embed")
_Result = TypeVar("_Result")

FILE = "vectors.sqlite"
MAX_BYTES = 10 * 2**30
WAIT = 60.0  # seconds for another process to finish writing
AT_ONCE = 500  # keys of one question
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


class VectorCache:
    """Several processes may use one folder at once."""

    def __init__(self, folder: str | Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.path, self.max_bytes = Path(folder) / FILE, max_bytes
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage.storage_error("write", self.path.parent, error) from error

    def get(self, space: str, contents: Sequence[bytes], dim: int) -> dict[bytes, np.ndarray]:
        """content → (D,) float32, of those that are here whole."""

        def ask(base: sqlite3.Connection) -> dict[bytes, np.ndarray]:
            found = {}
            for start in range(0, len(contents), AT_ONCE):
                part = contents[start : start + AT_ONCE]
                marks = ",".join("?" * len(part))
                where = f"WHERE space = ? AND content IN ({marks})"
                rows = base.execute(
                    f"SELECT content, vector, sha256 FROM vectors {where}", (space, *part)
                )
                for content, vector, sha256 in rows:
                    whole = sha256 == _digest(space, content, vector) and len(vector) == 4 * dim
                    if whole:
                        found[content] = np.frombuffer(vector, np.float32)
                base.execute(
                    f"UPDATE vectors SET used = ? {where}", (int(time.time()), space, *part)
                )
            return found

        return self._with_base(ask) or {}

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

        self._with_base(add)

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

    def _with_base(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result | None:
        """A damaged file is thrown away and begun anew; a disk that is full only costs time."""
        for attempt in (1, 2):
            try:
                with self._opened() as base:
                    return work(base)
            except sqlite3.OperationalError as error:  # full, locked for too long, read-only
                log.warning("%s cannot be used (%s): goes on without", self.path, error)
                return None
            except sqlite3.DatabaseError as error:
                log.warning("%s is damaged (%s): begun anew", self.path, error)
                if attempt == 1:
                    self._throw_away()
        return None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        base = sqlite3.connect(self.path, timeout=WAIT)
        try:
            base.execute("PRAGMA journal_mode = WAL")
            base.execute("PRAGMA synchronous = NORMAL")
            base.executescript(SCHEMA)
            with base:
                yield base
        finally:
            base.close()

    def _throw_away(self) -> None:
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                Path(f"{self.path}{end}").unlink(missing_ok=True)


def _number(base: sqlite3.Connection, pragma: str) -> int:
    (value,) = base.execute(f"PRAGMA {pragma}").fetchone()
    return int(value)


def _digest(space: str, content: bytes, vector: bytes) -> bytes:
    return hashlib.sha256(space.encode() + content + vector).digest()
