"""`train`: into a folder of its own, where a finished training stands unless it is told to go."""

import dataclasses
import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vizsla import storage
from vizsla.data.fingerprint import fingerprint
from vizsla.errors import ModelError, StorageError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.run import pipeline
from vizsla.run.config import RunConfig, tune_config
from vizsla.train.batch_gradient import Processes, open_processes
from vizsla.train.frozen_vectors import FEATURES, PART
from vizsla.train.job import training_compute
from vizsla.train.selection import TrainResult
from vizsla.train.training import PARTS

log = logging.getLogger("vizsla.train")

FORM = "training/1"
FINISHED = "finished.json"
# They do not change what is computed; the device counts by the precision that it is given.
UNHEEDED = ("device", "workers", "micro_batch", "tensorboard", "save_seconds", "real_weights")
TRAIN, KEEP, REFUSE = 0, 1, 2


@dataclass(frozen=True)
class Finished:
    """What a training that had ended left in its folder: its settings, its result, its words."""

    folder: Path
    settings: dict[str, Any]
    result: dict[str, Any]
    words: str

    def text(self) -> str:
        return self.words

    def record(self) -> dict[str, Any]:
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


def train_once(
    config: RunConfig,
    out: str | Path,
    *,
    overwrite: bool = False,
    devices: int = 1,
    progress: pipeline.Progress | None = None,
) -> TrainResult | Finished | None:
    """As `pipeline.train`; a finished training of the same settings in `out` is kept as it is.

    UsageError where it was of other settings. overwrite: starts over. None in all processes but
    the first.
    """
    out = Path(out)
    processes = open_processes(devices, config.device)
    material = pipeline.training_material(config)
    settings = settings_of(material, config)
    found = None if overwrite or processes.rank > 0 else finished(out)
    differing = found.differing(settings) if found else []
    verdict = processes.from_first(REFUSE if differing else KEEP if found else TRAIN)
    if verdict != TRAIN:
        if differing:
            raise UsageError(
                f"{out} holds a finished training of other settings ({'; '.join(differing)}): "
                "choose another folder, or replace it with --overwrite"
            )
        if found:
            log.info("%s holds this training, finished: its model is kept. --overwrite trains "
                     "anew", out)  # fmt: skip
        return found
    if overwrite:
        _cleared(out, processes)
    result = pipeline.train_on(material, config, out, processes=processes, progress=progress)
    if result is not None:
        _write_finished(result, settings)
    return result


def finished(out: Path) -> Finished | None:
    """What ended in this folder; None where nothing did, or where its model is not there any more.

    A training that was interrupted has not ended.
    """
    if not (out / FINISHED).exists():
        return None
    try:
        content = storage.read_sealed_json(out / FINISHED)
        whole = Embedder.load(out / "embedder").model_id == content.get("model_id")
    except (StorageError, ModelError) as error:
        log.warning("the finished training in %s is damaged, so it is done again: %s", out, error)
        return None
    if content.get("form") != FORM or not whole:
        return None
    return Finished(out, content["settings"], content["result"], content["text"])


def settings_of(material: pipeline.Material, config: RunConfig) -> dict[str, Any]:
    """All that decides what a training computes, by name: images, model and options."""
    images, embedder, target = material
    chosen = tune_config(config, config.tuning or {})
    known = json.dumps([fingerprint(images), target and dataclasses.astuple(target)])
    options = dataclasses.asdict(chosen)
    options["precision"] = training_compute(chosen).precision
    options["images"] = hashlib.sha256(known.encode()).hexdigest()[:24]
    options["model"] = embedder.model_id
    return {key: value for key, value in options.items() if key not in UNHEEDED}


def _write_finished(result: TrainResult, settings: dict[str, Any]) -> None:
    """Last of all: what was interrupted before goes on."""
    content = {
        "form": FORM, "model_id": result.embedder.model_id, "settings": settings,
        "result": result.record(), "text": result.text(),
    }  # fmt: skip
    storage.write_sealed_json(result.folder / FINISHED, content)


def _cleared(out: Path, processes: Processes) -> None:
    """A new start; the old embedder stays until the new one is there."""
    if processes.rank == 0:
        with storage.locked(out):
            storage.remove(out / FINISHED)
            for part in (*PARTS, FEATURES, PART):
                if part != "embedder":
                    shutil.rmtree(out / part, ignore_errors=True)
    processes.wait()
