"""Any single byte of an artefact may change on disk: it is found before the artefact is used.

VIZSLA_BYTES sets how many changes the slow test makes to each kind (1000).
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from vizsla import storage
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import StorageError
from vizsla.model.embedder import Embedder
from vizsla.search.exact import rank
from vizsla.search.index import build_index, open_index
from vizsla.search.ranking import Ranking
from vizsla.train import checkpoint

from .conftest import Commands

CHANGES = int(os.environ.get("VIZSLA_BYTES", "1000"))


@dataclass(frozen=True)
class Artefact:
    """read: raises StorageError if it finds damage, or returns None."""

    files: list[Path]
    read: Callable[[], Any]


def vectors(n: int) -> Embeddings:
    rng = np.random.default_rng(n)
    labels = pa.table({"label": [f"class-{i % 3}" for i in range(n)]})
    made = Embeddings.from_arrays(rng.standard_normal((n, 16)), [f"{i}.png" for i in range(n)])
    return Embeddings(made.ids, made.vectors, labels, "model", "compute", [("x.png", "truncated")])


def embedder(folder: Path) -> Artefact:
    made = Embedder.build("timm:test_resnet", weights="random", image_size=32)
    made.save(folder)
    files = [folder / "config.json", folder / "model.safetensors"]
    return Artefact(files, lambda: Embedder.load(folder))


def embeddings(folder: Path) -> Artefact:
    vectors(50).save(folder)
    return Artefact(sorted(folder.iterdir()), lambda: Embeddings.open(folder))


def ranking(folder: Path) -> Artefact:
    path = folder / "ranking.parquet"
    rank(vectors(20), vectors(50)).save(path)
    return Artefact([path], lambda: Ranking.load(path))


def result(folder: Path) -> Artefact:
    path = folder / "tiny_metrics_20260101-000000-0a1b.json"
    content = {"model_name": "tiny", "top_k": 10, "metrics": {"top_1": 0.5, "map": 0.25}}
    storage.write_sealed_json(path, {**content, "warnings": ["none", "é"]})
    return Artefact([path], lambda: storage.read_json(path))


def training_state(folder: Path) -> Artefact:
    for seed in range(2):
        torch.manual_seed(seed)
        state = {"step": 7, "weights": torch.randn(40, 30), "adam": {0: {"m": torch.randn(40)}}}
        checkpoint.save_state(folder, state, identity="x")
    named = storage.read_sealed_json(folder / "state.json")["tensors"]
    files = [folder / "state.json", folder / named]
    return Artefact(files, lambda: checkpoint.load_state(folder, identity="x"))


def index(folder: Path) -> Artefact:
    build_index(vectors(3000), folder, kind="hnsw")
    files = [p for p in folder.iterdir() if p.name[0] != "."]
    return Artefact(files, lambda: open_index(folder))


KINDS = [embedder, embeddings, ranking, result, training_state, index]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_some_changed_bytes(kind: Callable[[Path], Artefact], tmp_path: Path) -> None:
    _changed(kind(tmp_path / "a"), 60, kind.__name__)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_changed_bytes(kind: Callable[[Path], Artefact], tmp_path: Path) -> None:
    _changed(kind(tmp_path / "a"), CHANGES, kind.__name__)


def _changed(artefact: Artefact, n: int, name: str) -> None:
    assert artefact.read() is not None
    rng, found = random.Random(0), 0
    for i in range(n):
        path = artefact.files[i % len(artefact.files)]  # each file as often as the others
        good = path.read_bytes()
        at, mask = rng.randrange(len(good)), rng.randrange(1, 256)
        path.write_bytes(good[:at] + bytes([good[at] ^ mask]) + good[at + 1 :])
        try:
            found += artefact.read() is None
        except StorageError as error:
            found += 1
            assert str(path) in str(error), error
        path.write_bytes(good)
    assert artefact.read() is not None
    print(f"\n{name}: {n} changed bytes in {len(artefact.files)} files, {found} found before use")
    assert found == n


def test_commands_say_it_in_one_line(commands: Commands, tmp_path: Path) -> None:
    """Each command that reads an artefact, on one with a changed byte."""
    embeddings(tmp_path / "e")
    ranking(tmp_path)
    embedder(tmp_path / "m")
    labels = tmp_path / "labels.csv"
    labels.write_text("file,label\n" + "".join(f"{i}.png,{i % 3}\n" for i in range(50)))
    todo: list[tuple[str, list[object]]] = [
        ("e/shard-00000.parquet", ["search", tmp_path / "e", tmp_path / "e", "-o", "r.parquet"]),
        ("e/manifest.json", ["search", tmp_path / "e", tmp_path / "e", "-o", "r.parquet"]),
        ("ranking.parquet", ["evaluate", tmp_path / "ranking.parquet", "--labels", labels]),
        ("ranking.parquet", ["submission", tmp_path / "ranking.parquet", "-o", "s.json"]),
        ("m/model.safetensors", ["embed", tmp_path, "--model", tmp_path / "m", "-o", "x.emb"]),
    ]
    (tmp_path / "a.png").write_bytes(b"")
    for name, words in todo:
        path = tmp_path / name
        good = path.read_bytes()
        path.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
        answer = commands.run(*words, folder=str(tmp_path))
        assert answer.code == 1, (words, answer.output)
        lines = [line for line in answer.output.splitlines() if line.startswith("vizsla: ")]
        assert len(lines) == 1 and str(path) in lines[0] and "damaged" in lines[0], answer.output
        assert "Traceback" not in answer.output
        path.write_bytes(good)


def test_a_result_without_its_seal_is_read(tmp_path: Path) -> None:
    """Those of the contest entry's own system, and those that people have edited."""
    path = result(tmp_path).files[0]
    content = storage.read_json(path)
    assert storage.SEAL_KEY not in content
    text = path.read_text().replace('"tiny"', '"renamed"')
    path.write_text(text)
    with pytest.raises(StorageError, match=r"damaged.*remove the line 'vizsla\.seal'"):
        storage.read_json(path)
    lines = [line for line in text.splitlines() if storage.SEAL_KEY not in line]
    lines[-2] = lines[-2].rstrip(",")
    path.write_text("\n".join(lines))
    assert storage.read_json(path)["model_name"] == "renamed"
