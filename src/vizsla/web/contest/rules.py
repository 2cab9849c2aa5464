"""The rules that an organiser sets for a contest. Knows no truth, no submissions and no HTTP."""

import datetime
import json
import re
import unicodedata
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from vizsla.errors import UsageError
from vizsla.score.metrics.metric_names import MetricName
from vizsla.score.metrics.named_metrics import values_of_lists

Phase = Literal["before", "open", "closed"]
METRICS = {  # what a contest may show beside metrics by name, and the largest value of each
    "top_k_accuracy": 1.0,
    "contest_points": 1000.0,
    "map_at_k": 1.0,
}
GROUPS = {
    "open": "anyone may submit under any name; a name with a token requires it",
    "token": "only groups with a token from the organiser may submit",
}
COUNTS = {
    "best": "each group's best submission counts",
    "last": "each group's last submission counts",
}
LONGEST_NAME = 60  # characters of a group's name
_INVISIBLE = re.compile(  # two names that differ only in these would look the same
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]"
)


@dataclass(frozen=True)
class Rules:
    """The rules of one contest. Times are seconds since 1970, UTC; None: no limit.

    metrics: names, of which the first ranks and the others are shown beside it.
    public_share: the share, in (0, 1), of the queries whose scores are shown while the contest
    runs; those of the others are shown when it has closed. None: all scores are shown.
    seed: determines which queries are public, so keep it secret; None: `judge` draws one, once.
    """

    title: str = "Image retrieval contest"
    top_k: int = 10
    metrics: tuple[str, ...] = ("top_k_accuracy",)
    public_share: float | None = None
    seed: int | None = None
    groups: str = "open"
    per_hour: int | None = None
    max_submissions: int | None = None
    opens: float | None = None
    closes: float | None = None
    counts: str = "best"

    def __post_init__(self) -> None:
        known = tuple(dict.fromkeys(self._known(name.strip()) for name in self.metrics))
        object.__setattr__(self, "metrics", known)
        for what, value, choices in (
            ("groups", self.groups, GROUPS),
            ("counts", self.counts, COUNTS),
        ):
            if value not in choices:
                raise UsageError(f"{what}={value!r}: choose one of {', '.join(choices)}")
        if self.top_k < 1:
            raise UsageError(f"top_k={self.top_k}: expected at least 1")
        for what, limit in (("per hour", self.per_hour), ("in total", self.max_submissions)):
            if limit is not None and limit < 1:
                raise UsageError(f"{limit} submissions {what}: allow at least 1, or set no limit")
        if self.opens is not None and self.closes is not None and self.opens >= self.closes:
            raise UsageError(
                f"the contest opens at {iso(self.opens)} and closes at {iso(self.closes)}: "
                "it must close after it opens"
            )
        if self.public_share is not None:
            if not 0 < self.public_share < 1:
                raise UsageError(
                    f"public share {self.public_share:g}: expected a number between 0 and 1"
                )
            if self.closes is None:
                raise UsageError(
                    "a public share needs a closing time, when the other scores are shown"
                )

    def _known(self, metric: str) -> str:
        """The metric's name as it is written; UsageError unless lists of top_k names give it."""
        if metric in METRICS:
            return metric
        try:
            name = MetricName.parse(metric)
        except UsageError as error:
            raise UsageError(
                f"metrics={metric!r}: choose of {', '.join(METRICS)} and metrics by name ({error})"
            ) from error
        if name.kind in METRICS:
            return name.kind
        none = np.zeros((1, 1), dtype=np.int64)
        values_of_lists(name, none, np.ones(1, dtype=np.int64))
        if (name.cutoff or 0) > self.top_k:
            raise UsageError(f"metrics={metric!r}: submissions have only {self.top_k} images")
        return str(name)

    @property
    def metric(self) -> str:
        """The metric that ranks."""
        return self.metrics[0]

    @property
    def highest(self) -> float:
        """The largest value of the metric that ranks."""
        return METRICS.get(self.metric, 1.0)

    def phase(self, now: float) -> Phase:
        """Whether the contest has not opened yet, is open, or has closed."""
        if self.opens is not None and now < self.opens:
            return "before"
        return "closed" if self.closes is not None and now >= self.closes else "open"

    def parts(self) -> list[str]:
        """The parts that have scores of their own; the first is shown during the contest."""
        return ["all"] if self.public_share is None else ["public", "private"]

    def visible_parts(self, now: float) -> list[str]:
        """The parts whose scores may be shown now; the first one ranks."""
        if self.public_share is None:
            return ["all"]
        return ["private", "public"] if self.phase(now) == "closed" else ["public"]

    def left(self, in_all: int, this_hour: int) -> dict[str, int | None]:
        """How many submissions a group that has made so many may still make; None: no limit."""
        return {
            name: None if limit is None else max(0, limit - used)
            for name, limit, used in (
                ("this_hour", self.per_hour, this_hour), ("in_all", self.max_submissions, in_all)
            )
        }  # fmt: skip

    def to_json(self) -> str:
        """All rules, as `from_json` reads them."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Rules":
        """The rules in JSON; unknown keys are ignored."""
        known = {field.name for field in fields(Rules)}
        content: dict[str, Any] = json.loads(text)
        return Rules(**{key: value for key, value in content.items() if key in known})


def group_name(given: Any) -> str:
    """The normalised name: NFC, single spaces, none around it. Raises UsageError.

    Spellings that differ only in Unicode's normal form are one name.
    """
    if not isinstance(given, str):
        raise UsageError("groupname must be a string")
    if len(given) > 4 * LONGEST_NAME:  # before it is normalised, in quadratic time
        raise UsageError(
            f"groupname has {len(given)} characters: at most {LONGEST_NAME} are allowed"
        )
    name = re.sub(" {2,}", " ", unicodedata.normalize("NFC", given).strip())
    if not name:
        raise UsageError("groupname is empty")
    if len(name) > LONGEST_NAME:
        raise UsageError(
            f"groupname has {len(name)} characters: at most {LONGEST_NAME} are allowed"
        )
    bad = next((c for c in name if not c.isprintable() or _INVISIBLE.match(c)), None)
    if bad is not None:
        raise UsageError(
            f"groupname contains the character U+{ord(bad):04X}, which cannot be shown"
        )
    if unicodedata.combining(name[0]) or max(map(len, _stacks(name))) > 4:
        raise UsageError("groupname has more than 3 accents on one letter")
    return name


def _stacks(name: str) -> list[str]:
    """The letters of a name, each with its combining accents."""
    stacks: list[str] = []
    for character in name:
        if unicodedata.category(character) in ("Mn", "Me") and stacks:
            stacks[-1] += character
        else:
            stacks.append(character)
    return stacks


def parse_time(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 time; local time if it has no zone. Raises UsageError."""
    try:
        return datetime.datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"{text!r} is not a time: expected one such as 2026-05-28T12:00 (local time) "
            "or 2026-05-28T12:00Z"
        ) from None


def iso(seconds: float) -> str:
    """The time in UTC as 2026-05-28T12:00:00Z."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
