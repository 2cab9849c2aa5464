"""Training on images with several labels: losses by their formulas, batches, a whole training."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from typer.testing import CliRunner

from vizsla.cli.main import app
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import class_codes, label_sets
from vizsla.data.training_batches import BatchPlan
from vizsla.errors import UsageError
from vizsla.train.losses import LOSSES, build_loss

TAKING = [name for name, spec in LOSSES.items() if spec.takes_sets and not spec.of_teacher]
SETS = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=bool)  # a, b, a¦b, c
pytestmark = pytest.mark.usefixtures("short_heads")


def batch(n: int = 16, D: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    z = F.normalize(torch.randn(n, D, generator=generator, dtype=torch.float32), dim=1)
    return z.requires_grad_(), torch.arange(n) % len(SETS)


@pytest.mark.parametrize("name", TAKING)
def test_sets_of_one_label_give_the_value_and_the_gradient_of_the_label(name: str) -> None:
    z, labels = batch()
    torch.manual_seed(0)
    plain = build_loss(name, 4, 6)
    sets = build_loss(name, 4, 6, label_sets=np.eye(4, dtype=bool))
    sets.load_state_dict(plain.state_dict(), strict=False)
    if name == "cross-entropy":
        sets.parts[0].W.data = plain.parts[0].W.data.clone()
    found = []
    for loss in (plain, sets):
        value = loss(z, labels)
        found.append((value, torch.autograd.grad(value, z)[0]))
    (one, by_one), (other, by_other) = found
    assert torch.equal(one, other) or name in ("cross-entropy", "triplet")
    assert torch.allclose(one, other, rtol=1e-6) and torch.allclose(by_one, by_other, atol=1e-6)


def test_supcon_over_shared_labels_by_its_formula() -> None:
    z, labels = batch()
    value = build_loss("supcon", 3, 6, label_sets=SETS)(z, labels)
    cosines, share = (z @ z.T).detach().double() / 0.1, SETS[labels] @ SETS[labels].T
    terms = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i]
        right = [j for j in others if share[i, j]]
        total = torch.logsumexp(cosines[i, others], 0)
        terms.append(-np.mean([float(cosines[i, j] - total) for j in right]))
    assert value.item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_triplets_and_multi_similarity_over_shared_labels_by_their_formulas() -> None:
    z, labels = batch()
    share = SETS[labels] @ SETS[labels].T
    cosines = (z @ z.T).detach().double().numpy()
    n = range(len(z))
    distance = np.sqrt(np.maximum(2 - 2 * cosines, 0))
    margins = [
        distance[a, p] - distance[a, q] + 0.2
        for a in n for p in n for q in n if a != p and share[a, p] and not share[a, q]
    ]  # fmt: skip
    wanted = np.mean([m for m in margins if m > 0])
    assert build_loss("triplet", 3, 6, label_sets=SETS)(z, labels).item() == pytest.approx(
        wanted, rel=1e-4
    )
    terms = []
    for a in n:
        right = [math.exp(-2 * (cosines[a, p] - 0.5)) for p in n if p != a and share[a, p]]
        wrong = [math.exp(50 * (cosines[a, q] - 0.5)) for q in n if not share[a, q]]
        terms.append(math.log1p(sum(right)) / 2 + math.log1p(sum(wrong)) / 50)
    value = build_loss("multi-similarity", 3, 6, label_sets=SETS)(z, labels).item()
    assert value == pytest.approx(np.mean(terms), rel=1e-4)


def test_cross_entropy_takes_the_labels_of_an_image_as_equally_likely() -> None:
    z, labels = batch()
    torch.manual_seed(0)
    loss = build_loss("cross-entropy", 3, 6, label_sets=SETS)
    logits = (16 * z @ F.normalize(loss.parts[0].W, dim=0)).log_softmax(dim=1)
    wanted = [-logits[i, SETS[labels[i]]].mean().item() for i in range(len(z))]
    assert loss(z, labels).item() == pytest.approx(np.mean(wanted), rel=1e-5)


def test_what_knows_one_label_only_is_refused() -> None:
    with pytest.raises(UsageError, match="arcface takes one label an image"):
        build_loss("arcface", 3, 6, label_sets=SETS)
    with pytest.raises(UsageError, match="miner hard takes one label"):
        build_loss("triplet", 3, 6, miner="hard", label_sets=SETS)
    with pytest.raises(UsageError, match="memory=64 takes one label"):
        build_loss("supcon", 3, 6, memory=64, label_sets=SETS)


def test_batches_are_drawn_by_label() -> None:
    images = ImageSet(Path(), ["1", "2", "3", "4"], pa.table({"label": ["a¦b", "a", "c", "c"]}))
    codes, sets = class_codes(images), label_sets(images)
    assert codes.tolist() == [1, 0, 2, 2]
    assert sets is not None and sets.tolist() == [
        [True, False, False], [True, True, False], [False, False, True]
    ]  # fmt: skip
    plan = BatchPlan(codes, 6, order="classes", per_class=2, label_sets=sets)
    assert [part.tolist() for part in plan.members] == [[0, 1], [0], [2, 3]]
    assert np.bincount(plan.batch(0)).tolist() == [3, 1, 1, 1]  # 0 stands for a and for b
    assert label_sets(images.with_labels(["a", "b", "c", "c"])) is None


# ── a whole training ─────────────────────────────────────────────────────────────────────────────


def make(root: Path, name: str, label: object) -> None:
    """40 images of two colours, each of five mixtures; a label for each in `<name>.jsonl`."""
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    rows = []
    for i in range(40):
        kind = i % 5
        colour = np.array([60 + 40 * (kind & 1), 90 + 40 * (kind >> 1 & 1), 50 + 25 * kind])
        pixels = (colour + rng.normal(0, 30, (32, 32, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{i:02}.png")
        rows.append(json.dumps({"file": f"{i:02}.png", "label": label(kind)}))  # type: ignore[operator]
    (root.parent / f"{name}.jsonl").write_text("\n".join(rows))


def trained(images: Path, labels: Path, out: Path) -> dict[str, Any]:
    words = [
        "train", str(images), "--labels", str(labels), "--model", "tiny", "--weights", "random",
        "--image-size", "32", "--epochs", "1", "--validate-on", "seen-classes",
        "--finetune", "full", "--set", "share=0.3", "--batch-size", "16", "--workers", "1",
        "-o", str(out), "--json",
    ]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, (result.output, result.exception)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_lists_of_one_label_train_as_the_label_itself_bit_by_bit(tmp_path: Path) -> None:
    make(tmp_path / "images", "plain", lambda kind: f"c{kind}")
    make(tmp_path / "images", "lists", lambda kind: [f"c{kind}"])
    ends = []
    for name in ("plain", "lists"):
        record = trained(tmp_path / "images", tmp_path / f"{name}.jsonl", tmp_path / name)
        log = [
            json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
        ]
        losses = [row["loss"] for row in log if "loss" in row]
        weights = (tmp_path / name / "embedder/model.safetensors").read_bytes()
        ends.append((losses, record["training"]["candidates"], weights))
    assert ends[0] == ends[1] and ends[0][0]


def test_several_labels_train(tmp_path: Path) -> None:
    names = ["red", "green", "blue"]
    make(
        tmp_path / "images",
        "several",
        lambda kind: [n for i, n in enumerate(names) if kind >> i & 1] or ["none"],
    )
    record = trained(tmp_path / "images", tmp_path / "several.jsonl", tmp_path / "out")
    assert record["num_classes"] == 4  # red, green, blue, none, and not their five mixtures
    log = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(row["loss"]) for row in log if "loss" in row) and log
