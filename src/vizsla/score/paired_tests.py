"""Scores of several systems on the same queries → differences that hold, or that may be chance."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vizsla.errors import DataError, UsageError
from vizsla.notebook import Shown, Summary, counted, data_frame
from vizsla.score.intervals import (
    PERMUTATIONS,
    difference_interval,
    holm,
    resampled_difference,
    sign_flip_p,
)
from vizsla.score.scores import Scores
from vizsla.score.text_table import Table
from vizsla.workspace import RUN_ID

NO_DIFFERENCE, LEVEL = "no difference that these queries can show", "level"
# columns of the table that a narrow terminal shows in any case
KEPT = ("metric", "A − B", "verdict")
PER_COMPARISON = 40  # permutations, so that the smallest p, corrected, can reach .025


@dataclass(frozen=True)
class Difference:
    """a minus b in one metric, over the n queries that both are judged by.

    low, high: interval of the difference; those of all `comparisons` that were computed together
    hold together with this confidence (Bonferroni). p: of the sign-flip test, or of the bootstrap
    for a metric with one value for all queries; p_corrected: Holm's, over the same.
    """

    key: str
    title: str
    a: str
    b: str
    mean_a: float
    mean_b: float
    low: float | None
    high: float | None
    p: float
    p_corrected: float
    n: int
    comparisons: int = 1
    confidence: float = 0.95

    @property
    def difference(self) -> float:
        """mean_a - mean_b."""
        return self.mean_a - self.mean_b

    @property
    def verdict(self) -> str:
        """Which system is better by p_corrected, or NO_DIFFERENCE."""
        if self.p_corrected > 1 - self.confidence:
            return NO_DIFFERENCE
        return f"{self.a if self.difference > 0 else self.b} is better"


class Differences(Shown, list[Difference]):
    """The differences of all pairs of systems in all chosen metrics."""

    def summary(self) -> Summary:
        """Each comparison in a row of the table; how the intervals are corrected."""
        table = differences_table(self)
        left_out = ("mean A", "mean B", "p", "queries")
        table = table.select([name for name in table.columns if name not in left_out])
        verdicts = [f"{difference.title}: {difference.verdict}" for difference in self]
        facts = [counted(len(self), "comparison"), *verdicts]
        notes = [correction_note(self)] if self else []
        return Summary("Differences", facts, table.columns, table.rows, notes=notes)

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each comparison."""
        records = [{**asdict(d), "difference": d.difference, "verdict": d.verdict} for d in self]
        return data_frame({key: [row[key] for row in records] for key in records[0]})


def compare_systems(
    systems: Mapping[str, Scores],
    *,
    keys: Sequence[str] | None = None,
    against: str | None = None,
    cluster: str | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Differences:
    """Every pair of systems, metric by metric, on the same queries.

    keys: metrics such as "map"; by default top-k accuracy, and AP or else precision@k. against: the
    name of a system; only pairs of the others with it, in which it is A. cluster:
    "label" to draw and flip whole classes. DataError unless all were judged by the same truth.
    """
    if len(systems) < 2:
        raise UsageError(f"{len(systems)} system: give two or more to compare")
    names = list(systems)
    for other in names[1:]:
        check_same_truth(names[0], systems[names[0]], other, systems[other])
    chosen = _comparable(systems, keys)
    pairs = list(itertools.combinations(names, 2))
    if against is not None:
        pairs = [(against, other) for other in names if other != against]
    wanted = [(key, *pair) for key in chosen for pair in pairs]
    drawn = [
        _difference(
            key, (a, systems[a]), (b, systems[b]), cluster=cluster, comparisons=len(wanted),
            confidence=confidence, seed=seed,
        )
        for key, a, b in wanted
    ]  # fmt: skip
    corrected = holm([entry["p"] for entry in drawn])
    return Differences(
        Difference(**entry, p_corrected=p, comparisons=len(wanted), confidence=confidence)
        for entry, p in zip(drawn, corrected, strict=True)
    )


def differences_table(differences: Sequence[Difference]) -> Table:
    """A row for each difference."""
    columns = ["metric", "A", "B", "mean A", "mean B", "A − B", "low (Bonferroni)",
               "high (Bonferroni)", "p", "p (Holm)", "queries", "verdict"]  # fmt: skip
    rows = [
        [d.title, d.a, d.b, d.mean_a, d.mean_b, d.difference, d.low, d.high, d.p, d.p_corrected,
         d.n, d.verdict]
        for d in differences
    ]  # fmt: skip
    return Table(columns, rows)


def short_table(differences: Sequence[Difference]) -> Table:
    """What a terminal has room for. Of the ids of runs it names the ends, where these differ."""
    names = {name for d in differences for name in (d.a, d.b)}
    ends = {name: f"…{name[-4:]}" if RUN_ID.fullmatch(name) else name for name in names}
    short = ends if len({*ends.values()}) == len(names) else {name: name for name in names}
    rows: list[list[Any]] = []
    for d in differences:
        better = "A better" if d.difference > 0 else "B better"
        verdict = LEVEL if d.verdict == NO_DIFFERENCE else better
        rows.append(
            [d.title, short[d.a], short[d.b], d.difference, d.low, d.high, d.p_corrected, verdict]
        )
    return Table(["metric", "A", "B", "A − B", "low", "high", "p", "verdict"], rows)


def correction_note(differences: Sequence[Difference]) -> str:
    """How to read the intervals and the verdicts: a line below the table."""
    n, confidence = len(differences), differences[0].confidence
    if n == 1:
        return "one comparison, so neither interval nor p-value had to be corrected"
    each = 100 * (1 - (1 - confidence) / n)
    return (
        f"corrected for {n} comparisons: the intervals hold all together with "
        f"{100 * confidence:g} % (each alone with {each:.4g} %, Bonferroni); the verdict goes by "
        "p (Holm)"
    )


def in_words(difference: Difference) -> str:
    """One comparison as a sentence, the better system first."""
    d = difference
    first, second, sign = (d.a, d.b, 1) if d.difference >= 0 else (d.b, d.a, -1)
    ends = sorted(sign * end for end in (d.low, d.high) if end is not None)
    amount = f"{sign * d.difference:.4f}"
    if ends:
        amount += f", {100 * d.confidence:g} % interval {ends[0]:.4f} to {ends[1]:.4f}"
    if d.verdict == NO_DIFFERENCE:
        return f"{d.title}, {first} and {second}: {d.verdict} ({amount})"
    return f"{d.title}: {first} is better than {second} by {amount}"


def check_same_truth(a: str, left: Scores, b: str, right: Scores) -> None:
    """DataError unless both were judged on the same queries by the same truth."""
    only = set(left.queries) ^ set(right.queries)
    if only:
        raise DataError(
            f"{a} and {b} were not judged on the same queries: {len(only)} are in only one of them "
            f"({', '.join(sorted(only)[:3])}): evaluate both with one truth"
        )
    position = {query: i for i, query in enumerate(right.queries)}
    at = [position[query] for query in left.queries]
    labels = zip(left.columns["label"], (right.columns["label"][i] for i in at), strict=True)
    differ = any(None not in pair and pair[0] != pair[1] for pair in labels)
    counts = left.n_relevant, right.n_relevant[at]
    known = (counts[0] >= 0) & (counts[1] >= 0)  # published values do not say
    if differ or (known & (counts[0] != counts[1])).any():
        raise DataError(
            f"{a} and {b} were judged by different truths or galleries, so their scores do not "
            "compare: evaluate both with one truth"
        )


def _comparable(systems: Mapping[str, Scores], keys: Sequence[str] | None) -> list[str]:
    """The metrics that all systems know; DataError for a requested one that is not known."""
    every = list(systems.values())
    if keys is None:
        first = every[0]
        usual = (f"top_k_accuracy@{first.top_k}", "map", f"precision@{first.top_k}")
        known = [key for key in usual if all(_knows(scores, key) for scores in every)]
        return known[:2] or ["contest_points"]
    for key in keys:
        without = [name for name, scores in systems.items() if not _knows(scores, key)]
        if without:
            raise DataError(f"{key} is not known for {', '.join(without)}: choose another metric")
        untested = [name for name, scores in systems.items() if not can_be_tested(scores, key)]
        if untested:
            raise DataError(
                f"{key} of {', '.join(untested)} is one value of all queries and has no resamples "
                "(of more than two million pairs there are none): choose another metric"
            )
    return list(keys)


def _knows(scores: Scores, key: str) -> bool:
    return (key in scores.metrics or key in scores.pooled) and scores.mean(key) is not None


def can_be_tested(scores: Scores, key: str) -> bool:
    """Whether differences in this metric can be tested: it has values of queries, or resamples."""
    return _knows(scores, key) and (key not in scores.pooled or bool(scores.figures[key].draws))


def _difference(
    key: str,
    left: tuple[str, Scores],
    right: tuple[str, Scores],
    *,
    cluster: str | None,
    comparisons: int,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    (a, first), (b, second) = left, right
    if key in first.pooled:
        about = {"key": key, "title": first.title(key), "a": a, "b": b}
        return about | _pooled_difference(
            key, first, second, cluster=cluster, comparisons=comparisons, confidence=confidence,
            seed=seed,
        )  # fmt: skip
    position = {query: i for i, query in enumerate(second.queries)}
    rows = [position[query] for query in first.queries]
    other, metric = second.metrics[key].values[rows], first.metrics[key]
    used = metric.over_all | (first.answerable & second.answerable[rows])
    values = metric.values[used], other[used]
    clusters = None if cluster is None else first.cluster_values(cluster)[used]
    differences = values[0] - values[1]
    interval = difference_interval(
        differences, clusters=clusters, comparisons=comparisons, confidence=confidence, seed=seed
    )
    low, high = interval or (None, None)
    permutations = max(PERMUTATIONS, PER_COMPARISON * comparisons)
    return {
        "key": key,
        "title": metric.title,
        "a": a,
        "b": b,
        "mean_a": float(values[0].mean()),
        "mean_b": float(values[1].mean()),
        "low": low if low is None else max(low, -metric.highest),
        "high": high if high is None else min(high, metric.highest),
        "p": sign_flip_p(differences, clusters=clusters, permutations=permutations, seed=seed),
        "n": int(used.sum()),
    }


def _pooled_difference(
    key: str,
    first: Scores,
    second: Scores,
    *,
    cluster: str | None,
    comparisons: int,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    """By the bootstrap: both systems are computed for the same resamples of the queries."""
    draws = [scores.resampled(key, cluster=cluster, seed=seed) for scores in (first, second)]
    n = min(map(len, draws))  # the first n are of the same queries in both
    means = [float(scores.mean(key) or 0.0) for scores in (first, second)]
    units = first.queries if cluster is None else first.cluster_values(cluster)
    low, high, p = resampled_difference(
        draws[0][:n] - draws[1][:n], means[0] - means[1], units=len(np.unique(units)),
        comparisons=comparisons, confidence=confidence,
    )  # fmt: skip
    return {"mean_a": means[0], "mean_b": means[1], "low": max(low, -1.0), "high": min(high, 1.0),
            "p": p, "n": len(first)}  # fmt: skip
