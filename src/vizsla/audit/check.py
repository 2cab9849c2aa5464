"""Image sets by role → a report of everything that may be wrong with them.

Unlike all other stages, this one reads the labels of the test part: it trains and selects nothing.
"""

import logging
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vizsla.audit import embedding_checks
from vizsla.audit.copy_groups import groups_of
from vizsla.audit.duplicates import TEST, UNSURE, Pair, file_features, find_pairs, find_parts
from vizsla.audit.file_scan import WHOLE, Scan, scan_files
from vizsla.audit.findings import CheckReport
from vizsla.data.data_folders import DataFolders, open_data
from vizsla.data.images import MAX_PIXELS
from vizsla.data.imageset import ImageSet
from vizsla.data.listing import few
from vizsla.data.table_folder import LABELS, is_table_folder
from vizsla.data.tables import (
    ITEM_COLUMNS,
    attributes_for,
    item_column_in,
    labelled_rows,
    no_column,
    read_labels,
)
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError
from vizsla.processes import available_cores

if TYPE_CHECKING:
    from vizsla.embed.compute import Compute
    from vizsla.model.embedder import Embedder

log = logging.getLogger("vizsla.check")

Embed = Callable[[str, ImageSet], Embeddings]
Progress = Callable[[str, int, int], None]  # (stage, done, in all)
MOST_SUSPECTS = 100  # listed; after the first few dozen hardly any is a real mistake


def image_sets(
    folder: str | Path, labels: str | Path | None = None, *, follow_links: bool = False
) -> dict[str, ImageSet]:
    """Role → images: the parts of a data folder (see `labelled_sets`), or all of another as WHOLE.

    The labels of another folder are those of `labels`, of a labels file in it, or its subfolders'
    names if all its images are in subfolders.
    """
    folder = Path(folder)
    parts = ("training", *TEST, "test")
    if not folder.is_dir() or is_table_folder(folder) or any((folder / below / part).is_dir()
                                  for below in ("", "data") for part in parts):  # fmt: skip
        return labelled_sets(open_data(folder, follow_links=follow_links), labels)
    images = ImageSet.from_folder(folder, follow_links=follow_links)
    file = labels or next((folder / name for name in LABELS if (folder / name).is_file()), None)
    if file:
        images = images.with_labels_file(file)
    elif all("/" in name for name in images.ids):
        images = ImageSet.from_class_folders(folder, follow_links=follow_links)
    return {WHOLE: images}


def labelled_sets(data: DataFolders, labels: str | Path | None = None) -> dict[str, ImageSet]:
    """Role → images; query and gallery with the labels of `labels`, else of the folder's file, and
    all with its other columns.

    Of one set that is both, only the gallery.
    """
    sets = {"training": data.training} if data.training else {}
    sets |= {"gallery": data.gallery} if data.one_set else {
        "query": data.query, "gallery": data.gallery
    }  # fmt: skip
    file = labels or data.labels_file
    if file is None:
        return sets
    table = read_labels(file)
    labelled = "label" in table.column_names
    for role, images in sets.items():
        is_test = role in TEST
        read = labelled_rows if is_test and labelled else attributes_for
        rows = read(images.ids, table, role)
        empty = all(rows[name].null_count == len(rows) for name in rows.column_names)
        if is_test and labels is not None and labelled and not any(rows["label"].to_pylist()):
            raise DataError(
                f"{labels} has a label for none of the {len(images)} {role} images: "
                "give the labels file of this data folder"
            )
        if (is_test and labelled) or not empty:
            sets[role] = images.with_columns(rows)
    if labels is not None and not labelled and not any(
        images.attributes.num_columns - (images.labels is not None) for images in sets.values()
    ):  # fmt: skip
        raise DataError(f"{labels} names none of the images in this folder")
    return sets


def item_column_of(
    sets: Mapping[str, ImageSet], group_by: str | None, labels: str | Path | None
) -> str | None:
    """The attribute that names the item of each image: `group_by`, else, of images without labels,
    the first of ITEM_COLUMNS that there is. None, with a line that says so, if `labels` has none.

    DataError: no images have the column `group_by`.
    """
    columns = {name for images in sets.values() for name in images.attributes.column_names}
    if group_by is not None:
        if group_by not in columns:
            raise no_column(f"--group-by {group_by}", sorted(columns), give="give --table FILE")
        return group_by
    if "label" in columns:
        return None
    found = item_column_in(columns)
    if found is None and labels is not None:
        log.warning(
            "%s has no column label, nor one of %s: copies of different products are not told "
            "apart; if one of its columns (%s) names the product, give --group-by COLUMN",
            labels, ", ".join(ITEM_COLUMNS), few(sorted(columns), 20),
        )  # fmt: skip
    return found


def check(
    folder: str | Path,
    sets: Mapping[str, ImageSet],
    *,
    embed: Embed | None = None,
    keep: str = "largest",
    item_column: str | None = None,
    features_in: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
    workers: int | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """The report on every image of all sets (role → images, see `image_sets`).

    embed: (role, its readable images) → their embeddings, all by one model; adds pairs that only a
    model finds similar, and doubtful labels. features_in: a folder for local features; adds pairs
    of which one holds a part of the other. keep: which of a group of copies should stay, a key of
    `copy_groups.KEEP`. item_column: the attribute that names the item of each image, see
    `item_column_of`. workers: None uses all cores.
    """
    started = time.monotonic()
    workers = workers or min(16, available_cores())
    report = progress or (lambda stage, done, total: None)
    scan = scan_files(
        sets, item_column=item_column, max_pixels=max_pixels, workers=workers,
        progress=lambda done, total: report("reading", done, total),
    )  # fmt: skip
    pairs = find_pairs(
        scan, max_pixels=max_pixels, workers=workers,
        progress=lambda done, total: report("comparing", done, total),
    )  # fmt: skip
    if features_in is not None:
        pairs += find_parts(
            scan, pairs,
            file_features(scan, features_in, max_pixels=max_pixels, workers=workers),
            max_pixels=max_pixels, workers=workers,
            progress=lambda done, total: report("comparing parts", done, total),
        )  # fmt: skip
    suspects = None
    if embed is not None:
        broken = {facts.name for facts in scan.facts if facts.broken}
        embeddings = {}
        for role, images in sets.items():
            readable = images.without({name for name in images.ids if f"{role}/{name}" in broken})
            if len(readable):
                embeddings[role] = embed(role, readable)
        vectors = embedding_checks.stacked(sets, embeddings)  # (N, D)
        photos = _one_of_each_photo(scan, pairs, vectors)
        known = {(pair.a, pair.b) for pair in pairs}
        near = [
            Pair(photos[a], photos[b], "model", cosine)
            for a, b, cosine in embedding_checks.near_pairs(vectors[photos])
        ]
        pairs += [pair for pair in near if (pair.a, pair.b) not in known]
        labelled = [i for i in photos if scan.facts[i].label is not None]
        found = embedding_checks.suspects(
            vectors[labelled], [str(scan.facts[i].label) for i in labelled]
        )
        suspects = [replace(suspect, i=labelled[suspect.i]) for suspect in found[:MOST_SUSPECTS]]
    seconds = time.monotonic() - started
    return CheckReport(
        Path(folder), scan.facts, pairs, _class_findings(sets), suspects, seconds, keep,
        item_column,
    )  # fmt: skip


def embedding_in(
    folder: Path,
    embedder: "Embedder",
    compute: "Compute",
    *,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> Embed:
    """A function for the `embed` of `check`: it embeds each role into its own subfolder."""
    from vizsla.embed import inference

    def embed(role: str, images: ImageSet) -> Embeddings:
        def report(done: int, total: int) -> None:
            if progress:
                progress(f"embedding {role}", done, total)

        return inference.embed(
            images, embedder, folder / role, compute=compute, max_pixels=max_pixels,
            progress=report, only_whole=True, kept=False,
        )  # fmt: skip

    return embed


def _one_of_each_photo(scan: Scan, pairs: Sequence[Pair], vectors: np.ndarray) -> list[int]:
    """Positions that have a vector; copies with the same label only once."""
    sure = [pair for pair in pairs if pair.how not in UNSURE]
    group = {i: group[0] for group in groups_of(len(scan), sure) for i in group}
    has_vector = np.isfinite(vectors).all(axis=1)
    firsts: dict[tuple[int, str | None], int] = {}
    for i, facts in enumerate(scan.facts):
        if has_vector[i]:
            firsts.setdefault((group.get(i, i), facts.label), i)
    return list(firsts.values())


# ── classes ──────────────────────────────────────────────────────────────────────────────────────


def _class_findings(sets: Mapping[str, ImageSet]) -> dict[str, list[str]]:
    """Kind of finding → class names, without empty kinds."""
    counts = {
        role: Counter(label for label in images.labels or [] if label is not None)
        for role, images in sets.items()
    }
    role = next((role for role in sets if role not in TEST), "training")
    training, query, gallery = (counts.get(name, Counter()) for name in (role, *TEST))
    root = sets[role].root if training else None
    folders = (path.name for path in root.iterdir() if path.is_dir()) if root else ()
    found = {
        "empty": [name for name in folders if name[0] != "." and name not in training],
        "one image": [name for name, count in training.items() if count == 1],
        "similar names": [
            "/".join(names) for names in _similar_names({*training, *query, *gallery})
        ],
        "not in the gallery": [name for name in query if name not in gallery] if gallery else [],
    }
    return {kind: sorted(names) for kind, names in found.items() if names}


def _similar_names(names: set[str]) -> list[list[str]]:
    """Groups of names that differ only in case, spaces or hyphens."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        plain = unicodedata.normalize("NFKC", name).casefold()
        groups.setdefault("".join(c for c in plain if c.isalnum()) or name, []).append(name)
    return [group for group in groups.values() if len(group) > 1]
