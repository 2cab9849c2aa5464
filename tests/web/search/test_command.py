"""`vizsla serve` as a process, as people start it: a run, an index, a folder of images."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from vizsla import SearchClient
from vizsla.cli.main import main
from vizsla.data.imageset import ImageSet
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.compute import has_exact_int8
from vizsla.embed.inference import embed
from vizsla.errors import DataError, ModelError, UsageError
from vizsla.model.embedder import Embedder
from vizsla.options import GalleryOptions
from vizsla.run.config import RunConfig
from vizsla.search.index import build_index, open_index
from vizsla.web.search.engine import Engine
from vizsla.web.search.models import SearchRequest
from vizsla.web.search.server import GallerySource, prepare, serve
from vizsla.web.search.service import ServerState

VIZSLA = str(Path(sys.executable).parent / "vizsla")
DOCS = Path(__file__).parents[3] / "docs" / "serve.md"
RUN = "runs/20260131-235959-0a1b"
TINY = ["--model", "tiny", "--weights", "random"]


@contextmanager
def serving(*words: str, cwd: Path) -> Iterator[tuple[str, list[str], Any]]:
    """(address, the lines that the command printed, the process), once it is ready."""
    process = subprocess.Popen(
        [VIZSLA, "serve", *words, "--port", "0", "--rate-limit", "0"],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    try:
        lines = [process.stdout.readline(), process.stdout.readline()]
        if "--allow-changes" in words and "--token" not in words:
            lines.append(process.stdout.readline())
        found = re.search(r"http://\S+?(?=/)", lines[0])
        assert found, lines
        for _ in range(600):
            if httpx.get(found[0] + "/healthz").status_code == 200:
                break
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        yield found[0], lines, process
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, process.stderr.read()
        process.stdout.close()
        process.stderr.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tinted: Path) -> Path:
    """A run, an index and a folder of images, under the names that docs/serve.md has."""
    from vizsla.run import pipeline

    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(tinted, folder / "data")
    config = RunConfig(
        data=str(folder / "data"), model="tiny", weights="random", image_size=32,
        top_k=3, figures=0, home=str(folder),
    )  # fmt: skip
    done = pipeline.run(config)
    done.run.folder.rename(folder / "runs" / "20260131-235959-0a1b")
    embeddings = folder / "runs" / "20260131-235959-0a1b" / "embeddings" / "gallery"
    build_index(embeddings, folder / "gallery.index")
    shutil.copytree(folder / "gallery.index", folder / "bare.index")
    (folder / "bare.index/source.json").unlink()
    shutil.copytree(tinted / "training", folder / "photos")
    photos = [path.relative_to(folder / "photos") for path in folder.glob("photos/*/*.png")]
    rows = [f"{name.as_posix()},{name.parts[0]},{i}.5,S-{i}" for i, name in enumerate(photos)]
    (folder / "catalogue.csv").write_text("\n".join(["file,label,price,sku", *rows]))
    return folder


@contextmanager
def prepared(source: GallerySource) -> Iterator[tuple[Engine, ServerState]]:
    state = ServerState()
    engine = prepare(source, state)
    try:
        yield engine, state
    finally:
        engine.close()


def test_a_run_is_served_with_its_labels(home: Path) -> None:
    assert GallerySource(home / RUN).name == "data"  # not its id
    assert GallerySource(home / "gallery.index").name == "gallery.index"
    with prepared(GallerySource(home / RUN)) as (engine, _):
        (upload,) = engine.upload([(home / "data/test/gallery/g-green-0.png").read_bytes()])
        found = engine.answer(SearchRequest(query=(upload.name,), k=3)).results
        assert (found[0].id, found[0].label) == ("g-green-0.png", "green")
        assert found[0].score == pytest.approx(1, abs=1e-5)
        assert engine.picture("g-green-0.png").is_file()
        assert len(engine.gallery) == 24


def test_a_run_of_several_models_is_served_by_all_of_them(home: Path, tmp_path: Path) -> None:
    from vizsla.embed.embeddings import Embeddings
    from vizsla.run.fused_runs import FusionConfig
    from vizsla.run.several_models import run_models

    data = shutil.copytree(home / "data", tmp_path / "data")
    for image in (data / "test" / "gallery").iterdir():
        own = data / "training" / image.name.split("-")[1]
        own.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, own / f"t-{image.name}")
    configs = [
        RunConfig(data=str(data), model="tiny", weights="random", image_size=size,
                  seed=size, top_k=3, figures=0, home=str(tmp_path))
        for size in (32, 64)
    ]  # fmt: skip
    joint = run_models(configs, FusionConfig(weights=[3.0, 1.0])).run.folder
    gallery = Embeddings.open(joint / "embeddings/gallery")
    with prepared(GallerySource(joint)) as (engine, _):
        assert engine.model.dim == gallery.dim and engine.model.model_id == gallery.model_id
        names = ["g-green-0.png", "g-blue-3.png"]
        found = engine.upload([(home / "data/test/gallery" / n).read_bytes() for n in names])
        for name, upload in zip(names, found, strict=True):
            row = gallery.vectors[gallery.ids.index(name)]
            assert upload.vector @ row == pytest.approx(1, abs=1e-5)
            best = engine.answer(SearchRequest(query=(upload.name,), k=3)).results[0]
            assert best.id == name and best.label == name.split("-")[1]
        search = SearchRequest(query=(found[0].name,), k=3)
        job = engine.similarity_maps(search, "g-blue-3.png")
        assert [drawn[:2] for drawn in job.future.result()] == [b"\xff\xd8"] * 2  # JPEGs
        engine.map_queue.leave(job)


@pytest.mark.parametrize("method", ["zscore", "minmax", "rrf", "concat"])
def test_a_run_of_several_models_is_searched_by_its_fusion(
    home: Path,
    tmp_path: Path,
    method: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from vizsla.run.functions import search
    from vizsla.run.fused_runs import FusionConfig
    from vizsla.run.several_models import run_models

    configs = [
        RunConfig(data=str(home / "data"), model="tiny", weights="random", image_size=size,
                  seed=size, top_k=3, figures=0, home=str(tmp_path))
        for size in (32, 64)
    ]  # fmt: skip
    done = run_models(configs, FusionConfig(method, [3.0, 1.0], whiten="discriminant 0.6"))
    with caplog.at_level("INFO", "vizsla"), prepared(GallerySource(done.run.folder)) as (engine, _):
        orders = []
        for name in done.ranking.queries:
            (upload,) = engine.upload([(home / "data/test/query" / name).read_bytes()])
            request = SearchRequest(query=(upload.name,), k=len(engine.gallery))
            orders.append([one.id for one in engine.answer(request).results])
        rows = [done.ranking.row(i) for i in range(len(done.ranking))]
    found = search(done.run.folder, home / "data/test/query", top_k=len(done.ranking.gallery))
    assert [found.row(i) for i in range(len(found))] == orders  # as the server answers
    if method == "rrf":
        assert "the run was fused by rrf, and searches" in caplog.text and orders != rows
    else:
        assert ("concatenated" if method == "concat" else f"fused by {method} as") in caplog.text
        assert orders == rows


def test_an_index_is_served_by_the_model_and_with_the_images_that_it_remembers(home: Path) -> None:
    with prepared(GallerySource(home / "gallery.index")) as (engine, _):
        (upload,) = engine.upload([(home / "data/test/gallery/g-green-0.png").read_bytes()])
        found = engine.answer(SearchRequest(query=(upload.name,), k=3)).results
        assert found[0].id == "g-green-0.png" and engine.picture("g-green-0.png").is_file()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_an_index_is_served_and_replaced(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "gallery.index", tmp_path / "gallery.index")
    images = str(home / "data/test/gallery")
    words = ["gallery.index", "--model", str(home / RUN), "--images", images, "--allow-changes"]
    with serving(*words, cwd=tmp_path) as (url, lines, process):
        token = re.search(r"token (\w{64})", lines[2])
        assert token, lines
        assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 421
        before = httpx.get(url + "/healthz").json()
        open_index(tmp_path / "gallery.index").remove(["g-red-0.png"])
        process.send_signal(signal.SIGHUP)
        for _ in range(100):
            if httpx.get(url + "/healthz").json()["gallery"] == 23:
                break
            time.sleep(0.1)
        after = httpx.get(url + "/healthz").json()
        assert after["gallery"] == 23 and after["index"] != before["index"]
        with SearchClient(url, token=token[1]) as client:
            client.remove("g-red-1.png")
    assert len(open_index(tmp_path / "gallery.index")) == 22


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_the_runtime_that_was_asked_for_embeds_the_queries(home: Path, runtime: str) -> None:
    with prepared(GallerySource(home / RUN, GalleryOptions(runtime=runtime))) as (engine, _):
        (upload,) = engine.upload([(home / "data/test/gallery/g-red-1.png").read_bytes()])
        found = engine.answer(SearchRequest(query=(upload.name,), k=3)).results
        assert found[0].id == "g-red-1.png" and found[0].score == pytest.approx(1, abs=1e-3)
        assert engine.model.network.compute.runtime == runtime


@pytest.mark.skipif(not has_exact_int8(), reason="needs a CPU with VNNI instructions")
def test_queries_of_a_gallery_in_int8_are_embedded_in_int8(home: Path, tmp_path: Path) -> None:
    images, embedder = home / "data/test/gallery", Embedder.build("efficientnet-lite0")
    in_int8 = resolve_compute(device="cpu", precision="int8", embedder=embedder)
    embed(ImageSet.from_folder(images), embedder, tmp_path / "gallery.emb", compute=in_int8)
    source = GallerySource(tmp_path / "gallery.emb", GalleryOptions(images=str(images)))
    with prepared(source) as (engine, _):
        (upload,) = engine.upload([(images / "g-red-1.png").read_bytes()])
        found = engine.answer(SearchRequest(query=(upload.name,), k=3)).results
        assert found[0].id == "g-red-1.png" and found[0].score == pytest.approx(1, abs=1e-6)
        assert engine.model.network.compute.precision == "int8"


def test_labels_given_for_an_index_replace_its_own(home: Path, tmp_path: Path) -> None:
    """It is the index itself that is served, and watched, not a copy with other labels."""
    folder = tmp_path / "gallery.index"
    shutil.copytree(home / "gallery.index", folder)
    labels = tmp_path / "labels.csv"
    labels.write_text("file,label,price\ng-red-0.png,given,5\ng-red-1.png,given,7\n")
    images = home / "data/test/gallery"
    source = GallerySource(
        folder,
        GalleryOptions(model=str(home / RUN), images=str(images), labels=str(labels)),
    )
    with prepared(source) as (engine, _):
        assert engine.gallery.index.folder == folder
        about = engine.gallery.described("g-red-0.png")
        assert (about["label"], about["attributes"]["price"]) == ("given", 5)
        found = engine.answer(
            SearchRequest(id=("g-red-2.png",), filter=("label=given",), k=9)
        ).results
        assert sorted(one.id for one in found) == ["g-red-0.png", "g-red-1.png"]
        open_index(folder).remove(["g-red-0.png"])
        for _ in range(100):
            if len(engine.gallery) == 23:
                break
            time.sleep(0.1)
        found = engine.answer(
            SearchRequest(id=("g-red-2.png",), filter=("label=given",), k=9)
        ).results
        assert [one.id for one in found] == ["g-red-1.png"]


def test_a_folder_is_embedded_once(home: Path) -> None:
    source = GallerySource(
        home / "photos",
        GalleryOptions(model="tiny", weights="random", image_size=32, class_folders=True),
    )
    with prepared(source) as (engine, state):
        assert (state.stage, state.done, state.total) == ("warming", 24, 24)
        assert engine.gallery.described("green/t-green-1.png")["label"] == "green"
    cache = Path(os.environ["VIZSLA_CACHE"]) / "served"
    (shard,) = cache.rglob("shard-*.parquet")
    written = shard.stat().st_mtime_ns
    with prepared(source):
        assert shard.stat().st_mtime_ns == written
    shutil.copy(home / "photos/green/t-green-1.png", home / "photos/green/one-more.png")
    with prepared(source) as (engine, _):
        assert len(engine.gallery) == 25
    assert len(list(cache.rglob("shard-*.parquet"))) == 1  # of what the folder holds now


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"path": "nowhere"}, DataError, "does not exist"),
        ({"path": "bare.index"}, UsageError, "give model and images"),
        ({"path": "bare.index", "model": "tiny"}, UsageError, "give images"),
        ({"path": "photos", "images": "photos"}, UsageError, "images belongs to"),
        ({"path": RUN, "images": "nowhere"}, DataError, "is not a folder"),
        ({"path": RUN, "show": ("size",)}, DataError, "show size: the images have the columns"),
        (
            {"path": "photos", "model": "tiny", "weights": "random", "show": ("size",)},
            DataError,
            "show size: no table says anything of the images",
        ),
        ({"path": "runs", "model": "tiny", "weights": "random"}, DataError, "holds no images"),
        (
            {"path": "gallery.index", "model": "tiny", "weights": "random", "images": "photos"},
            ModelError,
            "give the one that made them",
        ),
    ],
)
def test_what_cannot_be_served(
    home: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    options = dict(options)
    path = home / options.pop("path")
    if "images" in options:
        options["images"] = str(home / options["images"])
    with pytest.raises(error, match=message):
        prepare(GallerySource(path, GalleryOptions(**options)), ServerState())


def test_an_error_while_preparing_ends_the_server_in_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    with ThreadPoolExecutor(1) as thread:  # a browser's event loop may run in this one
        ended = thread.submit(main, ["serve", "runs", *TINY, "--port", "0"]).exception()
    errors = capsys.readouterr().err
    assert isinstance(ended, SystemExit) and ended.code == 1 and "holds no images" in errors
    assert errors.splitlines()[-1].startswith("vizsla: ") and "Traceback" not in errors


def test_blas_has_one_thread_while_serving(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    from vizsla.web.shell import http

    def threads() -> dict[str, int]:
        """Of libraries with threads of their own; OpenMP has a number for each caller."""
        found = [one for one in threadpool_info() if one.get("threading_layer") == "pthreads"]
        return {one["filepath"]: one["num_threads"] for one in found}

    seen: list[dict[str, int]] = []

    class Server:
        should_exit = False

        def run(self, sockets: list[Any]) -> None:
            for thread in threading.enumerate():
                if "_prepared" in thread.name:
                    thread.join(60)
            seen.append(threads())

    monkeypatch.setattr(http, "make_server", lambda app: Server())
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        if not before:
            pytest.skip("numpy has no OpenBLAS with threads of its own here")
        assert set(before.values()) == {2}
        serve(GallerySource(home / RUN), port=0)
        assert set(seen[0].values()) == {1} and seen[0].keys() >= before.keys()
        after = threads()
        assert {path: after[path] for path in before} == before


@pytest.mark.slow
def test_the_commands_of_the_docs_work(home: Path) -> None:
    text = DOCS.read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    commands = [shlex.split(line) for line in "\n".join(blocks).splitlines()
                if line.startswith("vizsla serve")]  # fmt: skip
    assert len(commands) >= 4
    for words in commands:
        offline = [
            part
            for word in words[2:]
            for part in (["tiny", "--weights", "random"] if word == "clip-vit-b32" else [word])
        ]
        with serving(*offline, cwd=home) as (url, _, _):
            assert httpx.get(url + "/healthz").json()["status"] == "ready"
