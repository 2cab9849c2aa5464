"""What an option is: a dataclass field with its default, help, range, choices and group."""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vizsla.errors import UsageError

GROUPS = (  # the panels of --help
    "Data", "Model", "Ranking", "Scores", "Training", "Contest", "Server", "Speed", "Output"
)  # fmt: skip
REQUIRED = dataclasses.MISSING  # the default of an option that must be given


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its name, type and default.

    help: {choices} stands for the list of choices. flags: of the command line, if not --the-name.
    shown: the default in words, if it is None or depends on others.
    usual: shown before all groups. rare: not in --help; `--set name=value` and --config reach it.
    parse: a value from its text, if the type does not determine how. envvar: a variable of the
    environment that also gives the value.
    """

    help: str
    group: str = ""
    flags: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    shown: str | None = None
    usual: bool = False
    rare: bool = False
    parse: Callable[[str], Any] | None = None
    envvar: str | None = None

    @property
    def text(self) -> str:
        """The help with the choices in it."""
        return self.help.replace("{choices}", ", ".join(self.choices))

    @property
    def is_limited(self) -> bool:
        """Whether a value can be out of range, or none of the choices."""
        return bool(self.choices) or self.minimum is not None or self.maximum is not None

    def check(self, name: str, value: Any) -> None:
        """UsageError if a value is out of range or none of the choices."""
        flag = flag_of(name, self)
        if self.choices and str(value) not in self.choices:
            raise UsageError(f"{flag} {value}: choose one of {', '.join(self.choices)}")
        if self.minimum is not None and value < self.minimum:
            raise UsageError(f"{flag} {value}: choose {self.minimum:g} or more")
        if self.maximum is not None and value > self.maximum:
            raise UsageError(f"{flag} {value}: choose {self.maximum:g} or less")


def option(default: Any, help: str, group: str, *flags: str, **more: Any) -> Any:
    """A dataclass field that is an option. more: fields of Option; `shown` says what None means."""
    about = Option(help, group, flags, **more)
    return field(default=default, metadata={"option": about})


def same(cls: type, name: str, *default: Any, **changes: Any) -> Any:
    """A field that is the option of another dataclass; with its own default, help, … if given."""
    like = cls.__dataclass_fields__[name]  # type: ignore[attr-defined]
    about = dataclasses.replace(like.metadata["option"], **changes)
    return field(default=default[0] if default else like.default, metadata={"option": about})


def options_of(cls: type) -> dict[str, tuple[Option, Any, Any]]:
    """name → (Option, type, default) of each field that is an option."""
    return {
        f.name: (f.metadata["option"], f.type, f.default)
        for f in dataclasses.fields(cls)
        if "option" in f.metadata
    }


@dataclass(frozen=True, kw_only=True)
class Options:
    """Dataclasses of options: their values are checked where an object is made."""

    def __post_init__(self) -> None:
        for name, (about, _, default) in options_of(type(self)).items():
            value = getattr(self, name)
            if about.is_limited and value is not None and value != default:
                about.check(name, value)


def flag_of(name: str, about: Option) -> str:
    """The long flag of an option: --image-size."""
    long = [flag for flag in about.flags if flag.startswith("--")]
    return long[0] if long else "--" + name.replace("_", "-")


def seconds(text: str | float) -> float:
    """`90s`, `30m`, `1.5h` → seconds. A bare number is refused: each of the three may be meant."""
    if not isinstance(text, str):
        return float(text)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not match or float(match[1]) <= 0:
        raise UsageError(f"--budget {text!r}: write a time above 0, such as 90s, 30m or 1.5h")
    number, unit = match.groups()
    if not unit:
        raise UsageError(
            f"--budget {number} has no unit: write {number}s, {number}m or {number}h for "
            "seconds, minutes or hours"
        )
    return float(number) * {"s": 1.0, "m": 60.0, "h": 3600.0}[unit]


def comma_ints(text: str) -> tuple[int, ...]:
    """The numbers of 1,5,10. UsageError where one is not a whole number."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{text!r} is not a list of numbers such as 1,5,10") from error


def byte_count(text: str) -> int:
    """The bytes of 500MB, 4GB, 2.5GiB or a plain number. UsageError for anything else."""
    units = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
             "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip
    found = re.fullmatch(r"\s*([\d.]+)\s*([a-z]*)\s*", text.lower())
    try:
        return int(float(found[1]) * units[found[2]]) if found else int("")
    except (KeyError, ValueError) as error:
        raise UsageError(f"{text!r} is not an amount of memory such as 500MB or 4GB") from error


def fusion_weights(text: str | None) -> str | list[float] | None:
    """--fusion-weights as `FusionConfig` takes them: auto, a number for each model, or None."""
    if text is None or text == "auto":
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--fusion-weights {text!r}: write auto, or a number for each model such as 0.7,0.3"
        ) from error


def acceptance(text: str | None) -> float | str | None:
    """--accept: a probability, such as 0.95 or 95%, as a number; the name of a file as it is."""
    if text is None:
        return None
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return text
