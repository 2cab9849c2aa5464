"""Requests → replies from child processes that may crash or hang. Knows nothing of the work itself.

A child is a separate program, `python -m MODULE`, not a copy of this process: it imports only
what its module needs, and the calling script needs no `if __name__ == "__main__"`. Parent and
child exchange JSON and bytes through pipes. Nothing is unpickled, so a hostile file that takes
over a child can send a wrong reply and no more; the pools of concurrent.futures, loky and pebble
unpickle what their children send.

A child ends when its parent does, however the parent ends: its input is then at its end.
"""

import json
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import IO, Any

from vizsla.errors import StorageError

START_TIMEOUT = 120.0  # seconds that a child may take to import its module
CHECK_INTERVAL = 0.1  # seconds between two checks for requests that take too long
MAX_REPLY_BYTES = 2**28
LOW_PRIORITY = 10  # niceness: about a tenth of a core that others keep busy

Message = tuple[dict[str, Any], bytes]  # JSON, and bytes that go with it


class ChildCrashedError(Exception):
    """The child died, or sent something that is not a reply."""


class ChildTimeoutError(Exception):
    """The child took too long and was killed."""


class PoolClosedError(Exception):
    """The pool was closed before the reply came."""


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class ProcessPool:
    """`run(request)` → reply, by one of several child processes. Several threads may call it.

    module: what children run; it calls `serve_requests` when run as a program. setup: JSON that
    each child gets once. inherited_files: descriptors that stay open in children (not on Windows).
    memory_limit: for files from strangers, bytes of address space that a child may use; it then
    can write no files, and what it prints is discarded (Windows: only the latter).
    low_priority: children run when other processes leave them time.
    """

    def __init__(
        self,
        module: str,
        processes: int,
        *,
        setup: Mapping[str, Any] | None = None,
        inherited_files: Iterable[int] = (),
        memory_limit: int | None = None,
        low_priority: bool = False,
    ) -> None:
        first = {"memory_limit": memory_limit, "low_priority": low_priority, "setup": setup or {}}
        options = {
            "args": [sys.executable, "-P", "-m", module],
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": None if memory_limit is None else subprocess.DEVNULL,
            "env": _environment(),
            "pass_fds": tuple(inherited_files),
            # Ctrl-C reaches only the parent, which then ends its children.
            "start_new_session": True,
            "creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        }
        self._children = [_Child(options, first) for _ in range(processes)]
        self._free: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        for child in self._children:
            self._free.put(child)
        self._closed = threading.Event()
        self._watchdog = threading.Thread(target=self._kill_late_children, daemon=True)
        self._watchdog.start()

    def __enter__(self) -> "ProcessPool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def processes(self) -> list["subprocess.Popen[bytes]"]:
        """The children that were started and have not ended."""
        running = (child.process for child in self._children)
        return [process for process in running if process and process.poll() is None]

    def start(self) -> None:
        """Starts all children now, without waiting for them; else each starts when first needed.

        StorageError if the system starts no process.
        """
        for child in self._children:
            child.start()

    def run(self, request: dict[str, Any], body: bytes = b"", *, timeout: float) -> Message:
        """The reply to one request; waits for a free child first.

        timeout: seconds from when the child has the request. ChildCrashedError,
        ChildTimeoutError: the next request gets a new child. StorageError if no child starts.
        """
        child = self._free.get()
        try:
            return child.run(request, body, timeout)
        finally:
            self._free.put(child)

    def close(self) -> None:
        """Kills all children and waits for their end; whoever waits in `run` gets an error."""
        self._closed.set()
        for child in self._children:
            child.close()
        self._watchdog.join()

    def _kill_late_children(self) -> None:
        while not self._closed.wait(CHECK_INTERVAL):
            now = time.monotonic()
            for child in self._children:
                child.kill_if_late(now)


def _environment() -> dict[str, str]:
    """This process's, without secrets, with its import path, and one thread a child."""
    kept = {name: value for name, value in os.environ.items() if "TOKEN" not in name.upper()}
    return kept | {
        "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


class _Child:
    """One place in the pool: a process, or the one that takes over when that has ended."""

    def __init__(self, options: dict[str, Any], first: dict[str, Any]) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._options, self._first = options, first
        self._lock = threading.Lock()
        self._closed = self._ready = self._late = False
        self._deadline: float | None = None

    def start(self) -> None:
        with self._lock:
            if self._closed:
                raise PoolClosedError
            if self.process is not None and self.process.poll() is None:
                return
            self._end()
            try:
                self.process = subprocess.Popen(**self._options)
            except OSError as error:
                raise StorageError(f"cannot start a process: {error.strerror}") from error
            with suppress(OSError):  # it has ended already: seen when its first reply is awaited
                _send(self.process.stdin, self._first)

    def run(self, request: dict[str, Any], body: bytes, timeout: float) -> Message:
        self.start()
        process = self.process
        assert process is not None
        try:
            if not self._ready:
                self._limit_time(START_TIMEOUT)
                _receive(process.stdout, MAX_REPLY_BYTES)
                self._ready = True
            self._limit_time(timeout)
            _send(process.stdin, request, body)
            return _receive(process.stdout, MAX_REPLY_BYTES)
        except (OSError, EOFError, ValueError, struct.error) as error:
            with self._lock:
                started = self._ready
                self._end()
                if self._closed:
                    raise PoolClosedError from None
            if not started:
                command = " ".join(self._options["args"][2:])
                raise StorageError(f"a child process (python {command}) does not start") from error
            if self._late:
                raise ChildTimeoutError from None
            raise ChildCrashedError from None
        finally:
            self._limit_time(None)

    def kill_if_late(self, now: float) -> None:
        with self._lock:
            if self._deadline is not None and now > self._deadline and self.process is not None:
                self._late, self._deadline = True, None
                self.process.kill()  # whoever reads from it finds the end of its output

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._end()

    def _limit_time(self, seconds: float | None) -> None:
        with self._lock:
            self._deadline = None if seconds is None else time.monotonic() + seconds
            if seconds is not None:
                self._late = False

    def _end(self) -> None:
        """Holding the lock. Nothing that the child does outlives this."""
        process, self.process, self._ready = self.process, None, False
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


# ── messages ─────────────────────────────────────────────────────────────────────────────────────


def _send(pipe: IO[bytes] | None, content: dict[str, Any], body: bytes = b"") -> None:
    assert pipe is not None
    head = json.dumps(content).encode()
    pipe.write(struct.pack(">II", len(head), len(body)) + head)
    pipe.write(body)
    pipe.flush()


def _receive(pipe: IO[bytes] | None, max_bytes: int = 2**33) -> Message:
    """EOFError if the other side has ended, ValueError if it sends no message."""
    assert pipe is not None
    head_bytes, body_bytes = struct.unpack(">II", _read(pipe, 8))
    if head_bytes + body_bytes > max_bytes:
        raise ValueError(f"a message of {head_bytes + body_bytes} bytes, at most {max_bytes}")
    content = json.loads(_read(pipe, head_bytes))
    if not isinstance(content, dict):
        raise ValueError("the message is no JSON object")
    return content, _read(pipe, body_bytes)


def _read(pipe: IO[bytes], n_bytes: int) -> bytes:
    data = pipe.read(n_bytes)
    if len(data) < n_bytes:
        raise EOFError
    return data


# ── inside a child ───────────────────────────────────────────────────────────────────────────────


def serve_requests(
    start: Callable[[dict[str, Any]], Callable[[dict[str, Any], bytes], Message]],
) -> None:
    """Answers requests from standard input until it ends.

    start: takes the pool's `setup` and returns the function that turns a request into a reply.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = sys.stdin.buffer
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand between replies
    with suppress(EOFError, OSError):
        first, _ = _receive(requests)
        _limit_this_process(first["memory_limit"], low_priority=first["low_priority"])
        reply_to = start(first["setup"])
        _send(replies, {})
        waiting: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=_read_requests, args=(requests, waiting), daemon=True).start()
        while True:
            _send(replies, *reply_to(*waiting.get()))


def _read_requests(requests: IO[bytes], waiting: "queue.SimpleQueue[Message]") -> None:
    """Ends this process as soon as its parent is gone, also in the middle of a request."""
    try:
        while True:
            waiting.put(_receive(requests))
    finally:
        os._exit(0)


def _limit_this_process(memory: int | None, *, low_priority: bool) -> None:
    if low_priority and hasattr(os, "nice"):
        os.nice(LOW_PRIORITY)
    if memory is None:
        return
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        with suppress(OSError, ValueError):  # macOS refuses some
            resource.setrlimit(limit, (value, value))
