import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from vizsla.embed.embeddings import Embeddings, ShardWriter, is_embeddings, parts_of
from vizsla.embed.shards import concatenated
from vizsla.errors import DataError, StorageError


def unit(n: int, d: int = 5) -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def example() -> Embeddings:
    attributes = pa.table({"label": ["x", None, "y"], "group": ["1", "1", "2"]})
    return Embeddings(
        ["a.png", "b/é.png", "c.png"], unit(3), attributes, "model", "compute", [("d.png", "bad")]
    )


def test_folder_round_trip_keeps_all(tmp_path: Path) -> None:
    before = example()
    before.save(tmp_path / "e")
    after = Embeddings.open(tmp_path / "e")
    assert after.ids == before.ids
    np.testing.assert_array_equal(after.vectors, before.vectors)
    assert after.attributes.to_pydict() == before.attributes.to_pydict()
    assert (after.model_id, after.compute_id) == ("model", "compute")
    assert after.broken == [("d.png", "bad")]
    assert after.labels == ["x", None, "y"]
    assert is_embeddings(tmp_path / "e") and not is_embeddings(tmp_path)


def test_half_precision_halves_the_file_and_barely_moves_the_vectors(tmp_path: Path) -> None:
    vectors = unit(2000, 64)
    whole = Embeddings([str(i) for i in range(2000)], vectors, pa.table({}), "m")
    whole.save(tmp_path / "fp32")
    whole.save(tmp_path / "fp16", store="fp16")
    sizes = [(tmp_path / s / "shard-00000.parquet").stat().st_size for s in ("fp32", "fp16")]
    assert sizes[1] < 0.6 * sizes[0]
    half = Embeddings.open(tmp_path / "fp16")
    assert half.vectors.dtype == np.float32
    assert (half.vectors * vectors).sum(axis=1).min() > 0.999999


def test_damage_is_found_before_it_is_read(tmp_path: Path) -> None:
    example().save(tmp_path / "e")
    shard = tmp_path / "e" / "shard-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StorageError, match="damaged"):
        Embeddings.open(tmp_path / "e")
    shard.unlink()
    with pytest.raises(StorageError, match="no such file"):
        Embeddings.open(tmp_path / "e")


def test_unfinished_and_foreign_folders_are_named(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "e", lambda: {"model_id": "m", "compute_id": "c"}, 5, total=3)
    writer.add(["a"], unit(1), pa.table({}), [])
    with pytest.raises(DataError, match=r"unfinished \(1 of 3 images\)"):
        Embeddings.open(tmp_path / "e")
    with pytest.raises(DataError, match="holds no embeddings"):
        Embeddings.open(tmp_path)


def test_resume_goes_on_behind_the_last_whole_shard(tmp_path: Path) -> None:
    about = {"model_id": "m", "compute_id": "c"}
    first = ShardWriter(tmp_path / "e", lambda: about, 5, total=6)
    first.add(["a", "b"], unit(2), pa.table({}), [("c", "bad")])
    first.add(["d"], unit(1), pa.table({}), [])
    second = ShardWriter(tmp_path / "e", lambda: about, 5, total=6)
    assert second.resume() == 4
    second_shard = tmp_path / "e" / "shard-00001.parquet"
    second_shard.write_bytes(second_shard.read_bytes()[:-1])
    third = ShardWriter(tmp_path / "e", lambda: about, 5, total=6)
    assert third.resume() == 3
    third.add(["d", "e", "f"], unit(3), pa.table({}), [])
    third.finish()
    assert Embeddings.open(tmp_path / "e").ids == ["a", "b", "d", "e", "f"]
    assert [len(vectors) for _, vectors, _ in parts_of(tmp_path / "e").parts] == [2, 3]
    with pytest.raises(DataError, match="differ in model_id"):
        ShardWriter(tmp_path / "e", lambda: {**about, "model_id": "n"}, 5, total=6).resume()


def test_own_vectors_are_normalised_and_checked(tmp_path: Path) -> None:
    own = Embeddings.from_arrays([[3.0, 4.0], [0.0, 2.0]], labels=["a", "b"])
    none = own.subset([])
    assert (len(none), none.dim, none.labels) == (0, 2, [])
    none.save(tmp_path / "none.emb")
    assert len(Embeddings.open(tmp_path / "none.emb")) == 0
    np.testing.assert_allclose(own.vectors, [[0.6, 0.8], [0, 1]])
    assert own.ids == ["0", "1"] and own.labels == ["a", "b"]
    np.testing.assert_allclose(
        Embeddings.from_arrays(torch.tensor([[3.0, 4.0]])).vectors, [[0.6, 0.8]]
    )
    with pytest.raises(DataError, match="row 1"):
        Embeddings.from_arrays([[1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(DataError, match="row 0"):
        Embeddings.from_arrays([[np.nan, 0.0]])
    with pytest.raises(DataError, match="expected numbers"):
        Embeddings.from_arrays([1.0, 2.0])
    with pytest.raises(DataError, match="shape"):
        Embeddings(["a"], unit(2), pa.table({}), "m")


def test_an_attribute_never_takes_the_place_of_the_ids(tmp_path: Path) -> None:
    own = Embeddings(["a"], unit(1), pa.table({"id": ["b"]}), "m")
    with pytest.raises(DataError, match="cannot be called id"):
        own.save(tmp_path / "e")


def test_attributes_of_several_shards_get_one_type() -> None:
    def joined(*columns: pa.Array) -> pa.ChunkedArray:
        return concatenated([pa.table({"price": column}) for column in columns])["price"]

    whole, day = pa.array([5, None]), pa.array([datetime.date(2026, 1, 2)])
    time = pa.array([datetime.datetime(2026, 1, 2, 12)], pa.timestamp("us"))
    assert joined(whole, pa.array([0.5])).to_pylist() == [5.0, None, 0.5]
    assert joined(pa.array(["XL"]), whole).to_pylist() == ["XL", "5", None]
    assert joined(pa.array([None]), whole).type == pa.int64()
    assert joined(day, time).to_pylist()[0] == datetime.datetime(2026, 1, 2)
    for later in (pa.array(["n/a"]), day, pa.array([True])):
        with pytest.raises(DataError, match=r"price is int64 at first and .* later, such as"):
            joined(whole, later)
