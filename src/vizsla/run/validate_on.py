"""`--validate-on auto` → the classes and domains of validation, by how the test images look.

Decided without test labels, by vectors of training and test images (choose/seen_classes.py,
choose/domains.py), once; what is decided is written into the run's configuration. Of a model that
was trained before, its training decides (earlier_training.py).
"""

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vizsla import storage
from vizsla.choose.domains import domain_gap, domain_roles
from vizsla.choose.seen_classes import PER_CLASS, seen_share
from vizsla.choose.validation import MOST_POOL
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import (
    AUTO,
    NEW,
    SEEN,
    has_assigned_domains,
    safer_kind,
)
from vizsla.embed.compute import Compute
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import embed
from vizsla.model.embedder import Embedder
from vizsla.progress import Report
from vizsla.run.config import DOMAINS, RunConfig, recorded_config
from vizsla.run.embedding import RunEmbedder
from vizsla.workspace import Run

log = logging.getLogger("vizsla.run")

VALIDATION = "validation"  # the embeddings of training images in a run's folder
TOO_FEW = "too few images or classes to tell whether those of the test part are new"
TRAINING_IMAGES, TEST_IMAGES = 600, 400  # that are embedded before a training, at most


def before_training(
    config: RunConfig,
    training: ImageSet | None,
    test: Sequence[ImageSet],
    embedder: Embedder,
    compute: Compute,
    progress: Report | None,
) -> tuple[RunConfig, ImageSet | None]:
    """The configuration of a training with `auto` decided, by a sample that is embedded for it, and
    the training images; both as they are if nothing is to be decided, or nothing trained.

    test: queries and gallery, without labels; none: nothing is known of them.
    """
    if config.tuning is None or config.training.validate_on != AUTO or not training:
        return config, training
    kind = safer_kind(training.labels or [])
    if kind == SEEN or not test or not all(map(len, test)):
        _log_safer(kind, TOO_FEW if kind == SEEN else "there is no test part to compare with")
        return with_validation(config, validate_on=kind), training
    report = progress and partial(progress, "comparing training and test images")
    with tempfile.TemporaryDirectory(prefix="vizsla-sample-") as scratch:

        def embedded(images: ImageSet, role: str) -> Embeddings:
            return embed(
                images, embedder, Path(scratch) / role, compute=compute, cache=config.cache,
                max_pixels=config.max_pixels, progress=report, only_whole=True, kept=False,
            )  # fmt: skip

        rng = np.random.default_rng((config.seed, 72))
        known = embedded(training.subset(_some_of_each_class(training.labels or [], rng)), "sample")
        parts = [
            embedded(part.subset(np.sort(rng.permutation(len(part))[: TEST_IMAGES // 2])), str(i))
            for i, part in enumerate(test)
        ]
        return _decided(config, training, known, parts, lambda: embedded(training, "training"))


def by_embeddings(
    config: RunConfig,
    training: ImageSet,
    embed_images: RunEmbedder,
    test: Sequence[Embeddings],
    this_run: Run,
) -> tuple[RunConfig, ImageSet]:
    """As `by_vectors`, for a run without a training; the decision is written into its folder.

    test: queries and gallery.
    """
    if config.training.validate_on != AUTO:
        return config, training
    decided, training = by_vectors(config, training, embed_images, VALIDATION, test)
    written = this_run.config
    options = {**written["options"], "validating": decided.validating}
    this_run.write_config({**written, "options": options})
    keep_assigned_domains(this_run.folder, training)
    return decided, training


def by_vectors(
    config: RunConfig,
    training: ImageSet,
    embed_images: Callable[[ImageSet, str], Embeddings],
    role: str,
    test: Sequence[Embeddings],
) -> tuple[RunConfig, ImageSet]:
    """The configuration with `auto` decided, and the training images.

    It is decided by the vectors of queries, gallery and training images, which choosing on
    validation images needs anyway (`choose.validation.embedded_draws`). role: for embedding the
    training images; of many images, a sample is embedded in a role of its own.
    """
    if config.training.validate_on != AUTO:
        return config, training
    if len(training) <= MOST_POOL:
        vectors = embed_images(training, role)
        return _decided(config, training, vectors, test, lambda: vectors)
    rng = np.random.default_rng((config.seed, 72))
    sample = training.subset(_some_of_each_class(training.labels or [], rng))
    vectors = embed_images(sample, f"{role}-sample")
    return _decided(config, training, vectors, test, lambda: embed_images(training, f"{role}-all"))


def _decided(
    config: RunConfig,
    training: ImageSet,
    known: Embeddings,
    test: Sequence[Embeddings],
    embed_all: Callable[[], Embeddings],
) -> tuple[RunConfig, ImageSet]:
    """known: vectors of training images. embed_all: of all, if each needs a domain."""
    vectors = [part.vectors for part in test]
    config = with_validation(
        config,
        validate_on=validate_on_by_vectors(
            known, vectors, all_labels=training.labels, seed=config.seed
        ),
    )
    given = (config.training.query_domain, config.training.gallery_domain)
    gap = domain_gap(*vectors, seed=config.seed) if given == (None, None) else None
    if gap is None or not gap.is_wide:
        return config, training
    own = None
    if "domain" in known.attributes.column_names:
        named = known.attributes["domain"].to_pylist()
        own = named if any(named) else None
    roles = domain_roles(gap, known.vectors, known.labels or [], own)
    if roles is not None and roles.assigned is not None:
        known = embed_all()
        roles = domain_roles(gap, known.vectors, known.labels or [], None)
    if roles is None:
        log.info(
            "%s, but too few training classes have images of both kinds to imitate it",
            gap.text(),
        )
        return config, training
    log.info(
        "%s: validating with queries of the domain %s, a gallery of the domain %s",
        gap.text(), roles.query, roles.gallery,
    )  # fmt: skip
    if roles.assigned is not None:
        domain_of = dict(zip(known.ids, roles.assigned, strict=True))
        training = training.with_attribute("domain", [domain_of.get(name) for name in training.ids])
    config = with_validation(config, query_domain=roles.query, gallery_domain=roles.gallery)
    return config, training


def validate_on_by_vectors(
    training: Embeddings,
    test: Sequence[np.ndarray],
    *,
    all_labels: Sequence[object] | None = None,
    seed: int = 0,
) -> str:
    """The part that validation should hold out; logs what was found, and how sure that is.

    training: with labels. test: vectors of queries and of gallery, (M, D) each. all_labels: see
    `seen_share`.
    """
    names = [str(label) for label in training.labels or []]
    kind = safer_kind(names)
    found = None
    if kind == NEW:
        rows = np.concatenate(test)
        once = np.sort(np.unique(rows, axis=0, return_index=True)[1])  # they may be one set
        found = seen_share(training.vectors, names, rows[once], all_labels=all_labels, seed=seed)
    if found is None:
        _log_safer(kind, TOO_FEW)
        return kind
    log.info("%s", found.text())
    return found.validate_on


def _log_safer(kind: str, why: str) -> None:
    log.info("validating on %s: %s", kind, why)


def with_validation(config: RunConfig, **options: Any) -> RunConfig:
    """The configuration with these options of validation, with or without a training."""
    if config.tuning is not None:
        return dataclasses.replace(config, tuning={**config.tuning, **options})
    return dataclasses.replace(config, validating={**(config.validating or {}), **options})


def validating_as(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration with `auto` as the run in `folder` has decided it, if it has."""
    decided = recorded_config(folder)
    chosen = decided.training
    if config.training.validate_on != AUTO or chosen.validate_on == AUTO:
        return config
    config = with_validation(
        config, validate_on=chosen.validate_on, query_domain=chosen.query_domain,
        gallery_domain=chosen.gallery_domain,
    )  # fmt: skip
    return dataclasses.replace(config, domains=decided.domains)


def keep_assigned_domains(folder: Path, training: ImageSet | None) -> None:
    """Writes the domains that were assigned to training images, if any, into a folder."""
    if training is not None and has_assigned_domains(training):
        domains = training.attributes["domain"].to_pylist()
        domain_of = dict(zip(training.ids, domains, strict=True))
        storage.write_sealed_json(folder / DOMAINS, {"domain_of": domain_of})


def _some_of_each_class(labels: Sequence[object], rng: np.random.Generator) -> np.ndarray:
    """(n,) positions, rising, of TRAINING_IMAGES at most; two of a class or more, if possible."""
    names = np.array([str(label) for label in labels])
    several = max(2, min(PER_CLASS, TRAINING_IMAGES // len(np.unique(names))))
    drawn = [rng.permutation(np.flatnonzero(names == name))[:several] for name in np.unique(names)]
    pairs = [rows for rows in drawn if len(rows) > 1] or drawn
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    return np.sort(np.concatenate(pairs)[:TRAINING_IMAGES])
