"""Ranking + Truth → Scores: every metric of every query, and which of them can be known.

A list that ends at rank 9 says nothing of rank 10, and one from a submission nothing of the images
that it left out: such values are nan, with the reason. The formulas are in metrics.py.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vizsla.errors import DataError, UsageError, require
from vizsla.score import metrics
from vizsla.score.decision_metrics import measure_decisions
from vizsla.score.figures import IntervalSettings, Metric
from vizsla.score.intervals import RESAMPLES
from vizsla.score.metric_names import MetricName, parse_metrics
from vizsla.score.named_metrics import measure_named, measure_pooled
from vizsla.score.protocols import Protocol, parse_protocol
from vizsla.score.relevance import Relevance, relevance
from vizsla.score.scores import Scores
from vizsla.score.seen_ranks import Seen, known_metric, needing_r
from vizsla.score.truth import Truth, named_as
from vizsla.search.ranking import Ranking

Metrics = str | Sequence[str | MetricName]
CUTOFFS = (1, 5, 10)
MISSING_RANKS = ("unknown", "wrong", "absent")
KINDS = ("top_k_accuracy", "precision", "recall", "ap", "ndcg", "mrr", "map", "map_at_r",
         "r_precision", "contest_points")  # fmt: skip


def evaluate(
    ranking: Ranking,
    truth: Truth | str | Path,
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
    metrics_named: Metrics = (),
    protocol: Protocol | str | None = None,
) -> Scores:
    """Scores of a ranking at the cut-offs `ks` and `top_k`.

    truth: a Truth, or a labels file.
    metrics_named: names of further metrics, such as "AP@100,mINP" (metric_names.py); they are
      then the ones that are shown. protocol: its name, such as "oxford-medium" (protocols.py); it
      decides what is relevant and junk, the metrics and what their means divide by.
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
    rules = None if protocol is None else parse_protocol(protocol)
    names = parse_metrics(metrics_named) or (rules.metric_names if rules else ())
    require("ranking", ranking, Ranking, "a Ranking, as rank and search return it")
    require("truth", truth, (Truth, str, Path), "a Truth, or the path of a labels file")
    truth = named_as(truth if isinstance(truth, Truth) else Truth.from_file(truth), ranking)
    if rules is not None:
        truth = rules.judging(truth, ranking.queries)
        missing_ranks = rules.missing_ranks if missing_ranks == "unknown" else missing_ranks
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
    deepest = max(cutoffs[-1], *(name.cutoff or 0 for name in names), 0)
    seen = Seen.of(judged, full_ranks).completed(missing_ranks, deepest)
    over_all = rules.over_all if rules else None
    named = measure_named(names, judged, seen, missing_ranks=missing_ranks, over_all=over_all)
    settings = IntervalSettings(cluster, confidence, resamples, seed)
    columns = {n: [of.get(q) for q in judged.queries] for n, of in truth.attributes.items()}
    scores = Scores(
        queries=judged.queries,
        metrics={**measure(seen, cutoffs, points, handed_in=handed_in_k), **named},
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
        settings=settings,
        chosen=tuple(map(str, names)),
        pooled=measure_pooled(names, judged, ranking, truth),
        protocol=None if rules is None else str(rules),
    )
    if cluster is not None:  # an unknown column is an error now, not with the first mean
        scores.cluster_values(cluster)
    return with_decisions(scores, judged)


def with_decisions(scores: Scores, judged: Relevance) -> Scores:
    """The scores of a ranking, with those of what was decided in it since; judged: that ranking."""
    found = measure_decisions(judged)
    return dataclasses.replace(
        scores,
        pooled={**scores.pooled, **found},
        chosen=(*scores.chosen, *found) if scores.chosen else (),
    )


# ── the usual metrics ────────────────────────────────────────────────────────────────────────────


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
    reaches, short = seen.reaching(k)
    hit, precision = metrics.hit_rate_at_k(ranks, k), metrics.precision_at_k(ranks, k)
    reciprocal = metrics.reciprocal_rank_at_k(ranks, k)
    recall = metrics.recall_at_k(ranks, n_relevant, k)
    ap = metrics.average_precision_at_k(ranks, n_relevant, k)
    ndcg = metrics.ndcg_at_k(ranks, n_relevant, k)
    return {
        f"top_k_accuracy@{k}": known_metric(
            f"top-{k} accuracy", hit, reaches, short, over_all=True
        ),
        f"precision@{k}": known_metric(f"precision@{k}", precision, reaches, short),
        f"mrr@{k}": known_metric(f"MRR@{k}", reciprocal, reaches, short),
        f"recall@{k}": needing_r(f"recall@{k}", recall, seen, reaches, short),
        f"ap@{k}": needing_r(f"AP@{k}", ap, seen, reaches, short),
        f"ndcg@{k}": needing_r(f"nDCG@{k}", ndcg, seen, reaches, short),
    }


def _metrics_without_cutoff(seen: Seen) -> dict[str, Metric]:
    """Metrics without a cut-off, known if a query's list has all ranks that they need."""
    ranks, n_relevant = seen.ranks, seen.n_relevant
    to_end, shallow = seen.to_end, seen.shallow
    to_r = to_end | (seen.lengths >= n_relevant)
    to_first = seen.whole | np.isfinite(metrics.first_hit_rank(ranks)) | (n_relevant == 0)
    ap = metrics.average_precision(ranks, n_relevant)
    map_at_r = metrics.map_at_r(ranks, n_relevant)
    r_precision = metrics.r_precision(ranks, n_relevant)
    return {
        "map": needing_r("mAP", ap, seen, to_end, shallow),
        "map_at_r": needing_r("MAP@R", map_at_r, seen, to_r, shallow),
        "r_precision": needing_r("R-precision", r_precision, seen, to_r, shallow),
        "mrr": known_metric("MRR", metrics.reciprocal_rank(ranks), to_first, shallow),
    }


def _ap_at_depth(seen: Seen) -> dict[str, Metric]:
    """AP at the depth that every list reaches, instead of mAP."""
    deepest = int(seen.lengths[~seen.whole].min(initial=seen.depth))
    if deepest == 0:
        return {}
    ap = metrics.average_precision_at_k(seen.ranks, seen.n_relevant, deepest)
    everywhere = np.ones(len(ap), dtype=bool)
    return {f"ap@{deepest}": needing_r(f"AP@{deepest}", ap, seen, everywhere, "")}


def _sort_key(key: str) -> tuple[int, int]:
    kind, _, k = key.partition("@")
    return KINDS.index(kind), int(k or 10**9)
