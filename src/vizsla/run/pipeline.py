"""`run`, the main job: a folder of images → ranking, submission, metrics, images.

Stage after stage; each leaves its artefact in the run's folder.
"""

import contextlib
import copy
import dataclasses
import functools
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from vizsla.choose.refinement import (
    STAGE,
    RefinementChoice,
    choose_chain_on_images,
    refine_record,
)
from vizsla.choose.validation import mean_nearest_cosine
from vizsla.data.data_folders import DataFolders
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import AUTO, Target, training_part
from vizsla.data.tiles import Tiles
from vizsla.embed.compute import PACKAGES, Compute
from vizsla.embed.converted_runtimes import installed
from vizsla.embed.embeddings import Embeddings, about_tiles
from vizsla.embed.local_features import LOCAL
from vizsla.errors import ModelError, StorageError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.open_model import load_embedder
from vizsla.model.projection import WHITENINGS
from vizsla.progress import LOADING, reporting, waiting
from vizsla.run.accepting import (
    FROZEN_ROLE,
    ROLE,
    Accept,
    ClosedForm,
    calibration_for,
    check_accept,
    ranked_by,
    rounds_for,
    with_allowed_evidence,
    with_same_evidence,
)
from vizsla.run.config import REFINEMENT, RunConfig, check_compute, compute_for, resolved
from vizsla.run.earlier_training import validated_as_trained
from vizsla.run.embedding import Progress, RunEmbedder
from vizsla.run.finish import RunResult, finish_run
from vizsla.run.inputs import (
    check_items,
    folders_of,
    target_in,
    truth_in,
    whiten_embedder,
)
from vizsla.run.tile_choice import chosen_in_run
from vizsla.run.validate_on import (
    VALIDATION,
    before_training,
    by_embeddings,
    keep_assigned_domains,
)
from vizsla.score.calibration_draws import at_most, by_cosine
from vizsla.search import exact, query_tiles
from vizsla.search.chain import (
    Chain,
    check_uses,
    parse_chain,
    rank_refined,
    require_defined_for_tiles,
)
from vizsla.search.knn_graph import GraphFolder
from vizsla.search.verify import features_of_both
from vizsla.train.selection import TrainResult
from vizsla.workspace import Messages, Run, create_run, is_run, log_to, open_run

log = logging.getLogger("vizsla.run")


def run(
    config: RunConfig,
    progress: Progress | bool | None = None,
    *,
    embedder: Embedder | None = None,
) -> RunResult:
    """Does the whole main job in the contest's folder layout; see RunConfig.

    progress: True shows bars, False none; None (the default) shows them in a notebook only. A
    function is called with (stage, done, total). embedder: in place of the one that config names.
    """
    started = time.monotonic()
    with Messages() as messages, reporting(progress) as report:
        data = folders_of(config)
        truth = truth_in(config, data)
        _check_options(config, data)
        check_items(config, truth)
        with waiting(report, LOADING):
            embedder = copy.deepcopy(embedder) or load_embedder(
                config, seed=config.seed, tiles_later=True
            )
        _require_same_model(embedder, config)
        _require_defined_for_tiles(embedder, config)
        compute = compute_for(config, embedder, data)
        target = target_in(data, truth)
        config, training, is_new = validated_as_trained(config, data.training, target, embedder)
        config, training = before_training(
            config, training, (data.query, data.gallery), embedder, compute, report
        )
        data = dataclasses.replace(data, training=training)
        check_accept(config, data, target, is_new=is_new)
        written = resolved(config, embedder, compute, data)
        interrupted = _interrupted(config, written, embedder.name)
        if interrupted is not None:  # the runtime is not chosen a second time
            written = interrupted.config
            compute = dataclasses.replace(compute, runtime=written["options"]["runtime"])
            _require_runtime(compute, interrupted)
        this_run = interrupted or create_run(config.home)
        with log_to(this_run.folder / "log.txt", earlier=messages.records):
            this_run.write_config(written)
            keep_assigned_domains(this_run.folder, data.training)
            embedder, tuned = _improved(embedder, data, target, this_run, compute, config, report)
            is_improved = tuned is not None and tuned.is_improved
            is_new = is_new and not is_improved  # all training images are new to the model
            embedder, tile_choice = chosen_in_run(
                embedder, data, target, this_run, compute, config, report, frozen=is_new
            )
            embedder.save(this_run.folder / "embedder")
            embed = RunEmbedder.of(embedder, this_run, compute, config, report)
            same_images = data.one_set and data.query.attributes.equals(data.gallery.attributes)
            if same_images and embedder.tiles is None and embed.query_tiles is None:
                queries = embed(data.query, "query")
                gallery = embed.copied(data.gallery, "gallery", of="query")
            else:
                queries, gallery = embed(data.query, "query"), embed(data.gallery, "gallery")
            if embed.compute != compute:  # its runtime has failed
                this_run.write_config(resolved(config, embedder, embed.compute, data))
            choice = None
            if config.refine == "auto":
                labelled = training_part(data.training, config.data)
                config, training = by_embeddings(
                    config, labelled, embed, [queries, gallery], this_run
                )
                data = dataclasses.replace(data, training=training)
                choice = _choose_chain(
                    data, target, queries, gallery, embed, config, frozen=is_new,
                    features_in=_features_in(this_run, config), progress=report,
                )  # fmt: skip
                choice.save(this_run.folder / REFINEMENT)
            chain = choice.chain if choice else parse_chain(config.refine)
            device = "cpu" if compute.device.startswith("mps") else compute.device  # no float64
            if embed.query_tiles is not None:
                ranking = query_tiles.rank(queries, gallery, same_set=data.one_set, device=device)
            else:
                ranking = rank_refined(
                    queries, gallery, chain, graphs=GraphFolder(this_run.folder / "graphs"),
                    device=device, same_set=data.one_set,
                    features=features_of_both(queries, gallery, _features_in(this_run, config)),
                )  # fmt: skip
            calibration = None
            if config.accept is not None:
                frozen = functools.partial(embed.without_projection, role=FROZEN_ROLE)
                if not chain.steps:
                    ranking = with_allowed_evidence(ranking, queries, gallery, config.refine_uses)
                learned_on = data
                if is_new and Accept.parse(config.accept).file is None:
                    labelled = training_part(data.training, config.data, "--accept")
                    config, training = by_embeddings(
                        config, at_most(labelled, seed=config.seed), embed, [queries, gallery],
                        this_run,
                    )  # fmt: skip
                    learned_on = dataclasses.replace(data, training=training)
                closed_form = ClosedForm.of(embedder, config, frozen) if is_improved else None
                calibration = calibration_for(
                    config, learned_on, target,
                    [closed_form or functools.partial(_for_calibration, embed)],
                    tuned=not is_new and closed_form is None,
                    rank=with_same_evidence(
                        ranking, ranked_by(chain, _features_in(this_run, config))
                    ),
                    rounds=rounds_for(chain),
                    search=by_cosine if chain.steps else None,
                )  # fmt: skip
                ranking = calibration.decide(ranking)
            model = _model_record(embedder, tuned, config)
            if tile_choice is not None:
                model["tiles_chosen_on"] = tile_choice.record()
            if embed.query_tiles is not None:
                model["query_tiles"] = str(embed.query_tiles)
            model |= {"batch_size": compute.batch_size, "refine": refine_record(chain, choice)}
            model["validation"] = _validation_record(embedder, tuned, choice)
            result = finish_run(
                this_run, config, data, truth, ranking, (queries, gallery),
                ranked_by_vectors=embed.query_tiles is None, model=model, messages=messages,
                started=started,
                calibration=calibration,
            )  # fmt: skip
            if tuned is not None:  # the run has a result, so it is never continued
                drop_training_leftovers(this_run)
    return dataclasses.replace(result, chain=chain, refinement_choice=choice, tuned=tuned)


def _validation_record(
    embedder: Embedder, tuned: TrainResult | None, choice: RefinementChoice | None
) -> dict[str, Any] | None:
    """The scores on held-out images of what was chosen last; of a model that was tuned earlier
    those of its training."""
    if choice is not None:
        return choice.validation.record()
    if tuned is not None:
        return tuned.validation.record() if tuned.validation else None
    return (embedder.origin.training or {}).get("validation")


def _for_calibration(embed: RunEmbedder, images: ImageSet) -> Embeddings:
    """Vectors of training images, copied from those of validation if that has the same images."""
    validation = embed.folder / "embeddings" / VALIDATION
    if validation.exists() and list(Embeddings.open(validation).ids) == list(images.ids):
        return embed.copied(images, ROLE, of=VALIDATION)
    return embed(images, ROLE)


def _features_in(this_run: Run, config: RunConfig) -> Path:
    """Where local features are kept, if any are needed."""
    return Path(config.cache) if config.cache else this_run.folder / LOCAL


def _improved(
    embedder: Embedder,
    data: DataFolders,
    target: Target,
    this_run: Run,
    compute: Compute,
    config: RunConfig,
    progress: Progress | None,
) -> tuple[Embedder, TrainResult | None]:
    """The embedder fine-tuned and whitened on the training images, as far as the options say."""
    tuned = None
    if config.tuning is not None:
        from vizsla.run.train import tune_images  # the losses' library takes a second to import

        images = training_part(data.training, config.data)
        out = this_run.folder / "training"
        tuned = tune_images(images, embedder, out, target, config, progress)
        embedder = tuned.embedder
    if config.whiten != "none" or config.dim is not None:
        images = training_part(data.training, config.data, "--whiten and --dim")
        embed = RunEmbedder.of(embedder, this_run, compute, config, progress)
        embedder = whiten_embedder(embedder, embed(images, "training"), config.whiten, config.dim)
    return embedder, tuned


def drop_training_leftovers(this_run: Run) -> None:
    """Removes what only a continued training needs, and its copy of the run's embedder."""
    from vizsla.run.train import drop_resumption

    drop_resumption(this_run.folder / "training")
    shutil.rmtree(this_run.folder / "training" / "embedder", ignore_errors=True)


def _check_options(config: RunConfig, data: DataFolders) -> None:
    """Before the work: options that cannot be read, or that need images which are not there."""
    exact.check_k(config.top_k, len(data.gallery) - data.one_set)
    check_compute(config)
    if config.whiten not in WHITENINGS:
        raise UsageError(f"--whiten {config.whiten}: choose one of {', '.join(WHITENINGS)}")
    if config.whiten != "none" or config.dim is not None:
        training_part(data.training, config.data, "--whiten and --dim")
    if config.query_tiles is not None:
        query_tiles.require_plain_search(config.refine, config.accept)
        Tiles.of_query(config.query_tiles)
    if config.refine != "auto":
        parse_chain(config.refine, uses=config.refine_uses)
    else:
        check_uses(config.refine_uses)
        training_part(data.training, config.data, "--refine auto")


def _require_same_model(embedder: Embedder, config: RunConfig) -> None:
    """ModelError if a repeated run would use other weights than the run that it repeats."""
    whole = copy.copy(embedder).with_tiles("none").model_id  # recorded before `auto` has chosen
    if config.model_id not in (None, embedder.model_id, whole):
        raise ModelError(
            f"{config.model} with weights {config.weights} is now another model "
            f"({embedder.model_id}) than in the run to repeat ({config.model_id}): restore the "
            "weights, or start a new run without --again"
        )


def _require_defined_for_tiles(embedder: Embedder, config: RunConfig) -> None:
    """UsageError if tiles may be embedded for a re-ranking that is not defined for them."""
    if embedder.tiles is not None or config.tiles == AUTO:
        require_defined_for_tiles(
            Chain() if config.refine == "auto" else parse_chain(config.refine)
        )


def _interrupted(config: RunConfig, written: dict[str, Any], model_name: str) -> Run | None:
    """The latest run of the same configuration that began a training and left no result."""
    if config.tuning is None:
        return None
    for folder in sorted((Path(config.home) / "runs").glob("*/training"), reverse=True):
        if not is_run(folder.parent):
            continue
        with contextlib.suppress(StorageError):
            earlier = open_run(folder.parent)
            same = _but_for_runtime(earlier.config) == _but_for_runtime(written)
            if same and not earlier.result_path(model_name).exists():
                log.info("continuing the interrupted run %s", earlier.id)
                return earlier
    return None


def _require_runtime(compute: Compute, interrupted: Run) -> None:
    """UsageError if this machine no longer has the runtime of the interrupted run."""
    if not installed(compute.runtime):
        raise UsageError(
            f"{interrupted.folder} was begun with the runtime {compute.runtime}, which is not "
            f"installed here: pip install {' '.join(PACKAGES[compute.runtime])} to continue it, or "
            "delete this folder to begin anew"
        )


def _but_for_runtime(written: dict[str, Any]) -> dict[str, Any]:
    options = {k: v for k, v in written["options"].items() if k != "runtime"}
    return {**written, "options": options, "compute_id": None}


def _choose_chain(
    data: DataFolders,
    target: Target,
    queries: Embeddings,
    gallery: Embeddings,
    embed: RunEmbedder,
    config: RunConfig,
    *,
    frozen: bool,
    features_in: Path,
    progress: Progress | None,
) -> RefinementChoice:
    """The chain that does best on validation images that resemble the test part."""
    return choose_chain_on_images(
        training_part(data.training, config.data),
        config.training,
        target,
        frozen=frozen,
        embed=lambda images: embed(images, VALIDATION),
        nearest_cosine=mean_nearest_cosine(queries.vectors, gallery.vectors, same_set=data.one_set),
        uses=config.refine_uses,
        features_in=features_in,
        progress=progress and (lambda done, total: progress(STAGE, done, total)),
    )


def _model_record(
    embedder: Embedder, tuned: TrainResult | None, config: RunConfig
) -> dict[str, Any]:
    """The result file's keys that describe the model and its training."""
    record: dict[str, Any] = {
        "model_name": embedder.name,
        "pooling": embedder.pooling,
        **embedder.origin.record(),
        "model_id": embedder.model_id,
        "image_size": list(embedder.preprocess.size),
        "interpolation": embedder.preprocess.interpolation,
        "framing": embedder.preprocess.framed_as,
        "views": None if embedder.views is None else str(embedder.views),
        **about_tiles(embedder.tiles),
        "whiten": config.whiten,
        "dim": embedder.dim,
    }
    earlier = dict(embedder.origin.training or {})  # recorded in the embedder's folder
    earlier.pop("validation", None)  # a key of its own in the result file
    earlier.pop("trained_on", None)
    if tuned is None:
        training = earlier
    elif tuned.is_improved:
        training = {**tuned.record()["training"], **earlier}
    else:
        from vizsla.train.training import options_given

        options = options_given(config.training)
        before = {"before": earlier["options"]} if earlier else {}
        training = {
            **earlier, **tuned.record()["training"], "options": {**options, **before}
        }  # fmt: skip
    return {**record, "training": training} if training else record
