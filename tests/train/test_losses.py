"""Losses: values, gradients, chance levels, sums, miners, memory and errors."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vizsla.errors import UsageError
from vizsla.train.losses import LOSSES, MINERS, build_loss, loss_title, margins_by_size, parse_loss

C, D = 5, 12


def vectors(n: int = 20, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % C
    return F.normalize(torch.randn(n, D, generator=generator), dim=1).requires_grad_(), labels


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_falls_along_its_gradient(name: str) -> None:
    torch.manual_seed(0)
    loss = build_loss(name, C, D)
    free, labels = vectors()
    free = free.detach().clone().requires_grad_()
    teacher = F.one_hot(labels).float()  # (B, C)
    optimiser = torch.optim.Adam([free, *loss.parameters()], 0.05)
    first = None
    for _ in range(60):
        value = loss(F.normalize(free, dim=1), labels, teacher)
        first = value.item() if first is None else first
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    assert math.isfinite(value.item())
    assert value.item() < 0.8 * first


@pytest.mark.parametrize("name", [n for n, spec in LOSSES.items() if not spec.of_pairs])
def test_losses_on_single_images_are_means_over_them(name: str) -> None:
    torch.manual_seed(0)
    loss, (z, labels) = build_loss(name, C, D), vectors()
    halves = (loss(z[:10], labels[:10]) + loss(z[10:], labels[10:])) / 2
    assert torch.allclose(loss(z, labels), halves, atol=1e-5)
    assert not loss.of_pairs


def test_pair_losses_are_no_means_over_images() -> None:
    loss, (z, labels) = build_loss("supcon", C, D), vectors()
    halves = (loss(z[:10], labels[:10]) + loss(z[10:], labels[10:])) / 2
    assert not torch.allclose(loss(z, labels), halves, atol=1e-3)
    assert loss.of_pairs


def test_a_sum_of_losses_and_its_title() -> None:
    z, labels = vectors()
    text = "cross-entropy + 0.5*supcon(temperature=0.2)"
    loss = build_loss(text, C, D)
    assert loss_title(text) == "CrossEntropyLoss+0.5*SupConLoss"
    parts = [part(z, labels) for part in loss.parts]
    assert torch.allclose(loss(z, labels), parts[0] + 0.5 * parts[1])
    assert [term.options for term in parse_loss("supcon(temperature=0.2)")] == [
        {"temperature": 0.2}
    ]


@pytest.mark.parametrize("name", ["cross-entropy", "arcface", "subcenter-arcface", "cosface"])
def test_chance_is_what_orthogonal_vectors_give(name: str) -> None:
    loss = build_loss(name, C, D)
    loss.start_from(F.normalize(torch.eye(C, D), dim=1))
    z = torch.zeros(8, D)
    z[:, C + 1] = 1.0  # orthogonal to what stands for any class
    if name == "subcenter-arcface":
        with torch.no_grad():
            loss.parts[0].W[C + 1] = 0
    labels = torch.arange(8) % C
    chance = loss.chance(8)
    assert chance is not None
    assert loss(z, labels).item() == pytest.approx(chance, rel=2e-3)


def test_chance_of_pairs_and_sums() -> None:
    assert build_loss("cross-entropy", 7, D).chance(32) == pytest.approx(math.log(7))
    assert build_loss("cross-entropy+2*supcon", 7, D).chance(32) == pytest.approx(
        math.log(7) + 2 * math.log(31)
    )
    assert build_loss("contrastive", 7, D).chance(32) is None
    assert build_loss("cross-entropy+contrastive", 7, D).chance(32) is None
    same = torch.ones(20, D) / D**0.5
    loss = build_loss("triplet", C, D)
    assert loss(same, torch.arange(20) % C).item() == pytest.approx(loss.chance(20) or 0)


def test_margins_depend_on_class_size() -> None:
    margins = margins_by_size(np.array([10, 100, 1000]), 10, 25)
    assert margins[0] == 25
    assert margins[2] == 10
    assert 10 < margins[1] < 25
    z, labels = vectors()
    sizes = np.array([5, 5, 5, 500, 500])
    torch.manual_seed(0)
    fixed = build_loss("arcface(margin=20)", C, D, sizes)
    torch.manual_seed(0)
    by_size = build_loss("arcface(margin=20,least_margin=5)", C, D, sizes)
    small, large = labels < 3, labels >= 3
    assert torch.allclose(fixed(z[small], labels[small]), by_size(z[small], labels[small]))
    assert fixed(z[large], labels[large]) > by_size(z[large], labels[large]) + 0.1


def test_arcface_with_one_margin_is_that_of_the_library() -> None:
    from pytorch_metric_learning.losses import ArcFaceLoss

    z, labels = vectors()
    ours = build_loss("arcface(margin=28.6,scale=64)", C, D)
    theirs = ArcFaceLoss(C, D, margin=28.6, scale=64)
    theirs.W.data = ours.parts[0].W.data.clone()
    assert torch.allclose(ours(z, labels), theirs(z, labels), rtol=1e-4)


@pytest.mark.parametrize("name", [n for n in LOSSES if LOSSES[n].title != "TripletMarginLoss"])
def test_classes_start_at_their_means(name: str) -> None:
    loss = build_loss(name, C, D)
    loss.start_from(F.normalize(torch.eye(C, D), dim=1))
    for key, own in loss.named_parameters():
        rows = own.T if key.endswith(".W") else own
        rows = F.normalize(rows.reshape(C, -1, D).mean(1), dim=1)
        assert torch.equal((rows @ torch.eye(D, C)).argmax(1), torch.arange(C))


@pytest.mark.parametrize("miner", MINERS)
def test_miners_select_from_the_batch(miner: str) -> None:
    z, labels = vectors()
    value = build_loss("triplet", C, D, miner=miner)(z, labels)
    assert math.isfinite(value.item())


def test_memory_adds_past_batches_and_is_saved() -> None:
    loss = build_loss("contrastive", C, D, memory=64)
    first = loss(*vectors(seed=1)).item()
    later = loss(*vectors(seed=2)).item()
    fresh = build_loss("contrastive", C, D, memory=64)
    assert fresh(*vectors(seed=2)).item() != pytest.approx(later)
    again = build_loss("contrastive", C, D, memory=64)
    half = build_loss("contrastive", C, D, memory=64)
    assert half(*vectors(seed=1)).item() == pytest.approx(first)
    again.load_state_dict(half.state_dict())
    assert again(*vectors(seed=2)).item() == pytest.approx(later)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arcfase", "cross-entropy, arcface"),
        ("", "is not one of"),
        ("arcface+arcface", "twice"),
        ("arcface(marge=3)", "it has scale, margin"),
        ("arcface(margin=wide)", "'wide' is not a number"),
        ("1.2.3*arcface", "not a number"),
    ],
)
def test_an_invalid_loss_is_an_error_that_says_why(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_loss(text, C, D)


def test_miner_and_memory_need_a_loss_that_takes_them() -> None:
    with pytest.raises(UsageError, match="triplet"):
        build_loss("cross-entropy", C, D, miner="hard")
    with pytest.raises(UsageError, match="supcon"):
        build_loss("cross-entropy", C, D, memory=100)
    with pytest.raises(UsageError, match="semihard"):
        build_loss("triplet", C, D, miner="softest")
