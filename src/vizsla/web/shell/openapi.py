"""Pieces of OpenAPI that the descriptions of every server are made of."""

from typing import Any

NUMBER: dict[str, Any] = {"type": "number"}
INTEGER: dict[str, Any] = {"type": "integer"}
TEXT: dict[str, Any] = {"type": "string"}
TIME: dict[str, Any] = {"type": "string", "format": "date-time"}


def nullable(kind: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [kind, {"type": "null"}]}


def array(of: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": of, **more}


def one_object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """With all of these properties."""
    return {"type": "object", "properties": properties, "required": list(properties), **more}


def response(
    description: str, schema: dict[str, Any], *, example: Any = None, **more: Any
) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": schema}
    if example is not None:
        content["example"] = example
    return {"description": description, "content": {"application/json": content}, **more}


def refusals(error: dict[str, Any], *statuses: tuple[int, str]) -> dict[int | str, dict[str, Any]]:
    """error: the schema of what a refusal says."""
    return {status: response(description, error) for status, description in statuses}


def header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": TEXT}
