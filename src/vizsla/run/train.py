"""`train`: fine-tunes a model, into a folder or as a part of `run`."""

import dataclasses
import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.data.data_folders import has_layout
from vizsla.data.fingerprint import fingerprint
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Target, training_part
from vizsla.embed.shared_vectors import cached_embeddings, embeddings_key
from vizsla.errors import ModelError, StorageError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.model.open_model import load_embedder
from vizsla.notebook import Shown, Summary
from vizsla.options import TrainConfig
from vizsla.output import charts
from vizsla.progress import reporting
from vizsla.run.config import DOMAINS, RunConfig, check_compute
from vizsla.run.earlier_training import validated_as_trained
from vizsla.run.embedding import Progress
from vizsla.run.inputs import open_folders, training_images
from vizsla.run.teaching import VECTORS, teacher_of
from vizsla.run.validate_on import before_training, keep_assigned_domains
from vizsla.train.batch_gradient import Processes, open_processes
from vizsla.train.frozen_vectors import FEATURES, PART
from vizsla.train.job import WITHOUT_EFFECT, training_compute
from vizsla.train.loop import SHORT_FOLDER, read_log
from vizsla.train.selection import TrainResult, training_summary
from vizsla.train.training import PARTS, fine_tune

log = logging.getLogger("vizsla.train")

FORM = "training/1"
FINISHED = "finished.json"
TRAIN, KEEP, REFUSE = 0, 1, 2
# of a finished training; the latter holds a log
KEPT_PARTS: tuple[str, ...] = ("embedder", SHORT_FOLDER)


@dataclass(frozen=True, repr=False)
class Finished(Shown):
    """A training that has ended: its folder, settings, result, and the text that it printed."""

    folder: Path
    settings: dict[str, Any]
    result: dict[str, Any]
    printed: str

    def summary(self) -> Summary:
        """As that of the training's result."""
        return training_summary(self.result)

    def text(self) -> str:
        """What the training printed when it ended."""
        return self.printed

    def record(self) -> dict[str, Any]:
        """The keys of a result file."""
        return self.result

    def differing(self, settings: dict[str, Any]) -> list[str]:
        """The settings that are not the same, in words."""
        names = sorted(set(self.settings) | set(settings))
        return [
            name
            if name in ("images", "model")
            else f"{name} {self.settings.get(name)} there, {settings.get(name)} here"
            for name in names
            if self.settings.get(name) != settings.get(name)
        ]


def train(
    config: RunConfig,
    out: str | Path,
    *,
    overwrite: bool = False,
    devices: int = 1,
    progress: Progress | bool | None = None,
    embedder: Embedder | None = None,
) -> TrainResult | Finished | None:
    """Tunes a model into the folder `out`. config.data has the layout, or is a folder of classes.

    A finished training of the same settings in `out` is kept; UsageError if its settings were
    others. overwrite: starts over. devices: processes on this machine. progress: as of `run`.
    embedder: in place of the one that config names. None in all processes but the first.
    """
    out = Path(out)
    processes = open_processes(devices, config.device)
    check_compute(config)
    images, target = training_images(
        config.data,
        labels=config.labels,
        labels_from=config.labels_from,
        exclude=config.exclude,
        follow_links=config.follow_links,
        label_separator=config.label_separator,
    )
    embedder = embedder or load_embedder(config, seed=config.seed)
    images = training_part(images, config.data)
    with reporting(progress) as report:
        compute = training_compute(config.training)
        test = _test_images(config)
        config, known, _ = validated_as_trained(config, images, target, embedder)
        config, known = before_training(config, known, test, embedder, compute, report)
    images = training_part(known, config.data)
    settings = _settings(images, embedder, target, config)
    found = None if overwrite or processes.rank > 0 else finished(out)
    differing = found.differing(settings) if found else []
    verdict = processes.from_first(REFUSE if differing else KEEP if found else TRAIN)
    if differing:
        raise UsageError(
            f"{out} holds a finished training of other settings ({'; '.join(differing)}): "
            "choose another folder, or replace it with --overwrite"
        )
    if verdict != TRAIN:
        if found:
            log.info(
                "%s holds this training, finished: its model is kept. --overwrite trains again", out
            )
        return found
    if overwrite:
        _clear(out, processes)
    with reporting(progress) as report:
        result = tune_images(images, embedder, out, target, config, report, processes=processes)
    if processes.rank > 0:
        return None
    keep_assigned_domains(out, images)
    content = {
        "form": FORM, "model_id": result.embedder.model_id, "settings": settings,
        "result": result.record(), "text": result.text(),
    }  # fmt: skip
    storage.write_sealed_json(out / FINISHED, content)  # last: without it a training continues
    drop_resumption(out)
    return result


def _test_images(config: RunConfig) -> list[ImageSet]:
    """Queries and gallery, where the folder has a test part."""
    if not has_layout(config.data):
        return []
    data = open_folders(config.data, exclude=config.exclude, follow_links=config.follow_links)
    return [data.query, data.gallery]


def tune_images(
    images: ImageSet,
    embedder: Embedder,
    out: Path,
    target: Target | None,
    config: RunConfig,
    progress: Progress | None,
    *,
    processes: Processes | None = None,
) -> TrainResult:
    """Trains on labelled images, validates on a part of them, and draws the curve.

    With --cache, trainings with the same images held out share the vectors of the frozen model.
    """
    chosen = config.training
    of_training = {f.name for f in dataclasses.fields(TrainConfig)} - {"seed", "max_pixels"}
    splitting = {k: v for k, v in dataclasses.asdict(chosen).items() if k not in of_training}
    splitting["target"] = target and str(target)
    key = (
        embeddings_key(embedder, images, training_compute(chosen), **splitting)
        if config.cache
        else ""
    )
    with cached_embeddings(out / "features", config.cache, key):
        result = fine_tune(
            images, embedder, chosen, out, target=target, teacher=teacher_of(config, out),
            processes=processes, progress=progress,
        )  # fmt: skip
    if processes is None or processes.rank == 0:
        charts.training_curve(
            out / "curve.png", read_log(out), chosen.loss, short=read_log(out / SHORT_FOLDER)
        )
    return result


def finished(out: Path) -> Finished | None:
    """The training that ended in this folder; None if none did, or if its model is gone.

    A training that was interrupted has not ended.
    """
    if not (out / FINISHED).exists():
        return None
    try:
        content = storage.read_sealed_json(out / FINISHED)
        whole = Embedder.load(out / "embedder").model_id == content.get("model_id")
    except (StorageError, ModelError) as error:
        log.warning("the finished training in %s is damaged, so it is repeated: %s", out, error)
        return None
    if content.get("form") != FORM or not whole:
        return None
    return Finished(out, content["settings"], content["result"], content["text"])


def drop_resumption(out: Path) -> None:
    """Removes from the folder of a finished training what only an interrupted one needs.

    The embedder, the log, the curve and what the clock decided stay.
    """
    for part in (*(part for part in PARTS if part not in KEPT_PARTS), FEATURES, PART, VECTORS):
        shutil.rmtree(out / part, ignore_errors=True)


def _settings(
    images: ImageSet, embedder: Embedder, target: Target | None, config: RunConfig
) -> dict[str, Any]:
    """All that decides what a training computes, by name: images, model and options."""
    chosen = config.training
    known = json.dumps([fingerprint(images), target and dataclasses.astuple(target)])
    options = dataclasses.asdict(chosen)
    options["precision"] = training_compute(chosen).precision
    options["images"] = hashlib.sha256(known.encode()).hexdigest()[:24]
    options["model"] = embedder.model_id
    # The device counts only by its precision, and the weights are part of the model's id.
    omitted = (*WITHOUT_EFFECT, "device", "real_weights")
    return {key: value for key, value in options.items() if key not in omitted}


def _clear(out: Path, processes: Processes) -> None:
    """Removes what a training left; the old embedder stays until the new one is there."""
    if processes.rank == 0:
        with storage.locked(out):
            storage.remove(out / FINISHED)
            storage.remove(out / DOMAINS)
            for part in (*PARTS, FEATURES, PART, VECTORS):
                if part != "embedder":
                    shutil.rmtree(out / part, ignore_errors=True)
    processes.wait()
