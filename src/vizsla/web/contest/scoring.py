"""Lists of names + truth → scores of each part of the queries. Knows no groups, files or HTTP.

The metrics are those of `vizsla evaluate`, by the same functions; labels are looked up once, at the
start. All means divide by all queries of the part that have a label, as the contest's formula does.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vizsla.data.label_sets import are_sets
from vizsla.errors import DataError, UsageError
from vizsla.output.submission import check_submission, with_names_of
from vizsla.score import intervals
from vizsla.score.metrics import formulas
from vizsla.score.metrics.metric_names import MetricName
from vizsla.score.metrics.named_metrics import values_of_lists
from vizsla.web.contest.rules import Rules

Lists = dict[str, list[str]]  # {query: [gallery id, …]}
Labels = Mapping[str, str | None]  # id → label; None: no label


@dataclass(frozen=True)
class PartScore:
    """The score of one part of the queries by the contest's metric, with its 95 % interval.

    interval: (low, high), or None if it is unknown, as for a single query. metrics: every metric
    by its name, the contest's among them.
    """

    score: float
    interval: tuple[float, float] | None
    metrics: dict[str, float]


class Scorer:
    """Checks and scores submissions against one truth. Safe to use from many threads.

    queries: every query that a submission must answer, in the truth's order. gallery: every name
    that a list may hold. Queries without a label must be answered, but count in no score.
    """

    def __init__(self, queries: Labels, gallery: Labels, rules: Rules) -> None:
        if rules.top_k > len(gallery):
            raise DataError(
                f"top_k={rules.top_k}, but the gallery has {len(gallery)} images: "
                "no list can be that long; give a smaller -k"
            )
        if are_sets(queries.values()) or are_sets(gallery.values()):
            raise DataError("a contest judges by one label an image, but some have several")
        self.rules = rules
        self.queries = list(queries)
        self.gallery = frozenset(gallery)
        self._query_set = frozenset(queries)
        self._position = {name: i for i, name in enumerate(sorted(gallery))}
        labels = {label for label in (*queries.values(), *gallery.values()) if label is not None}
        codes: dict[str | None, int] = {label: i for i, label in enumerate(sorted(labels))}
        self._wanted = np.array([codes.get(queries[q], -2) for q in self.queries])  # (Q,)
        found = [codes.get(gallery[name], -1) for name in self._position]
        self._codes = np.array([*found, -1])  # (G + 1,): the last is for position -1, no image
        of_label = np.bincount(self._codes[self._codes >= 0], minlength=len(codes) + 2)
        self._n_relevant = of_label[self._wanted]  # (Q,): queries without a label read the last, 0
        self._rows = {  # in the order of `evaluate`, so that bootstrap intervals are equal
            part: np.array(sorted(rows, key=self.queries.__getitem__))
            for part, rows in self._rows_of_parts().items()
        }
        self.fingerprint = self._fingerprint(queries, gallery)

    def part_sizes(self) -> dict[str, int]:
        """The number of labelled queries in each part."""
        return {part: len(rows) for part, rows in self._rows.items()}

    def problems(self, lists: object) -> list[str]:
        """What is wrong with a submission, one line for each kind of fault; empty if nothing is."""
        if self._positions(lists) is not None:
            return []
        wanted = dict.fromkeys(self.queries)  # ordered: messages name the first missing ones
        return check_submission(lists, queries=wanted, gallery=self.gallery, k=self.rules.top_k)

    def with_known_names(self, lists: Lists) -> Lists:
        """The same lists with the truth's names for images that they spell in another way, as a Mac
        does; see `data.names.match_names`."""
        if self._positions(lists) is not None or type(lists) is not dict:
            return lists
        return with_names_of(lists, self._query_set, self.gallery)

    def scores(self, lists: Lists) -> dict[str, PartScore]:
        """The score of each part of `rules.parts()`.

        Accepts any lists: missing queries and unknown names count as wrong, so that old submissions
        can be scored by a corrected truth.
        """
        positions = self._positions(lists)
        if positions is None:
            positions = self._positions_of_any(lists)
        hits = self._codes[positions] == self._wanted[:, None]  # (Q, K)
        ranks = formulas.hit_ranks(hits)
        return {part: self._part_score(ranks, rows) for part, rows in self._rows.items()}

    def largest_body(self) -> int:
        """The most bytes that a valid submission needs, with every character escaped and wide
        indents."""
        k, space = self.rules.top_k, 24
        widest_name = max(len(json.dumps(name)) for name in self._position) + space
        queries = sum(len(json.dumps(query)) + 2 * space for query in self.queries)
        return 64 * 1024 + queries + len(self.queries) * k * widest_name

    def _positions(self, lists: object) -> np.ndarray | None:
        """(Q, K) positions in the sorted gallery; None unless the submission is valid."""
        if type(lists) is not dict or lists.keys() != self._query_set:
            return None
        rows = [lists[query] for query in self.queries]
        if set(map(type, rows)) != {list} or set(map(len, rows)) != {self.rules.top_k}:
            return None
        try:
            flat = list(map(self._position.__getitem__, itertools.chain.from_iterable(rows)))
        except (KeyError, TypeError):  # an unknown name, or not a name
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
        values = _values(ranks[rows], self._n_relevant[rows], self.rules)
        means = {name: float(column.mean()) for name, column in values.items()}
        metric = self.rules.metric
        if metric == "top_k_accuracy":
            low, high = intervals.wilson(values[metric].sum(), len(rows))
        else:
            column = values[metric][:, None]
            low, high = intervals.bootstrap_intervals(column, highest=self.rules.highest)[0]
        interval = None if math.isnan(low) else (float(low), float(high))
        return PartScore(means[metric], interval, means)

    def _rows_of_parts(self) -> dict[str, np.ndarray]:
        """The rows of each part's queries.

        The hash of a query's name decides, so that adding or removing one query moves hardly any
        other to the other part.
        """
        labelled = np.flatnonzero(self._wanted >= 0)
        if not len(labelled):
            raise DataError("the truth has a label for none of its queries")
        share = self.rules.public_share
        if share is None:
            return {"all": labelled}
        seed = self.rules.seed
        if seed is None:
            raise UsageError("a public share needs a seed that nobody can guess")
        n_public = round(share * len(labelled))
        if not 0 < n_public < len(labelled):
            raise DataError(
                f"a public share of {share:g} leaves {n_public} of {len(labelled)} queries public: "
                "both parts need at least one"
            )

        def digest(row: np.intp) -> bytes:
            text = f"{seed}:{self.queries[row]}"
            return hashlib.sha256(text.encode(errors="surrogatepass")).digest()

        drawn = sorted(labelled, key=digest)
        return {"public": np.array(drawn[:n_public]), "private": np.array(drawn[n_public:])}

    def _fingerprint(self, queries: Labels, gallery: Labels) -> str:
        """The SHA-256 of everything that a score depends on."""
        rules = self.rules
        relevant = [
            rules.top_k,
            rules.metrics,
            rules.public_share,
            rules.public_share and rules.seed,
        ]
        content = [sorted(queries.items()), sorted(gallery.items()), relevant]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def canonical(lists: Lists) -> bytes:
    """The lists as canonical JSON, whose SHA-256 is `submission_sha256`."""
    return json.dumps(lists, sort_keys=True, separators=(",", ":")).encode()


def _values(ranks: np.ndarray, n_relevant: np.ndarray, rules: Rules) -> dict[str, np.ndarray]:
    """Each metric's value for each query, (Q,); 0 where nothing is relevant."""
    k = rules.top_k
    values = {
        "top_k_accuracy": formulas.hit_rate_at_k(ranks, k),
        "top_1_accuracy": formulas.hit_rate_at_k(ranks, 1),
        "contest_points": formulas.contest_points(ranks),
        "precision_at_k": formulas.precision_at_k(ranks, k),
        "recall_at_k": formulas.recall_at_k(ranks, n_relevant, k),
        "map_at_k": formulas.average_precision_at_k(ranks, n_relevant, k),
        "mrr_at_k": formulas.reciprocal_rank_at_k(ranks, k),
        "ndcg_at_k": formulas.ndcg_at_k(ranks, n_relevant, k),
    }
    for name in rules.metrics:
        if name not in values:
            values[name] = values_of_lists(MetricName.parse(name), ranks, n_relevant)
    return {name: np.nan_to_num(column, nan=0.0) for name, column in values.items()}
