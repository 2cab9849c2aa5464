import json
from pathlib import Path

import pytest

from vizsla.errors import UsageError
from vizsla.output.submit_client import Receipt, record_submission
from vizsla.score.compare import read_results
from vizsla.score.evaluate import evaluate
from vizsla.score.result_file import read_result
from vizsla.score.run_table import (
    Row,
    RunTable,
    best_so_far,
    row_of_result,
    row_of_scores,
    run_table,
    short_time,
)
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking


def rows(*means: dict[str, float]) -> list[Row]:
    return [
        Row(f"2026013{i}-235959-0a1b", "net", means=part, seconds=10.0 + i)
        for i, part in enumerate(means)
    ]


def test_the_metric_decides_the_order() -> None:
    found = rows({"map": 0.5, "contest_points": 900.0}, {"map": 0.6, "contest_points": 800.0}, {})
    assert [row.means.get("map") for row in run_table(found).rows] == [0.6, 0.5, None]
    ranked = run_table(found, "points")
    assert [row.means.get("contest_points") for row in ranked.rows] == [900.0, 800.0, None]
    assert [row.seconds for row in run_table(found, "runtime_seconds").rows] == [10, 11, 12]
    with pytest.raises(UsageError, match=r"no result has it; choose contest_points, map"):
        run_table(found, "ndcg")


def test_the_best_is_named_with_what_is_known_of_it() -> None:
    assert repr(run_table([Row("a", "", means={"map": 0.5})])).endswith("best a (mAP 0.500)")
    assert repr(run_table(rows({"map": 0.5}))).endswith("-0a1b (net, mAP 0.500)")


def found_note(ranked: RunTable) -> str:
    (_, note) = ranked.notes()
    return note


def test_without_labels_no_order_is_claimed_and_the_judges_score_is_shown(tmp_path: Path) -> None:
    def table() -> RunTable:
        return run_table([row_of_result(r) for r in read_results([tmp_path / "results"]).results])

    (tmp_path / "results").mkdir()
    for run in ("20260131-235958-0a1b", "20260131-235959-0a1b"):
        content = {"model_name": "net", "run_id": run, "map": None, "scores": {}}
        (tmp_path / f"results/net_metrics_{run}.json").write_text(json.dumps(content))
    found = table()
    assert found.notes() == [
        "no labels of the test part were known, so it has no scores; `vizsla submit` records a "
        "judge's"
    ]
    for path in (tmp_path / "results").iterdir():
        path.write_text(json.dumps({**json.loads(path.read_text()), "num_classes": 3}))
    assert "`vizsla best DATA`" in found_note(table())
    folder = tmp_path / "runs" / run
    folder.mkdir(parents=True)
    for accuracy in (0.25, 0.75):
        receipt = Receipt("we", "http://judge", 3, 9, "", accuracy, sent_at="2026-01-31T23:59:59")
        record_submission(folder, receipt)
    found = table()
    assert found.table().columns == ["run", "model", "judge"]
    assert found.table().texts()[0] == [run, "net", "0.750"]
    assert found.notes()[0].startswith("best first by judge")


def test_data_sets_are_not_mixed() -> None:
    found = [
        Row(f"{data}{i}", "net", means={"map": i / 10}, data=data)
        for i, data in enumerate(["b", "a", "b", "a"])
    ]
    ranked = run_table(found)
    assert [row.run for row in ranked.rows] == ["a3", "a1", "b2", "b0"]
    assert "data" in ranked.table().columns
    named = [Row(f"{i}", "net", means={"map": 0.5}, data=data)
             for i, data in enumerate(["a (01234567)", "b (01234567)"])]  # fmt: skip
    assert [row[2] for row in run_table(named).table().rows] == ["a", "b"]
    named.append(Row("3", "net", means={"map": 0.5}, data="a (89abcdef)"))
    assert run_table(named).table().rows[0][2] == "a (01234567)"


def test_without_a_usual_score_the_contests_own_is_shown() -> None:
    table = run_table(rows({"top_k_accuracy": 0.9, "precision_at_k": 0.4})).table()
    assert table.columns == ["run", "model", "top-k", "P@k", "time"]
    table = run_table(rows({"map": 0.5, "contest_points": 912.34, "ndcg@5": 0.7})).table(["ndcg@5"])
    assert table.columns == ["run", "model", "mAP", "points", "ndcg@5", "time"]
    assert table.texts()[0][2:5] == ["0.500", "912.3", "0.700"]


def test_setups_are_said_in_a_few_words(tmp_path: Path) -> None:
    content = {
        "model_name": "net", "run_id": "1", "map": 0.5, "is_finetuned": False,
        "pooling_type": "internal", "whiten": "plain", "views": "flip",
        "refine": {"chain": "aqe(n=3,alpha=0)+kreciprocal(k1=20)"},
        "training": {"kept": "whitened 0.6", "options": {"finetune": "head"}},
    }  # fmt: skip
    (tmp_path / "net_metrics_1.json").write_text(json.dumps(content))
    [result] = read_results([tmp_path]).results
    row = row_of_result(result)
    assert row.setup == "head, plain whitening, views flip, aqe+kreciprocal"
    assert row.scores is None
    joint = {
        **content,
        "fusion": {"method": "concat", "whiten": "whitened 0.6", "weights": [0.5, 0.5]},
    }
    (tmp_path / "net_metrics_1.json").write_text(json.dumps(joint))
    setup = row_of_result(read_results([tmp_path]).results[0]).setup
    assert "concat whitened 0.6, weights 0.5, 0.5" in setup
    content |= {"training": {"kept": "head", "options": {"finetune": "head", "loss": "arcface"}}}
    (tmp_path / "net_metrics_1.json").write_text(json.dumps(content))
    other = row_of_result(read_results([tmp_path]).results[0])  # a loss that is not the usual one
    assert other.setup.startswith("head, arcface, plain")


@pytest.mark.parametrize(
    ("seconds", "text"), [(25.2, "  25 s"), (130, " 2 min"), (9000, " 2.5 h"), (None, None)]
)
def test_times_are_short(seconds: float | None, text: str | None) -> None:
    assert short_time(seconds) == text


def test_the_best_result_so_far_on_the_same_data_is_named(tmp_path: Path) -> None:
    files = []
    for name, ap, data in (("a", 0.5, "1"), ("b", 0.7, "1"), ("c", 0.9, "2")):
        content = {"model_name": "net", "run_id": name, "map": ap, "data_id": data, "top_k": 5}
        files.append(tmp_path / f"net_metrics_{name}.json")
        files[-1].write_text(json.dumps(content))
    (tmp_path / "broken.json").write_text("{")
    assert best_so_far(files[0]) == "b (mAP 0.7000, here 0.5000): net "
    assert best_so_far(files[1]) == "this run (mAP 0.7000), of 2 on this data"
    points = {"model_name": "net", "run_id": "b", "data_id": "3", "contest_points": 812.5}
    points |= {"main_metric": "contest_points", "scores": {"contest_points": 812.5}}
    files[1].write_text(json.dumps(points))
    assert best_so_far(files[1]) == "this run (points 812.50), of 1 on this data"
    files[1].write_text(json.dumps({"model_name": "net", "run_id": "b", "data_id": "3"}))
    assert best_so_far(files[1]) == ""


def test_the_best_so_far_goes_by_the_first_metric_of_its_protocol(tmp_path: Path) -> None:
    def written(name: str, ap: float, area: float, protocol: str | None) -> Path:
        shown = "AP(interpolated) mP@1"
        own = {"protocol": protocol, "shown_metrics": shown} if protocol else {}
        content = {"model_name": "net", "run_id": name, "map": ap, "data_id": "1", "top_k": 5,
                   "scores": {"map": ap, "AP(interpolated)": area}, **own}  # fmt: skip
        path = tmp_path / f"net_metrics_{name}.json"
        path.write_text(json.dumps(content))
        return path

    hard = [written("a", 0.5, 0.4, "oxford-hard"), written("b", 0.7, 0.3, "oxford-hard")]
    written("c", 0.9, 0.9, "oxford-easy")
    plain = written("d", 0.8, 0.8, None)
    assert best_so_far(hard[1]) == "a (AP(interpolated) 0.4000, here 0.3000): net "
    assert best_so_far(plain) == "this run (mAP 0.8000), of 1 on this data"
    rows = [row_of_result(read_result(path)) for path in hard]
    assert run_table(rows, test=False).metric == "AP(interpolated)"
    assert rows[0].data == "(1) by oxford-hard"


def test_means_with_intervals_are_texts_for_a_paper() -> None:
    lists = {f"q{i}": ["a", "b"] if i % 3 else ["b", "a"] for i in range(12)}
    truth = Truth(dict.fromkeys(lists, "x"), {"a": "x", "b": "y"})
    scores = evaluate(Ranking.from_lists(lists), truth, metrics_named="AP,top-1")
    table = run_table([row_of_scores("a", scores), row_of_scores("b", scores)])
    assert table.metric == "AP"  # the first that was asked for
    drawn = table.table(intervals=True)
    assert drawn.columns == ["run", "AP", "top-1", "vs best"]
    figure = scores["AP"]
    assert drawn.rows[0][1] == f"{figure.mean:.3f} [{figure.low:.3f}, {figure.high:.3f}]"
    assert table.table().rows[0][1] == figure.mean
