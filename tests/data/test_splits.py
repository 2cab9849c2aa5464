"""Splits imitate the test part, keep groups whole and say what is in the way."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Target, class_codes, held_out, label_warnings, split
from vizsla.errors import DataError, UsageError
from vizsla.options import TuneConfig


def image_set(labels: list[str], **columns: list[str | None]) -> ImageSet:
    ids = [f"{i:04d}.png" for i in range(len(labels))]
    table = pa.table({"label": labels, **columns})
    return ImageSet(Path("nowhere"), ids, table)


def even(classes: int, each: int) -> list[str]:
    return [f"c{c}" for c in range(classes) for _ in range(each)]


def test_new_classes_are_whole_and_disjoint() -> None:
    images = image_set(even(20, 10))
    found = split(images, "new-classes", seed=3)
    labels = np.array(images.labels)
    assert not set(labels[found.training]) & set(labels[found.held_out])
    assert len(set(labels[found.held_out])) == 4  # a fifth of 20
    for draw in found.draws:
        assert not set(draw.query) & set(draw.gallery)
        assert set(labels[draw.query]) <= set(labels[draw.gallery])


@pytest.mark.parametrize(("share", "classes"), [(0.2, 6), (0.5, 10), (0.9, 18)])
def test_classes_of_several_images_stay_for_training_beside_single_ones(
    share: float, classes: int
) -> None:
    """80 classes have one image, which says nothing of what a class has in common."""
    images = image_set([*even(20, 6), *(f"s{i}" for i in range(80))])
    found = split(images, "new-classes", share=share)
    labels = np.array(images.labels)
    held, rest = set(labels[found.held_out]), labels[found.training]
    assert len(held) == pytest.approx(classes, abs=1) and not any(n[0] == "s" for n in held)
    assert np.unique(rest, return_counts=True)[1].max() == 6 and len(set(rest)) == 100 - len(held)


@pytest.mark.parametrize("each", [4, 6, 7])
def test_seen_classes_of_few_images_still_give_queries(each: int) -> None:
    images = image_set(even(4, each))
    found = split(images, "seen-classes", target=Target(queries=16, gallery=24))
    labels = np.array(images.labels)
    for draw in found.draws:
        assert len(draw.query) and set(labels[draw.query]) <= set(labels[draw.gallery])
    assert set(labels[found.training]) == set(labels)


@pytest.mark.parametrize(
    ("classes", "each", "queries", "gallery"),
    [(1000, 5, 200, 400), (500, 20, 100, 300), (60, 8, 20, 20), (40, 6, 10, 25)],
)
def test_seen_classes_give_queries_though_the_test_part_is_smaller_than_their_number(
    classes: int, each: int, queries: int, gallery: int
) -> None:
    images = image_set(even(classes, each))
    found = split(images, "seen-classes", target=Target(queries, gallery))
    labels = np.array(images.labels)
    for draw in found.draws:
        assert len(draw.query) == pytest.approx(queries, rel=0.1)
        assert len(draw.gallery) == gallery
        assert set(labels[draw.query]) <= set(labels[draw.gallery])
    assert len(set(labels[found.training])) == classes


def test_a_share_that_is_given_is_kept_where_classes_have_few_images() -> None:
    images, target = image_set(even(40, 5)), Target(queries=100, gallery=200)
    for share, expected in ((None, 0.4), (0.3, 0.3)):
        found = split(images, "seen-classes", target=target, share=share, draws=60)
        assert 1 - len(found.training) / len(images) == pytest.approx(expected)
    with pytest.raises(DataError, match="a larger share"):
        split(images, "seen-classes", target=target, share=0.1)


def test_seen_classes_hold_out_images_of_every_class() -> None:
    images = image_set(even(10, 50))
    target = Target(queries=40, gallery=40)
    found = split(images, "seen-classes", target=target)
    labels = np.array(images.labels)
    assert set(labels[found.training]) == set(labels[found.held_out]) == set(labels)
    assert not set(found.training) & set(found.held_out)
    assert 70 <= len(found.held_out) <= 80  # as many as the test part has
    assert len(found.draws[0].query) == pytest.approx(40, abs=6)


def test_the_test_parts_sizes_are_imitated() -> None:
    images = image_set(even(20, 40))
    target = Target(queries=24, gallery=60, per_class=15)
    draw = split(images, "new-classes", target=target).draws[0]
    labels = np.array(images.labels)
    assert len(draw.query) == 24
    assert len(draw.gallery) == 60
    assert np.unique(labels[draw.gallery], return_counts=True)[1].max() <= 15


def test_queries_are_of_many_seen_classes_though_one_is_much_larger() -> None:
    images = image_set(even(199, 4) + ["large"] * 200)
    found = split(images, "seen-classes", target=Target(200, 800), draws=8)
    labels = np.array(images.labels)
    queried = np.unique(labels[np.concatenate([draw.query for draw in found.draws])])
    assert len(queried) > 100
    assert set(labels[found.training]) == set(labels)


def test_one_large_class_does_not_keep_others_from_being_held_out() -> None:
    images = image_set(even(100, 5) + ["large"] * 500)
    labels = np.array(images.labels)
    for seed in range(20):
        held_out = labels[split(images, "new-classes", seed=seed).held_out]
        assert len(np.unique(held_out)) == 40 and "large" not in held_out


def test_draws_differ_and_the_seed_decides() -> None:
    images = image_set(even(12, 12))
    one, again, other = (split(images, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.training, again.training)
    assert all(
        np.array_equal(a.query, b.query) for a, b in zip(one.draws, again.draws, strict=True)
    )
    assert not np.array_equal(one.draws[0].query, one.draws[1].query)
    assert not np.array_equal(one.held_out, other.held_out)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["new-classes", "seen-classes"]),
    groups=st.lists(st.integers(0, 25), min_size=80, max_size=80),
    seed=st.integers(0, 5),
)
def test_groups_never_straddle(kind: str, groups: list[int], seed: int) -> None:
    images = image_set(even(8, 10), group=[f"g{g}" for g in groups])
    try:
        found = split(images, kind, seed=seed)
    except DataError:
        return  # groups so tangled that nothing is left: the error explains it
    own = np.array(groups)
    assert not set(own[found.training]) & set(own[found.held_out])


def test_query_and_gallery_of_a_class_share_no_group_where_it_has_several() -> None:
    images = image_set(even(10, 12), group=[f"{i // 3}" for i in range(120)])
    own = np.arange(120) // 3
    for draw in split(images).draws:
        assert not set(own[draw.query]) & set(own[draw.gallery])


def test_a_class_of_one_group_can_still_be_queried() -> None:
    images = image_set(even(10, 12), group=even(10, 12))  # products: the label is the group
    assert len(split(images).draws[0].query) > 0


def test_domains_play_their_roles() -> None:
    domains = ["photo", "drawn"] * 60
    images = image_set(even(10, 12), domain=domains)
    for kind in ("new-classes", "seen-classes"):
        found = split(images, kind, query_domain="photo", gallery_domain="drawn")
        for draw in found.draws:
            assert {domains[i] for i in draw.query} == {"photo"}
            assert {domains[i] for i in draw.gallery} == {"drawn"}


def test_draws_of_the_same_images_count_once() -> None:
    """With one role each there is one way to divide them, unless the test part has fewer."""
    images = image_set(even(10, 12), domain=["photo", "drawn"] * 60)
    domains = {"query_domain": "photo", "gallery_domain": "drawn", "draws": 8}
    assert len(split(images, **domains).draws) == 1
    assert len(split(images, target=Target(queries=5, gallery=60), **domains).draws) == 8
    assert len(split(images, draws=8).draws) == 8


def test_auto_holds_out_whole_classes_if_there_are_enough() -> None:
    for classes, kind in ((3, "seen-classes"), (4, "new-classes")):
        images = image_set(even(classes, 12))
        auto, expected = (
            held_out(images, TuneConfig(validate_on=one), None) for one in ("auto", kind)
        )
        assert np.array_equal(auto.held_out, expected.held_out)


@pytest.mark.parametrize(
    ("images", "options", "words"),
    [
        (image_set(even(1, 9)), {}, "1 classes"),
        (image_set(even(3, 9)), {}, "validate_on seen-classes"),
        (image_set(even(9, 1)), {}, "enough images"),
        (image_set(even(9, 1)), {"validate_on": "seen-classes"}, "more images"),
        (image_set(even(9, 9)), {"query_domain": "photo"}, "no domain column"),
        (image_set(even(2, 2), domain=["a"] * 4), {"query_domain": "b"}, "expected one of a"),
        (image_set(even(4, 4), group=["g"] * 16), {}, "group"),
    ],
)
def test_what_cannot_be_split_is_said(images: ImageSet, options: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        split(images, **options)


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="new-classes or seen-classes"):
        split(image_set(even(9, 9)), "classes")
    with pytest.raises(UsageError, match="share"):
        split(image_set(even(9, 9)), share=1.5)


def test_missing_labels_are_named() -> None:
    labels: list = [*even(2, 2), None]
    with pytest.raises(DataError, match=r"1 of 5 .*0004\.png"):
        class_codes(image_set(labels))
    with pytest.raises(DataError, match="no labels"):
        class_codes(ImageSet(Path("nowhere"), ["a.png"]))


def test_ten_thousand_classes_split_in_a_moment() -> None:
    found = split(image_set(even(10_000, 3)))
    assert len(found.held_out) == pytest.approx(6000, rel=0.1)


def test_odd_labels_are_told() -> None:
    warnings = label_warnings(["Cat", "cat", "dog", "dog"])
    assert any("upper and lower case" in s and "'Cat' and 'cat'" in s for s in warnings)
    assert any("2 of 3 classes have one image" in s for s in warnings)
    assert label_warnings(["a", "a", "b", "b"]) == []
