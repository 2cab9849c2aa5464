"""What all servers share: templates, static files, errors, the page of the API, and CSV."""

import base64
import csv
import hashlib
import importlib.resources
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.staticfiles import StaticFiles

from vizsla.web.shell.http import SECURITY_HEADERS

SHELL = Path(__file__).parent
ErrorAnswer = Callable[[Request, int, str, Mapping[str, str] | None], Response]


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


def add_api_page(app: FastAPI) -> None:
    """Adds /docs: FastAPI's page of the API, with Swagger UI from a package instead of a CDN."""
    page = get_swagger_ui_html(
        openapi_url="./openapi.json",
        title=app.title,
        swagger_js_url="./static/swagger-ui-bundle.js",
        swagger_css_url="./static/swagger-ui.css",
        swagger_favicon_url="./static/house.svg",
    )
    script = re.search(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1]).digest()).decode()
    policy = SECURITY_HEADERS["content-security-policy"]
    for before, after in (
        ("script-src 'self'", f"script-src 'self' 'sha256-{digest}'"),
        ("style-src 'self'", "style-src 'self' 'unsafe-inline'"),
        ("img-src 'self'", "img-src 'self' data:"),
    ):
        policy = policy.replace(before, after)
    page.headers["content-security-policy"] = policy
    app.add_route("/docs", lambda _: page, methods=["GET"])


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


class StaticFolder(StaticFiles):
    """A room's static files and the shell's; browsers keep them and ask each time for changes."""

    def __init__(self, room: Path) -> None:
        super().__init__(directory=room / "static")
        swagger = importlib.resources.files("fastapi_offline") / "static"
        self.all_directories += [SHELL / "static", Path(str(swagger))]

    def file_response(self, *args: Any, **more: Any) -> Response:
        """A file, which browsers may keep and must ask about."""
        response = super().file_response(*args, **more)
        response.headers["cache-control"] = "no-cache"
        return response


def answer_errors(
    app: FastAPI, answer: ErrorAnswer, hint: Callable[[Request], str] = lambda _: ""
) -> None:
    """Every error in one form, as `answer` gives it, and never with a traceback.

    hint: what to add for an address that takes another method.
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
        return answer(request, error.status_code, message, headers)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        fault = error.errors()[0]
        reason = f"{fault['loc'][-1]}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"
        return answer(request, 422, reason, None)

    async def disconnected(request: Request, error: Exception) -> Response:
        return answer(request, 400, "the body broke off", None)  # nobody reads it

    async def broken(request: Request, error: Exception) -> Response:
        close = {"connection": "close"}  # as uvicorn does after an exception
        return answer(request, 500, "the server failed; its log says why", close)

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ClientDisconnect, disconnected)
    app.add_exception_handler(Exception, broken)


def _methods(app: FastAPI, request: Request) -> set[str]:
    """All methods that an address takes; Starlette names those of its first route only."""
    known = [route for route in app.routes if hasattr(route, "methods")]
    fits = [route.path for route in known if route.matches(request.scope)[0] != Match.NONE]  # type: ignore[attr-defined]
    return {m for route in known if route.path == fits[0] for m in route.methods} if fits else set()  # type: ignore[attr-defined]


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
