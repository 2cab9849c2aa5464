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
from vizsla.web.http import BODY_SECONDS, BodyRefused, Json, LastWord, Room
from vizsla.web.serve_decoder import Busy
from vizsla.web.serve_engine import Engine, NotThere
from vizsla.web.serve_forms import Form, form_of
from vizsla.web.serve_limits import Access, RateLimit
from vizsla.web.serve_query import Asked
from vizsla.web.serve_state import Serving

log = logging.getLogger("vizsla.serve")
Result = TypeVar("Result")

THREADS = 64
CHALLENGE = {"WWW-Authenticate": 'Basic realm="vizsla", charset="UTF-8"'}
PRIVATE = "private, max-age=0, must-revalidate"


@dataclass(frozen=True)
class Limits:
    body_bytes: int = 16 * 2**20
    body_seconds: float = BODY_SECONDS
    bodies_bytes: int = 256 * 2**20  # of all bodies at once
    k: int = 200
    per_minute: float = 600.0  # searches and changes of one address; 0: no limit


class Refused(Exception):
    """An answer that is not what was asked for."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}


class Desk:
    """What all routes share: reading a request, doing the work in a thread, saying why not."""

    def __init__(self, serving: Serving, limits: Limits, access: Access) -> None:
        self.serving, self.limits, self.access = serving, limits, access
        self.room = Room(limits.bodies_bytes)
        self.rate = RateLimit(limits.per_minute)
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="serve")

    @property
    def engine(self) -> Engine:
        if self.serving.engine is None:
            raise Refused(503, self.serving.text, {"Retry-After": "2"})
        return self.serving.engine

    def form(self, request: Request) -> Any:
        limits = self.limits
        return form_of(
            request, limit=limits.body_bytes, seconds=limits.body_seconds, room=self.room
        )

    async def done(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)

    def count(self, request: Request) -> None:
        """Refused with 429 where an address asks too often."""
        wait = self.rate.wait(request.client.host if request.client else "")
        if wait:
            seconds = str(int(wait) + 1)
            raise Refused(429, "too many requests: try again in a moment", {"Retry-After": seconds})

    def asked(self, form: Form) -> Asked:
        return Asked.parse(form.fields, most_k=self.limits.k)


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
            return 503, "too many pictures wait: try again in a moment", {"Retry-After": "1"}
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
