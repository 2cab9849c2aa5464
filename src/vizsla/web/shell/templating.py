"""What every server shows in one way: templates, CSV, and errors as a page or as JSON."""

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.staticfiles import StaticFiles

SHELL = Path(__file__).parent
Shown = Callable[[Request, int, str, Mapping[str, str] | None], Response]


def templates(room: Path, *, title: str, start_page: str) -> jinja2.Environment:
    """The templates of a room's folder, and those of the shell that every room shares.

    All values are escaped, and a missing variable is an error. title: of every page. start_page:
    what the link back from an error page is called.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([room / "templates", SHELL / "templates"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "many": many,
        "sentence": lambda text: text[:1].upper() + text[1:],
        "path": quoted_path,
    }
    environment.globals |= {"title": title, "start_page": start_page, "up": ""}
    return environment


def many(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def quoted_path(name: str) -> str:
    """An id as part of an address: only its slashes stay."""
    return quote(name, safe="/")


def path_below(request: Request) -> str:
    """The path below the prefix at which the application is mounted."""
    return request.url.path.removeprefix(request.scope.get("root_path", "").rstrip("/"))


def wants_page(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")


class StaticFolder(StaticFiles):
    """A room's static files and the shell's; browsers keep them and ask each time for changes."""

    def __init__(self, room: Path) -> None:
        super().__init__(directory=room / "static")
        self.all_directories.append(SHELL / "static")

    def file_response(self, *args: Any, **more: Any) -> Response:
        response = super().file_response(*args, **more)
        response.headers["cache-control"] = "no-cache"
        return response


def answer_errors(
    app: FastAPI, shown: Shown, hint: Callable[[Request], str] = lambda _: ""
) -> None:
    """Every error in one form, as `shown` gives it. Never a trace.

    hint: what to add where an address takes another method.
    """

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = {
            404: "there is nothing here",
            405: "this address takes another method" + hint(request),
        }.get(error.status_code, "the request could not be answered")
        headers = error.headers
        if error.status_code == 405:
            headers = {"Allow": ", ".join(sorted(_methods(app, request)))}
        return shown(request, error.status_code, message, headers)

    async def invalid(request: Request, error: Exception) -> Response:
        return shown(request, 422, "the address holds something that is no number", None)

    async def broken(request: Request, error: Exception) -> Response:
        close = {"connection": "close"}  # as uvicorn does after an exception
        return shown(request, 500, "the server failed; who runs it can see why", close)

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, broken)


def _methods(app: FastAPI, request: Request) -> set[str]:
    """That an address takes; Starlette names those of the first of its routes alone."""
    known = [route for route in app.routes if hasattr(route, "methods")]
    fits = [route.path for route in known if route.matches(request.scope)[0] != Match.NONE]  # type: ignore[attr-defined]
    return {m for route in known if route.path == fits[0] for m in route.methods} if fits else set()  # type: ignore[attr-defined]


def to_csv(records: list[dict[str, Any]], *, columns: list[str]) -> str:
    """A header and one line a record.

    A text that a spreadsheet would take for a formula gets a quote before it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    for record in records:
        writer.writerow([_harmless(record[column]) for column in columns])
    return text.getvalue()


def _harmless(value: Any) -> Any:
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value
