from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import adjusted_rand_score

from vizsla.audit.check import check
from vizsla.audit.copy_groups import KEEP, copy_groups, groups_of, to_exclude
from vizsla.audit.duplicates import PAIR_KINDS, UNSURE, Pair
from vizsla.audit.file_scan import ImageFacts
from vizsla.data.exif import Exif
from vizsla.data.imageset import ImageSet
from vizsla.errors import UsageError

Photo = Callable[..., Image.Image]


def facts(*files: str) -> list[ImageFacts]:
    """`training/a:cat` or `query/b`: role, id and label; a `!` behind it makes it broken."""
    made = []
    for i, file in enumerate(files):
        name, _, label = file.rstrip("!").partition(":")
        role, _, below = name.partition("/")
        broken = "cut off" if file.endswith("!") else None
        size = (100 + i, 100)
        made.append(ImageFacts(role, below, Path(name), label or None, broken, size=size))
    return made


def pair(a: int, b: int, how: str = "near", similarity: float = 0.95) -> Pair:
    return Pair(a, b, how, similarity)


# ── groups ───────────────────────────────────────────────────────────────────────────────────────


def test_copies_of_copies_are_one_group_and_the_largest_comes_first() -> None:
    assert groups_of(7, [pair(5, 6), pair(0, 2), pair(2, 4)]) == [[0, 2, 4], [5, 6]]
    assert groups_of(3, []) == []


def test_a_copy_that_was_found_from_a_few_sides_only_is_in() -> None:
    all_pairs = [pair(a, b) for b in range(6) for a in range(b)]
    missed = {(1, 5), (2, 5), (3, 5)}
    found = [p for p in all_pairs if (p.a, p.b) not in missed]
    assert groups_of(6, found) == [[0, 1, 2, 3, 4, 5]]


def test_a_chain_is_cut_and_two_groups_are_not_joined_by_one_pair() -> None:
    chain = groups_of(30, [pair(i, i + 1, similarity=0.9 - i / 1000) for i in range(29)])
    assert max(map(len, chain)) <= 4 and sum(map(len, chain)) >= 20
    left = [pair(a, b) for b in range(4) for a in range(b)]
    right = [pair(a + 4, b + 4) for b in range(4) for a in range(b)]
    bridge = pair(3, 4, similarity=0.9)
    assert groups_of(8, [*left, *right, bridge]) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_equal_files_are_one_group_though_each_is_paired_with_the_first_only() -> None:
    equal = [pair(0, i, "same file", 1.0) for i in range(1, 40)]
    assert groups_of(42, [*equal, pair(0, 40), pair(40, 41)]) == [list(range(42))]


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11), st.sampled_from(list(PAIR_KINDS)))),
)
def test_groups_are_disjoint_and_inside_the_connected_components(
    n: int, drawn: list[tuple[int, int, str]]
) -> None:
    pairs = [pair(a, b, how) for a, b, how in drawn if a < b < n]
    groups = groups_of(n, pairs)
    flat = [i for group in groups for i in group]
    assert len(flat) == len({*flat}) and all(len(group) > 1 for group in groups)
    for group in groups:
        reached, edge = {group[0]}, [group[0]]
        while edge:
            at = edge.pop()
            more = {p.a + p.b - at for p in pairs if at in (p.a, p.b)} - reached
            reached |= more
            edge += more
        assert {*group} <= reached


# ── which one stays ──────────────────────────────────────────────────────────────────────────────


def test_each_rule_keeps_what_it_says_and_equals_are_decided_by_the_others() -> None:
    a, b, c, d = facts(*(f"training/{name}:x" for name in "abcd"))
    group = [
        replace(a, size=(400, 300), form="JPEG RGB", blur=2.0),
        replace(b, size=(200, 150), form="JPEG RGB", blur=0.5),
        replace(c, size=(100, 80), form="JPEG RGB", blur=0.9, exif=Exif(datetime(2020, 1, 1))),
        replace(d, size=(150, 80), form="PNG RGB", blur=2.0, exif=Exif(datetime(2021, 1, 1))),
    ]
    pairs = [pair(i, j) for j in range(4) for i in range(j)]
    kept = {rule: copy_groups(group, pairs, rule)[0].keep for rule in KEEP}
    assert kept == {"largest": 0, "sharpest": 1, "earliest": 2, "lossless": 3}
    for rule, i in kept.items():
        assert to_exclude(group, pairs, rule).keys() == {0, 1, 2, 3} - {i}
    undated = [replace(found, exif=Exif()) for found in group]
    assert copy_groups(undated, pairs, "earliest")[0].keep == 0
    with pytest.raises(UsageError, match="choose one of largest, sharpest, earliest, lossless"):
        copy_groups(group, pairs, "newest")


def test_of_equals_a_mirrored_copy_is_not_kept() -> None:
    """The last one is sharper, as a new JPEG file is by its blocks."""
    same = [
        replace(one, size=(100, 100), blur=0.8) for one in facts(*(f"training/{c}" for c in "abc"))
    ]
    same[2] = replace(same[2], blur=0.6)
    pairs = [pair(0, 1), pair(0, 2, "mirrored"), pair(1, 2, "mirrored")]
    assert copy_groups(same, pairs)[0].keep == 0 and [*to_exclude(same, pairs)] == [1, 2]
    assert copy_groups(same, pairs, "sharpest")[0].keep == 2
    assert copy_groups(same, [pair(0, 2, "mirrored")])[0].keep == 2  # which one is, is not known


def test_a_test_image_is_kept_before_all_others() -> None:
    known = facts("query/a", "training/b:x", "training/c:x")
    (group,) = copy_groups(known, [pair(0, 1), pair(1, 2)])
    assert group.keep == 0 and group.images == [0, 1, 2]


@pytest.mark.parametrize(
    ("files", "pairs", "gone"),
    [
        (["training/a:x", "training/b:x"], [pair(0, 1)], {0}),  # the larger one stays
        (["training/a:x", "query/b:x"], [pair(0, 1)], {0}),
        (["training/a:x", "query/b:x"], [pair(0, 1, "mirrored")], {0}),
        (["training/a:x", "query/b:x"], [pair(0, 1, "model")], set()),
        (["training/a:x", "training/b:y"], [pair(0, 1)], {0, 1}),
        (["query/a:x", "gallery/b:x"], [pair(0, 1)], set()),
        (["gallery/a:x", "gallery/b:x"], [pair(0, 1, "same file")], set()),
        (["training/a:x!", "gallery/b:x!"], [], {0}),
        (["training/a:x", "training/b:x", "query/c"], [pair(0, 1), pair(1, 2)], {0, 1}),
        (["training/a:x", "training/b:x", "training/c:x"], [pair(0, 1), pair(1, 2)], {0, 1}),
    ],
)
def test_what_is_left_out(files: list[str], pairs: list[Pair], gone: set[int]) -> None:
    assert to_exclude(facts(*files), pairs).keys() == gone


def test_the_reason_names_the_other_image() -> None:
    known = facts("training/a:x", "training/b:y", "training/c:x", "query/d", "training/e!")
    reasons = to_exclude(known, [pair(0, 1), pair(2, 3, "mirrored")])
    assert reasons == {
        0: "a copy of training/b, which has another label",
        1: "a copy of training/a, which has another label",
        2: "a copy of query/d (mirrored)",
        4: "broken: cut off",
    }


@given(
    st.lists(st.sampled_from(["training:x", "training:y", "query", "gallery"]), max_size=9),
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.sampled_from(list(PAIR_KINDS)))),
)
def test_what_stays_is_clean_and_the_test_part_is_whole(
    roles: list[str], drawn: list[tuple[int, int, str]]
) -> None:
    known = facts(
        *(f"{r.partition(':')[0]}/{i}:{r.partition(':')[2]}" for i, r in enumerate(roles))
    )
    pairs = [pair(a, b, how) for a, b, how in drawn if a < b < len(known)]
    gone = to_exclude(known, pairs)
    assert {known[i].role for i in gone} <= {"training"}
    left = [p for p in pairs if p.how not in UNSURE and not {p.a, p.b} & gone.keys()]
    assert all("training" not in (known[p.a].role, known[p.b].role) for p in left)
    copied = {i for p in pairs if p.how != "model" for i in (p.a, p.b)}
    assert gone.keys() <= copied


# ── planted copies ───────────────────────────────────────────────────────────────────────────────


def test_planted_groups_are_found_and_one_of_each_is_kept(photo: Photo, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    truth = {}
    for i in range(24):
        picture = photo(500 + i, (200, 150))
        copies = {
            "original.png": picture, "small.png": picture.resize((110, 82)),
            "large.png": picture.resize((320, 240)), "quality.jpg": picture,
            "cropped.png": picture.crop((6, 5, 192, 144)),
            "mirrored.png": picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        }  # fmt: skip
        for name in rng.permutation(list(copies))[: 1 + i % 6]:
            copies[name].save(tmp_path / f"{i}-{name}", quality=50)
            truth[f"{i}-{name}"] = i
    report = check(tmp_path, {"images": ImageSet.from_folder(tmp_path)})
    group = {i: k for k, found in enumerate(report.groups) for i in found.images}
    names = [found.name for found in report.facts]
    found = [group.get(i, -1 - i) for i in range(len(names))]
    assert adjusted_rand_score([truth[name] for name in names], found) >= 0.98
    left = [truth[name] for name in names if name not in report.excluded()]
    assert sorted(left) == list(range(24))
