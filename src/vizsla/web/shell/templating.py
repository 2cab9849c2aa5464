"""What the pages of all servers share: templates, addresses, and tables as CSV."""

import csv
import io
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from starlette.requests import Request

from vizsla.output.pages import template_environment

SHELL = Path(__file__).parent


def templates(room: Path, *, title: str, start_page: str) -> jinja2.Environment:
    """The templates of a room's folder, and those of the shell that every room shares.

    All values are escaped, and a missing variable is an error. title: of every page. start_page:
    what the link back from an error page is called.
    """
    environment = template_environment(room / "templates", SHELL / "templates")
    environment.filters |= {
        "many": many,
        "sentence": lambda text: text[:1].upper() + text[1:],
        "path": quoted_path,
    }
    environment.globals |= {"title": title, "start_page": start_page, "up": ""}
    return environment


def many(count: int, noun: str, plural: str | None = None) -> str:
    """The count with its noun: "1 image", "1,200 images"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def quoted_path(name: str) -> str:
    """An id as part of an address; slashes stay slashes."""
    return quote(name, safe="/")


def path_below(request: Request) -> str:
    """The path below the prefix at which the application is mounted."""
    return request.url.path.removeprefix(request.scope.get("root_path", "").rstrip("/"))


def wants_page(request: Request) -> bool:
    """Whether a browser asks, and not a program."""
    return "text/html" in request.headers.get("accept", "")


def to_csv(records: list[dict[str, Any]], *, columns: list[str]) -> str:
    """CSV with a header line. A quote is put before a text that spreadsheets take for a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    for record in records:
        writer.writerow([_not_a_formula(record[column]) for column in columns])
    return text.getvalue()


def _not_a_formula(value: Any) -> Any:
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value
