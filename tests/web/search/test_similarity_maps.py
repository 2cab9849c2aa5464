"""Heat maps are drawn one at a time, shared by equal requests, and do not delay searches."""

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from vizsla.data.preprocess import Preprocess
from vizsla.model.embedder import Embedder
from vizsla.web.search.decoder import Busy, Closed
from vizsla.web.search.similarity_maps import MapQueue

Open = Callable[..., Any]


class Gated(torch.nn.Module):
    """A vector in which no places can be seen; the heat maps' thread waits at a gate for it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.entered = threading.Event(), threading.Event()
        self.passes = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if threading.current_thread().name.startswith("serve-maps"):
            self.entered.set()
            assert self.gate.wait(30)
            self.passes += len(images)
        quarters = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)  # (B, 12)
        return torch.cat([quarters.square(), torch.full((len(images), 1), 0.1)], dim=1)


@pytest.fixture
def gated(open_search: Open) -> Any:
    """(server, network)"""
    network = Gated()
    yield open_search(Embedder.from_module(network, Preprocess((16, 16)), name="gated")), network
    network.gate.set()


def heat_map(served: Any, query: str, result: str, side: str = "query") -> httpx.Response:
    return httpx.get(
        f"{served.url}/similarity/{side}.jpg", params={"id": query, "result": result}, timeout=60
    )


def test_searches_are_answered_while_many_heat_maps_wait(gated: Any, wait_until: Any) -> None:
    served, network = gated
    names = served.ids()
    pairs = [(a, b) for a in names[:10] for b in names[10:20]]  # more than threads for searches
    with ThreadPoolExecutor(len(pairs)) as clients:
        requested = [clients.submit(heat_map, served, a, b) for a, b in pairs]
        wait_until(lambda: sum(one.done() for one in requested) == len(pairs) - 7)
        assert served.search(image="red/red-0.png", data={"k": 1}) == ["red/red-0.png"]
        assert served.search(json={"id": "red/red-0.png", "k": 1}) == ["red/red-0.png"]
        assert served.get("/v1/images/red/red-0.png/thumb").status_code == 200
        network.gate.set()
        answers = [one.result() for one in requested]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == len(pairs) - 7  # one is drawn, six wait
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert {answer.json()["error"] for answer in refused} == {
        "too many heat maps wait to be drawn: try again in a moment"
    }
    drawn = [answer for answer in answers if answer.status_code == 200]
    assert len(drawn) == 7
    assert {answer.headers["content-type"] for answer in drawn} == {"image/jpeg"}


def test_equal_requests_share_one_drawing_that_is_remembered(gated: Any, wait_until: Any) -> None:
    served, network = gated
    pair = ("red/red-0.png", "red/red-1.png")
    with ThreadPoolExecutor(8) as clients:
        sides = ["query", "result"] * 4
        requested = [clients.submit(heat_map, served, *pair, side) for side in sides]
        wait_until(lambda: [job.waiting for job in served.engine.map_queue._jobs.values()] == [8])
        network.gate.set()
        answers = [one.result() for one in requested]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 2  # the two halves
    passes = network.passes
    assert passes <= 1 + 2 + 2 * 64
    served.engine.remove("blue/blue-0.png")  # another state of the gallery, the same pictures
    assert heat_map(served, *pair).content == answers[0].content
    assert network.passes == passes


def test_a_map_without_a_waiting_client_is_not_drawn(gated: Any, wait_until: Any) -> None:
    served, network = gated
    port = int(served.url.rsplit(":", 1)[1])
    with ThreadPoolExecutor(1) as client:
        first = client.submit(heat_map, served, "red/red-0.png", "red/red-1.png")
        wait_until(lambda: len(served.engine.map_queue._jobs) == 1)
        with socket.create_connection(("127.0.0.1", port)) as leaving:
            leaving.sendall(
                b"GET /similarity/query.jpg?id=red/red-0.png&result=red/red-2.png HTTP/1.1\r\n"
                b"Host: x\r\n\r\n"
            )
            wait_until(lambda: len(served.engine.map_queue._jobs) == 2)
        wait_until(lambda: len(served.engine.map_queue._jobs) == 1)
        network.gate.set()
        assert first.result().status_code == 200
    assert len(served.engine.map_queue._drawn) == 1


def test_closing_ends_all_waiting_requests(gated: Any, wait_until: Any) -> None:
    served, network = gated
    with ThreadPoolExecutor(3) as clients:
        requested = [clients.submit(heat_map, served, "red/red-0.png", f"red/red-{i}.png")
                 for i in (1, 2, 3)]  # fmt: skip
        wait_until(lambda: len(served.engine.map_queue._jobs) == 3)
        assert network.entered.wait(30)  # one is under way
        served.engine.close(keep_decoder=True)
        assert {one.result(timeout=5).status_code for one in requested} == {503}
    assert heat_map(served, "red/red-0.png", "red/red-4.png").status_code == 503
    network.gate.set()
    served.engine.map_queue._pool.shutdown(wait=True)
    assert network.passes == 1  # the one under way; the rest is not started


def test_a_drawing_that_fails_is_tried_again() -> None:
    tries = []

    def work() -> tuple[bytes, bytes]:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("once")
        return b"a", b"b"

    maps = MapQueue(ThreadPoolExecutor(1))
    with pytest.raises(ValueError, match="once"):
        maps.submit(("a", "b"), work).future.result(5)
    assert maps.submit(("a", "b"), work).future.result(5) == (b"a", b"b")
    assert maps.submit(("a", "b"), work).future.result(5) == (b"a", b"b")
    assert len(tries) == 2
    maps.close()
    with pytest.raises(Closed):
        maps.submit(("a", "b"), work)


def test_waiting_and_kept_maps_are_limited() -> None:
    gate = threading.Event()
    maps = MapQueue(ThreadPoolExecutor(1), max_waiting=1, max_kept=2)

    def work() -> tuple[bytes, bytes]:
        gate.wait(10)
        return b"a", b"b"

    jobs = [maps.submit(("q", str(i)), work) for i in range(2)]
    with pytest.raises(Busy):
        maps.submit(("q", "2"), work)
    maps.leave(jobs[1])
    again = maps.submit(("q", "2"), work)  # in the place of the one that is given up
    gate.set()
    assert again.future.result(5) == (b"a", b"b") and jobs[1].future.cancelled()
    for i in range(5):
        maps.submit(("q", f"more {i}"), work).future.result(5)
    assert len(maps._drawn) == 2
    maps.close()


def test_the_thread_of_maps_has_one_core_and_low_priority() -> None:
    import os
    import sys

    from vizsla.embed.torch_runtime import one_core_threads

    before = torch.get_num_threads()
    pool = one_core_threads(1, "test", low_priority=True)
    try:
        assert pool.submit(torch.get_num_threads).result() == 1
        if sys.platform == "linux":
            own = pool.submit(
                lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            ).result()
            assert own > os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    finally:
        pool.shutdown()
    assert torch.get_num_threads() == before


def test_a_heat_map_waits_while_pictures_are_searched_with(
    gated: Any, monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:
    from vizsla.web.search import batching_model

    monkeypatch.setattr(batching_model, "MAX_IDLE_WAIT", 20.0)
    served, network = gated
    network.gate.set()
    searching = threading.Event()
    batcher = served.engine.model._batcher
    work = batcher.work

    def slow(items: list[Any]) -> Any:
        assert searching.wait(20)
        return work(items)

    def is_idle(seconds: float) -> bool:
        looks.append(seconds)
        return is_idle_now(seconds)

    looks: list[float] = []
    is_idle_now = batcher.is_idle
    monkeypatch.setattr(batcher, "is_idle", is_idle)
    monkeypatch.setattr(batcher, "work", slow)
    with ThreadPoolExecutor(2) as clients:
        search = clients.submit(served.search, image="red/red-0.png", data={"k": 1})
        wait_until(lambda: batcher._is_working)
        heat = clients.submit(heat_map, served, "red/red-0.png", "red/red-1.png")
        wait_until(lambda: len(looks) > 3)
        assert network.passes == 0
        searching.set()
        assert search.result() == ["red/red-0.png"]
        assert heat.result().status_code == 200
    assert network.passes > 2 * 9


def test_a_batcher_knows_when_it_is_idle(wait_until: Any) -> None:
    from vizsla.web.search.batching_model import Batcher

    gate = threading.Event()
    batcher: Batcher[int, bool] = Batcher(lambda items: [gate.wait(20) for _ in items])
    try:
        assert batcher.is_idle(0.0)
        future = batcher.submit(1)
        assert not batcher.is_idle(0.0)
        gate.set()
        assert future.result(5)
        wait_until(lambda: batcher.is_idle(0.05))
    finally:
        batcher.close()


def test_pictures_are_as_large_as_a_page_shows_them(served: Any) -> None:
    import io

    answer = heat_map(served, "red/red-0.png", "red/red-1.png")
    assert Image.open(io.BytesIO(answer.content)).size == (448, 448)
