"""A FastAPI application with what all servers share; each server adds its routes.

Limits of bodies, security headers, answers to errors, /docs and static files.
"""

import base64
import hashlib
import importlib.resources
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.staticfiles import StaticFiles

from vizsla.web.shell.http import SECURITY_HEADERS, BodyLimit, SecureHeaders

SHELL = Path(__file__).parent
ErrorAnswer = Callable[[Request, int, str, Mapping[str, str] | None], Response]


def new_app(
    title: str,
    room: Path,
    answer_error: ErrorAnswer,
    *,
    body_limit: int,
    total_body_limit: int | None = None,
    forms: str = "'none'",
    middleware: Sequence[Middleware] = (),
    method_hint: Callable[[Request], str] = lambda _: "",
) -> FastAPI:
    """An application without routes but /docs, /openapi.json and /static.

    room: the folder with the server's own `static`. answer_error: the answer to an error, from the
    request, status, message and headers. body_limit, total_body_limit: bytes of one body, and of
    all together. forms: where forms may lead, as the content policy says it. middleware: what sees
    a request between the headers and the limits. method_hint: is added to the message where an
    address takes another method.
    """
    app = FastAPI(
        title=title,
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        root_path_in_servers=False,
        servers=[{"url": ".", "description": "This server, whatever prefix a proxy adds."}],
        middleware=[
            Middleware(SecureHeaders, forms=forms),
            *middleware,
            Middleware(BodyLimit, limit=body_limit, total=total_body_limit),
        ],
    )
    _answer_errors(app, answer_error, method_hint)
    _add_api_page(app)
    app.mount("/static", StaticFolder(room), name="static")
    return app


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


def _answer_errors(
    app: FastAPI, answer: ErrorAnswer, method_hint: Callable[[Request], str]
) -> None:
    """Every error in one form, as `answer` gives it, and never with a traceback."""

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = {
            404: "there is nothing here",
            405: "this address takes another method" + method_hint(request),
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


def _add_api_page(app: FastAPI) -> None:
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
