"""What the search server bears: its speed, and answers while the index is replaced under load.

    python benchmarks/serve_load.py                        # speed: 100,000 images, 1 and 8 clients
    python benchmarks/serve_load.py --replace 3 --clients 32 --images 5000   # 60 s, 3 replacements
    python benchmarks/serve_load.py --replace 8 --clients 32 --seconds 600 --check 1500   # memory

The gallery is made up: random unit vectors, clustered, under the ids of files that do not exist;
the model is MobileNetV2 (random weights unless --weights names a file; --model is another one). For
speed, clients post JPEGs. With --replace they post JPEGs, ids, filters, several examples with "not
like these" and marks, and words where the model reads text, while one more client adds and removes
images and the index is replaced as a whole. Every answer is then held against an exact oracle: the
query's vector and its nearest images, computed here in float64 for the state of the index that the
answer names (--check N: of N answers, for a long run). The index must then be exact. The server's
memory is printed every ten seconds, with the least before and after each replacement; --replace 0
asks the same questions of an index that nobody changes. Needs the extra `web`.
"""

import argparse
import contextlib
import http.client
import io
import itertools
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vizsla.embed.embeddings import Embeddings
from vizsla.errors import StorageError
from vizsla.model.embedder import Embedder
from vizsla.search.index import build_index
from vizsla.web.search.gallery import version_of

SERVER = """
import sys
from pathlib import Path
from vizsla.options import GalleryOptions
from vizsla.web.search.server import GallerySource, serve
if sys.argv[5:]:
    import open_clip
    open_clip.add_model_config(Path(sys.argv[5]))
source = GallerySource(
    Path(sys.argv[1]),
    GalleryOptions(model=sys.argv[2], images=sys.argv[3], precision=sys.argv[4]),
)
serve(source, port=0, per_minute=0, allow_changes=True,
      started=lambda about: print(about.url, about.token, flush=True))
"""
K = 10
CLASSES = 20
NEAR = 2e-5  # the server's vector is float32, of another batch
NEVER_ASKED = 200  # the last ids of the gallery: those may be removed
SERIES = 20  # half seconds between two figures of memory that are printed
SAMPLE = 4096  # over which the server standardises the scores of words and images
WORDS = ("a red shoe", "a dog on grass", "an old map", "nothing at all")


# ── the gallery, and what is true of it ──────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class State:
    """What a state of the index holds, in the order of the gallery.

    base: (N, D) float64, shared with the states from which this one differs by a few images.
    extra: what was added to it. rows: (G,) rows of base followed by extra.
    """

    ids: list[str]
    labels: list[str]
    base: np.ndarray
    rows: np.ndarray
    extra: tuple[np.ndarray, ...] = ()

    def without(self, name: str) -> "State":
        at = self.ids.index(name)
        keep = [i for i in range(len(self.ids)) if i != at]
        return replace(
            self, ids=[self.ids[i] for i in keep], labels=[self.labels[i] for i in keep],
            rows=self.rows[keep],
        )  # fmt: skip

    def with_one(self, name: str, label: str, vector: np.ndarray) -> "State":
        row = len(self.base) + len(self.extra)
        return replace(
            self, ids=[*self.ids, name], labels=[*self.labels, label],
            rows=np.append(self.rows, row), extra=(*self.extra, vector),
        )  # fmt: skip

    def vector(self, place: int) -> np.ndarray:
        row = int(self.rows[place])
        found: np.ndarray = (
            self.base[row] if row < len(self.base) else self.extra[row - len(self.base)]
        )
        return found

    def scores(self, query: np.ndarray) -> np.ndarray:
        """(G,) float64"""
        return np.append(self.base @ query, [one @ query for one in self.extra])[self.rows]

    def nearest(self, query: np.ndarray, label: str | None) -> list[tuple[str, float]]:
        """(id, score), the K + 1 best first."""
        scores = self.scores(query)
        if label is not None:
            scores[[one != label for one in self.labels]] = -np.inf
        order = np.argsort(-scores, kind="stable")[: K + 1]
        return [(self.ids[i], float(scores[i])) for i in order if scores[i] > -np.inf]


def made_up(n: int, dim: int, seed: int, model_id: str) -> Embeddings:
    """Clustered as real vectors are: about 1,000 classes, some spread, no negative numbers.

    Ids are the same for each seed, vectors are others.
    """
    rng = np.random.default_rng(seed)
    centres = np.abs(rng.normal(size=(1000, dim))).astype(np.float32)
    vectors = np.empty((n, dim), np.float32)
    for start in range(0, n, 4096):
        part = slice(start, min(start + 4096, n))
        size = part.stop - part.start
        noise = np.abs(rng.normal(size=(size, dim))).astype(np.float32)
        vectors[part] = centres[rng.integers(1000, size=size)] + 0.8 * noise
    ids = [f"image_{i:06d}.jpg" for i in range(n)]
    labels = [f"class {(i + seed) % CLASSES}" for i in range(n)]
    return Embeddings.from_arrays(vectors, ids, labels, model_id=model_id)


def photos(n: int, seed: int = 0) -> list[bytes]:
    """JPEGs of about 20 kB, 320 × 240."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        small = Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8))
        file = io.BytesIO()
        small.resize((320, 240), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


@dataclass
class World:
    """The index in `folder`, the queries, and what is true in each state of the index."""

    folder: Path
    kind: str
    model_id: str
    photos: list[bytes]
    photo_vectors: np.ndarray  # (n, D) float64
    words: dict[str, np.ndarray]  # text → (D,) float64; empty if the model reads none
    states: dict[str, State] = field(default_factory=dict)  # by version
    current: State | None = None

    def build(self, embeddings: Embeddings, *, remember: bool = True) -> str:
        """A new index in the place of the one before, and its version."""
        for _ in range(100):
            try:
                build_index(embeddings, self.folder, kind=self.kind)
                break
            except StorageError:  # the server writes to it
                time.sleep(0.05)
        version = version_of(self.folder)
        if remember:
            base = np.asarray(embeddings.vectors).astype(np.float64)
            labels = [str(label) for label in embeddings.labels or []]
            state = State(list(embeddings.ids), labels, base, np.arange(len(base)))
            self.states[version] = self.current = state
        return version


# ── what is asked ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Question:
    """photo: a place in `World.photos`, sent as a file. The rest: fields of the same names."""

    photo: int | None = None
    id: tuple[str, ...] = ()
    not_id: tuple[str, ...] = ()
    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    text: str = ""
    label: str | None = None

    @staticmethod
    def draw(world: World, n_ids: int, rng: random.Random) -> "Question":
        def ids(most: int) -> tuple[str, ...]:
            return tuple(f"image_{rng.randrange(n_ids):06d}.jpg" for _ in range(most))

        photo, label = rng.randrange(len(world.photos)), f"class {rng.randrange(CLASSES)}"
        kinds: list[Callable[[], Question]] = [
            lambda: Question(photo),
            lambda: Question(photo),
            lambda: Question(id=ids(1)),
            lambda: Question(photo, label=label),
            lambda: Question(photo, id=ids(1), not_id=ids(2)),
            lambda: Question(id=ids(2), not_id=ids(1), right=ids(2), wrong=ids(1), label=label),
        ]
        if world.words:
            text = rng.choice(list(world.words))
            kinds += [lambda: Question(text=text), lambda: Question(photo, text=text)]
        return rng.choice(kinds)()

    def vector(self, world: World, state: State) -> np.ndarray:
        """(D,) float64, as docs/serve.md says it."""
        place = {name: i for i, name in enumerate(state.ids)}

        def mean(names: tuple[str, ...], more: list[np.ndarray] | None = None) -> Any:
            rows = [state.vector(place[name]) for name in names]
            rows += more or []
            return np.mean(rows, axis=0) if rows else 0.0

        sent = [] if self.photo is None else [world.photo_vectors[self.photo]]
        pictures = mean(self.id, sent) - 0.5 * mean(self.not_id)
        pictures = pictures + 0.75 * mean(self.right) - 0.15 * mean(self.wrong)
        if not self.text:
            return pictures / np.linalg.norm(pictures)
        words = world.words[self.text]
        if not np.ndim(pictures):
            return words / np.linalg.norm(words)
        n = len(state.ids)
        rows = np.arange(n) if n <= SAMPLE else np.linspace(0, n - 1, SAMPLE).astype(np.int64)
        mixed = sum(part / np.std(state.scores(part)[rows]) for part in (pictures, words))
        return mixed / np.linalg.norm(mixed)

    def request(self, world: World, rng: random.Random) -> tuple[str, bytes, str]:
        """(query string, body, its type)"""
        fields: dict[str, Any] = {"k": K}
        for name in ("id", "not_id", "right", "wrong"):
            if getattr(self, name):
                fields[name] = list(getattr(self, name))
        if self.text:
            fields["text"] = self.text
        if self.label is not None:
            fields["filter"] = f"label={self.label}"
        if self.photo is None:
            return "", json.dumps(fields).encode(), "application/json"
        # trailing bytes make it another file, so that no answer comes from a cache
        data = world.photos[self.photo] + rng.randbytes(8)
        if len(fields) == 1:
            return f"?k={K}", data, "image/jpeg"
        return "", *multipart(data, fields)


def multipart(picture: bytes, fields: dict[str, Any]) -> tuple[bytes, str]:
    """(body, its type)"""
    edge = "-----------------a-line-that-is-in-no-picture"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
    parts = [(head % ("image", '; filename="x"')).encode() + picture + b"\r\n"]
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            parts.append(((head % (name, "")) + f"{one}\r\n").encode())
    return b"".join(parts) + f"--{edge}--\r\n".encode(), f"multipart/form-data; boundary={edge}"


# ── the server and its clients ───────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def server(
    world: World, model: Path, images: Path, precision: str, more: list[str]
) -> Iterator[tuple[Any, int, str]]:
    """(process, port, the token for changes), warm."""
    words = [str(world.folder), str(model), str(images), precision, *more]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, *words], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        url, token = process.stdout.readline().split()
        port = int(url.rsplit(":", 1)[1])
        while healthz(port)[0] != 200:
            time.sleep(0.2)
        yield process, port, token
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()


def healthz(port: int) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/healthz")
    response = connection.getresponse()
    return response.status, json.loads(response.read())


class Clients:
    """Each posts one question after the other over one connection."""

    def __init__(self, world: World, port: int, *, mixed: bool) -> None:
        self.world, self.port, self.mixed = world, port, mixed
        self.n_ids = len(world.current.ids) - NEVER_ASKED if world.current else 0
        self.seconds: list[float] = []
        self.statuses: dict[int, int] = {}
        self.answers: list[tuple[Question, dict[str, Any]]] = []
        self.refusals: list[str] = []
        self.broken = 0
        self.stop = threading.Event()

    def run(self, clients: int, seconds: float, *beside: Callable[[], None]) -> None:
        work = [*((self.client, (n,)) for n in range(clients)), *((one, ()) for one in beside)]
        threads = [threading.Thread(target=do, args=words) for do, words in work]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self.stop.set()
        for thread in threads:
            thread.join()

    def client(self, number: int) -> None:
        rng = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self.stop.is_set():
            question = Question(rng.randrange(len(self.world.photos)))
            if self.mixed:
                question = Question.draw(self.world, self.n_ids, rng)
            query, body, kind = question.request(self.world, rng)
            started = time.perf_counter()
            try:
                connection.request("POST", "/v1/search" + query, body, {"Content-Type": kind})
                response = connection.getresponse()
                text = response.read()
            except (OSError, http.client.HTTPException):
                self.broken += 1
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                continue
            self.seconds.append(time.perf_counter() - started)
            self.count(response.status, text)
            if response.status == 200 and self.mixed:
                self.answers.append((question, json.loads(text)))

    def count(self, status: int, text: bytes) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status >= 400:
            self.refusals.append(f"{status} {text[:200].decode(errors='replace')}")

    def wrong(self, most: int | None) -> list[str]:
        """What the oracle does not agree with, of all answers or of `most` that are drawn."""
        found = []
        if most is not None and most < len(self.answers):
            self.answers = random.Random(0).sample(self.answers, most)
        for question, answer in self.answers:
            state = self.world.states.get(answer["index"])
            if state is None:
                found.append(f"no state is called {answer['index']}")
                continue
            best = state.nearest(question.vector(self.world, state), question.label)
            got = [(one["id"], one["score"]) for one in answer["results"]]
            if len(got) != min(K, len(best)) or answer["gallery"] != len(state.ids):
                found.append(f"{question}: {len(got)} results of {answer['gallery']} images")
                continue
            for (name, score), (right, value) in zip(got, best, strict=False):
                near = abs(score - value) < NEAR
                if not near or (name != right and not tied(best, name, score)):
                    found.append(f"{question}: {name} {score}, expected {right} {value}")
                    break
        return found


def tied(nearest: list[tuple[str, float]], name: str, score: float) -> bool:
    """Two images that score within rounding of each other may stand either way round."""
    return any(one == name and abs(best - score) < NEAR for one, best in nearest)


class Changes:
    """One client that adds and removes images, and who replaces the index: never both at once."""

    def __init__(self, clients: Clients, token: str, embedder: Embedder) -> None:
        self.clients, self.world, self.token = clients, clients.world, token
        self.embedder = embedder
        self.lock = threading.Lock()
        self.made = {"added": 0, "removed": 0, "replaced": 0}
        self.replaced_at: list[float] = []  # when the server had taken over each

    def replace(self, seeds: range, every: float) -> None:
        """Makes each state in turn, replaces the index by it, and waits until the server has it."""
        size = self.clients.n_ids + NEVER_ASKED
        for seed in seeds:
            state = made_up(size, self.embedder.dim, seed, self.embedder.model_id)
            if self.clients.stop.wait(every):
                return
            with self.lock:
                version = self.world.build(state)
                self.made["replaced"] += 1
                until = time.monotonic() + 30
                while healthz(self.clients.port)[1]["index"] != version:
                    if time.monotonic() > until:
                        self.clients.refusals.append("a new index was not taken over within 30 s")
                        return
                    time.sleep(0.05)
                self.replaced_at.append(time.monotonic())

    def change(self) -> None:
        rng = random.Random(99)
        connection = http.client.HTTPConnection("127.0.0.1", self.clients.port, timeout=60)
        added: list[str] = []
        for n in range(10**6):
            if self.clients.stop.wait(0.3):
                return
            with self.lock:
                state = self.world.current
                assert state is not None
                there = [name for name in added if name in state.ids]
                if n % 3 == 2:
                    gone = there[0] if there and rng.random() < 0.5 else None
                    self.remove(connection, state, gone or rng.choice(state.ids[-NEVER_ASKED:]))
                else:
                    added += self.add(connection, state, n)

    def add(self, connection: Any, state: State, n: int) -> list[str]:
        (picture,) = photos(1, seed=1000 + n)
        (vector,) = embedded(self.embedder, [picture])
        label = f"class {n % CLASSES}"
        body, kind = multipart(picture, {"name": f"new-{n}", "label": label})
        answer = self._ask(connection, "POST", "/v1/images", body, {"Content-Type": kind})
        if answer is None:
            return []
        self._now(answer["index"], state.with_one(answer["id"], label, vector))
        self.made["added"] += 1
        return [answer["id"]]

    def remove(self, connection: Any, state: State, name: str) -> None:
        answer = self._ask(connection, "DELETE", f"/v1/images/{name}", None, {})
        if answer is not None:
            self._now(answer["index"], state.without(name))
            self.made["removed"] += 1

    def _now(self, version: str, state: State) -> None:
        self.world.states[version] = self.world.current = state

    def _ask(self, connection: Any, method: str, path: str, body: Any, headers: Any) -> Any:
        headers = {**headers, "Authorization": f"Bearer {self.token}"}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read()
        self.clients.count(response.status, text)
        return json.loads(text) if response.status in (200, 201) else None


# ── measuring ────────────────────────────────────────────────────────────────────────────────────


def percentile(seconds: list[float], share: float) -> float:
    ordered = sorted(seconds)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)


class Memory:
    """What memory a process holds, twice a second (Linux)."""

    def __init__(self, pid: int, stop: threading.Event) -> None:
        self.pid, self.stop = pid, stop
        self.series: list[tuple[float, int]] = [(time.monotonic(), self.now())]  # MiB

    def now(self) -> int:
        """MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) // 1024

    def watch(self) -> None:
        while not self.stop.wait(0.5):
            self.series.append((time.monotonic(), self.now()))

    def least(self, marks: list[float]) -> list[int]:
        """The least before the first mark, between each two, and after the last."""
        edges = [-np.inf, *marks, np.inf]
        between = [
            [mib for at, mib in self.series if start <= at < end]
            for start, end in itertools.pairwise(edges)
        ]
        return [min(one) for one in between if one]


def measured(clients: Clients, n: int, seconds: float) -> dict[str, Any]:
    return {
        "clients": n,
        "seconds": seconds,
        "requests": len(clients.seconds),
        "requests_per_second": round(len(clients.seconds) / seconds, 1),
        "p50_ms": percentile(clients.seconds, 0.5),
        "p99_ms": percentile(clients.seconds, 0.99),
        "statuses": clients.statuses,
        "broken": clients.broken,
    }


def speed(world: World, port: int, n: int, seconds: float) -> dict[str, Any]:
    clients = Clients(world, port, mixed=False)
    clients.run(n, seconds)
    return measured(clients, n, seconds)


def replaced(
    world: World, embedder: Embedder, served: tuple[Any, int, str],
    *, times: int, n: int, seconds: float, most: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The same, how many answers were wrong, and the memory of the server every 10 s.

    Of the memory also the least before the first replacement, and after each.
    """
    process, port, token = served
    clients = Clients(world, port, mixed=True)
    changes = Changes(clients, token, embedder)
    memory = Memory(process.pid, clients.stop)
    beside: list[Callable[[], None]] = [memory.watch]
    if times:
        seeds = range(1, times + 1)
        beside += [lambda: changes.replace(seeds, seconds / (times + 2)), changes.change]
    clients.run(n, seconds, *beside)
    wrong = clients.wrong(most)
    named = {answer["index"] for _, answer in clients.answers}
    kinds: dict[str, int] = {}
    for question, _ in clients.answers:
        used = [name for name, value in vars(question).items() if value not in (None, (), "")]
        kinds["+".join(used)] = kinds.get("+".join(used), 0) + 1
    return {
        **measured(clients, n, seconds),
        "refusals": clients.refusals[:3],
        "changes": changes.made,
        "states": len(world.states),
        "states_answered": len(named),
        "asked": kinds,
        "checked": len(clients.answers),
        "wrong": len(wrong),
        "first_wrong": wrong[:3],
        "memory_mib": [mib for _, mib in memory.series[::SERIES]],
        "memory_least_mib": memory.least(changes.replaced_at),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--kind", default="exact", help="of the index")
    parser.add_argument("--seconds", type=float, help="[default: 20; 60 with --replace]")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--replace", type=int, help="ask everything, and replace the index this often (0: never)"
    )
    parser.add_argument("--check", type=int, metavar="N", help="hold N answers against the oracle")
    parser.add_argument("--model", default="mobilenetv2")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--open-clip", type=Path, help="the JSON of a model that is in no library")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pooling = "gap" if options.model == "mobilenetv2" else None
        more = []
        if options.open_clip:
            import open_clip

            open_clip.add_model_config(options.open_clip)
            more, pooling = [str(options.open_clip)], None
            options.model = f"openclip:{options.open_clip.stem}"
        embedder = Embedder.build(options.model, weights=options.weights, pooling=pooling)
        embedder.save(folder / "embedder")
        (folder / "images").mkdir()
        files = photos(40)
        world = World(
            folder / "index", options.kind, embedder.model_id, files, embedded(embedder, files),
            spoken(embedder),
        )  # fmt: skip
        started = time.monotonic()
        world.build(
            made_up(options.images, embedder.dim, 0, embedder.model_id),
            remember=options.replace is not None,
        )
        print(json.dumps({"built_s": round(time.monotonic() - started, 1)}), flush=True)
        # the oracle computes in fp32: bf16 moves a score by some 1e-4
        held = options.replace is not None
        precision = "fp32" if held else "auto"
        with server(world, folder / "embedder", folder / "images", precision, more) as served:
            speed(world, served[1], 2, 3)  # to warm up
            for clients in options.clients[-1:] if held else options.clients:
                if held:
                    found = replaced(
                        world, embedder, served, times=options.replace, n=clients,
                        seconds=options.seconds or 60.0, most=options.check,
                    )  # fmt: skip
                else:
                    found = speed(world, served[1], clients, options.seconds or 20.0)
                print(json.dumps(found), flush=True)


def embedded(embedder: Embedder, files: list[bytes]) -> np.ndarray:
    """(n, D) float64, by the model itself, one image at a time."""
    import torch

    from vizsla.data.images import read_image

    least = embedder.preprocess.framing.least_side  # a large JPEG is unpacked smaller
    images = [embedder.preprocess(read_image(data, at_least=least)) for data in files]
    with torch.inference_mode():
        rows = [embedder(image[None])[0] for image in images]
    return torch.stack(rows).double().numpy()


def spoken(embedder: Embedder) -> dict[str, np.ndarray]:
    """The vectors of some words; none if the model reads no text."""
    import torch

    if not embedder.reads_text:
        return {}
    with torch.inference_mode():
        return dict(zip(WORDS, embedder.encode_text(list(WORDS)).double().numpy(), strict=True))


if __name__ == "__main__":
    main()
