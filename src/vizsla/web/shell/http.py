"""The HTTP server: its limits, the refusal of bodies, and the headers of every answer.

Knows no contest and no search. Limits the number of connections and the size of headers and bodies;
slow clients are left to the reverse proxy that a public server needs anyway.
"""

import asyncio
import contextlib
import json
import logging
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import uvicorn
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vizsla.errors import UsageError

MAX_CONNECTIONS = 900  # further requests get 503
MAX_HEADER_BYTES = 64 * 1024
KEEP_ALIVE_SECONDS = 15  # that a connection may wait for its next request
SHUTDOWN_SECONDS = 10  # that requests have to end when the server stops
DRAIN_SECONDS, DRAIN_BYTES = 1.0, 4 * 2**20  # of a refused body that are still read

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class SecureHeaders:
    """ASGI middleware: security headers on every answer; not cached unless it says otherwise.

    forms: where forms may lead, as the content policy says it.
    """

    def __init__(self, app: ASGIApp, *, forms: str = "'none'") -> None:
        self.app = app
        headers = dict(SECURITY_HEADERS)
        policy = headers["content-security-policy"]
        headers["content-security-policy"] = policy.replace(
            "form-action 'none'", f"form-action {forms}"
        )
        self.headers = [(k.encode(), v.encode()) for k, v in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", []))
                present = {name.lower() for name, _ in headers}
                headers += [pair for pair in self.headers if pair[0] not in present]
                if b"cache-control" not in present:
                    headers.append((b"cache-control", b"no-store"))
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_secured if scope["type"] == "http" else send)


# ── refusals and bodies ──────────────────────────────────────────────────────────────────────────


class Refused(Exception):
    """A request that gets no answer but a status from 400 on, a sentence, and headers."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


class BodyLimit:
    """ASGI middleware: reading a body that is too large or compressed raises Refused.

    The connection is closed after such a refusal. Bytes count until the request is answered.
    """

    def __init__(self, app: ASGIApp, *, limit: int, total: int | None = None) -> None:
        """limit: bytes of one body. total: bytes of all bodies together; None: no limit."""
        self.app, self.limit, self.total = app, limit, total
        self.bytes_held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        body = _LimitedBody(self, scope, receive, send)
        try:
            await self.app(scope, body.receive, body.send)
        finally:
            self.bytes_held -= body.n_bytes


class _LimitedBody:
    """The body of one request: `receive` and `send` as the application sees them."""

    def __init__(self, limits: BodyLimit, scope: Scope, receive: Receive, send: Send) -> None:
        self.limits, self._receive, self._send = limits, receive, send
        self.headers = Headers(scope=scope)
        self.n_bytes, self.is_complete, self.is_refused = 0, False, False

    async def receive(self) -> Message:
        if self.is_complete:
            return await self._receive()
        if self.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise self._refusal(415, "the body is compressed: send it uncompressed")
        self._require_room(int(self.headers.get("content-length") or 0))
        message = await self._receive()
        size = len(message.get("body", b""))
        self._require_room(self.n_bytes + size)
        limits = self.limits
        if limits.total is not None and limits.bytes_held + size > limits.total:
            busy = "too many large requests at once: try again in a moment"
            raise self._refusal(503, busy, {"Retry-After": "1"})
        limits.bytes_held += size
        self.n_bytes += size
        self.is_complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if self.is_refused and message["type"] == "http.response.start":
            headers = [*message.get("headers", []), (b"connection", b"close")]
            message = {**message, "headers": headers}
        elif self.is_refused and not message.get("more_body", False):
            # Closing at once would reset the connection, and the client might never see the answer.
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    def _require_room(self, n_bytes: int) -> None:
        limit = self.limits.limit
        if n_bytes > limit:
            raise self._refusal(413, f"the body is larger than the limit of {limit} bytes")

    def _refusal(
        self, status: int, message: str, headers: Mapping[str, str] | None = None
    ) -> Refused:
        self.is_refused = True
        self.limits.bytes_held -= self.n_bytes
        self.n_bytes = 0
        return Refused(status, message, headers)

    async def _drain(self) -> None:
        drained = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while drained < DRAIN_BYTES:
                    message = await self._receive()
                    if not message.get("more_body"):  # the end, or the client is gone
                        return
                    drained += len(message.get("body", b""))


def to_json(content: Any) -> bytes:
    """UTF-8. Half a surrogate pair, which Python strings may hold, stays as JSON's escape."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace")


class Json(Response):
    """An answer in JSON, from what json.dumps takes."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return to_json(content)


# ── the server ───────────────────────────────────────────────────────────────────────────────────


class Server(uvicorn.Server):
    """uvicorn's server, but it returns at the end instead of raising the signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Lets SIGINT and SIGTERM stop the server, until the end of the block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {one: signal.signal(one, self.handle_exit) for one in signals}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)


def make_server(app: ASGIApp) -> Server:
    """A server without access log and websockets; `server.run([socket])` starts it."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # no line for every odd client
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; UsageError says why it cannot be. Port 0: any free one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
    except (OSError, OverflowError) as error:
        bound.close()
        raise UsageError(
            f"cannot listen on {host}:{port} ({error}): is another server running there? "
            "--port chooses another port"
        ) from error
    return bound


def url_of(bound: socket.socket) -> str:
    """The URL of the server that listens on the socket, without a slash at its end."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
