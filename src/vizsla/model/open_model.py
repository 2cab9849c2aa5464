"""A name, the folder of an embedder, or a run → Embedder, as the options of a model say."""

import dataclasses
from pathlib import Path
from typing import Any

from vizsla.argument_types import wrong_type
from vizsla.data.resize import INTERPOLATIONS
from vizsla.data.splits import AUTO
from vizsla.errors import DataError, UsageError, VizslaError
from vizsla.model.embedder import Embedder
from vizsla.options import ModelChoice
from vizsla.workspace import is_run, open_run


def load_embedder(choice: ModelChoice, *, seed: int = 0, tiles_later: bool = False) -> Embedder:
    """From a backbone's name, a saved embedder's folder or a run's folder.

    tiles_later: the caller decides on tiles, if the choice is `auto`. UsageError if an option would
    change what a saved embedder has fixed, or if nobody decides on tiles.
    """
    if choice.tiles == AUTO and not tiles_later:
        raise UsageError(
            "--tiles auto is decided when a gallery is embedded, by run, embed, index and find: "
            "give grids here, such as 1+2x2"
        )
    folder = Path(choice.model)
    if not folder.is_dir():
        embedder = Embedder.build(
            choice.model,
            weights=choice.weights,
            pooling=choice.pooling,
            image_size=choice.image_size,
            seed=seed,
        )
    elif choice.weights != "pretrained" or choice.pooling or choice.image_size:
        raise UsageError(
            f"{folder} is a saved embedder: its weights, pooling and image size are fixed. "
            "Leave out --weights, --pooling and --image-size, or name a backbone"
        )
    elif choice.interpolation or choice.framing:
        raise UsageError(f"{folder} is a saved embedder: leave out --interpolation and --framing")
    else:
        embedder = Embedder.load(embedder_folder(folder))
    if choice.interpolation is not None:
        if choice.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"--interpolation {choice.interpolation}: choose {', '.join(INTERPOLATIONS)}"
            )
        embedder = embedder.with_interpolation(choice.interpolation)
    if choice.framing is not None:
        embedder = embedder.with_framing(choice.framing)
    if choice.views is not None:
        embedder = embedder.with_views(choice.views)
    return embedder if choice.tiles in (None, AUTO) else embedder.with_tiles(choice.tiles)


def embedder_folder(model: str | Path) -> Path:
    """The folder of a saved embedder, which may be that in a run. UsageError: the run is one of
    several models."""
    folder = Path(model)
    if not is_run(folder):
        return folder
    run = open_run(folder)
    if members := run.config.get("members"):
        names = ", ".join(str(dataclasses.replace(run, id=one["run"]).folder) for one in members)
        raise UsageError(
            f"{folder} is a run of {len(members)} models: give the run of one of them, {names}"
        )
    return folder / "embedder"


def is_chosen(choice: ModelChoice) -> bool:
    """Whether any option of the model was given another value than its default."""
    return any(getattr(choice, f.name) != f.default for f in dataclasses.fields(ModelChoice))


def as_embedder(model: Any, choice: ModelChoice, *, seed: int = 0) -> Embedder:
    """An Embedder as it is; by default the one of `load_embedder`. UsageError: neither."""
    if isinstance(model, Embedder):
        return model
    if isinstance(model, str | Path):
        return load_embedder(dataclasses.replace(choice, model=str(model)), seed=seed)
    raise wrong_type("model", model, str | Path | Embedder)


def recorded_embedder(source: dict[str, Any] | None, model_id: str | None, what: str) -> Embedder:
    """The embedder with this model_id (None: any), from what was recorded with vectors in `what`.

    DataError: nothing was recorded, or it builds another model now.
    """
    if source is None:
        raise DataError(
            f"{what} does not record how to build its model (a network or vectors of "
            "your own, or whitened): name it with --model, or give vectors"
        )
    known = {f.name for f in dataclasses.fields(ModelChoice)}
    choice = ModelChoice(**{key: value for key, value in source.items() if key in known})
    try:
        found = load_embedder(choice, seed=source.get("seed", 0))
    except VizslaError as error:
        raise DataError(
            f"{what} was embedded by {choice.model}, which cannot be opened ({error}): name the "
            "model with --model"
        ) from error
    if model_id not in (None, found.model_id):
        raise DataError(
            f"{what} was embedded by model {model_id}, but {choice.model}, which it records, is "
            f"now {found.model_id}: name the model with --model"
        )
    return found
