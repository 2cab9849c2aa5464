"""What `best` compares: ways to rank the gallery, tried on the same held-out training images."""

import dataclasses
import hashlib
import importlib.util
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vizsla.choose.refinement import RefinementChoice, choose_chain
from vizsla.choose.validation import (
    EmbeddedDraws,
    Trial,
    Trials,
    ValidationSet,
    embedded_draws,
    mean_nearest_cosine,
    validation_set,
)
from vizsla.data.data_folders import DataFolders
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Draw, held_out, target_of
from vizsla.embed.compute import Compute
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import embed
from vizsla.embed.local_features import LOCAL
from vizsla.embed.projected import projected, projection_makers
from vizsla.embed.runtime import Runtime
from vizsla.embed.shards import MANIFEST
from vizsla.errors import DataError
from vizsla.model.open_model import load_embedder
from vizsla.model.projection import AnyProjection, Beside
from vizsla.options import TuneConfig
from vizsla.progress import Report, waiting
from vizsla.run.config import RunConfig, compute_for
from vizsla.search.chain import Refiner, parse_chain
from vizsla.search.fusion import joined
from vizsla.search.verify import all_features, of_subsets

log = logging.getLogger("vizsla.run")

FEW_QUERIES = 60  # on which slow models are compared first
OF_A_CLASS = 3  # gallery images of each query's class, there


@dataclass(frozen=True)
class Network:
    """One embedder. model: a backbone's name, or the folder of an embedder or of the run that tuned
    it. name: how a tuned one is shown."""

    model: str
    weights: str = "pretrained"
    image_size: int | None = None
    framing: str | None = None
    views: str | None = None
    pooling: str | None = None
    name: str = ""

    def __str__(self) -> str:
        if self.name:
            return self.name
        weights = "" if self.weights == "pretrained" else f"({Path(self.weights).stem})"
        size = f"{self.image_size}px" if self.image_size else ""
        return " ".join(
            filter(None, [self.model, weights, size, self.framing, self.views, self.pooling])
        )

    @property
    def key(self) -> str:
        """A short name for files."""
        content = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def config(self, shared: RunConfig, **changes: Any) -> RunConfig:
        """The run of this network alone, without sheets; without refinement unless given."""
        names = ("model", "weights", "image_size", "framing", "views", "pooling")
        own = {name: getattr(self, name) for name in names}
        return dataclasses.replace(shared, **{**own, "figures": 0, "refine": "none", **changes})


@dataclass(frozen=True)
class Candidate:
    """A way to rank: one network, or the joined vectors of several; then a chain.

    head: of `closed_forms`, a projection of joined vectors. beside: how many of the last networks
    are joined with the projected vectors of the others, and not projected.
    """

    networks: tuple[Network, ...]
    weights: tuple[float, ...] = (1.0,)
    chain: str = "none"
    head: str = "none"
    beside: int = 0

    @property
    def projected(self) -> tuple[Network, ...]:
        """The networks whose vectors the head takes."""
        return self.networks[: len(self.networks) - self.beside]

    @property
    def is_untrained(self) -> bool:
        """Whether it is networks as they are: not tuned, without a head or a chain."""
        return self.head == self.chain == "none" and not any(one.name for one in self.networks)

    @property
    def beside_head(self) -> tuple[Network, ...]:
        """The networks that are joined with the projected vectors."""
        return self.networks[len(self.projected) :]

    @property
    def of_head(self) -> "Candidate":
        """What the head is fitted to, always written in the same way."""
        weights = self.weights[: len(self.projected)]
        shares = tuple(round(weight / sum(weights), 6) for weight in weights)
        return Candidate(self.projected, shares, head=self.head)

    def __str__(self) -> str:
        names = " + ".join(map(str, self.projected))
        others = [f"beside {network}" for network in self.beside_head]
        chosen = [part for part in (self.head, *others, self.chain) if part != "none"]
        return ", ".join([names, *chosen])

    @property
    def readable(self) -> str:
        """In words, with spaces where a long chain may be wrapped."""
        parts = [" + ".join(map(str, self.projected))]
        if self.head != "none":
            parts.append(f"projected by {self.head}")
        parts += [f"joined with {network}" for network in self.beside_head]
        if self.chain != "none":
            chain = self.chain.replace("+", " + ").replace(",", ", ")
            parts.append(f"re-ranked by {chain}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `of` reads it."""
        return dataclasses.asdict(self)

    @staticmethod
    def of(content: dict[str, Any]) -> "Candidate":
        """What `to_dict` wrote."""
        networks = tuple(Network(**one) for one in content["networks"])
        return Candidate(
            networks, tuple(content["weights"]), content["chain"], content.get("head", "none"),
            content.get("beside", 0),
        )  # fmt: skip


class HeldOut:
    """The training images that are held out from every training, and candidates' scores on them.

    config: as trainings hold images out, so that these are new to tuned networks too. others: the
    training images that are not held out. times: measured seconds, which the journal keeps: of one
    image, by the key of each network; and of fitting the `heads` of joined vectors.
    """

    config: TuneConfig
    others: ImageSet
    drawn: EmbeddedDraws
    on: ValidationSet
    trials: Trials

    def __init__(
        self, shared: RunConfig, data: DataFolders, folder: Path, times: dict[str, float]
    ) -> None:
        self.shared, self.data, self.folder, self.times = shared, data, folder, times
        self._measured: dict[str, int] = {}  # key → of how many images the time is, at least
        self._heads: dict[Candidate, AnyProjection] = {}
        self._values: dict[Candidate, Trial] = {}
        self._runtimes: dict[str, Runtime] = {}
        self._computes: dict[str, Compute] = {}

    def draw(
        self, config: TuneConfig, first: Network, test: Sequence[np.ndarray], report: Report
    ) -> None:
        """Draws queries and galleries like the test part, whose vectors by `first` are given."""
        images, target = self.data.training, target_of(self.data.query, self.data.gallery)
        assert images is not None
        self.config = config
        self.others = images.subset(held_out(images, config, target).training)
        self.drawn = embedded_draws(
            images, config, target,
            frozen=False,
            embed=lambda images: self.embedded(first, images, "held-out", report),
            nearest_cosine=mean_nearest_cosine(*test, same_set=self.data.one_set),
            progress=lambda done, total: report("drawing held-out images", done, total),
        )  # fmt: skip
        self.on = self.drawn.validation_set
        self.trials = Trials(self.on, config.optimise)

    # ── vectors ──────────────────────────────────────────────────────────────────────────────────

    def compute(self, network: Network) -> Compute:
        """What the network computes with: `auto` is resolved once, so that vectors are shared."""
        if network.key not in self._computes:
            self.runtime(network)
        return self._computes[network.key]

    def runtime(self, network: Network) -> Runtime:
        """What embeds with this network; loaded once."""
        if network.key not in self._runtimes:
            config = network.config(self.shared)
            embedder = load_embedder(config, seed=config.seed)
            sets = filter(None, (self.data.query, self.data.gallery, self.data.training))
            compute = compute_for(config, embedder, self.data, sum(map(len, sets)))
            self._computes[network.key] = compute
            self._runtimes[network.key] = Runtime(embedder, compute)
        return self._runtimes[network.key]

    def forget(self, network: Network) -> None:
        """Frees the memory of a network that is no longer needed for embedding."""
        self._runtimes.pop(network.key, None)

    def is_embedded(self, network: Network, role: str) -> bool:
        """Whether the vectors are on disk, so that `embedded` only reads them."""
        return (self._vectors_folder(network, role) / MANIFEST).exists()

    def _vectors_folder(self, network: Network, role: str) -> Path:
        return self.folder / "vectors" / network.key / role

    def embedded(self, network: Network, images: ImageSet, role: str, report: Report) -> Embeddings:
        """Vectors of training images, kept in the folder. role: a name for these images."""
        out = self._vectors_folder(network, role)
        if self.is_embedded(network, role):
            return Embeddings.open(out, root=images.folder)
        is_new = network.key not in self.times
        runtime = self.timed(network, report)
        before, started = runtime.images, time.monotonic()

        def measured() -> int:
            new = runtime.images - before  # the others come from the cache
            if new and (is_new or 0 < self._measured.get(network.key, 0) <= new):
                self.times[network.key] = (time.monotonic() - started) / new
            return new

        def progress(done: int, total: int) -> None:
            measured()  # known even if this is stopped: the rest takes a part of the time
            report(f"embedding {network}", done, total)

        vectors = embed(
            images, runtime.embedder, out, runtime=runtime, cache=self.shared.cache,
            max_pixels=self.shared.max_pixels, progress=progress,
        )  # fmt: skip
        self._measured[network.key] = max(self._measured.get(network.key, 0), measured())
        return vectors

    def timed(self, network: Network, report: Report) -> Runtime:
        """What embeds with this network, of which the time of an image is then known, at least
        without reading it: also where all vectors are in the cache."""
        with waiting(report, f"loading {network}"):
            runtime = self.runtime(network)
            if network.key not in self.times:
                batch = runtime.blank_batch()
                runtime.submit(batch).result()  # its start is not counted
                started = time.monotonic()
                runtime.submit(batch).result()
                self.times[network.key] = (time.monotonic() - started) / len(batch)
        return runtime

    def vectors(self, candidate: Candidate, report: Report) -> Embeddings:
        """(N, D) of the held-out images, by all of the candidate's networks."""
        found = self._joined(candidate, self.drawn.images, "held-out", report)
        if candidate.head != "none":
            if candidate.of_head not in self._heads:
                self.fit_heads(candidate.of_head, report, only=candidate.head)
            head = self._heads[candidate.of_head]
            if candidate.beside:
                others = [
                    self.embedded(one, self.drawn.images, "held-out", report).dim
                    for one in candidate.beside_head
                ]
                head = Beside(head, sum(others))
            found = projected(found, head, candidate.head)
        found = found.of_images(self.drawn.vectors.ids)
        if len(found) < len(self.drawn.vectors):
            broken = min({*self.drawn.vectors.ids} - {*found.ids})
            raise DataError(f"{candidate} cannot read {broken}, and other models could: remove it")
        return found

    def _joined(
        self, candidate: Candidate, images: ImageSet, role: str, report: Report
    ) -> Embeddings:
        parts = [self.embedded(one, images, role, report) for one in candidate.networks]
        if len(parts) == 1:
            return parts[0]
        return dataclasses.replace(joined(parts, candidate.weights), root=parts[0].root)

    @property
    def not_embedded(self) -> int:
        """How many training images only a complete run with a head embeds."""
        assert self.data.training is not None
        return len(self.data.training) - len(self.others) - len(self.drawn.images)

    def forget_heads(self, *kept: Candidate | None) -> None:
        """Frees the memory of all other heads."""
        of_heads = [one.of_head for one in kept if one is not None]
        self._heads = {one: head for one, head in self._heads.items() if one in of_heads}

    def fit_heads(
        self, candidate: Candidate, report: Report, *, only: str | None = None
    ) -> list[Candidate]:
        """The candidate with each projection of its joined vectors, fitted to the training images
        that are not held out. only: the name of the one to fit."""
        vectors = self._joined(candidate, self.others, "others", report)
        started = time.monotonic()
        makers = projection_makers(vectors)
        found = []
        for i, (name, make) in enumerate(makers.items()):
            report("fitting heads", i, len(makers))
            if only in (None, name):
                found.append(dataclasses.replace(candidate, head=name, chain="none"))
                self._heads[found[-1].of_head] = make()
        self.times["heads"] = max(self.times.get("heads", 0.0), time.monotonic() - started)
        return found

    # ── values ───────────────────────────────────────────────────────────────────────────────────

    def trial(self, candidate: Candidate, report: Report) -> Trial:
        """The candidate's values on all draws."""
        if candidate not in self._values:
            vectors = self.vectors(candidate, report)
            local = self.folder / LOCAL
            self._values[candidate] = _tried(
                self.trials, str(candidate), vectors, candidate.chain, local, report
            )
        return self._values[candidate]

    def first_impression(self, network: Network, report: Report) -> float:
        """Its value on few images."""
        images = self.drawn.images
        labels = np.array([str(label) for label in images.labels or []])
        draw = _small_draw(self.drawn.draws[0], labels, self.config.seed)
        few = images.subset(np.unique(np.concatenate([draw.query, draw.gallery])))
        vectors = self.embedded(network, few, "few", report)
        trials = Trials(validation_set(images, vectors.ids, [draw]), self.config.optimise)
        return _tried(trials, str(network), vectors, "none", None, report).value

    def chosen_chain(
        self, candidate: Candidate, report: Report, *, draws: int | None, verify: bool
    ) -> RefinementChoice:
        """The chain that is best after the candidate's cosines. draws: how many are used. verify:
        whether points are compared too, if OpenCV is installed."""
        vectors, on = self.vectors(candidate, report), self.on
        verify = verify and importlib.util.find_spec("cv2") is not None
        if draws is not None:
            on = on.first_draws(draws)
        return choose_chain(
            vectors, on, optimise=self.config.optimise, uses=self.shared.refine_uses,
            features=all_features(vectors, self.folder / LOCAL) if verify else None,
            progress=lambda done, total: report("trying refinements", done, total),
        )  # fmt: skip


def _tried(
    trials: Trials, name: str, vectors: Embeddings, chain: str, local: Path | None, report: Report
) -> Trial:
    parsed = parse_chain(chain)
    features = all_features(vectors, local) if parsed.verify else None
    rows, positions = vectors.vectors, []
    for i, draw in enumerate(trials.on.draws):
        report("ranking held-out images", i, len(trials.on.draws))
        refiner = Refiner(
            rows[draw.query], rows[draw.gallery],
            features=features and of_subsets(features, draw.query, draw.gallery),
        )  # fmt: skip
        positions.append(refiner.top_k(parsed, len(draw.gallery))[0])
    return trials.add(name, positions, parsed.uses)


def _small_draw(draw: Draw, labels: np.ndarray, seed: int) -> Draw:
    """Some of the queries, some gallery images of their classes, and as many others."""
    rng = np.random.default_rng((seed, 91))
    query = np.sort(rng.permutation(draw.query)[:FEW_QUERIES])
    gallery = rng.permutation(draw.gallery)
    own: list[int] = []
    for label in np.unique(labels[query]):
        own += gallery[labels[gallery] == label][:OF_A_CLASS].tolist()
    others = [i for i in gallery.tolist() if i not in own][:FEW_QUERIES]
    return Draw(query, np.array(sorted([*own, *others])))
