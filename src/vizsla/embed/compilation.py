"""Whether compiling a network pays, and compiling it.

What torch's compiler makes is kept between runs in a folder of this user alone: it holds pickles,
so it is no artefact and is never read from anywhere else.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vizsla import storage
from vizsla.errors import ModelError, StorageError

if TYPE_CHECKING:
    from vizsla.embed.compute import Compute
    from vizsla.model.embedder import Embedder

log = logging.getLogger("vizsla.embed")
Pass = Callable[[Tensor], Tensor]  # pixels → vectors

FROM_IMAGES = 512  # fewer are never worth a look
GAIN = {"cpu": 0.05, "cuda": 0.3}  # of the time, where nothing was measured yet
SECONDS = {"cpu": 60.0, "cuda": 60.0}  # that compiling takes, where nothing was measured yet


class CompilingError(ModelError):
    """The compiler could not do it."""


def pays(
    compute: "Compute", embedder: "Embedder | None", images: int, *, asked: bool = False
) -> bool:
    """Whether so many images should go through a compiled network; the reason goes to the log.

    By what was measured here when it was compiled before; the first time by one eager batch and
    a careful guess. asked: it was told to, and only the lack of a compiler speaks against it.
    """
    if not asked and (embedder is None or images < FROM_IMAGES):
        return False
    missing = compiler_missing(compute.kind)
    if missing:
        log.warning("not compiled: %s", missing)
        return False
    if asked or embedder is None:
        return True
    known = _known(embedder, compute)
    if "failed" in known:
        log.info("not compiled: it failed here before (%s)", known["failed"])
        return False
    if "eager" not in known:
        known["eager"] = _seconds_of_an_image(embedder, compute)
        _remember(embedder, compute, known)
    gain = known["eager"] - known["compiled"] if "compiled" in known else None
    saved = images * (known["eager"] * GAIN[compute.kind] if gain is None else gain)
    cost = known.get("seconds", SECONDS[compute.kind])
    log.info(
        "%s: %d images would save %.0f s, and compiling takes %.0f s (%s)",
        "compiled" if saved > cost else "not compiled", images, saved, cost,
        "guessed" if gain is None else "measured before",
    )  # fmt: skip
    return saved > cost


def compiled(
    function: Pass,
    embedder: "Embedder",
    compute: "Compute",
    blank: Tensor,
    through: Callable[[Pass, Tensor], Tensor],
) -> Pass:
    """The function after torch's compiler, tried on a blank batch; CompilingError if that fails.

    through: takes a batch, or a part of one, through a function.
    """
    options: dict[str, Any] = {"freezing": True}  # weights become constants, batch norms vanish
    if compute.kind == "cuda":
        options = {"triton.cudagraphs": True}
    started = time.monotonic()
    known = _known(embedder, compute)
    try:
        _own_cache()
        with _quiet():
            made: Pass = torch.compile(function, dynamic=False, options=options)
            through(made, blank[: compute.facts["part"]])  # alone: it must not be compiled twice
            known["seconds"] = round(time.monotonic() - started, 1)
            known["compiled"] = _seconds(lambda: through(made, blank), compute) / len(blank)
    except Exception as error:  # whatever a compiler may say of somebody's network
        first = next(iter(str(error).strip().splitlines()), "")
        reason = f"{type(error).__name__}: {first[:200]}"
        if not _from_system(error):  # a full disk is no property of the network
            _remember(embedder, compute, {"failed": reason})
        raise CompilingError(f"{embedder.name} cannot be compiled ({reason})") from error
    log.info("compiled in %.0f s", known["seconds"])
    known.pop("failed", None)
    _remember(embedder, compute, known)
    return made


def _from_system(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError | MemoryError) or "Errno" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the compiler's remarks on its own work."""
    talkative = logging.getLogger("torch.utils.cpp_extension")
    before = talkative.level
    talkative.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        talkative.setLevel(before)


def compiler_missing(kind: str) -> str | None:
    """Why nothing can be compiled for this kind of device here; None if it can."""
    if kind not in GAIN:
        return f"there is no compiler for {kind}"
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++", "cl"]
    if not any(shutil.which(name) for name in wanted):
        return f"no C++ compiler is installed (looked for {', '.join(wanted)})"
    return None


def _seconds_of_an_image(embedder: "Embedder", compute: "Compute") -> float:
    from vizsla.embed.torch_runtime import Network

    network = Network(embedder, dataclasses.replace(compute, compiled=False))
    blank = network.blank()
    network.submit(blank).result()
    return _seconds(lambda: network.submit(blank).result(), compute) / len(blank)


def _seconds(work: Callable[[], Any], compute: "Compute") -> float:
    """The shorter of two times: what else runs on the machine only adds to it."""
    times = []
    for _ in range(2):
        started = time.monotonic()
        work()
        if compute.kind == "cuda":
            torch.cuda.synchronize()
        times.append(time.monotonic() - started)
    return min(times)


# ── what is kept between runs ────────────────────────────────────────────────────────────────────


def _own_cache() -> None:
    """Torch keeps its work in this user's cache folder, which nobody else may enter.

    Unless the user chose another one: torch itself names one below the folder for temporary files.
    """
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    if chosen and not Path(chosen).name.startswith("torchinductor_"):
        return
    folder = storage.cache_folder() / "inductor"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if hasattr(os, "getuid"):
        folder.chmod(0o700)  # PermissionError where it is somebody else's
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


def _place(embedder: "Embedder", compute: "Compute") -> Path:
    """Of what is known about a network's speed here; its weights play no part."""
    facts = {**compute.facts, "compiled": None, "cores": os.cpu_count()}
    seen = [embedder.preprocess.to_dict(), str(embedder.views)]
    parts = [embedder.backbone.identity, embedder.pooling, *seen, facts]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]
    return storage.cache_folder() / "speed" / f"{digest}.json"


def _known(embedder: "Embedder", compute: "Compute") -> dict[str, Any]:
    try:
        found = storage.read_json(_place(embedder, compute))
        return dict(found)
    except (StorageError, TypeError, ValueError):
        return {}


def _remember(embedder: "Embedder", compute: "Compute", known: dict[str, Any]) -> None:
    with contextlib.suppress(StorageError):  # a read-only cache folder costs time, nothing else
        storage.write_json(_place(embedder, compute), known)
