"""Unit vectors → the nearest other vectors of each: the k-NN graph of re-ranking, and its file.

Built once for a gallery and kept. It is exact, with the ties of exact.py, for up to SMALL vectors;
for more, float32 blocks of the symmetric score matrix are computed once and used for both sides.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from vizsla import storage
from vizsla.embed.shards import list_column, matrix_of
from vizsla.errors import DataError, StorageError, VizslaError
from vizsla.search import exact
from vizsla.search.ranking import without_self

log = logging.getLogger("vizsla.search")

FORM = "neighbour-graph/1"
DEPTH = 64  # neighbours that are kept, even if a method needs fewer
SMALL = 8192
BLOCK = 2048
SAMPLE = 200  # vectors whose neighbours are checked
RECALL = 0.99

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class NeighbourGraph:
    """positions: (N, K) int32, each vector's K nearest others, best first. scores: (N, K) float32.

    vectors_id: of the vectors it was built from. recall: of a sample, against exact search.
    """

    positions: np.ndarray
    scores: np.ndarray
    vectors_id: str
    recall: float = 1.0

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def depth(self) -> int:
        """K, the number of neighbours of each vector."""
        return int(self.positions.shape[1])

    def save(self, path: str | Path) -> None:
        """One sealed Parquet file."""
        table = pa.table(
            {"neighbours": list_column(self.positions), "scores": list_column(self.scores)}
        )
        about = {"form": FORM, "vectors_id": self.vectors_id, "recall": self.recall}
        metadata = {"vizsla": json.dumps(about)}
        storage.write_sealed_table(path, table.replace_schema_metadata(metadata))

    @staticmethod
    def load(path: str | Path) -> "NeighbourGraph":
        """StorageError: damaged; DataError: another kind of file."""
        table = storage.read_sealed_table(path)
        about = json.loads((table.schema.metadata or {}).get(b"vizsla", b"{}"))
        if about.get("form") != FORM:
            raise DataError(f"{path} is not a neighbour graph: it says form={about.get('form')!r}")
        positions, scores = (matrix_of(table[name]) for name in ("neighbours", "scores"))
        return NeighbourGraph(positions, scores, about["vectors_id"], about["recall"])


def build_graph(
    vectors: np.ndarray,
    depth: int = DEPTH,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> NeighbourGraph:
    """The graph of unit rows (N, D); at most N - 1 neighbours each. DataError below two rows."""
    N = len(vectors)
    if N < 2:
        raise DataError(f"{N} image: neighbours need two or more")
    K = min(depth, N - 1)
    if N <= SMALL:
        positions, scores = _exactly(vectors, K, device)
        return NeighbourGraph(positions, scores, vectors_id(vectors))
    positions, scores = _in_blocks(vectors, K, device, progress)
    recall = recall_of_sample(vectors, positions, device=device)
    graph = NeighbourGraph(positions, scores, vectors_id(vectors), recall)
    log.info("neighbour graph of %d images: recall %.4f on a sample", N, recall)
    if recall < RECALL:
        log.warning(
            "the neighbour graph finds %.4f of the true neighbours, less than %.2f: many images "
            "are nearly the same; re-ranking is less exact", recall, RECALL,
        )  # fmt: skip
    return graph


class Keeper(Protocol):
    """Where graphs are kept: an index in a folder (folder_index.py), or GraphFolder."""

    def keep(self, name: str, suffix: str, write: Callable[[Path], None], **about: Any) -> None:
        """Keeps the file that `write` writes."""

    def kept(self, name: str) -> tuple[Path, dict[str, Any]] | None:
        """The file of that name and its `about`; None if there is none."""


@dataclass(frozen=True)
class GraphFolder:
    """A folder in which graphs are kept."""

    folder: Path

    def keep(self, name: str, suffix: str, write: Callable[[Path], None], **about: Any) -> None:
        """Writes the file NAME + SUFFIX; `about` is not kept."""
        write(self.folder / f"{name}{suffix}")

    def kept(self, name: str) -> tuple[Path, dict[str, Any]] | None:
        """The file of that name; None if there is none."""
        found = next(iter(sorted(self.folder.glob(f"{name}.*"))), None)
        return None if found is None else (found, {})


def kept_graph(
    vectors: np.ndarray,
    keeper: Keeper | None,
    depth: int = DEPTH,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> NeighbourGraph:
    """The graph that is kept for these vectors, or a new one, which is then kept.

    keeper: None keeps nothing. A graph that is damaged or has too few neighbours is built again.
    """
    depth = max(DEPTH, depth)
    if keeper is None:
        return build_graph(vectors, depth, device=device, progress=progress)
    name = f"graph-{vectors_id(vectors)}"
    wanted = min(depth, len(vectors) - 1)
    try:
        if (found := keeper.kept(name)) is not None:
            graph = NeighbourGraph.load(found[0])
            if graph.depth >= wanted and len(graph) == len(vectors):
                return graph
    except VizslaError as error:
        log.warning("%s, so the graph is built again", error)
    graph = build_graph(vectors, depth, device=device, progress=progress)
    try:
        keeper.keep(name, ".parquet", graph.save)
    except StorageError as error:
        log.warning("the neighbour graph is not kept: %s", error)
    return graph


def vectors_id(vectors: np.ndarray) -> str:
    """16 hex digits of the vectors' shape and content."""
    digest = hashlib.sha256(str(vectors.shape).encode())
    for start in range(0, len(vectors), 65_536):
        part = np.ascontiguousarray(vectors[start : start + 65_536], dtype=np.float32)
        digest.update(part.data)
    return digest.hexdigest()[:16]


def recall_of_sample(
    vectors: np.ndarray, positions: np.ndarray, *, device: str = "cpu", seed: int = 0
) -> float:
    """The share of the true neighbours of SAMPLE vectors that the lists hold."""
    rng = np.random.default_rng((seed, 31))
    rows = np.sort(rng.choice(len(vectors), min(SAMPLE, len(vectors)), replace=False))
    K = positions.shape[1]
    true, _ = exact.top_k(vectors[rows], vectors, K + 1, device=device)
    found = 0
    for row, nearest, listed in zip(rows, true, positions[rows], strict=True):
        others = nearest[nearest != row][:K]
        found += len(np.intersect1d(others, listed))
    return found / (len(rows) * K)


def _exactly(vectors: np.ndarray, K: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    N = len(vectors)
    positions, scores = exact.top_k(vectors, vectors, K + 1, device=device)
    positions, scores = without_self(positions, scores, np.arange(N), K)
    return positions.astype(np.int32), scores.astype(np.float32)


# ── blocks of a large score matrix ───────────────────────────────────────────────────────────────


def _in_blocks(
    vectors: np.ndarray, K: int, device: str, progress: Progress | None
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours by float32 scores: each block of the upper triangle adds what exceeds the K-th."""
    N = len(vectors)
    best = torch.full((N, K), -2.0)
    at = torch.full((N, K), -1, dtype=torch.int32)
    size = max(BLOCK, K + 1)
    parts = [slice(start, min(start + size, N)) for start in range(0, N, size)]
    blocks = [torch.from_numpy(np.array(vectors[p], np.float32)).to(device) for p in parts]
    for part, block in zip(parts, blocks, strict=True):  # gives every row a K-th score to beat
        scores = (block @ block.T).fill_diagonal_(-2.0)
        k = min(K, len(block) - 1)
        values, columns = torch.topk(scores, k, dim=1) if k else (scores[:, :0],) * 2
        best[part, :k], at[part, :k] = values.cpu(), (columns + part.start).int().cpu()
    done, total = len(parts), len(parts) * (len(parts) + 1) // 2
    for i, one in enumerate(parts):
        for j in range(i + 1, len(parts)):
            scores = blocks[i] @ blocks[j].T  # (b, c)
            row, column = _above(scores, best[one, -1:])
            _take(best, at, one.start, row, column + parts[j].start, scores[row, column])
            row, column = _above(scores, best[parts[j], -1:].T)
            by_column = torch.argsort(column, stable=True)
            row, column = row[by_column], column[by_column]
            _take(best, at, parts[j].start, column, row + one.start, scores[row, column])
            done += 1
            if progress:
                progress(done, total)
    return at.numpy(), best.numpy()


def _above(scores: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the scores above the limits, by row."""
    row, column = (scores > limits.to(scores.device)).nonzero(as_tuple=True)
    return row, column


def _take(best: Tensor, at: Tensor, first: int, row: Tensor, other: Tensor, values: Tensor) -> None:
    """Merges (row, other image, score), by rising row, into the lists of the rows from `first`."""
    if len(row) == 0:
        return
    row, other, values = row.cpu(), other.cpu(), values.cpu()
    changed, place, counts = torch.unique_consecutive(row, return_inverse=True, return_counts=True)
    rank = torch.arange(len(row)) - (counts.cumsum(0) - counts)[place]
    more = torch.full((len(changed), int(counts.max())), -2.0)
    where = torch.full(more.shape, -1, dtype=torch.int32)
    more[place, rank] = values
    where[place, rank] = other.int()
    rows = first + changed
    merged, order = torch.topk(torch.cat([best[rows], more], dim=1), best.shape[1], dim=1)
    at[rows] = torch.gather(torch.cat([at[rows], where], dim=1), 1, order)
    best[rows] = merged
