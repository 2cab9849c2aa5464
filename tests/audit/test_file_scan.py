from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vizsla.audit.file_scan import ODD, REMARKS, ImageFacts, Scan, scan_files
from vizsla.data.imageset import ImageSet

Photo = Callable[..., Image.Image]


def scan_of(folder: Path, **options: object) -> Scan:
    return scan_files({"training": ImageSet.from_folder(folder)}, **options)  # type: ignore[arg-type]


def only(folder: Path) -> ImageFacts:
    (facts,) = scan_of(folder).facts
    return facts


def test_facts_are_those_of_the_files_in_order(photo: Photo, tmp_path: Path) -> None:
    for name in ("cat/b.png", "cat/a.jpg", "dog/c.png"):
        (tmp_path / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        photo(len(name)).save(tmp_path / "t" / name)
    (tmp_path / "q").mkdir()
    photo(9).save(tmp_path / "q" / "x.webp")
    sets = {
        "training": ImageSet.from_class_folders(tmp_path / "t"),
        "query": ImageSet.from_folder(tmp_path / "q"),
    }
    reports: list[tuple[int, int]] = []
    scan = scan_files(sets, workers=2, progress=lambda done, total: reports.append((done, total)))
    assert [facts.name for facts in scan.facts] == [
        "training/cat/a.jpg", "training/cat/b.png", "training/dog/c.png", "query/x.webp",
    ]  # fmt: skip
    assert [facts.label for facts in scan.facts] == ["cat", "cat", "dog", None]
    assert scan.facts[1].size == (160, 120) and scan.facts[1].form == "PNG RGB"
    assert scan.facts[1].pixels == 160 * 120 and reports[-1] == (4, 4)
    assert scan.grey.shape == (4, 64, 64) and scan.colours.shape == (4, 2, 8, 8)
    grey = np.asarray(photo(9).convert("YCbCr").split()[0].resize((64, 64), Image.Resampling.BOX))
    assert np.array_equal(scan.grey[1], grey)


def test_broken_files_have_a_reason_and_do_not_stop_the_rest(photo: Photo, tmp_path: Path) -> None:
    photo(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
    (tmp_path / "c.jpg").write_bytes(b"")
    whole, cut, empty = scan_of(tmp_path).facts
    assert whole.broken is None
    assert "truncated" in str(cut.broken) and "empty" in str(empty.broken)
    assert cut.file_hash == "" and cut.odd == ()


def test_hashes_tell_files_and_pictures_apart(photo: Photo, tmp_path: Path) -> None:
    photo(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    photo(0).save(tmp_path / "c.bmp")
    photo(0).save(tmp_path / "d.png", compress_level=1)
    photo(1).save(tmp_path / "e.png")
    facts = scan_of(tmp_path).facts
    assert len({f.file_hash for f in facts}) == 4 and facts[0].file_hash == facts[1].file_hash
    assert len({f.pixel_hash for f in facts}) == 2 and facts[4].pixel_hash != facts[0].pixel_hash


def test_a_large_jpeg_with_other_exif_is_the_same_picture(photo: Photo, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a remark"
    large = photo(0, (1600, 1200))
    large.save(tmp_path / "a.jpg", quality=80)
    large.save(tmp_path / "b.jpg", quality=80, exif=exif)
    large.save(tmp_path / "c.jpg", quality=79)
    a, b, c = scan_of(tmp_path).facts
    assert a.file_hash != b.file_hash and a.pixel_hash == b.pixel_hash != c.pixel_hash


def in_16_bits(picture: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)


@pytest.mark.parametrize(
    ("name", "kinds", "make"),
    [
        ("a.png", [], lambda p: p),
        ("a.jpeg", [], lambda p: p),
        ("a.png", ["tiny"], lambda p: p.resize((40, 31))),
        ("a.png", ["thin"], lambda p: p.resize((500, 100))),
        ("a.png", ["one colour"], lambda p: Image.new("RGB", (64, 64), "red")),
        ("a.png", ["nearly one colour"], lambda p: p.point(lambda v: 100 + v // 25)),
        ("a.png", ["grey"], lambda p: p.convert("L")),
        ("a.png", ["black and white"], lambda p: p.convert("1")),
        ("a.png", ["palette"], lambda p: p.quantize(64)),
        ("a.png", ["alpha channel"], lambda p: p.convert("RGBA")),
        ("a.jpg", ["CMYK"], lambda p: p.convert("CMYK")),
        ("a.png", ["16 bits"], in_16_bits),
    ],
)  # fmt: skip
def test_what_is_odd_is_named(
    photo: Photo, tmp_path: Path, name: str, kinds: list[str], make: Callable[..., Image.Image]
) -> None:
    make(photo(0)).save(tmp_path / name)
    assert only(tmp_path).odd == tuple(kinds)


def test_huge_wrongly_named_and_moving_pictures_are_odd(
    photo: Photo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(0).save(tmp_path / "a.jpg", "PNG")
    assert only(tmp_path).odd == ("wrong extension",)
    (tmp_path / "a.jpg").unlink()
    photo(0).save(tmp_path / "a.gif", save_all=True, append_images=[photo(1)])
    assert "animated" in only(tmp_path).odd
    (tmp_path / "a.gif").unlink()
    monkeypatch.setattr("vizsla.audit.file_scan.HUGE_PIXELS", 19_000)
    photo(0).save(tmp_path / "a.png")
    assert only(tmp_path).odd == ("huge",)


def test_every_kind_has_its_meaning() -> None:
    assert set(ODD) > REMARKS
    assert {"tiny", "thin", "huge", "one colour", "wrong extension"}.isdisjoint(REMARKS)


def test_real_odd_files_are_all_scanned(shared: Path) -> None:
    scan = scan_of(shared / "data" / "edge", workers=2)
    kinds = {kind for facts in scan.facts for kind in facts.odd}
    assert len(scan) >= 70 and len([f for f in scan.facts if f.broken]) == 11
    assert {"tiny", "grey", "palette", "alpha channel", "16 bits", "CMYK", "animated"} <= kinds
