"""Ray: the shards of `embed`, computed on many machines. Knows nothing of what is written.

One actor for each GPU, or for each few CPU cores, holds the model; Ray Data hands it part after
part of the images and brings the vectors here, where they are written as always. An actor or a
machine that is lost costs the part it was at: Ray gives it to another.
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
from vizsla.embed.compilation import CompilingError
from vizsla.embed.compute import Compute, Sample
from vizsla.embed.inference import Engine, Shard, Source, embed_shards
from vizsla.embed.precision_check import sample_positions
from vizsla.embed.torch_runtime import Network
from vizsla.errors import ImageError, MissingExtraError, ModelError, UsageError, VizslaError

log = logging.getLogger("vizsla.embed")

WAIT = 10  # seconds for a cluster to answer
# Ray Data's threads that bring results here, by the beginnings of their names
FETCHING = ("iter_threaded", "map_tp_filling_worker", "map_tp_transforming_worker")
SETTINGS = b"\0\0\0\4\0\0\0\0\0"  # a frame of HTTP/2, an empty one
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS


@dataclass(frozen=True)
class Needs:
    """What one actor takes of its machine."""

    cpus: int
    gpus: int

    def fits(self, resources: dict[str, float]) -> int:
        """How many actors a machine holds."""
        by_cpus = int(resources.get("CPU", 0) // self.cpus)
        return min(by_cpus, int(resources.get("GPU", 0))) if self.gpus else by_cpus


@contextmanager
def connected(address: str | None = None) -> Iterator[Any]:
    """Ray, inside: the cluster at `address` (`auto`: the one that runs here), or one of this
    machine's own, on loopback. Usage statistics are off."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # or Ray would phone home
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its own notes on standard error
    try:
        loopback = address is None or _knock(address)
    except OSError as error:
        raise UsageError(f"cannot reach Ray at {address}: {error}") from error
    if loopback:  # its switch for one machine alone: all of it is on loopback
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
        said = " ".join(str(error).split())[:300]
        hint = (
            " (a cluster that asks for a token needs RAY_AUTH_MODE=token here)" if address else ""
        )
        raise UsageError(
            f"cannot reach Ray at {address or 'this machine'}: {said}{hint}"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> bool:
    """Whether the cluster there listens on loopback alone. OSError where nobody listens, or
    something else than Ray: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    host = host.strip("[]")
    if not (colon and port.isascii() and port.isdigit() and int(port) < 2**16):
        return False
    if host not in ("localhost", "127.0.0.1", "::1"):
        _greet(host, int(port))
        return False
    try:  # where Ray would look for it
        _greet(_own_address(), int(port))
    except OSError:
        _greet(host, int(port))
        return True
    return False


def _greet(host: str, port: int) -> None:
    """OSError unless an HTTP/2 server answers, as each of Ray's is."""
    with socket.create_connection((host, port), timeout=WAIT) as there:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return
        there.sendall(HELLO)
        if there.recv(len(SETTINGS), socket.MSG_WAITALL)[3:4] != SETTINGS[3:4]:
            raise OSError("something else than a Ray cluster listens there")


def _own_address() -> str:
    """By which others reach this machine. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unbound:
        unbound.connect(("192.0.2.1", 9))
        return str(unbound.getsockname()[0])


def resolve_on(
    ray: Any, *, device: str = "auto", images: int = 0, sample: Sample | None = None, **options: Any
) -> Compute:
    """`resolve_compute` for the machines of the cluster; a GPU of theirs is used where one is.

    The number of threads is this process's (OMP_NUM_THREADS), there as here.
    """
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cpu":
        return resolve_compute(device="cpu", images=images, sample=sample, **options)
    if not (device == "cuda" and gpus):
        raise UsageError(f"device={device!r}, but the cluster has {gpus} GPUs: choose cpu or cuda")
    few = _contents(sample, sample_positions(images)) if sample else None
    held = ray.put((torch.get_num_threads(), few, {**options, "images": images}))
    try:
        compute, facts = ray.get(ray.remote(num_gpus=1)(_resolved).remote(held))
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, VizslaError) else error) from None
    return replace(compute, elsewhere=facts)


def _contents(sample: Sample, positions: Sequence[int]) -> dict[int, bytes]:
    """Of those that can be read here: the other machine may not have the same folders."""
    found = {}
    for i in positions:
        with suppress(ImageError, OSError, ValueError):
            file = sample(i)
            found[i] = file if isinstance(file, bytes) else file.read_bytes()
    return found


def _resolved(
    held: tuple[int, dict[int, bytes] | None, dict[str, Any]],
) -> tuple[Compute, dict[str, Any]]:
    """On a machine with a GPU. What is held is put there once: a task itself must be small."""
    threads, few, options = held
    torch.set_num_threads(threads)
    sample = None if few is None else lambda i: few.get(i, b"")
    compute = resolve_compute(device="cuda", sample=sample, **options)
    return compute, compute.facts


def ray_engine(ray: Any) -> Engine:
    """The engine that gives the ranges to the actors of a connected Ray."""

    def engine(
        source: Source,
        network: Network,
        ranges: Sequence[range],
        progress: Callable[[int], None] | None,
    ) -> Iterator[tuple[range, Shard]]:
        if source.picture is not None or source.cache is not None:
            raise UsageError("--engine ray takes no --cache: its machines share no folder for it")
        if not ranges:
            return
        done = ranges[0].start
        # closed at once where it is broken off: what Ray still computes would outlive Ray
        with closing(_computed(ray, source, network, ranges)) as computed:
            for positions, vectors, broken in computed:
                yield positions, _shard(source, positions, vectors, broken)
                done += len(positions)
                if progress:
                    progress(done)

    return engine


def _shard(source: Source, positions: range, vectors: np.ndarray, broken: dict[str, str]) -> Shard:
    """With the attributes, which stay here."""
    ids = source.images.ids
    good = [i for i in positions if ids[i] not in broken]
    attributes = source.images.subset(good).attributes
    return Shard([ids[i] for i in good], vectors, attributes, list(broken.items()))


def _computed(
    ray: Any, source: Source, network: Network, ranges: Sequence[range]
) -> Generator[tuple[range, np.ndarray, dict[str, str]], None, None]:
    needs = _needs(network.compute)
    actors = min(_room(ray, needs), len(ranges))
    log.info("Ray: %d actors with %d CPUs, %d GPUs each", actors, needs.cpus, needs.gpus)
    plain = replace(source, images=source.images.for_worker(range(0)))
    compute, threads = network.compute, torch.get_num_threads()
    held = ray.put((plain, network.embedder.cpu(), compute, compute.facts, threads))
    rows = [
        {"start": r.start, "stop": r.stop, "images": pickle.dumps(source.images.for_worker(r))}
        for r in ranges
    ]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    _at_ease(dataset.context)
    dataset = dataset.map_batches(
        _Actor,
        fn_constructor_args=(held,),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(  # one is enough to go on with
            min_size=1, max_size=actors, initial_size=actors
        ),
        num_cpus=needs.cpus,
        num_gpus=needs.gpus,
    )
    others = set(threading.enumerate())
    stream: Any = None
    try:
        stream = iter(dataset.iter_rows())
        for row in stream:
            if row["error"]:
                kind = CompilingError if row["compiling"] else ModelError
                raise kind(row["error"])
            vectors = np.frombuffer(row["vectors"], np.float32).reshape(-1, network.embedder.dim)
            yield range(row["start"], row["stop"]), vectors, dict(json.loads(row["broken"]))
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            f"embedding on Ray ended: {lines[-1] if lines else type(error).__name__}. What is "
            "written stays: run the same command again, it goes on behind it"
        ) from error
    finally:
        if stream is not None:
            stream.close()
        for thread in set(threading.enumerate()) - others:
            if thread.name.startswith(FETCHING):  # one that asks Ray after its end would end us
                thread.join(WAIT)


def _needs(compute: Compute) -> Needs:
    """A GPU and the cores that decode for it, or the cores of a network's threads."""
    if torch.device(compute.device).type == "cuda":
        return Needs(cpus=max(1, compute.workers), gpus=1)
    return Needs(cpus=torch.get_num_threads(), gpus=0)


def _room(ray: Any, needs: Needs) -> int:
    """How many actors the cluster holds; UsageError for none, or it would wait for ever."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(needs.fits(resources) for resources in machines)
    if room == 0:
        most = max((int(resources.get("CPU", 0)) for resources in machines), default=0)
        raise UsageError(
            f"no machine of the cluster has {needs.cpus} CPUs and {needs.gpus} GPUs for an actor "
            f"(the most CPUs are {most}): set OMP_NUM_THREADS or --workers to fewer"
        )
    return room


def _at_ease(context: Any) -> None:
    """Progress is shown by us."""
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


class _Actor:
    """Holds the model on its machine; called with one part after another."""

    def __init__(self, held: Any) -> None:
        import ray

        self.source, embedder, compute, facts, threads = ray.get(held)
        torch.set_num_threads(threads)
        self.network = Network(embedder, replace(compute, elsewhere=None))
        own = self.network.compute.facts
        self.differs = "; ".join(
            f"{key} is {own.get(key)!r}, expected {facts.get(key)!r}"
            for key in sorted(own.keys() | facts.keys())
            if own.get(key) != facts.get(key)
        )

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        start, stop = int(rows["start"][0]), int(rows["stop"][0])
        row = {"start": start, "stop": stop, "vectors": b"", "broken": "{}", "error": "",
               "compiling": False}  # fmt: skip
        try:
            row |= self._computed(pickle.loads(rows["images"][0]))
        except VizslaError as error:
            row["error"] = f"{error} (on {socket.gethostname()})"
            row["compiling"] = isinstance(error, CompilingError)
        return {key: [value] for key, value in row.items()}

    def _computed(self, images: ImageSet) -> dict[str, Any]:
        if self.differs:
            raise ModelError(
                f"this machine is another one: {self.differs}. Vectors of both would not be "
                "bit-equal: give all machines the same software"
            )
        source = replace(self.source, images=images)
        (shard,) = embed_shards(source, self.network, [range(len(images))])
        return {"vectors": shard.vectors.tobytes(), "broken": json.dumps(shard.broken)}
