"""`--tiles auto` → an embedder with the tiles that labelled images prefer, or none without labels.

For this, the images of validation are embedded with the most tiles that are tried. The cost is
logged before.
"""

import copy
import dataclasses
import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vizsla.choose.tile_choice import (
    GRIDS,
    NONE,
    TileChoice,
    choose_tiles_on_images,
    vectors_each,
)
from vizsla.data.data_folders import DataFolders
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import AUTO, Target, safer_kind
from vizsla.embed.compute import Compute
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import embed
from vizsla.errors import DataError
from vizsla.model.embedder import Embedder
from vizsla.options import ModelChoice, TuneConfig
from vizsla.progress import Report
from vizsla.run.config import TILES, RunConfig
from vizsla.run.earlier_training import MAY_HAVE_SEEN, domains_of, held_out_before
from vizsla.run.embedding import TILED, RunEmbedder
from vizsla.run.inputs import with_domains
from vizsla.workspace import Run

log = logging.getLogger("vizsla.run")


def embedder_with_chosen_tiles(
    embedder: Embedder,
    images: ImageSet,
    choice: ModelChoice,
    compute_for: Callable[[Embedder], Compute],
    *,
    seed: int = 0,
    max_pixels: int,
    cache: str | Path | None = None,
    progress: Report | None = None,
) -> Embedder:
    """The embedder with the tiles that the labelled images prefer, if choice.tiles is `auto`; else
    as it is."""
    if choice.tiles != AUTO:
        return embedder
    embedder = copy.copy(embedder).with_tiles(NONE)
    images = labelled(images)
    if (embedded := _embedder_to_try(embedder, images)) is None:
        return embedder
    with tempfile.TemporaryDirectory(prefix="vizsla-tiles-") as scratch:

        def vectors(some: ImageSet) -> Embeddings:
            return embed(
                some, embedded, scratch, compute=compute_for(embedded), cache=cache,
                max_pixels=max_pixels, progress=progress and partial(progress, "trying tiles"),
                kept=False,
            )  # fmt: skip

        domains = domains_of(embedder)
        images = with_domains(images, domains) if domains else images
        earlier = held_out_before(embedder.origin, images)
        if earlier is None:
            log.warning(MAY_HAVE_SEEN, embedder.name)
        kind = safer_kind(images.labels or [])
        config = TuneConfig(**{"validate_on": kind, "seed": seed, **(earlier or {})})
        found = _chosen(images, config, None, frozen=earlier == {}, embed=vectors)
    return embedder if found is None else embedder.with_tiles(found.tiles)


def chosen_in_run(
    embedder: Embedder,
    data: DataFolders,
    target: Target,
    this_run: Run,
    compute: Compute,
    config: RunConfig,
    progress: Report | None,
    *,
    frozen: bool,
) -> tuple[Embedder, TileChoice | None]:
    """As `embedder_with_chosen_tiles` for a run, on its training images; the choice is kept in the
    run's folder. frozen: the model was trained on none of these."""
    if config.tiles != AUTO:
        return embedder, None
    embedder = embedder.with_tiles(NONE)
    images = data.training
    if images is None:
        _log_no_tiles("there are no training images")
        return embedder, None
    if (embedded := _embedder_to_try(embedder, images)) is None:
        return embedder, None
    tuning = config.training
    if tuning.validate_on == AUTO:
        kind = safer_kind(images.labels or [])
        tuning = dataclasses.replace(tuning, validate_on=kind)
    embed_images = RunEmbedder.of(embedded, this_run, compute, config, progress)
    found = _chosen(
        images, tuning, target, frozen=frozen, embed=lambda some: embed_images(some, TILED[-1]),
    )  # fmt: skip
    if found is None:
        return embedder, None
    found.save(this_run.folder / TILES)
    return embedder.with_tiles(found.tiles), found


def _embedder_to_try(embedder: Embedder, images: ImageSet) -> Embedder | None:
    """A copy with the most tiles; None, and why, if there are no labelled images."""
    if not len(images):
        _log_no_tiles("these images have no labels")
        return None
    log.info(
        "--tiles auto: trying %s on labelled images; for this alone their tiles are embedded, %d "
        "vectors of an image", ", ".join(GRIDS), vectors_each(GRIDS[-1]),
    )  # fmt: skip
    return copy.copy(embedder).with_tiles(GRIDS[-1])


def labelled(images: ImageSet) -> ImageSet:
    """Those of the images that have a label."""
    return images.subset([i for i, label in enumerate(images.labels or []) if label is not None])


def _chosen(
    images: ImageSet,
    config: TuneConfig,
    target: Target | None,
    *,
    frozen: bool,
    embed: Callable[[ImageSet], Embeddings],
) -> TileChoice | None:
    try:
        found = choose_tiles_on_images(images, config, target, frozen=frozen, embed=embed)
    except DataError as error:
        _log_no_tiles(str(error))
        return None
    for line in found.lines():
        log.info("%s", line)
    return found


def _log_no_tiles(why: str) -> None:
    log.info("--tiles auto chooses on labelled images, and %s: no tiles are made", why)
