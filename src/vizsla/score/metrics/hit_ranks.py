"""A judged ranking → the ranks of its hits, how far they are known, and metrics made of them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vizsla.errors import DataError
from vizsla.score.figures import Metric
from vizsla.score.metrics import formulas
from vizsla.score.relevance import Relevance


@dataclass(frozen=True, eq=False)
class HitRanks:
    """The ranks of a ranking's hits, and how far it is known.

    ranks: (Q, M) of the hits, 0 after a row's end. lengths: (Q,) how far each list is known.
    whole: (Q,) bool, the whole gallery is known. n_relevant: (Q,), -1 where unknown.
    depth: the longest list.
    """

    ranks: np.ndarray
    lengths: np.ndarray
    whole: np.ndarray
    n_relevant: np.ndarray
    depth: int

    @staticmethod
    def of(judged: Relevance, full_ranks: Sequence[np.ndarray] | None = None) -> "HitRanks":
        """full_ranks: for each query of the ranking the ranks of its relevant images, rising."""
        ranks, depth = formulas.hit_ranks(judged.hits), judged.hits.shape[1]
        if full_ranks is None:
            return HitRanks(ranks, judged.lengths, judged.whole, judged.n_relevant, depth)
        full = _padded([full_ranks[row] if row >= 0 else np.array([], int) for row in judged.rows])
        shallow = ((full > 0) & (full <= judged.lengths[:, None])).sum(axis=1)
        if (shallow != (ranks > 0).sum(axis=1)).any():
            raise DataError(
                f"full_ranks and the ranking disagree about the hits in the first {depth} ranks: "
                "compute both from the same vectors and the same truth"
            )
        if ((judged.n_relevant >= 0) & ((full > 0).sum(axis=1) > judged.n_relevant)).any():
            raise DataError("full_ranks holds more ranks than the truth has relevant images")
        return HitRanks(full, judged.lengths, np.ones(len(full), bool), judged.n_relevant, depth)

    def completed(self, missing_ranks: str, deepest: int) -> "HitRanks":
        """With the ranks after a list's end counted as `evaluate` is told to, to rank `deepest`."""
        if missing_ranks == "unknown":
            return self
        lengths = np.full(len(self.lengths), max(deepest, self.depth))
        whole = self.whole | (missing_ranks == "absent")
        return dataclasses.replace(self, lengths=lengths, whole=whole)

    def reaching(self, k: int) -> tuple[np.ndarray, str]:
        """(Q,) bool, which lists are known to rank k; and the reason if some are not."""
        reaches = self.whole | (self.lengths >= k)
        return reaches, f"{int((~reaches).sum())} of {len(reaches)} lists are shorter than {k}"

    @property
    def to_end(self) -> np.ndarray:
        """(Q,) bool: which lists are known to the last relevant image."""
        return self.whole | ((self.ranks > 0).sum(axis=1) >= self.n_relevant)

    @property
    def shallow(self) -> str:
        """The reason why a metric without a cut-off is unknown."""
        return f"the ranking ends at rank {self.depth}, the gallery does not"


def metric_of_n_relevant(
    title: str,
    values: np.ndarray,
    hit_ranks: HitRanks,
    known: np.ndarray,
    reason: str,
    *,
    over_all: bool = False,
) -> Metric:
    """A metric that needs the number of relevant images; 0 where there are none."""
    if (hit_ranks.n_relevant < 0).any():
        known, reason = hit_ranks.n_relevant >= 0, "the truth of the whole gallery is not known"
    values = np.where(hit_ranks.n_relevant == 0, 0.0, values)
    return known_metric(title, values, known, reason, over_all=over_all)


def known_metric(
    title: str, values: np.ndarray, known: np.ndarray, reason: str, *, over_all: bool = False
) -> Metric:
    """A metric that is unknown, for this reason, unless it is known for every query."""
    unknown = None if known.all() else reason
    return Metric(title, np.where(known, values, np.nan), over_all, unknown=unknown)


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """(Q, longest) int64, 0 after a row's end."""
    padded = np.zeros((len(rows), max((len(row) for row in rows), default=0)), dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded
