"""Threads and processes put the same pixels in the same place, and say why if there are none."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import sklearn
from PIL import Image

from vizsla.data import decoding
from vizsla.data.batches import Loader, in_chunks
from vizsla.data.images import read_image
from vizsla.data.resize import REDUCED_BOUND, Framing
from vizsla.processes import ChildCrashedError, ChildTimeoutError

FRAMING = Framing((24, 32), 32, "crop", "bicubic")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for i in range(11):
        pixels = rng.integers(0, 255, (60, 50 + i, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{i:02}.png")
        Image.fromarray(pixels).save(paths[-1])
    paths[3].write_bytes(b"broken")
    paths[7].unlink()
    return paths


def batches(paths: list[Path], **options: object) -> list[tuple[np.ndarray, list[int], dict]]:
    known = {"batch_size": 4, "workers": 2, "max_pixels": 10**6, **options}
    with Loader(paths.__getitem__, FRAMING, **known) as loader:  # type: ignore[arg-type]
        return [
            (batch.pixels.numpy().copy(), list(batch.positions), batch.reasons)
            for batch in loader.batches(in_chunks(range(len(paths)), 4))
        ]


@pytest.mark.parametrize("options", [
    {"ahead": 0}, {"ahead": 2, "workers": 5}, {"processes": True}, {"ahead": 0, "processes": True},
])  # fmt: skip
def test_every_picture_lies_in_its_slot(photos: list[Path], options: dict[str, object]) -> None:
    found = batches(photos, **options)
    assert [positions for _, positions, _ in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert [list(reasons) for _, _, reasons in found] == [[3], [3], []]
    assert "not an image" in found[0][2][3] and "missing" in found[1][2][3]
    for pixels, positions, reasons in found:
        assert pixels.shape == (4, 24, 32, 3)
        for slot in range(4):
            if slot in reasons or slot >= len(positions):
                assert not pixels[slot].any()
            else:
                expected = FRAMING.pixels(read_image(photos[positions[slot]]))
                np.testing.assert_array_equal(pixels[slot], expected)


def test_a_reader_that_stops_early_leaves_nothing_behind(photos: list[Path]) -> None:
    before = set(Path("/dev/shm").glob("vizsla-*")) if Path("/dev/shm").is_dir() else set()
    with Loader(
        photos.__getitem__, FRAMING, batch_size=2, workers=2, max_pixels=10**6, processes=True
    ) as loader:
        next(loader.batches(in_chunks(range(11), 2)))
        children = loader._decoder.pool.processes  # type: ignore[union-attr]
        assert len(children) == 2
    assert all(process.poll() is not None for process in children)
    if Path("/dev/shm").is_dir():
        assert set(Path("/dev/shm").glob("vizsla-*")) == before


@pytest.mark.parametrize("error, reason", [
    (ChildCrashedError, "the decoder crashed on it"),
    (ChildTimeoutError, "decoding it takes more than 600 s"),
])  # fmt: skip
def test_a_decoder_that_dies_costs_its_own_image_alone(
    photos: list[Path], monkeypatch: pytest.MonkeyPatch, error: type[Exception], reason: str
) -> None:
    shape = (1, 4, 24, 32, 3)
    decoder = decoding.ProcessDecoder(photos.__getitem__, FRAMING, shape, 1, 10**6)
    run = decoder.pool.run

    def deadly(request: dict, *, timeout: float) -> object:
        if str(photos[1]) in request["paths"]:
            raise error
        return run(request, timeout=timeout)

    monkeypatch.setattr(decoder.pool, "run", deadly)
    try:
        futures = decoder.submit(0, [0, 1, 2, 3])
        reasons = [reason for future in futures for reason in future.result(60)]
        assert reasons[0] is None and reasons[2] is None
        assert reasons[1] == reason and "not an image" in str(reasons[3])
        np.testing.assert_array_equal(decoder.memory[0, 2], FRAMING.pixels(read_image(photos[2])))
    finally:
        decoder.close()


# ── reduced-size decoding ────────────────────────────────────────────────────────────────────────


def real_photos(shared: Path) -> list[Path]:
    ours = Path(sklearn.__file__).parent / "datasets/images"
    edge = shared / "data/edge"
    names = ("Landscape_0.jpg", "Landscape_6.jpg", "Portrait_0.jpg", "xmp_test.jpg")
    return [ours / "china.jpg", ours / "flower.jpg", *(edge / name for name in names)]


@pytest.mark.parametrize("short", [64, 128, 256])
def test_a_photo_decoded_smaller_differs_by_less_than_the_bound(shared: Path, short: int) -> None:
    framing = Framing((short * 7 // 8, short * 7 // 8), short, "crop", "bicubic")
    smaller = 0
    for path in real_photos(shared):
        whole = read_image(path)
        fast = read_image(path, at_least=framing.least_side)
        smaller += fast.size != whole.size
        assert min(fast.size) >= min(framing.least_side, min(whole.size))
        expected = framing.pixels(whole).astype(int)
        difference = np.abs(framing.read(path).astype(int) - expected).mean()
        assert difference < REDUCED_BOUND, f"{path.name} at {short}: {difference:.2f}"
    assert smaller >= 4  # the test tests something


@pytest.mark.parametrize("turn", range(1, 9))
def test_no_side_is_rounded_where_a_photo_is_decoded_smaller(shared: Path, turn: int) -> None:
    """libjpeg rounds up the sides of what it decodes smaller: by up to 7 pixels of the whole."""
    rng, worst, exif = np.random.default_rng(turn), 0.0, Image.Exif()
    exif[0x0112] = turn
    for short in (56, 128, 256):
        framing = Framing((short * 7 // 8, short * 7 // 8), short, "crop", "bicubic")
        for path in real_photos(shared)[2:]:
            photo = read_image(path)
            less = rng.integers(1, 40, 2)
            file = io.BytesIO()
            cut = photo.crop((0, 0, photo.width - int(less[0]), photo.height - int(less[1])))
            cut.save(file, "JPEG", quality=95, exif=exif.tobytes())
            whole = read_image(file.getvalue())
            found = framing.reduced(file.getvalue())
            assert found.whole == whole.size and found.image.size != whole.size
            difference = framing.of_reduced(found).astype(int) - framing.pixels(whole)
            worst = max(worst, float(np.abs(difference).mean()))
    assert worst < REDUCED_BOUND


def test_a_long_strip_decoded_smaller_keeps_the_same_part(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 5003).astype(np.uint8)[None, :, None].repeat(301, 0).repeat(3, 2)
    Image.fromarray(ramp).save(tmp_path / "strip.jpg", quality=95)
    framing = Framing((28, 28), 32, "crop", "bicubic")
    found = framing.reduced(tmp_path / "strip.jpg")
    assert found.image.size[0] < 2600  # decoded smaller
    whole = framing.pixels(read_image(tmp_path / "strip.jpg"))
    assert np.abs(framing.of_reduced(found).astype(int) - whole).mean() < REDUCED_BOUND


def test_a_small_photo_is_decoded_whole(shared: Path, tmp_path: Path) -> None:
    path = shutil.copy(real_photos(shared)[0], tmp_path / "a.jpg")
    framing = Framing((224, 224), 256, "crop", "bicubic")
    np.testing.assert_array_equal(framing.read(path), framing.pixels(read_image(path)))
