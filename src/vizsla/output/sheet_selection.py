"""Ranking + truth → which queries get a sheet, and the sheets."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vizsla.data.data_folders import DataFolders
from vizsla.data.images import MAX_PIXELS
from vizsla.embed.local_features import Sift
from vizsla.errors import DataError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.output.matched_points import draw_matches
from vizsla.output.query_sheets import RankingTruth, draw_ranking
from vizsla.output.sheet_drawing import remove_other_sheets
from vizsla.output.similarity_sheet import draw_similarity
from vizsla.score.evaluate import evaluate
from vizsla.score.relevance import WRONG, verdicts
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking

log = logging.getLogger("vizsla.figures")

EMPTY = {
    "positions": -1, "scores": np.nan, "accepted": 0, "probability": np.nan, "evidence": np.nan,
    "members": -1, "member_scores": np.nan, "best_tile": -1,
}  # array of a ranking, a row a query → its value where there is no result  # fmt: skip


def show(
    ranking: Ranking,
    data: DataFolders,
    truth: Truth | None,
    out: str | Path,
    *,
    k: int = 10,
    worst: int | None = None,
    only_wrong: bool = False,
    random: int | None = None,
    figures: int = -1,
    seed: int = 0,
    why: Embedder | None = None,
    points: str | None = None,
    broken: Iterable[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Draws a sheet for each selected query (see `pick_queries`); the paths of the PNGs.

    figures: at most so many, the first ones, where neither worst nor random says how many; -1: all.
    why: the embedder that made the ranking, to draw what made query and result similar. points:
    instead the points that match, by SIFT, with this model of the geometry.
    broken: queries that could not be read: a sheet says so. Earlier sheets in `out` are replaced.
    """
    scores = None if truth is None else evaluate(ranking, truth, ks=[k])
    ranking = with_unanswered(ranking, list(broken))
    known = ranking_truth(ranking, truth, scores, k)
    rows = pick_queries(
        len(ranking), known, k=k, only_wrong=only_wrong, worst=worst, random=random, seed=seed
    )
    if worst is None and random is None and 0 <= figures < len(rows):
        log.info("the first %d of %d queries are drawn; --figures -1 draws all", figures, len(rows))
        rows = rows[:figures]
    folders = data.query.root, data.gallery.root, out
    if points is not None:
        paths = draw_matches(
            ranking,
            *folders,
            Sift(),
            model=points,
            k=k,
            rows=rows,
            truth=known,
            progress=progress,
        )
    elif why is None:
        paths = draw_ranking(ranking, *folders, k=k, rows=rows, truth=known, progress=progress)
    else:
        paths = draw_similarity(
            ranking, *folders, why, k=k, rows=rows, truth=known, progress=progress
        )
    remove_other_sheets(Path(out), paths)
    return paths


def draw_sample(
    ranking: Ranking,
    data: DataFolders,
    truth: Truth | None,
    scores: Scores | None,
    out: str | Path,
    *,
    k: int,
    figures: int,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> list[Path]:
    """Sheets of `figures` queries, half of them the worst, the others at random; the paths.

    figures: -1 draws all queries. Without the truth all are chosen at random. Up to a quarter are
    queries with an empty row: those that could not be read.
    """
    known = ranking_truth(ranking, truth, scores, k)
    n = len(ranking)
    if figures < 0 or figures >= n:
        rows = np.arange(n)
    elif known is None or not known.is_judged.any():
        rows = pick_queries(n, random=figures, seed=seed)
    else:
        worst = pick_queries(n, known, worst=max(1, figures // 2))
        others = np.setdiff1d(np.arange(n), worst)
        rng = np.random.default_rng(seed)
        more = np.sort(rng.choice(others, figures - len(worst), replace=False))
        rows = np.concatenate([worst, more])
    empty = np.flatnonzero(ranking.lengths == 0)[: max(1, len(rows) // 4)]
    rows = np.concatenate([np.setdiff1d(empty, rows), rows])[: len(rows)]
    return draw_ranking(
        ranking, data.query.root, data.gallery.root, out,
        k=k, rows=rows, truth=known, max_pixels=max_pixels,
    )  # fmt: skip


def with_unanswered(ranking: Ranking, queries: Sequence[str]) -> Ranking:
    """The ranking with an empty row for each of these queries that it lacks."""
    known = set(ranking.queries)
    more = [name for name in queries if name not in known]
    if not more:
        return ranking
    rows: dict[str, Any] = {
        name: np.concatenate([values, np.full((len(more), *values.shape[1:]), empty, values.dtype)])
        for name, empty in EMPTY.items()
        if (values := getattr(ranking, name)) is not None
    }
    return dataclasses.replace(ranking, queries=[*ranking.queries, *more], **rows)


def ranking_truth(
    ranking: Ranking, truth: Truth | None, scores: Scores | None, k: int
) -> RankingTruth | None:
    """What is known of the first k images of each row; None without the truth.

    An empty row of a query with a known label counts as wrong.
    """
    if truth is None:
        return None
    correct = verdicts(ranking, truth, k)
    has_label = np.array([truth.query.get(name) is not None for name in ranking.queries])
    correct[has_label & (ranking.lengths == 0)] = WRONG
    ap = np.full(len(ranking), np.nan)
    if scores is not None and "map" in scores.metrics:
        values = dict(zip(scores.queries, scores.per_query("map"), strict=True))
        ap = np.array([values.get(name) for name in ranking.queries], dtype=float)  # None → nan
    return RankingTruth(correct, ap, truth.query, truth.gallery)


def pick_queries(
    n_queries: int,
    truth: RankingTruth | None = None,
    *,
    k: int = 10,
    only_wrong: bool = False,
    worst: int | None = None,
    random: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Row numbers of the queries to draw: all that meet every condition.

    only_wrong: nothing right among the first k. worst: the N worst by AP, then by how late the
    first right image comes, worst first. random: N at random, in the ranking's order. DataError
    if a condition needs the truth and there is none.
    """
    if worst is not None and random is not None:
        raise UsageError("worst and random are mutually exclusive: choose one")
    for name, number in {"worst": worst, "random": random}.items():
        if number is not None and number < 1:
            raise UsageError(f"{name}={number}: expected 1 or more")
    rows = np.arange(n_queries)
    if only_wrong or worst is not None:
        if truth is None:
            raise DataError(
                "the wrong and the worst queries are known only with the truth: give labels"
            )
        rows = rows[truth.is_judged]
        hits = truth.correct > 0  # (Q, K)
        if only_wrong:
            rows = rows[~hits[rows, :k].any(axis=1)]
        if worst is not None:
            found = hits[rows]
            first = np.where(found.any(axis=1), found.argmax(axis=1), found.shape[1])
            keys = [found.sum(axis=1), -first]
            if truth.ap is not None:
                keys.append(np.nan_to_num(truth.ap[rows], nan=np.inf))
            rows = rows[np.lexsort(keys)][:worst]  # by the last key first
    if random is not None and random < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, random, replace=False))
    return rows
