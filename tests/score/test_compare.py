import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vizsla.errors import DataError, UsageError
from vizsla.output.pages import comparison_page
from vizsla.score.compare import Comparison, read_results
from vizsla.score.run_table import row_of_result, run_table
from vizsla.search.ranking import Ranking

BASE = {
    "model_name": "resnet50", "run_id": "1", "top_k": 10, "top_k_accuracy": 0.9,
    "precision_at_k": 0.5, "batch_size": 32, "is_finetuned": False, "num_classes": 30,
    "runtime_seconds": 10.0, "loss_function": None, "num_epochs": None, "final_train_loss": None,
    "pooling_type": "GeM",
}  # fmt: skip


@pytest.fixture
def results(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Writes result files that differ from BASE as given and reads them."""

    def write(*changes: dict[str, Any]) -> Comparison:
        for i, change in enumerate(changes):
            content = {k: v for k, v in {**BASE, **change}.items() if v != "missing"}
            (tmp_path / f"m{i}_metrics_{i}.json").write_text(json.dumps(content))
        return read_results([tmp_path])

    return write


def test_groups_are_averaged_and_spellings_are_one_model(results) -> None:  # type: ignore[no-untyped-def]
    found = results(
        {"model_name": "efficientnet_b0", "top_k_accuracy": 0.8},
        {"model_name": "EfficientNet-B0", "top_k_accuracy": 0.9, "precision_at_k": None},
        {"model_name": "efficientnet_b0", "is_finetuned": True, "final_train_loss": 0.3},
    )
    frozen, tuned = found.grouped().records()
    assert frozen["model_name"] == "efficientnet-b0"
    assert frozen["runs"] == 2
    assert frozen["top_k_accuracy"] == pytest.approx(0.85)
    assert frozen["precision_at_k"] == 0.5  # the mean of what is known
    assert frozen["final_train_loss"] is None
    assert tuned["is_finetuned"] is True and tuned["runs"] == 1


@pytest.mark.parametrize(
    "change",
    [{"top_k": 9}, {"num_classes": 31}, {"data_id": "b", "data_name": "other"}],
)
def test_nothing_is_averaged_across_cut_offs_or_data_sets(results, change) -> None:  # type: ignore[no-untyped-def]
    assert len(results({}, change).grouped(["model_name"]).rows) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "random"},
        {"image_size": [224, 224]},
        {"views": "flip"},
        {"whiten": "plain"},
        {"refine": {"chain": "aqe(n=3,alpha=0)", "uses": "gallery"}},
    ],
)
def test_settings_that_differ_are_columns_and_not_averaged(results, change) -> None:  # type: ignore[no-untyped-def]
    plain = {"weights": "pretrained", "whiten": "none", "refine": {"chain": "none | none"}}
    found = results(plain, plain, {**plain, **change})
    (name,) = change
    assert sorted(row["runs"] for row in found.grouped().records()) == [1, 2]
    assert name in found.single().columns
    same = found.grouped(["model_name"]).records()
    assert [row["runs"] for row in same] == [3]
    assert not {"weights", "whiten", "refine"} & set(results(plain, plain, plain).grouped().columns)


def trained(kept: str, **options: Any) -> dict[str, Any]:
    return {"training": {"kept": kept, "images": 40, "options": {"finetune": "last", **options}}}


@pytest.mark.parametrize(
    ("first", "second", "column"),
    [
        ({}, trained("whitened 0.6", finetune="head"), "kept"),  # a fitted head is not the frozen
        (trained("frozen", finetune="head"), {}, "training.finetune"),
        (trained("last weights", epochs=3), trained("last weights", epochs=9), "training.epochs"),
        (trained("last weights", before={"loss": "x"}), trained("last weights"),
         "training.before.loss"),
        (trained("last weights", epochs=9), trained("last weights"), "training.epochs"),
        ({"loss_function": "A", "is_finetuned": True},
         {"loss_function": "B", "is_finetuned": True}, "loss"),
        ({"num_epochs": 1, "is_finetuned": True}, {"num_epochs": 2, "is_finetuned": True},
         "epochs"),
        ({"weights_file": "a.pth"}, {"weights_file": "b.pth"}, "weights_file"),
        ({"dim": 64}, {"dim": 128}, "dim"),
        ({"interpolation": "bicubic"}, {"interpolation": "bilinear"}, "interpolation"),
        ({"fusion": {"method": "concat", "weights": [1, 2]}},
         {"fusion": {"method": "concat", "weights": [2, 1]}}, "fusion"),
        ({"model_id": "a" * 24}, {"model_id": "b" * 24}, "embedder"),
    ],
)  # fmt: skip
def test_runs_of_other_embedders_are_never_averaged(results, first, second, column) -> None:  # type: ignore[no-untyped-def]
    table = results(first, first, second).grouped()
    assert sorted(row["runs"] for row in table.records()) == [1, 2]
    assert column in table.columns


def test_runs_that_differ_by_their_seed_are_one_row(results) -> None:  # type: ignore[no-untyped-def]
    tuned = {"is_finetuned": True, **trained("last weights", budget=60.0)}
    found = results(
        {"model_id": "a", "num_epochs": 7, **tuned}, {"model_id": "b", "num_epochs": 8, **tuned}
    )
    assert [row["runs"] for row in found.grouped().records()] == [2]
    drawn = {"weights": "random"}
    found = results({"model_id": "a", **drawn}, {"model_id": "b", **drawn})
    assert [row["runs"] for row in found.grouped().records()] == [2]


def test_the_embedders_id_is_told_only_where_nothing_else_tells_them_apart(results) -> None:  # type: ignore[no-untyped-def]
    two = {"model_id": "a" * 24, "dim": 64}, {"model_id": "b" * 24, "dim": 128}
    assert "embedder" not in results(*two).grouped().columns
    other = {"model_id": "b" * 24, "model_name": "resnet18"}
    assert "embedder" not in results(two[0], {**other, "dim": 64}).grouped().columns


def test_how_it_was_trained_is_told_only_where_what_was_kept_is_the_same(results) -> None:  # type: ignore[no-untyped-def]
    head = trained("head", finetune="head", epochs=3)
    columns = results({}, head).grouped().columns
    assert "kept" in columns and not any(name.startswith("training") for name in columns)
    columns = results(head, trained("head", finetune="head", epochs=9)).grouped().columns
    assert [name for name in columns if name.startswith("training")] == ["training.epochs"]
    more = {"training": {**trained("head", finetune="head", epochs=3)["training"], "images": 50}}
    assert "training_images" in results(head, more).grouped().columns


def test_a_mean_that_not_all_runs_have_says_of_how_many_it_is(results) -> None:  # type: ignore[no-untyped-def]
    [row] = results({"map": 0.5}, {"map": 0.7}, {}).grouped().records()
    assert (row["runs"], row["map"], row["map runs"]) == (3, pytest.approx(0.6), 2)
    assert "top_k_accuracy runs" not in row and "final_train_loss runs" not in row


def test_a_fitted_projection_is_no_frozen_twin(results) -> None:  # type: ignore[no-untyped-def]
    assert not results(trained("whitened"), {"is_finetuned": True}).flags


def test_one_remark_about_many_files_is_said_once(results) -> None:  # type: ignore[no-untyped-def]
    _, notes = results(*[{"top_k": 10, "fewest_relevant": 6}] * 5).remarks()
    (note,) = [note for note in notes if "cannot reach 1" in note]
    assert (
        note
        == "all 5 results: some query has only 6 relevant images, so precision@10 cannot reach 1"
    )
    few = [{"top_k": 10, "fewest_relevant": 1}] * 5 + [{"top_k": 10, "fewest_relevant": 20}]
    (note,) = [note for note in results(*few).remarks()[1] if "cannot reach 1" in note]
    assert "m2_metrics_2.json and 2 more: some query has only 1 relevant image," in note


def test_groups_and_order_by_any_key(results) -> None:  # type: ignore[no-untyped-def]
    found = results(
        {"batch_size": 64, "top_k_accuracy": 0.7},
        {"batch_size": 32, "top_k_accuracy": None, "model_name": "a"},
        {"batch_size": 32, "top_k_accuracy": 0.9},
    )
    by_batch = found.grouped(["batch_size"])
    assert [row[0] for row in by_batch.rows] == [32, 64]
    best = found.grouped(["model_name", "batch_size"], sort="top_k_accuracy").records()
    assert [row["top_k_accuracy"] for row in best] == [0.9, 0.7, None]
    slow = found.single(sort="runtime_seconds")
    assert len(slow.rows) == 3
    with pytest.raises(UsageError, match="cannot group by 'colour': choose among model_name"):
        found.grouped(["colour"])
    with pytest.raises(UsageError, match="cannot sort by 'colour'"):
        found.grouped(sort="colour")


def test_keys_that_only_some_files_have_group_and_sort_too(results) -> None:  # type: ignore[no-untyped-def]
    found = results(
        {"augment": "light", "learning_rate": 0.1, "scores": {"ndcg@5": 0.5}},
        {"augment": "strong", "learning_rate": 0.01, "scores": {"ndcg@5": 0.8}},
        {"augment": "light", "learning_rate": 0.2, "config": {"nested": 1}},
    )
    light, strong = found.grouped(["augment"]).records()
    assert (light["augment"], light["runs"], strong["runs"]) == ("light", 2, 1)
    by_score = found.grouped(["augment"], sort="ndcg@5").records()
    assert [(row["augment"], row["ndcg@5"]) for row in by_score] == [
        ("strong", 0.8),
        ("light", 0.5),
    ]
    by_rate = found.grouped(["augment"], sort="learning_rate").records()
    assert [row["learning_rate"] for row in by_rate] == pytest.approx([0.01, 0.15])
    with pytest.raises(UsageError, match=r"cannot group by 'nested': choose among .*augment"):
        found.grouped(["nested"])
    assert [row["source"][:2] for row in found.single(sort="ndcg@5").records()] == [
        "m1",
        "m0",
        "m2",
    ]


def test_odd_values_are_read_with_patience(results) -> None:  # type: ignore[no-untyped-def]
    found = results(
        {"loss_function": "None", "top_k": "10", "top_k_accuracy": "0.75", "num_classes": "nan"},
        {"model_name": "missing", "run_id": "missing", "is_finetuned": "True", "map": True},
    )
    first, second = found.results
    assert first.values["loss_function"] is None
    assert first.values["top_k"] == 10
    assert first.scores["top_k_accuracy"] == 0.75
    assert first.values["num_classes"] is None
    assert (second.model, second.values["run_id"]) == ("m1", "1")
    assert second.values["is_finetuned"] is True
    assert "map" not in second.scores


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not JSON"),
        ("[1, 2]", "holds a list"),
        ('{"query.jpg": ["a", "b"]}', "not a result file"),
        ('{\n<<<<<<< HEAD\n"a": 1\n=======\n>>>>>>> other\n}', "merge that was never resolved"),
        ("\x00\xff", "is not JSON"),
    ],
)
def test_a_damaged_file_is_named_and_passed_over(results, tmp_path, content, reason) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "broken.json").write_bytes(content.encode("latin-1"))
    found = results({})
    assert len(found.results) == 1
    [(name, why)] = found.damaged
    assert name == "broken.json" and reason in why
    assert any("broken.json was skipped" in note for note in found.remarks()[1])


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.json files"):
        read_results([tmp_path])
    with pytest.raises(DataError, match=r"there is no .*absent\.json"):
        read_results([tmp_path / "absent.json"])
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match=r"none of the 1 files holds results.*give labels"):
        read_results([tmp_path])


def test_a_ranking_is_compared_with_its_truth(tmp_path: Path) -> None:
    rankings = [tmp_path / "ranking.parquet", tmp_path / "fused.parquet"]
    for path in rankings:
        Ranking.from_lists({"q": ["a", "b"]}).save(path)
    message = r"ranking.parquet is a Parquet file, such as a ranking\. .*: give labels"
    with pytest.raises(UsageError, match=message):
        read_results(rankings)


# ── what cannot be true ──────────────────────────────────────────────────────────────────────────


def alarms(found: Comparison) -> list[str]:
    return found.remarks()[0]


def test_a_loss_at_chance_is_flagged(results) -> None:  # type: ignore[no-untyped-def]
    tuned = {"is_finetuned": True, "loss_function": "CrossEntropyLoss", "top_k_accuracy": 0.8}
    assert "ln 30 = 3.4012" in alarms(results({**tuned, "final_train_loss": 3.43}))[0]
    assert not alarms(results({**tuned, "final_train_loss": 3.36}))
    other = {**tuned, "final_train_loss": 3.4, "loss_function": "TripletMarginLoss"}
    assert not alarms(results(other))


def test_a_tuned_run_with_all_scores_of_its_frozen_twin_is_flagged(results) -> None:  # type: ignore[no-untyped-def]
    found = results({}, {"is_finetuned": True, "num_classes": None})
    assert "same scores, top_k_accuracy (0.9), precision_at_k (0.5)" in alarms(found)[0]
    assert alarms(found)[0].startswith("m1_metrics_1.json, m0_metrics_0.json: ")


@pytest.mark.parametrize(
    "change",
    [{"pooling_type": "GAP"}, {"model_name": "resnet18"}, {"top_k": 5}, {"num_classes": 9},
     {"data_id": "x"}],
)  # fmt: skip
def test_only_a_true_twin_counts(results, change) -> None:  # type: ignore[no-untyped-def]
    assert not results({}, {"is_finetuned": True, **change}).flags


def test_twins_that_share_some_scores_are_only_mentioned(results) -> None:  # type: ignore[no-untyped-def]
    found = results({}, {"is_finetuned": True, "precision_at_k": 0.6})
    assert not alarms(found)
    assert "share top_k_accuracy (0.9), but not precision_at_k (0.6, 0.5)" in found.remarks()[1][0]


@pytest.mark.parametrize("score", [1.0, 0.9945])
def test_twins_that_share_a_saturated_score_are_not_mentioned(results, score) -> None:  # type: ignore[no-untyped-def]
    tuned = {"is_finetuned": True, "top_k_accuracy": score, "precision_at_k": 0.6}
    assert results({"top_k_accuracy": score}, tuned).flags == []


def test_spellings_of_one_model_are_one_row(results) -> None:  # type: ignore[no-untyped-def]
    names = ("clip-vit-b-32", "Clip-ViT-B-32", "clip-vit-b32", "clip_vit_b_32")
    [row] = results(*({"model_name": name} for name in names)).grouped().records()
    assert (row["model_name"], row["runs"]) == ("clip-vit-b32", 4)
    apart = [{"model_name": name} for name in ("clip-vit-b32", "clip-vit-b16", "resnet10-1")]
    assert len(results(*apart).grouped().rows) == 3


def test_twins_at_the_top_are_no_alarm(results) -> None:  # type: ignore[no-untyped-def]
    top = {"top_k_accuracy": 1.0, "precision_at_k": 1.0}
    assert not alarms(results(top, {**top, "is_finetuned": True}))


def test_zero_with_unknown_truth_is_flagged_and_not_averaged(results) -> None:  # type: ignore[no-untyped-def]
    found = results({"top_k_accuracy": 0.0}, {"top_k_accuracy": 0.6})
    assert "top_k_accuracy is exactly 0" in alarms(found)[0]
    assert found.grouped().records()[0]["top_k_accuracy"] == 0.6
    known = results({"top_k_accuracy": 0.0, "queries": 50}, {"top_k_accuracy": 0.6})
    assert not alarms(known)
    assert known.grouped().records()[0]["top_k_accuracy"] == pytest.approx(0.3)


def test_k_beyond_a_class_is_mentioned(results) -> None:  # type: ignore[no-untyped-def]
    found = results({"fewest_relevant": 8, "queries": 3})
    assert "some query has only 8 relevant images, so precision@10" in found.remarks()[1][0]


def test_scores_that_are_no_shares_are_flagged(results) -> None:  # type: ignore[no-untyped-def]
    assert "top_k_accuracy 90 is not between 0 and 1" in alarms(results({"top_k_accuracy": 90}))[0]


# ── output ───────────────────────────────────────────────────────────────────────────────────────


def test_html_and_json_hold_groups_runs_and_flags(results) -> None:  # type: ignore[no-untyped-def]
    found = results({"model_name": "<b>x</b>", "top_k_accuracy": 0.0}, {})
    html = comparison_page(
        run_table([row_of_result(r) for r in found.results]), found, found.remarks()
    )
    assert "&lt;b&gt;x" in html and "<b>x" not in html
    assert "exactly 0" in html and "All settings" in html
    assert html.index('class="heads"') < html.index("<table")
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert len(content["groups"]) == 2 and len(content["runs"]) == 2
    assert content["flags"][0]["alarm"] is True


def test_compare_starts_without_torch() -> None:
    code = "import sys, vizsla.score.compare; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ── the contest's own results ────────────────────────────────────────────────────────────────────


def test_the_contests_results(shared: Path) -> None:
    found = read_results([shared / "contest/results"])
    assert len(found.results) == 23
    assert [name for name, _ in found.damaged] == ["resnet50_metrics_20250526-1304.json"]
    found_alarms = alarms(found)
    assert len(found_alarms) == 3
    assert any("4.4864 is at chance (ln 90 = 4.4998)" in text for text in found_alarms)
    assert any("6.8125 is at chance (ln 921 = 6.825" in text for text in found_alarms)
    assert any("20250528-1234.json: top_k_accuracy is exactly 0" in text for text in found_alarms)
    notes = found.remarks()[1]
    assert any("share top_k_accuracy (0.8877), but not precision_at_k" in text for text in notes)
    rows = {
        (r["model_name"], r["is_finetuned"], r["pooling_type"], r["num_classes"], r["epochs"]): r
        for r in found.grouped().records()
    }
    assert rows["efficientnet-b0", False, "GeM", 90, None]["runs"] == 2
    assert rows["clip-vit-b32", True, None, 921, 10]["top_k_accuracy"] is None
    assert rows["resnet50", True, None, 90, 5]["top_k_accuracy"] == pytest.approx(0.9593)
    assert rows["resnet50", True, None, 90, 10]["top_k_accuracy"] == pytest.approx(0.9704)
    assert found.results[2].values["loss_function"] is None  # "None" in the file


def test_twins_are_told_by_the_main_scores(results) -> None:  # type: ignore[no-untyped-def]
    """Of forty queries two runs share some score by chance: that is no news."""
    many = {f"ndcg@{k}": k / 100 for k in range(1, 30)}
    tuned = {"is_finetuned": True, "scores": {**many, "top_k_accuracy@5": 0.5}}
    [flag] = results({"scores": {**many, "top_k_accuracy@5": 0.5}}, tuned).flags
    assert "top_k_accuracy (0.9), precision_at_k (0.5) and 30 more: was anything" in flag.text
    other = {**tuned, "top_k_accuracy": 0.8, "precision_at_k": 0.4}
    assert results({"scores": many}, other).flags == []
    [flag] = results({"scores": many}, {**tuned, "precision_at_k": 0.4}).flags
    assert not flag.alarm
    assert flag.text.endswith("share top_k_accuracy (0.9), but not precision_at_k (0.4, 0.5)")
