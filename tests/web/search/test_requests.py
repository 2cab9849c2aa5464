"""Fields of a request → a SearchRequest, and examples → one query vector."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizsla.errors import UsageError
from vizsla.web.search.models import DEFAULT_K, EmbedForm, SearchForm, SearchRequest
from vizsla.web.search.query_vector import Examples, query_vector
from vizsla.web.shell.requests import grouped, validated


def units(n: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def spread_over(gallery: np.ndarray):
    return lambda vector: float(np.std(gallery @ np.asarray(vector, np.float32)))


LISTS = ("id", "not_id", "query", "not_query", "right", "wrong", "filter")


# ── fields ───────────────────────────────────────────────────────────────────────────────────────

names = st.lists(st.text(min_size=1, max_size=8), max_size=4, unique=True).map(tuple)
words = st.text("abc é", max_size=20).map(lambda text: " ".join(text.split()))


@given(
    st.builds(
        SearchRequest,
        **dict.fromkeys(LISTS, names),
        text=words,
        not_text=words,
        image_weight=st.integers(0, 100).map(lambda n: n / 10),
        text_weight=st.integers(0, 100).map(lambda n: n / 10),
        k=st.integers(1, 50),
    )
)
def test_a_request_is_read_back_from_its_address(search: SearchRequest) -> None:
    assert SearchRequest.parse(grouped(search.pairs()), max_k=50) == search


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": ["0"]}, "k: input should be greater than or equal to 1"),
        ({"k": ["51"]}, "from 1 to 50"),
        ({"k": ["nan"]}, "k: input should be a valid integer"),
        ({"k": ["2.5"]}, "valid integer"),
        ({"k": True}, "expected a number"),
        ({"k": ["1e400"]}, "valid integer"),
        ({"image_weight": ["-1"]}, "image_weight: input should be greater than or equal to 0"),
        ({"image_weight": ["nan"]}, "finite number"),
        ({"text": ["x" * 1001]}, "at most 1000 characters"),
        ({"text": ["a\x1bb"]}, "cannot be shown"),
        ({"text": [1]}, "text"),
        ({"id": [str(i) for i in range(21)]}, "at most 20 items"),
        ({"id": {"a": 1}}, "id: input should be a valid string"),
        ({"id": [["a"]]}, "id: input should be a valid string"),
        ({"filter": ["a=" + "b" * 1000]}, "at most 1000 characters"),
        ({"path": ["/etc/passwd"]}, "'path' is not a field: expected id, not_id"),
    ],
)
def test_invalid_fields_are_refused_in_one_sentence(fields: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SearchRequest.parse(fields, max_k=50)


def test_empty_fields_are_defaults_and_single_values_are_lists() -> None:
    assert SearchRequest.parse({}, max_k=200) == SearchRequest(k=DEFAULT_K)
    assert SearchRequest.parse({}, max_k=200).is_empty
    assert SearchRequest.parse({}, max_k=5).k == 5
    fields = {"k": "3", "id": "a", "right": ["b", "", "b"], "text": None, "wrong": [""]}
    found = SearchRequest.parse(fields, max_k=5)
    assert found == SearchRequest(k=3, id=("a",), right=("b",))


def test_pictures_come_as_files_only() -> None:
    assert SearchForm.parse({"image": [b"1", b"2"]}, max_k=5).image == (b"1", b"2")
    for wrong in ("abc", ["abc"], [b"1"] * 17):
        with pytest.raises(UsageError, match="image"):
            SearchForm.parse({"image": wrong}, max_k=5)
    for fields in ({}, {"text": ["a"] * 20, "image": [b"1"]}, {"text": ["a", ""]}):
        with pytest.raises(UsageError):
            validated(EmbedForm, fields)


# ── vectors ──────────────────────────────────────────────────────────────────────────────────────


def test_one_example_is_its_own_vector() -> None:
    one = units(1)[0]
    for examples in (Examples(images=[one]), Examples(texts=[one]), Examples(right=[one])):
        assert np.allclose(query_vector(examples, lambda _: 0.1), one, atol=1e-6)


def test_negative_examples_count_half_and_marks_follow_rocchio() -> None:
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


def test_negative_examples_alone_keep_their_small_weight() -> None:
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
