"""Images are unpacked in processes that may hang or die, and then others take their place."""

import io
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vizsla.data.images import read_image
from vizsla.data.preprocess import Preprocess
from vizsla.errors import ImageError
from vizsla.web.search.decoder import Busy, Decoder

SEEN = Preprocess((16, 16), 20)
FRAMING = SEEN.framing


def test_decoded_pixels_equal_those_of_embed(decoder: Any, pictures: Path) -> None:
    for path in sorted(pictures.rglob("*.png"))[:3]:
        wanted = FRAMING.read(path)
        for source in (path, path.read_bytes()):
            found = decoder.decode(source, framing=FRAMING, jpeg_side=24).result()
            assert np.array_equal(found.pixels, wanted)
            assert found.size == (80, 60)
            assert Image.open(io.BytesIO(found.jpeg)).size == (24, 18)


def test_files_that_are_no_pictures_are_refused_with_a_reason(decoder: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"<html>")
    for source, message in [
        (b"", "empty"),
        (b"<html><script>", "a web page"),
        (tmp_path / "a.png", "a web page"),
        (tmp_path / "gone.png", "missing"),
        (tmp_path, "a folder"),
    ]:
        with pytest.raises(ImageError, match=message):
            decoder.decode(source, jpeg_side=10).result()


def test_too_many_pixels_are_not_unpacked(decoder: Any) -> None:
    file = io.BytesIO()
    Image.new("1", (5000, 5000)).save(file, "PNG")
    assert len(file.getvalue()) < 10_000
    with pytest.raises(ImageError, match="more than the limit of 4,000,000"):
        decoder.decode(file.getvalue(), jpeg_side=10).result()


def test_a_child_that_takes_too_long_is_killed(pictures: Path) -> None:
    picture = next(pictures.rglob("*.png")).read_bytes()
    decoder = Decoder(max_pixels=10**6, processes=1)
    try:
        decoder.decode(picture, jpeg_side=10).result()
        before = decoder.pool.processes[0]
        os.kill(before.pid, signal.SIGSTOP)  # a decoder that never comes back
        decoder.seconds = 0.3
        with pytest.raises(ImageError, match=r"more than 0\.3 s"):
            decoder.decode(picture, jpeg_side=10).result()
        assert before.poll() is not None  # and is gone
        decoder.seconds = 30
        assert decoder.decode(picture, jpeg_side=10).result().jpeg
    finally:
        decoder.close()


def test_a_decoder_that_crashes_costs_one_picture(pictures: Path) -> None:
    picture = next(pictures.rglob("*.png")).read_bytes()
    decoder = Decoder(max_pixels=10**6, processes=1)
    try:
        decoder.decode(picture, jpeg_side=10).result()
        child = decoder.pool.processes[0]
        os.kill(child.pid, signal.SIGSTOP)
        waiting = decoder.decode(picture, jpeg_side=10)
        threading.Timer(0.2, child.kill).start()
        with pytest.raises(ImageError, match="makes the decoder fail"):
            waiting.result()
        assert decoder.decode(picture, jpeg_side=10).result().jpeg
    finally:
        decoder.close()
    assert decoder.pool.processes == []


def test_pictures_wait_in_turn_and_too_many_are_refused(pictures: Path) -> None:
    files = sorted(pictures.rglob("*.png"))
    decoder = Decoder(max_pixels=10**6, processes=2, waiting=8)
    try:
        futures = [decoder.decode(files[i], framing=FRAMING) for i in range(8)]
        with pytest.raises(Busy):
            for i in range(20):
                futures.append(decoder.decode(files[i], framing=FRAMING))
        for i, future in enumerate(futures):
            wanted = FRAMING.pixels(read_image(files[i % 8 if i < 8 else i - 8]))
            assert np.array_equal(future.result().pixels, wanted)
        assert decoder.decode(files[0], framing=FRAMING).result()
    finally:
        decoder.close()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads the limits from /proc")
def test_a_child_has_little_memory_and_writes_nothing(decoder: Any, pictures: Path) -> None:
    decoder.decode(next(pictures.rglob("*.png")), jpeg_side=10).result()
    child = decoder.pool.processes[0]
    limits = Path(f"/proc/{child.pid}/limits").read_text().splitlines()
    rows = {line[:26].strip(): line[26:].split()[0] for line in limits}
    assert int(rows["Max address space"]) < 2**31
    assert rows["Max file size"] == rows["Max core file size"] == "0"


def test_children_do_not_get_the_servers_tokens(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("reads the environment from /proc")
    monkeypatch.setenv("VIZSLA_SERVE_TOKEN", "not-for-pictures")
    decoder = Decoder(max_pixels=10**6, processes=1)
    try:
        decoder.decode(next(pictures.rglob("*.png")), jpeg_side=10).result()
        process = decoder.pool.processes[0]
        assert b"not-for-pictures" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    finally:
        decoder.close()
