import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from vizsla.data.table_files import read_rows
from vizsla.data.tables import read_labels, read_names, read_table
from vizsla.errors import DataError

DAY, TIME = datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2, 12, 0)


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["5", "100", ""], pa.int64(), [5, 100, None]),
        (["5.0", "10", "-3"], pa.int64(), [5, 10, -3]),
        (["5", "9.5", "1e3"], pa.float64(), [5.0, 9.5, 1000.0]),
        (["1.5", "nan", "-inf"], pa.float64(), [1.5, None, None]),
        (["True", "false", ""], pa.bool_(), [True, False, None]),
        (["2026-01-02", "", "2026-01-02"], pa.date32(), [DAY, None, DAY]),
        (["2026-01-02T12:00", "2026-01-02 12:00:00.000000000", ""], pa.timestamp("us"),
         [TIME, TIME, None]),
        (["2026-01-02T12:00Z", "2026-01-02T14:00:00+02:00", "2026-01-02T11:00-0100"],
         pa.timestamp("us"), [TIME] * 3),
        (["2026-01-02T00:00", "2026-01-02 00:00:00", ""], pa.date32(), [DAY, DAY, None]),
        (["5", "n/a", "7"], pa.string(), ["5", "n/a", "7"]),
        (["007", "12", "3"], pa.string(), ["007", "12", "3"]),
        (["2026-02-31", "2026-01-02", ""], pa.string(), ["2026-02-31", "2026-01-02", None]),
        (["9" * 30, "1", ""], pa.string(), ["9" * 30, "1", None]),
        (["nan", "", ""], pa.string(), ["nan", None, None]),
        ([" e\u0301 ", "x", ""], pa.string(), ["\u00e9", "x", None]),
    ],
)  # fmt: skip
def test_a_column_has_the_type_of_its_values(
    tmp_path: Path, cells: list[str], kind: pa.DataType, values: list[Any]
) -> None:
    table = pa.table({"file": ["1", "2", "3"], "value": cells, "label": ["1", "2", "3"]})
    pa.csv.write_csv(table, tmp_path / "t.csv")
    pq.write_table(table, tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        found = read_rows(tmp_path / name)
        assert found["value"].type == kind and found["value"].to_pylist() == values
        assert found["file"].to_pylist() == found["label"].to_pylist() == ["1", "2", "3"]


def test_typed_parquet_reads_as_the_csv_of_the_same_values(tmp_path: Path) -> None:
    table = pa.table({
        "file": ["a.jpg", "b.jpg"], "n": pa.array([5, 100], pa.int32()),
        "gaps": pa.array([1.0, None]), "price": pa.array([5.25, 1.5], pa.float32()),
        "exact": pa.array([5, 7]).cast(pa.decimal128(21, 2)), "new": [True, False],
        "day": [DAY, DAY], "at": pa.array([TIME, None], pa.timestamp("ns", "UTC")),
        "midnight": pa.array([DAY, DAY]).cast(pa.timestamp("ms")),
        "code": pa.array(["x", "y"]).dictionary_encode(), "group": [1, 2],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet")
    plain = table.set_column(table.column_names.index("code"), "code", table["code"].cast("string"))
    pa.csv.write_csv(plain, tmp_path / "t.csv")
    one, other = (read_rows(tmp_path / name) for name in ("t.parquet", "t.csv"))
    assert one.to_pydict() == other.to_pydict()
    assert {n: str(one[n].type) for n in one.column_names} == {
        "file": "string", "n": "int64", "gaps": "int64", "price": "double", "exact": "int64",
        "new": "bool", "day": "date32[day]", "at": "timestamp[us]", "midnight": "date32[day]",
        "code": "string", "group": "string",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_records_are_one_a_line_or_one_list(tmp_path: Path, name: str) -> None:
    rows = ['{"file": "a.jpg", "price": 5}', '{"file": "b.jpg", "price": 10}']
    (tmp_path / name).write_text("\n".join(rows))
    lines = read_rows(tmp_path / name)
    (tmp_path / name).write_text("[" + ",\n".join(rows) + "]")
    assert read_rows(tmp_path / name).to_pylist() == lines.to_pylist()
    assert lines["price"].to_pylist() == [5, 10]


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.csv"])
def test_a_coco_file_is_called_one(tmp_path: Path, name: str) -> None:
    text = '{"images": [{"id": 1}], "annotations": [{"category_id": 1}, {"category_id": 1}]}'
    for written in (text, text.replace(", ", ",\n")):
        (tmp_path / name).write_text(written)
        with pytest.raises(DataError, match=r"images, annotations \(a COCO file\), not a table"):
            read_rows(tmp_path / name)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_known_columns_are_found_in_any_case_and_only_once(tmp_path: Path, suffix: str) -> None:
    def written(name: str, columns: list[str]) -> Path:
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "csv":
            path.write_text(f"{','.join(columns)}\na.png,cat\n")
        elif suffix == "jsonl":
            path.write_text(json.dumps(dict(zip(columns, ("a.png", "cat"), strict=True))) + "\n")
        else:
            pq.write_table(pa.table([["a.png"], ["cat"]], names=columns), path)
        return path

    table = read_table(written("good", ["File", "Label"]))
    assert table.to_pylist() == [{"file": "a.png", "label": "cat"}]
    with pytest.raises(DataError, match="has the column file twice"):
        read_table(written("twice", ["File", "file"]))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("image,class", "image names the images, class is the label"),
        ("filename,label", "filename names the images"),
        ("Image,Id", "image names the images, id is the label"),
        ("img,Class_Name", "img names the images, class_name is the label"),
        ("file,class", "class is the label"),
        ("file,label", ""),
    ],
)
def test_other_usual_headers_are_understood_and_one_line_says_how(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, columns: str, said: str
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(f"{columns}\na.jpg,007\n")
    with caplog.at_level("INFO", "vizsla.tables"):
        for _ in range(2):
            assert read_labels(path).to_pylist() == [{"file": "a.jpg", "label": "007"}]
    assert [line.removeprefix(f"{path}: ") for line in caplog.messages] == [said] * bool(said)


def test_a_column_with_a_usual_name_stays_an_attribute_beside_the_label(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("file,label,class,id\na.jpg,x,y,1\n")
    (row,) = read_labels(path).to_pylist()
    assert row == {"file": "a.jpg", "label": "x", "class": "y", "id": "1"}
    path.write_text("image,id,price\na.jpg,1,2\n")  # an article's number is no class
    assert "label" not in read_labels(path).column_names


def test_whole_numbers_beyond_64_bits_are_kept_as_floats(tmp_path: Path) -> None:
    pq.write_table(pa.table({"file": ["a", "b"], "x": [1e20, 5.0]}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet")["x"].to_pylist() == [1e20, 5.0]


def test_a_number_sign_before_a_space_starts_a_remark(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# copies\n#1.png\n#\n a.png\n")
    assert [name.strip() for name in read_names(tmp_path / "list.txt")] == ["#1.png", "a.png"]
