"""Metrics by name and published values in `compare`."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from vizsla.cli.main import main
from vizsla.score.per_query_table import is_per_query_table, read_per_query_table
from vizsla.search.ranking import Ranking

LABELS = {f"q{i}": "ab"[i % 2] for i in range(12)}
GALLERY = {f"g{i}": "abc"[i % 3] for i in range(30)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [f"query,{q},{label}" for q, label in LABELS.items()]
    rows += [f"gallery,{g},{label}" for g, label in GALLERY.items()]
    Path("labels.csv").write_text("role,file,label\n" + "\n".join(rows) + "\n")
    for seed, name in enumerate(("one", "two")):
        generator = np.random.default_rng(seed)
        order = np.stack([generator.permutation(30) for _ in LABELS])
        scores = np.tile(np.linspace(1, 0, 30), (12, 1))
        Ranking([*LABELS], [*GALLERY], order, scores, 30).save(f"{name}.parquet")
    return tmp_path


def run(*words: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    assert ended.value.code in (0, None)


def test_metrics_by_name_order_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("compare", "one.parquet", "two.parquet", "--labels", "labels.csv")
    run(*words, "--metrics", "mINP,AP@5,µAP", "--pairs", "--json")
    found = json.loads(capsys.readouterr().out)
    rows = found["best_first"]
    assert rows[0]["scores"]["mINP"] >= rows[1]["scores"]["mINP"]
    assert all("µAP" in row["scores"] for row in rows)
    assert [row["metric"] for row in found["pairs"]] == ["mINP", "AP@5", "µAP"]
    run(*words, "--protocol", "inshop")
    assert "top-30" in (text := capsys.readouterr().out) and "mAP" not in text
    run(*words, "--protocol", "inshop", "--intervals", "--markdown", "table.md")
    assert re.search(r"\| one \|.* 0\.\d{3} \[0\.\d{3}, \d\.\d{3}\]", Path("table.md").read_text())
    assert capsys.readouterr().out.splitlines()[-1] == "written     table.md"


def test_published_values_are_compared_with_ours(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table that `--per-query` writes, and one with other values in another order."""
    truth = ("--labels", "labels.csv")
    run("evaluate", "one.parquet", *truth, "--metrics", "AP", "--per-query", "ours.csv")
    capsys.readouterr()
    published = "query,AP\n" + "".join(f"{q},{i / 20}\n" for i, q in enumerate(reversed(LABELS)))
    Path("published.csv").write_text(published)
    assert is_per_query_table("ours.csv") and is_per_query_table("published.csv")
    assert not is_per_query_table("labels.csv") and not is_per_query_table("one.parquet")
    words = ("compare", "one.parquet", "published.csv", *truth, "--metrics", "AP", "--pairs")
    run(*words, "--json")
    found = json.loads(capsys.readouterr().out)
    (pair,) = found["pairs"]
    means = {row["run"]: row["scores"]["AP"] for row in found["best_first"]}
    assert means["published"] == pytest.approx(np.mean(np.arange(12) / 20))
    assert abs(pair["A − B"]) == pytest.approx(abs(means["one"] - means["published"]))
    run("compare", "one.parquet", "ours.csv", *truth, "--metrics", "AP", "--pairs", "--json")
    (same,) = json.loads(capsys.readouterr().out)["pairs"]
    assert same["A − B"] == pytest.approx(0, abs=1e-12) and same["p"] == 1.0


def test_an_empty_value_is_left_out_of_the_mean(folder: Path) -> None:
    Path("values.csv").write_text("query,AP\na,0.5\nb,\nc,1\n")
    scores = read_per_query_table("values.csv")
    assert scores.mean("AP") == 0.75 and scores["AP"].n == 2


def test_a_query_that_one_of_two_leaves_out_is_not_compared(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without extension in one, in any form of a table; and worse, so that it stands second."""
    values = [(f"q{i}", 0.5 + i / 100) for i in range(12)]
    ours = "query,AP\n" + "".join(f"{q}.jpg,{ap}\n" for q, ap in values)
    Path("ours.csv").write_text(ours)
    less = [(q, round(ap - 0.1, 6) if q != "q11" else None) for q, ap in values]
    rows = [{"query": query, "AP": ap} for query, ap in reversed(less)]
    Path("p.json").write_text(json.dumps(rows))
    Path("p.tsv").write_text(
        "query\tAP\n" + "".join(f"{q}\t{'' if ap is None else ap}\n" for q, ap in less)
    )
    for name in ("p.json", "p.tsv"):
        run("compare", "ours.csv", name, "--metric", "AP", "--pairs", "--json")
        (pair,) = json.loads(capsys.readouterr().out)["pairs"]
        assert pair["A"] == "ours" and pair["queries"] == 11
        assert pair["A − B"] == pytest.approx(0.1, abs=1e-9)
    run("compare", "ours.csv", "p.tsv", "--metric", "AP")
    assert capsys.readouterr().out.splitlines()[0].split() == ["run", "AP", "vs", "best"]
