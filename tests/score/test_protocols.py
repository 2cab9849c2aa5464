"""Every protocol against a second program, on random rankings with ties, junk and empty queries.

The programs here follow the papers' own, query by query and image by image, and share nothing with
the package. `make test-all` takes 1,000 rankings each, the usual tests 60.
"""

import json
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, roc_curve

from vizsla.cli.main import main
from vizsla.errors import DataError, UsageError
from vizsla.score.evaluate import evaluate
from vizsla.score.grade_table import GradeTable, read_grade_table
from vizsla.score.protocols import PROTOCOLS, parse_protocol
from vizsla.score.relevance import JUNK, RIGHT, WRONG, verdicts
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking

QUERIES = 6
NUMBERS = [10, pytest.param(170, marks=pytest.mark.slow)]  # cases of six rankings each


@dataclass
class Case:
    """Scores of a few values, so that many are tied; equal ones stand in gallery order."""

    queries: list[str]
    gallery: list[str]
    values: np.ndarray  # (Q, G)
    generator: np.random.Generator

    @property
    def order(self) -> np.ndarray:
        return np.stack([np.lexsort((np.arange(len(row)), -row)) for row in self.values])

    @property
    def ranking(self) -> Ranking:
        scores = np.take_along_axis(self.values, self.order, axis=1)
        return Ranking(self.queries, self.gallery, self.order, scores, len(self.gallery))

    def lists(self) -> dict[str, list[str]]:
        pairs = zip(self.queries, self.order, strict=True)
        return {q: [self.gallery[j] for j in row] for q, row in pairs}

    def labels(self, classes: int) -> tuple[dict[str, str], dict[str, str]]:
        draw = self.generator.integers
        query = {q: f"c{draw(classes + 1)}" for q in self.queries}
        gallery = {g: f"c{draw(classes)}" for g in self.gallery}
        return query, gallery


def case_of(seed: int, *, one_set: bool = False) -> Case:
    generator = np.random.default_rng(seed)
    G = int(generator.integers(20, 60))
    gallery = [f"g{i}" for i in range(G)]
    queries = gallery[:QUERIES] if one_set else [f"q{i}" for i in range(QUERIES)]
    values = generator.integers(0, 8, (QUERIES, G)) / 10
    return Case(queries, gallery, values, generator)


def close(found: float | None, expected: list[float]) -> None:
    """The mean of the values that are known, or nothing if none is."""
    known = [value for value in expected if not math.isnan(value)]
    if not known:
        assert found is None
    else:
        assert found == pytest.approx(sum(known) / len(known), abs=1e-9)


# ── Oxford and Paris ─────────────────────────────────────────────────────────────────────────────


def trapezoids(ranks: list[int], relevant: int) -> float:
    """ranks: of the relevant images, from 0. The area below the precision-recall curve."""
    area = 0.0
    for found, rank in enumerate(ranks):
        left = found / rank if rank else 1.0
        area += (left + (found + 1) / (rank + 1)) / 2 / relevant
    return area


def oxford(row: list[str], right: set[str], junk: set[str]) -> dict[str, float]:
    if not right:
        return dict.fromkeys(("AP(interpolated)", "mP@1", "mP@5", "mP@10"), math.nan)
    kept = [name for name in row if name not in junk]
    ranks = [i for i, name in enumerate(kept) if name in right]
    found = {"AP(interpolated)": trapezoids(ranks, len(right))}
    for k in (1, 5, 10):
        reach = min(k, max(ranks) + 1)
        found[f"mP@{k}"] = sum(rank < reach for rank in ranks) / reach
    return found


@pytest.mark.parametrize("number", NUMBERS)
def test_oxford_and_paris(number: int, tmp_path: Path) -> None:
    lists_of = {"easy": ("easy", "junk hard"), "medium": ("easy hard", "junk"),
                "hard": ("hard", "junk easy")}  # fmt: skip
    for seed in range(number):
        case = case_of(seed)
        shares = ["easy", "hard", "junk", "wrong"]
        of = {q: case.generator.choice(shares, len(case.gallery), p=[0.1, 0.1, 0.2, 0.6])
              for q in case.queries}  # fmt: skip
        gnd = [{name: np.flatnonzero(of[q] == name).tolist() for name in shares[:3]}
               for q in case.queries]  # fmt: skip
        table = written(
            tmp_path / "gnd.json", {"imlist": case.gallery, "qimlist": case.queries, "gnd": gnd}
        )
        for level, (right, junk) in lists_of.items():
            scores = evaluate(case.ranking, table.truth(), protocol=f"oxford-{level}", resamples=10)
            theirs = []
            for q, row in case.lists().items():
                kind = dict(zip(case.gallery, of[q], strict=True))
                wanted = {n for n in row if kind[n] in right.split()}
                theirs.append(oxford(row, wanted, {n for n in row if kind[n] in junk.split()}))
            for key in theirs[0]:
                close(scores.mean(key), [values[key] for values in theirs])


def written(path: Path, content: dict[str, Any]) -> GradeTable:
    path.write_text(json.dumps(content))
    return read_grade_table(path)


ROXFORD = {  # revisitop's own program on these descriptors: mAP, mP@1, mP@5, mP@10
    "easy": (0.2889, None, None, None, 0.2974, 0.296),
    "medium": (0.2113, 0.5429, 0.4343, 0.3814, 0.2166, 0.225),
    "hard": (0.0460, None, None, None, 0.0517, 0.060),
}


@pytest.mark.parametrize("level", ROXFORD)
def test_revisited_oxford_gives_the_published_programs_figures(
    level: str, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To two digits of a percentage: mAP, mP@k, finite sums, and after query expansion."""
    folder = shared / "data/roxford"
    words = ["evaluate", "--vectors", str(folder / "features.npy"), "--ids",
             str(folder / "ids.txt"), "--truth", str(folder / "gnd_roxford5k.json"),
             "--protocol", f"oxford-{level}", "--json"]  # fmt: skip

    def figures(*more: str) -> dict[str, float]:
        with pytest.raises(SystemExit) as ended:
            main([*words, *more])
        assert ended.value.code in (0, None)
        found = json.loads(capsys.readouterr().out)
        assert found["protocol"] == f"oxford-{level}" and found["gallery_size"] == 4993
        return {key: entry["mean"] for key, entry in found["metrics"].items()}

    interpolated, first, five, ten, finite, expanded = ROXFORD[level]
    plain = figures("--metrics", "AP(interpolated),mP@1,mP@5,mP@10,AP")
    for key, value in (("AP(interpolated)", interpolated), ("mP@1", first), ("mP@5", five),
                       ("mP@10", ten), ("AP", finite)):  # fmt: skip
        assert value is None or plain[key] == pytest.approx(value, abs=0.5e-4 + 1e-9), key
    aqe = figures("--refine", "aqe(n=5,alpha=3)")
    assert aqe["AP(interpolated)"] == pytest.approx(expanded, abs=0.51e-3)


# ── Landmarks, ILIAS ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "k"), [("gldv2", 100), ("ilias", 1000)])
@pytest.mark.parametrize("number", NUMBERS)
def test_landmarks_and_ilias(name: str, k: int, number: int) -> None:
    """Lists of other lengths than k; the formula of GLDv2's paper, word by word."""
    for seed in range(number):
        generator = np.random.default_rng(seed)
        gallery = [f"g{i}" for i in range(1500)]
        lists, grades = {}, {}
        for i in range(QUERIES):
            length = int(generator.choice([0, 7, 100, 150, 1000, 1200]))
            lists[f"q{i}"] = [str(n) for n in generator.choice(gallery, length, replace=False)]
            n = int(generator.choice([0, 1, 5, 120, 1100]))
            grades[f"q{i}"] = dict.fromkeys(
                map(str, generator.choice(gallery, n, replace=False)), 1
            )
        expected = []
        for q, row in lists.items():
            found, total = 0, 0.0
            for rank, image in enumerate(row[:k], 1):
                if image in grades[q]:
                    found += 1
                    total += found / rank
            m = len(grades[q])
            expected.append(total / min(m, k) if m else math.nan)
        scores = evaluate(
            Ranking.from_lists(lists), Truth.from_grades(grades), protocol=name, resamples=10
        )
        close(scores.mean(f"AP@{k}"), expected)


# ── re-identification of persons ─────────────────────────────────────────────────────────────────


def market(
    row: list[str], person: str, camera: int, people: dict[str, str], cameras: dict[str, int]
) -> dict[str, float]:
    """As the programs for Market-1501 do: one pass over the list, junk skipped."""
    matches = [
        people[name] == person
        for name in row
        if people[name] != "-1" and not (people[name] == person and cameras[name] == camera)
    ]
    if not any(matches):
        return dict.fromkeys(("top-1", "top-5", "top-10", "AP", "mINP"), math.nan)
    at = [i for i, match in enumerate(matches) if match]
    precisions = [(j + 1) / (i + 1) for j, i in enumerate(at)]
    return {
        **{f"top-{k}": float(any(matches[:k])) for k in (1, 5, 10)},
        "AP": sum(precisions) / len(at),
        "mINP": len(at) / (at[-1] + 1),
    }


@pytest.mark.parametrize("number", NUMBERS)
def test_persons(number: int) -> None:
    for seed in range(number):
        case = case_of(seed)
        draw = case.generator
        people = {g: str(draw.choice(["1", "2", "3", "-1", "0"])) for g in case.gallery}
        seen = {g: int(draw.integers(1, 4)) for g in case.gallery}
        person = {q: str(draw.integers(1, 5)) for q in case.queries}
        camera = {q: int(draw.integers(1, 4)) for q in case.queries}
        truth = Truth(
            person, people, attributes={"cam": {q: str(c) for q, c in camera.items()}},
            gallery_attributes={"cam": {g: str(c) for g, c in seen.items()}},
        )  # fmt: skip
        scores = evaluate(case.ranking, truth, protocol="reid(camera=cam)", resamples=10)
        theirs = [market(row, person[q], camera[q], people, seen)
                  for q, row in case.lists().items()]  # fmt: skip
        for key in theirs[0]:
            close(scores.mean(key), [values[key] for values in theirs])


def test_cameras_may_be_in_the_names_of_market_1501() -> None:
    lists = {"0001_c1s1_001051_00.jpg": [
        "0001_c1s2_000001_01.jpg", "-1_c2s1_000002_01.jpg", "0000_c3s1_000003_01.jpg",
        "0001_c2s1_000004_01.jpg",
    ]}  # fmt: skip
    ranking = Ranking.from_lists(lists)
    truth = Truth.from_pattern(ranking, "{label}_c{n}s{n}_{n}_{n}")
    protocol = parse_protocol("reid(camera=_c{camera}s)")
    scores = evaluate(ranking, truth, protocol=protocol, missing_ranks="absent")
    assert scores.n_relevant.tolist() == [-1]  # the gallery is not known from a submission
    judged = protocol.judging(truth, ranking.queries)
    assert verdicts(ranking, judged, 4).tolist() == [[JUNK, JUNK, WRONG, RIGHT]]
    assert scores.mean("top-1") == 0.0 and scores.mean("top-5") == 1.0
    with pytest.raises(UsageError, match="no column 'camera' of the query images"):
        evaluate(ranking, truth, protocol="reid")


# ── products, birds, cars, clothes ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["sop", "cub", "cars", "inshop"])
@pytest.mark.parametrize("number", NUMBERS)
def test_products(name: str, number: int) -> None:
    ks = {"sop": (1, 10, 100, 1000), "inshop": (1, 10, 20, 30, 40, 50)}.get(name, (1, 2, 4, 8))
    one_set = PROTOCOLS[name].one_set
    for seed in range(number):
        case = case_of(seed, one_set=one_set)
        query, gallery = case.labels(8)
        query = {q: gallery[q] for q in case.queries} if one_set else query
        truth = Truth(query, gallery, one_set=one_set)
        scores = evaluate(case.ranking, truth, protocol=name, resamples=10)
        recalls: dict[int, list[float]] = defaultdict(list)
        at_r, precision = [], []
        for q, row in case.lists().items():
            hits = [gallery[g] == query[q] for g in row if not (one_set and g == q)]
            R = sum(hits)
            for k in ks:
                recalls[k].append(float(any(hits[:k])))
            pairs = enumerate(hits[:R], 1)
            summed = sum(sum(hits[:i]) / i for i, hit in pairs if hit)
            at_r.append(summed / R if R else 0.0)
            precision.append(sum(hits[:R]) / R if R else 0.0)
        for k in ks:
            close(scores.mean(f"top-{k}"), recalls[k])
        close(scores.mean("MAP@R"), at_r)
        close(scores.mean("Rprec"), precision)


# ── places ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", NUMBERS)
def test_places(number: int) -> None:
    for seed in range(number):
        case = case_of(seed)
        at = {name: case.generator.uniform(0, 150, 2).round(1)
              for name in [*case.queries, *case.gallery]}  # fmt: skip
        columns = [{name: str(at[name][axis]) for name in at} for axis in (0, 1)]
        pair = dict(zip(("utm_east", "utm_north"), columns, strict=True))
        unlabelled = dict.fromkeys(case.queries), dict.fromkeys(case.gallery)
        truth = Truth(*unlabelled, attributes=pair, gallery_attributes=pair)
        scores = evaluate(case.ranking, truth, protocol="place", resamples=10)
        for k in (1, 5, 10, 20):
            hits = [
                any(math.dist(at[q], at[g]) <= 25 for g in row[:k])
                for q, row in case.lists().items()
            ]
            close(scores.mean(f"top-{k}"), [float(hit) for hit in hits])


def test_positions_may_be_in_the_names_of_images() -> None:
    lists = {"@0543256.96@4178906.70@a.jpg": ["@0543300.00@4178906.70@b.jpg",
                                              "@0543260.00@4178920.00@c.jpg"]}  # fmt: skip
    ranking = Ranking.from_lists(lists)
    images = dict.fromkeys([*lists, *ranking.gallery], "x")
    truth = Truth(images, images, query_complete=False, gallery_complete=False)
    assert evaluate(ranking, truth, protocol="place").mean("top-1") == 0.0
    assert evaluate(ranking, truth, protocol="place(within=50)").mean("top-1") == 1.0
    for wrong in ("x", "nan", "-1"):
        with pytest.raises(UsageError, match="expected metres, a number from 0"):
            evaluate(ranking, truth, protocol=f"place(within={wrong})")
    with pytest.raises(DataError, match="1 query images have no position"):
        evaluate(Ranking.from_lists({"a": ["b"]}), Truth({"a": "x"}, {"b": "x"}), protocol="place")


# ── copies ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", NUMBERS)
def test_copies(number: int) -> None:
    """One list of all pairs; queries that the truth lacks are distractors."""
    for seed in range(number):
        case = case_of(seed)
        grades = {
            q: dict.fromkeys(map(str, case.generator.choice(case.gallery, 2, replace=False)), 1)
            for q in case.queries[:-2]
        }
        scores = evaluate(
            case.ranking, Truth.from_grades(grades), protocol="copy", resamples=10,
            metrics_named="µAP,R@P90,R@P50,TPR(fpr=0.1)",
        )  # fmt: skip
        pairs = [
            (case.values[i, j], g in grades.get(q, {}))
            for i, q in enumerate(case.queries)
            for j, g in enumerate(case.gallery)
        ]
        pairs.sort(key=lambda pair: (-pair[0], pair[1]))
        total = sum(map(len, grades.values()))
        found, area, best = 0, 0.0, {0.9: 0.0, 0.5: 0.0}
        for n, (_, right) in enumerate(pairs, 1):
            found += right
            area += right * found / n
            for least in best:
                if found / n >= least:
                    best[least] = max(best[least], found / total)
        assert scores.mean("µAP") == pytest.approx(area / total, abs=1e-9)
        assert scores.mean("R@P90") == pytest.approx(best[0.9], abs=1e-9)
        assert scores.mean("R@P50") == pytest.approx(best[0.5], abs=1e-9)
        false, true, _ = roc_curve(
            [right for _, right in pairs], [value for value, _ in pairs], drop_intermediate=False
        )
        rate = max(t for f, t in zip(false, true, strict=True) if f <= 0.1)
        assert scores.mean("TPR(fpr=0.1)") == pytest.approx(rate, abs=1e-9)
        interval = scores["µAP"]
        assert interval.low is not None and interval.high is not None


# ── animals ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("one_set", [False, True])
@pytest.mark.parametrize("number", NUMBERS)
def test_animals(number: int, one_set: bool) -> None:
    threshold = 0.65
    for seed in range(number):
        case = case_of(seed, one_set=one_set)
        query, gallery = case.labels(6)
        if one_set:
            gallery = {g: f"c{case.generator.integers(20)}" for g in case.gallery}
            query = {q: gallery[q] for q in case.queries}
        truth = Truth(query, gallery, one_set=one_set)
        scores = evaluate(
            case.ranking, truth, protocol=f"animals(threshold={threshold})", resamples=10
        )
        known, unknown = defaultdict(list), defaultdict(list)
        closed: dict[str, list[bool]] = defaultdict(list)
        for i, q in enumerate(case.queries):
            row = [g for g in case.lists()[q] if not (one_set and g == q)]
            best = case.values[i, case.gallery.index(row[0])]
            called = gallery[row[0]] if best >= threshold else "new"
            if any(gallery[g] == query[q] for g in row):
                known[query[q]].append(called == query[q])
                closed[query[q]].append(gallery[row[0]] == query[q])
            else:
                unknown[query[q]].append(called == "new")

        def balanced(by_individual: dict[str, list[bool]]) -> float:
            shares = [sum(right) / len(right) for right in by_individual.values()]
            return sum(shares) / len(shares) if shares else math.nan

        flat = [float(right) for rights in closed.values() for right in rights]
        close(scores.mean("top-1"), flat)
        baks, baus = balanced(known), balanced(unknown)
        close(scores.mean("BAKS"), [balanced(closed)])
        close(scores.mean("BAKS(threshold=0.65)"), [baks])
        close(scores.mean("BAUS(threshold=0.65)"), [baus])
        close(scores.mean("BA(threshold=0.65)"), [math.sqrt(baks * baus)])
        groups = grouped(case, gallery, threshold, one_set)
        labels = [query[q] for q in case.queries]
        expected = adjusted_rand_score(labels, groups)
        assert scores.mean("ARI(threshold=0.65)") == pytest.approx(expected, abs=1e-9)


def grouped(case: Case, gallery: dict[str, str], threshold: float, one_set: bool) -> list[int]:
    """Groups of the queries: sets are merged pair by pair."""
    role = "gallery" if one_set else "query"
    groups = {(role, q): {(role, q)} for q in case.queries}
    groups |= {("gallery", g): {("gallery", g)} for g in case.gallery}

    def merge(a: tuple[str, str], b: tuple[str, str]) -> None:
        joined = groups[a] | groups[b]
        groups.update(dict.fromkeys(joined, joined))

    for i, q in enumerate(case.queries):
        for j, g in enumerate(case.gallery):
            if case.values[i, j] >= threshold:
                merge((role, q), ("gallery", g))
    if not one_set:
        for a in case.gallery:
            for b in case.gallery:
                if gallery[a] == gallery[b]:
                    merge(("gallery", a), ("gallery", b))
    return [id(groups[role, q]) for q in case.queries]


# ── the list ─────────────────────────────────────────────────────────────────────────────────────


def test_every_protocol_is_held_by_a_test_and_says_what_it_is() -> None:
    held = ["oxford-easy", "oxford-medium", "oxford-hard", "gldv2", "ilias", "reid", "sop", "cub",
            "cars", "inshop", "place", "copy", "animals"]  # fmt: skip
    assert list(PROTOCOLS) == held
    for protocol in PROTOCOLS.values():
        assert protocol.metric_names and protocol.paper and protocol.differs and protocol.means
        assert parse_protocol(protocol.name) == protocol
    assert Counter(PROTOCOLS["animals"].metrics).total() > len(PROTOCOLS["animals"].metric_names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oxford", "choose one of oxford-easy, oxford-medium"),
        ("reid(cam=1)", "reid has the options camera"),
        ("sop(k=1)", "sop has the options none"),
        ("animals(threshold=high)", "'high' is no value of threshold"),
    ],
)
def test_a_protocol_that_is_not_understood_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_protocol(text)


def test_oxford_needs_levels_and_reid_keeps_what_it_judged() -> None:
    ranking = Ranking.from_lists({"q": ["a"]})
    with pytest.raises(UsageError, match="needs a truth with levels"):
        evaluate(ranking, Truth({"q": "x"}, {"a": "x"}), protocol="oxford-hard")
    columns = {"camera": {"q": "1", "a": "1"}}
    truth = Truth({"q": "x"}, {"a": "x"}, attributes=columns, gallery_attributes=columns)
    protocol = parse_protocol("reid")
    once = protocol.judging(truth, ["q"])
    assert protocol.judging(once, ["q"]).junk == once.junk == {"q": frozenset({"a"})}
