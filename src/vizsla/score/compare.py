"""Many result files → one table, and what in them cannot be true.

Reads the starting document's metrics files, whoever wrote them. Nothing is averaged across data
sets or cut-offs. Knows no per-query values: paired.py compares those.
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.errors import DataError, StorageError, UsageError
from vizsla.score.tables import Table
from vizsla.workspace import canonical_name

log = logging.getLogger("vizsla.compare")

GROUPS = ("model_name", "is_finetuned", "pooling_type")
# Two runs of one group that differ in any of these are more than the same but for the seed.
SETTINGS = ("weights", "weights_file", "image_size", "interpolation", "views", "whiten", "dim",
            "refine", "fusion", "kept")  # fmt: skip
OPTION = "training."  # what the options of a training begin with
FINETUNE = f"{OPTION}finetune"  # the one that every training has
TRAININGS = ("loss", "epochs", FINETUNE)
UNTOLD = ("training_images", "embedder")  # shown only where nothing else tells runs apart
FROZEN = "frozen"
NEVER_ACROSS = ("top_k", "num_classes", "data")  # always part of a group
COUNT = " runs"  # ends the name of the column with how many runs a mean is of
SCORES = ("top_k_accuracy", "precision_at_k", "map")
COSTS = ("final_train_loss", "runtime_seconds")
_TEXTS = ("model_name", "run_id", "loss_function", "pooling_type", "data_name", "data_id",
          "model_id")  # fmt: skip
_COUNTS = ("top_k", "batch_size", "num_classes", "num_epochs", "queries", "gallery_size",
           "fewest_relevant")  # fmt: skip
_SAYS_NOTHING = ("", "none", "null", "nan", "n/a")
_PARQUET = b"PAR1"
_WITH_TRUTH = (
    "Rankings and submissions are compared with their truth: give --labels, --labels-from, --data "
    "or --qrels"
)
_NAMED = 3  # files that one remark names
_ID = 8  # digits of a model_id that a table shows
_CHANCE = 0.01  # how near ln C a loss is at chance


@dataclass(frozen=True, eq=False)
class Result:
    """One metrics file. `values`: its known keys with their types, None where not known.

    scores: every score in it, those of our own `scores` included. more: its other keys with one
    value each, as they are. data: what identifies its data set; None in files that do not say.
    """

    source: str
    values: dict[str, Any]
    scores: dict[str, float]
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return canonical_name(self.values["model_name"])

    @property
    def data(self) -> str | None:
        name, identity = self.values["data_name"], self.values["data_id"]
        return " ".join(filter(None, [name, identity and f"({identity[:8]})"])) or None

    def value(self, key: str) -> Any:
        """A key's value as the tables show it."""
        if key == "model_name":
            return self.model
        if key == "data":
            return self.data
        if key in self.scores:
            return self.scores[key]
        return self.values[key] if key in self.values else self.more.get(key)


@dataclass(frozen=True)
class Flag:
    """What is odd about some results. alarm: it cannot be true; otherwise it is only said."""

    sources: tuple[str, ...]
    text: str
    alarm: bool = True


@dataclass(frozen=True)
class Comparison:
    """All results that could be read; `damaged` holds (file, reason) of the others."""

    results: list[Result]
    damaged: list[tuple[str, str]] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)

    def grouped(self, by: Sequence[str] = GROUPS, *, sort: str | None = None) -> Table:
        """Averages of groups of runs. Never across top_k or data sets, whatever `by` says.

        by, sort: any key of any of the files; one that the table lacks becomes a column. Without
        `by` nothing is averaged across SETTINGS either. A mean that not all runs of its row have
        is followed by a column with how many have it.
        """
        differ = self._settings_that_differ() if tuple(by) == GROUPS else []
        keys = [*by, *differ, *(key for key in NEVER_ACROSS if key not in by)]
        self._check_keys(keys, "group by")
        groups: dict[tuple[Any, ...], list[Result]] = {}
        for result in self.results:
            groups.setdefault(tuple(result.value(key) for key in keys), []).append(result)
        averaged = [*SCORES, *COSTS, *self._one_more(sort, [*keys, "runs", *SCORES, *COSTS])]
        told = [part for name in averaged for part in _with_count(name, list(groups.values()))]
        columns = [*keys, "runs", *told]
        rows = [
            [*key, len(members), *(_told(members, name) for name in told)]
            for key, members in groups.items()
        ]
        table = self._sorted(Table(columns, rows), sort, first=keys)
        return _without_empty(table, keep=keys)

    def single(self, *, sort: str | None = None) -> Table:
        """One row a run."""
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
        """(alarms, notes): what cannot be true; what is only said, damaged files among it."""
        said: dict[tuple[bool, str], list[str]] = {}
        for flag in self.flags:  # the same of many files is said once
            said.setdefault((flag.alarm, flag.text), []).append(", ".join(flag.sources))
        alarms = [f"{_few(names)}: {text}" for (alarm, text), names in said.items() if alarm]
        notes = [f"{_few(names)}: {text}" for (alarm, text), names in said.items() if not alarm]
        return alarms, [*notes, *(f"{file} was passed over: {why}" for file, why in self.damaged)]

    def to_dict(self, by: Sequence[str] = GROUPS, *, sort: str | None = None) -> dict[str, Any]:
        return {
            "groups": self.grouped(by, sort=sort).records(),
            "runs": self.single().records(),
            "flags": [
                {"sources": list(f.sources), "alarm": f.alarm, "text": f.text} for f in self.flags
            ],
            "damaged": [{"source": file, "reason": why} for file, why in self.damaged],
        }

    def _settings_that_differ(self) -> list[str]:
        """Those in which runs differ that are otherwise of one group; how something was trained
        only where what was kept does not tell the runs apart."""
        found = [key for key in SETTINGS if self._differs(key, self.results)]
        trained = [r for r in self.results if FINETUNE in r.more]
        options = {key for r in trained for key in r.more if key.startswith(OPTION)} - {FINETUNE}
        told = tuple(found)
        found += [key for key in TRAININGS if self._differs(key, self.results, told)]
        found += [key for key in sorted(options) if self._differs(key, trained, told)]
        for key in UNTOLD:
            found += [key] if self._differs(key, self.results, tuple(found)) else []
        return found

    def _differs(self, key: str, results: Sequence[Result], also: Sequence[str] = ()) -> bool:
        """Whether it does within a group of these results, `also` among the group's keys."""
        groups: dict[tuple[Any, ...], set[Any]] = {}
        for result in results:
            at = tuple(result.value(k) for k in (*GROUPS, *NEVER_ACROSS, *also))
            groups.setdefault(at, set()).add(result.value(key))
        return any(len(values) > 1 for values in groups.values())

    def _check_keys(self, keys: Sequence[str], what: str) -> None:
        known = dict.fromkeys((*_TEXTS, *_COUNTS, *COSTS, "is_finetuned", "data", *SETTINGS,
                               *TRAININGS, *UNTOLD))  # fmt: skip
        for result in self.results:
            known |= dict.fromkeys([*result.scores, *result.more])
        for key in keys:
            if key not in known:
                raise UsageError(f"cannot {what} {key!r}: choose among {', '.join(known)}")

    def _one_more(self, sort: str | None, columns: Sequence[str]) -> list[str]:
        """The key to sort by, where no column has it yet."""
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
    """From result files, or folders of them. A file that cannot be used is named and passed over.

    Keys may be missing or null, numbers may be texts, and "None" is null.
    """
    results: list[Result] = []
    damaged: list[tuple[str, str]] = []
    for path in _files(paths):
        try:
            results.append(_read(path))
        except (DataError, StorageError) as error:
            log.warning("%s was passed over: %s", path, error)
            damaged.append((path.name, str(error)))
    if not results:
        raise DataError(
            f"none of the {len(damaged)} files holds results: expected the metrics files that "
            f"`vizsla run` writes into results/. {_WITH_TRUTH}"
        )
    zeros = [_without_unknown_zeros(result) for result in results]
    results = [result for result, _ in zeros]
    flags = [flag for _, flag in zeros if flag]
    return Comparison(results, damaged, flags + find_flags(results))


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


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


def _read(path: Path) -> Result:
    data = storage.read_bytes(path)
    if data.startswith(_PARQUET):
        raise UsageError(f"{path} is a Parquet file, such as a ranking. {_WITH_TRUTH}")
    if b"<<<<<<<" in data and b">>>>>>>" in data:
        raise DataError("it holds the marks of a merge that was never resolved (<<<<<<<)")
    try:
        content = storage.read_json(path)
    except StorageError as error:
        raise DataError(str(error).removeprefix(f"{path} ")) from error
    if not isinstance(content, dict):
        raise DataError(f"it holds a {type(content).__name__}, expected one JSON object")
    if not any(key in content for key in ("model_name", *SCORES)):
        raise DataError("it has neither model_name nor a score: it is no result file")
    values: dict[str, Any] = {key: _text(content.get(key)) for key in _TEXTS}
    values |= {key: _count(content.get(key)) for key in _COUNTS}
    values |= {key: _number(content.get(key)) for key in COSTS}
    values["is_finetuned"] = _truth_value(content.get("is_finetuned"))
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
    return Result(path.name, values, scores, {k: v for k, v in more.items() if k not in values})


def _training(content: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """What was trained, kept and with which options; or, of what is fully told, the embedder."""
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
        found["embedder"] = (values["model_id"] or "")[:_ID]
    return {key: value for key, value in found.items() if value not in (None, "")}


def _flat(options: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in options.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{before}{key}.") if inner else {f"{before}{key}": value}
    return {k: v if isinstance(v, str | int | float | bool) else _text(v) for k, v in found.items()}


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _setting(value: Any) -> str | None:
    if isinstance(value, dict):  # what was refined, and why
        value = value.get("chain", _fusion(value))
    if isinstance(value, list):  # an image's size
        value = "×".join(map(str, value))
    of_each = {_text(part) for part in str(value).split(" | ")} if value is not None else {None}
    return None if of_each == {None} else _text(value)


def _fusion(value: dict[str, Any]) -> str | None:
    """The way in which several models were fused, and with which weights."""
    method, weights = value.get("method"), value.get("weights")
    parts = [_text(method), _text(value.get("whiten"))]
    parts += [", ".join(map(str, weights))] if isinstance(weights, list) else []
    return " ".join(part for part in parts if part) or None


def _text(value: Any) -> str | None:
    text = "" if value is None else str(value).strip()
    return None if text.lower() in _SAYS_NOTHING else text


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


def _truth_value(value: Any) -> bool | None:
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(
        str(value).strip().lower()
    )


def _without_unknown_zeros(result: Result) -> tuple[Result, Flag | None]:
    """A score of exactly 0 where nothing says that there was a truth is a score nobody knew."""
    zeros = [key for key, value in result.scores.items() if value == 0]
    if not zeros or result.values["queries"]:
        return result, None
    flag = Flag(
        (result.source,),
        f"{', '.join(zeros)} is exactly 0 and nothing says that the truth was known: "
        "taken as unknown",
    )
    known = {key: value for key, value in result.scores.items() if value != 0}
    return dataclasses.replace(result, scores=known), flag


# ── what cannot be true ──────────────────────────────────────────────────────────────────────────


def find_flags(results: Sequence[Result]) -> list[Flag]:
    """Scores and losses that no honest run gives, alarms first."""
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
        text = (
            f"top_k={k} is more than the {fewest} relevant images that some query has: "
            f"precision@{k} cannot reach 1"
        )
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
        told = ", ".join(f"{key} ({value:g})" for key, value in main.items())
        if equal and len(equal) == len(shared):
            more = f" and {len(equal) - len(main)} more" if len(equal) > len(main) else ""
            ceiling = all(value == 1 for value in main.values())
            ending = "both may be at the top" if ceiling else "was anything trained?"
            text = f"tuned and frozen have the same scores, {told}{more}: {ending}"
            flags.append(Flag(sources, text, alarm=not ceiling))
        elif main.keys() & set(SCORES):  # of few queries some other score is the same by chance
            others = ", ".join(
                f"{key} ({tuned.scores[key]:g}, {shared[key]:g})"
                for key in SCORES
                if key in shared and key not in equal
            )
            but = f"but not {others}" if others else "but not the others"
            text = f"tuned and frozen share {told}, {but}"
            flags.append(Flag(sources, text, alarm=False))
    return flags


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


def _with_count(name: str, groups: Sequence[Sequence[Result]]) -> list[str]:
    """The mean's column, and where some row has fewer values than runs how many it has."""
    lacking = [0 < _told(members, name + COUNT) < len(members) for members in groups]
    return [name, name + COUNT] if any(lacking) else [name]


def _told(members: Sequence[Result], name: str) -> Any:
    """A group's cell in a column of means, or of how many runs a mean is of."""
    if name.endswith(COUNT):
        key = name.removesuffix(COUNT)
        return sum(member.value(key) is not None for member in members)
    return _mean(members, name)


def _mean(members: Sequence[Result], key: str) -> Any:
    """Of numbers; of anything else the one value that all have, None where they differ."""
    known = [value for value in (member.value(key) for member in members) if value is not None]
    if any(isinstance(value, bool | str) for value in known):
        return known[0] if len(set(known)) == 1 else None
    return sum(known) / len(known) if known else None


def _sort_key(value: Any, sign: int = 1) -> tuple[int, float, str]:
    if value is None:
        return 1, 0.0, ""
    return (0, sign * value, "") if isinstance(value, int | float) else (0, 0.0, str(value))


def _without_empty(table: Table, *, keep: Sequence[str]) -> Table:
    """Without the columns that nothing is known of, those of `keep` excepted but `data`."""
    shown = [
        i
        for i, name in enumerate(table.columns)
        if (name in keep and name != "data") or any(row[i] is not None for row in table.rows)
    ]
    return Table([table.columns[i] for i in shown], [[row[i] for i in shown] for row in table.rows])
