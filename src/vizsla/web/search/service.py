"""What all routes share: the engine once it is ready, limits, threads, and refusals."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import Response

from vizsla.errors import DataError, ImageError, StorageError, UsageError
from vizsla.web.search.decoder import Busy, Closed
from vizsla.web.search.engine import Engine, NotFound
from vizsla.web.search.models import SearchRequest
from vizsla.web.search.similarity_maps import Maps
from vizsla.web.search.status import Progress
from vizsla.web.shell.access import Access, RateLimit
from vizsla.web.shell.http import BODY_SECONDS, Json, Refused

log = logging.getLogger("vizsla.serve")
Result = TypeVar("Result")

SEARCH_THREADS = 64
PICTURE_THREADS, MAX_WAITING_PICTURES = 8, 400  # pictures of the gallery
MAX_WAITING_CHANGES = 8  # behind the one that is being made
LIGHT_REQUESTS_A_SEARCH = 10  # so many light requests an address may send for each search
LIGHT_REQUESTS_AT_ONCE = 500  # at least: more than the pictures of a page
DISCONNECT_CHECK_SECONDS = 0.5  # between two checks whether the client still waits
CHALLENGE = {"WWW-Authenticate": 'Basic realm="vizsla", charset="UTF-8"'}


@dataclass(frozen=True)
class Limits:
    """What one request, one address, and all requests together may ask for."""

    body_bytes: int = 16 * 2**20
    fields_bytes: int = 2**20  # of a body without pictures
    body_seconds: float = BODY_SECONDS
    total_body_bytes: int = 256 * 2**20  # of all bodies at once
    k: int = 200
    per_minute: float = 600.0  # searches and changes of one address; 0: no limit


@dataclass
class ServerState(Progress):
    """engine: None until everything is loaded and warm."""

    engine: Engine | None = None


class Lane:
    """Threads for one kind of work, so that no other kind waits for it."""

    def __init__(self, threads: int, *, max_waiting: int | None = None) -> None:
        """max_waiting: how much work may wait for a thread; None: any amount."""
        self._limiter, self._n = CapacityLimiter(threads), 0
        self._max = None if max_waiting is None else threads + max_waiting

    async def run(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, done in a thread; raises Busy at once where too much waits."""
        if self._max is not None and self._n >= self._max:
            raise Busy("too many requests wait: try again in a moment")
        self._n += 1
        try:
            return await to_thread.run_sync(work, limiter=self._limiter)
        finally:
            self._n -= 1


class Service:
    """The engine and what limits its use. For one event loop."""

    def __init__(self, state: ServerState, limits: Limits, access: Access) -> None:
        self.state, self.limits, self.access = state, limits, access
        self.searches = Lane(SEARCH_THREADS)
        self.pictures = Lane(PICTURE_THREADS, max_waiting=MAX_WAITING_PICTURES)
        self.changes = Lane(1, max_waiting=MAX_WAITING_CHANGES)
        self._rate = RateLimit(limits.per_minute)
        self._light_rate = RateLimit(
            limits.per_minute * LIGHT_REQUESTS_A_SEARCH, at_once=LIGHT_REQUESTS_AT_ONCE
        )

    @property
    def engine(self) -> Engine:
        """Refused with 503 until it is ready."""
        if self.state.engine is None:
            raise Refused(503, f"not ready: {self.state.text}", {"Retry-After": "2"})
        return self.state.engine

    def count(self, request: Request, *, items: float = 1.0) -> None:
        """Counts a request as so many searches; Refused with 429 where there are too many."""
        if items > 0:
            _count(self._rate, request, items)

    def count_light(self, request: Request) -> None:
        """The same for a request that costs little, such as the thumbnails of a page."""
        _count(self._light_rate, request, 1.0)

    async def similarity_maps(self, request: Request, search: SearchRequest, result: str) -> Maps:
        """As `Engine.similarity_maps`; nothing is drawn for a client that has gone away."""
        engine = self.engine
        job = await self.searches.run(lambda: engine.similarity_maps(search, result))
        try:
            maps = asyncio.wrap_future(job.future)
            maps.add_done_callback(lambda one: one.cancelled() or one.exception())
            while not maps.done():
                await asyncio.wait([maps], timeout=DISCONNECT_CHECK_SECONDS)
                if not maps.done() and await request.is_disconnected():
                    raise Refused(503, "the client has gone away")
            return maps.result()
        finally:
            engine.map_queue.leave(job)


def _count(rate: RateLimit, request: Request, weight: float) -> None:
    wait = rate.wait(request.client.host if request.client else "", weight)
    if wait:
        seconds = str(int(wait) + 1)
        raise Refused(429, "too many requests: try again in a moment", {"Retry-After": seconds})


EXPECTED_ERRORS = (Refused, NotFound, DataError, UsageError, StorageError, Busy, Closed)


def refusal(error: Exception) -> Refused:
    """Status, sentence and headers for one of EXPECTED_ERRORS; any other is raised again."""
    match error:
        case Refused():
            return error
        case NotFound():
            return Refused(404, str(error))
        case ImageError():
            return Refused(422, f"the picture cannot be used: {error}")
        case UsageError() | DataError():
            return Refused(422, str(error))
        case Busy():
            return Refused(503, str(error), {"Retry-After": str(error.seconds)})
        case Closed():
            return Refused(503, str(error), {"Retry-After": "5", "connection": "close"})
        case StorageError():
            log.error("%s", error)
            return Refused(503, "the server cannot do that now; its log says why")
    raise error


def refused_as_json(error: Exception) -> Response:
    """The refusal as {"error": sentence}."""
    refused = refusal(error)
    return Json({"error": str(refused)}, refused.status, refused.headers)
