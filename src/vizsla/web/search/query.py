"""What somebody asks → one unit vector. Knows a request's words and vectors; no gallery, no HTTP.

Everything that can be asked is linear in the gallery's vectors, so each search is one search for
one vector, whatever it was mixed from:

- Examples of one kind (pictures, or words) are added up; what the result should *not* be like is
  taken away with half the weight.
- Marks are relevance feedback by Rocchio's rule: the mean of the right results is added with 0.75,
  that of the wrong ones taken away with 0.15 (Rocchio 1971; the weights are those of Manning et
  al. 2008, §9.1).
- Pictures and words score on different scales: cosines between pictures spread far wider than
  those between words and pictures. So the scores of each kind are standardised apart, that is
  s → (s - mean) / std over the gallery, and then added with the weights. The mean moves no rank, so
  it is enough to divide each kind's vector by its std.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vizsla.errors import UsageError
from vizsla.output.submission_formats import kind_of

NOT_WEIGHT = 0.5
RIGHT_WEIGHT, WRONG_WEIGHT = 0.75, 0.15
MOST_EXAMPLES = 20  # of one sort
MOST_MARKS = 500
MOST_VALUES = 2000  # of all fields
LONGEST_TEXT = 1000  # characters
LONGEST_FILTER = 1000
LARGEST_WEIGHT = 10.0
DEFAULT_K = 24

LISTS = {
    "id": MOST_EXAMPLES,
    "not_id": MOST_EXAMPLES,
    "query": MOST_EXAMPLES,
    "not_query": MOST_EXAMPLES,
    "right": MOST_MARKS,
    "wrong": MOST_MARKS,
    "filter": MOST_EXAMPLES,
}  # field → how many values it may have
TEXTS = ("text", "not_text")
NUMBERS = {"image_weight": (0.0, LARGEST_WEIGHT), "text_weight": (0.0, LARGEST_WEIGHT)}
FIELDS = (*LISTS, *TEXTS, *NUMBERS, "k")


@dataclass(frozen=True)
class Asked:
    """id, not_id, right, wrong: ids of the gallery. query, not_query: hashes of uploads."""

    id: tuple[str, ...] = ()
    not_id: tuple[str, ...] = ()
    query: tuple[str, ...] = ()
    not_query: tuple[str, ...] = ()
    text: str = ""
    not_text: str = ""
    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    filter: tuple[str, ...] = ()
    image_weight: float = 1.0
    text_weight: float = 1.0
    k: int = DEFAULT_K

    @staticmethod
    def parse(fields: Mapping[str, Sequence[str]], *, most_k: int) -> "Asked":
        """From a form's or an address's fields; UsageError says in one sentence what is wrong."""
        unknown = [name for name in fields if name not in FIELDS]
        if not all(_is_utf8(value) for values in fields.values() for value in values):
            raise UsageError("a field holds half a character (a lone surrogate): send UTF-8")
        if unknown:
            raise UsageError(f"{unknown[0][:60]!r} is no field: expected {', '.join(FIELDS)}")
        known: dict[str, Any] = {}
        for name, most in LISTS.items():
            values = tuple(dict.fromkeys(v for v in fields.get(name, ()) if v))
            if len(values) > most:
                raise UsageError(f"{name} has {len(values)} values: {most} at most")
            known[name] = values
        for name in TEXTS:
            known[name] = _text(name, fields.get(name, ()))
        for name, (low, high) in NUMBERS.items():
            known[name] = _number(name, fields.get(name, ()), low, high, 1.0)
        if any(len(one) > LONGEST_FILTER for one in known["filter"]):
            raise UsageError(f"a condition of the filter has {LONGEST_FILTER} characters at most")
        k = _number("k", fields.get("k", ()), 1, most_k, min(DEFAULT_K, most_k))
        if k != int(k):
            raise UsageError(f"k={k}: choose a whole number from 1 to {most_k}")
        return Asked(**known, k=int(k))

    @property
    def has_images(self) -> bool:
        return bool(self.id or self.not_id or self.query or self.not_query)

    @property
    def is_empty(self) -> bool:
        """Nothing to search with."""
        return not (self.has_images or self.text or self.not_text or self.right or self.wrong)

    def pairs(self) -> list[tuple[str, str]]:
        """The fields as an address has them; `parse` gives the same Asked back."""
        found: list[tuple[str, str]] = []
        for name in FIELDS:
            value = getattr(self, name)
            if isinstance(value, tuple):
                found += [(name, one) for one in value]
            elif value != getattr(DEFAULTS, name):
                found.append((name, f"{value:g}" if isinstance(value, float) else str(value)))
        return found


DEFAULTS = Asked()


def fields_of_json(content: Any) -> dict[str, list[str]]:
    """{"text": "a dog", "k": 5, "id": ["a.jpg"]} → what `Asked.parse` takes."""
    if not isinstance(content, dict):
        raise UsageError(f'expected an object such as {{"text": …}}, got {kind_of(content)}')
    fields = {}
    for name, value in content.items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(
            isinstance(one, str | int | float) and not isinstance(one, bool) for one in values
        ):
            raise UsageError(f"{name[:60]!r} holds {kind_of(value)}: expected a text or number")
        fields[name] = [str(one) for one in values]
    if sum(map(len, fields.values())) > MOST_VALUES:
        raise UsageError(f"more than {MOST_VALUES} values in one request")
    return fields


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(name: str, values: Sequence[str]) -> str:
    text = " ".join(" ".join(values).split())
    if len(text) > LONGEST_TEXT:
        raise UsageError(f"{name} has {len(text)} characters: {LONGEST_TEXT} at most")
    if not text.isprintable():
        raise UsageError(f"{name} holds characters that cannot be shown")
    return text


def _number(name: str, values: Sequence[str], low: float, high: float, default: float) -> float:
    given = [value for value in values if value.strip()]
    if not given:
        return default
    try:
        number = float(given[-1])
    except ValueError:
        number = float("nan")
    if not low <= number <= high:  # also nan
        raise UsageError(f"{name}={given[-1][:40]!r}: choose a number from {low:g} to {high:g}")
    return number


# ── vectors ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class Examples:
    """Unit vectors (D,) of what was asked."""

    images: list[np.ndarray] = field(default_factory=list)
    not_images: list[np.ndarray] = field(default_factory=list)
    texts: list[np.ndarray] = field(default_factory=list)
    not_texts: list[np.ndarray] = field(default_factory=list)
    right: list[np.ndarray] = field(default_factory=list)
    wrong: list[np.ndarray] = field(default_factory=list)


def query_vector(
    examples: Examples,
    spread: Callable[[np.ndarray], float],
    *,
    image_weight: float = 1.0,
    text_weight: float = 1.0,
) -> np.ndarray:
    """(D,) float32 of length 1: its nearest neighbours are the answer.

    spread: the standard deviation of a vector's scores over the gallery. UsageError where the
    examples cancel each other out.
    """
    wanted = [*examples.images, *examples.texts, *examples.right]
    if len(wanted) == 1 and not (examples.not_images or examples.not_texts or examples.wrong):
        return np.asarray(wanted[0], np.float32)  # to the last bit
    marks = RIGHT_WEIGHT * _mean(examples.right) - WRONG_WEIGHT * _mean(examples.wrong)
    images = _mean(examples.images) - NOT_WEIGHT * _mean(examples.not_images) + marks
    texts = _mean(examples.texts) - NOT_WEIGHT * _mean(examples.not_texts)
    parts = []
    if np.ndim(images):
        strength = _strength(
            examples.images or examples.right, examples.not_images, NOT_WEIGHT, WRONG_WEIGHT
        )
        parts.append((images, image_weight * strength))
    if np.ndim(texts):
        strength = _strength(examples.texts, examples.not_texts, NOT_WEIGHT, 0.0)
        parts.append((texts, text_weight * strength))
    if len(parts) == 1:
        return _unit(parts[0][0])
    return _unit(sum(weight / (spread(part) or 1.0) * part for part, weight in parts))


def _mean(vectors: Sequence[np.ndarray]) -> Any:
    """0.0 where there are none."""
    return np.mean(np.stack(vectors).astype(np.float64), axis=0) if vectors else 0.0


def _strength(
    wanted: Sequence[Any], unwanted: Sequence[Any], against: float, else_: float
) -> float:
    """Standardising would blow up what is only said against something: that keeps its weight."""
    return 1.0 if wanted else against if unwanted else else_


def _unit(vector: Any) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length < 1e-6:
        raise UsageError("the examples cancel each other out: take one away, or weigh one more")
    return np.asarray(vector / length, np.float32)
