"""Finished runs → one ranking, fused from their scores, ranks or vectors."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vizsla import storage
from vizsla.choose.fusion_weights import WeightsChoice, choose_weights
from vizsla.choose.refinement import STAGE, RefinementChoice, choose_chain
from vizsla.choose.validation import (
    EmbeddedDraws,
    embedded_draws,
    mean_nearest_cosine,
    validation_set,
)
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import training_part
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.model.projection import WHITENINGS, project, whitening
from vizsla.run.accepting import CALIBRATION, ROLE, learn_calibration
from vizsla.run.config import RunConfig, again
from vizsla.run.embedding import Progress, RunEmbedder
from vizsla.run.inputs import folders_of, target_in, truth_in
from vizsla.run.seen_or_new import by_vectors
from vizsla.score.calibration import SURE, Calibration
from vizsla.search.chain import QUERIES, Chain, parse_chain, rank_refined
from vizsla.search.fusion import (
    CALIBRATED,
    METHODS,
    Probability,
    checked_weights,
    fused,
    joined,
)
from vizsla.search.ranking import Ranking
from vizsla.workspace import Run, open_run, result_file_of

log = logging.getLogger("vizsla.run")

CONCAT, AUTO = "concat", "auto"


@dataclass(frozen=True)
class FusionConfig:
    """method: of search/fusion.py, or concat. weights: auto, one for each model, or equal ones.

    For concat only: whiten, and the chain that refines the concatenated vectors.
    """

    method: str = "zscore"
    weights: str | list[float] | None = None
    whiten: str = "shrunk"
    refine: str = "none"
    refine_uses: str = QUERIES

    def check(self, models: int) -> None:
        """UsageError before the work."""
        if self.method not in (*METHODS, CONCAT):
            raise UsageError(
                f"--fusion {self.method}: choose one of {', '.join((*METHODS, CONCAT))}"
            )
        if self.whiten not in WHITENINGS:
            raise UsageError(
                f"--fusion-whiten {self.whiten}: choose one of {', '.join(WHITENINGS)}"
            )
        if self.weights == AUTO and self.method == CONCAT:
            raise UsageError(
                "--fusion-weights auto is for scores and ranks: leave it out of concat"
            )
        if self.weights != AUTO and not isinstance(self.weights, str):
            checked_weights(self.weights, models)
        if self.refine != AUTO:
            parse_chain(self.refine, uses=self.refine_uses)


@dataclass(frozen=True, eq=False)
class Member:
    """A finished run, to be fused."""

    run: Run
    config: RunConfig
    record: dict[str, Any]

    @staticmethod
    def of(folder: str | Path) -> "Member":
        """The run in this folder. DataError where it fuses several models or was interrupted."""
        opened = open_run(folder)
        if "members" in opened.config:
            raise DataError(f"{folder} is itself made of several models: name their own runs")
        return Member(opened, again(folder), storage.read_json(result_file_of(folder)))

    @property
    def name(self) -> str:
        """The model's name, as in the result file."""
        return str(self.record["model_name"])

    @property
    def chain(self) -> Chain:
        """The refinement that this run was ranked with."""
        return parse_chain(self.record.get("refine", {}).get("chain", "none"))

    @property
    def is_tuned(self) -> bool:
        """Whether it has seen the training images' labels."""
        return self.record.get("training", {}).get("kept", "frozen") != "frozen"

    def ranking(self) -> Ranking:
        """The ranking in the run's folder."""
        return Ranking.load(self.run.folder / "ranking.parquet")

    def embeddings(self, role: str) -> Embeddings:
        """The vectors in the run's folder. role: "query" or "gallery"."""
        return Embeddings.open(self.run.folder / "embeddings" / role)

    def calibration(self, progress: Progress | None) -> Calibration:
        """What its scores mean, learned once on images that it has not seen, and kept with it."""
        kept = self.run.folder / CALIBRATION
        if kept.exists():
            return Calibration.load(kept)
        data = folders_of(self.config)
        found = learn_calibration(
            self.config, data, target_in(data, truth_in(self.config, data)),
            [lambda images: self.embed(images, ROLE, progress)],
            tuned=self.is_tuned, sure=SURE,
            rank=lambda queries, gallery: rank_refined(queries[0], gallery[0], self.chain),
        )  # fmt: skip
        found.save(kept)
        return found

    def embed(self, images: ImageSet, role: str, progress: Progress | None) -> Embeddings:
        """Vectors of more images by this run's model, kept in its folder."""
        return RunEmbedder.of_finished(self.run, self.config, progress)(images, role)


# ── fusing runs ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Fused:
    """weights: one for each model. weights_choice, refinement_choice: how they and the chain of
    concat were chosen, if `auto`."""

    ranking: Ranking
    weights: list[float]
    weights_choice: WeightsChoice | None = None
    chain: Chain = dataclasses.field(default_factory=Chain)
    refinement_choice: RefinementChoice | None = None

    def settled(self, fusion: FusionConfig) -> FusionConfig:
        """The same way to fuse, with every `auto` as it was chosen."""
        refine = str(self.chain) if fusion.refine == AUTO else fusion.refine
        return dataclasses.replace(fusion, weights=self.weights, refine=refine)

    def record(self, fusion: FusionConfig) -> dict[str, Any]:
        """How the runs were fused, for the result file."""
        return {
            "method": fusion.method,
            "weights": [round(w, 4) for w in self.weights],
            "whiten": fusion.whiten if fusion.method == CONCAT else None,
            "chosen_on": self.weights_choice and self.weights_choice.record(),
        }


def fuse_runs(
    members: Sequence[Member], fusion: FusionConfig, progress: Progress | None = None
) -> Fused:
    """One ranking of runs on the same images. DataError if they are on others."""
    fusion.check(len(members))
    _require_same_data(members)
    if fusion.method == CONCAT:
        return _concatenated(members, fusion, progress)
    choice = None
    if fusion.weights == AUTO:
        choice = _chosen_weights(members, fusion.method, progress)
        weights = choice.weights
    else:
        weights = _given(fusion, len(members))
    ranking = fused(
        [member.ranking() for member in members], method=fusion.method, weights=weights,
        probabilities=_probabilities(members, fusion.method, progress),
    )  # fmt: skip
    return Fused(ranking, weights, choice)


def _probabilities(
    members: Sequence[Member], method: str, progress: Progress | None
) -> list[Probability] | None:
    """What turns each member's scores into probabilities; None for other methods."""
    if method != CALIBRATED:
        return None
    return [member.calibration(progress).probability for member in members]


def members_of(folder: str | Path) -> tuple[list[Member], FusionConfig]:
    """The runs that a joint run fused (none for a run of one model), and how: every `auto` as it
    was chosen."""
    joint = open_run(folder)
    recorded = joint.config
    if "members" not in recorded:
        return [], FusionConfig()
    found = [Member.of(Run(joint.home, one["run"]).folder) for one in recorded["members"]]
    fusion = FusionConfig(**recorded["fusion"])
    if joint.result_file is not None:
        record = storage.read_json(joint.result_file)
        if fusion.weights == AUTO:
            fusion = dataclasses.replace(fusion, weights=record["fusion"]["weights"])
        if fusion.refine == AUTO:
            fusion = dataclasses.replace(fusion, refine=record["refine"]["chain"])
    return found, fusion


def ranker(
    members: Sequence[Member], fusion: FusionConfig, progress: Progress | None = None
) -> Callable[[Sequence[Embeddings], Sequence[Embeddings]], Ranking]:
    """What ranks the vectors of all models, of some queries and a gallery, as the joint run did."""
    weights = _given(fusion, len(members))
    probabilities = _probabilities(members, fusion.method, progress)
    learned_on = None
    if fusion.method == CONCAT and fusion.whiten != "none":
        data = folders_of(members[0].config)
        images = training_part(data.training, members[0].config.data, "--fusion concat")
        learned_on = joined([m.embed(images, "training", progress) for m in members], weights)

    def rank(queries: Sequence[Embeddings], gallery: Sequence[Embeddings]) -> Ranking:
        if fusion.method != CONCAT:
            parts = [
                rank_refined(own_queries, own_gallery, member.chain)
                for own_queries, own_gallery, member in zip(queries, gallery, members, strict=True)
            ]
            return fused(parts, method=fusion.method, weights=weights, probabilities=probabilities)
        both = [joined(queries, weights), joined(gallery, weights)]
        if learned_on is not None:
            both = _whitened(both, learned_on.vectors, fusion.whiten)
        return rank_refined(both[0], both[1], parse_chain(fusion.refine, uses=fusion.refine_uses))

    return rank


def _given(fusion: FusionConfig, models: int) -> list[float]:
    assert not isinstance(fusion.weights, str)
    return checked_weights(fusion.weights, models)


def _require_same_data(members: Sequence[Member]) -> None:
    first = members[0]
    for other in members[1:]:
        if other.record.get("data_id") != first.record.get("data_id"):
            raise DataError(
                f"{other.run.folder} ranked other images than {first.run.folder}: fuse runs of one "
                "data set, or rankings (files), which may differ"
            )


def _chosen_weights(
    members: Sequence[Member], method: str, progress: Progress | None
) -> WeightsChoice:
    drawn = _validation(members, progress)
    others = [m.embed(drawn.images, "validation-fusion", progress) for m in members[1:]]
    chains = [member.chain for member in members]
    optimise = members[0].config.training.optimise
    return choose_weights(
        [drawn.vectors, *others], chains, drawn, method=method, optimise=optimise,
        probabilities=_probabilities(members, method, progress),
    )  # fmt: skip


def _validation(members: Sequence[Member], progress: Progress | None) -> EmbeddedDraws:
    """Labelled images that no member was trained on, with the first one's vectors."""
    tuned = [member for member in members if member.is_tuned]
    first = members[0]
    config = (tuned or [first])[0].config
    if any(_splitting(m.config) != _splitting(config) for m in tuned):
        raise DataError(
            "the models were tuned with different images held out, so that no image is new to all: "
            "tune them with the same --validate-on and --seed, or give --fusion-weights"
        )
    data = folders_of(config)
    images = training_part(data.training, config.data, "--fusion-weights auto")
    test = [first.embeddings(role) for role in ("query", "gallery")]
    role = "validation-fusion"
    if not tuned:
        config = by_vectors(
            config, images, lambda part, role: first.embed(part, role, progress), role, test
        )
    return embedded_draws(
        images,
        config.training,
        target_in(data, truth_in(config, data)),
        frozen=not tuned,
        embed=lambda images: first.embed(images, role, progress),
        nearest_cosine=mean_nearest_cosine(test[0].vectors, test[1].vectors),
    )


def _splitting(config: RunConfig) -> tuple[Any, ...]:
    """What decides which images a training holds out."""
    options = config.training
    return (
        options.validate_on, options.split_by, options.query_domain, options.gallery_domain,
        options.share, options.draws, options.seed, config.exclude,
    )  # fmt: skip


def _concatenated(
    members: Sequence[Member], fusion: FusionConfig, progress: Progress | None
) -> Fused:
    """The models' vectors concatenated, whitened by those of the training images, then refined."""
    weights = _given(fusion, len(members))
    config = members[0].config
    queries, gallery = (
        joined([member.embeddings(role) for member in members], weights)
        for role in ("query", "gallery")
    )
    choice = None
    if fusion.whiten != "none" or fusion.refine == AUTO:
        needed_by = "--refine auto" if fusion.whiten == "none" else "--fusion concat"
        images = training_part(folders_of(config).training, config.data, needed_by)
        training = joined([m.embed(images, "training", progress) for m in members], weights)
        if fusion.whiten != "none":
            parts = (queries, gallery, training)
            queries, gallery, training = _whitened(parts, training.vectors, fusion.whiten)
        if fusion.refine == AUTO:
            drawn = _validation(members, progress)
            validation = validation_set(
                drawn.images, training.ids, drawn.draws,
                relative_share=drawn.relative_share, test_queries=drawn.test_queries,
            )  # fmt: skip
            choice = choose_chain(
                training, validation, optimise=config.training.optimise, uses=fusion.refine_uses,
                progress=progress and (lambda done, total: progress(STAGE, done, total)),
            )  # fmt: skip
    chain = choice.chain if choice else parse_chain(fusion.refine)
    one_set = folders_of(config).one_set
    ranking = rank_refined(queries, gallery, chain, same_set=one_set)
    ranking.origin["fusion"] = {"method": CONCAT, "weights": weights, "whiten": fusion.whiten}
    return Fused(ranking, weights, None, chain, choice)


def _whitened(parts: Sequence[Embeddings], learned_on: np.ndarray, kind: str) -> list[Embeddings]:
    projection = whitening(learned_on, kind)
    return [
        dataclasses.replace(
            part,
            vectors=project(projection, part.vectors).numpy(),
            model_id=f"{part.model_id}/{kind}",
        )
        for part in parts
    ]
