"""Embeddings, a run or an index → clusters of images that show one thing; their table and page."""

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vizsla import storage
from vizsla.choose.cluster_cut_off import (
    CutOff,
    OtherCutOff,
    cut_off_by_silhouette,
    cut_off_of_known,
    learned_cut_off,
    other_cut_offs,
)
from vizsla.data.data_folders import open_data
from vizsla.data.tables import labels_for, read_labels
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.keyword_options import with_keywords
from vizsla.notebook import Shown, Summary, counted
from vizsla.option_fields import REQUIRED, option
from vizsla.options import ClusterOptions, Reporting
from vizsla.progress import Report, reporting
from vizsla.run.config import recorded_config
from vizsla.run.gallery_search import open_gallery
from vizsla.score.metrics.cluster_scores import ClusterScores, cluster_scores
from vizsla.search.clusters import DEPTH, fit
from vizsla.search.exact import require_comparable
from vizsla.search.folder_index import FolderIndex
from vizsla.search.index_files import is_index
from vizsla.search.knn_graph import GraphFolder, kept_graph
from vizsla.search.merge_tree import UNKNOWN
from vizsla.workspace import is_run


@dataclass(frozen=True, eq=False, repr=False)
class Clusters(Shown):
    """ids: N. clusters: (N,) int64, each image's cluster; 0 is the largest. labels: of each of
    the C clusters, that of the known images in it; None without any.

    scores: against the labels of the images, without those that were given as known; None where
    there are none. root: of the images. other_cut_offs: that make finer and coarser clusters.
    """

    ids: list[str]
    clusters: np.ndarray
    labels: list[str | None]
    method: str
    cut_off: CutOff
    scores: ClusterScores | None
    root: Path | None
    seconds: float
    other_cut_offs: list[OtherCutOff] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def groups(self) -> list[tuple[str | None, list[str]]]:
        """(label or None, ids) of each cluster, the largest first."""
        order = np.argsort(self.clusters, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(self.clusters))[:-1])
        return [(label, [self.ids[i] for i in part])
                for label, part in zip(self.labels, parts, strict=True)]  # fmt: skip

    def sizes(self) -> np.ndarray:
        """(C,) int64: the number of images of each cluster."""
        return np.bincount(self.clusters)

    def summary(self) -> Summary:
        """How many clusters there are, how they were found, and the largest ones."""
        rows = [[i, label or "", len(ids)] for i, (label, ids) in enumerate(self.groups()[:10])]
        facts = self.lines()
        return Summary("Clusters", facts, ["cluster", "label", "images"], rows)

    def lines(self) -> list[str]:
        """What was found, and how, in a few lines."""
        sizes = self.sizes()
        several = sizes[sizes > 1]
        found = [
            f"{counted(len(self.ids), 'image')} in {counted(len(sizes), 'cluster')}: "
            f"{len(several):,} of several images (the largest of {sizes.max():,}), "
            f"{int((sizes == 1).sum()):,} of one",
            f"method {self.method}, cut-off {self.cut_off.value:g} ({self.cut_off.origin})",
        ]
        named = sum(label is not None for label in self.labels)
        found += [f"{counted(named, 'cluster')} with a known label"] * (named > 0)
        found += [self.scores.text()] if self.scores else []
        return found + [
            f"{'finer' if one.clusters > len(sizes) else 'coarser'}: --cut-off {one.value:g} makes "
            f"{counted(one.clusters, 'cluster')}, {one.of_one_image:,} of one image"
            for one in self.other_cut_offs
        ]

    def to_dict(self) -> dict[str, Any]:
        """The summary, for JSON."""
        sizes = self.sizes()
        return {
            "images": len(self.ids),
            "clusters": len(sizes),
            "of_one_image": int((sizes == 1).sum()),
            "largest": int(sizes.max()),
            "method": self.method,
            "cut_off": self.cut_off.value,
            "cut_off_from": self.cut_off.origin,
            "ari_where_chosen": self.cut_off.ari,
            "other_cut_offs": [
                {"cut_off": one.value, "clusters": one.clusters, "of_one_image": one.of_one_image}
                for one in self.other_cut_offs
            ],
            "scores": self.scores and self.scores.to_dict(),
            "seconds": round(self.seconds, 1),
        }

    def csv(self) -> str:
        """A table of image, cluster and label, the largest cluster first."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["image", "cluster", "label"])
        for number, (label, ids) in enumerate(self.groups()):
            rows.writerows([name, number, label or ""] for name in ids)
        return text.getvalue()

    def html(self) -> str:
        """The page on which a person merges, splits and names the clusters. UsageError: it is not
        known where the images are."""
        from vizsla.output.cluster_page import clusters_page

        return clusters_page(self.groups(), _require_images(self.root), notes=self.lines())


def cluster_images(
    source: Any, options: ClusterOptions, progress: Report | None = None
) -> Clusters:
    """The clusters of embeddings, of the gallery of a run or of an index, or the path of one."""
    started = time.monotonic()
    device = resolve_compute(device=options.device).device
    root = options.images
    place = source if isinstance(source, str | Path) else None
    if isinstance(source, Embeddings):
        root = root or source.root
    if place is not None and is_run(place):
        root = root or open_data(recorded_config(place).data).gallery.root
        place = source = Path(place) / "embeddings" / "gallery"
    found = open_gallery(source, device)
    if not isinstance(found, FolderIndex):
        raise UsageError(
            f"{source} is on a server: `vizsla cluster` needs the vectors here, in a folder of "
            "embeddings or an index"
        )
    images = found.embeddings()
    if len(images) == 0:
        raise DataError(f"{source} holds no images")
    root = root or found.source.root
    if options.html:
        _require_images(root)  # before the work
    labels = _labels_of(images.ids, options.known) if options.known else None
    known = None if labels is None else _numbers(labels)
    graph = None
    if options.method == "graph" and len(images) > 1:
        keeper = found if place and is_index(place) else GraphFolder(Path(place)) if place else None
        graph = kept_graph(
            images.vectors, keeper, DEPTH, device=device,
            progress=progress and partial(progress, "graph"),
        )  # fmt: skip
    cut_off = _cut_off(options, images, known, graph)
    fitted = fit(images.vectors, options.method, known=known, graph=graph)
    if cut_off is None:
        cut_off = cut_off_by_silhouette(images.vectors, fitted, seed=options.seed)
    clusters = _by_size(fitted.at(cut_off.value))
    truth = _labels_of(images.ids, options.labels) if options.labels else images.labels
    if truth and labels:  # what was known is no evidence
        truth = [None if label else true for true, label in zip(truth, labels, strict=True)]
    scores = cluster_scores(clusters, truth) if truth and any(truth) else None
    return Clusters(
        images.ids, clusters, _names(clusters, labels), options.method, cut_off, scores,
        root, time.monotonic() - started,
        [] if options.method == "hdbscan" else other_cut_offs(fitted, int(clusters.max()) + 1),
    )  # fmt: skip


def _require_images(root: Path | None) -> Path:
    """The folder of the images. UsageError: it is not known, or not there."""
    if root is None or not root.is_dir():
        where = "it is not known where they are" if root is None else f"{root} is no folder"
        raise UsageError(
            f"the page shows the images, and {where}: give their folder with --images FOLDER"
        )
    return root


def _cut_off(
    options: ClusterOptions, images: Embeddings, known: np.ndarray | None, graph: Any
) -> CutOff | None:
    """As given, or chosen on labels; None if there are none to choose on."""
    if options.cut_off is not None:
        return CutOff(options.cut_off, "as given")
    if options.learn_on is not None:
        training = Embeddings.open(options.learn_on)
        require_comparable(images.model_id, training.model_id, images.dim, training.dim)
        labels = training.labels
        if labels is None:
            raise DataError(
                f"{options.learn_on} has no labels: embed labelled images "
                "(vizsla embed data/training --class-folders -o training.emb)"
            )
        return learned_cut_off(
            training.vectors, labels, len(images), options.method, seed=options.seed
        )
    if known is not None:
        return cut_off_of_known(images.vectors, known, options.method, graph)
    return None


def _labels_of(ids: Sequence[str], file: str | Path) -> list[str | None]:
    labels = labels_for(ids, read_labels(file), None)
    if not any(labels):
        raise DataError(
            f"{file} has a label for none of the {len(ids)} images ({ids[0]}, …): expected their "
            "names in a column file, and a column label"
        )
    return labels


def _numbers(labels: Sequence[str | None]) -> np.ndarray:
    """(N,) the number of each label, UNKNOWN without one."""
    numbers: dict[str, int] = {}
    return np.array([
        UNKNOWN if label is None else numbers.setdefault(label, len(numbers)) for label in labels
    ])  # fmt: skip


def _by_size(clusters: np.ndarray) -> np.ndarray:
    """(N,) the same clusters, numbered from the largest; of equal ones the first comes first."""
    _, first, clusters, sizes = np.unique(
        clusters, return_index=True, return_inverse=True, return_counts=True
    )
    number = np.empty(len(sizes), np.int64)
    number[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    return number[clusters]


def _names(clusters: np.ndarray, labels: Sequence[str | None] | None) -> list[str | None]:
    """(C,) the known label in each cluster."""
    names: list[str | None] = [None] * (int(clusters.max()) + 1)
    for cluster, label in zip(clusters.tolist(), labels or (), strict=labels is not None):
        names[cluster] = names[cluster] or label
    return names


def write_clusters(found: Clusters, options: ClusterOptions) -> None:
    """Writes the table and the page that the options name."""
    if options.out:
        storage.write_text(options.out, found.csv())
    if options.html:
        storage.write_text(options.html, found.html())


@dataclass(frozen=True)
class ClusterArguments(ClusterOptions, Reporting):
    """What `vizsla.cluster` takes."""

    source: Any = option(REQUIRED, "Embeddings, a run or an index, or the path of one.", "Data")
    _: KW_ONLY


@with_keywords(ClusterArguments)
def cluster(given: ClusterArguments, names: frozenset[str]) -> Clusters:
    """Which images show one thing, without knowing how many things there are.

    `found.groups()` are the ids of each cluster; `out` and `html` also write a table and a page.
    """
    with reporting(given.progress) as report:
        found = cluster_images(given.source, given, report)
    write_clusters(found, given)
    return found
