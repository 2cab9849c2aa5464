"""A split's held-out images → one value a query for any embedder, scored as the evaluation is.

Training takes it as `validate`. Each draw is ranked and evaluated separately; a query that is in
several draws has the mean of its values.
"""

import logging
from typing import Any

import numpy as np

from vizsla.data.images import MAX_PIXELS
from vizsla.data.imageset import ImageSet
from vizsla.data.label_sets import are_sets, share_a_label
from vizsla.data.splits import Draw, Split, draws_record
from vizsla.embed.compute import Compute
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.validation_tensors import ValidationImages
from vizsla.errors import MissingExtraError, ModelError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.options import OPTIMISED
from vizsla.score.truth import Truth
from vizsla.score.whole_gallery import evaluate_ranked
from vizsla.search import exact

log = logging.getLogger("vizsla.train")

PROMPT = "a photo of a {}"
MAX_TEXTS = 1000  # labels that are encoded for every candidate
KEYS = {"map": "map", "top1": "top_k_accuracy@1", "points": "contest_points"}


class Validation:
    """`validation(embedder)` gives (Q,) values, 0…1, of the same queries in each call.

    queries: Q ids. means: the means of all metrics in the last call.
    """

    def __init__(
        self,
        images: ImageSet,
        split: Split,
        compute: Compute,
        *,
        optimise: str = "mean",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if optimise not in OPTIMISED:
            raise UsageError(f"optimise {optimise!r}: choose one of {', '.join(OPTIMISED)}")
        self.optimise, self.compute = optimise, compute
        positions = split.held_out
        place_of = {int(p): i for i, p in enumerate(positions)}
        self.images = images.subset(positions)
        self.labels = [str(label) for label in self.images.labels or []]
        self.draws = [
            (_places(place_of, draw.query), _places(place_of, draw.gallery)) for draw in split.draws
        ]
        self.held_out = ValidationImages(self.images, compute, max_pixels=max_pixels)
        queried = np.unique(np.concatenate([query for query, _ in self.draws]))
        self.queries = [self.images.ids[i] for i in queried]
        self.means: dict[str, float] = {}

    def __call__(self, embedder: Embedder) -> np.ndarray:
        vectors = self.held_out.vectors(embedder)
        sums: dict[str, np.ndarray] = {}
        totals = {key: np.zeros(len(self.queries)) for key in KEYS}
        counts = np.zeros(len(self.queries))
        row_of = {name: i for i, name in enumerate(self.queries)}
        for query, gallery in self.draws:
            found, names = self._scored(vectors, query, gallery, embedder.model_id)
            rows = [row_of[name] for name in names]
            counts[rows] += 1
            for key, values in found.items():
                totals[key][rows] += values
        seen = counts > 0
        sums = {key: total[seen] / counts[seen] for key, total in totals.items()}
        self.means = {key: float(values.mean()) for key, values in sums.items()}
        if embedder.reads_text:
            self.means |= self._text_score(embedder, vectors)
        if self.optimise == "mean":
            return (sums["map"] + sums["top1"]) / 2
        values = sums[self.optimise.replace("-", "")]
        return values / 1000 if self.optimise == "points" else values

    def record(self) -> dict[str, Any]:
        """The number of draws and their sizes."""
        return draws_record(self.images.ids, [Draw(*draw) for draw in self.draws])

    @property
    def chance(self) -> float:
        """The value of a random ranking, nearly: the share of relevant gallery images, which is its
        top-1 and nearly its mean of contest points over 1000."""
        labels = np.array(self.labels)
        shares = [
            share_a_label(labels[query].tolist(), labels[gallery].tolist()).mean(axis=1)
            for query, gallery in self.draws
        ]
        return float(np.concatenate(shares).mean())

    def _text_score(self, embedder: Embedder, vectors: np.ndarray) -> dict[str, float]:
        """The share of the images to which the sentence about their own label is nearest."""
        if are_sets(self.labels):
            return {}
        names = sorted(set(self.labels))
        if not 2 <= len(names) <= MAX_TEXTS:
            return {}
        try:
            texts = embedder.encode_text([PROMPT.format(name.replace("_", " ")) for name in names])
        except (MissingExtraError, ModelError) as error:
            log.info("no text score: %s", error)
            return {}
        nearest = (vectors @ texts.detach().float().cpu().numpy().T).argmax(axis=1)
        right = np.array(names)[nearest] == np.array(self.labels)
        return {"text": float(right.mean())}

    def _scored(
        self, vectors: np.ndarray, query: np.ndarray, gallery: np.ndarray, model_id: str
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        query_set, gallery_set = (
            self._part(vectors, [i for i in side if i not in self.held_out.broken], model_id)
            for side in (query, gallery)
        )
        device = "cpu" if self.compute.device.startswith("mps") else self.compute.device
        ranking = exact.rank(query_set, gallery_set, device=device)
        truth = Truth.from_lists(
            query_set.ids, query_set.labels or [], gallery_set.ids, gallery_set.labels or []
        )
        ks = (1, 5, 10) if len(gallery_set) >= 10 else (1,)
        scores = evaluate_ranked(ranking, truth, query_set, gallery_set, device=device, ks=ks)
        found = {key: scores.metrics[name].values for key, name in KEYS.items()}
        return found, scores.queries

    def _part(self, vectors: np.ndarray, places: list[int], model_id: str) -> Embeddings:
        kept = self.images.subset(places)
        return Embeddings(kept.ids, vectors[places], kept.attributes, model_id)


def _places(place_of: dict[int, int], positions: np.ndarray) -> np.ndarray:
    return np.array([place_of[int(p)] for p in positions])
