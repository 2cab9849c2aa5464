"""An image → the patch tokens or feature map of its embedder's network, as local features.

They are reduced by a PCA that is learned on some of the images and kept beside their vectors.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vizsla.data.images import read_image
from vizsla.embed.cache import VectorCache
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.local_features import LocalFeatures
from vizsla.errors import DataError, ImageError
from vizsla.model.embedder import Embedder
from vizsla.model.explain import grid_of
from vizsla.model.pooling import as_tokens

DIMS = 64  # of a descriptor, at most
LEARNED_ON = 64  # images


class Tokens:
    """See local_features.Extractor. Points are the centres of the cells of what the network sees.

    mean: (C,), axes: (C, d) of the PCA.
    """

    def __init__(self, embedder: Embedder, mean: np.ndarray, axes: np.ndarray) -> None:
        self.embedder, self.mean, self.axes = embedder, mean, axes
        self.side = embedder.preprocess.framing.least_side
        digest = hashlib.sha256(mean.tobytes() + axes.tobytes()).hexdigest()[:16]
        self.space = f"tokens/1 {embedder.model_id} {digest}"

    def __call__(self, image: Image.Image) -> LocalFeatures:
        """One point for each token, row by row."""
        rows, (down, across), (high, wide) = tokens_of(self.embedder, image)
        reduced = (rows - self.mean) @ self.axes
        reduced /= np.maximum(np.linalg.norm(reduced, axis=1, keepdims=True), 1e-6)
        y, x = np.divmod(np.arange(len(rows)), across)
        cell = np.array([wide / across, high / down])
        points = (np.stack([x, y], axis=1) + 0.5) * cell
        return LocalFeatures(
            points.astype(np.float32), reduced.astype(np.float16), (wide, high), float(cell.max())
        )

    @staticmethod
    def of(embedder: Embedder, vectors: Embeddings, folder: str | Path | None) -> "Tokens":
        """The tokens with a PCA of some images of these vectors, which is kept in `folder`."""
        chosen = np.unique(np.linspace(0, len(vectors) - 1, LEARNED_ON).astype(int))
        dim = embedder.backbone.feature_dim
        space = f"token-axes/1 {embedder.model_id} {DIMS}"
        key = hashlib.sha256("\n".join(vectors.ids[i] for i in chosen).encode()).digest()
        cache = None if folder is None else VectorCache(folder)
        kept = {} if cache is None else cache.get(space, [key], dim * (1 + DIMS))
        if key in kept:
            both = kept[key].reshape(1 + DIMS, dim)
        else:
            both = _principal_axes(np.concatenate(list(_sampled(embedder, vectors, chosen))))
            if cache is not None:
                cache.put(space, {key: both.ravel()})
        return Tokens(embedder, both[0], np.ascontiguousarray(both[1:].T))


def tokens_of(
    embedder: Embedder, image: Image.Image
) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """(T, C) float32 tokens of length 1; rows and columns of the grid; height and width in px."""
    embedder.eval()
    device = next((p.device for p in embedder.parameters()), torch.device("cpu"))
    tensor = embedder.preprocess(image).to(device)
    with torch.inference_mode():
        rows = as_tokens(embedder.backbone.features(tensor[None]))[0].cpu().numpy()  # (T, C)
        grid = grid_of(embedder, tensor)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, 1e-6), grid, (tensor.shape[1], tensor.shape[2])


def _sampled(embedder: Embedder, vectors: Embeddings, chosen: np.ndarray) -> list[np.ndarray]:
    found, root = [], vectors.root or vectors.source.root
    for i in chosen:
        if root is None:
            raise DataError("the tokens of images are needed, but their folder is not known")
        try:
            found.append(tokens_of(embedder, read_image(root / vectors.ids[i]))[0])
        except ImageError:
            continue
    if not found:
        raise DataError("the tokens of images are needed, but none of them can be read")
    return found


def _principal_axes(rows: np.ndarray) -> np.ndarray:
    """(1 + DIMS, C) float32: the mean of (n, C) rows, then their axes by falling variance, zeros
    where there are fewer."""
    mean = rows.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov((rows - mean).T.astype(np.float64)))
    axes = vectors[:, ::-1][:, :DIMS].T
    both = np.zeros((1 + DIMS, rows.shape[1]), np.float32)
    both[0], both[1 : 1 + len(axes)] = mean, axes
    return both
