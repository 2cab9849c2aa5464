from pathlib import Path

import numpy as np
import pytest
from scipy import linalg

from vizsla.audit import embedding_checks
from vizsla.audit.embedding_checks import near_pairs, stacked, suspects
from vizsla.data.imageset import ImageSet
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError


def clusters(n_classes: int, each: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Unit vectors around a centre for each class; labels class0, class1, …"""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_classes, 64))
    y = np.repeat(np.arange(n_classes), each)
    vectors = centres[y] + 0.9 * rng.normal(size=(len(y), 64))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), [f"class{i}" for i in y]


# ── doubtful labels ──────────────────────────────────────────────────────────────────────────────


def test_swapped_labels_come_first_with_the_right_class_beside_them() -> None:
    vectors, labels = clusters(6, 30)
    swapped = {3: "class4", 40: "class0", 77: "class5", 120: "class1", 170: "class2"}
    given = [swapped.get(i, label) for i, label in enumerate(labels)]
    found = suspects(vectors, given)
    assert {s.i for s in found[:5]} == set(swapped)
    for s in found[:5]:
        assert (s.label, s.other) == (swapped[s.i], labels[s.i])
        assert 0 <= s.fit < 0.3 < s.other_fit <= 1
    doubts = [s.doubt for s in found]
    assert doubts == sorted(doubts, reverse=True)
    assert len(suspects(vectors, labels)) < 8


def test_leaving_one_out_in_closed_form_is_leaving_it_out() -> None:
    vectors, labels = clusters(3, 7)
    y = np.unique(labels, return_inverse=True)[1]
    fits = embedding_checks._fits_without_self(vectors, y, 3)
    centred = vectors - vectors.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    kernel = np.exp(embedding_checks.KERNEL_SCALE * (centred @ centred.T - 1))
    targets = np.eye(3)[y] - 1 / 3
    for i in range(len(y)):
        others = np.arange(len(y)) != i
        inside = kernel[np.ix_(others, others)] + embedding_checks.LABEL_NOISE * np.eye(len(y) - 1)
        expected = kernel[i, others] @ linalg.solve(inside, targets[others])
        assert fits[i] == pytest.approx(expected + 1 / 3, abs=1e-4)


def test_parts_hold_every_image_once_and_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = clusters(4, 50)
    y = np.unique(labels, return_inverse=True)[1]
    monkeypatch.setattr(embedding_checks, "MAX_KERNEL", 60)
    parts = embedding_checks._parts(y, 0)
    assert sorted(np.concatenate(parts)) == list(range(200))
    assert max(map(len, parts)) <= 60
    assert all(np.bincount(y[part], minlength=4).min() >= 12 for part in parts)
    labels[0] = "class3"
    assert suspects(vectors, labels)[0].i == 0


def test_a_class_of_one_image_is_not_judged_and_one_class_gives_nothing() -> None:
    vectors, labels = clusters(3, 10)
    assert all(s.i != 4 for s in suspects(vectors, [*labels[:4], "alone", *labels[5:]]))
    assert suspects(vectors, ["same"] * 30) == []
    assert suspects(vectors[:2], ["a", "b"]) == []
    assert suspects(vectors[:0], []) == []


# ── almost one thing ─────────────────────────────────────────────────────────────────────────────


def test_two_photos_of_one_thing_are_a_pair_and_nothing_else_is() -> None:
    vectors, _ = clusters(5, 20, seed=1)
    twins = vectors[[3, 50]] + 0.01
    twins /= np.linalg.norm(twins, axis=1, keepdims=True)
    pairs = near_pairs(np.concatenate([vectors, twins]))
    assert [(a, b) for a, b, _ in pairs] == [(3, 100), (50, 101)]
    assert all(
        cosine == pytest.approx(vectors[a] @ twins[b - 100], abs=1e-5) for a, b, cosine in pairs
    )
    assert near_pairs(vectors) == [] and near_pairs(vectors[:3]) == []


# ── vectors of all roles ─────────────────────────────────────────────────────────────────────────


def test_vectors_are_put_in_the_order_of_the_images(tmp_path: object) -> None:
    sets = {
        role: ImageSet(Path(), ids) for role, ids in (("training", ["a", "b"]), ("query", ["c"]))
    }
    eye = np.eye(3)
    embeddings = {
        "training": Embeddings.from_arrays(eye[:2], ["b", "gone"]),
        "query": Embeddings.from_arrays(eye[2:], ["c"]),
    }
    vectors = stacked(sets, embeddings)
    assert np.isnan(vectors[0]).all()
    assert np.array_equal(vectors[1:], eye[[0, 2]])
    assert np.isnan(stacked(sets, {"query": embeddings["query"]})[:2]).all()
    other = Embeddings.from_arrays(eye[2:], ["c"], model_id="other")
    with pytest.raises(DataError, match="2 models"):
        stacked(sets, {**embeddings, "query": other})
