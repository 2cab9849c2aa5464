"""What /openapi.json says about the server's addresses: the keywords of each route."""

from typing import Any

from vizsla.web.shell.openapi import (
    NUMBER,
    TEXT,
    TIME,
    array,
    header,
    nullable,
    one_object,
    refusals,
    response,
)

_INTERVAL = nullable(array(NUMBER, minItems=2, maxItems=2))
_METRICS: dict[str, Any] = {"type": "object", "additionalProperties": NUMBER}
_SCORE = one_object({"score": NUMBER, "interval": _INTERVAL, "metrics": _METRICS})
_PARTS = {"type": "object", "additionalProperties": _SCORE}
_ERROR = one_object({"error": TEXT, "problems": array(TEXT)})
_CONTEST = one_object({"title": TEXT, "phase": {"enum": ["before", "open", "closed"]}})
_SUBMISSION = {
    "id": {"type": "integer"},
    "number": {"type": "integer"},
    "received": TIME,
    "sha256": TEXT,
    "parts": _PARTS,
}
_ROW = one_object(
    {
        "rank": {"type": "integer"},
        "groupname": TEXT,
        "group": {"type": "integer"},
        "score": NUMBER,
        "interval": _INTERVAL,
        "metrics": _METRICS,
        "parts": _PARTS,
        "submissions": {"type": "integer"},
        "last": TIME,
        "counted": {"type": "integer"},
        "counted_at": TIME,
    }
)
_ANSWER = one_object(
    {
        "accuracy": NUMBER,
        "metric": TEXT,
        "interval": _INTERVAL,
        "part": {"enum": ["all", "public"]},
        "submission": one_object({"id": {"type": "integer"}, "groupname": TEXT, "sha256": TEXT}),
        "left": {"type": "object"},
    }
)
_HANDED_IN = one_object(
    {
        "groupname": {**TEXT, "minLength": 1},
        "images": {
            "type": "object",
            "description": "For every query the names of its gallery images, the best first.",
            "additionalProperties": array(TEXT, uniqueItems=True),
        },
    }
)


_UNAUTHORISED = response(
    "The organiser's token is wanted, or another one.",
    _ERROR,
    headers={"WWW-Authenticate": header("How to send it.")},
)
_CSV = {"description": "CSV.", "content": {"text/csv": {"schema": TEXT}}}
_LINES = {"description": "JSON Lines.", "content": {"application/jsonl": {"schema": TEXT}}}
_FOR_ORGANISER: dict[str, Any] = {"security": [{"organiser": []}]}

RETRIEVAL: dict[str, Any] = {
    "summary": "Hand in a ranking",
    "responses": {
        200: response("Stored and scored.", _ANSWER),
        401: response(
            "The group's token is missing or wrong.",
            _ERROR,
            headers={"WWW-Authenticate": header("Bearer")},
        ),
        429: response(
            "The group has handed in too often.",
            _ERROR,
            headers={"Retry-After": header("Seconds to wait.")},
        ),
        **refusals(
            _ERROR,
            (400, "The body is not JSON that says one thing."),
            (403, "The contest is not open."),
            (408, "The body took too long."),
            (413, "The body is too large."),
            (415, "The body is compressed."),
            (422, "Not a sound submission; the message names the first offenders."),
        ),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "description": "JSON, whatever the content type says.",
            "content": {"application/json": {"schema": _HANDED_IN}},
        },
    },
}
LEADERBOARD: dict[str, Any] = {
    "summary": "The leaderboard",
    "responses": {
        200: response("By rank.", one_object({"contest": _CONTEST, "leaderboard": array(_ROW)}))
    },
}
LEADERBOARD_CSV: dict[str, Any] = {
    "summary": "The leaderboard as CSV",
    "responses": {200: _CSV},
}
GROUP: dict[str, Any] = {
    "summary": "A group's submissions, oldest first",
    "responses": {
        200: response(
            "With the scores that may be seen.",
            one_object(
                {
                    "groupname": TEXT,
                    "rank": {"type": "integer"},
                    "submissions": array(one_object(_SUBMISSION)),
                }
            ),
        ),
        **refusals(_ERROR, (404, "There is no such group."), (422, "Not a number.")),
    },
}
SCORES: dict[str, Any] = {
    "summary": "All scores, for the organiser",
    "responses": {
        200: response(
            "Oldest first.",
            one_object(
                {
                    "contest": _CONTEST,
                    "submissions": array(one_object({"groupname": TEXT, **_SUBMISSION})),
                }
            ),
        ),
        401: _UNAUTHORISED,
    },
    "openapi_extra": _FOR_ORGANISER,
}
SCORES_CSV: dict[str, Any] = {
    "summary": "All scores as CSV, for the organiser",
    "responses": {200: _CSV, 401: _UNAUTHORISED},
    "openapi_extra": _FOR_ORGANISER,
}
SUBMISSIONS: dict[str, Any] = {
    "summary": "All submissions, one JSON object a line, for the organiser",
    "responses": {200: _LINES, 401: _UNAUTHORISED},
    "openapi_extra": _FOR_ORGANISER,
}
SECURITY_SCHEMES = {"organiser": {"type": "http", "scheme": "bearer"}}
