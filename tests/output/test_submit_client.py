"""The client against real servers on loopback, the good one and every kind of bad one."""

import contextlib
import datetime
import email.utils
import errno
import hashlib
import http.server
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

import vizsla
from vizsla.errors import DataError, SubmitError, UsageError
from vizsla.output import submit_client
from vizsla.output.submit_client import Receipt, record_submission, submit
from vizsla.search.ranking import Ranking

LISTS = {"q1.jpg": ["a.jpg", "b.jpg"], "ü.jpg": ["b.jpg", "a.jpg"]}
HTML = {"Content-Type": "text/html; charset=utf-8"}
GOOD = (200, {}, '{"accuracy": 0.5}')

Answer = tuple[int, dict[str, str], str | bytes]


class Server(http.server.ThreadingHTTPServer):
    """Answers the requests in turn with `answers`; the last one stays."""

    daemon_threads = True

    def __init__(self, answers: list[Answer | Callable[[Any], None]]) -> None:
        self.answers = list(answers)
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/retrieval/"

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is part of the tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.headers.append(dict(self.headers))
        self.server.paths.append(self.path)
        answers = self.server.answers
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer(self)
            return
        status, headers, text = answer
        body = text if isinstance(text, bytes) else text.encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with contextlib.ExitStack() as running:

        def start(*answers: Any, tls: ssl.SSLContext | None = None) -> Server:
            server = running.enter_context(Server(list(answers)))
            if tls:
                server.socket = tls.wrap_socket(server.socket, server_side=True)
            # a short poll interval, so that stopping takes no time
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            running.callback(server.shutdown)
            return server

        yield start


@pytest.fixture(autouse=True)
def plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, address or token of whoever runs the tests."""
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("VIZSLA_SUBMIT_URL", "VIZSLA_SUBMIT_TOKEN", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


def failure(server: Server | str, **options: Any) -> str:
    """The error of a submission to this server: one line."""
    url = server if isinstance(server, str) else server.url
    with pytest.raises(SubmitError) as error:
        submit(LISTS, "dogs", url, **{"retries": 0, **options})
    assert "\n" not in str(error.value)
    return str(error.value)


# ── what is sent, and what comes back ────────────────────────────────────────────────────────────


def test_the_contests_protocol(serve: Serve) -> None:
    server = serve((200, {}, '{"accuracy": 0.75, "map_at_k": 0.5, "group": "dogs", "ok": true}'))
    before = datetime.datetime.now(datetime.UTC)
    receipt = vizsla.submit(LISTS, groupname="dogs", url=server.url)
    assert json.loads(server.bodies[0]) == {"groupname": "dogs", "images": LISTS}
    assert server.headers[0]["Content-Type"] == "application/json"
    assert server.paths == ["/retrieval/"]
    assert receipt.accuracy == 0.75
    assert receipt.metrics == {"map_at_k": 0.5}
    assert receipt.answer["group"] == "dogs"
    assert (receipt.queries, receipt.bytes) == (2, len(server.bodies[0]))
    assert receipt.sent_at is not None
    sent_at = datetime.datetime.fromisoformat(receipt.sent_at)
    assert sent_at.utcoffset() == datetime.timedelta(0)
    assert before.replace(microsecond=0) <= sent_at <= datetime.datetime.now(datetime.UTC)


def test_a_ranking_a_dict_and_every_file_are_the_same_submission(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(GOOD)
    ranking = Ranking.from_lists(LISTS)
    forms = ("json", "records", "kaggle", "trec")
    for form in forms:
        vizsla.write_submission(ranking, tmp_path / form, k=2, format=form)
    results = [LISTS, ranking, *(tmp_path / form for form in forms), str(tmp_path / "json")]
    receipts = [submit(one, "dogs", server.url) for one in results]
    assert len({receipt.sha256 for receipt in receipts}) == 1
    assert [json.loads(body)["images"] for body in server.bodies] == [LISTS] * len(results)


def test_a_ranking_is_cut_to_k(serve: Serve) -> None:
    server = serve(GOOD)
    submit(Ranking.from_lists(LISTS), "dogs", server.url, k=1)
    assert json.loads(server.bodies[0])["images"] == {"q1.jpg": ["a.jpg"], "ü.jpg": ["b.jpg"]}


def test_url_and_token_from_the_environment(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(GOOD)
    monkeypatch.setenv("VIZSLA_SUBMIT_URL", server.url)
    submit(LISTS, "dogs")
    monkeypatch.setenv("VIZSLA_SUBMIT_TOKEN", "from-outside")
    submit(LISTS, "dogs")
    submit(LISTS, "dogs", token="given")
    sent = [headers.get("Authorization") for headers in server.headers]
    assert sent == [None, "Bearer from-outside", "Bearer given"]


def test_a_dry_run_needs_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIZSLA_SUBMIT_URL", raising=False)
    dry = submit(LISTS, "dogs", dry_run=True)
    assert (dry.url, dry.queries, dry.accuracy) == (None, 2, None)
    with pytest.raises(UsageError, match="not a web address"):
        submit(LISTS, "dogs", "ftp://x", dry_run=True)  # one that is given must be sound
    monkeypatch.setenv("VIZSLA_SUBMIT_URL", "http://127.0.0.1/x")
    assert submit(LISTS, "dogs", dry_run=True).url == "http://127.0.0.1/x"
    with pytest.raises(DataError, match="extra"):
        submit({**LISTS, "extra": ["a.jpg", "b.jpg"]}, "dogs", dry_run=True, queries=list(LISTS))


def test_a_dry_run_sends_nothing_and_says_what_it_would(serve: Serve) -> None:
    server = serve(GOOD)
    dry = submit(LISTS, "dogs", server.url, dry_run=True)
    assert server.bodies == []
    assert (dry.accuracy, dry.sent_at) == (None, None)
    wet = submit(LISTS, "dogs", server.url)
    assert (dry.bytes, dry.sha256, dry.queries) == (wet.bytes, wet.sha256, wet.queries)


def test_a_password_in_the_url_is_used_but_not_kept(serve: Serve) -> None:
    server = serve(GOOD)
    receipt = submit(LISTS, "dogs", server.url.replace("//", "//me:secret@"))
    assert server.headers[0]["Authorization"].startswith("Basic ")
    assert receipt.url == server.url


# ── what is refused before anything is sent ──────────────────────────────────────────────────────


def test_a_wrong_submission_is_never_sent(serve: Serve) -> None:
    server = serve(GOOD)
    data = {"queries": set(LISTS), "gallery": {"a.jpg", "b.jpg"}, "k": 2}
    submit(LISTS, "dogs", server.url, **data)
    with pytest.raises(
        DataError, match=r"unknown gallery names: 'q1.jpg' names 'b.jpg' and|'b.jpg"
    ):
        submit(LISTS, "dogs", server.url, **{**data, "gallery": {"a.jpg"}})
    with pytest.raises(DataError, match="missing queries: 'more"):
        submit(LISTS, "dogs", server.url, **{**data, "queries": {*LISTS, "more.jpg"}})
    with pytest.raises(DataError, match="repeated gallery names"):
        submit({"q": ["a", "a"]}, "dogs", server.url)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"groupname": " ", "url": "http://x"}, "the group's name is empty"),
        ({"groupname": "dogs"}, "no server to send to: .* VIZSLA_SUBMIT_URL"),
        ({"groupname": "dogs", "url": "tatooine/retrieval"}, "not a web address"),
        ({"groupname": "dogs", "url": "ftp://x/y"}, "not a web address"),
        ({"groupname": "dogs", "url": "http://x:port/"}, "is not a URL"),
        ({"groupname": "dogs", "url": "http://x", "timeout": 0}, "expected seconds above 0"),
        ({"groupname": "dogs", "url": "http://x", "retries": -1}, "expected 0 or more"),
        ({"groupname": "dogs", "url": "http://x", "token": "a\nb"}, "the token holds"),
    ],
)
def test_wrong_calls(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        submit(LISTS, **options)


# ── answers that are no score ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((200, {}, "thanks!"), "is not JSON: thanks!"),
        ((200, {}, ""), "is not JSON: it is empty"),
        ((200, {}, b"\xff\xfe\x00"), "is not JSON: "),
        ((200, {}, "[" * 100_000), "is not JSON: "),
        ((200, HTML, "<p>hi</p>"), "answered with a web page instead of JSON: is the URL right?"),
        (
            (200, {}, "<!doctype html><title>Wi-Fi\n &amp; login</title>"),
            "answered with a web page “Wi-Fi & login” instead of JSON",
        ),
        ((200, {}, '{"score": 1}'), 'has no accuracy: {"score": 1}'),
        ((200, {}, "[0.5]"), "has no accuracy: [0.5]"),
        ((200, {}, '{"accuracy": "0.5"}'), "has an accuracy that is not a number"),
        ((200, {}, '{"accuracy": true}'), "has an accuracy that is not a number"),
        ((200, {}, '{"accuracy": NaN}'), "has an accuracy that is not a number"),
        ((200, {}, '{"accuracy": 1e999}'), "has an accuracy that is not a number"),
        ((200, {}, '{"accuracy": null}'), "has an accuracy that is not a number"),
        ((200, {}, "x" * (5 * 2**20)), "answers with more than 4 MB"),
        ((200, {"Content-Encoding": "gzip"}, "not gzip"), "cannot send to http"),
        (
            (401, {}, '{"detail": "wrong token"}'),
            "asks for a token, or for another one (HTTP 401 Unauthorized): wrong token: give",
        ),
        (
            (403, {}, '{"error": "the contest is closed"}'),
            "does not accept this submission (HTTP 403 Forbidden): the contest is closed",
        ),
        ((404, HTML, "<title>404</title>"), "(HTTP 404 Not Found): a web page “404”: is the URL"),
        ((405, {}, ""), "takes no submissions (HTTP 405 Method Not Allowed): is the URL right?"),
        ((413, {}, "too big"), "is too large for 127.0.0.1 (HTTP 413 "),
        (
            (422, {}, '{"detail": [{"msg": "unknown query"}]}'),
            'refuses the submission (HTTP 422 ',
        ),
        (
            (429, {"Retry-After": "90"}, ""),
            "too many submissions to 127.0.0.1 (HTTP 429 Too Many Requests); try again in 90 s",
        ),
        ((429, {"Retry-After": "soon"}, "slow down"), "(HTTP 429 Too Many Requests): slow down"),
        ((418, {}, "\x1b[31mred\x1b[0m"), "(HTTP 418 I'm a Teapot): [31mred [0m"),
        ((299, {}, "fine"), "is not JSON: fine"),
        ((499, {}, "odd"), "refuses the submission (HTTP 499): odd"),
        ((304, {}, ""), "refuses the submission (HTTP 304 Not Modified)"),
    ],
)  # fmt: skip
def test_each_answer_without_a_score_is_one_clear_line_and_final(
    serve: Serve, answer: Answer, problem: str
) -> None:
    server = serve(answer)
    message = failure(server)
    assert problem in message
    assert message.isprintable()
    assert len(message) < 500
    assert len(server.bodies) == 1  # an answer is an answer: never sent twice


def test_a_date_to_wait_for(serve: Serve) -> None:
    later = email.utils.formatdate(time.time() + 600, usegmt=True)
    message = failure(serve((429, {"Retry-After": later}, "")))
    assert "try again in 10 minutes" in message


def test_an_odd_number_beside_the_accuracy_is_no_obstacle(serve: Serve, tmp_path: Path) -> None:
    answer = (
        '{"accuracy": 791.82, "map": NaN, "big": 1e999, "n": 1' + "0" * 400 + ', "x": "\\ud800"}'
    )
    receipt = submit(LISTS, "dogs", serve((200, {}, answer)).url)
    assert receipt.accuracy == 791.82
    assert receipt.metrics == {}
    assert receipt.answer["map"] is None
    assert record_submission(tmp_path, receipt).exists()


# ── redirects ────────────────────────────────────────────────────────────────────────────────────


def test_a_redirect_on_the_same_server_is_followed(serve: Serve) -> None:
    server = serve((307, {"Location": "/retrieval/2026"}, ""), GOOD)
    assert submit(LISTS, "dogs", server.url).accuracy == 0.5
    assert server.paths == ["/retrieval/", "/retrieval/2026"]
    assert server.bodies[0] == server.bodies[1]


def test_nothing_is_sent_to_another_host(serve: Serve) -> None:
    other = serve(GOOD)
    for location in (other.url, other.url.replace("127.0.0.1", "localhost"), "ftp://127.0.0.1/"):
        server = serve((308, {"Location": location}, ""))
        message = failure(server, token="secret")
        assert f"redirects to another address, {location}: nothing was sent there" in message
    assert other.bodies == []


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((301, {"Location": "/new"}, ""), "/new: give that as the URL"),
        ((307, {"Location": "/retrieval/"}, ""), "redirects in a circle"),
        (
            (307, {"Location": "http://x:port/"}, ""),
            "gave no valid answer (Invalid URL in location",
        ),
    ],
)
def test_redirects_that_lead_nowhere(serve: Serve, answer: Answer, problem: str) -> None:
    assert problem in failure(serve(answer))


# ── servers that fail, stay silent, or are not there ─────────────────────────────────────────────


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client slept between attempts, without sleeping."""
    seconds: list[float] = []
    monkeypatch.setattr(submit_client.time, "sleep", seconds.append)
    return seconds


def test_a_server_that_is_unavailable_is_asked_again_with_the_same_body(
    serve: Serve, waited: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    server = serve((503, {"Retry-After": "3"}, "starting"), (503, {}, ""), GOOD)
    with caplog.at_level(logging.WARNING, "vizsla"):
        assert submit(LISTS, "dogs", server.url).accuracy == 0.5
    assert len(server.bodies) == 3
    assert len(set(server.bodies)) == 1
    assert waited == [3.0, 2.0]  # as the server asks, then as the client has it
    assert "HTTP 503 Service Unavailable: starting; trying again in 3 s (1 of 3)" in caplog.text


def test_it_is_asked_again_only_so_often(serve: Serve, waited: list[float]) -> None:
    server = serve((503, HTML, "<title>Down</title>"))
    message = failure(server, retries=2)
    assert "HTTP 503 Service Unavailable: a web page “Down”; try again in 4 s" in message
    assert len(server.bodies) == 3
    assert waited == [1.0, 2.0]


def test_a_server_that_asks_for_an_hour_is_not_waited_for(serve: Serve) -> None:
    server = serve((503, {"Retry-After": "3600"}, "down for repair"))
    assert failure(server, retries=2).endswith("down for repair; try again in 60 minutes")
    assert len(server.bodies) == 1


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_failure_after_which_it_may_have_been_counted_is_final(serve: Serve, status: int) -> None:
    server = serve((status, {}, "oops"))
    assert "oops. The submission may have been counted" in failure(server, retries=2)
    assert len(server.bodies) == 1


def test_silence_after_sending_is_final(serve: Serve) -> None:
    received, given_up = threading.Event(), threading.Event()

    def silent(handler: Handler) -> None:
        received.set()
        given_up.wait(10)

    server = serve(silent)
    message = failure(server, timeout=0.1)
    assert "did not answer within 0.1 s. The submission may have been counted" in message
    assert received.wait(10)  # a busy server may read it only now
    given_up.set()
    assert len(server.bodies) == 1


def test_an_answer_that_never_ends_is_cut_off(serve: Serve) -> None:
    cut_off = threading.Event()

    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while not cut_off.wait(0.02):
                handler.wfile.write(b" ")
        except OSError:  # the client has hung up
            cut_off.set()

    assert "did not answer within 0.2 s" in failure(serve(drip), timeout=0.2)
    assert cut_off.wait(10)


def test_a_connection_that_breaks_after_sending_is_final(serve: Serve) -> None:
    server = serve(lambda handler: handler.connection.shutdown(socket.SHUT_RDWR))
    assert "gave no valid answer" in failure(server)
    assert len(server.bodies) == 1


def test_a_refused_connection_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    message = failure(f"http://127.0.0.1:{port}/")
    assert f"127.0.0.1:{port} refuses the connection" in message


def test_a_server_that_comes_up_between_two_attempts_gets_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transport waits between two connections; the server is started meanwhile."""
    server = serve(GOOD)
    connect, attempts = socket.create_connection, []

    def refused_twice(*arguments: Any, **options: Any) -> socket.socket:
        attempts.append(arguments[0])
        if len(attempts) <= 2:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        return connect(*arguments, **options)

    monkeypatch.setattr(socket, "create_connection", refused_twice)
    assert submit(LISTS, "dogs", server.url, retries=2).accuracy == 0.5
    assert (len(attempts), len(server.bodies)) == (3, 1)


def test_the_proxy_of_the_environment_is_used(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = serve(GOOD)
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/retrieval/"))
    assert submit(LISTS, "dogs", "http://contest.invalid/retrieval/").accuracy == 0.5
    assert proxy.paths == ["http://contest.invalid/retrieval/"]


def test_an_unknown_host() -> None:
    message = failure("http://no-such-host.invalid/")
    assert "the host no-such-host.invalid is not known" in message


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_server(serve: Serve, authority: trustme.CA, name: str, **validity: Any) -> Server:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, **validity).configure_cert(context)
    return serve(GOOD, tls=context)


def test_certificates(
    serve: Serve, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tls_server(serve, authority, "127.0.0.1")
    url = good.url.replace("http:", "https:")
    message = failure(url)
    assert "is not trusted" in message
    assert "SSL_CERT_FILE" in message
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    assert submit(LISTS, "dogs", url).accuracy == 0.5

    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    expired = tls_server(serve, authority, "127.0.0.1", not_after=past)
    message = failure(expired.url.replace("http:", "https:"))
    assert "the certificate of 127.0.0.1 has expired: nothing was sent" in message

    other = tls_server(serve, authority, "example.org")
    assert "is not trusted" in failure(other.url.replace("http:", "https:"))
    assert expired.bodies == other.bodies == []


def test_https_to_a_server_that_speaks_http(serve: Serve) -> None:
    server = serve(GOOD)
    assert "does not speak TLS" in failure(server.url.replace("http:", "https:"))


# ── the record ───────────────────────────────────────────────────────────────────────────────────


def test_the_record_grows_line_by_line(serve: Serve, tmp_path: Path) -> None:
    receipt = submit(LISTS, "dögs", serve(GOOD).url)
    path = record_submission(tmp_path, receipt)
    path.write_text(path.read_text().rstrip("\n"))  # as an editor might leave it
    record_submission(tmp_path, replace(receipt, accuracy=0.75))
    first, second = map(json.loads, path.read_text().splitlines())
    assert path == tmp_path / "submissions.jsonl"
    assert Receipt(**first) == receipt
    assert second["accuracy"] == 0.75
    canonical = json.dumps(LISTS, sort_keys=True, separators=(",", ":")).encode()
    assert first["sha256"] == hashlib.sha256(canonical).hexdigest()


def test_what_cannot_be_recorded(tmp_path: Path) -> None:
    dry = submit(LISTS, "dogs", "http://127.0.0.1/", dry_run=True)
    with pytest.raises(UsageError, match="nothing to record"):
        record_submission(tmp_path, dry)
    with pytest.raises(DataError, match="is not a folder"):
        record_submission(tmp_path / "none", replace(dry, sent_at="2026-01-01"))
