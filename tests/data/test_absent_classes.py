from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vizsla.data.absent_classes import FOLDS, ROUNDS, draws_with_absent_classes
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Target
from vizsla.errors import DataError


def images(classes: int = 12, each: int = 10, groups: bool = False) -> ImageSet:
    n = classes * each
    columns = {"label": [f"c{i // each}" for i in range(n)]}
    if groups:
        columns["group"] = [f"g{i // 2}" for i in range(n)]
    return ImageSet(Path("x"), [f"{i:04}.png" for i in range(n)], pa.table(columns))


def test_half_of_the_queries_have_nothing_in_the_gallery() -> None:
    data = images()
    labels = np.array(data.labels)
    draws = draws_with_absent_classes(data, Target(20, 30, per_class=5))
    assert len(draws) == FOLDS * ROUNDS
    absent_of_draws = set()
    for draw in draws:
        there = set(labels[draw.gallery])
        known = np.isin(labels[draw.query], list(there))
        assert known.sum() * 2 == len(draw.query)
        assert len(there) == 6 and len(draw.gallery) == 30  # as many classes as the target has
        assert np.unique(labels[draw.gallery], return_counts=True)[1].max() == 5
        assert not set(draw.query) & set(draw.gallery)
        absent_of_draws.add(frozenset(there))
    assert len(absent_of_draws) > ROUNDS


def test_classes_may_be_absent_from_all_galleries() -> None:
    data = images()
    labels = np.array(data.labels)
    absent = np.isin(labels, ["c3", "c7"])
    for draw in draws_with_absent_classes(data, Target(20, 40, per_class=5), absent=absent):
        assert not absent[draw.gallery].any() and len(set(labels[draw.gallery])) == 8
        known = np.isin(labels[draw.query], labels[draw.gallery])
        assert known.sum() * 2 == len(draw.query) and (absent[draw.query] == ~known).all()


def test_an_image_is_a_query_once_a_round_and_groups_stay_whole() -> None:
    data = images(groups=True)
    groups = np.array(data.attributes["group"].to_pylist())
    draws = draws_with_absent_classes(data, rounds=2)
    queries = np.concatenate([draw.query for draw in draws])
    assert np.bincount(queries).max() == 2
    for draw in draws:
        assert not set(groups[draw.query]) & set(groups[draw.gallery])


def test_draws_depend_on_the_seed_alone() -> None:
    one, two, other = (draws_with_absent_classes(images(), seed=seed) for seed in (0, 0, 1))
    assert all((a.query == b.query).all() for a, b in zip(one, two, strict=True))
    assert any(not np.array_equal(a.query, b.query) for a, b in zip(one, other, strict=True))


def test_domains_are_kept_and_too_few_classes_are_refused() -> None:
    data = images()
    domains = ["photo" if i % 2 else "drawing" for i in range(len(data))]
    data = ImageSet(data.root, data.ids, data.attributes.append_column("domain", pa.array(domains)))
    for draw in draws_with_absent_classes(data, query_domain="photo", gallery_domain="drawing"):
        assert (draw.query % 2 == 1).all() and (draw.gallery % 2 == 0).all()
    with pytest.raises(DataError, match="3 classes: to learn when nothing is there"):
        draws_with_absent_classes(images(classes=3))
    with pytest.raises(DataError, match="no class has enough images"):
        draws_with_absent_classes(images(each=1))
