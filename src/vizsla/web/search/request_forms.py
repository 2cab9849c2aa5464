"""The body of a request → fields and files, within limits. Knows no meaning of either."""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartParser
from starlette.requests import Request

from vizsla.errors import DataError, UsageError
from vizsla.output.submission_formats import parse_json
from vizsla.web.search.query import fields_of_json
from vizsla.web.shell.http import BodyRefused, Room, read_body

FIELDS, FILES, FIELD_BYTES = 2000, 20, 64 * 1024
PIECE = 2**18
SMALL = 32 * 1024  # bytes, parsed in less than a millisecond or two
WITHOUT_PICTURES = ("application/json", "application/x-www-form-urlencoded")
FORMS = ("multipart/form-data", *WITHOUT_PICTURES)


@dataclass(frozen=True)
class Form:
    """fields: of the address and of the body. files: field → contents."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)

    def one(self, name: str) -> str:
        """A field's last value, '' where it is absent; it is taken out."""
        return (self.fields.pop(name, None) or [""])[-1]


@contextlib.asynccontextmanager
async def form_of(
    request: Request, *, limit: int, fields_limit: int, seconds: float, room: Room
) -> AsyncIterator[Form]:
    """Whatever form the body has; a body that is a picture itself is the file `image`.

    Its bytes count as taken in `room` until the block ends. fields_limit: of a body without
    pictures. What is not small is parsed in a thread, so that others are answered meanwhile.
    """
    fields = fields_of_address(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    most = fields_limit if kind in WITHOUT_PICTURES else limit
    body = await read_body(request, limit=most, seconds=seconds, room=room)
    n_bytes = len(body)
    try:
        if kind in FORMS and n_bytes > SMALL:
            form = await asyncio.to_thread(_parsed, kind, body, request.headers, fields)
        else:
            form = _parsed(kind, body, request.headers, fields)
        del body  # its files are copies: they alone are kept until the answer
        yield form
    finally:
        room.give_back(n_bytes)


class InMemory(MultiPartParser):
    """Files stay in memory, where the whole body is already."""

    spool_max_size = 2**31


def fields_of_address(request: Request) -> dict[str, list[str]]:
    return _fields(parse_pairs(request.url.query))


def parse_pairs(query: str) -> list[tuple[str, str]]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=FIELDS, errors="strict")
    except ValueError as error:  # too many, or not UTF-8
        raise UsageError("the fields cannot be read: too many, or not UTF-8") from error
    if any("\0" in text for pair in pairs for text in pair):
        raise UsageError("a field holds a NUL character")
    return pairs


def _fields(pairs: list[tuple[str, str]]) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


def _parsed(kind: str, body: bytes, headers: Headers, fields: dict[str, list[str]]) -> Form:
    if kind == "multipart/form-data":
        return _run(_multipart(body, headers, fields))
    if kind == "application/json":
        try:
            return Form({**fields, **fields_of_json(parse_json(body))})
        except DataError as error:
            raise BodyRefused(400, str(error)) from error
    if kind == "application/x-www-form-urlencoded":
        try:
            return Form({**fields, **_fields(parse_pairs(body.decode()))})
        except ValueError as error:
            raise BodyRefused(
                400, "the body is no form in UTF-8: for a picture send Content-Type: image/jpeg"
            ) from error
    if kind.startswith("image/") or kind == "application/octet-stream":
        return Form(fields, {"image": [body]})
    if not body:
        return Form(fields)
    raise BodyRefused(415, f"the content type must be image/…, {' or '.join(FORMS)}")


def _run(coroutine: Coroutine[Any, Any, Form]) -> Form:
    """Of a coroutine that waits for nothing: its files are in memory."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        form: Form = stop.value
        return form
    coroutine.close()
    raise RuntimeError("the parser waits for something")


async def _multipart(body: bytes, headers: Headers, fields: dict[str, list[str]]) -> Form:
    parser = InMemory(
        headers, _pieces(body), max_files=FILES, max_fields=FIELDS, max_part_size=FIELD_BYTES
    )
    try:
        parsed = await parser.parse()
    except Exception as error:  # a garbled body can make the parser raise anything at all
        reason = re.sub(r"\s+", " ", getattr(error, "message", "") or "it is garbled")[:200]
        raise BodyRefused(400, f"the multipart body cannot be read: {reason}") from error
    form = Form(dict(fields))
    given: dict[str, list[str]] = {}
    try:
        for name, value in parsed.multi_items():
            if isinstance(value, UploadFile):
                form.files.setdefault(name, []).append(await value.read())
            elif "\0" in value or "\0" in name:
                raise UsageError("a field holds a NUL character")
            else:
                given.setdefault(name, []).append(value)
    finally:
        await parsed.close()
    form.fields.update(given)
    return form


async def _pieces(body: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]
    yield b""
