"""The state of a training ↔ a folder: tensors as safetensors, the rest as sealed JSON. No pickle.

The JSON names the tensors' file with its hash and is written last, so a process that is killed at
any moment leaves the old state or the new one.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vizsla import storage
from vizsla.errors import StorageError

STATE = "state.json"
TENSOR = "\0tensor"


def save_state(folder: Path, state: Any, *, identity: str) -> None:
    """Replaces the state in `folder`. state: dicts, lists, numbers, texts and tensors, nested.

    identity: of the training that it belongs to.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    skeleton = _without_tensors(state, "", tensors)
    old = _named_file(folder)
    name = "tensors-a.safetensors" if old != "tensors-a.safetensors" else "tensors-b.safetensors"
    with storage.writing(folder / name) as temporary:
        save_file(tensors, temporary)
        sha256 = storage.sha256_of(temporary)
    content = {"identity": identity, "tensors": name, "sha256": sha256, "state": skeleton}
    storage.write_sealed_json(folder / STATE, content)


def load_state(folder: Path, *, identity: str) -> Any:
    """What was saved; None if nothing was, where it is damaged, or of another training."""
    from safetensors.torch import load

    if not (folder / STATE).is_file():
        return None
    try:
        content = storage.read_sealed_json(folder / STATE)
        if content["identity"] != identity:
            return None
        storage.verify(folder / content["tensors"], content["sha256"], force=True)
        data = storage.read_bytes(folder / content["tensors"])
    except StorageError:
        return None
    return _with_tensors(content["state"], load(data))


def _named_file(folder: Path) -> str | None:
    try:
        name: str = storage.read_sealed_json(folder / STATE)["tensors"]
        return name
    except StorageError:
        return None


def _without_tensors(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON of `node`; its tensors go into `tensors`. Keys keep their type: Adam's are numbers."""
    if isinstance(node, Tensor):
        tensors[path] = node.detach().cpu().contiguous().clone()
        return {TENSOR: path}
    if isinstance(node, dict):
        return {"keys": [[k, _without_tensors(v, f"{path}/{k}", tensors)] for k, v in node.items()]}
    if isinstance(node, list | tuple):
        return [_without_tensors(v, f"{path}/{i}", tensors) for i, v in enumerate(node)]
    return node


def _with_tensors(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, dict):
        if TENSOR in node:
            return tensors[node[TENSOR]]
        return {k: _with_tensors(v, tensors) for k, v in node["keys"]}
    if isinstance(node, list):
        return [_with_tensors(v, tensors) for v in node]
    return node


def generator_states() -> dict[str, Any]:
    """Those of torch's generators. All other random numbers come from (seed, step)."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_generator_states(states: dict[str, Any]) -> None:
    """Puts torch's generators back into states of `generator_states`."""
    torch.set_rng_state(states["cpu"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
