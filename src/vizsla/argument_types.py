"""The annotations of a public function → UsageError for an argument of another type.

The message names the argument, what came and what it takes: `k='5' is of type str: expected int or
None`. Only what a type says is checked; functions check the values.
"""

import functools
import inspect
import itertools
import numbers
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vizsla.errors import UsageError

LONGEST_VALUE = 60  # characters of a wrong value that an error repeats: networks print as pages
TENSORS = "Tensor"  # what takes them is called for every batch, and compiled by torch


def checked(public: Any) -> Any:
    """The function, checking its arguments; or the class, whose public methods now do."""
    if inspect.isclass(public):
        if not issubclass(public, BaseException):
            for name, member in list(vars(public).items()):
                if name == "__init__" or not name.startswith("_"):
                    setattr(public, name, _checked_member(member))
        return public
    return _checked_function(public) if inspect.isfunction(public) else public


def _checked_member(member: Any) -> Any:
    if isinstance(member, staticmethod | classmethod):
        return type(member)(_checked_function(member.__func__))
    return _checked_function(member) if inspect.isfunction(member) else member


def _checked_function(function: Callable[..., Any]) -> Callable[..., Any]:
    if hasattr(function, "__wrapped__") or TENSORS in str(function.__annotations__):
        return function
    names = list(inspect.signature(function).parameters)
    kinds: dict[str, Any] = {}

    @functools.wraps(function)
    def called(*values: Any, **named: Any) -> Any:
        if not kinds:
            kinds.update(kinds_of(function))
        for name, value in (*zip(names, values, strict=False), *named.items()):
            if name in kinds and not fits(value, kinds[name]):
                raise wrong_type(name, value, kinds[name])
        return function(*values, **named)

    return called


def kinds_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Name → type of each argument; without those of types that only type checkers import."""
    space = {**vars(typing), **vars(sys.modules[function.__module__])}
    found: dict[str, Any] = {}
    for name, kind in function.__annotations__.items():
        try:
            found[name] = eval(kind, space) if isinstance(kind, str) else kind
        except NameError:
            continue
    return found


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type. Of a list only the first item is checked."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, one) for one in inner)
    if kind is Any:
        return True
    if kind is None or value is None:
        return value is None and kind in (None, type(None))
    if origin is Callable:
        return callable(value)
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    if inspect.isclass(origin) and issubclass(origin, Iterable):
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            return isinstance(value, Mapping) and not issubclass(origin, Sequence)
        is_lasting = iter(value) is not value  # what can be read once is for the function
        return all(fits(one, inner[0]) for one in itertools.islice(value, is_lasting))
    if not inspect.isclass(kind):  # a name that only type checkers know
        return True
    if kind is bool:
        return type(value).__name__ in ("bool_", "bool")  # numpy
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, name) for name in vars(kind) if not name.startswith("_"))
    path = isinstance(value, os.PathLike) and issubclass(kind, os.PathLike)
    return path or isinstance(value, kind)


def wrong_type(name: str, value: Any, kind: Any) -> UsageError:
    """The error for a value that does not fit."""
    given = name if len(f"{value!r}") > LONGEST_VALUE else f"{name}={value!r}"
    return UsageError(f"{given} is of type {type(value).__name__}: expected {in_words(kind)}")


def in_words(kind: Any) -> str:
    """A type as people read it: Ranking, str or None, a list of int."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(map(in_words, inner)))
    if kind in (None, type(None)):
        return "None"
    if origin is Callable:
        return "a function"
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return f"a dict of {in_words(inner[1])}"
    if origin is not None and inner:
        return f"a list of {in_words(inner[0])}"
    return str(getattr(kind, "__name__", kind))
