"""A teacher's vectors, and the loss term that learns from them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from vizsla.data.imageset import ImageSet
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError
from vizsla.train.batch_gradient import GradientMaker, Processes
from vizsla.train.losses import build_loss, loss_title
from vizsla.train.teacher import Teacher


def unit(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


# ── the loss ─────────────────────────────────────────────────────────────────────────────────────


def test_the_term_by_its_formula() -> None:
    student, teacher = unit(6, 5, 1), unit(6, 9, 2)
    loss = build_loss("2*teacher(temperature=0.2)", 3, 5)
    found = loss(student, torch.zeros(6, dtype=torch.long), teacher)
    total = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        p, q = (np.exp((z[i] @ z[others].T).double().numpy() / 0.2) for z in (teacher, student))
        p, q = p / p.sum(), q / q.sum()
        total += float((p * np.log(p / q)).sum()) / 6
    assert found.item() == pytest.approx(2 * total, rel=1e-4)
    assert loss_title("cross-entropy+teacher") == "CrossEntropyLoss+Distillation"


def test_the_teachers_similarities_in_another_space_cost_nothing() -> None:
    teacher = unit(10, 6)
    turned = F.pad(teacher, (0, 3)) @ torch.linalg.qr(torch.randn(9, 9)).Q
    loss = build_loss("teacher", 3, 9)
    assert abs(loss(turned, torch.zeros(10), teacher).item()) < 1e-5
    assert loss(unit(10, 9, 5), torch.zeros(10), teacher).item() > 0.1


@pytest.mark.parametrize("name", ["teacher", "cross-entropy+0.5*supcon+teacher"])
def test_pieces_give_the_gradient_of_the_undivided_batch(name: str) -> None:
    pictures, labels, teacher = (
        unit(12, 3 * 64).view(12, 3, 8, 8),
        torch.arange(12) % 4,
        unit(12, 7),
    )
    found = []
    for micro in (12, 5):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8))
        loss = build_loss(name, 4, 8)
        GradientMaker(net, loss, micro_batch=micro).gradients(pictures, labels, teacher)
        found.append(net[1].weight.grad)
    assert torch.allclose(found[0], found[1], atol=1e-6) and found[0].abs().max() > 0


# ── its vectors ──────────────────────────────────────────────────────────────────────────────────


def test_vectors_are_those_of_the_images_in_their_order() -> None:
    ids, vectors = [f"{i:02d}.png" for i in range(20)], unit(20, 6) + 0.5
    order = np.random.default_rng(1).permutation(20)
    found = Embeddings([ids[i] for i in order], vectors.numpy()[order], pa.table({}), "other")
    teacher = Teacher("a run", "other", lambda images, report: found)
    part = ImageSet(Path("photos"), ids[5:15])
    own = teacher.vectors(part, Processes(), lambda done, total: None)
    plain = F.normalize(vectors[5:15], dim=1)
    assert np.allclose(own, F.normalize(plain - plain.mean(0), dim=1), atol=1e-6)
    more = ImageSet(Path("photos"), [*ids, "new.png"])
    with pytest.raises(DataError, match=r"lacks 1 of 21 training images \(first: new.png\)"):
        teacher.vectors(more, Processes(), lambda done, total: None)
