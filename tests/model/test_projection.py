"""Projections: the start is the frozen model; closed forms do what they say."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vizsla.errors import DataError, ModelError, UsageError
from vizsla.model import projection
from vizsla.model.closed_forms import closed_forms
from vizsla.model.projection import (
    Projection,
    WithClasses,
    build_projection,
    centred,
    class_logits,
    class_spread,
    composed,
    discriminant,
    identity_or_pca,
    pca,
    project,
    whitening,
    within_class_whitening,
)
from vizsla.train.heads import class_means, train_head
from vizsla.train.losses import build_loss

RNG = np.random.default_rng(0)
LABELS = np.arange(120) % 6


def clusters(spread: float = 0.6, dim: int = 10) -> np.ndarray:
    """Six classes; their members differ mostly along the last axis, which tells nothing."""
    centers = RNG.normal(size=(6, dim))
    noise = RNG.normal(size=(120, dim)) * spread
    noise[:, -1] *= 8
    return (centers[LABELS] + noise + 1.0).astype(np.float32)


def cosines(vectors: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(vectors, dim=1)
    return unit @ unit.T


def separation(vectors: torch.Tensor) -> float:
    """Mean cosine within classes minus between them."""
    all_of_them, same = cosines(vectors.detach()), torch.as_tensor(LABELS[:, None] == LABELS[None])
    return float(all_of_them[same].mean() - all_of_them[~same].mean())


def test_the_identity_changes_no_cosine() -> None:
    x = torch.from_numpy(clusters())
    assert torch.allclose(cosines(identity_or_pca(x.numpy())(x)), cosines(x), atol=1e-5)


def test_pca_keeps_what_lies_in_its_axes() -> None:
    x = clusters()
    mean, axes = pca(x, 10)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert np.allclose((unit - mean) @ axes.T @ axes + mean, unit, atol=1e-6)
    head = identity_or_pca(x, 4)
    assert head(torch.from_numpy(x)).shape == (120, 4)
    assert head.dim == 4
    with pytest.raises(DataError, match="choose from 1 to 10"):
        pca(x, 11)


def test_centring_moves_the_mean_to_zero() -> None:
    x = clusters()
    head = centred(identity_or_pca(x), x)
    assert head(torch.from_numpy(x)).mean(0).abs().max() < 1e-6


def test_whitening_reduces_the_spread_within_classes() -> None:
    x = clusters()
    before = separation(torch.from_numpy(x))
    after = separation(
        within_class_whitening(class_spread(x, LABELS), shrinkage=0.1)(torch.from_numpy(x))
    )
    assert after > before + 0.2
    only_centred = within_class_whitening(class_spread(x, LABELS), shrinkage=1.0)
    assert torch.allclose(only_centred.weight, torch.eye(10), atol=1e-6)


def test_whitening_gives_members_the_same_spread_in_all_directions() -> None:
    x = F.normalize(torch.from_numpy(clusters()), dim=1)
    projected = (
        within_class_whitening(class_spread(x.numpy(), LABELS), shrinkage=0.0)(x).detach().numpy()
    )
    inside = projected - np.stack([projected[c == LABELS].mean(0) for c in LABELS])
    variances = np.linalg.eigvalsh(inside.T @ inside / len(inside))[-8:]
    assert variances.max() < 1.1 * variances.min()


def test_discriminants_keep_what_separates_classes() -> None:
    x = clusters()
    spread = class_spread(x, LABELS)
    white, weighted = (
        within_class_whitening(spread, shrinkage=0.6),
        discriminant(spread, shrinkage=0.6),
    )
    one, other = (separation(head(torch.from_numpy(x))) for head in (white, weighted))
    assert other > one + 0.05
    everything = discriminant(spread, shrinkage=0.6, rest=1.0)
    assert torch.allclose(everything.weight, white.weight, atol=1e-5)


def test_a_head_of_long_vectors_is_that_of_their_span(monkeypatch: pytest.MonkeyPatch) -> None:
    x = clusters(dim=200)  # 120 vectors
    every = closed_forms(x, LABELS)
    monkeypatch.setattr(projection, "LONG", 150)
    assert class_spread(x, LABELS).basis is not None
    for name, head in closed_forms(x, LABELS).items():
        assert (head.dim, every[name].dim) in ((200, 200), (120, 200), (126, 206)), name
        found, whole = (cosines(one(torch.from_numpy(x)).detach()) for one in (head, every[name]))
        if name == "centred":
            assert torch.equal(found, whole)
        gap = (found - whole).abs().mean()  # the mean variance is that of fewer directions
        assert gap < 0.1 and separation(head(torch.from_numpy(x))) > 0.1, (name, gap)
    exact = class_spread(x, LABELS)
    unit = F.normalize(torch.from_numpy(x).double(), dim=1).numpy()
    np.testing.assert_allclose(exact.basis @ exact.basis.T, np.eye(120), atol=1e-4)
    np.testing.assert_allclose(unit @ exact.basis.T @ exact.basis, unit, atol=1e-4)


def test_joined_vectors_mix_both_cosines() -> None:
    x = torch.from_numpy(clusters())
    head = within_class_whitening(class_spread(x.numpy(), LABELS))
    joined = head.joined(0.3)
    assert joined.dim == 20
    assert joined(x).shape == (120, 20)
    expected = 0.7 * cosines(head(x)) + 0.3 * cosines(x)
    assert torch.allclose(cosines(joined(x)), expected, atol=1e-5)
    with pytest.raises(ModelError, match="below 1"):
        head.joined(1.0)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_description_builds_it_again(share: float) -> None:
    head = Projection(10, 4, frozen_share=share)
    again = build_projection(head.description)
    again.load_state_dict(head.state_dict())
    x = torch.from_numpy(clusters())
    assert torch.equal(again(x), head(x))
    assert isinstance(build_projection(None), torch.nn.Identity)
    with pytest.raises(ModelError, match="use the version"):
        build_projection({"form": "mlp"})


def test_a_trained_head_separates_better_and_leaves_its_start_alone() -> None:
    x = clusters()
    start = centred(identity_or_pca(x), x)
    loss = build_loss("cross-entropy", 6, 10)
    loss.start_from(class_means(project(start, x), LABELS, 6))
    found = train_head(start, x, LABELS, loss, steps=80, learning_rate=5e-2)
    tensor = torch.from_numpy(x)
    assert separation(found.projection(tensor)) > separation(start(tensor)) + 0.02
    assert torch.equal(start.weight, torch.eye(10))
    assert found.steps == 80
    assert 0 < found.final_loss < 1.7


def test_a_head_stops_in_time_and_at_bad_numbers(caplog: pytest.LogCaptureFixture) -> None:
    x = clusters()
    loss = build_loss("cross-entropy", 6, 10)
    assert train_head(identity_or_pca(x), x, LABELS, loss, seconds=0.0).steps == 0
    x[:] = np.nan
    found = train_head(Projection(10, 10), x, LABELS, loss)
    assert found.steps == 0
    assert torch.isfinite(found.projection.weight).all()


def test_classes_of_one_vector_leave_no_closed_form_out() -> None:
    rng = np.random.default_rng(0)
    singles = np.arange(100, 160)
    vectors = rng.standard_normal((24 + 60, 96)).astype(np.float32)
    found = closed_forms(vectors, np.concatenate([np.repeat(np.arange(6), 4), singles]))
    assert {"whitened 0.6", "discriminant 0.6", "classes 0.3"} <= set(found)
    assert all(torch.isfinite(project(one, vectors)).all() for one in found.values())
    few = closed_forms(vectors[:72], np.concatenate([np.repeat(np.arange(6), 2), singles]))
    assert list(few) == ["centred"]


def test_closed_forms_are_named() -> None:
    assert list(closed_forms(clusters(), LABELS)) == [
        "centred", "whitened 0.9", "whitened 0.6", "discriminant 0.6", "discriminant 0.3",
        "classes 0.3", "classes 0.1",
    ]  # fmt: skip
    assert list(closed_forms(clusters(), LABELS, dim=3)) == ["pca"]


# ── PCA and whitening without labels ──


def stretched(n: int = 400, d: int = 12) -> np.ndarray:
    rng = np.random.default_rng(5)
    return rng.standard_normal((n, d)) * np.linspace(3, 0.2, d) + 2


def applied(projection: nn.Module, vectors: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = projection(torch.from_numpy(vectors.astype(np.float32))).numpy()
    return found


def test_plain_whitening_makes_all_axes_equal() -> None:
    vectors = stretched()
    out = applied(whitening(vectors, "plain"), vectors)
    covariance = np.cov(out.T, bias=True)
    np.testing.assert_allclose(covariance, np.eye(12) * covariance[0, 0], atol=1e-4)
    np.testing.assert_allclose(out.mean(axis=0), 0, atol=1e-5)


def test_pca_alone_keeps_the_largest_axes_as_they_are() -> None:
    vectors = stretched()
    out = applied(whitening(vectors, "none", 5), vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    from sklearn.decomposition import PCA

    expected = PCA(5).fit_transform(unit)
    np.testing.assert_allclose(np.abs(out), np.abs(expected), atol=1e-4)


def test_shrinking_trusts_few_vectors_less() -> None:
    few, many = stretched(15), stretched(4000)

    def ratio(vectors: np.ndarray, kind: str) -> float:
        rows = whitening(vectors, kind, 10).weight.detach().norm(dim=1)
        return float(rows.max() / rows.min())

    assert ratio(few, "shrunk") < 0.7 * ratio(few, "plain")
    assert ratio(many, "shrunk") == pytest.approx(ratio(many, "plain"), rel=0.05)
    assert whitening(few, "shrunk").outputs == 12


def test_too_few_vectors_or_no_such_kind_are_refused() -> None:
    with pytest.raises(DataError, match="choose from 1 to 4"):
        whitening(stretched(5), "plain", 8)
    with pytest.raises(DataError, match="choose from 1 to 12"):
        whitening(stretched(50), "shrunk", 13)
    with pytest.raises(DataError, match="at least two"):
        whitening(stretched(1), "shrunk")
    with pytest.raises(UsageError, match="none, plain, shrunk"):
        whitening(stretched(), "bleach")


def test_a_whitening_after_a_head_is_saved_with_it() -> None:
    vectors = stretched()
    head = identity_or_pca(vectors, 8)
    second = whitening(applied(head, vectors), "shrunk", 4)
    both = composed(head, second)
    assert both.dim == 4 and composed(nn.Identity(), second) is second
    again = build_projection(both.description)
    again.load_state_dict(both.state_dict())
    np.testing.assert_array_equal(applied(again, vectors), applied(both, vectors))
    expected = applied(second, applied(head, vectors))
    np.testing.assert_allclose(applied(both, vectors), expected, atol=1e-6)
    third = composed(both, whitening(applied(both, vectors), "plain", 2))
    assert [part["outputs"] for part in third.description["parts"]] == [8, 4, 2]


# ── class probabilities ──────────────────────────────────────────────────────────────────────────


def test_class_logits_are_those_of_linear_discriminant_analysis() -> None:
    """Held against scikit-learn: the same covariance and centers give the same odds."""
    from sklearn.covariance import EmpiricalCovariance
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x = clusters()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = LinearDiscriminantAnalysis(
        solver="lsqr", covariance_estimator=EmpiricalCovariance(), priors=np.full(6, 1 / 6)
    ).fit(unit, LABELS)
    found = class_logits(class_spread(x, LABELS), shrinkage=0.0, temperature=1.0)
    logits = found(torch.from_numpy(x)).softmax(dim=1).detach().numpy()
    assert np.allclose(logits, expected.predict_proba(unit), atol=1e-4)
    calmer = class_logits(class_spread(x, LABELS), shrinkage=0.0, temperature=10.0)
    assert calmer(torch.from_numpy(x)).softmax(1).max() < logits.max()


def test_a_projection_with_classes_joins_two_cosines() -> None:
    x = clusters()
    heads = closed_forms(x, LABELS)
    head = heads["classes 0.3"]
    assert isinstance(head, WithClasses) and head.dim == 10 + 6
    vectors = project(head, x)
    assert vectors.shape == (120, 16)
    probabilities = head.classes(torch.from_numpy(x)).softmax(dim=1)
    joined = 0.7 * cosines(head.base(torch.from_numpy(x))) + 0.3 * cosines(probabilities)
    assert torch.allclose(cosines(vectors), joined, atol=1e-5)
    assert (probabilities.argmax(dim=1).numpy() == LABELS).mean() > 0.9

    again = build_projection(json.loads(json.dumps(head.description)))
    again.load_state_dict(head.state_dict())
    assert torch.equal(project(again, x), vectors)
    with pytest.raises(ModelError, match="share of classes"):
        WithClasses(head.base, head.classes, share=1.0)


def test_more_classes_than_dimensions_are_not_joined() -> None:
    x, labels = RNG.normal(size=(60, 10)).astype(np.float32), np.arange(60) % 15
    assert not any("classes" in name for name in closed_forms(x, labels))
