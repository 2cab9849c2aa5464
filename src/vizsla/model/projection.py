"""Projections: pooled vectors (B, C) → (B, D), which the embedder then normalises.

A projection starts as the identity (or as the PCA if D differs), so training starts at the
frozen model. Closed forms are here too: PCA, whitening, discriminants and class probabilities.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vizsla import storage
from vizsla.errors import DataError, ModelError, UsageError

FORM, CHAINED, WITH_CLASSES, BESIDE = "linear", "chained", "with classes", "beside"
WHITENINGS = ("none", "plain", "shrunk")
AnyProjection = nn.Module  # any class of this file
ROWS = 8_192  # that are projected at a time
LONG = 4_096  # numbers of a vector, above which a head only looks at the span of its vectors


class Projection(nn.Module):
    """unit(x) → weight · unit(x) + bias, or that joined with unit(x).

    frozen_share: the share of unit(x) in a joined vector's squared length, and so in a cosine; 0
    leaves it out. Vectors have D numbers then, otherwise D + C.
    """

    def __init__(self, inputs: int, outputs: int, *, frozen_share: float = 0.0) -> None:
        super().__init__()
        if not 0 <= frozen_share < 1:
            raise ModelError(f"frozen share {frozen_share}: choose from 0 to below 1")
        self.inputs, self.outputs, self.share = inputs, outputs, float(frozen_share)
        self.weight = nn.Parameter(torch.eye(outputs, inputs))  # (D, C)
        self.bias = nn.Parameter(torch.zeros(outputs))  # (D,)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, D), or (B, D + C) with a frozen share."""
        unit = F.normalize(pooled, dim=1)  # (B, C)
        projected = F.linear(unit, self.weight, self.bias)  # (B, D)
        if not self.share:
            return projected
        projected = F.normalize(projected, dim=1) * (1 - self.share) ** 0.5
        return torch.cat([projected, unit * self.share**0.5], dim=1)  # (B, D + C)

    @property
    def dim(self) -> int:
        """The length of its vectors."""
        return self.outputs + (self.inputs if self.share else 0)

    @property
    def description(self) -> dict[str, Any]:
        """For the embedder's configuration; `build_projection` reads it."""
        return {
            "form": FORM,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "frozen_share": self.share,
        }

    def joined(self, frozen_share: float) -> "Projection":
        """A copy with the same weights and another frozen share."""
        copy = Projection(self.inputs, self.outputs, frozen_share=frozen_share)
        copy.load_state_dict(self.state_dict())
        return copy.to(self.weight.device)


def project(projection: nn.Module, vectors: np.ndarray) -> torch.Tensor:
    """(N, D) of length 1, on the CPU, whatever the device of the projection."""
    with torch.inference_mode():
        device = next(projection.parameters()).device
        parts = torch.from_numpy(np.asarray(vectors, np.float32)).split(ROWS)
        found = [F.normalize(projection(part.to(device)), dim=1).cpu() for part in parts]
    return torch.cat(found).clone()


class WithClasses(nn.Module):
    """A projection joined with the probabilities of the training classes.

    classes: gives the logarithms of the probabilities, up to a constant. share: of the
    probabilities in a joined vector's squared length, and so in a cosine. Vectors have D numbers
    and one for each class.
    """

    def __init__(self, base: Projection, classes: Projection, *, share: float) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise ModelError(f"share of classes {share}: choose one between 0 and 1")
        self.base, self.classes, self.share = base, classes, float(share)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, D + classes)."""
        projected = F.normalize(self.base(pooled), dim=1)  # (B, D)
        probabilities = F.normalize(self.classes(pooled).softmax(dim=1), dim=1)
        return torch.cat(
            [projected * (1 - self.share) ** 0.5, probabilities * self.share**0.5], dim=1
        )

    @property
    def dim(self) -> int:
        """The length of its vectors."""
        return self.base.dim + self.classes.dim

    @property
    def description(self) -> dict[str, Any]:
        """For the embedder's configuration; `build_projection` reads it."""
        return {
            "form": WITH_CLASSES,
            "base": self.base.description,
            "classes": self.classes.description,
            "share": self.share,
        }


class Beside(nn.Module):
    """A projection of the first numbers of joined vectors, and the `others` as they are.

    The first part keeps its length, so that a cosine stays the weighted mean of those of the parts.
    """

    def __init__(self, base: nn.Module, others: int) -> None:
        super().__init__()
        self.base, self.others = base, others

    def forward(self, joined: Tensor) -> Tensor:
        """(B, D + others)."""
        first, others = joined[:, : -self.others], joined[:, -self.others :]
        length = first.norm(dim=1, keepdim=True)
        return torch.cat([F.normalize(self.base(first), dim=1) * length, others], dim=1)

    @property
    def dim(self) -> int:
        """The length of its vectors."""
        return int(self.base.dim) + self.others  # type: ignore[arg-type]

    @property
    def description(self) -> dict[str, Any]:
        """For the embedder's configuration; `build_projection` reads it."""
        return {"form": BESIDE, "base": self.base.description, "others": self.others}


class Chained(nn.Module):
    """Several projections in a row, such as a trained head and a whitening."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, D) of the last projection."""
        for part in self.parts:
            pooled = part(pooled)  # each normalises its input itself
        return pooled

    @property
    def dim(self) -> int:
        """The length of the last projection's vectors."""
        return int(self.parts[-1].dim)  # type: ignore[arg-type]

    @property
    def description(self) -> dict[str, Any]:
        """For the embedder's configuration; `build_projection` reads it."""
        return {"form": CHAINED, "parts": [part.description for part in self.parts]}


def composed(first: nn.Module, second: Projection) -> nn.Module:
    """`first` and then `second`; only `second` if the first is the identity."""
    if isinstance(first, nn.Identity):
        return second
    parts = list(first.parts) if isinstance(first, Chained) else [first]
    return Chained(*parts, second)


def build_projection(description: dict[str, Any] | None) -> nn.Module:
    """The projection of an embedder's configuration, before its weights are loaded."""
    if description is None:
        return nn.Identity()
    if description.get("form") == CHAINED:
        return Chained(*(build_projection(part) for part in description["parts"]))
    if description.get("form") == BESIDE:
        return Beside(build_projection(description["base"]), int(description["others"]))
    if description.get("form") == WITH_CLASSES:
        return WithClasses(
            _linear(description["base"]),
            _linear(description["classes"]),
            share=float(description["share"]),
        )
    return _linear(description)


def _linear(description: dict[str, Any]) -> Projection:
    if description.get("form") != FORM:
        raise ModelError(
            f"projection form {description.get('form')!r}: this version of vizsla reads {FORM}, "
            f"{CHAINED}, {WITH_CLASSES} and {BESIDE}; use the version that saved it"
        )
    return Projection(
        int(description["inputs"]),
        int(description["outputs"]),
        frozen_share=float(description["frozen_share"]),
    )


def save_projection(projection: nn.Module, path: Path) -> None:
    """Writes weights and form to one file; `load_projection` reads it."""
    from safetensors.torch import save_file

    state = {name: tensor.contiguous() for name, tensor in projection.state_dict().items()}
    with storage.writing(path) as temporary:
        save_file(state, temporary, metadata={"projection": json.dumps(projection.description)})


def load_projection(path: Path) -> nn.Module:
    """What `save_projection` wrote. StorageError, ModelError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            projection = build_projection(json.loads(file.metadata()["projection"]))
            names = file.keys()  # of tensors; it is no dict
            projection.load_state_dict({name: file.get_tensor(name) for name in names})
    except OSError as error:
        raise storage.storage_error("read", path, error) from error
    except (SafetensorError, TypeError, KeyError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} is no saved projection, or is damaged: repeat the run") from error
    return projection.eval()


def identity_or_pca(vectors: np.ndarray, dim: int | None = None) -> Projection:
    """The start of a head on vectors (N, C): the identity for D = C, else their PCA."""
    inputs = vectors.shape[1]
    projection = Projection(inputs, dim or inputs)
    if dim and dim != inputs:
        mean, axes = pca(vectors, dim)
        _set(projection, axes, -axes @ mean)
    return projection


def centred(projection: Projection, vectors: np.ndarray) -> Projection:
    """The same with a bias that maps the mean of unit(vectors) to 0. In place."""
    unit = torch.as_tensor(_unit(vectors)).to(projection.weight)
    with torch.no_grad():
        projection.bias.copy_(-(unit @ projection.weight.T).mean(0))
    return projection


def pca(vectors: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (C,) and the first `dim` axes (D, C) of the unit vectors, float64."""
    unit = _unit(vectors)
    if not 1 <= dim <= min(unit.shape):
        raise DataError(
            f"{dim} dimensions from {len(unit)} vectors of {unit.shape[1]}: "
            f"choose from 1 to {min(unit.shape)}"
        )
    mean = unit.mean(axis=0)
    _, _, axes = np.linalg.svd(unit - mean, full_matrices=False)
    return mean, axes[:dim]


def whitening(vectors: np.ndarray, kind: str = "shrunk", dim: int | None = None) -> Projection:
    """PCA of vectors (N, C), then axes of equal variance (Jégou and Chum, 2012): C → D.

    kind "plain" uses the variances as they are, so at most N - 1 axes; "shrunk" moves them towards
    their mean by the share that Ledoit and Wolf (2004) estimate; "none" is only the PCA.
    dim: None keeps all axes. DataError if there are too few vectors.
    """
    if kind not in WHITENINGS:
        raise UsageError(f"whitening {kind!r}: choose one of {', '.join(WHITENINGS)}")
    unit = _unit(vectors)
    N, C = unit.shape
    if N < 2:
        raise DataError(
            f"{N} training vectors: whitening needs at least two, and should have thousands"
        )
    mean = unit.mean(axis=0)
    centred_rows = unit - mean
    values, axes = np.linalg.eigh(centred_rows.T @ centred_rows / N)
    values, axes = values[::-1].clip(min=0), axes[:, ::-1].T  # descending; axes in rows
    rank = int((values > 1e-9 * values[0]).sum()) if values[0] > 0 else 0
    most = C if kind == "shrunk" else min(rank, N - 1)
    dim = most if dim is None else dim
    if not 1 <= dim <= most:
        raise DataError(
            f"{dim} dimensions of {kind} whitening from {N} vectors of {C}: choose from 1 to {most}"
            + ("" if kind == "shrunk" else ", give more training images, or use shrunk")
        )
    if kind == "none":
        weight = axes[:dim]
    else:
        from sklearn.covariance import ledoit_wolf_shrinkage  # takes a second to import

        level = values.mean()
        share = ledoit_wolf_shrinkage(centred_rows, assume_centered=True) if kind == "shrunk" else 0
        shrunk = (1 - share) * values + share * level
        weight = axes[:dim] * (level / np.maximum(shrunk[:dim], 1e-12))[:, None] ** 0.5
    projection = Projection(C, dim)
    _set(projection, weight, -weight @ mean)
    return projection


@dataclass(frozen=True, eq=False)
class ClassSpread:
    """The spread of unit vectors within classes and between them.

    mean: (C,). within: (C, C), the covariance within classes. centers: (classes, C), class means
    minus `mean`. shares: (classes, 1), of the vectors. basis: (C, original C), of the vectors'
    span, if they are longer than there are vectors, and LONG; None: their own numbers.
    """

    mean: np.ndarray
    within: np.ndarray
    centers: np.ndarray
    shares: np.ndarray
    basis: np.ndarray | None = None
    _whitening: dict[float, np.ndarray] = field(default_factory=dict)

    @property
    def between(self) -> np.ndarray:
        """(classes, C): betweenᵀ · between is the between-class covariance."""
        weighted: np.ndarray = self.centers * self.shares**0.5
        return weighted

    @property
    def level(self) -> float:
        """The mean variance within classes."""
        return max(float(np.diagonal(self.within).mean()), 1e-12)

    def whitening_matrix(self, shrinkage: float) -> np.ndarray:
        """(C, C): makes the within-class variance the same in all directions, and keeps its mean.

        It is triangular, which takes a tenth of the time of a symmetric one; their vectors have the
        same cosines.
        """
        if shrinkage not in self._whitening:
            shrunk = (1 - shrinkage) * self.within
            shrunk[np.diag_indices_from(shrunk)] += max(shrinkage, 1e-9) * self.level
            factor = torch.linalg.cholesky(torch.from_numpy(shrunk))
            level = torch.eye(len(shrunk), dtype=factor.dtype) * self.level**0.5
            inverse = torch.linalg.solve_triangular(factor, level, upper=False)
            self._whitening[shrinkage] = inverse.numpy()
        return self._whitening[shrinkage]


def class_spread(vectors: np.ndarray, labels: np.ndarray) -> ClassSpread:
    """The spread of the unit vectors of `vectors` (N, C). labels: (N,) class numbers."""
    unit, basis = _unit(vectors), None
    if unit.shape[1] > max(len(unit), LONG):
        basis = _span(unit)
        unit = unit @ basis.T
    mean = unit.mean(axis=0)
    codes = np.unique(labels, return_inverse=True)[1]
    counts = np.bincount(codes)[:, None]
    sums = np.zeros((len(counts), unit.shape[1]))
    np.add.at(sums, codes, unit)
    within = unit - (sums / counts)[codes]
    return ClassSpread(
        mean, within.T @ within / len(unit), sums / counts - mean, counts / len(unit), basis
    )


def _span(unit: np.ndarray) -> np.ndarray:
    """(N, C): an orthonormal basis of the space that N vectors of length 1 lie in."""
    products = torch.from_numpy(unit @ unit.T)
    products.diagonal().add_(1e-6)  # copies of an image add no direction
    factor = torch.linalg.cholesky(products)
    return torch.linalg.solve_triangular(factor, torch.from_numpy(unit), upper=False).numpy()


def within_class_whitening(spread: ClassSpread, *, shrinkage: float = 0.9) -> Projection:
    """The projection that equalises the variance within classes (WCCN; Hatch et al., 2006).

    shrinkage: 1 only moves the mean to 0; small values trust a covariance of few vectors.
    """
    return _from_mean(spread.whitening_matrix(shrinkage), spread)


def discriminant(spread: ClassSpread, *, shrinkage: float = 0.6, rest: float = 0.3) -> Projection:
    """Within-class whitening, and then each direction weighted by how well it separates classes.

    A direction whose variance between classes is r times that within them gets the weight
    rest + (1 - rest) · (r / (r + 1))^½ (a Wiener filter). For test classes that are the training
    classes: directions that separate only other classes are weakened.
    """
    white = spread.whitening_matrix(shrinkage)
    _, lengths, axes = np.linalg.svd(spread.between @ white.T, full_matrices=False)  # (., C) rows
    ratios = lengths**2 / spread.level
    gains = (1 - rest) * (ratios / (ratios + 1)) ** 0.5
    return _from_mean(rest * white + (axes.T * gains) @ (axes @ white), spread)


def class_logits(spread: ClassSpread, *, shrinkage: float, temperature: float) -> Projection:
    """C → classes: logarithms of the probabilities of classes, up to a constant, by linear
    discriminant analysis with classes that are equally likely.

    shrinkage: of the variance within classes. temperature: a divisor; above 1 it makes
    probabilities less certain, as the many directions of a network's vectors need.
    """
    white = spread.whitening_matrix(shrinkage)
    scale = 1 / (temperature * spread.level)
    centers = spread.centers @ white.T  # (classes, C)
    weight = scale * centers @ white
    return _from_mean(weight, spread, -scale / 2 * (centers**2).sum(axis=1))


def _from_mean(weight: np.ndarray, spread: ClassSpread, bias: np.ndarray | float = 0) -> Projection:
    """x → weight · (x - mean of the vectors) + bias."""
    offset: np.ndarray = bias - weight @ spread.mean
    if spread.basis is not None:
        weight = weight.astype(np.float32) @ spread.basis.astype(np.float32)
    projection = Projection(weight.shape[1], weight.shape[0])
    _set(projection, weight, offset)
    return projection


def _set(projection: Projection, weight: np.ndarray, bias: np.ndarray) -> None:
    with torch.no_grad():
        projection.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
        projection.bias.copy_(torch.from_numpy(np.ascontiguousarray(bias)))


def _unit(vectors: np.ndarray) -> np.ndarray:
    double = np.asarray(vectors, dtype=np.float64)
    return double / np.maximum(np.linalg.norm(double, axis=1, keepdims=True), 1e-12)
