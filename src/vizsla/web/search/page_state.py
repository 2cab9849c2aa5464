"""The address of a page ↔ the search that it shows, and the addresses that the page links to.

Every choice, example and mark is in the address, in one form only: empty values and defaults are
left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa

from vizsla.errors import DataError, UsageError, VizslaError
from vizsla.web.search.facets import (
    UNKNOWN,
    Facet,
    as_choice,
    at_least,
    at_most,
    equals,
    parse_filter,
    written,
)
from vizsla.web.search.models import SearchRequest

WHERE, FROM, TO = "where.", "from.", "to."  # before a column's name: the field of a choice
CONDITIONS = {WHERE: equals, FROM: at_least, TO: at_most}
MAX_SEED = 2**31
FORM = ("group_by", "per_group", "group_score", "diverse")  # fields that say what a result is
OPPOSITE = {"id": "not_id", "not_id": "id", "query": "not_query", "not_query": "query"}


@dataclass(frozen=True)
class State:
    """What a page shows.

    choices: (field, value), such as ("where.label", "shoe").
    seed: of the random images that are shown while there is nothing to search with.
    """

    search: SearchRequest = field(default_factory=SearchRequest)
    choices: tuple[tuple[str, str], ...] = ()
    seed: int | None = None

    @staticmethod
    def parse(fields: Mapping[str, Sequence[str]], *, max_k: int) -> "State":
        """From the fields of an address; UsageError says in one sentence what is wrong."""
        choices = {
            name: values[-1].strip()
            for name, values in fields.items()
            if name.startswith(tuple(CONDITIONS)) and values[-1].strip()
        }
        seed = "".join(fields.get("seed", [])[-1:])
        if seed and not (seed.isascii() and seed.isdigit() and int(seed[:12]) < MAX_SEED):
            raise UsageError(f"seed={seed[:40]!r}: choose a whole number below {MAX_SEED}")
        known = {
            name: [value.strip() for value in values] if name == "filter" else list(values)
            for name, values in fields.items()
            if name in SearchRequest.model_fields
        }
        search = _with_tiles_of_one(SearchRequest.parse(known, max_k=max_k))
        return State(search, tuple(choices.items()), int(seed) if seed else None)

    # ── conditions ───────────────────────────────────────────────────────────────────────────────

    def fitted(self, facets: Sequence[Facet]) -> "State":
        """The state in which choices without a control on the page are written conditions."""
        known = {facet.column: facet for facet in facets}
        others = [_condition(*pair) for pair in self.choices if not _has_control(*pair, known)]
        if not others:
            return self
        choices = tuple(pair for pair in self.choices if _has_control(*pair, known))
        conditions = tuple(dict.fromkeys([*self.search.filter, *others]))
        return replace(self, search=self.search.with_changes(filter=conditions), choices=choices)

    @property
    def filtered_search(self) -> SearchRequest:
        """The search, with the choices among its conditions."""
        choices = (_condition(*pair) for pair in self.choices)
        return self.search.with_changes(filter=(*self.search.filter, *choices))

    def faults(self, attributes: pa.Table) -> dict[str, str]:
        """{field: one sentence} for each condition that does not fit the gallery.

        The fields of written conditions are called filter.0, filter.1, …
        """
        written = {f"filter.{i}": text for i, text in enumerate(self.search.filter)}
        choices = {name: _condition(name, value) for name, value in self.choices}
        found = {}
        for name, text in {**written, **choices}.items():
            try:
                parse_filter([text], attributes)
            except VizslaError as error:
                found[name] = str(error)
                if name in choices and isinstance(error, DataError):
                    found[name] = f"“{dict(self.choices)[name][:60]}” cannot be a value here"
        return found

    def value(self, name: str) -> str:
        """The value of a choice; '' if there is none."""
        return dict(self.choices).get(name, "")

    @property
    def is_filtered(self) -> bool:
        """Whether there is any condition."""
        return bool(self.choices or self.search.filter)

    # ── addresses ────────────────────────────────────────────────────────────────────────────────

    def address(self, **changes: Any) -> str:
        """The query string of this state, with some fields of its search changed."""
        search = self._changed(**changes)
        pairs = [*search.pairs(), *self.choices]
        if self.seed is not None and search.is_empty:
            pairs.append(("seed", str(self.seed)))
        return urlencode(pairs)

    def _changed(self, **changes: Any) -> SearchRequest:
        """The search with some fields changed; a box belongs to the images that it was drawn on."""
        search = self.search.with_changes(**changes)
        same = (search.id, search.query) == (self.search.id, self.search.query)
        return _with_tiles_of_one(search if same else search.with_changes(box=""))

    def others(self) -> str:
        """The address of other random images."""
        return replace(self, seed=None).address()

    def unfiltered(self) -> str:
        """The address of this search without conditions."""
        return replace(self, choices=()).address(filter=())

    def choosing(self, name: str, value: str) -> str:
        """The address of this search with one choice changed."""
        return replace(self, choices=tuple({**dict(self.choices), name: value}.items())).address()

    def among(self, column: str, value: Any) -> str:
        """The address of this search among the images with one value, each of them a result."""
        ungrouped = self.search.with_changes(group_by="", per_group=1, group_score="best")
        return replace(self, search=ungrouped).choosing(WHERE + column, as_choice(written(value)))

    def search_with(self, name: str) -> str:
        """The address of a search with one image of the gallery; marks stay."""
        before = self.search
        search = SearchRequest(
            id=(name,),
            **{name: getattr(before, name) for name in ("filter", "k", "query_tiles", *FORM)},
            right=before.right,
            wrong=_without(before.wrong, [name]),
        )
        return replace(self, search=search).address()

    def also(self, field: str, name: str) -> str:
        """The address of this search with one more example; it is no longer one of the opposite."""
        return self.address(**self._added(field, [name]))

    def turned(self, field: str, name: str) -> str:
        """The address of this search with a positive example made negative, or the reverse."""
        return self.also(OPPOSITE[field], name)

    def lacking(self, field: str, name: str) -> str:
        """The address of this search without one of its examples."""
        return self.address(**{field: _without(getattr(self.search, field), [name])})

    def with_uploads(self, names: Sequence[str], use: str) -> "State":
        """This state with uploads. use: `with` searches with them, `also` and `not` add them."""
        if use == "with":
            not_query = _without(self.search.not_query, names)
            changes: dict[str, Any] = {"query": tuple(names), "not_query": not_query}
            changes |= {"id": (), "right": (), "wrong": ()}
        else:
            changes = self._added("query" if use == "also" else "not_query", names)
        return replace(self, search=self._changed(**changes))

    def _added(self, field: str, names: Sequence[str]) -> dict[str, Any]:
        opposite = OPPOSITE[field]
        return {
            field: tuple(dict.fromkeys([*getattr(self.search, field), *names])),
            opposite: _without(getattr(self.search, opposite), names),
        }


def _with_tiles_of_one(search: SearchRequest) -> SearchRequest:
    """The search without `query_tiles`, if it is not by one image alone: the page then has no such
    choice."""
    return search if search.is_one_image() else search.with_changes(query_tiles="")


def _split(name: str) -> tuple[str, str]:
    prefix = next(prefix for prefix in CONDITIONS if name.startswith(prefix))
    return prefix, name.removeprefix(prefix)


def _condition(name: str, value: str) -> str:
    prefix, column = _split(name)
    return CONDITIONS[prefix](column, value)


def _has_control(name: str, value: str, facets: Mapping[str, Facet]) -> bool:
    prefix, column = _split(name)
    facet = facets.get(column)
    if facet is None:
        return False
    if not facet.is_range:
        return prefix == WHERE
    return prefix != WHERE or (value == UNKNOWN and bool(facet.choices))


def _without(values: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(value for value in values if value not in names)
