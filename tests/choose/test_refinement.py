"""Choosing on vectors where it is known which refinement helps."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vizsla.choose.refinement import choose_chain, neighbourhood_sizes, saved_chain
from vizsla.choose.validation import (
    EmbeddedDraws,
    Trials,
    ValidationSet,
    embedded_draws,
    match_nearest_cosine,
    mean_nearest_cosine,
    validation_draws,
    validation_set,
)
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Draw, Target
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, StorageError, UsageError
from vizsla.options import TuneConfig


def labelled(classes: int, each: int) -> ImageSet:
    ids = sorted(f"{c:02}/{i:02}.png" for c in range(classes) for i in range(each))
    labels = [name.split("/")[0] for name in ids]
    return ImageSet(Path("nowhere"), ids, pa.table({"label": labels}))


def curled(images: ImageSet, seed: int = 0) -> Embeddings:
    """Each class lies along an arc, so that far members are found by way of near ones alone."""
    rng = np.random.default_rng(seed)
    rows = []
    for name in images.ids:
        c, i = int(name[:2]), int(name[3:5])
        base = np.random.default_rng((7, c)).standard_normal((2, 24))
        angle = 1.9 * i / 12
        point = np.cos(angle) * base[0] + np.sin(angle) * base[1]
        rows.append(point + 0.35 * rng.standard_normal(24))
    return Embeddings.from_arrays(np.array(rows), images.ids, images.labels)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return labelled(16, 12)


@pytest.fixture(scope="module")
def validation(images: ImageSet) -> ValidationSet:
    draws = validation_draws(images, TuneConfig(), Target(24, 72, 9.0), frozen=True)
    return validation_set(images, images.ids, draws)


@pytest.mark.parametrize("uses", ["queries", "gallery", "nothing"])
def test_progress_rises_to_about_the_expected_number(
    uses: str, images: ImageSet, validation: ValidationSet
) -> None:
    reports: list[tuple[int, int]] = []
    choice = choose_chain(
        curled(images),
        validation,
        uses=uses,
        progress=lambda done, total: reports.append((done, total)),
    )
    done, totals = zip(*reports, strict=True)
    tried = len(choice.trials)
    assert len(reports) == tried + 1 and list(done) == sorted(done)
    assert len(set(totals)) == 1 and done[-1] == totals[-1] > done[-2]
    assert 0.8 * tried <= totals[-1] <= 1.25 * tried


def test_what_helps_is_chosen_and_said(
    images: ImageSet, validation: ValidationSet, tmp_path: Path
) -> None:
    choice = choose_chain(curled(images), validation)
    base, kept = choice.trials[0], choice.chosen
    assert base.name == "none" and kept is not base
    assert kept.value == max(t.value for t in choice.trials if not t.costs_too_much)
    assert kept.map > base.map + 0.03 and kept.change >= -kept.error
    text = "\n".join(choice.lines())
    assert "kept: " + str(choice.chain) in text and "uses" in text
    rows = choice.record()["candidates"]
    assert {"refinement", "top1", "map", "gain", "top1_change", "top1_error", "uses"} <= set(
        rows[0]
    )
    assert [row["refinement"] for row in rows if row["verdict"] == "kept"] == [str(choice.chain)]
    choice.save(tmp_path / "refinement.json")
    assert saved_chain(tmp_path / "refinement.json") == str(choice.chain)
    assert saved_chain(tmp_path / "absent.json") is None
    (tmp_path / "refinement.json").write_text("{}")
    with pytest.raises(StorageError):
        saved_chain(tmp_path / "refinement.json")


def test_only_what_is_allowed_is_tried(images: ImageSet, validation: ValidationSet) -> None:
    vectors = curled(images)
    gallery = choose_chain(vectors, validation, uses="gallery")
    assert {trial.uses for trial in gallery.trials} == {"nothing", "gallery"}
    nothing = choose_chain(vectors, validation, uses="nothing")
    assert str(nothing.chain) == "none" and len(nothing.trials) == 1
    with pytest.raises(UsageError, match="choose one of"):
        choose_chain(vectors, validation, uses="everything")


def test_the_same_is_chosen_again(images: ImageSet, validation: ValidationSet) -> None:
    first, second = (choose_chain(curled(images), validation, uses="gallery") for _ in range(2))
    assert first.trials == second.trials


def test_where_nothing_helps_none_stays(images: ImageSet, validation: ValidationSet) -> None:
    """Vectors that are right already: no refinement can gain."""
    rows = np.eye(16)[[int(name[:2]) for name in images.ids]]
    choice = choose_chain(Embeddings.from_arrays(rows, images.ids, images.labels), validation)
    assert str(choice.chain) == "none"


def test_a_chain_that_costs_top_1_is_rejected() -> None:
    labels = np.array(["a", "a", "a", "b"])
    part = Draw(np.array([0]), np.array([1, 2, 3]))
    trials = Trials(ValidationSet(labels, [part] * 1, [np.array([2])]))
    trials.add("none", [np.array([[0, 2, 1]])])
    worse = trials.add("worse", [np.array([[2, 0, 1]])])
    assert worse.change == -1 and worse.costs_too_much
    assert trials.best().name == "none"


@pytest.mark.parametrize("n", [3, 7, 185, 246, 1237])
def test_one_query_alone_is_no_more_than_one_standard_error(n: int) -> None:
    """Whatever it loses, and however that is rounded: the mean is x / n, its error |x| / n."""
    labels = np.array(["a"] * (n + 1) + ["b"])
    part = Draw(np.arange(n), np.array([n, n + 1]))
    for draws in (1, 3):  # the query is lost in one of them
        trials = Trials(ValidationSet(labels, [part] * draws, [np.ones(n, np.int64)] * draws))
        right = np.tile([0, 1], (n, 1))
        trials.add("none", [right] * draws)
        for lost, rejected in ((1, False), (2, True)):
            other = right.copy()
            other[:lost] = [1, 0]
            trial = trials.add(f"loses {lost}", [other, *[right] * (draws - 1)])
            assert trial.change == pytest.approx(-lost / draws / n)
            assert trial.costs_too_much is rejected


def test_means_are_by_query_and_the_error_by_pairs() -> None:
    labels = np.array(["a"] * 4 + ["b"] * 2)
    parts = [Draw(np.array([0, 1]), np.array([2, 4])), Draw(np.array([0]), np.array([3, 5]))]
    trials = Trials(ValidationSet(labels, parts, [np.array([1, 1]), np.array([1])]))
    right, wrong = [0, 1], [1, 0]
    base = trials.add("none", [np.array([right, wrong]), np.array([wrong])])
    assert base.top1 == pytest.approx((0.5 + 0) / 2)  # query 0 has two draws
    assert base.map == pytest.approx((0.75 + 0.5) / 2)
    other = trials.add("other", [np.array([right, right]), np.array([right])])
    apart = np.array([0.5, 1.0])
    assert other.change == pytest.approx(apart.mean())
    assert other.error == pytest.approx(apart.std(ddof=1) / 2**0.5)


def test_a_tuned_model_is_tried_on_what_it_has_not_seen() -> None:
    images = labelled(20, 10)
    config = TuneConfig(share=0.3)
    tuned = validation_draws(images, config, Target(20, 80), frozen=False)
    frozen = validation_draws(images, config, Target(20, 80), frozen=True)

    def used(draws: list[Draw]) -> int:
        return len(np.unique(np.concatenate([np.append(d.query, d.gallery) for d in draws])))

    assert used(tuned) <= 0.4 * len(images) < used(frozen)


def test_validation_is_like_the_test_part() -> None:
    images = labelled(30, 20)
    draws = validation_draws(images, TuneConfig(), Target(40, 120, 8.0), frozen=True)
    validation = validation_set(images, images.ids, draws)
    about = validation.record()
    assert (about["draws"], about["queries"], about["relative_share"]) == (8, 40, None)
    assert about["gallery"] == pytest.approx(120, abs=8)
    assert about["per_class"] == pytest.approx(8, abs=0.5)
    middling = validation_draws(images, TuneConfig(), Target(300, 800), frozen=True)
    assert len(middling) == 5
    large = validation_draws(images, TuneConfig(), Target(10**6, 10**6), frozen=True)
    assert max(len(draw.gallery) for draw in large) <= len(images)


def test_broken_images_are_left_out() -> None:
    images = labelled(6, 4)
    draw = Draw(np.array([0, 4]), np.array([1, 2, 5, 6]))
    validation = validation_set(
        images, [name for name in images.ids if name != images.ids[4]], [draw]
    )
    assert len(validation.draws[0].query) == 1
    with pytest.raises(DataError, match="another one of its class"):
        validation_set(images, images.ids[:1], [draw])


def test_sizes_of_neighbourhoods_follow_the_class() -> None:
    assert neighbourhood_sizes(24) == [12, 20, 24, 36]
    assert neighbourhood_sizes(4) == [3, 4, 6, 20]
    assert max(neighbourhood_sizes(500)) == 60


# ── as near to the gallery as the test queries ──


def in_pairs(images: ImageSet) -> Embeddings:
    """Each two images of a class show the same thing."""
    rows = []
    for name in images.ids:
        c, i = int(name[:2]), int(name[3:5])
        thing = np.random.default_rng((c, i // 2)).standard_normal(24)
        own = np.random.default_rng((c, i, 1)).standard_normal(24)
        rows.append(np.random.default_rng(c).standard_normal(24) + thing + 0.3 * own)
    return Embeddings.from_arrays(np.array(rows), images.ids, images.labels)


@pytest.mark.parametrize("validate_on", ["seen-classes", "new-classes"])
def test_validation_is_as_near_as_the_test_part(validate_on: str) -> None:
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
    assert "nearest relative" in near.validation_set.description()


def _subset(vectors: Embeddings, ids: list[str]) -> Embeddings:
    rows = [vectors.ids.index(name) for name in ids]
    labels = [str((vectors.labels or [])[i]) for i in rows]
    return Embeddings.from_arrays(vectors.vectors[rows], ids, labels)


def test_a_validation_part_that_is_near_enough_stays(images: ImageSet) -> None:
    vectors, labels = curled(images).vectors, np.array(images.labels)
    draws = validation_draws(images, TuneConfig(), Target(24, 40, 5.0), frozen=True)
    same, share = match_nearest_cosine(draws, vectors, labels, wanted=-1.0)
    assert share == 0
    for one, other in zip(draws, same, strict=True):
        np.testing.assert_array_equal(one.gallery, other.gallery)
    again, share = match_nearest_cosine(draws, vectors, labels, wanted=0.99)
    twice, _ = match_nearest_cosine(draws, vectors, labels, wanted=0.99)
    assert share > 0
    for one, other in zip(again, twice, strict=True):
        np.testing.assert_array_equal(one.gallery, other.gallery)
