"""What an organiser decides about a contest. Knows no truth, no submissions and no HTTP."""

import datetime
import json
import re
import unicodedata
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from vizsla.errors import UsageError

Phase = Literal["before", "open", "closed"]
METRICS = {  # what `accuracy` may hold: name → the largest value it can have
    "top_k_accuracy": 1.0,
    "contest_points": 1000.0,
    "map_at_k": 1.0,
}
GROUPS = {
    "open": "anyone may hand in under any name; names that have a token need it",
    "token": "only groups that the organiser gave a token",
}
COUNTS = {
    "best": "each group's best submission counts",
    "last": "each group's last submission counts",
}
LONGEST_NAME = 60  # characters of a group's name
_UNSEEN = re.compile(  # what takes no ink: two names that differ in it alone would look the same
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]"
)


@dataclass(frozen=True)
class Rules:
    """The rules of one contest. Times are seconds since 1970, UTC; None: not limited.

    public_share: None shows all queries at once; a share in (0, 1) shows the scores of that part
    of the queries while the contest runs, and those of the rest once it is closed.
    seed: which queries are public, for whoever knows it; None: `judge` draws one, once.
    """

    title: str = "Image retrieval contest"
    top_k: int = 10
    metric: str = "top_k_accuracy"
    public_share: float | None = None
    seed: int | None = None
    groups: str = "open"
    per_hour: int | None = None
    in_all: int | None = None
    opens: float | None = None
    closes: float | None = None
    counts: str = "best"

    def __post_init__(self) -> None:
        for what, value, choices in (
            ("metric", self.metric, METRICS),
            ("groups", self.groups, GROUPS),
            ("counts", self.counts, COUNTS),
        ):
            if value not in choices:
                raise UsageError(f"{what}={value!r}: choose one of {', '.join(choices)}")
        if self.top_k < 1:
            raise UsageError(f"top_k={self.top_k}: a list holds at least one image")
        for what, limit in (("an hour", self.per_hour), ("in all", self.in_all)):
            if limit is not None and limit < 1:
                raise UsageError(f"{limit} submissions {what}: allow at least 1, or give no limit")
        if self.opens is not None and self.closes is not None and self.opens >= self.closes:
            raise UsageError(
                f"the contest opens at {iso(self.opens)} and closes at {iso(self.closes)}: "
                "it must close later than it opens"
            )
        if self.public_share is not None:
            if not 0 < self.public_share < 1:
                raise UsageError(
                    f"public share {self.public_share:g}: expected a number between 0 and 1"
                )
            if self.closes is None:
                raise UsageError(
                    "a public share needs a closing time: the rest is shown when the contest closes"
                )

    def phase(self, now: float) -> Phase:
        """Whether the contest has not opened yet, is open, or has closed."""
        if self.opens is not None and now < self.opens:
            return "before"
        return "closed" if self.closes is not None and now >= self.closes else "open"

    def parts(self) -> list[str]:
        """The parts of the queries that are scored apart; the first is shown while it is open."""
        return ["all"] if self.public_share is None else ["public", "private"]

    def visible_parts(self, now: float) -> list[str]:
        """The parts whose scores may be seen by anyone now, the one that ranks first."""
        if self.public_share is None:
            return ["all"]
        return ["private", "public"] if self.phase(now) == "closed" else ["public"]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Rules":
        known = {field.name for field in fields(Rules)}
        content: dict[str, Any] = json.loads(text)
        return Rules(**{key: value for key, value in content.items() if key in known})


def group_name(given: Any) -> str:
    """The name as it is kept: NFC, single spaces, none around it. UsageError says why it cannot be.

    Two spellings that differ in Unicode's normal form alone are one name.
    """
    if not isinstance(given, str):
        raise UsageError("groupname must be a text")
    if len(given) > 4 * LONGEST_NAME:  # before it is normalised, which takes quadratic time
        raise UsageError(f"groupname has {len(given)} characters, at most {LONGEST_NAME} may be")
    name = re.sub(" {2,}", " ", unicodedata.normalize("NFC", given).strip())
    if not name:
        raise UsageError("groupname is empty")
    if len(name) > LONGEST_NAME:
        raise UsageError(f"groupname has {len(name)} characters, at most {LONGEST_NAME} may be")
    bad = next((c for c in name if not c.isprintable() or _UNSEEN.match(c)), None)
    if bad is not None:
        raise UsageError(f"groupname holds the character U+{ord(bad):04X}, which cannot be shown")
    if unicodedata.combining(name[0]) or max(map(len, _stacks(name))) > 4:
        raise UsageError("groupname piles up accents: at most 3 may stand on a letter")
    return name


def _stacks(name: str) -> list[str]:
    """The letters of a name, each with the accents that stand on it."""
    stacks: list[str] = []
    for character in name:
        if unicodedata.category(character) in ("Mn", "Me") and stacks:
            stacks[-1] += character
        else:
            stacks.append(character)
    return stacks


def parse_time(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 time; without a zone it is this machine's local time."""
    try:
        return datetime.datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"{text!r} is not a time: expected one such as 2026-05-28T12:00 (local time) "
            "or 2026-05-28T12:00Z"
        ) from None


def iso(seconds: float) -> str:
    """2026-05-28T12:00:00Z."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
