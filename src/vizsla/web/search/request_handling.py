"""What all routes of the search server share: reading requests, working in threads, refusing."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response

from vizsla.errors import DataError, ImageError, StorageError, UsageError
from vizsla.web.search.decoder import Busy, Closed
from vizsla.web.search.engine import Engine, NotThere
from vizsla.web.search.query import Asked
from vizsla.web.search.rate_limits import Access, RateLimit
from vizsla.web.search.readiness import Serving
from vizsla.web.search.request_forms import Form, form_of
from vizsla.web.search.similarity_maps import Drawn
from vizsla.web.shell.http import BODY_SECONDS, BodyRefused, Json, LastWord, Room

log = logging.getLogger("vizsla.serve")
Result = TypeVar("Result")

THREADS = 64  # searches at once
PICTURE_THREADS, PICTURES_WAITING = 8, 400  # pictures of the gallery at once, and how many wait
CHANGES_WAITING = 8  # behind the one change under way
PICTURES_A_SEARCH = 10  # so many light requests an address may send for each search it may
PICTURES_AT_ONCE = 500  # at least: more than a page shows
WHY_LOOKED_AFTER = 0.5  # s between two looks whether somebody still waits
CHALLENGE = {"WWW-Authenticate": 'Basic realm="vizsla", charset="UTF-8"'}
PRIVATE = "private, max-age=0, must-revalidate"


@dataclass(frozen=True)
class Limits:
    body_bytes: int = 16 * 2**20
    fields_bytes: int = 2**20  # of a body that holds no picture
    body_seconds: float = BODY_SECONDS
    bodies_bytes: int = 256 * 2**20  # of all bodies at once
    k: int = 200
    per_minute: float = 600.0  # searches and changes of one address; 0: no limit


class Refused(Exception):
    """An answer that is not what was asked for."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}


class Lane:
    """Threads for one kind of work, so that no other kind waits for it. For one event loop."""

    def __init__(self, name: str, threads: int, *, waiting: int | None = None) -> None:
        """waiting: how many may wait for a thread; more are refused. None: any number."""
        self.most = None if waiting is None else threads + waiting
        self._n = 0
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"serve-{name}")

    async def done(self, work: Callable[[], Result]) -> Result:
        """Raises Busy at once where too many wait."""
        if self.most is not None and self._n >= self.most:
            raise Busy("too many requests wait: try again in a moment")
        self._n += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._n -= 1


class Desk:
    """What all routes share: reading a request, doing the work in a thread, saying why not."""

    def __init__(self, serving: Serving, limits: Limits, access: Access) -> None:
        self.serving, self.limits, self.access = serving, limits, access
        self.room = Room(limits.bodies_bytes)
        self.rate = RateLimit(limits.per_minute)
        self.light_rate = RateLimit(limits.per_minute * PICTURES_A_SEARCH, at_once=PICTURES_AT_ONCE)
        self.searches = Lane("search", THREADS)
        self.pictures = Lane("picture", PICTURE_THREADS, waiting=PICTURES_WAITING)
        self.changes = Lane("change", 1, waiting=CHANGES_WAITING)

    @property
    def engine(self) -> Engine:
        if self.serving.engine is None:
            raise Refused(503, self.serving.text, {"Retry-After": "2"})
        return self.serving.engine

    def form(self, request: Request) -> Any:
        limits = self.limits
        return form_of(
            request,
            limit=limits.body_bytes,
            fields_limit=min(limits.fields_bytes, limits.body_bytes),
            seconds=limits.body_seconds,
            room=self.room,
        )

    async def done(self, work: Callable[[], Result]) -> Result:
        return await self.searches.done(work)

    async def why(self, request: Request, asked: Asked, result: str) -> Drawn:
        """As `Engine.why`; what a client that went away has asked for is given up."""
        engine = self.engine
        job = await self.done(lambda: engine.why(asked, result))
        try:
            drawn = asyncio.wrap_future(job.future)
            drawn.add_done_callback(lambda one: one.cancelled() or one.exception())
            while not drawn.done():
                await asyncio.wait([drawn], timeout=WHY_LOOKED_AFTER)
                if not drawn.done() and await request.is_disconnected():
                    raise Refused(503, "nobody waits for it any longer")
            return drawn.result()
        finally:
            engine.whys.leave(job)

    def count(self, request: Request, *, weight: float = 1.0) -> None:
        """Refused with 429 where an address searches too often."""
        _count(self.rate, request, weight)

    def count_more(self, request: Request, items: int) -> None:
        """What a request holds beyond its first picture or text: each counts as a search does."""
        if items > 1:
            self.count(request, weight=items - 1)

    def count_lightly(self, request: Request) -> None:
        """The same for all that costs little, such as the small pictures of a page."""
        _count(self.light_rate, request, 1.0)

    def asked(self, form: Form) -> Asked:
        return Asked.parse(form.fields, most_k=self.limits.k)


def _count(rate: RateLimit, request: Request, weight: float) -> None:
    wait = rate.wait(request.client.host if request.client else "", weight)
    if wait:
        seconds = str(int(wait) + 1)
        raise Refused(429, "too many requests: try again in a moment", {"Retry-After": seconds})


def refusal(error: Exception) -> tuple[int, str, dict[str, str]]:
    """(status, one sentence, headers) for what went wrong on purpose; else it is raised again."""
    match error:
        case BodyRefused():
            return error.status, str(error), {}
        case Refused():
            return error.status, str(error), error.headers
        case NotThere():
            return 404, str(error), {}
        case ImageError():
            return 422, f"the picture cannot be used: {error}", {}
        case UsageError() | DataError():
            return 422, str(error), {}
        case Busy():
            return 503, str(error), {"Retry-After": str(error.seconds)}
        case Closed():
            return 503, str(error), {"Retry-After": "5", "connection": "close"}
        case StorageError():
            log.error("%s", error)
            return 503, "the server cannot do that now; who runs it can see why", {}
    raise error


def said(message: str) -> dict[str, str]:
    return {"error": message}


def refused_as_json(error: Exception) -> Response:
    status, message, headers = refusal(error)
    kind = LastWord if isinstance(error, BodyRefused) else Json
    return kind(said(message), status, headers)


def jpeg(data: bytes, tag: str) -> Response:
    return Response(data, media_type="image/jpeg", headers=cached(tag))


def not_modified(tag: str) -> Response:
    return Response(status_code=304, headers=cached(tag))


def is_known(request: Request, tag: str) -> bool:
    known = request.headers.get("if-none-match", "")
    return tag in [one.strip().removeprefix("W/") for one in known.split(",")]


def cached(tag: str) -> dict[str, str]:
    return {"etag": tag, "cache-control": PRIVATE}
