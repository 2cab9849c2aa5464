"""A ranking and the columns of its images → a table, CSV or JSON on standard output."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

import typer

from vizsla.cli.console import print_table
from vizsla.errors import DataError, UsageError
from vizsla.option_fields import option, same
from vizsla.options import Printing, ShownColumns

if TYPE_CHECKING:
    import pyarrow as pa

    from vizsla.search.ranking import Ranking

USUAL = ("label", "group")  # columns that are shown if there are such
EVERY = "all"  # as a column: every one that there is
OWN = ("id", "path", "score", "own", "box", "probability", "accepted", "images")  # of a result
BOX = ("x", "y", "w", "h")  # the part of an image that was found
PART = "part x,y,w,h"
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ResultPrinting(ShownColumns, Printing):
    """How the results of a search are printed."""

    show: tuple[str, ...] = same(
        ShownColumns, "show", shown="label and group, else product, sku, …; with --json all",
        help="A column to print of each image, such as price; all: every column. Repeatable.",
    )  # fmt: skip
    as_csv: bool = option(False, "Print the results as CSV.", "Output", "--csv")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.as_csv and self.as_json:
            raise UsageError("--csv and --json: choose one of them")


def shown_columns(
    known: Sequence[str], show: Sequence[str], group_by: str | None, *, every: bool = False
) -> list[str]:
    """The columns to print: those of --show or the usual ones, after the one that groups.

    every: without --show all of them. DataError: there is no such column.
    """
    from vizsla.data.tables import item_column_in, require_columns

    if (every and not show) or (EVERY in show and EVERY not in known):
        show = [*(name for name in show if name != EVERY), *(n for n in known if n not in OWN)]
    require_columns(show, known)
    if taken := [name for name in [*show, group_by] if name in OWN and name is not None]:
        raise DataError(
            f"the column {taken[0]} has the name of a field of the results: rename it in the table"
        )
    names = show or [name for name in USUAL if name in known]
    if not names and (item := item_column_in(known)):
        names = [item]
    return list(dict.fromkeys([*([group_by] if group_by else []), *names]))


def result_rows(
    ranking: "Ranking",
    attributes_of: "Callable[[Sequence[str]], pa.Table]",
    columns: Sequence[str],
) -> dict[str, list[list[Row]]]:
    """Query → its results, best first, each as its images: id, score and these columns.

    A result is one image, or the best ones of a group. The first has the score of the result, its
    own as `own`, with decisions `probability` and `accepted`, and with tiles `box`: x, y, w and h
    of the best one, as fractions of the image.
    """
    assert ranking.scores is not None
    positions, scores = ranking.positions[..., None], ranking.scores[..., None]  # (Q, K, 1)
    if ranking.members is not None and ranking.member_scores is not None:
        positions, scores = ranking.members, ranking.member_scores
    used = sorted({p for p in positions.ravel().tolist() if p >= 0})
    table = attributes_of([ranking.gallery[p] for p in used]).select(list(columns))
    values = table.to_pylist() if columns else [{} for _ in used]
    about = dict(zip(used, values, strict=True))
    found: dict[str, list[list[Row]]] = {}
    for i, query in enumerate(ranking.queries):
        found[query] = rows = []
        for j in range(int(ranking.lengths[i])):
            images = [
                {"id": ranking.gallery[p], "score": score, **about[p]}
                for p, score in zip(positions[i, j].tolist(), scores[i, j].tolist(), strict=True)
                if p >= 0
            ]
            images[0] |= {"own": images[0]["score"], "score": float(ranking.scores[i, j])}
            if ranking.accepted is not None and ranking.probability is not None:
                images[0]["probability"] = float(ranking.probability[i, j])
                images[0]["accepted"] = j < int(ranking.accepted[i])
            if (box := ranking.box(i, j)) is not None:
                images[0]["box"] = box
            rows.append(images)
    return found


def json_rows(results: list[list[Row]], *, grouped: bool) -> list[Row]:
    """One object a result, with its columns; of a group also `images`, all that were asked for."""
    rows = []
    for images in results:
        own = {name: value for name, value in images[0].items() if name not in ("own", "box")}
        row = {name: _plain(value) for name, value in own.items()}
        row |= dict(zip(BOX, images[0].get("box", ()), strict=False))
        members = [
            {"id": one["id"], "score": one.get("own", one["score"]),
             **{name: _plain(one[name]) for name in one if name not in OWN}}
            for one in images
        ]  # fmt: skip
        rows.append({**row, "images": members} if grouped else row)
    return rows


def print_csv(found: dict[str, list[list[Row]]], columns: Sequence[str]) -> None:
    """One line an image: query, rank, id, score, columns. Images of a group share a rank."""
    from vizsla.score.text_table import Table, to_csv

    results = [images for rows in found.values() for images in rows]
    names = [*columns, *(["probability", "accepted"] if _are_decided(results) else [])]
    boxes = BOX if _have_boxes(results) else ()
    rows = [
        [
            query,
            rank,
            row["id"],
            row["score"],
            *(_plain(row.get(name)) for name in names),
            *(row.get("box", [None] * 4) if boxes else ()),
        ]
        for query, results in found.items()
        for rank, images in enumerate(results, 1)
        for row in images
    ]
    typer.echo(to_csv(Table(["query", "rank", "id", "score", *names, *boxes], rows)), nl=False)


def print_results(results: list[list[Row]], columns: Sequence[str]) -> None:
    """A table, folded to the width of a terminal; a line after the last result that is accepted."""
    from vizsla.score.text_table import Table

    if not results:
        typer.echo("nothing was found")
        return
    decided = _are_decided(results)
    width, every = len(str(len(results))), [row for images in results for row in images]
    texts = {name: _texts(every, name) for name in columns}
    wide = max(len(f"{row['score']:.4f}") for row in every)
    rows: list[list[Any]] = []
    is_open = decided
    for rank, images in enumerate(results, 1):
        if is_open and not images[0]["accepted"]:
            is_open = False
            line = "none of these is accepted" if rank == 1 else "accepted up to here"
            rows.append(["", "", "", f"── {line} ──", "", *("" for _ in columns)])
        for place, row in enumerate(images):
            chance = f"{100 * row['probability']:>3.0f} %" if "probability" in row else ""
            first = "" if place else f"{rank:>{width}}"
            score = f"{row['score']:.4f}".rjust(wide)
            part = ",".join(f"{side:.2f}" for side in row.get("box", ()))
            shown = [texts[name][row["id"]] for name in columns]
            rows.append([first, score, chance, row["id"], part, *shown])
    names = ["rank", "score", "right", "image", PART, *columns]
    table = Table(names, rows)
    left_out = [] if decided else ["right"]
    left_out += [] if _have_boxes(results) else [PART]
    print_table(table.select([name for name in names if name not in left_out]), keep=names)


def how_accepted(ranking: "Ranking") -> str:
    """Why a match may be refused whose own estimate is higher than what was asked for."""
    sure, estimate = (ranking.origin["accept"][name] for name in ("sure", "estimate"))
    asked = f"{100 * sure:g} % of the accepted matches are right"
    if estimate is None:
        return f"nothing is accepted: from no estimate on is it sure that {asked}"
    return (
        f"accepted from an estimate of {estimate:.4f}, from which it is sure that {asked};\n"
        "the percentages are estimates of single matches, without that margin"
    )


def _are_decided(results: list[list[Row]]) -> bool:
    """Whether each result is accepted or not."""
    return any("accepted" in images[0] for images in results)


def _have_boxes(results: list[list[Row]]) -> bool:
    """Whether results name the part of the image that was found."""
    return any("box" in images[0] for images in results)


def _plain(value: Any) -> Any:
    """As JSON and CSV have it: days and times as text; a number that is not finite is unknown."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, str | int) else str(value)


def _texts(rows: Sequence[Row], name: str) -> dict[str, str | None]:
    """Id → the value of a column as people read it; numbers end at one place."""
    from vizsla.data.tables import number_format, value_text

    decimal = number_format(row[name] for row in rows)
    found = {
        row["id"]: None if row[name] is None else value_text(row[name], decimal) for row in rows
    }
    if not any(isinstance(row[name], str | bool) for row in rows):
        width = max((len(one) for one in found.values() if one), default=0)
        found = {id: one and one.rjust(width) for id, one in found.items()}
    return found
