"""Sockets, bodies and headers: what keeps a server standing. Knows no contest and no search.

Time and size of a request are limited while it is read, so that neither a slow client nor an
endless body can hold the server up.
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

import h11
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from vizsla.errors import UsageError

HEADER_SECONDS = 15.0  # for the headers of a request to arrive
BODY_SECONDS = 60.0  # for its body
READ_SECONDS = 30.0  # for a client to go on reading its answer
DRAIN_SECONDS, DRAIN_BYTES = 1.0, 4 * 2**20  # read and thrown away after a refusal, see LastWord
LARGEST_HEADERS = 64 * 1024  # bytes
TINY_PIECES, TINY_BYTES = 5000, 64  # no more pieces of a body may be smaller than that
CONNECTIONS = 900  # at once; further ones get 503
CONNECTIONS_OF_ONE = 600  # of one address, so that none keeps all others out; a proxy needs many

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


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────


class BodyRefused(Exception):
    """A body that is not read to its end. status: 400, 408, 413, 415 or 503."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Room:
    """Bytes that all bodies under way may fill together, so that many clients fill no memory."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    def take(self, n_bytes: int) -> None:
        """BodyRefused with 503 where they do not fit; else they stay taken until given back."""
        if self.taken + n_bytes > self.limit:
            raise BodyRefused(503, "too many large requests at once: try again in a moment")
        self.taken += n_bytes

    def give_back(self, n_bytes: int) -> None:
        self.taken -= n_bytes


async def read_body(
    request: Request, *, limit: int, seconds: float, room: Room | None = None
) -> bytes:
    """The whole body. BodyRefused before more than `limit` bytes are kept.

    room: the caller gives the bytes back to it when it is done with the body.
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding not in ("", "identity"):
        raise BodyRefused(415, "the body is compressed: send it plain")
    length = request.headers.get("content-length", "")
    too_large = BodyRefused(413, f"the body is larger than {limit} bytes, which is the limit here")
    if length.isdigit() and int(length) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise too_large
                if room is not None:
                    room.take(len(chunk))
                body += chunk
    except BaseException as error:
        if room is not None:
            room.give_back(len(body))
        if isinstance(error, TimeoutError):
            raise BodyRefused(408, f"the body did not arrive within {seconds:g} s") from None
        if isinstance(error, ClientDisconnect):
            raise BodyRefused(400, "the body broke off") from None
        raise
    return bytes(body)


def to_json(content: Any) -> bytes:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace")  # \ud800 is how JSON writes it


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


class LastWord(Json):
    """An answer to a request that was not read to its end: sent, then the connection closes."""

    def __init__(self, content: Any, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(content, status, {**(headers or {}), "connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await say_last(self, receive, send)


class LastPage(HTMLResponse):
    """The same as a page."""

    def __init__(self, text: str, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text, status, {**(headers or {}), "connection": "close"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await say_last(self, receive, send)


async def say_last(response: Response, receive: Receive, send: Send) -> None:
    """Sends it, then reads and throws away a little of what the client still sends.

    Closing at once would reset the connection, and the client might never see why.
    """
    start = {"type": "http.response.start", "status": response.status_code}
    await send({**start, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            await _drain(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    drained = 0
    while drained < DRAIN_BYTES:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body"):
            return
        drained += len(message.get("body", b""))


# ── the server ───────────────────────────────────────────────────────────────────────────────────


class FewPieces(h11.Connection):
    """Refuses a body in very many tiny chunks: the loop would do nothing else meanwhile."""

    _tiny = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._tiny = 0
        elif isinstance(event, h11.Data) and len(event.data) < TINY_BYTES:
            self._tiny += 1
            if self._tiny > TINY_PIECES:
                raise h11.RemoteProtocolError("too many tiny chunks")
        return event


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that waits for headers, and for a client that does not read, only so long.

    The connection is closed then.
    """

    header_seconds = HEADER_SECONDS
    read_seconds = READ_SECONDS
    most_of_one = CONNECTIONS_OF_ONE
    _header_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.conn = FewPieces(h11.SERVER, LARGEST_HEADERS)
        if self._has_too_many():
            transport.abort()
        else:
            self._watch()

    def _has_too_many(self) -> bool:
        """Whether the address at the other end has opened more connections than one may."""
        if self.client is None or len(self.connections) <= self.most_of_one:
            return False
        others = [one.client for one in self.connections if isinstance(one, PatientProtocol)]
        own = sum(one is not None and one[0] == self.client[0] for one in others)
        return own > self.most_of_one

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # an answer has begun already
            self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(self.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_waiting()
        super().resume_writing()

    def _stop_waiting(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()  # the headers are there; the body has its own limit
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_seconds, self._give_up)

    def _stop_watching(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _give_up(self) -> None:
        self._header_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, which ends with a return where uvicorn's own raises the signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
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
    """A server without access log, banners and websockets; run it with `server.run([socket])`."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # not a line for every odd client
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=LARGEST_HEADERS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=10,
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
