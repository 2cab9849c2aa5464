"""The OpenAPI descriptions of both servers."""

from collections.abc import Iterator
from typing import Any

import pytest


def references(part: Any) -> Iterator[str]:
    """All `$ref` below a part of a description."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from references(each)


def is_known(reference: str, described: dict[str, Any]) -> bool:
    """Whether a reference of the form #/a/b leads to a part of the description."""
    start, *keys = reference.split("/")
    found: Any = described if start == "#" else None
    for key in keys:
        found = found.get(key.replace("~1", "/").replace("~0", "~")) if found else None
    return found is not None


@pytest.mark.parametrize("server", ["contest", "served"])
def test_every_reference_leads_to_a_schema(server: str, request: pytest.FixtureRequest) -> None:
    """A nested model in a request body would refer to `$defs`, which only its own schema has."""
    described = request.getfixturevalue(server).get("/openapi.json").json()
    operations = [each for path in described["paths"].values() for each in path.values()]
    bodies = [each["requestBody"]["content"] for each in operations if "requestBody" in each]
    schemas = [kind["schema"] for body in bodies for kind in body.values()]
    assert schemas and list(references(operations))
    assert [each for each in references(described) if not is_known(each, described)] == []


def test_errors_of_the_judge_are_described_as_json_also_where_the_answer_is_a_table(
    contest: Any,
) -> None:
    described = contest.get("/openapi.json").json()
    operations = [each for path in described["paths"].values() for each in path.values()]
    kinds = {
        kind
        for each in operations
        for status, answer in each["responses"].items() if status[0] in "45"
        for kind in answer.get("content", {})
    }  # fmt: skip
    assert kinds == {"application/json"}
