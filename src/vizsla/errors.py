"""The exception tree. Every message says what came, what was expected and what to do.

The command line prints only the message and ends with exit code 1 (2 for UsageError);
from Python, `except VizslaError` catches all that this package raises on purpose.

Messages are written with the flags of the command line. One that is raised elsewhere names the
arguments of Python instead: `--top-k 5` becomes `top_k=5`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

SWITCHES = ("checkpointing", "class_folders", "follow_links", "overwrite", "same_set")
_COMMAND = re.compile(r"(`[^`]*`|\((?:vizsla|pip) [^)]*\)|pip install .*)")  # to be typed as it is
_FLAG = re.compile(r"--([a-z]+(?:-[a-z]+)*)(?: (?=[\d'\"]|[A-Z]{2}))?")
_commands = 0  # that run in this process: 1 while the command line does something


@contextmanager
def flags_named() -> Iterator[None]:
    """Context: messages of errors that are made inside name flags."""
    global _commands
    _commands += 1
    try:
        yield
    finally:
        _commands -= 1


def with_arguments(message: str) -> str:
    """The message with the arguments of Python in place of flags, commands in it as they are."""

    def argument(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        if found[0].endswith(" "):
            return f"{name}="
        return f"{name}=True" if name in SWITCHES else name

    parts = _COMMAND.split(message)
    return "".join(part if i % 2 else _FLAG.sub(argument, part) for i, part in enumerate(parts))


class VizslaError(Exception):
    """Something could not be done; the message is meant for people."""

    def __init__(self, *values: object) -> None:
        super().__init__(*values)
        self._names_flags = _commands > 0

    def __str__(self) -> str:
        message = super().__str__()
        return message if self._names_flags else with_arguments(message)


class UsageError(VizslaError):
    """The call itself is wrong: an unknown name, mutually exclusive options."""


class DataError(VizslaError):
    """Images, labels, rankings or numbers that cannot be used as requested."""


class ImageError(DataError):
    """One image cannot be read. The message is only the reason, without the path."""


class ModelError(VizslaError):
    """Weights, backbones or embedders that cannot be built, loaded or run."""


class StorageError(VizslaError):
    """An artefact cannot be written, is missing, or is damaged."""


class SubmitError(VizslaError):
    """A contest server cannot be reached, refuses a submission, or answers with something else."""


class MissingExtraError(VizslaError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an extra: pip install 'vizsla[{extra}]'")
        self.extra = extra


def first_sentence(error: BaseException) -> str:
    """The reason without the advice that libraries append (one is to switch off a safety check)."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0].rstrip(".")[:300]
