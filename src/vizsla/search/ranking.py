"""Ranking: for every query the gallery ids by falling score. Knows no labels and no vectors."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vizsla import storage
from vizsla.data.tiles import Box, Tiles
from vizsla.errors import DataError
from vizsla.notebook import SHOWN, Shown, Summary, counted, data_frame

NEAR = "queries_near"  # in the origin: the mean share of other queries among a query's neighbours
FEWER = 1.1  # times as many may be near where decisions are learned as where they apply
FIRST = 3  # results of a query that a notebook's table shows


@dataclass(frozen=True, eq=False, repr=False)
class Ranking(Shown):
    """For each of Q queries up to K gallery images, best first.

    queries: Q ids. gallery: the ids that `positions` point into.
    positions: (Q, K) int64, -1 after a row's end (rows may differ in length).
    scores: (Q, K) float64 falling along a row (not of a diverse search), nan after its end; None if
    unknown.
    gallery_size: G if the whole gallery is known, else None (as from a submission file).
    origin: what made it (model_id, k, …), for the record.
    query_root, gallery_root: the folders of the images, if they are known; they are not saved.
    accepted: (Q,) int64, how many first images of each row are accepted, 0 for none of these; None
    if nothing was decided. probability: (Q, K) float64, that each image is right; with `accepted`.
    evidence: (Q, K) float64, beside the scores, for decisions: see `evidence.with_evidence`.
    members, member_scores: (Q, K, N) as positions and scores, if each result is a group: its best
    images.
    tiles, best_tile: of images with several vectors, their boxes, and (Q, K) int8 the one that
    scored highest; -1 after a row's end.
    attributes_of: the columns of gallery ids, a row each, if a search knows them; it is not saved.
    """

    queries: list[str]
    gallery: list[str]
    positions: np.ndarray
    scores: np.ndarray | None = None
    gallery_size: int | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    query_root: Path | None = None
    gallery_root: Path | None = None
    accepted: np.ndarray | None = None
    probability: np.ndarray | None = None
    evidence: np.ndarray | None = None
    members: np.ndarray | None = None
    member_scores: np.ndarray | None = None
    tiles: Tiles | None = None
    best_tile: np.ndarray | None = None
    attributes_of: Callable[[Sequence[str]], pa.Table] | None = None

    def __post_init__(self) -> None:
        if len(set(self.queries)) != len(self.queries):
            raise DataError("a ranking must hold each query once; some occur twice")
        if self.positions.ndim != 2 or len(self.positions) != len(self.queries):
            raise DataError(
                f"positions have shape {self.positions.shape}, expected ({len(self.queries)}, K)"
            )
        if self.scores is not None and self.scores.shape != self.positions.shape:
            raise DataError(
                f"scores have shape {self.scores.shape}, positions {self.positions.shape}"
            )
        if self.accepted is not None and self.accepted.shape != (len(self.queries),):
            raise DataError(
                f"accepted has shape {self.accepted.shape}, expected ({len(self.queries)},)"
            )
        for name in ("probability", "evidence", "best_tile"):
            values = getattr(self, name)
            if values is not None and values.shape != self.positions.shape:
                raise DataError(
                    f"{name} has shape {values.shape}, positions {self.positions.shape}"
                )
        for name in ("members", "member_scores"):
            values = getattr(self, name)
            if values is not None and values.shape[:2] != self.positions.shape:
                raise DataError(
                    f"{name} has shape {values.shape}, expected (*{self.positions.shape}, N)"
                )

    def __len__(self) -> int:
        return len(self.queries)

    def summary(self) -> Summary:
        """Its size and what made it; the first results of the first queries."""
        facts = [counted(len(self), "query", "queries"), f"{counted(self.depth, 'rank')} each"]
        if self.gallery_size is not None:
            facts.append(f"of {counted(self.gallery_size, 'gallery image')}")
        if "model_id" in self.origin:
            facts.append(f"model {self.origin['model_id']}")
        if self.accepted is not None:
            facts.append(f"{counted(int((self.accepted > 0).sum()), 'query', 'queries')} answered")
        rows = []
        for i in range(min(len(self), SHOWN)):
            names = self.row(i)[:FIRST]
            shown = [""] * FIRST
            for j, name in enumerate(names):
                score = "" if self.scores is None else f" ({self.scores[i, j]:.3f})"
                shown[j] = name + score
            rows.append([self.queries[i], *shown])
        more = len(self) - SHOWN
        return Summary(
            "Ranking",
            facts,
            ["query", *(f"rank {n}" for n in range(1, FIRST + 1))],
            rows,
            notes=[f"… and {counted(more, 'more query', 'more queries')}"] * (more > 0),
        )

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each result: query, rank (from 1), gallery, score, probability
        and accepted (if it was decided what is accepted), and the known columns of the image."""
        at, column = np.nonzero(self.positions >= 0)
        gallery = np.array(self.gallery, dtype=object)[self.positions[at, column]]
        scores = np.full(len(at), np.nan) if self.scores is None else self.scores[at, column]
        queries = np.array(self.queries, dtype=object)[at]
        columns = {"query": queries, "rank": column + 1, "gallery": gallery, "score": scores}
        if self.accepted is not None and self.probability is not None:
            columns["probability"] = self.probability[at, column]
            columns["accepted"] = self.is_accepted[at, column]
        known = self._attributes(gallery.tolist())
        more = [name for name in known.column_names if name not in columns]
        return data_frame({**columns, **{name: known[name].to_pylist() for name in more}})

    @property
    def depth(self) -> int:
        """K: the length of the longest row."""
        return int(self.positions.shape[1])

    @property
    def lengths(self) -> np.ndarray:
        """(Q,) int64: how many gallery images each row holds."""
        return (self.positions >= 0).sum(axis=1)

    @property
    def is_accepted(self) -> np.ndarray:
        """(Q, K) bool. All images are, where nothing was decided."""
        there = self.positions >= 0
        if self.accepted is None:
            return there
        accepted: np.ndarray = there & (np.arange(self.depth)[None] < self.accepted[:, None])
        return accepted

    def row(self, i: int) -> list[str]:
        """The gallery ids of query i, best first."""
        return [self.gallery[p] for p in self.positions[i] if p >= 0]

    def results(self, i: int) -> list[dict[str, Any]]:
        """The results of query i, best first: id, score (None if unknown), probability and accepted
        (if it was decided what is accepted), and the known columns of the image."""
        ids = self.row(i)
        found = [
            {"id": name, "score": None if self.scores is None else float(self.scores[i, j])}
            for j, name in enumerate(ids)
        ]  # type: list[dict[str, Any]]
        if self.accepted is not None and self.probability is not None:
            for j, result in enumerate(found):
                result["probability"] = float(self.probability[i, j])
                result["accepted"] = j < int(self.accepted[i])
        columns = self._attributes(ids)
        for result, attributes in zip(found, columns.to_pylist(), strict=columns.num_columns > 0):
            result |= {name: attributes[name] for name in attributes if name not in result}
        return found

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """The `results` of each query."""
        return (self.results(i) for i in range(len(self)))

    def _attributes(self, ids: Sequence[str]) -> pa.Table:
        """The columns that are known of gallery images."""
        return pa.table({}) if self.attributes_of is None else self.attributes_of(ids)

    def box(self, i: int, j: int) -> Box | None:
        """The part of result j of query i that scored highest: x, y, width and height as fractions
        of the image. None where images have one vector, and after a row's end."""
        if self.tiles is None or self.best_tile is None or self.best_tile[i, j] < 0:
            return None
        return self.tiles.boxes[self.best_tile[i, j]]

    def head(self, k: int) -> "Ranking":
        """The same ranking, cut to the first k."""
        return replace(
            self,
            positions=self.positions[:, :k],
            scores=None if self.scores is None else self.scores[:, :k],
            accepted=None if self.accepted is None else np.minimum(self.accepted, k),
            probability=None if self.probability is None else self.probability[:, :k],
            evidence=None if self.evidence is None else self.evidence[:, :k],
            members=None if self.members is None else self.members[:, :k],
            member_scores=None if self.member_scores is None else self.member_scores[:, :k],
            best_tile=None if self.best_tile is None else self.best_tile[:, :k],
        )

    def with_results(
        self,
        positions: np.ndarray,
        scores: np.ndarray | None,
        *,
        queries: Sequence[str] | None = None,
        members: np.ndarray | None = None,
        member_scores: np.ndarray | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> "Ranking":
        """Other results of the same gallery, for these queries or the same; what was known of the
        earlier ones (decisions, groups, tiles) is dropped. origin: is added."""
        return replace(
            self, queries=self.queries if queries is None else list(queries), positions=positions,
            scores=scores, members=members, member_scores=member_scores, accepted=None,
            probability=None, evidence=None, tiles=None, best_tile=None,
            origin={**self.origin, **(origin or {})},
        )  # fmt: skip

    @property
    def has_no_cutoff(self) -> bool:
        """Whether nothing is accepted because no estimate is sure enough, so that it says nothing
        of what is in the gallery."""
        about = self.origin.get("accept")
        accepts_none = self.accepted is not None and not self.accepted.any()
        return accepts_none and about is not None and about["estimate"] is None

    def only_accepted(self) -> "Ranking":
        """The same ranking without the images that are not accepted; rows may become empty."""
        kept = self.is_accepted
        return replace(
            self,
            positions=np.where(kept, self.positions, -1),
            scores=None if self.scores is None else np.where(kept, self.scores, np.nan),
            probability=(
                None if self.probability is None else np.where(kept, self.probability, np.nan)
            ),
            evidence=None if self.evidence is None else np.where(kept, self.evidence, np.nan),
            best_tile=None if self.best_tile is None else np.where(kept, self.best_tile, -1),
            members=None if self.members is None else np.where(kept[..., None], self.members, -1),
            member_scores=(
                None
                if self.member_scores is None
                else np.where(kept[..., None], self.member_scores, np.nan)
            ),
        ).head(int(kept.sum(axis=1).max(initial=0)))

    @staticmethod
    def from_lists(
        lists: Mapping[str, Sequence[str]], scores: Mapping[str, Sequence[float]] | None = None
    ) -> "Ranking":
        """From {query: [gallery id, …]}, as a submission holds it; G stays unknown."""
        gallery = sorted({name for row in lists.values() for name in row}, key=str.encode)
        position = {name: i for i, name in enumerate(gallery)}
        shape = (len(lists), max((len(row) for row in lists.values()), default=0))
        positions = np.full(shape, -1, dtype=np.int64)
        values = None if scores is None else np.full(shape, np.nan)
        for i, (query, row) in enumerate(lists.items()):
            positions[i, : len(row)] = [position[name] for name in row]
            if values is not None and scores is not None:
                values[i, : len(row)] = scores[query]
        return Ranking(list(lists), gallery, positions, values)

    def to_lists(self, k: int | None = None) -> dict[str, list[str]]:
        """{query: [gallery id, …]}, best first, at most k of them."""
        cut = self if k is None else self.head(k)
        return {query: cut.row(i) for i, query in enumerate(cut.queries)}

    def save(self, path: str | Path) -> None:
        """Writes one Parquet file: query, rank (from 1), gallery, score. Also probability and
        accepted if it was decided what is accepted, and evidence if it has any; the lists images
        and image_scores if results are groups; tile if images have tiles.

        A query without results is one row of rank 0 with a null gallery.
        """
        lengths = self.lengths
        rows = np.maximum(lengths, 1)
        query = np.repeat(np.arange(len(self)), rows)
        first = np.repeat(np.cumsum(rows) - rows, rows)
        column = np.arange(len(query)) - first
        empty = np.repeat(lengths == 0, rows)
        if self.depth == 0:
            position = np.full(len(query), -1)
            score = np.full(len(query), np.nan)
        else:
            position = self.positions[query, column]
            known = self.scores is not None
            score = self.scores[query, column] if known else np.full(len(query), np.nan)  # type: ignore[index]
        table = pa.table(
            {
                "query": pa.DictionaryArray.from_arrays(
                    pa.array(query, pa.int32()), pa.array(self.queries, pa.string())
                ),
                "rank": pa.array(np.where(empty, 0, column + 1), pa.int32()),
                "gallery": pa.DictionaryArray.from_arrays(
                    pa.array(position, pa.int32(), mask=empty), pa.array(self.gallery, pa.string())
                ),
                "score": pa.array(score, pa.float64(), mask=np.isnan(score)),
            }
        )
        if self.accepted is not None and self.probability is not None:
            chance = np.full(len(query), np.nan)
            if self.depth:
                chance = self.probability[query, column]
            accepted = pa.array(column < self.accepted[query])
            table = table.append_column("probability", pa.array(chance, mask=np.isnan(chance)))
            table = table.append_column("accepted", accepted)
        if self.evidence is not None and self.depth:
            evidence = self.evidence[query, column]
            table = table.append_column("evidence", pa.array(evidence, mask=np.isnan(evidence)))
        if self.members is not None and self.member_scores is not None and self.depth:
            members = np.where(empty[:, None], -1, self.members[query, column])
            for name, lists in _lists(members, self.member_scores[query, column], self.gallery):
                table = table.append_column(name, lists)
        about = {"gallery_size": self.gallery_size, "origin": self.origin, "form": "ranking/1"}
        if self.tiles is not None and self.best_tile is not None:
            about["tiles"] = str(self.tiles)
            tile = self.best_tile[query, column] if self.depth else np.full(len(query), -1)
            table = table.append_column("tile", pa.array(tile, pa.int8()))
        storage.write_sealed_table(
            path, table.replace_schema_metadata({"vizsla": json.dumps(about)})
        )

    @staticmethod
    def load(path: str | Path) -> "Ranking":
        """Reads what `save` wrote. StorageError: damaged; DataError: another kind of file."""
        table = storage.read_sealed_table(path)
        about = json.loads((table.schema.metadata or {}).get(b"vizsla", b"{}"))
        if about.get("form") != "ranking/1":
            raise DataError(f"{path} is not a ranking: it says form={about.get('form')!r}")
        query_of, queries = _encoded(table["query"])
        name_of, gallery = _encoded(table["gallery"])
        rank = table["rank"].to_numpy()
        filled = rank > 0
        shape = (len(queries), int(rank.max(initial=0)))
        positions = np.full(shape, -1, dtype=np.int64)
        positions[query_of[filled], rank[filled] - 1] = name_of[filled]
        score = table["score"]
        scores = None
        if score.null_count < filled.sum():
            scores = np.full(shape, np.nan)
            scores[query_of[filled], rank[filled] - 1] = score.to_numpy()[filled]
        accepted = probability = None
        if "accepted" in table.column_names:
            taken = table["accepted"].to_numpy() & filled
            accepted = np.bincount(query_of[taken], minlength=len(queries))
            probability = np.full(shape, np.nan)
            chance = table["probability"].to_numpy()
            probability[query_of[filled], rank[filled] - 1] = chance[filled]
        evidence = None
        if "evidence" in table.column_names:
            evidence = np.full(shape, np.nan)
            evidence[query_of[filled], rank[filled] - 1] = table["evidence"].to_numpy()[filled]
        best_tile = None
        if "tile" in table.column_names:
            best_tile = np.full(shape, -1, np.int8)
            best_tile[query_of[filled], rank[filled] - 1] = table["tile"].to_numpy()[filled]
        members = member_scores = None
        if "images" in table.column_names:
            of_rows, of_scores, gallery = _from_lists(table, gallery)
            members = np.full((*shape, of_rows.shape[1]), -1, dtype=np.int64)
            members[query_of[filled], rank[filled] - 1] = of_rows[filled]
            member_scores = np.full(members.shape, np.nan)
            member_scores[query_of[filled], rank[filled] - 1] = of_scores[filled]
        return Ranking(
            queries, gallery, positions, scores, about["gallery_size"], about.get("origin", {}),
            accepted=accepted, probability=probability, evidence=evidence, members=members,
            member_scores=member_scores, tiles=Tiles.parse(about.get("tiles", "none")),
            best_tile=best_tile,
        )  # fmt: skip


def _lists(
    members: np.ndarray, scores: np.ndarray, gallery: Sequence[str]
) -> list[tuple[str, pa.Array]]:
    """The columns `images` and `image_scores` of a ranking's file. members, scores: (rows, N)."""
    there = members >= 0
    ends = pa.array(np.concatenate([[0], np.cumsum(there.sum(axis=1))]), pa.int32())
    names = pa.array(gallery, pa.string()).take(pa.array(members[there]))
    values = {"images": names, "image_scores": pa.array(scores[there])}
    return [(name, pa.ListArray.from_arrays(ends, of)) for name, of in values.items()]


def _from_lists(
    table: pa.Table, gallery: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """What `_lists` was given: members and scores (rows, N), and the gallery with their names."""
    at = {name: i for i, name in enumerate(gallery)}
    rows, values = table["images"].to_pylist(), table["image_scores"].to_pylist()
    members = np.full((len(rows), max(map(len, rows), default=0)), -1, dtype=np.int64)
    scores = np.full(members.shape, np.nan)
    for i, (names, row) in enumerate(zip(rows, values, strict=True)):
        members[i, : len(names)] = [at.setdefault(name, len(at)) for name in names]
        scores[i, : len(row)] = row
    return members, scores, list(at)


def tile_of(positions: np.ndarray, vectors_each: int) -> np.ndarray:
    """The tile (Q, K) int8 of positions that count tiles, T an image; -1 stays."""
    return np.where(positions < 0, -1, positions % vectors_each).astype(np.int8)


def self_positions(queries: Sequence[str], gallery: Sequence[str]) -> np.ndarray:
    """(Q,) int64: the gallery position of each query's own id, -1 where the gallery lacks it."""
    wanted = set(queries)
    position = {name: i for i, name in enumerate(gallery) if name in wanted}
    return np.array([position.get(name, -1) for name in queries], np.int64)


def without_self(
    positions: np.ndarray, scores: np.ndarray, self_at: np.ndarray, k: int, *, vectors_each: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and scores without the query itself: (Q, k), or fewer columns if fewer came in.

    positions, scores: (Q, K), best first; for k results K is k + 1. A row that holds the query is
    moved up by one and may end in -1 (score nan); a row that lacks it loses its last result.
    self_at: (Q,) the image to leave out, -1 for none. vectors_each: T, where a position is that of
    a tile of image p // T.
    """
    if positions.shape[1] <= k:  # no result too many: a row that holds the query gets shorter
        positions = np.pad(positions, ((0, 0), (0, 1)), constant_values=-1)
        scores = np.pad(scores.astype(np.float64), ((0, 0), (0, 1)), constant_values=np.nan)
    Q, K = positions.shape
    own = np.where(self_at < 0, -2, self_at)[:, None]  # -1 marks a row's end
    kept = positions // vectors_each != own
    kept[kept.all(axis=1), -1] = False
    positions = positions[kept].reshape(Q, K - 1)[:, :k]
    scores = scores[kept].reshape(Q, K - 1)[:, :k]
    scores[positions < 0] = np.nan
    return positions, scores


def _encoded(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Codes (rows,), -1 for null, and the names in order of first use."""
    encoded = pc.dictionary_encode(column.cast(pa.string())).combine_chunks()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, encoded.dictionary.to_pylist()
