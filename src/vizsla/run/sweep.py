"""Many runs: models × pooling × fine-tuning, or a search for the settings of a training.

Every combination is a separate run of the main job. Finished ones are recorded under <home>/sweeps,
so that the same command continues from there; a failure is listed and skipped.
"""

import dataclasses
import functools
import gc
import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.data.data_folders import open_data
from vizsla.data.fingerprint import fingerprint
from vizsla.embed.shared_vectors import JOINT_POOLINGS, embed_together
from vizsla.errors import MissingExtraError, StorageError, UsageError, VizslaError
from vizsla.model.build import resolve_backbone
from vizsla.model.embedder import Embedder
from vizsla.model.open_model import load_embedder
from vizsla.model.pooling import POOLINGS
from vizsla.options import ModelChoice, TuneConfig
from vizsla.output import pages
from vizsla.run import pipeline
from vizsla.run.config import RunConfig, compute_for
from vizsla.run.embedding import Progress
from vizsla.run.train import train
from vizsla.score.compare import Comparison, read_results
from vizsla.score.result_file import Result
from vizsla.score.run_table import Row, RunTable, row_of_result, run_table
from vizsla.train.selection import TrainResult

log = logging.getLogger("vizsla.run.sweep")

FORM = "sweep/1"
LOSSES = ("cross-entropy", "cross-entropy+0.5*supcon", "arcface", "multi-similarity")
RATES = {"learning_rate": (1e-5, 1e-3), "head_learning_rate": (3e-4, 1e-2)}


@dataclass(frozen=True)
class SweepConfig:
    """The options of `vizsla sweep`. run: what all runs share; its model, weights, pooling and
    tuning's finetune and loss are replaced.

    weights: one for all models, or one for each. poolings: None is the model's own.
    losses: of the training; empty is its default. trials: 0 runs the grid; otherwise so many
    trainings are tried for each combination, and the best settings are run. metric: orders the
    table.
    """

    run: RunConfig
    models: Sequence[str]
    weights: Sequence[str] = ("pretrained",)
    poolings: Sequence[str | None] = (None,)
    finetunes: Sequence[str] = ("none",)
    losses: Sequence[str] = ()
    trials: int = 0
    metric: str | None = None


@dataclass(frozen=True)
class Combination:
    """One cell of the grid."""

    model: str
    weights: str
    pooling: str | None
    finetune: str
    loss: str | None = None

    def __str__(self) -> str:
        parts = [Path(self.model).name, self.pooling, self.finetune, self.loss]
        return " · ".join(part for part in parts if part)


@dataclass
class Outcome:
    """The outcome of a combination: a result file, or the reason why there is none.

    left_out: why it cannot be run, which is not a failure. reused: it was run by an earlier call.
    """

    combination: Combination
    result: Path | None = None
    reused: bool = False
    error: str | None = None
    left_out: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # found by trials


@dataclass(frozen=True)
class SweepResult:
    """What became of every combination, in the grid's order. metric: orders the table."""

    outcomes: list[Outcome]
    metric: str | None = None

    @property
    def failures(self) -> list[Outcome]:
        """The combinations that ended with an error."""
        return [outcome for outcome in self.outcomes if outcome.error]

    @functools.cached_property
    def results(self) -> Comparison | None:
        """The results of all combinations that have one; None if none has."""
        paths = [outcome.result for outcome in self.outcomes if outcome.result]
        return read_results(paths) if paths else None

    @functools.cached_property
    def ranked(self) -> RunTable | None:
        """One row for each result, the best first; None if there is none."""
        if self.results is None:
            return None
        of_path = {outcome.result: outcome for outcome in self.outcomes if outcome.result}
        rows = [_row(of_path[Path(one.path or "")], one) for one in self.results.results]
        return run_table(rows, self.metric)

    def remarks(self) -> tuple[list[str], list[str]]:
        """(alarms, notes): failures and what cannot be true; then what was left out."""
        alarms, notes = self.results.remarks() if self.results else ([], [])
        failed = [f"{outcome.combination} failed: {outcome.error}" for outcome in self.failures]
        left = [f"{o.combination} left out: {o.left_out}" for o in self.outcomes if o.left_out]
        return failed + alarms, left + notes

    def to_dict(self) -> dict[str, Any]:
        """Every outcome, the table and the remarks, for JSON."""
        alarms, notes = self.remarks()
        return {
            "runs": [
                {**dataclasses.asdict(o.combination), "result": o.result and str(o.result),
                 "reused": o.reused, "error": o.error, "left_out": o.left_out,
                 "settings": o.settings}
                for o in self.outcomes
            ],
            "best_first": self.ranked.records() if self.ranked else [],
            "alarms": alarms,
            "notes": notes,
        }  # fmt: skip

    def html(self) -> str:
        """Scores, table, remarks and settings as one self-contained page."""
        return pages.comparison_page(self.ranked, self.results, self.remarks(), title="Sweep")


def sweep(config: SweepConfig, progress: Progress | None = None) -> SweepResult:
    """Runs every combination that has no result yet."""
    grid = combinations(config)
    if config.trials and all(one.finetune == "none" for one in grid):
        raise UsageError("--trials searches the settings of a training: give --finetune head, …")
    place = Path(config.run.home) / "sweeps"
    shared = dataclasses.replace(
        config.run,
        cache=config.run.cache or str(place / "cache"),
        runtime="torch",  # one pass then serves several poolings, bit for bit
    )
    outcomes = []
    ahead = [one for one in grid if one.finetune == "none"]
    with storage.locked(place):
        for i, one in enumerate(grid, 1):
            log.info("%d of %d: %s", i, len(grid), one)
            outcome = _outcome(one, dataclasses.replace(config, run=shared), ahead, progress)
            outcomes.append(outcome)
            for word, why in (("failed", outcome.error), ("left out", outcome.left_out)):
                if why:
                    log.warning("%s %s: %s", one, word, why)
            gc.collect()  # the model before the next one
    return SweepResult(outcomes, config.metric)


def combinations(config: SweepConfig) -> list[Combination]:
    """The grid, models outermost. A folder's pooling is fixed, so it has one only."""
    _check(config)
    weights = list(config.weights) * (1 if len(config.weights) > 1 else len(config.models))
    losses = config.losses if config.losses and not config.trials else (None,)
    found = [
        Combination(model, own, pooling, finetune, loss if finetune != "none" else None)
        for model, own in zip(config.models, weights, strict=True)
        for pooling in ((None,) if Path(model).is_dir() else config.poolings)
        for finetune in config.finetunes
        for loss in losses
    ]
    return list(dict.fromkeys(found))


def _check(config: SweepConfig) -> None:
    if len(config.weights) not in (1, len(config.models)):
        raise UsageError(
            f"{len(config.weights)} --weights for {len(config.models)} models: give one for all, "
            "or one for each"
        )
    if config.run.precision == "int8":
        raise UsageError("a sweep computes by torch, which has no int8: choose --precision auto")
    for pooling in config.poolings:
        if pooling is not None and pooling not in POOLINGS:
            raise UsageError(f"--pooling {pooling}: choose among {', '.join(POOLINGS)}")
    for finetune in config.finetunes:
        TuneConfig.from_options({"finetune": finetune})  # refuses what it does not know


# ── one combination ──────────────────────────────────────────────────────────────────────────────


def _outcome(
    one: Combination,
    config: SweepConfig,
    ahead: Sequence[Combination],
    progress: Progress | None,
) -> Outcome:
    """Runs a combination that has no result yet. An error is recorded; the sweep continues."""
    try:
        poolings = None if Path(one.model).is_dir() else resolve_backbone(one.model).poolings
        if one.pooling and poolings and one.pooling not in poolings:
            return Outcome(one, left_out=f"it has {', '.join(poolings)} pooling")
        run = run_config(one, config)
        record = Path(config.run.home) / "sweeps" / f"{_key(run, config)}.json"
        done = _done_before(record)
        if done is not None:
            log.info("%s was run before: %s", one, done["result"])
            return Outcome(one, Path(done["result"]), reused=True, settings=done["settings"])
        settings = {}
        if config.trials and one.finetune != "none":
            settings = _search(run, config, record.with_suffix(""), progress)
            run = dataclasses.replace(run, tuning={**(run.tuning or {}), **settings})
        _embed_ahead(one, config, ahead, progress)
        result = pipeline.run(run, progress)
    except Exception as error:  # the next combination may work
        log.debug("%s", one, exc_info=True)
        known = isinstance(error, VizslaError)
        what = str(error) if known else f"{type(error).__name__}: {error}"
        return Outcome(one, error=" ".join(what.split()))
    content = {"form": FORM, **dataclasses.asdict(one), "result": str(result.result_path),
               "run": str(result.run.folder), "settings": settings}  # fmt: skip
    storage.write_sealed_json(record, content)
    return Outcome(one, result.result_path, settings=settings)


def run_config(one: Combination, config: SweepConfig) -> RunConfig:
    """The run of a combination."""
    tuning = None
    if one.finetune != "none":
        tuning = {**(config.run.tuning or {}), "finetune": one.finetune}
        if one.loss:
            tuning["loss"] = one.loss
    return dataclasses.replace(
        config.run, model=one.model, weights=one.weights, pooling=one.pooling, tuning=tuning
    )


def _key(run: RunConfig, config: SweepConfig) -> str:
    """A hash of everything that decides a result: the options, and the files that they name."""
    options = dataclasses.asdict(run)
    for name in ("home", "workers", "figures", "cache"):
        options.pop(name)
    data = open_data(run.data, follow_links=run.follow_links)
    inside = [Path(run.model) / below for below in ("config.json", "embedder/config.json")]
    files = [run.labels or data.labels_file, run.exclude, run.weights, *inside]
    hashes = [storage.sha256_of(file) if file and Path(file).is_file() else None for file in files]
    sets = [fingerprint(part) for part in (data.query, data.gallery)]
    training = fingerprint(data.training) if data.training and run.tuning else None
    searched = [config.trials, *config.losses] if run.tuning and config.trials else None
    content = json.dumps([options, hashes, sets, training, searched], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def _done_before(record: Path) -> dict[str, Any] | None:
    """What was recorded of a combination; None without its result file."""
    if not record.exists():
        return None
    try:
        content = storage.read_sealed_json(record)
    except StorageError as error:
        log.warning("%s, so it is run again", error)
        return None
    return content if Path(content["result"]).is_file() else None


def _embed_ahead(
    one: Combination,
    config: SweepConfig,
    grid: Sequence[Combination],
    progress: Progress | None,
) -> None:
    """One pass of a frozen model for all poolings in the grid, before the first."""
    same = [o for o in grid if (o.model, o.weights) == (one.model, one.weights)]
    poolings = [o.pooling for o in same if o.pooling in JOINT_POOLINGS]
    run = config.run
    if one.finetune != "none" or len(poolings) < 2 or one.pooling != poolings[0] or run.exclude:
        return
    data = open_data(run.data, follow_links=run.follow_links)
    choice = ModelChoice(
        model=one.model, weights=one.weights, pooling=one.pooling, image_size=run.image_size
    )
    first = load_embedder(choice, seed=run.seed)
    others = [Embedder(first.backbone, str(p), name=first.name).eval() for p in poolings[1:]]
    compute = compute_for(run, first, data)
    others = [e for e in others if compute_for(run, e, data) == compute]
    if not others:
        return

    def report(done: int, total: int) -> None:
        if progress:
            progress(f"embedding for {len(poolings)} poolings", done, total)

    for images in (data.query, data.gallery):
        embed_together(
            images, [first, *others], str(run.cache), compute=compute, max_pixels=run.max_pixels,
            progress=report,
        )  # fmt: skip


# ── trials ───────────────────────────────────────────────────────────────────────────────────────


def _search(
    run: RunConfig, config: SweepConfig, folder: Path, progress: Progress | None
) -> dict[str, Any]:
    """The settings of the best of `config.trials` trainings, by validation only.

    The study is kept in `folder`: an interrupted search continues.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("--trials", "sweep") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{(folder / 'study.db').absolute()}",
        study_name="sweep",
        sampler=optuna.samplers.TPESampler(seed=run.seed),
        direction="maximize",
        load_if_exists=True,
    )

    def value(trial: Any) -> float:
        settings = _suggested(trial, run, config.losses or LOSSES)
        tuning = {**(run.tuning or {}), **settings}
        return _trial_value(
            dataclasses.replace(run, tuning=tuning), folder / f"trial-{trial.number}", progress
        )

    over = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    done = len(study.get_trials(deepcopy=False, states=over))
    study.optimize(value, n_trials=max(0, config.trials - done), catch=(VizslaError, RuntimeError))
    if not study.get_trials(deepcopy=False, states=over[:1]):
        raise UsageError(f"none of the {config.trials} trials could be trained; see the log")
    log.info("best of %d trials: %.4f with %s", config.trials, study.best_value, study.best_params)
    return dict(study.best_params)


def _suggested(trial: Any, run: RunConfig, losses: Sequence[str]) -> dict[str, Any]:
    """A trial's settings. A given rate is not varied."""
    given = run.tuning or {}
    names = [name for name in RATES if name not in given]
    if given.get("finetune") == "head":
        names = [name for name in names if name != "learning_rate"]
    settings = {name: trial.suggest_float(name, *RATES[name], log=True) for name in names}
    settings["loss"] = trial.suggest_categorical("loss", list(losses))
    return settings


def _trial_value(run: RunConfig, out: Path, progress: Progress | None) -> float:
    """What the best trained candidate scores on validation; the test part is never used."""
    blind = dataclasses.replace(run, labels=None, labels_from=None)  # those of the test part
    result = train(blind, out, overwrite=True, progress=progress)
    shutil.rmtree(out / "embedder", ignore_errors=True)  # only its value counts
    assert isinstance(result, TrainResult)  # one process only, started from scratch
    return max(candidate.value for candidate in result.candidates[1:])


def _row(outcome: Outcome, result: Result) -> Row:
    """A row of the table; with the loss, if the sweep or its trials have varied it."""
    row, loss = row_of_result(result), outcome.settings.get("loss", outcome.combination.loss)
    return dataclasses.replace(row, setup=", ".join(filter(None, [row.setup, loss])))
