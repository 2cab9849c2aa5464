import json
import math

import numpy as np
import pytest

from vizsla.errors import DataError, StorageError, UsageError
from vizsla.score.evaluate import evaluate
from vizsla.score.result_file import result_record
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking

LISTS = {
    "q1": ["g1", "g2", "g3", "g4"],  # right at 1 and 3
    "q2": ["g1", "g2", "g3", "g4"],  # right at 2
    "q3": ["g1", "g2", "g3", "g4"],  # nothing to find
}
TRUTH = Truth(
    {"q1": "cat", "q2": "dog", "q3": "owl", "q4": "cat"},  # q4 is not in the ranking
    {"g1": "cat", "g2": "dog", "g3": "cat", "g4": "fox"},
    attributes={"domain": {"q1": "photo", "q2": "photo", "q3": "drawn"}},
)


@pytest.fixture
def scores() -> Scores:
    return evaluate(Ranking.from_lists(LISTS), TRUTH, ks=(1, 2, 4), top_k=4)


def test_hit_rates_and_contest_points_divide_by_all_queries(scores: Scores) -> None:
    figure = scores["top_k_accuracy@2"]
    assert (figure.mean, figure.n) == (2 / 4, 4)
    assert (figure.other_mean, figure.other_n) == (2 / 3, 3)
    assert scores["contest_points"].mean == (1000 + 400) / 4


def test_other_means_leave_out_queries_with_nothing_relevant(scores: Scores) -> None:
    figure = scores["map"]
    expected = ((1 + 2 / 3) / 2 + 1 / 2 + 0) / 3
    assert (figure.mean, figure.n) == (pytest.approx(expected), 3)
    assert (figure.other_mean, figure.other_n) == (pytest.approx(expected * 3 / 4), 4)
    assert scores["precision@4"].mean == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
    assert scores.per_query("map") == [pytest.approx(5 / 6), 1 / 2, None, 0]
    assert scores.per_query("top_k_accuracy@1") == [1, 0, 0, 0]


def test_where_all_queries_can_be_answered_there_is_one_denominator() -> None:
    lists = {name: LISTS[name] for name in ("q1", "q2")}
    truth = Truth({"q1": "cat", "q2": "dog"}, TRUTH.gallery)
    figure = evaluate(Ranking.from_lists(lists), truth, ks=[2])["top_k_accuracy@2"]
    assert (figure.other_mean, figure.other_n) == (None, 0)


def test_cut_offs_beyond_the_lists_are_unknown_unless_the_gallery_ends_there(
    scores: Scores,
) -> None:
    short = evaluate(Ranking.from_lists({"q1": ["g1", "g2"]}), TRUTH, ks=(1, 2, 3))
    assert short["precision@2"].mean is not None
    for key in ("top_k_accuracy@3", "precision@3", "recall@3", "ap@3", "ndcg@3", "mrr@3"):
        assert short[key].mean is None and short[key].low is None, key
    assert "1 of 4 lists are shorter than 3" in (short["precision@3"].unknown or "")
    whole = evaluate(Ranking.from_lists(LISTS), TRUTH, ks=[10])
    assert whole["precision@10"].mean == pytest.approx((2 / 10 + 1 / 10 + 0) / 3)
    assert whole["top_k_accuracy@10"].mean == 2 / 4


def test_missing_ranks_count_as_wrong_where_a_judge_says_so() -> None:
    lists = {"q1": ["g2"], "q2": ["g1", "g2"]}
    truth = Truth({"q1": "cat", "q2": "dog"}, TRUTH.gallery)
    unknown = evaluate(Ranking.from_lists(lists), truth, ks=[2])
    assert unknown["top_k_accuracy@2"].mean is None
    assert unknown["contest_points"].mean == 200
    wrong = evaluate(Ranking.from_lists(lists), truth, ks=[2], missing_ranks="wrong")
    assert wrong["top_k_accuracy@2"].mean == 0.5
    assert wrong["map"].mean is None
    with pytest.raises(UsageError, match="missing_ranks"):
        evaluate(Ranking.from_lists(lists), truth, missing_ranks="maybe")


def test_without_the_gallerys_truth_what_needs_it_is_unknown() -> None:
    truth = Truth({"q1": "cat"}, TRUTH.gallery, gallery_complete=False)
    scores = evaluate(Ranking.from_lists({"q1": LISTS["q1"]}), truth, ks=(1, 4))
    for key in ("recall@4", "ap@4", "map", "map_at_r", "r_precision", "ndcg@4"):
        assert scores[key].mean is None
        assert scores[key].unknown == "the truth of the whole gallery is not known"
    for key in ("top_k_accuracy@4", "precision@4", "mrr@4", "contest_points"):
        assert scores[key].mean is not None
    assert scores.with_nothing_relevant is None
    assert "not known: recall@1,4; AP@1,4; nDCG@1,4; mAP; MAP@R; R-precision (the" in scores.text()


def test_a_shallow_ranking_gives_ap_at_its_depth_instead_of_map() -> None:
    lists = {"q1": ["g1", "g2"], "q2": ["g1", "g4"]}
    truth = Truth({"q1": "cat", "q2": "dog"}, TRUTH.gallery)
    scores = evaluate(Ranking.from_lists(lists), truth, ks=[1])
    assert scores["map"].mean is None
    assert scores["ap@2"].mean == pytest.approx((1 / 2 + 0) / 2)
    assert scores["r_precision"].mean == pytest.approx((1 / 2 + 0) / 2)  # R is 2 and 1
    assert scores["mrr"].mean is None
    assert "AP@2" in scores.text() and "mAP" not in scores.text().split("not known")[0]


def test_ap_is_known_from_a_shallow_ranking_that_found_everything() -> None:
    truth = Truth({"q1": "dog"}, TRUTH.gallery)
    assert evaluate(Ranking.from_lists({"q1": ["g1", "g2"]}), truth, ks=[1])["map"].mean == 0.5


def test_full_ranks_that_cannot_belong_to_the_ranking_are_refused() -> None:
    ranking = Ranking.from_lists({"q1": ["g1", "g2"]})
    truth = Truth({"q1": "cat"}, TRUTH.gallery)
    good = evaluate(ranking, truth, ks=[1], full_ranks=[np.array([1, 4])])
    assert good["map"].mean == pytest.approx((1 + 2 / 4) / 2)
    assert good["precision@1"].mean == 1
    assert good["mrr"].mean == 1
    for ranks, message in (
        ([np.array([2, 4])] * 2, "2 rows for 1 queries"),
        ([np.array([3, 4])], "disagree"),
        ([np.array([1, 3, 4])], "more ranks than"),
    ):
        with pytest.raises(DataError, match=message):
            evaluate(ranking, truth, ks=[1], full_ranks=ranks)


def test_top_k_is_the_lists_length_for_a_submission_and_the_largest_k_otherwise() -> None:
    ranking = Ranking.from_lists({"q1": ["g1", "g2", "g4"]})
    part = Truth({"q1": "cat"}, TRUTH.gallery, gallery_complete=False)
    assert evaluate(ranking, part, ks=(1, 2)).top_k == 3
    assert evaluate(ranking, Truth({"q1": "cat"}, TRUTH.gallery), ks=(1, 2)).top_k == 2
    assert evaluate(ranking, part, ks=(1, 2), top_k=1).top_k == 1


def test_bad_cut_offs_are_refused() -> None:
    with pytest.raises(UsageError, match="from 1"):
        evaluate(Ranking.from_lists(LISTS), TRUTH, ks=[0])


def test_intervals_surround_the_means(scores: Scores) -> None:
    for key, figure in scores.known.items():
        assert figure.low is not None and figure.high is not None, key
        assert figure.low <= (figure.mean or 0) + 1e-12 <= figure.high + 2e-12, key


def test_intervals_by_class_are_not_those_by_query() -> None:
    generator = np.random.default_rng(0)
    names = [f"q{i}" for i in range(60)]
    lists = {n: [f"g{j}" for j in generator.permutation(20)] for n in names}
    truth = Truth(
        {n: str(i // 6) for i, n in enumerate(names)}, {f"g{j}": str(j % 10) for j in range(20)}
    )
    by_query = evaluate(Ranking.from_lists(lists), truth)
    by_class = evaluate(Ranking.from_lists(lists), truth, cluster="label")
    for key in ("map", "top_k_accuracy@5"):
        assert by_query[key].mean == by_class[key].mean
        assert by_query[key].low != by_class[key].low
    assert by_class.to_dict()["intervals"]["cluster"] == "label"
    with pytest.raises(UsageError, match="no column 'domain'"):
        evaluate(Ranking.from_lists(lists), truth, cluster="domain")


def test_slices_hold_the_same_values(scores: Scores) -> None:
    parts = scores.by("domain")
    assert list(parts) == ["(none)", "drawn", "photo"]
    assert parts["photo"].queries == ["q1", "q2"]
    assert parts["photo"].mean("map") == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert parts["photo"]["top_k_accuracy@1"].mean == 0.5
    assert parts["drawn"].mean("map") is None
    assert parts["drawn"]["map"].unknown == "no query has anything relevant"
    with pytest.raises(UsageError, match="there are label, domain"):
        scores.by("colour")


def test_worst_classes_and_confusion(scores: Scores) -> None:
    assert scores.headline == "map"
    assert scores.worst(1) == [("cat", pytest.approx(5 / 12), 2)]
    assert scores.zero_classes() == ["owl"]
    assert scores.confused() == [("dog", "cat", 1), ("owl", "cat", 1)]


def test_notes_say_what_was_left_out(scores: Scores) -> None:
    notes = "\n".join(scores.notes)
    assert "1 query has nothing relevant in the gallery" in notes
    assert "1 query of the truth is not in the ranking" in notes
    assert "1 class has no hit in the first 4 of any query: owl" in notes
    assert "3 queries have fewer than 4 relevant images (the fewest: 1)" in notes
    assert "precision@4 can reach 0.4167 at most" in notes  # (2 + 1 + 2) / 3 / 4


def test_notes_count_what_has_no_label() -> None:
    truth = Truth({"q1": "cat", "q2": None}, {**TRUTH.gallery, "g4": None})
    scores = evaluate(Ranking.from_lists({"q1": LISTS["q1"], "q2": LISTS["q2"]}), truth, ks=[1])
    assert "1 query has no label: left out" in scores.text()
    assert "1 gallery image has no label: counted as wrong" in scores.text()


def test_text_is_a_table(scores: Scores) -> None:
    lines = scores.lines()
    assert lines[0].split() == [
        "metric", "value", "95", "%", "interval", "queries", "with", "the", "other", "denominator"
    ]  # fmt: skip
    row = next(line for line in lines if line.startswith("top-2 accuracy"))
    assert "0.5000" in row and row.endswith("0.6667 of 3")
    assert next(line for line in lines if line.startswith("contest points")).split()[2] == "350.00"


def test_to_dict_is_json_without_nan(scores: Scores) -> None:
    text = json.dumps(scores.to_dict(), allow_nan=False)
    assert json.loads(text)["metrics"]["map"]["queries"] == 3
    assert json.loads(text)["first_rank"] == {
        "found": 2 / 3, "mean": None, "median": 2, "p90": None
    }  # fmt: skip


def test_an_unknown_metric_is_named(scores: Scores) -> None:
    with pytest.raises(UsageError, match="no metric 'mAP'"):
        scores["mAP"]


def test_saved_scores_come_back_the_same(scores: Scores, tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "scores.json"
    scores.save(path)
    again = Scores.load(path)
    assert again.to_dict() == scores.to_dict()
    assert again.per_query("map") == scores.per_query("map")
    path.write_text(path.read_text().replace('"q1"', '"q9"'))
    with pytest.raises(StorageError, match="damaged"):
        Scores.load(path)


# ── the contest's own submissions ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "k", "accuracy", "precision"),
    [
        ("sub_dino2", 9, 0.9605, 0.4915),
        ("sub_dino2_finetune", 9, 0.9852, 0.5999),
        ("sub_efficientnet_b3", 9, 0.9741, 0.8513),
        ("sub_resnet50", 10, 0.3000, 0.0428),
    ],
)
def test_the_contests_submissions_score_as_logged(shared, name, k, accuracy, precision) -> None:  # type: ignore[no-untyped-def]
    lists = json.loads((shared / "contest/submissions" / f"{name}.json").read_text())
    ranking = Ranking.from_lists(lists)
    scores = evaluate(ranking, Truth.from_pattern(ranking, "{label}_{n}"))
    assert scores.top_k == k
    assert round(scores.mean(f"top_k_accuracy@{k}") or 0, 4) == accuracy
    assert round(scores.mean(f"precision@{k}") or 0, 4) == precision
    assert scores.mean("map") is None and scores.mean("contest_points") is not None
    if k == 9:
        assert scores.mean("top_k_accuracy@10") is None


def test_a_submission_whose_truth_is_unknown_is_not_scored(shared) -> None:  # type: ignore[no-untyped-def]
    path = shared / "contest/submissions/sub_clip_test_finetuning.json"
    ranking = Ranking.from_lists(json.loads(path.read_text()))
    with pytest.raises(DataError, match="labels none of its"):
        Truth.from_pattern(ranking, "{label}_{n}")


# ── the result file ──────────────────────────────────────────────────────────────────────────────


def record(scores: Scores | None, **changes):  # type: ignore[no-untyped-def]
    arguments = {
        "model_name": "resnet50", "run_id": "20260131-235959-0a1b", "top_k": 4, "batch_size": 32,
        "is_finetuned": True, "num_classes": 30, "runtime_seconds": 42.123, "pooling": "gem",
        "loss_function": "CrossEntropyLoss", "num_epochs": 10, "final_train_loss": 0.3471,
    }  # fmt: skip
    return result_record(scores, **{**arguments, **changes})  # type: ignore[arg-type]


def test_result_record_has_the_keys_of_the_contest(scores: Scores) -> None:
    content = record(scores, data={"name": "zoo", "id": "0af3"}, model_id="m1", warnings=["w"])
    first = {
        "model_name": "resnet50", "run_id": "20260131-235959-0a1b", "top_k": 4,
        "top_k_accuracy": 0.5, "precision_at_k": 0.25, "batch_size": 32, "is_finetuned": True,
        "num_classes": 30, "runtime_seconds": 42.12, "loss_function": "CrossEntropyLoss",
        "num_epochs": 10, "final_train_loss": 0.3471, "pooling_type": "GeM",
    }  # fmt: skip
    assert list(content.items())[: len(first)] == list(first.items())
    assert content["map"] == pytest.approx(4 / 9, abs=1e-6)
    assert content["data_id"] == "0af3" and content["model_id"] == "m1"
    assert content["intervals"]["map"][0] < content["map"]
    json.dumps(content, allow_nan=False)


@pytest.mark.parametrize(
    ("pooling", "written"),
    [("gem", "GeM"), ("gap", "GAP"), ("max", "Max"), ("cls", "CLS"), ("native", "internal")],
)
def test_pooling_is_written_as_the_document_has_it(pooling: str, written: str) -> None:
    assert record(None, pooling=pooling)["pooling_type"] == written


def test_result_record_of_a_frozen_run_without_truth_is_null_never_0() -> None:
    content = record(
        None, is_finetuned=False, num_epochs=None, final_train_loss=None, num_classes=None
    )
    for key in ("top_k_accuracy", "precision_at_k", "map", "loss_function", "final_train_loss"):
        assert content[key] is None, key
    assert content["scores"] == {}


def test_result_record_needs_scores_at_its_k(scores: Scores) -> None:
    with pytest.raises(DataError, match="no cut-off 3"):
        record(scores, top_k=3)
    assert not math.isnan(record(scores)["top_k_accuracy"])


def test_intervals_do_not_depend_on_the_order_of_the_truth() -> None:
    rng = np.random.default_rng(0)
    names = [f"q{i:02}" for i in range(30)]
    lists = {name: [f"g{j}" for j in rng.permutation(20)] for name in names}
    gallery = {f"g{j}": "abc"[j % 3] for j in range(20)}
    query = {name: "abc"[i % 3] for i, name in enumerate(names)}
    backwards = dict(reversed(query.items()))
    one, other = (
        evaluate(Ranking.from_lists(lists), Truth(order, gallery)) for order in (query, backwards)
    )
    assert one["map"].low is not None
    assert (one["map"].low, one["map"].high) == (other["map"].low, other["map"].high)
