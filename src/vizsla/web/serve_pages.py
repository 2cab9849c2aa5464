"""Searches → HTML for people. Knows templates and requests; the searching is done elsewhere.

A page is made from its address alone: every choice, example and mark stands in it. So each link on
a page reproduces a search, going back works, and all but dropping pictures works without scripts.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from vizsla.errors import UsageError
from vizsla.web.http import BodyRefused, Json, LastPage
from vizsla.web.serve_desk import Desk, jpeg, refusal, refused_as_json
from vizsla.web.serve_engine import Engine, Found
from vizsla.web.serve_forms import fields_of_address, parse_pairs
from vizsla.web.serve_gallery import Facet, equals
from vizsla.web.serve_query import FIELDS, Asked
from vizsla.web.templating import templates, to_csv, wants_page

WHERE = "where."  # before a column's name: the field of its choice
UNKNOWN = "null"  # the choice of what has no value
COUNTS = (12, 24, 48, 96)  # results to choose from
MOST_PICTURES = 4  # in one form
LARGEST_SEED = 2**31


@dataclass(frozen=True)
class State:
    """An address of the page. where: column → the value chosen. seed: of the random pictures."""

    asked: Asked = field(default_factory=Asked)
    where: tuple[tuple[str, str], ...] = ()
    seed: int | None = None

    @staticmethod
    def parse(fields: Mapping[str, Sequence[str]], *, most_k: int) -> "State":
        where = {
            name.removeprefix(WHERE): values[-1]
            for name, values in fields.items()
            if name.startswith(WHERE) and values[-1]
        }
        seed = "".join(fields.get("seed", [])[-1:])
        if seed and not (seed.isascii() and seed.isdigit() and int(seed[:12]) < LARGEST_SEED):
            raise UsageError(f"seed={seed[:40]!r}: choose a whole number below {LARGEST_SEED}")
        known = {name: values for name, values in fields.items() if name in FIELDS}
        asked = Asked.parse(known, most_k=most_k)
        return State(asked, tuple(where.items()), int(seed) if seed else None)

    @property
    def conditions(self) -> Asked:
        """What is asked, the choices from lists among its conditions."""
        chosen = [equals(column, "" if value == UNKNOWN else value) for column, value in self.where]
        return replace(self.asked, filter=(*self.asked.filter, *chosen))

    def address(self, **changes: Any) -> str:
        """The query string of this state, with some fields of what is asked changed."""
        pairs = replace(self.asked, **changes).pairs() if changes else self.asked.pairs()
        return urlencode([*pairs, *((WHERE + column, value) for column, value in self.where)])

    def search_with(self, name: str) -> str:
        """The address of the search for what is like one image of the gallery, and nothing else."""
        plain = Asked(id=(name,), filter=self.asked.filter, k=self.asked.k)
        return replace(self, asked=plain).address()

    def also(self, sort: str, name: str) -> str:
        """The address of this search with one more example."""
        values = getattr(self.asked, sort)
        return self.address(**{sort: tuple(dict.fromkeys([*values, name]))})

    def lacking(self, sort: str, name: str) -> str:
        return self.address(**{sort: tuple(v for v in getattr(self.asked, sort) if v != name)})


class Pages:
    def __init__(self, desk: Desk, *, title: str) -> None:
        self.desk = desk
        self._templates = templates()
        self._templates.filters |= {"file_name": lambda name: name.rpartition("/")[2]}
        self._templates.globals |= {
            "title": title,
            "counts": tuple(n for n in COUNTS if n <= desk.limits.k),
            "body_limit": desk.limits.body_bytes,
            "unknown": UNKNOWN,
        }

    def add_to(self, app: FastAPI) -> None:
        app.add_route("/", self.page, methods=["GET"])
        app.add_route("/queries", self.take_upload, methods=["POST"])
        app.add_route("/queries/{name}.jpg", self.upload_picture, methods=["GET"])
        app.add_route("/view", self.view, methods=["GET"])
        app.add_route("/why/{side}.jpg", self.why, methods=["GET"])
        app.add_route("/marks.csv", self.marks, methods=["GET"])

    # ── pages ────────────────────────────────────────────────────────────────────────────────────

    async def page(self, request: Request) -> Response:
        if self.desk.serving.engine is None:
            return self._progress()
        engine, state = self.desk.serving.engine, State()
        try:
            state = State.parse(fields_of_address(request), most_k=self.desk.limits.k)
            self.desk.count(request)
            if state.asked.is_empty:
                if state.seed is None:
                    state = replace(state, seed=secrets.randbelow(LARGEST_SEED))
                seed, asked = state.seed or 0, state.conditions
                found, _ = await self.desk.done(lambda: engine.random(asked.k, seed, asked.filter))
            else:
                asked = state.conditions
                found = (await self.desk.done(lambda: engine.answer(asked))).results
        except Exception as error:
            return self._refused(error, state)
        return self._page(engine, state, found)

    async def take_upload(self, request: Request) -> Response:
        """A dropped picture → the address of the search with it."""
        state = State()
        try:
            self.desk.count(request)
            engine = self.desk.engine
            async with self.desk.form(request) as form:
                fields: dict[str, list[str]] = {}
                for name, value in parse_pairs(form.one("state")):
                    fields.setdefault(name, []).append(value)
                state = State.parse(fields, most_k=self.desk.limits.k)
                files = [data for data in form.files.get("image", []) if data]
                if not 1 <= len(files) <= MOST_PICTURES:
                    raise UsageError("choose a picture first" if not files else "too many pictures")
                uploads = await self.desk.done(lambda: engine.upload(files))
        except Exception as error:
            return self._refused(error, state)
        names = tuple(upload.name for upload in uploads)
        asked = replace(state.asked, query=names, id=(), right=(), wrong=())
        return RedirectResponse("./?" + replace(state, asked=asked).address(), 303)

    async def view(self, request: Request) -> Response:
        """One result, large, beside what was searched with."""
        state = State()
        try:
            engine = self.desk.engine
            fields = fields_of_address(request)
            result = "".join(fields.pop("result", [])[-1:])
            state = State.parse(fields, most_k=self.desk.limits.k)
            engine.picture(result)
            found = Found(result, float("nan"), **engine.gallery.described(result))
        except Exception as error:
            return self._refused(error, state)
        return self._rendered("serve_view.html", state=state, found=found)

    def _page(self, engine: Engine, state: State, found: Sequence[Found]) -> Response:
        shown = {one.id for one in found}
        marks = {
            sort: [name for name in getattr(state.asked, sort) if name not in shown]
            for sort in ("right", "wrong")
        }
        return self._rendered(
            "serve_page.html",
            state=state,
            found=found,
            facets=_with_choice(engine.gallery.facets, state),
            chosen=dict(state.where),
            other_marks=marks,
            reads_text=engine.model.reads_text,
            model=engine.model.name,
            gallery=len(engine.gallery),
            message=None,
        )

    def _refused(self, error: Exception, state: State) -> Response:
        """The page with a sentence on what went wrong, and all that can still be asked."""
        status, message, headers = refusal(error)
        unread = isinstance(error, BodyRefused)
        engine = self.desk.serving.engine
        if engine is None:
            return self._progress()
        return self._rendered(
            "serve_page.html",
            kind=LastPage if unread else HTMLResponse,
            status=status,
            headers=headers,
            state=state,
            found=[],
            facets=_with_choice(engine.gallery.facets, state),
            chosen=dict(state.where),
            other_marks={"right": [], "wrong": []},
            reads_text=engine.model.reads_text,
            model=engine.model.name,
            gallery=len(engine.gallery),
            message=message,
        )

    def _progress(self) -> Response:
        return self._rendered(
            "serve_progress.html",
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
        depth = max(0, request.url.path.count("/") - 1)
        return self._rendered(
            "serve_error.html", status=status, headers=headers, code=status, message=message,
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


def _with_choice(facets: Sequence[Facet], state: State) -> list[Facet]:
    """A value that was chosen by hand is among the choices, or it would silently be another."""
    chosen = dict(state.where)
    found = []
    for facet in facets:
        value = chosen.get(facet.column)
        known = [UNKNOWN if one is None else one for one, _ in facet.values]
        if value is not None and value not in known:
            facet = Facet(facet.column, [*facet.values, (value, 0)])
        found.append(facet)
    return found
