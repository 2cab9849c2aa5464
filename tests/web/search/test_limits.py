"""Limits of the search server: no kind of request blocks another, and none waits without end."""

import io
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from vizsla.data.preprocess import Preprocess
from vizsla.errors import ImageError
from vizsla.model.embedder import Embedder
from vizsla.web.search.batching_model import Batcher
from vizsla.web.search.decoder import Closed, Decoder
from vizsla.web.search.server import decoders
from vizsla.web.shell.access import RateLimit, rate_limit_key

Open = Callable[..., Any]
HTML = {"Accept": "text/html"}
CHANGE = "the-token-for-changes"
AUTH = {"Authorization": f"Bearer {CHANGE}"}


def jpeg(size: tuple[int, int], seed: int = 0) -> bytes:
    """Smooth, as photos are."""
    small = np.random.default_rng(seed).integers(0, 255, (8, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


# ── images of the gallery ──────────────────────────────────────────────────────────────────────


class Stuck:
    """A decoder that answers only by `fail_all`."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []

    def decode(self, *_: Any, **__: Any) -> "Future[Any]":
        self.futures.append(Future())
        return self.futures[-1]

    def fail_all(self) -> None:
        for future in self.futures:
            if not future.done():
                future.set_exception(ImageError("broken"))


def test_searches_do_not_wait_for_thumbnails(served: Any, wait_until: Any) -> None:
    stuck = Stuck()
    served.engine.gallery_decoder = served.engine.thumbnails.decoder = stuck
    address = served.url + "/v1/images/red/red-0.png/thumb"
    with ThreadPoolExecutor(80) as clients:  # more than there are threads for searches
        requested = [clients.submit(httpx.get, address, timeout=60) for _ in range(80)]
        wait_until(lambda: len(stuck.futures) == 8)
        assert served.search(image="red/red-0.png", data={"k": 1}) == ["red/red-0.png"]
        assert not any(one.done() for one in requested)
        wait_until(lambda: stuck.fail_all() or all(one.done() for one in requested))
        assert {one.result().status_code for one in requested} == {422}


def test_too_many_thumbnails_are_refused_and_not_kept_waiting(
    open_search: Open, monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:
    from vizsla.web.search import service

    monkeypatch.setattr(service, "MAX_WAITING_PICTURES", 2)
    served = open_search()
    stuck = Stuck()
    served.engine.thumbnails.decoder = stuck
    address = served.url + "/v1/images/red/red-0.png/thumb"
    with ThreadPoolExecutor(12) as clients:
        requested = [clients.submit(httpx.get, address, timeout=60) for _ in range(12)]
        wait_until(lambda: sum(one.done() for one in requested) == 2)
        refused = [one.result() for one in requested if one.done()]
        wait_until(lambda: stuck.fail_all() or all(one.done() for one in requested))
    for answer in refused:
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"] == "too many requests wait: try again in a moment"


def test_a_page_of_thumbnails_passes_the_rate_limit_and_a_flood_does_not(open_search: Open) -> None:
    served = open_search(per_minute=60)
    names = served.ids()
    page = [f"/v1/images/{names[i % 24]}/thumb" for i in range(60)]
    assert {served.get(path).status_code for path in page * 3} == {200}
    statuses: list[int] = []
    while 429 not in statuses and len(statuses) < 2000:
        answer = served.get(page[0])
        statuses.append(answer.status_code)
    assert statuses[-1] == 429 and len(statuses) > 200
    assert int(answer.headers["retry-after"]) >= 1 and "too many" in answer.json()["error"]
    assert served.get("/healthz").status_code == 200


def test_pages_of_random_pictures_count_as_searches(open_search: Open) -> None:
    served = open_search(per_minute=60)
    statuses = [served.get("/?where.label=red&k=12", headers=HTML).status_code for _ in range(15)]
    assert statuses[:10] == [200] * 10 and 429 in statuses


def test_ipv4_addresses_in_ipv6_are_counted_separately() -> None:
    assert rate_limit_key("::ffff:10.0.0.1") == "10.0.0.1" != rate_limit_key("::ffff:10.0.0.2")
    limit = RateLimit(60, at_once=50, clock=lambda: 0.0)
    assert [limit.wait("1.2.3.4") for _ in range(51)] == [0.0] * 50 + [1.0]


def test_gallery_pictures_may_be_larger_than_uploads(
    open_search: Open, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "large"
    (folder / "a").mkdir(parents=True)
    Image.new("RGB", (900, 700), (200, 30, 40)).save(folder / "a" / "large.png")
    Image.new("RGB", (90, 70), (20, 30, 240)).save(folder / "a" / "small.tiff")
    served = open_search(folder=folder)
    strict, own = decoders(100_000)
    try:
        served.engine.decoder = strict
        served.engine.gallery_decoder = served.engine.thumbnails.decoder = own
        answer = served.get("/v1/images/a/large.png/thumb")
        assert Image.open(io.BytesIO(answer.content)).size == (384, 299)
        assert served.get("/v1/images/a/small.tiff").status_code == 200
        assert (
            served.get("/similarity/query.jpg?id=a/small.tiff&result=a/large.png").status_code
            == 200
        )
        refused = served.post(image="a/large.png")
        assert refused.status_code == 422 and "100,000" in refused.json()["error"]
        assert own.max_pixels >= 100_000_000  # what `embed` reads
    finally:
        strict.close()
        own.close()


# ── uploads ──────────────────────────────────────────────────────────────────────────────────────


def test_a_large_upload_is_shown_large(served: Any) -> None:
    data = jpeg((2400, 1600))
    plain = served.post(image=data).json()["queries"][0]  # the API's images are not looked at
    vector = served.engine.uploads.get(plain).vector
    answer = served.client.post("/queries", files={"image": ("x", data)})
    assert answer.status_code == 303 and f"query={plain}" in answer.headers["location"]
    shown = served.get(f"/queries/{plain}.jpg")
    assert Image.open(io.BytesIO(shown.content)).size == (1024, 683)
    kept = served.engine.uploads.get(plain)
    assert np.array_equal(kept.vector, vector)
    assert np.array_equal(kept.pixels, served.engine.model.framing.read(io_path(served, data)))
    assert kept.n_bytes < 400_000
    small = served.client.post("/queries", files={"image": ("x", jpeg((300, 200), 1))})
    name = small.headers["location"].partition("query=")[2].partition("&")[0]
    assert Image.open(io.BytesIO(served.get(f"/queries/{name}.jpg").content)).size == (300, 200)


def io_path(served: Any, data: bytes) -> Path:
    path: Path = served.engine.thumbnails.folder.parent / "upload.jpg"
    path.write_bytes(data)
    return path


def test_pictures_of_one_request_go_through_the_model_together(
    open_search: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = open_search()
    sizes: list[int] = []
    monkeypatch.setattr(served.engine.model._batcher, "on_batch", sizes.append)
    names = served.ids()[:9]
    files = [("image", ("x", served.bytes_of(name))) for name in [*names, names[0]]]
    answer = served.client.post("/v1/embed", files=files).json()["embeddings"]
    assert sizes == [9]  # one of them twice
    assert len(answer) == 10 and answer[0] == answer[9]
    wanted = [served.engine.gallery.vector(name) for name in names]
    assert np.allclose([one["vector"] for one in answer[:9]], wanted, atol=1e-6)


def test_texts_of_one_request_go_through_the_model_together(
    open_search: Open, tiny_clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = open_search(Embedder.build(tiny_clip, weights="random"))
    sizes: list[int] = []
    monkeypatch.setattr(served.engine.model._batcher, "on_batch", sizes.append)
    body = {"text": ["a dog", "a cat", "a dog"]}
    first = served.post("/v1/embed", json=body).json()["embeddings"]
    assert sizes == [2] and first[0] == first[2] != first[1]
    assert served.post("/v1/embed", json=body).json()["embeddings"] == first
    assert sizes == [2]


def test_each_picture_of_a_request_counts(open_search: Open) -> None:
    served = open_search(per_minute=60)  # ten at once
    files = [("image", ("x", served.bytes_of(name))) for name in served.ids()[:4]]
    statuses = [served.client.post("/v1/embed", files=files).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    limit = RateLimit(60, clock=lambda: 0.0)
    assert limit.wait("a", 16) == 0.0  # more than may come at once passes, but then nothing does
    assert limit.wait("a") == 1.0


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded"])
def test_bodies_without_pictures_have_a_lower_limit(served: Any, kind: str) -> None:
    body = b'{"id": ["' + b'", "'.join([b"x" * 90] * 20_000) + b'"]}'
    for path in ("/v1/search", "/v1/embed"):
        answer = served.client.post(path, content=body, headers={"content-type": kind})
        assert answer.status_code == 413
        assert answer.json()["error"] == "a body without files has a limit of 1048576 bytes"
    padding = b"x" * 3_000_000  # ignored after the end of an image
    assert served.search(image=jpeg((400, 300)) + padding, data={"k": 1})


def test_padded_bodies_are_read(served: Any) -> None:
    spaces = b'{"id": "red/red-0.png",' + b" " * 900_000 + b'"k": 1}'
    headers = {"content-type": "application/json"}
    assert served.search(content=spaces, headers=headers) == ["red/red-0.png"]
    padded = served.bytes_of("red/red-0.png") + b"\r\n--" * 20_000
    assert served.search(image=padded, data={"k": 1}) == ["red/red-0.png"]


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


def test_a_closing_batcher_lets_nobody_wait(wait_until: Any) -> None:
    gate, begun = threading.Event(), threading.Event()

    def work(items: list[int]) -> list[int]:
        begun.set()
        assert gate.wait(20)
        return items

    batcher: Batcher[int, int] = Batcher(work, max_batch=1, wait=0.0)
    first = batcher.submit(1)
    assert begun.wait(5)
    queued = batcher.submit_all([2, 3, 4])
    closing = threading.Thread(target=batcher.close)
    closing.start()
    wait_until(lambda: batcher.is_closed)
    with pytest.raises(Closed):
        batcher.submit(5)
    gate.set()
    assert first.result(5) == 1  # it was under way
    for future in queued:
        with pytest.raises(Closed):
            future.result(5)
    closing.join(5)
    assert not closing.is_alive()


def test_a_closing_decoder_lets_nobody_wait(pictures: Path) -> None:
    import os
    import signal

    files = sorted(pictures.rglob("*.png"))
    decoder = Decoder(max_pixels=10**6, processes=1)
    decoder.decode(files[0], jpeg_side=10).result()
    os.kill(decoder.pool.processes[0].pid, signal.SIGSTOP)
    waiting = [decoder.decode(path, jpeg_side=10) for path in files[:5]]
    decoder.close()
    for future in waiting:
        with pytest.raises(Closed):
            future.result(5)
    with pytest.raises(Closed):
        decoder.decode(files[0], jpeg_side=10)


def test_a_closed_server_says_so_at_once(served: Any, tiny_clip: str) -> None:
    served.engine.close(keep_decoder=True)
    for answer in (
        served.post(image="red/red-0.png"),
        served.post(json={"id": "red/red-0.png"}),
        served.post("/v1/embed", image="red/red-0.png"),
        served.client.post("/queries", files={"image": ("x", served.bytes_of("red/red-0.png"))}),
    ):
        assert answer.status_code == 503 and "shutting down" in answer.text.lower()
        assert int(answer.headers["retry-after"]) >= 1
    health = served.get("/healthz")
    assert health.status_code == 503 and health.json()["status"] == "closed"


def test_searches_under_way_are_refused_when_it_closes(open_search: Open, wait_until: Any) -> None:
    gate, entered = threading.Event(), threading.Event()

    class Slow(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            entered.set()
            assert gate.wait(20)
            return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) + 0.1

    gate.set()
    embedder = Embedder.from_module(Slow(), Preprocess((16, 16)), name="slow")
    served = open_search(embedder)
    gate.clear()
    entered.clear()
    data = [served.bytes_of(name) for name in served.ids()[:6]]

    def ask(body: bytes) -> int:
        files = {"image": ("x", body)}
        return httpx.post(served.url + "/v1/search", files=files, timeout=60).status_code

    with ThreadPoolExecutor(6) as clients:
        first = clients.submit(ask, data[0])
        assert entered.wait(20)
        others = [clients.submit(ask, body) for body in data[1:]]
        wait_until(lambda: served.engine.model._batcher._waiting.qsize() == 5)
        closing = threading.Thread(target=lambda: served.engine.close(keep_decoder=True))
        closing.start()
        wait_until(lambda: served.engine.model._batcher.is_closed)
        gate.set()
        assert [one.result(10) for one in others] == [503] * 5
        assert first.result(10) == 503  # embedded, but no longer searched with
        closing.join(10)


# ── below a prefix ───────────────────────────────────────────────────────────────────────────────


def test_addresses_in_answers_hold_below_any_prefix(served: Any, serving: Any) -> None:
    switch, url = serving
    inner = switch.app

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        """A reverse proxy that removes the prefix without a header that says so."""
        assert scope["path"].startswith("/shop/search/"), scope["path"]
        path = scope["path"].removeprefix("/shop/search")
        raw = scope["raw_path"].removeprefix(b"/shop/search")
        await inner({**scope, "path": path, "raw_path": raw}, receive, send)

    switch.app = proxy
    base = url + "/shop/search/"
    answer = httpx.post(base + "v1/search", json={"id": "a & <b>/a-0.png", "k": 1})
    (found,) = answer.json()["results"]
    image = httpx.get(urljoin(str(answer.url), found["image"]))
    assert image.status_code == 200 and image.content == served.bytes_of(found["id"])
    thumb = httpx.get(urljoin(str(answer.url), found["thumb"]))
    assert thumb.headers["content-type"] == "image/jpeg"
    described = httpx.get(base + "openapi.json")
    (server,) = described.json()["servers"]
    root = urljoin(str(described.url), server["url"])
    for path in ("/v1/search", "/healthz"):
        assert path in described.json()["paths"]
    assert httpx.get(root.rstrip("/") + "/healthz").status_code == 200
    page = httpx.get(base, headers=HTML)
    assert page.status_code == 200
    assert httpx.get(urljoin(base, "static/search.css")).status_code == 200


def test_static_files_are_kept_by_browsers(served: Any) -> None:
    for name in ("search.css", "search.js", "htmx.min.js"):
        first = served.get(f"/static/{name}")
        assert first.headers["cache-control"] == "no-cache" and first.headers["etag"]
        again = served.get(f"/static/{name}", headers={"If-None-Match": first.headers["etag"]})
        assert again.status_code == 304 and again.content == b""
        assert again.headers["cache-control"] == "no-cache"


def test_range_requests_get_the_whole_file(served: Any) -> None:
    ranges = {"Range": "bytes=" + ",".join(f"{i}-{i}" for i in range(500))}
    for path in ("/v1/images/red/red-0.png", "/static/htmx.min.js"):
        whole = served.get(path)
        part = served.get(path, headers=ranges)
        assert part.status_code == 200 and part.content == whole.content
