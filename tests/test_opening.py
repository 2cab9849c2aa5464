"""What a training is pointed at: the training part of a data folder, and never its test part."""

from pathlib import Path

import pytest

from vizsla.data.imageset import open_data
from vizsla.errors import UsageError
from vizsla.opening import training_images


def test_a_data_folder_gives_its_training_part_alone(tinted: Path) -> None:
    images, target = training_images(tinted)
    assert images is not None and set(images.ids) == set(open_data(tinted).training.ids)  # type: ignore[union-attr]
    assert target is not None and (target.queries, target.gallery) == (16, 24)


def test_the_folder_above_a_data_folder_is_the_same(tinted: Path) -> None:
    """Otherwise `data` would be its only class, and the test part would be trained on."""
    images, target = training_images(tinted.parent)
    assert images is not None and len(images) == 24 and target is not None
    assert len(set(images.labels or [])) == 4


@pytest.mark.parametrize("told", [{"labels": "labels.csv"}, {"labels_from": "{label}_{n}"}])
def test_labels_of_the_test_part_are_never_trained_on(tinted: Path, told: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="leave out --labels"):
        training_images(tinted, **told)  # type: ignore[arg-type]
    images, target = training_images(tinted / "test" / "query", labels_from="{label}-{n}")
    assert images is not None and len(images) == 16 and target is None


def test_what_is_excluded_is_not_trained_on(tinted: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.txt"
    gone.write_text("training/green/t-green-0.png\nquery/q-blue-1.png\n")
    images, target = training_images(tinted, exclude=gone)
    assert images is not None and len(images) == 23 and "green/t-green-0.png" not in images.ids
    assert target is not None and target.queries == 15
    images, _ = training_images(tinted / "training", exclude=gone)
    assert images is not None and len(images) == 23 and "green/t-green-0.png" not in images.ids
