"""What the organiser does: rules and truth at the start, the seed, rescoring, tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vizsla.errors import DataError, UsageError
from vizsla.web.contest import server as judging
from vizsla.web.contest.rules import Rules
from vizsla.web.contest.scoring import Scorer
from vizsla.web.contest.store import Store, unpacked

Open = Callable[..., Any]
HALF = Rules(top_k=3, public_share=0.5, closes=9e9)
LABELS = "role,file,label\n" + "".join(
    f"{role},{role[0]}{i}.jpg,{i % 2}\n" for role in ("query", "gallery") for i in range(12)
)


# ── the seed of the public part ──────────────────────────────────────────────────────────────────


def test_a_seed_is_drawn_once_and_kept(tmp_path: Path) -> None:
    truth = {f"q{i}": "x" for i in range(20)}, {f"g{i}": "x" for i in range(9)}
    seeds = set()
    for name in "ab":
        with Store(tmp_path / name) as store:
            first = judging.with_seed(HALF, store)
            judging.record_scoring_rules(store, Scorer(*truth, first))
        with Store(tmp_path / name) as store:
            assert judging.with_seed(HALF, store) == first
        assert first.seed is not None
        seeds.add(first.seed)
    assert len(seeds) == 2 and not seeds & set(range(1000))


def test_a_given_seed_stays_and_without_a_split_there_is_none(tmp_path: Path) -> None:
    with Store(tmp_path / "a") as store:
        assert judging.with_seed(Rules(public_share=0.5, closes=9e9, seed=0), store).seed == 0
        assert judging.with_seed(Rules(), store).seed is None
    with pytest.raises(UsageError, match="seed"):
        Scorer({"q": "x", "r": "x"}, {"g": "x"}, Rules(top_k=1, public_share=0.5, closes=9e9))


def test_a_rescore_with_a_new_split_draws_a_seed(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(LABELS)
    with Store(tmp_path / "a") as store:
        truth = {f"q{i}.jpg": str(i % 2) for i in range(12)}, {"g0.jpg": "0", "g1.jpg": "1"}
        judging.record_scoring_rules(store, Scorer(*truth, Rules(top_k=2, closes=9e9)))
    judging.rescore(tmp_path / "labels.csv", database=tmp_path / "a", public_share=0.5)
    with Store(tmp_path / "a") as store:
        kept = Rules.from_json(store.fact("rules") or "").seed
    assert kept is not None and kept > 1000


def test_only_the_organiser_sees_the_seed(open_contest: Open) -> None:
    contest = open_contest(Rules(top_k=3, public_share=0.5, closes=9e9, seed=8_140_597_120_633))
    page = {"Accept": "text/html"}
    for path in ("/", "/groups/1", "/groups/1.json", "/leaderboard.json", "/openapi.json"):
        contest.post()
        assert "8140597120633" not in contest.get(path).text
    assert "8140597120633" in contest.get("/organiser", organiser=True, headers=page).text
    assert "8140597120633" not in contest.get("/organiser").text


# ── rescoring, start, truth ───────────────────────────────────────────────────────────────────────


def labels_file(folder: Path, queries: dict, gallery: dict, name: str = "labels.csv") -> Path:
    rows = ["role,file,label"]
    rows += [f"query,{one},{label}" for one, label in queries.items()]
    rows += [f"gallery,{one},{label}" for one, label in gallery.items()]
    path = folder / name
    path.write_text("\n".join(rows) + "\n")
    return path


def test_rescoring_scores_all_submissions_again(open_contest: Open, tmp_path: Path) -> None:
    contest = open_contest()
    for right in (0.25, 0.5, 1.0):
        contest.post(contest.lists(right, seed=int(right * 4)))
    judging.record_scoring_rules(contest.store, contest.scorer)
    database = tmp_path / "judge.sqlite"
    same = judging.rescore(
        labels_file(tmp_path, contest.queries, contest.gallery), database=database
    )
    assert (same.submissions, same.changed, same.misfits) == (3, 0, 0)
    corrected = {query: label for query, label in contest.queries.items() if query != "q0.jpg"}
    fixed = labels_file(tmp_path, {**corrected, "q1.jpg": "class 9"}, contest.gallery, "fixed.csv")
    with Store(database) as store, pytest.raises(DataError, match="rescore"):
        judging.record_scoring_rules(store, Scorer(*judging.read_truth(fixed), contest.rules))
    found = judging.rescore(fixed, database=database, metrics=("contest_points",))
    assert (found.submissions, found.misfits) == (3, 3)
    assert found.changed == 3
    with Store(database) as store:
        scorer = Scorer(*judging.read_truth(fixed), Rules(top_k=3, metrics=("contest_points",)))
        judging.record_scoring_rules(store, scorer)
        for stored, submission in zip(store.each(), store.history(), strict=True):
            assert submission.scores == scorer.scores(unpacked(stored["lists"]))


def test_a_truth_without_roles_covers_queries_and_gallery(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("file,label\na_1.jpg,a\na_2.jpg,a\nb_1.jpg,b\n")
    queries, gallery = judging.read_truth(path)
    assert dict(queries) == dict(gallery) == {"a_1.jpg": "a", "a_2.jpg": "a", "b_1.jpg": "b"}


def test_the_data_folder_is_compared_with_the_labels(paint: Any, tmp_path: Path) -> None:
    for name in ("query/q1.png", "gallery/g1.png", "gallery/g2.png"):
        paint(f"data/test/{name}", (1, 2, 3))
    data = tmp_path / "data"
    good = labels_file(tmp_path, {"q1.png": "a"}, {"g1.png": "a"})
    assert judging.read_truth(good, data) == ({"q1.png": "a"}, {"g1.png": "a", "g2.png": None})
    absent = labels_file(tmp_path, {"q1.png": "a"}, {"g1.png": "a", "g9.png": "a"}, "absent.csv")
    with pytest.raises(DataError, match=r"not in the data folder: g9\.png"):
        judging.read_truth(absent, data)
    paint("data/test/query/q2.png", (1, 2, 3))
    with pytest.raises(DataError, match=r"not in the labels: q2\.png"):
        judging.read_truth(good, data)


def test_a_port_that_is_taken_is_one_line(serving: Any, tmp_path: Path) -> None:
    labels = labels_file(tmp_path, {"q": "a"}, {f"g{i}": "a" for i in range(10)})
    port = int(serving[1].rsplit(":", 1)[1])
    with pytest.raises(UsageError, match="port chooses another"):
        judging.judge(labels, database=tmp_path / "judge.sqlite", port=port)
    assert not (tmp_path / "judge.sqlite").exists()


def test_the_organiser_s_token_is_made_once(tmp_path: Path) -> None:
    with Store(tmp_path / "judge.sqlite") as store:
        first, made = judging._organiser_hash(store, None)
        assert made is not None and judging.hashed(made) == first
        assert judging._organiser_hash(store, None) == (first, None)
        other, none = judging._organiser_hash(store, "chosen-by-the-organiser")
        assert none is None and other != first
        for bad in ("short", "with a space in the middle", "ünïcödé-ünïcödé-ünïcödé"):
            with pytest.raises(UsageError, match="16 ASCII"):
                judging._organiser_hash(store, bad)
