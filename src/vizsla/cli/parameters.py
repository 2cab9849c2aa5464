"""Dataclasses of options → the parameters of a command, `--set name=value` and `--config FILE`.

    @app.command()
    def embed(images: Path, options: EmbedOptions, training: Annotated[dict, Given(TuneConfig)]): …

The command line then has the options of EmbedOptions, and the function gets the object. `Given`
asks for a dict of only those options that were given.
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
from vizsla.option_fields import GROUPS, REQUIRED, Option, flag_of, options_of

FILE, SET = "vizsla.file", "vizsla.set"  # in the context: values of --config, of --set
KEYWORD = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True)
class Given:
    """A dict of the options of `cls` that were given.

    A name that the command already has gets the prefix `training_`; names in `unused` are left out,
    mostly to the command's option. defaults: in words, if they are not those of `cls`.
    """

    cls: type
    unused: tuple[str, ...] = ()
    defaults: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Without:
    """`Annotated[ComputeChoice, Without("cache")]`: options that the command has no use for."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


@dataclass(frozen=True)
class Whole:
    """An object of `cls`, without the options of these names."""

    cls: type
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parameter:
    """The argument and the field that a parameter of the command line fills."""

    argument: str
    name: str
    about: Option
    kind: Any
    default: Any

    def parsed(self, value: Any) -> Any:
        """The field's value; UsageError if it is out of range or none of the choices."""
        if isinstance(value, str) and self.about.parse:
            value = self.about.parse(value)
        if value is not None:
            self.about.check(self.name, value)
        return tuple(value) if isinstance(value, list) else value


def with_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a command whose dataclass arguments are options of the command line.

    Its attribute `options` has the Parameter of each name.
    """
    arguments = inspect.signature(function).parameters
    sources = {name: found for name, a in arguments.items() if (found := _source(a.annotation))}
    options = _options(sources)
    accepted = [a.replace(kind=KEYWORD) for name, a in arguments.items() if name not in sources]
    if "context" not in arguments:  # Typer fills it; it knows what was given
        accepted.insert(0, inspect.Parameter("context", KEYWORD, annotation=typer.Context))
    flags = [((True, GROUPS.index("Output")), parameter) for parameter in _generic()]
    for name, option in options.items():  # the usual ones first
        place = (not option.about.usual, GROUPS.index(option.about.group))
        flags.append((place, _parameter(name, option)))
    accepted += [parameter for _, parameter in sorted(flags, key=lambda flag: flag[0])]
    accepted.sort(key=lambda p: p.default is not inspect.Parameter.empty)  # as Python wants it

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        context: typer.Context = values["context"]
        given: dict[str, dict[str, Any]] = {argument: {} for argument in sources}
        for name, option in options.items():
            value = values.pop(name)
            if was_given(context, name):
                given[option.argument][option.name] = option.parsed(value)
        del values["config_file"], values["settings"]
        if "context" not in arguments:
            del values["context"]
        for argument, source in sources.items():
            made = given[argument] if isinstance(source, Given) else source.cls(**given[argument])
            values[argument] = made
        return function(**values)

    command.__signature__ = inspect.Signature(accepted)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in accepted}
    command.options = options  # type: ignore[attr-defined]
    del command.__wrapped__  # Typer would look at the function's own
    return command


def was_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter has its value from a flag, --set or --config, not from its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _source(hint: Any) -> Whole | Given | None:
    """Which options an argument asks for; None for any other argument."""
    cls = getattr(hint, "__origin__", hint)
    marks = getattr(hint, "__metadata__", ())
    given = next((mark for mark in marks if isinstance(mark, Given)), None)
    if given or not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        return given
    return Whole(cls, next((mark.names for mark in marks if isinstance(mark, Without)), ()))


def _options(sources: Mapping[str, Whole | Given]) -> dict[str, Parameter]:
    """The command's options by name: the fields that its arguments ask for."""
    options: dict[str, Parameter] = {}
    for argument, source in sources.items():
        for name, (about, kind, default) in options_of(source.cls).items():
            parameter = name
            if name in source.unused:
                continue
            if isinstance(source, Given) and name in source.defaults:
                about = dataclasses.replace(about, shown=source.defaults[name])
            if name in options:
                parameter = f"training_{name}"
                about = dataclasses.replace(about, flags=(), rare=True)
            options[parameter] = Parameter(argument, name, about, kind, default)
    return options


def _parameter(name: str, option: Parameter) -> inspect.Parameter:
    """The parameter that Typer makes a flag of."""
    kind, default = option.kind, option.default
    members = [k for k in typing.get_args(kind) if k is not type(None)]
    value = members[0] if isinstance(kind, types.UnionType) else kind
    if option.about.parse or (isinstance(kind, types.UnionType) and len(members) > 1):
        value = str  # a budget with its unit; a number or "auto"
        default = default if default in (None, REQUIRED) else default_text(default)
    elif typing.get_origin(value) is tuple:
        value, default = list[str], list(default) or None
    optional = value | None if default is None else value
    return inspect.Parameter(
        name,
        KEYWORD,
        default=inspect.Parameter.empty if default is REQUIRED else default,
        annotation=Annotated[optional, _typer_option(name, option.about, value)],
    )


def default_text(default: Any) -> str:
    """A default as it is written on the command line."""
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _typer_option(name: str, about: Option, value: Any) -> Any:
    return typer.Option(
        *(about.flags or (flag_of(name, about),)),
        help=about.text,
        min=about.minimum,
        max=about.maximum,
        envvar=about.envvar,
        autocompletion=(lambda: list(about.choices)) if about.choices else None,
        hidden=about.rare,
        show_default=value is not bool and (about.shown or True),
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
    return [
        inspect.Parameter(
            "config_file", KEYWORD, default=None, annotation=Annotated[Path | None, config]
        ),
        inspect.Parameter(
            "settings", KEYWORD, default=None, annotation=Annotated[list[str] | None, settings]
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
        if key not in (tables := [group.lower() for group in GROUPS]):
            raise UsageError(
                f"--config {path}: no table is called [{key}]; there are {', '.join(tables)}"
            )
        for name, inner in value.items():  # [training] batch_size = 16
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
                f"{origin}: `{context.command_path}` has no option {name!r}.{hint} "
                "docs/options.md lists them"
            )
        if isinstance(value, list) and not getattr(parameter, "multiple", False):
            raise UsageError(f"{origin}: {name} takes one value, not the list {value}")
        many = getattr(parameter, "multiple", False) and not isinstance(value, list)
        found[str(parameter.name)] = [value] if many else value
    context.meta[key] = found
    context.default_map = {**context.meta.get(FILE, {}), **context.meta.get(SET, {})}
