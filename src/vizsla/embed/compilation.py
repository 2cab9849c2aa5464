"""Compiles a network with torch.compile.

The compiler's results are kept between runs in a folder that only this user may read: they hold
pickles, so they are no artefact and are never read from anywhere else.
"""

import contextlib
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vizsla import storage
from vizsla.embed.compute import Compute
from vizsla.errors import ModelError
from vizsla.model.embedder import Embedder

log = logging.getLogger("vizsla.embed")
Pass = Callable[[Tensor], Tensor]  # pixels → vectors


class CompilingError(ModelError):
    """The compiler could not do it."""


def compiled(
    function: Pass,
    embedder: Embedder,
    compute: Compute,
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
    try:
        _own_cache()
        with _quiet():
            made: Pass = torch.compile(function, dynamic=False, options=options)
            through(made, blank[: compute.facts["part"]])  # alone: it must not be compiled twice
    except Exception as error:  # whatever a compiler may say of somebody's network
        first = next(iter(str(error).strip().splitlines()), "")
        reason = f"{type(error).__name__}: {first[:200]}"
        raise CompilingError(f"{embedder.name} cannot be compiled ({reason})") from error
    log.info("compiled in %.0f s", time.monotonic() - started)
    return made


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the compiler's warnings about its own work."""
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
    """Why nothing can be compiled for this kind of device on this machine; None if it can."""
    if kind not in ("cpu", "cuda"):
        return f"there is no compiler for {kind}"
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++", "cl"]
    if not any(shutil.which(name) for name in wanted):
        return f"no C++ compiler is installed (looked for {', '.join(wanted)})"
    return None


def _own_cache() -> None:
    """Points torch at a cache folder that only this user may read, unless the user set one.

    torch itself sets one below the folder for temporary files: that is not the user's choice.
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
