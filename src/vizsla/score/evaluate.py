"""Ranking + Truth → Scores: every metric of every query, and which of them can be known.

A list that ends at rank 9 says nothing of rank 10, and one from a submission nothing of the images
that it left out: such values are nan, with the reason. The formulas are in metrics/formulas.py.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vizsla.errors import DataError, UsageError
from vizsla.score.figures import IntervalSettings, Metric
from vizsla.score.intervals import RESAMPLES
from vizsla.score.metrics import formulas
from vizsla.score.metrics.decision_metrics import measure_decisions
from vizsla.score.metrics.hit_ranks import HitRanks, known_metric, metric_of_n_relevant
from vizsla.score.metrics.metric_names import MetricName, parse_metrics
from vizsla.score.metrics.named_metrics import measure_named, measure_pooled
from vizsla.score.protocols import Protocol, parse_protocol
from vizsla.score.relevance import Relevance, relevance
from vizsla.score.scores import Scores
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
    metrics_named: names of further metrics, such as "AP@100,mINP" (metrics/metric_names.py), which
      are then shown in place of the usual ones.
    protocol: its name, such as "oxford-medium" (protocols.py); it decides what is relevant and
      junk, the metrics and what their means divide by.
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
    hit_ranks = HitRanks.of(judged, full_ranks).completed(missing_ranks, deepest)
    over_all = rules.over_all if rules else None
    named = measure_named(names, judged, hit_ranks, missing_ranks=missing_ranks, over_all=over_all)
    settings = IntervalSettings(cluster, confidence, resamples, seed)
    columns = {n: [of.get(q) for q in judged.queries] for n, of in truth.attributes.items()}
    scores = Scores(
        queries=judged.queries,
        metrics={**measure(hit_ranks, cutoffs, points, handed_in=handed_in_k), **named},
        top_k=top_k,
        answerable=~judged.nothing_relevant,
        n_relevant=judged.n_relevant,
        first_ranks=formulas.first_hit_rank(hit_ranks.ranks),
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
    hit_ranks: HitRanks,
    ks: Sequence[int],
    points: Mapping[int, float] | None = None,
    *,
    handed_in: int | None = None,
) -> dict[str, Metric]:
    """All metrics by key ("precision@10", "map", …), by kind and then by cut-off.

    handed_in: how many ranks a contest takes; later ones get no points. None: all.
    """
    levels = formulas.CONTEST_POINTS if points is None else dict(points)
    ranks = (
        hit_ranks.ranks
        if handed_in is None
        else np.where(hit_ranks.ranks > handed_in, 0, hit_ranks.ranks)
    )
    worth = formulas.contest_points(ranks, levels)
    table = {"contest_points": Metric("contest points", worth, True, sum(levels.values()))}
    for k in ks:
        table |= _metrics_at_cutoff(hit_ranks, k)
    table |= _metrics_without_cutoff(hit_ranks)
    if table["map"].unknown:
        table |= _ap_at_depth(hit_ranks)
    return {key: table[key] for key in sorted(table, key=_sort_key)}


def _metrics_at_cutoff(hit_ranks: HitRanks, k: int) -> dict[str, Metric]:
    ranks, n_relevant = hit_ranks.ranks, hit_ranks.n_relevant
    reaches, short = hit_ranks.reaching(k)
    hit, precision = formulas.hit_rate_at_k(ranks, k), formulas.precision_at_k(ranks, k)
    reciprocal = formulas.reciprocal_rank_at_k(ranks, k)
    recall = formulas.recall_at_k(ranks, n_relevant, k)
    ap = formulas.average_precision_at_k(ranks, n_relevant, k)
    ndcg = formulas.ndcg_at_k(ranks, n_relevant, k)
    return {
        f"top_k_accuracy@{k}": known_metric(
            f"top-{k} accuracy", hit, reaches, short, over_all=True
        ),
        f"precision@{k}": known_metric(f"precision@{k}", precision, reaches, short),
        f"mrr@{k}": known_metric(f"MRR@{k}", reciprocal, reaches, short),
        f"recall@{k}": metric_of_n_relevant(f"recall@{k}", recall, hit_ranks, reaches, short),
        f"ap@{k}": metric_of_n_relevant(f"AP@{k}", ap, hit_ranks, reaches, short),
        f"ndcg@{k}": metric_of_n_relevant(f"nDCG@{k}", ndcg, hit_ranks, reaches, short),
    }


def _metrics_without_cutoff(hit_ranks: HitRanks) -> dict[str, Metric]:
    """Metrics without a cut-off, known if a query's list has all ranks that they need."""
    ranks, n_relevant = hit_ranks.ranks, hit_ranks.n_relevant
    to_end, shallow = hit_ranks.to_end, hit_ranks.shallow
    to_r = to_end | (hit_ranks.lengths >= n_relevant)
    to_first = hit_ranks.whole | np.isfinite(formulas.first_hit_rank(ranks)) | (n_relevant == 0)
    ap = formulas.average_precision(ranks, n_relevant)
    map_at_r = formulas.map_at_r(ranks, n_relevant)
    r_precision = formulas.r_precision(ranks, n_relevant)
    return {
        "map": metric_of_n_relevant("mAP", ap, hit_ranks, to_end, shallow),
        "map_at_r": metric_of_n_relevant("MAP@R", map_at_r, hit_ranks, to_r, shallow),
        "r_precision": metric_of_n_relevant("R-precision", r_precision, hit_ranks, to_r, shallow),
        "mrr": known_metric("MRR", formulas.reciprocal_rank(ranks), to_first, shallow),
    }


def _ap_at_depth(hit_ranks: HitRanks) -> dict[str, Metric]:
    """AP at the depth that every list reaches, instead of mAP."""
    deepest = int(hit_ranks.lengths[~hit_ranks.whole].min(initial=hit_ranks.depth))
    if deepest == 0:
        return {}
    ap = formulas.average_precision_at_k(hit_ranks.ranks, hit_ranks.n_relevant, deepest)
    everywhere = np.ones(len(ap), dtype=bool)
    return {f"ap@{deepest}": metric_of_n_relevant(f"AP@{deepest}", ap, hit_ranks, everywhere, "")}


def _sort_key(key: str) -> tuple[int, int]:
    kind, _, k = key.partition("@")
    return KINDS.index(kind), int(k or 10**9)
