"""How much search effort an approximate index needs: measured against exact search, on a sample.

The sample are rows of the gallery that are kept out of the structure, each one left out of its own
answer, or queries that the user gives. Its exact answers are kept with the index and brought up to
date when images are added, so that recall is measured again at the cost of the new rows alone.
Recall is that of the ten nearest.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vizsla.search import ann, exact
from vizsla.search.ann import Allowed, Outside, Structure
from vizsla.search.exact import Rows

log = logging.getLogger("vizsla.index")

DEPTH = 10
SAMPLE = 400  # of the gallery's rows, which every search then looks at one by one
GIVEN = 1000  # of the queries that a user gives, which cost a search nothing
MOST_CANDIDATES = 1600


@dataclass(frozen=True, eq=False)
class Sample:
    """queries: (S, D) float32. own: (S,) the row that is the query itself, or -1.

    rows, scores: (S, DEPTH) the exact answer, -1 and -inf where the gallery is smaller.
    covers: how many rows of the gallery the answer knows.
    """

    queries: np.ndarray
    own: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    covers: int

    @staticmethod
    def draw(gallery: Rows, queries: np.ndarray | None = None, *, seed: int = 0) -> "Sample":
        dice = np.random.default_rng(seed)
        if queries is None:
            n = min(SAMPLE, -(-len(gallery) // 20))
            own = np.sort(dice.choice(len(gallery), n, replace=False))
            queries = gallery[own]
        else:
            queries = queries[np.sort(dice.permutation(len(queries))[:GIVEN])]
            own = np.full(len(queries), -1)
        shape = (len(queries), DEPTH)
        nothing = Sample(queries, own, np.full(shape, -1), np.full(shape, -np.inf), 0)
        return nothing.extended(gallery)

    def extended(self, gallery: Rows) -> "Sample":
        """With the answers over the rows that were added since."""
        newer = np.arange(self.covers, len(gallery))
        if not len(newer):
            return self
        k = min(DEPTH + 1, len(newer))
        found, scores = exact.top_k(self.queries, Rows(gallery.vectors, newer), k)
        rows = np.concatenate([self.rows, newer[found]], axis=1)
        scores = np.concatenate([self.scores, scores], axis=1)
        scores[rows == self.own[:, None]] = -np.inf
        rows, scores = exact.ordered(rows, scores, DEPTH)
        rows = np.where(np.isinf(scores), -1, rows)
        return replace(self, rows=rows, scores=scores, covers=len(gallery))

    @property
    def apart(self) -> np.ndarray:
        """The rows that are in no structure."""
        return self.own[self.own >= 0]

    def recall(
        self,
        structure: Structure,
        gallery: Rows,
        *,
        effort: int,
        candidates: int,
        alive: np.ndarray | None = None,
    ) -> tuple[float, float]:
        """Share of the exact answer that a search finds, and the standard error of that.

        An equal score counts as found.
        """
        mask = np.ones(len(gallery), bool) if alive is None else alive
        asked = (self.own < 0) | mask[self.own]
        wanted = (self.rows >= 0) & mask[self.rows] & asked[:, None]
        if not wanted.any():
            return 1.0, 0.0
        rows, scores = ann.nearest(
            structure, gallery, self.queries, DEPTH + 1,
            covered=len(gallery), outside=Outside.of(gallery, len(gallery), self.apart),
            effort=effort, candidates=candidates,
            allowed=None if alive is None else Allowed.of(alive, len(gallery)),
        )  # fmt: skip
        scores = np.where(rows == self.own[:, None], -np.inf, scores)
        last = np.where(wanted, self.scores, np.inf).min(axis=1)  # score of the last to be found
        hits = np.minimum((scores >= last[:, None]).sum(axis=1), wanted.sum(axis=1))
        shares = hits[asked] / np.maximum(wanted[asked].sum(axis=1), 1)
        error = float(shares.std() / len(shares) ** 0.5)
        return float(hits[asked].sum() / wanted.sum()), error

    def save(self, path: Path) -> None:
        dim = self.queries.shape[1]

        def column(values: np.ndarray, width: int) -> pa.Array:
            return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)

        table = pa.table(
            {
                "query": column(self.queries, dim),
                "own": self.own,
                "rows": column(self.rows, DEPTH),
                "scores": column(self.scores, DEPTH),
            }
        )
        table = table.replace_schema_metadata({"covers": str(self.covers)})
        pq.write_table(table, path, use_dictionary=False, compression="none")

    @staticmethod
    def from_table(table: pa.Table) -> "Sample":
        def matrix(name: str) -> np.ndarray:
            column = table[name].combine_chunks()
            flat = column.flatten().to_numpy(zero_copy_only=False)
            return np.array(flat.reshape(len(column), column.type.list_size))

        covers = int((table.schema.metadata or {})[b"covers"])
        own = table["own"].to_numpy()
        return Sample(matrix("query"), own, matrix("rows"), matrix("scores"), covers)


def find_effort(
    structure: Structure, gallery: Rows, sample: Sample, target: float
) -> dict[str, Any]:
    """The smallest effort that reaches the target, and the curve that was measured on the way.

    It reaches it by a standard error: the smallest of many that just do, does so by luck.
    curve: [effort, recall], rising. reached: false where the greatest effort stays below; then it
    is the one with the best recall.
    """
    candidates = _candidates(structure, gallery, sample, target)
    curve: dict[int, float] = {}

    def measured(effort: int) -> float:
        curve[effort], error = sample.recall(
            structure, gallery, effort=effort, candidates=candidates
        )
        return curve[effort] - error

    below = 0
    for effort in structure.efforts(candidates):
        if measured(effort) >= target:
            while below and effort - below > max(1, below // 10):  # narrow the last step down
                middle = (below + effort) // 2
                if measured(middle) >= target:
                    effort = middle
                else:
                    below = middle
            break
        below = effort
    else:
        just = [e for e in curve if curve[e] >= target]
        effort = min(just) if just else max(curve, key=lambda e: (curve[e], -e))
    reached = curve[effort] >= target
    if not reached:
        log.warning(
            "recall@%d is %.4f at best, %.4f was asked for: try --kind hnsw, or exact",
            DEPTH, curve[effort], target,
        )  # fmt: skip
    return {
        "effort": effort, "candidates": candidates, "target": target, "reached": reached,
        "recall": curve[effort], "curve": sorted(map(list, curve.items())),
    }  # fmt: skip


def _candidates(structure: Structure, gallery: Rows, sample: Sample, target: float) -> int:
    """How many of the coarse order are needed: so many that half of what may be missed is not."""
    if structure.kind != "ivfpq":
        return ann.CANDIDATES
    most = min(MOST_CANDIDATES, len(structure))
    assert structure.cells is not None
    found, _ = structure.candidates(sample.queries, most, max(1, structure.cells // 2))
    steps = [100, 140, 200, 280, 400, 560, 800, 1130, MOST_CANDIDATES]
    scores = exact.rescored(sample.queries, gallery, found)
    scores[found == sample.own[:, None]] = -np.inf
    wanted = (sample.rows >= 0).sum(axis=1)
    last = np.where(sample.rows >= 0, sample.scores, np.inf).min(axis=1)
    hits = np.cumsum(scores >= last[:, None], axis=1)  # (S, most)
    for step in steps:
        reach = np.minimum(hits[:, min(step, most) - 1], wanted).sum() / wanted.sum()
        if reach >= 1 - (1 - target) / 2:
            return step
    return MOST_CANDIDATES
