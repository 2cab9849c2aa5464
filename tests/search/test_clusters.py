"""Clusters of vectors: things apart are found by every method, and known images anchor them."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from vizsla.errors import UsageError
from vizsla.search import clusters
from vizsla.search.clusters import CUT_OFFS, METHODS, fit, weights, with_known
from vizsla.search.knn_graph import build_graph
from vizsla.search.merge_tree import UNKNOWN


def things(n: int, seed: int = 0, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of n things with 1 to 9 images each, and the number of the thing of each."""
    rng = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(n), rng.integers(1, 10, n))
    centres = rng.normal(size=(n, 48))
    vectors = centres[numbers] + noise * rng.normal(size=(len(numbers), 48))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), numbers


@pytest.mark.parametrize("method", METHODS)
def test_things_that_are_apart_are_found(method: str) -> None:
    vectors, numbers = things(60)
    fitted = fit(vectors, method)
    best = max(adjusted_rand_score(numbers, fitted.at(cut)) for cut in CUT_OFFS[method])
    assert best > 0.95


def test_clusters_of_many_hundred_images_are_joined_by_the_lowest_cut_offs() -> None:
    rng = np.random.default_rng(3)
    numbers = np.repeat(np.arange(2), 900)
    vectors = rng.normal(size=(2, 48))[numbers] + 1.0 * rng.normal(size=(1800, 48))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    fitted = fit(vectors.astype(np.float32))
    best = max(fitted.cut_offs, key=lambda cut: adjusted_rand_score(numbers, fitted.at(cut)))
    assert adjusted_rand_score(numbers, fitted.at(best)) > 0.95 and best < 0.01


def test_equal_images_are_one_cluster_however_many_there_are() -> None:
    vectors, _ = things(30)
    many = np.concatenate([vectors, np.repeat(vectors[:1], 150, axis=0)])
    for cut_off in CUT_OFFS["graph"][[10, -1]]:
        found = fit(many).at(cut_off)
        assert len({found[0], *found[len(vectors) :].tolist()}) == 1
    assert fit(np.repeat(vectors[:1], 10, axis=0)).at(0.5).tolist() == [0] * 10
    known = np.full(len(many), UNKNOWN)
    known[-2:] = 0, 1
    found = fit(many, known=known).at(0.5)
    assert found[-2] != found[-1] and {*found[len(vectors) : -2].tolist()} == {found[-2]}


def test_weights_are_symmetric_shares_of_mutual_neighbours() -> None:
    vectors, numbers = things(30)
    graph = build_graph(vectors, clusters.DEPTH)
    found = weights(vectors, graph)
    assert abs(found - found.T).max() == 0 and found.min() + 1e-9 > 0 and found.max() <= 1
    dense = found.toarray()
    same = (numbers[:, None] == numbers) & ~np.eye(len(numbers), dtype=bool)
    assert dense[same].mean() > 10 * dense[~same].mean()
    graph = build_graph(vectors, 5)  # few neighbours: pairs that are not mutual weigh nothing
    near = [{*row} for row in graph.positions.tolist()]
    for i, j in zip(*weights(vectors, graph).nonzero(), strict=True):
        assert i in near[j] and j in near[i]


def test_in_chunks_the_weights_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = things(20)
    graph = build_graph(vectors, clusters.DEPTH)
    whole = weights(vectors, graph)
    monkeypatch.setattr(clusters, "PAIRS_AT_ONCE", 7)
    assert abs(whole - weights(vectors, graph)).max() == 0


@pytest.mark.parametrize("method", METHODS)
def test_known_images_are_together_and_two_labels_never(method: str) -> None:
    vectors, numbers = things(25, noise=0.9)
    known = np.full(len(vectors), UNKNOWN)
    known[::3] = numbers[::3] % 4  # four labels, each of several things
    fitted = fit(vectors, method, known=known)
    for cut_off in CUT_OFFS[method][[0, 3, -1]]:
        found = fitted.at(cut_off)
        by_label = [{*found[known == label].tolist()} for label in range(4)]
        assert [len(one) for one in by_label] == [1] * 4 and len(set.union(*by_label)) == 4


def test_an_image_between_two_known_ones_goes_to_the_nearer() -> None:
    angles = np.radians([0, 20, 35, 60, 180, 185])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    known = np.array([0, UNKNOWN, UNKNOWN, 1, UNKNOWN, UNKNOWN])
    found = with_known(np.array([0, 0, 0, 0, 1, 2]), vectors, known)
    assert found[0] == found[1] != found[2] == found[3]
    assert len({*found.tolist()}) == 4
    joined = with_known(np.array([0, 0, 1, 1, 2, 2]), vectors, np.array([0, -1, -1, 0, -1, -1]))
    assert len({*joined[:4].tolist()}) == 1 and joined[4] == joined[5] != joined[0]


def test_one_image_is_one_cluster_and_an_unknown_method_an_error() -> None:
    assert fit(np.ones((1, 4), np.float32)).at(0.1).tolist() == [0]
    with pytest.raises(UsageError, match="choose one of graph, agglomerative, hdbscan"):
        fit(np.ones((3, 4)), "kmeans")


def test_agglomerative_refuses_what_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "MOST_AGGLOMERATIVE", 10)
    with pytest.raises(UsageError, match="expected at most 10; the method graph takes more"):
        fit(things(9)[0], "agglomerative")
