"""Ranking ↔ submission files, checked when written and when read. Knows no labels.

`check_submission` is pure; the contest's server uses it too.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from vizsla import storage
from vizsla.data.names import match_names
from vizsla.errors import DataError, UsageError
from vizsla.output.submission_formats import (
    FORMATS,
    Format,
    Lists,
    Scores,
    detect_format,
    kind_of,
    list_offenders,
    quoted,
    text_of,
)
from vizsla.search.ranking import Ranking

# ── the check ───────────────────────────────────────────────────────────────────────────────────


def check_submission(
    lists: Any,
    *,
    queries: Collection[str] | None = None,
    gallery: Collection[str] | None = None,
    k: int | None = None,
) -> list[str]:
    """The faults of {query: [gallery id, …]}, one line for each kind; empty if it is valid.

    lists: anything that JSON can hold. queries: all that must occur. gallery: all names that may
    occur. k: the length of every list. None skips a check; sets are fastest. A name may be both a
    query and a gallery image.
    """
    if not isinstance(lists, Mapping):
        return [f"expected an object {{query: [gallery, …]}}, got {kind_of(lists)}"]
    if not lists:
        return ["it holds no queries"]
    if isinstance(lists.get("model_name"), str):
        return ["it is the result file of a run: the lists are in submissions/sub_….json"]
    found = {"queries that are not strings": [quoted(q) for q in lists if not isinstance(q, str)]}
    if queries is not None:
        wanted = _as_set(queries)
        found["unknown queries"] = [quoted(q) for q in lists if q not in wanted]
        found["missing queries"] = [quoted(q) for q in wanted if q not in lists]
    known = None if gallery is None else _as_set(gallery)
    for query, row in lists.items():
        if (
            type(row) is list
            and set(map(type, row)) <= {str}
            and len({*row, ""}) == len(row) + 1
            and (k is None or len(row) == k)
            and (known is None or all(name in known for name in row))
        ):
            continue
        for kind, what in _row_problems(row, known, k):
            found.setdefault(kind, []).append(f"{quoted(query)} {what}")
    return [list_offenders(kind, offenders) for kind, offenders in found.items() if offenders]


def _row_problems(
    row: Any, known: Collection[str] | None, k: int | None
) -> Iterable[tuple[str, str]]:
    """Yields (kind, what) for each fault of one query's list."""
    if not isinstance(row, list):
        yield "queries without a list of names", f"has {kind_of(row)}"
        return
    others = [name for name in row if not isinstance(name, str)]
    if others:
        yield "lists that hold something other than names", f"holds {kind_of(others[0])}"
        return
    if k is not None and len(row) != k:
        yield f"lists that do not have exactly {k} names", f"has {len(row)}"
    seen: set[str] = set()
    for name in row:
        if name == "":
            yield "empty names", "holds an empty name"
        elif name in seen:
            yield "repeated gallery names", f"repeats {quoted(name)}"
        elif known is not None and name not in known:
            yield "unknown gallery names", f"names {quoted(name)}"
        seen.add(name)


def with_names_of(
    lists: Lists,
    queries: Collection[str] | None,
    gallery: Collection[str] | None,
    *,
    origin: str | None = None,
) -> Lists:
    """The lists with these names for queries and gallery images that they spell in another way.

    See `data.names.match_names`; a name that means none of them, and what is not a name, stay.
    origin: for the report of corrections.
    """

    def spelled(names: Iterable[Any], known: Collection[str] | None, role: str) -> dict[str, str]:
        if known is None:
            return {}
        known = known if isinstance(known, Set | Mapping) else set(known)
        lost = dict.fromkeys(n for n in names if isinstance(n, str) and n not in known)
        found = match_names([*lost], known, roles=[role] * len(lost), origin=origin) if lost else []
        return {name: image for name, image in zip(lost, found, strict=True) if image is not None}

    rows = [row for row in lists.values() if isinstance(row, list)]
    images = spelled((name for row in rows for name in row), gallery, "gallery")
    asked = {
        q: image for q, image in spelled(lists, queries, "query").items() if image not in lists
    }
    if len({*asked.values()}) < len(asked):  # two lists for one query: it is not said which
        asked = {}
    if not images and not asked:
        return lists
    return {
        asked.get(query, query): [
            images.get(name, name) if isinstance(name, str) else name for name in row
        ] if isinstance(row, list) else row
        for query, row in lists.items()
    }  # fmt: skip


def _as_set(names: Collection[str]) -> Collection[str]:
    """The names with fast membership tests, in their order."""
    return names if isinstance(names, Set | Mapping) else dict.fromkeys(names)


def submission_sha256(lists: Mapping[str, Sequence[str]]) -> str:
    """The SHA-256 of the lists; the order of the queries and the file's format do not matter."""
    text = json.dumps(lists, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def write_submission(
    results: Ranking | Mapping[str, Sequence[str]],
    path: str | Path,
    *,
    k: int,
    queries: Sequence[str] | None = None,
    gallery: Collection[str] | None = None,
    format: str = "json",
    only_accepted: bool = False,
    new_label: str | None = None,
) -> None:
    """Checks a submission and writes it. DataError, and no file, if it is not valid.

    A Ranking is cut to its first k images; lists must have exactly k names. With `queries` the file
    follows their order. Only the TREC format keeps scores. only_accepted: lists hold the accepted
    images of a Ranking, k at most. new_label: stands in the list of a query without any.
    UsageError: the format has no place for it, or for an empty list.
    """
    form = _form(format)
    if new_label is not None and not form.new_label:
        raise UsageError(
            f"--new-label {new_label}: the format {format} holds gallery images only; "
            f"{_formats('new_label')} allow it"
        )
    if k < 1:
        raise UsageError(f"k={k}: a submission needs at least one image for each query")
    if only_accepted and isinstance(results, Ranking):
        results = results.only_accepted()
    lists = as_lists(results, k=k)
    scores = _scores_of(results, k)
    if only_accepted:
        lists, scores = _with_new_label(lists, scores, new_label, gallery)
        empty = [query for query, row in lists.items() if not row]
        if empty and not form.empty_lists:
            raise UsageError(
                f"the format {format} has no place for a query without images, and {len(empty)} "
                f"have none ({empty[0]}, …): give --new-label NAME, or one of "
                f"{_formats('empty_lists')}"
            )
        if new_label is not None and gallery is not None:
            gallery = {*gallery, new_label}
    spelled = with_names_of(lists, queries, gallery, origin="the submission")
    if scores is not None:
        scores = dict(zip(spelled, scores.values(), strict=True))
    lists = spelled
    length = None if only_accepted else k
    require_valid(lists, queries=queries, gallery=gallery, k=length, what="the submission")
    if queries is not None:
        lists = {query: lists[query] for query in dict.fromkeys(queries)}
    try:
        data = form.write(lists, scores).encode()
    except UnicodeEncodeError as error:
        bad = error.object[max(0, error.start - 20) : error.end + 20]
        raise DataError(f"the submission holds a name that is not valid text: {bad!a}") from error
    storage.write_bytes(path, data)


def _with_new_label(
    lists: Lists, scores: Scores, new_label: str | None, gallery: Collection[str] | None
) -> tuple[Lists, Scores]:
    """The same with `new_label` alone where a list is empty. UsageError: it is an image's name."""
    if new_label is None:
        return lists, scores
    named = gallery if gallery is not None else {name for row in lists.values() for name in row}
    if new_label in named:
        raise UsageError(f"--new-label {new_label} is also a gallery image: choose another name")
    if scores is not None:
        scores = {query: scores[query] if row else [0.0] for query, row in lists.items()}
    return {query: row or [new_label] for query, row in lists.items()}, scores


def _formats(allowing: str) -> str:
    """The names of the formats that allow something, such as `new_label`."""
    return ", ".join(name for name, form in FORMATS.items() if getattr(form, allowing))


def as_lists(results: Ranking | Mapping[str, Any], *, k: int | None = None) -> Lists:
    """{query: [gallery id, …]}; tuples and arrays become lists, other values are kept."""
    if isinstance(results, Ranking):
        return results.to_lists(k)
    if not isinstance(results, Mapping):
        raise UsageError(f"expected a Ranking or {{query: [gallery, …]}}, got {kind_of(results)}")
    lists = {}
    for query, row in results.items():
        row = row.tolist() if isinstance(row, np.ndarray) else row
        lists[query] = list(row) if isinstance(row, tuple) else row
    return lists


def require_valid(
    lists: Any,
    *,
    queries: Collection[str] | None = None,
    gallery: Collection[str] | None = None,
    k: int | None = None,
    what: str,
) -> None:
    """Raises DataError with everything that `check_submission` finds, in one line."""
    problems = check_submission(lists, queries=queries, gallery=gallery, k=k)
    if problems:
        raise DataError(f"{what} is not valid: " + "; ".join(problems))


def _scores_of(results: Ranking | Mapping[str, Any], k: int) -> Scores:
    if not isinstance(results, Ranking) or results.scores is None:
        return None
    return dict(zip(results.queries, results.scores[:, :k].tolist(), strict=True))


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def read_submission(
    path: str | Path, format: str = "auto", *, known: Collection[str] = ()
) -> Ranking:
    """The Ranking in a submission file of any format; the size of the gallery is unknown.

    Lists may differ in length. known: names of images; codes such as %20 in them are no codes.
    DataError names the fault and its line.
    """
    try:
        return parse_submission(storage.read_bytes(path), format, known=known)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def parse_submission(data: bytes, format: str = "auto", *, known: Collection[str] = ()) -> Ranking:
    """The Ranking in the content of a submission file; see `read_submission`."""
    text = text_of(data)
    form = FORMATS[detect_format(text)] if format == "auto" else _form(format)
    lists, scores = form.decoded(*form.read(text), known)
    require_valid(lists, what="the submission")
    return Ranking.from_lists(lists, scores)


def _form(format: str) -> Format:
    try:
        return FORMATS[format]
    except KeyError:
        raise UsageError(
            f"unknown submission format {format!r}: choose one of {', '.join(FORMATS)}"
        ) from None
