"""Searches → HTML pages. Knows templates and requests; the engine searches.

A page follows from its address: every choice, example and mark is in it. So each link on a page
reproduces a search, going back works, and all but dropping images works without scripts.
Addresses in pages are relative, so that they work below any prefix.
"""

import importlib.util
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from fastapi import FastAPI
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from vizsla.data.query_box import QueryBox
from vizsla.data.tables import number_format, value_text
from vizsla.errors import UsageError
from vizsla.web.search.engine import Engine, Found, NotFound
from vizsla.web.search.facets import MAX_SUGGESTED, UNKNOWN, Choice, Facet, parse_filter
from vizsla.web.search.joint_model import JointModel
from vizsla.web.search.models import SearchRequest
from vizsla.web.search.page_state import FROM, MAX_SEED, TO, WHERE, State
from vizsla.web.search.service import Service, refusal
from vizsla.web.shell.http import Json
from vizsla.web.shell.requests import grouped, read_fields
from vizsla.web.shell.templating import many, path_below, templates, to_csv, wants_page

COUNTS = (12, 24, 48, 96)  # numbers of results to choose from
MAX_UPLOADS = 4  # images in one form
USES = ("with", "also", "not")  # of an uploaded image
VISIBLE_FACETS = 3
SHOWN_OF_GROUP = 4  # images of each group
DIVERSE = 0.5  # of the switch
MAX_SIMILAR_VALUES = 5  # suggested if a filter has no results


class Pages:
    """Each method answers one route."""

    def __init__(self, service: Service, *, title: str, columns: Sequence[str] = ()) -> None:
        """columns: attributes that stand on each result, and are filtered by first."""
        self.service, self.columns = service, tuple(columns)
        self._templates = templates(Path(__file__).parent, title=title, start_page="search")
        self._templates.filters |= {"file_name": file_name, "attribute": value_text}
        self._templates.globals |= {
            "shown_columns": self.columns,
            "compares_points": importlib.util.find_spec("cv2") is not None,
            "counts": tuple(n for n in COUNTS if n <= service.limits.k),
            "body_limit": service.limits.body_bytes,
            "fields": {"where": WHERE, "from": FROM, "to": TO},
            "unknown": UNKNOWN,
            "max_suggested": MAX_SUGGESTED,
            "max_uploads": MAX_UPLOADS,
            "usual_diverse": DIVERSE,
        }

    def add_to(self, app: FastAPI) -> None:
        """Adds the routes of the pages."""
        app.add_route("/", self.page, methods=["GET"])
        app.add_route("/values", self.suggestions, methods=["GET"])
        app.add_route("/queries", self.take_upload, methods=["POST"])
        app.add_route("/queries/{name}.jpg", self.upload_picture, methods=["GET"])
        app.add_route("/view", self.view, methods=["GET"])
        app.add_route("/similarity/{side}.jpg", self.similarity_map, methods=["GET"])
        app.add_route("/points.png", self.matching_points, methods=["GET"])
        app.add_route("/marks.csv", self.marks, methods=["GET"])

    # ── pages ────────────────────────────────────────────────────────────────────────────────────

    async def page(self, request: Request) -> Response:
        """The search form and its results; random images if there is nothing to search for."""
        if self.service.state.engine is None:
            return self._progress()
        engine, state = self.service.state.engine, None
        try:
            gallery, fields = engine.gallery, address_fields(request)
            state = State.parse(fields, max_k=self.service.limits.k).fitted(gallery.facets)
            self.service.count(request, items=state.search.vectors_each)
            if any(not value.strip() for values in fields.values() for value in values):
                return RedirectResponse(f"./?{state.address()}".removesuffix("?"), 303)
            if state.search.is_empty and state.seed is None:
                state = replace(state, seed=secrets.randbelow(MAX_SEED))
            faults = state.faults(gallery.attributes)
            if faults:
                return self._page(engine, state, faults=faults, status=422)
            search, seed = _of_page(state.filtered_search), state.seed or 0
            if search.is_empty:
                found = await self.service.searches.run(
                    lambda: engine.random(search.k, seed, search.filter)
                )
            else:
                found = (await self.service.searches.run(lambda: engine.answer(search))).results
        except Exception as error:
            return self._refused(error, state)
        return self._page(engine, state, found)

    async def suggestions(self, request: Request) -> Response:
        """Values of an attribute that contain a text, as the options of a list."""
        self.service.count(request)
        column = request.query_params.get("column", "")
        text = request.query_params.get(WHERE + column, "")
        facets = {facet.column: facet for facet in self.service.engine.gallery.facets}
        if column not in facets:
            raise NotFound(f"the gallery has no attribute {column[:60]!r} to choose from")
        choices = await self.service.searches.run(lambda: facets[column].suggestions(text))
        return self._rendered("options.html", choices=choices)

    async def take_upload(self, request: Request) -> Response:
        """Uploaded images → a redirect to the search with them."""
        state = None
        try:
            self.service.count(request)
            engine = self.service.engine
            fields = await read_fields(request)
            address, use = (_last_text(fields, name) for name in ("state", "use"))
            state = State.parse(
                grouped(QueryParams(address).multi_items()), max_k=self.service.limits.k
            )
            use = use or USES[0]
            if use not in USES:
                raise UsageError(f"use={use[:40]!r}: choose {', '.join(USES)}")
            files = [one for one in fields.get("image", []) if isinstance(one, bytes) and one]
            if not files:
                raise UsageError("choose an image first")
            if len(files) > MAX_UPLOADS:
                raise UsageError(f"{len(files)} images: at most {MAX_UPLOADS} at a time")
            uploads = await self.service.searches.run(lambda: engine.upload(files))
        except Exception as error:
            refused = self._refused(error, state)
            refused.headers["HX-Push-Url"] = "false"  # this address is not a page
            return refused
        names = [upload.name for upload in uploads]
        return RedirectResponse("./?" + state.with_uploads(names, use).address(), 303)

    async def view(self, request: Request) -> Response:
        """One result, large, next to the image that was searched with."""
        state = None
        try:
            engine = self.service.engine
            result = request.query_params.get("result", "")
            state = State.parse(address_fields(request), max_k=self.service.limits.k)
            engine.picture(result)
            part = await self.service.searches.run(lambda: engine.query_part(state.search))
            tile = QueryBox.of(request.query_params.get("found"))
            found = Found(
                result, float("nan"), **engine.gallery.described(result),
                box=tile.numbers if tile and tile.in_fractions else None,
            )  # fmt: skip
        except Exception as error:
            return self._refused(error, state)
        return self._rendered("view.html", state=state, found=found, part=part)

    def _refused(self, error: Exception, state: State | None) -> Response:
        """The page with a sentence on what went wrong, and the search form as it was."""
        refused = refusal(error)
        engine = self.service.state.engine
        if engine is None:
            return self._progress()
        return self._page(
            engine, state, status=refused.status, headers=refused.headers, message=str(refused)
        )

    def _page(
        self,
        engine: Engine,
        state: State | None,
        found: Sequence[Found] = (),
        *,
        faults: Mapping[str, str] | None = None,
        message: str | None = None,
        **response: Any,
    ) -> Response:
        """state: None if the address could not be read. faults: as `State.faults` has them."""
        gallery, calibration = engine.gallery, engine.calibration
        shown = (state or State()).fitted(gallery.facets)
        names = {one.id for one in found}
        marks = {
            mark: [name for name in getattr(shown.search, mark) if name not in names]
            for mark in ("right", "wrong")
        }
        return self._rendered(
            "results.html",
            state=shown,
            address=None if state is None else shown.address(),
            found=found,
            decimals={
                column: number_format(one.attributes.get(column) for one in found)
                for column in self.columns
            },
            is_decided=any(one.accepted is not None for one in found),
            accepted=sum(bool(one.accepted) for one in found),
            sure=f"{100 * calibration.sure:g}" if calibration and calibration.cutoff else "",
            announcement="" if message or faults else _announcement(shown, found),
            facets=[
                _with_choice(facet, shown)
                for facet in sorted(
                    gallery.facets,
                    key=lambda facet: facet.column not in ("label", *self.columns),
                )
            ],
            visible_facets=VISIBLE_FACETS + len(self.columns),
            faults=faults or {},
            similar=[] if found or faults or message else _similar_values(shown, gallery.facets),
            hints=[] if found or faults or message else _hints(shown, gallery.attributes),
            other_marks=marks,
            reads_text=engine.model.reads_text,
            can_tile=not isinstance(engine.model, JointModel),
            model=engine.model.name,
            gallery=len(gallery),
            columns=[facet.column for facet in gallery.facets],
            group_columns=gallery.group_columns,
            message=message,
            **response,
        )

    def _progress(self) -> Response:
        return self._rendered(
            "progress.html",
            status=503,
            headers={"Retry-After": "2"},
            state=self.service.state,
        )

    def error(
        self, request: Request, status: int, message: str, headers: Mapping[str, str] | None
    ) -> Response:
        """A page for browsers, JSON for programs."""
        if not wants_page(request):
            return Json({"error": message}, status, dict(headers or {}))
        depth = max(0, path_below(request).count("/") - 1)
        return self._rendered(
            "error.html", status=status, headers=headers, status_code=status, message=message,
            up="../" * depth,
        )  # fmt: skip

    def _rendered(
        self,
        name: str,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        up: str = "",
        **values: Any,
    ) -> Response:
        """up: the relative path from the page to the start page."""
        text = self._templates.get_template(name).render(up=up, **values)
        return HTMLResponse(text, status, dict(headers or {}))

    # ── images and files ───────────────────────────────────────────────────────────────────────

    async def upload_picture(self, request: Request) -> Response:
        """The JPEG of an upload."""
        upload = self.service.engine.kept_upload(request.path_params["name"])
        headers = {"etag": f'"{upload.name}"', "cache-control": "private, max-age=0"}
        return Response(upload.jpeg, media_type="image/jpeg", headers=headers)

    async def similarity_map(self, request: Request) -> Response:
        """A heat map: where the image searched with, or a result, is like the other."""
        self.service.count(request)
        sides, side = ("query", "result"), request.path_params["side"]
        if side not in sides:
            raise UsageError("expected /similarity/query.jpg or /similarity/result.jpg")
        result = request.query_params.get("result", "")
        state = State.parse(address_fields(request), max_k=self.service.limits.k)
        maps = await self.service.similarity_maps(request, state.search, result)
        return Response(maps[sides.index(side)], media_type="image/jpeg")

    async def matching_points(self, request: Request) -> Response:
        """The image searched with and a result, with lines between the points that match."""
        self.service.count(request)
        engine, result = self.service.engine, request.query_params.get("result", "")
        state = State.parse(address_fields(request), max_k=self.service.limits.k)
        drawn = await self.service.searches.run(
            lambda: engine.matching_points(
                state.search, result, narrow="narrow" in request.query_params
            )
        )
        return Response(drawn, media_type="image/png")

    async def marks(self, request: Request) -> Response:
        """The marks as CSV: search, image, label, mark."""
        engine = self.service.engine
        state = State.parse(address_fields(request), max_k=self.service.limits.k)
        records = [
            {
                "search": state.address(right=(), wrong=()),
                "image": name,
                "label": engine.gallery.described(name)["label"],
                "mark": mark,
            }
            for mark in ("right", "wrong")
            for name in getattr(state.search, mark)
        ]
        text = to_csv(records, columns=["search", "image", "label", "mark"])
        headers = {"content-disposition": 'attachment; filename="marks.csv"'}
        return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


def _of_page(search: SearchRequest) -> SearchRequest:
    """With the images of each group that the page shows."""
    if not search.group_by:
        return search.with_changes(per_group=1, group_score="best")
    return search.with_changes(per_group=max(search.per_group, SHOWN_OF_GROUP))


def address_fields(request: Request) -> dict[str, list[str]]:
    """The fields of the request's address."""
    return grouped(request.query_params.multi_items())


def _last_text(fields: Mapping[str, Any], name: str) -> str:
    texts = [value for value in fields.get(name, []) if isinstance(value, str)]
    return texts[-1] if texts else ""


def _announcement(state: State, found: Sequence[Found]) -> str:
    """What screen readers announce of the results."""
    if not found:
        return "No matching images"
    if state.search.is_empty:
        return f"{many(len(found), 'random image')}"
    best = found[0]
    if best.accepted is False:
        return f"{many(len(found), 'image')}, none of them surely the same"
    label = "" if best.label is None else f"{best.label}, "
    return f"{many(len(found), 'result')}, best: {label}{file_name(best.id)}, {best.score:.3f}"


def _with_choice(facet: Facet, state: State) -> Facet:
    """The facet with the chosen value in its list, even if no image has it."""
    value = state.value(WHERE + facet.column)
    if facet.kind != "list" or value in ("", *(choice.value for choice in facet.choices)):
        return facet
    return replace(facet, choices=(*facet.choices, Choice(value, value, 0)))


def _similar_values(state: State, facets: Sequence[Facet]) -> list[tuple[str, str]]:
    """(value, address) of values that contain the typed text, if no image has it as value."""
    found = []
    for facet in facets:
        field = WHERE + facet.column
        value = state.value(field)
        if facet.kind == "text" and value not in ("", *(one.value for one in facet.choices)):
            similar = facet.suggestions(value, MAX_SIMILAR_VALUES)
            found += [(one.text, state.choosing(field, one.value)) for one in similar]
    return found


def _hints(state: State, attributes: pa.Table) -> list[str]:
    """A sentence for each condition that no image meets."""
    condition = parse_filter(state.filtered_search.filter, attributes)
    return [] if condition is None else condition.unmet(attributes)


def file_name(name: str) -> str:
    """An id without its folders."""
    return name.rpartition("/")[2]
