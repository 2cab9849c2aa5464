"""The exception tree. Every message says what came, what was expected and what to do.

The command line prints only the message and ends with exit code 1 (2 for UsageError);
from Python, `except VizslaError` catches all that this package raises on purpose.
"""


class VizslaError(Exception):
    """Something could not be done; the message is meant for people."""


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
