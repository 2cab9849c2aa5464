"""Fusion by hand, against ranx, and where rankings do not fit."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest

from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.search import exact, fusion
from vizsla.search.fusion import fused, joined
from vizsla.search.ranking import Ranking


def random_ranking(seed: int, Q: int = 7, G: int = 30, K: int = 30) -> Ranking:
    rng = np.random.default_rng(seed)
    scores = rng.random((Q, G)) * rng.uniform(0.5, 3) + rng.uniform(-1, 1)
    order = np.argsort(-scores, axis=1)[:, :K]
    return Ranking(
        [f"q{i}" for i in range(Q)], [f"g{i:02}" for i in range(G)],
        order, np.take_along_axis(scores, order, 1), G,
    )  # fmt: skip


def scores_of(ranking: Ranking) -> dict[str, dict[str, float]]:
    assert ranking.scores is not None
    return {
        query: {
            ranking.gallery[p]: float(s)
            for p, s in zip(ranking.positions[i], ranking.scores[i], strict=True)
            if p >= 0
        }
        for i, query in enumerate(ranking.queries)
    }


def by_ranx(rankings: list[Ranking], norm: str | None, method: str, **params: object) -> dict:  # type: ignore[type-arg]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba's, of its own future
        ranx = pytest.importorskip("ranx")
        runs = [ranx.Run(scores_of(ranking)) for ranking in rankings]
        done = ranx.fuse(runs=runs, norm=norm, method=method, params=params or None)
        return {str(q): {str(g): float(s) for g, s in row.items()} for q, row in done.run.items()}


@pytest.mark.slow  # numba compiles ranx for half a minute
@pytest.mark.parametrize(
    ("method", "norm", "depths"),
    [
        ("zscore", "zmuv", (30, 30, 30)),
        ("minmax", "min-max", (30, 12, 20)),
        ("rrf", None, (9, 30, 5)),
    ],
)
def test_agrees_with_ranx(method: str, norm: str | None, depths: tuple[int, ...]) -> None:
    """zscore on whole lists only: ranx gives an absent image the mean score of a list."""
    rankings = [random_ranking(i, K=k) for i, k in enumerate(depths)]
    weights = [0.5, 0.3, 0.2]
    if method == "rrf":
        ours, theirs = fused(rankings, method="rrf"), by_ranx(rankings, None, "rrf")
        theirs = {q: {g: s / 3 for g, s in row.items()} for q, row in theirs.items()}
    else:
        ours = fused(rankings, method=method, weights=weights)
        theirs = by_ranx(rankings, norm, "wsum", weights=weights)
    found = scores_of(ours)
    for query, row in theirs.items():
        for name, score in found[query].items():
            assert score == pytest.approx(row[name], abs=1e-9)
        best = sorted(row, key=lambda name: (-round(row[name], 12), name))[: len(found[query])]
        assert list(found[query]) == best


def test_by_hand_with_what_is_missing() -> None:
    a = Ranking.from_lists({"q": ["x", "y", "z"]}, {"q": [3.0, 2.0, 1.0]})
    b = Ranking.from_lists({"q": ["z", "w"]}, {"q": [10.0, 0.0]})
    done = fused([a, b], method="minmax", weights=[2, 1], depth=4)
    assert done.to_lists() == {"q": ["x", "y", "z", "w"]}
    np.testing.assert_allclose(done.scores, [[2 / 3, 1 / 3, 1 / 3, 0]])  # the tie goes by id
    z = fused([a, b], depth=4)
    third = 1.5**0.5
    assert scores_of(z)["q"]["x"] == pytest.approx((third - 1) / 2)  # b lacks x: its last value, -1
    assert scores_of(z)["q"]["w"] == pytest.approx((-third - 1) / 2)


def chances(method: str, rankings: int) -> list[Callable[[np.ndarray], np.ndarray]] | None:
    """Probabilities that rise with the scores, for the method that needs them."""
    return [lambda s: 1 / (1 + np.exp(-s))] * rankings if method == "calibrated" else None


def test_queries_and_depths_may_differ() -> None:
    a = Ranking.from_lists({"p": ["x", "y"], "q": ["y"]}, {"p": [2, 1], "q": [1]})
    b = Ranking.from_lists({"q": ["x", "y", "z"], "r": ["z"]}, {"q": [3, 2, 1], "r": [1]})
    for method in fusion.METHODS:
        done = fused([a, b], method=method, probabilities=chances(method, 2))
        assert done.queries == ["p", "q", "r"] and done.depth == 3
        assert done.row(0) == ["x", "y"] and done.row(2) == ["z"]
        assert sorted(done.row(1)) == ["x", "y", "z"]
    assert fused([a, b], method="rrf", depth=1).depth == 1


def test_one_ranking_stays_as_it_is_and_weight_0_counts_for_nothing() -> None:
    a, b = random_ranking(3), random_ranking(4)
    for method in fusion.METHODS:
        one = fused([a], method=method, probabilities=chances(method, 1))
        assert one.to_lists() == a.to_lists()
        both = fused([a, b], method=method, weights=[1, 0], probabilities=chances(method, 2))
        assert both.to_lists() == a.to_lists()


def test_the_order_of_rankings_and_small_parts_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = random_ranking(5, K=20), random_ranking(6, K=8)
    whole = fused([a, b], weights=[0.25, 0.75])
    assert fused([b, a], weights=[0.75, 0.25]).to_lists() == whole.to_lists()
    monkeypatch.setattr(fusion, "ENTRIES_AT_ONCE", 30)
    parts = fused([a, b], weights=[0.25, 0.75])
    np.testing.assert_array_equal(parts.positions, whole.positions)


def test_equal_scores_and_empty_rows_are_no_trouble() -> None:
    flat = Ranking.from_lists({"q": ["y", "x"], "e": []}, {"q": [1, 1], "e": []})
    for method in ("zscore", "minmax"):
        done = fused([flat, flat], method=method)
        assert done.row(0) == ["x", "y"] and done.row(1) == []
        assert np.isfinite(done.scores[0]).all()  # type: ignore[index]


def test_what_cannot_be_fused_is_refused() -> None:
    a = random_ranking(0)
    submission = Ranking.from_lists({"q0": ["g01"]})
    with pytest.raises(DataError, match="use rrf"):
        fused([a, submission])
    assert fused([a, submission], method="rrf").gallery_size is None
    for bad in ([1.0], [-1.0, 2.0], [0.0, 0.0], [float("nan"), 1.0]):
        with pytest.raises(UsageError):
            fused([a, a], weights=bad)
    with pytest.raises(UsageError, match="zscore, minmax, rrf"):
        fused([a, a], method="vote")
    with pytest.raises(UsageError, match="nothing to fuse"):
        fused([])


def test_joined_cosines_are_weighted_means() -> None:
    rng = np.random.default_rng(1)
    one = Embeddings.from_arrays(rng.standard_normal((6, 4)), list("abcdef"), list("uuvvww"))
    two = Embeddings.from_arrays(rng.standard_normal((5, 9)), list("fedcb"), model_id="two")
    both = joined([one, two], [3, 1])
    assert both.ids == list("bcdef") and both.labels == list("uvvww") and both.dim == 13
    place = [two.ids.index(name) for name in both.ids]
    expected = 0.75 * one.vectors[1:] @ one.vectors[1:].T
    expected += 0.25 * two.vectors[place] @ two.vectors[place].T
    np.testing.assert_allclose(both.vectors @ both.vectors.T, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(both.vectors, axis=1), 1, atol=1e-6)
    assert both.broken == [("a", "another model could not read it")]
    exact.rank(both, both)
    with pytest.raises(DataError, match="no image in common"):
        joined([one, Embeddings.from_arrays(rng.standard_normal((1, 4)), ["z"])])


def test_queries_that_one_ranking_alone_knows_are_said(caplog: pytest.LogCaptureFixture) -> None:
    one, other = random_ranking(1), random_ranking(2, Q=5)
    with caplog.at_level("WARNING", "vizsla.search"):
        assert len(fused([one, other])) == 7
    assert "only 5 of 7 queries are in all 2 rankings" in caplog.text
    caplog.clear()
    fused([one, random_ranking(3)])
    assert not caplog.records


def test_lists_that_count_for_nothing_are_named(caplog: pytest.LogCaptureFixture) -> None:
    scores = {"q": [0.9, 0.5], "r": [0.9, 0.5]}
    long = Ranking.from_lists({"q": ["a", "b"], "r": ["a", "b"]}, scores)
    short = Ranking.from_lists({"q": ["b"], "r": ["b", "a"]}, {"q": [0.9], "r": [0.9, 0.1]})
    assert fused([long, short], method="rrf").to_lists()["q"] == ["b", "a"]
    assert caplog.text == ""
    assert fused([long, short]).to_lists()["q"] == ["a", "b"]
    assert "ranking 2: 1 of 2 lists hold one image or equal scores, which zscore" in caplog.text


def test_probabilities_are_fused_by_their_log_odds() -> None:
    one, two = random_ranking(1), random_ranking(2)
    chances = [lambda s: 1 / (1 + np.exp(-s)), lambda s: 1 / (1 + np.exp(-3 * s + 1))]
    found = fused([one, two], method="calibrated", weights=[1, 3], probabilities=chances)
    first, second = scores_of(one), scores_of(two)
    for query, row in scores_of(found).items():
        for name, score in row.items():
            a, b = first[query][name], second[query][name]
            assert score == pytest.approx(0.25 * 1.01 * a + 0.75 * (3 * b - 1 + 0.01 * b), abs=1e-9)
    with pytest.raises(UsageError, match="needs the probabilities of each ranking"):
        fused([one, two], method="calibrated")
    with pytest.raises(UsageError, match="and no other"):
        fused([one, two], probabilities=chances)


def test_equal_probabilities_keep_the_order_of_the_scores() -> None:
    one = random_ranking(1)
    found = fused([one, one], method="calibrated", probabilities=[lambda s: 0 * s + 0.5] * 2)
    assert found.to_lists() == one.to_lists()
