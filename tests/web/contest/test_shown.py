"""What the contest's server shows to whom, and what its organiser does beside it."""

import csv
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from vizsla.errors import DataError, MissingExtraError, UsageError
from vizsla.web.contest import server as judging
from vizsla.web.contest.rules import Rules
from vizsla.web.contest.scoring import Scorer
from vizsla.web.contest.store import Store, unpacked
from vizsla.web.shell.tokens import hashed

Open = Callable[..., Any]


# ── what is shown ────────────────────────────────────────────────────────────────────────────────


def leaderboard(contest: Any) -> list[dict]:
    return contest.get("/leaderboard.json").json()["leaderboard"]


def test_the_leaderboard_ranks_by_best_and_shares_ranks(contest: Any) -> None:
    for group, right in (("A", 0.5), ("B", 0.75), ("C", 0.5), ("A", 0.25), ("D", 0.25)):
        contest.post(contest.lists(right), group=group)
    rows = leaderboard(contest)
    assert [(row["rank"], row["groupname"], row["score"]) for row in rows] == [
        (1, "B", 0.75), (2, "A", 0.5), (2, "C", 0.5), (4, "D", 0.25)
    ]  # fmt: skip
    assert (rows[1]["submissions"], rows[1]["counted"]) == (2, 1)
    low, high = rows[0]["interval"]
    assert low < 0.75 < high


def test_the_last_submission_counts_where_the_rules_say_so(open_contest: Open) -> None:
    contest = open_contest(Rules(top_k=3, counts="last"))
    for right in (0.75, 0.25):
        contest.post(contest.lists(right))
    assert [(row["score"], row["counted"]) for row in leaderboard(contest)] == [(0.25, 2)]


def test_csv_and_json_say_the_same(contest: Any) -> None:
    contest.post(contest.lists(0.5), group="=SUM(A1)")
    contest.post(contest.lists(0.75), group='comma, "quote"')
    response = contest.get("/leaderboard.csv")
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    table = list(csv.DictReader(io.StringIO(response.text)))
    assert [row["groupname"] for row in table] == ['comma, "quote"', "'=SUM(A1)"]
    rows = leaderboard(contest)
    assert [float(row["all_score"]) for row in table] == [row["score"] for row in rows]
    assert rows[1]["groupname"] == "=SUM(A1)"
    assert contest.get("/groups/1.json").json()["submissions"][0]["number"] == 1


def test_the_csv_of_an_empty_leaderboard_has_its_header(contest: Any) -> None:
    empty = contest.get("/leaderboard.csv").text
    none = contest.get("/organiser/scores.csv", organiser=True).text
    contest.post()
    assert empty and empty == contest.get("/leaderboard.csv").text.splitlines(True)[0]
    filled = contest.get("/organiser/scores.csv", organiser=True).text
    assert none and none == filled.splitlines(True)[0]


def test_names_are_shown_escaped(contest: Any) -> None:
    contest.post(group="<script>alert(1)</script>")
    for path in ("/", "/groups/1"):
        text = contest.get(path, headers={"Accept": "text/html"}).text
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    organiser = contest.get("/organiser", organiser=True).text
    assert "&lt;script&gt;alert(1)" in organiser and "<script>alert" not in organiser


def private_contest(open_contest: Open) -> tuple[Any, str]:
    """A running contest with one submission, and its private score as text."""
    queries = {f"q{i}.jpg": f"class {i % 4}" for i in range(101)}
    rules = Rules(top_k=3, public_share=0.5, closes=10_000.0, seed=3)
    contest = open_contest(rules, queries=queries)
    contest.now = 100.0
    row_of = {contest.scorer.queries[i]: part for part, rows in contest.scorer._rows.items()
              for i in rows}  # fmt: skip
    wrong, right = contest.lists(0.0), contest.lists(1.0)
    private = [query for query in queries if row_of[query] == "private"]
    lists = {
        q: (right if row_of[q] == "public" or q in private[:19] else wrong)[q] for q in queries
    }
    score = contest.scorer.scores(lists)["private"].score
    answer = contest.post(lists).json()
    assert (answer["accuracy"], answer["part"]) == (1.0, "public")
    assert score in (19 / 51, 19 / 50)
    return contest, f"{score:.4f}"[:5]


def test_private_scores_cannot_be_had_before_closing_by_any_route(open_contest: Open) -> None:
    contest, private = private_contest(open_contest)
    contest.now = 9_999.0
    for text in contest.everything():
        assert private not in text
        assert "private_" not in text and '"private"' not in text
    contest.now = 10_000.0
    for path in ("/", "/groups/1", "/groups/1.json", "/leaderboard.json", "/leaderboard.csv"):
        assert private in contest.get(path).text, path
    for path in ("/organiser", "/organiser/scores.json", "/organiser/scores.csv"):
        assert private in contest.get(path, organiser=True).text, path


def test_an_answer_is_of_one_moment(open_contest: Open) -> None:
    """The contest may close between two lines of the server's code."""
    contest, _ = private_contest(open_contest)
    before: list[float] = []  # what the clock shows still before the closing time
    app = judging.create_app(
        contest.store, contest.scorer, organiser_hash=hashed("token-of-the-organiser"),
        clock=lambda: before.pop() if before else 10_000.0,
    )  # fmt: skip
    headers = {"Authorization": "Bearer token-of-the-organiser"}
    client = TestClient(app, headers=headers)
    for path in ("/", "/groups/1", "/groups/1.json", "/leaderboard.json", "/leaderboard.csv",
                 "/organiser", "/organiser/scores.json", "/organiser/scores.csv"):  # fmt: skip
        for times in range(1, 7):
            before[:] = [9_999.0] * times
            answer = client.get(path)
            assert answer.status_code == 200
            assert len(before) == times - 1, path


def test_the_public_part_chooses_and_the_private_part_ranks(open_contest: Open) -> None:
    """Each group's best by public score counts, whatever its private score."""
    queries = {f"q{i}.jpg": f"class {i % 4}" for i in range(100)}
    contest = open_contest(Rules(top_k=3, public_share=0.5, closes=100.0, seed=1), queries=queries)
    contest.now = 1.0
    public = {contest.scorer.queries[row] for row in contest.scorer._rows["public"]}
    wrong, right = contest.lists(0.0), contest.lists(1.0)

    def submission(n_public: int, n_private: int) -> dict:
        chosen = set(sorted(public)[:n_public]) | set(sorted(set(queries) - public)[:n_private])
        return {query: (right if query in chosen else wrong)[query] for query in queries}

    contest.post(submission(40, 10), group="A")
    contest.post(submission(20, 50), group="A")
    contest.post(submission(30, 30), group="B")
    assert [row["groupname"] for row in leaderboard(contest)] == ["A", "B"]
    contest.now = 100.0
    rows = leaderboard(contest)
    assert [(row["groupname"], row["score"]) for row in rows] == [("B", 0.6), ("A", 0.2)]
    assert rows[1]["counted"] == 1
    assert rows[1]["parts"]["public"]["score"] == 0.8


def test_the_organiser_s_pages_need_their_token(contest: Any) -> None:
    contest.post()
    paths = ["/organiser", *(f"/organiser/{n}" for n in
             ("scores.json", "scores.csv", "submissions.jsonl"))]  # fmt: skip
    for path in paths:
        for header in (None, "Bearer no", "Basic bm86bm8=", "Basic !!!", "Bearer"):
            response = contest.get(path, headers={"Authorization": header} if header else {})
            assert response.status_code == 401
            assert response.headers["www-authenticate"].startswith("Basic")
        assert contest.get(path, organiser=True).status_code == 200
        answer = contest.client.get(contest.url + path, auth=("anyone", "token-of-the-organiser"))
        assert answer.status_code == 200
    lines = contest.get("/organiser/submissions.jsonl", organiser=True).text.splitlines()
    assert [json.loads(line)["images"] for line in lines] == [contest.lists()]
    scores = contest.get("/organiser/scores.json", organiser=True).json()["submissions"]
    assert [(one["groupname"], one["parts"]["all"]["score"]) for one in scores] == [("Hounds", 0.5)]


def test_pages_say_where_to_post_and_mistrust_the_host_header(contest: Any) -> None:
    assert f"{contest.url}/retrieval/" in contest.get("/").text
    text = contest.get("/", headers={"Host": '"><script>'}).text
    assert "http://HOST:PORT/retrieval/" in text and '"><script>' not in text


# ── rescore, start, truth ────────────────────────────────────────────────────────────────────────


def labels_file(folder: Path, queries: dict, gallery: dict, name: str = "labels.csv") -> Path:
    rows = ["role,file,label"]
    rows += [f"query,{one},{label}" for one, label in queries.items()]
    rows += [f"gallery,{one},{label}" for one, label in gallery.items()]
    path = folder / name
    path.write_text("\n".join(rows) + "\n")
    return path


def test_rescore_scores_all_anew_from_the_file(open_contest: Open, tmp_path: Path) -> None:
    contest = open_contest()
    for right in (0.25, 0.5, 1.0):
        contest.post(contest.lists(right, seed=int(right * 4)))
    judging.adopt(contest.store, contest.scorer)
    database = tmp_path / "judge.sqlite"
    same = judging.rescore(
        labels_file(tmp_path, contest.queries, contest.gallery), database=database
    )
    assert (same.submissions, same.changed, same.misfits) == (3, 0, 0)
    corrected = {query: label for query, label in contest.queries.items() if query != "q0.jpg"}
    fixed = labels_file(tmp_path, {**corrected, "q1.jpg": "class 9"}, contest.gallery, "fixed.csv")
    with Store(database) as store, pytest.raises(DataError, match="rescore"):
        judging.adopt(store, Scorer(*judging.read_truth(fixed), contest.rules))
    found = judging.rescore(fixed, database=database, metric="contest_points")
    assert (found.submissions, found.misfits) == (3, 3)
    assert found.changed == 3
    with Store(database) as store:
        scorer = Scorer(*judging.read_truth(fixed), Rules(top_k=3, metric="contest_points"))
        judging.adopt(store, scorer)
        for stored, submission in zip(store.each(), store.history(), strict=True):
            assert submission.scores == scorer.scores(unpacked(stored["lists"]))


def test_the_truth_without_roles_serves_both(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("file,label\na_1.jpg,a\na_2.jpg,a\nb_1.jpg,b\n")
    queries, gallery = judging.read_truth(path)
    assert dict(queries) == dict(gallery) == {"a_1.jpg": "a", "a_2.jpg": "a", "b_1.jpg": "b"}


def test_the_data_folder_is_held_against_the_labels(paint: Any, tmp_path: Path) -> None:
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


def test_a_missing_extra_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vizsla\[web\]'"):
        judging.judge(tmp_path / "labels.csv", database=tmp_path / "judge.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_one_line(serving: Any, tmp_path: Path) -> None:
    labels = labels_file(tmp_path, {"q": "a"}, {f"g{i}": "a" for i in range(10)})
    port = int(serving[1].rsplit(":", 1)[1])
    with pytest.raises(UsageError, match="--port chooses another"):
        judging.judge(labels, database=tmp_path / "judge.sqlite", port=port)
    assert not (tmp_path / "judge.sqlite").exists()


def test_the_organiser_s_token_is_made_once(tmp_path: Path) -> None:
    with Store(tmp_path / "judge.sqlite") as store:
        first, made = judging._organiser(store, None)
        assert made is not None and judging.hashed(made) == first
        assert judging._organiser(store, None) == (first, None)
        other, none = judging._organiser(store, "chosen-by-the-organiser")
        assert none is None and other != first
        for bad in ("short", "with a space in the middle", "ünïcödé-ünïcödé-ünïcödé"):
            with pytest.raises(UsageError, match="16 ASCII"):
                judging._organiser(store, bad)


def test_scores_are_finite_numbers(contest: Any) -> None:
    answer = contest.post().json()
    numbers = [value for value in answer.values() if isinstance(value, float)]
    assert len(numbers) > 8 and all(math.isfinite(number) for number in numbers)
