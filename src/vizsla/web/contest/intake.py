"""The body of a request → a stored submission and its answer, or a refusal. Knows no sockets."""

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from vizsla.errors import DataError, UsageError, VizslaError
from vizsla.output.submission_forms import kind_of, parse_json
from vizsla.web.contest.rules import Rules, group_name, iso
from vizsla.web.contest.scoring import Lists, PartScore, Scorer, canonical
from vizsla.web.contest.store import Store, Stored, TooMany, packed
from vizsla.web.shell.tokens import from_header, matches

DAY = 86_400.0
EXPECTED = '{"groupname": …, "images": {query: [gallery, …]}}'


class Refused(VizslaError):
    """A submission that is not taken. status: as HTTP counts; retry_after: seconds, or None."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        problems: list[str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problems = problems or []
        self.retry_after = retry_after


@dataclass(frozen=True)
class Taken:
    """A sound submission on its way to the disk. Its answer may be given once `stored` is done."""

    group: str
    received: float
    sha256: str
    scores: dict[str, PartScore]
    stored: "Future[Stored]"


class Intake:
    """Takes submissions for one contest. Safe to use from many threads.

    clock: seconds since 1970; tests give their own.
    """

    def __init__(
        self, store: Store, scorer: Scorer, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.store, self.scorer, self.clock = store, scorer, clock

    @property
    def rules(self) -> Rules:
        return self.scorer.rules

    def take(self, body: bytes, authorization: str | None, received: float) -> Taken:
        """Checks, scores and hands to the writer; Refused says why not."""
        content = _parsed(body)
        group = self._group(content, authorization)
        self._check_time(received)
        try:
            self.store.check_limits(group, received, self.rules)
        except TooMany as error:
            raise self.too_many(error, received) from error
        lists = self._lists(content)
        scores = self.scorer.scores(lists)
        text = canonical(lists)
        sha256 = hashlib.sha256(text).hexdigest()
        stored = self.store.add(
            group, packed(text), sha256, scores, received=received, rules=self.rules
        )
        return Taken(group, received, sha256, scores, stored)

    def answer(self, taken: Taken, stored: Stored) -> dict[str, Any]:
        """What the client gets: the parts that it may see now, `accuracy` first."""
        rules = self.rules
        part = rules.parts()[0]
        score = taken.scores[part]
        in_all = None if rules.in_all is None else max(0, rules.in_all - stored.in_all)
        this_hour = None if rules.per_hour is None else max(0, rules.per_hour - stored.this_hour)
        return {
            "accuracy": score.score,
            "metric": rules.metric,
            "interval": None if score.low is None else [score.low, score.high],
            **score.metrics,
            "part": part,
            "submission": {
                "id": stored.id,
                "groupname": taken.group,
                "number": stored.in_all,
                "received": iso(taken.received),
                "sha256": taken.sha256,
                "top_k": rules.top_k,
                "queries": self.scorer.part_sizes()[part],
            },
            "left": {"this_hour": this_hour, "in_all": in_all},
        }

    def too_many(self, error: TooMany, received: float) -> Refused:
        """429. Where no waiting helps, the time to come back is the closing time, or tomorrow."""
        wait = error.wait
        if wait is None:
            wait = DAY if self.rules.closes is None else max(1.0, self.rules.closes - received)
        return Refused(429, str(error), retry_after=wait)

    def _group(self, content: dict[str, Any], authorization: str | None) -> str:
        """The group's name, after its token was found to be right."""
        if "groupname" not in content:
            raise Refused(422, f"groupname is missing: expected {EXPECTED}")
        try:
            name = group_name(content["groupname"])
        except UsageError as error:
            raise Refused(422, str(error)) from error
        token = content.get("token")
        if token is not None and not isinstance(token, str):
            raise Refused(422, f"token must be a text, got {kind_of(token)}")
        wanted = self.store.token_hash(name)
        if wanted is None and self.rules.groups == "open":
            return name
        token = token or from_header(authorization)
        if not token:
            raise Refused(
                401, "this group needs its token: send it as `Authorization: Bearer TOKEN`"
            )
        if not matches(token, wanted):
            raise Refused(401, "the name of the group and the token do not belong together")
        return name

    def _check_time(self, received: float) -> None:
        phase = self.rules.phase(received)
        if phase == "before" and self.rules.opens is not None:
            raise Refused(403, f"the contest opens at {iso(self.rules.opens)}")
        if phase == "closed" and self.rules.closes is not None:
            raise Refused(403, f"the contest closed at {iso(self.rules.closes)}")

    def _lists(self, content: dict[str, Any]) -> Lists:
        if "images" not in content:
            raise Refused(422, f"images is missing: expected {EXPECTED}")
        lists: Lists = content["images"]
        problems = self.scorer.problems(lists)
        if problems:
            raise Refused(422, "; ".join(problems), problems=problems)
        return lists


def _parsed(body: bytes) -> dict[str, Any]:
    if not body.strip():
        raise Refused(400, f"the body is empty: expected {EXPECTED}")
    try:
        content = parse_json(body)
    except DataError as error:
        raise Refused(400, str(error)) from error
    if not isinstance(content, dict):
        raise Refused(422, f"expected {EXPECTED}, got {kind_of(content)}")
    return content
