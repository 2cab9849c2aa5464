"""A table of values, a row for each query, as papers publish and `--per-query` writes → Scores."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from vizsla.data.table_files import TABLES, read_rows
from vizsla.errors import DataError, UsageError
from vizsla.score.figures import Metric
from vizsla.score.grade_table import GradeTable
from vizsla.score.metrics.metric_names import MetricName
from vizsla.score.metrics.named_metrics import OVER_ALL
from vizsla.score.scores import Scores

_OTHERS = ("rank", "gallery", "image")  # columns of rankings and judgements


def is_per_query_table(path: str | Path) -> bool:
    """Whether it is a table with a column `query` and one that is called like a metric."""
    path = Path(path)
    if path.suffix.lower() not in TABLES or not path.is_file():
        return False
    try:
        names = [name.lower() for name in read_rows(path).column_names]
    except DataError:
        return False
    return "query" in names and not {*_OTHERS} & {*names} and any(map(_metric, names))


def read_per_query_table(path: str | Path, *, known: Collection[str] = ()) -> Scores:
    """The scores of the queries in a table; the metrics by their written names and as they stand.

    known: the names of the queries, which the table may write without extension or in another
    spelling. An empty value, or nan, says that a query is left out of the mean. DataError: a query
    occurs twice, or none of the metrics has numbers.
    """
    table = read_rows(path)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    queries = [str(query) for query in columns[_named(columns, "query")]]
    if known:
        queries = GradeTable({"": {query: {} for query in queries}}).named_as(known).queries
    if len({*queries}) != len(queries):
        raise DataError(f"{path} has a query twice among its {len(queries)} rows: keep one each")
    metrics: dict[str, Metric] = {}
    written: list[str] = []
    answerable = np.zeros(len(queries), bool)
    for column, values in columns.items():
        name = _metric(column)
        if name is None or any(isinstance(value, str | bool) for value in values):
            continue
        numbers = np.array([np.nan if value is None else float(value) for value in values])
        over_all = name.kind in OVER_ALL
        answerable |= np.isfinite(numbers) & (not over_all)
        highest = max(1.0, float(np.nanmax(numbers, initial=0)))
        written.append(str(name))
        for key in dict.fromkeys((column, str(name))):
            metrics[key] = Metric(key, np.nan_to_num(numbers), over_all, highest)
    if not metrics:
        raise DataError(f"{path} has no metric with numbers for its queries")
    if not answerable.any():
        answerable[:] = True
    unknown = np.full(len(queries), -1)
    return Scores(
        queries, metrics, top_k=1, answerable=answerable, n_relevant=unknown,
        first_ranks=np.full(len(queries), np.inf), first_labels=[None] * len(queries),
        columns={"label": [None] * len(queries)}, chosen=tuple(dict.fromkeys(written)),
    )  # fmt: skip


def _named(columns: dict[str, list[object]], wanted: str) -> str:
    return next(name for name in columns if name.lower() == wanted)


def _metric(column: str) -> MetricName | None:
    try:
        found = MetricName.parse(column)
    except UsageError:
        return None
    return None if found.is_pooled else found
