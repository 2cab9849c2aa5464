"""One SQLite file with one writing thread. Knows the tables of a contest, not what they mean.

Jobs that wait for the writer are committed together, so that many submissions share one fsync (WAL,
synchronous=FULL). A result is returned only after its commit.
"""

import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from vizsla.errors import DataError, StorageError

SCHEMA_VERSION = 1
APPLICATION_ID = 0x565A4A44  # "VZJD": marks the file as a contest's
BATCH = 64  # the most jobs that share a commit

_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE groups (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    token_hash TEXT,
    created REAL NOT NULL
);
CREATE TABLE submissions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    group_id INTEGER NOT NULL REFERENCES groups (id),
    received REAL NOT NULL,
    sha256 TEXT NOT NULL,
    lists BLOB NOT NULL
);
CREATE INDEX submissions_of_group ON submissions (group_id, received);
CREATE TABLE scores (
    submission_id INTEGER NOT NULL REFERENCES submissions (id),
    part TEXT NOT NULL,
    score REAL NOT NULL,
    low REAL,
    high REAL,
    metrics TEXT NOT NULL,
    PRIMARY KEY (submission_id, part)
) WITHOUT ROWID;
CREATE TRIGGER submissions_stay BEFORE UPDATE ON submissions
    BEGIN SELECT RAISE(ABORT, 'submissions are never changed'); END;
CREATE TRIGGER submissions_are_kept BEFORE DELETE ON submissions
    BEGIN SELECT RAISE(ABORT, 'submissions are never deleted'); END;
CREATE TRIGGER submissions_are_not_replaced BEFORE INSERT ON submissions
    WHEN EXISTS (SELECT 1 FROM submissions WHERE id = NEW.id)
    BEGIN SELECT RAISE(ABORT, 'submissions are never replaced'); END;
CREATE TRIGGER groups_keep_their_name BEFORE UPDATE OF id, name ON groups
    BEGIN SELECT RAISE(ABORT, 'groups are never renamed'); END;
"""

Work = Callable[[sqlite3.Connection], Any]


@dataclass(frozen=True)
class _Job:
    work: Work
    future: "Future[Any]"


class Database:
    """Reads at once, writes batch by batch in its own thread. Safe to use from many threads."""

    def __init__(self, path: str | Path, *, create: bool) -> None:
        self.path = Path(path)
        self._reader = _opened(self.path, create=create)
        self._reading = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._open = True
        self._writer = threading.Thread(target=self._write, name="judge-writer", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Closes the file when all pending writes are on the disk."""
        with self._closing:
            if not self._open:
                return
            self._open = False
            self._jobs.put(None)
        self._writer.join()
        with self._reading:
            self._reader.close()

    def read(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """All rows of a query."""
        rows: list[sqlite3.Row] = self.read_with(
            lambda reader: reader.execute(sql, values).fetchall()
        )
        return rows

    def read_with(self, work: Work) -> Any:
        """The result of `work`, which must only read."""
        with self._reading:
            try:
                return work(self._reader)
            except sqlite3.Error as error:
                raise _storage_error("read", error) from error

    def write(self, work: Work) -> "Future[Any]":
        """A future of the result of `work`, done when its changes are on the disk.

        If `work` raises, only its own changes are rolled back, and the future gets the exception.
        """
        future: Future[Any] = Future()
        with self._closing:
            if not self._open:
                raise StorageError("the contest's file is closed")
            self._jobs.put(_Job(work, future))
        return future

    def _write(self) -> None:
        """The writer's thread: writes batch after batch until it gets None."""
        with contextlib.closing(_opened(self.path, create=False)) as connection:
            job = self._jobs.get()
            while job is not None:
                batch = [job]
                with contextlib.suppress(queue.Empty):
                    while len(batch) < BATCH and (job := self._jobs.get_nowait()) is not None:
                        batch.append(job)
                _commit_together(connection, batch)
                if job is not None:
                    job = self._jobs.get()


def _commit_together(connection: sqlite3.Connection, batch: list[_Job]) -> None:
    outcomes: list[tuple[Any, BaseException | None]] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        outcomes = [_outcome(connection, job.work) for job in batch]
        connection.execute("COMMIT")
    except sqlite3.Error as error:  # the disk is full or gone: the whole batch is lost
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        outcomes = [(None, _storage_error("write", error))] * len(batch)
    for job, (result, problem) in zip(batch, outcomes, strict=True):
        if problem is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(problem)


def _outcome(connection: sqlite3.Connection, work: Work) -> tuple[Any, BaseException | None]:
    """(result, None), or (None, the exception) with the changes of `work` rolled back."""
    connection.execute("SAVEPOINT job")
    try:
        result = work(connection)
    except sqlite3.OperationalError:
        raise
    except Exception as problem:
        connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")
        return None, problem
    connection.execute("RELEASE job")
    return result, None


@contextlib.contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """Keeps other judges from using this file; tokens may still be added by other processes."""
    lock = filelock.FileLock(f"{Path(path).resolve()}.lock")  # resolved: one lock for all links
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise StorageError(f"another `vizsla judge` is using {path}: stop it first") from error
    except OSError as error:
        raise StorageError(f"cannot use {path}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


# ── the file ─────────────────────────────────────────────────────────────────────────────────────


def _opened(path: Path, *, create: bool) -> sqlite3.Connection:
    """A connection to a contest's file. A new file is readable by its owner only."""
    if not create and not path.is_file():
        raise StorageError(f"there is no contest in {path}: `vizsla judge` starts one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # An existing file is not opened: closing any descriptor of it drops all POSIX locks that
        # this process has on it, SQLite's too, and another process could then remove the WAL.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = sqlite3.connect(
            path, timeout=30, isolation_level=None, check_same_thread=False
        )
    except (OSError, sqlite3.Error) as error:
        raise StorageError(f"cannot open {path}: {error}") from error
    try:
        _prepare(connection, path)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise StorageError(f"cannot use {path} as a contest's file: {error}") from error
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Creates the tables in an empty file. Raises DataError for a file that is not a contest's."""
    connection.row_factory = sqlite3.Row
    if connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0:
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0:
            for statement in _statements(_SCHEMA):
                connection.execute(statement)
        connection.execute("COMMIT")
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise DataError(f"{path} is another program's database, not a contest's")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise DataError(f"{path} was written by another version of vizsla (schema {version})")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA journal_size_limit = {64 * 2**20}")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script. (sqlite3's executescript would commit the transaction.)"""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _storage_error(verb: str, error: sqlite3.Error) -> StorageError:
    return StorageError(f"cannot {verb} the contest's file: {error}")
