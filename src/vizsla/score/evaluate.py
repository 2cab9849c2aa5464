"""Ranking + Truth → Scores."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from vizsla.errors import DataError, UsageError
from vizsla.score import metrics
from vizsla.score.intervals import RESAMPLES
from vizsla.score.per_query import Seen, measure
from vizsla.score.relevance import relevance
from vizsla.score.scores import IntervalSettings, Scores
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking

MISSING_RANKS = ("unknown", "wrong", "absent")


def evaluate(
    ranking: Ranking,
    truth: Truth,
    *,
    ks: Sequence[int] = (1, 5, 10),
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

    top_k: the contest's k, beyond which no contest points are won. By default the lists' length
      for a submission, whose gallery is not known, and max(ks) otherwise; also for a run with
      judgements, which may be long.
    full_ranks: for each query of the ranking the ranks (from 1, rising) of its relevant images in
      the whole gallery, junk and self taken out: AP, MAP@R and the like from a shallow ranking.
    missing_ranks: behind a list's end: "unknown" (no mean at that cut-off); "wrong" as a judge has
      it; or "absent" as trec_eval has it: wrong, and what a list lacks is never found, so that AP
      and the like are known too.
    cluster: "label" or another column, to draw whole classes for the intervals.
    """
    if missing_ranks not in MISSING_RANKS:
        raise UsageError(f"missing_ranks={missing_ranks!r}: choose {', '.join(MISSING_RANKS)}")
    judged = relevance(ranking, truth)
    asked_k = top_k
    if top_k is None:
        handed_in = judged.gallery_size is None and truth.relevant is None
        top_k = ranking.depth if handed_in else min(max(ks), ranking.depth)
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
    columns: dict[str, list[str | None]] = {"label": list(judged.labels)}
    for name, values in truth.attributes.items():
        columns[name] = [values.get(query) for query in judged.queries]
    scores = Scores(
        queries=judged.queries,
        metrics=measure(seen, cutoffs, points, handed_in=asked_k),
        top_k=top_k,
        answerable=~judged.nothing_relevant,
        n_relevant=judged.n_relevant,
        first_ranks=metrics.first_hit_rank(seen.ranks),
        first_labels=judged.first_labels,
        columns=columns,
        gallery_size=judged.gallery_size,
        depth=ranking.depth,
        lacking=int(judged.lacking.sum()),
        unlabelled=len(judged.unlabelled),
        unlabelled_gallery=judged.unlabelled_gallery,
        settings=IntervalSettings(cluster, confidence, resamples, seed),
    )
    if cluster is not None:
        scores._column(cluster)  # an unknown column is said now, not when a figure is looked at
    return scores
