"""A contest over HTTP: takes submissions, shows the leaderboard. Scores and stores elsewhere."""

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse

from vizsla.errors import StorageError
from vizsla.web.contest import openapi
from vizsla.web.contest.board import Board
from vizsla.web.contest.intake import Intake, Refused
from vizsla.web.contest.pages import Pages
from vizsla.web.contest.rules import iso
from vizsla.web.contest.store import TooMany, unpacked
from vizsla.web.shell.http import (
    BODY_SECONDS,
    BodyRefused,
    Json,
    LastWord,
    SecureHeaders,
    read_body,
    to_json,
)
from vizsla.web.shell.templating import StaticFolder, answer_errors
from vizsla.web.shell.tokens import from_header, matches

log = logging.getLogger("vizsla.judge")

SCORERS = 2  # threads that check and score: more would only wait for each other
LARGEST_GROUP_ID = 2**53
CHALLENGE = {"WWW-Authenticate": 'Basic realm="organiser", charset="UTF-8"'}


def create_app(
    intake: Intake,
    board: Board,
    *,
    organiser_hash: str | None,
    body_limit: int,
    body_seconds: float = BODY_SECONDS,
) -> FastAPI:
    """The application; organiser_hash: the hash of the organiser's token, None: no such page."""
    app = FastAPI(
        title="Vizsla judge", version="1", docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.add_middleware(SecureHeaders)
    answer_errors(app, Pages(board).error, _hint)
    _add_retrieval(app, intake, body_limit, body_seconds)
    _add_data(app, board)
    _add_organiser(app, board, Pages(board), organiser_hash)
    _add_pages(app, Pages(board))
    app.mount("/static", StaticFolder(Path(__file__).parent), name="static")
    described = app.openapi()  # made once and kept by the app
    described.setdefault("components", {})["securitySchemes"] = openapi.SECURITY_SCHEMES
    return app


def _hint(request: Request) -> str:
    return ": submissions are POSTed" if "/retrieval" in request.url.path else ""


# ── submissions ──────────────────────────────────────────────────────────────────────────────────


def _add_retrieval(app: FastAPI, intake: Intake, limit: int, seconds: float) -> None:
    pool = ThreadPoolExecutor(SCORERS, thread_name_prefix="judge-scorer")

    async def retrieval(request: Request) -> Response:
        loop = asyncio.get_running_loop()
        try:
            body = await read_body(request, limit=limit, seconds=seconds)
            received = intake.clock()
            authorization = request.headers.get("authorization")
            taken = await loop.run_in_executor(pool, intake.take, body, authorization, received)
            try:
                # Once it is with the writer it will be stored, whether the client waits or not.
                stored = await asyncio.shield(asyncio.wrap_future(taken.stored))
            except TooMany as error:
                raise intake.too_many(error, received) from error
        except BodyRefused as error:
            return LastWord(_error(str(error)), error.status)
        except Refused as error:
            return _refusal(error)
        except StorageError as error:
            log.error("a submission could not be stored: %s", error)
            return Json(_error("it could not be stored and was not counted: send it again"), 503)
        return Json(intake.answer(taken, stored))

    for path, documented in (("/retrieval/", True), ("/retrieval", False)):
        app.add_api_route(
            path, retrieval, methods=["POST"], include_in_schema=documented, **openapi.RETRIEVAL
        )


def _refusal(error: Refused) -> Response:
    headers = {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after is not None:
        headers["Retry-After"] = str(int(-(-error.retry_after // 1)))
    return Json(_error(str(error), error.problems), error.status, headers)


def _error(message: str, problems: list[str] | None = None) -> dict[str, Any]:
    return {"error": message, "problems": problems or [message]}


# ── the leaderboard as data ──────────────────────────────────────────────────────────────────────


def _add_data(app: FastAPI, board: Board) -> None:
    def leaderboard() -> Response:
        return Json(board.leaderboard())

    def leaderboard_csv() -> Response:
        return _csv(board.leaderboard_csv(), "leaderboard.csv")

    def group(group_id: int) -> Response:
        found = board.group(group_id) if 0 < group_id <= LARGEST_GROUP_ID else None
        return Json(found) if found else Json(_error("there is no such group"), 404)

    app.add_api_route("/leaderboard.json", leaderboard, **openapi.LEADERBOARD)
    app.add_api_route("/leaderboard.csv", leaderboard_csv, **openapi.LEADERBOARD_CSV)
    app.add_api_route("/groups/{group_id}.json", group, **openapi.GROUP)


def _csv(text: str, name: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


# ── the organiser ────────────────────────────────────────────────────────────────────────────────


def _add_organiser(app: FastAPI, board: Board, pages: Pages, organiser_hash: str | None) -> None:
    def refused(request: Request) -> Response | None:
        """401 unless the organiser asks."""
        if matches(from_header(request.headers.get("authorization")), organiser_hash):
            return None
        return Json(_error("this is for the organiser: their token is wanted"), 401, CHALLENGE)

    def page(request: Request) -> Response:
        return refused(request) or pages.organiser(request)

    def scores_json(request: Request) -> Response:
        return refused(request) or Json(board.scores())

    def scores_csv(request: Request) -> Response:
        return refused(request) or _csv(board.submissions_csv(), "scores.csv")

    def submissions(request: Request) -> Response:
        headers = {"content-disposition": 'attachment; filename="submissions.jsonl"'}
        return refused(request) or StreamingResponse(
            _submission_lines(board), media_type="application/jsonl", headers=headers
        )

    app.add_route("/organiser", page, methods=["GET"])
    app.add_api_route("/organiser/scores.json", scores_json, **openapi.SCORES)
    app.add_api_route("/organiser/scores.csv", scores_csv, **openapi.SCORES_CSV)
    app.add_api_route("/organiser/submissions.jsonl", submissions, **openapi.SUBMISSIONS)


def _submission_lines(board: Board) -> Iterator[bytes]:
    for stored in board.store.each():
        record = {
            "id": stored["id"],
            "groupname": stored["groupname"],
            "received": iso(stored["received"]),
            "sha256": stored["sha256"],
            "images": unpacked(stored["lists"]),
        }
        yield to_json(record) + b"\n"


# ── pages ────────────────────────────────────────────────────────────────────────────────────────


def _add_pages(app: FastAPI, pages: Pages) -> None:
    def group(request: Request) -> Response:
        number = request.path_params["group_id"]
        plain = number.isascii() and number.isdigit() and len(number) < 16
        return pages.group(request, int(number) if plain else 0)

    app.add_route("/", pages.leaderboard, methods=["GET"])
    app.add_route("/groups/{group_id}", group, methods=["GET"])
