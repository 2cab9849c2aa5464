"""What a training says as it goes: log.jsonl, a curve as PNG, TensorBoard where it is installed."""

import json
import math
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.errors import MissingExtraError

LOG, CURVE = "log.jsonl", "curve.png"
SHORT_FOLDER = "short"  # of a short training's log, below the other's


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


def draw_curve(folder: Path, title: str, *, short: bool = False) -> Path | None:
    """The loss over the steps, that of a short training too; None where there is none."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points, before = _losses(folder), _losses(folder / SHORT_FOLDER) if short else []
    if not (points or before):
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rates = axes.twinx()
    rates.plot(*_by_step(points, "rate"), color="tab:gray", linewidth=1)
    rates.set_ylabel("share of the learning rate", color="tab:gray")
    if before:
        axes.plot(*_by_step(before, "loss"), color="tab:orange", label="short training")
    axes.plot(*_by_step(points, "loss"), color="tab:blue", label="training")
    axes.set(xlabel="step", title=title)
    axes.set_ylabel("loss", color="tab:blue")
    axes.set_zorder(rates.get_zorder() + 1)  # the loss before the rate
    axes.patch.set_visible(False)
    if before:
        axes.legend(loc="upper right")
    with storage.writing(folder / CURVE) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return folder / CURVE


def _losses(folder: Path) -> list[dict[str, Any]]:
    return [r for r in read_log(folder) if isinstance(r.get("loss"), int | float)]


def _by_step(points: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    return [r["step"] for r in points], [r.get(key, 0.0) for r in points]


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("--tensorboard", "tensorboard") from error
    return SummaryWriter(str(folder / "tensorboard"))


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
