"""Clusters + labels → how well they agree: ARI, NMI, BCubed. Knows no images and no vectors."""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from vizsla.errors import DataError


@dataclass(frozen=True)
class ClusterScores:
    """Agreement of clusters with labels, over the images that have a label.

    ari: adjusted Rand index (Hubert and Arabie 1985), 0 for chance, 1 for equality. nmi:
    normalised mutual information, by the arithmetic mean of the entropies. bcubed_precision,
    bcubed_recall, bcubed_f (Bagga and Baldwin 1998): the mean over images of the share of its
    cluster that has its label, of the share of its label that is in its cluster, and their
    harmonic mean. images: how many were judged; unlabelled: how many were not.
    """

    ari: float
    nmi: float
    bcubed_precision: float
    bcubed_recall: float
    bcubed_f: float
    images: int
    unlabelled: int
    things: int
    clusters: int

    def to_dict(self) -> dict[str, Any]:
        """All values by name, for JSON."""
        return {name: round(value, 6) for name, value in asdict(self).items()}

    def text(self) -> str:
        """One line for a terminal."""
        return (
            f"ARI {self.ari:.3f}, NMI {self.nmi:.3f}, BCubed precision {self.bcubed_precision:.3f}"
            f", recall {self.bcubed_recall:.3f}, F {self.bcubed_f:.3f} ({self.things:,} things in "
            f"{self.clusters:,} clusters, {self.images:,} labelled images)"
        )


def cluster_scores(
    clusters: Sequence[int] | np.ndarray, labels: Sequence[Hashable | None]
) -> ClusterScores:
    """The scores of N clusters against N labels; None: not known, and left out.

    DataError if the lengths differ, or no image has a label.
    """
    if len(clusters) != len(labels):
        raise DataError(f"{len(clusters)} clusters for {len(labels)} labels: expected one each")
    known = np.flatnonzero([label is not None for label in labels])
    if len(known) == 0:
        raise DataError("no image has a label: scores of clusters need some")
    found = np.unique(np.asarray(clusters)[known], return_inverse=True)[1]
    numbers: dict[Hashable, int] = {}
    wanted = np.array([numbers.setdefault(labels[i], len(numbers)) for i in known.tolist()])
    precision, recall = bcubed(found, wanted)
    return ClusterScores(
        ari=float(adjusted_rand_score(wanted, found)),
        nmi=float(normalized_mutual_info_score(wanted, found)),
        bcubed_precision=precision,
        bcubed_recall=recall,
        bcubed_f=2 * precision * recall / (precision + recall),
        images=len(known),
        unlabelled=len(labels) - len(known),
        things=len(numbers),
        clusters=int(found.max()) + 1,
    )


def bcubed(clusters: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(precision, recall) of N numbered clusters against N numbered labels."""
    pairs = np.stack([clusters, labels])
    _, cell, both = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
    both = both[cell.ravel()]  # (N,): images with the cluster and the label of each image
    in_cluster, with_label = np.bincount(clusters)[clusters], np.bincount(labels)[labels]
    return float((both / in_cluster).mean()), float((both / with_label).mean())
