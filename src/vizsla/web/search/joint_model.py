"""Several models that serve as one: a run that fuses them is searched by all of them.

Their vectors are concatenated, as `search.fusion.joined` makes them of a gallery, so that a cosine
is the weighted mean of the models' own.
"""

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from vizsla.data.resize import Framings
from vizsla.model.explain import Explanation
from vizsla.model.projection import AnyProjection, project
from vizsla.search.fusion import searched_as_fused
from vizsla.web.search.batching_model import Model


class JointVector:
    """A vector that is ready when all parts of it are."""

    def __init__(
        self,
        parts: Sequence["Future[np.ndarray]"],
        weights: Sequence[float],
        projection: AnyProjection | None,
    ) -> None:
        self.parts, self.weights, self.projection = parts, weights, projection

    def result(self) -> np.ndarray:
        """(D,) float32 of length 1."""
        pairs = zip(self.parts, self.weights, strict=True)
        found = np.concatenate([part.result() * np.float32(weight**0.5) for part, weight in pairs])
        if self.projection is None:
            return found
        return np.asarray(project(self.projection, found[None]).numpy()[0])


class JointModel:
    """Several models with the interface of `Model`. model_id: of the concatenated vectors.

    method: of `search.fusion.fused`; one that is not in SPREADS orders by the mean of the cosines.
    projection: of the concatenated vectors, if the run has one.
    """

    def __init__(
        self,
        models: Sequence[Model],
        weights: Sequence[float],
        model_id: str,
        method: str = "",
        projection: AnyProjection | None = None,
    ) -> None:
        self.models, self.weights, self.model_id = models, weights, model_id
        self.method, self.projection = method, projection
        self.framing = Framings(tuple(model.framing for model in models))
        self.dim = (
            sum(model.dim for model in models) if projection is None else int(projection.dim)  # type: ignore[arg-type]
        )
        self.name = " + ".join(model.name for model in models)
        self.reads_text = all(model.reads_text for model in models)
        self.background_thread = Model.background_thread

    def images(self, pixels: Sequence[np.ndarray]) -> list[JointVector]:
        """A vector for each image; pixels: of all networks, as `Framings` reads them."""
        split = [self.framing.split(one) for one in pixels]
        by_model = [
            model.images([parts[i] for parts in split]) for i, model in enumerate(self.models)
        ]
        return [
            JointVector(parts, self.weights, self.projection)
            for parts in zip(*by_model, strict=True)
        ]

    def texts(self, words: Sequence[str]) -> list[JointVector]:
        """A vector for each text."""
        by_model = [model.texts(words) for model in self.models]
        return [
            JointVector(parts, self.weights, self.projection)
            for parts in zip(*by_model, strict=True)
        ]

    def searched(self, vector: np.ndarray, sample: np.ndarray) -> np.ndarray:
        """(D,) float32 of length 1, which orders a gallery as the method does. sample: (S, D) of
        its vectors; the order is exact if these are all."""
        dims = [model.dim for model in self.models]
        return searched_as_fused(vector[None], sample, dims, self.weights, self.method)[0]

    def warm_up(self) -> None:
        """Warms up every model."""
        for model in self.models:
            model.warm_up()

    def shown(self, pixels: np.ndarray) -> np.ndarray:
        """The pixels (H, W, 3) of the model that weighs most: `explain` explains these."""
        return self.framing.split(pixels)[self._heaviest]

    def explain(self, query: np.ndarray, result: np.ndarray) -> Explanation:
        """Where two images are similar to the model that weighs most."""
        return self.models[self._heaviest].explain(self.shown(query), self.shown(result))

    @property
    def _heaviest(self) -> int:
        return int(np.argmax(self.weights))

    def close(self) -> None:
        """Closes every model."""
        for model in self.models:
            model.close()
