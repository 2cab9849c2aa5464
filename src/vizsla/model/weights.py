"""Weights files → state dicts, and their hashes. Nothing is ever unpickled."""

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vizsla.errors import ModelError

log = logging.getLogger("vizsla.model")

State = dict[str, Tensor]
SUFFIXES = (".safetensors", ".pt", ".pth")
WRAPPERS = ("state_dict", "model_state_dict", "model")  # {"state_dict": {…}, "epoch": 3}
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
SHOWN = 5  # how many names an error lists


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def read_state(path: str | Path) -> State:
    """Name → tensor, from a file; ModelError if it holds anything else."""
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}: expected {', '.join(SUFFIXES)}")
    if path.suffix.lower() not in SUFFIXES and path.suffix != ".bin":
        raise ModelError(f"{path} is not a weights file: expected {', '.join(SUFFIXES)}")
    try:
        content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    except Exception as error:  # damaged files raise errors of all kinds
        raise ModelError(
            f"{path} cannot be read as weights: it is damaged or holds more than tensors "
            f"({first_sentence(error)}). Expected a state dict, as "
            "safetensors.torch.save_file or torch.save(model.state_dict(), …) writes it"
        ) from error
    return _unwrapped(content, path)


def _is_safetensors(path: Path) -> bool:
    return path.suffix.lower() == ".safetensors"


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _read_torch(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*TorchScript archive.*", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped(content: Any, path: Path) -> State:
    """The state dict inside the usual wrappers, without prefixes that all its names share."""
    while isinstance(content, dict):
        inner = next((content[w] for w in WRAPPERS if isinstance(content.get(w), dict)), None)
        if inner is None:
            break
        content = inner
    tensors = isinstance(content, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    )
    if not tensors or not content:
        raise ModelError(f"{path} has no weights: expected a dict of name → tensor")
    for prefix in PREFIXES * 2:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content


def load_state(
    module: nn.Module,
    state: State,
    *,
    heads: tuple[str, ...] = (),
    origin: str,
    convert: Callable[[State], State] | None = None,
) -> None:
    """Loads `state` into `module`; ModelError unless all names and shapes match.

    heads: classifiers of the original network that `module` may lack: they are dropped and logged.
    origin: where the weights come from, for messages. convert: for weights in an older form, tried
    once if names do not match.
    """
    state, dropped = _without_heads(module, state, heads)
    problem = mismatch(module, state)
    if problem and convert:
        converted, dropped = _without_heads(module, convert(state), heads)
        if mismatch(module, converted) is None:
            state, problem = converted, None
    if problem:
        raise ModelError(f"{origin} does not match the network: {problem}")
    module.load_state_dict(state, strict=False)  # `mismatch` was strict
    if dropped:
        log.info("%s: the classifier is not used (%s)", origin, ", ".join(dropped))


def _without_heads(
    module: nn.Module, state: State, heads: tuple[str, ...]
) -> tuple[State, list[str]]:
    expected = module.state_dict().keys()
    dropped = [
        name
        for name in state
        if name not in expected and any(name == h or name.startswith(f"{h}.") for h in heads)
    ]
    return {name: value for name, value in state.items() if name not in dropped}, dropped


def mismatch(module: nn.Module, state: State) -> str | None:
    """What does not match, with the first few names; None if everything does."""
    expected = module.state_dict()
    missing = [n for n in expected if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in state if n not in expected]
    unexpected.sort(key=lambda name: name.endswith("num_batches_tracked"))  # least informative last
    shapes = [
        f"{n} is {_shape(state[n])}, expected {_shape(expected[n])}"
        for n in expected
        if n in state and state[n].shape != expected[n].shape
    ]
    parts = [
        f"{len(names)} {what} ({', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        )
        if names
    ]
    return f"of {len(expected)} tensors, {'; '.join(parts)}" if parts else None


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


def first_sentence(error: BaseException) -> str:
    """The reason without the advice that libraries append (one is to switch off a safety check)."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0].rstrip(".")[:300]


# ── random numbers ───────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch draws from `seed`; afterwards its random state is as before."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


# ── hashes ───────────────────────────────────────────────────────────────────────────────────────


def without_counters(state: State) -> State:
    """Without the batch counters of batch norm: they change no vector, and some files lack them."""
    return {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}


def change_markers(state: State) -> list[Any]:
    """Something that differs after a change in place: torch's version counters, and a sample of
    the values for changes that torch does not count (through `.data` or NumPy)."""

    def one(name: str, tensor: Tensor) -> list[Any]:
        version = -1 if tensor.is_inference() else tensor._version
        flat = tensor.detach().flatten()
        sample = [] if tensor.is_meta else flat[:: max(1, len(flat) // 16)].tolist()
        return [name, tensor.data_ptr(), version, str(tensor.dtype), tuple(tensor.shape), sample]

    return [one(name, tensor) for name, tensor in state.items()]


def digest_of(state: State) -> str:
    """SHA-256 of names, shapes and values; half precision and float32 of equal values agree."""

    def one(item: tuple[str, Tensor]) -> str:
        name, tensor = item
        if tensor.is_meta:
            raise ModelError("weights on the meta device have no values, so there is no model_id")
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        values = (tensor.float() if half else tensor).detach().cpu()
        digest = hashlib.sha256(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
        return hashlib.sha256("".join(pool.map(one, sorted(state.items()))).encode()).hexdigest()
