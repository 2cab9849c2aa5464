"""--accept and a data folder → the Calibration that decides which matches are accepted."""

import dataclasses
import functools
import logging
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vizsla.data.absent_classes import (
    FEWEST_CLASSES,
    ROUNDS,
    draws_with_absent_classes,
    held_out_and_trained,
)
from vizsla.data.data_folders import DataFolders
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import (
    AUTO,
    NEW,
    Draw,
    Target,
    class_codes,
    held_out,
    training_part,
)
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.projected import fitted_projection, projected
from vizsla.errors import DataError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.option_fields import acceptance
from vizsla.options import FUSION_WHITENINGS
from vizsla.run.config import RunConfig
from vizsla.score.calibration import SURE, Calibration
from vizsla.score.calibration_draws import Rank, at_most, judged_draws
from vizsla.search.chain import NOTHING, QUERIES, Chain, rank_refined
from vizsla.search.evidence import with_evidence
from vizsla.search.fusion import joined
from vizsla.search.ranking import NEAR, Ranking
from vizsla.search.verify import features_of_both
from vizsla.workspace import is_run

log = logging.getLogger("vizsla.run")

MOST_PARTS = 5  # of the classes; a projection is fitted again without each
FEW_CLASSES = 20  # fewer are too few to calibrate a tuned model on without a warning
CALIBRATION = "calibration.json"  # in a run's folder
WHITENED = (
    "what scores mean cannot be learned here, since --whiten %s is fitted to the training images, "
    "whose scores are then not those of new images: give --whiten none"
)
KNOWN_CLASSES = (
    "--accept is learned on classes that the model was trained on, also for queries with nothing "
    "in the gallery: with things of other classes more of the accepted matches may be wrong"
)
ROLE = "calibration"  # of the embeddings that it was learned from, in a run's folder
FROZEN_ROLE = "calibration-frozen"  # of those by the network without a projection


@dataclasses.dataclass(frozen=True)
class Accept:
    """What --accept says: the precision wanted, a saved calibration, or both."""

    sure: float | None
    file: Path | None

    @staticmethod
    def parse(text: float | str) -> "Accept":
        """From 0.95, FILE or FILE@0.95; a run stands for the calibration in its folder.

        UsageError: a number that is no probability, or there is no such file.
        """
        name, number = (str(text), None) if isinstance(text, str) else ("", text)
        if isinstance(text, str) and not Path(text).exists():
            before, _, after = text.rpartition("@")
            given = acceptance(after)
            if before and not isinstance(given, str):
                name, number = before, given
        if number is not None and not 0 < number < 1:
            raise UsageError(
                f"--accept {text}: choose a probability between 0 and 1, such as 0.95, or the file "
                "of a calibration"
            )
        if not name:
            return Accept(number, None)
        file = Path(name) / CALIBRATION if Path(name).is_dir() else Path(name)
        if not file.exists():
            raise UsageError(
                f"--accept {text}: there is no file {file}: give a probability such as 0.95, or "
                f"the {CALIBRATION} of a run that was made with --accept"
            )
        return Accept(number, file)

    def load(self, run: Any = None) -> Calibration:
        """The saved calibration; without a file that of the run, which a number is asked of.

        run: its folder; anything else has no calibration. UsageError, DataError: there is none.
        """
        file = self.file
        if file is None:
            if not isinstance(run, str | Path) or not is_run(run):
                raise UsageError(
                    f"--accept {self.sure:g} needs a calibration for this gallery: give its file, "
                    f"as in --accept runs/ID@{self.sure:g}; `vizsla run --accept {self.sure:g}` or "
                    "`vizsla evaluate --calibrate --write-calibration FILE` makes one"
                )
            file = Path(run) / CALIBRATION
            if not file.exists():
                raise DataError(
                    f"{run} was made without --accept and has no {CALIBRATION}: "
                    f"`vizsla evaluate {run} --calibrate` learns it"
                )
        found = Calibration.load(file)
        return found if self.sure is None else found.with_sure(self.sure)


@dataclasses.dataclass(frozen=True)
class ClosedForm:
    """A projection in closed form of the vectors of an unchanged network, or of several joined, so
    that it can be fitted again.

    name: of FUSION_WHITENINGS. model_id: of the vectors with it. embed: gives vectors without it.
    """

    name: str
    model_id: str
    embed: Callable[[ImageSet], Embeddings]

    @staticmethod
    def of(
        embedder: Embedder, config: RunConfig, embed: Callable[[ImageSet], Embeddings]
    ) -> "ClosedForm | None":
        """What the training of this run put after its network; None if it kept something else, and
        for tiles."""
        kept = (embedder.origin.training or {}).get("kept")
        is_own = config.tuning is not None and not Path(config.model).exists()
        if (
            kept not in FUSION_WHITENINGS
            or not is_own
            or config.dim is not None
            or embedder.tiles is not None
        ):
            return None
        return ClosedForm(kept, embedder.model_id, embed)

    def fitted_to(self, ids: Sequence[str], vectors: Embeddings) -> Embeddings:
        """The vectors with the projection, fitted to those of these images."""
        projection = fitted_projection(vectors.of_images(ids), self.name)
        found = projected(vectors, projection, self.name)
        return dataclasses.replace(found, model_id=self.model_id)


Model = Callable[[ImageSet], Embeddings] | ClosedForm  # what gives vectors of images


def check_accept(
    config: RunConfig, data: DataFolders, target: Target, *, is_new: bool = True
) -> None:
    """Before the work: UsageError or DataError if --accept cannot be read, or if there are too few
    images to learn from. is_new: whether the model was trained on none of these before."""
    if config.accept is None:
        return
    if config.items.get("query_join", "mean") != "mean":
        raise UsageError(
            "--accept decides several pictures as one query by the mean of their scores: leave out "
            "--query-join max, or --accept"
        )
    if Accept.parse(config.accept).file is None:
        require_no_whitening(config)
        is_known = config.training.validate_on != AUTO  # what a training holds out
        tuned = not is_new or (config.tuning is not None and is_known)
        images_and_draws(config, data, target, tuned=tuned)


def require_no_whitening(config: RunConfig) -> None:
    """UsageError if the training images were whitened by their own statistics: their scores would
    not be those of new images."""
    if config.whiten != "none":
        raise UsageError(WHITENED % config.whiten)


def with_same_evidence(ranking: Ranking, rank: Rank, weights: Sequence[float] = (1.0,)) -> Rank:
    """`rank`, with evidence for decisions by the joined vectors if this ranking has it. weights: of
    the models, one each."""
    if ranking.evidence is None:
        return rank
    near = ranking.origin[NEAR]

    def rank_and_compare(queries: Sequence[Embeddings], gallery: Sequence[Embeddings]) -> Ranking:
        both = [joined(parts, weights) for parts in (queries, gallery)]
        return with_evidence(rank(queries, gallery), *both, near=near)

    return rank_and_compare


def with_allowed_evidence(
    ranking: Ranking, queries: Embeddings, gallery: Embeddings, refine_uses: str
) -> Ranking:
    """The ranking with evidence beside its scores, as far as other images may be used."""
    if refine_uses == NOTHING:
        return ranking
    return with_evidence(ranking, queries, gallery, near=None if refine_uses == QUERIES else 0.0)


def calibration_for(
    config: RunConfig,
    data: DataFolders,
    target: Target,
    models: Sequence[Model],
    *,
    tuned: bool,
    rank: Rank,
    search: Rank | None = None,
    rounds: int = ROUNDS,
) -> Calibration:
    """What --accept of a run says: a saved calibration, or one that is learned now."""
    assert config.accept is not None
    accept = Accept.parse(config.accept)
    if accept.file is not None:
        return accept.load()
    found = learn_calibration(
        config, data, target, models, tuned=tuned, sure=accept.sure or SURE, rank=rank,
        search=search, rounds=rounds,
    )  # fmt: skip
    if found.cutoff is None:
        log.warning("%s", found.verdict)
    return found


def learn_calibration(
    config: RunConfig,
    data: DataFolders,
    target: Target,
    models: Sequence[Model],
    *,
    tuned: bool,
    sure: float,
    rank: Rank,
    search: Rank | None = None,
    rounds: int = ROUNDS,
) -> Calibration:
    """Learned on training images that the models have not seen, by draws like the test part.

    tuned: whether a model was trained on the images that validation did not hold out, and is no
    ClosedForm. If none was, projections are fitted again without some classes at a time, and all
    training images are learned from; else they are fitted to what was not held out. rank: as the
    test part is ranked. search: as `search` and `serve` rank, if they do not rank so. rounds: of
    draws, see `rounds_for`. DataError without such images.
    """
    if config.whiten != "none":
        raise DataError(WHITENED % config.whiten)
    is_fitted = any(isinstance(model, ClosedForm) for model in models)
    by_class = (tuned or is_fitted) and config.training.validate_on == NEW
    parts = [] if tuned or not is_fitted else _cross_fitted(config, data, target, models)
    if not parts:
        learns = tuned or is_fitted
        images, draws = images_and_draws(config, data, target, tuned=learns, rounds=rounds)
        if by_class:
            _warn_of_few_classes(images, draws)
        elif learns:
            log.warning("%s", KNOWN_CLASSES)
        every, fitted_to = images, np.arange(0)
        if is_fitted:
            every = training_part(data.training, config.data, "--accept")
            fitted_to = held_out(every, config.training, target).training
        parts = [Part(_vectors(models, images, every, fitted_to), images, draws)]

    def learned(by: Rank) -> Calibration:
        judged = [judged_draws(part.vectors, part.images, part.draws, by) for part in parts]
        every = functools.reduce(operator.add, judged)
        return every.calibration(sure=sure, source=f"{config.data}/training", by_class=by_class)

    found = dataclasses.replace(learned(rank), of_searches=search and learned(search))
    for line in found.lines():
        log.debug("%s", line)
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Draws of images, and vectors of these by models that have not seen the draws' queries."""

    vectors: list[Embeddings]
    images: ImageSet
    draws: list[Draw]


def _cross_fitted(
    config: RunConfig, data: DataFolders, target: Target, models: Sequence[Model]
) -> list[Part]:
    """The classes in parts: the images of one are queries, by projections that are fitted to the
    other parts. [] if a part has no draw.

    If the test classes are those of the training images, the projection is fitted to only a share
    of the other classes' images: the rest of these are queries with a match, and the gallery. The
    images of the part are queries without a match.
    """
    images = at_most(training_part(data.training, config.data, "--accept"), seed=config.seed)
    labels = class_codes(images)
    classes = int(labels.max()) + 1
    is_new = config.training.validate_on == NEW
    parts = min(MOST_PARTS, classes // FEWEST_CLASSES if is_new else classes)
    part_of = np.random.default_rng((config.seed, 74)).permutation(classes) % max(1, parts)
    divided = []
    try:
        for part in range(parts if parts > 1 else 0):
            absent = part_of[labels] == part
            fitted_to, used = np.flatnonzero(~absent), np.arange(len(images))
            if not is_new:
                known = images.subset(fitted_to)
                fitted_to = fitted_to[held_out(known, config.training, target).training]
                used = np.setdiff1d(used, fitted_to)
            own = images.subset(used)
            roles = {"trained": ~absent} if is_new else {"absent": absent[used]}
            divided.append((fitted_to, own, _draws(config, own, target, rounds=1, **roles)))
    except DataError:  # no draw is possible in a part
        return []
    return [
        Part(_vectors(models, images, images, fitted_to), own, draws)
        for fitted_to, own, draws in divided
    ]


def _vectors(
    models: Sequence[Model], images: ImageSet, every: ImageSet, fitted_to: np.ndarray
) -> list[Embeddings]:
    """Vectors of the images by each model; of `every` image by projections, which are fitted to
    those at the positions `fitted_to`."""
    ids = every.subset(fitted_to).ids
    return [
        model.fitted_to(ids, model.embed(every)) if isinstance(model, ClosedForm) else model(images)
        for model in models
    ]


def _draws(
    config: RunConfig,
    images: ImageSet,
    target: Target,
    *,
    trained: np.ndarray | None = None,
    absent: np.ndarray | None = None,
    rounds: int = ROUNDS,
) -> list[Draw]:
    return draws_with_absent_classes(
        images, target, seed=config.seed, trained=trained, absent=absent, rounds=rounds,
        query_domain=config.training.query_domain,
        gallery_domain=config.training.gallery_domain,
    )  # fmt: skip


def _warn_of_few_classes(images: ImageSet, draws: Sequence[Draw]) -> None:
    labels = images.labels or []
    classes = len({labels[i] for draw in draws for i in draw.query})
    if classes < FEW_CLASSES:
        log.warning(
            "--accept is learned on only the %d classes that the training held out, so that "
            "it accepts few matches: hold out more (--set share=0.4)", classes,
        )  # fmt: skip


def images_and_draws(
    config: RunConfig, data: DataFolders, target: Target, *, tuned: bool, rounds: int = ROUNDS
) -> tuple[ImageSet, list[Draw]]:
    """The training images to learn from, and draws of them like the test part, in which classes are
    absent; see `learn_calibration`. DataError: there are none, or too few."""
    images = training_part(data.training, config.data, "--accept")
    tuning, trained = config.training, None
    if tuned:
        images, trained = held_out_and_trained(images, tuning, target)
    else:
        images = at_most(images, seed=config.seed)
    return images, _draws(config, images, target, trained=trained, rounds=rounds)


def rounds_for(chain: Chain) -> int:
    """How often each image may be a query: once where the chain compares parts of images."""
    return 1 if chain.compares_images else ROUNDS


def ranked_by(chain: Chain, features_in: Path) -> Rank:
    """What ranks by the chain. The local features of all images are kept in `features_in`, since
    each is in several draws."""

    def rank(queries: Sequence[Embeddings], gallery: Sequence[Embeddings]) -> Ranking:
        features = features_of_both(queries[0], gallery[0], features_in, keep_queries=True)
        return rank_refined(queries[0], gallery[0], chain, features=features)

    return rank
