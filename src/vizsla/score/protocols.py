"""The name of a protocol → what is relevant and junk, its metrics, and what their means divide by.

Papers score the same rankings by different rules; each protocol here is one set of rules, as the
field's own program has them (docs/protocols.md). Computes no metric.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vizsla.errors import DataError, UsageError
from vizsla.score.metrics.metric_names import MetricName, parse_metrics
from vizsla.score.truth import Truth

Options = Mapping[str, str | None]
Judging = Callable[[Truth, Options, Sequence[str]], Truth]
JUNK_LABELS = ("-1", "junk")  # of re-identification: boxes that show no whole person


@dataclass(frozen=True)
class Protocol:
    """One protocol. metrics: names; one that holds the name of an option in braces needs it.

    over_all: whether means divide by all queries, or by those with something relevant; None: as is
    usual for each metric. missing_ranks: of `evaluate`. one_set: queries and gallery are one set.
    options: name → default, None if it may be left out. `str` writes it with the options given.
    """

    name: str
    about: str
    relevant: str
    junk: str
    means: str
    metrics: tuple[str, ...]
    paper: str
    differs: str
    judge: Judging = field(compare=False, default=lambda truth, options, queries: truth)
    over_all: bool | None = None
    missing_ranks: str = "unknown"
    one_set: bool = False
    options: tuple[tuple[str, str | None], ...] = ()
    given: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        listed = ",".join(f"{key}={value}" for key, value in self.given)
        return f"{self.name}({listed})" if listed else self.name

    @property
    def settings(self) -> dict[str, str | None]:
        """Every option with its value."""
        return {**dict(self.options), **dict(self.given)}

    @property
    def metric_names(self) -> tuple[MetricName, ...]:
        """Its metrics, without those that need an option which was not given."""
        known = {key: value for key, value in self.settings.items() if value is not None}
        written = [
            name.format(**known)
            for name in self.metrics
            if set(re.findall(r"\{(\w+)\}", name)) <= known.keys()
        ]
        return parse_metrics(written)

    @property
    def depth(self) -> int:
        """How many ranks its metrics need at least; 0 for the relevant images alone."""
        return max((name.cutoff or 0 for name in self.metric_names), default=0)

    def judging(self, truth: Truth, queries: Sequence[str] = ()) -> Truth:
        """The truth by the rules of the protocol. queries: those of the ranking.

        A truth that was judged already stays as it is. UsageError, DataError: it lacks what the
        protocol needs, such as levels, cameras or positions.
        """
        return self.judge(truth, self.settings, queries)


def parse_protocol(text: "Protocol | str") -> Protocol:
    """From a name, with options in brackets: `reid(camera=cam)`. UsageError: not understood."""
    if isinstance(text, Protocol):
        return text
    match = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", text)
    protocol = PROTOCOLS.get(match[1].lower()) if match else None
    if match is None or protocol is None:
        raise UsageError(
            f"--protocol {text!r}: choose one of {', '.join(PROTOCOLS)} (`vizsla protocols` "
            "describes them)"
        )
    given = {}
    for part in filter(None, (match[2] or "").split(",")):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or key not in dict(protocol.options):
            known = ", ".join(dict(protocol.options)) or "none"
            raise UsageError(f"--protocol {text!r}: {protocol.name} has the options {known}")
        given[key] = value
    found = dataclasses.replace(protocol, given=tuple(given.items()))
    _ = found.metric_names  # UsageError for a value that is no number
    return found


# ── what is relevant ─────────────────────────────────────────────────────────────────────────────


def _at_level(level: str) -> Judging:
    def judge(truth: Truth, options: Options, queries: Sequence[str]) -> Truth:
        if not truth.levels:
            raise UsageError(
                f"oxford-{level} needs a truth with levels: give --truth gnd_roxford5k.json (or "
                ".pkl), or a table with a column level"
            )
        return truth.at_level(level)

    return judge


def _other_cameras(truth: Truth, options: Options, queries: Sequence[str]) -> Truth:
    """The same person by the same camera is junk for a query, and so are boxes of no person."""
    camera = str(options["camera"])
    of_query = _column(truth, truth.attributes, truth.query, camera, "query")
    of_gallery = _column(truth, truth.gallery_attributes, truth.gallery, camera, "gallery")
    same = defaultdict(list)
    for name, label in truth.gallery.items():
        same[label, of_gallery.get(name)].append(name)
    everywhere = frozenset(name for label in JUNK_LABELS for name in _labelled(truth, label))
    junk = {
        query: frozenset(same[label, of_query.get(query)]) | frozenset(truth.junk.get(query, ()))
        for query, label in truth.query.items()
        if label is not None
    }
    return dataclasses.replace(truth, junk=junk, junk_of_all=truth.junk_of_all | everywhere)


def _labelled(truth: Truth, label: str) -> list[str]:
    return [name for name, other in truth.gallery.items() if other == label]


def _column(
    truth: Truth,
    attributes: Mapping[str, Mapping[str, str | None]],
    names: Mapping[str, str | None],
    column: str,
    role: str,
) -> Mapping[str, str | None]:
    """A column of the truth, or what a pattern such as `_c{camera}s` finds in the names."""
    if "{camera}" in column:
        before, _, after = column.partition("{camera}")
        pattern = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
        found = {name: pattern.search(name.rpartition("/")[2]) for name in names}
        values = {name: match[1] if match else None for name, match in found.items()}
    elif column in attributes:
        return attributes[column]
    else:
        raise UsageError(
            f"the truth has no column {column!r} of the {role} images (it has "
            f"{', '.join(attributes) or 'none'}): name the column, as in reid(camera=COLUMN), or a "
            "pattern of the file names, as in reid(camera=_c{camera}s)"
        )
    if not any(values.values()):
        raise UsageError(f"no {role} image has a name with {column!r} in it")
    return values


def _within_metres(truth: Truth, options: Options, queries: Sequence[str]) -> Truth:
    """Gallery images at most so many metres away are relevant."""
    from scipy.spatial import cKDTree

    columns = str(options["east"]), str(options["north"])
    try:
        within = float(options["within"] or "")
    except ValueError:
        within = np.nan
    if not within >= 0:
        raise UsageError(f"place(within={options['within']}): expected metres, a number from 0")
    judged = list(truth.query if truth.query_complete else queries)
    query_ids, query_at = _positions(truth.attributes, judged, columns, "query")
    gallery_ids, gallery_at = _positions(
        truth.gallery_attributes, list(truth.gallery), columns, "gallery"
    )
    near = cKDTree(gallery_at).query_ball_point(query_at, within)
    relevant = {
        query: frozenset(gallery_ids[i] for i in found)
        for query, found in zip(query_ids, near, strict=True)
    }
    return dataclasses.replace(truth, relevant=relevant, grades=None)


def _positions(
    attributes: Mapping[str, Mapping[str, str | None]],
    ids: list[str],
    columns: tuple[str, str],
    role: str,
) -> tuple[list[str], np.ndarray]:
    """Ids and (N, 2) metres, from two columns, or from names such as `@0543256.96@4178906.70@`."""
    if all(column in attributes for column in columns):
        written = [[attributes[column].get(name) for column in columns] for name in ids]
    else:
        written = [name.rpartition("/")[2].split("@")[1:3] for name in ids]  # type: ignore[misc]
    try:
        found = np.array([[float(value or "nan") for value in pair] for pair in written])
        lacking = [name for name, at in zip(ids, found, strict=True) if not np.isfinite(at).all()]
    except ValueError:
        lacking = ids
    if lacking or not ids or found.shape != (len(ids), 2):
        raise DataError(
            f"{len(lacking) or len(ids)} {role} images have no position "
            f"({', '.join((lacking or ids)[:3])}): give a labels table with the columns "
            f"{columns[0]} and {columns[1]} in metres, other ones as in "
            "place(east=COLUMN,north=COLUMN), or names such as @EAST@NORTH@.jpg"
        )
    return ids, found


def _all_queries(truth: Truth, options: Options, queries: Sequence[str]) -> Truth:
    """A query that the truth does not list has nothing to find; its pairs count as wrong."""
    if truth.relevant is None:
        return truth
    nothing: dict[str, frozenset[str]] = dict.fromkeys(queries, frozenset())
    return dataclasses.replace(
        truth,
        relevant={**nothing, **truth.relevant},
        query={**dict.fromkeys(queries), **truth.query},
    )


# ── the protocols ────────────────────────────────────────────────────────────────────────────────

LABEL = "the same label"
ANSWERABLE = "queries with something relevant; the others are left out"
ALL = "all queries; one with nothing relevant is wrong"


def _oxford(level: str, relevant: str, junk: str) -> Protocol:
    return Protocol(
        f"oxford-{level}",
        f"Revisited Oxford and Paris, {level}",
        relevant,
        junk,
        ANSWERABLE,
        ("AP(interpolated)", "mP@1", "mP@5", "mP@10"),
        "Radenović et al., CVPR 2018; AP: Philbin et al., CVPR 2007",
        "AP is the area by trapezoids, below the plain AP; mP@k divides by the rank of the last "
        "relevant image if that is before k",
        _at_level(level),
        over_all=False,
    )


def _product(
    name: str, about: str, ks: Sequence[int], paper: str, *, one_set: bool = True
) -> Protocol:
    searched = "the other test images" if one_set else "the gallery"
    return Protocol(
        name, about, LABEL, "the query itself" if one_set else "none", ALL,
        (*(f"top-{k}" for k in ks), "MAP@R", "Rprec"), paper,
        f"what these papers call R@k is top-k accuracy; each query searches {searched}",
        over_all=True, one_set=one_set,
    )  # fmt: skip


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _oxford("easy", "easy", "hard and junk"),
        _oxford("medium", "easy and hard", "junk"),
        _oxford("hard", "hard", "easy and junk"),
        Protocol(
            "gldv2", "Google Landmarks v2, retrieval", "as listed, or " + LABEL, "none",
            ANSWERABLE, ("AP@100",), "Weyand et al., CVPR 2020",
            "AP@100 divides by min(R, 100); what a list lacks is never found",
            over_all=False, missing_ranks="absent",
        ),
        Protocol(
            "ilias", "ILIAS, instances among distractors", "as listed, or " + LABEL, "none",
            ANSWERABLE, ("AP@1000",), "Kordopatis-Zilos et al., CVPR 2025",
            "AP@1000 divides by min(R, 1000); images that are not listed are distractors: wrong",
            over_all=False, missing_ranks="absent",
        ),
        Protocol(
            "reid", "re-identification of persons (Market-1501, MSMT17)",
            "the same person by another camera",
            "the same person by the same camera; label -1", ANSWERABLE,
            ("top-1", "top-5", "top-10", "AP", "mINP"),
            "Zheng et al., ICCV 2015; mINP: Ye et al., TPAMI 2021",
            "the CMC is top-k accuracy over the queries that another camera has seen, and AP is "
            "the plain one (the Matlab program of 2015 interpolates)",
            _other_cameras, over_all=False, options=(("camera", "camera"),),
        ),
        _product("sop", "Stanford Online Products", (1, 10, 100, 1000), "Song et al., CVPR 2016"),
        _product("cub", "CUB-200-2011, classes 101 to 200", (1, 2, 4, 8), "Song et al., CVPR 2016"),
        _product("cars", "Cars196, classes 99 to 196", (1, 2, 4, 8), "Song et al., CVPR 2016"),
        _product("inshop", "In-Shop clothes retrieval", (1, 10, 20, 30, 40, 50),
                 "Liu et al., CVPR 2016", one_set=False),
        Protocol(
            "place", "visual place recognition", "at most 25 metres away", "none", ALL,
            ("top-1", "top-5", "top-10", "top-20"), "Arandjelović et al., CVPR 2016",
            "relevance is distance, from two columns in metres or from the file names; what "
            "these papers call R@N is top-N accuracy",
            _within_metres, over_all=True,
            options=(("within", "25"), ("east", "utm_east"), ("north", "utm_north")),
        ),
        Protocol(
            "copy", "copy detection (Image Similarity Challenge 2021)", "as listed", "none",
            "all pairs of all queries; what a list lacks is never found", ("µAP", "R@P90"),
            "Douze et al., 2021",
            "all pairs stand in one list by score, of equal scores the wrong ones first; queries "
            "that the truth does not list are distractors",
            _all_queries, missing_ranks="absent",
        ),
        Protocol(
            "animals", "re-identification of animals, closed and open set", LABEL, "none",
            "known individuals (top-k, BAKS), unknown ones (BAUS)",
            ("top-1", "top-5", "BAKS", "BAKS(threshold={threshold})",
             "BAUS(threshold={threshold})", "BA(threshold={threshold})",
             "ARI(threshold={threshold})"),
            "Adam et al., CVPR 2025 (WildlifeReID-10k); AnimalCLEF 2025",
            "accuracies are averaged over individuals; a first match below the threshold is "
            "called a new individual",
            over_all=False, options=(("threshold", None),),
        ),
    )
}  # fmt: skip
