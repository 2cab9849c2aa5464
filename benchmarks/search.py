"""Every kind of index beside plain FAISS and scikit-learn: queries/s, recall, build, memory, disk.

    python benchmarks/search_data.py clustered VECTORS --size 100000
    python benchmarks/search.py run VECTORS --set clustered --size 100000            # all kinds
    python benchmarks/search.py run VECTORS --set clustered --size 100000 --kind hnsw
    python benchmarks/search.py table VECTORS                                        # as Markdown
    python benchmarks/search.py groups VECTORS --set clustered --size 100000         # --group-by

Every kind runs in a process of its own and appends a line to VECTORS/results.jsonl. Within one,
the contestants take turns, so that what else the machine does meets all of them. Memory is what a
search holds beside the vectors' file, which every contestant maps. `--step N` builds a graph in
parts of N vectors, each in a later call, for a machine that is not free for long.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

KINDS = ["exact", "hnsw", "ivf", "ivfsq8", "ivfpq"]
K, ROUNDS, EXACT_QUERIES = 10, 3, 300
Search = Callable[[np.ndarray], np.ndarray]  # queries → positions (Q, K)


class Peak:
    """Most anonymous memory (MB) in a block, beyond what was there at its begin."""

    def __enter__(self) -> "Peak":
        self.before = self.most = anonymous()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.02):
            self.most = max(self.most, anonymous())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.mb = (max(self.most, anonymous()) - self.before) / 1e6


def anonymous() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def embeddings(vectors: np.ndarray, prefix: str = "g"):
    import pyarrow as pa

    from vizsla.embed.embeddings import Embeddings

    return Embeddings([f"{prefix}{i}" for i in range(len(vectors))], vectors, pa.table({}), "m")


def truth_of(folder: Path, name: str, gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(Q, K) float64 exact scores, made once."""
    from vizsla.search import exact

    path = folder / f"{name}-truth.npy"
    if not path.exists():
        np.save(path, exact.top_k(queries, gallery, K)[1])
    return np.load(path)


def recall(queries: np.ndarray, gallery: np.ndarray, found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the K nearest that was found; what scores as the K-th does counts."""
    from vizsla.search import exact

    scores = exact.rescored(queries, gallery, np.asarray(found[:, :K], np.int64))
    return float((scores >= truth[: len(queries), K - 1 : K]).mean())


def contest(contestants: dict[str, Search], queries: np.ndarray, sizes: dict[str, int]) -> dict:
    """Queries/s (median of the rounds), processor ms a query, ms of a single one; in turns."""
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    single: dict[str, list[float]] = {name: [] for name in contestants}
    memory: dict[str, float] = {}
    for turn in range(ROUNDS):
        for name, search in contestants.items():
            batch = queries[: sizes.get(name, len(queries))]
            with Peak() as peak:
                clock, cpu = time.perf_counter(), time.process_time()
                search(batch)
                wall[name].append(len(batch) / (time.perf_counter() - clock))
                spent[name].append((time.process_time() - cpu) / len(batch) * 1e3)
            memory[name] = max(memory.get(name, 0.0), peak.mb)
            for query in queries[turn * 10 : turn * 10 + 10]:
                clock = time.perf_counter()
                search(query[None])
                single[name].append((time.perf_counter() - clock) * 1e3)
    return {
        name: {
            "queries_per_second": round(statistics.median(wall[name]), 1),
            "cpu_ms_per_query": round(statistics.median(spent[name]), 3),
            "single_ms": round(statistics.median(single[name]), 2),
            "searching_mb": round(memory[name]),
        }
        for name in contestants
    }


# ── the contestants ──────────────────────────────────────────────────────────────────────────────


def exact_ones(gallery: np.ndarray) -> dict[str, Search]:
    import faiss
    from sklearn.neighbors import NearestNeighbors

    from vizsla.search import exact

    brute = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(gallery)
    inner = faiss.METRIC_INNER_PRODUCT
    return {
        "exact": lambda q: exact.top_k(q, gallery, K)[0],
        "exact fp32": lambda q: exact.top_k(q, gallery, K, precision="fp32")[0],
        "faiss.knn": lambda q: faiss.knn(q, gallery, K, metric=inner)[1],
        "scikit-learn brute": lambda q: brute.kneighbors(q, return_distance=False),
    }


def plain_faiss(kind: str, gallery: np.ndarray, effort: int, cells: int | None):
    """The same method in FAISS only, without a second pass, at the same effort."""
    import faiss

    dim = gallery.shape[1]
    inner = faiss.METRIC_INNER_PRODUCT
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, 32, inner)
        index.hnsw.efConstruction = 80
        options = faiss.SearchParametersHNSW(efSearch=effort)
    else:
        code = {"ivf": "Flat", "ivfsq8": "SQ8", "ivfpq": "PQ64"}[kind]
        index = faiss.index_factory(dim, f"IVF{cells},{code}", inner)
        index.cp.niter, index.cp.max_points_per_centroid = 10, 64
        index.train(gallery[:: max(1, len(gallery) // (64 * cells))])
        options = faiss.SearchParametersIVF(nprobe=effort)
    for start in range(0, len(gallery), 65_536):
        index.add(np.ascontiguousarray(gallery[start : start + 65_536]))
    return index, lambda q: index.search(q, K, params=options)[1]


# ── one kind ─────────────────────────────────────────────────────────────────────────────────────


def run_kind(folder: Path, name: str, kind: str, *, step: int, plain: bool) -> None:
    gallery = np.load(folder / f"{name}.npy", mmap_mode="c")
    queries = np.load(folder / f"{name}-queries.npy")
    truth = truth_of(folder, name, gallery, queries)
    about = {"set": name, "kind": kind, "n": len(gallery), "machine": machine()}
    if kind == "exact":
        found = contest(exact_ones(gallery), queries[:EXACT_QUERIES], {})
        for contestant, search in exact_ones(gallery).items():
            found[contestant]["recall"] = recall(
                queries[:EXACT_QUERIES], gallery, search(queries[:EXACT_QUERIES]), truth
            )
        report(folder, {**about, "results": found})
        return
    place = folder / f"index-{name}-{kind}"
    index = build(place, gallery, kind, step, np.load(folder / f"{name}-sample.npy"))
    if index is None:
        return
    timing = json.loads((place.parent / f"{place.name}.json").read_text())
    structure = index.about()
    from vizsla.search import exact

    contestants: dict[str, Search] = {
        kind: lambda q: index.search(q, K, model_id="m").positions,
        "exact": lambda q: exact.top_k(q, gallery, K)[0],
    }
    contestants[kind](queries[:1])  # reads the structure
    own = {"build_s": timing["build_s"], "structure_mb": round(structure["structure_bytes"] / 1e6),
           "disk_mb": round(structure["bytes"] / 1e6), "effort": structure["effort"],
           "own_recall": structure["recall"]}  # fmt: skip
    other: dict[str, object] = {}
    if plain:
        effort = structure["effort"]
        cells = index.view.structure.cells
        started = time.perf_counter()
        library, contestants[f"faiss {kind}"] = plain_faiss(kind, gallery, effort, cells)
        other = {"build_s": round(time.perf_counter() - started, 1), "effort": effort}
        import faiss

        other["disk_mb"] = other["structure_mb"] = round(len(faiss.serialize_index(library)) / 1e6)
    found = contest(contestants, queries, {"exact": EXACT_QUERIES})
    for contestant, search in contestants.items():
        batch = queries[:EXACT_QUERIES] if contestant == "exact" else queries
        found[contestant]["recall"] = recall(batch, gallery, search(batch), truth)
    found[kind] |= own
    if plain:
        found[f"faiss {kind}"] |= other
    found[kind]["times_exact"] = round(
        found[kind]["queries_per_second"] / found["exact"]["queries_per_second"], 1
    )
    found[kind]["adding"] = adding(index, gallery, timing["build_s"])
    report(folder, {**about, "results": found})


def build(place: Path, gallery: np.ndarray, kind: str, step: int, sample: np.ndarray):
    """The finished index, or None if a later call continues to build it."""
    from vizsla.search.index import build_index, open_index

    kept = place.parent / f"{place.name}.json"
    size = min(step, len(gallery)) if step else len(gallery)
    if kept.exists():
        index, timing = open_index(place), json.loads(kept.read_text())
        if len(index) < len(gallery):
            more = gallery[len(index) : len(index) + step]
            named = [f"g{i}" for i in range(len(index), len(index) + len(more))]
            started = time.perf_counter()
            made = embeddings(more)
            made.ids[:] = named
            index.add(made)
            timing["build_s"] = round(timing["build_s"] + time.perf_counter() - started, 1)
    else:
        started = time.perf_counter()
        index = build_index(embeddings(gallery[:size]), place, kind=kind, sample=sample)
        timing = {"build_s": round(time.perf_counter() - started, 1)}
    kept.write_text(json.dumps(timing))
    if len(index) < len(gallery):
        print(f"{place.name}: {len(index)} of {len(gallery)}, {timing['build_s']} s", flush=True)
        return None
    if step:  # the effort was chosen for the first part
        index.measure()
    return index


def adding(index, gallery: np.ndarray, build_s: float) -> dict:
    """Twice 1 % more: the first is only appended, the second goes into the structure."""
    rng = np.random.default_rng(5)
    n = len(gallery) // 100
    measured = {}
    for i, what in enumerate(("append_s", "append_and_insert_s")):
        rows = gallery[rng.choice(len(gallery), n, replace=False)]
        rows = rows + 0.02 * rng.standard_normal(rows.shape).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        more = embeddings(rows, f"more{i}-")
        started = time.perf_counter()
        index.add(more)
        measured[what] = round(time.perf_counter() - started, 2)
    both = measured["append_s"] + measured["append_and_insert_s"]
    measured["share_of_build_per_1_percent"] = round(both / 2 / build_s, 4)
    measured["recall_after"] = index.about()["recall"]
    return measured


def groups(folder: Path, name: str, kinds: list[str]) -> None:
    """Single queries of an index of products with five images each, plain and by product, in turns.

    The images of a product are one vector of the set with noise; queries are the set's own.
    """
    import pyarrow as pa

    from vizsla.embed.embeddings import Embeddings
    from vizsla.search.index import build_index

    rng = np.random.default_rng(6)
    rows = np.repeat(np.load(folder / f"{name}.npy", mmap_mode="c")[::5], 5, axis=0)
    rows += (0.5 / rows.shape[1] ** 0.5) * rng.standard_normal(rows.shape, np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    products = pa.table({"product": [f"P{i // 5}" for i in range(len(rows))]})
    images = Embeddings([f"g{i}" for i in range(len(rows))], rows, products, "m")
    queries = np.load(folder / f"{name}-queries.npy")[:200]
    for kind in kinds:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            index = build_index(images, place, kind=kind)
            times: dict[str, list[float]] = {"plain": [], "by product": []}
            for query in [*queries[:20], *queries]:  # the first ones warm up
                for what, column in zip(times, (None, "product"), strict=True):
                    clock = time.perf_counter()
                    index.search(query[None], K, group_by=column, model_id="m")
                    times[what].append((time.perf_counter() - clock) * 1e3)
            p50 = {what: statistics.median(each[20:]) for what, each in times.items()}
            ratio = p50["by product"] / p50["plain"]
            report(folder, {"groups": name, "kind": kind, "n": len(rows), "machine": machine(),
                            "p50_ms": {what: round(v, 3) for what, v in p50.items()},
                            "ratio": round(ratio, 3)})  # fmt: skip


def machine() -> str:
    import faiss
    import torch

    return (
        f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, "
        f"faiss {faiss.__version__}, load {os.getloadavg()[0]:.0f}"
    )


def report(folder: Path, line: dict) -> None:
    with (folder / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line, indent=1), flush=True)


def table(folder: Path) -> None:
    """The last run of each kind on each set."""
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "set" in line]
    last = {(line["set"], line["kind"]): line for line in lines}
    columns = ["recall", "queries_per_second", "cpu_ms_per_query", "single_ms", "build_s",
               "structure_mb", "searching_mb", "disk_mb", "effort"]  # fmt: skip
    print("| set | | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for (name, _), line in sorted(last.items()):
        for contestant, values in line["results"].items():
            shown = [values.get(column) for column in columns]
            cells = ["" if v is None else f"{v:.4f}" if c == "recall" else str(v)
                     for c, v in zip(columns, shown, strict=True)]  # fmt: skip
            print(f"| {name} | {contestant} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "table", "groups"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", default="clustered", choices=["clustered", "real"])
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--step", type=int, default=0)
    parser.add_argument(
        "--no-plain", action="store_true", help="do not measure plain FAISS as well"
    )
    given = parser.parse_args()
    if given.what == "table":
        table(given.folder)
        return
    name = f"{given.set}-{given.size}"
    if given.what == "groups":
        groups(given.folder, name, [given.kind] if given.kind else ["exact", "hnsw"])
        return
    if given.kind:
        run_kind(given.folder, name, given.kind, step=given.step, plain=not given.no_plain)
        return
    for kind in KINDS:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--kind", kind], check=True)


if __name__ == "__main__":
    main()
