"""A small contest, and a small gallery to search, on a real server on loopback."""

import base64
import io
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from vizsla.data.imageset import ImageSet
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import embed
from vizsla.model.embedder import Embedder, Preprocess
from vizsla.search.folder_index import FolderIndex
from vizsla.web.contest.rules import Rules
from vizsla.web.contest.scoring import Scorer
from vizsla.web.contest.server import create_app
from vizsla.web.contest.store import Store
from vizsla.web.shell.http import listen, make_server
from vizsla.web.shell.tokens import hashed

ORGANISER = "token-of-the-organiser"
QUERIES = {f"q{i}.jpg": f"class {i % 4}" for i in range(12)}
GALLERY = {f"g{i}.jpg": f"class {i % 5}" for i in range(30)}


class Contest:
    """A running contest: its parts, its address, and a clock that tests can set."""

    def __init__(self, store: Store, rules: Rules, queries: dict, gallery: dict) -> None:
        self.store, self.rules = store, rules
        self.store_folder = store.path.parent
        self.queries, self.gallery = queries, gallery
        self.scorer = Scorer(queries, gallery, rules)
        self.now: float | None = None
        self.posts = 0
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
        """Posts lists (or, with `content=`, any bytes); without any, others each time."""
        if "content" not in more:
            self.posts += 1
            lists = self.lists(seed=self.posts) if body is None else body
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


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """wait_until(condition): returns once it is true; the test fails if it does not become so."""

    def wait(condition: Callable[[], bool]) -> None:
        for _ in range(3000):
            if condition():
                return
            time.sleep(0.01)
        pytest.fail("the condition did not become true")

    return wait


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
        switch.app = create_app(
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


# ── a gallery to search ──────────────────────────────────────────────────────────────────────────


class MeanColour(torch.nn.Module):
    """The colours of the four quarters, and a constant, so that grey has a direction too."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        quarters = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)  # (B, 12)
        constant = torch.full_like(quarters[:, :1], 0.1)  # of any batch, once it is traced too
        return torch.cat([quarters, constant], dim=1)


def colours() -> Embedder:
    """Sees images of 16 × 16; no weights, no time."""
    return Embedder.from_module(MeanColour(), Preprocess((16, 16)), name="colours")


TINTS = {"red": (220, 60, 50), "green": (60, 190, 80), "blue": (60, 80, 220), "a & <b>": (9, 9, 9)}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 classes by tint of 6 images each, in class folders. Tests read it only, or copy it."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for label, tint in TINTS.items():
        for i in range(6):
            grid = np.array(tint) + rng.integers(-50, 50, (6, 8, 3))
            path = folder / label / f"{label.split()[0]}-{i}.png"
            path.parent.mkdir(exist_ok=True)
            small = Image.fromarray(grid.clip(0, 255).astype(np.uint8))
            small.resize((80, 60), Image.Resampling.NEAREST).save(path)
    return folder


def embedded(
    folder: Path, embedder: Embedder, out: Path, columns: dict[str, Any] | None = None
) -> Embeddings:
    """With labels, a `domain` and a `price`, which is not known for every image.

    columns: further attributes.
    """
    found = embed(ImageSet.from_class_folders(folder), embedder, out)
    n = len(found)
    table = found.attributes.append_column("domain", pa.array(["photo", "drawing"] * (n // 2)))
    price = pa.array([None if i % 5 == 0 else i for i in range(n)], pa.int64())
    table = table.append_column("price", price)
    for name, values in (columns or {}).items():
        table = table.append_column(name, pa.array(values))
    return Embeddings(
        found.ids, found.vectors, table, found.model_id,
        tiles=found.tiles, tile_vectors=found.tile_vectors,
    )  # fmt: skip


class Served:
    """A running search server: its engine, its address, and requests to it."""

    def __init__(self, engine: Any, url: str, folder: Path, token: str | None) -> None:
        self.engine, self.url, self.folder, self.token = engine, url, folder, token
        self.client = httpx.Client(timeout=30, verify=False, base_url=url)

    def ids(self) -> list[str]:
        return list(self.engine.gallery.ids)

    def bytes_of(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def post(self, path: str = "/v1/search", **more: Any) -> httpx.Response:
        image = more.pop("image", None)
        if image is not None:
            data = image if isinstance(image, bytes) else self.bytes_of(image)
            more["files"] = [("image", ("x", data))]
        return self.client.post(path, **more)

    def search(self, **more: Any) -> list[str]:
        """The ids that were found."""
        answer = self.post(**more)
        assert answer.status_code == 200, answer.text
        return [one["id"] for one in answer.json()["results"]]

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.client.get(path, **more)


@pytest.fixture
def shop(open_search: Callable[..., Served]) -> Served:
    """Products of three images each; the last two images are of none. And stars, 0 to 3."""
    products = [f"P{i // 3}" for i in range(22)] + [None, None]
    return open_search(columns={"product": products, "stars": [i % 4 for i in range(24)]})


@pytest.fixture(scope="session")
def decoder() -> Iterator[Any]:
    from vizsla.web.search.decoder import Decoder

    decoder = Decoder(max_pixels=4_000_000)
    yield decoder
    decoder.close()


@pytest.fixture(scope="session")
def colours_index(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of `pictures` by `colours()`, to be copied."""
    folder = tmp_path_factory.mktemp("colours")
    FolderIndex.build(embedded(pictures, colours(), folder / "e"), folder / "gallery.index")
    return folder / "gallery.index"


@pytest.fixture
def open_search(
    tmp_path: Path,
    serving: tuple[Switch, str],
    pictures: Path,
    colours_index: Path,
    decoder: Any,
) -> Iterator[Callable[..., Served]]:
    """open_search(embedder=…, token=…, columns=…, prefix="/below", …) → a running Served."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    from vizsla.web.search.app import create_app
    from vizsla.web.search.batching_model import Model
    from vizsla.web.search.engine import Engine
    from vizsla.web.search.gallery import Gallery
    from vizsla.web.search.service import Limits, ServerState
    from vizsla.web.search.thumbnails import Thumbnails
    from vizsla.web.shell.access import Access

    opened: list[Served] = []

    def start(
        embedder: Embedder | None = None,
        *,
        folder: Path = pictures,
        token: str | None = None,
        changes: str | None = None,
        watched: bool = False,
        columns: dict[str, Any] | None = None,
        prefix: str = "",
        hosts: frozenset[str] | None = None,
        runtime: str = "auto",
        show: tuple[str, ...] = (),
        clock: Callable[[], float] = lambda: 0.0,  # stands still: no rate limit recovers
        **limits: Any,
    ) -> Served:
        place = tmp_path / "gallery.index"
        if (embedder, folder, columns) == (None, pictures, None):
            index = FolderIndex.load(shutil.copytree(colours_index, place))
        else:
            vectors = embedded(folder, embedder or colours(), tmp_path / "gallery.emb", columns)
            index = FolderIndex.build(vectors, place)
        embedder = embedder or colours()
        state = ServerState()
        compute = resolve_compute(device="cpu", precision="fp32", runtime=runtime)
        engine = Engine(
            Model(embedder, compute, on_batch=state.metrics.count_batch),
            Gallery.open(index, folder),
            decoder,
            thumbnails=Thumbnails(decoder, tmp_path / "thumbnails"),
            watch=watched,
        )
        engine.warm_up()
        state.engine = engine
        limits.setdefault("per_minute", 0)
        access = Access(
            hashed(token) if token else None, hashed(changes) if changes else None, hosts
        )
        switch, url = serving
        app: Any = create_app(
            state, limits=Limits(**limits), access=access, title="Colours", columns=show,
            clock=clock,
        )  # fmt: skip
        switch.app = Starlette(routes=[Mount(prefix, app)]) if prefix else app
        opened.append(Served(engine, url + prefix, folder, token))
        return opened[-1]

    yield start
    for served in opened:
        served.client.close()
        served.engine.close(keep_decoder=True)


@pytest.fixture
def served(open_search: Callable[..., Served]) -> Served:
    return open_search()


def png(colour: tuple[int, int, int] = (200, 30, 40), size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


# ── pages in a browser ───────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def visit(browser: Any) -> Callable[..., Any]:
    """`with visit(url, viewport=…) as page`: a script error, a blocked resource or a dialog fails.

    expected: texts in whose presence a fault is none.
    """

    @contextmanager
    def opened(url: str, *, expected: tuple[str, ...] = (), **options: Any) -> Iterator[Any]:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        page = context.new_page()
        faults: list[str] = []

        def fault(text: str) -> None:
            if not any(known in text for known in expected):
                faults.append(text)

        page.on("console", lambda m: fault(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: fault(str(error)))
        page.on("dialog", lambda dialog: (fault(dialog.message), dialog.dismiss()))
        page.on(
            "requestfailed",
            lambda request: None if "ABORTED" in request.failure else fault(request.url),
        )  # aborted: it became a download
        try:
            page.goto(url)
            yield page
            assert faults == []
        finally:
            context.close()

    return opened


@pytest.fixture
def wait_in_page() -> Callable[[Any, Callable[[], bool]], None]:
    """wait_in_page(page, condition): as `wait_until`, while the page goes on."""

    def wait(page: Any, condition: Callable[[], bool]) -> None:
        for _ in range(1500):
            if condition():
                return
            page.wait_for_timeout(20)
        pytest.fail("the condition did not become true")

    return wait


CONTRAST = """element => {
  const channels = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const [r, g, b] = channels(colour).map(v => {
      v /= 255;
      return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const front = light(getComputedStyle(element).color);
  let ground = element;
  while (channels(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
  const back = light(getComputedStyle(ground).backgroundColor);
  return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
}"""


@pytest.fixture(scope="session")
def contrast() -> Callable[[Any, str], float]:
    """contrast(page, selector): of a text and what is behind it, as WCAG has it; 4.5 is legible."""
    return lambda page, selector: float(page.locator(selector).first.evaluate(CONTRAST))


DROP = """([selector, data, kind]) => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], "image.png", {type: "image/png"}));
  const target = document.querySelector(selector);
  const options = {bubbles: true, cancelable: true};
  if (kind === "drop") {
    target.dispatchEvent(new DragEvent("dragover", {dataTransfer: files, ...options}));
    if (!document.body.classList.contains("dragging")) throw new Error("nothing shows the target");
    target.dispatchEvent(new DragEvent("drop", {dataTransfer: files, ...options}));
  } else {
    target.dispatchEvent(new ClipboardEvent("paste", {clipboardData: files, ...options}));
  }
}"""


@pytest.fixture(scope="session")
def give() -> Callable[..., None]:
    """give(page, data, "drop"): an image is dropped, or pasted ("paste"), on an element."""

    def given(page: Any, data: bytes, kind: str, target: str = "main") -> None:
        page.evaluate(DROP, [target, base64.b64encode(data).decode(), kind])

    return given
