"""Search over HTTP: the API. What a request means and what answers it stands elsewhere."""

import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import FileResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vizsla.errors import UsageError
from vizsla.output.submission_formats import parse_json
from vizsla.web.search import openapi
from vizsla.web.search.engine import Answer, NotThere
from vizsla.web.search.pages import Pages
from vizsla.web.search.query import Asked
from vizsla.web.search.rate_limits import Access, comes_from_elsewhere
from vizsla.web.search.readiness import Serving
from vizsla.web.search.request_forms import Form
from vizsla.web.search.request_handling import (
    CHALLENGE,
    Desk,
    Limits,
    Refused,
    cached,
    is_known,
    jpeg,
    not_modified,
    refused_as_json,
    said,
)
from vizsla.web.search.thumbnails import SIDES, Thumbnails, media_type
from vizsla.web.shell.http import Json, SecureHeaders, to_json
from vizsla.web.shell.templating import StaticFolder, answer_errors, path_below, quoted_path

MOST_IMAGES, MOST_EMBEDDED = 16, 20  # in one request
OPEN_TO_ALL = ("/healthz", "/static/")


def create_app(
    serving: Serving, *, limits: Limits | None = None, access: Access | None = None, title: str = ""
) -> FastAPI:
    """The application; it answers, if only that it is not ready, from the start."""
    desk = Desk(serving, limits or Limits(), access or Access())
    app = FastAPI(
        title="Vizsla search", version="1", docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.add_middleware(Guard, desk=desk)
    app.add_middleware(SecureHeaders, forms="'self'")
    pages = Pages(desk, title=title or "Vizsla")
    answer_errors(app, pages.error)
    _add_search(app, desk)
    _add_images(app, desk)
    _add_changes(app, desk)
    _add_health(app, desk)
    pages.add_to(app)
    app.mount("/static", StaticFolder(Path(__file__).parent), name="static")
    described = app.openapi()  # made once and kept by the app
    described.setdefault("components", {})["securitySchemes"] = openapi.SECURITY_SCHEMES
    described["servers"] = openapi.SERVERS
    return app


class Guard:
    """ASGI middleware: who may ask at all; counts and times every answer."""

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self.app, self.desk = app, desk

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
        refused = self._refused(request)
        if "range" in request.headers:  # pictures are sent whole; reading ranges can be costly
            headers = [pair for pair in scope["headers"] if pair[0].lower() != b"range"]
            scope = {**scope, "headers": headers}
        try:
            await (refused or self.app)(scope, receive, counted)
        finally:
            endpoint = scope.get("endpoint")
            route = "refused" if refused else getattr(endpoint, "__name__", "other")
            self.desk.serving.metrics.answered(route, status, time.perf_counter() - started)

    def _refused(self, request: Request) -> Response | None:
        access, headers = self.desk.access, request.headers
        if not access.knows_host(headers.get("host", "")):
            return Json(said("this server does not go by that name: see --allow-host"), 421)
        if comes_from_elsewhere(request.method, headers):
            return Json(said("another site's page may not send this"), 403)
        if path_below(request).startswith(OPEN_TO_ALL):
            return None
        try:
            self.desk.count_lightly(request)
            if access.may_ask(headers):
                return None
            self.desk.count(request)  # or tokens could be tried without end
        except Refused as error:
            return Json(said(str(error)), error.status, error.headers)
        return Json(said("a token is wanted: Authorization: Bearer TOKEN"), 401, CHALLENGE)


# ── search ───────────────────────────────────────────────────────────────────────────────────────


def _add_search(app: FastAPI, desk: Desk) -> None:
    async def search(request: Request) -> Response:
        try:
            desk.count(request)
            engine = desk.engine
            async with desk.form(request) as form:
                files = form.files.pop("image", [])
                if form.files:
                    raise UsageError("pictures are sent in the field `image`")
                if len(files) > MOST_IMAGES:
                    raise UsageError(f"{len(files)} images: {MOST_IMAGES} at most")
                asked = desk.asked(form)
                desk.count_more(request, len(files))
                return _sent(await desk.done(lambda: to_json(as_json(engine.answer(asked, files)))))
        except Exception as error:
            return refused_as_json(error)

    async def embed(request: Request) -> Response:
        try:
            desk.count(request)
            engine = desk.engine
            async with desk.form(request) as form:
                files, texts = form.files.pop("image", []), form.fields.pop("text", [])
                if form.files or form.fields:
                    raise UsageError("expected the fields `image` (files) and `text`, and no other")
                if not 1 <= len(files) + len(texts) <= MOST_EMBEDDED:
                    raise UsageError(f"send from 1 to {MOST_EMBEDDED} images and texts")
                texts = [Asked.parse({"text": [text]}, most_k=1).text for text in texts]
                if not all(texts):
                    raise UsageError("a text is empty")
                desk.count_more(request, len(files) + len(texts))

                def answer() -> bytes:
                    kinds = ["image"] * len(files) + ["text"] * len(texts)
                    vectors = engine.embed(files, texts)
                    found = [
                        {"kind": kind, "vector": vector.tolist()}
                        for kind, vector in zip(kinds, vectors, strict=True)
                    ]
                    about = {"model_id": engine.model.model_id, "dim": engine.model.dim}
                    return to_json({**about, "embeddings": found})

                return _sent(await desk.done(answer))
        except Exception as error:
            return refused_as_json(error)

    app.add_api_route("/v1/search", search, methods=["POST"], **openapi.SEARCH)
    app.add_api_route("/v1/embed", embed, methods=["POST"], **openapi.EMBED)


def _sent(body: bytes) -> Response:
    """JSON that was written in a thread: long lists of numbers take their time."""
    return Response(body, media_type="application/json")


def as_json(answer: Answer) -> dict[str, Any]:
    """image, thumb: relative to the address that was asked, whatever prefix a proxy gives it."""
    return {
        "results": [
            {
                "id": found.id,
                "score": found.score,
                "label": found.label,
                "attributes": found.attributes,
                "image": f"images/{quoted_path(found.id)}",
                "thumb": f"images/{quoted_path(found.id)}/thumb",
            }
            for found in answer.results
        ],
        "queries": answer.uploads,
        "gallery": len(answer.gallery),
        "index": answer.gallery.version,
        "model_id": answer.gallery.index.model_id,
    }


# ── images ───────────────────────────────────────────────────────────────────────────────────────


def _add_images(app: FastAPI, desk: Desk) -> None:
    async def thumb(request: Request, id: str, size: str = "small") -> Response:
        try:
            engine = desk.engine
            if size not in SIDES:
                raise UsageError(f"size={size[:40]!r}: choose {' or '.join(SIDES)}")

            def answer() -> Response:
                path = engine.picture(id)
                tag = f'"{Thumbnails.tag(path, size)}"'
                if is_known(request, tag):
                    return not_modified(tag)
                return jpeg(engine.thumbnails.get(path, size), tag)

            return await desk.pictures.done(answer)
        except OSError:
            return refused_as_json(NotThere("its file is gone"))
        except Exception as error:
            return refused_as_json(error)

    async def image(request: Request, id: str) -> Response:
        try:
            engine = desk.engine

            def answer() -> Response:
                path = engine.picture(id)
                tag = f'"{Thumbnails.tag(path)}"'
                if is_known(request, tag):
                    return not_modified(tag)
                with path.open("rb") as file:
                    kind = media_type(file.read(16))
                if kind is None:  # browsers would not show it
                    return jpeg(engine.thumbnails.get(path, "large"), tag)
                return FileResponse(path, media_type=kind, headers=cached(tag))

            return await desk.pictures.done(answer)
        except OSError:
            return refused_as_json(NotThere("its file is gone"))
        except Exception as error:
            return refused_as_json(error)

    app.add_api_route("/v1/images/{id:path}/thumb", thumb, methods=["GET"], **openapi.THUMB)
    app.add_api_route("/v1/images/{id:path}", image, methods=["GET"], **openapi.IMAGE)


# ── changes ──────────────────────────────────────────────────────────────────────────────────────


def _add_changes(app: FastAPI, desk: Desk) -> None:
    def check(request: Request) -> None:
        desk.count(request)
        if desk.access.change_hash is None:
            raise Refused(403, "the gallery cannot be changed here: see --allow-changes")
        if not desk.access.may_change(request.headers):
            raise Refused(401, "changing the gallery needs its token", CHALLENGE)

    async def add(request: Request) -> Response:
        try:
            check(request)
            engine = desk.engine
            async with desk.form(request) as form:
                files = form.files.pop("image", [])
                name, attributes = form.one("name"), _attributes(form)
                if len(files) != 1 or form.files or form.fields:
                    raise UsageError(
                        "expected one file `image` and, if need be, `name`, `label`, `attributes`"
                    )
                added, version = await desk.changes.done(
                    lambda: engine.add(files[0], name=name, attributes=attributes)
                )
                return Json({"id": added, "index": version}, 201)
        except Exception as error:
            return refused_as_json(error)

    async def remove(request: Request, id: str) -> Response:
        try:
            check(request)
            engine = desk.engine
            version = await desk.changes.done(lambda: engine.remove(id))
            return Json({"id": id, "index": version})
        except Exception as error:
            return refused_as_json(error)

    async def reload(request: Request) -> Response:
        try:
            check(request)
            engine = desk.engine
            changed = await desk.changes.done(engine.reload)
            return Json({"changed": changed, "index": engine.gallery.version})
        except Exception as error:
            return refused_as_json(error)

    app.add_api_route("/v1/images", add, methods=["POST"], **openapi.ADD)
    app.add_api_route("/v1/images/{id:path}", remove, methods=["DELETE"], **openapi.REMOVE)
    app.add_api_route("/v1/reload", reload, methods=["POST"], **openapi.RELOAD)


def _attributes(form: Form) -> dict[str, str]:
    """Of the field `attributes`, a JSON object of texts, and of `label`."""
    text, label = form.one("attributes"), form.one("label")
    found = parse_json(text) if text else {}
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise UsageError('attributes must be a JSON object of texts, such as {"colour": "red"}')
    return {**found, "label": label} if label else found


# ── health ───────────────────────────────────────────────────────────────────────────────────────


def _add_health(app: FastAPI, desk: Desk) -> None:
    def healthz() -> Response:
        serving = desk.serving
        about: dict[str, Any] = {
            "status": serving.stage,
            "done": serving.done,
            "total": serving.total,
        }
        if serving.engine is None:
            return Json(about, 503, {"Retry-After": "2"})
        if serving.engine.is_closed:
            return Json({**about, "status": "closed"}, 503)
        gallery = serving.engine.gallery
        about = {"status": "ready", "gallery": len(gallery), "index": gallery.version}
        return Json({**about, "model_id": serving.engine.model.model_id})

    def metrics() -> Response:
        return Response(desk.serving.metrics.text(), media_type="text/plain; version=0.0.4")

    app.add_api_route("/healthz", healthz, **openapi.HEALTH)
    app.add_api_route("/metrics", metrics, **openapi.METRICS)
