"""Labelled embeddings → whether an item's pictures are joined by mean vector or by highest score.

Labelled training images are split by items: those of one half are queries, the others the gallery.
If each item is a class of its own, half of the pictures of each item are its query. The test part
is never used.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError
from vizsla.score.evaluate import evaluate
from vizsla.score.truth import Truth
from vizsla.search import exact
from vizsla.search.items import JOINS, items_of, joined_rankings, joined_vectors

log = logging.getLogger("vizsla.choose")

DRAWS = 5
KEYS = ("map", "top_k_accuracy@1", "contest_points")
MOST = 2_000  # images of the training part: more would only take longer


@dataclass(frozen=True)
class JoinChoice:
    """join: the one that was chosen. values: join → what was maximised. items: query items."""

    join: str
    values: dict[str, float]
    items: int

    def line(self) -> str:
        """For a terminal and the log."""
        values = ", ".join(f"{join} {value:.3f}" for join, value in self.values.items())
        return f"query pictures are joined by {self.join} (of {self.items} items: {values})"


def choose_query_join(
    training: Embeddings, column: str, *, optimise: str = "mean", seed: int = 0
) -> JoinChoice:
    """The join with the higher value; the mean of vectors unless max is better.

    optimise: what is compared, see OPTIMISED. DataError: no labels, no such column, or no item with
    several pictures.
    """
    rng = np.random.default_rng((seed, 71))
    if column not in training.attributes.column_names or training.labels is None:
        raise DataError(
            f"--query-join auto: the embeddings of --learn-on need a label and the column {column}"
        )
    if len(training) > MOST:
        training = training.subset(np.sort(rng.choice(len(training), MOST, replace=False)))
    values = dict(zip(training.ids, training.attributes[column].to_pylist(), strict=True))
    items = list(items_of(training.ids, values, column).values())
    if max(map(len, items)) < 2:
        raise DataError(f"--query-join auto: no item ({column}) has several training images")
    found: dict[str, list[float]] = {join: [] for join in JOINS}
    n_items = 0
    for _ in range(DRAWS):
        queries, gallery = _drawn(items, training.labels or [], rng)
        sides = training.subset(queries), training.subset(gallery)
        for join, value in _values(*sides, values, column, optimise).items():
            found[join].append(value)
        n_items += len({values.get(name) or name for name in sides[0].ids})
    means = {join: float(np.mean(each)) for join, each in found.items()}
    choice = JoinChoice(max(means, key=lambda join: means[join]), means, n_items)
    log.info("%s", choice.line())
    return choice


def _drawn(
    items: list[list[int]], labels: list[str | None], rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Positions of query pictures and of gallery images."""
    order = [items[i] for i in rng.permutation(len(items))]
    if 2 * len(set(labels)) <= len(items):  # two items of a class or more
        queries = [i for item in order[: len(order) // 2] for i in item]
    else:
        mixed = [rng.permutation(item).tolist() for item in order if len(item) > 1]
        queries = [i for item in mixed for i in item[: len(item) // 2]]
    taken = set(queries)
    return sorted(queries), [i for i in range(len(labels)) if i not in taken]


def _values(
    queries: Embeddings, gallery: Embeddings, values: dict[str, Any], column: str, optimise: str
) -> dict[str, float]:
    """Join → the mean of what is optimised over the items, 0…1."""
    items = items_of(queries.ids, values, column)
    joint = joined_vectors(queries, items)
    rankings = {
        "mean": exact.rank(joint, gallery, len(gallery)),
        "max": joined_rankings(exact.rank(queries, gallery, len(gallery)), items, "max"),
    }
    truth = Truth.from_sets(joint, gallery)
    found = {}
    for join, ranking in rankings.items():
        scores = evaluate(ranking, truth, ks=(1,))
        ap, top1, points = (scores.mean(key) or 0.0 for key in KEYS)
        of = {"map": ap, "top-1": top1, "points": points / 1000}
        found[join] = of.get(optimise, (ap + top1) / 2)
    return found
