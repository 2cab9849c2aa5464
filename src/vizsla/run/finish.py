"""The end of a run: a ranking → scores, sheets, submission and the sealed result file.

One model and several models end in the same way.
"""

import dataclasses
import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import vizsla
from vizsla import storage
from vizsla.choose.fusion_choice import FusionChoice
from vizsla.choose.refinement import RefinementChoice
from vizsla.data.data_folders import DataFolders
from vizsla.data.fingerprint import fingerprint
from vizsla.data.label_sets import distinct_labels
from vizsla.data.listing import few
from vizsla.embed.embeddings import Embeddings
from vizsla.notebook import Shown, Summary
from vizsla.output.sheet_selection import draw_sample, with_unanswered
from vizsla.output.submission import write_submission
from vizsla.run.accepting import CALIBRATION
from vizsla.run.config import RunConfig
from vizsla.score.by_item import ITEM_SCORES, by_item
from vizsla.score.calibration import Calibration
from vizsla.score.evaluate import evaluate
from vizsla.score.result_file import item_record, result_record
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth
from vizsla.score.validation_scores import KEYS, ValidationScores
from vizsla.score.whole_gallery import evaluate_ranked
from vizsla.search import exact
from vizsla.search.chain import Chain
from vizsla.search.ranking import Ranking
from vizsla.train.selection import TrainResult
from vizsla.workspace import Messages, Run

log = logging.getLogger("vizsla.run")


@dataclass(frozen=True, repr=False)
class RunResult(Shown):
    """What a run left behind.

    scores: None if no labels are known; `validation` may be known all the same. record: the content
    of the result file.
    refinement_choice, fusion_choice: how chain and fusion weights were chosen, if `auto`.
    calibration: what decided which matches are accepted, if that was asked for.
    before: the scores without what refined or fused: those of the cosines, or of the best model.
    tuned: the training, if it was part of the run. members: the runs that a joint run fused.
    item_scores: the scores of items, if they were asked for.
    """

    run: Run
    model_name: str
    ranking: Ranking
    scores: Scores | None
    result_path: Path
    submission_path: Path
    figure_paths: list[Path]
    seconds: float
    record: dict[str, Any]
    chain: Chain = field(default_factory=Chain)
    refinement_choice: RefinementChoice | None = None
    tuned: TrainResult | None = None
    members: list["RunResult"] = field(default_factory=list)
    fusion_choice: FusionChoice | None = None
    calibration: Calibration | None = None
    item_scores: Scores | None = None
    before: Scores | None = None

    def summary(self) -> Summary:
        """Model, folder and scores, without labels those of validation; the table of the scores."""
        scores = self.scores.summary() if self.scores else Summary("", unscored(self.validation))
        facts = [self.model_name, *scores.facts, f"{self.seconds:.0f} s", f"in {self.run.folder}"]
        return dataclasses.replace(scores, title="Run", facts=facts)

    def gain_lines(self) -> list[str]:
        """What refinement, or fusion beside the best of its models, gave on validation, and on the
        test part where its truth is known."""
        lines = []
        choices = {"fusion": self.fusion_choice, "refinement": self.refinement_choice}
        for what, choice in choices.items():
            if choice is None or choice.without in (None, choice.report.chosen):
                continue
            both = [one for one in (choice.without, choice.report.chosen) if one is not None]
            means = [(one.top1, one.map, one.points) for one in both]
            lines.append(_gain(what, "validation", *means))
        known = [self.before, *(one.scores for one in self.members)]
        best = max(filter(None, known), key=lambda one: one.mean("map") or 0, default=None)
        if best is not None and self.scores is not None:
            before, after = (list(map(one.mean, KEYS.values())) for one in (best, self.scores))
            what = "fusion" if self.members else "refinement"
            lines.append(_gain(what, "the test part", before, after))
        return lines

    @property
    def validation(self) -> ValidationScores | None:
        """top1, map and points on held-out training images, which need no labels of the test part;
        None unless something was chosen there: by `finetune`, `refine="auto"`, … or `best`."""
        return ValidationScores.of(self.record.get("validation"))

    @property
    def warnings(self) -> list[str]:
        """What was logged as a warning."""
        return list(self.record["warnings"])

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        fusion = self.record.get("fusion")
        return {
            "run": str(self.run.folder),
            "model_name": self.model_name,
            "queries": len(self.ranking),
            "gallery": self.ranking.gallery_size,
            "scores": self.scores and self.scores.to_dict(),
            "result": str(self.result_path),
            "submission": str(self.submission_path),
            "figures": [str(path) for path in self.figure_paths],
            "refine": self.record["refine"],
            "seconds": round(self.seconds, 2),
            "warnings": self.warnings,
            **({"item_scores": self.item_scores.to_dict()} if self.item_scores else {}),
            **({"accept": self.calibration.to_dict()} if self.calibration else {}),
            **({"fusion": fusion} if fusion else {}),
            **({"members": [one.to_dict() for one in self.members]} if self.members else {}),
        }


def unscored(validation: ValidationScores | None) -> list[str]:
    """The facts about a run without labels of its test part."""
    known = validation.facts if validation else []
    return ["no labels are known, so there are no scores", *known]


Means = Sequence[float | None]  # in the order of KEYS


def _gain(what: str, where: str, before: Means, after: Means) -> str:
    shown = [
        f"{name} {a:.{digits}f} → {b:.{digits}f}"
        for name, digits, a, b in zip(KEYS, (4, 4, 1), before, after, strict=True)
        if a is not None and b is not None
    ]
    return f"{what} gave on {where}: {', '.join(shown)}"


def finish_run(
    run: Run,
    config: RunConfig,
    data: DataFolders,
    truth: Truth | None,
    ranking: Ranking,
    vectors: tuple[Embeddings, Embeddings],
    *,
    ranked_by_vectors: bool,
    model: dict[str, Any],
    messages: Messages,
    started: float,
    calibration: Calibration | None = None,
) -> RunResult:
    """Writes everything that a run leaves, the result file last.

    vectors: of queries and gallery. ranked_by_vectors: whether they alone made the ranking, so that
    one which ends early can be completed. model: the result file's keys that describe the model or
    models, `model_name` among them. started: by time.monotonic(). calibration: by which the ranking
    was decided.
    """
    name = str(model["model_name"])
    ranking.save(run.folder / "ranking.parquet")
    if calibration is not None:
        calibration.save(run.folder / CALIBRATION)
        model = {**model, "accept": calibration.to_dict()}
    scores = _score(ranking, truth, config, vectors if ranked_by_vectors else None)
    if scores is not None:
        for doubt in scores.doubts:
            log.warning("%s", doubt)
        scores.save(run.folder / "scores.json")
    before = None
    if scores is not None and ranked_by_vectors and model["refine"]["chain"] != "none":
        before = _score(exact.rank(*vectors, same_set=data.one_set), truth, config, vectors)
    item_scores = _item_scores(ranking, truth, config, calibration)
    if item_scores is not None:
        item_scores.save(run.folder / ITEM_SCORES)
        model = {**model, "items": {**config.items, **item_record(item_scores)}}
    figures = []
    if config.figures != 0:
        figures = draw_sample(
            with_unanswered(ranking, data.query.ids), data, truth, scores, run.figures_folder(name),
            k=config.top_k, figures=config.figures, seed=config.seed, max_pixels=config.max_pixels,
        )  # fmt: skip
    submission = run.submission_path(name)
    lists = submission_lists(ranking, data, vectors, config.top_k)
    write_submission(
        lists, submission, k=config.top_k, queries=data.query.ids, gallery=data.gallery.ids
    )
    seconds = time.monotonic() - started
    classes = distinct_labels(data.training.labels or []) if data.training else None
    record = result_record(
        scores,
        **model,
        run_id=run.id,
        top_k=config.top_k,
        num_classes=None if classes is None else len(classes),
        runtime_seconds=round(seconds, 2),
        data={
            "name": Path(config.data).resolve().name,
            "queries": len(data.query),
            "gallery": len(data.gallery),
            "id": data_id(data),
        },
        warnings=messages.warnings,
        vizsla_version=vizsla.__version__,
    )
    storage.write_sealed_json(run.result_path(name), record)
    log.info("done in %.1f s", seconds)
    return RunResult(
        run, name, ranking, scores, run.result_path(name), submission, figures, seconds, record,
        calibration=calibration, item_scores=item_scores, before=before,
    )  # fmt: skip


def record_validation(run: Run, validation: ValidationScores) -> None:
    """Writes into a finished run's result file what validation says of it, in place of what it
    says there."""
    path = run.result_file
    if path is not None:
        content = storage.read_json(path)
        storage.write_sealed_json(path, {**content, "validation": validation.record()})


def _score(
    ranking: Ranking,
    truth: Truth | None,
    config: RunConfig,
    vectors: tuple[Embeddings, Embeddings] | None,
) -> Scores | None:
    """Scores, over the whole gallery if the vectors that made the ranking are given."""
    if truth is None:
        log.debug("no labels are known: scores are null")
        return None
    if vectors is None:
        scores = evaluate(ranking, truth, **config.scoring)
    else:
        scores = evaluate_ranked(ranking, truth, *vectors, **config.scoring)
    return scores


def _item_scores(
    ranking: Ranking, truth: Truth | None, config: RunConfig, calibration: Calibration | None
) -> Scores | None:
    """The scores of items; None if they were not asked for, or without a truth."""
    if truth is None or not config.items:
        return None
    scoring = {key: value for key, value in config.scoring.items() if key != "protocol"}
    return evaluate(*by_item(ranking, truth, **config.items, calibration=calibration), **scoring)


def submission_lists(
    ranking: Ranking, data: DataFolders, vectors: tuple[Embeddings, Embeddings], top_k: int
) -> dict[str, list[str]]:
    """query → its first top_k images, for every query of the data and always top_k of them.

    A query that cannot be read gets the list of the mean query; gallery images that cannot be
    read fill the end of lists that would be too short.
    """
    queries, gallery = vectors
    lists = ranking.to_lists(top_k)
    missing = [name for name in data.query.ids if name not in lists]
    if missing:
        average = queries.vectors.mean(axis=0, keepdims=True)  # (1, D)
        length = float(np.linalg.norm(average))
        average = average / length if length > 1e-6 else queries.vectors[:1]
        positions, _ = exact.top_k(average, gallery.vectors, min(top_k, len(gallery)))
        lists |= {name: [gallery.ids[p] for p in positions[0]] for name in missing}
        log.warning(
            "queries that cannot be read are submitted with the list of the mean query: %s",
            few(missing),
        )
    if len(gallery) < top_k:
        readable = set(gallery.ids)
        broken = [name for name in data.gallery.ids if name not in readable]
        lists = {
            query: [*row, *(n for n in broken if n not in row)][:top_k]
            for query, row in lists.items()
        }
        log.warning(
            "only %d gallery images can be read: every list of the submission ends with %d broken "
            "ones", len(gallery), top_k - len(gallery),
        )  # fmt: skip
    return lists


def data_id(data: DataFolders) -> str:
    """The same for the same query and gallery images: scores on others do not compare."""
    both = fingerprint(data.query) + fingerprint(data.gallery)
    return hashlib.sha256(both.encode()).hexdigest()[:16]
