import itertools
import re

import numpy as np
import pytest

from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.search import exact, refine
from vizsla.search.chain import Chain, Refiner, Step, parse_chain, rank_refined
from vizsla.search.knn_graph import GraphFolder, build_graph


def embedded(n: int, seed: int, name: str = "g") -> Embeddings:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((5, 12))[rng.integers(5, size=n)] + 0.6 * rng.standard_normal(
        (n, 12)
    )
    return Embeddings.from_arrays(rows + 0.3, [f"{name}{i:03}" for i in range(n)], model_id="m")


def test_a_chain_is_read_and_said() -> None:
    chain = parse_chain(" dba( n=2 ) + AQE(alpha=3)+kreciprocal(k1=9,weight=.5,together=no)")
    assert str(chain) == (
        "dba(n=2,alpha=0)+aqe(n=3,alpha=3)+kreciprocal(k1=9,k2=6,weight=0.5,together=false,program=true)"
    )
    assert parse_chain(str(chain)) == chain
    assert (str(Chain()), parse_chain("none"), parse_chain("")) == ("none", Chain(), Chain())


def test_what_a_chain_uses_is_said() -> None:
    for text, uses in [
        ("none", "nothing"),
        ("dba", "gallery"),
        ("aqe+diffusion", "gallery"),
        ("kreciprocal", "queries"),
        ("aqe+balance", "queries"),
        ("dba+kreciprocal(together=false)", "gallery"),
    ]:
        assert parse_chain(text).uses == uses
    with pytest.raises(UsageError, match="uses other gallery images and the other queries"):
        parse_chain("kreciprocal", uses="gallery")
    with pytest.raises(UsageError, match=r"allows other gallery images, no other query$"):
        parse_chain("balance", uses="gallery")
    with pytest.raises(UsageError, match="allows no other test image"):
        parse_chain("aqe", uses="nothing")
    with pytest.raises(UsageError, match="choose one of nothing, gallery, queries"):
        parse_chain("aqe", uses="all")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fly", "'fly' is not a step"),
        ("dba+", "'' is not a step"),
        ("kreciprocal+aqe", "kreciprocal gives the final order"),
        ("keep", "come once each, and keep after another step"),
        ("aqe+keep+keep", "come once each, and keep after another step"),
        ("aqe+keep+dba", "keep gives the final order"),
        ("dba(m=3)", "no option 'm=3'; there are n=3, alpha=0"),
        ("dba(3)", "no option '3'"),
        ("dba(n=x)", "'x' is not int"),
        ("dba(n=0)", "cannot have n=0"),
        ("aqe(alpha=-1)", "alpha=-1"),
        ("aqe(alpha=nan)", "alpha=nan"),
        ("kreciprocal(weight=2)", "weight=2"),
        ("kreciprocal(together=2)", "not true or false"),
        ("diffusion(alpha=1)", "below 1"),
        ("diffusion(weight=0)", "above 0"),
        ("balance(temperature=0)", "temperature=0.0 (above 0)"),
        ("dba(n=3", "is not a step"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_chain(text)


def test_steps_follow_one_another() -> None:
    queries, gallery = embedded(9, 0, "q"), embedded(50, 1)
    ranking = rank_refined(
        queries, gallery, parse_chain("dba(n=2)+aqe(n=3,alpha=2)+kreciprocal(k1=6,k2=2)")
    )
    wider = refine.augmented_gallery(gallery.vectors, build_graph(gallery.vectors), n=2)
    expanded = refine.expanded_queries(queries.vectors, wider, n=3, alpha=2)
    positions, scores = refine.k_reciprocal(expanded, wider, build_graph(wider), k1=6, k2=2)
    np.testing.assert_array_equal(ranking.positions, positions)
    np.testing.assert_array_equal(ranking.scores, scores)
    assert ranking.origin["refine"]["uses"] == "queries"
    assert "refine" not in rank_refined(queries, gallery, Chain()).origin


@pytest.mark.parametrize("text", ["none", "aqe", "dba+aqe", "kreciprocal", "diffusion", "balance"])
def test_one_set_ranks_all_but_the_query(text: str) -> None:
    gallery = embedded(30, 2)
    ranking = rank_refined(gallery, gallery, parse_chain(text), same_set=True)
    assert ranking.positions.shape == (30, 29)
    for i, row in enumerate(ranking.positions):
        assert sorted({*row.tolist(), i}) == list(range(30))
    with pytest.raises(DataError, match="are not in the gallery"):
        rank_refined(embedded(3, 3, "q"), gallery, parse_chain("aqe"), same_set=True)


@pytest.mark.parametrize("text", ["dba(n=9)", "aqe(n=9)", "kreciprocal", "diffusion", "balance"])
def test_a_tiny_gallery_is_ranked(text: str) -> None:
    ranking = rank_refined(embedded(2, 4, "q"), embedded(3, 5), parse_chain(text))
    assert [sorted(row) for row in ranking.positions.tolist()] == [[0, 1, 2]] * 2


def test_other_models_are_not_compared() -> None:
    other = Embeddings.from_arrays(np.eye(12), model_id="other")
    with pytest.raises(DataError, match="cannot be compared"):
        rank_refined(other, embedded(20, 6), parse_chain("aqe"))
    with pytest.raises(DataError, match="choose k from 1 to 20"):
        rank_refined(embedded(2, 7), embedded(20, 6), parse_chain("aqe"), 21)


def test_chains_share_what_they_have_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = exact.top_k
    refiner = Refiner(embedded(5, 8).vectors, embedded(40, 9).vectors)
    step = Step.of("dba", n=2)
    first = refiner.vectors((step,))
    monkeypatch.setattr(exact, "top_k", lambda *a, **k: calls.append(1) or real(*a, **k))
    assert refiner.vectors((step,))[1] is first[1]
    assert refiner.graph((), 5) is refiner.graph((Step.of("aqe"),), 5)
    assert len(calls) == 1  # aqe's own search for neighbours


def test_graphs_are_kept_in_a_folder(tmp_path) -> None:  # type: ignore[no-untyped-def]
    queries, gallery = embedded(5, 10, "q"), embedded(40, 11)
    chain = parse_chain("dba+kreciprocal")
    first = rank_refined(queries, gallery, chain, graphs=GraphFolder(tmp_path / "graphs"))
    assert len(list((tmp_path / "graphs").iterdir())) == 2
    again = rank_refined(queries, gallery, chain, graphs=GraphFolder(tmp_path / "graphs"))
    np.testing.assert_array_equal(first.positions, again.positions)


@pytest.mark.parametrize("same_set", [False, True])
@pytest.mark.parametrize("n", [1, 3, 10])
def test_keep_changes_no_hit_among_the_first(n: int, same_set: bool) -> None:
    """Each level holds the images of the plain ranking, in the order of the refined one."""
    gallery = embedded(60, 1)
    queries = gallery.subset(range(20)) if same_set else embedded(20, 2, "q")
    plain = exact.rank(queries, gallery, 60 - same_set, same_set=same_set)
    text = "dba(n=2)+kreciprocal(k1=7,weight=0)"
    free = rank_refined(queries, gallery, parse_chain(text), 60 - same_set, same_set=same_set)
    chain = parse_chain(f"{text}+keep(n={n})")
    kept = rank_refined(queries, gallery, chain, 60 - same_set, same_set=same_set)
    levels = [0, *(level for level in (1, 5, 10) if level < n), n, 60 - same_set]
    for i in range(len(queries)):
        refined = list(free.positions[i])
        row: list[int] = []
        for start, end in itertools.pairwise(levels):
            inside = sorted(set(plain.positions[i, start:end]), key=refined.index)
            row += inside
        assert list(kept.positions[i]) == row
    assert kept.scores is not None and (np.diff(kept.scores, axis=1) <= 0).all()
    assert (kept.positions != free.positions).any()
    short = rank_refined(queries, gallery, chain, 12, same_set=same_set)
    assert (short.positions[:, :n] == kept.positions[:, :n]).all()
