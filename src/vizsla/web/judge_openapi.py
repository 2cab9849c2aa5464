"""What /openapi.json says about the server's addresses: the keywords of each route."""

from typing import Any

_NUMBER: dict[str, Any] = {"type": "number"}
_TEXT: dict[str, Any] = {"type": "string"}
_TIME: dict[str, Any] = {"type": "string", "format": "date-time"}


def _nullable(kind: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [kind, {"type": "null"}]}


def _array(of: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": of, **more}


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), **more}


_INTERVAL = _nullable(_array(_NUMBER, minItems=2, maxItems=2))
_METRICS: dict[str, Any] = {"type": "object", "additionalProperties": _NUMBER}
_SCORE = _object({"score": _NUMBER, "interval": _INTERVAL, "metrics": _METRICS})
_PARTS = {"type": "object", "additionalProperties": _SCORE}
_ERROR = _object({"error": _TEXT, "problems": _array(_TEXT)})
_CONTEST = _object({"title": _TEXT, "phase": {"enum": ["before", "open", "closed"]}})
_SUBMISSION = {
    "id": {"type": "integer"},
    "number": {"type": "integer"},
    "received": _TIME,
    "sha256": _TEXT,
    "parts": _PARTS,
}
_ROW = _object(
    {
        "rank": {"type": "integer"},
        "groupname": _TEXT,
        "group": {"type": "integer"},
        "score": _NUMBER,
        "interval": _INTERVAL,
        "metrics": _METRICS,
        "parts": _PARTS,
        "submissions": {"type": "integer"},
        "last": _TIME,
        "counted": {"type": "integer"},
        "counted_at": _TIME,
    }
)
_ANSWER = _object(
    {
        "accuracy": _NUMBER,
        "metric": _TEXT,
        "interval": _INTERVAL,
        "part": {"enum": ["all", "public"]},
        "submission": _object({"id": {"type": "integer"}, "groupname": _TEXT, "sha256": _TEXT}),
        "left": {"type": "object"},
    }
)
_HANDED_IN = _object(
    {
        "groupname": {**_TEXT, "minLength": 1},
        "images": {
            "type": "object",
            "description": "For every query the names of its gallery images, the best first.",
            "additionalProperties": _array(_TEXT, uniqueItems=True),
        },
    }
)


def _response(description: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {"description": description, "content": content, **more}


def _refusals(*statuses: tuple[int, str]) -> dict[int | str, dict[str, Any]]:
    return {status: _response(description, _ERROR) for status, description in statuses}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": _TEXT}


_UNAUTHORISED = _response(
    "The organiser's token is wanted, or another one.",
    _ERROR,
    headers={"WWW-Authenticate": _header("How to send it.")},
)
_CSV = {"description": "CSV.", "content": {"text/csv": {"schema": _TEXT}}}
_LINES = {"description": "JSON Lines.", "content": {"application/jsonl": {"schema": _TEXT}}}
_FOR_ORGANISER: dict[str, Any] = {"security": [{"organiser": []}]}

RETRIEVAL: dict[str, Any] = {
    "summary": "Hand in a ranking",
    "responses": {
        200: _response("Stored and scored.", _ANSWER),
        401: _response(
            "The group's token is missing or wrong.",
            _ERROR,
            headers={"WWW-Authenticate": _header("Bearer")},
        ),
        429: _response(
            "The group has handed in too often.",
            _ERROR,
            headers={"Retry-After": _header("Seconds to wait.")},
        ),
        **_refusals(
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
        200: _response("By rank.", _object({"contest": _CONTEST, "leaderboard": _array(_ROW)}))
    },
}
LEADERBOARD_CSV: dict[str, Any] = {
    "summary": "The leaderboard as CSV",
    "responses": {200: _CSV},
}
GROUP: dict[str, Any] = {
    "summary": "A group's submissions, oldest first",
    "responses": {
        200: _response(
            "With the scores that may be seen.",
            _object(
                {
                    "groupname": _TEXT,
                    "rank": {"type": "integer"},
                    "submissions": _array(_object(_SUBMISSION)),
                }
            ),
        ),
        **_refusals((404, "There is no such group."), (422, "Not a number.")),
    },
}
SCORES: dict[str, Any] = {
    "summary": "All scores, for the organiser",
    "responses": {
        200: _response(
            "Oldest first.",
            _object(
                {
                    "contest": _CONTEST,
                    "submissions": _array(_object({"groupname": _TEXT, **_SUBMISSION})),
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
