"""Several models: a run of each, then one ranking of them all, handed in and scored like any other.

The joint run's folder holds what a run's folder holds. Its embeddings are the models' own in a row,
and its configuration names the runs that it was made from.
"""

import dataclasses
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import vizsla
from vizsla import storage
from vizsla.choose.fusion_weights import WeightsChoice, choose_weights
from vizsla.choose.refinement import STAGE, RefinementChoice, choose_chain
from vizsla.choose.validation import (
    EmbeddedDraws,
    embedded_draws,
    mean_nearest_cosine,
    validation_set,
)
from vizsla.data.imageset import DataFolders, ImageSet
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.model.projection import WHITENINGS, whitening
from vizsla.output.sheet_selection import with_unanswered
from vizsla.output.submission import read_submission, write_submission
from vizsla.run.config import RunConfig, again, moved_to, tune_config
from vizsla.run.pipeline import (
    Progress,
    RunResult,
    data_id,
    draw_sheets,
    embed_role,
    folders_of,
    network_of_run,
    refine_record,
    run,
    score_run,
    target_in,
    truth_in,
)
from vizsla.score.result_file import result_record
from vizsla.search.chain import QUERIES, Chain, parse_chain, rank_refined
from vizsla.search.fusion import METHODS, checked_weights, fused, joined
from vizsla.search.ranking import Ranking
from vizsla.train.heads import project
from vizsla.train.training import training_part
from vizsla.workspace import Messages, Run, create_run, log_to, open_run

log = logging.getLogger("vizsla.run")

CONCAT, AUTO = "concat", "auto"


@dataclass(frozen=True)
class FusionConfig:
    """method: of search/fusion.py, or concat. weights: auto, one for each model, or equal ones.

    Of the models' vectors in a row, for concat alone: whiten, and the chain that refines them.
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
        opened = open_run(folder)
        if "members" in opened.config:
            raise DataError(f"{folder} is itself made of several models: name their own runs")
        found = sorted((opened.home / "results").glob(f"*_metrics_{opened.id}.json"))
        if not found:
            raise DataError(f"{folder} left no result: it was interrupted; run it again")
        return Member(opened, again(folder), storage.read_json(found[0]))

    @property
    def name(self) -> str:
        return str(self.record["model_name"])

    @property
    def chain(self) -> Chain:
        return parse_chain(self.record.get("refine", {}).get("chain", "none"))

    @property
    def is_tuned(self) -> bool:
        """Whether it has seen the training images' labels."""
        return self.record.get("training", {}).get("kept", "frozen") != "frozen"

    def ranking(self) -> Ranking:
        return Ranking.load(self.run.folder / "ranking.parquet")

    def embeddings(self, role: str) -> Embeddings:
        return Embeddings.open(self.run.folder / "embeddings" / role)

    def embed(self, images: ImageSet, role: str, progress: Progress | None) -> Embeddings:
        """Vectors of more images by this run's model, kept in its folder."""
        network = network_of_run(self.run, self.config)
        return embed_role(images, role, network, self.run, self.config, progress)


# ── fusing runs ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Fused:
    """weights: one for each model. choice: how they were chosen; refined: how concat was."""

    ranking: Ranking
    weights: list[float]
    choice: WeightsChoice | None = None
    chain: Chain = dataclasses.field(default_factory=Chain)
    refined: RefinementChoice | None = None

    def record(self, fusion: FusionConfig) -> dict[str, Any]:
        return {
            "method": fusion.method,
            "weights": [round(w, 4) for w in self.weights],
            "whiten": fusion.whiten if fusion.method == CONCAT else None,
            "chosen_on": self.choice and self.choice.record(),
        }


def fuse_runs(
    members: Sequence[Member], fusion: FusionConfig, progress: Progress | None = None
) -> Fused:
    """One ranking of runs on the same images. DataError where they are on others."""
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
    rankings = [member.ranking() for member in members]
    return Fused(fused(rankings, method=fusion.method, weights=weights), weights, choice)


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
    return choose_weights([drawn.vectors, *others], chains, drawn, method=method)


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
    vectors = [first.embeddings(role).vectors for role in ("query", "gallery")]
    return embedded_draws(
        training_part(data.training, config.data, "--fusion-weights auto"),
        tune_config(config, (config.tuning if tuned else config.validating) or {}),
        target_in(data, truth_in(config, data)),
        frozen=not tuned,
        embed=lambda images: first.embed(images, "validation-fusion", progress),
        nearest_cosine=mean_nearest_cosine(*vectors),
    )


def _splitting(config: RunConfig) -> tuple[Any, ...]:
    """What decides which images a training holds out."""
    asked = tune_config(config, config.tuning or {})
    return (
        asked.validate_on, asked.query_domain, asked.gallery_domain, asked.share, asked.draws,
        asked.seed, config.exclude,
    )  # fmt: skip


def _concatenated(
    members: Sequence[Member], fusion: FusionConfig, progress: Progress | None
) -> Fused:
    """The models' vectors in a row, whitened by those of the training images, then refined."""
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
                drawn.images, training.ids, drawn.draws, relative_share=drawn.relative_share
            )
            choice = choose_chain(
                training, validation, uses=fusion.refine_uses,
                progress=progress and (lambda done, total: progress(STAGE, done, total)),
            )  # fmt: skip
    chain = choice.chain if choice else parse_chain(fusion.refine)
    ranking = rank_refined(queries, gallery, chain)
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


# ── a run of each, and the joint one ─────────────────────────────────────────────────────────────


def run_models(
    configs: Sequence[RunConfig], fusion: FusionConfig, progress: Progress | None = None
) -> RunResult:
    """Runs each configuration and fuses them; the joint run has its own folder and files."""
    if len(configs) < 2:
        raise UsageError("give --model twice or more to fuse models")
    fusion.check(len(configs))
    if fusion.weights == AUTO or fusion.method == CONCAT:
        needed_by = "--fusion-weights auto" if fusion.weights == AUTO else "--fusion concat"
        training_part(folders_of(configs[0]).training, configs[0].data, needed_by)
    started = time.monotonic()
    alone: dict[str, Any] = {"figures": 0}
    if fusion.method == CONCAT:  # what is refined is their joint ranking
        alone["refine"] = "none"
    done = [run(dataclasses.replace(config, **alone), progress) for config in configs]
    with Messages() as messages:
        joint = _joint_run([Member.of(r.run.folder) for r in done], configs[0], fusion, messages,
                           started, progress)  # fmt: skip
    return dataclasses.replace(joint, members=done)


def _joint_run(
    members: Sequence[Member],
    config: RunConfig,
    fusion: FusionConfig,
    messages: Messages,
    started: float,
    progress: Progress | None,
) -> RunResult:
    name = "+".join(member.name for member in members)
    data = folders_of(config)
    truth = truth_in(config, data)
    this = create_run(config.home)
    with log_to(this.folder / "log.txt", earlier=messages.records):
        this.write_config(_written(members, config, fusion, name))
        found = fuse_runs(members, fusion, progress)
        ranking = found.ranking
        ranking.save(this.folder / "ranking.parquet")
        for role in ("query", "gallery"):
            parts = joined([member.embeddings(role) for member in members], found.weights)
            parts.save(this.folder / "embeddings" / role)
        scores = score_run(this, ranking, truth, config)
        drawn = with_unanswered(ranking, [n for n in data.query.ids if n not in ranking.queries])
        figures = draw_sheets(this, drawn, truth, scores, data, name, config)
        submission = this.submission_path(name)
        _hand_in(submission, ranking, members[0], data, config.top_k)
        seconds = time.monotonic() - started
        record = result_record(
            scores,
            **_about(members, config, data, name, this.id),
            runtime_seconds=round(seconds, 2),
            warnings=messages.warnings,
            vizsla_version=vizsla.__version__,
            refine=_refined(members, found),
            fusion=found.record(fusion),
            members=[
                {"run": m.run.id, "model_name": m.name, "weight": round(w, 4),
                 "chain": str(m.chain), "map": m.record.get("map"),
                 "top_k_accuracy": m.record.get("top_k_accuracy")}
                for m, w in zip(members, found.weights, strict=True)
            ],
        )  # fmt: skip
        result = this.result_path(name)
        storage.write_json(result, record)
    return RunResult(
        this, name, ranking, scores, result, submission, figures, seconds, messages.warnings,
        found.chain, found.refined, weights=found.choice, fusion=record["fusion"],
    )  # fmt: skip


def _written(
    members: Sequence[Member], config: RunConfig, fusion: FusionConfig, name: str
) -> dict[str, Any]:
    """The joint run's configuration; `again_models` reads it."""
    first = members[0].run.config
    return {
        "form": "run/1",
        "options": {**first["options"], "figures": config.figures},
        "embedder": {"name": name, "model_id": "+".join(m.record["model_id"] for m in members)},
        "compute_id": first["compute_id"],
        "versions": {**first["versions"], "python": platform.python_version()},
        "members": [
            {"run": member.run.id, "options": dataclasses.asdict(member.config)}
            for member in members
        ],
        "fusion": dataclasses.asdict(fusion),
    }


def again_models(
    folder: str | Path, *, data: str | Path | None = None
) -> tuple[list[RunConfig], FusionConfig] | None:
    """What a joint run was made from, to be repeated; None where it is a run of one model."""
    recorded = open_run(folder).config
    if "members" not in recorded:
        return None
    fusion = FusionConfig(**recorded["fusion"])
    figures = recorded["options"]["figures"]
    configs = [RunConfig(**member["options"]) for member in recorded["members"]]
    if data is not None:
        configs = [moved_to(config, data) for config in configs]
    return [dataclasses.replace(config, figures=figures) for config in configs], fusion


def _about(
    members: Sequence[Member], config: RunConfig, data: DataFolders, name: str, run_id: str
) -> dict[str, Any]:
    """What the starting document's result file says, of several models."""
    records = [member.record for member in members]
    poolings = list(dict.fromkeys(str(record["pooling_type"]) for record in records))
    tuned = {record["is_finetuned"] for record in records}
    sizes = list(dict.fromkeys(tuple(record["image_size"]) for record in records))
    return {
        "model_name": name,
        "run_id": run_id,
        "top_k": config.top_k,
        "batch_size": config.batch_size,
        "is_finetuned": True if True in tuned else None if None in tuned else False,
        "num_classes": records[0]["num_classes"],
        "pooling": "+".join(poolings),
        "data": {
            "name": Path(config.data).resolve().name,
            "queries": len(data.query),
            "gallery": len(data.gallery),
            "id": data_id(data),
        },
        "model_id": "+".join(record["model_id"] for record in records),
        "image_size": [list(size) for size in sizes] if len(sizes) > 1 else list(sizes[0]),
    }


def _refined(members: Sequence[Member], found: Fused) -> dict[str, Any]:
    """Of all chains the one that uses most says what the joint ranking uses."""
    if found.chain.steps:
        return refine_record(found.chain, found.refined)
    chains = [] if found.ranking.origin["fusion"]["method"] == CONCAT else members
    whole = Chain(tuple(step for member in chains for step in member.chain.steps))
    return {
        **refine_record(whole, None),
        "chain": " | ".join(str(member.chain) for member in chains) or "none",
    }


def _hand_in(path: Path, ranking: Ranking, first: Member, data: DataFolders, top_k: int) -> None:
    """The submission. What the joint ranking lacks (broken images) comes from the first model's."""
    known = ranking.to_lists(top_k)
    own = read_submission(first.run.submission_path(first.name)).to_lists()
    lists = {}
    for name in data.query.ids:
        row = known.get(name, [])
        lists[name] = [*row, *(g for g in own[name] if g not in row)][:top_k]
    write_submission(lists, path, k=top_k, queries=data.query.ids, gallery=data.gallery.ids)
