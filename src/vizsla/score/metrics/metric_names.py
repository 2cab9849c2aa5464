"""The name of a metric and its parameters ↔ a value: `AP`, `AP(rel=2)@100`, `top-5`.

A name is written KIND(OPTIONS)@CUTOFF. The options may also come last, as in `nDCG@10(grades)`, and
the names of ir_measures and of our own tables (`Success@5`, `precision@10`) mean the same kinds.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from vizsla.errors import UsageError


def _share(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise ValueError
    return float(text)


def _score(text: str) -> float:
    if not isfinite(float(text)):
        raise ValueError
    return float(text)


def _grade(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _one_of(*choices: str) -> Callable[[str], str]:
    def chosen(text: str) -> str:
        return choices[choices.index(text.strip("'\""))]

    return chosen


FLAG = None  # an option without a value
REL = {"rel": _grade}  # images of this grade or a higher one are relevant


@dataclass(frozen=True)
class Kind:
    """What a metric's name may have. cutoff: "never", "may" or "must". options: name → its reader.

    about: what it is, in words. pooled: one value for all queries together, none for each.
    """

    cutoff: str
    about: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    pooled: bool = False


THRESHOLD = {"threshold": _score}
KINDS = {
    "AP": Kind("may", "average precision; @k: over min(R, k). over=R: over R (trec_eval). "
               "interpolated: trapezoids (Oxford)",
               {"interpolated": FLAG, "over": _one_of("R"), **REL}),
    "P": Kind("must", "precision at k", REL),
    "mP": Kind("must", "precision at k, or at the last relevant image if it comes earlier (Oxford)",
               REL),
    "R": Kind("must", "recall at k: of the relevant images", REL),
    "top": Kind("must", "a relevant image among the first k; written top-5", REL),
    "RR": Kind("may", "reciprocal rank of the first relevant image", REL),
    "nDCG": Kind("may", "normalised discounted gain. grades: each grade counts. dcg='exp-log2': "
                 "as 2^grade - 1",
                 {"grades": FLAG, "dcg": _one_of("log2", "exp-log2")}),
    "Rprec": Kind("never", "precision at R", REL),
    "MAP@R": Kind("never", "average precision over the first R ranks", REL),
    "mINP": Kind("never", "R over the rank of the last relevant image", REL),
    "contest_points": Kind("never", "600, 300 and 100 points for ranks 1, 5 and 10"),
    "µAP": Kind("never", "average precision of all pairs in one list", pooled=True),
    "R@P": Kind("never", "largest recall of all pairs at a precision; written R@P90",
                {"precision": _share}, ("precision",), pooled=True),
    "TPR": Kind("never", "right pairs above the cut-off that so many wrong pairs reach",
                {"fpr": _share}, ("fpr",), pooled=True),
    "BAKS": Kind("never", "top-1 accuracy of queries with a known individual, by individual",
                 THRESHOLD, pooled=True),
    "BAUS": Kind("never", "share of queries of unknown individuals that stay below the threshold, "
                 "by individual", THRESHOLD, ("threshold",), pooled=True),
    "BA": Kind("never", "geometric mean of BAKS and BAUS", THRESHOLD, ("threshold",), pooled=True),
    "ARI": Kind("never", "adjusted Rand index of the groups that pairs above the threshold form",
                THRESHOLD, ("threshold",), pooled=True),
}  # fmt: skip
ALIASES = {
    "map": "AP", "precision": "P", "recall": "R", "success": "top", "top_k_accuracy": "top",
    "hit": "top", "hits": "top", "cmc": "top", "mrr": "RR", "ndcg": "nDCG", "rprecision": "Rprec",
    "r_precision": "Rprec", "r-precision": "Rprec", "p@r": "Rprec", "map_at_r": "MAP@R",
    "ap@r": "MAP@R", "inp": "mINP", "uap": "µAP", "muap": "µAP", "μap": "µAP",
    "contest points": "contest_points", "points": "contest_points",
}  # fmt: skip
_BY_NAME = {kind.lower(): kind for kind in KINDS} | ALIASES
_FORM = re.compile(r"([^()@]+?)\s*(\([^()]*\))?\s*(?:@\s*(\w+))?\s*(\([^()]*\))?")


@dataclass(frozen=True)
class MetricName:
    """A metric and its parameters; `str` writes the name, `parse` reads it.

    options: of its kind, sorted by name; a flag has the value True.
    """

    kind: str
    cutoff: int | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        given = [
            key if value is True else f"{key}={_written(value)}"
            for key, value in self.options
            if (self.kind, key) != ("R@P", "precision")
        ]
        options = f"({','.join(given)})" if given else ""
        if self.kind == "top":
            return f"top-{self.cutoff}{options}"
        if self.kind == "R@P":
            return f"R@P{100 * self.option('precision'):g}"
        return self.kind + options + (f"@{self.cutoff}" if self.cutoff else "")

    def option(self, name: str, default: Any = None) -> Any:
        """The value of an option; `default` if it is not given."""
        return dict(self.options).get(name, default)

    @property
    def is_pooled(self) -> bool:
        """Whether it is one value of all queries together."""
        return KINDS[self.kind].pooled

    def with_option(self, name: str, value: Any) -> "MetricName":
        """The same metric with this option."""
        options = {**dict(self.options), name: value}
        return MetricName(self.kind, self.cutoff, tuple(sorted(options.items())))

    @staticmethod
    def parse(text: str) -> "MetricName":
        """Reads one name. UsageError: it is not understood, with what would be."""
        match = _FORM.fullmatch(_without_dashes(text.strip()))
        if match is None:
            raise UsageError(f"{text!r} is not the name of a metric: {_known()}")
        word, before, cutoff, after = match.groups()
        given = [
            part.strip()
            for part in (before or "()")[1:-1].split(",") + (after or "()")[1:-1].split(",")
            if part.strip()
        ]
        found = re.fullmatch(r"[pP](\d+)", cutoff or "")
        if word.lower() in ("r", "recall") and found:
            word, cutoff, given = "R@P", None, [*given, f"precision={int(found[1]) / 100}"]
        elif cutoff in ("r", "R"):
            word, cutoff = f"{'ap' if word.lower() == 'map' else word}@r", None
        kind = _BY_NAME.get(word.lower())
        for part in [part for part in given if re.fullmatch(r"cutoff\s*=.*", part)]:
            given.remove(part)  # as ir_measures may write it: nDCG(cutoff=10)
            cutoff = cutoff or part.partition("=")[2].strip()
        if kind is None:
            raise UsageError(f"{text!r}: no metric is called {word!r}: {_known()}")
        return MetricName(kind, _cutoff(text, kind, cutoff), _options(text, kind, given))


def parse_metrics(names: str | Sequence[str | MetricName]) -> tuple[MetricName, ...]:
    """`AP@100,mINP` (or a list of names) → values, each once. UsageError: not understood."""
    parts = split_names(names) if isinstance(names, str) else list(names)
    found = [part if isinstance(part, MetricName) else MetricName.parse(part) for part in parts]
    return tuple(dict.fromkeys(found))


def split_names(names: str) -> list[str]:
    """The names between commas; those inside brackets separate options."""
    return re.split(r",(?![^()]*\))", names)


def _without_dashes(text: str) -> str:
    """top-5, as it is written, `top_5 accuracy`, and `rank-5` and `CMC-5` of papers → top@5."""
    form = r"^(?:top|rank|cmc)[-_ ]?(\d+)(?:[ _-]accuracy)?"
    return re.sub(form, r"top@\1", text, flags=re.IGNORECASE)


def _cutoff(text: str, kind: str, cutoff: str | None) -> int | None:
    if cutoff is not None and (not cutoff.isdecimal() or int(cutoff) < 1):
        raise UsageError(f"{text!r}: the cut-off {cutoff!r} is not a whole number from 1")
    rule = KINDS[kind].cutoff
    if rule == "must" and cutoff is None:
        raise UsageError(f"{text!r} needs a cut-off, such as {kind}@10")
    if rule == "never" and cutoff is not None:
        raise UsageError(f"{text!r}: {kind} has no cut-off: leave out @{cutoff}")
    return None if cutoff is None else int(cutoff)


def _options(text: str, kind: str, given: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    readers, options = KINDS[kind].options, {}
    for part in given:
        name, equals, value = (word.strip() for word in part.partition("="))
        if name not in readers:
            known = ", ".join(readers) or "none"
            raise UsageError(f"{text!r}: {kind} has no option {name!r}: there are {known}")
        reader = readers[name]
        if bool(equals) != (reader is not FLAG):
            form = name if reader is FLAG else f"{name}=VALUE"
            raise UsageError(f"{text!r}: write {form}")
        try:
            options[name] = True if reader is FLAG else reader(value)
        except ValueError as error:
            raise UsageError(f"{text!r}: {value!r} is no value of {name}") from error
    if "dcg" in options:  # as ir_measures has it, its gains are the grades
        options["grades"] = True
        if options["dcg"] == "log2":
            del options["dcg"]
    lacking = [name for name in KINDS[kind].needs if name not in options]
    if lacking:
        raise UsageError(f"{text!r} needs {lacking[0]}, as in {kind}({lacking[0]}=0.5)")
    return tuple(sorted(options.items()))


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _known() -> str:
    return f"choose of {', '.join(KINDS)}, such as AP@100, top-5 or nDCG(grades)@10"
