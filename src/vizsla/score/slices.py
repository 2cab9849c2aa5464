"""Scores → tables of slices, of mistaken classes and of single queries. Computes no metric."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vizsla import storage
from vizsla.errors import UsageError
from vizsla.score.scores import Scores
from vizsla.score.tables import Table, to_csv


def slice_table(scores: Scores, column: str, n: int | None = None) -> Table:
    """A row for each value of a column, the worst first: queries, main metrics, and an interval.

    n: only the n worst. The interval is that of the metric that the rows are sorted by.
    """
    key = scores.headline
    keys = dict.fromkeys(
        [key, "top_k_accuracy@1", f"top_k_accuracy@{scores.top_k}", f"precision@{scores.top_k}",
         "contest_points"]
    )  # fmt: skip
    shown = [k for k in keys if k in scores.metrics and scores.mean(k) is not None]
    parts = sorted(scores.by(column).items(), key=lambda part: _worst_first(part[1].mean(key)))
    rows = []
    for value, part in parts[:n]:
        low, high = _interval(part, key)
        rows.append([value, len(part), *(part.mean(k) for k in shown), low, high])
    titles = [scores.metrics[k].title for k in shown]
    percent = f"{100 * scores.settings.confidence:g} %"
    of = scores.metrics[key].title
    return Table([column, "queries", *titles, f"{of} {percent} low", f"{of} {percent} high"], rows)


def confusion_table(scores: Scores, n: int = 10) -> Table:
    """The n most frequent wrong pairs: the query's class, that of its first image, how often."""
    sizes = Counter(scores.columns["label"])
    rows = [
        [label, first, count, count / sizes[label]] for label, first, count in scores.confused(n)
    ]
    return Table(["class", "first image is of", "queries", "share of the class"], rows)


def query_table(scores: Scores) -> Table:
    """A row for each query: its columns, what there is to find, its first hit, and every metric.

    A value that is unknown, or that the mean leaves out, is None.
    """
    first = [int(rank) if np.isfinite(rank) else None for rank in scores.first_ranks]
    columns: dict[str, list[Any]] = {
        "query": list(scores.queries),
        **scores.columns,
        "n_relevant": [int(n) if n >= 0 else None for n in scores.n_relevant],
        "first_hit_rank": first,
        "first_image_label": list(scores.first_labels),
        **{key: scores.per_query(key) for key in scores.metrics},
    }
    rows = zip(*columns.values(), strict=True)
    return Table(list(columns), [list(row) for row in rows])


def write_queries(scores: Scores, path: str | Path) -> None:
    """query_table as CSV or Parquet, by the file's extension."""
    path = Path(path)
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise UsageError(f"{path}: the values of all queries are written as {', '.join(WRITERS)}")
    writer(path, query_table(scores))


def _write_csv(path: Path, table: Table) -> None:
    storage.write_text(path, to_csv(table))


def _write_parquet(path: Path, table: Table) -> None:
    import pyarrow as pa

    columns = {name: [row[i] for row in table.rows] for i, name in enumerate(table.columns)}
    made = pa.table(
        {name: pa.array(values, _kind(name, table)) for name, values in columns.items()}
    )
    storage.write_table(path, made)


def _kind(name: str, table: Table) -> Any:
    """The type of a column, also of one without any value."""
    import pyarrow as pa

    if name in ("n_relevant", "first_hit_rank"):
        return pa.int64()
    metrics = table.columns[table.columns.index("first_image_label") + 1 :]
    return pa.float64() if name in metrics else pa.string()


WRITERS: dict[str, Callable[[Path, Table], None]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}


def _worst_first(mean: float | None) -> tuple[bool, float]:
    return mean is None, mean or 0.0


def _interval(part: Scores, key: str) -> tuple[float | None, float | None]:
    """The interval of this one metric: all of them would take long for many slices."""
    figure = dataclasses.replace(part, metrics={key: part.metrics[key]})[key]
    return figure.low, figure.high
