"""What all routes share: the engine once it is ready, metrics, limits, threads and refusals."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from vizsla.errors import DataError, ImageError, StorageError, UsageError
from vizsla.web.search.decoder import Busy, Closed
from vizsla.web.search.engine import Engine, NotFound
from vizsla.web.search.models import SearchRequest
from vizsla.web.search.similarity_maps import Maps
from vizsla.web.shell.access import Access, RateLimit
from vizsla.web.shell.http import Json, Refused

log = logging.getLogger("vizsla.serve")
Result = TypeVar("Result")

SEARCH_THREADS = 64
PICTURE_THREADS, MAX_WAITING_PICTURES = 8, 400  # images of the gallery
MAX_WAITING_CHANGES = 8  # besides the one that is being made
LIGHT_REQUESTS_A_SEARCH = 10  # light requests that an address may send for each allowed search
LIGHT_REQUESTS_AT_ONCE = 500  # at least: more than the images of a page
DISCONNECT_CHECK_SECONDS = 0.5  # between two checks that the client is still waiting
REQUEST_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
BATCH_SIZES = (1, 2, 4, 8, 16)
STAGES = {
    "loading": "loading the model",
    "embedding": "embedding the images",
    "indexing": "building the index",
    "warming": "warming up",
    "failed": "the server could not start",
}
CHALLENGE = {"WWW-Authenticate": 'Basic realm="vizsla", charset="UTF-8"'}


@dataclass(frozen=True)
class Limits:
    """What one request, one address, and all requests together may ask for."""

    body_bytes: int = 16 * 2**20
    total_body_bytes: int = 256 * 2**20  # of all bodies at once
    k: int = 200
    per_minute: float = 600.0  # searches and changes of one address; 0: no limit


class Metrics:
    """Counters and histograms, in a separate registry for each server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "vizsla_requests", "Requests answered.", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "vizsla_request_seconds", "Time to an answer.", ["route"],
            buckets=REQUEST_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._batches = Histogram(
            "vizsla_batch_size", "Images and texts in one batch of the model.",
            buckets=BATCH_SIZES, registry=self.registry,
        )  # fmt: skip
        self._images = Gauge(
            "vizsla_gallery_images", "Images in the gallery.", registry=self.registry
        )

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Counts an answer of a route, and the time that it took."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_batch(self, size: int) -> None:
        """Counts a batch of the model."""
        self._batches.observe(size)

    def text(self, *, gallery_images: int) -> bytes:
        """All values in the text format of Prometheus."""
        self._images.set(gallery_images)
        return generate_latest(self.registry)


@dataclass
class ServerState:
    """The progress of the server's start, and its metrics.

    done, total: images, while embedding. engine: None until everything is loaded and warm.
    """

    stage: str = "loading"
    done: int = 0
    total: int = 0
    error: str | None = None
    metrics: Metrics = field(default_factory=Metrics)
    engine: Engine | None = None

    @property
    def text(self) -> str:
        """One sentence without its full stop: what the server is doing."""
        if self.stage == "embedding" and self.total:
            return f"{self.done:,} of {self.total:,} images embedded"
        return STAGES.get(self.stage, self.stage)


class Lane:
    """Threads for one kind of work, so that other kinds do not wait for it."""

    def __init__(self, threads: int, *, max_waiting: int | None = None) -> None:
        """max_waiting: how many calls may wait for a thread; None: any number."""
        self._limiter, self._n = CapacityLimiter(threads), 0
        self._max = None if max_waiting is None else threads + max_waiting

    async def run(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, done in a thread; raises Busy at once if too much waits."""
        if self._max is not None and self._n >= self._max:
            raise Busy("too many requests wait: try again in a moment")
        self._n += 1
        try:
            return await to_thread.run_sync(work, limiter=self._limiter)
        finally:
            self._n -= 1


class Service:
    """The engine and what limits its use. For one event loop."""

    def __init__(
        self,
        state: ServerState,
        limits: Limits,
        access: Access,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """clock: seconds, by which the requests of an address are counted."""
        self.state, self.limits, self.access = state, limits, access
        self.searches = Lane(SEARCH_THREADS)
        self.pictures = Lane(PICTURE_THREADS, max_waiting=MAX_WAITING_PICTURES)
        self.changes = Lane(1, max_waiting=MAX_WAITING_CHANGES)
        self._rate = RateLimit(limits.per_minute, clock)
        self._light_rate = RateLimit(
            limits.per_minute * LIGHT_REQUESTS_A_SEARCH, clock, at_once=LIGHT_REQUESTS_AT_ONCE
        )

    @property
    def engine(self) -> Engine:
        """Refused with 503 until it is ready."""
        if self.state.engine is None:
            raise Refused(503, f"not ready: {self.state.text}", {"Retry-After": "2"})
        return self.state.engine

    def count(self, request: Request, *, items: float = 1.0) -> None:
        """Counts a request as `items` searches; Refused with 429 if there are too many."""
        if items > 0:
            _count(self._rate, request, items)

    def count_light(self, request: Request) -> None:
        """The same for a request that costs little, such as the thumbnails of a page."""
        _count(self._light_rate, request, 1.0)

    async def similarity_maps(self, request: Request, search: SearchRequest, result: str) -> Maps:
        """As `Engine.similarity_maps`; nothing is drawn for a client that has disconnected."""
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
            return Refused(422, f"the image cannot be used: {error}")
        case UsageError() | DataError():
            return Refused(422, str(error))
        case Busy():
            return Refused(503, str(error), {"Retry-After": str(error.seconds)})
        case Closed():
            return Refused(503, str(error), {"Retry-After": "5", "connection": "close"})
        case StorageError():
            log.error("%s", error)
            return Refused(503, "the server cannot do that now: see its log")
    raise error


def refused_as_json(error: Exception) -> Response:
    """The refusal as {"error": sentence}."""
    refused = refusal(error)
    return Json({"error": str(refused)}, refused.status, refused.headers)
