"""What is asked becomes one vector whose nearest neighbours are the answer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizsla.errors import UsageError
from vizsla.web.search.query import (
    DEFAULT_K,
    LISTS,
    Asked,
    Examples,
    fields_of_json,
    query_vector,
)


def units(n: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def spread_over(gallery: np.ndarray):
    return lambda vector: float(np.std(gallery @ np.asarray(vector, np.float32)))


# ── fields ───────────────────────────────────────────────────────────────────────────────────────

names = st.lists(st.text(min_size=1, max_size=8), max_size=4, unique=True).map(tuple)
words = st.text("abc é", max_size=20).map(lambda text: " ".join(text.split()))


@given(
    st.builds(
        Asked,
        **dict.fromkeys(LISTS, names),
        text=words,
        not_text=words,
        image_weight=st.integers(0, 100).map(lambda n: n / 10),
        text_weight=st.integers(0, 100).map(lambda n: n / 10),
        k=st.integers(1, 50),
    )
)
def test_an_address_gives_back_what_was_asked(asked: Asked) -> None:
    fields: dict[str, list[str]] = {}
    for name, value in asked.pairs():
        fields.setdefault(name, []).append(value)
    assert Asked.parse(fields, most_k=50) == asked


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"k": ["0"]}, "from 1 to 50"),
        ({"k": ["51"]}, "from 1 to 50"),
        ({"k": ["nan"]}, "from 1 to 50"),
        ({"k": ["2.5"]}, "whole number"),
        ({"k": ["1e400"]}, "from 1 to 50"),
        ({"image_weight": ["-1"]}, "from 0 to 10"),
        ({"text": ["x" * 1001]}, "1000 at most"),
        ({"text": ["a\x1bb"]}, "cannot be shown"),
        ({"id": [str(i) for i in range(21)]}, "20 at most"),
        ({"filter": ["a=" + "b" * 1000]}, "1000 characters"),
        ({"path": ["/etc/passwd"]}, "'path' is no field"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(fields: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Asked.parse(fields, most_k=50)


def test_defaults_and_json() -> None:
    assert Asked.parse({}, most_k=200) == Asked(k=DEFAULT_K)
    assert Asked.parse({}, most_k=200).is_empty
    assert fields_of_json({"k": 3, "id": ["a", "b"], "text": None}) == {
        "k": ["3"], "id": ["a", "b"], "text": [],
    }  # fmt: skip
    for wrong in ([], "text", {"k": True}, {"id": {"a": 1}}, {"id": [["a"]]}):
        with pytest.raises(UsageError):
            fields_of_json(wrong)


# ── vectors ──────────────────────────────────────────────────────────────────────────────────────


def test_one_example_is_its_own_vector() -> None:
    one = units(1)[0]
    for examples in (Examples(images=[one]), Examples(texts=[one]), Examples(right=[one])):
        assert np.allclose(query_vector(examples, lambda _: 0.1), one, atol=1e-6)


def test_not_takes_away_half_and_marks_follow_rocchio() -> None:
    a, b, c, d = np.eye(4, dtype=np.float32)
    found = query_vector(Examples(images=[a], not_images=[b]), lambda _: 1.0)
    assert np.allclose(found / found[0], [1, -0.5, 0, 0])
    found = query_vector(Examples(images=[a], right=[b, c], wrong=[d]), lambda _: 1.0)
    assert np.allclose(found / found[0], [1, 0.375, 0.375, -0.15])


@given(st.integers(0, 10_000), st.floats(0.1, 10), st.floats(0.1, 10))
def test_mixing_ranks_by_the_sum_of_standardised_scores(
    seed: int, image_weight: float, text_weight: float
) -> None:
    gallery = units(60, seed=seed)
    image, text = units(2, seed=seed + 1)
    by_image, by_text = gallery @ image, 0.05 * (gallery @ text) + 0.2  # words score low and close
    wanted = sum(
        weight * (scores - scores.mean()) / scores.std()
        for scores, weight in ((by_image, image_weight), (by_text, text_weight))
    )
    query = query_vector(
        Examples(images=[image], texts=[text]),
        spread_over(gallery),
        image_weight=image_weight,
        text_weight=text_weight,
    )
    scores = gallery @ query
    assert np.corrcoef(scores, wanted)[0, 1] > 0.99999
    assert np.isclose(np.linalg.norm(query), 1, atol=1e-5)


def test_only_against_something_keeps_its_small_weight() -> None:
    """Standardised, a single mark of a wrong result would weigh as much as all the words."""
    gallery = units(60)
    text, wrong = units(2, seed=1)
    plain = query_vector(Examples(texts=[text]), spread_over(gallery))
    marked = query_vector(Examples(texts=[text], wrong=[wrong]), spread_over(gallery))
    assert 0.95 < float(plain @ marked) < 0.9999
    assert marked @ wrong < plain @ wrong


def test_examples_that_cancel_out_are_refused() -> None:
    one = units(1)[0]
    with pytest.raises(UsageError, match="cancel each other out"):
        query_vector(Examples(images=[one, -one]), lambda _: 1.0)
    with pytest.raises(UsageError, match="cancel"):
        query_vector(
            Examples(images=[one], texts=[one]), lambda _: 1.0, image_weight=0, text_weight=0
        )
