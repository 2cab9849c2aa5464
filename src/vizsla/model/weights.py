"""State dicts: into networks, whatever form they have, and their hashes."""

import contextlib
import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from vizsla.errors import ModelError

log = logging.getLogger("vizsla.model")

State = dict[str, Tensor]
SHOWN = 5  # how many names an error lists
AVERAGED = ("ema", "teacher", "averag")  # in the prefix of a moving average of the weights
TRANSFORMERS = re.compile(r"encoder\.layers?\.\d|embeddings\.patch_embeddings\.")


# ── into a network ───────────────────────────────────────────────────────────────────────────────


def load_state(
    module: nn.Module,
    state: State,
    *,
    heads: tuple[str, ...] = (),
    origin: str,
    adapt: Callable[[State], State] | None = None,
    heads_level: int = logging.INFO,
) -> None:
    """Loads `state` into `module`; ModelError unless all names and shapes match.

    The names as they are come first. If they do not match: without a prefix, which is logged, and
    then through `adapt`, for weights in another form; `adapt` may also resize `module`.
    heads: classifiers of the original network that `module` may lack: they are dropped and logged
    at `heads_level`.
    origin: where the weights come from, for messages.
    """
    forms = [(state, ""), *_without_prefixes(module, state, origin)]
    problems: list[tuple[int, str]] = []
    for change in (None, adapt) if adapt else (None,):
        for form, note in forms:
            form, dropped = _without_heads(module, change(dict(form)) if change else form, heads)
            count, problem = differences(module, form)
            if count:
                problems.append((count, problem))
                continue
            module.load_state_dict(form, strict=False)  # `differences` was strict
            if note:
                log.info("%s: %s", origin, note)
            if dropped:
                what = _some(dropped)
                log.log(heads_level, "%s: the classifier is not used (%s)", origin, what)
            return
    raise ModelError(f"{origin} does not match the network: {min(problems)[1]}{_hint(state)}")


def _without_prefixes(module: nn.Module, state: State, origin: str) -> list[tuple[State, str]]:
    """`state` without each prefix under which it may hold the network, and what to say of that."""
    expected = [name for name in module.state_dict() if not name.endswith("num_batches_tracked")]
    anchor = expected[0] if expected else ""
    prefixes = [
        name.removesuffix(anchor)
        for name in state
        if name.endswith(f".{anchor}")
        and all(name.removesuffix(anchor) + one in state for one in expected)
    ]
    if len(prefixes) > 1:
        averaged = [p for p in prefixes if any(word in p.lower() for word in AVERAGED)]
        if len(averaged) != 1:
            raise ModelError(
                f"{origin} holds several networks, under {_some(prefixes)}: save one of them alone"
            )
        prefixes = averaged
    shared, rest = "", list(state)
    while len({name.partition(".")[0] for name in rest}) == 1 and all("." in n for n in rest):
        shared += rest[0].partition(".")[0] + "."
        rest = [name.partition(".")[2] for name in rest]
        prefixes += [shared] if shared not in prefixes else []  # the network's names may differ
    return [_without_prefix(state, prefix) for prefix in prefixes]


def _without_prefix(state: State, prefix: str) -> tuple[State, str]:
    others = [name for name in state if not name.startswith(prefix)]
    note = f"the prefix {prefix!r} of the names is left out"
    if others:
        note += f"; what is not under it is not used ({_some(others)})"
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}, note


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


def differences(module: nn.Module, state: State) -> tuple[int, str]:
    """How many names or shapes do not match, and the first few of them."""
    expected = module.state_dict()
    missing = [n for n in expected if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in state if n not in expected]
    unexpected.sort(key=lambda name: name.endswith("num_batches_tracked"))  # least informative last
    shapes = [
        f"{n} is {_shape(state[n])}, expected {_shape(expected[n])}"
        for n in expected
        if n in state and state[n].shape != expected[n].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    parts = [f"{len(names)} {what} ({_some(names)})" for what, names in kinds.items() if names]
    count = len(missing) + len(unexpected) + len(shapes)
    return count, f"of {len(expected)} tensors, {'; '.join(parts)}"


def _hint(state: State) -> str:
    """What to do with weights in a form that is known, but not read."""
    if any(map(TRANSFORMERS.search, state)):
        return (
            ". Its names are those of transformers, of which only CLIP is read: give the file of "
            "the model's makers, or of timm or OpenCLIP"
        )
    return ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


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
