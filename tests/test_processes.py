"""Child processes: replies, crashes, time limits, and that nothing is left running."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vizsla import processes
from vizsla.errors import StorageError
from vizsla.processes import (
    ChildCrashedError,
    ChildTimeoutError,
    PoolClosedError,
    ProcessPool,
    available_cores,
)

CHILD = """
import os, sys, time
from vizsla.processes import serve_requests

def start(setup):
    def reply_to(request, body):
        match request["do"]:
            case "crash": os.abort()
            case "raise": raise ValueError("a bug")
            case "hang": time.sleep(600)
            case "print": print("noise", flush=True)
            case "modules": return {"modules": sorted(sys.modules)}, b""
            case "environment": return dict(os.environ), b""
            case "nonsense": os.write(3, b"x" * 100); return [], b""
        return {"setup": setup, "pid": os.getpid()}, body[::-1]
    return reply_to

if __name__ == "__main__":
    serve_requests(start)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that children run."""
    (tmp_path / "child_module.py").write_text(CHILD)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "child_module"


@pytest.fixture
def pool(module: str) -> Iterator[ProcessPool]:
    with ProcessPool(module, 1, setup={"a": [1]}, memory_limit=2**31) as pool:
        yield pool


def test_a_request_gets_its_reply(pool: ProcessPool) -> None:
    reply, body = pool.run({"do": "reply"}, b"abc", timeout=60)
    assert reply["setup"] == {"a": [1]} and body == b"cba"
    large = os.urandom(3 * 2**20)
    assert pool.run({"do": "print"}, large, timeout=60)[1] == large[::-1]


def test_several_threads_share_the_children(module: str) -> None:
    with ProcessPool(module, 2) as pool, ThreadPoolExecutor(8) as threads:
        bodies = [str(i).encode() for i in range(40)]
        replies = list(threads.map(lambda b: pool.run({"do": "x"}, b, timeout=60), bodies))
        assert [body for _, body in replies] == [body[::-1] for body in bodies]
        assert len({reply["pid"] for reply, _ in replies}) <= 2


@pytest.mark.parametrize("do", ["crash", "raise", "nonsense"])
def test_a_crash_costs_one_request(pool: ProcessPool, do: str) -> None:
    before = pool.run({"do": "reply"}, timeout=60)[0]["pid"]
    with pytest.raises(ChildCrashedError):
        pool.run({"do": do}, timeout=60)
    assert pool.run({"do": "reply"}, timeout=60)[0]["pid"] != before


def test_a_child_that_hangs_is_killed(pool: ProcessPool) -> None:
    pool.run({"do": "reply"}, timeout=60)
    (child,) = pool.processes
    with pytest.raises(ChildTimeoutError):
        pool.run({"do": "hang"}, timeout=0.2)
    assert child.poll() is not None
    assert pool.run({"do": "reply"}, timeout=60)[0]["pid"] != child.pid


def test_the_time_limit_begins_when_the_child_has_the_request(pool: ProcessPool) -> None:
    """And not while it starts or other requests are served."""
    with ThreadPoolExecutor(4) as threads:
        done = [threads.submit(pool.run, {"do": "reply"}, timeout=30) for _ in range(4)]
        assert all(each.result() for each in done)
    time.sleep(2 * processes.CHECK_INTERVAL)
    assert len(pool.processes) == 1  # an idle child is never late


def test_closing_ends_what_runs_and_what_waits(module: str) -> None:
    pool = ProcessPool(module, 1)
    pool.start()
    (child,) = pool.processes
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(pool.run, {"do": "hang"}, timeout=600) for _ in range(3)]
        pool.close()
        for each in waiting:
            assert isinstance(each.exception(60), PoolClosedError)
    assert child.poll() is not None and pool.processes == []
    with pytest.raises(PoolClosedError):
        pool.run({"do": "reply"}, timeout=60)


def test_a_module_that_does_not_start_is_named(tmp_path: Path) -> None:
    with (
        ProcessPool("no_such_module", 1, memory_limit=2**31) as pool,
        pytest.raises(StorageError, match=r"python -m no_such_module\) does not start"),
    ):
        pool.run({}, timeout=60)


def test_a_missing_python_is_an_error_and_not_a_hang(
    module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with ProcessPool(module, 1) as pool, pytest.raises(StorageError, match="cannot start"):
        pool.start()


def test_children_get_no_secrets_and_one_thread(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIZSLA_SOME_TOKEN", "secret")
    with ProcessPool(module, 1) as pool:
        found, _ = pool.run({"do": "environment"}, timeout=60)
    assert "secret" not in found.values() and found["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    "module", ["vizsla.data.decoding", "vizsla.data.file_hashes", "vizsla.web.search.decoder"]
)
def test_children_import_neither_torch_nor_pyarrow(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'pyarrow'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ── the parent's end ─────────────────────────────────────────────────────────────────────────────

PARENT = """
import signal
import threading
from vizsla.processes import ProcessPool

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
pool = ProcessPool("child_module", 2)   # no `if __name__ == "__main__"`
pool.start()
pids = [pool.run({"do": "reply"}, timeout=60)[0]["pid"] for _ in range(2)]
threading.Thread(target=pool.run, args=({"do": "hang"},), kwargs={"timeout": 600}).start()
try:
    print(*[process.pid for process in pool.processes], flush=True)  # the signal may come at once
    threading.Event().wait()
finally:
    pool.close()
"""


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not Path("/proc/self").exists()


@pytest.mark.skipif(os.name == "nt", reason="sends signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_children_end_with_their_parent(module: str, tmp_path: Path, how: signal.Signals) -> None:
    """Also one that is in the middle of a request."""
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2 and all(is_running(pid) for pid in children)
    parent.send_signal(how)
    parent.wait(60)
    parent.stdout.close()
    for _ in range(600):
        if not any(is_running(pid) for pid in children):
            return
        threading.Event().wait(0.1)
    pytest.fail("a child outlives its parent")


def test_only_the_cores_that_it_may_use_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert available_cores() == 1
