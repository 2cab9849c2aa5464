"""The search server's API in Python. Knows HTTP and JSON; loads no model."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np

from vizsla.errors import DataError, UsageError, VizslaError


@dataclass(frozen=True)
class Hit:
    """One result of a search. probability, accepted: None unless the server has --accept.

    With group_by: how many images the group has; with per_group also the best of them, as dicts
    with id and score. box: of a gallery with tiles, left, top, width and height of the part that
    was found, as fractions of the image.
    """

    id: str
    score: float
    label: Any
    attributes: dict[str, Any]
    probability: float | None = None
    accepted: bool | None = None
    group_size: int | None = None
    images: Sequence[Mapping[str, Any]] = ()
    box: Sequence[float] | None = None


class SearchClient:
    """`SearchClient("http://127.0.0.1:8000").search("photo.jpg", k=5)` → the best Hits first.

    DataError says what the server refuses, and why.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)

    def search(
        self,
        image: str | Path | bytes | Sequence[str | Path | bytes] | None = None,
        *,
        text: str = "",
        id: str | Sequence[str] = (),
        k: int = 10,
        filter: str | Sequence[str] = (),
        **more: Any,
    ) -> list[Hit]:
        """image: a file or its bytes, or several. more: the API's other fields, such as not_id,
        group_by or query_join.
        """
        fields: dict[str, Any] = {"text": text, "id": id, "k": str(k), "filter": filter, **more}
        given = [image] if isinstance(image, str | Path | bytes) else image or []
        files = [("image", ("image", _bytes(one))) for one in given]
        answer = self._post("/v1/search", fields, files)
        return [
            Hit(*(one.get(field.name) for field in dataclasses.fields(Hit)))
            for one in answer["results"]
        ]

    def embed(
        self, images: Sequence[str | Path | bytes] = (), texts: Sequence[str] = ()
    ) -> np.ndarray:
        """(n, D) float32 unit vectors: of the images, then of the texts."""
        files = [("image", ("image", _bytes(one))) for one in images]
        answer = self._post("/v1/embed", {"text": list(texts)}, files)
        return np.array([one["vector"] for one in answer["embeddings"]], np.float32)

    def add(
        self,
        image: str | Path | bytes,
        *,
        name: str = "",
        label: str = "",
        attributes: Mapping[str, str] | None = None,
    ) -> str:
        """The new image's id. The server needs --allow-changes and the client its token."""
        if not name and isinstance(image, str | Path):
            name = Path(image).name
        fields = {"name": name, "label": label}
        if attributes:
            fields["attributes"] = json.dumps(dict(attributes))
        added = self._post("/v1/images", fields, [("image", ("image", _bytes(image)))])
        return str(added["id"])

    def remove(self, id: str) -> None:
        """Removes an image. The server needs --allow-changes and the client its token."""
        _checked(self._http.delete(f"/v1/images/{quote(id)}"))

    def image(self, id: str) -> bytes:
        """The image's file."""
        return _checked(self._http.get(f"/v1/images/{quote(id)}")).content

    def is_ready(self) -> bool:
        """Whether the server answers searches."""
        return self._http.get("/healthz").status_code == 200

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> "SearchClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _post(self, path: str, fields: Mapping[str, Any], files: list[Any]) -> Any:
        given = {name: value for name, value in fields.items() if value not in ("", None)}
        if files:
            return _checked(self._http.post(path, data=given, files=files)).json()
        return _checked(self._http.post(path, json=given)).json()


def _bytes(image: str | Path | bytes) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    try:
        message = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {response.status_code}"
    if response.status_code in (401, 403):
        raise UsageError(message)
    raise (DataError if response.status_code < 500 else VizslaError)(message)
