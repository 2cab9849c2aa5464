"""The contest's HTTP API: submissions in, leaderboard and scores out, as JSON and CSV."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI, Request
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from vizsla.errors import StorageError
from vizsla.web.contest.leaderboard import (
    ContestRecord,
    Leaderboard,
    LeaderboardRow,
    Scores,
    SubmissionRecord,
    Timestamp,
)
from vizsla.web.contest.pages import Pages
from vizsla.web.contest.rules import iso
from vizsla.web.contest.scoring import PartScore, Scorer
from vizsla.web.contest.store import Store, Stored, TooMany, unpacked
from vizsla.web.contest.submissions import (
    Accepted,
    Refused,
    SubmissionRequest,
    accept,
    parse_request,
    parse_upload,
)
from vizsla.web.shell import http
from vizsla.web.shell.http import Json, to_json
from vizsla.web.shell.requests import read_fields
from vizsla.web.shell.templating import to_csv
from vizsla.web.shell.tokens import from_header, matches

log = logging.getLogger("vizsla.judge")

SCORERS = 2  # threads that check and score: more would only wait for each other
NESTED = {"score", "interval", "metrics", "parts"}  # fields that CSV spreads over columns
CHALLENGE = {"WWW-Authenticate": 'Basic realm="organiser", charset="UTF-8"'}


# ── what the API answers ─────────────────────────────────────────────────────────────────────────


class Error(BaseModel):
    """A refusal. problems: one line for each kind of fault."""

    error: str
    problems: list[str]


class SubmissionReceipt(BaseModel):
    """What was stored. number: within the group, from 1; queries: how many count in the score.

    repeated: the group had sent the same lists before, so nothing was stored or used up.
    """

    id: int
    groupname: str
    number: int
    received: Timestamp
    sha256: str
    top_k: int
    queries: int
    repeated: bool


class Place(BaseModel):
    """Where the group stands now, by the submission that counts for it. groups: how many there are.

    rank: null until the leaderboard has been computed anew.
    """

    rank: int | None
    groups: int


class SubmissionsLeft(BaseModel):
    """How many submissions the group may still make; null: no limit."""

    this_hour: int | None
    in_all: int | None


class SubmissionAnswer(BaseModel):
    """The score of a submission. accuracy: by the metric that ranks, whose name is `metric`.

    metrics: all that the contest shows, by name.
    """

    accuracy: float
    metric: str
    interval: tuple[float, float] | None
    top_k_accuracy: float
    top_1_accuracy: float
    contest_points: float
    precision_at_k: float
    recall_at_k: float
    map_at_k: float
    mrr_at_k: float
    ndcg_at_k: float
    metrics: dict[str, float]
    part: str
    submission: SubmissionReceipt
    leaderboard: Place
    left: SubmissionsLeft


class LeaderboardAnswer(BaseModel):
    """The groups by rank."""

    contest: ContestRecord
    leaderboard: list[LeaderboardRow]


class GroupAnswer(BaseModel):
    """One group and its submissions, oldest first."""

    groupname: str
    rank: int
    submissions: list[SubmissionRecord]


class ScoresAnswer(BaseModel):
    """The submissions of all groups, oldest first."""

    contest: ContestRecord
    submissions: list[SubmissionRecord]


def error_responses(**descriptions: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route, from http_<status>="description"."""
    return {
        int(name.removeprefix("http_")): {"model": Error, "description": description}
        for name, description in descriptions.items()
    }


# ── submissions ──────────────────────────────────────────────────────────────────────────────────


def add_submissions(app: FastAPI, board: Leaderboard, pages: Pages) -> None:
    """Adds POST /retrieval/, the page's form, and how refusals of the whole API are answered."""
    threads = CapacityLimiter(SCORERS)
    store, scorer = board.store, board.scorer

    @app.post("/retrieval", include_in_schema=False)
    @app.post(
        "/retrieval/",
        summary="Hand in a ranking",
        responses=error_responses(
            http_400="The body is not valid JSON.",
            http_401="The group's token is missing or wrong.",
            http_403="The contest is not open.",
            http_413="The body is too large.",
            http_415="The body is compressed.",
            http_422="The submission is not valid; the message names the first offenders.",
            http_429="The group has made too many submissions; Retry-After says when to come back.",
            http_503="The submission could not be stored and was not counted.",
        ),
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": "JSON, whatever the content type says.",
                "content": {"application/json": {"schema": SubmissionRequest.model_json_schema()}},
            }
        },
    )
    async def hand_in(request: Request) -> SubmissionAnswer:
        body = await request.body()
        received = board.clock()
        authorization = request.headers.get("authorization")
        return await taken(lambda: parse_request(body), authorization, received)

    async def taken(
        parse: Callable[[], SubmissionRequest], authorization: str | None, received: float
    ) -> SubmissionAnswer:
        accepted = await to_thread.run_sync(
            lambda: accept(store, scorer, parse(), authorization, received=received),
            limiter=threads,
        )
        # The writer has it now: it is stored whether the client waits for the answer or not.
        stored = await asyncio.shield(asyncio.wrap_future(accepted.stored))
        rows = await to_thread.run_sync(lambda: board.rows(received))
        return submission_answer(scorer, accepted, stored, rows)

    @app.post("/submit", include_in_schema=False)
    async def upload(request: Request) -> Response:
        """The form on the page."""
        received = board.clock()
        try:
            fields = await read_fields(request)
            group, token = (str(fields.get(name, [""])[-1]) for name in ("groupname", "token"))
            files = [one for one in fields.get("file", []) if isinstance(one, bytes)]
            answer = await taken(
                lambda: parse_upload(group, token, files[-1] if files else b""), None, received
            )
        except (http.Refused, TooMany, StorageError) as error:
            answered = refused(request, error)
            problems = getattr(error, "problems", [str(error)])
            return pages.not_accepted(answered.status_code, problems)
        return pages.accepted(answer.model_dump(), received)

    def refused(request: Request, error: Exception) -> Response:
        message = str(error)
        content = {"error": message, "problems": getattr(error, "problems", [message])}
        match error:
            case http.Refused():
                return Json(content, error.status, error.headers)
            case TooMany():
                seconds = str(int(-(-error.retry_after // 1)))
                return Json(content, 429, {"Retry-After": seconds})
        log.error("a submission could not be stored: %s", error)
        message = "it could not be stored and was not counted: send it again"
        return Json({"error": message, "problems": [message]}, 503)

    for kind in (http.Refused, TooMany, StorageError):
        app.add_exception_handler(kind, refused)


def submission_answer(
    scorer: Scorer, accepted: Accepted, stored: Stored, rows: Sequence[LeaderboardRow]
) -> SubmissionAnswer:
    """The scores of the first part, the receipt, the rank, and how many submissions are left."""
    rules = scorer.rules
    part = rules.parts()[0]
    score: PartScore = accepted.scores[part]

    ranks = {row.groupname: row.rank for row in rows}
    return SubmissionAnswer(
        accuracy=score.score,
        metric=rules.metric,
        interval=score.interval,
        **score.metrics,
        metrics={name: score.metrics[name] for name in rules.metrics},
        part=part,
        submission=SubmissionReceipt(
            id=stored.id,
            groupname=accepted.groupname,
            number=stored.number,
            received=accepted.received,
            sha256=accepted.sha256,
            top_k=rules.top_k,
            queries=scorer.part_sizes()[part],
            repeated=stored.repeated,
        ),
        leaderboard=Place(rank=ranks.get(accepted.groupname), groups=len(rows)),
        left=SubmissionsLeft(**rules.left(stored.in_all, stored.this_hour)),
    )


# ── leaderboard and groups ───────────────────────────────────────────────────────────────────────


def add_leaderboard(app: FastAPI, board: Leaderboard) -> None:
    """Adds the leaderboard as JSON and CSV, and each group's history as JSON."""

    @app.get("/leaderboard.json", summary="The leaderboard")
    def leaderboard() -> LeaderboardAnswer:
        now = board.clock()
        return LeaderboardAnswer(contest=board.contest(now), leaderboard=board.rows(now))

    @app.get("/leaderboard.csv", summary="The leaderboard as CSV", response_class=CsvResponse)
    def leaderboard_csv() -> Response:
        now = board.clock()
        text = scores_table(LeaderboardRow, board.rows(now), board.no_scores(now))
        return CsvResponse(text, headers=download("leaderboard.csv"))

    @app.get(
        "/groups/{group_id}.json",
        summary="A group's submissions",
        responses=error_responses(
            http_404="There is no such group.", http_422="The group is not a number."
        ),
    )
    def group(group_id: int) -> GroupAnswer:
        now = board.clock()
        row = board.row(group_id, now)
        if row is None:
            raise Refused(404, "there is no such group")
        submissions = board.submissions(now, group_id=group_id)
        return GroupAnswer(groupname=row.groupname, rank=row.rank, submissions=submissions)


class CsvResponse(Response):
    """A table; in a browser a download."""

    media_type = "text/csv"


def download(name: str) -> dict[str, str]:
    """The header that makes a browser save an answer under this name."""
    return {"content-disposition": f'attachment; filename="{name}"'}


def scores_table(
    kind: type[LeaderboardRow] | type[SubmissionRecord],
    records: Sequence[LeaderboardRow] | Sequence[SubmissionRecord],
    sample: Scores,
) -> str:
    """Records as CSV: of each part the columns part_score, part_low, part_high and part_<metric>.

    sample: any scores of the parts to show; they name the columns of an empty table.
    """
    plain = [name for name in kind.model_fields if name not in NESTED]

    def flat(parts: Scores) -> dict[str, float | None]:
        return {
            f"{part}_{name}": value
            for part, score in parts.items()
            for name, value in {
                "score": score.score,
                **dict(zip(("low", "high"), score.interval or (None, None), strict=True)),
                **score.metrics,
            }.items()
        }

    rows = [
        record.model_dump(mode="json", include=set(plain)) | flat(record.parts)
        for record in records
    ]
    return to_csv(rows, columns=[*plain, *flat(sample)])


# ── the organiser ────────────────────────────────────────────────────────────────────────────────


def add_organiser_data(app: FastAPI, board: Leaderboard, organiser: list[Any]) -> None:
    """Adds all submissions and all scores. organiser: the dependencies that check who asks."""
    responses = error_responses(http_401="The organiser's token is missing or wrong.")
    route = partial(app.get, dependencies=organiser, responses=responses)

    @route("/organiser/scores.json", summary="All scores")
    def scores() -> ScoresAnswer:
        now = board.clock()
        return ScoresAnswer(contest=board.contest(now), submissions=board.submissions(now))

    @route(
        "/organiser/scores.csv",
        summary="All scores as CSV",
        response_class=Response,  # of the table's type, errors would be documented as tables
        responses={**responses, 200: {"content": {CsvResponse.media_type: {}}}},
    )
    def scores_csv() -> Response:
        now = board.clock()
        text = scores_table(SubmissionRecord, board.submissions(now), board.no_scores(now))
        return CsvResponse(text, headers=download("scores.csv"))

    @route(
        "/organiser/submissions.jsonl",
        summary="All submissions, one JSON object a line",
        response_class=Response,
        responses={**responses, 200: {"content": {JsonLines.media_type: {}}}},
    )
    def submissions() -> Response:
        return JsonLines(submission_lines(board.store), headers=download("submissions.jsonl"))


def organiser_only(organiser_hash: str | None) -> list[Any]:
    """Dependencies of a route that only the organiser may call: Bearer, or Basic as browsers do."""

    def check(request: Request) -> None:
        if not matches(from_header(request.headers.get("authorization")), organiser_hash):
            message = "this is for the organiser only: send the organiser's token"
            raise Refused(401, message, headers=CHALLENGE)

    return [Depends(HTTPBearer(scheme_name="organiser", auto_error=False)), Depends(check)]


class JsonLines(StreamingResponse):
    """One JSON object a line."""

    media_type = "application/jsonl"


def submission_lines(store: Store) -> Iterator[bytes]:
    """Every submission with its lists, in the order of arrival."""
    for stored in store.each():
        record = {
            "id": stored["id"],
            "groupname": stored["groupname"],
            "received": iso(stored["received"]),
            "sha256": stored["sha256"],
            "images": unpacked(stored["lists"]),
        }
        yield to_json(record) + b"\n"
