from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from vizsla.embed.arrays import own_embeddings
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError

VECTORS = np.array([[3.0, 4.0], [0.0, -2.0], [1e-30, 1e-30]])
UNIT = np.array([[0.6, 0.8], [0.0, -1.0], [0.5**0.5, 0.5**0.5]])
LABELS = ["cat", "dog", "cat"]


def stored(kind: str, folder: Path) -> Any:
    """VECTORS and, where the form holds them, LABELS."""
    path = folder / f"vectors.{kind}"
    if kind == "npy":
        np.save(path, VECTORS)
    elif kind == "npz":
        np.savez(path, features=VECTORS, labels=LABELS, ids=["a", "b", "c"])
    elif kind == "safetensors":
        save_file({"embeddings": VECTORS}, path)
    elif kind == "parquet":
        table = {"file": ["a", "b", "c"], "embedding": list(VECTORS), "label": LABELS}
        pq.write_table(pa.table({**table, "domain": ["x", None, "y"]}), path)
    elif kind == "folder":
        Embeddings.from_arrays(UNIT, ["a", "b", "c"], LABELS).save(path)
    elif kind == "torch":
        return torch.tensor(VECTORS, requires_grad=True)
    elif kind == "lists":
        return VECTORS.tolist()
    return path


@pytest.mark.parametrize(
    ("kind", "ids", "labelled"),
    [
        ("npy", "012", False), ("npz", "abc", True), ("safetensors", "012", False),
        ("parquet", "abc", True), ("folder", "abc", True), ("torch", "012", False),
        ("lists", "012", False),
    ],
)  # fmt: skip
def test_every_form_gives_the_same_unit_vectors(
    kind: str, ids: str, labelled: bool, tmp_path: Path
) -> None:
    found = own_embeddings(stored(kind, tmp_path))
    np.testing.assert_allclose(found.vectors, UNIT, atol=1e-6)
    assert found.vectors.dtype == np.float32
    assert found.ids == list(ids)
    assert found.labels == (LABELS if labelled else None)


def test_half_precision_and_brain_floats_are_read() -> None:
    for kind in (torch.float16, torch.bfloat16):
        found = own_embeddings(torch.tensor([[3.0, 4.0]], dtype=kind))
        np.testing.assert_allclose(found.vectors, UNIT[:1], atol=1e-2)


def test_other_columns_of_parquet_become_attributes(tmp_path: Path) -> None:
    found = own_embeddings(stored("parquet", tmp_path))
    assert found.attributes["domain"].to_pylist() == ["x", None, "y"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.txt", "cat\ndog\ncat\n"),
        ("l.csv", "n,label\n1,cat\n2,dog\n3,cat\n"),
        ("l.tsv", "label\nn\n".replace("\nn\n", "\ncat\ndog\ncat\n")),
    ],
)
def test_labels_come_from_text(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert own_embeddings(VECTORS, tmp_path / name).labels == LABELS


def test_labels_come_from_arrays_and_numbers_are_one_text(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.array([[1], [2], [1]]))
    assert own_embeddings(VECTORS, tmp_path / "l.npy").labels == ["1", "2", "1"]
    assert own_embeddings(VECTORS, torch.tensor([1.0, 2.0, 1.5])).labels == ["1", "2", "1.5"]
    assert own_embeddings(VECTORS, [1, None, float("nan")]).labels == ["1", None, None]


def test_a_labels_table_that_names_images_is_matched_by_name(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(
        "role,file,label,group\nquery,c,owl,1\nquery,a,fox,2\ngallery,a,cat,3\n"
    )
    found = own_embeddings(stored("folder", tmp_path), tmp_path / "l.csv", role="query")
    assert found.labels == ["fox", None, "owl"]
    assert found.attributes["group"].to_pylist() == ["2", None, "1"]
    (tmp_path / "p.csv").write_text("id,file,label,price\n9,c,owl,5\n8,a,fox,100\n")
    found = own_embeddings(stored("folder", tmp_path / "p"), tmp_path / "p.csv")
    assert found.labels == ["fox", None, "owl"]
    assert found.attributes["price"].to_pylist() == [100, None, 5]
    (tmp_path / "o.csv").write_text("file,label\nx,owl\n")
    with pytest.raises(
        DataError, match=r"column file\) names none of the 3 query images \(a, …\), but x"
    ):
        own_embeddings(stored("folder", tmp_path / "o"), tmp_path / "o.csv")


def test_rows_without_names_take_those_of_the_labels_table(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("file,label\nx.jpg,cat\ny.jpg,dog\nz.jpg,cat\n")
    assert own_embeddings(VECTORS, tmp_path / "l.csv").ids == ["x.jpg", "y.jpg", "z.jpg"]


@pytest.mark.parametrize("header", ["id,label", "id,label,file"])
def test_unnamed_vectors_take_labels_row_by_row(
    header: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ["2,owl,x.jpg", "0,cat,y.jpg", "1,dog,z.jpg"]
    width = header.count(",") + 1
    lines = [header, *(",".join(row.split(",")[:width]) for row in rows)]
    (tmp_path / "l.csv").write_text("\n".join(lines))
    found = own_embeddings(VECTORS, tmp_path / "l.csv")
    assert found.labels == ["owl", "cat", "dog"]
    assert found.ids == (["2", "0", "1"] if width == 2 else ["x.jpg", "y.jpg", "z.jpg"])
    assert ("l.csv (column id) holds the row numbers in another order" in caplog.text) == (
        width == 2
    )


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 2)])
def test_a_row_without_a_vector_is_told(kind: pa.DataType, tmp_path: Path) -> None:
    table = pa.table({"vector": pa.array([[1.0, 2.0], None, [3.0, 4.0]], kind)})
    pq.write_table(table, tmp_path / "v.parquet")
    with pytest.raises(DataError, match="from 0 to 2 numbers"):
        own_embeddings(tmp_path / "v.parquet")


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros(3), r"shape \(3,\)"),
        (np.zeros((0, 4)), r"shape \(0, 4\)"),
        (np.array([["a"]]), "expected numbers"),
        (np.array([[1j]]), "complex"),
        ([[1.0], [2.0, 3.0]], "cannot be read as numbers"),
        (np.array([[1.0], [np.nan], [np.inf]]), r"2 of 3 query vectors hold NaN .*rows 1, 2"),
        (np.array([[1.0], [0.0]]), r"1 of 2 query vectors are all zeros.*rows 1,"),
    ],
)
def test_vectors_without_direction_or_shape_are_refused(vectors: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        own_embeddings(vectors)


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 labels for 3 gallery vectors"):
        own_embeddings(VECTORS, ["a", "b"], role="gallery")
    (tmp_path / "l.csv").write_text("name,kind\na,b\n")
    with pytest.raises(DataError, match="columns name, kind: expected one called label"):
        own_embeddings(VECTORS, tmp_path / "l.csv")
    with pytest.raises(DataError, match="there is no file"):
        own_embeddings(VECTORS, tmp_path / "nowhere.txt")
    with pytest.raises(DataError, match="expected \\(N,\\)"):
        own_embeddings(VECTORS, np.zeros((3, 3)))


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    for name in ("a.npy", "a.npz", "a.safetensors", "a.parquet"):
        (tmp_path / name).write_bytes(b"not this")
        with pytest.raises(DataError, match=f"{name}.* cannot be read|that can be read"):
            own_embeddings(tmp_path / name)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="without objects"):
        own_embeddings(tmp_path / "objects.npy")
    np.savez(tmp_path / "two.npz", a=VECTORS, b=VECTORS)
    with pytest.raises(DataError, match="holds a, b: expected one array"):
        own_embeddings(tmp_path / "two.npz")
    with pytest.raises(DataError, match="a folder without embeddings"):
        own_embeddings(tmp_path)
    with pytest.raises(DataError, match="no file"):
        own_embeddings(tmp_path / "nowhere.npy")
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"vectors are read from \.npy"):
        own_embeddings(tmp_path / "a.bin")
    pq.write_table(pa.table({"label": ["a"]}), tmp_path / "labels.parquet")
    with pytest.raises(DataError, match="columns label: expected one of lists"):
        own_embeddings(tmp_path / "labels.parquet")
    pq.write_table(pa.table({"vector": [[1.0], [1.0, 2.0]]}), tmp_path / "ragged.parquet")
    with pytest.raises(DataError, match="from 1 to 2 numbers"):
        own_embeddings(tmp_path / "ragged.parquet")
