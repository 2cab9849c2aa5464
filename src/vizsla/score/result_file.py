"""The contest's result file: written from scores, and read from any program."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.errors import DataError, StorageError, UsageError
from vizsla.score.scores import Scores
from vizsla.score.validation_scores import ValidationScores
from vizsla.workspace import canonical_name

POOLING_TYPES = {"gem": "GeM", "gap": "GAP", "max": "Max", "cls": "CLS", "native": "internal"}
SCORES = ("top_k_accuracy", "precision_at_k", "map")
COSTS = ("final_train_loss", "runtime_seconds")
TEXTS = ("model_name", "run_id", "loss_function", "pooling_type", "data_name", "data_id",
         "model_id")  # fmt: skip
COUNTS = ("top_k", "batch_size", "num_classes", "num_epochs", "queries", "gallery_size",
          "fewest_relevant")  # fmt: skip
# Two runs of one model that differ in any of these differ in more than the seed.
SETTINGS = ("weights", "weights_file", "image_size", "interpolation", "framing", "views", "whiten",
            "dim", "refine", "fusion", "kept")  # fmt: skip
OPTION = "training."  # the prefix of the options of a training
FROZEN = "frozen"
WITH_TRUTH = (
    "Rankings and submissions are compared with their truth: give --labels, --labels-from, --data "
    "or --qrels"
)
_DIGITS = 6  # of scores in a result file
_UNKNOWN = ("", "none", "null", "nan", "n/a")
_PARQUET = b"PAR1"
_ID_DIGITS = 8  # of a model_id, in tables


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def result_record(
    scores: Scores | None,
    *,
    model_name: str,
    run_id: str,
    top_k: int,
    batch_size: int | None,
    is_finetuned: bool | None,
    num_classes: int | None,
    runtime_seconds: float | None,
    pooling: str,
    loss_function: str | None = None,
    num_epochs: int | None = None,
    final_train_loss: float | None = None,
    data: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The contest's keys with its names and types, then ours. Unknown is None.

    scores: None without a truth. pooling: our name ("gem"); `pooling_type` is the document's.
    loss_function: the document's name ("CrossEntropyLoss"); None when frozen. data: what is known
    of the data set; `name` and `id` become data_name and data_id. more: further keys (model_id, …).
    """
    if scores is not None and f"top_k_accuracy@{top_k}" not in scores.metrics:
        raise DataError(f"these scores have no cut-off {top_k}: evaluate with top_k={top_k}")
    means = {} if scores is None else {key: figure.mean for key, figure in scores.figures.items()}
    return {
        "model_name": model_name,
        "run_id": run_id,
        "top_k": top_k,
        "top_k_accuracy": _rounded(means.get(f"top_k_accuracy@{top_k}")),
        "precision_at_k": _rounded(means.get(f"precision@{top_k}")),
        "batch_size": batch_size,
        "is_finetuned": is_finetuned,
        "num_classes": num_classes,
        "runtime_seconds": None if runtime_seconds is None else round(runtime_seconds, 2),
        "loss_function": loss_function if is_finetuned else None,
        "num_epochs": num_epochs,
        "final_train_loss": _rounded(final_train_loss),
        "pooling_type": POOLING_TYPES.get(pooling, pooling),
        **_own_keys(scores),
        **{f"data_{key}": value for key, value in (data or {}).items()},
        **more,
    }


def _own_keys(scores: Scores | None) -> dict[str, Any]:
    """The keys beyond the contest's."""
    if scores is None:
        return {"map": None, "queries": None, "gallery_size": None, "scores": {}, "intervals": {}}
    counts = scores.n_relevant[scores.n_relevant > 0]  # of the queries that have any
    known = scores.known
    shown = " ".join(key for key in scores.chosen if key in known)  # no name has a space in it
    return {
        **({"protocol": scores.protocol} if scores.protocol else {}),
        **({"shown_metrics": shown} if shown else {}),
        "map": _rounded(scores.mean("map")),
        "queries": len(scores),
        "queries_with_nothing_relevant": scores.with_nothing_relevant,
        "queries_lacking": scores.lacking,
        "gallery_size": scores.gallery_size,
        "fewest_relevant": int(counts.min()) if len(counts) else None,
        "scores": {key: _rounded(figure.mean) for key, figure in known.items()},
        "intervals": {
            key: [_rounded(figure.low), _rounded(figure.high)]
            for key, figure in known.items()
            if figure.low is not None
        },
        "notes": scores.notes,
    }


def item_record(scores: Scores) -> dict[str, Any]:
    """The scores of items, with the names that those of images have."""
    means = {key: figure.mean for key, figure in scores.figures.items()}
    return {
        "top_k_accuracy": _rounded(means.get(f"top_k_accuracy@{scores.top_k}")),
        "precision_at_k": _rounded(means.get(f"precision@{scores.top_k}")),
        **_own_keys(scores),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), _DIGITS)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Result:
    """One result file.

    source: the file's name. values: the keys that this module knows, None if unknown. scores:
    every score in the file, those below its key `scores` included. more: its other keys that have
    one value each. path: where it was read. validation: on held-out training images.
    """

    source: str
    values: dict[str, Any]
    scores: dict[str, float]
    more: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    validation: ValidationScores | None = None

    @property
    def model(self) -> str:
        """The model's name, with the spelling that the catalogue has."""
        return canonical_name(self.values["model_name"])

    @property
    def data(self) -> str | None:
        """What identifies the data set and the protocol that scored it; None if the file does not
        say."""
        name, identity = self.values["data_name"], self.values["data_id"]
        protocol = self.more.get("protocol")
        parts = [name, identity and f"({identity[:8]})", protocol and f"by {protocol}"]
        return " ".join(filter(None, parts)) or None

    def value(self, key: str) -> Any:
        """The value of any key, as tables show it; None if the file lacks it."""
        if key == "model_name":
            return self.model
        if key == "data":
            return self.data
        if key in self.scores:
            return self.scores[key]
        return self.values[key] if key in self.values else self.more.get(key)


def read_result(path: Path) -> Result:
    """Reads one result file. DataError, without the file's name: it cannot be used as one.

    Keys may be missing or null, numbers may be texts, and "None" is null.
    """
    data = storage.read_bytes(path)
    if data.startswith(_PARQUET):
        raise UsageError(f"{path} is a Parquet file, such as a ranking. {WITH_TRUTH}")
    if b"<<<<<<<" in data and b">>>>>>>" in data:
        raise DataError("it holds the marks of a merge that was never resolved (<<<<<<<)")
    try:
        content = storage.read_json(path)
    except StorageError as error:
        raise DataError(str(error).removeprefix(f"{path} ")) from error
    if not isinstance(content, dict):
        raise DataError(f"it holds a {type(content).__name__}, expected one JSON object")
    if not any(key in content for key in ("model_name", *SCORES)):
        raise DataError("it is not a result file: it has neither model_name nor a score")
    values: dict[str, Any] = {key: _text(content.get(key)) for key in TEXTS}
    values |= {key: _count(content.get(key)) for key in COUNTS}
    values |= {key: _number(content.get(key)) for key in COSTS}
    values["is_finetuned"] = _boolean(content.get("is_finetuned"))
    stem, _, run_id = path.stem.partition("_metrics_")
    values["model_name"] = values["model_name"] or stem
    values["run_id"] = values["run_id"] or run_id or None
    ours = content.get("scores")
    everything = {**(ours if isinstance(ours, dict) else {}), **{k: content.get(k) for k in SCORES}}
    numbers = {str(key): _number(value) for key, value in everything.items()}
    scores = {key: value for key, value in numbers.items() if value is not None}
    plain = (str, int, float, bool)
    more = {k: v for k, v in content.items() if isinstance(v, plain) and k not in everything}
    more |= {key: text for key in SETTINGS if (text := _setting(content.get(key)))}
    more = {k: v for k, v in more.items() if k not in SETTINGS or _setting(v)}
    more |= _training(content, values)
    more = {key: value for key, value in more.items() if key not in values}
    validation = ValidationScores.of(content.get("validation"))
    return Result(path.name, values, scores, more, path, validation)


def _training(content: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """How the model was trained; for a frozen one without more settings, the embedder's id."""
    training = content.get("training")
    training = training if isinstance(training, dict) else {}
    tuned = values["is_finetuned"]
    kept = _text(training.get("kept")) or (FROZEN if tuned is False else None)
    found: dict[str, Any] = {"kept": kept}
    options = training.get("options")
    if isinstance(options, dict):
        found |= {f"{OPTION}{key}": value for key, value in _flat(options).items()}
    elif tuned:
        found |= {"loss": values["loss_function"], "epochs": values["num_epochs"]}
    found["training_images"] = _count(training.get("images"))
    whitened = _setting(content.get("whiten"))
    if kept == FROZEN and not tuned and not whitened and content.get("weights") != "random":
        found["embedder"] = (values["model_id"] or "")[:_ID_DIGITS]
    return {key: value for key, value in found.items() if value not in (None, "")}


def _flat(options: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in options.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{before}{key}.") if inner else {f"{before}{key}": value}
    return {k: v if isinstance(v, str | int | float | bool) else _text(v) for k, v in found.items()}


def without_unknown_zeros(result: Result) -> tuple[Result, str | None]:
    """The result without scores of exactly 0, and a note on them, if no truth is mentioned.

    Such a score was not measured: whoever wrote the file put 0 for unknown.
    """
    zeros = [key for key, value in result.scores.items() if value == 0]
    if not zeros or result.values["queries"]:
        return result, None
    note = (
        f"{', '.join(zeros)} is exactly 0 and nothing says that the truth was known: "
        "taken as unknown"
    )
    known = {key: value for key, value in result.scores.items() if value != 0}
    return dataclasses.replace(result, scores=known), note


def _setting(value: Any) -> str | None:
    """A setting as one text; None if it is not known, or not for any of several models."""
    if isinstance(value, dict):  # what was refined, and why
        value = value.get("chain", _fusion(value))
    if isinstance(value, list):  # an image's size
        value = "×".join(map(str, value))
    of_each = {_text(part) for part in str(value).split(" | ")} if value is not None else {None}
    return None if of_each == {None} else _text(value)


def _fusion(value: dict[str, Any]) -> str | None:
    """How several models were fused, and with which weights."""
    method, weights = value.get("method"), value.get("weights")
    text = " ".join(part for part in (_text(method), _text(value.get("whiten"))) if part)
    if isinstance(weights, list):
        text = ", ".join(filter(None, [text, f"weights {', '.join(f'{w:.3g}' for w in weights)}"]))
    return text or None


def _text(value: Any) -> str | None:
    text = "" if value is None else str(value).strip()
    return None if text.lower() in _UNKNOWN else text


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) else None


def _boolean(value: Any) -> bool | None:
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(
        str(value).strip().lower()
    )
