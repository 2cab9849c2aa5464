"""Scores and what is known of a run → the starting document's result file."""

from collections.abc import Mapping
from typing import Any

from vizsla.errors import DataError
from vizsla.score.scores import Scores

POOLING_TYPES = {"gem": "GeM", "gap": "GAP", "max": "Max", "cls": "CLS", "native": "internal"}
_DIGITS = 6  # of scores in a result file


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
    """The starting document's keys with its names and types, then ours. Unknown is None.

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
        **_our_keys(scores),
        **{f"data_{key}": value for key, value in (data or {}).items()},
        **more,
    }


def relevant_counts(scores: Scores) -> tuple[int, int] | None:
    """Fewest and most relevant images of the queries that have any; None where unknown."""
    counts = scores.n_relevant[scores.n_relevant > 0]
    return None if len(counts) == 0 else (int(counts.min()), int(counts.max()))


def _our_keys(scores: Scores | None) -> dict[str, Any]:
    if scores is None:
        return {"map": None, "queries": None, "gallery_size": None, "scores": {}, "intervals": {}}
    counts = relevant_counts(scores)
    known = scores.known
    return {
        "map": _rounded(scores.mean("map")),
        "queries": len(scores),
        "queries_with_nothing_relevant": scores.with_nothing_relevant,
        "queries_lacking": scores.lacking,
        "gallery_size": scores.gallery_size,
        "fewest_relevant": counts and counts[0],
        "scores": {key: _rounded(figure.mean) for key, figure in known.items()},
        "intervals": {
            key: [_rounded(figure.low), _rounded(figure.high)]
            for key, figure in known.items()
            if figure.low is not None
        },
        "notes": scores.notes,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), _DIGITS)
