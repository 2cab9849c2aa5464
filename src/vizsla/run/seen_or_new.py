"""`--validate-on auto` → new-classes or seen-classes, by a sample of training and test images."""

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vizsla.choose.seen_classes import IMAGES, NEW, PER_CLASS, seen_share
from vizsla.data.imageset import ImageSet
from vizsla.embed.compute import Compute
from vizsla.embed.inference import embed
from vizsla.model.embedder import Embedder
from vizsla.progress import Report
from vizsla.run.config import RunConfig

log = logging.getLogger("vizsla.run")

AUTO = "auto"
TRAINING_IMAGES = 900  # in all, of PER_CLASS at most


def with_validate_on(
    config: RunConfig,
    training: ImageSet | None,
    test: Sequence[ImageSet],
    embedder: Embedder,
    compute: Compute,
    progress: Report | None,
) -> RunConfig:
    """The configuration with `auto` decided; itself if nothing is to be decided.

    test: the images of the test part, without labels; none: new classes are assumed.
    """
    if config.training.validate_on != AUTO:
        return config
    kind = NEW
    if (embedder.origin.training or {}).get("options"):
        log.info("validating on %s: the model has already seen training images", NEW)
    elif training is None or not training.labels or not any(map(len, test)):
        log.info("validating on %s: there is no test part to compare with", NEW)
    else:
        kind = _decided(config, training, test, embedder, compute, progress)
    return config_validating_on(config, kind)


def config_validating_on(config: RunConfig, kind: str) -> RunConfig:
    """The same, with that part held out, by a training or by choices without one."""
    if config.tuning is not None:
        return dataclasses.replace(config, tuning={**config.tuning, "validate_on": kind})
    return dataclasses.replace(
        config, validating={**(config.validating or {}), "validate_on": kind}
    )


def _decided(
    config: RunConfig,
    training: ImageSet,
    test: Sequence[ImageSet],
    embedder: Embedder,
    compute: Compute,
    progress: Report | None,
) -> str:
    rng = np.random.default_rng((config.seed, 72))
    labels = np.array([str(label) for label in training.labels or []])
    several = max(2, min(PER_CLASS, TRAINING_IMAGES // len(set(labels))))
    of_class = [
        rng.permutation(np.flatnonzero(labels == name))[:several] for name in np.unique(labels)
    ]
    several_of = [rows for rows in of_class if len(rows) > 1] or [np.arange(len(labels))]
    known = rng.permutation(np.concatenate(several_of))
    samples = [training.subset(np.sort(known[:TRAINING_IMAGES]))]
    for images in filter(len, test):
        share = IMAGES // 2 // len(test)
        samples.append(images.subset(np.sort(rng.permutation(len(images))[:share])))
    report = progress and partial(progress, "comparing training and test images")
    with tempfile.TemporaryDirectory(prefix="vizsla-seen-") as scratch:
        vectors = [
            embed(images, embedder, Path(scratch) / str(i), compute=compute, cache=config.cache,
                  max_pixels=config.max_pixels, progress=report)
            for i, images in enumerate(samples)
        ]  # fmt: skip
    names = [str(label) for label in vectors[0].labels or []]
    test_vectors = np.concatenate([one.vectors for one in vectors[1:]])
    found = seen_share(vectors[0].vectors, names, test_vectors, seed=config.seed)
    if found is None:
        log.info("validating on %s: too few images or classes to tell whether they are new", NEW)
        return NEW
    log.info("%s", found.text())
    return found.validate_on
