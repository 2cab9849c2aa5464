"""A model that was trained before → which of the training images it has not seen."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vizsla.data.fingerprint import in_sample
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import AUTO, SPLITTING, Target, held_out, safer_kind
from vizsla.errors import DataError
from vizsla.model.embedder import Embedder
from vizsla.model.model_card import Origin
from vizsla.options import TuneConfig
from vizsla.run.config import DOMAINS, RunConfig
from vizsla.run.inputs import with_domains
from vizsla.run.validate_on import with_validation

log = logging.getLogger("vizsla.run")

MAY_HAVE_SEEN = (
    "%s may have been trained on images that validation holds out, so what is chosen or learned on "
    "them may look better than it is. If --validate-on, --split-by or --set share was given, leave "
    "it out; otherwise train the model again: its training was of an earlier version, or of other "
    "images"
)


def has_seen(origin: Origin, images: ImageSet) -> bool:
    """Whether the model was trained on some of these images, or may have been."""
    return held_out_before(origin, images) != {}


def held_out_before(
    origin: Origin,
    images: ImageSet,
    target: Target | None = None,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """How a model's training held out some of these images: its options of SPLITTING. {}: it was
    trained on none of them. None: it was, but what it held out is not known, or the options that
    are given hold out others.

    images: with the domains of that training. given: options of validation, which replace those of
    the training, except for `auto` and None.
    """
    if origin.training is None:
        return {}
    samples = origin.training.get("trained_on", [None])
    if None in samples:  # trained before this was recorded
        return None
    options = origin.training["options"]
    trained = [in_sample(images, sample) for sample in samples]
    while trained and not trained[-1].any():  # on other images
        trained.pop()
        options = options.get("before", {})
    if not trained:
        return {}
    asked = {k: v for k, v in (given or {}).items() if k in SPLITTING and v not in (None, AUTO)}
    found = {name: options[name] for name in SPLITTING} | asked
    try:
        parts = held_out(images, TuneConfig.from_options(found), target)
    except DataError:  # the images have changed, or their domains are not known
        return None
    kept = np.isin(np.flatnonzero(np.any(trained, axis=0)), parts.training)
    return found if kept.all() else None


def validated_as_trained(
    config: RunConfig, training: ImageSet | None, target: Target | None, embedder: Embedder
) -> tuple[RunConfig, ImageSet | None, bool]:
    """The configuration with what the model's earlier training held out, the training images with
    its domains, and whether all of them are new to the model. Warns where this is not known."""
    if not training or embedder.origin.training is None:
        return config, training, True
    given = config.tuning if config.tuning is not None else config.validating
    domains = config.domains or domains_of(embedder)
    images = with_domains(training, domains) if domains else training
    found = held_out_before(embedder.origin, images, target, given)
    if found == {}:
        return config, training, True
    chooses = AUTO in (config.refine, config.tiles) or config.accept is not None
    validates = chooses or config.tuning is not None
    if found is not None:
        if validates:
            log.info(
                "validating on %s, seed %d: what the training of %s held out",
                found["validate_on"], found["seed"], embedder.name,
            )  # fmt: skip
        return with_validation(dataclasses.replace(config, domains=domains), **found), images, False
    if validates:
        log.warning(MAY_HAVE_SEEN, embedder.name)
        if config.training.validate_on == AUTO:
            config = with_validation(config, validate_on=safer_kind(training.labels or []))
    return config, training, False


def domains_of(embedder: Embedder) -> str | None:
    """The file of the domains that the training of a saved embedder assigned, if it did."""
    model = (embedder.source or {}).get("model")
    return None if model is None else domains_beside(model)


def domains_beside(folder: str | Path) -> str | None:
    """The file of domains in the folder that this embedder's folder lies in; None without one."""
    file = Path(folder).parent / DOMAINS
    return str(file) if file.exists() else None
