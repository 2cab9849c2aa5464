"""Runs commands of vizsla quickly, and badly: all is imported once, every command is a fork of it.

Reads one JSON order a line, answers with one JSON line. An order may have its process killed after
some time, or at the n-th step of writing; or have that step fail.

    {"words": ["embed", …], "out": "file for what it prints", "notes": "file for what it did",
     "kill_after": seconds, "at": n, "kinds": ["write", "fsync", "rename"],
     "act": "kill" | "interrupt" | errno | "delete" | "delete back", "place": "what is deleted",
     "times": how many at once}
"""

import contextlib
import gc
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


class Steps:
    """Counts the steps of writing, and at the n-th of them dies or fails.

    A write that dies or fails has written half of it.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self.at, self.kinds = order.get("at"), order.get("kinds", ["write", "fsync", "rename"])
        self.act, self.place, self.count = order.get("act"), order.get("place"), 0
        self.notes = order.get("notes")

    def note(self, *words: object) -> None:
        if self.notes:
            with Path(self.notes).open("a") as file:
                file.write(" ".join(map(str, words)) + "\n")

    def step(self, kind: str, path: object, half: Callable[[], None] | None = None) -> None:
        if kind not in self.kinds:
            return
        self.count += 1
        if self.count != self.at:
            return
        self.note("fault", kind, path)
        if str(self.act).startswith("delete"):
            shutil.rmtree(self.place)
            if self.act == "delete back":
                Path(str(self.place)).mkdir()
            return
        if self.act == "interrupt":  # Ctrl-C
            os.kill(os.getpid(), signal.SIGINT)
            return
        if half:
            with contextlib.suppress(Exception):
                half()
        if self.act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        assert isinstance(self.act, int)
        raise OSError(self.act, os.strerror(self.act), str(path))

    def install(self) -> None:
        import pyarrow.parquet as pq
        import safetensors.torch

        from vizsla.embed import compute_shards
        from vizsla.train import loop

        self._before(os, "fsync", "fsync", lambda *a: None)
        self._before(os, "replace", "rename", lambda *a: None)
        self._before(os, "rename", "rename", lambda *a: None)
        self._before(Path, "write_bytes", "write", lambda path, data: _half_file(path, data))
        whole = pq.write_table

        def half_table(table: Any, where: Any, **more: Any) -> None:
            whole(table, where, **more)
            _cut(where)

        self._before(pq, "write_table", "write", half_table, where=1)
        whole_tensors = safetensors.torch.save_file

        def half_tensors(tensors: Any, path: Any, *rest: Any, **more: Any) -> None:
            whole_tensors(tensors, path, *rest, **more)
            _cut(path)

        self._before(safetensors.torch, "save_file", "write", half_tensors, where=1)
        self._noted(compute_shards._Draft, "__init__", lambda this, part, *_: ("part", part.start))
        self._noted(loop.Loop, "_update", lambda this, share: ("step", this.step))
        self._noted(loop.Loop, "save", lambda this: ("save", this.step))

    def _before(
        self, owner: Any, name: str, kind: str, half: Callable[..., None], where: int = 0
    ) -> None:
        original = getattr(owner, name)

        def replaced(*args: Any, **more: Any) -> Any:
            path = args[where] if len(args) > where else "?"
            if isinstance(path, str | os.PathLike | int):  # memory is no disk
                self.step(kind, path, lambda: half(*args, **more))
            return original(*args, **more)

        setattr(owner, name, replaced)

    def _noted(self, owner: Any, name: str, words: Callable[..., tuple[object, ...]]) -> None:
        original = getattr(owner, name)

        def replaced(*args: Any, **more: Any) -> Any:
            self.note(*words(*args, **more))
            return original(*args, **more)

        setattr(owner, name, replaced)


def _half_file(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])


def _cut(path: Any) -> None:
    os.truncate(path, Path(path).stat().st_size // 2)


def run_here(order: dict[str, Any]) -> None:
    """In the forked process: never returns."""
    from vizsla.cli.main import main

    code = 70
    try:
        with Path(order["out"]).open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(i, "w", closefd=False) for i in (1, 2))
        os.chdir(order.get("folder", "."))
        if user := order.get("user"):
            for name in ("out", "notes"):
                Path(order[name]).touch()
                os.chown(order[name], user, -1)
            os.setuid(user)
        steps = Steps(order)
        steps.install()
        try:
            main(order["words"])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        count = str(steps.count)
        with contextlib.suppress(PermissionError):
            Path(order["out"] + ".count").write_text(count)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def answer(order: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    waiting = {}
    for n in range(order.get("times", 1)):
        pid = os.fork()
        if pid == 0:
            run_here({**order, "out": order["out"] + ("" if n == 0 else f".{n}")})
        waiting[pid] = n
    deadline = started + (order.get("kill_after") or 120.0)
    codes = {}
    while waiting:
        for pid, n in list(waiting.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done and time.monotonic() >= deadline:
                os.kill(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, 0)
            if done:
                codes[n] = os.waitstatus_to_exitcode(status)
                del waiting[pid]
        time.sleep(0.001)
    ordered = [codes[n] for n in sorted(codes)]
    return {"code": ordered[0], "codes": ordered, "seconds": time.monotonic() - started}


def warm_up() -> None:
    import matplotlib.backends.backend_agg
    import pyarrow.parquet  # noqa: F401
    import pytorch_metric_learning.losses  # noqa: F401
    import safetensors.torch  # noqa: F401
    import timm  # noqa: F401
    import torch
    from matplotlib.figure import Figure

    from vizsla.cli import main, run  # noqa: F401
    from vizsla.model.embedder import Embedder
    from vizsla.run import pipeline, train  # noqa: F401
    from vizsla.train import training  # noqa: F401

    # The trained tensors are compared: they stay when a training has ended.
    train.KEPT_PARTS = (*train.KEPT_PARTS, "checkpoint")
    torch.set_num_threads(1)
    Embedder.build("tiny", weights="random", image_size=16)
    figure = Figure()
    matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
    figure.add_subplot().plot([0, 1])
    figure.savefig(io.BytesIO())  # fills the caches of fonts
    with contextlib.suppress(ImportError):
        import faiss  # noqa: F401
    gc.freeze()


def main(_: Sequence[str]) -> None:
    warm_up()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv)
