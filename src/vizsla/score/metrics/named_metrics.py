"""A judged ranking and the names of metrics → their values, and which of them can be known."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from vizsla.errors import UsageError
from vizsla.score.figures import Metric
from vizsla.score.metrics import formulas, paper_metrics
from vizsla.score.metrics.hit_ranks import HitRanks, known_metric, metric_of_n_relevant
from vizsla.score.metrics.metric_names import MetricName
from vizsla.score.metrics.pooled_metrics import (
    Pairs,
    PooledMetric,
    Weighted,
    adjusted_rand_index,
    balanced_share,
)
from vizsla.score.relevance import Relevance
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking

OVER_ALL = ("top", "contest_points")  # kinds whose means divide by all queries
_OF_K = {"top": formulas.hit_rate_at_k, "P": formulas.precision_at_k,
         "RR": formulas.reciprocal_rank_at_k}  # fmt: skip
_NO_SCORES = "the ranking holds no scores"
_NO_TRUTH = "the truth of the whole gallery is not known"


def measure_named(
    names: Iterable[MetricName],
    judged: Relevance,
    hit_ranks: HitRanks,
    *,
    missing_ranks: str = "unknown",
    over_all: bool | None = None,
) -> dict[str, Metric]:
    """The metrics that have a value for each query, by their written names.

    hit_ranks: of the same ranking. over_all: whether means divide by all queries or by those with
    something relevant; None: as is usual for each metric.
    """
    found = {}
    for name in names:
        if name.is_pooled:
            continue
        at, known = judged, hit_ranks
        grade = name.option("rel", 1)
        if name.kind == "nDCG" or grade > 1:  # the rank alone does not give the grade
            at = judged_at(judged, grade)
            known = HitRanks.of(at).completed(missing_ranks, max(hit_ranks.depth, name.cutoff or 0))
        metric = _measured(name, at, known)
        whole = name.kind in OVER_ALL if over_all is None else over_all
        found[str(name)] = dataclasses.replace(metric, over_all=whole)
    return found


def values_of_lists(name: MetricName, ranks: np.ndarray, n_relevant: np.ndarray) -> np.ndarray:
    """(Q,) of a metric with a cut-off from the ranks of the hits alone (0 after a row's end).

    UsageError for a metric that lists of this kind cannot give.
    """
    k = name.cutoff
    if k and not name.options:
        if name.kind in ("top", "P", "RR"):
            return _OF_K[name.kind](ranks, k)
        if name.kind in ("AP", "R", "nDCG"):
            of_r = {"AP": formulas.average_precision_at_k, "R": formulas.recall_at_k,
                    "nDCG": formulas.ndcg_at_k}[name.kind]  # fmt: skip
            return of_r(ranks, n_relevant, k)
    raise UsageError(
        f"{name} is not known from lists with labels: choose of top-K, P@K, R@K, AP@K, RR@K and "
        "nDCG@K, with K as long as the lists at most"
    )


def judged_at(judged: Relevance, grade: int) -> Relevance:
    """The same ranking where only images of this grade or a higher one are relevant."""
    if grade == 1:
        return judged
    if judged.grades is None or judged.best_grades is None:
        nothing = np.where(judged.n_relevant < 0, -1, 0)
        return dataclasses.replace(judged, hits=np.zeros_like(judged.hits), n_relevant=nothing)
    counts = (judged.best_grades >= grade).sum(axis=1)
    return dataclasses.replace(judged, hits=judged.grades >= grade, n_relevant=counts)


def _measured(name: MetricName, judged: Relevance, hit_ranks: HitRanks) -> Metric:
    ranks, n_relevant, title, k = hit_ranks.ranks, hit_ranks.n_relevant, str(name), name.cutoff
    known, reason = hit_ranks.reaching(k) if k else (hit_ranks.to_end, hit_ranks.shallow)
    if name.kind == "contest_points":
        return Metric("contest points", formulas.contest_points(ranks), True, 1000.0)
    if name.kind == "RR" and not k:
        known = hit_ranks.whole | np.isfinite(formulas.first_hit_rank(ranks)) | (n_relevant == 0)
        return known_metric(title, formulas.reciprocal_rank(ranks), known, reason)
    if name.kind in ("top", "P", "RR"):
        return known_metric(title, _OF_K[name.kind](ranks, k or 0), known, reason)
    if name.kind in ("Rprec", "MAP@R"):
        of_r = formulas.r_precision if name.kind == "Rprec" else formulas.map_at_r
        known = hit_ranks.to_end | (hit_ranks.lengths >= n_relevant)
        return metric_of_n_relevant(title, of_r(ranks, n_relevant), hit_ranks, known, reason)
    return metric_of_n_relevant(
        title, _values_of_n_relevant(name, judged, hit_ranks), hit_ranks, known, reason
    )


def _values_of_n_relevant(name: MetricName, judged: Relevance, hit_ranks: HitRanks) -> np.ndarray:
    ranks, n_relevant, k = hit_ranks.ranks, hit_ranks.n_relevant, name.cutoff
    if name.kind == "mINP":
        return paper_metrics.inverse_negative_penalty(ranks, n_relevant)
    if name.kind == "R":
        return formulas.recall_at_k(ranks, n_relevant, k or 0)
    if name.kind == "mP":  # with images left to find, the last one is beyond the list
        last = np.where(hit_ranks.to_end, paper_metrics.last_hit_rank(ranks), np.inf)
        return paper_metrics.clipped_precision_at_k(ranks, last, k or 0)
    if name.kind == "nDCG":
        graded = name.option("grades") and judged.grades is not None
        grades = judged.grades if graded else judged.hits.astype(int)
        best = judged.best_grades if graded else _ones(n_relevant)
        assert grades is not None and best is not None
        exponential = name.option("dcg") == "exp-log2"
        return paper_metrics.graded_ndcg(grades, best, k, exponential=exponential)
    if name.option("interpolated"):
        return paper_metrics.interpolated_average_precision(ranks, n_relevant, k)
    if name.option("over") and k:
        return formulas.average_precision(np.where(ranks <= k, ranks, 0), n_relevant)
    if k:
        return formulas.average_precision_at_k(ranks, n_relevant, k)
    return formulas.average_precision(ranks, n_relevant)


def _ones(counts: np.ndarray) -> np.ndarray:
    """(Q, M): so many ones in each row."""
    return (np.arange(max(int(counts.max(initial=0)), 1))[None] < counts[:, None]).astype(int)


# ── all queries together ─────────────────────────────────────────────────────────────────────────


def measure_pooled(
    names: Iterable[MetricName], judged: Relevance, ranking: Ranking, truth: Truth
) -> dict[str, PooledMetric]:
    """The metrics that have one value for all queries, by their written names."""
    wanted = [name for name in names if name.is_pooled]
    of_pairs = [name for name in wanted if name.kind in ("µAP", "R@P", "TPR")]
    pairs = Pairs.of(judged) if of_pairs and judged.scores is not None else None
    return {
        str(name): _pooled(name, judged, pairs if name in of_pairs else None, ranking, truth)
        for name in wanted
    }


def _pooled(
    name: MetricName, judged: Relevance, pairs: Pairs | None, ranking: Ranking, truth: Truth
) -> PooledMetric:
    title, threshold, at = str(name), name.option("threshold", -np.inf), np.arange(len(judged))

    def unknown(why: str) -> PooledMetric:
        return PooledMetric(title, None, at, unknown=why)

    if judged.scores is None:
        return unknown(_NO_SCORES)
    if (judged.n_relevant < 0).any():
        return unknown(_NO_TRUTH)
    if pairs is not None:
        if name.kind == "TPR" and not judged.whole.all():
            return unknown("it needs the scores of the whole gallery")
        return PooledMetric(title, lambda places: _of_pairs(name, pairs.subset(places)), at,
                            len(pairs.rows))  # fmt: skip
    if any(label is None for label in judged.labels):
        return unknown("it needs labels of the queries")
    if name.kind == "ARI":
        groups = _groups(judged, ranking, truth, threshold)
        if groups is None:
            return unknown("some lists end above the threshold")
        labels = np.array(judged.labels, dtype=str)
        return PooledMetric(
            title, lambda places: adjusted_rand_index(labels[places], groups[places]), at, len(at)
        )
    return PooledMetric(title, lambda places: _balanced(name, judged, threshold, places), at,
                        len(at))  # fmt: skip


def _of_pairs(name: MetricName, pairs: Pairs) -> Weighted:
    if name.kind == "µAP":
        return pairs.micro_average_precision
    if name.kind == "R@P":
        return lambda weights: pairs.recall_at_precision(weights, name.option("precision"))
    return lambda weights: pairs.true_positive_rate(weights, name.option("fpr"))


def _balanced(name: MetricName, judged: Relevance, threshold: float, at: np.ndarray) -> Weighted:
    """Balanced accuracy of known individuals, of unknown ones, or their geometric mean."""
    assert judged.scores is not None
    Q = len(judged)
    labels, known = np.array(judged.labels, dtype=str)[at], (judged.n_relevant > 0)[at]
    first = judged.scores[:, 0] if judged.scores.shape[1] else np.full(Q, np.nan)
    accepted = (first >= threshold)[at]  # False for nan: an empty list
    hit = (judged.hits[:, 0] if judged.hits.shape[1] else np.zeros(Q, bool))[at]
    of_known = balanced_share(hit & accepted, labels, known)
    of_unknown = balanced_share(~accepted, labels, ~known)
    return {
        "BAKS": of_known,
        "BAUS": of_unknown,
        "BA": lambda weights: float(np.sqrt(of_known(weights) * of_unknown(weights))),
    }[name.kind]


def _groups(
    judged: Relevance, ranking: Ranking, truth: Truth, threshold: float
) -> np.ndarray | None:
    """(Q,) the group of each query; None if some lists end above the threshold.

    Groups are joined by ranked pairs of this score or more; of two sets, gallery images of one
    label are joined from the start.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    assert ranking.scores is not None and judged.scores is not None
    there = np.arange(judged.scores.shape[1])[None] < judged.lengths[:, None]
    last = np.where(there, judged.scores, np.inf).min(axis=1, initial=np.inf)
    if (~judged.whole & (last >= threshold)).any():
        return None
    G = len(ranking.gallery)
    at = {name: i for i, name in enumerate(ranking.gallery)} if truth.one_set else {}
    node = np.array([at.get(q, G + i) for i, q in enumerate(ranking.queries)], dtype=np.int64)
    rows, columns = np.nonzero((ranking.positions >= 0) & (ranking.scores >= threshold))
    starts, ends = [node[rows]], [ranking.positions[rows, columns]]
    if not truth.one_set:
        first_of: dict[str, int] = {}
        for i, name in enumerate(ranking.gallery):
            label = truth.gallery.get(name)
            if label is not None:
                starts.append(np.array([i]))
                ends.append(np.array([first_of.setdefault(label, i)]))
    pair = np.concatenate(starts), np.concatenate(ends)
    size = G + len(ranking.queries)
    graph = coo_matrix((np.ones(len(pair[0])), pair), shape=(size, size))
    groups = connected_components(graph, directed=False)[1]
    row = {query: i for i, query in enumerate(ranking.queries)}
    places = np.array([node[row[q]] if q in row else -1 for q in judged.queries], dtype=np.int64)
    alone = size + np.arange(len(places))  # a query that the ranking lacks is a group of its own
    return np.where(places >= 0, groups[places], alone)
