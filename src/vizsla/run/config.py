"""The options of `run`, and how they are recorded: every path absolute, every `auto` resolved."""

import dataclasses
import functools
import logging
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import vizsla
from vizsla.choose.refinement import saved_chain
from vizsla.choose.tile_choice import saved_tiles
from vizsla.data.data_folders import DataFolders
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.compute import Compute
from vizsla.errors import UsageError
from vizsla.model.embedder import Embedder
from vizsla.options import RunOptions, TuneConfig
from vizsla.workspace import open_run

log = logging.getLogger("vizsla.run")

DOMAINS = "domains.json"  # in the run's folder: which training image looks like what
REFINEMENT = "refinement.json"  # in the run's folder: what `auto` has chosen
TILES = "tiles.json"  # the same of --tiles


@dataclass(frozen=True, kw_only=True)
class RunConfig(RunOptions):
    """The options of `vizsla run`. Paths are made absolute and every `auto` resolved in the run.

    tuning: the options of TuneConfig that were given; None if the model runs frozen.
    validating: the same for choices on validation images without training.
    model_id: what --again must find; None for any. domains: the file of an earlier run that has
    decided which training images look like the queries, and which like the gallery.
    """

    data: str
    tuning: dict[str, Any] | None = None
    validating: dict[str, Any] | None = None
    model_id: str | None = None
    domains: str | None = None

    @functools.cached_property
    def training(self) -> TuneConfig:
        """The options of the training, or of choices on validation images without a training."""
        shared = {
            "seed": self.seed,
            "device": self.device,
            "precision": "auto" if self.precision == "int8" else self.precision,
            "workers": self.workers,
            "max_pixels": self.max_pixels,
            "real_weights": self.weights != "random",
        }
        given = self.tuning if self.tuning is not None else self.validating
        return TuneConfig.from_options({**shared, **(given or {})})

    @property
    def scoring(self) -> dict[str, Any]:
        """The options of `score.evaluate.evaluate` that the run is scored with."""
        named = {"metrics_named": self.metrics, "protocol": self.protocol}
        chosen = {key: value for key, value in named.items() if value}
        own = {"ks": sorted({1, 5, 10, self.top_k}), "top_k": self.top_k, "seed": self.seed}
        return {**own, **chosen}

    @property
    def items(self) -> dict[str, str]:
        """The options of `score.by_item.by_item`, if items are scored too; else empty."""
        given = {"group_by": self.group_by, "query_group": self.query_group}
        known = {key: value for key, value in given.items() if value is not None}
        return {**known, "query_join": self.query_join} if self.query_group else known


def recorded_config(folder: str | Path, *, data: str | Path | None = None) -> RunConfig:
    """The configuration of an earlier run, as it was resolved then. data: where the data is now."""
    recorded = open_run(folder).config
    known = {f.name for f in dataclasses.fields(RunConfig)}
    options = {key: value for key, value in recorded["options"].items() if key in known}
    options["model_id"] = recorded["embedder"]["model_id"]
    if options.get("refine") == "auto":
        options["refine"] = saved_chain(Path(folder) / REFINEMENT) or "auto"
    if options.get("tiles") == "auto":  # none, if there was nothing to choose on
        options["tiles"] = saved_tiles(Path(folder) / TILES) or "none"
    if (Path(folder) / DOMAINS).exists():
        options["domains"] = str((Path(folder) / DOMAINS).absolute())
    config = RunConfig(**options)
    return config if data is None else moved_to(config, data)


def repeated(config: RunConfig, folder: str | Path) -> RunConfig:
    """The same, its training under a clock with the steps that the run in `folder` took.

    Warns where these were not recorded, so that the repetition may end with other weights.
    """
    tuning = config.tuning
    if tuning is None or tuning.get("budget") is None or tuning.get("replay") is not None:
        return config
    from vizsla.train.job import Decisions  # imports torch

    decisions = Decisions.read(Path(folder) / "training")
    if decisions is None:
        log.warning(
            "%s was trained for %g s and has no record of its steps: the repetition trains as "
            "long, and may end with other weights", folder, tuning["budget"],
        )  # fmt: skip
        return config
    return dataclasses.replace(config, tuning={**tuning, "replay": decisions})


def moved_to(config: RunConfig, data: str | Path) -> RunConfig:
    """The same for data that was moved; files inside its folder moved with it."""
    before, now = Path(config.data), Path(data).absolute()

    def moved(path: str | None) -> str | None:
        inside = path is not None and Path(path).is_relative_to(before)
        return str(now / Path(path).relative_to(before)) if path and inside else path

    return dataclasses.replace(
        config, data=str(now), labels=moved(config.labels), exclude=moved(config.exclude),
        truth=moved(config.truth),
    )  # fmt: skip


def check_compute(config: RunConfig) -> None:
    """Before a model is loaded: whether the machine has the device, and training its settings."""
    resolve_compute(device=config.device, precision=config.precision)
    if config.tuning is not None:
        finetune = config.training.finetune  # UsageError for options that no training has
        if config.precision == "int8" and finetune not in ("none", "head"):
            raise UsageError(
                f"--finetune {finetune} changes the network's weights, and int8 is offered for the "
                "weights that come with it: choose --finetune head, or --precision auto"
            )


def compute_for(
    config: RunConfig, embedder: Embedder, data: DataFolders, images: int | None = None
) -> Compute:
    """What the run computes with: every `auto` resolved by its network and its images.

    images: how many are embedded, if not only those of the test part.
    """
    return resolve_compute(
        device=config.device,
        precision=config.precision,
        runtime=config.runtime,
        batch_size=config.batch_size,
        workers=config.workers,
        embedder=embedder,
        images=images or len(data.query) + len(data.gallery),
        sample=lambda i: data.gallery.file(i % len(data.gallery)),
    )


def resolved(
    config: RunConfig, embedder: Embedder, compute: Compute, data: DataFolders
) -> dict[str, Any]:
    """What `--again` reads: every path absolute, every `auto` decided."""

    def absolute(path: str | None) -> str | None:
        return str(Path(path).absolute()) if path and Path(path).exists() else path

    tuning = config.tuning
    if tuning is not None:  # its own `auto`: training may use another precision than embedding
        from vizsla.train.job import training_compute  # slow to import

        compute_of_training = training_compute(config.training)
        tuning = {**tuning, "precision": compute_of_training.precision}
        if tuning.get("teacher"):
            tuning["teacher"] = absolute(tuning["teacher"])
    options = dataclasses.replace(
        config,
        tuning=tuning,
        data=str(Path(config.data).absolute()),
        model=str(absolute(config.model)) if Path(config.model).is_dir() else config.model,
        weights=str(absolute(config.weights)),
        pooling=None if Path(config.model).is_dir() else embedder.pooling,
        labels=absolute(_labels_used(config, data)),
        exclude=absolute(config.exclude),
        truth=absolute(config.truth),
        accept=absolute_accept(config.accept),
        home=str(Path(config.home).absolute()),
        cache=None,  # whoever repeats this run need not have it
        device=compute.device,
        precision=compute.precision,
        runtime=compute.runtime,
        batch_size=compute.batch_size,
        workers=compute.workers,
    )
    names = ("torch", "torchvision", "timm", "open_clip_torch", "numpy", "pillow", "pyarrow")
    return {
        "form": "run/1",
        "options": dataclasses.asdict(options),
        "embedder": {"name": embedder.name, "model_id": embedder.model_id},
        "compute_id": compute.id,
        "versions": {
            "vizsla": vizsla.__version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in names},
        },
    }


def absolute_accept(accept: float | str | None) -> float | str | None:
    """The same, with the file of a calibration by its whole path."""
    if not isinstance(accept, str):
        return accept
    name, at, sure = (accept, "", "") if Path(accept).exists() else accept.rpartition("@")
    return f"{Path(name).absolute()}{at}{sure}"


def _labels_used(config: RunConfig, data: DataFolders) -> str | None:
    """The labels file of this run, so that --again does not find another one."""
    if config.labels_from or config.labels:
        return config.labels
    return None if data.labels_file is None or data.truth_file else str(data.labels_file)
