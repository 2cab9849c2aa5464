"""Values → self-contained HTML pages, by the Jinja templates of this package.

A page needs no network and no other file: style, script and images are inside it.
"""

import base64
import functools
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from vizsla.data.images import MAX_PIXELS, read_image
from vizsla.errors import ImageError
from vizsla.notebook import counted
from vizsla.score.compare import Comparison
from vizsla.score.paired_tests import (
    Difference,
    correction_note,
    differences_table,
    in_words,
)
from vizsla.score.run_table import RunTable
from vizsla.score.text_table import Table
from vizsla.score.validation_scores import HEADING, validation_table

THUMBNAIL = 150  # px, the longer side
LONG_CELL = 20  # characters from which a cell with spaces may take several lines


@dataclass(frozen=True)
class Section:
    """A part of a page. view: the template's macro that shows `content`."""

    key: str
    title: str
    content: Any
    view: str = ""


@dataclass(frozen=True)
class Thumbnail:
    """A small image inside a page, or the problem for which there is none."""

    source: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


def render_page(
    template: str,
    title: str,
    sections: Sequence[Section],
    *,
    subtitle: Sequence[str] = (),
    script: str = "",
    **context: Any,
) -> str:
    """The whole page as text. Sections without content are left out.

    script: the file name of a script in the folder of the templates; no other script can run.
    """
    code = _resource(script) if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    policy += f"script-src 'sha256-{digest}'; " if script else ""
    shown = [
        {"key": part.key, "title": part.title, "content": part.content,
         "view": part.view or part.key}
        for part in sections
        if part.content
    ]  # fmt: skip
    return (
        _environment()
        .get_template(template)
        .render(
            title=title,
            subtitle=subtitle,
            sections=shown,
            linked={part["key"] for part in shown},
            style=Markup(_resource("report.css")),
            script=Markup(code),
            policy=Markup(policy + "base-uri 'none'; form-action 'none'"),
            **context,
        )
    )


def render(template: str, **context: Any) -> Markup:
    """A part of a page."""
    return Markup(_environment().get_template(template).render(**context))


def template_environment(*folders: Path) -> Environment:
    """The templates of these folders, the first that has one: all values are escaped.

    An unknown name is an error.
    """
    return Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@functools.cache
def _environment() -> Environment:
    found = template_environment(Path(__file__).parent / "templates")
    found.filters["breakable"] = breakable
    found.filters["code"] = _with_code
    return found


_BREAKS = re.compile(r"(?<=\w{2}[_/-])(?<!\d{6}-)(?=[^_/-]{2})|(?<=[a-z]{3})(?=[A-Z][a-z])")


def breakable(name: str) -> Markup:
    """The name as HTML that may be broken into lines after `_`, `-` and `/`, and in camelCase.

    The id of a run stays whole.
    """
    parts = re.split(_BREAKS, str(name))
    return Markup("<wbr>").join(parts)


def _with_code(text: str) -> Markup:
    """The text as HTML, what stands between `backticks` as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


@functools.cache
def _resource(name: str) -> str:
    return resources.files("vizsla.output").joinpath("templates", name).read_text("utf-8")


# ── pages of tables ──────────────────────────────────────────────────────────────────────────────


def comparison_page(
    ranked: RunTable | None,
    comparison: Comparison | None = None,
    remarks: tuple[Sequence[str], Sequence[str]] = ((), ()),
    *,
    more: Sequence[str] = (),
    differences: Sequence[Difference] = (),
    title: str = "Runs compared",
) -> str:
    """The page of `compare` and `sweep`: scores of the best, all runs, pairs, remarks, settings.

    comparison: where the rows are from, if from results. remarks: (alarms, notes). more: keys of
    further metrics to show.
    """
    sections, (alarms, notes) = [], remarks
    if ranked is not None:
        notes = [*ranked.notes(), *notes]
        sections = [] if ranked.is_validated_only else [_runs_section(ranked, more)]
        if runs := ranked.validated():
            table, how = validation_table(runs, ranked.metric)
            sections += [
                _table_section("validation", HEADING.strip(":"), table, keep=table.columns),
                _remarks_section([], how, key="validated", title="How validated"),
            ]
    if differences:
        pairs = differences_table(differences)
        interval = [name for name in pairs.columns if name.startswith(("low", "high"))]
        first = ["metric", "A", "B", "A − B", *interval, "verdict"]
        sections += [
            _remarks_section([], [*map(in_words, differences), correction_note(differences)],
                             key="words", title="Pairs in words"),
            _table_section("pairs", "Pairs", pairs, first=first, keep=pairs.columns),
        ]  # fmt: skip
    sections.append(_remarks_section(alarms, notes))
    if ranked is not None and comparison is not None:
        settings, first = comparison.single(sort=ranked.metric), ["run_id", "model_name"]
        sections.append(
            _table_section("settings", "All settings", settings, first=first, keep=["source"])
        )
    subtitle = [f"{len(ranked.rows)} runs"] if ranked else []
    subtitle += [f"the best is {ranked.rows[0].run}"] if ranked and ranked.has_scores else []
    headline = _best_scores(ranked) if ranked and ranked.has_scores else []
    return render_page("tables.html", title, sections, subtitle=subtitle, headline=headline)


def _runs_section(ranked: RunTable, more: Sequence[str]) -> Section:
    table = ranked.table(more)
    about = ("run", "model", "data", "k", "time", "vs best")
    scores = [name for name in table.columns if name not in about]
    title = "Runs, the best first" if ranked.has_scores else "Runs"
    first = ["model", *scores, "vs best"]
    return _table_section("runs", title, table, first=first, keep=table.columns)


def steps_page(table: Table, notes: Sequence[str], best: str) -> str:
    """The page of `best`: what was tried, in order, and what was kept. best: in words."""
    first = [name for name in ("step", "what", "verdict") if name in table.columns]
    tried = _table_section("steps", "What was tried", table, first=first, keep=table.columns)
    sections = [tried] if table.rows else []
    return render_page(
        "tables.html", "The best ranking", [*sections, _remarks_section([], notes)],
        subtitle=[best, counted(len(table.rows), "step")], headline=[],
    )  # fmt: skip


def _best_scores(ranked: RunTable) -> list[tuple[str, str, str]]:
    """(title, value, whose) of the main scores of the best run."""
    best = ranked.rows[0]
    table = ranked.table()
    texts = dict(zip(table.columns, table.texts()[0], strict=True))
    left_out = ("run", "model", "data", "k", "vs best")
    name = f"{best.model} {best.setup}".strip()
    return [(title, text, name) for title, text in texts.items() if title not in left_out]


def _table_section(
    key: str, title: str, table: Table, *, first: Sequence[str] = (), keep: Sequence[str] = ()
) -> Section:
    """first: columns to move to the left, in this order.

    A column with one value is stated above the table instead, unless it is in `first` or `keep`.
    """
    first = [name for name in first if name in table.columns]
    table = table.select([*first, *(name for name in table.columns if name not in first)])
    same, table = table.without_constant_columns(keep=[*first, *keep])
    texts = table.texts()
    columns = range(len(table.columns))
    content = {
        "label": title,
        "same": [f"{name} {text}" for name, text in same.items()],
        "columns": table.columns,
        "rows": texts,
        "numbers": [i for i in columns if table.is_number(i)],
        "long": [
            i for i in columns if any(" " in row[i] and len(row[i]) > LONG_CELL for row in texts)
        ],
    }
    return Section(key, title, content, view="table")


def _remarks_section(
    alarms: Sequence[str], notes: Sequence[str], *, key: str = "remarks", title: str = "Remarks"
) -> Section:
    content = {"alarms": alarms, "notes": notes} if alarms or notes else None
    return Section(key, title, content, view="lines")


# ── images ─────────────────────────────────────────────────────────────────────────────────────


def thumbnail(file: Path, *, max_pixels: int = MAX_PIXELS, side: int = THUMBNAIL) -> Thumbnail:
    """The image of a file, at most `side` px on its longer side."""
    try:
        image = read_image(file, max_pixels=max_pixels, at_least=side)
    except ImageError as error:
        return Thumbnail(problem=str(error))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return Thumbnail(data_uri(image, quality=70), *image.size)


def data_uri(image: Image.Image, *, quality: int = 75) -> str:
    """The image as a WebP in a `data:` address."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
