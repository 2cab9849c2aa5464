"""One or two runs and their truth → a page of all queries, side by side, to be sorted and filtered.

Without JavaScript all queries are shown, the ones that changed or are worst first.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vizsla.errors import DataError
from vizsla.output.pages import Section, Thumbnail, render_page, thumbnail
from vizsla.output.report_page import KINDS, ReportData
from vizsla.progress import Report, reported
from vizsla.score.paired_tests import check_same_truth
from vizsla.score.relevance import verdicts
from vizsla.score.result_file import read_result
from vizsla.score.run_table import row_of_result
from vizsla.score.scores import Scores

DRAWING = "drawing queries"  # the stage of the work
SHOWN = 5  # results of a query
SIDE = 96  # px of a picture
PICTURES = 5000  # in a page; of more the rest are named only
# kinds of queries, in the order that needs no script; the last three without a truth
ORDER = ("worse", "better", "wrong", "right", "none", "other", "same", "alone")


class Pictures:
    """Each image once: its number, by which the page's style holds it."""

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        self.number_of: dict[Path, int] = {}
        self.found: list[Thumbnail] = []

    def number(self, file: Path) -> int | None:
        """None if the file cannot be read, or if the page holds PICTURES already."""
        if file not in self.number_of:
            if len(self.found) >= PICTURES:
                return None
            self.number_of[file] = len(self.found)
            self.found.append(thumbnail(file, max_pixels=self.max_pixels, side=SIDE))
        at = self.number_of[file]
        return None if self.found[at].problem else at


def queries_page(runs: Sequence[ReportData], *, progress: Report | None = None) -> str:
    """The page of one or two runs as text. DataError if their truth differs.

    If the truth of one is not known, queries are sorted by whether their first images are the same.
    """
    scores = [run.scores for run in runs if run.scores is not None and run.truth is not None]
    is_judged = len(scores) == len(runs)
    if is_judged and len(runs) == 2:
        check_same_truth(runs[0].run.id, scores[0], runs[1].run.id, scores[1])
    pictures = Pictures(runs[0].max_pixels)
    rows = (
        _rows(runs, scores, pictures, progress)
        if is_judged
        else _unjudged_rows(runs, pictures, progress)
    )
    kinds = [row["kind"] for row in rows]
    names = [_name(run) for run in runs]
    marked = [f"{mark}: {name}" for mark, name in zip("AB", names, strict=False)]
    counts = {kind: kinds.count(kind) for kind in ORDER}
    content = {
        "rows": rows,
        "names": names,
        "counts": {**counts, "all": len(rows), "changed": counts["better"] + counts["worse"]},
        "measure": _measure(scores[0])[1] if is_judged else "",
        "judged": is_judged,
        "classes": sorted({row["label"] for row in rows if row["label"]}),
        "pictures": [(i, one.source) for i, one in enumerate(pictures.found) if one.source],
        "many": len(pictures.found) >= PICTURES,
    }
    return render_page(
        "queries.html",
        " and ".join(dict.fromkeys(run.name for run in runs)) + ": all queries",
        [Section("queries", "Queries", content)],
        subtitle=[f"{len(rows)} queries", *marked],
        script="queries.js",
    )


def _name(run: ReportData) -> str:
    """The model, what was tuned and refined, and the run's id."""
    if run.run.result_file is None:
        return f"{run.name} ({run.run.id})"
    row = row_of_result(read_result(run.run.result_file), with_queries=False)
    return f"{row.model} {row.setup} ({run.run.id})"


def _measure(scores: Scores) -> tuple[str, str]:
    """(key, title) of what a query is judged by beside its first image."""
    key = scores.headline
    return key, "AP" if key == "map" else scores.metrics[key].title


def _rows(
    runs: Sequence[ReportData],
    scores: Sequence[Scores],
    pictures: Pictures,
    progress: Report | None,
) -> list[dict[str, Any]]:
    """A row for each query, in the order that needs no script: changed, wrong, right, and those
    with nothing relevant in the gallery."""
    key, _ = _measure(scores[0])
    digits = 3 if scores[0].metrics[key].highest == 1 else 1
    places = [{name: i for i, name in enumerate(one.queries)} for one in scores]
    values = [one.per_query(key) for one in scores]
    lists = [{name: i for i, name in enumerate(run.ranking.queries)} for run in runs]
    kinds = [_kinds_of_images(run) for run in runs]
    rows = []
    for query in reported(scores[0].queries, DRAWING, progress):
        at = [place[query] for place in places]
        right = [bool(one.first_ranks[i] == 1) for one, i in zip(scores, at, strict=True)]
        found = [value[i] for value, i in zip(values, at, strict=True)]
        rows.append({
            "query": query,
            "label": scores[0].columns["label"][at[0]],
            "picture": pictures.number(runs[0].data.query.root / query),
            "kind": _kind(right) if scores[0].answerable[at[0]] else "none",
            "values": found,
            "change": (found[1] or 0.0) - (found[0] or 0.0) if len(found) == 2 else 0.0,
            "sides": [
                {
                    "tiles": _tiles(run, kinds[n], lists[n].get(query), pictures),
                    "first": _first_right(scores[n].first_ranks[at[n]]),
                    "value": "not known" if found[n] is None else f"{found[n]:.{digits}f}",
                }
                for n, run in enumerate(runs)
            ],
        })  # fmt: skip
    return sorted(rows, key=lambda row: (ORDER.index(row["kind"]), row["values"][0] or 0.0))


def _unjudged_rows(
    runs: Sequence[ReportData], pictures: Pictures, progress: Report | None
) -> list[dict[str, Any]]:
    """A row for each query, those with another first image in the second run first; then by how
    many of the first SHOWN images are in both. DataError if the runs have no query in common."""
    places = [{name: i for i, name in enumerate(run.ranking.queries)} for run in runs]
    queries = [name for name in runs[0].ranking.queries if all(name in place for place in places)]
    if not queries:
        raise DataError(f"{runs[0].run.folder} and {runs[1].run.folder} have no query in common")
    rows = []
    for query in reported(queries, DRAWING, progress):
        found = [
            run.ranking.row(place[query])[:SHOWN] for run, place in zip(runs, places, strict=True)
        ]
        shared = len(set(found[0]).intersection(found[-1]))
        same = found[0][:1] == found[-1][:1]
        rows.append({
            "query": query,
            "label": None,
            "picture": pictures.number(runs[0].data.query.root / query),
            "kind": "alone" if len(runs) == 1 else "same" if same else "other",
            "values": [float(shared)] * len(runs),
            "change": 0.0,
            "sides": [
                {
                    "tiles": _tiles(run, [[""] * SHOWN] * len(place), place[query], pictures),
                    "first": f"{shared} of {len(row)} in both" if len(runs) == 2 else "",
                    "value": "",
                }
                for run, place, row in zip(runs, places, found, strict=True)
            ],
        })  # fmt: skip
    return sorted(rows, key=lambda row: (ORDER.index(row["kind"]), row["values"][0]))


def _kind(right: Sequence[bool]) -> str:
    """right or wrong in all runs; better or worse in the second one."""
    if all(right) or not any(right):
        return "right" if right[0] else "wrong"
    return "better" if right[1] else "worse"


def _kinds_of_images(run: ReportData) -> list[list[str]]:
    """Of the first images of each query: right, wrong or junk; "" if that is not known."""
    if run.truth is None:
        return [[""] * SHOWN] * len(run.ranking)
    found = verdicts(run.ranking, run.truth, SHOWN)
    return [[KINDS.get(int(verdict), "") for verdict in row] for row in found]


def _tiles(
    run: ReportData, kinds: Sequence[Sequence[str]], row: int | None, pictures: Pictures
) -> list[dict[str, Any]]:
    """The first images of a query in one run; junk takes no rank."""
    if row is None:
        return []
    tiles: list[dict[str, Any]] = []
    rank = 0
    for name, kind in zip(run.ranking.row(row)[:SHOWN], kinds[row], strict=False):
        rank += kind != "junk"
        tiles.append({
            "kind": kind,
            "rank": "" if kind == "junk" else rank,
            "id": name,
            "label": (run.truth and run.truth.gallery.get(name)) or Path(name).name,
            "picture": pictures.number(run.data.gallery.root / name),
        })  # fmt: skip
    return tiles


def _first_right(rank: float) -> str:
    return f"first right at rank {int(rank)}" if np.isfinite(rank) else "none right"
