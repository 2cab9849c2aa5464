"""Ranking + pictures → a sheet for each query, and which queries to draw.

Which image is right is told by plain booleans: relevance is not known here.
"""

import dataclasses
import functools
import hashlib
import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from vizsla.data.images import MAX_PIXELS
from vizsla.errors import DataError, UsageError
from vizsla.output.sheet_drawing import Picture, compose, thumbnail_of, write_png
from vizsla.search.ranking import Ranking

log = logging.getLogger("vizsla.figures")

CACHED_THUMBNAILS = 500  # of about 100 KB each


def draw_ranking(
    ranking: Ranking,
    query_root: str | Path,
    gallery_root: str | Path,
    out_folder: str | Path,
    *,
    k: int = 10,
    pick: Sequence[int] | np.ndarray | None = None,
    hits: np.ndarray | None = None,
    judged: np.ndarray | None = None,
    ap: np.ndarray | None = None,
    query_labels: Mapping[str, str | None] | None = None,
    gallery_labels: Mapping[str, str | None] | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """One PNG for each query in `pick`, named after it; the paths, in the order of `pick`.

    pick: row numbers, from `pick_queries`; None draws all.
    hits: (Q, ≥k) bool, in step with the ranking's rows. judged: (Q,) bool, False where the truth of
    a query is unknown; (Q, ≥k) where that of single images is. ap: (Q,) float, nan where unknown.
    A picture that cannot be read is drawn as a grey tile that says why. DataError when a folder
    holds none of the pictures.
    """
    if k < 1:
        raise UsageError(f"k={k}: draw at least one image for each query")
    lengths = ranking.lengths
    rows = np.arange(len(ranking)) if pick is None else np.asarray(pick, dtype=np.int64)
    truth = truth_of(ranking, hits, judged)
    query_root, gallery_root = Path(query_root), Path(gallery_root)
    require_some([ranking.queries[i] for i in rows], query_root, "query")
    require_some([name for i in rows for name in ranking.row(i)[:k]], gallery_root, "gallery")
    names = sheet_names(ranking.queries)
    thumbnail = functools.lru_cache(CACHED_THUMBNAILS)(
        functools.partial(thumbnail_of, max_pixels=max_pixels)
    )
    paths = []
    for i in rows:
        query = ranking.queries[i]
        label = (query_labels or {}).get(query)
        results = results_of(ranking, i, k, gallery_root, truth, gallery_labels or {})
        judgeable = truth is not None and (truth[i] >= 0).any()
        known = truth[i, : lengths[i]] > 0 if truth is not None and judgeable else None
        notes = notes_of(label, known, results, None if ap is None else float(ap[i]))
        path = Path(out_folder) / names[i]
        sheet = compose(Picture(below(query_root, query), query, label), results, notes, thumbnail)
        write_png(sheet, path)
        paths.append(path)
        if progress:
            progress(len(paths), len(rows))
    return paths


def with_unanswered(ranking: Ranking, queries: Sequence[str]) -> Ranking:
    """The ranking with an empty row for each of these queries that it lacks."""
    known = set(ranking.queries)
    more = [name for name in queries if name not in known]
    if not more:
        return ranking
    below = ((0, len(more)), (0, 0))
    scores = ranking.scores
    return dataclasses.replace(
        ranking,
        queries=[*ranking.queries, *more],
        positions=np.pad(ranking.positions, below, constant_values=-1),
        scores=None if scores is None else np.pad(scores, below, constant_values=np.nan),
    )


def pick_queries(
    n_queries: int,
    *,
    hits: np.ndarray | None = None,
    judged: np.ndarray | None = None,
    ap: np.ndarray | None = None,
    k: int = 10,
    only_wrong: bool = False,
    worst: int | None = None,
    random: int | None = None,
    at_most: int | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Row numbers of the queries to draw; all of them unless asked otherwise. The wishes add up.

    only_wrong: nothing right among the first k. worst: so many, by AP, then by how late the first
    right image comes, worst first. random: so many, in the ranking's order. DataError where the
    truth is needed and not known.
    """
    if worst is not None and random is not None:
        raise UsageError("worst and random exclude each other: choose one")
    for name, number in {"worst": worst, "random": random, "at_most": at_most}.items():
        if number is not None and number < 1:
            raise UsageError(f"{name}={number}: expected 1 or more")
    rows = np.arange(n_queries)
    if only_wrong or worst is not None:
        if hits is None:
            raise DataError(
                "the wrong and the worst queries are known only with the truth: give labels"
            )
        if judged is not None:
            rows = rows[judged.reshape(n_queries, -1).any(axis=1)]
    if only_wrong and hits is not None:
        rows = rows[~hits[rows, :k].any(axis=1)]
    if worst is not None and hits is not None:
        rows = rows[np.lexsort(_badness(hits[rows], None if ap is None else ap[rows]))][:worst]
    if random is not None and random < len(rows):
        rows = np.sort(np.random.default_rng(seed).choice(rows, random, replace=False))
    return rows[:at_most]


def _badness(hits: np.ndarray, ap: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Keys for lexsort, the last one first: AP, how late the first right image is, how many."""
    first = np.where(hits.any(axis=1), hits.argmax(axis=1), hits.shape[1])
    keys = (hits.sum(axis=1), -first)
    return keys if ap is None else (*keys, np.nan_to_num(ap, nan=np.inf))


def truth_of(
    ranking: Ranking, hits: np.ndarray | None, judged: np.ndarray | None
) -> np.ndarray | None:
    """(Q, K) int8: 1 right, 0 wrong, -1 unknown."""
    if hits is None:
        return None
    if hits.ndim != 2 or len(hits) != len(ranking):
        raise DataError(f"hits have shape {hits.shape}, expected ({len(ranking)}, K)")
    truth = (hits > 0).astype(np.int8)
    if judged is not None:
        truth[~np.broadcast_to(judged.reshape(len(hits), -1), hits.shape)] = -1
    return truth


def results_of(
    ranking: Ranking,
    i: int,
    k: int,
    root: Path,
    truth: np.ndarray | None,
    labels: Mapping[str, str | None],
) -> list[Picture]:
    pictures = []
    for rank, name in enumerate(ranking.row(i)[:k]):
        score = None if ranking.scores is None else float(ranking.scores[i, rank])
        known = truth is not None and rank < truth.shape[1] and truth[i, rank] >= 0
        correct = bool(truth[i, rank]) if known and truth is not None else None
        pictures.append(Picture(below(root, name), name, labels.get(name), score, correct))
    return pictures


def notes_of(
    label: str | None, hits: np.ndarray | None, results: Sequence[Picture], ap: float | None
) -> list[str]:
    """What stands below the title. hits: (K,) bool, None where the truth is unknown."""
    notes = [label] if label else []
    if ap is not None and not math.isnan(ap):
        notes.append(f"AP {ap:.3f} (whole ranking)")
    if hits is not None:
        known = [picture.correct for picture in results if picture.correct is not None]
        if hits.any():
            notes.append(f"first correct at rank {hits.argmax() + 1}")
            notes.append(f"{sum(known)} of {len(known)} correct")
        elif results:
            notes.append(f"nothing correct among the first {len(hits)}")
        else:
            notes.append("counts as wrong")
    return notes


def below(root: Path, name: str) -> Path:
    """A name that would lead out of the root leads nowhere: submissions come from others."""
    parts = PurePosixPath(name)
    outside = parts.is_absolute() or ".." in parts.parts or "\0" in name
    return root / "outside of this folder" / "-" if outside else root / name


def require_some(names: Sequence[str], root: Path, role: str) -> None:
    if names and not any(below(root, name).exists() for name in names):
        raise DataError(
            f"none of the {len(set(names))} {role} images is in {root} ({names[0]!r}, …): "
            "give the folder of the data set that was ranked"
        )


def sheet_names(queries: Sequence[str]) -> list[str]:
    """A file name for each query: its id made safe, with part of a hash where two would clash."""
    plain = [_file_safe(query) for query in queries]
    met = Counter(_as_file_systems_see_it(name) for name in plain)
    names = [
        name if met[_as_file_systems_see_it(name)] == 1 else f"{name}-{_digits(query)[:8]}"
        for name, query in zip(plain, queries, strict=True)
    ]
    if len({_as_file_systems_see_it(name) for name in names}) < len(names):
        names = [f"{name}-{_digits(query)}" for name, query in zip(plain, queries, strict=True)]
    return [f"{name}.png" for name in names]


def _file_safe(name: str) -> str:
    """`dogs/rex 1.jpg` → `dogs_rex_1`."""
    stem = re.sub(r"\.[A-Za-z0-9]{1,5}$", "", unicodedata.normalize("NFC", name))
    safe = re.sub(r"[^\w.+-]+", "_", stem).strip("._") or "query"
    return safe.encode()[:120].decode(errors="ignore")


def _as_file_systems_see_it(name: str) -> str:
    """Some know no difference between small and capital letters, or between ways to write an é."""
    return unicodedata.normalize("NFKC", name).casefold()


def _digits(query: str) -> str:
    return hashlib.sha256(query.encode(errors="surrogatepass")).hexdigest()[:32]
