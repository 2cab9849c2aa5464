"""LOSSES: name → how the loss is built; weighted sums of them, and MINERS for their pairs.

Built from pytorch-metric-learning. A loss sees unit vectors (B, D) and class numbers (B,), or a
teacher's vectors (B, D'), nothing of images or networks.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances, losses, miners
from torch import Tensor, nn

from vizsla.errors import UsageError
from vizsla.options import TEACHER

Options = dict[str, float]
MINERS: dict[str, Callable[[], nn.Module]] = {
    "all": lambda: miners.TripletMarginMiner(margin=0.2, type_of_triplets="all"),
    "semihard": lambda: miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard"),
    "hard": lambda: miners.TripletMarginMiner(margin=0.2, type_of_triplets="hard"),
    "batch-hard": miners.BatchHardMiner,
    "easy-positive": lambda: miners.BatchEasyHardMiner(
        pos_strategy="easy", neg_strategy="semihard"
    ),
    "multi-similarity": miners.MultiSimilarityMiner,
}


@dataclass(frozen=True)
class LossSpec:
    """How a loss is built and what kind it is.

    build: (C, D, class sizes (C,), options) → module. of_pairs: needs several images of a class in
    a batch, and a batch in one piece. chance: (C, B, options) → the value without any learning,
    None if it is not known. minable: takes a miner. remembers: works with a memory.
    takes_sets: images may have several labels; a pair is then positive if it shares one.
    of_teacher: takes a teacher's vectors in place of labels.
    """

    title: str
    build: Callable[[int, int, np.ndarray, Options], nn.Module]
    options: Options
    of_pairs: bool
    chance: Callable[[int, int, Options], float] | None = None
    minable: bool = False
    remembers: bool = False
    takes_sets: bool = False
    of_teacher: bool = False


# ── losses that the library does not have in this form ───────────────────────────────────────────


class CosineCrossEntropy(nn.Module):
    """Cross-entropy over scaled cosines to one learned vector a class (Zhai & Wu, 2018)."""

    def __init__(self, classes: int, dim: int, *, scale: float, smoothing: float) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(dim, classes) / dim**0.5)  # (D, C), as the library's
        self.scale, self.smoothing = scale, smoothing

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """The mean loss, a scalar. vectors: (B, D) of length 1; labels: (B,) class numbers, or
        (B, C) of an image's several labels, which are then equally likely."""
        logits = self.scale * vectors @ F.normalize(self.W, dim=0)  # (B, C)
        if labels.ndim == 2:
            labels = labels / labels.sum(dim=1, keepdim=True)
        return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)


class ArcFace(losses.SubCenterArcFaceLoss):
    """ArcFace with sub-centers whose margin may differ by class (Deng et al., 2020)."""

    def __init__(self, margins: np.ndarray, **options: Any) -> None:
        super().__init__(margin=float(np.mean(margins)), **options)
        radians = torch.as_tensor(np.radians(margins), dtype=torch.float32)
        self.register_buffer("margins", radians, persistent=False)  # (C,)

    def compute_loss(self, embeddings: Tensor, labels: Tensor, *rest: Any) -> Any:
        """The library's loss dict, with the margins of these labels. embeddings: (B, D)."""
        self.of_targets = self.margins[labels]  # (B,)
        return super().compute_loss(embeddings, labels, *rest)

    def modify_cosine_of_target_classes(self, cosines: Tensor) -> Tensor:
        """(B,) cosines to each image's own class, with the margin added to their angle."""
        margin = self.of_targets
        angles = torch.acos(cosines.clamp(-1 + 1e-7, 1 - 1e-7))  # at ±1 the slope is infinite
        beyond = cosines - margin * torch.sin(margin)  # keeps the loss falling beyond π - margin
        return torch.where(angles <= math.pi - margin, torch.cos(angles + margin), beyond)


class Distillation(nn.Module):
    """How differently student and teacher order the batch by similarity to each of its images.

    For each image, the similarities of all others become probabilities at `temperature`; the loss
    is the teacher's divergence from the student's (Fang et al., 2021, SEED, within a batch).
    """

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, vectors: Tensor, teacher: Tensor) -> Tensor:
        """The mean over the batch. vectors: (B, D), teacher: (B, D'), unit rows of its images."""
        student, wanted = (self._log_shares(part) for part in (vectors, teacher))
        return F.kl_div(student, wanted, log_target=True, reduction="batchmean")

    def _log_shares(self, vectors: Tensor) -> Tensor:
        B = len(vectors)
        others = ~torch.eye(B, dtype=torch.bool, device=vectors.device)
        scores = (vectors @ vectors.T)[others].view(B, B - 1) / self.temperature
        return F.log_softmax(scores, dim=1)


def margins_by_size(sizes: np.ndarray, low: float, high: float) -> np.ndarray:
    """(C,) degrees: `high` for the smallest class, `low` for the largest (Ha et al., 2020)."""
    rarity = np.maximum(sizes, 1).astype(float) ** -0.25
    span = rarity.max() - rarity.min()
    share = (rarity - rarity.min()) / span if span > 0 else np.full(len(sizes), 0.5)
    return low + (high - low) * share


def _arcface(classes: int, dim: int, sizes: np.ndarray, o: Options) -> nn.Module:
    low = o["margin"] if o["least_margin"] < 0 else o["least_margin"]
    return ArcFace(
        margins_by_size(sizes, low, o["margin"]),
        scale=o["scale"],
        sub_centers=int(o["centers"]),
        num_classes=classes,
        embedding_size=dim,
    )


# ── by name ──────────────────────────────────────────────────────────────────────────────────────

_ARC = {
    "scale": 30.0,
    "margin": 17.0,
    "least_margin": -1.0,
    "centers": 1.0,
}  # -1: the same margin for all classes

LOSSES: dict[str, LossSpec] = {
    "cross-entropy": LossSpec(
        "CrossEntropyLoss",
        lambda C, D, sizes, o: CosineCrossEntropy(C, D, scale=o["scale"], smoothing=o["smoothing"]),
        {"scale": 16.0, "smoothing": 0.0},
        of_pairs=False,
        chance=lambda C, B, o: math.log(C),
        takes_sets=True,
    ),
    "arcface": LossSpec(
        "ArcFaceLoss",
        _arcface,
        _ARC,
        of_pairs=False,
        chance=lambda C, B, o: _chance_with_margin(C, o["scale"] * math.sin(_rad(o["margin"]))),
    ),
    "subcenter-arcface": LossSpec(
        "SubCenterArcFaceLoss",
        _arcface,
        {**_ARC, "centers": 3.0},
        of_pairs=False,
        chance=lambda C, B, o: _chance_with_margin(C, o["scale"] * math.sin(_rad(o["margin"]))),
    ),
    "cosface": LossSpec(
        "CosFaceLoss",
        lambda C, D, sizes, o: losses.CosFaceLoss(C, D, margin=o["margin"], scale=o["scale"]),
        {"scale": 30.0, "margin": 0.2},
        of_pairs=False,
        chance=lambda C, B, o: _chance_with_margin(C, o["scale"] * o["margin"]),
    ),
    "triplet": LossSpec(
        "TripletMarginLoss",
        lambda C, D, sizes, o: losses.TripletMarginLoss(
            margin=o["margin"], distance=distances.LpDistance(normalize_embeddings=False)
        ),
        {"margin": 0.2},
        of_pairs=True,
        chance=lambda C, B, o: o["margin"],
        minable=True,
        remembers=True,
        takes_sets=True,
    ),
    "contrastive": LossSpec(
        "ContrastiveLoss",
        lambda C, D, sizes, o: losses.ContrastiveLoss(
            pos_margin=o["positive"],
            neg_margin=o["negative"],
            distance=distances.CosineSimilarity(),
        ),
        {"positive": 1.0, "negative": 0.3},
        of_pairs=True,
        minable=True,
        remembers=True,
        takes_sets=True,
    ),
    "supcon": LossSpec(
        "SupConLoss",
        lambda C, D, sizes, o: losses.SupConLoss(temperature=o["temperature"]),
        {"temperature": 0.1},
        of_pairs=True,
        chance=lambda C, B, o: math.log(max(2, B - 1)),
        remembers=True,
        takes_sets=True,
    ),
    "multi-similarity": LossSpec(
        "MultiSimilarityLoss",
        lambda C, D, sizes, o: losses.MultiSimilarityLoss(
            alpha=o["alpha"], beta=o["beta"], base=o["base"]
        ),
        {"alpha": 2.0, "beta": 50.0, "base": 0.5},
        of_pairs=True,
        minable=True,
        remembers=True,
        takes_sets=True,
    ),
    "proxy-anchor": LossSpec(
        "ProxyAnchorLoss",
        lambda C, D, sizes, o: losses.ProxyAnchorLoss(C, D, margin=o["margin"], alpha=o["alpha"]),
        {"margin": 0.1, "alpha": 32.0},
        of_pairs=True,
    ),
    TEACHER: LossSpec(
        "Distillation",
        lambda C, D, sizes, o: Distillation(temperature=o["temperature"]),
        {"temperature": 0.1},
        of_pairs=True,
        takes_sets=True,
        of_teacher=True,
    ),
}


def _chance_with_margin(classes: int, margin: float) -> float:
    """ln(1 + (C - 1) e^margin): all cosines equal, the right class's lowered by the margin."""
    return margin + math.log(classes - 1 + math.exp(-margin))


def _rad(degrees: float) -> float:
    return math.radians(degrees)


# ── sums with weights ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Term:
    """One summand of a loss: its weight, its name and its options, defaults filled in."""

    weight: float
    name: str
    options: Options

    @property
    def spec(self) -> LossSpec:
        """How the loss is built."""
        return LOSSES[self.name]


_TERM = re.compile(r"(?:(?P<weight>[\d.]+)\*)?(?P<name>[a-z-]+)(?:\((?P<options>[^()]*)\))?")


def parse_loss(text: str) -> list[Term]:
    """The terms of e.g. `cross-entropy(smoothing=0.1)+0.5*supcon`; UsageError if invalid."""
    terms = []
    for part in re.split(r"\+(?![^(]*\))", text.replace(" ", "")):
        match = _TERM.fullmatch(part)
        if not match or match["name"] not in LOSSES:
            raise UsageError(
                f"--loss {text!r}: {part!r} is not one of {', '.join(LOSSES)}; a sum is written "
                "like 'cross-entropy+0.5*supcon', an option like 'arcface(margin=20)'"
            )
        name, weight = match["name"], _number(match["weight"] or "1", text)
        options = dict(LOSSES[name].options)
        for pair in filter(None, (match["options"] or "").split(",")):
            key, _, value = pair.partition("=")
            if key not in options:
                raise UsageError(
                    f"--loss {text!r}: {name} has no option {key!r}: it has {', '.join(options)}"
                )
            options[key] = _number(value, text)
        terms.append(Term(weight, name, options))
    if len({term.name for term in terms}) < len(terms):
        raise UsageError(f"--loss {text!r} names one loss twice: give each once, with its weight")
    return terms


def loss_title(text: str) -> str:
    """The names of the losses' classes, for the result file: `CrossEntropyLoss+0.5*SupConLoss`."""
    return "+".join(
        ("" if term.weight == 1 else f"{term.weight:g}*") + term.spec.title
        for term in parse_loss(text)
    )


def _number(value: str, text: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise UsageError(f"--loss {text!r}: {value!r} is not a number") from error


class TrainingLoss(nn.Module):
    """The sum of all terms. of_pairs: whether any term needs the batch in one piece; of_classes:
    whether any needs several images of a class in it."""

    label_sets: Tensor | None

    def __init__(
        self,
        terms: list[Term],
        classes: int,
        dim: int,
        sizes: np.ndarray,
        *,
        miner: str | None = None,
        memory: int = 0,
        label_sets: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.terms, self.classes = terms, classes
        sets = None if label_sets is None else torch.as_tensor(label_sets, dtype=torch.float32)
        self.register_buffer("label_sets", sets, persistent=False)  # (U, C)
        self.of_pairs = any(term.spec.of_pairs for term in terms)
        self.of_classes = any(term.spec.of_pairs and not term.spec.of_teacher for term in terms)
        self.parts = nn.ModuleList(
            [_part(term, classes, dim, sizes, miner, memory, sets is not None) for term in terms]
        )

    def forward(self, vectors: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
        """vectors: (B, D) unit rows; labels: (B,) int64; teacher: (B, D'), if a term takes it →
        one number."""
        if self.label_sets is not None:
            labels = self.label_sets[labels]  # (B, C)
        with torch.autocast(vectors.device.type, enabled=False):
            found = [
                term.weight * part(vectors.float(), teacher if term.spec.of_teacher else labels)
                for term, part in zip(self.terms, self.parts, strict=True)
            ]
            return torch.stack(found).sum()

    def chance(self, batch_size: int) -> float | None:
        """The value without any learning; None if it is not known of a term."""
        known = [(t.weight, t.spec.chance, t.options) for t in self.terms]
        if any(chance is None for _, chance, _ in known):
            return None
        return sum(w * c(self.classes, batch_size, o) for w, c, o in known if c)

    def start_from(self, means: Tensor) -> None:
        """Sets the weight or proxy of each class to the mean vector of its images.

        means: (C, D). Sub-centers start around it.
        """
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name.endswith(".W"):  # (D, C · centers)
                    centers = weight.shape[1] // self.classes
                    spread = means.repeat_interleave(centers, dim=0)  # (C · centers, D)
                    if centers > 1:
                        spread = spread + torch.randn_like(spread) * 0.1 / spread.shape[1] ** 0.5
                    weight.copy_(spread.T)
                elif name.endswith(".proxies"):  # (C, D)
                    weight.copy_(means)


class _SharedLabel(nn.Module):
    """A pair loss whose positives are the pairs that share a label."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        share = labels @ labels.T > 0  # (B, B)
        others = ~torch.eye(len(share), dtype=torch.bool, device=share.device)
        pairs = (*torch.where(share & others), *torch.where(~share))
        found: Tensor = self.loss(vectors, None, pairs)
        return found


class _Mined(nn.Module):
    """A pair loss on the pairs or triplets that a miner selects."""

    def __init__(self, loss: nn.Module, miner: nn.Module) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = self.loss(vectors, labels, self.miner(vectors.detach(), labels))
        return found


class _Memory(losses.CrossBatchMemory):
    """A pair loss that also sees vectors of past batches (Wang et al., 2020), saved with it."""

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.queue_idx, int(self.has_been_filled)])

    def set_extra_state(self, state: Tensor) -> None:
        self.queue_idx, self.has_been_filled = int(state[0]), bool(state[1])


def _part(
    term: Term,
    classes: int,
    dim: int,
    sizes: np.ndarray,
    miner: str | None,
    memory: int,
    has_sets: bool,
) -> nn.Module:
    loss = term.spec.build(classes, dim, sizes, term.options)
    if term.spec.of_teacher:
        return loss
    if has_sets:
        return _SharedLabel(loss) if term.spec.of_pairs else loss
    chosen = MINERS[miner]() if miner and term.spec.minable else None
    if memory and term.spec.remembers:
        return _Memory(loss, dim, memory_size=memory, miner=chosen)
    return _Mined(loss, chosen) if chosen else loss


def build_loss(
    text: str,
    classes: int,
    dim: int,
    sizes: np.ndarray | None = None,
    *,
    miner: str | None = None,
    memory: int = 0,
    label_sets: np.ndarray | None = None,
) -> TrainingLoss:
    """The loss that `text` describes; see `parse_loss`.

    miner, memory: for the terms that take them; memory is the number of vectors of past batches.
    sizes: (C,) images of each class, for margins that depend on them. UsageError if no term
    takes the miner or the memory. label_sets: (U, C) bool, the labels that a class number stands
    for, if images have several; UsageError for losses that cannot take them.
    """
    terms = parse_loss(text)
    if label_sets is not None:
        _check_takes_sets(terms, miner, memory)
    if miner and miner not in MINERS:
        raise UsageError(f"--miner {miner}: choose one of {', '.join(MINERS)}")
    if miner and not any(term.spec.minable for term in terms):
        minable = [name for name, spec in LOSSES.items() if spec.minable]
        raise UsageError(f"--miner {miner} needs one of the losses {', '.join(minable)}")
    if memory and not any(term.spec.remembers for term in terms):
        able = [name for name, spec in LOSSES.items() if spec.remembers]
        raise UsageError(f"--memory {memory} needs one of the losses {', '.join(able)}")
    sizes = np.ones(classes) if sizes is None else sizes
    return TrainingLoss(
        terms, classes, dim, sizes, miner=miner, memory=memory, label_sets=label_sets
    )


def _check_takes_sets(terms: list[Term], miner: str | None, memory: int) -> None:
    """UsageError for what knows only one label an image."""
    able = [name for name, spec in LOSSES.items() if spec.takes_sets]
    if unable := [term.name for term in terms if not term.spec.takes_sets]:
        raise UsageError(
            f"--loss {unable[0]} takes one label an image, but these have several: choose of "
            f"{', '.join(able)}"
        )
    if miner or memory:
        given = f"--miner {miner}" if miner else f"--memory {memory}"
        raise UsageError(f"{given} takes one label an image, but these have several: leave it out")
