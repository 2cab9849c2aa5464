"""Late interaction against the formula, and as a step of a chain."""

from collections.abc import Sequence

import numpy as np
import pytest

from vizsla.embed.embeddings import Embeddings
from vizsla.embed.local_features import NO_FEATURES, LocalFeatures
from vizsla.errors import DataError, UsageError
from vizsla.search.chain import Refiner, parse_chain, rank_refined
from vizsla.search.late_interaction import max_similarities


def tokens(rng: np.random.Generator, n: int, dim: int = 64) -> LocalFeatures:
    rows = rng.standard_normal((n, dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return LocalFeatures(np.zeros((n, 2), np.float32), rows.astype(np.float16), (224, 224), 32.0)


def by_formula(query: LocalFeatures, other: LocalFeatures) -> float:
    """In loops, of cosines in float64."""
    best = []
    for ours in query.descriptors.astype(np.float64):
        cosines = [
            float(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs))
            for theirs in other.descriptors.astype(np.float64)
        ]
        best.append(max(cosines))
    return float(np.mean(best))


@pytest.fixture(scope="module")
def images() -> list[LocalFeatures]:
    """70 of them, of 1 to 9 tokens: more than are compared at once."""
    rng = np.random.default_rng(0)
    return [tokens(rng, 1 + i % 9) for i in range(70)]


def test_it_is_the_mean_of_the_highest_cosines(images: list[LocalFeatures]) -> None:
    for query in images[:4]:
        wanted = [by_formula(query, other) for other in images]
        np.testing.assert_allclose(max_similarities(query, images), wanted, atol=1e-3)
        assert max_similarities(query, [query])[0] == pytest.approx(1, abs=1e-3)


def test_it_does_not_depend_on_what_is_compared_at_once(images: list[LocalFeatures]) -> None:
    query = images[8]
    alone = np.concatenate([max_similarities(query, [other]) for other in images])
    np.testing.assert_array_equal(max_similarities(query, images), alone)
    np.testing.assert_array_equal(max_similarities(query, images[::-1]), alone[::-1])


def test_an_image_without_tokens_is_like_none(images: list[LocalFeatures]) -> None:
    found = max_similarities(images[0], [NO_FEATURES, images[0], NO_FEATURES])
    assert found[0] == found[2] == 0 and found[1] > 0.99
    assert max_similarities(NO_FEATURES, images).tolist() == [0.0] * 70
    assert max_similarities(images[0], []).shape == (0,)


def test_the_first_of_a_ranking_are_ranked_anew(images: list[LocalFeatures]) -> None:
    rng = np.random.default_rng(1)
    gallery = Embeddings.from_arrays(
        rng.standard_normal((70, 8)), [f"g{i:02}" for i in range(70)], model_id="m"
    )
    queries = Embeddings.from_arrays(rng.standard_normal((3, 8)), ["q0", "q1", "q2"], model_id="m")
    ours = [tokens(rng, 5) for _ in range(3)]

    def features(kind: str) -> object:
        assert kind == "tokens"

        def of(held: Sequence[LocalFeatures]) -> object:
            return lambda positions: [held[int(i)] for i in positions]

        return of(ours), of(images)

    chain = parse_chain("maxsim(n=20,weight=0.3)")
    found = rank_refined(queries, gallery, chain, 70, features=features)  # type: ignore[arg-type]
    again = rank_refined(queries, gallery, chain, 70, features=features)  # type: ignore[arg-type]
    plain = rank_refined(queries, gallery, parse_chain("none"), 70)
    assert found.scores is not None and again.scores is not None and plain.scores is not None
    np.testing.assert_array_equal(found.positions, again.positions)
    np.testing.assert_array_equal(found.scores, again.scores)
    for q in range(3):
        first = plain.positions[q, :20]
        wanted = 0.7 * plain.scores[q, :20] + 0.3 * np.array(
            [by_formula(ours[q], images[i]) for i in first]
        )
        order = np.argsort(-wanted, kind="stable")
        assert found.positions[q, :20].tolist() == first[order].tolist()
        np.testing.assert_allclose(found.scores[q, :20], wanted[order], atol=1e-3)
        np.testing.assert_array_equal(found.positions[q, 20:], plain.positions[q, 20:])


def test_it_follows_a_ranking_and_uses_the_gallery() -> None:
    chain = parse_chain("kreciprocal(together=false)+maxsim(n=10)+verify+keep(n=1)")
    assert [step.name for step in chain.steps] == ["kreciprocal", "maxsim", "verify", "keep"]
    assert parse_chain("maxsim", uses="gallery").uses == "gallery"
    assert parse_chain("verify(features=tokens)").uses == "gallery"  # the PCA is of its images
    with pytest.raises(UsageError, match="uses other gallery images"):
        parse_chain("maxsim", uses="nothing")
    with pytest.raises(UsageError, match="once each"):
        parse_chain("maxsim+maxsim")
    with pytest.raises(UsageError, match="weight=0"):
        parse_chain("maxsim(weight=0)")
    with pytest.raises(DataError, match="maxsim compares images"):
        Refiner(np.eye(3), np.eye(3)).top_k(parse_chain("maxsim"), 2)
