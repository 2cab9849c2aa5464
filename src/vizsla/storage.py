"""Artefacts on disk: written whole or not at all, verified before they are read.

Small files (JSON, single Parquet files) carry their own SHA-256, a *seal*: the digest of the file
with the digest's own 64 digits set to zero. Large files are named, with their SHA-256, in a sealed
manifest. Knows nothing of what the artefacts mean.
"""

import atexit
import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vizsla.errors import StorageError

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("vizsla.storage")

SEAL_KEY = "vizsla.seal"
_SEAL_START = "vizsla-sha256:"
_UNSEALED = _SEAL_START + "0" * 64
LOCK = ".lock"
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp|\.tmp[A-Za-z0-9]{6}")  # ours, and safetensors'
MEMO_FROM_BYTES = 16 * 2**20  # a smaller file is hashed on every read: it takes milliseconds


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`; when the block succeeds, it replaces `path` in one step.

    Whatever goes wrong (Ctrl-C included), `path` keeps its old content or stays absent. Nothing is
    written into a folder that was `locked` and has been deleted. StorageError if the system
    refuses to write.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        require_lock_kept(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        usual_mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(usual_mode)  # safetensors would deny others to read it
        _fsync(temporary)
        require_lock_kept(path)
        temporary.replace(path)
        _fsync(path.parent)
    except OSError as error:
        require_lock_kept(path)  # a deleted folder is the better reason
        raise storage_error("write", path, error) from error
    except Exception as error:
        if (found := _system_error_in(error)) is not None:
            require_lock_kept(path)
            raise storage_error("write", path, found) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def append_line(path: str | Path, text: str) -> None:
    """Appends to a log, whose last line a crash may cut off; StorageError if that fails."""
    path = Path(path)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        require_lock_kept(path)
        raise storage_error("write", path, error) from error


def remove(*paths: Path) -> None:
    """Deletes files that may or may not exist, in this order."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error("delete", path, error) from error


def _system_error_in(error: Exception) -> OSError | None:
    """The OSError for an error of a library in Rust or C++, which has it only as text."""
    text = str(error)
    found = re.search(r"\(os error (\d+)\)|Os \{ code: (\d+)", text)
    if found:
        number = int(found[1] or found[2])
        return OSError(number, os.strerror(number))
    known = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
    number = next((n for n in known if os.strerror(n) in text), 0)
    return OSError(number, os.strerror(number)) if number else None


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes the file as a whole or not at all."""
    with writing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes the file as a whole or not at all, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, content: Any) -> None:
    """Writes JSON that people may edit, without a seal. NaN is refused: unknown values are null."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_sealed_json(path: str | Path, content: dict[str, Any]) -> None:
    """Writes JSON that carries its own hash."""
    text = json.dumps(
        {**content, SEAL_KEY: _UNSEALED}, indent=1, ensure_ascii=False, allow_nan=False
    )
    write_bytes(path, seal(text.encode()))


def write_sealed_table(path: str | Path, table: "pa.Table") -> None:
    """Writes one Parquet file that carries its own hash."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = {**(table.schema.metadata or {}), SEAL_KEY.encode(): _UNSEALED.encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    write_bytes(path, seal(sink.getvalue().to_pybytes()))


def write_table(path: str | Path, table: "pa.Table") -> str:
    """Writes Parquet without a seal and returns the SHA-256 of the file, for a manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Dictionaries for the numbers of vectors would take six times as long and more space.
    with_dictionary = [
        column.name for column in table.schema if not pa.types.is_nested(column.type)
    ]
    with writing(path) as temporary:
        pq.write_table(table, temporary, compression="none", use_dictionary=with_dictionary)
        return sha256_of(temporary)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def open_regular(path: str | Path) -> int:
    """A descriptor for reading. OSError or ValueError for anything but a regular file: reading a
    pipe could wait forever, and a device may never end."""
    flags = getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, os.O_RDONLY | flags)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return handle


def read_bytes(path: str | Path) -> bytes:
    """The content of a file; StorageError if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise storage_error("read", Path(path), error) from error


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; if it carries a seal, the seal is checked and left out."""
    data = read_bytes(path)
    # A changed byte may have damaged one of the two.
    sealed = SEAL_KEY.encode() in data or _SEAL_START.encode() in data
    if sealed:
        try:
            check_seal(data, path)
        except StorageError as error:
            raise StorageError(
                f"{error}. If it was changed on purpose, remove the line {SEAL_KEY!r} from it"
            ) from error
    content = _parsed(data, path)
    if sealed:
        del content[SEAL_KEY]
    return content


def read_sealed_json(path: str | Path) -> dict[str, Any]:
    """The content of a sealed JSON file; StorageError: damaged, without a seal, or no JSON."""
    content: dict[str, Any] = _parsed(check_seal(read_bytes(path), path), path)
    del content[SEAL_KEY]
    return content


def _parsed(data: bytes, path: str | Path) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:  # also invalid UTF-8
        raise StorageError(f"{path} is not JSON ({error})") from error


def read_sealed_table(path: str | Path) -> "pa.Table":
    """The table of a sealed Parquet file; StorageError if it is damaged or has no seal."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = check_seal(read_bytes(path), path)
    return pq.read_table(pa.BufferReader(data))


def read_table(path: str | Path, sha256: str, columns: list[str] | None = None) -> "pa.Table":
    """A Parquet file named in a manifest, memory-mapped, after its hash was checked."""
    import pyarrow.parquet as pq

    verify(path, sha256)
    return pq.read_table(str(path), columns=columns, memory_map=True)


# ── hashes ───────────────────────────────────────────────────────────────────────────────────────


def seal(data: bytes) -> bytes:
    """`data`, its empty seal filled with the digest."""
    if data.count(_UNSEALED.encode()) != 1:
        raise StorageError("cannot seal: the content must hold exactly one empty seal")
    digest = hashlib.sha256(data).hexdigest()
    return data.replace(_UNSEALED.encode(), (_SEAL_START + digest).encode())


def check_seal(data: bytes, path: str | Path) -> bytes:
    """`data`, if its seal is right; else StorageError."""
    start = data.rfind(_SEAL_START.encode())
    if start < 0:
        raise StorageError(
            f"{path} carries no seal: it is damaged, or was not written by vizsla. "
            "Make it again with the command that wrote it"
        )
    digits = slice(start + len(_SEAL_START), start + len(_UNSEALED))
    blank = data[: digits.start] + b"0" * 64 + data[digits.stop :]
    if hashlib.sha256(blank).hexdigest().encode() != data[digits]:
        raise StorageError(
            f"{path} is damaged: its content does not match its own SHA-256. "
            "Restore it from a copy, or make it again with the command that wrote it"
        )
    return data


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: str | Path, sha256: str, *, force: bool = False) -> None:
    """StorageError unless the file has this hash.

    A large file is hashed once for each (size, mtime, inode), which is remembered between
    processes; `force` hashes it again.
    """
    path = Path(path)
    try:
        state = path.stat()
        memo = memo_path(path, state, sha256) if state.st_size >= MEMO_FROM_BYTES else None
        if memo and memo.exists() and not force:
            return
        found = sha256_of(path)
    except OSError as error:
        raise storage_error("read", path, error) from error
    if found != sha256:
        raise StorageError(
            f"{path} is damaged: its SHA-256 is {found[:12]}…, expected {sha256[:12]}…. "
            "Restore it from a copy, or delete it and run the command that wrote it again"
        )
    if memo:
        with contextlib.suppress(OSError):  # a read-only cache folder only costs time
            memo.parent.mkdir(parents=True, exist_ok=True)
            memo.touch()


def cache_folder() -> Path:
    """The folder for what can be computed again; VIZSLA_CACHE sets it."""
    if named := os.environ.get("VIZSLA_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or _home_cache()
    return Path(base) / "vizsla"


@functools.cache
def _home_cache() -> Path:
    """~/.cache; a temporary folder if the user has no home, as in many containers."""
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        place = Path(tempfile.mkdtemp(prefix="vizsla-cache-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        log.warning("this user has no home folder: the cache is in %s and is deleted at "
                    "the end (set VIZSLA_CACHE to keep it elsewhere)", place)  # fmt: skip
        return place


def memo_path(path: Path, state: os.stat_result, sha256: str) -> Path:
    """The empty file whose existence says that `path`, in this state, has this hash."""
    known = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}|{state.st_ino}|{sha256}"
    return cache_folder() / "verified" / hashlib.sha256(known.encode()).hexdigest()


# ── errors and locks ─────────────────────────────────────────────────────────────────────────────


def storage_error(verb: str, path: Path, error: OSError) -> StorageError:
    """A StorageError with advice for the system's error. verb: what could not be done."""
    advice = {
        errno.ENOSPC: "the disk is full: free some space and run the command again",
        errno.EDQUOT: "your disk quota is used up: free some space and run the command again",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.EACCES: "permission denied: choose a folder that you may use",
        errno.EPERM: "not permitted: choose a folder that you may use",
        errno.ENOENT: "there is no such file or folder",
        errno.EISDIR: "it is a folder, a file was expected",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
        errno.EFBIG: "the file is larger than this file system allows",
    }.get(error.errno or 0, error.strerror or str(error))
    return StorageError(f"cannot {verb} {path}: {advice}")


_locked_folders: dict[Path, tuple[int, int]] = {}  # folder → identity of its lock file


def require_lock_kept(path: Path) -> None:
    """StorageError if `path` is in a folder locked by this process that was deleted meanwhile.

    Also if the folder exists again: another process may be writing to it by now.
    """
    here = path.absolute()
    for folder, identity in list(_locked_folders.items()):
        if here.is_relative_to(folder) and _identity(folder / LOCK) != identity:
            raise StorageError(
                f"{folder} was deleted or replaced while it was written to: nothing more is "
                "written there. Run the same command again"
            )


def require_local(folder: str | Path) -> None:
    """StorageError for a URL, which would become a folder of that name."""
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):/", str(folder))
    if scheme and not Path(f"{scheme[1]}:").is_dir():
        raise StorageError(
            f"{folder} is a URL, but results are written to a local disk: name a local folder, and "
            "copy it when it is complete"
        )


@contextlib.contextmanager
def locked(folder: str | Path, *, parts: Sequence[str] = ()) -> Iterator[None]:
    """Reserves `folder` for this process; a second process gets a StorageError at once.

    Temporary files of a killed process are removed, there and in the folders `parts` below it.
    """
    import filelock

    require_local(folder)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise StorageError(
            f"another process is writing to {folder}: wait for it to end, or choose another folder"
        ) from error
    except OSError as error:
        raise storage_error("write", folder, error) from error
    try:
        for place in (folder, *(folder / name for name in parts)):
            _remove_leftovers(place)
        _locked_folders[folder.absolute()] = _identity(folder / LOCK) or (0, 0)
        yield
    finally:
        _locked_folders.pop(folder.absolute(), None)
        lock.release()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _remove_leftovers(folder: Path) -> None:
    """Deletes temporary files of `writing` whose process was killed."""
    for path in folder.glob(".*tmp*"):
        if _TEMPORARY.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()
