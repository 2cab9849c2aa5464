"""What the search server bears: its speed, and answers while the index is replaced under load.

    python benchmarks/serve_load.py                        # speed: 100,000 images, 1 and 8 clients
    python benchmarks/serve_load.py --replace 3 --clients 32 --images 5000   # 60 s, 3 replacements

The gallery is made up: random unit vectors, clustered, under the ids of files that do not exist;
the model is MobileNetV2 (random weights unless --weights names a file). Clients post JPEGs, ids and
mixtures. With --replace every answer is held against an exact oracle that is computed here, in
float64, for each state of the index; the index must then be exact. Needs the extra `web`.
"""

import argparse
import contextlib
import http.client
import io
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vizsla.model.embedder import Embedder
from vizsla.model.embeddings import Embeddings
from vizsla.search.index import build_index
from vizsla.web.serve_gallery import version_of

SERVER = """
import sys
from pathlib import Path
from vizsla.web.serve import Source, serve
source = Source(Path(sys.argv[1]), model=sys.argv[2], images=Path(sys.argv[3]),
                precision=sys.argv[4])
serve(source, port=0, per_minute=0, started=lambda about: print(about.url, flush=True))
"""
K = 10
Nearest = list[tuple[str, float]]  # (id, score), the best first


class Gallery:
    """Made-up vectors, the index in `folder`, and what each query's nearest images are."""

    def __init__(self, folder: Path, embedder: Embedder, n: int, kind: str) -> None:
        self.folder, self.kind, self.model_id = folder, kind, embedder.model_id
        self.dim, self.n = embedder.dim, n
        self.queries: list[bytes] = []
        self.vectors = np.empty((0, self.dim))
        self.right: dict[str, list[Nearest]] = {}  # version → for each query
        self.pending: list[Nearest] = []

    def prepare(self, seed: int, *, remember: bool) -> tuple[Embeddings, list[Nearest]]:
        """The vectors of one state, and for each query its nearest images, the best first."""
        ids, vectors = made_up(self.n, self.dim, seed)
        labels = [f"class {i % 20}" for i in range(self.n)]
        embeddings = Embeddings.from_arrays(vectors, ids, labels, model_id=self.model_id)
        nearest = []
        for query in self.vectors if remember else []:
            scores = embeddings.vectors.astype(np.float64) @ query
            order = np.argsort(-scores, kind="stable")[: K + 1]
            nearest.append([(ids[i], float(scores[i])) for i in order])
        return embeddings, nearest

    def build(self, embeddings: Embeddings, nearest: list[Nearest]) -> None:
        """A new index in the place of the one before."""
        self.pending = nearest
        build_index(embeddings, self.folder, kind=self.kind)
        self.right[version_of(self.folder)] = nearest


def made_up(n: int, dim: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Clustered as real vectors are: about 1,000 classes, some spread, no negative numbers."""
    dice = np.random.default_rng(seed)
    centres = np.abs(dice.normal(size=(1000, dim))).astype(np.float32)
    vectors = np.empty((n, dim), np.float32)
    for start in range(0, n, 4096):
        part = slice(start, min(start + 4096, n))
        size = part.stop - part.start
        noise = np.abs(dice.normal(size=(size, dim))).astype(np.float32)
        vectors[part] = centres[dice.integers(1000, size=size)] + 0.8 * noise
    return [f"image_{seed}_{i:06d}.jpg" for i in range(n)], vectors


def photos(n: int, seed: int = 0) -> list[bytes]:
    """JPEGs of about 20 kB, 320 × 240."""
    dice = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        small = Image.fromarray(dice.integers(0, 255, (24, 32, 3), np.uint8))
        file = io.BytesIO()
        small.resize((320, 240), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


@contextlib.contextmanager
def server(
    gallery: Gallery, model: Path, images: Path, precision: str = "auto"
) -> Iterator[tuple[Any, int]]:
    """(process, port), warm."""
    command = [sys.executable, "-c", SERVER, str(gallery.folder), str(model), str(images)]
    process = subprocess.Popen([*command, precision], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        while get(port, "/healthz")[0] != 200:
            time.sleep(0.2)
        yield process, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read()


class Clients:
    """Each posts one query after the other over one connection."""

    def __init__(self, gallery: Gallery, port: int) -> None:
        self.gallery, self.port = gallery, port
        self.seconds: list[float] = []
        self.statuses: dict[int, int] = {}
        self.wrong: list[str] = []
        self.by_version: dict[str, int] = {}
        self.broken = 0
        self.stop = threading.Event()

    def run(self, clients: int, seconds: float, during: Any = None) -> None:
        threads = [threading.Thread(target=self.client, args=(n,)) for n in range(clients)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        if during is not None:
            during()
        time.sleep(max(0.0, seconds - (time.monotonic() - started)))
        self.stop.set()
        for thread in threads:
            thread.join()

    def client(self, number: int) -> None:
        draw = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while not self.stop.is_set():
            i = draw.randrange(len(self.gallery.queries))
            # one byte behind the end makes it another file: nothing is answered from memory
            data = self.gallery.queries[i] + draw.randbytes(8)
            started = time.perf_counter()
            try:
                connection.request(
                    "POST", f"/v1/search?k={K}", data, {"Content-Type": "image/jpeg"}
                )
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException):
                self.broken += 1
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                continue
            self.seconds.append(time.perf_counter() - started)
            self.statuses[response.status] = self.statuses.get(response.status, 0) + 1
            if response.status == 200:
                self.check(i, json.loads(body))

    def check(self, i: int, answer: dict[str, Any]) -> None:
        version = answer["index"]
        self.by_version[version] = self.by_version.get(version, 0) + 1
        nearest = self.gallery.right.get(version)
        if nearest is None:  # built, but not written down here yet
            nearest = self.gallery.pending
        if not nearest:
            return
        found = [(one["id"], one["score"]) for one in answer["results"]]
        if len(found) != K:
            self.wrong.append(f"{version}: {len(found)} results")
        for (name, score), (right, best) in zip(found, nearest[i], strict=False):
            near = abs(score - best) < 2e-5  # the server's vector is float32, of another batch
            if not near or (name != right and not tied(nearest[i], name, score)):
                self.wrong.append(f"{version}: {name} {score}, expected {right} {best}")
                return


def tied(nearest: Any, name: str, score: float) -> bool:
    """Two images that score within rounding of each other may stand either way round."""
    return any(one == name and abs(best - score) < 2e-5 for one, best in nearest)


def percentile(seconds: list[float], share: float) -> float:
    ordered = sorted(seconds)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)


def resident(pid: int) -> float:
    """MiB of memory that a process holds (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def speed(gallery: Gallery, port: int, clients: int, seconds: float) -> dict[str, Any]:
    measured = Clients(gallery, port)
    measured.run(clients, seconds)
    return {
        "clients": clients,
        "requests": len(measured.seconds),
        "requests_per_second": round(len(measured.seconds) / seconds, 1),
        "p50_ms": percentile(measured.seconds, 0.5),
        "p99_ms": percentile(measured.seconds, 0.99),
        "statuses": measured.statuses,
        "broken": measured.broken,
    }


def replaced(
    gallery: Gallery, process: Any, port: int, *, times: int, clients: int, seconds: float
) -> dict[str, Any]:
    measured = Clients(gallery, port)
    before = resident(process.pid)
    states = [gallery.prepare(number, remember=True) for number in range(1, times + 1)]

    def replace() -> None:
        for state in states:
            time.sleep(seconds / (times + 2))
            gallery.build(*state)

    measured.run(clients, seconds, replace)
    return {
        "clients": clients,
        "seconds": seconds,
        "requests": len(measured.seconds),
        "requests_per_second": round(len(measured.seconds) / seconds, 1),
        "p50_ms": percentile(measured.seconds, 0.5),
        "p99_ms": percentile(measured.seconds, 0.99),
        "statuses": measured.statuses,
        "broken": measured.broken,
        "wrong": len(measured.wrong),
        "first_wrong": measured.wrong[:3],
        "answers_by_index": measured.by_version,
        "memory_mib": [round(before), round(resident(process.pid))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--kind", default="exact", help="of the index")
    parser.add_argument("--seconds", type=float, help="[default: 20; 60 with --replace]")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--replace", type=int, default=0, help="replace the index this often")
    parser.add_argument("--weights", default="random")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        embedder = Embedder.build("mobilenetv2", weights=options.weights, pooling="gap")
        embedder.save(folder / "embedder")
        (folder / "images").mkdir()
        gallery = Gallery(folder / "index", embedder, options.images, options.kind)
        gallery.queries = photos(40)
        gallery.vectors = embedded(embedder, gallery.queries)
        started = time.monotonic()
        gallery.build(*gallery.prepare(0, remember=options.replace > 0))
        print(json.dumps({"built_s": round(time.monotonic() - started, 1)}), flush=True)
        # the oracle computes in fp32: bf16 moves a score by some 1e-4
        precision = "fp32" if options.replace else "auto"
        with server(gallery, folder / "embedder", folder / "images", precision) as (process, port):
            speed(gallery, port, 2, 3)  # to warm up
            if options.replace:
                found = replaced(
                    gallery, process, port, times=options.replace, clients=options.clients[-1],
                    seconds=options.seconds or 60.0,
                )  # fmt: skip
                print(json.dumps(found, indent=1), flush=True)
            else:
                for clients in options.clients:
                    print(
                        json.dumps(speed(gallery, port, clients, options.seconds or 20.0)),
                        flush=True,
                    )


def embedded(embedder: Embedder, files: list[bytes]) -> np.ndarray:
    """(n, D) float64, by the model itself, one picture at a time."""
    import torch

    from vizsla.data.images import read_image

    with torch.inference_mode():
        rows = [embedder(embedder.preprocess(read_image(data))[None])[0] for data in files]
    return torch.stack(rows).double().numpy()


if __name__ == "__main__":
    main()
