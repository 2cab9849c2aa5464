"""Searches → HTML for people. Knows templates and requests; the searching is done elsewhere.

A page is made from its address alone: every choice, example and mark stands in it. So each link on
a page reproduces a search, going back works, and all but dropping pictures works without scripts.
Addresses in pages are relative: they hold below any prefix.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from vizsla.errors import UsageError
from vizsla.web.search.address import FROM, LARGEST_SEED, TO, WHERE, State
from vizsla.web.search.engine import Engine, Found, NotThere
from vizsla.web.search.filters import SUGGESTED, UNKNOWN, Choice, Facet
from vizsla.web.search.request_forms import fields_of_address, parse_pairs
from vizsla.web.search.request_handling import Desk, jpeg, refusal, refused_as_json
from vizsla.web.shell.http import BodyRefused, Json, LastPage
from vizsla.web.shell.templating import many, path_below, templates, to_csv, wants_page

COUNTS = (12, 24, 48, 96)  # results to choose from
MOST_PICTURES = 4  # in one form
USES = ("with", "also", "not")  # of a picture that is dropped
FACETS_IN_SIGHT = 3
NEAR = 5  # values that might have been meant


class Pages:
    def __init__(self, desk: Desk, *, title: str) -> None:
        self.desk = desk
        self._templates = templates(Path(__file__).parent, title=title, start_page="search")
        self._templates.filters |= {"file_name": file_name}
        self._templates.globals |= {
            "counts": tuple(n for n in COUNTS if n <= desk.limits.k),
            "body_limit": desk.limits.body_bytes,
            "fields": {"where": WHERE, "from": FROM, "to": TO},
            "unknown": UNKNOWN,
            "most_suggested": SUGGESTED,
            "most_pictures": MOST_PICTURES,
        }

    def add_to(self, app: FastAPI) -> None:
        app.add_route("/", self.page, methods=["GET"])
        app.add_route("/values", self.suggestions, methods=["GET"])
        app.add_route("/queries", self.take_upload, methods=["POST"])
        app.add_route("/queries/{name}.jpg", self.upload_picture, methods=["GET"])
        app.add_route("/view", self.view, methods=["GET"])
        app.add_route("/why/{side}.jpg", self.why, methods=["GET"])
        app.add_route("/marks.csv", self.marks, methods=["GET"])

    # ── pages ────────────────────────────────────────────────────────────────────────────────────

    async def page(self, request: Request) -> Response:
        if self.desk.serving.engine is None:
            return self._progress()
        engine, state = self.desk.serving.engine, None
        try:
            gallery, fields = engine.gallery, fields_of_address(request)
            state = State.parse(fields, most_k=self.desk.limits.k).fitted(gallery.facets)
            self.desk.count(request)
            if any(not value.strip() for values in fields.values() for value in values):
                return RedirectResponse(f"./?{state.address()}".removesuffix("?"), 303)
            if state.asked.is_empty and state.seed is None:
                state = replace(state, seed=secrets.randbelow(LARGEST_SEED))
            faults = state.faults(gallery.attributes)
            if faults:
                return self._page(engine, state, faults=faults, status=422)
            asked, seed = state.conditions, state.seed or 0
            if asked.is_empty:
                found, _ = await self.desk.done(lambda: engine.random(asked.k, seed, asked.filter))
            else:
                found = (await self.desk.done(lambda: engine.answer(asked))).results
        except Exception as error:
            return self._refused(error, state)
        return self._page(engine, state, found)

    async def suggestions(self, request: Request) -> Response:
        """Values of an attribute that hold a text, as the options of a list."""
        try:
            self.desk.count(request)
            fields = fields_of_address(request)
            column = "".join(fields.pop("column", [])[-1:])
            text = "".join(fields.get(WHERE + column, [])[-1:])
            facets = {facet.column: facet for facet in self.desk.engine.gallery.facets}
            if column not in facets:
                raise NotThere(f"the gallery has no attribute {column[:60]!r} to choose from")
            choices = await self.desk.done(lambda: facets[column].suggestions(text))
        except Exception as error:
            return refused_as_json(error)
        return self._rendered("options.html", choices=choices)

    async def take_upload(self, request: Request) -> Response:
        """Dropped pictures → the address of the search with them."""
        state = None
        try:
            self.desk.count(request)
            engine = self.desk.engine
            async with self.desk.form(request) as form:
                fields: dict[str, list[str]] = {}
                for name, value in parse_pairs(form.one("state")):
                    fields.setdefault(name, []).append(value)
                state = State.parse(fields, most_k=self.desk.limits.k)
                use = form.one("use") or USES[0]
                if use not in USES:
                    raise UsageError(f"use={use[:40]!r}: choose {', '.join(USES)}")
                files = [data for data in form.files.get("image", []) if data]
                if not files:
                    raise UsageError("choose a picture first")
                if len(files) > MOST_PICTURES:
                    raise UsageError(f"{len(files)} pictures: {MOST_PICTURES} at most at a time")
                uploads = await self.desk.done(lambda: engine.upload(files))
        except Exception as error:
            refused = self._refused(error, state)
            refused.headers["HX-Push-Url"] = "false"  # no page to come back to
            return refused
        names = [upload.name for upload in uploads]
        return RedirectResponse("./?" + state.with_uploads(names, use).address(), 303)

    async def view(self, request: Request) -> Response:
        """One result, large, beside what was searched with."""
        state = None
        try:
            engine = self.desk.engine
            fields = fields_of_address(request)
            result = "".join(fields.pop("result", [])[-1:])
            state = State.parse(fields, most_k=self.desk.limits.k)
            engine.picture(result)
            found = Found(result, float("nan"), **engine.gallery.described(result))
        except Exception as error:
            return self._refused(error, state)
        return self._rendered("view.html", state=state, found=found)

    def _refused(self, error: Exception, state: State | None) -> Response:
        """The page with a sentence on what went wrong, and all that can still be asked."""
        status, message, headers = refusal(error)
        engine = self.desk.serving.engine
        if engine is None:
            return self._progress()
        kind = LastPage if isinstance(error, BodyRefused) else HTMLResponse
        return self._page(engine, state, kind=kind, status=status, headers=headers, message=message)

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
        """state: None where the address could not be read. faults: as `State.faults` has them."""
        gallery = engine.gallery
        shown = (state or State()).fitted(gallery.facets)
        names = {one.id for one in found}
        marks = {
            sort: [name for name in getattr(shown.asked, sort) if name not in names]
            for sort in ("right", "wrong")
        }
        return self._rendered(
            "results.html",
            state=shown,
            address=None if state is None else shown.address(),
            found=found,
            said="" if message or faults else _said(shown, found),
            facets=[_with_choice(facet, shown) for facet in gallery.facets],
            in_sight=FACETS_IN_SIGHT,
            faults=faults or {},
            near=[] if found or faults or message else _near(shown, gallery.facets),
            other_marks=marks,
            reads_text=engine.model.reads_text,
            model=engine.model.name,
            gallery=len(gallery),
            columns=[facet.column for facet in gallery.facets],
            message=message,
            **response,
        )

    def _progress(self) -> Response:
        return self._rendered(
            "progress.html",
            status=503,
            headers={"Retry-After": "2"},
            serving=self.desk.serving,
        )

    def error(
        self, request: Request, status: int, message: str, headers: Mapping[str, str] | None
    ) -> Response:
        """A page for browsers, JSON for all else."""
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
        kind: Callable[..., Response] = HTMLResponse,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        up: str = "",
        **values: Any,
    ) -> Response:
        """up: the way from the page to the start page, so that it works below any prefix."""
        text = self._templates.get_template(name).render(up=up, **values)
        return kind(text, status, dict(headers or {}))

    # ── pictures and files ───────────────────────────────────────────────────────────────────────

    async def upload_picture(self, request: Request) -> Response:
        try:
            upload = self.desk.engine.kept_upload(request.path_params["name"])
            return jpeg(upload.jpeg, f'"{upload.name}"')
        except Exception as error:
            return refused_as_json(error)

    async def why(self, request: Request) -> Response:
        """What makes a result like the picture that was searched with."""
        try:
            self.desk.count(request)
            sides = ("query", "result")
            side = request.path_params["side"]
            if side not in sides:
                raise UsageError(f"expected /why/{' or /why/'.join(sides)}.jpg")
            fields = fields_of_address(request)
            result = "".join(fields.pop("result", [])[-1:])
            state = State.parse(fields, most_k=self.desk.limits.k)
            both = await self.desk.why(request, state.asked, result)
            return Response(both[sides.index(side)], media_type="image/jpeg")
        except Exception as error:
            return refused_as_json(error)

    async def marks(self, request: Request) -> Response:
        try:
            engine = self.desk.engine
            state = State.parse(fields_of_address(request), most_k=self.desk.limits.k)
        except Exception as error:
            return refused_as_json(error)
        asked = replace(state.asked, right=(), wrong=())
        records = [
            {
                "search": replace(state, asked=asked).address(),
                "image": name,
                "label": engine.gallery.described(name)["label"],
                "mark": mark,
            }
            for mark in ("right", "wrong")
            for name in getattr(state.asked, mark)
        ]
        text = to_csv(records, columns=["search", "image", "label", "mark"])
        headers = {"content-disposition": 'attachment; filename="marks.csv"'}
        return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


def _said(state: State, found: Sequence[Found]) -> str:
    """What a reader of screens hears of an answer."""
    if not found:
        return "No picture fits"
    if state.asked.is_empty:
        return f"{many(len(found), 'picture')} to start with"
    best = found[0]
    label = "" if best.label is None else f"{best.label}, "
    return f"{many(len(found), 'result')}, best: {label}{file_name(best.id)}, {best.score:.3f}"


def _with_choice(facet: Facet, state: State) -> Facet:
    """A value that was chosen by hand is in the list, or it would silently be another."""
    value = state.value(WHERE + facet.column)
    if facet.kind != "list" or value in ("", *(choice.given for choice in facet.choices)):
        return facet
    return replace(facet, choices=(*facet.choices, Choice(value, value, 0)))


def _near(state: State, facets: Sequence[Facet]) -> list[tuple[str, str]]:
    """(value, address) of values that hold what was typed, where it is no value itself."""
    found = []
    for facet in facets:
        field = WHERE + facet.column
        value = state.value(field)
        if facet.kind == "text" and value not in ("", *(one.given for one in facet.choices)):
            near = facet.suggestions(value, NEAR)
            found += [(one.shown, state.choosing(field, one.given)) for one in near]
    return found


def file_name(name: str) -> str:
    return name.rpartition("/")[2]
