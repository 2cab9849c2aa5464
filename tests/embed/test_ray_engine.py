"""Embedding on Ray writes what embedding here writes, byte for byte, whatever is lost meanwhile.

Most need a cluster of several processes and are slow; one runs always.
"""

import importlib.util
import os
import pickle
import socket
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vizsla.data.imageset import ImageSet
from vizsla.data.preprocess import Preprocess
from vizsla.data.remote import image_set_from_url
from vizsla.data.webdataset import image_set_from_tars
from vizsla.embed import ray_engine as ray_module
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.compute import Compute, RuntimeFailed
from vizsla.embed.compute_shards import EmbeddingInput
from vizsla.embed.embeddings import Embeddings
from vizsla.embed.inference import embed
from vizsla.embed.ray_engine import _Actor, _contents, connected, ray_engine, resolve_compute_on
from vizsla.errors import DataError, MissingExtraError, ModelError, UsageError
from vizsla.model.embedder import Embedder

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(300),
]
SHARD = 4  # images
IMAGES = 40


class Patches(nn.Module):
    """(B, 3, H, W) → (B, 48): the mean colour of each cell of a 4 × 4 grid. Slow, and counts.

    notes: a file that gets a line for each batch.
    """

    def __init__(self, notes: str | None = None, seconds: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.notes, self.seconds = notes, seconds

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        if self.notes:
            with Path(self.notes).open("a") as file:
                file.write(f"{os.getpid()} {float(images.sum()):.6f}\n")
        return (nn.functional.adaptive_avg_pool2d(images, 4) * self.scale).flatten(1)


def embedder(notes: Path | None = None, seconds: float = 0.0) -> Embedder:
    preprocess = Preprocess(size=(16, 16), resize=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    made = Embedder.from_module(Patches(), preprocess, name="patches")
    module: Any = made.backbone.network
    module.notes, module.seconds = notes and str(notes), seconds  # not while it is made
    return made


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("photos")
    for i in range(IMAGES):
        pixels = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    (folder / "07.png").write_bytes(b"broken")
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name[0] != "."}


def embed_here(images: ImageSet, out: Path) -> dict[str, bytes]:
    compute = resolve_compute(device="cpu", batch_size=2)
    embed(images, embedder(), out, compute=compute, shard_images=SHARD)
    return files(out)


def embed_there(
    ray: Any, images: ImageSet, out: Path, made: Embedder | None = None, **more: Any
) -> Embeddings:
    from ray import cloudpickle  # not before `connected`, which decides where Ray listens

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    return embed(
        images, made or embedder(), out, compute=resolve_compute_on(ray, batch_size=2),
        shard_images=SHARD, engine=ray_engine(ray), **more,
    )  # fmt: skip


def listening(pids: set[int]) -> list[str]:
    """Addresses that these processes accept connections at."""
    import psutil

    found = []
    for pid in pids:
        try:
            connections = psutil.Process(pid).net_connections(kind="inet")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        found += [c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN]
    return found


@pytest.mark.slow  # a cluster takes its time to start
def test_the_same_files_as_here(photos: Path, tmp_path: Path) -> None:
    import psutil

    images = ImageSet.from_folder(photos).subset(range(12))
    whole = embed_here(images, tmp_path / "here")
    with connected() as ray:
        children = {p.pid for p in psutil.Process().children(recursive=True)}
        assert set(listening(children)) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        embed_there(ray, images, tmp_path / "there")
    assert files(tmp_path / "there") == whole


@pytest.mark.slow
def test_either_engine_goes_on_where_the_other_stopped(photos: Path, tmp_path: Path) -> None:
    images = ImageSet.from_folder(photos)
    whole = embed_here(images, tmp_path / "here")

    def interrupt(done: int, total: int) -> None:
        if done >= 14:
            raise KeyboardInterrupt

    with connected() as ray:
        with pytest.raises(KeyboardInterrupt):
            embed(
                images, embedder(), tmp_path / "a", shard_images=SHARD, progress=interrupt,
                compute=resolve_compute(device="cpu", batch_size=2),
            )  # fmt: skip
        assert 0 < len(files(tmp_path / "a")) < len(whole)
        embed_there(ray, images, tmp_path / "a")
        assert files(tmp_path / "a") == whole

        with pytest.raises(KeyboardInterrupt):
            embed_there(ray, images, tmp_path / "b", progress=interrupt)
        assert 0 < len(files(tmp_path / "b")) < len(whole)
    assert embed_here(images, tmp_path / "b") == whole


@pytest.mark.slow
def test_tar_files_too(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "tars" / "x.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for name in ("03.png", "07.png", "09.png"):
            archive.add(photos / name, name)
    tars = image_set_from_tars(str(path))
    with connected() as ray:
        assert embed_there(ray, tars, tmp_path / "there").broken[0][0] == "x/07.png"
    assert files(tmp_path / "there") == embed_here(tars, tmp_path / "here")


@pytest.mark.slow
def test_a_lost_machine_costs_its_shard(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines of one core each, one of them killed in the middle."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # all of it on loopback
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    images = ImageSet.from_folder(photos)
    whole = embed_here(images, tmp_path / "here")
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0})
    try:
        machines = [cluster.add_node(**node) for _ in range(2)]
        notes = tmp_path / "notes"

        killed: list[Any] = []
        done = threading.Event()

        def kill() -> None:
            """The machine that has just worked, after the third batch."""
            while not killed and not done.wait(0.1):
                lines = notes.read_text().splitlines() if notes.exists() else []
                if len(lines) >= 3:
                    machine = _machine_of(int(lines[-1].split()[0]), machines)
                    cluster.remove_node(machine, allow_graceful=False)
                    killed.append(machine)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            with connected(cluster.address) as ray:
                embed_there(ray, images, tmp_path / "there", embedder(notes, seconds=0.5))
        finally:
            done.set()
            killer.join()
        assert killed
    finally:
        cluster.shutdown()
    assert files(tmp_path / "there") == whole
    lines = notes.read_text().splitlines()
    sums = [line.split()[1] for line in lines]
    again = len(sums) - len(set(sums))
    print(f"{len(set(sums))} batches, {again} of them twice; {len(_pids(notes))} actors")
    assert len(set(sums)) == IMAGES // 2
    assert again <= SHARD // 2  # batches of one shard


def _machine_of(pid: int, machines: list[Any]) -> Any:
    """The one whose raylet started this worker."""
    import psutil

    raylets = {machine.all_processes["raylet"][0].process.pid: machine for machine in machines}
    return next(raylets[p.pid] for p in psutil.Process(pid).parents() if p.pid in raylets)


def _pids(notes: Path) -> set[str]:
    return {line.split()[0] for line in notes.read_text().splitlines()}


@pytest.mark.slow
def test_killed_actors_are_replaced(photos: Path, tmp_path: Path) -> None:
    import signal

    images = ImageSet.from_folder(photos)
    whole = embed_here(images, tmp_path / "here")
    notes = tmp_path / "notes"
    stop = threading.Event()

    def kill() -> None:
        """Every actor after its third batch, three times at most."""
        killed: set[str] = set()
        while not stop.wait(0.05) and len(killed) < 3:
            lines = notes.read_text().splitlines() if notes.exists() else []
            pids = [line.split()[0] for line in lines]
            for pid in set(pids) - killed:
                if pids.count(pid) >= 3:
                    os.kill(int(pid), signal.SIGKILL)
                    killed.add(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with connected() as ray:
            embed_there(ray, images, tmp_path / "there", embedder(notes, seconds=0.3))
    finally:
        stop.set()
        killer.join()
    assert files(tmp_path / "there") == whole
    sums = [line.split()[1] for line in notes.read_text().splitlines()]
    again = len(sums) - len(set(sums))
    print(f"{len(_pids(notes))} actors, {again} of {len(set(sums))} batches twice")
    assert len(_pids(notes)) >= 3 and again <= 3 * SHARD // 2


@pytest.mark.slow
def test_from_a_bucket(photos: Path, tmp_path: Path) -> None:
    """file:// is a bucket of Arrow's like any other; what s3:// adds is tested in tests/data."""
    images = image_set_from_url(f"file://{photos}")
    whole = embed_here(images, tmp_path / "here")
    with connected() as ray:
        embed_there(ray, images, tmp_path / "there")
    assert files(tmp_path / "there") == whole


@pytest.mark.slow
def test_what_goes_wrong_is_said(photos: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    images = ImageSet.from_folder(photos)
    with connected() as ray:
        compute = resolve_compute_on(ray, batch_size=2)
        other = replace(compute, remote_facts={**compute.facts, "torch": "0.1"})
        with pytest.raises(ModelError, match=r"torch is '.*', expected '0\.1'"):
            embed(images, embedder(), tmp_path / "e", compute=other, engine=ray_engine(ray))
        with pytest.raises(UsageError, match="0 GPUs"):
            resolve_compute_on(ray, device="cuda")
        with pytest.raises(DataError, match="is gone"):
            gone = ImageSet(tmp_path / "none", ["a.png"])
            embed_there(ray, gone, tmp_path / "g")
        torch.set_num_threads(999)
        with pytest.raises(UsageError, match="999 CPUs"):
            embed(images, embedder(), tmp_path / "f", compute=compute, engine=ray_engine(ray))


@pytest.mark.slow
def test_a_compiler_that_fails_there_costs_only_its_gain(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from dataclasses import replace

    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path / "cache"))
    images = ImageSet.from_folder(photos).subset(range(12))
    whole = embed_here(images, tmp_path / "here")
    with connected() as ray:
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        compute = replace(resolve_compute_on(ray, batch_size=2), runtime="compiled")
        embed(
            images, embedder(), tmp_path / "there", compute=compute, shard_images=SHARD,
            engine=ray_engine(ray),
        )  # fmt: skip
    assert "continues with torch" in caplog.text
    assert files(tmp_path / "there") == whole


def test_a_compiler_that_fails_there_is_told_apart(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> Any:
        raise RuntimeFailed("patches cannot be compiled")

    monkeypatch.setattr(ray_module, "embed_shards", failing)
    actor: Any = object.__new__(_Actor)
    actor.source, actor.runtime, actor.differs = EmbeddingInput(ImageSet(photos, [])), None, ""
    actor.lacking = None
    sent = pickle.dumps(ImageSet.from_folder(photos).for_worker(range(2)))
    row = actor({"start": np.array([0]), "stop": np.array([2]), "images": [sent]})
    assert row["runtime_failed"] == [True] and "cannot be compiled" in row["error"][0]


def test_an_actor_without_the_runtime_says_so_when_it_is_called(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its constructor Ray would take it for a crash, and start it again and again."""
    compute = Compute("cpu", "fp32", 2, 1, "openvino")
    shared = (EmbeddingInput(ImageSet(photos, [])), embedder(), compute, compute.facts, 1)
    monkeypatch.setattr("ray.get", lambda reference: reference)
    monkeypatch.setitem(sys.modules, "openvino", None)  # cannot be imported
    actor = _Actor(shared)
    sent = pickle.dumps(ImageSet.from_folder(photos).for_worker(range(2)))
    row = actor({"start": np.array([0]), "stop": np.array([2]), "images": [sent]})
    assert row["runtime_failed"] == [True] and "not installed here" in row["error"][0]


def test_wrong_use_is_said(photos: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from vizsla.cli.main import app

    words = ["embed", str(photos), "--model", "tiny", "--weights", "random", "-o", "x.emb"]
    for more, message in (
        (["--address", "auto"], "add --engine ray"),
        (["--engine", "spark"], "choose one of local, ray"),
    ):
        error = CliRunner().invoke(app, [*words, *more]).exception
        assert isinstance(error, UsageError) and message in str(error)


def test_a_cluster_that_is_not_there() -> None:
    reason = pytest.raises(UsageError, match=r"cannot reach Ray at 127\.0\.0\.1:1")
    with reason, connected("127.0.0.1:1"):
        pass


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0"])
def test_an_address_where_something_else_listens(
    answer: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tries_for_minutes(**options: object) -> None:
        raise AssertionError("Ray itself was started")

    monkeypatch.setattr(ray_module, "TIMEOUT", 0.5)
    monkeypatch.setattr("ray.init", tries_for_minutes)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                if answer:
                    connection.sendall(answer)
                else:
                    time.sleep(1)

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UsageError, match="cannot reach Ray at 127"), connected(address):
            pass
        thread.join()


def test_what_other_machines_cannot_have_is_refused_before_ray_starts(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from vizsla.cli.main import app

    monkeypatch.setitem(sys.modules, "ray", None)  # it would not even start
    words = ["--engine", "ray", "--model", "tiny", "--weights", "random"]
    for images, more, message in (
        (str(photos), ["--cache", str(tmp_path / "c")], "takes no --cache"),
        ("memory://photos", [], "memory of this process"),
    ):
        call = ["embed", images, *words, *more, "-o", str(tmp_path / "e")]
        error = CliRunner().invoke(app, call).exception
        assert isinstance(error, UsageError) and message in str(error)
    assert not list(tmp_path.iterdir())


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"vizsla\[ray\]"), connected():
        pass


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine's own GPU would be used")
def test_a_large_model_reaches_a_machine_with_a_gpu(photos: Path) -> None:
    """A task of Ray's may hold 95 MiB. Here no GPU answers, and the error says so."""
    import ray

    class Large(Patches):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(30_000_000))

    images = ImageSet.from_folder(photos)
    large = Embedder.from_module(Large(), embedder().preprocess, name="large")
    ray.init(num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        with pytest.raises(UsageError, match="torch sees no CUDA GPU"):
            resolve_compute_on(ray, embedder=large, images=len(images), sample=images.file)
    finally:
        ray.shutdown()


def test_a_sample_for_another_machine_is_its_contents(photos: Path) -> None:
    images = ImageSet.from_folder(photos)
    names = [images.ids[0], "none.png", images.ids[1]]
    some = ImageSet(photos, names)
    found = _contents(some.file, range(3))
    assert found == {i: (photos / names[i]).read_bytes() for i in (0, 2)}
