"""The HTTP API: search, embed, images of the gallery, changes to it, health."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from vizsla.web.search.engine import Answer, NotFound
from vizsla.web.search.models import (
    AddForm,
    ChangeAnswer,
    EmbedAnswer,
    Embedded,
    EmbedForm,
    EmbedRequest,
    Error,
    GroupImage,
    NotReady,
    Ready,
    ReloadAnswer,
    Result,
    SearchAnswer,
    SearchForm,
    SearchRequest,
)
from vizsla.web.search.service import CHALLENGE, Service
from vizsla.web.search.thumbnails import Thumbnails, media_type
from vizsla.web.shell.http import Json, Refused
from vizsla.web.shell.requests import read_fields, validated
from vizsla.web.shell.templating import quoted_path

BINARY = {"type": "string", "format": "binary"}
DESCRIPTIONS = {
    400: "The body cannot be read.",
    401: "A token is needed, or another one.",
    403: "Not allowed here.",
    404: "There is no such image.",
    413: "The body is too large.",
    415: "The body is of a type that is not taken.",
    421: "The server was called by an unknown name.",
    422: "Something does not fit; the message says what.",
    429: "Too many requests.",
    503: "Not ready, or too busy.",
}
FOR_ALL = (401, 403, 421, 422, 429, 503)
WITH_BODY = (400, 413, 415)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may refuse with these statuses."""
    return {
        status: {"model": Error, "description": DESCRIPTIONS[status]} for status in sorted(statuses)
    }


def request_body(form: type[BaseModel], json: type[BaseModel] | None = None) -> dict[str, Any]:
    """The description of a body that is a form with images, JSON, or an image itself."""
    content: dict[str, Any] = {
        "multipart/form-data": {
            "schema": form.model_json_schema(),
            "encoding": {"image": {"contentType": "image/*"}},
        },
        "image/*": {"schema": BINARY},
    }
    if json is not None:
        content["application/json"] = {"schema": json.model_json_schema()}
    return {"requestBody": {"required": True, "content": content}}


def as_response(answer: BaseModel, status: int = 200) -> Response:
    """JSON. Called in a thread if the answer is long: many numbers take time."""
    return Response(answer.model_dump_json(), status, media_type="application/json")


def add_api(app: FastAPI, service: Service) -> None:
    """Adds all routes of the API."""
    _add_search(app, service)
    _add_pictures(app, service)
    _add_changes(app, service)
    _add_status(app, service)


# ── search ───────────────────────────────────────────────────────────────────────────────────────


def _add_search(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/search",
        summary="Search by images, ids of the gallery, words, or a mix",
        response_model=SearchAnswer,
        responses=errors(404, *FOR_ALL, *WITH_BODY),
        openapi_extra=request_body(SearchForm, SearchRequest),
    )
    async def search(request: Request) -> Response:
        """`curl -F image=@photo.jpg -F k=5 -F filter=domain=photo …/v1/search`"""
        service.count(request)
        engine = service.engine
        form = SearchForm.parse(await read_fields(request), max_k=service.limits.k)
        service.count(request, items=max(form.vectors_each, len(form.image)) - 1)
        return await service.searches.run(
            lambda: as_response(search_answer(engine.answer(form, form.image)))
        )

    @app.post(
        "/v1/embed",
        summary="The unit vectors of images and texts",
        response_model=EmbedAnswer,
        responses=errors(*FOR_ALL, *WITH_BODY),
        openapi_extra=request_body(EmbedForm, EmbedRequest),
    )
    async def embed(request: Request) -> Response:
        """`curl -F image=@one.jpg -F image=@two.jpg …/v1/embed`"""
        service.count(request)
        engine = service.engine
        form = validated(EmbedForm, await read_fields(request))
        kinds: list[Literal["image", "text"]] = ["image"] * len(form.image)
        kinds += ["text"] * len(form.text)
        service.count(request, items=len(kinds) - 1)

        def answer() -> Response:
            vectors = engine.embed(form.image, form.text)
            embedded = [
                Embedded(kind=kind, vector=vector.tolist())
                for kind, vector in zip(kinds, vectors, strict=True)
            ]
            model = engine.model
            return as_response(
                EmbedAnswer(model_id=model.model_id, dim=model.dim, embeddings=embedded)
            )

        return await service.searches.run(answer)


def search_answer(answer: Answer) -> SearchAnswer:
    """An answer of the engine, with addresses that hold whatever prefix a proxy adds."""
    results = [
        Result(
            id=found.id,
            score=found.score,
            label=found.label,
            attributes=found.attributes,
            probability=found.probability,
            accepted=found.accepted,
            box=found.box,
            **_addresses(found.id),
            group_size=found.size,
            images=[
                GroupImage(id=name, score=score, **_addresses(name))
                for name, score in found.of_group
            ],
        )
        for found in answer.results
    ]
    gallery = answer.gallery
    return SearchAnswer(
        results=results,
        queries=answer.uploads,
        gallery=len(gallery),
        index=gallery.version,
        model_id=gallery.index.model_id,
        hints=list(answer.hints),
    )


def _addresses(name: str) -> dict[str, str]:
    """Of an image of the gallery, relative to that of the request."""
    path = f"images/{quoted_path(name)}"
    return {"image": path, "thumb": f"{path}/thumb"}


# ── images ─────────────────────────────────────────────────────────────────────────────────────


def _add_pictures(app: FastAPI, service: Service) -> None:
    async def cached(
        request: Request, id: str, size: str, respond: Callable[[Path, dict[str, str]], Response]
    ) -> Response:
        """304 if the client has the current file, else `respond(path, headers)`."""
        engine = service.engine

        def answer() -> Response:
            path = engine.picture(id)
            tag = f'"{Thumbnails.tag(path, size)}"'
            headers = {"etag": tag, "cache-control": "private, max-age=0, must-revalidate"}
            known = request.headers.get("if-none-match", "")
            if tag in [one.strip().removeprefix("W/") for one in known.split(",")]:
                return Response(status_code=304, headers=headers)
            return respond(path, headers)

        try:
            return await service.pictures.run(answer)
        except OSError as error:
            raise NotFound("the file of this image is gone") from error

    responses: dict[int | str, dict[str, Any]] = {
        200: {"content": {"image/*": {"schema": BINARY}}, "description": "The image."},
        304: {"description": "The image with this ETag has not changed."},
        **errors(404, *FOR_ALL),
    }

    @app.get(
        "/v1/images/{id:path}/thumb",
        summary="An image of the gallery as a JPEG of 384 or 1,280 px",
        response_class=Response,
        responses=responses,
    )
    async def thumb(
        request: Request, id: str, size: Literal["small", "large"] = "small"
    ) -> Response:
        def respond(path: Path, headers: dict[str, str]) -> Response:
            jpeg = service.engine.thumbnails.get(path, size)
            return Response(jpeg, media_type="image/jpeg", headers=headers)

        return await cached(request, id, size, respond)

    @app.get(
        "/v1/images/{id:path}",
        summary="An image of the gallery, as its file is",
        response_class=Response,
        responses=responses,
    )
    async def image(request: Request, id: str) -> Response:
        def respond(path: Path, headers: dict[str, str]) -> Response:
            with path.open("rb") as file:
                kind = media_type(file.read(16))
            if kind is None:  # a format that not all browsers show
                jpeg = service.engine.thumbnails.get(path, "large")
                return Response(jpeg, media_type="image/jpeg", headers=headers)
            return FileResponse(path, media_type=kind, headers=headers)

        return await cached(request, id, "", respond)


# ── changes ──────────────────────────────────────────────────────────────────────────────────────


def _add_changes(app: FastAPI, service: Service) -> None:
    def require_token(
        request: Request,
        _: Annotated[Any, Depends(HTTPBearer(scheme_name="token", auto_error=False))],
    ) -> None:
        service.count(request)
        if service.access.change_hash is None:
            raise Refused(403, "the gallery cannot be changed here: see --allow-changes")
        if not service.access.may_change(request.headers):
            raise Refused(401, "changing the gallery needs its token", CHALLENGE)

    @app.post(
        "/v1/images",
        summary="Add an image to the gallery; needs --allow-changes",
        status_code=201,
        response_model=ChangeAnswer,
        responses=errors(*FOR_ALL, *WITH_BODY),
        openapi_extra=request_body(AddForm),
        dependencies=[Depends(require_token)],
    )
    async def add(request: Request) -> Response:
        """`curl -H 'Authorization: Bearer …' -F image=@shoe.jpg -F label=shoes …/v1/images`"""
        engine = service.engine
        form = validated(AddForm, await read_fields(request))
        attributes = {**form.attributes, **({"label": form.label} if form.label else {})}
        id, version = await service.changes.run(
            lambda: engine.add(form.image, name=form.name, attributes=attributes)
        )
        return as_response(ChangeAnswer(id=id, index=version), 201)

    @app.delete(
        "/v1/images/{id:path}",
        summary="Remove an image from the gallery; needs --allow-changes",
        response_model=ChangeAnswer,
        responses=errors(404, *FOR_ALL),
        dependencies=[Depends(require_token)],
    )
    async def remove(id: str) -> Response:
        engine = service.engine
        version = await service.changes.run(lambda: engine.remove(id))
        return as_response(ChangeAnswer(id=id, index=version))

    @app.post(
        "/v1/reload",
        summary="Serve the index that is in the folder now; needs --allow-changes",
        response_model=ReloadAnswer,
        responses=errors(*FOR_ALL),
        dependencies=[Depends(require_token)],
    )
    async def reload() -> Response:
        engine = service.engine
        changed = await service.changes.run(engine.reload)
        return as_response(ReloadAnswer(changed=changed, index=engine.gallery.version))


# ── status ───────────────────────────────────────────────────────────────────────────────────────


def _add_status(app: FastAPI, service: Service) -> None:
    @app.get(
        "/healthz",
        summary="Whether the server answers searches",
        response_model=Ready,
        responses={
            503: {"model": NotReady, "description": "Not yet, or no longer."},
            **errors(403, 421),
        },
    )
    def healthz() -> Response:
        state = service.state
        if state.engine is None or state.engine.is_closed:
            stage = state.stage if state.engine is None else "closed"
            not_ready = NotReady(status=stage, done=state.done, total=state.total)
            return Json(not_ready.model_dump(), 503, {"Retry-After": "2"})
        gallery, model_id = state.engine.gallery, state.engine.model.model_id
        return as_response(Ready(gallery=len(gallery), index=gallery.version, model_id=model_id))

    @app.get(
        "/metrics",
        summary="Numbers for Prometheus",
        response_class=PlainTextResponse,
        responses=errors(401, 403, 421, 429),
    )
    def metrics() -> Response:
        state = service.state
        images = 0 if state.engine is None else len(state.engine.gallery)
        text = state.metrics.text(gallery_images=images)
        return Response(text, media_type="text/plain; version=0.0.4")
