"""Images at a URL: through Arrow's own filesystems, through fsspec's, from a real S3 server."""

import os
import pickle
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.fs
import pytest
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from torch import nn

from vizsla.data.images import read_image
from vizsla.data.imageset import ImageSet
from vizsla.data.preprocess import Preprocess
from vizsla.data.remote import (
    BLOCK_BYTES,
    ArrowFileSystem,
    BlockReader,
    image_set_from_url,
    is_url,
    open_filesystem,
)
from vizsla.data.webdataset import image_set_from_tars
from vizsla.embed.auto_compute import resolve_compute
from vizsla.embed.inference import embed
from vizsla.errors import DataError, ImageError, StorageError
from vizsla.model.embedder import Embedder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    for name in ("b/2.png", "a/1.png", "a/é.png", "b/broken.png", ".hidden/x.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
    (folder / "b/broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    return folder


def the_same_as_here(images: ImageSet, photos: Path) -> None:
    here = ImageSet.from_folder(photos)
    assert images.ids == here.ids
    for i in range(len(here)):
        assert images.file(i) == here.path(i).read_bytes()
        assert images.subset([i]).for_worker(range(1)).file(0) == images.file(i)


def test_a_url_is_one() -> None:
    assert (
        is_url("s3://bucket/x")
        and is_url("memory://x")
        and not is_url("/a/b")
        and not is_url("C:\\x")
    )


def test_arrow_and_fsspec(photos: Path) -> None:
    the_same_as_here(image_set_from_url(f"file://{photos}"), photos)
    memory = fsspec.filesystem("memory")
    memory.put(str(photos), "/photos", recursive=True)
    try:
        the_same_as_here(image_set_from_url("memory://photos"), photos)
    finally:
        memory.rm("/photos", recursive=True)


def test_arrow_file_systems_list_and_read_as_those_of_fsspec(photos: Path, tmp_path: Path) -> None:
    arrow, local = ArrowFileSystem(pyarrow.fs.LocalFileSystem()), LocalFileSystem()
    assert sorted(arrow.find(str(photos))) == sorted(local.find(str(photos)))
    assert sorted(arrow.glob(f"{photos}/*/*.png")) == sorted(local.glob(f"{photos}/*/*.png"))
    path = str(photos / "a/1.png")
    for part in ((), (0, 10), (5, 20)):
        assert arrow.cat_file(path, *part) == local.cat_file(path, *part)
    copy = pickle.loads(pickle.dumps(arrow))
    assert copy.cat_file(path) == local.cat_file(path)


def test_what_a_file_system_raises_is_a_storage_error(photos: Path) -> None:
    """Some raise exceptions of their own, which are no OSError."""
    images = image_set_from_url(f"file://{photos}")

    class Strange:
        def cat_file(self, path: str) -> bytes:
            raise RuntimeError("HTTP 503")

    object.__setattr__(images.source, "filesystem", Strange())
    with pytest.raises(StorageError, match=r"cannot read .*HTTP 503"):
        images.file(0)


def test_names_that_are_not_utf8_are_left_out_as_in_a_folder(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (b"\xff.png", b"a/gr\xfcn.png"):
        shutil.copy(photos / "a/1.png", os.fsencode(photos) + b"/" + name)
    the_same_as_here(image_set_from_url(f"file://{photos}"), photos)
    assert r"names that are not UTF-8, left out: \xff.png, gr\xfcn.png" in caplog.text


def test_labels_are_the_first_folders(photos: Path) -> None:
    found = image_set_from_url(f"file://{photos}", class_folders=True)
    assert found.labels == ["a", "a", "b", "b"]
    shutil.copy(photos / "a/1.png", photos / "top.png")
    with pytest.raises(DataError, match=r"1 images outside class folders \(top\.png\)"):
        image_set_from_url(f"file://{photos}", class_folders=True)


def test_what_is_missing_is_one_image_and_what_does_not_answer_is_all(photos: Path) -> None:
    found = image_set_from_url(f"file://{photos}")
    (photos / "a/1.png").unlink()
    with pytest.raises(ImageError, match="the file is missing"):
        found.file(0)
    (photos / "a/1.png").mkdir()
    with pytest.raises(StorageError, match=r"cannot read .*a/1\.png.*continues where it stopped"):
        found.file(0)


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        image_set_from_url(f"file://{tmp_path}/none")
    with pytest.raises(DataError, match="holds no images"):
        image_set_from_url(f"file://{tmp_path}")
    with pytest.raises(DataError, match="cannot open nosuch://x"):
        open_filesystem("nosuch://x")


def test_a_file_that_changes_is_another_input(photos: Path, tmp_path: Path) -> None:
    compute = resolve_compute(device="cpu", batch_size=2)
    embed(image_set_from_url(f"file://{photos}"), colours(), tmp_path / "e", compute=compute)
    embed(image_set_from_url(f"file://{photos}"), colours(), tmp_path / "e", compute=compute)
    os.utime(photos / "a/1.png", ns=(1, 1))
    with pytest.raises(DataError, match="differ in images"):
        embed(image_set_from_url(f"file://{photos}"), colours(), tmp_path / "e", compute=compute)


def colours() -> Embedder:
    preprocess = Preprocess(size=(16, 16), resize=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return Embedder.from_module(network, preprocess, name="colours")


def test_blocks_are_read_once_and_hold_what_the_file_holds(tmp_path: Path) -> None:
    """Neighbours share a request, also when several threads ask at once."""
    content = np.random.default_rng(0).bytes(3 * BLOCK_BYTES + 1000)
    (tmp_path / "x").write_bytes(content)
    requests: list[int] = []

    class Counted:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def info(self, path: str) -> Any:
            return self.inner.info(path)

        def cat_file(self, path: str, start: int, end: int) -> bytes:
            requests.append(1)
            return self.inner.cat_file(path, start, end)

    reader = BlockReader(Counted(LocalFileSystem()), "here")
    path, wrong = str(tmp_path / "x"), []

    def read(start: int) -> None:
        for offset in range(start, start + BLOCK_BYTES, 100_000):
            if reader.read(path, offset, 50_000) != content[offset : offset + 50_000]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(start,)) for start in (0, 1000, 50_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(requests) <= 2
    for offset, size in ((len(content) - 10, 100), (len(content), 5), (5, 0), (7, 3 * BLOCK_BYTES)):
        assert reader.read(path, offset, size) == content[offset : offset + size]


# ── S3 ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[str, str]]:
    """Where a moto server on loopback listens, and what the URLs of its bucket end with."""
    program = shutil.which("moto_server")
    if program is None:
        pytest.skip("moto_server is not installed (pip install 'moto[server]')")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    server = subprocess.Popen(
        [program, "-H", "127.0.0.1", "-p", str(port)], env=clean,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip
    before = {name: os.environ.get(name) for name in keys}
    os.environ.update(keys)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.skip("the S3 server does not start")
        put(f"http://127.0.0.1:{port}/photos", b"")
        yield (
            f"http://127.0.0.1:{port}/photos",
            f"?scheme=http&endpoint_override=127.0.0.1:{port}",
        )
    finally:
        server.terminate()
        server.wait(20)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def put(address: str, content: bytes) -> None:
    kind = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(address, content, kind, method="PUT")
    urllib.request.urlopen(request, timeout=30).close()


def upload(server: str, folder: Path, place: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            name = urllib.parse.quote(path.relative_to(folder).as_posix())
            put(f"{server}/{place}/{name}", path.read_bytes())


def test_s3(bucket: tuple[str, str], photos: Path, tmp_path: Path) -> None:
    server, query = bucket
    upload(server, photos, "set")
    images = image_set_from_url(f"s3://photos/set{query}")
    the_same_as_here(images, photos)
    found = embed(images, colours(), tmp_path / "e")
    here = embed(ImageSet.from_folder(photos), colours(), tmp_path / "h")
    np.testing.assert_array_equal(found.vectors, here.vectors)
    assert [name for name, _ in found.broken] == ["b/broken.png"]
    assert read_image(images.file(0)).size == (24, 20)


def test_tar_files_on_s3(bucket: tuple[str, str], photos: Path, tmp_path: Path) -> None:
    import tarfile

    server, query = bucket
    (tmp_path / "tars").mkdir()
    for name in ("a", "b"):
        with tarfile.open(tmp_path / "tars" / f"{name}.tar", "w") as archive:
            for path in sorted((photos / name).iterdir()):
                archive.add(path, path.name)
    upload(server, tmp_path / "tars", "tars")
    for pattern in ("*.tar", "{a,b}.tar"):
        images = image_set_from_tars(f"s3://photos/tars/{pattern}{query}")
        the_same_as_here(images, photos)
    found = embed(images, colours(), tmp_path / "e")
    assert len(found) == 3 and found.broken[0][0] == "b/broken.png"


def test_a_server_that_is_gone_ends_the_job_and_not_the_images(
    bucket: tuple[str, str], photos: Path, tmp_path: Path
) -> None:
    server, query = bucket
    upload(server, photos, "gone")
    images = image_set_from_url(f"s3://photos/gone{query}")

    class Gone:
        def cat_file(self, path: str) -> bytes:
            raise OSError("When reading: AWS Error NETWORK_CONNECTION: no answer")

    object.__setattr__(images.source, "filesystem", Gone())
    with pytest.raises(StorageError, match=r"NETWORK_CONNECTION.*continues where it stopped"):
        embed(images, colours(), tmp_path / "e")
    found = embed(image_set_from_url(f"s3://photos/gone{query}"), colours(), tmp_path / "e")
    assert len(found) == 3


def test_many_files_read_in_turn_are_fetched_once_and_at_once(tmp_path: Path) -> None:
    """As the headers of tar files are: a little of each, again and again."""
    for i in range(8):
        (tmp_path / str(i)).write_bytes(bytes(50_000))
    fetched: list[str] = []
    together = threading.Barrier(8, timeout=20)

    class Noted(BlockReader):
        def _fetch(self, path: str, offset: int, size: int) -> bytes:
            fetched.append(path)
            together.wait()
            return super()._fetch(path, offset, size)

    reader = Noted(LocalFileSystem(), "here")

    def walk(i: int) -> None:
        for offset in range(0, 50_000, 500):
            assert len(reader.read(str(tmp_path / str(i)), offset, 500)) == 500

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(walk, range(8)))
    assert len(fetched) == 8
