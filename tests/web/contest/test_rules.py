import unicodedata

import pytest

from vizsla.errors import UsageError
from vizsla.web.contest.rules import Rules, group_name, iso, parse_time

NOON = parse_time("2026-05-28T12:00Z")


def test_times_are_read_with_and_without_a_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert iso(NOON) == "2026-05-28T12:00:00Z"
    assert parse_time("2026-05-28T14:00+02:00") == NOON
    assert iso(parse_time("2026-05-28")).startswith("2026-05-2")
    for text in ("tomorrow", "", "12:00", "2026-13-01"):
        with pytest.raises(UsageError, match="is not a time"):
            parse_time(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"metrics": ("accuracy",)},
        {"groups": "closed"},
        {"counts": "mean"},
        {"top_k": 0},
        {"per_hour": 0},
        {"max_submissions": -1},
        {"opens": 2.0, "closes": 1.0},
        {"public_share": 0.5},
        {"public_share": 1.0, "closes": NOON},
        {"public_share": 0.0, "closes": NOON},
    ],
)
def test_contradictory_rules_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError):
        Rules(**wrong)


def test_rules_are_read_back_without_unknown_fields() -> None:
    rules = Rules(
        title="Ünï", top_k=9, metrics=("map_at_k",), public_share=0.3, seed=4, closes=NOON
    )
    assert Rules.from_json(rules.to_json()) == rules
    assert Rules.from_json('{"top_k": 4, "of a later version": 1}') == Rules(top_k=4)


def test_phases_decide_which_parts_are_visible() -> None:
    rules = Rules(opens=100.0, closes=200.0, public_share=0.5)
    assert [rules.phase(t) for t in (99.9, 100, 199.9, 200)] == ["before", "open", "open", "closed"]
    assert [rules.visible_parts(t) for t in (99, 150)] == [["public"], ["public"]]
    assert rules.visible_parts(200) == ["private", "public"]
    assert Rules().visible_parts(0) == ["all"]


def test_names_are_compared_in_one_unicode_form() -> None:
    composed, apart = unicodedata.normalize("NFC", "Zoë"), unicodedata.normalize("NFD", "Zoë")
    assert composed != apart
    assert group_name(composed) == group_name(f"  {apart} ") == composed
    assert group_name("team") != group_name("Team")


@pytest.mark.parametrize(
    "name",
    [
        None,
        7,
        ["a"],
        "",
        "   ",
        "a" * 61,
        "a\nb",
        "a\x00b",
        "a\u202eb",  # turns the direction of what follows
        "a\u200bb",  # has no width
        "\ud800",
        "\u0301e",
        "e" + "\u0316" * 20,
    ],
)
def test_names_that_cannot_be_shown_are_refused(name: object) -> None:
    with pytest.raises(UsageError, match="groupname"):
        group_name(name)


def test_a_very_long_name_is_not_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Normalising takes quadratic time."""
    with monkeypatch.context() as patched, pytest.raises(UsageError, match="100001 characters"):
        patched.setattr(unicodedata, "normalize", lambda *_: pytest.fail("it was normalised"))
        group_name("a" + "\u0316\u0301" * 50_000)


@pytest.mark.parametrize(
    "code",
    [
        0x034F,
        0x115F,
        0x1160,
        0x17B4,
        0x17B5,
        0x180B,
        0x180F,
        0x200B,
        0x200F,
        0x2060,
        0x206F,
        0x2800,
        0x3164,
        0xFE00,
        0xFE0F,
        0xFEFF,
        0xFFA0,
        0xE0000,
        0xE0100,
        0xE0FFF,
    ],
)
def test_invisible_characters_are_refused(code: int) -> None:
    with pytest.raises(UsageError, match=f"U\\+{code:04X}, which cannot be shown"):
        group_name(f"a{chr(code)}b")


def test_repeated_spaces_in_names_count_as_one() -> None:
    assert group_name("two   words") == group_name("two words") == "two words"


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a" * 60, "图像检索", "ไม้เอก", "O'Neil & Söhne", "🐕"]
)
def test_other_names_are_kept(name: str) -> None:
    assert group_name(name) == unicodedata.normalize("NFC", name)
