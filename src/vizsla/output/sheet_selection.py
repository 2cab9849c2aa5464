"""Ranking + truth → which queries are worth a sheet, and the sheets."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vizsla.data.imageset import DataFolders
from vizsla.model.embedder import Embedder
from vizsla.output.query_sheets import draw_ranking, pick_queries, with_unanswered
from vizsla.output.sheet_drawing import remove_other_sheets
from vizsla.output.similarity_sheet import draw_why
from vizsla.score.evaluate import evaluate
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking


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
    seed: int = 0,
    why: Embedder | None = None,
    broken: Iterable[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """A sheet for each query, or for those that were asked for; the paths of the PNGs.

    why: the embedder behind the ranking, to draw which parts of the pictures it found alike.
    broken: queries that could not be read: a sheet says so. Earlier sheets in `out` are replaced.
    """
    scores = None
    if truth is not None:
        scores = evaluate(ranking, truth, ks=[k])
    ranking = with_unanswered(ranking, list(broken))
    judged = judge_rows(ranking, truth, scores, k)
    known = {key: judged[key] for key in ("hits", "judged", "ap")} if judged else {}
    rows = pick_queries(
        len(ranking), **known, k=k, only_wrong=only_wrong, worst=worst, random=random, seed=seed
    )
    draw = draw_ranking if why is None else functools.partial(draw_why, embedder=why)
    paths = draw(
        ranking, data.query.root, data.gallery.root, out,
        k=k, pick=rows, **judged, progress=progress,
    )  # fmt: skip
    remove_other_sheets(Path(out), paths)
    return paths


def judge_rows(
    ranking: Ranking, truth: Truth | None, scores: Scores | None, k: int
) -> dict[str, Any]:
    """What `draw_ranking` and `pick_queries` know of each row: hits, judged, AP and labels."""
    if truth is None:
        return {}
    query = [truth.query.get(name) for name in ranking.queries]
    gallery = np.array([truth.gallery.get(name) for name in ranking.gallery] + [None], dtype=object)
    found = gallery[ranking.positions[:, :k]]  # (Q, k), None at -1
    asked = np.array(query, dtype=object)[:, None]
    known = (found != None) & (asked != None)  # noqa: E711 (elementwise)
    empty = (ranking.lengths == 0)[:, None] & (asked != None)  # noqa: E711
    ap = np.full(len(ranking), np.nan)
    if scores is not None and "map" in scores.metrics:
        values = dict(zip(scores.queries, scores.per_query("map"), strict=True))
        ap = np.array([values.get(name) for name in ranking.queries], dtype=float)  # None → nan
    return {
        "hits": known & (found == asked),
        "judged": known | empty,  # nothing found is wrong
        "ap": ap,
        "query_labels": truth.query,
        "gallery_labels": truth.gallery,
    }


def pick_rows(judged: dict[str, Any], n: int, figures: int, seed: int) -> np.ndarray:
    """Half of `figures` the worst, half at random; -1: all rows."""
    if figures < 0 or figures >= n:
        return np.arange(n)
    if not judged or not judged["judged"].any():
        return pick_queries(n, random=figures, seed=seed)
    ordered = {key: judged[key] for key in ("hits", "judged", "ap")}
    worst = pick_queries(n, **ordered, worst=max(1, figures // 2))
    others = np.setdiff1d(np.arange(n), worst)
    dice = np.random.default_rng(seed)
    more = np.sort(dice.choice(others, figures - len(worst), replace=False))
    return np.concatenate([worst, more])


def with_some_empty(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """As many row numbers, but with up to a quarter of them the first rows of length 0."""
    empty = np.flatnonzero(lengths == 0)[: max(1, len(rows) // 4)]
    return np.concatenate([np.setdiff1d(empty, rows), rows])[: len(rows)]
