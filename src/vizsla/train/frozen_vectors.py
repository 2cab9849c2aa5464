"""Training images → vectors of the frozen backbone, kept on disk, within a share of the budget.

If all images would take longer, a part of them is drawn, by class. Training an image takes
longer than reading it, so training would not reach the others either.
"""

import functools
import logging
from dataclasses import dataclass

import numpy as np

from vizsla.data.imageset import ImageSet
from vizsla.data.splits import class_codes, label_sets
from vizsla.data.training_batches import ImageCache
from vizsla.embed.auto_compute import resolve_compute, written_compute
from vizsla.embed.compute import Compute
from vizsla.embed.compute_shards import EmbeddingInput, embed_shards
from vizsla.embed.embeddings import read_manifest
from vizsla.embed.inference import embed
from vizsla.embed.runtime import Runtime
from vizsla.errors import DataError
from vizsla.model.embedder import Embedder
from vizsla.train import checkpoint
from vizsla.train.job import MIN_BUDGET, Budget, TrainingJob

log = logging.getLogger("vizsla.train")

READING_SHARE = 0.15  # of a budget that reading may take
TIMED_BATCHES = 2  # by which the speed is estimated, after one batch to warm up
FEATURES, PART, DECISION = "features", "features-part", "reading"  # folders
READING_RUNTIME = "reading runtime"  # the name of what the clock decided


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """The training images that were read, with their vectors of the frozen backbone.

    labels: (N,) class numbers. label_sets: (U, C) bool, which labels each class stands for; None
    if each image has one. vectors: (N, C). broken: (id, reason) of images that cannot be
    read. seconds: that reading and embedding took. teacher: (N, D'), a teacher's vectors.
    """

    images: ImageSet
    cache: ImageCache
    labels: np.ndarray
    vectors: np.ndarray
    broken: list[tuple[str, str]]
    seconds: float
    label_sets: np.ndarray | None = None
    teacher: np.ndarray | None = None


def embed_training_images(images: ImageSet, embedder: Embedder, job: TrainingJob) -> TrainingSet:
    """All images that can be read, or with a budget as many as there is time for.

    The vectors are those without the embedder's projection. DataError if fewer than two classes
    can be read. Other processes than the first wait for it.
    """
    started = job.budget.spent()
    cache = ImageCache(
        images,
        short_side=2 * max(embedder.preprocess.size),
        max_pixels=job.config.max_pixels,
    )
    if not job.is_first_process:
        job.processes.wait()
    frozen = embedder.without_projection()
    network = Runtime(frozen, _compute(images, frozen, job))
    count = len(images)
    if job.config.budget is not None:
        first_count = 0
        if job.is_first_process:
            decide = functools.partial(_images_to_read, cache, network, job)
            first_count = job.decisions.decide("images", decide)
        count = round(job.processes.from_first(first_count))
    if count < len(images):
        chosen = drawn_by_class(class_codes(images), count, job.config.seed)
        cache = cache.subset(images.subset(chosen))
    found = embed(
        cache.images,
        frozen,
        job.out / (FEATURES if count == len(images) else PART),
        runtime=network,
        max_pixels=cache.max_pixels,
        picture=cache.__getitem__,
        progress=lambda done, total: job.progress("reading images", done, total),
        only_whole=True,
    )
    if job.is_first_process:
        job.processes.wait()
    readable = cache.images
    if found.broken:
        readable = readable.without({name for name, _ in found.broken})
        if len(set(readable.labels or [])) < 2:
            raise DataError("without the broken images fewer than 2 classes are left")
        cache = cache.subset(readable)
        job.warn(f"{len(found.broken)} broken training images are left out")
    if count < len(images):
        job.warn(
            f"reading may take {READING_SHARE:.0%} of the budget, enough for {len(readable):,} of "
            f"the {len(images):,} training images: training uses these, drawn by class. A longer "
            "--budget reads more"
        )
    seconds = job.budget.spent() - started
    return TrainingSet(
        readable, cache, class_codes(readable), found.vectors, found.broken, seconds,
        label_sets(readable),
    )  # fmt: skip


def _compute(images: ImageSet, embedder: Embedder, job: TrainingJob) -> Compute:
    """The job's, by the fastest runtime; as before if the vectors are partly or wholly written, or
    if a training is repeated.

    By torch with a budget below MIN_BUDGET: the start of another runtime could take much of it.
    """
    written = written_compute(job.out / FEATURES) or written_compute(job.out / PART)
    if job.config.replay is not None:
        written = {"runtime": job.config.replay.get(READING_RUNTIME, "torch")}
    is_short = job.config.budget is not None and job.config.budget < MIN_BUDGET
    compute = resolve_compute(
        device=job.compute.device, precision=job.compute.precision,
        runtime="torch" if is_short and not written else "auto",
        batch_size=job.compute.batch_size, workers=job.compute.workers,
        embedder=embedder, images=len(images), written=written,
    )  # fmt: skip
    job.decisions.decide(READING_RUNTIME, lambda: compute.runtime)
    return compute


def drawn_by_class(codes: np.ndarray, n: int, seed: int) -> np.ndarray:
    """(n,) positions, rising; the same ones for the same seed. codes: (N,) class numbers.

    Two images of every class first, as far as n allows, then the same share of every class.
    """
    rng = np.random.default_rng((seed, 41))
    shuffled = rng.permutation(len(codes))
    order = shuffled[np.argsort(codes[shuffled], kind="stable")]
    codes = codes[order]
    sizes = np.bincount(codes)
    index = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[codes]  # within the class, from 0
    rank = np.where(
        index < 2, rng.permutation(len(sizes))[codes] - len(sizes), index / sizes[codes]
    )
    return np.sort(order[np.argsort(rank, kind="stable")[:n]])


def _images_to_read(cache: ImageCache, network: Runtime, job: TrainingJob) -> int:
    """Decided once and written down, so that an interrupted training continues with the same."""
    state = checkpoint.load_state(job.out / DECISION, identity=job.identity)
    if state is None:
        count = len(cache)
        try:
            read_manifest(job.out / FEATURES)  # read already, without a budget
        except DataError:
            count = _affordable_images(cache, network, job.budget)
        state = {"images": count}
        checkpoint.save_state(job.out / DECISION, state, identity=job.identity)
    return int(state["images"])


def _affordable_images(cache: ImageCache, network: Runtime, budget: Budget) -> int:
    """How many can be read in READING_SHARE of the budget, estimated from the time of a few."""
    assert budget.seconds is not None
    batch = network.compute.batch_size
    few = np.linspace(0, len(cache) - 1, (1 + TIMED_BATCHES) * batch).astype(int)
    if len(cache) <= 2 * len(few):
        return len(cache)
    source = EmbeddingInput(
        cache.images.subset(few), cache.max_pixels, lambda i: cache[int(few[i])]
    )
    started = budget.clock()
    for _ in embed_shards(source, network, [range(batch)]):
        pass
    warm = budget.clock()
    for _ in embed_shards(source, network, [range(batch, len(few))]):
        pass
    speed = TIMED_BATCHES * batch / max(1e-9, budget.clock() - warm)
    left = READING_SHARE * budget.seconds - (budget.clock() - started)
    return int(np.clip(speed * left, len(few), len(cache)))
