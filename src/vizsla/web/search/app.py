"""The ASGI application: the API and the pages, behind limits and access control."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vizsla.web.search.api import add_api
from vizsla.web.search.pages import Pages
from vizsla.web.search.service import (
    CHALLENGE,
    EXPECTED_ERRORS,
    Limits,
    ServerState,
    Service,
    refused_as_json,
)
from vizsla.web.shell.access import Access, is_cross_site
from vizsla.web.shell.app import new_app
from vizsla.web.shell.http import Refused
from vizsla.web.shell.templating import path_below

OPEN_TO_ALL = ("/healthz", "/static/")  # without a token


def create_app(
    state: ServerState,
    *,
    limits: Limits | None = None,
    access: Access | None = None,
    title: str = "",
    columns: Sequence[str] = (),
    clock: Callable[[], float] = time.monotonic,
) -> FastAPI:
    """The application. Until the engine is ready it answers that it is not.

    columns: attributes that the page shows of each result.
    clock: seconds, by which the requests of an address are counted.
    """
    limits = limits or Limits()
    service = Service(state, limits, access or Access(), clock=clock)
    pages = Pages(service, title=title or "Vizsla", columns=columns)
    app = new_app(
        "Vizsla search",
        Path(__file__).parent,
        pages.error,
        body_limit=limits.body_bytes,
        total_body_limit=limits.total_body_bytes,
        forms="'self'",
        middleware=[Middleware(Guard, service=service)],
    )
    for kind in EXPECTED_ERRORS:
        app.add_exception_handler(kind, lambda _, error: refused_as_json(error))
    add_api(app, service)
    pages.add_to(app)
    return app


class Guard:
    """ASGI middleware: refuses requests that are not allowed, and counts and times every answer."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        request = Request(scope)
        refused = self._refusal(request)
        if "range" in request.headers:  # images are sent whole: many ranges can be costly
            headers = [pair for pair in scope["headers"] if pair[0].lower() != b"range"]
            scope = {**scope, "headers": headers}
        try:
            await (refused or self.app)(scope, receive, counted)
        finally:
            route = "refused" if refused else getattr(scope.get("endpoint"), "__name__", "other")
            seconds = time.perf_counter() - started
            self.service.state.metrics.count_request(route, status, seconds)

    def _refusal(self, request: Request) -> Response | None:
        """What to answer at once; None if the request may proceed."""
        service, headers = self.service, request.headers
        access = service.access
        if not access.knows_host(headers.get("host", "")):
            return refused_as_json(
                Refused(421, "this server does not go by that name: see --allow-host")
            )
        if is_cross_site(request.method, headers):
            return refused_as_json(Refused(403, "pages of other sites may not send this"))
        if path_below(request).startswith(OPEN_TO_ALL):
            return None
        try:
            service.count_light(request)
            if access.may_read(headers):
                return None
            service.count(request)  # or tokens could be guessed without end
        except Refused as error:
            return refused_as_json(error)
        message = "a token is needed: Authorization: Bearer TOKEN"
        return refused_as_json(Refused(401, message, CHALLENGE))
