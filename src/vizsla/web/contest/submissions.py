"""The body of a request → a checked, scored and stored submission. Knows no sockets.

What is not accepted is a Refused with its HTTP status, and stored nowhere.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, SkipValidation, ValidationError

from vizsla.errors import DataError, UsageError
from vizsla.output.submission import parse_submission
from vizsla.output.submission_formats import kind_of, parse_json
from vizsla.web.contest.rules import Rules, group_name, iso
from vizsla.web.contest.scoring import Lists, PartScore, Scorer, canonical
from vizsla.web.contest.store import Store, Stored, packed
from vizsla.web.shell import http
from vizsla.web.shell.tokens import from_header, matches

EXPECTED = '{"groupname": …, "images": {query: [gallery, …]}}'


class Refused(http.Refused):
    """A request that is not accepted. problems: one line for each kind of fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        problems: list[str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.problems = problems or [message]


def _normalised_name(name: str) -> str:
    try:
        return group_name(name)
    except UsageError as error:
        raise ValueError(str(error)) from error


class SubmissionRequest(BaseModel):
    """What a group posts. The lists are checked against the truth, by `Scorer.problems`."""

    groupname: Annotated[str, AfterValidator(_normalised_name), Field(min_length=1)]
    images: SkipValidation[dict[str, list[str]]] = Field(
        description="For every query the names of its gallery images, the best first."
    )
    token: str | None = Field(None, description="The group's token, if it is not in the header.")


@dataclass(frozen=True)
class Accepted:
    """A valid submission that is being written. It may be answered once `stored` is done."""

    groupname: str
    received: float
    sha256: str
    scores: dict[str, PartScore]
    stored: "Future[Stored]"


def accept(
    store: Store,
    scorer: Scorer,
    submission: SubmissionRequest,
    authorization: str | None = None,
    *,
    received: float,
) -> Accepted:
    """Checks and scores a submission and hands it to the writer.

    Raises Refused, or TooMany if the group has no submission left. Safe to call from many
    threads. received: seconds since 1970.
    """
    rules = scorer.rules
    check_token(store, rules, submission, authorization)
    phase = rules.phase(received)
    if phase == "before" and rules.opens is not None:
        raise Refused(403, f"the contest opens at {iso(rules.opens)}")
    if phase == "closed" and rules.closes is not None:
        raise Refused(403, f"the contest closed at {iso(rules.closes)}")
    lists: Lists = scorer.with_known_names(submission.images)
    problems = scorer.problems(lists)
    if problems:
        raise Refused(422, "; ".join(problems), problems=problems)
    text = canonical(lists)
    sha256 = hashlib.sha256(text).hexdigest()
    store.check_limits(submission.groupname, sha256, received, rules)
    scores = scorer.scores(lists)
    stored = store.add(
        submission.groupname, packed(text), sha256, scores, received=received, rules=rules
    )
    return Accepted(submission.groupname, received, sha256, scores, stored)


def parse_request(body: bytes) -> SubmissionRequest:
    """The request that a body of JSON holds, whatever its content type says. Raises Refused."""
    if not body.strip():
        raise Refused(400, f"the body is empty: expected {EXPECTED}")
    try:
        content = parse_json(body)
    except DataError as error:
        raise Refused(400, str(error)) from error
    if not isinstance(content, dict):
        raise Refused(422, f"expected {EXPECTED}, got {kind_of(content)}")
    try:
        return SubmissionRequest.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        field = problem["loc"][0]
        message = {
            "missing": f"{field} is missing: expected {EXPECTED}",
            "string_type": f"{field} must be a string, got {kind_of(problem['input'])}",
        }.get(problem["type"], str(problem.get("ctx", {}).get("error") or problem["msg"]))
        raise Refused(422, message) from error


def parse_upload(groupname: str, token: str, data: bytes) -> SubmissionRequest:
    """The request of the form on the page: a submission file of any format. Raises Refused."""
    if not data.strip():
        raise Refused(422, "choose a submission file")
    try:
        lists = parse_submission(data).to_lists()
        return SubmissionRequest(groupname=groupname, images=lists, token=token or None)
    except DataError as error:
        raise Refused(422, f"the file is no submission: {error}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        raise Refused(422, str(problem.get("ctx", {}).get("error") or problem["msg"])) from error


def check_token(
    store: Store, rules: Rules, submission: SubmissionRequest, authorization: str | None
) -> None:
    """Raises Refused with 401 unless this group may submit with this token."""
    token_hash = store.token_hash(submission.groupname)
    if token_hash is None and rules.groups == "open":
        return
    token = submission.token or from_header(authorization)
    headers = {"WWW-Authenticate": "Bearer"}
    if not token:
        message = "this group needs its token: send it as `Authorization: Bearer TOKEN`"
        raise Refused(401, message, headers=headers)
    if not matches(token, token_hash):
        raise Refused(401, "this is not the token of this group", headers=headers)
