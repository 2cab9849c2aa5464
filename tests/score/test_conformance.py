"""Random rankings with ties, junk, self and queries with nothing to find, against other libraries.

They get our order as strictly falling scores, since each breaks ties in its own way. What is
relevant and in which order is worked out here a second time, image by image.
"""

import math
from dataclasses import dataclass

import ir_measures
import numpy as np
import pytest
import sklearn
import torch
from ir_measures import AP, RR, P, R, Rprec, Success, nDCG
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

from vizsla.score.evaluate import evaluate
from vizsla.score.metrics.formulas import match_auc
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking

KS = (1, 3, 10)
QUERIES = 1000


@dataclass
class Case:
    """Some queries on one gallery. lists, relevant: of each query, junk and self removed."""

    scores: Scores
    lists: dict[str, list[str]]
    relevant: dict[str, set[str]]
    query_labels: dict[str, int]
    gallery_labels: dict[str, int]
    one_set: bool


def make_case(seed: int, *, n_queries: int = 10, junk: bool = True) -> Case:
    generator = np.random.default_rng(seed)
    one_set = seed % 3 == 0
    G, C = int(generator.integers(12, 60)), int(generator.integers(2, 12))
    gallery = {f"{seed}-g{j}": int(generator.integers(C)) for j in range(G)}
    names = list(gallery)
    if one_set:
        queries = {name: gallery[name] for name in names[:n_queries]}
    else:  # one label more than the gallery may hold: queries with nothing to find
        queries = {f"{seed}-q{i}": int(generator.integers(C + 1)) for i in range(n_queries)}
    values = generator.integers(0, 8, (len(queries), G)).astype(float)  # many ties
    positions = np.stack([np.lexsort((np.arange(G), -row)) for row in values])
    dropped = {
        q: set(generator.choice(names, generator.integers(0, 4), replace=False)) if junk else set()
        for q in queries
    }
    truth = Truth(
        {q: str(label) for q, label in queries.items()},
        {g: str(label) for g, label in gallery.items()},
        one_set=one_set,
        junk=dropped,
    )
    ranking = Ranking(
        list(queries), names, positions, np.take_along_axis(values, positions, 1), gallery_size=G
    )
    lists, relevant = {}, {}
    for i, q in enumerate(queries):
        kept = [g for g in names if g not in dropped[q] and not (one_set and g == q)]
        score = dict(zip(names, values[i], strict=True))
        lists[q] = sorted(kept, key=lambda g: (-score[g], names.index(g)))
        relevant[q] = {g for g in kept if gallery[g] == queries[q]}
    scores = evaluate(ranking, truth, ks=KS, resamples=10)
    return Case(scores, lists, relevant, queries, gallery, one_set)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [make_case(seed) for seed in range(QUERIES // 10)]


def ours(case: Case, key: str) -> dict[str, float | None]:
    return dict(zip(case.scores.queries, case.scores.per_query(key), strict=True))


def test_the_cases_hold_what_they_promise(cases: list[Case]) -> None:
    assert sum(len(case.lists) for case in cases) == QUERIES
    assert sum(not found for case in cases for found in case.relevant.values()) > 20
    assert any(case.one_set for case in cases)


def test_equal_to_ir_measures(cases: list[Case]) -> None:
    pairs = {
        AP: "map", Rprec: "r_precision", RR: "mrr", P@1: "precision@1", P@3: "precision@3",
        P@10: "precision@10", R@1: "recall@1", R@3: "recall@3", R@10: "recall@10",
        nDCG@1: "ndcg@1", nDCG@3: "ndcg@3", nDCG@10: "ndcg@10", Success@1: "top_k_accuracy@1",
        Success@3: "top_k_accuracy@3", Success@10: "top_k_accuracy@10",
    }  # fmt: skip
    qrels = {q: dict.fromkeys(r, 1) for case in cases for q, r in case.relevant.items() if r}
    run = {q: falling(row) for case in cases for q, row in case.lists.items()}
    mine = {key: {} for key in [*pairs.values(), "ap@3", "ap@10"]}  # type: ignore[var-annotated]
    for case in cases:
        for key, values in mine.items():
            values |= ours(case, key)
    compared = 0
    for found in ir_measures.iter_calc([*pairs, AP @ 3, AP @ 10], qrels, run):
        if found.measure in pairs:
            expected = found.value
            value = mine[pairs[found.measure]][found.query_id]
        else:  # theirs divides by R, ours by min(R, k): docs/metrics.md
            k, n = found.measure["cutoff"], len(qrels[found.query_id])
            expected = found.value * n / min(n, k)
            value = mine[f"ap@{k}"][found.query_id]
        assert value == pytest.approx(expected, abs=1e-9), (found, value)
        compared += 1
    assert compared == len(qrels) * (len(pairs) + 2)
    empty = {q for case in cases for q, r in case.relevant.items() if not r}
    assert all(mine[key][q] is None for q in empty for key in ("map", "recall@3", "precision@3"))
    assert all(mine["top_k_accuracy@3"][q] == 0 for q in empty)


def test_equal_to_scikit_learn(cases: list[Case]) -> None:
    with sklearn.config_context(skip_parameter_validation=True, assume_finite=True):
        compare_with_scikit_learn(cases)


def compare_with_scikit_learn(cases: list[Case]) -> None:
    for case in cases:
        ap, ndcg = ours(case, "map"), ours(case, "ndcg@10")
        for q, row in case.lists.items():
            if not case.relevant[q]:
                continue
            hits = np.array([g in case.relevant[q] for g in row])
            scores = np.arange(len(row), 0, -1.0)
            assert ap[q] == pytest.approx(average_precision_score(hits, scores), abs=1e-9)
            assert ndcg[q] == pytest.approx(ndcg_score([hits], [scores], k=10), abs=1e-9)


def test_auc_is_scikit_learns_ties_and_all() -> None:
    for seed in range(200):
        generator = np.random.default_rng(seed)
        scores = generator.integers(0, 6, 50) / 10
        matches = generator.random(50) < 0.4
        assert match_auc(scores, matches) == pytest.approx(roc_auc_score(matches, scores), abs=1e-9)


def test_equal_to_pytorch_metric_learning() -> None:
    """It knows no junk; it gives means, so ours are compared as means over its queries."""
    names = {
        "precision_at_1": "precision@1",
        "mean_average_precision_at_r": "map_at_r",
        "mean_average_precision": "map",
        "r_precision": "r_precision",
        "mean_reciprocal_rank": "mrr",
    }
    for seed in range(QUERIES // 10):
        case = make_case(1000 + seed, junk=False)
        if not case.scores.answerable.any():
            continue
        gallery = list(case.gallery_labels)
        order = torch.tensor([[gallery.index(g) for g in row] for row in case.lists.values()])
        depth = order.shape[1]

        def nearest(query, k, reference, includes_query, order=order):  # type: ignore[no-untyped-def]
            return torch.zeros(len(query), k), order[:, :k]

        theirs = AccuracyCalculator(
            include=tuple(names), k=depth, knn_func=nearest, device=torch.device("cpu")
        ).get_accuracy(
            torch.zeros(len(order), 1),
            torch.tensor(list(case.query_labels.values())),
            torch.zeros(len(gallery), 1),
            torch.tensor(list(case.gallery_labels.values())),
            ref_includes_query=case.one_set,
        )
        for name, key in names.items():
            assert case.scores.mean(key) == pytest.approx(theirs[name], abs=1e-6), (seed, name)


def falling(row: list[str]) -> dict[str, float]:
    return {name: float(len(row) - i) for i, name in enumerate(row)}


def test_full_ranks_give_what_the_whole_ranking_gives(cases: list[Case]) -> None:
    """AP and the like from a shallow ranking and the ranks of the relevant images alone."""
    for case in cases[:30]:
        truth = Truth(
            {q: str(label) for q, label in case.query_labels.items()},
            {g: str(label) for g, label in case.gallery_labels.items()},
            one_set=case.one_set,
            junk={q: set(case.gallery_labels) - set(row) - {q} for q, row in case.lists.items()},
        )
        shallow = Ranking.from_lists({q: row[:5] for q, row in case.lists.items()})
        ranks = [
            np.array([i + 1 for i, g in enumerate(row) if g in case.relevant[q]])
            for q, row in case.lists.items()
        ]
        scores = evaluate(shallow, truth, ks=KS, full_ranks=ranks, resamples=10)
        for key in case.scores.metrics:
            assert scores.mean(key) == pytest.approx(case.scores.mean(key), abs=1e-12), key
        alone = evaluate(shallow, truth, ks=KS, resamples=10)
        assert math.isclose(alone.mean("precision@3") or 0, case.scores.mean("precision@3") or 0)
        assert alone.mean("map") is None or min(map(len, case.lists.values())) <= 5
