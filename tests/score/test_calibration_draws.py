from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vizsla.data.absent_classes import draws_with_absent_classes, held_out_and_trained
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Target
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError
from vizsla.options import TuneConfig
from vizsla.score.calibration_draws import (
    at_most,
    calibrate_on_training,
    judged_draws,
    share_like,
)
from vizsla.score.relevance import relevance
from vizsla.score.truth import Truth
from vizsla.search import exact


def training(classes: int = 30, each: int = 12, seed: int = 3) -> Embeddings:
    """Classes as noisy directions."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, 16))
    vectors = np.repeat(centres, each, axis=0) + rng.normal(size=(classes * each, 16)) * 0.6
    labels = [f"c{i // each}" for i in range(classes * each)]
    return Embeddings.from_arrays(vectors, [f"{i:04}.png" for i in range(len(labels))], labels)


def test_absent_products_of_other_classes_are_refused() -> None:
    found = calibrate_on_training(training(classes=60), sure=0.9)
    assert found.absent == 0.5 and found.auc is not None and found.auc > 0.9
    assert found.made_by == {"model_id": "own", "refine": "none"}
    other = training(seed=4)
    labels = np.array(other.labels)
    queries = other.subset(np.arange(0, len(other), 4))  # of all classes
    gallery = other.subset(
        np.flatnonzero((np.arange(len(other)) % 4 > 0) & (labels < "c2"))  # c0, c1, c10 to c19
    )
    decided = found.decide(exact.rank(queries, gallery))
    judged = relevance(decided, Truth.from_sets(queries, gallery))
    assert judged.accepted is not None
    known, answered = judged.n_relevant > 0, judged.accepted.any(axis=1)
    assert judged.hits[judged.accepted].mean() >= 0.9
    assert answered[known].mean() > 0.7 and answered[~known].mean() < 0.3


def test_it_says_what_it_was_learned_on() -> None:
    found = calibrate_on_training(training(), target=Target(50, 150, per_class=8), source="here")
    assert " queries of here, in 20 draws, each with about 150 " in found.learned_on
    assert found.learned_on.endswith("gallery images of 19 classes")


def test_images_that_could_not_be_read_are_left_out() -> None:
    vectors = training()
    images = ImageSet(Path("x"), vectors.ids, vectors.attributes)
    draws = draws_with_absent_classes(images)
    some = vectors.subset(np.arange(3, len(vectors)))
    assert judged_draws([some], images, draws).calibration(source="x").queries == 357
    with pytest.raises(DataError, match="hold none of"):
        alien = Embeddings(["no"], vectors.vectors[:1], pa.table({}), "own")
        judged_draws([alien], images, draws)


def test_other_models_and_images_without_labels_are_refused() -> None:
    with pytest.raises(DataError, match="by model own, the vectors to be judged by other"):
        calibrate_on_training(training(), model_id="other")
    plain = Embeddings(["a"], np.ones((1, 2), np.float32), pa.table({}), "own")
    with pytest.raises(DataError, match="has no labels"):
        calibrate_on_training(plain, source="t.emb")


def test_of_very_many_images_whole_classes_are_kept() -> None:
    vectors = training(classes=40)
    images = ImageSet(Path("x"), vectors.ids, vectors.attributes)
    kept = at_most(images, 200)
    assert set(np.unique(kept.labels, return_counts=True)[1]) == {12} and len(kept) == 192
    assert len(at_most(images, 50)) == 50 and at_most(images, 480) is images
    assert kept.ids == at_most(images, 200).ids != at_most(images, 200, seed=1).ids


def test_a_validation_part_is_as_large_as_the_test_part() -> None:
    vectors = training()
    images = ImageSet(Path("x"), vectors.ids, vectors.attributes)
    assert share_like(images, None) == 0.9
    assert share_like(images, Target(50, 150, per_class=10)) == pytest.approx(15 / 30)
    assert share_like(images, Target(60, 120)) == pytest.approx(180 / 360)
    assert share_like(images, Target(3, 3)) == 0.2


def test_a_tuned_model_meets_as_many_classes_as_the_test_part_has() -> None:
    vectors = training(classes=40)
    images = ImageSet(Path("x"), vectors.ids, vectors.attributes)
    target = Target(50, 160, per_class=8)
    kept, trained = held_out_and_trained(images, TuneConfig(validate_on="new-classes"), target)
    labels = np.array(kept.labels)
    new = set(labels[~trained])
    assert len(new) == 8 and len(set(labels[trained])) == 32 and not new & set(labels[trained])
    assert set(np.unique(labels[trained], return_counts=True)[1]) == {8}
    for draw in draws_with_absent_classes(kept, target, trained=trained):
        present = set(labels[draw.gallery])
        assert len(present) == 20 and len(present & new) == 4 and len(draw.gallery) <= 160
        assert set(labels[draw.query]) <= new and set(labels[draw.query]) & present
    seen = held_out_and_trained(images, TuneConfig(validate_on="seen-classes"), target)
    assert not seen[1].any() and len(set(seen[0].labels or [])) == 40


def test_two_classes_that_are_one_thing_are_named() -> None:
    plain = training(classes=30)
    labels = [f"{label}-b" if label == "c7" and i % 2 else label
              for i, label in enumerate(plain.labels or [])]  # fmt: skip
    twice = Embeddings.from_arrays(plain.vectors, plain.ids, labels)
    found = calibrate_on_training(twice, sure=0.9)
    assert found.confused is not None and found.confused[:2] == ("c7", "c7-b")
    assert "are between c7 and c7-b: if these are one thing" in found.lines()[-1]
    clear = np.repeat(np.eye(8), 12, axis=0)
    never = Embeddings.from_arrays(clear, plain.ids[:96], [f"c{i // 12}" for i in range(96)])
    assert calibrate_on_training(never, sure=0.9).confused is None
