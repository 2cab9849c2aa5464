"""`search --refine` on embeddings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from vizsla.cli.main import app
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.search.chain import parse_chain, rank_refined
from vizsla.search.ranking import Ranking


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((12, 16))
    for name, each in (("query", 2), ("gallery", 6), ("training", 8)):
        labels = [f"class{c}" for c in range(12) for _ in range(each)]
        rows = np.repeat(centres, each, axis=0) + 0.8 * rng.standard_normal((12 * each, 16))
        ids = [f"{name[0]}{i:03}.png" for i in range(len(rows))]
        Embeddings.from_arrays(rows, ids, labels, model_id="m").save(tmp_path / f"{name}.emb")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def search(*words: str) -> Any:
    return CliRunner().invoke(
        app, ["search", "gallery.emb", "query.emb", "-o", "r.parquet", *words],
        catch_exceptions=False,
    )  # fmt: skip


def test_search_refines_and_keeps_the_graph(folder: Path) -> None:
    result = search("--refine", "aqe(n=2)+kreciprocal(k1=6)", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["refine"]["uses"] == "queries"
    parts = [Embeddings.open(folder / f"{name}.emb") for name in ("query", "gallery")]
    expected = rank_refined(*parts, parse_chain("aqe(n=2)+kreciprocal(k1=6)"))
    kept = Ranking.load(folder / "r.parquet")
    assert kept.to_lists() == expected.to_lists()
    assert kept.origin["refine"]["chain"].startswith("aqe(n=2,alpha=0)+kreciprocal(k1=6")
    assert len(list((folder / "gallery.emb").glob("graph-*.parquet"))) == 1
    assert len(Embeddings.open(folder / "gallery.emb")) == 72  # the graph is not in its way
    plain = search()
    assert plain.exit_code == 0 and "refine" not in Ranking.load(folder / "r.parquet").origin
    assert "which uses other gallery images, no other query" in search("--refine", "dba").stdout


def test_search_auto_learns_on_labelled_embeddings(folder: Path) -> None:
    result = search("--refine", "auto", "--learn-on", "training.emb", "--refine-uses", "gallery")
    assert result.exit_code == 0
    assert "no other query" in result.stdout
    report = result.stdout.split("\n\n")[0].splitlines()
    assert max(map(len, report)) <= 80
    assert any(line.startswith(("kept: ", "no refinement is kept")) for line in report)
    with pytest.raises(UsageError, match="give --learn-on"):
        search("--refine", "auto")
    with pytest.raises(UsageError, match="leave them out"):
        search("--refine", "dba", "--learn-on", "training.emb")
    bare = Embeddings.open(folder / "training.emb")
    Embeddings.from_arrays(bare.vectors, bare.ids, model_id="m").save(folder / "bare.emb")
    with pytest.raises(DataError, match="has no labels"):
        search("--refine", "auto", "--learn-on", "bare.emb")
    Embeddings.from_arrays(bare.vectors, bare.ids, bare.labels).save(folder / "other.emb")
    with pytest.raises(DataError, match="cannot be compared"):
        search("--refine", "auto", "--learn-on", "other.emb")


def test_an_index_keeps_the_graph_until_it_changes(folder: Path) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(app, list(words), catch_exceptions=False)

    assert run("index", "gallery.emb", "-o", "g.index").exit_code == 0
    words = ("search", "g.index", "query.emb", "--refine", "kreciprocal(k1=6)", "-o", "i.parquet")
    assert run(*words).exit_code == 0
    assert search("--refine", "kreciprocal(k1=6)").exit_code == 0
    by_index, by_vectors = (Ranking.load(folder / f"{name}.parquet") for name in "ir")
    assert by_index.to_lists() == by_vectors.to_lists()
    (graph,) = (folder / "g.index").rglob("*graph-*.parquet")
    before = graph.stat().st_mtime_ns
    assert run(*words).exit_code == 0 and graph.stat().st_mtime_ns == before
    assert run("index", "remove", "g.index", "g000.png").exit_code == 0
    assert run(*words).exit_code == 0
    assert "g000.png" not in Ranking.load(folder / "i.parquet").gallery


def test_a_filter_is_heeded(folder: Path) -> None:
    words = ("--refine", "aqe(n=2)+diffusion", "--filter", "label=class1|class2")
    assert search(*words).exit_code == 0
    ranking = Ranking.load(folder / "r.parquet")
    assert ranking.depth == 12 and len(ranking.gallery) == 12
    printed = CliRunner().invoke(app, ["search", "gallery.emb", "query.emb", "--refine", "aqe"])
    assert printed.exit_code == 0 and "refined by aqe(n=3,alpha=0)" in printed.stdout
