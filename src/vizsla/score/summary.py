"""Scores → a table and notes for a terminal, and the starting document's result file.

Computes nothing that Scores does not hold.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vizsla.errors import DataError
from vizsla.score.tables import Table

if TYPE_CHECKING:
    from vizsla.score.scores import Figure, Scores

POOLING_TYPES = {"gem": "GeM", "gap": "GAP", "max": "Max", "cls": "CLS", "native": "internal"}
_DIGITS = 6  # of scores in a result file
_NAMED = 10  # how many classes a note names


def table_lines(scores: "Scores") -> list[str]:
    """The known figures, aligned: metric, value, interval, how many queries it divides by."""
    rows = [_row(key, figure) for key, figure in scores.known.items() if is_shown(scores, key)]
    percent = f"{100 * scores.settings.confidence:g} % interval"
    header = ("metric", "value", percent, "queries", "with the other denominator")
    width = 5 if any(row[4] for row in rows) else 4
    return Table(list(header[:width]), [list(row[:width]) for row in rows]).lines()


def notes(scores: "Scores") -> list[str]:
    """What a reader of the numbers must know: what was left out, what is unknown, and why."""
    found = [
        *doubts(scores), _unknown_note(scores), *_left_out_notes(scores), _reach_note(scores)
    ]  # fmt: skip
    zero = scores.zero_classes()
    if zero:
        found.append(
            f"{_count(len(zero), 'class has', 'classes have')} no hit in the first {scores.top_k} "
            f"of any query: {_listed(zero)}"
        )
    return [note for note in found if note]


def doubts(scores: "Scores") -> list[str]:
    """Why the labels may be none: names that were misread give 0, or 1, whatever the ranking."""
    labels = sorted({label for label in scores.columns["label"] if label is not None})
    if not labels:  # judgements, no labels
        return []
    found, known = np.isfinite(scores.first_ranks), scores.n_relevant >= 0
    shown = _listed(labels, 3)
    if known.all() and not scores.answerable.any():
        if len(labels) == len(scores) > 1:
            how = "every query has a label of its own"
        else:
            how = "no gallery image carries the label of any query"
        return [f"there is nothing to find: {how} ({shown}). Are these labels?"]
    if not found.any() and not known.any():
        seen = sorted({label for label in scores.first_labels if label is not None})
        return [
            f"not one right image in {_count(len(scores), 'list', 'lists')}: queries are labelled "
            f"{shown}, the images found first {_listed(seen, 3)}. Are these labels of one kind?"
        ]
    key = f"precision@{scores.top_k}"
    if len(labels) == 1 and len(scores) > 1 and key in scores.metrics and scores.mean(key) == 1:
        return [
            f"all {len(scores)} queries and all that was found carry the one label {labels[0]}, so "
            "any ranking is right. Is it a label?"
        ]
    return []


def figure_dict(figure: "Figure") -> dict[str, Any]:
    """A figure for JSON; `unknown` and the other mean only where there are such."""
    interval = None if figure.low is None else [figure.low, figure.high]
    entry: dict[str, Any] = {"mean": figure.mean, "interval": interval, "queries": figure.n}
    if figure.other_mean is not None:
        entry |= {"other_mean": figure.other_mean, "other_queries": figure.other_n}
    if figure.unknown:
        entry["unknown"] = figure.unknown
    return entry


def result_record(
    scores: "Scores | None",
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


def relevant_counts(scores: "Scores") -> tuple[int, int] | None:
    """Fewest and most relevant images of the queries that have any; None where unknown."""
    counts = scores.n_relevant[scores.n_relevant > 0]
    return None if len(counts) == 0 else (int(counts.min()), int(counts.max()))


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def _our_keys(scores: "Scores | None") -> dict[str, Any]:
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
        "notes": notes(scores),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), _DIGITS)


def is_shown(scores: "Scores", key: str) -> bool:
    """At k = 1 all metrics are one; AP@k and MRR@k stand in where mAP and MRR are unknown."""
    kind, _, k = key.partition("@")
    if kind == "top_k_accuracy" or not k:
        return True
    deepest = max(int(other.partition("@")[2]) for other in scores.known if f"{kind}@" in other)
    if kind == "ap":
        return scores.mean("map") is None and int(k) == deepest
    if kind == "mrr":
        return scores.mean("mrr") is None and int(k) == deepest
    return int(k) > 1


def _row(key: str, figure: "Figure") -> tuple[str, str, str, str, str]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}" if "points" in key else f"{value:.4f}"

    interval = f"[{number(figure.low)}, {number(figure.high)}]" if figure.low is not None else ""
    other = f"{number(figure.other_mean)} of {figure.other_n}" if figure.other_n else ""
    return figure.title, number(figure.mean), interval, str(figure.n), other


def _unknown_note(scores: "Scores") -> str:
    reasons: dict[str, list[str]] = {}
    for figure in scores.figures.values():
        if figure.unknown:
            reasons.setdefault(figure.unknown, []).append(figure.title)
    parts = [f"{', '.join(_merged(titles))} ({reason})" for reason, titles in reasons.items()]
    return f"not known: {'; '.join(parts)}" if parts else ""


def _merged(titles: Sequence[str]) -> list[str]:
    """recall@1, recall@5, mAP → recall@1,5 and mAP."""
    cutoffs: dict[str, list[str]] = {}
    for title in titles:
        kind, _, k = title.partition("@")
        cutoffs.setdefault(kind, []).extend([k] if k else [])
    return [kind + ("@" + ",".join(ks) if ks else "") for kind, ks in cutoffs.items()]


def _left_out_notes(scores: "Scores") -> list[str]:
    empty = scores.with_nothing_relevant or 0
    return [
        _said(
            empty,
            "query has nothing relevant in the gallery: wrong in top-k accuracy and contest "
            "points, left out of the other means",
            "queries have nothing relevant in the gallery: wrong in top-k accuracy and contest "
            "points, left out of the other means",
        ),
        _said(
            scores.lacking,
            "query of the truth is not in the ranking: counted as wrong",
            "queries of the truth are not in the ranking: counted as wrong",
        ),
        _said(
            scores.unlabelled,
            "query has no label: left out of everything",
            "queries have no label: left out of everything",
        ),
        _said(
            scores.unlabelled_gallery,
            "gallery image has no label: counted as wrong",
            "gallery images have no label: counted as wrong",
        ),
    ]


def _reach_note(scores: "Scores") -> str:
    """k beyond what a class allows: then precision@k measures the data, not the model."""
    counts = scores.n_relevant[scores.n_relevant > 0]
    few = int((counts < scores.top_k).sum())
    if not few:
        return ""
    best = np.minimum(counts, scores.top_k).mean() / scores.top_k
    return (
        f"{_count(few, 'query has', 'queries have')} fewer than {scores.top_k} relevant images "
        f"(the fewest: {counts.min()}), so precision@{scores.top_k} can reach {best:.4f} at most"
    )


def _said(n: int, one: str, many: str) -> str:
    return _count(n, one, many) if n else ""


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def _listed(names: Sequence[str], most: int = _NAMED) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
