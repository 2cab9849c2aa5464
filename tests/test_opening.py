"""What commands are pointed at; a training: at the training part alone, never at the test part."""

import logging
from pathlib import Path

import pytest

from vizsla.data.imageset import open_data
from vizsla.errors import DataError, UsageError
from vizsla.opening import image_set, training_images


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


def test_one_list_of_what_is_excluded_serves_every_folder(
    tinted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As `vizsla check` writes it, with roles; a plain id is as good."""
    gone = tmp_path / "gone.txt"
    gone.write_text("training/green/t-green-0.png\ntest/query/q-blue-1.png\nq-any-0.png\n")
    training = image_set(tinted / "training", class_folders=True, exclude=gone)
    assert len(training) == 23 and "green/t-green-0.png" not in training.ids
    query = image_set(tinted / "test" / "query", exclude=gone)
    assert len(query) == 14 and not {"q-blue-1.png", "q-any-0.png"} & set(query.ids)
    both = image_set(tinted / "test", exclude=gone)
    assert len(both) == 39 and "query/q-blue-1.png" not in both.ids
    assert len(image_set(tinted, exclude=gone)) == 64 - 2
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_list_that_excludes_nothing_or_all_is_told(
    tinted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = tmp_path / "gone.txt"
    gone.write_text("training/green/t-green-0.png\n")
    assert len(image_set(tinted / "test" / "gallery", exclude=gone)) == 24
    assert "excludes nothing here" in caplog.text
    gone.write_text("\n".join(image_set(tinted / "test" / "query").ids))
    with pytest.raises(DataError, match="excludes all 16"):
        image_set(tinted / "test" / "query", exclude=gone)
