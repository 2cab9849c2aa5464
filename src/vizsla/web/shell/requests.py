"""Requests → fields of their address and body → Pydantic models, or an error message."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request

from vizsla.errors import DataError, UsageError
from vizsla.output.submission_formats import kind_of, parse_json
from vizsla.web.shell.http import Refused

MAX_FIELDS, MAX_FILES, MAX_FIELD_BYTES = 2000, 20, 64 * 1024  # of a form
MAX_BYTES_WITHOUT_FILES = 2**20  # of a body that is read as text
FORM, FORM_WITHOUT_FILES = "multipart/form-data", "application/x-www-form-urlencoded"
Model = TypeVar("Model", bound=BaseModel)


async def read_fields(request: Request) -> dict[str, Any]:
    """The fields of the address and of the body, {name: values}; a file's value is its bytes.

    The body may be a form, a JSON object, or an image, which is then the field `image`. Raises
    Refused if it is none of these, and UsageError if the JSON is not an object.
    """
    fields: dict[str, Any] = dict(grouped(request.query_params.multi_items()))
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == FORM:
        return {**fields, **await _read_form(request)}
    body = await request.body()
    if content_type in (FORM_WITHOUT_FILES, "application/json"):
        limit = MAX_BYTES_WITHOUT_FILES
        if len(body) > limit:
            raise Refused(413, f"a body without files has a limit of {limit} bytes")
    if content_type == FORM_WITHOUT_FILES:
        return {**fields, **await _read_form(request)}
    if content_type == "application/json":
        try:
            content = parse_json(body)
        except DataError as error:
            raise Refused(400, str(error)) from error
        if not isinstance(content, dict):
            raise UsageError(f'expected an object such as {{"text": …}}, got {kind_of(content)}')
        return {**fields, **content}
    if content_type.startswith("image/") or content_type == "application/octet-stream":
        return {**fields, "image": [body]}
    if body:
        expected = f"image/…, {FORM}, {FORM_WITHOUT_FILES} or application/json"
        raise Refused(415, f"expected a body of the content type {expected}")
    return fields


async def _read_form(request: Request) -> dict[str, list[Any]]:
    limits = {
        "max_files": MAX_FILES,
        "max_fields": MAX_FIELDS,
        "max_part_size": MAX_FIELD_BYTES,
    }
    try:
        async with request.form(**limits) as form:
            return grouped(
                [
                    (name, await value.read() if isinstance(value, UploadFile) else value)
                    for name, value in form.multi_items()
                ]
            )
    except (Refused, ClientDisconnect):
        raise
    except Exception as error:  # a damaged body can make the parser raise anything
        reason = " ".join(str(getattr(error, "detail", "") or "it is damaged").split())[:200]
        raise Refused(400, f"the form cannot be read: {reason}") from error


def grouped(pairs: Iterable[tuple[str, Any]]) -> dict[str, list[Any]]:
    """{name: its values in order}."""
    fields: dict[str, list[Any]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


def validated(model: type[Model], fields: Mapping[str, Any]) -> Model:
    """The fields as a model; those that are empty count as left out.

    UsageError names the first field that does not fit, and says why.
    """
    try:
        return model.model_validate(
            {name: value for name, value in fields.items() if not is_empty(value)}
        )
    except ValidationError as error:
        raise UsageError(first_fault(error, model)) from None


def is_empty(value: Any) -> bool:
    """Whether a field's value, or each of its values, is null or an empty text."""
    values = value if isinstance(value, list) else [value]
    return all(one is None or one == "" for one in values)


def first_fault(error: ValidationError, model: type[BaseModel]) -> str:
    """One sentence: the first field that does not fit, what was sent, and what was expected."""
    fault = error.errors(include_url=False)[0]
    name = str(fault["loc"][0])[:60] if fault["loc"] else ""
    if fault["type"] == "extra_forbidden":
        return f"{name!r} is not a field: expected {', '.join(model.model_fields)}"
    if fault["type"] == "missing":
        return f"the field {name} is missing"
    if fault["type"] == "value_error":
        reason = str(fault["ctx"]["error"])
    else:
        reason = fault["msg"][:1].lower() + fault["msg"][1:]
    return f"{name}: {reason}" if name and not reason.startswith(name) else reason
