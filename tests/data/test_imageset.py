import json
import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizsla.data.data_folders import open_data
from vizsla.data.imageset import ImageSet
from vizsla.data.tables import (
    attributes_for,
    labels_for,
    labels_from_pattern,
    names_below_roles,
    read_labels,
    read_names,
)
from vizsla.errors import DataError, UsageError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    caplog.set_level(logging.WARNING, "vizsla")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


# ── the noun ─────────────────────────────────────────────────────────────────────────────────────


def three() -> ImageSet:
    table = pa.table({"label": ["a", None, "b"], "domain": ["photo", "photo", "drawn"]})
    return ImageSet(Path("root"), ["1.jpg", "2.jpg", "x/3.jpg"], table)


def test_an_image_set_says_where_its_files_are() -> None:
    images = three()
    assert len(images) == 3
    assert images.path(2) == Path("root/x/3.jpg")
    assert images.labels == ["a", None, "b"]
    assert ImageSet(Path("root"), ["1.jpg"]).labels is None


def test_subset_and_without_keep_attributes_beside_their_ids() -> None:
    part = three().subset([2, 0])
    assert part.ids == ["x/3.jpg", "1.jpg"]
    assert part.attributes.to_pydict() == {"label": ["b", "a"], "domain": ["drawn", "photo"]}
    rest = three().without({"1.jpg", "never-there.jpg"})
    assert rest.ids == ["2.jpg", "x/3.jpg"] and rest.labels == [None, "b"]
    assert ImageSet(Path("r"), ["1.jpg", "2.jpg"]).without(["1.jpg"]).ids == ["2.jpg"]


def test_labels_are_added_or_replaced() -> None:
    assert three().with_labels(["x", "y", None]).labels == ["x", "y", None]
    assert three().with_labels(["x", "y", None]).attributes.column_names == ["label", "domain"]
    bare = ImageSet(Path("r"), ["1.jpg"]).with_labels(["007"]).with_attribute("group", ["g"])
    assert bare.attributes.to_pydict() == {"label": ["007"], "group": ["g"]}


def test_lengths_must_agree() -> None:
    with pytest.raises(DataError, match="2 values of label for 3 images"):
        three().with_labels(["a", "b"])
    with pytest.raises(DataError, match="expected one for each of the 2"):
        ImageSet(Path("r"), ["1.jpg", "2.jpg"], pa.table({"label": ["a"]}))


# ── class folders ────────────────────────────────────────────────────────────────────────────────


def test_the_label_is_the_first_folder(tmp_path: Path) -> None:
    touch(tmp_path, "dog/1.jpg", "cat/deep/er/2.jpg", "cat/1.jpg", "007/x.png", "dog/notes.txt")
    images = ImageSet.from_class_folders(tmp_path)
    assert images.ids == ["007/x.png", "cat/1.jpg", "cat/deep/er/2.jpg", "dog/1.jpg"]
    assert images.labels == ["007", "cat", "cat", "dog"]
    assert images.path(0).exists()


def test_images_outside_class_folders_are_named(tmp_path: Path, warned: Callable[[], str]) -> None:
    touch(tmp_path, "dog/1.jpg", "stray.jpg")
    assert ImageSet.from_class_folders(tmp_path).ids == ["dog/1.jpg"]
    assert "1 images are outside the class folders" in warned() and "stray.jpg" in warned()


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    touch(tmp_path / "training", "1.jpg", "2.jpg")
    with pytest.raises(DataError, match=r"2 images but no class folders.*training/<class>/"):
        ImageSet.from_class_folders(tmp_path / "training")


def test_empty_and_twin_classes_are_named(tmp_path: Path, warned: Callable[[], str]) -> None:
    touch(tmp_path, "Dog/1.jpg", "dog/1.jpg", "cat/1.jpg", "bird/notes.txt", ".git/1.jpg")
    if len(list(tmp_path.iterdir())) < 5:
        pytest.skip("this file system does not tell Dog from dog")
    assert ImageSet.from_class_folders(tmp_path).labels == ["Dog", "cat", "dog"]
    assert "1 class folder holds no images: bird" in warned()
    assert "differ only in case are kept apart: Dog/dog" in warned()


def test_nothing_to_warn_of_is_silent(tmp_path: Path, warned: Callable[[], str]) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg")
    ImageSet.from_class_folders(tmp_path)
    ImageSet.from_folder(tmp_path)
    assert warned() == ""


def test_links_out_are_named_and_followed_on_request(
    tmp_path: Path, warned: Callable[[], str]
) -> None:
    touch(tmp_path / "root", "a/1.jpg")
    touch(tmp_path / "other", "2.jpg")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "other", target_is_directory=True)
    images = ImageSet.from_class_folders(tmp_path / "root")
    assert images.ids == ["a/1.jpg"] and images.links_outside == ["b"]
    assert "1 links lead out" in warned() and "--follow-links" in warned()
    followed = ImageSet.from_class_folders(tmp_path / "root", follow_links=True)
    assert followed.ids == ["a/1.jpg", "b/2.jpg"] and followed.labels == ["a", "b"]


# ── folders with a metadata file ─────────────────────────────────────────────────────────────────


def test_a_plain_folder_has_no_attributes(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a/c.jpg")
    images = ImageSet.from_folder(tmp_path)
    assert images.ids == ["a/c.jpg", "b.jpg"]
    assert images.attributes.num_columns == 0 and images.labels is None


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_hugging_face_metadata_is_read(
    tmp_path: Path, form: str, warned: Callable[[], str]
) -> None:
    touch(tmp_path, "a.jpg", "sub/b.jpg", "c.jpg")
    rows = [
        {"file_name": "sub/b.jpg", "label": 7, "text": "a, b"},
        {"file_name": "a.jpg", "label": 12, "text": None},
        {"file_name": "gone.jpg", "label": 1, "text": "x"},
    ]
    path = tmp_path / f"metadata.{form}"
    if form == "csv":
        write(path, 'file_name,label,text\nsub/b.jpg,7,"a, b"\na.jpg,12,\ngone.jpg,1,x\n')
    elif form == "jsonl":
        write(path, "\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    images = ImageSet.from_folder(tmp_path)
    assert images.ids == ["a.jpg", "c.jpg", "sub/b.jpg"]
    assert images.labels == ["12", None, "7"]
    assert images.attributes["text"].to_pylist() == [None, None, "a, b"]
    assert "1 images that do not exist: gone.jpg" in warned()
    assert "no row for 1 images: c.jpg" in warned()


def test_metadata_for_other_images_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    write(tmp_path / "metadata.csv", "file_name,label\nb.jpg,x\n")
    with pytest.raises(DataError, match=r"names none of the images in its folder, but b\.jpg"):
        ImageSet.from_folder(tmp_path)


def test_class_folders_take_other_columns_from_metadata(
    tmp_path: Path, warned: Callable[[], str]
) -> None:
    touch(tmp_path, "dog/1.jpg", "dog/2.jpg")
    write(tmp_path / "metadata.csv", "file_name,domain,label\ndog/1.jpg,photo,\ndog/2.jpg,drawn,\n")
    images = ImageSet.from_class_folders(tmp_path)
    assert images.attributes["domain"].to_pylist() == ["photo", "drawn"]
    assert images.labels == ["dog", "dog"] and warned() == ""
    write(tmp_path / "metadata.csv", "file_name,label\ndog/1.jpg,cat\ndog/2.jpg,dog\n")
    assert ImageSet.from_class_folders(tmp_path).labels == ["dog", "dog"]
    assert "not the metadata file's" in warned()


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("column", ["file", "path", "file_name", "FILE", " Path "])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_in_all_its_forms(tmp_path: Path, column: str, delimiter: str, encoding: str) -> None:
    touch(tmp_path, "é.jpg", "sub/b.jpg")
    lines = [[column, "Label", "Group"], ["sub/b.jpg", "007", "g 1"], ["é.jpg", "", "g2"], ["", ""]]
    text = "\r\n".join(delimiter.join(line) for line in lines)
    images = ImageSet.from_table(write(tmp_path / "t.csv", text, encoding))
    assert images.ids == ["sub/b.jpg", "é.jpg"]
    assert images.attributes.to_pydict() == {"label": ["007", None], "group": ["g 1", "g2"]}
    assert images.path(0).exists()


def test_parquet_columns_have_types(tmp_path: Path, warned: Callable[[], str]) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    columns = {
        "path": pa.array(["b.jpg", "a.jpg"]).dictionary_encode(),
        "label": pa.array([12345678901.0, float("nan")]),
        "size": pa.array([1.5, 2.0]),
        "good": pa.array([True, None]),
        "image": pa.array([{"bytes": b"x"}, {"bytes": b"y"}]),
        "id": pa.array([1, 2]),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    images = ImageSet.from_table(tmp_path / "t.parquet")
    assert images.attributes.to_pydict() == {
        "label": [None, "12345678901"], "size": [2.0, 1.5], "good": [None, True],
    }  # fmt: skip
    assert "image is left out" in warned()


def test_backslashes_absolute_paths_and_dots(tmp_path: Path) -> None:
    touch(tmp_path, "data/sub/a.jpg", "data/b.jpg", "data/c.jpg", "data/odd\\name.jpg")
    rows = ["sub\\a.jpg,1", f"{tmp_path}/data/b.jpg,2", "./x/../c.jpg,3", "odd\\name.jpg,4"]
    path = write(tmp_path / "data" / "t.csv", "file,label\n" + "\n".join(rows))
    images = ImageSet.from_table(path)
    assert dict(zip(images.ids, images.labels or [], strict=True)) == {
        "b.jpg": "2", "c.jpg": "3", "odd\\name.jpg": "4", "sub/a.jpg": "1",
    }  # fmt: skip


def test_the_root_moves_up_to_hold_all_files_unless_it_is_given(tmp_path: Path) -> None:
    touch(tmp_path, "images/a/1.jpg", "images/b/2.jpg")
    path = write(tmp_path / "tables" / "t.csv", "file\n../images/a/1.jpg\n../images/b/2.jpg\n")
    images = ImageSet.from_table(path)
    assert images.root == tmp_path / "images" and images.ids == ["a/1.jpg", "b/2.jpg"]
    with pytest.raises(DataError, match="2 files are outside"):
        ImageSet.from_table(path, tmp_path / "tables")


def test_a_root_of_ones_own(tmp_path: Path) -> None:
    touch(tmp_path / "images", "1.jpg")
    path = write(tmp_path / "t.csv", "file\n1.jpg\n")
    assert ImageSet.from_table(path, tmp_path / "images").ids == ["1.jpg"]
    with pytest.raises(DataError, match=r"none of the 1 files.*1\.jpg.*as root"):
        ImageSet.from_table(path)
    with pytest.raises(DataError, match="not a folder"):
        ImageSet.from_table(path, tmp_path / "none")


def test_missing_files_stay_and_are_named(tmp_path: Path, warned: Callable[[], str]) -> None:
    touch(tmp_path, "a.jpg")
    path = write(tmp_path / "t.csv", "file,label\na.jpg,x\nb.jpg,x\nc.jpg,y\n")
    assert ImageSet.from_table(path).ids == ["a.jpg", "b.jpg", "c.jpg"]
    assert "2 files that do not exist: b.jpg, c.jpg" in warned()


def test_rows_twice_with_one_label_are_one_image(tmp_path: Path, warned: Callable[[], str]) -> None:
    touch(tmp_path, "a.jpg")
    images = ImageSet.from_table(write(tmp_path / "t.csv", "file,label\na.jpg,x\n./a.jpg,x\n"))
    assert images.ids == ["a.jpg"] and images.labels == ["x"]
    assert "1 images more than once" in warned()


def test_rows_twice_with_two_labels_are_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    path = write(tmp_path / "t.csv", "file,label\na.jpg,x\na.jpg,y\n")
    with pytest.raises(DataError, match=r"1 images more than one label \(a\.jpg: x and y\)"):
        ImageSet.from_table(path)


def test_a_role_picks_rows_and_their_folder(tmp_path: Path) -> None:
    touch(tmp_path, "test/query/1.jpg", "test/gallery/1.jpg", "training/dog/1.jpg")
    rows = "Query,1.jpg,cat\ngallery,1.jpg,dog\ntraining,dog/1.jpg,dog\n"
    path = write(tmp_path / "labels.csv", "role,file,label\n" + rows)
    for role, label in (("query", "cat"), ("gallery", "dog"), ("training", "dog")):
        images = ImageSet.from_table(path, role=role)
        assert images.labels == [label] and images.path(0).exists()
        assert "role" not in images.attributes.column_names
    with pytest.raises(DataError, match="no rows with the role other, only gallery, query"):
        ImageSet.from_table(path, role="other")


def test_rows_without_a_role_count_for_all(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    path = write(tmp_path / "t.csv", "role,file\nquery,1.jpg\n,2.jpg\n")
    assert ImageSet.from_table(path, role="query").ids == ["1.jpg", "2.jpg"]
    assert ImageSet.from_table(path).attributes["role"].to_pylist() == ["query", None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("role,label\nquery,x\n", "columns role, label: expected one of file, path, file_name"),
        ("a.jpg,x\nb.jpg,y\n", "expected one of file"),
        ("file,label\n", "no rows"),
        ("", "expected one of file"),
        ("file,label\n,x\n", "row 1 below the header has no file"),
        ("file,label\na,b.jpg,x\n", "line 2: 3 fields, but the header has 2"),
        ('file,label\n"a.jpg,x\nb.jpg,y\n', "not valid CSV"),
        ('file,label\n"a"b.jpg,x\n', "line 2: not valid CSV"),
        ("file,label,label\na.jpg,x,y\n", "column label twice"),
        ("file,label\na\0.jpg,x\n", "none of the 1 files"),
        ("file,label\n" + "x" * 200_000, "line 2: not valid CSV"),
    ],
)
def test_a_broken_table_is_an_error_that_says_where(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        ImageSet.from_table(write(tmp_path / "t.csv", text))


def test_what_is_no_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(DataError, match="is a folder"):
        read_labels(tmp_path)
    with pytest.raises(DataError, match="not a Parquet file"):
        read_labels(write(tmp_path / "t.parquet", "file,label"))
    with pytest.raises(DataError, match="not valid UTF-8"):
        read_labels(write(tmp_path / "t.csv", "file,label\né.jpg,x", "latin-1"))
    with pytest.raises(DataError, match="line 2: not valid JSON"):
        read_labels(write(tmp_path / "t.jsonl", '{"file": "a.jpg"}\n{"file"'))
    with pytest.raises(DataError, match="line 1: expected an object"):
        read_labels(write(tmp_path / "t.jsonl", "[1]"))
    with pytest.raises(DataError, match="half a character"):
        read_labels(write(tmp_path / "t.jsonl", '{"file": "\\ud800.jpg"}'))


@given(st.binary(max_size=60), st.sampled_from(["csv", "jsonl", "parquet"]))
def test_garbage_is_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes, form: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"garbage.{form}"
    path.write_bytes(b"file,label\n" * (form == "csv") + garbage)
    try:
        assert "file" in read_labels(path).column_names
    except DataError as error:
        assert str(error)
    try:
        read_names(path)
    except DataError as error:
        assert str(error)


# ── labels ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "n", "classes"), [("clothing", 372, 10), ("caltech101", 1230, 41)]
)
def test_the_shared_labels_read_as_they_are(shared: Path, name: str, n: int, classes: int) -> None:
    folder = shared / "data" / name
    table = read_labels(folder / "labels.csv")
    assert len(table) == n and set(table.column_names) == {"role", "file", "label"}
    assert len(set(table["label"].to_pylist())) == classes
    data = open_data(folder)
    assert data.labels_file == folder / "labels.csv" and data.training is not None
    assert len(set(data.training.labels or [])) == {"clothing": 10, "caltech101": 60}[name]
    for role, images in (("query", data.query), ("gallery", data.gallery)):
        assert images.labels is None
        labels = labels_for(images.ids, table, role)
        assert all(labels) and len(labels) == table["role"].to_pylist().count(role)
        assert ImageSet.from_table(folder / "labels.csv", role=role).labels == labels


def test_the_role_decides_where_a_name_occurs_twice(tmp_path: Path) -> None:
    text = "role,file,label\nquery,1.jpg,cat\ngallery,1.jpg,dog\n,2.jpg,007\n"
    table = read_labels(write(tmp_path / "labels.csv", text))
    assert labels_for(["1.jpg", "2.jpg", "3.jpg"], table, "query") == ["cat", "007", None]
    assert labels_for(["2.jpg", "1.jpg"], table, "gallery") == ["007", "dog"]
    assert labels_for(["1.jpg"], table, "training") == [None]
    with pytest.raises(DataError, match=r"1\.jpg: cat and dog.*role"):
        labels_for(["1.jpg"], table, None)


def test_without_roles_a_row_counts_for_both(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path / "labels.csv", "file_name;label\n1.jpg; cat \n2.jpg;\n"))
    for role in ("query", "gallery", None):
        assert labels_for(["1.jpg", "2.jpg"], table, role) == ["cat", None]


def test_labels_need_a_label_column(tmp_path: Path) -> None:
    table = read_labels(write(tmp_path / "labels.csv", "file,domain\n1.jpg,photo\n"))
    assert table.column_names == ["file", "domain"]
    with pytest.raises(DataError, match="columns file, domain: expected `label`"):
        labels_for(["1.jpg"], table, "query")


def test_odd_names_find_their_rows(tmp_path: Path) -> None:
    rows = 'x\\1.jpg,a\n./y/2.jpg,b\n odd .jpg ,c\n"a,b\nc.jpg",d\n'
    table = read_labels(write(tmp_path / "labels.csv", "file,label\n" + rows))
    ids = ["x\\1.jpg", "y/2.jpg", " odd .jpg ", "a,b\nc.jpg"]
    assert labels_for(ids, table, None) == ["a", "b", "c", "d"]
    assert labels_for(["x/1.jpg", "odd .jpg"], table, None) == ["a", "c"]
    assert labels_for(["x/1.jpg", "x\\1.jpg"], table, None) == [None, "a"]  # the name as written


def test_files_below_the_role_folder_are_cut(tmp_path: Path) -> None:
    rows = "query,data/test/query/1.jpg,a\ngallery,sub/1.jpg,b\ngallery,gallery/2.jpg,c\n"
    table = read_labels(write(tmp_path / "labels.csv", "role,path,label\n" + rows))
    assert names_below_roles(table) == ["1.jpg", "sub/1.jpg", "gallery/2.jpg"]
    assert labels_for(["sub/1.jpg", "2.jpg"], table, "gallery") == ["b", "c"]
    assert labels_for(["sub/1.jpg", "gallery/2.jpg", "2.jpg"], table, "gallery") == ["b", "c", None]
    rows = "/x/test/query/1.jpg,a\n/x/test/gallery/1.jpg,b\n/x/training/c/1.jpg,c\n"
    table = read_labels(write(tmp_path / "labels.csv", "path,label\n" + rows))
    assert names_below_roles(table) == ["1.jpg", "1.jpg", "c/1.jpg"]
    assert labels_for(["1.jpg"], table, "gallery") == ["b"]
    assert table["role"].to_pylist() == ["query", "gallery", "training"]


def test_unknown_roles_are_named(tmp_path: Path, warned: Callable[[], str]) -> None:
    read_labels(write(tmp_path / "labels.csv", "role,file,label\nprobe,1.jpg,a\nquery,2.jpg,b\n"))
    assert "unknown roles probe" in warned()


def test_attributes_of_ids(tmp_path: Path) -> None:
    text = "role,file,label,domain,id\nquery,1.jpg,a,photo,9\ngallery,1.jpg,a,drawn,8\n"
    table = read_labels(write(tmp_path / "labels.csv", text))
    found = attributes_for(["0.jpg", "1.jpg"], table, "gallery")
    assert found.to_pydict() == {"domain": [None, "drawn"]}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("dog_12.jpg", "dog"),
        ("big_cat_3.jpg", "big_cat"),
        ("sub_7/big_cat_3.JPEG", "big_cat"),
        ("a.b_1.jpg", "a.b"),
        ("7_7.png", "7"),
        ("dog.jpg", None),
        ("dog_x.jpg", None),
        ("_1.jpg", None),
        ("dog_12b.jpg", None),
        ("dog_١.jpg", None),
        ("a\nb_1.jpg", "a\nb"),
    ],
)
def test_the_label_is_all_before_the_last_number(name: str, label: str | None) -> None:
    assert labels_from_pattern([name], "{label}_{n}") == [label]


def test_other_patterns() -> None:
    assert labels_from_pattern(["12-dog.jpg", "x-dog.jpg"], "{n}-{label}") == ["dog", None]
    assert labels_from_pattern(["img.dog(1).png"], "img.{label}({n})") == ["dog"]
    assert labels_from_pattern(["imgXdog.png"], "img.{label}") == [None]


@pytest.mark.parametrize("pattern", ["", "{n}", "{label}{label}", "{class}_{n}", "{}_{label}", "x"])
def test_a_pattern_must_hold_one_label(pattern: str) -> None:
    with pytest.raises(UsageError, match="expected one"):
        labels_from_pattern(["a_1.jpg"], pattern)


def test_the_contest_names_carry_their_labels(shared: Path) -> None:
    text = (shared / "contest" / "submissions" / "sub_resnet50.json").read_text()
    labels = labels_from_pattern(list(json.loads(text)), "{label}_{n}")
    assert all(labels) and len(set(labels)) > 5


def test_excluded_names(tmp_path: Path) -> None:
    lines = ["query/a b.jpg", "# a remark", "", "gallery/x,y.jpg\r", '"query/a\\nb.jpg"', '"half']
    path = write(tmp_path / "out.txt", "\n".join(lines))
    expected = ["query/a b.jpg", "gallery/x,y.jpg", "query/a\nb.jpg", '"half']
    assert read_names(path) == expected
    path = write(tmp_path / "out.csv", "role,file,reason\nquery,a.jpg,broken\n,b.jpg,twin\n")
    assert read_names(path) == ["query/a.jpg", "b.jpg"]
    with pytest.raises(DataError, match="cannot be read"):
        read_names(tmp_path / "none.txt")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_are_read_in_every_encoding_with_every_line_end(
    tmp_path: Path, encoding: str, end: str
) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(f"é.jpg{end}b .jpg{end}".encode(encoding))
    assert read_names(path) == ["é.jpg", "b .jpg"]
    path.write_bytes(f"file,label{end}é.jpg,a{end}b .jpg,b{end}".encode(encoding))
    assert read_names(path) == ["é.jpg", "b .jpg"]
    assert read_labels(path)["label"].to_pylist() == ["a", "b"]


def test_names_in_another_unicode_form_are_found(tmp_path: Path, warned: Callable[[], str]) -> None:
    nfc, nfd = "\u00e9", "e\u0301"
    touch(tmp_path, f"{nfd}.jpg")
    table = write(tmp_path / "t.csv", f"file,label\n{nfc}.jpg,{nfd}\n")
    images = ImageSet.from_table(table)
    assert images.ids == [f"{nfd}.jpg"] and images.labels == [nfc] and images.path(0).exists()
    assert "t.csv: 1 names differ from those of their images" in warned()
    assert labels_for([f"{nfd}.jpg"], read_labels(table), None) == [nfc]
    assert "1 names differ from those of their images" in warned() and "e\\u0301" in warned()
    assert labels_for([f"{nfd}.jpg", f"{nfc}.jpg"], read_labels(table), None) == [None, nfc]
    assert labels_from_pattern([f"{nfd}_1.jpg"]) == [nfc]


def test_class_folders_in_both_unicode_forms_are_one_class(
    tmp_path: Path, warned: Callable[[], str]
) -> None:
    touch(tmp_path, "\u00e9/1.jpg", "e\u0301/2.jpg", "x/3.jpg")
    images = ImageSet.from_class_folders(tmp_path)
    assert images.labels is not None and {*images.labels} == {"\u00e9", "x"}
    assert "only in Unicode's form are one class" in warned()


def test_metadata_names_literally_first(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.jpg", "x\\1.jpg")
    write(tmp_path / "metadata.csv", "file_name,label\nx\\1.jpg,one\nx/1.jpg,two\n")
    images = ImageSet.from_folder(tmp_path)
    assert dict(zip(images.ids, images.labels or [], strict=True)) == {
        "x\\1.jpg": "one", "x/1.jpg": "two",
    }  # fmt: skip


# ── the layout ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def data(tmp_path: Path) -> Path:
    names = ["training/dog/1.jpg", "training/cat/1.jpg", "test/query/1.jpg", "test/gallery/1.jpg"]
    return touch(tmp_path / "project" / "data", *names)


@pytest.mark.parametrize("above", [False, True])
def test_the_layout_opens_by_itself_or_from_above(data: Path, above: bool) -> None:
    found = open_data(data.parent if above else data)
    assert found.folder == data
    assert found.training is not None and found.training.labels == ["cat", "dog"]
    assert found.query.ids == ["1.jpg"] and found.gallery.ids == ["1.jpg"]
    assert found.query.root == data / "test" / "query"
    assert found.labels_file is None


def test_training_may_be_left_out(data: Path) -> None:
    for path in sorted((data / "training").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (data / "training").rmdir()
    assert open_data(data).training is None


def test_the_labels_file_gives_all_columns_but_the_truth(data: Path) -> None:
    rows = "query,1.jpg,cat,photo,\ngallery,1.jpg,dog,drawn,\ntraining,dog/1.jpg,x,photo,g\n"
    write(data / "labels.csv", "role,file,label,domain,group\n" + rows)
    found = open_data(data)
    assert found.labels_file == data / "labels.csv" and found.training is not None
    assert found.query.attributes.to_pydict() == {"domain": ["photo"]}
    assert found.gallery.attributes.to_pydict() == {"domain": ["drawn"]}
    assert found.training.attributes.to_pydict() == {
        "label": ["cat", "dog"], "domain": [None, "photo"], "group": [None, "g"],
    }  # fmt: skip


def test_a_labels_file_that_cannot_be_read_does_not_stop_the_opening(
    data: Path, warned: Callable[[], str]
) -> None:
    write(data / "labels.csv", "nothing,here\n1,2\n")
    assert open_data(data).labels_file == data / "labels.csv"
    assert "expected one of file" in warned()


def test_the_labels_file_is_found_from_above(data: Path) -> None:
    write(data / "labels.csv", "file,label\n1.jpg,x\n")
    assert open_data(data.parent).labels_file == data / "labels.csv"
    (data / "labels.csv").rename(data.parent / "labels.csv")
    assert open_data(data.parent).labels_file == data.parent / "labels.csv"


def test_labels_as_parquet(data: Path) -> None:
    pq.write_table(pa.table({"file": ["1.jpg"], "label": [7]}), data / "labels.parquet")
    found = open_data(data)
    assert found.labels_file == data / "labels.parquet"
    assert labels_for(found.query.ids, read_labels(found.labels_file), "query") == ["7"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["dog/1.jpg", "cat/1.jpg"],
            "test/query and test/gallery missing. Found there: cat/, dog/",
        ),
        (
            ["train/dog/1.jpg", "test/query/1.jpg", "test/gallery/1.jpg"],
            "train/ should be named tr",
        ),
        (["test/Query/1.jpg", "test/gallery/1.jpg"], "Query/ should be named query/"),
        (["test/queries/1.jpg", "test/gallery/1.jpg"], "queries/ should be named query/"),
        (["Test/query/1.jpg", "training/a/1.jpg"], "Test/ should be named test/"),
        (["query/1.jpg", "gallery/1.jpg"], "query/ and gallery/ belong in test/"),
        (["training/dog/1.jpg", "a.jpg"], "test/query and test/gallery missing"),
        (["test/query/1.jpg"], "test/gallery missing"),
        ([".hidden/a.jpg"], "Found there: nothing"),
    ],
)
def test_another_layout_is_shown_what_is_expected(
    tmp_path: Path, names: list[str], words: str
) -> None:
    touch(tmp_path, *names)
    with pytest.raises(DataError) as caught:
        open_data(tmp_path)
    assert words in str(caught.value)
    assert "├── training/<class>/" in str(caught.value)


def test_the_test_part_alone_points_above(data: Path) -> None:
    with pytest.raises(DataError, match="is the test part: give the folder above it"):
        open_data(data / "test")


def test_a_folder_that_is_none_is_shown_the_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist(.|\n)*gallery"):
        open_data(tmp_path / "none")
    with pytest.raises(DataError, match=r"is a file(.|\n)*gallery"):
        open_data(write(tmp_path / "a.txt", "x"))


def test_an_empty_part_is_named(data: Path) -> None:
    (data / "test" / "query" / "1.jpg").unlink()
    with pytest.raises(DataError, match="query holds no images: it is empty"):
        open_data(data)
