"""What the contest's server shows to whom."""

import csv
import io
import json
import math
from collections.abc import Callable
from typing import Any

from starlette.testclient import TestClient

from vizsla.web.contest import server as judging
from vizsla.web.contest.rules import Rules
from vizsla.web.shell.tokens import hashed

Open = Callable[..., Any]


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


def test_no_route_shows_private_scores_before_the_contest_closes(open_contest: Open) -> None:
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


def test_an_answer_shows_the_contest_at_one_time(open_contest: Open) -> None:
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
    contest.post(contest.lists())
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


def test_pages_show_the_submit_url_but_do_not_trust_the_host_header(contest: Any) -> None:
    assert f"{contest.url}/retrieval/" in contest.get("/").text
    text = contest.get("/", headers={"Host": '"><script>'}).text
    assert "http://HOST:PORT/retrieval/" in text and '"><script>' not in text


def test_scores_are_finite_numbers(contest: Any) -> None:
    answer = contest.post().json()
    numbers = [value for value in answer.values() if isinstance(value, float)]
    assert len(numbers) > 8 and all(math.isfinite(number) for number in numbers)
