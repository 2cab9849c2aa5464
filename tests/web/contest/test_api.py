"""The contest's server as its clients see it, over a real connection on loopback."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

import vizsla
from vizsla.errors import UsageError
from vizsla.output.submission import submission_sha256, write_submission
from vizsla.output.submit_client import score_lines
from vizsla.web.contest import server as judging
from vizsla.web.contest.rules import Rules, parse_time
from vizsla.web.contest.scoring import Scorer
from vizsla.web.contest.store import Store, unpacked

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
    assert answer["interval"] == list(expected.interval)
    assert {key: answer[key] for key in expected.metrics} == expected.metrics
    assert answer["submission"]["sha256"] == submission_sha256(lists)
    assert answer["submission"]["number"] == 1
    assert answer["left"] == {"this_hour": None, "in_all": None}
    stored = next(contest.store.each())
    assert (stored["id"], stored["groupname"]) == (answer["submission"]["id"], "Hounds")
    assert unpacked(stored["lists"]) == lists


@pytest.mark.parametrize("metric", ["top_k_accuracy", "contest_points", "map_at_k"])
def test_accuracy_holds_the_chosen_metric_unscaled(open_contest: Open, metric: str) -> None:
    contest = open_contest(Rules(top_k=3, metrics=(metric,)))
    answer = contest.post(contest.lists(right=1.0)).json()
    assert answer["metric"] == metric
    assert answer["accuracy"] == answer[metric]
    if metric == "contest_points":
        assert answer["accuracy"] == 1000.0


def test_further_metrics_are_answered_and_the_first_ranks(open_contest: Open) -> None:
    contest = open_contest(Rules(top_k=3, metrics=("map@3", "contest_points", "AP@3", "top-1")))
    answer = contest.post(contest.lists(right=0.75)).json()
    found = contest.scorer.scores(contest.lists(right=0.75))["all"].metrics
    names = ["AP@3", "contest_points", "top-1"]  # by their written names, each once
    assert answer["metrics"] == {name: found[name] for name in names}
    assert (
        list(answer["metrics"])
        == names
        == contest.get("/leaderboard.json").json()["contest"]["metrics"]
    )
    assert answer["metric"] == "AP@3" and answer["accuracy"] == answer["map_at_k"]
    assert "all_AP@3,all_top-1" in contest.get("/leaderboard.csv").text.splitlines()[0]
    receipt = vizsla.submit(contest.lists(0.5), groupname="us", url=contest.url + "/retrieval/")
    assert any(line.startswith("top-1  ") for line in score_lines(receipt))


@pytest.mark.parametrize("path", ["/retrieval/", "/retrieval"])
@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "nonsense"],
)
def test_any_content_type_is_accepted(contest: Any, path: str, content_type: str | None) -> None:
    text = json.dumps({"groupname": "Hounds", "images": contest.lists()}, indent=4)
    headers = {"Content-Type": content_type} if content_type else {}
    response = contest.client.post(contest.url + path, content=text, headers=headers)
    assert response.status_code == 200, response.text
    assert response.json()["accuracy"] == 0.5


def test_scripts_of_the_contest_and_plain_clients_work(contest: Any) -> None:
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


def test_the_submit_client_posts_and_reads_the_score(contest: Any) -> None:
    lists = contest.lists(right=0.25)
    receipt = vizsla.submit(lists, groupname="Hounds", url=contest.url + "/retrieval/")
    assert receipt.accuracy == 0.25
    stored = next(contest.store.each())
    assert stored["sha256"] == receipt.sha256
    assert (
        receipt.metrics["contest_points"]
        == contest.scorer.scores(lists)["all"].metrics["contest_points"]
    )


def test_a_submission_of_more_than_a_mebibyte_is_accepted(open_contest: Open) -> None:
    """1,500 queries × 10 long names, all of them escaped; and the limit is not far above that."""
    queries = {f"query/ü/{'q' * 60}{i:04}.jpg": f"class {i % 40}" for i in range(1500)}
    gallery = {f"gallery/ü/{'g' * 60}{i:04}.jpg": f"class {i % 50}" for i in range(400)}
    contest = open_contest(Rules(top_k=10), queries=queries, gallery=gallery)
    lists = contest.lists(right=0.5)
    body = json.dumps({"groupname": "Hounds", "images": lists}).encode()
    assert len(body) > 1.3 * 2**20
    answer = contest.post(content=body)
    assert answer.status_code == 200 and answer.json()["accuracy"] >= 0.5
    ours = vizsla.submit(lists, groupname="Pointers", url=contest.url + "/retrieval/")
    assert ours.accuracy == answer.json()["accuracy"]
    indented = json.dumps({"groupname": "Hounds", "images": lists}, indent=8).encode()
    assert contest.post(content=indented).json()["submission"]["repeated"] is True
    assert contest.post(content=body + b" " * 6 * len(body)).status_code == 413
    assert contest.store.count() == 2


def test_the_submit_client_passes_tokens_and_shows_refusals(open_contest: Open) -> None:
    contest = open_contest(Rules(top_k=3, groups="token", max_submissions=1))
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
            contest.lists(seed=1),
            groupname="Hounds",
            url=url,
            token="the-token-of-hounds",
            retries=0,
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


def test_the_openapi_description_has_every_address_and_its_types(contest: Any) -> None:
    described = contest.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/retrieval/", "/leaderboard.json", "/leaderboard.csv", "/groups/{group_id}.json",
        "/organiser/scores.json", "/organiser/scores.csv", "/organiser/submissions.jsonl",
    }  # fmt: skip
    post = described["paths"]["/retrieval/"]["post"]
    body = post["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {"groupname", "images", "token"}
    answer = described["components"]["schemas"]["SubmissionAnswer"]["properties"]
    assert list(answer) == list(contest.post().json())
    for path, methods in described["paths"].items():
        for method in methods.values():
            assert bool(method.get("security")) == path.startswith("/organiser")


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
        (json.dumps({"groupname": "a"}).encode("utf-16"), 422, "images is missing"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'{"groupname": "a", "images": ' + b'{"a":' * 50_000, 400, "nested too deeply"),
        (b'{"groupname": "a", "groupname": "b", "images": {}}', 400, "twice in one object"),
        (twice, 400, "keys that occur twice in one object: 'q0.jpg'"),
        (b'{"groupname": "a", "images": ' + b"9" * 5000 + b"}", 400, "not valid JSON"),
        (b"[1, 2]", 422, "got a list"),
        (b"null", 422, "got null"),
        (json.dumps(lists).encode(), 422, "groupname is missing"),
        (b'{"groupname": "a"}', 422, "images is missing"),
        (json.dumps({"groupname": 7, "images": lists}).encode(), 422, "groupname must be a string"),
        (json.dumps({"groupname": " ", "images": lists}).encode(), 422, "groupname is empty"),
        (json.dumps({"groupname": "a" * 61, "images": lists}).encode(), 422, "at most 60"),
        (json.dumps({"groupname": "\ud800", "images": lists}).encode(), 422, "U+D800"),
        (body(lists, token=7), 422, "token must be a string"),
        (body([]), 422, "got a list"),
        (body(True), 422, "got a boolean"),
        (body({}), 422, "it holds no queries"),
        (body(changed(lists, other=row)), 422, "unknown queries: 'other'"),
        (body(without), 422, "missing queries: 'q3.jpg', 'q7.jpg'"),
        (body(changed(lists, q0_jpg=[*row[:2], row[0]])), 422, "'q0.jpg' repeats"),
        (body(many), 422, "unknown gallery names: 'q0.jpg' names 'x.jpg'"),
        (body(many), 422, "and 9 more"),
        (body(changed(lists, q0_jpg=row[:2])), 422, "exactly 3 names: 'q0.jpg' has 2"),
        (body(changed(lists, q0_jpg=[*row, "g9.jpg"])), 422, "'q0.jpg' has 4"),
        (body(changed(lists, q0_jpg=[*row[:2], 5])), 422, "'q0.jpg' holds a number"),
        (body(changed(lists, q0_jpg=[*row[:2], True])), 422, "'q0.jpg' holds a boolean"),
        (body(changed(lists, q0_jpg=[*row[:2], None])), 422, "'q0.jpg' holds null"),
        (body(changed(lists, q0_jpg=[*row[:2], {}])), 422, "'q0.jpg' holds an object"),
        (body(changed(lists, q0_jpg="abc")), 422, "'q0.jpg' has a string"),
        (body(changed(lists, q0_jpg=None)), 422, "'q0.jpg' has null"),
        (body(changed(lists, q0_jpg=[*row[:2], "\ud800.jpg"])), 422, "\\ud800"),
    ]  # fmt: skip


def test_invalid_submissions_are_refused_and_never_scored(contest: Any) -> None:
    for body, status, message in refusals(contest):
        response = contest.post(content=body)
        answer = response.json()
        assert response.status_code == status, (body[:80], response.text)
        assert message in answer["error"], (body[:80], answer)
        assert len(response.content) < 2000
        assert "accuracy" not in answer
    assert contest.store.count() == 0
    assert contest.post().status_code == 200  # and the server is well


def test_compressed_bodies_are_refused(contest: Any) -> None:
    response = contest.post(content=b"x", headers={"Content-Encoding": "gzip"})
    assert response.status_code == 415
    assert "send it uncompressed" in response.json()["error"]


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
    contest = open_contest(Rules(top_k=3, per_hour=2, max_submissions=3))
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


def test_the_same_lists_again_cost_nothing_and_the_answer_says_so(open_contest: Open) -> None:
    contest = open_contest(Rules(top_k=3, max_submissions=2))
    first, second = contest.lists(1.0), contest.lists(0.5)
    contest.post(contest.lists(0.8), group="Others")
    answer = contest.post(first).json()
    assert answer["submission"]["repeated"] is False
    assert answer["leaderboard"] == {"rank": 1, "groups": 2}
    again = contest.post(dict(reversed(first.items()))).json()  # in another order
    assert again["submission"]["repeated"] is True and again["left"]["in_all"] == 1
    assert (again["accuracy"], again["submission"]["number"]) == (1.0, 1)
    assert contest.post(second).json()["left"]["in_all"] == 0
    assert contest.post(first).json()["submission"]["number"] == 1  # also with nothing left
    assert contest.post(contest.lists(0.1)).status_code == 429
    assert contest.post(first, group="Others").json()["submission"]["repeated"] is False
    assert contest.store.count() == 4


def test_where_the_last_counts_an_earlier_one_may_be_sent_again(open_contest: Open) -> None:
    contest = open_contest(Rules(top_k=3, counts="last"))
    first, second = contest.lists(1.0), contest.lists(0.5)
    sent = [contest.post(one).json()["submission"] for one in (first, second, second, first)]
    assert [one["repeated"] for one in sent] == [False, False, True, False]
    assert contest.get("/leaderboard.json").json()["leaderboard"][0]["score"] == 1.0


def test_the_form_takes_a_file_of_any_format(open_contest: Open, tmp_path: Path) -> None:
    contest = open_contest(Rules(top_k=3, per_hour=5))
    contest.store.set_token_hash("Setters", judging.hashed("the-token-of-setters"))

    def send(content: bytes, **fields: str) -> Any:
        fields = {"groupname": "Hounds", "token": "", **fields}
        files = {"file": ("sub", content)}
        return contest.client.post(contest.url + "/submit", data=fields, files=files)

    lists = contest.lists(0.5)
    for i, format in enumerate(("json", "kaggle", "trec")):
        write_submission(lists, tmp_path / f"sub{i}", k=3, format=format)
        page = send((tmp_path / f"sub{i}").read_bytes())
        assert page.status_code == 200 and "0.5000" in page.text
        assert ("Already submitted" in page.text) == (i > 0)  # all hold the same lists
    assert contest.store.count() == 1 and "4 this hour" in page.text and "of 1 group" in page.text
    for content, fields, status, message in (
        (json.dumps(lists).encode(), {"groupname": "Setters"}, 401, "needs its token"),
        (b"no submission", {}, 422, "The file is no submission"),
        (b"", {}, 422, "Choose a submission file"),
        (json.dumps({"q0.jpg": ["g1.jpg"]}).encode(), {}, 422, "Missing queries"),
        (json.dumps(lists).encode(), {"groupname": " "}, 422, "Groupname is empty"),
    ):
        page = send(content, **fields)
        assert page.status_code == status and message in page.text, page.text
        assert "Not accepted" in page.text and "Nothing was stored" in page.text
    token = {"groupname": "Setters", "token": "the-token-of-setters"}
    assert send(json.dumps(lists).encode(), **token).status_code == 200
    organiser = contest.get("/organiser", organiser=True).text
    assert organiser.count("4 this hour") == 4 and "Setters" in organiser  # wide and narrow


def test_the_in_all_limit_points_to_the_closing_time(open_contest: Open) -> None:
    contest = open_contest(Rules(top_k=3, max_submissions=1, closes=5000.0))
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


# ── what no answer contains, and what every answer has ───────────────────────────────────────────


def test_no_file_path_truth_or_trace_in_any_answer(open_contest: Open, tmp_path: Path) -> None:
    queries = {f"q{i}.jpg": f"secret label {i % 4}" for i in range(12)}
    gallery = {f"g{i}.jpg": f"secret label {i % 5}" for i in range(30)}
    contest = open_contest(queries=queries, gallery=gallery)
    texts = contest.everything()
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


def test_a_server_error_is_a_plain_500(contest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("a secret in /secret/path")

    monkeypatch.setattr(Store, "newest", fails)
    monkeypatch.setattr(Scorer, "scores", fails)
    for response in (contest.get("/"), contest.get("/leaderboard.json"), contest.post()):
        assert response.status_code == 500
        assert "secret" not in response.text and "Traceback" not in response.text
    assert contest.store.count() == 0


def test_every_answer_carries_the_security_headers(contest: Any) -> None:
    answers = [contest.get(path) for path in ("/", "/nope", "/static/contest.css", "/organiser")]
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
