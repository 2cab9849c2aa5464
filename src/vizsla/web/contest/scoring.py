"""Lists of names + truth → scores of each part of the queries. Knows no groups, files or HTTP.

What `vizsla evaluate` computes, by the same functions, with the labels looked up once at the start.
All means divide by all queries of the part that have a label, as the contest's formula wants it.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vizsla.errors import DataError, UsageError
from vizsla.output.submission import check_submission
from vizsla.score import intervals, metrics
from vizsla.web.contest.rules import METRICS, Rules

Lists = dict[str, list[str]]  # {query: [gallery id, …]}
Labels = Mapping[str, str | None]  # id → label, None: without one


@dataclass(frozen=True)
class PartScore:
    """The score of one part of the queries by the contest's metric, with its 95 % interval.

    metrics: all that is computed, the contest's metric among them. low, high: None for one query.
    """

    score: float
    low: float | None
    high: float | None
    metrics: dict[str, float]


class Scorer:
    """Checks and scores submissions against one truth. Safe to use from many threads.

    queries: all that must be handed in, in the truth's order. gallery: all names that may be
    listed. Queries without a label are handed in, but count in no score.
    """

    def __init__(self, queries: Labels, gallery: Labels, rules: Rules) -> None:
        if rules.top_k > len(gallery):
            raise DataError(
                f"top_k={rules.top_k}, but the gallery has {len(gallery)} images: "
                "no list could be that long; give a smaller -k"
            )
        self.rules = rules
        self.queries = list(queries)
        self.gallery = frozenset(gallery)
        self._query_set = frozenset(queries)
        self._position = {name: i for i, name in enumerate(sorted(gallery))}
        labels = {label for label in (*queries.values(), *gallery.values()) if label is not None}
        codes: dict[str | None, int] = {label: i for i, label in enumerate(sorted(labels))}
        self._wanted = np.array([codes.get(queries[q], -2) for q in self.queries])  # (Q,)
        found = [codes.get(gallery[name], -1) for name in self._position]
        self._codes = np.array([*found, -1])  # (G + 1,): the last for position -1, no image
        of_label = np.bincount(self._codes[self._codes >= 0], minlength=len(codes) + 2)
        self._n_relevant = of_label[self._wanted]  # (Q,): those without a label read the last, 0
        self._rows = {  # by name, as `evaluate` draws them, so that intervals are the same
            part: np.array(sorted(rows, key=self.queries.__getitem__))
            for part, rows in self._rows_of_parts().items()
        }
        self.fingerprint = self._fingerprint(queries, gallery)

    def part_sizes(self) -> dict[str, int]:
        """How many queries count in each part."""
        return {part: len(rows) for part, rows in self._rows.items()}

    def problems(self, lists: object) -> list[str]:
        """What is wrong with a submission, a line for each kind; empty when it can be scored."""
        if self._positions(lists) is not None:
            return []
        wanted = dict.fromkeys(self.queries)  # in their order, so that the first stand in messages
        return check_submission(lists, queries=wanted, gallery=self.gallery, k=self.rules.top_k)

    def scores(self, lists: Lists) -> dict[str, PartScore]:
        """The score of each part of `rules.parts()`.

        Takes any lists: a query that is missing and a name that is unknown count as wrong, so that
        old submissions can be scored by a mended truth.
        """
        positions = self._positions(lists)
        if positions is None:
            positions = self._positions_of_any(lists)
        hits = self._codes[positions] == self._wanted[:, None]  # (Q, K)
        ranks = metrics.hit_ranks(hits)
        return {part: self._part_score(ranks, rows) for part, rows in self._rows.items()}

    def largest_body(self) -> int:
        """Bytes that a sound submission may need, however it is written: with all characters
        escaped and wide indents."""
        k, space = self.rules.top_k, 24
        widest_name = max(len(json.dumps(name)) for name in self._position) + space
        queries = sum(len(json.dumps(query)) + 2 * space for query in self.queries)
        return 64 * 1024 + queries + len(self.queries) * k * widest_name

    def _positions(self, lists: object) -> np.ndarray | None:
        """(Q, K) positions in the sorted gallery; None unless all is exactly as it must be."""
        if type(lists) is not dict or lists.keys() != self._query_set:
            return None
        rows = [lists[query] for query in self.queries]
        if set(map(type, rows)) != {list} or set(map(len, rows)) != {self.rules.top_k}:
            return None
        try:
            flat = list(map(self._position.__getitem__, itertools.chain.from_iterable(rows)))
        except (KeyError, TypeError):  # an unknown name, or something that is none
            return None
        positions = np.array(flat).reshape(len(rows), self.rules.top_k)
        ordered = np.sort(positions, axis=1)
        return None if (ordered[:, 1:] == ordered[:, :-1]).any() else positions

    def _positions_of_any(self, lists: Lists) -> np.ndarray:
        positions = np.full((len(self.queries), self.rules.top_k), -1)
        for i, query in enumerate(self.queries):
            row = dict.fromkeys(lists.get(query, [])[: self.rules.top_k])
            positions[i, : len(row)] = [self._position.get(name, -1) for name in row]
        return positions

    def _part_score(self, ranks: np.ndarray, rows: np.ndarray) -> PartScore:
        values = _values(ranks[rows], self._n_relevant[rows], self.rules.top_k)
        means = {name: float(column.mean()) for name, column in values.items()}
        low, high = self._interval(values[self.rules.metric])
        return PartScore(means[self.rules.metric], low, high, means)

    def _interval(self, values: np.ndarray) -> tuple[float | None, float | None]:
        if self.rules.metric == "top_k_accuracy":
            low, high = intervals.wilson(values.sum(), len(values))
        else:
            highest = METRICS[self.rules.metric]
            low, high = intervals.bootstrap_intervals(values[:, None], highest=highest)[0]
        return (None, None) if math.isnan(low) else (float(low), float(high))

    def _rows_of_parts(self) -> dict[str, np.ndarray]:
        """Part → the rows of its queries. A query's own hash decides, so that a query that is
        added or removed later moves hardly any other."""
        labelled = np.flatnonzero(self._wanted >= 0)
        if not len(labelled):
            raise DataError("the truth has a label for none of its queries")
        share = self.rules.public_share
        if share is None:
            return {"all": labelled}
        seed = self.rules.seed
        if seed is None:
            raise UsageError("a public share needs a seed: one that nobody guesses")
        n_public = round(share * len(labelled))
        if not 0 < n_public < len(labelled):
            raise DataError(
                f"a public share of {share:g} leaves {n_public} of {len(labelled)} queries public: "
                "both parts need some"
            )
        drawn = sorted(labelled, key=lambda row: _draw(seed, self.queries[row]))
        return {"public": np.array(drawn[:n_public]), "private": np.array(drawn[n_public:])}

    def _fingerprint(self, queries: Labels, gallery: Labels) -> str:
        """Of all that a score depends on."""
        rules = self.rules
        settled = [rules.top_k, rules.metric, rules.public_share, rules.public_share and rules.seed]
        content = [sorted(queries.items()), sorted(gallery.items()), settled]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def canonical(lists: Lists) -> bytes:
    """The one way to write these lists: its SHA-256 is `submission_sha256`."""
    return json.dumps(lists, sort_keys=True, separators=(",", ":")).encode()


def _values(ranks: np.ndarray, n_relevant: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Each metric's value for each query, (Q,); 0 where nothing is relevant."""
    values = {
        "top_k_accuracy": metrics.hit_rate_at_k(ranks, k),
        "top_1_accuracy": metrics.hit_rate_at_k(ranks, 1),
        "contest_points": metrics.contest_points(ranks),
        "precision_at_k": metrics.precision_at_k(ranks, k),
        "recall_at_k": metrics.recall_at_k(ranks, n_relevant, k),
        "map_at_k": metrics.average_precision_at_k(ranks, n_relevant, k),
        "mrr_at_k": metrics.reciprocal_rank_at_k(ranks, k),
        "ndcg_at_k": metrics.ndcg_at_k(ranks, n_relevant, k),
    }
    return {name: np.nan_to_num(column, nan=0.0) for name, column in values.items()}


def _draw(seed: int, query: str) -> bytes:
    return hashlib.sha256(f"{seed}:{query}".encode(errors="surrogatepass")).digest()
