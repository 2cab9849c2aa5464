"""Tar files are read as the folders that they would unpack to; what is damaged is listed."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vizsla.data.images import read_image
from vizsla.data.imageset import ImageSet
from vizsla.data.webdataset import _braces, image_set_from_tars, is_tars
from vizsla.errors import DataError, ImageError


def png(seed: int, size: tuple[int, int] = (20, 24)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Two tar files of three images each, the second with folders inside."""
    folder = tmp_path / "tars"
    for n, below in enumerate(("", "sub/")):
        members = {}
        for i in range(3):
            members[f"{below}{i}.png"] = png(10 * n + i)
            members[f"{below}{i}.cls"] = f"class-{i % 2}\n".encode()
        write_tar(folder / f"part-{n:03}.tar", members)
    return folder


def test_ids_are_those_of_the_unpacked_folder(tars: Path, tmp_path: Path) -> None:
    found = image_set_from_tars(str(tars))
    for path in tars.glob("*.tar"):
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path / "plain" / path.stem, filter="data")
    plain = ImageSet.from_folder(tmp_path / "plain")
    assert found.ids == plain.ids and len(found) == 6
    for i in range(6):
        assert found.file(i) == plain.path(i).read_bytes()
    assert found.labels == ["class-0", "class-1", "class-0"] * 2
    few = found.subset([4])
    assert read_image(few.file(0)).size == (24, 20) and few.ids == ["part-001/sub/1.png"]


WAYS = [
    "{}", "{}/part-*.tar", "{}/part-{{000..001}}.tar", "{0}/part-000.tar::{0}/part-001.tar",
]  # fmt: skip


@pytest.mark.parametrize("pattern", WAYS)
def test_all_ways_to_name_them(tars: Path, pattern: str) -> None:
    place = pattern.format(tars)
    assert is_tars(place)
    assert len(image_set_from_tars(place)) == 6


def test_urls(tars: Path) -> None:
    names = [f"part-00{n}/{'sub/' * n}{i}.png" for n in range(2) for i in range(3)]
    for place in (f"file://{tars}/part-*.tar", f"file://{tars}/part-{{000..001}}.tar"):
        found = image_set_from_tars(place)
        assert found.ids == names
        assert found.file(5) == png(12)
        assert found.labels == image_set_from_tars(str(tars)).labels
    with pytest.raises(DataError, match="does not exist"):
        image_set_from_tars(f"file://{tars}/none.tar")


def test_braces_as_others_expand_them() -> None:
    assert list(_braces("a-{08..11}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert list(_braces("{a,b}-{1..2}")) == ["a-1", "a-2", "b-1", "b-2"]
    braceexpand = pytest.importorskip("braceexpand").braceexpand
    for pattern in ("x/{000..012}.tar", "{a,b}{1..3}.tar", "plain.tar"):
        assert list(_braces(pattern)) == list(braceexpand(pattern))


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # it leaves files open
def test_the_webdataset_package_reads_the_same(tars: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    found = image_set_from_tars(str(tars))
    path = str(tars / "part-000.tar")
    samples = list(webdataset.WebDataset(path, shardshuffle=False))
    assert [sample["png"] for sample in samples] == [found.file(i) for i in range(3)]
    assert [sample["cls"].decode().strip() for sample in samples] == found.labels[:3]  # type: ignore[index]


def test_labels_from_json_and_text(tmp_path: Path) -> None:
    about = {"label": "cat", "group": 7, "domain": "photo", "caption": "not ours", "url": None}
    members = {
        "a.png": png(0), "a.json": json.dumps(about).encode(),
        "b.png": png(1), "b.txt": b"dog\n",
        "c.png": png(2), "c.json": b"{broken", "c.cls": b"3",
        "d.png": png(3),
    }  # fmt: skip
    found = image_set_from_tars(str(write_tar(tmp_path / "x.tar", members)))
    assert found.labels == ["cat", "dog", "3", None]
    assert found.attributes["group"].to_pylist() == ["7", None, None, None]
    assert found.attributes.column_names == ["label", "group", "domain"]


def test_several_pictures_of_one_key_share_its_label(tmp_path: Path) -> None:
    members = {"a.left.png": png(0), "a.right.png": png(1), "a.cls": b"x"}
    found = image_set_from_tars(str(write_tar(tmp_path / "x.tar", members)))
    assert found.ids == ["x/a.left.png", "x/a.right.png"] and found.labels == ["x", "x"]


def test_labels_with_the_full_name_of_a_picture_are_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = {
        "cat.png": png(0), "cat.cls": b"persian", "cat.2.png": png(1), "cat.2.cls": b"tabby",
        "22.05.png": png(2), "22.05.json": b'{"label": "may"}', "dog.cls": b"beagle",
        "dog.png": png(3), "dog.left.png": png(4), "dog.left.json": b'{"group": "g"}',
    }  # fmt: skip
    found = image_set_from_tars(str(write_tar(tmp_path / "x.tar", members)))
    assert dict(zip(found.ids, found.labels or [], strict=True)) == {
        "x/22.05.png": "may", "x/cat.2.png": "tabby", "x/cat.png": "persian",
        "x/dog.left.png": "beagle", "x/dog.png": "beagle",
    }  # fmt: skip
    assert caplog.text == ""
    del members["cat.2.cls"]
    found = image_set_from_tars(str(write_tar(tmp_path / "y.tar", members)))
    assert (found.labels or [])[1] == "persian"
    assert "1 images have no label of their own and take that of another image: cat.2.png" in (
        caplog.text
    )


def reasons(images: ImageSet) -> dict[str, str]:
    found = {}
    for i, name in enumerate(images.ids):
        try:
            read_image(images.file(i))
        except ImageError as error:
            found[name] = str(error)
    return found


def test_broken_members_are_listed(tmp_path: Path) -> None:
    members = {
        "a.png": png(0), "b.png": b"no image", "c.png": b"", "d.cls": b"x", "e.png": png(1),
    }  # fmt: skip
    found = reasons(image_set_from_tars(str(write_tar(tmp_path / "x.tar", members))))
    assert sorted(found) == ["x/b.png", "x/c.png", "x/d"]
    assert "no image with this key, only cls" in found["x/d"] and "empty" in found["x/c.png"]


@pytest.mark.parametrize("kept", [0, 100, 700, 2048, 3000, 4096, -1024, -512])
def test_a_cut_off_tar_file_keeps_what_is_whole(tmp_path: Path, kept: int) -> None:
    path = write_tar(tmp_path / "x.tar", {f"{i}.png": png(i) for i in range(4)})
    whole = path.read_bytes().rstrip(b"\0")
    data = (whole + bytes(1024 + -len(whole) % 512))[: kept if kept > 0 else None]
    path.write_bytes(data[:kept] if kept < 0 else data if kept else b"")
    write_tar(tmp_path / "y.tar", {"9.png": png(9)})
    images = image_set_from_tars(str(tmp_path))
    found = reasons(images)
    assert "y/9.png" in images.ids and "y/9.png" not in found
    good = [name for name in images.ids if name not in found]
    assert all(name in ("y/9.png", *(f"x/{i}.png" for i in range(4))) for name in good)
    if kept != -512:  # one block of zeros is an end mark too
        assert "damaged tar file" in found["x.tar"]
    if kept == -1024:
        assert len(good) == 5


def test_a_garbled_header_loses_what_is_behind_it_and_says_so(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"{i}.png": png(i) for i in range(4)})
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        data[archive.getmembers()[2].offset + 150] ^= 1
    path.write_bytes(data)
    images = image_set_from_tars(str(path))
    assert images.ids == ["x.tar", "x/0.png", "x/1.png"]
    assert "damaged tar file" in reasons(images)["x.tar"]


def test_every_byte_may_change(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.png": png(0, (4, 4)), "a.cls": b"x", "b.txt": b"y"})
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, 4096, 300):
        bad = bytearray(good)
        bad[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad)
        try:
            reasons(image_set_from_tars(str(path)))
        except DataError as error:
            assert "no images" in str(error)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="matches no tar files"):
        image_set_from_tars(str(tmp_path / "*.tar"))
    with pytest.raises(DataError, match="cannot read"):
        image_set_from_tars(str(tmp_path / "none.tar"))
    path = write_tar(tmp_path / "x.tar", {"a.png": png(0)})
    with pytest.raises(DataError, match="named twice"):
        image_set_from_tars(f"{path}::{path}")
    images = image_set_from_tars(str(path))
    path.unlink()
    assert reasons(images) == {"x/a.png": "its tar file is missing"}
    images.require_available()


def test_a_folder_of_images_stays_one(tars: Path, paint: Callable[..., Path]) -> None:
    paint("tars/a.png", (1, 2, 3))
    assert not is_tars(str(tars))
    assert len(ImageSet.from_folder(tars)) == 1


def add(path: Path, *members: tuple[str, bytes, str]) -> Path:
    """(name, content, target): a hard link where the target starts with =, else a symbolic one."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data, target in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if target:
                info.type = tarfile.LNKTYPE if target[0] == "=" else tarfile.SYMTYPE
                info.linkname = target.lstrip("=")
            archive.addfile(info, io.BytesIO(data))
    return path


def test_of_two_samples_of_one_key_the_first_keeps_its_own_label(tmp_path: Path) -> None:
    members = [("a.png", png(0), ""), ("a.cls", b"first", ""), ("b.png", png(1), ""),
               ("b.cls", b"b", ""), ("a.png", png(2), ""), ("a.cls", b"second", "")]  # fmt: skip
    found = image_set_from_tars(str(add(tmp_path / "x.tar", *members)))
    assert found.ids == ["x/a.png", "x/b.png"] and found.labels == ["first", "b"]
    assert found.file(0) == png(0)


def test_links_inside_are_followed_and_others_are_listed(tmp_path: Path) -> None:
    members = [("a.png", png(0), ""), ("a.cls", b"one", ""), ("b.png", b"", "=a.png"),
               ("b.cls", b"", "=a.cls"), ("s/c.png", b"", "../a.png"), ("d.png", b"", "s/c.png"),
               ("e.png", b"", "/etc/passwd"), ("f.png", b"", "f.png"), ("g.png", b"", "../g.png"),
               ("h.png", b"", "=none.png"), ("folder", b"", "s")]  # fmt: skip
    found = image_set_from_tars(str(add(tmp_path / "x.tar", *members)))
    assert found.ids == [f"x/{name}.png" for name in ("a", "b", "d", "e", "f", "g", "h", "s/c")]
    assert [found.file(i) for i in (0, 1, 2, 7)] == [png(0)] * 4
    assert found.labels is not None and found.labels[:2] == ["one", "one"]
    assert sorted(reasons(found)) == [f"x/{name}.png" for name in "efgh"]


def test_a_gnu_tar_of_hard_linked_files(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.png").write_bytes(png(0))
    os.link(tmp_path / "d/a.png", tmp_path / "d/b.png")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "d", ".")
    found = image_set_from_tars(str(tmp_path / "x.tar"))
    assert [found.file(i) for i in range(2)] == [png(0)] * 2


def test_tars_joined_by_cat_are_read_to_the_end(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{i}.tar", {f"{i}.png": png(i)}) for i in range(3)]
    joined = tmp_path / "all.tar"
    joined.write_bytes(b"".join(path.read_bytes() for path in paths))
    found = image_set_from_tars(str(joined))
    assert found.ids == ["all/0.png", "all/1.png", "all/2.png"]
    assert [found.file(i) for i in range(3)] == [png(i) for i in range(3)]
    joined.write_bytes(joined.read_bytes() + b"garbage")
    assert "damaged tar file" in reasons(image_set_from_tars(str(joined)))["all.tar"]


def test_one_bad_member_ends_nothing(tmp_path: Path) -> None:
    deep = b"[" * 100_000
    odd = json.dumps({"label": "\ud800x"}).encode()
    members = [("a.png", png(0), ""), ("a.json", deep, ""), ("b.png", png(1), ""),
               ("b.json", odd, ""), ("gr\udcfcn.png", png(2), ""),
               ("\udcff.cls", b"x", "")]  # fmt: skip
    found = image_set_from_tars(str(add(tmp_path / "x.tar", *members)))
    assert "".join(found.ids).isascii()
    assert found.ids[:2] == ["x/\\udcff", "x/a.png"] and len(found) == 4
    assert found.labels == [None, None, "?x", None]
    assert sorted(reasons(found)) == ["x/\\udcff", "x/gr\\udcfcn.png"]


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "", "y.tar"])
def test_compressed_tars_are_named_as_such(tmp_path: Path, name: str) -> None:
    path = write_tar(tmp_path / "plain/x.tar", {"a.png": png(0)})
    packed = tmp_path / (name or "x.tar.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    place = str(tmp_path / name)
    if name == "":
        path.unlink()
        path.parent.rmdir()
    assert is_tars(place)
    if name == "y.tar":
        assert "compressed" in reasons(image_set_from_tars(place))["y.tar"]
        return
    with pytest.raises(DataError, match=r"compressed tar files.*x\.t.*gz.*unpack"):
        image_set_from_tars(place)


def test_a_star_crosses_no_folder(tmp_path: Path) -> None:
    for below in ("a.tar", ".h.tar", "sub/b.tar"):
        write_tar(tmp_path / below, {"1.png": png(0)})
    for place in (str(tmp_path), f"file://{tmp_path}"):
        assert image_set_from_tars(f"{place}/*.tar").ids == ["a/1.png"]
        assert image_set_from_tars(f"{place}/*/*.tar").ids == ["b/1.png"]


def test_too_many_tars_are_refused_at_once() -> None:
    for pattern in ("p-{0..30000000}.tar", "p-{0..9" + "9" * 5000 + "}.tar"):
        with pytest.raises(DataError, match="more than 1,000,000 tar files"):
            image_set_from_tars(pattern)


def test_what_is_sent_away_knows_where_its_tars_are(
    tars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tars)
    sent = image_set_from_tars("part-000.tar::part-001.tar").for_worker(range(2, 5))
    monkeypatch.chdir("/")
    assert [sent.file(i) for i in range(3)] == [png(2), png(10), png(11)]


def test_a_pipe_is_no_tar_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(DataError, match="not a regular file"):
        image_set_from_tars(str(tmp_path / "x.tar"))
