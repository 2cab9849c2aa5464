"""A small contest on a real server on loopback."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from vizsla.web.judge import build_app
from vizsla.web.judge_http import listen, make_server
from vizsla.web.judge_rules import Rules
from vizsla.web.judge_scoring import Scorer
from vizsla.web.judge_store import Store
from vizsla.web.judge_tokens import hashed

ORGANISER = "token-of-the-organiser"
QUERIES = {f"q{i}.jpg": f"class {i % 4}" for i in range(12)}
GALLERY = {f"g{i}.jpg": f"class {i % 5}" for i in range(30)}


class Contest:
    """A running contest: its parts, its address, and a clock that tests can turn."""

    def __init__(self, store: Store, rules: Rules, queries: dict, gallery: dict) -> None:
        self.store, self.rules = store, rules
        self.store_folder = store.path.parent
        self.queries, self.gallery = queries, gallery
        self.scorer = Scorer(queries, gallery, rules)
        self.now: float | None = None
        self.url = ""
        self.client = httpx.Client(timeout=30, verify=False)  # without loading certificates

    def clock(self) -> float:
        return time.time() if self.now is None else self.now

    def lists(self, right: float = 0.5, seed: int = 0) -> dict[str, list[str]]:
        """A sound submission; `right`: the share of queries with a right image at rank 1."""
        draw = random.Random(seed)
        lists = {}
        for i, (query, label) in enumerate(self.queries.items()):
            good = sorted(name for name, one in self.gallery.items() if one == label)
            bad = sorted(name for name, one in self.gallery.items() if one != label)
            row = draw.sample(bad, self.rules.top_k)
            if i < right * len(self.queries):
                row[0] = draw.choice(good)
            lists[query] = row
        return lists

    def post(self, body: Any = None, *, group: str = "Hounds", **more: Any) -> httpx.Response:
        """Posts lists (or, with `content=`, any bytes)."""
        if "content" not in more:
            lists = self.lists() if body is None else body
            more["json"] = {"groupname": group, "images": lists}
        return self.client.post(self.url + "/retrieval/", **more)

    def get(self, path: str, *, organiser: bool = False, **more: Any) -> httpx.Response:
        if organiser:
            more["headers"] = {**more.get("headers", {}), "Authorization": f"Bearer {ORGANISER}"}
        return self.client.get(self.url + path, **more)

    def everything(self) -> list[str]:
        """All that can be read from the server, by anyone and by the organiser."""
        texts = [self.post(self.lists(1.0)).text, self.post(self.lists(0.0)).text]
        public = ("/", "/groups/1", "/groups/1.json", "/leaderboard.json", "/leaderboard.csv")
        own = ("", "/scores.json", "/scores.csv", "/submissions.jsonl")
        for path in (*public, *(f"/organiser{name}" for name in own)):
            for organiser in (False, True):
                for accept in ("text/html", "application/json"):
                    answer = self.get(path, organiser=organiser, headers={"Accept": accept})
                    open_to_all = organiser or path in public
                    assert answer.status_code == (200 if open_to_all else 401)
                    texts.append(answer.text)
        return texts


class Switch:
    """An ASGI application that is another one in each test: starting a server takes its time."""

    app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


@pytest.fixture(scope="session")
def serving() -> Iterator[tuple[Switch, str]]:
    """A server on loopback, and its address."""
    switch = Switch()
    with listen("127.0.0.1", 0) as bound:
        server = make_server(switch)
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        yield switch, f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def open_contest(tmp_path: Path, serving: tuple[Switch, str]) -> Iterator[Callable[..., Contest]]:
    """open_contest(rules, queries=…, gallery=…, body_limit=…) → a running Contest, one a test."""
    opened = []

    def start(
        rules: Rules | None = None,
        *,
        queries: dict[str, str | None] | None = None,
        gallery: dict[str, str | None] | None = None,
        **limits: Any,
    ) -> Contest:
        assert not opened
        contest = Contest(
            Store(tmp_path / "judge.sqlite"),
            rules or Rules(top_k=3),
            queries or dict(QUERIES),
            gallery or dict(GALLERY),
        )
        opened.append(contest)
        switch, contest.url = serving
        switch.app = build_app(
            contest.store,
            contest.scorer,
            organiser_hash=hashed(ORGANISER),
            clock=contest.clock,
            **limits,
        )
        return contest

    yield start
    for contest in opened:
        contest.client.close()
        contest.store.close()


@pytest.fixture
def contest(open_contest: Callable[..., Contest]) -> Contest:
    return open_contest()
