import dataclasses
from pathlib import Path

import numpy as np
import pytest

from vizsla import storage
from vizsla.errors import DataError, StorageError, UsageError
from vizsla.score.calibration import FORM, Calibration, _knots, calibrate, in_words, made_by
from vizsla.score.match_model import MatchModel
from vizsla.score.relevance import Relevance, relevance
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking

MADE_BY = {"model_id": "m", "refine": "none"}


def ranked(n: int, *, right_above: float, seed: int = 0) -> tuple[Ranking, Truth]:
    """n queries whose first match is right where its score lies above, else by a coin."""
    rng = np.random.default_rng(seed)
    scores = rng.random(n)
    right = (scores > right_above) | (rng.random(n) < 0.5)
    lists = {f"q{i}": [f"g{i}"] for i in range(n)}
    ranking = Ranking.from_lists(lists, {f"q{i}": [float(s)] for i, s in enumerate(scores)})
    ranking = dataclasses.replace(ranking, origin={"model_id": "m"}, gallery_size=n)
    gallery = {f"g{i}": f"c{i}" if r else "other" for i, r in enumerate(right)}
    return ranking, Truth({f"q{i}": f"c{i}" for i in range(n)}, gallery)


def judged(n: int, *, right_above: float, seed: int = 0) -> Relevance:
    return relevance(*ranked(n, right_above=right_above, seed=seed))


def learned(n: int = 2000, sure: float = 0.9) -> Calibration:
    part = judged(n, right_above=0.6)
    return calibrate([part], sure=sure, made_by=MADE_BY, learned_on="some")


def test_what_is_accepted_elsewhere_is_right_as_often_as_was_asked() -> None:
    found = learned()
    assert found.cutoff is not None
    assert found.queries == 2000 and found.auc is not None and found.auc > 0.7
    assert 0.15 < found.absent < 0.35  # whose class the gallery lacks
    ranking, truth = ranked(5000, right_above=0.6, seed=1)
    decided = found.decide(ranking)
    assert decided.accepted is not None and set(decided.accepted) == {0, 1}
    taken = relevance(decided, truth)
    assert taken.accepted is not None
    assert 0.9 <= taken.hits[taken.accepted].mean() < 0.97
    assert decided.scores is not None and 0.45 < decided.scores[decided.accepted > 0].min() < 0.6
    estimate = 1 / (1 + np.exp(-found.cutoff.score))
    assert decided.origin["accept"] == {"sure": 0.9, "estimate": pytest.approx(estimate)}
    assert "at least 90 % right for queries like these" in found.verdict


def test_another_precision_is_asked_of_the_same_calibration() -> None:
    low, high = (learned().with_sure(p).cutoff for p in (0.8, 0.97))
    assert low is not None and high is not None and low.score < high.score
    none = learned(20)
    assert none.cutoff is None and "nothing is accepted" in none.verdict
    too_sure = learned().with_sure(0.9999)
    assert too_sure.cutoff is None and "--accept 0.9" in too_sure.verdict
    decided = none.decide(ranked(5, right_above=0)[0])
    assert decided.accepted is not None and not decided.accepted.any()
    with pytest.raises(UsageError, match="between 0 and 1"):
        learned().with_sure(95)


def test_probabilities_rise_with_the_score_and_never_split_a_tie() -> None:
    found = learned()
    grid = np.linspace(-1, 2, 500)
    chance = found.probability(grid[:, None])[:, 0]
    assert (np.diff(chance) >= 0).all() and 0 < chance[0] < chance[-1] < 1
    assert found.probability(np.array([[0.8]]))[0, 0] > 0.97
    assert 0.4 < found.probability(np.array([[0.3]]))[0, 0] < 0.6
    assert np.isnan(found.probability(np.array([[0.5, np.nan]]))).tolist() == [[False, True]]
    tied = calibrate([judged(500, right_above=0.6)], made_by=MADE_BY, learned_on="").probability(
        np.array([[0.7, 0.7]])
    )
    assert tied[0, 0] == tied[0, 1]


def test_isotonic_probabilities_equal_those_of_scikit_learn() -> None:
    from sklearn.isotonic import IsotonicRegression

    part = judged(400, right_above=0.6)
    assert part.scores is not None
    scores, right = part.scores[:, 0].round(2), part.hits[:, 0]
    bounds = {"y_min": 1 / 402, "y_max": 401 / 402}
    same = IsotonicRegression(out_of_bounds="clip", **bounds).fit(scores, right)
    grid = np.linspace(0, 1, 301)
    as_they_are = MatchModel((1.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    found = dataclasses.replace(learned(), model=as_they_are, knots=_knots(scores, right, 400))
    assert found.probability(grid[:, None])[:, 0] == pytest.approx(same.predict(grid), abs=1e-9)


def test_a_ranking_too_short_to_decide_is_refused() -> None:
    found = dataclasses.replace(learned(), model=MatchModel((1.0,) * 6, depth=3))
    with pytest.raises(DataError, match=r"holds 1 images .* needs the scores of the first 3"):
        found.decide(ranked(5, right_above=0)[0])
    of_two = dataclasses.replace(ranked(2, right_above=0)[0], gallery_size=1)  # it has no more
    assert found.decide(of_two).accepted is not None


def test_a_saved_one_is_the_same(tmp_path: Path) -> None:
    found = learned()
    found.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == found
    content = {**dataclasses.asdict(found), "form": FORM, "levels": [{"score": 1.0}]}
    storage.write_sealed_json(tmp_path / "other.json", content)
    with pytest.raises(DataError, match=r"this version reads .* learn it again"):
        Calibration.load(tmp_path / "other.json")
    text = (tmp_path / "c.json").read_text()
    (tmp_path / "c.json").write_text(text.replace('"sure": 0.9', '"sure": 0.8'))
    with pytest.raises(StorageError):
        Calibration.load(tmp_path / "c.json")


def test_scores_of_another_model_refinement_or_fusion_are_refused() -> None:
    ranking, _ = ranked(5, right_above=0)
    found = learned()
    others = {
        "model n": {"model_id": "n"},
        "refined by aqe": {"model_id": "m", "refine": {"chain": "aqe"}},
        "fused by rrf with weights 0.5, 0.5": {
            "fusion": {"method": "rrf", "weights": [0.5, 0.5],
                       "of": [{"model_id": "m"}, {"model_id": "n"}]},
        },
    }  # fmt: skip
    for words, origin in others.items():
        with pytest.raises(DataError, match=f"for scores of model m, .*{words}.*: learn one"):
            found.decide(dataclasses.replace(ranking, origin=origin))
    with pytest.raises(DataError, match="holds no scores"):
        found.decide(dataclasses.replace(ranking, scores=None))
    assert made_by(others["fused by rrf with weights 0.5, 0.5"])["of"][1] == {
        "model_id": "n", "refine": "none",
    }  # fmt: skip


def test_evidence_decides_only_where_as_many_queries_are_near() -> None:
    ranking, truth = ranked(2000, right_above=0.6)
    part = relevance(dataclasses.replace(ranking, evidence=ranking.scores), truth)
    own = calibrate([part], made_by=MADE_BY, learned_on="some", queries_near=0.2)
    assert own.model.needs_evidence
    both = dataclasses.replace(own, of_scores=learned())
    at = {"queries_near": 0.19}  # within a tenth
    assert both.for_scores_of({"model_id": "m"}, **at) is both
    for fewer in ({"queries_near": 0.1}, {"queries_near": None}):
        found = both.for_scores_of({"model_id": "m"}, **fewer)
        assert not found.model.needs_evidence and found.sure == both.sure
    assert both.without_evidence == learned().with_sure(both.sure)
    near, far = (
        dataclasses.replace(
            ranking, evidence=np.ones_like(ranking.positions, float),
            origin={**ranking.origin, "queries_near": value},
        )
        for value in (0.2, 0.1)
    )  # fmt: skip
    decided = both.decide(far).probability
    assert np.array_equal(decided, both.without_evidence.probability(ranking.scores))  # type: ignore[arg-type]
    assert not np.array_equal(both.decide(near).probability, decided)


def test_a_query_of_several_draws_is_one_query() -> None:
    part = judged(60, right_above=0.0)
    twice = calibrate([part] * 2, made_by=MADE_BY, learned_on="")
    once = calibrate([part], made_by=MADE_BY, learned_on="")
    assert twice.queries == once.queries == 60
    assert [level.queries for level in twice.levels] == [level.queries for level in once.levels]
    of_once = [level.lower for level in once.levels]
    assert [level.lower for level in twice.levels] == pytest.approx(of_once, abs=0.01)


def test_rankings_without_scores_cannot_be_learned_from() -> None:
    plain = relevance(Ranking.from_lists({"q": ["g"]}), Truth({"q": "a"}, {"g": "a"}))
    with pytest.raises(DataError, match="holds no scores"):
        calibrate([plain], made_by=MADE_BY, learned_on="")


def test_nothing_is_accepted_after_a_match_without_a_score() -> None:
    found = learned()
    scores = np.array([[0.99, np.nan, 0.98], [np.nan, 0.99, 0.98], [0.99, 0.98, 0.97]])
    chances, accepted = found.decided(scores)
    assert np.array_equal(np.isnan(chances), np.isnan(scores))
    assert accepted.sum(axis=1).tolist() == [1, 0, 3]


def of_two_classes(n: int = 4000, seed: int = 0) -> tuple[Ranking, Truth, list[str | None]]:
    """n queries with one image each, of the class `clear` or `alike`, whose matches are less often
    right for the same score."""
    rng = np.random.default_rng(seed)
    scores, alike = rng.random(n), np.arange(n) % 4 == 0
    right = rng.random(n) < np.where(
        alike, np.clip(2.5 * scores - 1.2, 0, 0.98), np.minimum(1.5 * scores, 0.99)
    )
    lists = {f"q{i}": [f"g{i}"] for i in range(n)}
    ranking = Ranking.from_lists(lists, {f"q{i}": [float(s)] for i, s in enumerate(scores)})
    gallery: dict[str, str | None] = {f"g{i}": f"{i}" if r else "?" for i, r in enumerate(right)}
    ranking = dataclasses.replace(ranking, origin={"model_id": "m"}, gallery_size=n)
    truth = Truth({f"q{i}": f"{i}" for i in range(n)}, gallery)
    return ranking, truth, ["alike" if one else "clear" for one in alike]


def test_a_class_whose_matches_are_less_often_right_has_a_higher_cutoff(tmp_path: Path) -> None:
    ranking, truth, first = of_two_classes()
    part = dataclasses.replace(relevance(ranking, truth), first_labels=first)
    found = calibrate([part], sure=0.8, made_by=MADE_BY, learned_on="some")
    assert found.cutoff is not None and list(found.class_cutoffs()) == ["alike"]
    assert found.class_cutoffs()["alike"] > found.cutoff.score
    assert any("where the first image is of alike (0." in line for line in found.lines())
    found.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == found

    ranking, truth, first = of_two_classes(seed=1)
    is_alike = np.array(first) == "alike"
    precision = []
    for known in (None, first):
        judged = relevance(found.decide(ranking, first_labels=known), truth)
        assert judged.accepted is not None
        taken = judged.accepted[:, 0] & is_alike
        precision.append(judged.hits[taken, 0].mean())
        others = judged.accepted[:, 0] & ~is_alike
        assert judged.hits[others, 0].mean() > 0.8
    assert precision[0] < 0.75 and precision[1] >= 0.8
    wrong = [dataclasses.replace(one, lower=0.1, upper=0.5) for one in found.of_classes[0][1]]
    none = dataclasses.replace(found, of_classes=(("alike", tuple(wrong)),))
    assert np.isinf(none.class_cutoffs()["alike"])  # none of its cut-offs is sure


def test_few_queries_of_a_class_give_it_no_cutoff() -> None:
    ranking, truth, first = of_two_classes(100)  # 25 are of alike
    part = dataclasses.replace(relevance(ranking, truth), first_labels=first)
    found = calibrate([part], sure=0.5, made_by=MADE_BY, learned_on="some")
    assert [name for name, _ in found.of_classes] == ["clear"]


def test_probabilities_in_words() -> None:
    assert in_words(0.974) == "very likely the same (97 %)"
    assert in_words(0.5) == "perhaps the same (50 %)"
    assert in_words(0.0) == "very likely another (0 %)"
