"""Which queries are public: by a seed, drawn once, kept, and shown to the organiser alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vizsla.errors import UsageError
from vizsla.web.contest.rules import Rules
from vizsla.web.contest.scoring import Scorer
from vizsla.web.contest.server import adopt, rescore, seeded
from vizsla.web.contest.store import Store

HALF = Rules(top_k=3, public_share=0.5, closes=9e9)
LABELS = "role,file,label\n" + "".join(
    f"{role},{role[0]}{i}.jpg,{i % 2}\n" for role in ("query", "gallery") for i in range(12)
)


def test_it_is_drawn_once_and_kept(tmp_path: Path) -> None:
    truth = {f"q{i}": "x" for i in range(20)}, {f"g{i}": "x" for i in range(9)}
    seeds = set()
    for name in "ab":
        with Store(tmp_path / name) as store:
            first = seeded(HALF, store)
            adopt(store, Scorer(*truth, first))
        with Store(tmp_path / name) as store:
            assert seeded(HALF, store) == first
        assert first.seed is not None
        seeds.add(first.seed)
    assert len(seeds) == 2 and not seeds & set(range(1000))


def test_one_that_is_given_stays_and_without_a_split_there_is_none(tmp_path: Path) -> None:
    with Store(tmp_path / "a") as store:
        assert seeded(Rules(public_share=0.5, closes=9e9, seed=0), store).seed == 0
        assert seeded(Rules(), store).seed is None
    with pytest.raises(UsageError, match="seed"):
        Scorer({"q": "x", "r": "x"}, {"g": "x"}, Rules(top_k=1, public_share=0.5, closes=9e9))


def test_a_split_that_comes_with_a_rescore_is_drawn_then(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(LABELS)
    with Store(tmp_path / "a") as store:
        truth = {f"q{i}.jpg": str(i % 2) for i in range(12)}, {"g0.jpg": "0", "g1.jpg": "1"}
        adopt(store, Scorer(*truth, Rules(top_k=2, closes=9e9)))
    rescore(tmp_path / "labels.csv", database=tmp_path / "a", public_share=0.5)
    with Store(tmp_path / "a") as store:
        kept = Rules.from_json(store.fact("rules") or "").seed
    assert kept is not None and kept > 1000


def test_the_organiser_alone_sees_it(open_contest: Callable[..., Any]) -> None:
    contest = open_contest(Rules(top_k=3, public_share=0.5, closes=9e9, seed=8_140_597_120_633))
    page = {"Accept": "text/html"}
    for path in ("/", "/groups/1", "/groups/1.json", "/leaderboard.json", "/openapi.json"):
        contest.post()
        assert "8140597120633" not in contest.get(path).text
    assert "8140597120633" in contest.get("/organiser", organiser=True, headers=page).text
    assert "8140597120633" not in contest.get("/organiser").text
