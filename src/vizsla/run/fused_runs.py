"""Finished runs → one ranking, fused from their scores, ranks or vectors."""

import dataclasses
import functools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vizsla import storage
from vizsla.choose.fusion_choice import FusionChoice, choose_fusion
from vizsla.choose.projection_choice import choose_projection, share_held_out
from vizsla.choose.refinement import STAGE, RefinementChoice, choose_chain
from vizsla.choose.validation import (
    EmbeddedDraws,
    embedded_draws,
    mean_nearest_cosine,
    validation_set,
)
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import NEW, SPLITTING, held_out, training_part
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.projected import fitted_projection, projected, projection_makers
from vizsla.errors import DataError, UsageError
from vizsla.model.projection import WHITENINGS, AnyProjection, Beside
from vizsla.options import FUSION_WHITENINGS
from vizsla.run.accepting import (
    Accept,
    ClosedForm,
    Model,
    calibration_for,
    require_no_whitening,
    with_allowed_evidence,
    with_same_evidence,
)
from vizsla.run.config import RunConfig
from vizsla.run.earlier_training import MAY_HAVE_SEEN, held_out_before
from vizsla.run.embedding import Progress
from vizsla.run.inputs import folders_of, target_in, truth_in
from vizsla.run.members import Member
from vizsla.run.validate_on import by_vectors
from vizsla.score.calibration import Calibration
from vizsla.score.calibration_draws import Rank, by_cosine
from vizsla.search.chain import QUERIES, Chain, parse_chain, rank_refined
from vizsla.search.fusion import (
    CALIBRATED,
    METHODS,
    Probability,
    checked_weights,
    fused,
    joined,
    searched_as_fused,
)
from vizsla.search.ranking import Ranking
from vizsla.workspace import Run, open_run

log = logging.getLogger("vizsla.run")

CONCAT, AUTO = "concat", "auto"


@dataclass(frozen=True)
class FusionConfig:
    """method: of search/fusion.py, concat, or auto, which tries all but concat. weights: auto, one
    for each model, or equal ones.

    For concat only: whiten, of FUSION_WHITENINGS (auto: what validation prefers), and the chain
    that refines the concatenated vectors. beside: how many of the last models are joined with the
    projected vectors of the others, and not projected themselves.
    """

    method: str = "zscore"
    weights: str | list[float] | None = None
    whiten: str = AUTO
    refine: str = "none"
    refine_uses: str = QUERIES
    beside: int = 0

    def check(self, models: int) -> None:
        """UsageError before the work."""
        known = (*METHODS, CONCAT, AUTO)
        if self.method not in known:
            raise UsageError(f"--fusion {self.method}: choose one of {', '.join(known)}")
        if self.whiten not in FUSION_WHITENINGS:
            raise UsageError(
                f"fusion_whiten={self.whiten}: choose one of {', '.join(FUSION_WHITENINGS)}"
            )
        if self.weights == AUTO and self.method == CONCAT:
            raise UsageError(
                "--fusion-weights auto is for scores and ranks: leave it out of concat"
            )
        if self.weights != AUTO and not isinstance(self.weights, str):
            checked_weights(self.weights, models)
        if self.refine != AUTO:
            parse_chain(self.refine, uses=self.refine_uses)
        if not 0 <= self.beside < models or (self.beside and AUTO in (self.whiten, self.refine)):
            raise UsageError(
                f"beside={self.beside} with {models} models, whiten {self.whiten} and refine "
                f"{self.refine}: give fewer than there are models, and neither as auto"
            )

    @property
    def needs_training(self) -> str | None:
        """The option that needs labelled training images, if one does."""
        if self.weights == AUTO:
            return "--fusion-weights auto"
        return f"--fusion {self.method}" if self.method in (CONCAT, CALIBRATED, AUTO) else None


@dataclass(frozen=True, eq=False)
class Fused:
    """A joint ranking, and how it was made: fusion has every `auto` as it was chosen.

    fusion_choice, refinement_choice: how method and weights, or the chain of concat, were chosen.
    projection: of the concatenated vectors, if there is one.
    """

    ranking: Ranking
    fusion: FusionConfig
    fusion_choice: FusionChoice | None = None
    refinement_choice: RefinementChoice | None = None
    projection: AnyProjection | None = None

    @property
    def weights(self) -> list[float]:
        """One for each model."""
        assert isinstance(self.fusion.weights, list)
        return self.fusion.weights

    @property
    def chain(self) -> Chain:
        """The refinement of concatenated vectors."""
        return parse_chain(self.fusion.refine)

    def vectors(self, members: Sequence[Member]) -> tuple[Embeddings, Embeddings]:
        """Of queries and gallery by all models: concatenated, and projected if the run is."""
        parts = [
            joined([member.embeddings(role) for member in members], self.weights)
            for role in ("query", "gallery")
        ]
        if self.projection is not None:
            parts = [projected(part, self.projection, self.fusion.whiten) for part in parts]
        return parts[0], parts[1]

    def record(self) -> dict[str, Any]:
        """How the runs were fused, for the result file."""
        method = self.fusion.method
        return {
            "method": method,
            "weights": [round(w, 6) for w in self.weights],
            "whiten": self.fusion.whiten if method == CONCAT else None,
            **({"not_projected": self.fusion.beside} if self.fusion.beside else {}),
            "chosen_on": self.fusion_choice and self.fusion_choice.record(),
        }


def require_whole_images(fusion: FusionConfig, tiles: Iterable[object]) -> None:
    """UsageError if vectors of several models would be concatenated without those of these tiles,
    each of one model (None: it has none)."""
    given = [str(one) for one in tiles if one not in (None, "none")]
    if fusion.method == CONCAT and given:
        raise UsageError(
            f"--fusion concat joins the vectors of whole images, but --tiles is {given[0]}: leave "
            f"it out, or fuse by one of {', '.join(METHODS)}"
        )


def fuse_runs(
    members: Sequence[Member], fusion: FusionConfig, progress: Progress | None = None
) -> Fused:
    """One ranking of runs on the same images. DataError if they are on others."""
    fusion.check(len(members))
    require_whole_images(fusion, (member.record.get("tiles") for member in members))
    _require_same_data(members)
    if fusion.method == CONCAT:
        return _concatenated(members, fusion, progress)
    choice = None
    if AUTO in (fusion.method, fusion.weights):
        choice = _chosen_fusion(members, fusion, progress)
        fusion = dataclasses.replace(fusion, method=choice.method, weights=choice.weights)
    weights = weights_of(fusion, len(members))
    ranking = fused(
        [member.ranking() for member in members], method=fusion.method, weights=weights,
        probabilities=_probabilities(members, fusion.method, progress),
    )  # fmt: skip
    return Fused(ranking, dataclasses.replace(fusion, weights=weights), choice)


def _probabilities(
    members: Sequence[Member], method: str, progress: Progress | None
) -> list[Probability] | None:
    """Functions that turn each member's scores into probabilities; None for other methods."""
    if method != CALIBRATED:
        return None
    return [member.calibration(progress).without_evidence.probability for member in members]


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
        if AUTO in (fusion.method, fusion.weights):
            chosen = {key: record["fusion"][key] for key in ("method", "weights")}
            fusion = dataclasses.replace(fusion, **chosen)
        if fusion.method == CONCAT:
            fusion = dataclasses.replace(fusion, whiten=record["fusion"]["whiten"])
        if fusion.refine == AUTO:
            fusion = dataclasses.replace(fusion, refine=record["refine"]["chain"])
    return found, fusion


def heaviest_first(folder: str | Path) -> list[Member]:
    """The runs that a joint run fused, by falling weight; none for a run of one model."""
    members, fusion = members_of(folder)
    weights = dict(zip(members, weights_of(fusion, len(members)), strict=True)) if members else {}
    return sorted(members, key=lambda member: -weights[member])


def ranker(
    members: Sequence[Member], fusion: FusionConfig, progress: Progress | None = None
) -> Rank:
    """A function that ranks a gallery for queries, by the vectors of all models, as the joint run
    did (or the run of one model), which does not concatenate them."""
    if len(members) == 1:
        return members[0].rank
    weights = weights_of(fusion, len(members))
    probabilities = _probabilities(members, fusion.method, progress)

    def rank(queries: Sequence[Embeddings], gallery: Sequence[Embeddings]) -> Ranking:
        parts = [
            member.rank([own_queries], [own_gallery])
            for own_queries, own_gallery, member in zip(queries, gallery, members, strict=True)
        ]
        return fused(parts, method=fusion.method, weights=weights, probabilities=probabilities)

    return rank


def with_joint_evidence(
    ranking: Ranking,
    members: Sequence[Member],
    fusion: FusionConfig,
    vectors: Sequence[Embeddings],
) -> Ranking:
    """The joint ranking of these runs (or that of one run) with evidence beside its scores, unless
    they were re-ranked. vectors: of queries and gallery by all models."""
    if fusion.refine != "none" or any(member.chain.steps for member in members):
        return ranking
    return with_allowed_evidence(ranking, vectors[0], vectors[1], members[0].config.refine_uses)


def search_ranker(members: Sequence[Member], fusion: FusionConfig) -> Rank | None:
    """A function that ranks as searches of the run do, without refinement and by the joined vectors
    of the models; None if the run itself ranks in this way."""
    if len(members) == 1:
        return by_cosine if members[0].chain.steps else None
    weights = weights_of(fusion, len(members))

    def rank(queries: Sequence[Embeddings], gallery: Sequence[Embeddings]) -> Ranking:
        asked, searched = joined(queries, weights), joined(gallery, weights)
        vectors = searched_as_fused(
            asked.vectors, searched.vectors, [one.dim for one in queries], weights, fusion.method
        )
        ranking = by_cosine([dataclasses.replace(asked, vectors=vectors)], [searched])
        ranking.origin["searched_as"] = fusion.method
        return ranking

    return rank


def require_decidable(accept: float | str | None, configs: Iterable[RunConfig]) -> None:
    """UsageError if --accept cannot be learned for one of the runs."""
    if accept is not None and Accept.parse(accept).file is None:
        for config in configs:
            require_no_whitening(config)


def joint_calibration(
    members: Sequence[Member],
    fusion: FusionConfig,
    accept: float | str,
    ranking: Ranking,
    progress: Progress | None = None,
) -> Calibration:
    """The calibration for the joint ranking of these runs (or that of one run), learned on images
    that are new to all of them, or read from a file. fusion: every `auto` as it was chosen."""
    given = Accept.parse(accept)
    if given.file is not None:
        return given.load()
    require_decidable(accept, [member.config for member in members])
    config = _config_of_validation(members)
    data, weights = folders_of(config), weights_of(fusion, len(members))
    models: list[Model] = [member.model(progress) for member in members]
    has_head = fusion.method == CONCAT and fusion.whiten != "none"
    count = len(members) - fusion.beside if has_head else 0  # of the models that become one
    tuned = any(
        member.is_tuned and (i < count or not isinstance(model, ClosedForm))
        for i, (member, model) in enumerate(zip(members, models, strict=True))
    )
    if has_head:
        every = training_part(data.training, config.data, "--fusion concat")

        def embed(
            images: ImageSet, members: Sequence[Member], weights: Sequence[float]
        ) -> Embeddings:
            parts = [member.embed(every, "training", progress) for member in members]
            return joined(parts, weights).of_images(images.ids)

        of_head = functools.partial(embed, members=members[:count], weights=weights[:count])
        models[:count] = [ClosedForm(fusion.whiten, "head", of_head)]
        weights[:count] = [sum(weights[:count])]
        if not any(member.is_tuned for member in members):
            test = [members[0].embeddings(role) for role in ("query", "gallery")]
            config, images = by_vectors(
                config, every, lambda part, _: embed(part, members[:1], [1.0]), "training", test
            )
            data = dataclasses.replace(data, training=images)
    rank, search = ranker(members, fusion, progress), search_ranker(members, fusion)
    if fusion.method == CONCAT:
        chain = parse_chain(fusion.refine, uses=fusion.refine_uses)
        by_chain = functools.partial(ranked_by_joined, weights, ranking.origin["model_id"])
        rank, search = by_chain(chain), by_chain(Chain()) if chain.steps else None
    return calibration_for(
        dataclasses.replace(config, accept=accept), data, target_in(data, truth_in(config, data)),
        models, tuned=tuned, rank=with_same_evidence(ranking, rank, weights), search=search,
    )  # fmt: skip


def ranked_by_joined(weights: Sequence[float], model_id: str, chain: Chain) -> Rank:
    """What ranks by the joined vectors of several models, of this model_id."""

    def rank(queries: Sequence[Embeddings], gallery: Sequence[Embeddings]) -> Ranking:
        both = [
            dataclasses.replace(joined(parts, weights), model_id=model_id)
            for parts in (queries, gallery)
        ]
        return rank_refined(both[0], both[1], chain)

    return rank


def weights_of(fusion: FusionConfig, models: int) -> list[float]:
    """One for each model, which add up to 1; equal ones if none are given."""
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


def _chosen_fusion(
    members: Sequence[Member], fusion: FusionConfig, progress: Progress | None
) -> FusionChoice:
    """The best method and weights, as far as they are `auto`."""
    _, drawn = _validation(members, progress)
    others = [m.embed(drawn.images, "validation-fusion", progress) for m in members[1:]]
    methods: dict[str, list[Probability] | None] = {}
    for method in METHODS if fusion.method == AUTO else [fusion.method]:
        try:
            methods[method] = _probabilities(members, method, progress)
        except DataError as error:
            if fusion.method != AUTO:
                raise
            log.warning("--fusion auto does not try %s: %s", method, error)
    return choose_fusion(
        [drawn.vectors, *others], [member.chain for member in members], drawn, methods=methods,
        weights=None if fusion.weights == AUTO else weights_of(fusion, len(members)),
        optimise=members[0].config.training.optimise,
    )  # fmt: skip


def _validation(
    members: Sequence[Member], progress: Progress | None, *, fits: bool = False
) -> tuple[ImageSet, EmbeddedDraws]:
    """Training images to fit something to, and labelled images that no member was trained on, with
    the first one's vectors. fits: whether something is fitted; then these are different images."""
    first, tuned = members[0], any(member.is_tuned for member in members)
    config = _config_of_validation(members)
    data = folders_of(config)
    needed_by = "--fusion auto and --fusion-weights auto"
    images = training_part(data.training, config.data, needed_by)
    test = [first.embeddings(role) for role in ("query", "gallery")]
    role = "validation-fusion"
    if not tuned:
        config, images = by_vectors(
            config, images, lambda part, role: first.embed(part, role, progress), role, test
        )
    target, options, others = target_in(data, truth_in(config, data)), config.training, images

    def embedded(part: ImageSet) -> Embeddings:
        if not fits:
            return first.embed(part, role, progress)
        known = first.embed(images, "training", progress)  # is there already
        return known.of_images(part.ids)

    if fits:
        if not tuned and options.validate_on == NEW:
            options = dataclasses.replace(options, share=share_held_out(images, target))
        others = images.subset(held_out(images, options, target).training)
    return others, embedded_draws(
        images,
        options,
        target,
        frozen=not (tuned or fits),
        embed=embedded,
        nearest_cosine=mean_nearest_cosine(test[0].vectors, test[1].vectors, same_set=data.one_set),
    )


def _config_of_validation(members: Sequence[Member]) -> RunConfig:
    """That of the run whose training held images out, or of the first one. DataError: trainings
    held out different ones."""
    tuned = [member for member in members if member.is_tuned]
    if not tuned:
        return members[0].config
    config = tuned[0].config
    if any(_splitting(member.config) != _splitting(config) for member in tuned):
        raise DataError(
            "the models' trainings held out different images, so that none is new to all: tune "
            "them with the same --validate-on and --seed; or leave out --accept, and give a method "
            "and weights instead of auto"
        )
    data, split = folders_of(config), dataclasses.asdict(config.training)
    if data.training is not None:
        target = target_in(data, truth_in(config, data))
        for member in tuned:
            if held_out_before(member.origin, data.training, target, split) is None:
                log.warning(MAY_HAVE_SEEN, member.name)
    return config


def _splitting(config: RunConfig) -> tuple[Any, ...]:
    """What decides which images a training holds out."""
    return (*(getattr(config.training, name) for name in SPLITTING), config.exclude)


def _concatenated(
    members: Sequence[Member], fusion: FusionConfig, progress: Progress | None
) -> Fused:
    """The models' vectors concatenated, projected and refined as `fusion` says."""
    weights = weights_of(fusion, len(members))
    config = members[0].config
    queries, gallery = (
        joined([member.embeddings(role) for member in members], weights)
        for role in ("query", "gallery")
    )
    choice = fusion_choice = projection = None
    if fusion.whiten != "none" or fusion.refine == AUTO:
        needed_by = "--refine auto" if fusion.whiten == "none" else "--fusion concat"
        images = training_part(folders_of(config).training, config.data, needed_by)
        if AUTO in (fusion.whiten, fusion.refine):
            training = joined([m.embed(images, "training", progress) for m in members], weights)
            try:
                fusion, fusion_choice, choice = _chosen_for_concat(
                    members, fusion, training, progress
                )
            except DataError as error:
                if fusion.refine == AUTO:
                    raise
                log.warning("no projection of the joint vectors can be chosen: %s", error)
                fusion = dataclasses.replace(fusion, whiten="none")
        if fusion.whiten != "none":
            projection = _fitted(members, fusion, images, progress, queries.dim)
            queries = projected(queries, projection, fusion.whiten)
            gallery = projected(gallery, projection, fusion.whiten)
    chain = parse_chain(fusion.refine)
    one_set = folders_of(config).one_set
    ranking = rank_refined(queries, gallery, chain, same_set=one_set)
    ranking.origin["fusion"] = {"method": CONCAT, "weights": weights, "whiten": fusion.whiten}
    settled = dataclasses.replace(fusion, weights=weights, refine=str(chain))
    return Fused(ranking, settled, fusion_choice, choice, projection)


def _chosen_for_concat(
    members: Sequence[Member],
    fusion: FusionConfig,
    training: Embeddings,
    progress: Progress | None,
) -> tuple[FusionConfig, FusionChoice | None, RefinementChoice | None]:
    """The fusion with its projection and chain as far as they are `auto`, and their choices.

    training: the joined vectors of all training images. Both are chosen on images that the
    projection is not fitted to, unless it is plain or shrunk.
    """
    optimise, fits = members[0].config.training.optimise, fusion.whiten not in WHITENINGS
    images, drawn = _validation(members, progress, fits=fits)
    on = validation_set(
        drawn.images, training.ids, drawn.draws,
        relative_share=drawn.relative_share, test_queries=drawn.test_queries,
    )  # fmt: skip
    learned_on = training.of_images(images.ids)
    fusion_choice = refinement_choice = None
    if fusion.whiten == AUTO:
        fusion_choice = choose_projection(
            training, on, projection_makers(learned_on), optimise=optimise,
            weights=weights_of(fusion, len(members)), alone=_alone(members, training),
        )  # fmt: skip
        fusion = dataclasses.replace(fusion, whiten=str(fusion_choice.whiten))
    if fusion.refine == AUTO:
        if fusion.whiten != "none":
            projection = fitted_projection(learned_on, fusion.whiten)
            training = projected(training, projection, fusion.whiten)
        refinement_choice = choose_chain(
            training, on, optimise=optimise, uses=fusion.refine_uses,
            progress=progress and (lambda done, total: progress(STAGE, done, total)),
        )  # fmt: skip
        fusion = dataclasses.replace(fusion, refine=str(refinement_choice.chain))
    return fusion, fusion_choice, refinement_choice


def _fitted(
    members: Sequence[Member],
    fusion: FusionConfig,
    images: ImageSet,
    progress: Progress | None,
    dim: int,
) -> AnyProjection:
    """The projection of joined vectors, fitted to training images. dim: of all models together."""
    count = len(members) - fusion.beside
    weights = weights_of(fusion, len(members))[:count]
    parts = [member.embed(images, "training", progress) for member in members[:count]]
    training = joined(parts, weights)
    found = fitted_projection(training, fusion.whiten)
    return Beside(found, dim - training.dim) if fusion.beside else found


def _alone(members: Sequence[Member], together: Embeddings) -> dict[str, np.ndarray]:
    """Each model's own part of joined vectors, by its name (and place, of two with one name)."""
    names = [member.name for member in members]
    ends = np.cumsum([member.embeddings("query").dim for member in members])[:-1]
    parts = np.split(together.vectors, ends, axis=1)
    return {
        name if names.count(name) == 1 else f"{name} ({i})": part
        for i, (name, part) in enumerate(zip(names, parts, strict=True), 1)
    }
