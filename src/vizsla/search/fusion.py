"""Several rankings → one Ranking; several embeddings of the same images → one.

Rankings may come from different models, differ in depth, and lack queries or images. Scores of
different models have different scales, so they are normalised for each query before they are added.
An image that a ranking lacks gets the normalised score of the last image in that ranking.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.search.ranking import Ranking

log = logging.getLogger("vizsla.search")

CALIBRATED = "calibrated"
METHODS = ("zscore", "minmax", "rrf", CALIBRATED)
RRF_K = 60  # Cormack, Clarke and Büttcher (2009)
Probability = Callable[[np.ndarray], np.ndarray]  # scores → that each match is right
ENTRIES_AT_ONCE = 4_000_000


def fused(
    rankings: Sequence[Ranking],
    *,
    method: str = "zscore",
    weights: Sequence[float] | None = None,
    depth: int | None = None,
    rrf_k: int = RRF_K,
    probabilities: Sequence[Probability] | None = None,
) -> Ranking:
    """One ranking by a weighted sum: of normalised scores (zscore, minmax), of 1 / (rrf_k + rank)
    (rrf, reciprocal rank fusion), or of the log-odds that a match is right (calibrated). Ties go to
    the image whose id comes first.

    weights: one for each ranking, 0 or more; equal by default. depth: how far it reaches (default:
    as far as the longest). probabilities: for calibrated, what turns the scores of each ranking
    into probabilities. DataError: a ranking without scores, if the method needs them.
    """
    weights = checked_weights(weights, len(rankings))
    if method not in METHODS:
        raise UsageError(f"fusion by {method!r}: choose one of {', '.join(METHODS)}")
    if (method == CALIBRATED) != (probabilities is not None):
        raise UsageError(
            "fusion by calibrated, and no other, needs the probabilities of each ranking: "
            "Calibration.probability gives them"
        )
    for i, ranking in enumerate(rankings, 1):
        if method != "rrf" and ranking.scores is None:
            raise DataError(
                f"ranking {i} has no scores, which {method} needs: use rrf, which takes ranks"
            )
    queries = list(dict.fromkeys(name for ranking in rankings for name in ranking.queries))
    gallery = sorted({name for r in rankings for name in _named(r)}, key=_utf8)
    _warn_of_uncommon_queries(rankings, queries)
    if method in ("zscore", "minmax"):
        _warn_of_flat_lists(rankings, method)
    depth = min(len(gallery), depth or max(r.depth for r in rankings))
    aligned = [
        _Aligned.of(
            ranking, queries, gallery, method, rrf_k, probabilities[i] if probabilities else None
        )
        for i, ranking in enumerate(rankings)
    ]
    positions = np.full((len(queries), depth), -1, np.int64)
    scores = np.full((len(queries), depth), np.nan)
    rows = max(1, ENTRIES_AT_ONCE // max(1, sum(r.depth for r in rankings)))
    for start in range(0, len(queries), rows):
        part = slice(start, min(start + rows, len(queries)))
        _fill(positions[part], scores[part], aligned, weights, part, len(gallery))
    return Ranking(queries, gallery, positions, scores, _gallery_size(rankings, gallery), {
        "fusion": {"method": method, "weights": list(weights), "of": [r.origin for r in rankings]},
        "depth": depth,
    })  # fmt: skip


def _warn_of_uncommon_queries(rankings: Sequence[Ranking], queries: list[str]) -> None:
    """A query that only some rankings have may mean that they are of different data sets."""
    common = set(queries).intersection(*(ranking.queries for ranking in rankings))
    if len(common) < len(queries):
        log.warning(
            "only %d of %d queries are in all %d rankings: are they of the same data?",
            len(common), len(queries), len(rankings),
        )  # fmt: skip


def _warn_of_flat_lists(rankings: Sequence[Ranking], method: str) -> None:
    """A list of one image, or of equal scores, normalises to zeros: it says nothing."""
    for i, ranking in enumerate(rankings, 1):
        assert ranking.scores is not None
        there = ranking.positions >= 0
        high = np.where(there, ranking.scores, -np.inf).max(axis=1, initial=-np.inf)
        low = np.where(there, ranking.scores, np.inf).min(axis=1, initial=np.inf)
        if flat := int((high == low).sum()):
            log.warning(
                "ranking %d: %d of %d lists hold one image or equal scores, which %s turns into 0: "
                "they count for nothing; rrf takes their ranks", i, flat, len(ranking), method
            )  # fmt: skip


def checked_weights(weights: Sequence[float] | None, n: int) -> list[float]:
    """n weights that add up to 1, equal by default. UsageError: another number, or negative."""
    if n < 1:
        raise UsageError("nothing to fuse: give two rankings or more")
    if weights is None:
        return [1 / n] * n
    if len(weights) != n:
        raise UsageError(f"{len(weights)} weights for {n} rankings: give one for each")
    if not all(np.isfinite(w) and w >= 0 for w in weights) or sum(weights) <= 0:
        raise UsageError(f"weights {', '.join(f'{w:g}' for w in weights)}: 0 or more, not all 0")
    return [float(w) / float(sum(weights)) for w in weights]


class _Aligned:
    """A ranking in terms of the joint queries and gallery.

    codes: (Q, K) positions in the joint gallery, -1 after a row's end. values: (Q, K) normalised
    scores. absent: (Q,) the value of an image that the row lacks.
    """

    def __init__(self, codes: np.ndarray, values: np.ndarray, absent: np.ndarray) -> None:
        self.codes, self.values, self.absent = codes, values, absent

    @staticmethod
    def of(
        ranking: Ranking,
        queries: list[str],
        gallery: list[str],
        method: str,
        rrf_k: int,
        probability: Probability | None = None,
    ) -> "_Aligned":
        position = {name: i for i, name in enumerate(gallery)}
        codes_of = np.array([position.get(name, -1) for name in ranking.gallery] + [-1], np.int64)
        row_of = {name: i for i, name in enumerate(ranking.queries)}
        rows = np.array([row_of.get(name, -1) for name in queries])
        codes = codes_of[ranking.positions]  # (Q', K); -1 stays -1
        codes = np.where(rows[:, None] >= 0, codes[rows], -1)
        if method == "rrf":
            ranks = np.arange(1, ranking.depth + 1)
            values = np.where(codes >= 0, 1 / (rrf_k + ranks), 0.0)
            return _Aligned(codes, values, np.zeros(len(queries)))
        assert ranking.scores is not None
        scores = np.where(codes >= 0, ranking.scores[rows], np.nan)
        values = _log_odds(scores, probability) if probability else _normalised(scores, method)
        least = np.where(codes >= 0, values, np.inf).min(axis=1, initial=np.inf)
        return _Aligned(codes, values, np.where(np.isfinite(least), least, 0.0))


def _log_odds(scores: np.ndarray, probability: Probability) -> np.ndarray:
    """(Q, K) of the probabilities that matches are right; 0 where there is no entry.

    A hundredth of the score is added, since isotonic regression gives many scores one probability.
    """
    there = ~np.isnan(scores)
    chance = np.where(there, probability(scores), 0.5)
    return np.where(there, np.log(chance / (1 - chance)) + 0.01 * scores, 0.0)


def _normalised(scores: np.ndarray, method: str) -> np.ndarray:
    """(Q, K) by row: mean 0 and variance 1, or from 0 to 1; 0 where there is no entry."""
    there = ~np.isnan(scores)
    counts = np.maximum(there.sum(axis=1, keepdims=True), 1)
    filled = np.where(there, scores, 0)
    if method == "zscore":
        mean = filled.sum(axis=1, keepdims=True) / counts
        centred = np.where(there, scores - mean, 0)
        variance = (centred**2).sum(axis=1, keepdims=True) / counts
        return centred / np.maximum(variance**0.5, 1e-9)
    low = np.where(there, scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    high = np.where(there, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    width = np.maximum(high - np.where(np.isfinite(low), low, 0), 1e-9)
    return np.where(there, (scores - np.where(there, low, 0)) / width, 0)


def _fill(
    positions: np.ndarray,
    scores: np.ndarray,
    aligned: Sequence[_Aligned],
    weights: Sequence[float],
    part: slice,
    G: int,
) -> None:
    """Writes the fused rows of some queries, best first, into positions and scores (q, depth)."""
    q, depth = positions.shape
    base = sum(w * one.absent[part] for w, one in zip(weights, aligned, strict=True))
    keys, gains = [], []
    for w, one in zip(weights, aligned, strict=True):
        codes = one.codes[part]
        row, column = np.nonzero(codes >= 0)
        keys.append(row * G + codes[row, column])
        gains.append(w * (one.values[part][row, column] - one.absent[part][row]))
    cells, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    row, code = np.divmod(cells, G)
    value = (
        np.bincount(inverse, np.concatenate(gains), minlength=len(cells)) + np.asarray(base)[row]
    )
    order = np.lexsort((code, -value, row))
    row, code, value = row[order], code[order], value[order]
    counts = np.bincount(row, minlength=q)
    rank = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    kept = rank < depth
    positions[row[kept], rank[kept]] = code[kept]
    scores[row[kept], rank[kept]] = value[kept]


def _named(ranking: Ranking) -> list[str]:
    """The gallery ids that occur in any row."""
    used = np.unique(ranking.positions)
    return [ranking.gallery[i] for i in used[used >= 0]]


def _gallery_size(rankings: Sequence[Ranking], gallery: list[str]) -> int | None:
    sizes = [ranking.gallery_size for ranking in rankings]
    if any(size is None for size in sizes):
        return None
    return max(len(gallery), *(size for size in sizes if size is not None))


def _utf8(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


# ── vectors ──────────────────────────────────────────────────────────────────────────────────────


def joined(parts: Sequence[Embeddings], weights: Sequence[float] | None = None) -> Embeddings:
    """The concatenated vectors of several models, (N, ΣD): a cosine is the weighted mean of theirs.

    Images that a part lacks are left out and listed in `broken`.
    """
    weights = checked_weights(weights, len(parts))
    common = set(parts[0].ids).intersection(*(part.ids for part in parts[1:]))
    if not common:
        raise DataError("the embeddings to join have no image in common: are they of one data set?")
    ids = [name for name in parts[0].ids if name in common]
    columns: list[np.ndarray] = []
    for weight, part in zip(weights, parts, strict=True):
        place = {name: i for i, name in enumerate(part.ids)}
        columns.append(part.vectors[[place[name] for name in ids]] * weight**0.5)
    first = {name: i for i, name in enumerate(parts[0].ids)}
    rows = [first[name] for name in ids]
    attributes = parts[0].attributes
    every = dict.fromkeys(name for part in parts for name in part.ids if name not in common)
    broken: dict[str, str] = dict.fromkeys(every, "another model could not read it")
    broken |= {name: reason for part in parts for name, reason in part.broken}
    return Embeddings(
        ids,
        np.concatenate(columns, axis=1).astype(np.float32),
        attributes.take(rows) if attributes.num_columns else attributes,
        "+".join(f"{part.model_id}*{w:g}" for w, part in zip(weights, parts, strict=True)),
        None,
        list(broken.items()),
    )


SPREADS: dict[str, Callable[..., Any]] = {
    "zscore": np.std,
    "minmax": np.ptp,
}  # of a query's scores by one model
SMALLEST = 1e-9


def searched_as_fused(
    vectors: np.ndarray,
    sample: np.ndarray,
    dims: Sequence[int],
    weights: Sequence[float],
    method: str,
) -> np.ndarray:
    """(Q, ΣD) float32 of length 1: joined query vectors whose cosines order a joined gallery as the
    fusion of all models' cosines by `method` does; unchanged for a method that is not in SPREADS.

    Z-scores and min-max divide each model's cosines by their spread over the gallery; what they
    subtract changes no rank. So the query's part of each model is divided. sample: (S, ΣD) of the
    gallery; the order is exact if it is all of it. dims: of each model.
    """
    if method not in SPREADS:
        return vectors
    ends = np.cumsum(dims)[:-1]
    own, other = (np.split(part, ends, axis=1) for part in (vectors.astype(np.float64), sample))
    scaled = [
        part * weight / np.maximum(SPREADS[method](part @ rows.T, axis=1), SMALLEST)[:, None]
        for part, rows, weight in zip(own, other, weights, strict=True)
    ]
    found = np.concatenate(scaled, axis=1)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.maximum(length, SMALLEST), np.float32)
