"""What the API takes and answers, as types. FastAPI's OpenAPI description comes from them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    Strict,
    StringConstraints,
    model_validator,
)

from vizsla.data.query_box import QueryBox
from vizsla.data.tiles import Tiles
from vizsla.errors import UsageError
from vizsla.web.shell.requests import validated

MAX_EXAMPLES = 20  # of one kind
MAX_MARKS = 500
MAX_IMAGES = 16  # in one search
MAX_EMBEDDED = 20  # images and texts in one request
MAX_CHARACTERS = 1000  # of a text or a filter condition
MAX_WEIGHT = 10.0
MAX_PER_GROUP = 20
DEFAULT_K = 24


# ── fields: from JSON, a form or an address ──────────────────────────────────────────────────────


def _as_list(value: Any) -> list[Any]:
    """A single value stands for a list of one; empty values are left out."""
    values = value if isinstance(value, list | tuple) else [value]
    return [one for one in values if one is not None and one != ""]


def _last_value(value: Any) -> Any:
    """The last value of a field that a form or an address repeats."""
    values = value if isinstance(value, list) else [value]
    if isinstance(values[-1], bool):
        raise ValueError("expected a number or a text, got true or false")
    return values[-1]


def _joined(value: Any) -> Any:
    """The texts of a repeated field as one, with single spaces."""
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) for one in values):
        return value
    return " ".join(" ".join(values).split())


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("the text holds characters that cannot be shown")
    return text


def _four_numbers(value: Any) -> Any:
    """A box as text, which JSON may also give as [x, y, w, h]."""
    if isinstance(value, list) and all(isinstance(one, int | float) for one in value):
        return ",".join(map(str, value))
    return _last_value(value)


def _box(text: str) -> str:
    """A box in its usual form. ValueError: it is no box."""
    try:
        found = QueryBox.of(text.strip() or None)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return "" if found is None else str(found)


def _grids(text: str) -> str:
    """Grids of tiles in their usual form. ValueError: they are none, or too many for one search."""
    try:
        found = Tiles.of_query(text.strip() or None)
    except UsageError as error:
        raise ValueError(str(error)) from error
    if found is not None and len(found) > MAX_IMAGES:
        raise ValueError(f"{found} are {len(found)} parts: choose up to {MAX_IMAGES}")
    return "" if found is None else str(found)


def _only_file(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if len(value) != 1:
        raise ValueError(f"expected one file, got {len(value)}")
    return value[0]


def _without_duplicates(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


Examples = Annotated[
    tuple[str, ...],
    Field(max_length=MAX_EXAMPLES),
    BeforeValidator(_as_list),
    AfterValidator(_without_duplicates),
]
Marks = Annotated[
    tuple[str, ...],
    Field(max_length=MAX_MARKS),
    BeforeValidator(_as_list),
    AfterValidator(_without_duplicates),
]
Conditions = Annotated[
    tuple[Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)], ...],
    Field(max_length=MAX_EXAMPLES),
    BeforeValidator(_as_list),
    AfterValidator(_without_duplicates),
]
Text = Annotated[
    str, Field(max_length=MAX_CHARACTERS), BeforeValidator(_joined), AfterValidator(_printable)
]
NonEmptyText = Annotated[
    str,
    Field(min_length=1, max_length=MAX_CHARACTERS),
    BeforeValidator(_joined),
    AfterValidator(_printable),
]
Texts = Annotated[
    tuple[NonEmptyText, ...],
    Field(max_length=MAX_EMBEDDED),
    BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
]
Weight = Annotated[float, Field(ge=0, le=MAX_WEIGHT), BeforeValidator(_last_value)]
Box = Annotated[
    str, Field(max_length=MAX_CHARACTERS), BeforeValidator(_four_numbers), AfterValidator(_box)
]
Grids = Annotated[
    str, Field(max_length=MAX_CHARACTERS), BeforeValidator(_last_value), AfterValidator(_grids)
]
SingleText = Annotated[str, BeforeValidator(_last_value)]
Image = Annotated[bytes, Strict()]


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


class SearchRequest(BaseModel):
    """What to search for: examples from the gallery, images sent before, words, or a mix."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        json_schema_extra={"example": {"text": "a red shoe", "k": 5, "filter": ["domain=photo"]}},
    )

    id: Examples = Field(default=(), description="Ids of the gallery: like these.")
    not_id: Examples = Field(default=(), description="Ids of the gallery: not like these.")
    query: Examples = Field(
        default=(),
        description="Images sent before: like these. By the names that `queries` gave.",
    )
    not_query: Examples = Field(default=(), description="Images sent before: not like these.")
    box: Box = Field(
        default="",
        description="The part of the one image searched with that counts: left,top,width,height "
        "in pixels, or as fractions of its sides.",
    )
    query_tiles: Grids = Field(
        default="",
        description="Search with parts of the one image too, such as 1+2x2: the mean, over these, "
        "of their best match in an image.",
    )
    right: Marks = Field(default=(), description="Ids of results that were right.")
    wrong: Marks = Field(default=(), description="Ids of results that were wrong.")
    filter: Conditions = Field(
        default=(), description="Conditions that must all hold, such as label=shoe or price<10."
    )
    text: Text = Field(default="", description="Words, for a model that reads text.")
    not_text: Text = Field(default="", description="Words that results should not be like.")
    image_weight: Weight = Field(default=1.0, description="Of images, when mixed with words.")
    text_weight: Weight = Field(default=1.0, description="Of words, when mixed with images.")
    query_join: Annotated[Literal["mean", "max"], BeforeValidator(_last_value)] = Field(
        default="mean",
        description="Of several images: what all are like (mean), or what any of them is like, by "
        "the highest score (max).",
    )
    group_by: SingleText = Field(
        default="",
        description="An attribute, such as product: one result for each of its values, by the "
        "best image.",
    )
    per_group: Annotated[int, Field(ge=1, le=MAX_PER_GROUP), BeforeValidator(_last_value)] = Field(
        default=1, description="How many images of each group, with group_by."
    )
    group_score: Annotated[Literal["best", "best-two"], BeforeValidator(_last_value)] = Field(
        default="best", description="The score of a group: of its best image, or of two on average."
    )
    diverse: Annotated[float, Field(ge=0, le=1), BeforeValidator(_last_value)] = Field(
        default=1.0, description="Below 1: results that differ from each other, the more the lower."
    )
    k: Annotated[int, Field(ge=1), BeforeValidator(_last_value)] = Field(
        default=DEFAULT_K, description="How many results."
    )

    @classmethod
    def parse(cls, fields: Mapping[str, Any], *, max_k: int) -> Self:
        """From the fields of an address or a body; UsageError says in one sentence what is wrong.

        max_k: how many results the server gives at most.
        """
        request = validated(cls, fields)
        if request.k > max_k:
            if "k" in request.model_fields_set:
                raise UsageError(f"k={request.k}: choose a number from 1 to {max_k}")
            request = request.model_copy(update={"k": max_k})
        return request

    def with_changes(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return self.model_copy(update=changes)

    @property
    def part(self) -> QueryBox | None:
        """The part of the one image searched with that counts."""
        return QueryBox.of(self.box or None)

    @property
    def has_images(self) -> bool:
        """Whether images are among the examples."""
        return bool(self.id or self.not_id or self.query or self.not_query)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to search with."""
        return not (self.has_images or self.text or self.not_text or self.right or self.wrong)

    @property
    def is_decidable(self) -> bool:
        """Whether a calibration applies: it is searched by whole images alone, several by their
        mean, and each result has the score of one image."""
        by_images = not self._has_more_than_images and self.query_join == "mean"
        return (
            by_images
            and not (self.box or self.query_tiles)
            and self.group_score == "best"
            and self.diverse == 1
        )

    @property
    def _has_more_than_images(self) -> bool:
        """Whether there are words, marks, or images that results should not be like."""
        others = self.not_id or self.not_query or self.right or self.wrong
        return bool(others or self.text or self.not_text)

    @property
    def vectors_each(self) -> int:
        """How many vectors the image searched with gets: one for each of its tiles."""
        tiles = Tiles.of_query(self.query_tiles)
        return 1 if tiles is None else len(tiles)

    def is_one_image(self, uploads: int = 0) -> bool:
        """Whether it is searched by one image and nothing else. uploads: those sent along."""
        return self.examples(uploads) == 1 and not self._has_more_than_images

    def examples(self, uploads: int = 0) -> int:
        """How many images results should be like; uploads: how many are sent along."""
        return uploads + len(self.query) + len(self.id)

    def pairs(self) -> list[tuple[str, str]]:
        """The fields as an address has them, without defaults; `parse` gives the same back."""
        pairs: list[tuple[str, str]] = []
        for name, field in SearchRequest.model_fields.items():
            value = getattr(self, name)
            if isinstance(value, tuple):
                pairs += [(name, one) for one in value]
            elif value != field.default:
                pairs.append((name, f"{value:g}" if isinstance(value, float) else str(value)))
        return pairs


class SearchForm(SearchRequest):
    """A search with images sent along."""

    image: Annotated[tuple[Image, ...], BeforeValidator(_as_list)] = Field(
        default=(), max_length=MAX_IMAGES, description="Images: like these."
    )


class EmbedRequest(BaseModel):
    """Texts to embed."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"text": ["a dog", "a cat"]}}
    )

    text: Texts = Field(default=(), description="For a model that reads text.")


class EmbedForm(EmbedRequest):
    """Images and texts to embed, 1 to 20 of them together."""

    image: Annotated[tuple[Image, ...], BeforeValidator(_as_list)] = Field(
        default=(), max_length=MAX_EMBEDDED, description="Pictures."
    )

    @model_validator(mode="after")
    def _count(self) -> Self:
        if not 1 <= len(self.image) + len(self.text) <= MAX_EMBEDDED:
            raise ValueError(f"send from 1 to {MAX_EMBEDDED} images and texts")
        return self


class AddForm(BaseModel):
    """An image to add to the gallery."""

    model_config = ConfigDict(extra="forbid")

    image: Annotated[Image, BeforeValidator(_only_file)] = Field(description="The image.")
    name: SingleText = Field(
        default="", description="For its id; by default made from its content."
    )
    label: SingleText = Field(default="", description="Its class.")
    attributes: Annotated[Json[dict[str, str]], BeforeValidator(_last_value)] = Field(
        default="{}",
        validate_default=True,
        description="A JSON object of texts, {attribute: value}.",
    )


# ── answers ──────────────────────────────────────────────────────────────────────────────────────

Value = str | int | float | bool | None


class GroupImage(BaseModel):
    """An image of a group that was found."""

    id: str
    score: float
    image: str
    thumb: str


class Result(BaseModel):
    """An image of the gallery that was found; with group_by, the best one of a group."""

    id: str
    score: float = Field(description="Cosine with what was searched for.")
    label: Value = Field(description="null if it is unknown.")
    attributes: dict[str, Value]
    probability: float | None = Field(
        None, description="That it shows the same; null without --accept, or if not searched by "
        "images alone.",
    )  # fmt: skip
    accepted: bool | None = Field(None, description="Whether the probability is high enough.")
    box: tuple[float, float, float, float] | None = Field(
        None, description="Of a gallery with tiles: left, top, width and height of the part that "
        "was found, as fractions of the image.",
    )  # fmt: skip
    image: str = Field(description="Address of the image, relative to that of the request.")
    thumb: str = Field(description="Address of a small JPEG of it, likewise relative.")
    group_size: int | None = Field(
        default=None, description="With group_by: how many images the group has."
    )
    images: list[GroupImage] = Field(
        default=[], description="With per_group above 1: the best images of the group."
    )


class SearchAnswer(BaseModel):
    """The results, best first, and which state of the index gave them."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "results": [
                    {
                        "id": "shoes/17.jpg",
                        "score": 0.8731,
                        "label": "shoes",
                        "attributes": {"domain": "photo"},
                        "probability": 0.97,
                        "accepted": True,
                        "image": "images/shoes/17.jpg",
                        "thumb": "images/shoes/17.jpg/thumb",
                    }
                ],
                "queries": ["5f2c9a7be0d14c3f8a6b1e2d3c4f5a6b"],
                "gallery": 3781,
                "index": "0a1b2c3d4e5f",
                "model_id": "6d1c0c0be3f0a7b1f3a2c9d4",
            }
        }
    )

    results: list[Result]
    queries: list[str] = Field(description="A name for each image sent along, for `query`.")
    gallery: int = Field(description="How many images the gallery holds.")
    index: str = Field(description="The state of the index that answered.")
    model_id: str
    hints: list[str] = Field(
        default=[], description="If nothing was found: conditions that no image meets, and the "
        "nearest values.",
    )  # fmt: skip


class Embedded(BaseModel):
    """The unit vector of one image or text."""

    kind: Literal["image", "text"]
    vector: list[float]


class EmbedAnswer(BaseModel):
    """Unit vectors: of the images, then of the texts, each in the order sent."""

    model_id: str
    dim: int
    embeddings: list[Embedded]


class ChangeAnswer(BaseModel):
    """An image that was added or removed, and the state of the index since then."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"id": "added/shoe-18.jpg", "index": "1b2c3d4e5f60"}}
    )

    id: str
    index: str


class ReloadAnswer(BaseModel):
    """Whether the folder had another state of the index, and which one is served now."""

    changed: bool
    index: str


class Ready(BaseModel):
    """The server answers searches."""

    status: Literal["ready"] = "ready"
    gallery: int
    index: str
    model_id: str


class NotReady(BaseModel):
    """The server does not answer searches yet, or no longer. done, total: images embedded."""

    status: str
    done: int
    total: int


class Error(BaseModel):
    """A refusal."""

    error: str = Field(examples=["k: input should be greater than or equal to 1"])
