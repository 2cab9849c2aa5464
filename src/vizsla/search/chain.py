"""A chain of refinements, as text and as work: `dba(n=2)+aqe+kreciprocal` → a Ranking.

Knows which step uses which of the other test images, since contests may forbid it.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.search import exact, refine
from vizsla.search.knn_graph import Keeper, NeighbourGraph, Progress, kept_graph
from vizsla.search.ranking import Ranking, self_positions, without_self

NOTHING, GALLERY, QUERIES = "nothing", "gallery", "queries"  # each uses what stands before it too
USES = {
    NOTHING: "no other test image",
    GALLERY: "other gallery images, no other query",
    QUERIES: "other gallery images and the other queries",
}
LEVELS = list(USES)

# name → its options with their defaults. `dba` and `aqe` change vectors, the others end a chain.
STEPS: dict[str, dict[str, int | float | bool]] = {
    "dba": {"n": 3, "alpha": 0.0},
    "aqe": {"n": 3, "alpha": 0.0},
    "kreciprocal": {"k1": 20, "k2": 6, "weight": 0.3, "together": True, "program": True},
    "diffusion": {"k": 20, "seeds": 5, "alpha": 0.9, "gamma": 3.0, "weight": 0.1},
}
EXPAND = ("dba", "aqe")
_STEP = re.compile(r"\s*([a-zA-Z]+)\s*(?:\(([^()]*)\))?\s*")


@dataclass(frozen=True)
class Step:
    """options: all of the step's, in its order."""

    name: str
    options: tuple[tuple[str, int | float | bool], ...]

    @staticmethod
    def of(name: str, **options: int | float | bool) -> "Step":
        return Step(name, tuple({**STEPS[name], **options}.items()))

    def __getitem__(self, option: str) -> Any:
        return dict(self.options)[option]

    def __str__(self) -> str:
        return f"{self.name}({','.join(f'{k}={_said(v)}' for k, v in self.options)})"

    @property
    def uses(self) -> str:
        return QUERIES if self.name == "kreciprocal" and self["together"] else GALLERY


@dataclass(frozen=True)
class Chain:
    """Steps from left to right; none of them is the plain ranking by cosine."""

    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        return "+".join(map(str, self.steps)) or "none"

    @property
    def uses(self) -> str:
        """Which other test images it uses, one of LEVELS."""
        return max((step.uses for step in self.steps), key=LEVELS.index, default=NOTHING)

    @property
    def words(self) -> str:
        return USES[self.uses]

    def record(self) -> dict[str, Any]:
        """For result files."""
        return {"chain": str(self), "uses": self.uses, "uses_in_words": self.words}


def parse_chain(text: str, *, uses: str = QUERIES) -> Chain:
    """From `none`, or steps joined by +, options in brackets. UsageError says what there is.

    uses: the most that it may use of the other test images.
    """
    check_uses(uses)
    if text.strip() in ("", "none"):
        return Chain()
    steps = tuple(_parsed_step(part, text) for part in text.split("+"))
    for step in steps[:-1]:
        if step.name not in EXPAND:
            raise UsageError(
                f"--refine {text!r}: {step.name} gives the final order, so it comes last; "
                f"{' and '.join(EXPAND)} may stand before it"
            )
    chain = Chain(steps)
    if LEVELS.index(chain.uses) > LEVELS.index(uses):
        raise UsageError(
            f"--refine {text!r} uses {USES[chain.uses]}, but --refine-uses {uses} allows "
            f"{USES[uses]}"
            + (
                ": kreciprocal(together=false) asks about one query at a time"
                if uses == GALLERY
                else ""
            )
        )
    return chain


def check_uses(uses: str) -> None:
    if uses not in LEVELS:
        raise UsageError(f"--refine-uses {uses}: choose one of {', '.join(LEVELS)}")


def _parsed_step(part: str, text: str) -> Step:
    match = _STEP.fullmatch(part)
    if not match or match[1].lower() not in STEPS:
        raise UsageError(
            f"--refine {text!r}: {part.strip()!r} is no step; write none, auto, or a chain such as "
            f"'dba(n=2)+aqe+kreciprocal(k1=20,k2=6,weight=.3)' of {', '.join(STEPS)}"
        )
    name = match[1].lower()
    given: dict[str, int | float | bool] = {}
    for setting in filter(None, map(str.strip, (match[2] or "").split(","))):
        key, equals, value = (word.strip() for word in setting.partition("="))
        if not equals or key not in STEPS[name]:
            raise UsageError(
                f"--refine {text!r}: {name} has no option {setting!r}; there are "
                + ", ".join(f"{k}={_said(v)}" for k, v in STEPS[name].items())
            )
        given[key] = _value(value, STEPS[name][key], f"--refine {text!r}: {setting}")
    step = Step.of(name, **given)
    _check(step, text)
    return step


def _value(word: str, default: int | float | bool, what: str) -> int | float | bool:
    try:
        if isinstance(default, bool):
            return {"true": True, "yes": True, "false": False, "no": False}[word.lower()]
        return int(word) if isinstance(default, int) else float(word)
    except (ValueError, KeyError) as error:
        kind = "true or false" if isinstance(default, bool) else type(default).__name__
        raise UsageError(f"{what}: {word!r} is not {kind}") from error


def _check(step: Step, text: str) -> None:
    """UsageError before the work starts, where an option cannot be."""
    options = dict(step.options)
    least = {"n": 1, "k1": 1, "k2": 1, "k": 1, "seeds": 1}
    low = [f"{k}={v}" for k, v in options.items() if k in least and v < least[k]]
    weight = options.get("weight", 0.5)
    if step.name == "diffusion" and not 0 <= options["alpha"] < 1:
        low.append(f"alpha={options['alpha']} (from 0 to below 1)")
    elif not np.isfinite(options.get("alpha", 0.0)) or options.get("alpha", 0.0) < 0:
        low.append(f"alpha={options['alpha']} (0 or more)")
    if not 0 <= weight <= 1 or (step.name == "diffusion" and weight == 0):
        low.append(f"weight={weight} (from 0 to 1; of diffusion above 0)")
    if not 0 <= options.get("gamma", 1.0) < np.inf:
        low.append(f"gamma={options['gamma']} (0 or more)")
    if low:
        raise UsageError(f"--refine {text!r}: {step.name} cannot have {', '.join(low)}")


def _said(value: int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


# ── the work ─────────────────────────────────────────────────────────────────────────────────────


def rank_refined(
    queries: Embeddings,
    gallery: Embeddings,
    chain: Chain,
    k: int | None = None,
    *,
    same_set: bool = False,
    device: str = "cpu",
    graphs: Keeper | None = None,
    progress: Progress | None = None,
) -> Ranking:
    """The ranking by a chain, its scores those of the last step; see `exact.rank` for the rest.

    graphs: where the gallery's neighbour graphs are kept for the next time.
    """
    if not chain.steps:
        return exact.rank(queries, gallery, k, same_set=same_set, device=device)
    exact.comparable(queries.model_id, gallery.model_id, queries.dim, gallery.dim)
    G = len(gallery)
    available = G - same_set
    k = min(exact.default_depth(G), available) if k is None else k
    exact.check_k(k, available)
    own = own_positions(queries.ids, gallery.ids) if same_set else None
    refiner = Refiner(
        queries.vectors, gallery.vectors, own=own, device=device, graphs=graphs, progress=progress
    )
    positions, scores = refiner.top_k(chain, k + same_set)
    if own is not None:
        positions, scores = without_self(positions, scores, own, k)
    origin = {
        "model_id": gallery.model_id, "kind": "exact", "depth": k, "same_set": same_set,
        "refine": chain.record(),
    }  # fmt: skip
    return Ranking(queries.ids, gallery.ids, positions, scores, G, origin)


def own_positions(queries: list[str], gallery: list[str]) -> np.ndarray:
    """(Q,) where each query stands in the gallery; DataError where one does not."""
    positions = self_positions(queries, gallery)
    missing = [name for name, at in zip(queries, positions, strict=True) if at < 0]
    if missing:
        raise DataError(
            f"--same-set, but {len(missing)} queries ({missing[0]}, …) are not in the gallery: "
            "leave --same-set out, or give one set twice"
        )
    return positions


class Refiner:
    """One pair of queries (Q, D) and gallery (G, D), ranked by one chain after another.

    What chains have in common (neighbour graphs, augmented galleries) is made once and remembered.
    own: each query's gallery position where both are one set.
    """

    def __init__(
        self,
        queries: np.ndarray,
        gallery: np.ndarray,
        *,
        own: np.ndarray | None = None,
        device: str = "cpu",
        graphs: Keeper | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.own, self.device, self.graphs, self.progress = own, device, graphs, progress
        self._vectors: dict[tuple[Step, ...], tuple[np.ndarray, np.ndarray]] = {
            (): (queries, gallery)
        }
        self._graphs: dict[tuple[Step, ...], NeighbourGraph] = {}
        self._around: tuple[Any, refine.Neighbourhoods] | None = None

    def top_k(self, chain: Chain, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions (Q, k) and scores, best first."""
        last = chain.steps[-1] if chain.steps else None
        if last is None or last.name in EXPAND:
            queries, gallery = self.vectors(chain.steps)
            return exact.top_k(queries, gallery, k, device=self.device)
        before = chain.steps[:-1]
        queries, gallery = self.vectors(before)
        options: dict[str, Any] = dict(last.options)
        if last.name == "kreciprocal":
            weight = options.pop("weight")
            return refine.by_neighbourhoods(
                self._neighbourhoods(before, options), queries, gallery,
                weight=weight, depth=k, device=self.device,
            )  # fmt: skip
        return refine.diffused(
            queries, gallery, self.graph(before, options["k"]),
            **options, own=self.own, depth=k, device=self.device,
        )  # fmt: skip

    def _neighbourhoods(
        self, before: tuple[Step, ...], options: dict[str, Any]
    ) -> refine.Neighbourhoods:
        """The last ones are remembered: they do not depend on the weight."""
        key = (before, *options.items())
        if self._around is None or self._around[0] != key:
            found = refine.neighbourhoods(
                *self.vectors(before), self.graph(before, options["k1"]),
                **options, own=self.own, device=self.device,
            )  # fmt: skip
            self._around = key, found
        return self._around[1]

    def vectors(self, steps: tuple[Step, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Queries and gallery behind these steps, each of which changes one of them."""
        if steps not in self._vectors:
            before, step = steps[:-1], steps[-1]
            queries, gallery = self.vectors(before)
            options: dict[str, Any] = dict(step.options)
            options["n"] = min(options["n"], len(gallery) - 1)  # all there are, of a tiny gallery
            if step.name == "aqe":
                queries = refine.expanded_queries(
                    queries, gallery, own=self.own, device=self.device, **options
                )
            else:
                graph = self.graph(before, options["n"])
                gallery = refine.augmented_gallery(gallery, graph, **options)
            self._vectors[steps] = queries, gallery
        return self._vectors[steps]

    def graph(self, steps: tuple[Step, ...], depth: int) -> NeighbourGraph:
        """Of the gallery behind these steps; aqe leaves the gallery as it is."""
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
