"""Several models: a run of each, then a joint run whose ranking is fused from theirs.

The joint run's folder has the form of any run's. Its embeddings are the models' concatenated
vectors, and its configuration names the runs that it was made from.
"""

import dataclasses
import logging
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vizsla.choose.refinement import refine_record
from vizsla.data.splits import training_part
from vizsla.embed.auto_compute import resolve_compute
from vizsla.errors import UsageError
from vizsla.model.open_model import load_embedder
from vizsla.model.projection import save_projection
from vizsla.options import FusionOptions
from vizsla.run.accepting import check_accept
from vizsla.run.config import RunConfig, absolute_accept, moved_to, recorded_config, repeated
from vizsla.run.embedding import Progress
from vizsla.run.finish import RunResult, finish_run
from vizsla.run.fused_runs import (
    AUTO,
    CONCAT,
    Fused,
    FusionConfig,
    fuse_runs,
    joint_calibration,
    require_decidable,
    require_whole_images,
    with_joint_evidence,
)
from vizsla.run.inputs import folders_of, target_in, truth_in
from vizsla.run.members import Member
from vizsla.run.pipeline import run
from vizsla.run.validate_on import validating_as
from vizsla.search.chain import Chain
from vizsla.workspace import PROJECTION, Messages, Run, create_run, log_to, open_run

log = logging.getLogger("vizsla.run")

VALIDATING = (  # options of training that also apply without training
    "validate_on", "optimise", "split_by", "query_domain", "gallery_domain"
)  # fmt: skip


def run_models(
    configs: Sequence[RunConfig], fusion: FusionConfig, progress: Progress | None = None
) -> RunResult:
    """Runs each configuration and fuses them; the joint run has its own folder and files. One
    configuration is just run, unless its vectors are projected as those of several are."""
    if len(configs) == 1 and fusion.method != CONCAT:
        return run(configs[0], progress)
    for config in configs:
        if config.precision == "int8":  # refused before the first run, if for one of them
            embedder = load_embedder(config, seed=config.seed, tiles_later=True)
            resolve_compute(device=config.device, precision="int8", embedder=embedder)
        if config.query_tiles is not None:
            raise UsageError(
                "--query-tiles is for one model: the vectors of several are those of whole queries"
            )
    fusion.check(len(configs))
    require_whole_images(fusion, (config.tiles for config in configs))
    require_decidable(configs[0].accept, configs)
    data = folders_of(configs[0])
    check_accept(configs[0], data, target_in(data, truth_in(configs[0], data)))
    if needed_by := fusion.needs_training:
        training_part(data.training, configs[0].data, needed_by)
    started = time.monotonic()
    changes: dict[str, Any] = {"figures": 0, "accept": None}  # their joint ranking is decided
    if fusion.method == CONCAT:  # what is refined is their joint ranking
        changes["refine"] = "none"
    done: list[RunResult] = []
    for config in configs:
        own = validating_as(config, done[0].run.folder) if done else config
        done.append(run(dataclasses.replace(own, **changes), progress))
    configs = [validating_as(configs[0], done[0].run.folder), *configs[1:]]
    members = [Member.of(result.run.folder, cache=configs[0].cache) for result in done]
    joint = joint_run(members, configs[0], fusion, progress, started=started)
    return dataclasses.replace(joint, members=done)


def joint_run(
    members: Sequence[Member],
    config: RunConfig,
    fusion: FusionConfig,
    progress: Progress | None = None,
    *,
    started: float | None = None,
) -> RunResult:
    """A run of its own whose ranking is fused from finished runs on the same images.

    config: of the joint run: data, k, figures, … started: by time.monotonic(), if it includes
    what came before.
    """
    started = time.monotonic() if started is None else started
    with Messages() as messages:
        data = folders_of(config)
        this_run = create_run(config.home)
        with log_to(this_run.folder / "log.txt", earlier=messages.records):
            this_run.write_config(_written(members, config, fusion))
            found = fuse_runs(members, fusion, progress)
            if any(member.record.get("tiles") for member in members):
                log.warning(
                    "tiles count in this ranking, but not when the run is served: several models "
                    "search by the vectors of whole images"
                )
            truth, calibration, ranking = truth_in(config, data), None, found.ranking
            vectors = found.vectors(members)
            if config.accept is not None:
                ranking = with_joint_evidence(ranking, members, found.fusion, vectors)
                calibration = joint_calibration(
                    members, found.fusion, config.accept, ranking, progress
                )
                ranking = calibration.decide(ranking)
            if found.projection is not None:
                save_projection(found.projection, this_run.folder / PROJECTION)
            for role, part in zip(("query", "gallery"), vectors, strict=True):
                part.save(this_run.folder / "embeddings" / role)
            result = finish_run(
                this_run, config, data, truth, ranking, vectors,
                ranked_by_vectors=False,
                model=_models_record(members, config, found),
                messages=messages, started=started, calibration=calibration,
            )  # fmt: skip
    return dataclasses.replace(
        result,
        chain=found.chain,
        refinement_choice=found.refinement_choice,
        fusion_choice=found.fusion_choice,
    )


def _written(members: Sequence[Member], config: RunConfig, fusion: FusionConfig) -> dict[str, Any]:
    """The joint run's configuration; `joint_configs` reads it."""
    first = members[0].run.config
    return {
        "form": "run/1",
        "options": {
            **first["options"],
            "figures": config.figures,
            "accept": absolute_accept(config.accept),
        },
        "embedder": {
            "name": _joint_name(members),
            "model_id": "+".join(m.record["model_id"] for m in members),
        },
        "compute_id": first["compute_id"],
        "versions": {**first["versions"], "python": platform.python_version()},
        "members": [
            {"run": member.run.id, "options": dataclasses.asdict(member.config)}
            for member in members
        ],
        "fusion": dataclasses.asdict(fusion),
    }


def joint_configs(
    folder: str | Path, *, data: str | Path | None = None
) -> tuple[list[RunConfig], FusionConfig] | None:
    """The configurations that repeat a joint run; None if it is a run of one model."""
    joint = open_run(folder)
    recorded = joint.config
    if "members" not in recorded:
        return None
    fusion = FusionConfig(**recorded["fusion"])
    kept = {name: recorded["options"].get(name) for name in ("figures", "accept")}
    configs = [
        repeated(RunConfig(**member["options"]), Run(joint.home, member["run"]).folder)
        for member in recorded["members"]
    ]
    if data is not None:
        configs = [moved_to(config, data) for config in configs]
    return [dataclasses.replace(config, **kept) for config in configs], fusion


def _joint_name(members: Sequence[Member]) -> str:
    return "+".join(member.name for member in members)


def _models_record(members: Sequence[Member], config: RunConfig, found: Fused) -> dict[str, Any]:
    """The result file's keys that describe the models and their fusion."""
    records = [member.record for member in members]
    poolings = list(dict.fromkeys(str(record["pooling_type"]) for record in records))
    tuned = {record["is_finetuned"] for record in records}
    sizes = list(dict.fromkeys(tuple(record["image_size"]) for record in records))
    choice = found.refinement_choice or found.fusion_choice
    return {
        "model_name": _joint_name(members),
        "batch_size": config.batch_size,
        "is_finetuned": True if True in tuned else None if None in tuned else False,
        "pooling": "+".join(poolings),
        "model_id": "+".join(record["model_id"] for record in records),
        "image_size": [list(size) for size in sizes] if len(sizes) > 1 else list(sizes[0]),
        "refine": _refined(members, found),
        "fusion": found.record(),
        "validation": choice and choice.validation.record(),
        "members": [
            {"run": member.run.id, "model_name": member.name, "weight": round(weight, 4),
             "chain": str(member.chain), "map": member.record.get("map"),
             "top_k_accuracy": member.record.get("top_k_accuracy")}
            for member, weight in zip(members, found.weights, strict=True)
        ],
    }  # fmt: skip


def _refined(members: Sequence[Member], found: Fused) -> dict[str, Any]:
    """The refinement of the joint ranking, which uses whatever one of the chains uses."""
    if found.chain.steps:
        return refine_record(found.chain, found.refinement_choice)
    chains = [] if found.ranking.origin["fusion"]["method"] == CONCAT else members
    whole = Chain(tuple(step for member in chains for step in member.chain.steps))
    return {
        **refine_record(whole, None),
        "chain": " | ".join(str(member.chain) for member in chains) or "none",
    }


def configs_to_repeat(
    folder: str | Path, *, data: str | Path | None = None, figures: int | None = None
) -> tuple[list[RunConfig], FusionConfig]:
    """The configurations that repeat a run of one model or of several. data: where it is now."""
    found = joint_configs(folder, data=data)
    if found is None:
        found = [repeated(recorded_config(folder, data=data), folder)], FusionConfig()
    configs, fusion = found
    if figures is not None:
        configs = [dataclasses.replace(config, figures=figures) for config in configs]
    return configs, fusion


def new_configs(
    data: str | Path,
    models: Sequence[str],
    weights: Sequence[str],
    options: dict[str, Any],
    tuning: dict[str, Any],
    fusing: FusionOptions | None,
) -> tuple[list[RunConfig], FusionConfig]:
    """A configuration for each model, and how they are fused (None: by default).

    options: those of RunOptions. tuning: the options of training that were given.
    """
    if len(weights) not in (1, len(models)):
        raise UsageError(
            f"{len(weights)} --weights for {len(models)} --model: give one for all, or one for each"
        )
    if len(models) == 1 and fusing is not None:
        raise UsageError("--fusion… joins several models: give --model twice or more")
    fusing, tuning, validating = fusing or FusionOptions(), dict(tuning), None
    if (
        AUTO in (options["refine"], fusing.fusion, fusing.fusion_weights)
        and "finetune" not in tuning
    ):
        validating = {key: tuning.pop(key) for key in VALIDATING if key in tuning} or None
    if tuning and "finetune" not in tuning:
        raise UsageError(f"{', '.join(tuning)}: options of training need --finetune")
    configs = [
        RunConfig(
            **{**options, "model": name, "weights": file},
            data=str(data), tuning=tuning or None, validating=validating,
        )
        for name, file in zip(models, [*weights] * (len(models) // len(weights)), strict=True)
    ]  # fmt: skip
    refining = (options["refine"], options["refine_uses"]) if fusing.fusion == CONCAT else ()
    return configs, FusionConfig(
        fusing.fusion, fusing.fusion_weights, fusing.fusion_whiten, *refining
    )
