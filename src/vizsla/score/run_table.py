"""Results → one table, the best first, with one row a run and whether it is surely below the best.

What was tuned and refined is said in a few words. Pairs of systems are for paired_tests.py.
"""

import contextlib
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vizsla.errors import DataError, StorageError, UsageError
from vizsla.notebook import Shown, Summary, counted
from vizsla.options import TrainConfig
from vizsla.score.paired_tests import (
    LEVEL,
    NO_DIFFERENCE,
    Differences,
    can_be_tested,
    check_same_truth,
    compare_systems,
    differences_table,
)
from vizsla.score.result_file import FROZEN, OPTION, Result, read_result
from vizsla.score.scores import Scores
from vizsla.score.text_table import Table
from vizsla.score.validation_scores import (
    HOW,
    KEYS,
    ValidatedRun,
    ValidationScores,
    validation_lines,
    validation_table,
)
from vizsla.workspace import Run

# heading → the key in a result file
HEADINGS = {
    **KEYS, "top-k": "top_k_accuracy", "P@k": "precision_at_k", "judge": "judge_score"
}  # fmt: skip
TIME = "runtime_seconds"
LOSS = next(f.default for f in dataclasses.fields(TrainConfig) if f.name == "loss")
FEW = 4  # metrics, beside which there is room for times and whole run ids
WHOLE = ("run",)  # columns that a narrow terminal does not fold
BEST, BELOW = "best", "below"


@dataclass(frozen=True, eq=False)
class Row:
    """One run or ranking. means: score → its mean. scores: of every query, if they are at hand.

    chosen: the metrics that were asked for by name, or that the protocol has. validation: of the
    run, on held-out training images. can_validate: whether there were labelled ones.
    """

    run: str
    model: str
    setup: str = ""
    means: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    data: str | None = None
    top_k: int | None = None
    scores: Scores | None = None
    chosen: tuple[str, ...] = ()
    validation: ValidationScores | None = None
    can_validate: bool = False

    @property
    def model_and_setup(self) -> str | None:
        """As one text with places to break it."""
        return f"{self.model.replace('+', ' + ')} {self.setup}".strip() or None

    def value(self, key: str) -> float | None:
        """A mean, or the seconds of the run; None if it is not known."""
        return self.seconds if key == TIME else self.means.get(key)

    def interval(self, key: str) -> tuple[float, float] | None:
        """The ends of a mean's interval; None if the values of the queries are not at hand."""
        figure = self.scores.figures.get(per_query_key(self.scores, key)) if self.scores else None
        if figure is None or figure.low is None or figure.high is None:
            return None
        return figure.low, figure.high


@dataclass(frozen=True, eq=False, repr=False)
class RunTable(Shown):
    """rows: by data set, then the best first by `metric`. verdicts: of each row, by a test.

    pairs: the difference of every two rows. averages: of runs that share some keys. Both only if
    they were asked for.
    """

    rows: list[Row]
    metric: str
    verdicts: list[str | None]
    pairs: Differences | None = None
    averages: Table | None = None

    def summary(self) -> Summary:
        """How many runs, and the best."""
        if self.is_validated_only:
            table, notes = validation_table(self.validated(), self.metric)
            facts = [counted(len(self.rows), "run"), f"best on validation {table.rows[0][0]}"]
            return Summary("Comparison", facts, table.columns, table.rows, notes=notes)
        best = self.rows[0]
        value = best.value(self.metric)
        score = "" if value is None else f"{title_of(self.metric)} {written(self.metric, value, 3)}"
        about = ", ".join(filter(None, (best.model, score)))
        table = self.table()
        facts = [counted(len(self.rows), "run"), f"best {best.run}" + (about and f" ({about})")]
        return Summary("Comparison", facts, table.columns, table.rows)

    def text(self) -> str:
        """The table, a row for each run; of averages, if there are any; and that of pairs."""
        shown = self.averages or (None if self.is_validated_only else self.table())
        parts = [shown.text()] if shown else []
        parts += [differences_table(self.pairs).text()] if self.pairs else []
        parts += ["\n".join(validation_lines(self.validated(), self.metric))]
        return "\n\n".join(filter(None, parts))

    def table(self, more: Sequence[str] = (), *, intervals: bool = False) -> Table:
        """The known columns of every row; `more` adds metrics by their keys.

        intervals: means are texts such as `0.412 [0.350, 0.470]`.
        """
        main = [title for title in KEYS if self._knows(HEADINGS[title])]
        usual = [HEADINGS[t] for t in (main if len(main) > 1 else [*main, "top-k", "P@k"])]
        [chosen, *others] = {row.chosen for row in self.rows}
        if any({*row.chosen} & {self.metric, *more} for row in self.rows):
            usual = [] if others else list(chosen)  # the usual metrics are not those of a protocol
        keys = dict.fromkeys([*usual, HEADINGS["judge"], self.metric, *more])
        keys.pop(TIME, None)
        shown = [key for key in keys if self._knows(key)]
        several = {
            "data": len({row.data for row in self.rows}) > 1,
            "k": len({row.top_k for row in self.rows}) > 1,
        }
        columns = [
            "run", "model", *(name for name, differ in several.items() if differ),
            *(title_of(key) for key in shown), "time", "vs best",
        ]  # fmt: skip
        rows = []
        short = {data: str(data).partition(" (")[0] for data in {row.data for row in self.rows}}
        is_clear = len({*short.values()}) == len(short)
        for row, verdict in zip(self.rows, self.verdicts, strict=True):
            data = short[row.data] if is_clear and row.data else row.data
            about = {"data": data, "k": row.top_k}
            means = [_with_interval(row, key) if intervals else row.value(key) for key in shown]
            kept = [about[name] for name, differ in several.items() if differ]
            rows.append(
                [row.run, row.model_and_setup, *kept, *means, short_time(row.seconds), verdict]
            )
        known = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]
        rows = [[row[i] for i in known] for row in rows]
        return Table([columns[i] for i in known], rows, digits=3)

    def validated(self) -> list[ValidatedRun]:
        """The runs with scores on held-out training images; with them, where no run has scores of
        the test part, all others."""
        if not any(row.validation for row in self.rows):
            return []
        return [
            ValidatedRun(row.run, row.model_and_setup, short_time(row.seconds), row.validation)
            for row in self.rows
            if row.validation or not self.has_scores
        ]

    @property
    def is_validated_only(self) -> bool:
        """Whether the scores of validation are the only ones."""
        return not self.has_scores and bool(self.validated())

    @property
    def has_scores(self) -> bool:
        """Whether some row has a score of the test part."""
        return any(row.means for row in self.rows)

    def notes(self) -> list[str]:
        """How to read the table."""
        if not self.has_scores:
            found = ["no labels of the test part were known, so it has no scores; `vizsla submit` "
                     "records a judge's"]  # fmt: skip
            if not self.validated() and all(row.can_validate for row in self.rows):
                found.append(f"for scores on held-out images of training/: {HOW}")
            return found
        if not self._knows(self.metric):
            return []
        order = "shortest first" if self.metric == TIME else "best first"
        found = [f"{order} by {title_of(self.metric)}; --metric chooses another score"]
        if BELOW in self.verdicts or LEVEL in self.verdicts:
            found.append(
                f"{BELOW}: surely worse than the best (Holm's p of all rows at most .05); {LEVEL}: "
                f"{NO_DIFFERENCE}"
            )
        return found

    def records(self) -> list[dict[str, Any]]:
        """One dict a row, for JSON, with every mean."""
        return [
            {"run": row.run, "model": row.model, "setup": row.setup, "data": row.data,
             "top_k": row.top_k, "seconds": row.seconds, "scores": row.means, "vs_best": verdict,
             "validation": row.validation and row.validation.record()}
            for row, verdict in zip(self.rows, self.verdicts, strict=True)
        ]  # fmt: skip

    def _knows(self, key: str) -> bool:
        return any(row.value(key) is not None for row in self.rows)


def run_table(rows: Sequence[Row], metric: str | None = None, *, test: bool = True) -> RunTable:
    """The rows in order, each compared with the best of its data set, query by query.

    metric: a key or a heading; by default the first of the metrics by name if all rows have the
    same, else mAP, or what most rows know. test: whether to compare.
    UsageError for a metric that no row has.
    """
    key = metric_key(rows, metric)
    sign = 1 if key == TIME else -1

    def order(row: Row) -> tuple[str, bool, float, str]:
        value = row.value(key)
        return row.data or "", value is None, sign * (value or 0.0), row.run

    ordered = sorted(rows, key=order)
    verdicts: list[str | None] = []
    for data in dict.fromkeys(row.data for row in ordered):
        same = [row for row in ordered if row.data == data]
        verdicts += _verdicts(same, key) if test and key != TIME else [None] * len(same)
    return RunTable(ordered, key, verdicts)


def pair_differences(
    ranked: RunTable,
    metrics: Sequence[str],
    *,
    cluster: str | None = None,
    only_testable: bool = False,
) -> tuple[Differences, str]:
    """Of every pair of rows whose queries are at hand, the better first; what was not tested.

    metrics: their keys. only_testable: leaves out those that cannot be resampled, and says so.
    UsageError if fewer than two rows have the values of their queries.
    """
    systems = {row.run: row.scores for row in ranked.rows if row.scores is not None}
    if len(systems) < 2:
        raise UsageError(
            f"--pairs compares query by query, and {len(systems)} of {len(ranked.rows)} results "
            "have the values of their queries: give runs (runs/ID), or rankings and their truth"
        )
    first = next(iter(systems.values()))
    keys, untested = [per_query_key(first, key) for key in metrics], []
    if only_testable:
        untested = [k for k in keys if not all(can_be_tested(s, k) for s in systems.values())]
        keys = [key for key in keys if key not in untested]
    found = compare_systems(systems, keys=keys or None, cluster=cluster)
    why = "not known for all, or of more than two million pairs, which are not resampled"
    return found, f"not tested: {', '.join(untested)} ({why})" if untested else ""


def metric_key(rows: Sequence[Row], metric: str | None) -> str:
    """The key of a metric by its key or heading; UsageError with all keys if no row has it."""
    if metric is not None:
        top = re.fullmatch(r"top-(\d+)", metric)
        if any(row.value(metric) is not None for row in rows):
            return metric
        key = f"top_k_accuracy@{top[1]}" if top else HEADINGS.get(metric, metric)
        known = sorted({name for row in rows for name in row.means} | {TIME})
        validated = {name for row in rows if row.validation for name in row.validation.means}
        if key not in validated and not any(row.value(key) is not None for row in rows):
            raise UsageError(f"--metric {metric}: no result has it; choose {', '.join(known)}")
        return key
    [main, *others] = {row.chosen[:1] for row in rows}
    if main and not others:
        return main[0]
    usual = [HEADINGS[title] for title in ("mAP", "top-1", "points", "top-k", "P@k", "judge")]
    counts = {key: sum(row.value(key) is not None for row in rows) for key in usual}
    return max(usual, key=lambda key: counts[key])  # the first of those that most rows have


def row_of_result(result: Result, *, with_queries: bool = True) -> Row:
    """A row of a result file.

    with_queries: reads the scores of its queries from the run's folder, if it is beside results/.
    """
    return Row(
        run=result.values["run_id"] or Path(result.source).stem,
        model=result.model,
        setup=_setup(result),
        means={**result.scores, **_judged(result)},
        seconds=result.values[TIME],
        data=result.data,
        top_k=result.values["top_k"],
        scores=_scores_beside(result) if with_queries else None,
        chosen=tuple(str(result.more.get("shown_metrics", "")).split()),
        validation=result.validation,
        can_validate=bool(result.values["num_classes"]),
    )


def best_so_far(result_path: Path) -> str:
    """The best of all results beside this one that are on its data, by its first metric, as a
    sentence; "" without any score."""
    rows: dict[str, Row] = {}
    own = row_of_result(read_result(result_path))
    for path in result_path.parent.glob("*.json"):
        with contextlib.suppress(DataError, StorageError, UsageError):
            row = row_of_result(read_result(path), with_queries=False)
            known = not own.chosen or row.value(own.chosen[0]) is not None
            if known and (row.data, row.top_k) == (own.data, own.top_k):
                rows[row.run] = row
    ranked = run_table(list(rows.values()), next(iter(own.chosen), None), test=False)
    best, title = ranked.rows[0], title_of(ranked.metric)
    value, here = best.value(ranked.metric), own.value(ranked.metric)
    if value is None:
        return _best_on_validation(own, ranked)
    if best.run == own.run:
        return f"this run ({title} {written(ranked.metric, value)}), of {len(rows)} on this data"
    both = written(ranked.metric, value)
    both += "" if here is None else f", here {written(ranked.metric, here)}"
    return f"{best.run} ({title} {both}): {best.model} {best.setup}"


def _best_on_validation(own: Row, ranked: RunTable) -> str:
    """The best of the runs whose validation is on the same draws, as a sentence; "" without."""
    same = [row for row in ranked.rows if row.validation and own.validation
            and row.validation.id == own.validation.id]  # fmt: skip
    best = max(same, key=lambda row: row.validation.map if row.validation else 0, default=None)
    if len(same) < 2 or best is None or best.validation is None or own.validation is None:
        return ""
    value = f"validation mAP {best.validation.map:.4f}"
    if best.validation.map == own.validation.map:
        return f"this run ({value}), of {len(same)} on the same held-out images"
    return (
        f"{best.run} ({value}, here {own.validation.map:.4f}): {best.model_and_setup}, on the same "
        "held-out images"
    )


def row_of_scores(name: str, scores: Scores, result: Result | None = None) -> Row:
    """A row of a ranking that was scored now. result: of the run that made it."""
    keys = [k for k in (*scores.metrics, *scores.pooled) if scores.mean(k) is not None]
    means = {key: float(scores.mean(key) or 0.0) for key in keys}
    model, setup = ("", "") if result is None else (result.model, _setup(result))
    seconds = None if result is None else result.values[TIME]
    chosen = tuple(key for key in scores.chosen if key in means)
    top_k = scores.top_k if scores.depth else None  # published values are of no ranking
    return Row(name, model, setup, means, seconds, top_k=top_k, scores=scores, chosen=chosen)


def written(key: str, value: float, digits: int = 4) -> str:
    """A value in a sentence; points have two decimals."""
    return f"{value:.{2 if key == 'contest_points' else digits}f}"


def title_of(key: str) -> str:
    """The heading of a column of a metric."""
    for title, known in HEADINGS.items():
        if key == known:
            return title
    return key.replace("top_k_accuracy@", "top-")


def _with_interval(row: Row, key: str) -> str | None:
    """`0.412 [0.350, 0.470]`."""
    mean, ends = row.value(key), row.interval(key)
    if mean is None:
        return None
    digits = 1 if key == "contest_points" else 3
    return f"{mean:.{digits}f}" + (f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]" if ends else "")


def short_time(seconds: float | None) -> str | None:
    """As people say it: 25 s, 12 min, 1.5 h; right-aligned."""
    if seconds is None:
        return None
    text = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f"{text if seconds < 6000 else f'{seconds / 3600:.1f} h':>6}"


def _setup(result: Result) -> str:
    """What was tuned, fitted and refined, in a few words."""
    more, tuned = result.more, result.values["is_finetuned"]
    kept, finetune = more.get("kept"), more.get(f"{OPTION}finetune")
    parts = [result.values["pooling_type"]]
    parts += ["random weights"] if more.get("weights") == "random" else []
    if tuned or kept not in (None, FROZEN):
        parts.append(f"{finetune or 'tuned'}")
        parts += [str(loss)] if (loss := more.get(f"{OPTION}loss")) not in (None, LOSS) else []
    elif finetune:
        parts.append("frozen (kept)")
    epochs = result.values["num_epochs"]
    parts += [f"{epochs} epochs"] if tuned and epochs else []
    whiten, views = more.get("whiten"), more.get("views")
    parts += [f"{whiten} whitening"] if whiten not in (None, "none") else []
    parts += [f"views {views}"] if views else []
    parts += [str(more["fusion"])] if more.get("fusion") else []
    chain = re.sub(r"\([^)]*\)", "", str(more.get("refine") or "none"))
    parts += [chain] if set(chain.split(" | ")) != {"none"} else []
    return ", ".join(str(part) for part in parts if part and part != "internal")


def _run_of(result: Result) -> Run | None:
    """The run that wrote it; its folder need not be there any more."""
    run_id = result.values["run_id"]
    if result.path is None or not run_id:
        return None
    return Run(result.path.absolute().parent.parent, Path(run_id).name)


def _judged(result: Result) -> dict[str, float]:
    """The score that a contest's server gave, under its key; empty if it gave none."""
    run = _run_of(result)
    score = None if run is None else run.judge_score
    return {} if score is None else {HEADINGS["judge"]: score}


def _scores_beside(result: Result) -> Scores | None:
    run = _run_of(result)
    if run is None:
        return None
    file = run.folder / "scores.json"
    try:
        return Scores.load(file) if file.exists() else None
    except (DataError, StorageError, KeyError):  # damaged, or written by another version
        return None


def _verdicts(rows: Sequence[Row], key: str) -> list[str | None]:
    """Of each row, the best first: best, below, level; None where the queries cannot be compared.

    All rows are compared with the best, and the p-values are corrected together.
    """
    if rows[0].scores is None or len(rows) < 2:
        return [None] * len(rows)
    metric = per_query_key(rows[0].scores, key)
    if not can_be_tested(rows[0].scores, metric):
        return [None] * len(rows)
    systems = {"0": rows[0].scores}
    for i, row in enumerate(rows[1:], 1):
        if row.scores is not None and can_be_tested(row.scores, metric):
            try:
                check_same_truth("0", rows[0].scores, str(i), row.scores)
            except DataError:  # judged by another truth
                continue
            systems[str(i)] = row.scores
    if len(systems) < 2:
        return [None] * len(rows)
    found: list[str | None] = [BEST, *[None] * (len(rows) - 1)]
    for difference in compare_systems(systems, keys=[metric], against="0"):
        found[int(difference.b)] = LEVEL if difference.verdict == NO_DIFFERENCE else BELOW
    return found


def per_query_key(scores: Scores, key: str) -> str:
    """The key of a result file as the scores of the queries have it."""
    return {"top_k_accuracy": f"top_k_accuracy@{scores.top_k}",
            "precision_at_k": f"precision@{scores.top_k}"}.get(key, key)  # fmt: skip
