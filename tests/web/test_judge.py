"""The contest's server as its clients see it, over a real connection on loopback."""

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

import vizsla
from vizsla.errors import DataError, MissingExtraError, UsageError
from vizsla.output.submission import submission_sha256
from vizsla.web import judge as judging
from vizsla.web.judge_rules import Rules, parse_time
from vizsla.web.judge_scoring import Scorer
from vizsla.web.judge_store import Store, unpacked

Open = Callable[..., Any]


# ── the protocol ─────────────────────────────────────────────────────────────────────────────────


def test_the_answer_has_accuracy_first_and_the_submission_is_stored(contest: Any) -> None:
    lists = contest.lists(right=0.75)
    response = contest.post(lists)
    assert response.status_code == 200
    answer = response.json()
    assert next(iter(answer)) == "accuracy"
    expected = contest.scorer.scores(lists)["all"]
    assert answer["accuracy"] == answer["top_k_accuracy"] == expected.score == 0.75
    assert answer["interval"] == [expected.low, expected.high]
    assert {key: answer[key] for key in expected.metrics} == expected.metrics
    assert answer["submission"]["sha256"] == submission_sha256(lists)
    assert answer["submission"]["number"] == 1
    assert answer["left"] == {"this_hour": None, "in_all": None}
    stored = next(contest.store.each())
    assert (stored["id"], stored["groupname"]) == (answer["submission"]["id"], "Hounds")
    assert unpacked(stored["lists"]) == lists


@pytest.mark.parametrize("metric", ["top_k_accuracy", "contest_points", "map_at_k"])
def test_accuracy_holds_the_chosen_metric_unscaled(open_contest: Open, metric: str) -> None:
    contest = open_contest(Rules(top_k=3, metric=metric))
    answer = contest.post(contest.lists(right=1.0)).json()
    assert answer["metric"] == metric
    assert answer["accuracy"] == answer[metric]
    if metric == "contest_points":
        assert answer["accuracy"] == 1000.0


@pytest.mark.parametrize("path", ["/retrieval/", "/retrieval"])
@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "nonsense"],
)
def test_any_content_type_will_do(contest: Any, path: str, content_type: str | None) -> None:
    text = json.dumps({"groupname": "Hounds", "images": contest.lists()}, indent=4)
    headers = {"Content-Type": content_type} if content_type else {}
    response = contest.client.post(contest.url + path, content=text, headers=headers)
    assert response.status_code == 200, response.text
    assert response.json()["accuracy"] == 0.5


def test_the_contest_s_own_scripts_and_plain_clients(contest: Any) -> None:
    content = {"groupname": "Hounds", "images": contest.lists()}
    text = json.dumps(content)
    for response in (
        requests.post(contest.url + "/retrieval/", text, timeout=10),
        requests.post(contest.url + "/retrieval/", data=text.encode(), timeout=10),
        requests.post(contest.url + "/retrieval/", json=content, timeout=10),
        httpx.post(contest.url + "/retrieval/", json=content),
    ):
        assert response.status_code == 200
        assert response.json()["accuracy"] == 0.5


def test_our_own_client(contest: Any) -> None:
    lists = contest.lists(right=0.25)
    receipt = vizsla.submit(lists, groupname="Hounds", url=contest.url + "/retrieval/")
    assert receipt.accuracy == 0.25
    stored = next(contest.store.each())
    assert stored["sha256"] == receipt.sha256
    assert (
        receipt.metrics["contest_points"]
        == contest.scorer.scores(lists)["all"].metrics["contest_points"]
    )


def test_our_own_client_passes_tokens_and_shows_refusals(open_contest: Open) -> None:
    contest = open_contest(Rules(top_k=3, groups="token", in_all=1))
    url = contest.url + "/retrieval/"
    contest.store.set_token_hash("Hounds", judging.hashed("the-token-of-hounds"))
    with pytest.raises(vizsla.VizslaError, match="needs its token"):
        vizsla.submit(contest.lists(), groupname="Hounds", url=url)
    receipt = vizsla.submit(
        contest.lists(), groupname="Hounds", url=url, token="the-token-of-hounds"
    )
    assert receipt.accuracy == 0.5
    with pytest.raises(vizsla.VizslaError, match="used up"):
        vizsla.submit(
            contest.lists(), groupname="Hounds", url=url, token="the-token-of-hounds", waits=()
        )


def test_a_name_may_be_query_and_gallery_image(open_contest: Open) -> None:
    names = {f"{label}_{n}.jpg": label for label in ("cat", "dog") for n in range(3)}
    contest = open_contest(Rules(top_k=2), queries=dict(names), gallery=dict(names))
    answer = contest.post(
        {name: [name, "dog_0.jpg" if name != "dog_0.jpg" else "cat_0.jpg"] for name in names}
    ).json()
    assert answer["accuracy"] == answer["top_1_accuracy"] == 1.0


def test_bodies_with_a_byte_order_mark_and_escaped_names(open_contest: Open) -> None:
    queries = {f"frågé{i}.jpg": "ü" for i in range(3)}
    contest = open_contest(Rules(top_k=1), queries=queries, gallery={"büld.jpg": "ü"})
    content = {"groupname": "Zoë", "images": {query: ["büld.jpg"] for query in queries}}
    for text in (json.dumps(content).encode(), json.dumps(content, ensure_ascii=False).encode()):
        for body in (text, b"\xef\xbb\xbf" + text):
            assert contest.post(content=body).json()["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("name", "k", "accuracy", "precision"),
    [
        ("sub_dino2", 9, 0.9605, 0.4915),
        ("sub_dino2_finetune", 9, 0.9852, 0.5999),
        ("sub_efficientnet_b3", 9, 0.9741, 0.8513),
        ("sub_resnet50", 10, 0.3000, 0.0428),
    ],
)
def test_the_contest_s_own_submissions_score_as_they_did(
    shared: Path, open_contest: Open, tmp_path: Path, name: str, k: int, accuracy: float,
    precision: float,
) -> None:  # fmt: skip
    file = shared / "contest" / "submissions" / f"{name}.json"
    lists = json.loads(file.read_text())
    label = re.compile(r"(.*)_\d+\.[^.]+")
    rows = ["role,file,label"]
    for role, names in (("query", lists), ("gallery", {n for row in lists.values() for n in row})):
        rows += [f"{role},{one},{label.fullmatch(one)[1]}" for one in sorted(names)]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    queries, gallery = judging.read_truth(tmp_path / "labels.csv")
    contest = open_contest(Rules(top_k=k), queries=queries, gallery=gallery)
    receipt = vizsla.submit(file, groupname="Stochastic_thr", url=contest.url + "/retrieval/")
    assert receipt.accuracy == pytest.approx(accuracy, abs=5e-5)
    assert receipt.metrics["precision_at_k"] == pytest.approx(precision, abs=5e-5)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


def changed(lists: dict, **rows: Any) -> dict:
    return {**lists, **{query.replace("_", "."): row for query, row in rows.items()}}


def refusals(contest: Any) -> list[tuple[bytes, int, str]]:
    """(body, status, a part of the message)."""
    lists = contest.lists()
    row = lists["q0.jpg"]

    def body(images: Any, **more: Any) -> bytes:
        return json.dumps({"groupname": "Hounds", "images": images, **more}).encode()

    twice = body(lists).replace(b'"q1.jpg"', b'"q0.jpg"')
    without = {query: names for query, names in lists.items() if query not in ("q3.jpg", "q7.jpg")}
    many = {query: [*names[:2], "x.jpg"] for query, names in lists.items()}
    return [
        (b"", 400, "the body is empty"),
        (b"groupname=Hounds&images=x", 400, "not valid JSON"),
        (body(lists)[:-20], 400, "not valid JSON: Unterminated string"),
        (body(lists) + b"}", 400, "not valid JSON"),
        (b'{"groupname": "a", "images": NaN}', 400, "it holds NaN"),
        (b'{"groupname": "a", "images": {"q0.jpg": [-Infinity]}}', 400, "it holds -Infinity"),
        (body(lists).replace(b"Hounds", b"H\xffunds"), 400, "not valid UTF-8: byte 0xff"),
        (json.dumps({"groupname": "a"}).encode("utf-16"), 400, "UTF-16"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'{"groupname": "a", "images": ' + b'{"a":' * 50_000, 400, "nested too deeply"),
        (b'{"groupname": "a", "groupname": "b", "images": {}}', 400, "twice in one object"),
        (twice, 400, "keys that stand twice in one object: 'q0.jpg'"),
        (b'{"groupname": "a", "images": ' + b"9" * 5000 + b"}", 400, "not valid JSON"),
        (b"[1, 2]", 422, "got a list"),
        (b"null", 422, "got null"),
        (json.dumps(lists).encode(), 422, "groupname is missing"),
        (b'{"groupname": "a"}', 422, "images is missing"),
        (json.dumps({"groupname": 7, "images": lists}).encode(), 422, "groupname must be a text"),
        (json.dumps({"groupname": " ", "images": lists}).encode(), 422, "groupname is empty"),
        (json.dumps({"groupname": "a" * 61, "images": lists}).encode(), 422, "at most 60"),
        (json.dumps({"groupname": "\ud800", "images": lists}).encode(), 422, "U+D800"),
        (body(lists, token=7), 422, "token must be a text"),
        (body([]), 422, "got a list"),
        (body(True), 422, "got true or false"),
        (body({}), 422, "it holds no queries"),
        (body(changed(lists, other=row)), 422, "unknown queries: 'other'"),
        (body(without), 422, "missing queries: 'q3.jpg', 'q7.jpg'"),
        (body(changed(lists, q0_jpg=[*row[:2], row[0]])), 422, "'q0.jpg' repeats"),
        (body(many), 422, "unknown gallery names: 'q0.jpg' names 'x.jpg'"),
        (body(many), 422, "and 9 more"),
        (body(changed(lists, q0_jpg=row[:2])), 422, "exactly 3 names: 'q0.jpg' has 2"),
        (body(changed(lists, q0_jpg=[*row, "g9.jpg"])), 422, "'q0.jpg' has 4"),
        (body(changed(lists, q0_jpg=[*row[:2], 5])), 422, "'q0.jpg' holds a number"),
        (body(changed(lists, q0_jpg=[*row[:2], True])), 422, "'q0.jpg' holds true or false"),
        (body(changed(lists, q0_jpg=[*row[:2], None])), 422, "'q0.jpg' holds null"),
        (body(changed(lists, q0_jpg=[*row[:2], {}])), 422, "'q0.jpg' holds an object"),
        (body(changed(lists, q0_jpg="abc")), 422, "'q0.jpg' has a text"),
        (body(changed(lists, q0_jpg=None)), 422, "'q0.jpg' has null"),
        (body(changed(lists, q0_jpg=[*row[:2], "\ud800.jpg"])), 422, "\\ud800"),
    ]  # fmt: skip


def test_bad_submissions_are_refused_precisely_and_never_scored(contest: Any) -> None:
    for body, status, message in refusals(contest):
        response = contest.post(content=body)
        said = response.json()
        assert response.status_code == status, (body[:80], response.text)
        assert message in said["error"], (body[:80], said)
        assert len(response.content) < 2000
        assert "accuracy" not in said
    assert contest.store.count() == 0
    assert contest.post().status_code == 200  # and the server is well


def test_compressed_bodies_are_refused(contest: Any) -> None:
    response = contest.post(content=b"x", headers={"Content-Encoding": "gzip"})
    assert response.status_code == 415
    assert "send plain JSON" in response.json()["error"]


# ── groups, tokens, limits, times ────────────────────────────────────────────────────────────────


def test_groups_by_token(open_contest: Open, tmp_path: Path) -> None:
    contest = open_contest(Rules(top_k=3, groups="token"))
    token = judging.add_token("Zoë", database=tmp_path / "judge.sqlite")
    body = {"groupname": "Zoe\u0308", "images": contest.lists()}
    url = contest.url + "/retrieval/"
    wrong = ["", "Bearer", "Bearer " + token[:-1], "Bearer x" + token, "Basic " + token, token]
    for header in wrong:
        response = contest.client.post(url, json=body, headers={"Authorization": header})
        assert response.status_code == 401, header
        assert response.headers["www-authenticate"] == "Bearer"
    for other in ({**body, "token": "no"}, {**body, "groupname": "Stranger", "token": token}):
        assert contest.client.post(url, json=other).status_code == 401
    assert contest.store.count() == 0
    right = {"Authorization": "bearer " + token}
    assert contest.client.post(url, json=body, headers=right).status_code == 200
    assert contest.client.post(url, json={**body, "token": token}).status_code == 200
    newer = judging.add_token("Zoë", database=tmp_path / "judge.sqlite")
    assert contest.client.post(url, json={**body, "token": token}).status_code == 401
    assert contest.client.post(url, json={**body, "token": newer}).status_code == 200
    assert judging.list_tokens(database=tmp_path / "judge.sqlite") == ["Zoë"]
    judging.remove_token("Zoë", database=tmp_path / "judge.sqlite")
    assert contest.client.post(url, json={**body, "token": newer}).status_code == 401
    with pytest.raises(UsageError, match="has no token"):
        judging.remove_token("Zoë", database=tmp_path / "judge.sqlite")


def test_an_open_contest_keeps_names_that_have_a_token(open_contest: Open, tmp_path: Path) -> None:
    contest = open_contest()
    token = judging.add_token("Hounds", database=tmp_path / "judge.sqlite")
    assert contest.post().status_code == 401
    assert contest.post(group="Others").status_code == 200
    assert contest.post(headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_tokens_are_nowhere_in_the_file(open_contest: Open, tmp_path: Path) -> None:
    contest = open_contest(Rules(top_k=3, groups="token"))
    token = judging.add_token("Hounds", database=tmp_path / "judge.sqlite")
    body = {"groupname": "Hounds", "images": contest.lists(), "token": token}
    assert contest.client.post(contest.url + "/retrieval/", json=body).status_code == 200
    for file in tmp_path.glob("judge.sqlite*"):
        assert token.encode() not in file.read_bytes()


def test_submissions_an_hour_and_in_all(open_contest: Open) -> None:
    contest = open_contest(Rules(top_k=3, per_hour=2, in_all=3))
    contest.now = 1000.0
    assert contest.post().json()["left"] == {"this_hour": 1, "in_all": 2}
    assert contest.post(content=b"{}").status_code == 422  # what is refused does not count
    contest.now = 2000.0
    assert contest.post().json()["left"] == {"this_hour": 0, "in_all": 1}
    contest.now = 3000.5
    response = contest.post()
    assert (response.status_code, response.headers["retry-after"]) == (429, "1600")
    assert "2 submissions an hour" in response.json()["error"]
    assert contest.post(group="Others").status_code == 200
    contest.now = 4600.0
    assert contest.post().json()["left"] == {"this_hour": 0, "in_all": 0}
    contest.now = 90_000.0
    response = contest.post()
    assert (response.status_code, response.headers["retry-after"]) == (429, "86400")
    assert contest.store.count() == 4


def test_the_in_all_limit_points_to_the_closing_time(open_contest: Open) -> None:
    contest = open_contest(Rules(top_k=3, in_all=1, closes=5000.0))
    contest.now = 1000.0
    assert contest.post().status_code == 200
    assert contest.post().headers["retry-after"] == "4000"


def test_opening_and_closing(open_contest: Open) -> None:
    opens, closes = parse_time("2026-05-01T08:00Z"), parse_time("2026-05-02T08:00Z")
    contest = open_contest(Rules(top_k=3, opens=opens, closes=closes))
    for now, status, message in (
        (opens - 0.1, 403, "opens at 2026-05-01T08:00:00Z"),
        (opens, 200, ""),
        (closes - 0.1, 200, ""),
        (closes, 403, "closed at 2026-05-02T08:00:00Z"),
    ):
        contest.now = now
        response = contest.post()
        assert response.status_code == status
        assert message in response.text
    assert contest.store.count() == 2


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


def every_answer(contest: Any) -> list[str]:
    """All that can be read from the server, by anyone and by the organiser."""
    texts = [contest.post(contest.lists(1.0)).text, contest.post(contest.lists(0.0)).text]
    for path in (
        "/", "/groups/1", "/groups/1.json", "/leaderboard.json", "/leaderboard.csv", "/organiser",
        "/organiser/scores.json", "/organiser/scores.csv", "/organiser/submissions.jsonl",
    ):  # fmt: skip
        for organiser in (False, True):
            for accept in ("text/html", "application/json"):
                answer = contest.get(path, organiser=organiser, headers={"Accept": accept})
                assert answer.status_code in ((200,) if organiser else (200, 401))
                texts.append(answer.text)
    return texts


def test_private_scores_cannot_be_had_before_closing_by_any_route(open_contest: Open) -> None:
    contest, private = private_contest(open_contest)
    contest.now = 9_999.0
    for text in every_answer(contest):
        assert private not in text
        assert "private_" not in text and '"private"' not in text
    contest.now = 10_000.0
    for path in ("/", "/groups/1", "/groups/1.json", "/leaderboard.json", "/leaderboard.csv"):
        assert private in contest.get(path).text, path
    for path in ("/organiser", "/organiser/scores.json", "/organiser/scores.csv"):
        assert private in contest.get(path, organiser=True).text, path


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


def test_no_file_path_truth_or_trace_in_any_answer(open_contest: Open, tmp_path: Path) -> None:
    queries = {f"q{i}.jpg": f"secret label {i % 4}" for i in range(12)}
    gallery = {f"g{i}.jpg": f"secret label {i % 5}" for i in range(30)}
    contest = open_contest(queries=queries, gallery=gallery)
    texts = every_answer(contest)
    texts += [contest.post(content=body).text for body, _, _ in refusals(contest)]
    for path in ("/nope", "/groups/x", "/groups/99999999999999999999.json", "/groups/-1.json",
                 "/static/", "/static/../judge.py", "/static/%2e%2e/judge_app.py",
                 "/openapi.json", "/retrieval/", "/organiser/x", "/%00",
                 "/groups/%ff"):  # fmt: skip
        texts.append(contest.get(path).text)
        texts.append(contest.get(path, headers={"Accept": "text/html"}).text)
    for text in texts:
        assert "secret label" not in text
        assert str(tmp_path) not in text and "judge.sqlite" not in text
        assert "Traceback" not in text and ".py" not in text and "site-packages" not in text


def test_a_fault_of_the_server_is_a_plain_500(
    contest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("a secret in /secret/path")

    monkeypatch.setattr(Store, "newest", fails)
    monkeypatch.setattr(Scorer, "scores", fails)
    for response in (contest.get("/"), contest.get("/leaderboard.json"), contest.post()):
        assert response.status_code == 500
        assert "secret" not in response.text and "Traceback" not in response.text
    assert contest.store.count() == 0


def test_every_answer_carries_the_security_headers(contest: Any) -> None:
    answers = [contest.get(path) for path in ("/", "/nope", "/static/judge.css", "/organiser")]
    answers += [contest.post(), contest.post(content=b"x")]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "server" not in answer.headers
    assert answers[0].headers["cache-control"] == "no-store"


def test_wrong_methods_and_addresses(contest: Any) -> None:
    answer = contest.get("/retrieval/")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "submissions are POSTed" in answer.json()["error"]
    assert contest.client.head(contest.url + "/").status_code == 200
    page = contest.get("/groups/77", headers={"Accept": "text/html"})
    assert page.status_code == 404 and "<h1>404</h1>" in page.text
    assert contest.get("/groups/77.json").status_code == 404
    assert contest.get("/groups/seven.json").status_code == 422


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
    mended = {query: label for query, label in contest.queries.items() if query != "q0.jpg"}
    fixed = labels_file(tmp_path, {**mended, "q1.jpg": "class 9"}, contest.gallery, "fixed.csv")
    with Store(database) as store, pytest.raises(DataError, match="rescore"):
        judging.adopt(store, Scorer(*judging.read_truth(fixed), contest.rules))
    found = judging.rescore(fixed, database=database, metric="contest_points")
    assert (found.submissions, found.misfits) == (3, 3)
    assert found.changed == 3
    with Store(database) as store:
        scorer = Scorer(*judging.read_truth(fixed), Rules(top_k=3, metric="contest_points"))
        judging.adopt(store, scorer)
        for stored, (_, submission) in zip(store.each(), store.history(), strict=True):
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
    with pytest.raises(DataError, match=r"lacks: g9\.png"):
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
    labels = labels_file(tmp_path, {"q": "a"}, {"g": "a"})
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
