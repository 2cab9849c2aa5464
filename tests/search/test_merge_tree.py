"""The tree of merges: against SciPy's average linkage, and with things that are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import adjusted_rand_score

from vizsla.search.merge_tree import UNKNOWN, merge_tree


def similarities(n: int, seed: int, share: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = rng.uniform(0.01, 1, (n, n)) * (rng.uniform(size=(n, n)) < share)
    return np.triu(found, 1) + np.triu(found, 1).T


@given(st.integers(2, 40), st.integers(0, 10_000), st.sampled_from([1.0, 0.3]))
@settings(max_examples=40, deadline=None)
def test_it_is_the_tree_of_average_linkage(n: int, seed: int, share: float) -> None:
    weights = similarities(n, seed, share)
    tree = merge_tree(sparse.csr_matrix(weights))
    theirs = linkage(squareform(1 - weights, checks=False), "average")
    joined = np.sort(1 - theirs[:, 2])
    joined = joined[joined > 1e-12]
    assert np.sort(tree.similarities) == pytest.approx(joined, abs=1e-9)
    for cut_off in np.quantile(tree.similarities, [0.2, 0.5, 0.9]) if len(joined) else ():
        expected = fcluster(theirs, 1 - cut_off + 1e-9, "distance")
        assert adjusted_rand_score(expected, tree.at(cut_off - 1e-9)) == 1.0


def test_equal_similarities_come_to_an_end() -> None:
    weights = np.ones((7, 7)) - np.eye(7)
    tree = merge_tree(sparse.csr_matrix(weights))
    assert tree.similarities.tolist() == [1.0] * 6 and len({*tree.at(1.0)}) == 1
    assert len({*tree.at(1.01)}) == 7


def test_known_things_are_together_and_never_with_another() -> None:
    weights = similarities(30, 1)
    known = np.full(30, UNKNOWN)
    known[[0, 7, 8]], known[[3, 4]], known[5] = 0, 1, 2
    tree = merge_tree(sparse.csr_matrix(weights), known)
    for cut_off in (0.9, 0.5, 0.0):
        clusters = tree.at(cut_off)
        things = [{*clusters[known == thing].tolist()} for thing in range(3)]
        assert all(len(thing) == 1 for thing in things) and len(set.union(*things)) == 3
    assert len({*tree.at(0.0)}) == 3  # all others went to one of them


def test_the_two_nearest_of_all_stay_apart_if_they_are_known_to_be_two_things() -> None:
    weights = similarities(6, 2) / 2
    weights[0, 1] = weights[1, 0] = 1.0
    known = np.array([0, 1, *[UNKNOWN] * 4])
    clusters = merge_tree(sparse.csr_matrix(weights), known).at(0.0)
    assert clusters[0] != clusters[1] and len({*clusters.tolist()}) == 2


def test_positions_without_any_weight_stay_alone() -> None:
    tree = merge_tree(sparse.csr_matrix((4, 4)))
    assert tree.at(0.0).tolist() == [0, 1, 2, 3] and len(tree.pairs) == 0
