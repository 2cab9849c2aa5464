"""A chain of refinements such as `dba(n=2)+aqe+kreciprocal`: read from text, applied → a Ranking.

Knows which step uses which of the other test images, since the rules of a contest may forbid it.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from vizsla.embed.embeddings import Embeddings, about_tiles
from vizsla.errors import DataError, UsageError
from vizsla.search import exact, refine
from vizsla.search.geometry import MODELS
from vizsla.search.knn_graph import Keeper, NeighbourGraph, Progress, kept_graph
from vizsla.search.late_interaction import max_similarities
from vizsla.search.ranking import Ranking, self_positions, without_self
from vizsla.search.verify import (
    FEATURES,
    BothFeatures,
    Pairs,
    features_of_both,
    reranked,
    same_thing,
)

NOTHING, GALLERY, QUERIES = "nothing", "gallery", "queries"  # each includes the ones before it
USES = {
    NOTHING: "no other test image",
    GALLERY: "other gallery images, no other query",
    QUERIES: "other gallery images and the other queries",
}
LEVELS = list(USES)

Value = int | float | bool | str
SharedPairs = dict[tuple[str, ...], dict[tuple[int, int], float]]  # see `Refiner`
# name → its options with their defaults. `dba` and `aqe` change vectors, the next three rank;
# those of AFTER re-rank the first results of the steps before them.
STEPS: dict[str, dict[str, Value]] = {
    "dba": {"n": 3, "alpha": 0.0},
    "aqe": {"n": 3, "alpha": 0.0},
    "kreciprocal": {"k1": 20, "k2": 6, "weight": 0.3, "together": True, "program": True},
    "diffusion": {"k": 20, "seeds": 5, "alpha": 0.9, "gamma": 3.0, "weight": 0.1},
    "balance": {"temperature": 0.05},
    "maxsim": {"n": 50, "weight": 0.5},
    "verify": {"n": 50, "features": "sift", "model": "similarity", "weight": 0.5},
    "keep": {"n": 10},
}
CHOICES = {"features": FEATURES, "model": tuple(MODELS)}  # of the options that are words
EXPAND, BALANCE, MAXSIM, VERIFY, KEEP = ("dba", "aqe"), "balance", "maxsim", "verify", "keep"
AFTER = (MAXSIM, VERIFY, KEEP)  # may follow the step that ranks, each once
OF_TILES = ("aqe", *AFTER)  # defined for tiles: they compare queries with gallery images only
KEEP_DEPTH = 1_000  # how deep the steps before it rank
KEPT = (1, 5, 10)  # contest points ask whether any of so many first images is right
_STEP = re.compile(r"\s*([a-zA-Z]+)\s*(?:\(([^()]*)\))?\s*")


@dataclass(frozen=True)
class Step:
    """One refinement. options: all that STEPS lists for it, in that order."""

    name: str
    options: tuple[tuple[str, Value], ...]

    @staticmethod
    def of(name: str, **options: Value) -> "Step":
        """The step of that name in STEPS, with its defaults for the options that are not given."""
        return Step(name, tuple({**STEPS[name], **options}.items()))

    def with_changes(self, **options: Value) -> "Step":
        """The same step with other values of some options."""
        return Step.of(self.name, **{**dict(self.options), **options})

    def __getitem__(self, option: str) -> Any:
        return dict(self.options)[option]

    def __str__(self) -> str:
        return f"{self.name}({','.join(f'{k}={_option_text(v)}' for k, v in self.options)})"

    @property
    def uses(self) -> str:
        """Which other test images it uses, one of LEVELS."""
        if self.name == KEEP or (self.name == VERIFY and self["features"] == "sift"):
            return NOTHING
        # the PCA of tokens is learned on the gallery
        together = self.name == BALANCE or (self.name == "kreciprocal" and self["together"])
        return QUERIES if together else GALLERY


@dataclass(frozen=True)
class Chain:
    """Steps, applied from left to right. Without any, the ranking is that by cosine."""

    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        return "+".join(map(str, self.steps)) or "none"

    @property
    def uses(self) -> str:
        """Which other test images it uses, one of LEVELS."""
        return max((step.uses for step in self.steps), key=LEVELS.index, default=NOTHING)

    def keeps(self, n: int) -> bool:
        """Whether the first n images, and so top-1 and contest points for n = 10, cannot change."""
        last = self.steps[-1] if self.steps else None
        return last is None or (last.name == KEEP and last["n"] >= n)

    @property
    def verify(self) -> Step | None:
        """The step that compares points, if there is one."""
        return next((step for step in self.steps if step.name == VERIFY), None)

    @property
    def compares_images(self) -> bool:
        """Whether a step compares parts of images, which takes long."""
        return any(step.name in (MAXSIM, VERIFY) for step in self.steps)

    @property
    def words(self) -> str:
        """`uses` in words."""
        return USES[self.uses]

    def record(self) -> dict[str, Any]:
        """For result files."""
        return {"chain": str(self), "uses": self.uses, "uses_in_words": self.words}


def parse_chain(text: str, *, uses: str = QUERIES) -> Chain:
    """Reads `none`, or steps joined by +, with options in brackets. UsageError: not understood.

    uses: which other test images it may use at most, one of LEVELS.
    """
    check_uses(uses)
    if text.strip() in ("", "none"):
        return Chain()
    steps = tuple(_parse_step(part, text) for part in text.split("+"))
    ranking = steps
    while ranking and ranking[-1].name in AFTER:
        ranking = ranking[:-1]
    for step in ranking[:-1]:
        if step.name not in EXPAND:
            raise UsageError(
                f"--refine {text!r}: {step.name} gives the final order, so it must be last; only "
                f"{' and '.join(EXPAND)} may come before it, and "
                f"{', '.join(name for name in AFTER if name != step.name)} after it"
            )
    after = [step.name for step in steps[len(ranking) :]]
    if steps[0].name == KEEP or len(after) > len(set(after)):
        raise UsageError(
            f"--refine {text!r}: {', '.join(AFTER)} come once each, and {KEEP} after another step"
        )
    chain = Chain(steps)
    if LEVELS.index(chain.uses) > LEVELS.index(uses):
        raise UsageError(
            f"--refine {text!r} uses {USES[chain.uses]}, but --refine-uses {uses} allows "
            f"{USES[uses]}"
            + (
                ": kreciprocal(together=false) asks about one query at a time"
                if uses == GALLERY and any(step.name == "kreciprocal" for step in steps)
                else ""
            )
        )
    return chain


def check_uses(uses: str) -> None:
    """UsageError unless it is one of LEVELS."""
    if uses not in LEVELS:
        raise UsageError(f"--refine-uses {uses}: choose one of {', '.join(LEVELS)}")


def _parse_step(part: str, text: str) -> Step:
    match = _STEP.fullmatch(part)
    if not match or match[1].lower() not in STEPS:
        raise UsageError(
            f"--refine {text!r}: {part.strip()!r} is not a step; write none, auto, or a chain such "
            f"as 'dba(n=2)+aqe+kreciprocal(k1=20,k2=6,weight=.3)' of {', '.join(STEPS)}"
        )
    name = match[1].lower()
    given: dict[str, Value] = {}
    for setting in filter(None, map(str.strip, (match[2] or "").split(","))):
        key, equals, value = (word.strip() for word in setting.partition("="))
        if not equals or key not in STEPS[name]:
            raise UsageError(
                f"--refine {text!r}: {name} has no option {setting!r}; there are "
                + ", ".join(f"{k}={_option_text(v)}" for k, v in STEPS[name].items())
            )
        given[key] = _value(value, key, STEPS[name][key], f"--refine {text!r}: {setting}")
    step = Step.of(name, **given)
    _check(step, text)
    return step


def _value(word: str, option: str, default: Value, what: str) -> Value:
    if isinstance(default, str):
        if word.lower() not in CHOICES[option]:
            raise UsageError(f"{what}: choose one of {', '.join(CHOICES[option])}")
        return word.lower()
    try:
        if isinstance(default, bool):
            return {"true": True, "yes": True, "false": False, "no": False}[word.lower()]
        return int(word) if isinstance(default, int) else float(word)
    except (ValueError, KeyError) as error:
        kind = "true or false" if isinstance(default, bool) else type(default).__name__
        raise UsageError(f"{what}: {word!r} is not {kind}") from error


def _check(step: Step, text: str) -> None:
    """UsageError, before any work is done, where an option is out of range."""
    options: dict[str, Any] = dict(step.options)
    least = {"n": 1, "k1": 1, "k2": 1, "k": 1, "seeds": 1}
    low = [f"{k}={v}" for k, v in options.items() if k in least and v < least[k]]
    weight = options.get("weight", 0.5)
    if step.name == "diffusion" and not 0 <= options["alpha"] < 1:
        low.append(f"alpha={options['alpha']} (from 0 to below 1)")
    elif not np.isfinite(options.get("alpha", 0.0)) or options.get("alpha", 0.0) < 0:
        low.append(f"alpha={options['alpha']} (0 or more)")
    if not 0 <= weight <= 1 or (step.name in ("diffusion", MAXSIM, VERIFY) and weight == 0):
        low.append(f"weight={weight} (from 0 to 1; of diffusion, maxsim and verify above 0)")
    if not 0 < options.get("temperature", 1.0) < np.inf:
        low.append(f"temperature={options['temperature']} (above 0)")
    if not 0 <= options.get("gamma", 1.0) < np.inf:
        low.append(f"gamma={options['gamma']} (0 or more)")
    if low:
        raise UsageError(f"--refine {text!r}: {step.name} cannot have {', '.join(low)}")


def _option_text(value: Value) -> str:
    if isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _levels(n: int) -> list[int]:
    """The numbers of first images that `keep(n)` keeps together: those of KEPT below n, and n."""
    return [*(k for k in KEPT if k < n), n]


# ── applying ─────────────────────────────────────────────────────────────────────────────────────


def rank_refined(
    queries: Embeddings,
    gallery: Embeddings,
    chain: Chain,
    k: int | None = None,
    *,
    same_set: bool = False,
    device: str = "cpu",
    graphs: Keeper | None = None,
    features: BothFeatures | None = None,
    progress: Progress | None = None,
) -> Ranking:
    """The ranking by a chain, with the scores of its last step; see `exact.rank` for the rest.

    graphs: where the gallery's neighbour graphs are kept for later calls. features: the local
    features that `verify` compares; by default made of the images, and not kept.
    """
    if not chain.steps:
        return exact.rank(queries, gallery, k, same_set=same_set, device=device)
    exact.require_comparable(queries.model_id, gallery.model_id, queries.dim, gallery.dim)
    T = len(gallery.tiles) if gallery.tiles else 1
    if T > 1:
        require_defined_for_tiles(chain)
    G = len(gallery)
    available = G - same_set
    k = min(exact.default_depth(G), available) if k is None else k
    exact.check_k(k, available)
    self_at = self_positions(queries.ids, gallery.ids) if same_set else None
    if self_at is not None and (self_at < 0).any():
        missing = np.flatnonzero(self_at < 0)
        raise DataError(
            f"--same-set, but {len(missing)} queries ({queries.ids[missing[0]]}, …) are not in the "
            "gallery: leave --same-set out, or give one set twice"
        )
    refiner = Refiner(
        queries.vectors,
        gallery.all_vectors,
        vectors_each=T,
        self_at=self_at,
        device=device,
        graphs=graphs,
        features=features or features_of_both(queries, gallery),
        progress=progress,
    )
    positions, scores = refiner.top_k(chain, k + same_set)
    if self_at is not None:
        positions, scores = without_self(positions, scores, self_at, k)
    origin = {
        "model_id": gallery.model_id, "kind": "exact", "depth": k, "same_set": same_set,
        "refine": chain.record(), **about_tiles(gallery.tiles),
    }  # fmt: skip
    return Ranking(
        queries.ids, gallery.ids, positions, scores, G, origin,
        query_root=queries.root, gallery_root=gallery.root, tiles=gallery.tiles,
        best_tile=None if T == 1 else refiner.best_tiles(positions),
    )  # fmt: skip


def require_defined_for_tiles(chain: Chain) -> None:
    """UsageError if a step compares images of the gallery with each other: it is defined for one
    vector of each image."""
    if refused := [step.name for step in chain.steps if step.name not in OF_TILES]:
        raise UsageError(
            f"--refine {chain} with --tiles: {refused[0]} compares gallery images with each other, "
            "which is defined for one vector of each image. With tiles choose "
            f"{', '.join(OF_TILES)}; or leave --tiles out"
        )


class Refiner:
    """Ranks the same queries (Q, D) and gallery (G, D) by one chain after another.

    What chains have in common (neighbour graphs, augmented galleries) is computed once.
    vectors_each: T, where the gallery is (G·T, D) of the tiles of an image. self_at: (Q,) each
    query's gallery position, where both are one set. features: for `verify`. shared_pairs: what is
    known of pairs of images in several draws of the same, by name of the step, features and model;
    numbers: of the queries and gallery images there.
    """

    def __init__(
        self,
        queries: np.ndarray,
        gallery: np.ndarray,
        *,
        vectors_each: int = 1,
        self_at: np.ndarray | None = None,
        device: str = "cpu",
        graphs: Keeper | None = None,
        features: BothFeatures | None = None,
        shared_pairs: SharedPairs | None = None,
        numbers: tuple[np.ndarray, np.ndarray] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.vectors_each, self.size = vectors_each, len(gallery) // vectors_each
        self.self_at, self.device, self.graphs, self.progress = self_at, device, graphs, progress
        self.features, self.numbers = features, numbers
        self.shared_pairs = {} if shared_pairs is None else shared_pairs
        self.pairs: dict[tuple[str, ...], Pairs] = {}  # of a step's name, features and model
        self._vectors: dict[tuple[Step, ...], tuple[np.ndarray, np.ndarray]] = {
            (): (queries, gallery)
        }
        self._graphs: dict[tuple[Step, ...], NeighbourGraph] = {}
        self._around: tuple[Any, refine.Neighbourhoods] | None = None

    def top_k(self, chain: Chain, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions (Q, k) and scores (Q, k) by the chain, best first."""
        last = chain.steps[-1] if chain.steps else None
        if last is not None and last.name == KEEP:
            depth = min(max(k, KEEP_DEPTH), self.size)  # the same order at any k
            found = self.top_k(Chain(chain.steps[:-1]), depth)
            first = self._plain(last["n"])
            positions, scores = refine.with_first_kept(*found, first, _levels(last["n"]))
            return positions[:, :k], scores[:, :k]
        if last is None or last.name in EXPAND:
            return self._by_cosine(chain.steps, k)
        before = chain.steps[:-1]
        if last.name in (MAXSIM, VERIFY):
            return self._reranked(Chain(before), last, k)
        queries, gallery = self.vectors(before)
        options: dict[str, Any] = dict(last.options)
        if last.name == "kreciprocal":
            weight = options.pop("weight")
            return refine.by_neighbourhoods(
                self._neighbourhoods(before, options), queries, gallery,
                weight=weight, depth=k, device=self.device,
            )  # fmt: skip
        if last.name == BALANCE:
            return refine.balanced(
                queries, gallery, **options, self_at=self.self_at, depth=k, device=self.device
            )
        return refine.diffused(
            queries, gallery, self.graph(before, options["k"]),
            **options, self_at=self.self_at, depth=k, device=self.device,
        )  # fmt: skip

    def _by_cosine(self, steps: tuple[Step, ...], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions (Q, k) and scores of the nearest images after these steps, by the best tile."""
        queries, gallery = self.vectors(steps)
        T = self.vectors_each
        positions, scores = exact.top_k_of_tiles(queries, gallery, T, k, device=self.device)
        return positions // T, scores

    def best_tiles(self, positions: np.ndarray) -> np.ndarray:
        """(Q, K) int8 the tile of each of these images (Q, K) that is most like the query."""
        queries, gallery = self.vectors(())
        T = self.vectors_each
        every, _ = exact.top_k_of_tiles(queries, gallery, T, self.size, device=self.device)
        tiles = np.empty(every.shape, np.int8)
        np.put_along_axis(tiles, every // T, (every % T).astype(np.int8), axis=1)
        found = np.take_along_axis(tiles, np.maximum(positions, 0), axis=1)
        return np.where(positions >= 0, found, -1).astype(np.int8)

    def _plain(self, n: int) -> np.ndarray:
        """(Q, n) positions by cosine alone; the query's own image is not among them."""
        own = self.self_at is not None
        found = self._by_cosine((), min(n + own, self.size))
        return without_self(*found, self.self_at, n)[0] if self.self_at is not None else found[0]

    def _reranked(self, before: Chain, step: Step, k: int) -> tuple[np.ndarray, np.ndarray]:
        n = min(step["n"] + (self.self_at is not None), self.size)
        kind = "tokens" if step.name == MAXSIM else step["features"]
        key = (step.name, kind, "" if step.name == MAXSIM else step["model"])
        if key not in self.pairs:
            if self.features is None:
                raise DataError(f"{step.name} compares images: it cannot re-rank vectors alone")
            compare = max_similarities if step.name == MAXSIM else same_thing(step["model"])
            known = self.shared_pairs.setdefault(key, {})
            self.pairs[key] = Pairs(*self.features(kind), compare, known, self.numbers)
        ranked = self.top_k(before, max(k, n))
        positions, scores = reranked(
            *ranked, self.pairs[key], n=n, weight=step["weight"], progress=self.progress
        )
        return positions[:, :k], scores[:, :k]

    def _neighbourhoods(
        self, before: tuple[Step, ...], options: dict[str, Any]
    ) -> refine.Neighbourhoods:
        """Those of the last call are remembered: they do not depend on the weight."""
        key = (before, *options.items())
        if self._around is None or self._around[0] != key:
            found = refine.neighbourhoods(
                *self.vectors(before), self.graph(before, options["k1"]),
                **options, self_at=self.self_at, device=self.device,
            )  # fmt: skip
            self._around = key, found
        return self._around[1]

    def vectors(self, steps: tuple[Step, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Queries (Q, D) and gallery (G, D) after these steps, which change one of them each."""
        if steps not in self._vectors:
            before, step = steps[:-1], steps[-1]
            queries, gallery = self.vectors(before)
            options: dict[str, Any] = dict(step.options)
            options["n"] = min(options["n"], self.size - 1)  # a tiny gallery has fewer
            if step.name == "aqe":
                queries = refine.expanded_queries(
                    queries, gallery, self_at=self.self_at, device=self.device,
                    vectors_each=self.vectors_each, **options,
                )  # fmt: skip
            else:
                graph = self.graph(before, options["n"])
                gallery = refine.augmented_gallery(gallery, graph, **options)
            self._vectors[steps] = queries, gallery
        return self._vectors[steps]

    def graph(self, steps: tuple[Step, ...], depth: int) -> NeighbourGraph:
        """The neighbour graph of the gallery after these steps; aqe does not change the gallery."""
        key = tuple(step for step in steps if step.name == "dba")
        gallery = self.vectors(steps)[1]
        wanted = min(depth, len(gallery) - 1)
        known = self._graphs.get(key)
        if known is None or known.depth < wanted:
            known = kept_graph(
                gallery, self.graphs, depth, device=self.device, progress=self.progress
            )
            self._graphs[key] = known
        return known
