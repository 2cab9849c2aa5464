"""What /openapi.json says about the search server's addresses: the keywords of each route."""

from typing import Any

from vizsla.web.search.query import (
    DEFAULT_K,
    LARGEST_WEIGHT,
    LONGEST_TEXT,
    MOST_EXAMPLES,
    MOST_MARKS,
)
from vizsla.web.shell.openapi import (
    INTEGER,
    NUMBER,
    TEXT,
    array,
    header,
    one_object,
    refusals,
    response,
)

SERVERS = [{"url": ".", "description": "Where this lies, whatever prefix a proxy gives it."}]
SECURITY_SCHEMES = {"token": {"type": "http", "scheme": "bearer"}}

_ERROR = one_object({"error": TEXT})
_ERROR["example"] = {"error": "k='0': choose a number from 1 to 200"}
_ATTRIBUTES = {"type": "object", "additionalProperties": {}}
_FILE = {"type": "string", "format": "binary"}
_RESULT = one_object(
    {
        "id": TEXT,
        "score": NUMBER,
        "label": {"description": "null where it is unknown."},
        "attributes": _ATTRIBUTES,
        "image": {**TEXT, "description": "Relative to the address that was asked."},
        "thumb": {**TEXT, "description": "Likewise: a small JPEG."},
    }
)
_ANSWER = one_object(
    {
        "results": array(_RESULT),
        "queries": array(TEXT, description="A name for each picture sent along, for `query`."),
        "gallery": INTEGER,
        "index": {**TEXT, "description": "Which state of the index answered."},
        "model_id": TEXT,
    }
)
_ANSWER_EXAMPLE = {
    "results": [
        {
            "id": "shoes/17.jpg",
            "score": 0.8731,
            "label": "shoes",
            "attributes": {"domain": "photo"},
            "image": "images/shoes/17.jpg",
            "thumb": "images/shoes/17.jpg/thumb",
        }
    ],
    "queries": ["5f2c9a7be0d14c3f8a6b1e2d3c4f5a6b"],
    "gallery": 3781,
    "index": "0a1b2c3d4e5f",
    "model_id": "6d1c0c0be3f0a7b1f3a2c9d4",
}


def _many(most: int, description: str) -> dict[str, Any]:
    return array(TEXT, maxItems=most, description=description)


_WEIGHT = {"type": "number", "minimum": 0, "maximum": LARGEST_WEIGHT, "default": 1}
_ASKED: dict[str, Any] = {
    "id": _many(MOST_EXAMPLES, "Ids of the gallery: like these."),
    "not_id": _many(MOST_EXAMPLES, "Ids of the gallery: but not like these."),
    "query": _many(MOST_EXAMPLES, "Pictures sent before, by the names that `queries` gave."),
    "not_query": _many(MOST_EXAMPLES, "Pictures sent before: but not like these."),
    "text": {**TEXT, "maxLength": LONGEST_TEXT, "description": "Where the model reads text."},
    "not_text": {**TEXT, "maxLength": LONGEST_TEXT},
    "right": _many(MOST_MARKS, "Results that were right."),
    "wrong": _many(MOST_MARKS, "Results that were wrong."),
    "filter": _many(MOST_EXAMPLES, "Conditions that all hold, such as label=shoe or price<10."),
    "image_weight": _WEIGHT,
    "text_weight": _WEIGHT,
    "k": {"type": "integer", "minimum": 1, "default": DEFAULT_K, "description": "How many."},
}


_UPLOADED = "<the bytes of a picture>"


def _body(
    json: dict[str, Any] | None, form: dict[str, Any], example: Any, form_example: dict[str, Any]
) -> dict[str, Any]:
    """json: what may come without pictures. The examples say the same as each schema."""
    content: dict[str, Any] = {
        "multipart/form-data": {
            "schema": form,
            "example": form_example,
            "encoding": {"image": {"contentType": "image/*"}},
        }
    }
    if json is not None:
        content["application/json"] = {"schema": json, "example": example}
    content["image/*"] = {"schema": _FILE}
    return {"required": True, "content": content}


_UNAUTHORISED = response(
    "A token is wanted, or another one.",
    _ERROR,
    headers={"WWW-Authenticate": header("How to send it.")},
)
_READING = refusals(_ERROR, (403, "Not allowed here."), (421, "Called by an unknown name."))
_ASKING = {
    **_READING,
    401: _UNAUTHORISED,
    422: response("Something does not fit; the message says what.", _ERROR),
    429: response(
        "Too many requests.", _ERROR, headers={"Retry-After": header("Seconds to wait.")}
    ),
    503: response("Not ready, or too busy.", _ERROR),
}
_SENDING = {
    **_ASKING,
    **refusals(
        _ERROR,
        (400, "The body cannot be read."),
        (408, "The body took too long."),
        (413, "The body is too large."),
        (415, "The body is of a kind that is not taken."),
    ),
}
_JPEG = {
    "description": "The picture.",
    "content": {"image/*": {"schema": _FILE}},
    "headers": {"ETag": header("Send it as If-None-Match.")},
}
_NOT_THERE = (404, "There is no such image.")
_TOKEN: dict[str, Any] = {"security": [{"token": []}]}

SEARCH: dict[str, Any] = {
    "summary": "Search by pictures, ids of the gallery, words, or a mix",
    "description": "`curl -F image=@photo.jpg -F k=5 -F filter=domain=photo …/v1/search`",
    "responses": {
        200: response("The best first.", _ANSWER, example=_ANSWER_EXAMPLE),
        **_SENDING,
        **refusals(_ERROR, (404, "No such id, or an upload that is no longer kept.")),
    },
    "openapi_extra": {
        "requestBody": _body(
            {"type": "object", "properties": _ASKED, "additionalProperties": False},
            {
                "type": "object",
                "properties": {"image": array(_FILE), **_ASKED},
                "additionalProperties": False,
            },
            {"text": "a red shoe", "k": 5, "filter": ["domain=photo"]},
            {"image": [_UPLOADED], "k": 5, "filter": ["domain=photo"]},
        )
    },
}
EMBED: dict[str, Any] = {
    "summary": "The unit vectors of pictures and texts",
    "description": "`curl -F image=@one.jpg -F image=@two.jpg …/v1/embed`",
    "responses": {
        200: response(
            "Pictures first, then texts, each in the order sent.",
            one_object(
                {
                    "model_id": TEXT,
                    "dim": INTEGER,
                    "embeddings": array(one_object({"kind": TEXT, "vector": array(NUMBER)})),
                }
            ),
            example={
                "model_id": "6d1c0c0be3f0a7b1f3a2c9d4",
                "dim": 3,
                "embeddings": [{"kind": "text", "vector": [0.6, 0.0, 0.8]}],
            },
        ),
        **_SENDING,
    },
    "openapi_extra": {
        "requestBody": _body(
            {
                "type": "object",
                "properties": {"text": array(TEXT)},
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {"image": array(_FILE), "text": array(TEXT)},
                "additionalProperties": False,
            },
            {"text": ["a dog", "a cat"]},
            {"image": [_UPLOADED, _UPLOADED], "text": ["a dog"]},
        )
    },
}
IMAGE: dict[str, Any] = {
    "summary": "A picture of the gallery, as its file is",
    "responses": {
        200: _JPEG,
        304: {"description": "Not changed."},
        **_ASKING,
        **refusals(_ERROR, _NOT_THERE),
    },
}
THUMB: dict[str, Any] = {
    "summary": "The same as a small JPEG; size=large for a larger one",
    "responses": IMAGE["responses"],
}
_CHANGED = one_object({"id": TEXT, "index": TEXT})
_CHANGED_EXAMPLE = {"id": "added/shoe-18.jpg", "index": "1b2c3d4e5f60"}
ADD: dict[str, Any] = {
    "summary": "Add a picture to the gallery; needs --allow-changes",
    "description": "`curl -H 'Authorization: Bearer …' -F image=@shoe-18.jpg -F label=shoes "
    "…/v1/images`",
    "status_code": 201,
    "responses": {
        201: response("Found from now on.", _CHANGED, example=_CHANGED_EXAMPLE),
        **_SENDING,
    },
    "openapi_extra": {
        **_TOKEN,
        "requestBody": _body(
            None,
            {
                "type": "object",
                "properties": {
                    "image": _FILE,
                    "name": {**TEXT, "description": "For its id. Default: by content."},
                    "label": TEXT,
                    "attributes": {**TEXT, "description": "A JSON object of texts."},
                },
                "required": ["image"],
                "additionalProperties": False,
            },
            None,
            {
                "image": _UPLOADED,
                "name": "shoe-18",
                "label": "shoes",
                "attributes": '{"domain": "photo"}',
            },
        ),
    },
}
REMOVE: dict[str, Any] = {
    "summary": "Take a picture out of the gallery; needs --allow-changes",
    "responses": {
        200: response("No longer found.", _CHANGED, example=_CHANGED_EXAMPLE),
        **_SENDING,
        **refusals(_ERROR, _NOT_THERE),
    },
    "openapi_extra": _TOKEN,
}
RELOAD: dict[str, Any] = {
    "summary": "Take over the index that lies in the folder now; needs --allow-changes",
    "responses": {
        200: response(
            "Whether it was another one.",
            one_object({"changed": {"type": "boolean"}, "index": TEXT}),
            example={"changed": True, "index": "1b2c3d4e5f60"},
        ),
        **_SENDING,
    },
    "openapi_extra": _TOKEN,
}
HEALTH: dict[str, Any] = {
    "summary": "Whether the server is warm",
    "responses": {
        200: response(
            "It is.",
            one_object({"status": TEXT, "gallery": INTEGER, "index": TEXT, "model_id": TEXT}),
            example={"status": "ready", "gallery": 3781, "index": "0a1b", "model_id": "6d1c"},
        ),
        503: response(
            "It is not yet.", one_object({"status": TEXT, "done": INTEGER, "total": INTEGER})
        ),
        **_READING,
    },
}
METRICS: dict[str, Any] = {
    "summary": "Numbers for Prometheus",
    "responses": {
        200: {"description": "In its text form.", "content": {"text/plain": {"schema": TEXT}}},
        401: _UNAUTHORISED,
        429: response("Too many wrong tokens.", _ERROR),
        **_READING,
    },
}
