"""Ranking + Truth → Scores: every metric of every query, and which of them can be known.

A list that ends at rank 9 says nothing of rank 10, and one from a submission nothing of the images
that it left out: such values are nan, with the reason. The formulas are in metrics.py.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vizsla.errors import DataError, UsageError
from vizsla.score import metrics
from vizsla.score.figures import IntervalSettings, Metric
from vizsla.score.intervals import RESAMPLES
from vizsla.score.relevance import Relevance, relevance
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth, named_as
from vizsla.search.ranking import Ranking

CUTOFFS = (1, 5, 10)
MISSING_RANKS = ("unknown", "wrong", "absent")
KINDS = ("top_k_accuracy", "precision", "recall", "ap", "ndcg", "mrr", "map", "map_at_r",
         "r_precision", "contest_points")  # fmt: skip


def evaluate(
    ranking: Ranking,
    truth: Truth,
    *,
    ks: Sequence[int] = CUTOFFS,
    top_k: int | None = None,
    full_ranks: Sequence[np.ndarray] | None = None,
    missing_ranks: str = "unknown",
    points: Mapping[int, float] | None = None,
    cluster: str | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Scores:
    """Scores of a ranking at the cut-offs `ks` and `top_k`.

    top_k: the contest's k; later ranks get no contest points. Default: the length of the lists for
      a submission, whose gallery is unknown; otherwise, and with judgements, max(ks).
    full_ranks: for each query of the ranking the ranks (from 1, rising) of its relevant images in
      the whole gallery, without junk and self: for AP, MAP@R and the like of a shallow ranking.
    missing_ranks: what the ranks after a list's end are: "unknown" (no mean at that cut-off);
      "wrong", as a judge counts them; or "absent", as trec_eval does: wrong, and images that a list
      lacks count as never found, so that AP and the like are known too.
    cluster: "label" or another column: intervals draw whole classes instead of queries.
    """
    if missing_ranks not in MISSING_RANKS:
        raise UsageError(f"missing_ranks={missing_ranks!r}: choose {', '.join(MISSING_RANKS)}")
    truth = named_as(truth, ranking)
    judged = relevance(ranking, truth)
    handed_in_k = top_k
    if top_k is None:
        is_submission = judged.gallery_size is None and truth.relevant is None
        top_k = ranking.depth if is_submission else min(max(ks), ranking.depth)
    cutoffs = sorted({*ks, top_k})
    if not cutoffs or cutoffs[0] < 1:
        raise UsageError(f"cut-offs {cutoffs}: choose whole numbers from 1")
    if full_ranks is not None and len(full_ranks) != len(ranking):
        raise DataError(f"full_ranks holds {len(full_ranks)} rows for {len(ranking)} queries")
    seen = Seen.of(judged, full_ranks)
    if missing_ranks != "unknown":
        deepest = np.full(len(judged), max(cutoffs[-1], seen.depth))
        whole = seen.whole | (missing_ranks == "absent")
        seen = dataclasses.replace(seen, lengths=deepest, whole=whole)
    columns = {n: [of.get(q) for q in judged.queries] for n, of in truth.attributes.items()}
    scores = Scores(
        queries=judged.queries,
        metrics=measure(seen, cutoffs, points, handed_in=handed_in_k),
        top_k=top_k,
        answerable=~judged.nothing_relevant,
        n_relevant=judged.n_relevant,
        first_ranks=metrics.first_hit_rank(seen.ranks),
        first_labels=judged.first_labels,
        columns={"label": judged.labels, **columns},
        gallery_size=judged.gallery_size,
        depth=ranking.depth,
        lacking=int(judged.lacking.sum()),
        unlabelled=len(judged.unlabelled),
        unlabelled_gallery=judged.unlabelled_gallery,
        settings=IntervalSettings(cluster, confidence, resamples, seed),
    )
    if cluster is not None:
        scores.cluster_values(cluster)  # an unknown column is an error now, not with the first mean
    return scores


# ── which values can be known ────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Seen:
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
    def of(judged: Relevance, full_ranks: Sequence[np.ndarray] | None = None) -> "Seen":
        """full_ranks: for each query of the ranking the ranks of its relevant images, rising."""
        ranks, depth = metrics.hit_ranks(judged.hits), judged.hits.shape[1]
        if full_ranks is None:
            return Seen(ranks, judged.lengths, judged.whole, judged.n_relevant, depth)
        full = _padded([full_ranks[row] if row >= 0 else np.array([], int) for row in judged.rows])
        shallow = ((full > 0) & (full <= judged.lengths[:, None])).sum(axis=1)
        if (shallow != (ranks > 0).sum(axis=1)).any():
            raise DataError(
                f"full_ranks and the ranking disagree about the hits in the first {depth} ranks: "
                "compute both from the same vectors and the same truth"
            )
        if ((judged.n_relevant >= 0) & ((full > 0).sum(axis=1) > judged.n_relevant)).any():
            raise DataError("full_ranks holds more ranks than the truth has relevant images")
        return Seen(full, judged.lengths, np.ones(len(full), bool), judged.n_relevant, depth)


def measure(
    seen: Seen,
    ks: Sequence[int],
    points: Mapping[int, float] | None = None,
    *,
    handed_in: int | None = None,
) -> dict[str, Metric]:
    """All metrics by key ("precision@10", "map", …), by kind and then by cut-off.

    handed_in: how many ranks a contest takes; later ones get no points. None: all.
    """
    levels = metrics.CONTEST_POINTS if points is None else dict(points)
    ranks = seen.ranks if handed_in is None else np.where(seen.ranks > handed_in, 0, seen.ranks)
    worth = metrics.contest_points(ranks, levels)
    table = {"contest_points": Metric("contest points", worth, True, sum(levels.values()))}
    for k in ks:
        table |= _metrics_at_cutoff(seen, k)
    table |= _metrics_without_cutoff(seen)
    if table["map"].unknown:
        table |= _ap_at_depth(seen)
    return {key: table[key] for key in sorted(table, key=_sort_key)}


def _metrics_at_cutoff(seen: Seen, k: int) -> dict[str, Metric]:
    ranks, n_relevant = seen.ranks, seen.n_relevant
    reaches = seen.whole | (seen.lengths >= k)
    short = f"{int((~reaches).sum())} of {len(reaches)} lists are shorter than {k}"
    hit, precision = metrics.hit_rate_at_k(ranks, k), metrics.precision_at_k(ranks, k)
    reciprocal = metrics.reciprocal_rank_at_k(ranks, k)
    recall = metrics.recall_at_k(ranks, n_relevant, k)
    ap = metrics.average_precision_at_k(ranks, n_relevant, k)
    ndcg = metrics.ndcg_at_k(ranks, n_relevant, k)
    return {
        f"top_k_accuracy@{k}": _metric(f"top-{k} accuracy", hit, reaches, short, over_all=True),
        f"precision@{k}": _metric(f"precision@{k}", precision, reaches, short),
        f"mrr@{k}": _metric(f"MRR@{k}", reciprocal, reaches, short),
        f"recall@{k}": _of_gallery(f"recall@{k}", recall, seen, reaches, short),
        f"ap@{k}": _of_gallery(f"AP@{k}", ap, seen, reaches, short),
        f"ndcg@{k}": _of_gallery(f"nDCG@{k}", ndcg, seen, reaches, short),
    }


def _metrics_without_cutoff(seen: Seen) -> dict[str, Metric]:
    """Metrics without a cut-off, known if a query's list has all ranks that they need."""
    ranks, n_relevant = seen.ranks, seen.n_relevant
    shallow = f"the ranking ends at rank {seen.depth}, the gallery does not"
    to_end = seen.whole | ((ranks > 0).sum(axis=1) >= n_relevant)
    to_r = to_end | (seen.lengths >= n_relevant)
    to_first = seen.whole | np.isfinite(metrics.first_hit_rank(ranks)) | (n_relevant == 0)
    ap = metrics.average_precision(ranks, n_relevant)
    map_at_r = metrics.map_at_r(ranks, n_relevant)
    r_precision = metrics.r_precision(ranks, n_relevant)
    return {
        "map": _of_gallery("mAP", ap, seen, to_end, shallow),
        "map_at_r": _of_gallery("MAP@R", map_at_r, seen, to_r, shallow),
        "r_precision": _of_gallery("R-precision", r_precision, seen, to_r, shallow),
        "mrr": _metric("MRR", metrics.reciprocal_rank(ranks), to_first, shallow),
    }


def _ap_at_depth(seen: Seen) -> dict[str, Metric]:
    """AP at the depth that every list reaches, instead of mAP."""
    deepest = int(seen.lengths[~seen.whole].min(initial=seen.depth))
    if deepest == 0:
        return {}
    ap = metrics.average_precision_at_k(seen.ranks, seen.n_relevant, deepest)
    everywhere = np.ones(len(ap), dtype=bool)
    return {f"ap@{deepest}": _of_gallery(f"AP@{deepest}", ap, seen, everywhere, "")}


def _of_gallery(
    title: str, values: np.ndarray, seen: Seen, known: np.ndarray, reason: str
) -> Metric:
    """A metric that needs the number of relevant images."""
    if (seen.n_relevant < 0).any():
        known, reason = seen.n_relevant >= 0, "the truth of the whole gallery is not known"
    return _metric(title, np.where(seen.n_relevant == 0, 0.0, values), known, reason)


def _metric(
    title: str, values: np.ndarray, known: np.ndarray, reason: str, *, over_all: bool = False
) -> Metric:
    unknown = None if known.all() else reason
    return Metric(title, np.where(known, values, np.nan), over_all, unknown=unknown)


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """(Q, longest) int64, 0 after a row's end."""
    padded = np.zeros((len(rows), max((len(row) for row in rows), default=0)), dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def _sort_key(key: str) -> tuple[int, int]:
    kind, _, k = key.partition("@")
    return KINDS.index(kind), int(k or 10**9)
