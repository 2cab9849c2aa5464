"""Scores → tables of slices, of mistaken classes and of single queries. Computes no metric."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vizsla import storage
from vizsla.errors import UsageError
from vizsla.score.scores import Scores
from vizsla.score.text_table import Table, to_csv

if TYPE_CHECKING:
    import pyarrow as pa


def slice_table(scores: Scores, column: str, n: int | None = None) -> Table:
    """A row for each value of a column, the worst first: queries, main metrics, and an interval.

    n: only the n worst. The interval is that of the metric that the rows are sorted by.
    """
    computed = [k for k, metric in scores.pooled.items() if metric.saved is None]
    pooled = [k for k in scores.chosen if k in computed]
    key = next((k for k in scores.chosen[:1] if k in pooled), scores.headline)
    keys = dict.fromkeys(
        [key, *pooled, "top_k_accuracy@1", f"top_k_accuracy@{scores.top_k}",
         f"precision@{scores.top_k}", "contest_points"]
    )  # fmt: skip
    known = {*scores.metrics, *pooled}
    shown = [k for k in keys if k in known and scores.mean(k) is not None]
    parts = [(part.mean(key), value, part) for value, part in scores.by(column).items()]
    parts.sort(key=lambda entry: (entry[0] is None, entry[0] or 0.0))
    rows = []
    for _, value, part in parts[:n]:
        # the interval of this one metric: those of all would take long for many slices
        one = {key: part.metrics[key]} if key in part.metrics else {}
        of_all = {key: part.pooled[key]} if key in part.pooled else {}
        figure = dataclasses.replace(part, metrics=one, pooled=of_all)[key]
        means = [part.mean(k) for k in shown]
        rows.append([value, len(part), *means, figure.low, figure.high])
    titles = [scores.title(k) for k in shown]
    percent = f"{100 * scores.settings.confidence:g} %"
    of = scores.title(key)
    return Table([column, "queries", *titles, f"{of} {percent} low", f"{of} {percent} high"], rows)


def confusion_table(scores: Scores, n: int = 10) -> Table:
    """The n most frequent wrong pairs: the query's class, that of its first image, how often."""
    sizes = Counter(scores.columns["label"])
    rows = [
        [label, first, count, count / sizes[label]] for label, first, count in scores.confused(n)
    ]
    return Table(["class", "class at rank 1", "queries", "share of the class"], rows)


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
    """Writes query_table as CSV or Parquet, by the file's extension. UsageError: another one."""
    path, table = Path(path), query_table(scores)
    kind = path.suffix.lower()
    if kind == ".csv":
        storage.write_text(path, to_csv(table))
    elif kind == ".parquet":
        storage.write_table(path, _arrow_table(table, numbers=set(scores.metrics)))
    else:
        raise UsageError(f"{path}: the values of all queries are written as .csv or .parquet")


def _arrow_table(table: Table, numbers: set[str]) -> "pa.Table":
    """A query_table with the type of each column, even of one that has no value."""
    import pyarrow as pa

    types = dict.fromkeys(table.columns, pa.string())
    types |= dict.fromkeys(numbers, pa.float64())
    types |= {"n_relevant": pa.int64(), "first_hit_rank": pa.int64()}
    return pa.table(
        {
            name: pa.array([row[i] for row in table.rows], types[name])
            for i, name in enumerate(table.columns)
        }
    )
