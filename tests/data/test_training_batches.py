"""Batch plans: full batches, every image in turn, P × K, domains mixed, the same for a step.

Images are decoded once where they fit, read again where they do not, and never too large.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from vizsla.data.imageset import ImageSet
from vizsla.data.splits import domain_codes
from vizsla.data.training_batches import BatchPlan, ImageCache, available_memory, training_batches
from vizsla.errors import ImageError, UsageError

LABELS = np.repeat(np.arange(6), [1, 2, 3, 8, 20, 30])


def test_plain_batches_show_every_image_once_an_epoch() -> None:
    plan = BatchPlan(LABELS, 16, seed=1)
    first = np.concatenate([plan.batch(step) for step in range(4)])
    assert sorted(first) == list(range(64))
    assert not np.array_equal(first, np.concatenate([plan.batch(s) for s in range(4, 8)]))


def test_balanced_batches_show_classes_equally() -> None:
    plan = BatchPlan(LABELS, 12, order="balanced")
    seen = LABELS[np.concatenate([plan.batch(step) for step in range(50)])]
    assert set(np.bincount(seen)) == {100}


def test_class_batches_are_p_times_k() -> None:
    plan = BatchPlan(LABELS, 16, order="classes", per_class=4)
    for step in range(20):
        batch = plan.batch(step)
        assert len(batch) == 16
        assert set(np.bincount(LABELS[batch]).tolist()) <= {0, 4}
    big = [b for step in range(20) for b in plan.batch(step) if LABELS[b] == 5]
    assert len(set(big)) > 10


def test_few_classes_fill_the_batch_all_the_same() -> None:
    plan = BatchPlan(np.array([0, 0, 0, 1, 1, 1]), 16, order="classes", per_class=2)
    assert np.bincount(plan.labels[plan.batch(0)]).tolist() == [8, 8]


def test_domains_are_mixed_within_a_class() -> None:
    labels, domains = np.repeat(np.arange(4), 10), np.array([0] * 9 + [1] + ([0] * 5 + [1] * 5) * 3)
    plan = BatchPlan(labels, 16, order="classes", per_class=4, domains=domains)
    for step in range(20):
        batch = plan.batch(step)
        for c in range(4):
            share = domains[batch[labels[batch] == c]].sum()
            assert share == (1 if c == 0 else 2)


def test_images_without_a_domain_are_of_one_together() -> None:
    names = [None, "photo", None, "drawing", "photo", None]
    images = ImageSet(Path("x"), [f"{i}.png" for i in range(6)], pa.table({"domain": names}))
    codes = domain_codes(images)
    assert codes is not None
    assert [codes.tolist().index(code) for code in codes] == [0, 1, 0, 3, 1, 0]
    plan = BatchPlan(np.array([0] * 3 + [1] * 3), 4, order="classes", per_class=2, domains=codes)
    first = [i for i in plan.batch(0) if i < 3]
    assert len(first) == 2 and 1 in first  # the photo, though two images have no domain


def test_a_set_smaller_than_a_batch_comes_round() -> None:
    plan = BatchPlan(np.array([0, 1, 1]), 8)
    assert len(plan.batch(0)) == 8
    assert set(plan.batch(0)) == {0, 1, 2}


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="plain, balanced, classes"):
        BatchPlan(LABELS, 8, order="pk")
    with pytest.raises(UsageError, match="two classes"):
        BatchPlan(LABELS, 8, order="classes", per_class=8)


def picture(i: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (i, 0, 0))


def noisy(image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
    red, _, _ = image.getpixel((0, 0))
    return torch.full((3, 2, 2), float(red) + rng.random())


def test_a_step_gives_the_same_whatever_came_before() -> None:
    plan = BatchPlan(LABELS, 8, seed=5)
    whole = training_batches(picture, noisy, plan, start=0, workers=2)
    late = training_batches(picture, noisy, plan, start=3, workers=1)
    images, positions = next(itertools.islice(whole, 3, None))
    again, positions_again = next(late)
    assert torch.equal(images, again)
    assert np.array_equal(positions, positions_again)
    assert np.array_equal(images[:, 0, 0, 0].long().numpy(), positions)
    whole.close()
    late.close()


def test_parts_of_a_batch_make_up_the_whole() -> None:
    plan = BatchPlan(LABELS, 8)
    streams = [
        training_batches(picture, noisy, plan, start=0, workers=1, part=part)
        for part in (slice(None), slice(0, 4), slice(4, 8))
    ]
    whole, left, right = (next(stream)[0] for stream in streams)
    assert torch.equal(whole, torch.cat([left, right]))
    for stream in streams:
        stream.close()


# ── decoded images ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def images(tmp_path: Path, paint: Callable[..., Path]) -> ImageSet:
    for i in range(3):
        paint(f"{i}.png", (i, 0, 0), (40, 20))
    return ImageSet.from_folder(tmp_path)


def test_what_fits_is_read_once(images: ImageSet) -> None:
    pictures = ImageCache(images)
    first = pictures[1].tobytes()
    images.path(1).unlink()
    assert pictures[1].tobytes() == first
    assert pictures[1].getpixel((0, 0)) == (1, 0, 0)


def test_what_does_not_fit_is_read_again(images: ImageSet) -> None:
    pictures = ImageCache(images, max_bytes=40 * 20 * 3)
    for i in range(3):
        assert pictures[i].size == (40, 20)
        images.path(i).unlink()
    assert pictures[0].size == (40, 20)
    with pytest.raises(ImageError):
        pictures[1]


def test_large_ones_are_kept_smaller_and_small_ones_as_they_are(images: ImageSet) -> None:
    assert ImageCache(images, short_side=10)[0].size == (20, 10)
    assert ImageCache(images, short_side=30)[0].size == (40, 20)


def test_a_part_takes_its_pictures_along(images: ImageSet) -> None:
    pictures = ImageCache(images)
    for i in range(3):
        assert pictures[i]
    part = pictures.subset(images.subset([2]))
    images.path(2).unlink()
    assert part[0].getpixel((0, 0)) == (2, 0, 0)


def test_free_memory_is_known_here() -> None:
    free = available_memory()
    assert free is None or free > 2**20
