"""Ranking + images → a PNG sheet for each query. Is given which images are right."""

import functools
import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from vizsla.data.images import MAX_PIXELS
from vizsla.errors import DataError, UsageError
from vizsla.output.sheet_drawing import Picture, Thumbnail, draw_sheet, thumbnail_of, write_png
from vizsla.search.ranking import Ranking

CACHED_THUMBNAILS = 500  # of about 100 KB each


@dataclass(frozen=True, eq=False)
class RankingTruth:
    """What is known about the rows of a ranking.

    correct: (Q, K) int8: 1 right, 0 wrong, negative: unknown or junk. ap: (Q,) float, nan if
    unknown.
    """

    correct: np.ndarray
    ap: np.ndarray | None = None
    query_labels: Mapping[str, str | None] = field(default_factory=dict)
    gallery_labels: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def is_judged(self) -> np.ndarray:
        """(Q,) bool: whether the truth of any result is known."""
        return np.asarray((self.correct >= 0).any(axis=1))


@dataclass(frozen=True)
class Sheet:
    """What one sheet shows. results: best first. notes: the line below the title. accepted: so
    many results; None if nothing was decided."""

    file_name: str
    query: Picture
    results: list[Picture]
    notes: list[str]
    accepted: int | None = None

    def drawn(self, thumbnail: Thumbnail) -> Image.Image:
        """The sheet as an image."""
        return draw_sheet(self.query, self.results, self.notes, thumbnail, accepted=self.accepted)


def draw_ranking(
    ranking: Ranking,
    query_root: str | Path,
    gallery_root: str | Path,
    out_folder: str | Path,
    *,
    k: int = 10,
    rows: Iterable[int] | None = None,
    truth: RankingTruth | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """One PNG for each query, named after it; the paths, in the order of `rows`.

    rows: numbers of the ranking's rows to draw; None: all. An image that cannot be read becomes a
    grey tile with the reason. DataError if a folder holds none of the images.
    """
    thumbnail = functools.lru_cache(CACHED_THUMBNAILS)(
        functools.partial(thumbnail_of, max_pixels=max_pixels)
    )
    paths: list[Path] = []
    found = sheets(ranking, Path(query_root), Path(gallery_root), k=k, rows=rows, truth=truth)
    for sheet in found:
        path = Path(out_folder) / sheet.file_name
        write_png(sheet.drawn(thumbnail), path)
        paths.append(path)
        if progress:
            progress(len(paths), len(found))
    return paths


def sheets(
    ranking: Ranking,
    query_root: Path,
    gallery_root: Path,
    *,
    k: int,
    rows: Iterable[int] | None = None,
    truth: RankingTruth | None = None,
) -> list[Sheet]:
    """What the sheets of these rows show, the first k results of each.

    DataError if a folder holds none of the images, or `truth` has another number of rows.
    """
    if k < 1:
        raise UsageError(f"k={k}: draw at least one image for each query")
    if truth is None:
        truth = RankingTruth(np.full((len(ranking), 0), -1, np.int8))
    if truth.correct.ndim != 2 or len(truth.correct) != len(ranking):
        raise DataError(f"`correct` has shape {truth.correct.shape}, expected ({len(ranking)}, K)")
    rows = list(range(len(ranking)) if rows is None else rows)
    _require_some([ranking.queries[i] for i in rows], query_root, "query")
    _require_some([name for i in rows for name in ranking.row(i)[:k]], gallery_root, "gallery")
    names = sheet_names(ranking.queries)
    found = []
    for i in rows:
        query, correct = ranking.queries[i], truth.correct[i]
        scores = None if ranking.scores is None else ranking.scores[i]
        chances = None if ranking.probability is None else ranking.probability[i]
        decided = None if ranking.has_no_cutoff else ranking.accepted
        accepted = None if decided is None else min(int(decided[i]), k)
        results = [
            Picture(
                _below(gallery_root, name),
                name,
                truth.gallery_labels.get(name),
                None if scores is None else float(scores[rank]),
                bool(correct[rank]) if rank < len(correct) and correct[rank] >= 0 else None,
                None if chances is None else float(chances[rank]),
                ranking.box(i, rank),
            )
            for rank, name in enumerate(ranking.row(i)[:k])
        ]
        label = truth.query_labels.get(query)
        hits = correct[: ranking.lengths[i]] > 0 if (correct >= 0).any() else None
        ap = None if truth.ap is None else float(truth.ap[i])
        picture = Picture(_below(query_root, query), query, label)
        notes = notes_of(label, hits, results, ap)
        if decided is not None:
            notes.append(f"{decided[i] or 'none'} accepted")
        elif ranking.has_no_cutoff:
            notes.append("nothing is sure enough to be accepted")
        found.append(Sheet(names[i], picture, results, notes, accepted))
    return found


def notes_of(
    label: str | None, hits: np.ndarray | None, results: Sequence[Picture], ap: float | None
) -> list[str]:
    """What stands below the title. hits: (K,) bool, None if the truth is unknown."""
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


def _below(root: Path, name: str) -> Path:
    """The file of that name; none for a name that leads out of the root, as others may send."""
    parts = PurePosixPath(name)
    outside = parts.is_absolute() or ".." in parts.parts or "\0" in name
    return root / "outside of this folder" / "-" if outside else root / name


def _require_some(names: Sequence[str], root: Path, role: str) -> None:
    if names and not any(_below(root, name).exists() for name in names):
        raise DataError(
            f"none of the {len(set(names))} {role} images is in {root} ({names[0]!r}, …): "
            "give the folder of the data set that was ranked"
        )


# ── file names ───────────────────────────────────────────────────────────────────────────────────


def sheet_names(queries: Sequence[str]) -> list[str]:
    """A file name for each query: its id made safe, with part of a hash if two would clash."""
    safe = [_file_safe(query) for query in queries]
    counts = Counter(map(_without_case, safe))
    names = [
        name if counts[_without_case(name)] == 1 else f"{name}-{_hash_of(query)[:8]}"
        for name, query in zip(safe, queries, strict=True)
    ]
    if len(set(map(_without_case, names))) < len(names):
        names = [f"{name}-{_hash_of(query)}" for name, query in zip(safe, queries, strict=True)]
    return [f"{name}.png" for name in names]


def _file_safe(name: str) -> str:
    """`dogs/rex 1.jpg` → `dogs_rex_1`."""
    stem = re.sub(r"\.[A-Za-z0-9]{1,5}$", "", unicodedata.normalize("NFC", name))
    safe = re.sub(r"[^\w.+-]+", "_", stem).strip("._") or "query"
    return safe.encode()[:120].decode(errors="ignore")


def _without_case(name: str) -> str:
    """Equal for names that some file systems take for one: A and a, or two ways to write é."""
    return unicodedata.normalize("NFKC", name).casefold()


def _hash_of(query: str) -> str:
    return hashlib.sha256(query.encode(errors="surrogatepass")).hexdigest()[:32]
