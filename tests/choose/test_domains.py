"""Whether queries and gallery look different, on vectors where that is known."""

import numpy as np
import pytest

from vizsla.choose.domains import LIKE_GALLERY, LIKE_QUERIES, domain_gap, domain_roles

D = 32
LOOK = np.random.default_rng(9).standard_normal(D)  # what one domain adds to every image


def images_of(classes: range, each: int, seed: int, look: float = 0.0) -> np.ndarray:
    """Unit vectors (classes × each, D) around a centre of each class, moved by a look."""
    rng = np.random.default_rng((seed, 1))
    centres = [np.random.default_rng((c, 5)).standard_normal(D) for c in classes]
    rows = np.repeat(centres, each, axis=0) + 0.7 * rng.standard_normal((len(classes) * each, D))
    rows = rows + look * LOOK
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


LABELS = [f"class {c}" for c in range(10) for _ in range(12)]
PHOTOS, DRAWINGS = images_of(range(10), 12, 1, look=1.0), images_of(range(10), 12, 2)


@pytest.mark.parametrize("seed", range(20))
def test_random_parts_look_the_same(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(120)
    found = domain_gap(DRAWINGS[order[:50]], DRAWINGS[order[50:]], seed=seed)
    assert found is not None and not found.is_wide and found.low < 0.7


def test_more_classes_in_the_gallery_are_no_other_look() -> None:
    found = domain_gap(images_of(range(10), 6, 3), images_of(range(40), 6, 4))
    assert found is not None and not found.is_wide


def test_another_look_is_found() -> None:
    found = domain_gap(PHOTOS, DRAWINGS)
    assert found is not None and found.is_wide and found.low <= found.auc <= found.high
    assert "look different" in found.text()
    assert (found.margins(images_of(range(10, 20), 9, 5, look=1.0)) > 0).mean() > 0.95
    assert (found.margins(images_of(range(10, 20), 9, 5)) > 0).mean() < 0.05
    again = domain_gap(PHOTOS, DRAWINGS)
    assert again is not None and (again.auc, again.low, again.high) == (
        found.auc, found.low, found.high,
    )  # fmt: skip


def test_too_few_images_tell_nothing() -> None:
    assert domain_gap(PHOTOS[:19], DRAWINGS) is None
    assert domain_gap(PHOTOS, DRAWINGS[:0]) is None


def test_the_training_images_own_domains_are_used() -> None:
    gap = domain_gap(PHOTOS, DRAWINGS)
    assert gap is not None
    training = np.concatenate([images_of(range(10), 12, seed, seed == 7) for seed in (6, 7)])
    domains: list[str | None] = ["sketch"] * 120 + ["camera"] * 119 + [None]
    found = domain_roles(gap, training, LABELS * 2, domains)
    assert found is not None and (found.query, found.gallery) == ("camera", "sketch")
    assert found.assigned is None
    # the domains of the training part have nothing to do with this look, or are of other classes
    mixed = [["a", "b"][i % 2] for i in range(240)]
    assert domain_roles(gap, training, LABELS * 2, mixed) is None
    other = [f"other {label}" for label in LABELS]
    assert domain_roles(gap, training, LABELS + other, domains) is None


def test_images_without_domains_are_assigned_by_their_look() -> None:
    gap = domain_gap(PHOTOS, DRAWINGS)
    assert gap is not None
    training = np.concatenate([images_of(range(10), 12, seed, seed == 7) for seed in (6, 7)])
    found = domain_roles(gap, training, LABELS * 2, None)
    assert found is not None and found.assigned is not None
    assert (found.query, found.gallery) == (LIKE_QUERIES, LIKE_GALLERY)
    truth = [LIKE_GALLERY] * 120 + [LIKE_QUERIES] * 120
    assert np.mean([a == b for a, b in zip(found.assigned, truth, strict=True)]) > 0.95
    assert domain_roles(gap, training[:120], LABELS, None) is None  # drawings only
    other = [f"other {label}" for label in LABELS]
    assert domain_roles(gap, training, LABELS + other, None) is None


@pytest.mark.parametrize("each", [4, 9, 12, 20])
def test_one_catalogue_picture_of_each_class_is_enough(each: int) -> None:
    gap = domain_gap(PHOTOS, DRAWINGS)
    assert gap is not None
    photos, one = images_of(range(20), each - 1, 6, look=1.0), images_of(range(20), 1, 7)
    names = [f"class {c}" for c in range(20)]
    labels = [*np.repeat(names, each - 1).tolist(), *names]
    found = domain_roles(gap, np.concatenate([photos, one]), labels, None)
    assert found is not None and found.assigned is not None
    truth = [LIKE_QUERIES] * len(photos) + [LIKE_GALLERY] * 20
    assert np.mean([a == b for a, b in zip(found.assigned, truth, strict=True)]) > 0.95
    assert domain_roles(gap, photos, labels[: len(photos)], None) is None  # no catalogue picture


@pytest.mark.parametrize(("shift", "catalogue"), [(0.0, 0), (-0.2, 0), (0.0, 1), (-0.2, 1)])
@pytest.mark.parametrize("each", [6, 10, 20])
def test_misclassified_photos_are_not_taken_for_catalogue_pictures(
    each: int, shift: float, catalogue: int
) -> None:
    """As real classifiers err: they take some photos for catalogue pictures, but narrowly."""
    classes = 60
    for seed in range(3):
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(classes, 64))

        def images(which: np.ndarray, look: float) -> np.ndarray:
            vectors = centres[which] + 0.7 * rng.normal(size=(len(which), 64))  # noqa: B023
            vectors[:, 0] = 3 * rng.normal(look, 0.5, size=len(which))  # noqa: B023
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

        gap = domain_gap(
            images(rng.integers(0, classes, 300), 1.0), images(np.arange(classes).repeat(5), -1.0)
        )
        assert gap is not None and gap.is_wide and 0.9 < gap.hit < 0.99
        labels = np.arange(classes).repeat(each)
        training = images(labels, 1.0 + shift)
        training[: catalogue * classes * each : each] = images(np.arange(catalogue * classes), -1.0)
        found = domain_roles(gap, training, [str(label) for label in labels], None)
        assert (found is not None) == bool(catalogue)
