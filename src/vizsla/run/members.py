"""A finished run → what is needed to join it with others: its model, ranking and calibration."""

import dataclasses
import functools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.data.imageset import ImageSet
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.local_features import LOCAL
from vizsla.errors import DataError
from vizsla.model.embedder import Embedder, read_config
from vizsla.model.model_card import Origin
from vizsla.run.accepting import (
    CALIBRATION,
    FROZEN_ROLE,
    ROLE,
    ClosedForm,
    Model,
    learn_calibration,
    ranked_by,
    rounds_for,
)
from vizsla.run.config import RunConfig, recorded_config
from vizsla.run.earlier_training import has_seen
from vizsla.run.embedding import Progress, RunEmbedder
from vizsla.run.inputs import folders_of, target_in, truth_in
from vizsla.score.calibration import SURE, Calibration
from vizsla.score.calibration_draws import by_cosine
from vizsla.search.chain import Chain, parse_chain
from vizsla.search.ranking import Ranking
from vizsla.workspace import Run, open_run, result_file_of


@dataclass(frozen=True, eq=False)
class Member:
    """A finished run, to be fused. cache: a folder of vectors that runs share, or None."""

    run: Run
    config: RunConfig
    record: dict[str, Any]
    cache: str | None = None

    @staticmethod
    def of(folder: str | Path, *, cache: str | None = None) -> "Member":
        """The run in this folder. DataError where it fuses several models or was interrupted."""
        opened = open_run(folder)
        if "members" in opened.config:
            raise DataError(f"{folder} is itself made of several models: name their own runs")
        return Member(
            opened, recorded_config(folder), storage.read_json(result_file_of(folder)), cache
        )

    @property
    def name(self) -> str:
        """The model's name, as in the result file."""
        return str(self.record["model_name"])

    @property
    def chain(self) -> Chain:
        """The refinement that this run was ranked with."""
        return parse_chain(self.record.get("refine", {}).get("chain", "none"))

    @functools.cached_property
    def origin(self) -> Origin:
        """Where the weights of its model come from."""
        return Origin(**(read_config(self.run.folder / "embedder").get("origin") or {}))

    @functools.cached_property
    def is_tuned(self) -> bool:
        """Whether it has seen the training images' labels, or may have."""
        if self.record.get("training", {}).get("kept", "frozen") == "frozen":
            return False
        images = folders_of(self.config).training
        if images is None or self.origin.training is None:
            return True
        return has_seen(self.origin, images)

    def rank(self, queries: Sequence[Embeddings], gallery: Sequence[Embeddings]) -> Ranking:
        """A gallery ranked for queries as the run ranked its own, by its model's vectors."""
        features_in = Path(self.cache) if self.cache else self.run.folder / LOCAL
        return ranked_by(self.chain, features_in)(queries, gallery)

    def ranking(self) -> Ranking:
        """The ranking in the run's folder."""
        return Ranking.load(self.run.folder / "ranking.parquet")

    def embeddings(self, role: str) -> Embeddings:
        """The vectors in the run's folder. role: "query" or "gallery"."""
        return Embeddings.open(self.run.folder / "embeddings" / role)

    def calibration(self, progress: Progress | None) -> Calibration:
        """The calibration of its scores, learned once on images that are new to it, and kept."""
        kept = self.run.folder / CALIBRATION
        if kept.exists():
            return Calibration.load(kept)
        data, model = folders_of(self.config), self.model(progress)
        found = learn_calibration(
            self.config, data, target_in(data, truth_in(self.config, data)), [model],
            tuned=self.is_tuned and not isinstance(model, ClosedForm), sure=SURE, rank=self.rank,
            search=by_cosine if self.chain.steps else None, rounds=rounds_for(self.chain),
        )  # fmt: skip
        found.save(kept)
        return found

    def model(self, progress: Progress | None) -> Model:
        """What gives vectors to learn a calibration from."""
        embed = functools.partial(self.calibration_vectors, progress=progress)
        if not self.is_tuned:
            return embed
        embedder, frozen = self.run.folder / "embedder", functools.partial(embed, projected=False)
        return ClosedForm.of(Embedder.load(embedder), self.config, frozen) or embed

    def embed(self, images: ImageSet, role: str, progress: Progress | None) -> Embeddings:
        """Vectors of more images by this run's model, kept in its folder."""
        return self._embedder(progress)(images, role)

    def _embedder(self, progress: Progress | None) -> RunEmbedder:
        config = dataclasses.replace(self.config, cache=self.cache)
        return RunEmbedder.of_finished(self.run, config, progress)

    def calibration_vectors(
        self, images: ImageSet, progress: Progress | None, *, projected: bool = True
    ) -> Embeddings:
        """Vectors to learn a calibration from, kept in its folder until other images are asked for.

        projected: else by the network alone, without a projection.
        """
        embedder = self._embedder(progress)
        embed = embedder if projected else embedder.without_projection
        role = ROLE if projected else FROZEN_ROLE
        try:
            return embed(images, role)
        except DataError:  # those of an earlier call, on other images or by other software
            shutil.rmtree(self.run.folder / "embeddings" / role, ignore_errors=True)
            return embed(images, role)
