"""An index in Milvus: a gallery beyond one machine, or a file of Milvus Lite.

`milvus://HOST:PORT/COLLECTION` names a collection of a server, `gallery.db` a file of Milvus Lite.
Milvus gives candidates with their vectors; they are ordered by exact scores here, as in every kind
of index. A second, tiny collection records which model made the vectors.
"""

import dataclasses
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from vizsla.data.query_box import GivenBox, QueryBox
from vizsla.data.tiles import Tiles
from vizsla.embed.embeddings import (
    Embeddings,
    Part,
    about_tiles,
    parts_of,
    source_of,
    tiles_in,
)
from vizsla.embed.shards import labels_in
from vizsla.embed.vector_source import VectorSource
from vizsla.errors import DataError, MissingExtraError, StorageError, UsageError
from vizsla.search import ann, exact
from vizsla.search.filters import Condition, Filter, no_attribute, no_order, typed
from vizsla.search.folder_index import SHOWN, build_in, check_present, require_ids
from vizsla.search.groups import ResultForm
from vizsla.search.index_files import check_new, require_same_tiles
from vizsla.search.items import source_of_items
from vizsla.search.milvus_search import MilvusImages, decoded
from vizsla.search.queries import QueryEncoder
from vizsla.search.query_tiles import by_query_tiles, vectors_of_queries
from vizsla.search.ranking import Ranking, tile_of
from vizsla.search.results import found_results

if TYPE_CHECKING:
    from vizsla.model.embedder import Embedder

FORM = "milvus/1"
ABOUT = "_vizsla"  # ends the name of the second collection
LITE_COLLECTION = "vizsla"
MESSAGE_BYTES = 16 * 2**20
TYPES = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(),
         "day": pa.date32(), "time": pa.timestamp("us")}  # fmt: skip
WIDER = {("int", "float"), ("day", "time")}  # days and times are stored as numbers: microseconds
NOTHING = "row < 0"


def is_milvus(where: str | Path) -> bool:
    """Whether it names an index in Milvus: milvus://… or a file of Milvus Lite (.db)."""
    return str(where).startswith("milvus://") or str(where).endswith(".db")


class MilvusIndex:
    """See index.Index. `ids` and `attributes` are fetched when they are first needed."""

    kind = "milvus"

    def __init__(self, where: str, client: Any, collection: str, about: dict[str, Any]) -> None:
        self.where, self.client, self.collection, self._about = where, client, collection, about
        self._lite = not where.startswith("milvus://")
        self.tiles = tiles_in(about)
        self._vectors_each = len(self.tiles) if self.tiles else 1  # T entities of an image
        self._gallery: tuple[list[str], pa.Table] | None = None
        source = VectorSource(**about.get("source", {}))
        self.encoder = QueryEncoder(source, about["model_id"], where)

    @staticmethod
    def build(embeddings: Embeddings | str | Path, where: str) -> "MilvusIndex":
        """See index.build_index. An existing collection is replaced, if vizsla has made it."""
        client, collection = _connected(where)
        parts = parts_of(embeddings)
        dim = parts.dim
        about = {
            "form": FORM, "model_id": parts.model_id, "dim": dim, "types": {},
            "source": dataclasses.asdict(source_of(embeddings)), **about_tiles(parts.tiles),
        }  # fmt: skip
        with _milvus_errors(where):
            if client.has_collection(collection):
                if not client.has_collection(collection + ABOUT):
                    raise DataError(f"{where} holds another collection: choose another name")
                client.drop_collection(collection)
            if client.has_collection(collection + ABOUT):
                client.drop_collection(collection + ABOUT)
            _create(client, collection, dim, lite=not where.startswith("milvus://"))
            index = MilvusIndex(where, client, collection, about)
            index._write_about()
        seen: set[str] = set()
        for part in parts.parts:
            check_new(part[0], part[1], seen)
            seen.update(part[0])
            index._insert(part)
        return index

    @staticmethod
    def open(where: str) -> "MilvusIndex":
        """The index of that address. DataError: there is none; StorageError: no connection."""
        if not where.startswith("milvus://") and not Path(where).exists():
            raise DataError(f"{where} holds no index: there is no such file (see `vizsla index`)")
        client, collection = _connected(where)
        with _milvus_errors(where):
            if not client.has_collection(collection + ABOUT):
                raise DataError(f"{where} holds no index: no such collection (see `vizsla index`)")
            for name in (collection + ABOUT, collection):  # Lite reopens them released
                client.load_collection(name)
            rows = client.query(collection + ABOUT, filter="row == 0", output_fields=["about"])
        about = rows[0]["about"]
        about = json.loads(about) if isinstance(about, str) else dict(about)
        return MilvusIndex(where, client, collection, about)

    def close(self) -> None:
        """Closes the connection."""
        self.client.close()

    # ── what it holds ────────────────────────────────────────────────────────────────────────────

    @property
    def model_id(self) -> str:
        """Of the model that made the vectors."""
        return str(self._about["model_id"])

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return int(self._about["dim"])

    @property
    def source(self) -> VectorSource:
        """What builds the model again, and where the images are."""
        return self.encoder.source

    @property
    def ids(self) -> list[str]:
        """G ids, in the order in which they were added."""
        return self._fetched()[0]

    @property
    def attributes(self) -> pa.Table:
        """G rows."""
        return self._fetched()[1]

    def attributes_of(self, ids: Sequence[str]) -> pa.Table:
        """See Index.attributes_of."""
        found = self._rows_of(ids, "attributes")
        require_ids(ids, found)
        return self._table([decoded(found[name]) for name in ids])

    @property
    def labels(self) -> list[str | None] | None:
        """The attribute `label` of the G images; None if the index has no such attribute."""
        return labels_in(self.attributes)

    def __len__(self) -> int:
        return self._count("")

    def about(self) -> dict[str, Any]:
        """What `vizsla index info` prints."""
        return {
            "kind": self.kind, "images": len(self), **about_tiles(self.tiles),
            "dim": self.dim, "model_id": self.model_id,
            "attributes": list(self._about["types"]), "collection": self.collection,
        }  # fmt: skip

    def refresh(self) -> bool:
        """Forgets the fetched ids and attributes: another client may have changed them."""
        self._gallery = None
        return True

    def _fetched(self) -> tuple[list[str], pa.Table]:
        if self._gallery is None:
            found = sorted(self._scan("", ["row", "id", "attributes"]), key=lambda r: int(r["row"]))
            found = found[:: self._vectors_each]
            attributes = self._table([decoded(row["attributes"]) for row in found])
            self._gallery = [row["id"] for row in found], attributes
        return self._gallery

    def _table(self, attributes: list[dict[str, Any]]) -> pa.Table:
        return pa.table({
            name: _from_plain([row.get(name) for row in attributes], kind)
            for name, kind in self._about["types"].items()
        })  # fmt: skip

    def _count(self, where: str) -> int:
        """How many images meet `where`."""
        with _milvus_errors(self.where):
            found = self.client.query(self.collection, filter=where, output_fields=["count(*)"])
        return int(found[0]["count(*)"]) // self._vectors_each

    def _scan(self, where: str, fields: list[str]) -> Iterator[dict[str, Any]]:
        """All entities that meet `where`, in no particular order."""
        with _milvus_errors(self.where):
            if self._lite:  # its answers lack the order that an iterator needs
                yield from self.client.query(
                    self.collection, filter=where or "row >= 0", output_fields=fields
                )
                return
            batches = self.client.query_iterator(
                self.collection, filter=where, output_fields=fields, batch_size=1000
            )
            while batch := batches.next():
                yield from batch
            batches.close()

    # ── searching ────────────────────────────────────────────────────────────────────────────────

    def search(
        self,
        queries: Any,
        k: int | None = None,
        filter: Filter | str | Sequence[str] | None = None,
        *,
        group_by: str | None = None,
        per_group: int = 1,
        group_score: str = "best",
        diverse: float | None = None,
        model_id: str | None = None,
        same_set: bool = False,
        items: Mapping[str, Sequence[int]] | None = None,
        embedder: "Embedder | None" = None,
        box: GivenBox = None,
        query_tiles: str | None = None,
    ) -> Ranking:
        """See Index.search. The Ranking's gallery is the images that were found."""
        form = ResultForm(group_by, per_group, group_score, diverse)
        filter = Filter.of(filter)
        queries = self.encoder.embeddings(
            queries, model_id, same_set=same_set, embedder=embedder, box=QueryBox.of(box),
            tiles=Tiles.of_query(query_tiles),
        )  # fmt: skip
        exact.require_comparable(queries.model_id, self.model_id, queries.dim, self.dim)
        if group_by is not None and group_by not in self._about["types"]:
            raise no_attribute(group_by, list(self._about["types"]))
        size = len(self)
        k = min(SHOWN, size - same_set) if k is None else k
        exact.check_k(k, size - same_set)
        where = "" if filter is None else self._expression(filter)
        allowed = size if filter is None else self._count(where)
        T = self._vectors_each
        vectors, each = vectors_of_queries(queries, query_tiles)
        images = MilvusImages(
            self._scan, self._candidates, vectors, where=where, allowed=T * allowed,
            filtered=filter is not None,
            own=np.repeat(queries.ids, each).tolist() if same_set else None, column=group_by,
            vectors_each=T,
        )  # fmt: skip
        by_tiles = by_query_tiles(images, each, T)
        source = source_of_items(by_tiles, items, same_set=same_set, vectors_each=T)
        n_queries = len(queries if items is None else items)
        found = found_results(source, n_queries, k, form, available=allowed)
        ids, rows = images.entities.images(T)
        origin = {"model_id": self.model_id, "kind": self.kind, "depth": k, "same_set": same_set}
        origin |= about_tiles(self.tiles)
        if filter is not None:
            origin["filter"] = str(filter)
        if items is not None:
            origin["query_join"] = "max"
        if each > 1:
            origin["query_tiles"] = str(queries.tiles)
        members = None if found.members is None else _places(found.members // T, rows)
        return Ranking(
            queries.ids if items is None else list(items), ids,
            _places(found.positions // T, rows), found.scores, size,
            {**origin, **form.record()}, query_root=queries.root,
            members=members, member_scores=found.member_scores, tiles=self.tiles,
            best_tile=None if T == 1 else tile_of(found.positions, T),
            attributes_of=self.attributes_of,
        )  # fmt: skip

    def _candidates(
        self, queries: np.ndarray, n: int, where: str, fields: list[str]
    ) -> list[list[dict[str, Any]]]:
        per_call = max(1, MESSAGE_BYTES // (n * (4 * self.dim + 100)))
        answers: list[list[dict[str, Any]]] = []
        with _milvus_errors(self.where):
            for start in range(0, len(queries), per_call):
                hits_of = self.client.search(
                    self.collection, data=queries[start : start + per_call].tolist(), limit=n,
                    filter=where, output_fields=fields, anns_field="vector",
                    search_params={"metric_type": "IP", "params": {"ef": min(2 * n, 32_768)}},
                    consistency_level="Strong",
                )  # fmt: skip
                answers += [[hit["entity"] for hit in hits] for hits in hits_of]
        return answers

    def _expression(self, filter: Filter) -> str:
        """The filter in the syntax that both the server and Milvus Lite understand."""
        parts = [self._condition(condition) for condition in filter.conditions]
        if filter.ids is not None:
            ids = filter.ids
            if len(self._rows_of(sorted(ids))) < len(ids):  # they may be spelled in another way
                ids, _ = filter.named(self.ids)
            named = json.dumps(sorted(ids), ensure_ascii=False)
            parts.append(f"id in {named}" if ids else NOTHING)
        return " and ".join(f"({part})" for part in parts)

    def _condition(self, condition: Condition) -> str:
        types = self._about["types"]
        if condition.column not in types:
            raise no_attribute(condition.column, list(types))
        field = f"attributes[{json.dumps(condition.column)}]"
        known = f"(exists {field})"  # a null is not stored; 2.3 needs the brackets
        kind = types[condition.column]
        found = [typed(v, TYPES[kind], condition) for v in condition.values if v is not None]
        values = [json.dumps(_plain(value, value.type).as_py()) for value in found]
        if condition.operator not in ("=", "!="):
            if kind in ("string", "bool"):
                raise no_order(condition)
            return f"{known} and ({field} {condition.operator} {values[0]})"
        null = None in condition.values
        if condition.operator == "!=":
            return " and ".join([known, *(f"({field} != {value})" for value in values)])
        equal = [f"({field} == {value})" for value in values]
        return " or ".join([*equal, *([f"(not {known})"] if null else [])])

    # ── changing ─────────────────────────────────────────────────────────────────────────────────

    def add(self, embeddings: Embeddings) -> None:
        """See Index.add."""
        require_same_tiles(embeddings.tiles, self.tiles)  # other tiles are another model_id
        exact.require_comparable(
            embeddings.model_id, self.model_id, embeddings.dim, self.dim, what="new images"
        )
        check_new(embeddings.ids, embeddings.all_vectors, self._rows_of(embeddings.ids))
        if len(embeddings):
            self._insert((embeddings.ids, embeddings.all_vectors, embeddings.attributes))

    def remove(self, ids: Sequence[str]) -> int:
        """See Index.remove."""
        rows = self._rows_of(ids)
        check_present(ids, rows)
        T = self._vectors_each
        self._delete([row - row % T + tile for row in rows.values() for tile in range(T)])
        self._gallery = None
        return len(rows)

    def _rows_of(self, ids: Sequence[str], field: str = "row") -> dict[str, Any]:
        """Id → the row of one of its tiles, or another field."""
        found: dict[str, Any] = {}
        with _milvus_errors(self.where):
            for start in range(0, len(ids), 1000):
                named = json.dumps(list(ids[start : start + 1000]), ensure_ascii=False)
                for row in self.client.query(
                    self.collection, filter=f"id in {named}", output_fields=[field, "id"],
                    consistency_level="Strong",
                ):  # fmt: skip
                    found[row["id"]] = int(row[field]) if field == "row" else row[field]
        return found

    def _insert(self, part: Part) -> None:
        ids, vectors, attributes = part
        T = self._vectors_each
        types = _types(attributes, self._about["types"])
        columns = {
            name: _plain(attributes[name], TYPES[types[name]]).to_pylist()
            for name in attributes.column_names
        }
        first = time.time_ns() // T * T  # greater with each addition
        per_call = max(1, MESSAGE_BYTES // (8 * self.dim + 1000))
        done: list[int] = []
        try:
            with _milvus_errors(self.where):
                for start in range(0, len(vectors), per_call):
                    chosen = range(start, min(start + per_call, len(vectors)))
                    self.client.insert(self.collection, [
                        {
                            "row": first + i, "id": ids[i // T], "vector": vectors[i].tolist(),
                            "attributes": {name: column[i // T] for name, column in columns.items()
                                           if column[i // T] is not None},
                        }
                        for i in chosen
                    ])  # fmt: skip
                    done += [first + i for i in chosen]
        except BaseException:
            self._delete(done)
            raise
        if types != self._about["types"]:
            self._about = {**self._about, "types": types}
            self._write_about()
        self._gallery = None

    def _delete(self, rows: list[int]) -> None:
        with _milvus_errors(self.where):
            for start in range(0, len(rows), 1000):
                self.client.delete(self.collection, ids=rows[start : start + 1000])

    def _write_about(self) -> None:
        """Writes the second collection."""
        with _milvus_errors(self.where):
            if not self.client.has_collection(self.collection + ABOUT):
                _create(self.client, self.collection + ABOUT, 2, about=True)
            entity = {"row": 0, "about": self._about, "vector": [1.0, 0.0]}
            self.client.upsert(self.collection + ABOUT, [entity])

    # ── copies and checks ────────────────────────────────────────────────────────────────────────

    def save(self, folder: str | Path) -> None:
        """A copy as an exact index in a folder."""
        found = sorted(self._scan("", ["row", "vector"]), key=lambda r: int(r["row"]))
        vectors = np.array([row["vector"] for row in found], np.float32)
        vectors = vectors.reshape(-1, self._vectors_each, self.dim)
        copied = Embeddings(
            self.ids, vectors[:, 0], self.attributes, self.model_id,
            tiles=self.tiles, tile_vectors=vectors if self.tiles else None,
        )  # fmt: skip
        build_in(Path(folder), copied, kind="exact")

    def verify(self) -> None:
        """StorageError unless the server lists as many images as it counts. It checks no bytes."""
        self.refresh()
        counted = len(self)
        if len(set(self.ids)) != counted:
            raise StorageError(f"{self.where} counts {counted} images, but lists {len(self.ids)}")


def _places(rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The place of each row among the known ones, which rise; -1 stays."""
    return np.where(rows >= 0, np.searchsorted(known, rows), -1)


def _connected(where: str) -> tuple[Any, str]:
    """A client and the collection's name."""
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise MissingExtraError("searching in Milvus", "milvus") from error
    if not where.startswith("milvus://"):
        # Lite runs a server in this process that logs an error for calls it does not know
        logging.getLogger("grpc._server").setLevel(logging.CRITICAL)
        with _milvus_errors(where):
            return MilvusClient(uri=where), LITE_COLLECTION
    found = re.fullmatch(r"milvus://([^/]+:\d+)/([A-Za-z_]\w*)", where)
    if not found:
        raise UsageError(f"{where!r}: write it as milvus://HOST:PORT/COLLECTION")
    with _milvus_errors(where):
        return MilvusClient(uri=f"http://{found[1]}", timeout=10), found[2]


@contextmanager
def _milvus_errors(where: str) -> Iterator[None]:
    """Turns an error of Milvus into a StorageError of one line."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except MilvusException as error:
        message = " ".join(str(getattr(error, "message", "") or error).split())[:300]
        raise StorageError(f"Milvus at {where} says: {message}") from error


def _create(client: Any, name: str, dim: int, *, about: bool = False, lite: bool = False) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("row", DataType.INT64, is_primary=True)
    if about:
        schema.add_field("about", DataType.JSON)
    else:
        schema.add_field("id", DataType.VARCHAR, max_length=4096)
        schema.add_field("attributes", DataType.JSON)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    built = client.prepare_index_params()
    if about or lite:
        built.add_index("vector", index_type="FLAT", metric_type="IP", params={})
    else:
        graph = {"M": ann.LINKS, "efConstruction": 2 * ann.BUILD_EFFORT}
        built.add_index("vector", index_type="HNSW", metric_type="IP", params=graph)
    client.create_collection(name, schema=schema, index_params=built, consistency_level="Strong")


def _types(attributes: pa.Table, known: dict[str, str]) -> dict[str, str]:
    """Column → type, new columns included. DataError if a column's type has changed."""
    types = dict(known)
    for name in attributes.column_names:
        column = attributes[name]
        kind = _type_of(column.type)
        before = types.get(name, kind)
        if column.null_count == len(column) or (kind, before) in WIDER:
            kind = before
        elif before != kind and (before, kind) not in WIDER:
            raise DataError(
                f"the attributes do not fit those in the index: {name} holds {kind}, there {before}"
            )
        types[name] = kind
    return types


def _type_of(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "int" if pa.types.is_integer(kind) else "float"
    return next((name for name, known in TYPES.items() if known == kind), "string")


def _plain(values: Any, kind: pa.DataType) -> Any:
    """A column or a scalar of this kind as JSON stores it: days and times are microseconds."""
    values = values.cast(kind)
    return (
        values.cast(pa.timestamp("us")).cast(pa.int64()) if pa.types.is_temporal(kind) else values
    )


def _from_plain(values: list[Any], kind: str) -> pa.Array:
    if not pa.types.is_temporal(TYPES[kind]):
        return pa.array(values, TYPES[kind])
    return pa.array(values, pa.int64()).cast(pa.timestamp("us")).cast(TYPES[kind])
