"""The record of a training as it runs: log.jsonl, and TensorBoard where it is installed."""

import json
import math
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.errors import MissingExtraError

LOG = "log.jsonl"
SHORT_FOLDER = "short"  # holds the log of a short training, below the other one


class TrainLog:
    """One line of JSON a record. Opened again behind step `from_step`, later lines are dropped."""

    def __init__(self, folder: Path, *, from_step: int = 0, tensorboard: bool = False) -> None:
        self.path = folder / LOG
        kept = [r for r in read_log(folder) if r.get("step", 0) <= from_step] if from_step else []
        text = "".join(json.dumps(record) + "\n" for record in kept)
        storage.write_text(self.path, text)
        self.board = _board(folder) if tensorboard else None

    def add(self, step: int, **values: Any) -> None:
        record = {"step": step, **{k: _plain(v) for k, v in values.items()}}
        storage.append_line(self.path, json.dumps(record))
        if self.board:
            for key, value in record.items():
                if isinstance(value, int | float) and key != "step":
                    self.board.add_scalar(key, value, step)

    def close(self) -> None:
        if self.board:
            self.board.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All whole records; a line that a killed process left half-written is passed over."""
    path = folder / LOG
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("--tensorboard", "tensorboard") from error
    return SummaryWriter(str(folder / "tensorboard"))


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
