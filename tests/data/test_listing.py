import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vizsla.data.listing import IMAGE_EXTENSIONS, is_image_name, list_images
from vizsla.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize("name", ["a.jpg", "a.JPG", "a.b.Jpeg", "ä b.webp", "a.HEIC", "x.J2K"])
def test_image_names(name: str) -> None:
    assert is_image_name(name)


@pytest.mark.parametrize("name", ["a.txt", ".jpg", ".a.jpg", "jpg", "a.jpg.bak", "a.eps", "", "a."])
def test_other_names(name: str) -> None:
    assert not is_image_name(name)


def test_extensions_have_no_dot() -> None:
    assert "jpg" in IMAGE_EXTENSIONS and "eps" not in IMAGE_EXTENSIONS


def test_listing_is_sorted_as_utf8_and_passes_over_the_rest(tmp_path: Path) -> None:
    names = [
        "b/1.jpg",
        "a-/1.jpg",
        "a/1.PNG",
        "a/1.jpg",
        "Z.jpg",
        "é.jpg",
        "z.jpg",
        "\U0001f600.jpg",
    ]
    touch(tmp_path, *names, "\uffee.jpg")
    touch(tmp_path, "a/.hidden.jpg", ".git/x.jpg", "a/notes.txt", "Thumbs.db", "a/._1.jpg")
    found = list_images(tmp_path)
    assert found.ids == sorted([*names, "\uffee.jpg"], key=lambda name: name.encode())
    assert found.ignored == 5
    assert found.links_outside == [] and found.bad_names == []


def test_odd_names_are_kept(tmp_path: Path) -> None:
    names = ["a\nb.jpg", "a\\b.jpg", " a.jpg", "a,b.jpg", '"a".jpg', "e\u0301.jpg", "é.jpg"]
    touch(tmp_path, *names)
    assert list_images(tmp_path).ids == sorted(names)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS refuses such names")
def test_names_that_are_not_utf8_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "good.jpg")
    folder = os.fsencode(tmp_path)
    Path(os.fsdecode(folder + b"/caf\xe9.jpg")).touch()
    found = list_images(tmp_path)
    assert found.ids == ["good.jpg"]
    assert found.bad_names == ["caf\\udce9.jpg"]
    assert "caf\\udce9.jpg" in caplog.text


def test_links_out_of_the_root_are_named_and_followed_on_request(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "root-other"
    touch(root, "a.jpg")
    touch(other, "x.jpg", "sub/y.jpg", "notes.txt")
    for name in ("z.jpg", "file.jpg", "b.jpg", "m.jpg"):
        (root / name).symlink_to(other / "x.jpg")
    (root / "folder").symlink_to(other, target_is_directory=True)
    (root / "notes.txt").symlink_to(other / "notes.txt")
    (root / ".hidden.jpg").symlink_to(other / "x.jpg")
    found = list_images(root)
    assert found.ids == ["a.jpg"]
    assert found.links_outside == ["b.jpg", "file.jpg", "folder", "m.jpg", "z.jpg"]
    assert found.ignored == 2
    followed = list_images(root, follow_links=True)
    assert followed.ids == [
        "a.jpg", "b.jpg", "file.jpg", "folder/sub/y.jpg", "folder/x.jpg", "m.jpg", "z.jpg",
    ]  # fmt: skip
    assert followed.links_outside == []


def test_links_within_the_root_are_no_way_out(tmp_path: Path) -> None:
    touch(tmp_path, "store/a.jpg", ".blobs/123")
    (tmp_path / "b.jpg").symlink_to("store/a.jpg")
    (tmp_path / "c.jpg").symlink_to(".blobs/123")
    (tmp_path / "alias").symlink_to("store", target_is_directory=True)
    (tmp_path / "lost.jpg").symlink_to("store/none.jpg")
    found = list_images(tmp_path)
    assert found.ids == ["b.jpg", "c.jpg", "lost.jpg", "store/a.jpg"]
    assert found.links_outside == []


def test_a_root_that_is_a_link_is_followed(tmp_path: Path) -> None:
    touch(tmp_path / "real", "a.jpg", "b/c.jpg")
    (tmp_path / "root").symlink_to("real", target_is_directory=True)
    assert list_images(tmp_path / "root").ids == ["a.jpg", "b/c.jpg"]


@pytest.mark.parametrize("follow_links", [False, True])
def test_links_in_a_circle_end(tmp_path: Path, follow_links: bool) -> None:
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "self").symlink_to("self")
    found = list_images(tmp_path, follow_links=follow_links)
    assert found.ids == ["a/1.jpg", "b/2.jpg", "self.jpg"]


def test_linked_folders_that_link_each_other_are_listed_once(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    for name in "abcdefgh":
        touch(other, f"{name}/{name}.jpg")
        for target in "abcdefgh":
            (other / name / f"to_{target}").symlink_to(other / target, target_is_directory=True)
        (root / name).symlink_to(other / name, target_is_directory=True)
    ids = list_images(root, follow_links=True).ids
    assert ids == [f"{name}/{name}.jpg" for name in "abcdefgh"]


def test_folders_and_pipes_with_names_of_images_are_not_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg/b.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = list_images(tmp_path)
    assert found.ids == ["a.jpg/b.jpg"] and found.ignored == 1


def test_two_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.jpg", "y/1.jpg")
    assert list_images(tmp_path).ids == ["x/1.jpg", "y/1.jpg"]


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda root: None, "does not exist"),
        (lambda root: root.touch(), "is a file"),
        (lambda root: root.mkdir(), "it is empty"),
        (lambda root: touch(root, "a.txt", ".b.jpg"), "no images among 2 files"),
    ],
)
def test_a_folder_without_images_is_an_error(
    tmp_path: Path, prepare: Callable[[Path], None], words: str
) -> None:
    prepare(tmp_path / "root")
    with pytest.raises(DataError, match=words):
        list_images(tmp_path / "root")


def test_a_folder_of_nothing_but_links_out_says_how_to_follow_them(tmp_path: Path) -> None:
    touch(tmp_path, "other/a.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.jpg").symlink_to(tmp_path / "other" / "a.jpg")
    with pytest.raises(DataError, match="follow_links=True"):
        list_images(tmp_path / "root")
