"""Every public function names an argument of a wrong type, and what it takes."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import vizsla
from vizsla.argument_types import TENSORS, fits, kinds_of
from vizsla.errors import UsageError, VizslaError


class Wrong:
    """What no argument takes."""

    def __repr__(self) -> str:
        return "Wrong()"


VECTORS = np.eye(3)
SOME_IMAGES = Path(__file__).parents[1] / "docs/pictures"
OF_MANY_KINDS: dict[str, Callable[[Any], Any]] = {  # their functions check them
    "Embeddings.from_arrays-vectors": lambda wrong: vizsla.Embeddings.from_arrays(wrong),
    "Embedder.encode-images": lambda wrong: tiny().encode(wrong),
    "Preprocess.from_dict-content": lambda wrong: vizsla.Preprocess.from_dict(wrong),
    "Embedder.from_module-preprocess": lambda wrong: vizsla.Embedder.from_module(tiny(), wrong),
    "Filter.of-given": lambda wrong: vizsla.Filter.of(wrong),
    "check-model": lambda wrong: vizsla.check(SOME_IMAGES, model=wrong),
    "cluster-source": lambda wrong: vizsla.cluster(wrong),
    "compare-sources": lambda wrong: vizsla.compare(wrong),
    "evaluate_embeddings-queries": lambda wrong: vizsla.evaluate_embeddings(wrong, VECTORS),
    "evaluate_embeddings-gallery": lambda wrong: vizsla.evaluate_embeddings(VECTORS, wrong),
    "evaluate_embeddings-query_labels": lambda wrong: vizsla.evaluate_embeddings(
        VECTORS, VECTORS, wrong
    ),
    "evaluate_embeddings-gallery_labels": lambda wrong: vizsla.evaluate_embeddings(
        VECTORS, VECTORS, list("abc"), wrong
    ),
    "rank-queries": lambda wrong: vizsla.rank(wrong, VECTORS),
    "rank-gallery": lambda wrong: vizsla.rank(VECTORS, wrong),
    "run-model": lambda wrong: vizsla.run("data", model=wrong),
    "search-gallery": lambda wrong: vizsla.search(wrong, "photo.jpg"),
    "search-queries": lambda wrong: vizsla.search(vizsla.Embeddings.from_arrays(VECTORS), wrong),
    "train-model": lambda wrong: vizsla.train("data", "out", model=wrong),
}


def tiny() -> vizsla.Embedder:
    return vizsla.Embedder.build("tiny", weights="random", image_size=32)


def takes_tensors(function: Callable[..., Any]) -> bool:
    return TENSORS in str(function.__annotations__)


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public functions, and the public methods of classes; those of a class are unbound."""
    for name in vizsla.__all__:
        public = getattr(vizsla, name)
        if inspect.isclass(public) and not issubclass(public, BaseException):
            for method in vars(public):
                function = getattr(public, method)
                is_public = method[0] != "_" or method == "__init__"
                if inspect.isfunction(function) and is_public and not takes_tensors(function):
                    yield f"{name}.{method}", function
        elif inspect.isfunction(public):
            yield name, public


def arguments() -> list[Any]:
    """A pytest.param for each argument."""
    found = []
    for name, function in functions():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD or parameter.name == "self":
                continue
            named = f"{name}-{parameter.name}"
            kind = kinds_of(function).get(parameter.name, Any)
            if not fits(Wrong(), kind):
                found.append(pytest.param(function, parameter, id=named))
            else:
                assert named in OF_MANY_KINDS, named
    return found


@pytest.mark.parametrize(("function", "parameter"), arguments())
def test_an_argument_of_a_wrong_type_is_named(
    function: Callable[..., Any], parameter: inspect.Parameter
) -> None:
    with pytest.raises(UsageError) as raised:
        function(**{parameter.name: Wrong()})
    assert str(raised.value).startswith(f"{parameter.name}=Wrong() is of type Wrong: expected ")


@pytest.mark.parametrize("named", OF_MANY_KINDS)
def test_an_argument_of_many_kinds_is_named_too(named: str) -> None:
    word = named.rpartition("-")[2].removesuffix("_labels")
    with pytest.raises(
        VizslaError,
        match={"queries": "quer", "given": "filter", "content": "Wrong", "source": "gallery"}.get(
            word, word
        ),
    ):
        OF_MANY_KINDS[named](Wrong())


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, int, True),
        (np.int64(3), int, True),
        (True, int, False),
        (3, float, True),
        (np.float32(3), float, True),
        ("3", float, False),
        (np.bool_(True), bool, True),
        (1, bool, False),
        ("a", str | Path, True),
        (Path("a"), str, False),
        (None, str | None, True),
        (None, str, False),
        (["a"], Sequence[str], True),
        (np.array(["a"]), Sequence[str], True),
        ("a", Sequence[str], False),
        ([3], Sequence[str], False),
        ([], Sequence[str], True),
        ({"a": 3}, Sequence[str], False),
        ({"a": 3}, Mapping[str, int], True),
        (["a"], Mapping[str, int], False),
        (print, Callable[[int], None], True),
        (3, Callable[[int], None], False),
        (3, Literal["a"], True),  # what no type says is for the function
    ],
)
def test_what_fits_an_annotation(value: Any, kind: Any, expected: bool) -> None:
    assert fits(value, kind) == expected


def test_what_can_be_read_once_is_left_to_the_function() -> None:
    once = iter(["a"])
    assert fits(once, Sequence[str] | Iterator[str])
    assert list(once) == ["a"]
