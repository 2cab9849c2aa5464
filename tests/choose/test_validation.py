"""Validation parts like the test part, and what candidates score on them."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from vizsla.choose import validation
from vizsla.choose.validation import (
    EmbeddedDraws,
    Trial,
    Trials,
    ValidationSet,
    embedded_draws,
    match_nearest_cosine,
    mean_nearest_cosine,
    probability_of_loss,
    validation_draws,
    validation_set,
)
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Draw, Target, held_out
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError
from vizsla.options import TuneConfig

Labelled = Callable[[int, int], ImageSet]
Curled = Callable[[ImageSet], Embeddings]


def in_pairs(images: ImageSet) -> Embeddings:
    """Each two images of a class show the same thing."""
    rows = []
    for name in images.ids:
        c, i = int(name[:2]), int(name[3:5])
        thing = np.random.default_rng((c, i // 2)).standard_normal(24)
        own = np.random.default_rng((c, i, 1)).standard_normal(24)
        rows.append(np.random.default_rng(c).standard_normal(24) + thing + 0.3 * own)
    return Embeddings.from_arrays(np.array(rows), images.ids, images.labels)


def _subset(vectors: Embeddings, ids: list[str]) -> Embeddings:
    rows = [vectors.ids.index(name) for name in ids]
    labels = [str((vectors.labels or [])[i]) for i in rows]
    return Embeddings.from_arrays(vectors.vectors[rows], ids, labels)


def test_a_tuned_model_is_tried_on_what_it_has_not_seen(labelled: Labelled) -> None:
    images = labelled(20, 10)
    config = TuneConfig(share=0.3)
    tuned = validation_draws(images, config, Target(20, 80), frozen=False)
    frozen = validation_draws(images, config, Target(20, 80), frozen=True)

    def used(draws: list[Draw]) -> int:
        return len(np.unique(np.concatenate([np.append(d.query, d.gallery) for d in draws])))

    assert used(tuned) <= 0.4 * len(images) < used(frozen)


def test_a_large_test_part_draws_only_images_that_training_holds_out(
    labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "MOST_QUERIES", 20)
    monkeypatch.setattr(validation, "MOST_GALLERY", 30)
    images, target = labelled(60, 6), Target(120, 60)
    config = TuneConfig(validate_on="seen-classes")
    trained_on = set(held_out(images, config, target).training.tolist())
    draws = validation_draws(images, config, target, frozen=False)
    labels = np.array(images.labels)
    for draw in draws:
        assert 0 < len(draw.query) <= 20 and len(draw.gallery) <= 30
        assert not trained_on & {*draw.query.tolist(), *draw.gallery.tolist()}
        assert set(labels[draw.query]) <= set(labels[draw.gallery])


def test_validation_is_like_the_test_part(labelled: Labelled) -> None:
    images = labelled(30, 20)
    draws = validation_draws(images, TuneConfig(), Target(40, 120, 8.0), frozen=True)
    validation = validation_set(images, images.ids, draws)
    about = validation.record()
    assert (about["draws"], about["queries"], about["relative_share"]) == (24, 40, None)
    assert about["gallery"] == pytest.approx(120, abs=8)
    assert about["per_class"] == pytest.approx(8, abs=0.5)
    middling = validation_draws(images, TuneConfig(), Target(300, 800), frozen=True)
    assert len(middling) == 5
    large = validation_draws(images, TuneConfig(), Target(10**6, 10**6), frozen=True)
    assert max(len(draw.gallery) for draw in large) <= len(images)


def test_broken_images_are_left_out(labelled: Labelled) -> None:
    images = labelled(6, 4)
    draw = Draw(np.array([0, 4]), np.array([1, 2, 5, 6]))
    validation = validation_set(
        images, [name for name in images.ids if name != images.ids[4]], [draw]
    )
    assert len(validation.draws[0].query) == 1
    with pytest.raises(DataError, match="another one of its class"):
        validation_set(images, images.ids[:1], [draw])


@pytest.mark.parametrize("validate_on", ["seen-classes", "new-classes"])
def test_validation_is_as_near_as_the_test_part(validate_on: str, labelled: Labelled) -> None:
    """A test part that was cut between the two photos of many a thing."""
    images = labelled(12, 40)
    vectors = in_pairs(images)
    pairs = mean_nearest_cosine(vectors.vectors[::2], vectors.vectors[1::2])

    def drawn(wanted: float | None) -> EmbeddedDraws:
        return embedded_draws(
            images, TuneConfig(validate_on=validate_on), Target(30, 60, 10.0), frozen=True,
            embed=lambda some: _subset(vectors, some.ids), nearest_cosine=wanted,
        )  # fmt: skip

    def there(drawn: EmbeddedDraws) -> float:
        rows = drawn.vectors.vectors[[drawn.vectors.ids.index(name) for name in drawn.images.ids]]
        return float(
            np.mean([mean_nearest_cosine(rows[d.query], rows[d.gallery]) for d in drawn.draws])
        )

    plain = drawn(None)
    wanted = (there(plain) + pairs) / 2
    near = drawn(wanted)
    assert plain.relative_share is None and there(plain) < wanted - 0.02
    assert near.relative_share and there(near) == pytest.approx(wanted, abs=0.01)
    for before, after in zip(plain.draws, near.draws, strict=True):
        assert len(before.query) == len(after.query)
        assert abs(len(after.gallery) - len(before.gallery)) <= 0.25 * len(before.gallery)
        assert not set(after.query) & set(after.gallery)
    assert "most similar image of their class" in near.validation_set.description()


def test_an_image_is_not_the_nearest_of_itself() -> None:
    rows = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], np.float32)
    assert mean_nearest_cosine(rows, rows) == pytest.approx(1.0)
    assert mean_nearest_cosine(rows, rows, same_set=True) == pytest.approx((0.6 + 0.8 + 0.8) / 3)


def test_a_validation_part_that_is_near_enough_stays(images: ImageSet, curled: Curled) -> None:
    vectors, labels = curled(images).vectors, np.array(images.labels)
    draws = validation_draws(images, TuneConfig(), Target(24, 40, 5.0), frozen=True)
    same, share = match_nearest_cosine(draws, vectors, labels, wanted=-1.0)
    assert share == 0
    for one, other in zip(draws, same, strict=True):
        np.testing.assert_array_equal(one.gallery, other.gallery)
    reports: list[int] = []
    again, share = match_nearest_cosine(
        draws, vectors, labels, wanted=0.99, progress=lambda done, total: reports.append(done)
    )
    assert reports[: len(draws)] == [*range(len(draws))] and len(reports) % len(draws) == 0
    twice, _ = match_nearest_cosine(draws, vectors, labels, wanted=0.99)
    assert share > 0
    for one, other in zip(again, twice, strict=True):
        np.testing.assert_array_equal(one.gallery, other.gallery)


def trials_of(n: int, optimise: str = "mean") -> tuple[Trials, np.ndarray]:
    """Trials of n queries with one relevant image of two; the baseline is right for the first half.

    Returns (n, 2): the baseline's positions.
    """
    labels = np.array(["a"] * (n + 1) + ["b"])
    part = Draw(np.arange(n), np.array([n, n + 1]))
    found = Trials(
        ValidationSet([*map(str, range(len(labels)))], labels, [part], [np.ones(n, np.int64)]),
        optimise,
    )
    first = np.where(np.arange(n)[:, None] < n // 2, [[0, 1]], [[1, 0]])
    found.add("none", [first])
    return found, first


@pytest.mark.parametrize(("gained", "lost", "safe"), [
    (40, 0, True), (40, 10, True), (10, 8, False), (0, 0, False), (2, 0, False), (0, 9, False),
])  # fmt: skip
def test_only_what_is_not_likely_to_lose_is_safe(gained: int, lost: int, safe: bool) -> None:
    trials, first = trials_of(200)
    other = first.copy()
    other[:lost] = other[:lost, ::-1]
    other[100 : 100 + gained] = other[100 : 100 + gained, ::-1]
    trial = trials.add("other", [other])
    assert trial.gain == pytest.approx(0.75 * (gained - lost) / 200)
    assert trial.is_safe is safe
    assert trials.best().name == ("other" if safe else "none")


def test_a_perfect_validation_part_knows_nothing_of_losses() -> None:
    """None of n changes: the more there were, the less likely is a loss on the test part."""
    risks = [probability_of_loss(np.zeros(n), 60) for n in (20, 200, 2000, 20_000)]
    assert risks[0] > 0.7 and risks == sorted(risks, reverse=True) and risks[-1] < 0.01
    # one of n + 1 loses, n = 200, on average: that none of 60 does has the probability n / (n + 60)
    assert risks[1] == pytest.approx(60 / 260, abs=0.04)


def test_where_neither_of_two_is_safe_a_clear_gain_on_few_queries_is_kept() -> None:
    """Of 20 queries one gains and none loses; nothing is said of a query that loses all."""
    changes = np.where(np.arange(20) < 1, 0.4, 0.0)
    assert probability_of_loss(changes, 200) > 0.5
    assert probability_of_loss(changes, 200, unseen=False) == 0
    values = np.linspace(0.2, 0.6, 20)
    before = Trial("before", values, values, values, test_queries=200)
    after = Trial(
        "after", values + 0.1, values + changes, values, test_queries=200, baseline=before
    )
    assert not after.is_safe and dataclasses.replace(after, max_risk=0.5).is_safe
    lost = dataclasses.replace(after, points_values=values - changes, max_risk=0.5)
    assert lost.gain > lost.error and not lost.is_safe


def test_the_probability_of_a_loss_is_that_of_a_draw() -> None:
    rng = np.random.default_rng(0)
    changes = rng.choice([-1.0, 0.0, 1.0], 100_000, p=[0.02, 0.95, 0.03])
    sums = rng.choice([-1.0, 0.0, 1.0], (20_000, 100), p=[0.02, 0.95, 0.03]).sum(axis=1)
    assert probability_of_loss(changes, 100) == pytest.approx((sums < 0).mean(), abs=0.04)


def test_what_is_optimised_decides() -> None:
    """One that ranks all second and third images better, and loses first ones."""
    labels = np.array(["a"] * 40 + ["b"])
    part = Draw(np.arange(37), np.array([37, 38, 39, 40]))
    on = ValidationSet([*map(str, range(len(labels)))], labels, [part], [np.full(37, 3)])
    before = np.tile([0, 3, 1, 2], (37, 1))
    other = np.tile([0, 1, 2, 3], (37, 1))
    other[:2] = [3, 0, 1, 2]
    for optimise, kept in (("map", "other"), ("top-1", "none"), ("points", "none")):
        trials = Trials(on, optimise)
        trials.add("none", [before])
        trials.add("other", [other])
        assert trials.best().name == kept
    trials = Trials(on, "mean")
    trials.add("none", [before])
    assert trials.add("other", [other]).risk > 0.5
    ends_right = other.copy()
    ends_right[:2] = [0, 1, 2, 3]
    assert not trials.add("seen to be right", [ends_right]).is_safe
    assert trials.add("cannot be wrong", [ends_right], cannot_lose=True).is_safe


def test_means_are_by_query_and_the_error_by_pairs() -> None:
    labels = np.array(["a"] * 4 + ["b"] * 2)
    parts = [Draw(np.array([0, 1]), np.array([2, 4])), Draw(np.array([0]), np.array([3, 5]))]
    trials = Trials(
        ValidationSet(
            [*map(str, range(len(labels)))], labels, parts, [np.array([1, 1]), np.array([1])]
        )
    )
    right, wrong = [0, 1], [1, 0]
    base = trials.add("none", [np.array([right, wrong]), np.array([wrong])])
    assert base.top1 == pytest.approx((0.5 + 0) / 2)  # query 0 has two draws
    assert base.map == pytest.approx((0.75 + 0.5) / 2)
    other = trials.add("other", [np.array([right, right]), np.array([right])])
    apart = np.array([0.5, 1.0])
    gains = (apart + np.array([0.25, 0.5])) / 2
    assert other.gain == pytest.approx(gains.mean())
    assert other.error == pytest.approx(gains.std(ddof=1) / 2**0.5)
