"""`--validate-on auto` → new-classes or seen-classes, by vectors of training and test images."""

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vizsla.choose.seen_classes import IMAGES, PER_CLASS, seen_share
from vizsla.choose.validation import MOST_POOL
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import AUTO, NEW, SEEN, safer_kind
from vizsla.embed.compute import Compute
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import embed
from vizsla.model.embedder import Embedder
from vizsla.progress import Report
from vizsla.run.config import RunConfig
from vizsla.run.embedding import RunEmbedder
from vizsla.workspace import Run

log = logging.getLogger("vizsla.run")

TOO_FEW = "too few images or classes to tell whether those of the test part are new"
VALIDATION = "validation"  # the embeddings of training images in a run's folder
TRAINING_IMAGES = 900  # in all, of PER_CLASS at most


def before_training(
    config: RunConfig,
    training: ImageSet | None,
    test: Sequence[ImageSet],
    embedder: Embedder,
    compute: Compute,
    progress: Report | None,
) -> RunConfig:
    """The configuration of a training with `auto` decided, by a sample that is embedded for it;
    itself if nothing is to be decided, or nothing trained.

    test: the images of the test part, without labels; none: new classes are assumed.
    """
    if config.tuning is None or config.training.validate_on != AUTO or not training:
        return config
    kind = safer_kind(training.labels or [])
    if is_trained(embedder):
        _log_safer(kind, "the model has already seen training images")
    elif not any(map(len, test)):
        _log_safer(kind, "there is no test part to compare with")
    elif kind == SEEN:
        _log_safer(kind, TOO_FEW)
    else:
        kind = _by_sample(config, training, test, embedder, compute, progress)
    return config_validating_on(config, kind)


def by_embeddings(
    config: RunConfig,
    training: ImageSet,
    embed_images: RunEmbedder,
    test: Sequence[Embeddings],
    this_run: Run,
) -> RunConfig:
    """The configuration of a run without a training, with `auto` decided as `by_vectors` does;
    written into the run's configuration too.

    test: queries and gallery.
    """
    if config.training.validate_on != AUTO:
        return config
    if is_trained(embed_images.runtime.embedder):
        kind = safer_kind(training.labels or [])
        _log_safer(kind, "the model has already seen training images")
        decided = config_validating_on(config, kind)
    else:
        decided = by_vectors(config, training, embed_images, VALIDATION, test)
    written = this_run.config
    options = {**written["options"], "validating": decided.validating}
    this_run.write_config({**written, "options": options})
    return decided


def by_vectors(
    config: RunConfig,
    training: ImageSet,
    embed_images: Callable[[ImageSet, str], Embeddings],
    role: str,
    test: Sequence[Embeddings],
) -> RunConfig:
    """The configuration with `auto` decided by vectors that choosing on validation images needs
    anyway: those of queries, gallery and training images (`choose.validation.embedded_draws`).

    role: that these are embedded in; a sample of many is embedded in one of its own.
    """
    if config.training.validate_on != AUTO:
        return config
    if len(training) > MOST_POOL:  # not all are embedded
        rng = np.random.default_rng((config.seed, 72))
        training = training.subset(_some_of_each_class(training.labels or [], rng))
        role = f"{role}-sample"
    vectors = [part.vectors for part in test]
    kind = validate_on_by_vectors(embed_images(training, role), vectors, seed=config.seed)
    return config_validating_on(config, kind)


def is_trained(embedder: Embedder) -> bool:
    """Whether it has learned from labels, perhaps those of the training images."""
    return bool((embedder.origin.training or {}).get("options"))


def config_validating_on(config: RunConfig, kind: str) -> RunConfig:
    """The same, with that part held out, by a training or by choices without one."""
    if config.tuning is not None:
        return dataclasses.replace(config, tuning={**config.tuning, "validate_on": kind})
    return dataclasses.replace(
        config, validating={**(config.validating or {}), "validate_on": kind}
    )


def validate_on_by_vectors(
    training: Embeddings, test: Sequence[np.ndarray], *, seed: int = 0
) -> str:
    """The part that validation should hold out; logs what was found, and how sure that is.

    training: with labels. test: vectors of queries and of gallery, (M, D) each.
    """
    names = [str(label) for label in training.labels or []]
    kind = safer_kind(names)
    found = None
    if kind == NEW:
        found = seen_share(training.vectors, names, np.concatenate(test), seed=seed)
    if found is None:
        _log_safer(kind, TOO_FEW)
        return kind
    log.info("%s", found.text())
    return found.validate_on


def _log_safer(kind: str, why: str) -> None:
    log.info("validating on %s: %s", kind, why)


def _by_sample(
    config: RunConfig,
    training: ImageSet,
    test: Sequence[ImageSet],
    embedder: Embedder,
    compute: Compute,
    progress: Report | None,
) -> str:
    rng = np.random.default_rng((config.seed, 72))
    samples = [training.subset(_some_of_each_class(training.labels or [], rng))]
    for images in filter(len, test):
        share = IMAGES // 2 // len(test)
        samples.append(images.subset(np.sort(rng.permutation(len(images))[:share])))
    report = progress and partial(progress, "comparing training and test images")
    with tempfile.TemporaryDirectory(prefix="vizsla-seen-") as scratch:
        vectors = [
            embed(images, embedder, Path(scratch) / str(i), compute=compute, cache=config.cache,
                  max_pixels=config.max_pixels, progress=report, only_whole=True)
            for i, images in enumerate(samples)
        ]  # fmt: skip
    return validate_on_by_vectors(
        vectors[0], [one.vectors for one in vectors[1:]], seed=config.seed
    )


def _some_of_each_class(labels: Sequence[object], rng: np.random.Generator) -> np.ndarray:
    """(n,) positions, rising, of TRAINING_IMAGES at most; two of a class or more, if possible."""
    names = np.array([str(label) for label in labels])
    several = max(2, min(PER_CLASS, TRAINING_IMAGES // len(np.unique(names))))
    drawn = [rng.permutation(np.flatnonzero(names == name))[:several] for name in np.unique(names)]
    pairs = [rows for rows in drawn if len(rows) > 1] or drawn
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    return np.sort(np.concatenate(pairs)[:TRAINING_IMAGES])
