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
from vizsla.score.compare import Comparison
from vizsla.score.result_file import SCORES
from vizsla.score.text_table import Table

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
    found.filters["breakable"] = lambda text: escape(text).replace("_", Markup("_<wbr>"))
    found.filters["code"] = _with_code
    return found


def _with_code(text: str) -> Markup:
    """The text as HTML, what stands between `backticks` as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


@functools.cache
def _resource(name: str) -> str:
    return resources.files("vizsla.output").joinpath("templates", name).read_text("utf-8")


# ── pages of tables ──────────────────────────────────────────────────────────────────────────────


def comparison_page(comparison: Comparison, by: Sequence[str], *, sort: str | None = None) -> str:
    """The page of `vizsla compare`: averages of groups of runs, remarks, single runs."""
    averages, single = comparison.grouped(by, sort=sort), comparison.single()
    first = ["model_name", *SCORES]
    sections = [
        _table_section("averages", "Averages", averages, first=first),
        _remarks_section(*comparison.remarks()),
        _table_section("runs", "Single runs", single, first=first, keep=["run_id", "source"]),
    ]
    return render_page("tables.html", "Results compared", sections)


def differences_page(differences: Table, sentences: Sequence[str]) -> str:
    """The page of `vizsla compare` for pairs of systems."""
    interval = [name for name in differences.columns if name.startswith(("low", "high"))]
    sections = [
        _remarks_section([], sentences, title="In words"),
        _table_section(
            "differences",
            "Differences",
            differences,
            first=["metric", "A", "B", "A − B", *interval, "verdict"],
            keep=differences.columns,
        ),
    ]
    return render_page("tables.html", "Systems compared", sections)


def sweep_page(runs: Table, alarms: Sequence[str], notes: Sequence[str]) -> str:
    """The page of `vizsla sweep`."""
    first = ["model", "top-1", "top-k", "precision@k", "mAP"]
    sections = [
        _table_section("runs", "Runs", runs, first=first, keep=["run"]),
        _remarks_section(alarms, notes),
    ]
    return render_page("tables.html", "Sweep", sections)


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
    alarms: Sequence[str], notes: Sequence[str], *, title: str = "Remarks"
) -> Section:
    content = {"alarms": alarms, "notes": notes} if alarms or notes else None
    return Section("remarks", title, content, view="lines")


# ── images ─────────────────────────────────────────────────────────────────────────────────────


def thumbnail(file: Path, *, max_pixels: int = MAX_PIXELS) -> Thumbnail:
    """The image of a file, at most THUMBNAIL px on its longer side."""
    try:
        image = read_image(file, max_pixels=max_pixels, at_least=THUMBNAIL)
    except ImageError as error:
        return Thumbnail(problem=str(error))
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return Thumbnail(data_uri(image, quality=70), *image.size)


def data_uri(image: Image.Image, *, quality: int = 75) -> str:
    """The image as a WebP in a `data:` address."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
