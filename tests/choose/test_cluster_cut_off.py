"""The cut-off of a clustering: learned on labels, on known images, or by silhouette."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from vizsla.choose import cluster_cut_off
from vizsla.choose.cluster_cut_off import (
    cut_off_by_silhouette,
    cut_off_of_known,
    learned_cut_off,
)
from vizsla.errors import DataError
from vizsla.search.clusters import METHODS, Fitted, fit
from vizsla.search.merge_tree import UNKNOWN


def things(n: int, seed: int = 0, noise: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of n things with 1 to 9 images each, and the number of the thing of each."""
    rng = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(n), rng.integers(1, 10, n))
    centres = rng.normal(size=(n, 48))
    vectors = centres[numbers] + noise * rng.normal(size=(len(numbers), 48))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), numbers


@pytest.mark.parametrize("method", METHODS)
def test_what_is_learned_on_some_things_serves_others(method: str) -> None:
    training, numbers = things(70, seed=1)
    vectors, wanted = things(60, seed=2)
    labels = [None if i % 11 == 0 else f"thing {n}" for i, n in enumerate(numbers)]
    chosen = learned_cut_off(training, labels, len(vectors), method)
    assert chosen.origin == f"learned on {len(labels) - labels.count(None)} labelled images"
    assert chosen.ari and chosen.ari > 0.8
    assert adjusted_rand_score(wanted, fit(vectors, method).at(chosen.value)) > 0.85


def test_the_silhouette_finds_a_cut_off_without_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, numbers = things(120)
    fitted = fit(vectors)
    chosen = cut_off_by_silhouette(vectors, fitted)
    assert adjusted_rand_score(numbers, fitted.at(chosen.value)) > 0.9 and chosen.ari is None
    monkeypatch.setattr(cluster_cut_off, "SAMPLE", 400)  # six images and their neighbours
    of_few = cut_off_by_silhouette(vectors, fitted, seed=3)
    assert adjusted_rand_score(numbers, fitted.at(of_few.value)) > 0.8


def test_a_few_clusters_of_nearly_all_images_are_not_chosen_without_labels() -> None:
    rng = np.random.default_rng(0)
    halves = np.repeat(np.eye(2), 40, axis=0)  # far apart, each of four kinds
    kinds = np.repeat(0.05 * rng.normal(size=(8, 30)), 10, axis=0)
    vectors = np.hstack([halves, kinds + 0.02 * rng.normal(size=(80, 30))])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def at(cut_off: float) -> np.ndarray:
        return np.arange(80) // (40 if cut_off < 0.01 else 10)

    fitted = Fitted(at, np.array([0.001, 0.005, 0.1, 0.2]))
    assert cut_off_by_silhouette(vectors.astype(np.float32), fitted).value == 0.1


def test_two_images_have_a_cut_off_too() -> None:
    vectors = np.eye(2, dtype=np.float32)
    assert 0 < cut_off_by_silhouette(vectors, fit(vectors)).value < 1


def test_known_images_choose_where_there_are_enough() -> None:
    vectors, numbers = things(60)
    known = np.where(np.arange(len(numbers)) % 3 == 0, numbers, UNKNOWN)
    chosen = cut_off_of_known(vectors, known, "graph")
    assert chosen is not None and "known images" in chosen.origin
    assert adjusted_rand_score(numbers, fit(vectors).at(chosen.value)) > 0.9
    few = np.where(np.arange(len(numbers)) < 12, numbers, UNKNOWN)
    assert cut_off_of_known(vectors, few, "graph") is None


def test_labels_that_say_nothing_are_an_error() -> None:
    vectors, _ = things(5)
    with pytest.raises(DataError, match="have 1 labels"):
        learned_cut_off(vectors, ["a"] * len(vectors), 10, "graph")
    with pytest.raises(DataError, match="two images of one"):
        learned_cut_off(vectors, [str(i) for i in range(len(vectors))], 10, "graph")
