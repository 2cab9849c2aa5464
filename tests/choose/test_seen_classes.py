"""Whether test images are of training classes, on vectors where that is known."""

import numpy as np
import pytest

from vizsla.choose.seen_classes import SeenShare, seen_share


def images_of(classes: range, each: int, seed: int, spread: float = 0.9) -> np.ndarray:
    """Unit vectors (classes × each, 32) around one centre for each class."""
    rng = np.random.default_rng(seed)
    rows = []
    for c in classes:
        centre = np.random.default_rng((c, 5)).standard_normal(32)
        rows.append(centre + spread * rng.standard_normal((each, 32)))
    found = np.concatenate(rows)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


LABELS = [f"class {c}" for c in range(12) for _ in range(20)]
TRAINING = images_of(range(12), 20, 1)


@pytest.mark.parametrize(
    ("seen", "new", "share", "kind"),
    [
        (range(12), range(0), 1.0, "seen-classes"),
        (range(0), range(12, 24), 0.0, "new-classes"),
        (range(6), range(12, 18), 0.5, "new-classes"),
        (range(11), range(12, 13), 11 / 12, "seen-classes"),
    ],
)
def test_the_share_of_seen_classes_is_found(
    seen: range, new: range, share: float, kind: str
) -> None:
    test = np.concatenate([images_of(part, 10, 2) for part in (seen, new) if len(part)])
    found = seen_share(TRAINING, LABELS, test)
    assert found is not None
    assert found.share == pytest.approx(share, abs=0.15)
    assert found.low < found.share < found.high
    assert found.validate_on == kind and f"validating on {kind}" in found.text()
    assert found == seen_share(TRAINING, LABELS, test)


def test_classes_that_were_not_compared_count_as_the_others() -> None:
    """A sample has images of six of the twelve classes, and test images are of all."""
    test = images_of(range(12), 10, 2)
    found = seen_share(TRAINING[:120], LABELS[:120], test, all_labels=LABELS)
    assert found is not None and found.share == pytest.approx(1, abs=0.2)
    single = [*LABELS[:120], *(f"single {i}" for i in range(6))]
    rows = np.concatenate([TRAINING[:120], images_of(range(6, 12), 1, 3)])
    again = seen_share(rows, single, test)
    assert again is not None and again.share == pytest.approx(found.share, abs=0.1)
    half = seen_share(TRAINING[:120], LABELS[:120], test)
    assert half is not None and half.validate_on == "new-classes"


def test_single_images_do_not_make_new_test_classes_look_seen() -> None:
    """Six of the test classes are training classes of 20 images, and six are new; what the training
    classes of one image are asked for is unknown."""
    rows = np.concatenate([TRAINING[:120], images_of(range(30, 36), 1, 3)])
    labels = [*LABELS[:120], *(f"single {i}" for i in range(6))]
    test = np.concatenate([images_of(range(6), 10, 2), images_of(range(12, 18), 10, 2)])
    found = seen_share(rows, labels, test)
    assert found is not None
    assert found.low < 0.5 < found.high and found.validate_on == "new-classes"


def test_too_little_tells_nothing() -> None:
    test = images_of(range(12), 10, 2)
    assert seen_share(TRAINING, LABELS, test[:5]) is None
    assert seen_share(TRAINING[:40], LABELS[:40], test) is None  # of two classes
    assert seen_share(TRAINING, [str(i) for i in range(240)], test) is None  # one image of each
    assert seen_share(TRAINING[:0], [], test) is None


def test_what_is_unsure_is_validated_on_new_classes() -> None:
    unsure = SeenShare(0.8, 0.6, 1.2)
    assert unsure.validate_on == "new-classes" and "60% to 100%" in unsure.text()
    assert "safer" in unsure.text() and "safer" not in SeenShare(0.1, 0.0, 0.2).text()
