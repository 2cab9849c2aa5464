"""The address of a page ↔ what is asked, and the addresses that a page links to.

Every choice, example and mark stands in the address, in one form only: what is empty, or as it is
anyway, is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa

from vizsla.errors import DataError, UsageError, VizslaError
from vizsla.web.search.filters import UNKNOWN, Facet, at_least, at_most, equals, parse_filter
from vizsla.web.search.query import FIELDS, Asked

WHERE, FROM, TO = "where.", "from.", "to."  # before a column's name: the fields of its choice
CONDITIONS = {WHERE: equals, FROM: at_least, TO: at_most}
LARGEST_SEED = 2**31
OPPOSITE = {"id": "not_id", "not_id": "id", "query": "not_query", "not_query": "query"}


@dataclass(frozen=True)
class State:
    """chosen: (field, value) of the choices, such as ("where.label", "shoe").

    seed: of the pictures at random; it counts only while nothing is searched with.
    """

    asked: Asked = field(default_factory=Asked)
    chosen: tuple[tuple[str, str], ...] = ()
    seed: int | None = None

    @staticmethod
    def parse(fields: Mapping[str, Sequence[str]], *, most_k: int) -> "State":
        chosen = {
            name: values[-1].strip()
            for name, values in fields.items()
            if name.startswith(tuple(CONDITIONS)) and values[-1].strip()
        }
        seed = "".join(fields.get("seed", [])[-1:])
        if seed and not (seed.isascii() and seed.isdigit() and int(seed[:12]) < LARGEST_SEED):
            raise UsageError(f"seed={seed[:40]!r}: choose a whole number below {LARGEST_SEED}")
        known = {name: values for name, values in fields.items() if name in FIELDS}
        known["filter"] = [text.strip() for text in known.get("filter", ())]
        asked = Asked.parse(known, most_k=most_k)
        return State(asked, tuple(chosen.items()), int(seed) if seed else None)

    # ── conditions ───────────────────────────────────────────────────────────────────────────────

    def fitted(self, facets: Sequence[Facet]) -> "State":
        """A choice for which the page has no control becomes a written condition."""
        known = {facet.column: facet for facet in facets}
        others = [_condition(*pair) for pair in self.chosen if not _has_control(*pair, known)]
        if not others:
            return self
        chosen = tuple(pair for pair in self.chosen if _has_control(*pair, known))
        asked = replace(self.asked, filter=tuple(dict.fromkeys([*self.asked.filter, *others])))
        return replace(self, asked=asked, chosen=chosen)

    @property
    def conditions(self) -> Asked:
        """What is asked, the choices among its conditions."""
        return replace(
            self.asked, filter=(*self.asked.filter, *(_condition(*pair) for pair in self.chosen))
        )

    def faults(self, attributes: pa.Table) -> dict[str, str]:
        """Field → one sentence, for each condition that the gallery cannot answer.

        The written ones are called filter.0, filter.1, …
        """
        written = {f"filter.{i}": text for i, text in enumerate(self.asked.filter)}
        chosen = {name: _condition(name, value) for name, value in self.chosen}
        found = {}
        for name, text in {**written, **chosen}.items():
            try:
                parse_filter([text], attributes)
            except VizslaError as error:
                found[name] = str(error)
                if name in chosen and isinstance(error, DataError):
                    found[name] = f"“{dict(self.chosen)[name][:60]}” cannot be a value here"
        return found

    def value(self, name: str) -> str:
        """Of a choice; '' where there is none."""
        return dict(self.chosen).get(name, "")

    @property
    def is_filtered(self) -> bool:
        return bool(self.chosen or self.asked.filter)

    # ── addresses ────────────────────────────────────────────────────────────────────────────────

    def address(self, **changes: Any) -> str:
        """The query string of this state, with some fields of what is asked changed."""
        asked = replace(self.asked, **changes)
        pairs = [*asked.pairs(), *self.chosen]
        if self.seed is not None and asked.is_empty:
            pairs.append(("seed", str(self.seed)))
        return urlencode(pairs)

    def others(self) -> str:
        """The address of other pictures at random."""
        return replace(self, seed=None).address()

    def unfiltered(self) -> str:
        return replace(self, chosen=()).address(filter=())

    def choosing(self, name: str, value: str) -> str:
        """The address of this search with one choice changed."""
        return replace(self, chosen=tuple({**dict(self.chosen), name: value}.items())).address()

    def search_with(self, name: str) -> str:
        """The address of the search for what is like one image of the gallery; marks stay."""
        asked = self.asked
        plain = Asked(id=(name,), filter=asked.filter, k=asked.k, right=asked.right)
        wrong = _without(asked.wrong, [name])
        return replace(self, asked=replace(plain, wrong=wrong)).address()

    def also(self, sort: str, name: str) -> str:
        """The address of this search with one more example, which is then none of the opposite."""
        return self.address(**self._added(sort, [name]))

    def turned(self, sort: str, name: str) -> str:
        """The address of this search with an example wanted that was not, or the other way."""
        return self.also(OPPOSITE[sort], name)

    def lacking(self, sort: str, name: str) -> str:
        return self.address(**{sort: _without(getattr(self.asked, sort), [name])})

    def with_uploads(self, names: Sequence[str], use: str) -> "State":
        """use: `with` searches with the pictures, `also` and `not` add them to what is asked."""
        if use == "with":
            asked = replace(self.asked, query=tuple(names), id=(), right=(), wrong=())
            return replace(self, asked=replace(asked, not_query=_without(asked.not_query, names)))
        sort = "query" if use == "also" else "not_query"
        return replace(self, asked=replace(self.asked, **self._added(sort, names)))

    def _added(self, sort: str, names: Sequence[str]) -> dict[str, Any]:
        opposite = OPPOSITE[sort]
        return {
            sort: tuple(dict.fromkeys([*getattr(self.asked, sort), *names])),
            opposite: _without(getattr(self.asked, opposite), names),
        }


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
