"""A dataclass of options → the signature, the checks and the documentation of a public function.

So `vizsla.run(data, top_k=5)` takes what `vizsla run DATA --top-k 5` takes, under the same names,
and type checkers see it.
"""

import difflib
import functools
import inspect
import os
import textwrap
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from vizsla.argument_types import fits, wrong_type
from vizsla.errors import UsageError, with_arguments
from vizsla.option_fields import REQUIRED, Option, options_of

P = ParamSpec("P")
A = TypeVar("A")
R = TypeVar("R")


def with_keywords(
    arguments: Callable[P, A],
) -> Callable[[Callable[[A, frozenset[str]], R]], Callable[P, R]]:
    """A function of an object of the dataclass `arguments`, and of the names of those that were
    given, becomes a function of its fields. UsageError names an argument that is wrong."""
    cls: Any = arguments
    options = options_of(cls)
    other_names = {
        flag[2:].replace("-", "_"): name for name, (about, _, _) in options.items()
        for flag in about.flags if flag.startswith("--")
    }  # fmt: skip

    def decorate(function: Callable[[A, frozenset[str]], R]) -> Callable[P, R]:
        returned = inspect.signature(function).return_annotation
        fields = inspect.signature(cls).parameters.values()
        signature = inspect.Signature(
            [field for field in fields if field.name in options], return_annotation=returned
        )

        @functools.wraps(function)
        def called(*values: P.args, **named: P.kwargs) -> R:
            by_name = {other_names.get(name, name): value for name, value in named.items()}
            if len(by_name) < len(named):
                twice = [name for name in named if other_names.get(name, name) != name]
                raise UsageError(
                    f"{', '.join(twice)}: another name of {other_names[twice[0]]}, give one of them"
                )
            try:
                bound = signature.bind_partial(*values, **by_name)
                for name, value in bound.arguments.items():
                    about, kind, default = options[name]
                    if value is not default:
                        bound.arguments[name] = _checked(name, value, about, kind)
                signature.bind(*values, **by_name)  # none is missing
            except TypeError as error:
                raise _misused(function.__name__, signature, by_name, error) from None
            return function(arguments(*bound.args, **bound.kwargs), frozenset(bound.arguments))

        called.__signature__ = signature  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        called.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{_described(options)}"
        return called

    return decorate


def _misused(
    name: str, signature: inspect.Signature, named: dict[str, Any], error: TypeError
) -> UsageError:
    """The error for an argument that there is not, or that is missing."""
    known = list(signature.parameters)
    for unknown in named:
        if unknown not in known:
            similar = difflib.get_close_matches(unknown, known, 3, 0.5)
            hint = f" Similar: {', '.join(similar)}." if similar else ""
            return UsageError(
                f"{name} has no argument {unknown!r}.{hint} help(vizsla.{name}) lists all"
            )
    return UsageError(f"{name}: {error}")


def _checked(name: str, value: Any, about: Option, kind: Any) -> Any:
    """The value as the field holds it. UsageError: it is of another type."""
    if isinstance(value, str) and about.parse:
        return about.parse(value)
    if isinstance(kind, str):  # a type that is imported only for type checkers
        return value
    members = list(typing.get_args(kind)) if isinstance(kind, types.UnionType) else [kind]
    for member in members:
        found = _as(member, value)
        if found is not _OTHER:
            return found
    inner = typing.get_args(kind)[:1] if typing.get_origin(kind) in (tuple, list) else ()
    raise wrong_type(name, value, inner[0] | kind if inner else kind)  # one is a list of one


_OTHER = object()


def _as(kind: Any, value: Any) -> Any:
    """The value as one of this type, or _OTHER."""
    if typing.get_origin(kind) in (tuple, list):
        items = [value] if isinstance(value, str | os.PathLike) else value
        inner = typing.get_args(kind)[0]
        if not isinstance(items, Sequence):
            return _OTHER
        found = [_as(inner, item) for item in items]
        made = typing.get_origin(kind)(found)
        return _OTHER if any(item is _OTHER for item in found) else made
    if kind in (str, Path) and isinstance(value, str | os.PathLike):
        return kind(value)
    if kind in (int, float) and not isinstance(value, bool):
        return kind(value) if fits(value, kind) else _OTHER
    return value if fits(value, kind) else _OTHER


def _described(options: dict[str, tuple[Option, Any, Any]]) -> str:
    """What each argument is, with its default, a paragraph each."""
    lines = []
    for name, (about, _, default) in sorted(options.items(), key=lambda o: not o[1][0].usual):
        standard = about.shown if default is None and about.shown else default
        shown = "" if default in (REQUIRED, None) and not about.shown else f" Default: {standard}."
        text = with_arguments(f"{name}: {about.text.rstrip('.')}.{shown}")
        lines.append(textwrap.fill(text, 96, subsequent_indent="    "))
    return "\n".join(lines)
