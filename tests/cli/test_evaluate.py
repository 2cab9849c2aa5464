"""`vizsla evaluate` with vectors, judgements, slices, a cut-off, and the files that it writes."""

import csv
import io
import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from vizsla.cli.main import app
from vizsla.embed.embeddings import Embeddings
from vizsla.model.embedder import Embedder
from vizsla.run.config import RunConfig
from vizsla.run.pipeline import run
from vizsla.search.exact import rank
from vizsla.search.ranking import Ranking

CLASSES = ("ant", "bee", "cow", "dog", "eel", "fox")
PNG = b"\x89PNG"


def vectors(n: int, seed: int, noise: float = 1.2) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(len(CLASSES), 8))
    which = np.arange(n) % len(CLASSES)
    return centres[which] + noise * rng.normal(size=(n, 8)), [CLASSES[i] for i in which]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """q.npy, g.npy, their labels, a ranking, labels.csv and embeddings of training images."""
    monkeypatch.chdir(tmp_path)
    rows = ["role,file,label,domain"]
    sides = {}
    for role, (n, seed) in {"query": (36, 1), "gallery": (90, 2)}.items():
        array, labels = vectors(n, seed)
        np.save(f"{role[0]}.npy", array)
        Path(f"{role[0]}.txt").write_text("\n".join(labels) + "\n")
        names = [f"{role}_{i}.jpg" for i in range(n)]
        rows += [
            f"{role},{name},{label},{'photo' if i % 3 else 'drawn'}"
            for i, (name, label) in enumerate(zip(names, labels, strict=True))
        ]
        sides[role] = Embeddings.from_arrays(array, names, labels, model_id="m")
        sides[role].save(f"{role}.emb")
    rank(sides["query"], sides["gallery"]).save("ranking.parquet")
    Path("labels.csv").write_text("\n".join(rows) + "\n")
    array, labels = vectors(300, 3)
    names = [f"{label}/{i}.jpg" for i, label in enumerate(labels)]
    Embeddings.from_arrays(array, names, labels, model_id="m").save("training.emb")
    return tmp_path


def evaluate(words: str, *, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["evaluate", *shlex.split(words)])
    assert result.exit_code == code if code == 0 else result.exception, result.output
    if code:
        return str(result.exception)
    return result.stdout


def as_json(words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(evaluate(f"{words} --json"))
    return found


def means(content: dict[str, Any]) -> dict[str, float | None]:
    return {key: figure["mean"] for key, figure in content["metrics"].items()}


def test_vectors_give_what_the_ranking_gives(folder: Path) -> None:
    whole = as_json("ranking.parquet --labels labels.csv")
    own = as_json("--queries q.npy --gallery g.npy --query-labels q.txt --gallery-labels g.txt")
    assert means(own) == means(whole) and own["gallery_size"] == 90
    stored = as_json("--queries query.emb --gallery gallery.emb")
    assert means(stored) == means(whole)
    by_file = as_json("--queries query.emb --gallery gallery.emb --labels labels.csv --by domain")
    assert {row["domain"] for row in by_file["slices"]["domain"]} == {"photo", "drawn"}


def test_one_set_is_given_once(folder: Path) -> None:
    own = as_json("--queries g.npy --query-labels g.txt --same-set")
    assert own["queries"] == 90 and own["depth"] == 89
    searched = Embeddings.open("gallery.emb")
    rank(searched, searched, same_set=True).save(folder / "same.parquet")
    Path("same.csv").write_text(
        "file,label\n"
        + "".join(f"{n},{x}\n" for n, x in zip(searched.ids, searched.labels or [], strict=True))
    )
    ranked = as_json("same.parquet --labels same.csv")  # the ranking says that it is one set
    assert means(ranked) == means(own)


def test_runs_and_judgements_go_out_and_come_back(folder: Path) -> None:
    before = as_json("ranking.parquet --labels labels.csv --write-run r.trec --write-qrels q.rels")
    after = as_json("r.trec --qrels q.rels")
    for key in ("map", "precision@10", "ndcg@5", "mrr", "contest_points"):
        assert means(after)[key] == means(before)[key], key
    assert "label" not in evaluate("r.trec --qrels q.rels --worst 3").split("by label")[0]
    sliced = as_json("r.trec --qrels q.rels --labels labels.csv --by domain")
    assert len(sliced["slices"]["domain"]) == 2 and means(sliced) == means(after)
    vectors = as_json("--queries query.emb --gallery gallery.emb --qrels q.rels")
    assert means(vectors) == means(before)


def test_short_runs_are_as_trec_has_them_when_asked(folder: Path) -> None:
    Path("short.trec").write_text("q Q0 a 1 2.0 t\nq Q0 b 2 1.0 t\n")
    Path("q.rels").write_text("q 0 b 1\nq 0 c 1\n")
    assert means(as_json("short.trec --qrels q.rels -k 2"))["map"] is None
    assert means(as_json("short.trec --qrels q.rels -k 2 --missing-ranks absent"))["map"] == 0.25


def test_slices_worst_classes_and_confused_pairs_are_printed(folder: Path) -> None:
    text = evaluate("ranking.parquet --labels labels.csv --by domain --worst 2")
    assert "by domain, the worst first:" in text and "most confused at rank 1:" in text
    content = as_json("ranking.parquet --labels labels.csv --worst 4")
    worst = content["slices"]["label"]
    assert len(worst) == 4
    assert [row["mAP"] for row in worst] == sorted(row["mAP"] for row in worst)
    assert worst[0]["label"] == content["worst_classes"][0][0]
    assert len(content["most_confused"]) <= 4
    assert "no column 'shop'" in evaluate("ranking.parquet --labels labels.csv --by shop", code=2)


def test_intervals_by_class_are_wider_than_by_query(folder: Path) -> None:
    query = as_json("ranking.parquet --labels labels.csv")["metrics"]["map"]
    drawn = as_json("ranking.parquet --labels labels.csv --cluster label")
    assert drawn["intervals"]["cluster"] == "label"
    low, high = drawn["metrics"]["map"]["interval"]
    assert drawn["metrics"]["map"]["mean"] == query["mean"]
    assert high - low > query["interval"][1] - query["interval"][0]


def test_decisions_say_where_they_were_learned(folder: Path) -> None:
    words = "ranking.parquet --labels labels.csv --calibrate --target-precision 0.3"
    text = evaluate(words)
    assert "must be a validation part" in text and "accepted from an estimate of 0." in text
    assert "precision of accepted" not in text  # on these very queries it would look too good
    content = as_json(f"{words} --training training.emb --write-calibration c.json")
    learned = content["calibration"]
    assert "training.emb" in learned["learned_on"] and learned["cutoff"]["lower"] >= 0.3
    assert content["metrics"]["accepted_precision"]["mean"] >= 0.3
    assert 0 <= content["metrics"]["calibration_error"]["mean"] <= 1
    assert json.loads(Path("c.json").read_text())["sure"] == 0.3


def test_files_that_were_asked_for_are_there(folder: Path) -> None:
    evaluate(
        "ranking.parquet --labels labels.csv --calibrate --target-precision 0.3 "
        "--curve c.png --bars b.png --histogram h.png --per-query q.csv -o all.json"
    )
    assert all(Path(name).read_bytes().startswith(PNG) for name in ("c.png", "b.png", "h.png"))
    with Path("q.csv").open() as file:
        rows = list(csv.DictReader(file))
    content = json.loads(Path("all.json").read_text())
    mean = sum(float(row["map"]) for row in rows) / len(rows)
    assert mean == pytest.approx(content["metrics"]["map"]["mean"])
    assert content["calibration"]["cutoff"]["estimate"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "give either"),
        ("ranking.parquet --queries q.npy", "give either"),
        ("ranking.parquet", "the truth is needed"),
        ("ranking.parquet --query-labels q.txt", "are for vectors"),
        ("ranking.parquet --labels labels.csv --training training.emb", "of --calibrate"),
        ("ranking.parquet --labels labels.csv --missing-ranks no", "one of unknown, wrong, absent"),
        (
            "ranking.parquet --labels labels.csv --calibrate --target-precision 95",
            "between 0 and 1",
        ),
        ("--queries q.npy --query-labels q.txt", "--gallery"),
        ("--queries q.npy --gallery g.npy", "give query labels"),
        ("--queries q.npy --gallery query.emb --query-labels q.txt", "by model own, the gallery"),
        ("--queries q.npy --gallery g.npy --query-labels g.txt --gallery-labels g.txt",
         "90 labels for 36 query vectors"),
        ("--queries q.npy --gallery g.npy --data .", "vectors take"),
        ("ranking.parquet --qrels labels.csv", "expected four fields"),
    ],
)  # fmt: skip
def test_wrong_use_is_told(folder: Path, words: str, message: str) -> None:
    assert message in evaluate(words, code=1)


def test_a_ranking_is_evaluated_without_torch(folder: Path) -> None:
    code = (
        "import sys, vizsla.cli.main\n"
        "try: vizsla.cli.main.main('evaluate ranking.parquet --labels labels.csv --worst 3"
        " --calibrate --curve c.png --write-qrels q.rels'.split())\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_that_are_no_labels_are_said_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lists = {f"a{i}_1.jpg": ["b_1.jpg", "c_2.jpg"] for i in range(3)}
    (tmp_path / "sub.json").write_text(json.dumps(lists))
    words = ["evaluate", str(tmp_path / "sub.json"), "--labels-from", "{label}_{n}"]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.getMessage().startswith("not one right image in 3 lists")
    assert "not one right image" in json.loads(result.stdout)["notes"][0]


def test_pairs_are_compared_by_any_metric_with_corrected_intervals(folder: Path) -> None:
    ranking = Ranking.load("ranking.parquet")
    replace(ranking, positions=ranking.positions[::-1], scores=None).save("other.parquet")
    words = ["compare", "ranking.parquet", "other.parquet", "--labels", "labels.csv"]
    result = CliRunner().invoke(
        app, [*words, "--pairs", "--metric", "map", "--metric", "precision@5"]
    )
    assert result.exit_code == 0, result.output
    table = result.stdout.split("\n\n")[1].splitlines()
    assert [line.split()[0] for line in table[1:3]] == ["mAP", "precision@5"]
    assert "low (Bonferroni)" in table[0]
    assert result.stdout.rsplit("\n- ", 1)[1].startswith("corrected for 2 comparisons")


@pytest.fixture(scope="module")
def two_runs(tinted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two runs of one network are, the second one's embedder saved under another name."""
    home = tmp_path_factory.mktemp("two")
    first = Embedder.build("tiny", weights="random", image_size=64)
    first.save(home / "first")
    first.name = "other"
    training = {"kept": "head", "is_finetuned": False, "images": 9, "options": {}}
    first.origin = replace(first.origin, training=training)
    first.save(home / "second")
    for name in ("first", "second"):
        run(RunConfig(data=str(tinted), model=str(home / name), top_k=5, figures=0, home=str(home)))
    return home


def test_runs_are_one_row_each_and_pairs_come_on_request(two_runs: Path) -> None:
    runs = sorted((two_runs / "runs").iterdir())
    words = ["compare", *map(str, runs), "--json"]
    content = json.loads(CliRunner().invoke(app, words).stdout)
    assert {row["run"] for row in content["best_first"]} == {run.name for run in runs}
    assert {row["model"] for row in content["best_first"]} == {"tiny", "other"}
    assert [row["vs_best"] for row in content["best_first"]] == ["best", "level"]
    assert "pairs" not in content
    content = json.loads(CliRunner().invoke(app, [*words, "--pairs"]).stdout)
    assert {(row["A"], row["B"]) for row in content["pairs"]} == {
        tuple(row["run"] for row in content["best_first"])
    }


def test_a_run_that_is_surely_worse_is_below_the_best(folder: Path) -> None:
    ranking = Ranking.load("ranking.parquet")
    replace(ranking, positions=ranking.positions[:, ::-1], scores=None).save("worse.parquet")
    words = ["compare", "worse.parquet", "ranking.parquet", "--labels", "labels.csv"]
    result = CliRunner().invoke(app, words)
    header, *rows = [line.split() for line in result.stdout.splitlines()[:3]]
    assert header[-2:] == ["vs", "best"]
    assert [(row[0], row[-1]) for row in rows] == [("ranking", "best"), ("worse", "below")]


@pytest.mark.parametrize("what", ["results", "runs"])
@pytest.mark.parametrize("columns", [60, 80])
def test_the_table_fits_the_terminal_and_in_a_pipe_80_columns(
    two_runs: Path, what: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    sources = [two_runs / "results"] if what == "results" else [*(two_runs / "runs").iterdir()]
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = {}
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        app(["compare", *map(str, sources)], standalone_mode=False)
        shown[stream.isatty()] = stream.getvalue().splitlines()
    table = [line for line in shown[True] if line[:2] not in ("- ", "! ")]
    assert len(table) >= 3 and max(map(len, table)) <= columns
    table = [line for line in shown[False] if line[:2] not in ("- ", "! ")]
    assert len(table) >= 3 and max(map(len, table)) <= 80


def top_1(*words: object) -> Any:
    result = CliRunner().invoke(app, ["evaluate", *map(str, words), "--json", "-k", "1"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["metrics"]["top_k_accuracy@1"]["mean"]


def test_one_rule_says_which_column_names_an_image(folder: Path) -> None:
    lines = Path("labels.csv").read_text().splitlines()
    with_ids = [f"id,{lines[0]}", *(f"{900 - i},{line}" for i, line in enumerate(lines[1:]))]
    Path("ids.csv").write_text("\n".join(with_ids))
    expected = top_1("ranking.parquet", "--labels", "labels.csv")
    assert top_1("ranking.parquet", "--labels", "ids.csv") == expected
    sides = ("--queries", "query.emb", "--gallery", "gallery.emb")
    assert top_1(*sides, "--labels", "ids.csv") == expected
    Path("only_ids.csv").write_text("\n".join(line.replace("file", "id") for line in lines))
    assert top_1("ranking.parquet", "--labels", "only_ids.csv") == expected


def test_names_with_percent_codes_are_judged_as_they_are_written(folder: Path) -> None:
    Path("run.trec").write_text("q.jpg Q0 a%20b.jpg 1 0.9 t\nq.jpg Q0 c.jpg 2 0.8 t\n")
    rows = ["query,q.jpg,x", "gallery,a%20b.jpg,x", "gallery,c.jpg,y"]
    Path("l.csv").write_text("\n".join(["role,file,label", *rows]))
    assert top_1("run.trec", "--labels", "l.csv") == 1
    Path("l.csv").write_text("\n".join(["role,file,label", *rows, "gallery,a b.jpg,y"]))
    assert top_1("run.trec", "--labels", "l.csv") == 1


def test_a_truth_in_another_unicode_form_judges_the_same(folder: Path) -> None:
    ranking = Ranking.from_lists({"e\u0301.jpg": ["e\u03011.jpg", "c.jpg"]})
    ranking.save("nfd.parquet")
    rows = ["query,\u00e9.jpg,x", "gallery,\u00e91.jpg,x", "gallery,c.jpg,y"]
    Path("l.csv").write_text("\n".join(["role,file,label", *rows]))
    assert top_1("nfd.parquet", "--labels", "l.csv") == 1
    Path("qrels").write_text("\u00e9.jpg 0 \u00e91.jpg 1\n")
    assert top_1("nfd.parquet", "--qrels", "qrels") == 1


def scored(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["evaluate", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found["metrics"]


def test_labels_may_be_several_or_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ranking.json").write_text(json.dumps({"q.jpg": ["a.jpg", "b.jpg", "c.jpg"]}))
    rows = ["role,file,label", "query,q.jpg,dog|pet", "gallery,a.jpg,cat|dog/pug"]
    Path("several.csv").write_text("\n".join([*rows, "gallery,b.jpg,pet", "gallery,c.jpg,x"]))
    found = scored("ranking.json", "--labels", "several.csv", "--label-separator", "|", "-k", "3")
    assert found["map"]["mean"] == 0.5
    found = scored(
        "ranking.json", "--labels", "several.csv", "--label-separator", "|", "-k", "3",
        "--label-level", "1",
    )  # fmt: skip
    assert found["map"]["mean"] == 1.0
    empty = CliRunner().invoke(
        app, ["evaluate", "ranking.json", "--labels", "several.csv", "--label-separator", " "]
    )
    assert empty.exit_code and "--label-separator is empty" in str(empty.exception)
