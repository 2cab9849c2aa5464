"""Dataclasses of options.py → the parameters of a command, `--set name=value` and `--config FILE`.

    @app.command()
    def embed(images: Path, choice: ModelChoice, training: Annotated[dict, Given(TuneConfig)]): ...

The command line then has the options of ModelChoice, and the function gets the object. `Given` asks
for a dict of only those options that were given.
"""

import dataclasses
import difflib
import functools
import inspect
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from vizsla.errors import DataError, UsageError
from vizsla.options import GROUPS, Option, flag_of, options_of

FILE, SET = "vizsla.file", "vizsla.set"  # in the context: values of --config, of --set


@dataclass(frozen=True)
class Given:
    """A dict of the options of `cls` that were given.

    A name that the command already has gets the prefix `training_`; names in `shared` are left to
    the command's option. defaults: in words, if they are not those of `cls`.
    """

    cls: type
    shared: tuple[str, ...] = ()
    defaults: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Without:
    """`Annotated[ComputeChoice, Without("cache")]`: options that the command has no use for."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


@dataclass(frozen=True)
class _Field:
    """The argument and the field that a parameter of the command line fills."""

    argument: str
    name: str
    about: Option
    given_only: bool


def with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a command whose dataclass arguments are options of the command line."""
    hints = typing.get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if _source(hints[p.name]) is None]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [p.replace(annotation=hints[p.name], kind=keyword) for p in own]
    grouped: list[tuple[int, inspect.Parameter]] = []  # those of the groups, by their panel
    taken = {p.name for p in own}
    fields: dict[str, _Field] = {}
    builders: dict[str, type] = {}
    for argument in signature.parameters.values():
        source = _source(hints[argument.name])
        if source is None:
            continue
        given_only = isinstance(source, Given)
        unused = _without(hints[argument.name])
        cls = source.cls if isinstance(source, Given) else source
        builders[argument.name] = dict if given_only else cls
        for name, (about, kind, default) in options_of(cls).items():
            if name in (source.shared if isinstance(source, Given) else {*taken, *unused}):
                continue  # the command has no use for it, or an option of its own
            parameter, shown = name, about
            if isinstance(source, Given) and name in source.defaults:
                shown = dataclasses.replace(about, shown=source.defaults[name])
            if name in taken:
                parameter = f"training_{name}"
                shown = dataclasses.replace(shown, flags=(), rare=True)
            taken.add(parameter)
            fields[parameter] = _Field(argument.name, name, about, given_only)
            panel = -1 if about.usual else GROUPS.index(about.group)
            grouped.append((panel, _parameter(parameter, shown, kind, default)))
    grouped = [(_panel(parameter), parameter) for parameter in (*parameters, *_generic())] + grouped
    parameters = [parameter for _, parameter in sorted(grouped, key=lambda entry: entry[0])]
    if "context" not in signature.parameters:  # Typer fills it; it knows what was given
        parameters.insert(0, inspect.Parameter("context", keyword, annotation=typer.Context))
    arguments = [p for p in parameters if p.default is inspect.Parameter.empty]
    options = [p for p in parameters if p.default is not inspect.Parameter.empty]

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        context: typer.Context = values["context"]
        built: dict[str, dict[str, Any]] = {argument: {} for argument in builders}
        for parameter, field in fields.items():
            value = values.pop(parameter)
            if field.given_only and not was_given(context, parameter):
                continue
            if isinstance(value, str) and field.about.parse:
                value = field.about.parse(value)
            built[field.argument][field.name] = value
        del values["config_file"], values["settings"]
        if "context" not in signature.parameters:
            del values["context"]
        return function(**values, **{name: builders[name](**built[name]) for name in builders})

    command.__signature__ = inspect.Signature(arguments + options)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    del command.__wrapped__  # Typer would look at the function's own
    return command


def _panel(parameter: inspect.Parameter) -> int:
    """The place of a command's own option: before all groups unless it names one of them."""
    for information in getattr(parameter.annotation, "__metadata__", ()):
        group = getattr(information, "rich_help_panel", None)
        if group in GROUPS:
            return GROUPS.index(group)
    return -1


def was_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter has its value from a flag, --set or --config, not from its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _source(hint: Any) -> type | Given | None:
    """The dataclass or `Given` that an argument asks for; None for any other argument."""
    if typing.get_origin(hint) is Annotated:
        given = next((m for m in hint.__metadata__ if isinstance(m, Given)), None)
        return given or _source(hint.__origin__)
    return hint if dataclasses.is_dataclass(hint) and isinstance(hint, type) else None


def _without(hint: Any) -> tuple[str, ...]:
    return next((m.names for m in getattr(hint, "__metadata__", ()) if isinstance(m, Without)), ())


def _parameter(name: str, about: Option, kind: Any, default: Any) -> inspect.Parameter:
    members = [k for k in typing.get_args(kind) if k is not type(None)]
    value = kind if not isinstance(kind, types.UnionType) else members[0]
    if about.parse or len(members) > 1:  # a budget with its unit; a number or "auto"
        value = str
    found = _typer_option(name, about, about.shown or True if value is not bool else False)
    optional = default is None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None if optional else (default if value is not str else str(default)),
        annotation=Annotated[value | None if optional else value, found],
    )


def typer_option(cls: type, name: str) -> Any:
    """An option of `cls` alone, for a command that takes it without the rest of the dataclass.

    The command's own default is shown.
    """
    about = dataclasses.replace(options_of(cls)[name][0], usual=True, rare=False)
    return _typer_option(name, about, True)


def _typer_option(name: str, about: Option, shown: bool | str) -> Any:
    return typer.Option(
        *(about.flags or (flag_of(name, about),)),
        help=about.help,
        min=about.minimum,
        hidden=about.rare,
        show_default=shown,
        rich_help_panel=None if about.usual else about.group,
    )


# ── --config and --set ───────────────────────────────────────────────────────────────────────────


def _generic() -> list[inspect.Parameter]:
    config = typer.Option(
        "--config",
        help="Options from a TOML file; a flag wins over it.",
        callback=_read_config,
        is_eager=True,
        rich_help_panel="Output",
    )
    settings = typer.Option(
        "--set",
        help="Any option as name=value, also the rare ones of docs/options.md. Repeatable.",
        callback=_read_settings,
        is_eager=True,
        rich_help_panel="Output",
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(
            "config_file", keyword, default=None, annotation=Annotated[Path | None, config]
        ),
        inspect.Parameter(
            "settings", keyword, default=None, annotation=Annotated[list[str] | None, settings]
        ),
    ]


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    if path is None:
        return None
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"--config {path} cannot be read ({error.strerror or error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"--config {path} is not a TOML file: {error}") from error
    values: dict[str, Any] = {}
    known = {str(parameter.name) for parameter in context.command.params}
    for key, value in content.items():
        if not isinstance(value, dict):
            values[key] = value
            continue
        for name, inner in value.items():  # a table: [training] batch_size = 16
            prefixed = f"{key}_{name}".replace("-", "_")
            values[prefixed if prefixed in known else name] = inner
    _keep(context, FILE, values, f"--config {path}")
    return path


def _read_settings(context: typer.Context, settings: list[str] | None) -> list[str] | None:
    values = {}
    for text in settings or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text!r}: expected name=value, such as warmup=0.05")
        values[name.strip()] = value.strip()
    _keep(context, SET, values, "--set")
    return settings


def _keep(context: typer.Context, key: str, values: dict[str, Any], origin: str) -> None:
    """Makes values the defaults of the command; those of --set win over those of --config."""
    known = {
        flag.lstrip("-").replace("-", "_"): parameter
        for parameter in context.command.params
        for flag in (str(parameter.name), *parameter.opts)
    }
    found = {}
    for name, value in values.items():
        parameter: Any = known.get(name.replace("-", "_"))
        if parameter is None or parameter.is_eager:
            similar = difflib.get_close_matches(name.replace("-", "_"), known, 3, 0.5)
            hint = f" Similar: {', '.join(similar)}." if similar else ""
            raise UsageError(
                f"{origin}: `vizsla {context.command.name}` has no option {name!r}.{hint} "
                "docs/options.md lists them"
            )
        if isinstance(value, list) and not getattr(parameter, "multiple", False):
            raise UsageError(f"{origin}: {name} takes one value, not the list {value}")
        many = getattr(parameter, "multiple", False) and not isinstance(value, list)
        found[str(parameter.name)] = [value] if many else value
    context.meta[key] = found
    context.default_map = {**context.meta.get(FILE, {}), **context.meta.get(SET, {})}
