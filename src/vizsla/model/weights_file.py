"""A weights file → its state dict. Its content decides, not its name; nothing is ever unpickled."""

import logging
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vizsla.errors import ModelError, first_sentence
from vizsla.model.weights import State

log = logging.getLogger("vizsla.model")

EXPECTED = "a .safetensors file, or what torch.save(model.state_dict(), …) writes"
WRAPPERS = (  # {"state_dict": {…}, "epoch": 3}
    "state_dict", "model_state_dict", "model", "module", "network", "net", "backbone", "weights",
)  # fmt: skip
AVERAGED = (  # a moving average, beside the weights that were trained: it is the better model
    "state_dict_ema", "ema_state_dict", "model_ema", "model_ema_state_dict", "ema_model", "ema",
    "teacher", "shadow",
)  # fmt: skip
ZIP = b"PK\x03\x04"


def read_state(path: str | Path) -> State:
    """Name → tensor, from a file; ModelError if it holds anything else.

    Of a checkpoint the moving average of the weights is taken if it has one, which is logged.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}: expected {EXPECTED}")
    try:
        content = _read(path)
    except ModelError:
        raise
    except Exception as error:  # damaged files raise errors of all kinds
        raise ModelError(
            f"{path} cannot be read as weights: it is damaged or holds more than tensors "
            f"({first_sentence(error)}). Expected {EXPECTED}"
        ) from error
    return _state_in(content, path)


def _read(path: Path) -> Any:
    """What the file holds; ModelError if it is known why nothing can be read."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # after the length of the header, which is JSON
        from safetensors.torch import load_file

        return load_file(path)
    if head[:4] == ZIP:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise ModelError(
                f"{path} is a TorchScript program, which is never run here. If you trust it, save "
                'its weights alone: python -c "import torch; torch.save(torch.jit.load('
                f"{str(path)!r}, map_location='cpu').state_dict(), 'weights.pt')\""
            )
    elif head[:1] != b"\x80":  # of a pickle, torch's older form
        raise ModelError(f"{path} is not a weights file: expected {EXPECTED}")
    try:
        with warnings.catch_warnings(), path.open("rb") as file:  # torch goes by a path's ending
            warnings.simplefilter("ignore", UserWarning)  # of storages in an older form
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(_about_objects(path, error)) from error


def _about_objects(path: Path, error: Exception) -> str:
    """Which objects stand beside the tensors, and how to save these alone."""
    try:
        found = sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)))
    except Exception:  # torch's older form, or damaged
        found = []
    if not found:
        return (
            f"{path} cannot be read as weights: it is damaged or holds more than tensors "
            f"({first_sentence(error)}). Expected {EXPECTED}"
        )
    text = (
        f"{path} holds more than tensors ({', '.join(found)}), and objects are never unpickled, "
        "because that can run any program. Save the weights alone where they were made: "
        "torch.save(model.state_dict(), 'weights.pt')"
    )
    if found != ["argparse.Namespace"]:
        return text
    return (
        f'{text}. Or, as this object is harmless: python -c "import argparse, torch; '
        "torch.serialization.add_safe_globals([argparse.Namespace]); "
        f"found = torch.load({str(path)!r}, map_location='cpu', weights_only=True); "
        "torch.save({k: v for k, v in found.items() "
        "if isinstance(v, dict) and all(map(torch.is_tensor, v.values()))}, 'weights.pt')\""
    )


def _state_in(content: Any, path: Path) -> State:
    """The state dict inside the usual wrappers, four of them at most."""
    for _ in range(4):
        if not isinstance(content, dict):
            break
        raw = next((name for name in WRAPPERS if isinstance(content.get(name), dict)), None)
        averaged = next((name for name in AVERAGED if _is_average(content, name, raw)), None)
        if averaged:
            log.info(
                "%s: the averaged weights %r are used%s",
                path, averaged, f", not {raw!r} beside them" if raw else "",
            )  # fmt: skip
        chosen = averaged or raw
        if chosen is None:
            break
        content = content[chosen]
    if isinstance(content, dict):  # torch's AveragedModel counts its steps
        content = {name: value for name, value in content.items() if name != "n_averaged"}
    if not _is_state(content):
        raise ModelError(f"{path} has no weights: expected a dict of name → tensor")
    return dict(content)


def _is_average(content: dict[str, Any], name: str, raw: str | None) -> bool:
    """Whether `name` holds the average of the weights in `raw`: about as many tensors as these.

    A teacher is one only beside its student: else it may be another network.
    """
    count = _count_tensors(content.get(name))
    if name == "teacher" and "student" not in content:
        return False
    return count > 0 and (raw is None or 2 * count > _count_tensors(content[raw]))


def _count_tensors(content: Any, depth: int = 4) -> int:
    if not isinstance(content, dict) or depth == 0:
        return int(isinstance(content, Tensor))
    return sum(_count_tensors(value, depth - 1) for value in content.values())


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )
