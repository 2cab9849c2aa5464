"""Candidates from a Milvus collection → the nearest images and groups, by exact scores.

Knows no client: it is given two functions that fetch entities of the collection.
"""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from vizsla.search import ann, exact
from vizsla.search.ranking import self_positions, without_self
from vizsla.search.tiles import best_tiles

log = logging.getLogger("vizsla.search")

Entity = dict[str, Any]
Scan = Callable[[str, list[str]], Iterable[Entity]]  # expression, fields → all that meet it
Candidates = Callable[[np.ndarray, int, str, list[str]], list[list[Entity]]]  # of each query

TOP_K = 16_384  # the most results that Milvus gives
ROWS_AT_ONCE = 1_000  # that are fetched by number
SCANNED = 10_000  # rows; a filter that allows no more has all of them compared


class MilvusImages:
    """See groups.ImageSource. Positions are the primary keys (`row`), which rise with additions."""

    def __init__(
        self,
        scan: Scan,
        candidates: Candidates,
        queries: np.ndarray,
        *,
        where: str,
        allowed: int,
        filtered: bool,
        own: Sequence[str] | None = None,
        column: str | None = None,
        vectors_each: int = 1,
    ) -> None:
        """queries: (Q, D). where: the expression of the filter, which `allowed` entities meet. own:
        the queries' ids, if each one's own image is left out. column: whose values are groups.
        vectors_each: T entities of an image, whose rows r have one r // T.
        """
        self.scan, self.candidates, self.queries = scan, candidates, queries
        self.where, self.allowed, self.filtered = where, allowed, filtered
        self.own, self.column, self.vectors_each = own, column, vectors_each
        self.fields = ["row", "id", "vector", *(["attributes"] if column else [])]
        self.entities = Entities(len(queries), queries.shape[1])
        self._codes: dict[int, int] = {}  # image → group
        self._code_of: dict[Any, int] = {}  # value → group
        self._values: list[Any] = []  # of each group; None: a group of one image
        self._rows: dict[int, list[int]] = {}  # group → all its rows

    def nearest(self, queries: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """See ImageSource. Each image by the row of its best tile."""
        T = self.vectors_each
        wanted = min(n + (self.own is not None), self.allowed // T)
        if T == 1:
            rows, scores = self._nearest_rows(queries, wanted)
        else:
            rows, scores = best_tiles(
                lambda chosen, m: self._nearest_rows(queries[chosen], m),
                len(queries), wanted, T, available=self.allowed,
            )  # fmt: skip
        if self.own is None:
            return rows, scores
        ids, images = self.entities.images(T)
        own = self_positions([self.own[i] for i in queries], ids)
        own_image = np.where(own < 0, -1, np.append(images, -1)[own])
        return without_self(rows, scores, own_image, n, vectors_each=T)

    def _nearest_rows(self, queries: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the n nearest entities."""
        vectors = self.queries[queries]
        found = self._found(vectors, n)
        self.entities.learn(found)
        positions, scores = found.best(vectors, n)
        rows = np.array(sorted(found.ids), np.int64)
        return np.where(positions >= 0, np.append(rows, -1)[positions], -1), scores

    def _found(self, queries: np.ndarray, k: int) -> "Entities":
        """The candidates of every query: enough to be certain to include its k nearest."""
        found = Entities(len(queries), queries.shape[1])
        if k == 0 or not len(queries):
            return found
        if self.filtered and self.allowed <= SCANNED:
            found.add(range(len(queries)), [self._scanned] * len(queries))
            return found
        n, unsure = ann.candidates_for(k), np.arange(len(queries))
        while True:
            n = min(n, self.allowed, TOP_K)
            found.add(unsure, self.candidates(queries[unsure], n, self.where, self.fields))
            if n in (self.allowed, TOP_K):
                break
            unsure = unsure[found.unsure(queries, unsure, k)]
            if not len(unsure):
                break
            n *= 8
        short = np.flatnonzero([len(found.of[i]) < k for i in range(len(queries))])
        if len(short):
            if k > TOP_K:
                log.warning("Milvus gives at most %d vectors: there are fewer results", TOP_K)
                return found
            found.add(short, [self._scanned] * len(short))
        return found

    @cached_property
    def _scanned(self) -> list[Entity]:
        """All entities that the filter allows, fetched once."""
        return list(self.scan(self.where, self.fields))

    def codes(self, positions: np.ndarray) -> np.ndarray:
        """See ImageSource."""
        return np.array([self._code(row) for row in positions.ravel().tolist()], np.int64).reshape(
            positions.shape
        )

    def _code(self, row: int) -> int:
        image = row // self.vectors_each
        if image not in self._codes and row >= 0:
            value = self.entities.attributes[row].get(str(self.column))
            code = len(self._values)
            if value is not None:
                code = self._code_of.setdefault(value, code)
            if code == len(self._values):
                self._values.append(value)
            self._codes[image] = code
        return self._codes.get(image, -1)

    def images(self, query: int, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ImageSource."""
        groups = codes.tolist()
        new = [code for code in groups if code not in self._rows]
        if new:
            self._fetch(new)
        rows = [row for code in groups for row in self._rows[code]]
        if self.own is not None:
            rows = [row for row in rows if self.entities.ids[row] != self.own[query]]
        return self._best_tiles(query, np.array(rows, np.int64))

    def scored(self, query: int, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ScoredImages."""
        rows = (images[:, None] * self.vectors_each + np.arange(self.vectors_each)).ravel()
        new = [row for row in rows.tolist() if row not in self.entities.ids]
        for start in range(0, len(new), ROWS_AT_ONCE):
            found = Entities(1, self.queries.shape[1])
            part = new[start : start + ROWS_AT_ONCE]
            found.add([0], [list(self.scan(f"row in {part}", self.fields))])
            self.entities.learn(found)
        return self._best_tiles(query, rows)

    def _best_tiles(self, query: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the best tile of each image, and their scores. rows: of all their tiles."""
        scores = exact.rescored(
            self.queries[query : query + 1], self.vectors(rows), np.arange(len(rows))[None]
        )[0].reshape(-1, self.vectors_each)
        return rows.reshape(scores.shape)[:, 0] + scores.argmax(axis=1), scores.max(axis=1)

    def _fetch(self, codes: list[int]) -> None:
        """All entities of these groups that the filter allows."""
        if len(self.entities.ids) < self.allowed:
            field = f"attributes[{json.dumps(self.column)}]"
            values = {code: json.dumps(self._values[code], ensure_ascii=False) for code in codes}
            # an image without a value is a group by itself, of which one entity is known
            alone = {code for code in codes if self._values[code] is None}
            ids = {name for row, name in self.entities.ids.items() if self._code(row) in alone}
            one_of = " or ".join(
                [f"({field} == {value})" for code, value in values.items() if code not in alone]
                + [f"(id in {json.dumps(sorted(ids), ensure_ascii=False)})"] * bool(ids)
            )
            where = f"({self.where}) and ({one_of})" if self.where else one_of
            found = Entities(1, self.queries.shape[1])
            found.add([0], [list(self.scan(where, self.fields))])
            self.entities.learn(found)
        new = set(codes)
        self._rows |= {code: [] for code in new}
        for row in sorted(self.entities.ids):
            if (code := self._code(row)) in new:
                self._rows[code].append(row)

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """See ImageSource."""
        known = self.entities.vectors
        return np.array([known[row] for row in positions.tolist()], np.float32).reshape(
            len(positions), self.queries.shape[1]
        )


class Entities:
    """What was found so far for each query; every entity is stored once, by its row."""

    def __init__(self, queries: int, dim: int) -> None:
        self.of: list[set[int]] = [set() for _ in range(queries)]
        self.dim = dim
        self.ids: dict[int, str] = {}
        self.vectors: dict[int, np.ndarray] = {}
        self.attributes: dict[int, dict[str, Any]] = {}

    def add(self, queries: Sequence[int] | np.ndarray, answers: list[list[Entity]]) -> None:
        """Entities that were found for these queries."""
        for query, entities in zip(queries, answers, strict=True):
            for entity in entities:
                row = int(entity["row"])
                if row not in self.ids:
                    self.ids[row] = entity["id"]
                    self.vectors[row] = np.asarray(entity["vector"], np.float32)
                    self.attributes[row] = decoded(entity.get("attributes"))
                self.of[query].add(row)

    def learn(self, other: "Entities") -> None:
        """The entities of another search, found for no query."""
        self.ids |= other.ids
        self.vectors |= other.vectors
        self.attributes |= other.attributes

    def images(self, vectors_each: int) -> tuple[list[str], np.ndarray]:
        """Ids and numbers of the images, rows r // T, in the gallery's order."""
        names = {row // vectors_each: name for row, name in self.ids.items()}
        numbers = sorted(names)
        return [names[n] for n in numbers], np.array(numbers, np.int64)

    def best(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions among the rows, rising, and exact scores, (Q, k) each."""
        gallery, positions = self._positions()
        missing = max(0, k - positions.shape[1])
        positions = np.pad(positions, ((0, 0), (0, missing)), constant_values=-1)
        scores = exact.rescored(queries, gallery, positions)
        positions, scores = exact.ordered(positions, scores, k)
        short = np.isinf(scores)
        return np.where(short, -1, positions), np.where(short, np.nan, scores)

    def unsure(self, queries: np.ndarray, chosen: np.ndarray, k: int) -> np.ndarray:
        """(chosen,) bool: too few were found, or even the last one scores as high as the k-th."""
        gallery, positions = self._positions()
        scores = -np.sort(-exact.rescored(queries[chosen], gallery, positions[chosen]), axis=1)
        counts = np.array([len(self.of[i]) for i in chosen])
        last = np.take_along_axis(scores, counts[:, None] - 1, axis=1)[:, 0]
        return np.asarray((counts < k) | (last >= scores[:, min(k, scores.shape[1]) - 1]))

    def _positions(self) -> tuple[np.ndarray, np.ndarray]:
        rows = sorted(self.ids)
        position = {row: i for i, row in enumerate(rows)}
        gallery = np.array([self.vectors[row] for row in rows], np.float32).reshape(-1, self.dim)
        positions = np.full((len(self.of), max(map(len, self.of), default=0)), -1)
        for i, found in enumerate(self.of):
            positions[i, : len(found)] = [position[row] for row in found]
        return gallery, positions


def decoded(attributes: Any) -> dict[str, Any]:
    """Attributes as Milvus gives them: JSON as text or read; none without."""
    if isinstance(attributes, (str, bytes)):
        return dict(json.loads(attributes))
    return dict(attributes or {})
