"""Shards of embeddings, computed by Ray on many machines. Knows nothing of what is written.

One actor per GPU, or per few CPU cores, holds the model. Ray Data sends it one range of images at a
time and returns the vectors to this process, which writes them. When an actor or a machine is lost,
Ray gives its current range to another.
"""

import json
import logging
import os
import pickle
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vizsla.data.imageset import ImageSet
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.compute import Compute, RuntimeFailed, Sample
from vizsla.embed.compute_shards import EmbeddingInput, Engine, Shard, embed_shards
from vizsla.embed.precision_check import sample_positions
from vizsla.embed.runtime import Runtime
from vizsla.errors import ImageError, MissingExtraError, ModelError, UsageError, VizslaError

log = logging.getLogger("vizsla.embed")

TIMEOUT = 10  # seconds for a cluster to answer
# prefixes of the names of Ray Data's threads that fetch results
FETCH_THREADS = ("iter_threaded", "map_tp_filling_worker", "map_tp_transforming_worker")
SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # an empty settings frame of HTTP/2
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS


@dataclass(frozen=True)
class ActorResources:
    """What one actor needs of its machine."""

    cpus: int
    gpus: int

    def fits(self, resources: dict[str, float]) -> int:
        """How many actors fit on a machine with these resources."""
        by_cpus = int(resources.get("CPU", 0) // self.cpus)
        return min(by_cpus, int(resources.get("GPU", 0))) if self.gpus else by_cpus


@contextmanager
def connected(address: str | None = None) -> Iterator[Any]:
    """Context: Ray, connected to the cluster at `address` (`auto`: the one on this machine), or to
    a new one on this machine that listens on loopback. Usage statistics are off."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # otherwise Ray sends them
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # no messages on standard error
    try:
        loopback = address is None or _is_on_loopback(address)
    except OSError as error:
        raise UsageError(f"cannot reach Ray at {address}: {error}") from error
    if loopback:  # Ray's switch for one machine: every part of it listens on loopback
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("--engine ray", "ray") from error
    if ray.is_initialized():
        yield ray
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    here: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            **({} if address else here),
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        hint = " (a cluster with a token needs RAY_AUTH_MODE=token here)" if address else ""
        raise UsageError(
            f"cannot reach Ray at {address or 'this machine'}: {reason}{hint}"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _is_on_loopback(address: str) -> bool:
    """Whether the cluster there listens only on loopback. OSError if nothing listens, or
    something other than Ray: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    host = host.strip("[]")
    if not (colon and port.isascii() and port.isdigit() and int(port) < 2**16):
        return False
    if host not in ("localhost", "127.0.0.1", "::1"):
        _require_http2(host, int(port))
        return False
    try:  # the address that Ray would use
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unbound:
            unbound.connect(("192.0.2.1", 9))  # finds this machine's address; sends nothing
            this_machine = str(unbound.getsockname()[0])
        _require_http2(this_machine, int(port))
    except OSError:
        _require_http2(host, int(port))
        return True
    return False


def _require_http2(host: str, port: int) -> None:
    """OSError unless an HTTP/2 server answers, as Ray's servers do."""
    with socket.create_connection((host, port), timeout=TIMEOUT) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return
        connection.sendall(PREFACE)
        if connection.recv(len(SETTINGS), socket.MSG_WAITALL)[3:4] != SETTINGS[3:4]:
            raise OSError("what listens there is not a Ray cluster")


def resolve_compute_on(
    ray: Any, *, device: str = "auto", images: int = 0, sample: Sample | None = None, **options: Any
) -> Compute:
    """`resolve_compute` for the machines of the cluster; `auto` uses their GPUs if there are any.

    Each machine uses as many threads as this process (OMP_NUM_THREADS).
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cpu":
        return resolve_compute(device="cpu", images=images, sample=sample, **options)
    if not (device == "cuda" and gpus):
        raise UsageError(f"device={device!r}, but the cluster has {gpus} GPUs: choose cpu or cuda")
    contents = _contents(sample, sample_positions(images)) if sample else None
    shared = ray.put((torch.get_num_threads(), contents, {**options, "images": images}))
    try:
        compute, facts = ray.get(ray.remote(num_gpus=1)(_resolve_on_worker).remote(shared))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, VizslaError) else error) from None
    return replace(compute, remote_facts=facts)


def _contents(sample: Sample, positions: Sequence[int]) -> dict[int, bytes]:
    """The files that can be read here; another machine may not have these folders."""
    found = {}
    for i in positions:
        with suppress(ImageError, OSError, ValueError):
            file = sample(i)
            found[i] = file if isinstance(file, bytes) else file.read_bytes()
    return found


def _resolve_on_worker(
    shared: tuple[int, dict[int, bytes] | None, dict[str, Any]],
) -> tuple[Compute, dict[str, Any]]:
    """Runs on a machine with a GPU. Takes one shared object, since tasks must be small."""
    threads, contents, options = shared
    torch.set_num_threads(threads)
    sample = None if contents is None else lambda i: contents.get(i, b"")
    compute = resolve_compute(device="cuda", sample=sample, **options)
    return compute, compute.facts


def ray_engine(ray: Any) -> Engine:
    """The engine that computes each range on an actor of a connected Ray."""

    def engine(
        source: EmbeddingInput,
        runtime: Runtime,
        ranges: Sequence[range],
        progress: Callable[[int], None] | None,
    ) -> Iterator[tuple[range, Shard]]:
        if source.picture is not None or source.cache is not None:
            raise UsageError("--engine ray takes no --cache: the machines share no folder")
        if not ranges:
            return
        done = ranges[0].start
        # closed at once when the caller stops early, before Ray itself ends
        with closing(_computed(ray, source, runtime, ranges)) as computed:
            for positions, vectors, broken in computed:
                ids = source.images.ids
                good = [i for i in positions if ids[i] not in broken]
                attributes = source.images.subset(good).attributes
                shard = Shard([ids[i] for i in good], vectors, attributes, list(broken.items()))
                yield positions, shard
                done += len(positions)
                if progress:
                    progress(done)

    return engine


def _computed(
    ray: Any, source: EmbeddingInput, runtime: Runtime, ranges: Sequence[range]
) -> Generator[tuple[range, np.ndarray, dict[str, str]], None, None]:
    """(positions, vectors (n, D), id → reason of broken images) of each range, in any order."""
    compute, threads = runtime.compute, torch.get_num_threads()
    if torch.device(compute.device).type == "cuda":  # and the cores that decode for it
        needed = ActorResources(cpus=max(1, compute.workers), gpus=1)
    else:
        needed = ActorResources(cpus=threads, gpus=0)
    actors = min(_max_actors(ray, needed), len(ranges))
    log.info("Ray: %d actors with %d CPUs, %d GPUs each", actors, needed.cpus, needed.gpus)
    without_images = replace(source, images=source.images.for_worker(range(0)))
    shared = ray.put((without_images, runtime.embedder.cpu(), compute, compute.facts, threads))
    rows = [
        {"start": r.start, "stop": r.stop, "images": pickle.dumps(source.images.for_worker(r))}
        for r in ranges
    ]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.context.enable_progress_bars = False  # ours are shown instead
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = dataset.map_batches(
        _Actor,
        fn_constructor_args=(shared,),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(  # one actor is enough to start
            min_size=1, max_size=actors, initial_size=actors
        ),
        num_cpus=needed.cpus,
        num_gpus=needed.gpus,
    )
    others = set(threading.enumerate())
    stream: Any = None
    try:
        stream = iter(dataset.iter_rows())
        for row in stream:
            if row["error"]:
                kind = RuntimeFailed if row["runtime_failed"] else ModelError
                raise kind(row["error"])
            width = source.vectors_each * runtime.embedder.dim
            vectors = np.frombuffer(row["vectors"], np.float32).reshape(-1, width)
            yield range(row["start"], row["stop"]), vectors, dict(json.loads(row["broken"]))
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            f"embedding on Ray ended: {lines[-1] if lines else type(error).__name__}. What is "
            "written is kept: run the same command again to continue"
        ) from error
    finally:
        if stream is not None:
            stream.close()
        for thread in set(threading.enumerate()) - others:
            if thread.name.startswith(FETCH_THREADS):  # it would crash if it called Ray later
                thread.join(TIMEOUT)


def _max_actors(ray: Any, needed: ActorResources) -> int:
    """How many actors fit in the cluster; UsageError for none, since Ray would wait forever."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    actors = sum(needed.fits(resources) for resources in machines)
    if actors == 0:
        most = max((int(resources.get("CPU", 0)) for resources in machines), default=0)
        raise UsageError(
            f"no machine of the cluster has {needed.cpus} CPUs and {needed.gpus} GPUs for an actor "
            f"(at most {most} CPUs): set OMP_NUM_THREADS or --workers to fewer"
        )
    return actors


class _Actor:
    """Holds the model on its machine; is called with one range of images at a time."""

    def __init__(self, shared: Any) -> None:
        import ray

        self.source, embedder, compute, expected, threads = ray.get(shared)
        torch.set_num_threads(threads)
        self.runtime = Runtime(embedder, replace(compute, remote_facts=None))
        self.lacking: RuntimeFailed | None = (
            None  # raised when called: if raised here, Ray would restart it
        )
        try:
            facts = self.runtime.compute.facts
        except RuntimeFailed as error:
            self.lacking, facts = error, expected
        self.differs = "; ".join(
            f"{key} is {facts.get(key)!r}, expected {expected.get(key)!r}"
            for key in sorted(facts.keys() | expected.keys())
            if facts.get(key) != expected.get(key)
        )

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        start, stop = int(rows["start"][0]), int(rows["stop"][0])
        row = {"start": start, "stop": stop, "vectors": b"", "broken": "{}", "error": "",
               "runtime_failed": False}  # fmt: skip
        try:
            row |= self._computed(pickle.loads(rows["images"][0]))
        except VizslaError as error:
            row["error"] = f"{error} (on {socket.gethostname()})"
            row["runtime_failed"] = isinstance(error, RuntimeFailed)
        return {key: [value] for key, value in row.items()}

    def _computed(self, images: ImageSet) -> dict[str, Any]:
        if self.lacking is not None:
            raise self.lacking
        if self.differs:
            raise ModelError(
                f"this machine differs: {self.differs}. Its vectors would not be bit-equal: "
                "install the same software on all machines"
            )
        source = replace(self.source, images=images)
        (shard,) = embed_shards(source, self.runtime, [range(len(images))])
        return {"vectors": shard.vectors.tobytes(), "broken": json.dumps(shard.broken)}
