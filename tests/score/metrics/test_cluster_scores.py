"""Scores of clusters: by hand, against scikit-learn, and against the definition of BCubed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from vizsla.errors import DataError
from vizsla.score.metrics.cluster_scores import cluster_scores

IMAGES = st.lists(st.tuples(st.integers(0, 6), st.sampled_from("abcd")), min_size=1, max_size=40)


def test_two_things_in_three_clusters_by_hand() -> None:
    scores = cluster_scores([0, 0, 1, 2, 2, 9], ["a", "a", "a", "b", "b", None])
    assert scores.bcubed_precision == 1.0
    assert scores.bcubed_recall == pytest.approx((2 / 3 + 2 / 3 + 1 / 3 + 1 + 1) / 5)
    assert (scores.things, scores.clusters, scores.images, scores.unlabelled) == (2, 3, 5, 1)
    assert "ARI 0." in scores.text() and scores.to_dict()["things"] == 2
    assert cluster_scores([5, 5, 1], ["x", "x", "y"]).ari == 1.0


@given(IMAGES)
def test_ari_and_nmi_are_those_of_scikit_learn(images: list[tuple[int, str]]) -> None:
    clusters, labels = (list(column) for column in zip(*images, strict=True))
    scores = cluster_scores(clusters, [*labels])
    assert scores.ari == pytest.approx(adjusted_rand_score(labels, clusters), abs=1e-9)
    assert scores.nmi == pytest.approx(normalized_mutual_info_score(labels, clusters), abs=1e-9)


@given(IMAGES)
def test_bcubed_is_that_of_its_definition(images: list[tuple[int, str]]) -> None:
    precisions, recalls = [], []
    for cluster, label in images:
        same_cluster = [other for other in images if other[0] == cluster]
        same_label = [other for other in images if other[1] == label]
        both = [other for other in same_cluster if other[1] == label]
        precisions.append(len(both) / len(same_cluster))
        recalls.append(len(both) / len(same_label))
    p, r = float(np.mean(precisions)), float(np.mean(recalls))
    scores = cluster_scores([c for c, _ in images], [label for _, label in images])
    found = (scores.bcubed_precision, scores.bcubed_recall, scores.bcubed_f)
    assert found == pytest.approx((p, r, 2 * p * r / (p + r)), abs=1e-12)


def test_no_labels_or_other_lengths_are_an_error() -> None:
    with pytest.raises(DataError, match="no image has a label"):
        cluster_scores([0, 1], [None, None])
    with pytest.raises(DataError, match="2 clusters for 1 labels"):
        cluster_scores([0, 1], ["a"])
