"""The contest's server under malformed bodies, slow clients, load, signals and kills."""

import importlib.util
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from vizsla.web.contest.rules import Rules

Open = Callable[..., Any]


# ── odd bodies ───────────────────────────────────────────────────────────────────────────────────

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["q0.jpg"])
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=20,
)
envelopes = st.one_of(
    anything,
    st.fixed_dictionaries({"groupname": anything, "images": anything}),
    st.fixed_dictionaries({"groupname": st.text(min_size=1), "images": anything}),
    st.fixed_dictionaries(
        {
            "groupname": st.just("a"),
            "images": st.dictionaries(st.sampled_from(["q0.jpg", "q1.jpg", "x"]), anything),
        },
        optional={"token": anything},
    ),
)


@st.composite
def malformed(draw: st.DrawFn, sound: bytes) -> bytes:
    """Bytes that are no sound submission: any, JSON of a wrong shape, or a sound one damaged."""
    kind = draw(st.sampled_from(["bytes", "json", "cut", "changed", "doubled"]))
    if kind == "bytes":
        return draw(st.binary(max_size=300))
    if kind == "json":
        return json.dumps(draw(envelopes)).encode()
    at = draw(st.integers(0, len(sound) - 1))
    if kind == "cut":
        return sound[:at]
    if kind == "doubled":
        return sound[:at] + sound
    # Into the names and the structure, not into white space or the group's name.
    at = draw(st.integers(sound.index(b'"images"') + 8, len(sound) - 1))
    byte = draw(st.integers(0, 255).filter(lambda b: b != sound[at] and chr(b) not in " \t\r\n"))
    return sound[:at] + bytes([byte]) + sound[at + 1 :]


def test_malformed_bodies_are_refused_and_nothing_is_scored(contest: Any) -> None:
    content = {"groupname": "Hounds", "images": contest.lists()}
    sound = json.dumps(content, separators=(",", ":")).encode()
    seen: dict[int, int] = {}

    @settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
    @given(malformed(sound))
    def refused(body: bytes) -> None:
        assume(not _is_sound(contest, body))  # a changed digit can name another image
        response = contest.post(content=body)
        seen[response.status_code] = seen.get(response.status_code, 0) + 1
        assert 400 <= response.status_code < 500, (body, response.text)
        assert response.json()["error"]

    refused()
    assert contest.store.count() == 0
    assert sum(seen.values()) >= 500 and seen[400] > 50 and seen[422] > 50
    assert contest.post(content=sound).status_code == 200


def _is_sound(contest: Any, body: bytes) -> bool:
    try:
        return contest.scorer.problems(json.loads(body)["images"]) == []
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


@pytest.mark.parametrize(
    "examples", [10, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_schemathesis_finds_nothing(contest: Any, examples: int) -> None:
    """Schemathesis on the server's own OpenAPI: with the organiser's token, and without."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", contest.url + "/openapi.json",
        "--max-examples", str(examples), "--generation-database", "none", "--no-color",
        "--phases", "fuzzing" if examples < 100 else "coverage,fuzzing",
        # What is sound depends on the contest's names, which no schema can say.
        "--exclude-checks", "positive_data_acceptance",
        "--header", "Authorization: Bearer token-of-the-organiser",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=contest.store_folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.search(r"(\d+) generated, \1 passed", done.stdout)
    assert contest.store.count() == 0


# ── large bodies and slow clients ────────────────────────────────────────────────────────────────


def raw(contest: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(contest.url.rsplit(":", 1)[1])), timeout=10)


def head(length: str) -> bytes:
    return f"POST /retrieval/ HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode()


def all_of(connection: socket.socket) -> bytes:
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def test_a_body_announced_as_too_large_is_not_read(open_contest: Open) -> None:
    contest = open_contest(body_limit=1000)
    with raw(contest) as connection:
        connection.sendall(head("Content-Length: 1001"))
        answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"larger than the limit of 1000 bytes" in answer and b"connection: close" in answer


@pytest.mark.parametrize("length", ["Transfer-Encoding: chunked", "Content-Length: 100000000000"])
def test_an_endless_body_is_not_read_to_its_end(open_contest: Open, length: str) -> None:
    contest = open_contest(body_limit=100_000)
    block = b"x" * 65536
    chunk = b"%x\r\n%s\r\n" % (len(block), block) if "chunked" in length else block
    sent = 0
    with raw(contest) as connection:
        connection.sendall(head(length))
        try:
            while sent < 200 * 2**20:
                connection.sendall(chunk)
                sent += len(chunk)
        except OSError:  # the server has closed the connection
            pass
    assert sent < 40 * 2**20
    assert contest.post().status_code == 200


def test_a_client_that_sends_too_much_gets_the_reason(open_contest: Open) -> None:
    contest = open_contest(body_limit=10_000)
    for size in (10_001, 3_000_000):
        response = contest.post(content=b" " * size)
        assert response.status_code == 413
        response = httpx.post(contest.url + "/retrieval/", content=iter([b" " * size]))
        assert (response.status_code, response.json()["error"]) == (
            413, "the body is larger than the limit of 10000 bytes",
        )  # fmt: skip
    with raw(contest) as connection:  # one that sends all before it reads
        connection.sendall(head("Content-Length: 3000000"))
        for _ in range(30):
            time.sleep(0.01)
            connection.sendall(b" " * 100_000)
        assert all_of(connection).startswith(b"HTTP/1.1 413 ")
    assert contest.post(content=b" " * 10_000).status_code == 400


def test_wrong_content_lengths_are_refused(open_contest: Open) -> None:
    contest = open_contest()
    body = json.dumps({"groupname": "a", "images": contest.lists()}).encode()
    with raw(contest) as connection:  # more is promised than comes
        connection.sendall(head(f"Content-Length: {len(body) + 1}") + body)
    assert contest.store.count() == 0
    with raw(contest) as connection:  # more comes than was promised
        connection.sendall(head(f"Content-Length: {len(body) - 1}") + body)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 ") and b"accuracy" not in answer
    for wrong in (
        "Content-Length: -5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 99999999999999999999999999",
        "Content-Length: five",
    ):
        with raw(contest) as connection:
            connection.sendall(head(wrong) + body)
            assert all_of(connection).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))
    assert contest.store.count() == 0


def test_an_incomplete_body_is_not_scored(contest: Any) -> None:
    body = json.dumps({"groupname": "a", "images": contest.lists()}).encode()
    for part in (body[:50], body[:-1]):
        with raw(contest) as connection:
            connection.sendall(head(f"Content-Length: {len(body)}") + part)
    assert contest.post().status_code == 200
    assert contest.store.count() == 1


def test_slow_clients_do_not_block_others(open_contest: Open) -> None:
    contest = open_contest()
    slow = [raw(contest) for _ in range(60)]
    for i, connection in enumerate(slow):
        connection.sendall([b"", b"POST /retr", head("Content-Length: 900") + b'{"gro'][i % 3])
    assert contest.post().status_code == 200  # while all of them are connected
    assert contest.get("/").status_code == 200
    for connection in slow:
        connection.close()


def test_a_body_in_very_many_tiny_chunks_is_read(contest: Any) -> None:
    body = json.dumps({"groupname": "a", "images": contest.lists()}).encode()
    chunks = [b"1\r\n%c\r\n" % byte for byte in body + b" " * 20_000]
    with raw(contest) as connection:
        connection.sendall(head("Connection: close\r\nTransfer-Encoding: chunked"))
        connection.sendall(b"".join(chunks) + b"0\r\n\r\n")
        assert connection.recv(12)[9:] == b"200"
    assert contest.store.count() == 1


def test_headers_without_end_are_refused(contest: Any) -> None:
    with raw(contest) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        try:
            for i in range(10_000):
                connection.sendall(b"X-%d: %s\r\n" % (i, b"y" * 1000))
        except OSError:
            pass
        else:
            pytest.fail("the server took 10 MB of headers")
    assert contest.get("/").status_code == 200


# ── many at once ─────────────────────────────────────────────────────────────────────────────────


def test_many_clients_at_once_get_their_own_scores(contest: Any) -> None:
    wrong: list[Any] = []

    def client(number: int) -> None:
        draw = random.Random(number)
        with httpx.Client(verify=False, timeout=30) as http:
            for _ in range(12):
                lists = contest.lists(right=draw.randrange(13) / 12, seed=draw.randrange(1000))
                body = {"groupname": f"client {number}", "images": lists}
                answer = http.post(contest.url + "/retrieval/", json=body).json()
                if answer.get("accuracy") != contest.scorer.scores(lists)["all"].score:
                    wrong.append(answer)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert contest.store.count() == 144
    for _ in range(100):  # what took long to compute stays as it was for a while
        rows = contest.get("/leaderboard.json").json()["leaderboard"]
        if sum(row["submissions"] for row in rows) == 144:
            break
        time.sleep(0.1)
    assert [row["submissions"] for row in rows] == [12] * 12


def test_limits_hold_for_concurrent_clients(open_contest: Open) -> None:
    contest = open_contest(Rules(top_k=3, max_submissions=7))
    statuses: list[int] = []
    threads = [
        threading.Thread(
            target=lambda seed: statuses.append(
                httpx.post(
                    contest.url + "/retrieval/",
                    json={"groupname": "a", "images": contest.lists(seed=seed)},
                ).status_code
            ),
            args=(seed,),
        )
        for seed in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 7 + [429] * 13
    assert contest.store.count() == 7


# ── the process ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """benchmarks/judge_load.py, which runs the server as a process of its own."""
    path = Path(__file__).parents[3] / "benchmarks" / "judge_load.py"
    spec = importlib.util.spec_from_file_location("judge_load", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["judge_load"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["judge_load"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_with_everything_stored(
    benchmark: ModuleType, tmp_path: Path, stop: signal.Signals, wait_until: Any
) -> None:
    made = benchmark.Contest(tmp_path, queries=20, k=3, bodies=2)
    with benchmark.server(made) as (process, port):
        tally, done = benchmark.Tally(), threading.Event()
        threads = benchmark.run_clients(made, port, tally, 4, done)
        wait_until(lambda: len(tally.answered) > 10)
        process.send_signal(stop)
        for thread in threads:
            thread.join(20)
        assert process.wait(20) == 0
    assert tally.refused == []
    assert benchmark.wrong_scores(made, tally) == benchmark.lost_submissions(made, tally) == 0
    assert not made.database.with_name("judge.sqlite-wal").exists()


def test_a_kill_during_load_loses_nothing(benchmark: ModuleType, tmp_path: Path) -> None:
    made = benchmark.Contest(tmp_path, queries=50, k=5, bodies=5)
    *rounds, again = benchmark.kill(made, times=1, clients=8)
    assert rounds[0]["answered"] > 0
    assert (rounds[0]["wrong_scores"], rounds[0]["lost_so_far"], again["changed"]) == (0, 0, 0)


@pytest.mark.slow
def test_twenty_kills_during_load_lose_nothing(benchmark: ModuleType, tmp_path: Path) -> None:
    made = benchmark.Contest(tmp_path, queries=1500, k=10, bodies=10)
    *rounds, again = benchmark.kill(made, times=20, clients=16)
    assert len(rounds) == 20 and sum(one["answered"] for one in rounds) > 200
    assert {one["wrong_scores"] for one in rounds} == {one["refused"] for one in rounds} == {0}
    assert rounds[-1]["lost_so_far"] == 0
    assert again["changed"] == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_a_minute_of_load_gives_no_wrong_score(benchmark: ModuleType, tmp_path: Path) -> None:
    made = benchmark.Contest(tmp_path, queries=1500, k=10, bodies=50)
    found = benchmark.load(made, clients=32, seconds=60)
    assert (found["wrong_scores"], found["lost"], found["refused"], found["broken"]) == (0,) * 4
    assert found["memory_growth_percent"] <= 5
    assert found["answered"] > 600
