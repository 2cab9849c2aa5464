"""Many result files → one table, and warnings about values that cannot be true.

Reads the contest's result files, whoever wrote them. Nothing is averaged across data
sets or cut-offs. Per-query values are compared by paired_tests.py.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vizsla.errors import DataError, StorageError, UsageError
from vizsla.notebook import Shown, Summary, counted, data_frame
from vizsla.score.result_file import (
    COSTS,
    COUNTS,
    FROZEN,
    OPTION,
    SCORES,
    SETTINGS,
    TEXTS,
    WITH_TRUTH,
    Result,
    read_result,
    without_unknown_zeros,
)
from vizsla.score.text_table import Table

log = logging.getLogger("vizsla.compare")

GROUPS = ("model_name", "is_finetuned", "pooling_type")
NEVER_ACROSS = ("top_k", "num_classes", "data")  # always part of a group
FINETUNE = f"{OPTION}finetune"  # the one option that every training has
TRAININGS = ("loss", "epochs", FINETUNE)
LAST_RESORT = ("training_images", "embedder")  # shown only if runs differ in nothing else
COUNT = " runs"  # ends the name of a column: how many runs have the mean before it
_SHOWN = 3  # files that one remark names
SATURATED = 0.99  # from here on, equal scores say nothing
_CHANCE = 0.01  # how near to ln C a loss is at chance


@dataclass(frozen=True)
class Flag:
    """A remark on some results. alarm: they cannot be true; otherwise it is a note."""

    sources: tuple[str, ...]
    text: str
    alarm: bool = True


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """All results that could be read; `damaged` holds (file, reason) of the others."""

    results: list[Result]
    damaged: list[tuple[str, str]] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)

    def summary(self) -> Summary:
        """The number of results; averages over groups of runs, and the remarks."""
        alarms, notes = self.remarks()
        facts = [counted(len(self.results), "result")]
        facts += [counted(len(alarms), "alarm")] * bool(alarms)
        table = self.grouped()
        remarks = [*alarms, *notes]
        return Summary("Comparison", facts, table.columns, table.rows, notes=remarks)

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each run."""
        table = self.single()
        columns = zip(table.columns, zip(*table.rows, strict=True), strict=True)
        return data_frame({name: list(cells) for name, cells in columns})

    def grouped(self, by: Sequence[str] = GROUPS, *, sort: str | None = None) -> Table:
        """Averages over groups of runs, never across NEVER_ACROSS, whatever `by` says.

        by, sort: any key of any of the files; one that the table lacks becomes a column. By default
        nothing is averaged across SETTINGS either. A mean that only some runs of a row have is
        followed by a column with their number.
        """
        differ = self._settings_that_differ() if tuple(by) == GROUPS else []
        keys = [*by, *differ, *(key for key in NEVER_ACROSS if key not in by)]
        self._check_keys(keys, "group by")
        groups: dict[tuple[Any, ...], list[Result]] = {}
        for result in self.results:
            groups.setdefault(tuple(result.value(key) for key in keys), []).append(result)
        averaged = [*SCORES, *COSTS, *self._one_more(sort, [*keys, "runs", *SCORES, *COSTS])]
        means = [part for name in averaged for part in _with_count(name, list(groups.values()))]
        columns = [*keys, "runs", *means]
        rows = [
            [*key, len(members), *(_group_cell(members, name) for name in means)]
            for key, members in groups.items()
        ]
        table = self._sorted(Table(columns, rows), sort, first=keys)
        return _without_empty(table, keep=keys)

    def single(self, *, sort: str | None = None) -> Table:
        """A table with one row for each run."""
        keys = ["run_id", *GROUPS, *NEVER_ACROSS, "num_epochs"]
        differ = self._settings_that_differ()
        columns = [*GROUPS, *differ, *SCORES, *COSTS, *NEVER_ACROSS]
        columns += ["num_epochs", "run_id", "source"]
        columns += self._one_more(sort, columns)
        rows = [
            [r.source if key == "source" else r.value(key) for key in columns] for r in self.results
        ]
        table = self._sorted(Table(columns, rows), sort, first=["source"])
        return _without_empty(table, keep=[*keys, "source"])

    def remarks(self) -> tuple[list[str], list[str]]:
        """(alarms, notes): results that cannot be true; other remarks, damaged files included."""
        files: dict[tuple[bool, str], list[str]] = {}
        for flag in self.flags:  # one remark for all files that it is true of
            files.setdefault((flag.alarm, flag.text), []).append(", ".join(flag.sources))

        def line(text: str, names: list[str]) -> str:
            n = len(self.results)
            every = "both results" if n == 2 else f"all {n} results"
            return f"{every if len(set(names)) == n > 1 else _few(names)}: {text}"

        alarms = [line(text, names) for (alarm, text), names in files.items() if alarm]
        notes = [line(text, names) for (alarm, text), names in files.items() if not alarm]
        return alarms, [*notes, *(f"{file} was skipped: {why}" for file, why in self.damaged)]

    def to_dict(self, by: Sequence[str] = GROUPS, *, sort: str | None = None) -> dict[str, Any]:
        """Groups, runs, flags and damaged files, ready for JSON."""
        return {
            "groups": self.grouped(by, sort=sort).records(),
            "runs": self.single().records(),
            "flags": [
                {"sources": list(f.sources), "alarm": f.alarm, "text": f.text} for f in self.flags
            ],
            "damaged": [{"source": file, "reason": why} for file, why in self.damaged],
        }

    def _settings_that_differ(self) -> list[str]:
        """The keys, beside GROUPS, in which runs of one group differ.

        How a model was trained is one of them only if runs do not differ in what was kept.
        """
        found = [key for key in SETTINGS if self._differs(key, self.results)]
        trained = [r for r in self.results if FINETUNE in r.more]
        options = {key for r in trained for key in r.more if key.startswith(OPTION)} - {FINETUNE}
        settings = tuple(found)
        found += [key for key in TRAININGS if self._differs(key, self.results, settings)]
        found += [key for key in sorted(options) if self._differs(key, trained, settings)]
        for key in LAST_RESORT:
            found += [key] if self._differs(key, self.results, tuple(found)) else []
        return found

    def _differs(self, key: str, results: Sequence[Result], also: Sequence[str] = ()) -> bool:
        """Whether results of one group, by GROUPS and `also`, have several values of this key."""
        groups: dict[tuple[Any, ...], set[Any]] = {}
        for result in results:
            at = tuple(result.value(k) for k in (*GROUPS, *NEVER_ACROSS, *also))
            groups.setdefault(at, set()).add(result.value(key))
        return any(len(values) > 1 for values in groups.values())

    def _check_keys(self, keys: Sequence[str], what: str) -> None:
        known = dict.fromkeys((*TEXTS, *COUNTS, *COSTS, "is_finetuned", "data", *SETTINGS,
                               *TRAININGS, *LAST_RESORT))  # fmt: skip
        for result in self.results:
            known |= dict.fromkeys([*result.scores, *result.more])
        for key in keys:
            if key not in known:
                raise UsageError(f"cannot {what} {key!r}: choose among {', '.join(known)}")

    def _one_more(self, sort: str | None, columns: Sequence[str]) -> list[str]:
        """The key to sort by, if no column has it yet."""
        if sort is None or sort in columns:
            return []
        self._check_keys([sort], "sort by")
        return [sort]

    def _sorted(self, table: Table, sort: str | None, *, first: Sequence[str]) -> Table:
        """By `sort`: scores from the highest, all else from the lowest, unknown last."""
        order = [table.columns.index(key) for key in first]
        rows = sorted(table.rows, key=lambda row: [_sort_key(row[i]) for i in order])
        if sort is not None:
            is_score = sort in SCORES or any(sort in result.scores for result in self.results)
            column, sign = table.columns.index(sort), -1 if is_score else 1
            rows = sorted(rows, key=lambda row: _sort_key(row[column], sign))
        return Table(table.columns, rows)


def read_results(paths: Sequence[str | Path]) -> Comparison:
    """Reads result files, or folders of them. Warns of files that cannot be used, and skips them.

    DataError: none of them can be used.
    """
    results: list[Result] = []
    damaged: list[tuple[str, str]] = []
    for path in _files(paths):
        try:
            results.append(read_result(path))
        except (DataError, StorageError) as error:
            log.warning("%s was skipped: %s", path, error)
            damaged.append((path.name, str(error)))
    if not results:
        raise DataError(
            f"none of the {len(damaged)} files holds results: expected the metrics files that "
            f"`vizsla run` writes into results/. {WITH_TRUTH}"
        )
    checked = [without_unknown_zeros(result) for result in results]
    results = [result for result, _ in checked]
    flags = [Flag((result.source,), note) for result, note in checked if note]
    return Comparison(results, damaged, flags + find_flags(results))


def _files(paths: Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.glob("*.json") if not p.name.startswith("."))
            if not inside:
                raise DataError(f"{path} holds no .json files: expected a folder of results")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"there is no {path}: expected a folder of results, or a result file")
    return found


# ── what cannot be true ──────────────────────────────────────────────────────────────────────────


def find_flags(results: Sequence[Result]) -> list[Flag]:
    """Remarks on scores and losses that cannot be right, alarms first."""
    found = [flag for result in results for flag in _flags_of(result)]
    for tuned in results:
        if tuned.values["is_finetuned"]:
            found += _twin_flags(tuned, [r for r in results if _is_frozen_twin(r, tuned)])
    return sorted(found, key=lambda flag: not flag.alarm)


def _flags_of(result: Result) -> list[Flag]:
    flags = []
    loss, classes = result.values["final_train_loss"], result.values["num_classes"]
    name = (result.values["loss_function"] or "crossentropy").lower()
    if loss is not None and classes and classes > 1 and "crossentropy" in name.replace("_", ""):
        chance = math.log(classes)
        if abs(loss - chance) <= _CHANCE * chance:
            text = f"final_train_loss {loss:.4f} is at chance (ln {classes} = {chance:.4f}): "
            flags.append(Flag((result.source,), text + "nothing was learned"))
    for key in SCORES:
        score = result.scores.get(key)
        if score is not None and not 0 <= score <= 1:
            flags.append(Flag((result.source,), f"{key} {score:g} is not between 0 and 1"))
    k, fewest = result.values["top_k"], result.values["fewest_relevant"]
    if k and fewest and k > fewest:
        images = "1 relevant image" if fewest == 1 else f"{fewest} relevant images"
        text = f"some query has only {images}, so precision@{k} cannot reach 1"
        flags.append(Flag((result.source,), text, alarm=False))
    return flags


def _is_frozen_twin(other: Result, tuned: Result) -> bool:
    """The same model, pooling, cut-off and data, not fine-tuned. Unknown classes may be any."""
    same = ("pooling_type", "top_k", "data_id")
    classes = {other.values["num_classes"], tuned.values["num_classes"]} - {None}
    return (
        other.values["is_finetuned"] is False
        and other.value("kept") in (None, FROZEN)
        and other.model == tuned.model
        and all(other.values[key] == tuned.values[key] for key in same)
        and len(classes) < 2
    )


def _twin_flags(tuned: Result, twins: Sequence[Result]) -> list[Flag]:
    """Equal scores of a tuned run and its frozen twins; twins with the same scores as one."""
    alike: dict[tuple[tuple[str, float], ...], list[Result]] = {}
    for twin in twins:
        alike.setdefault(tuple(sorted(twin.scores.items())), []).append(twin)
    flags = []
    for scores, members in alike.items():
        shared = {key: value for key, value in scores if key in tuned.scores}
        equal = {key: value for key, value in shared.items() if tuned.scores[key] == value}
        sources = (tuned.source, *(member.source for member in members))
        main = {key: equal[key] for key in SCORES if key in equal} or equal
        listed = ", ".join(f"{key} ({value:g})" for key, value in main.items())
        if equal and len(equal) == len(shared):
            more = f" and {len(equal) - len(main)} more" if len(equal) > len(main) else ""
            ceiling = all(value == 1 for value in main.values())
            ending = "both may be at the top" if ceiling else "was anything trained?"
            text = f"tuned and frozen have the same scores, {listed}{more}: {ending}"
            flags.append(Flag(sources, text, alarm=not ceiling))
        elif any(main.get(key, 1) < SATURATED for key in SCORES):  # others are equal by chance
            others = ", ".join(
                f"{key} ({tuned.scores[key]:g}, {shared[key]:g})"
                for key in SCORES
                if key in shared and key not in equal
            )
            but = f"but not {others}" if others else "but not the others"
            text = f"tuned and frozen share {listed}, {but}"
            flags.append(Flag(sources, text, alarm=False))
    return flags


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


def _with_count(name: str, groups: Sequence[Sequence[Result]]) -> list[str]:
    """The column of a mean and, if a row has fewer values than runs, one with their number."""
    lacking = [0 < _group_cell(members, name + COUNT) < len(members) for members in groups]
    return [name, name + COUNT] if any(lacking) else [name]


def _group_cell(members: Sequence[Result], name: str) -> Any:
    """A group's cell in a column of means, or of how many runs a mean is of."""
    if name.endswith(COUNT):
        key = name.removesuffix(COUNT)
        return sum(member.value(key) is not None for member in members)
    return _mean(members, name)


def _mean(members: Sequence[Result], key: str) -> Any:
    """The mean of numbers; of other values the one that all have, None if they differ."""
    known = [value for value in (member.value(key) for member in members) if value is not None]
    if any(isinstance(value, bool | str) for value in known):
        return known[0] if len(set(known)) == 1 else None
    return sum(known) / len(known) if known else None


def _sort_key(value: Any, sign: int = 1) -> tuple[int, float, str]:
    if value is None:
        return 1, 0.0, ""
    return (0, sign * value, "") if isinstance(value, int | float) else (0, 0.0, str(value))


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _without_empty(table: Table, *, keep: Sequence[str]) -> Table:
    """Without the columns that have no value, except those in `keep`; `data` goes in any case."""
    shown = [
        i
        for i, name in enumerate(table.columns)
        if (name in keep and name != "data") or any(row[i] is not None for row in table.rows)
    ]
    return Table([table.columns[i] for i in shown], [[row[i] for i in shown] for row in table.rows])
