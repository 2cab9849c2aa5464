"""Every protocol on cases small enough to compute by hand, the degenerate ones among them."""

import math

import numpy as np
import pytest

from vizsla.score.evaluate import evaluate
from vizsla.score.scores import Scores
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking


def ranking_of(
    lists: dict[str, str], scores: dict[str, list[float]] | None = None, *, gallery: str = ""
) -> Ranking:
    """From rows such as "a b c". gallery: all its images, if they are known."""
    rows = {query: row.split() for query, row in lists.items()}
    falling = {query: [1 - i / 100 for i in range(len(row))] for query, row in rows.items()}
    found = Ranking.from_lists(rows, scores or falling)
    if not gallery:
        return found
    names = gallery.split()
    positions = np.array(
        [[names.index(found.gallery[p]) if p >= 0 else -1 for p in row] for row in found.positions]
    )
    return Ranking(found.queries, names, positions, found.scores, len(names))


def oxford_truth(**levels: dict[str, str]) -> Truth:
    """Level → query → "a b !c": relevant images, junk after an exclamation mark."""
    grades = {
        level: {
            query: {name.removeprefix("!"): -1 if name[0] == "!" else 1 for name in row.split()}
            for query, row in of.items()
        }
        for level, of in levels.items()
    }
    return Truth({"q": None}, {}, relevant={"q": ()}, levels=grades)


# ── Oxford and Paris ─────────────────────────────────────────────────────────────────────────────


def test_oxford() -> None:
    """q: junk first; n: nothing relevant; j: all is junk. Only q counts."""
    lists = {"q": "c a d b", "n": "a b c d", "j": "d c b a"}
    truth = oxford_truth(
        medium={"q": "a b !c", "n": "!a", "j": "!a !b !c !d"},
        hard={"q": "b !a !c", "n": "!a", "j": "!a !b !c !d"},
    )
    ranking = ranking_of(lists, gallery="a b c d")
    medium = evaluate(ranking, truth, protocol="oxford-medium")
    assert medium.answerable.tolist() == [True, False, False]  # after junk: a d b
    assert medium.mean("AP(interpolated)") == pytest.approx((1 + 1) / 4 + (1 / 2 + 2 / 3) / 4)
    assert medium.mean("mP@1") == 1.0
    assert medium.mean("mP@5") == medium.mean("mP@10") == pytest.approx(2 / 3)
    assert medium["mP@1"].n == 1 and medium.with_nothing_relevant == 2
    hard = evaluate(ranking, truth, protocol="oxford-hard")  # after junk: d b
    assert hard.mean("AP(interpolated)") == pytest.approx((0 + 1 / 2) / 2)
    assert hard.mean("mP@1") == 0.0 and hard.mean("mP@5") == 0.5


def test_oxford_of_one_image_and_of_nothing() -> None:
    truth = oxford_truth(easy={"q": "a"}, hard={"q": "!a"})
    one = ranking_of({"q": "a"}, gallery="a")
    easy = evaluate(one, truth, protocol="oxford-easy")
    assert [easy.mean(key) for key in easy.chosen] == [1.0] * 4
    hard = evaluate(one, truth, protocol="oxford-hard")
    assert [hard.mean(key) for key in hard.chosen] == [None] * 4
    assert hard["mP@1"].unknown == "no query has anything relevant"


def test_oxford_of_a_list_that_ends_early() -> None:
    """Known only if all relevant images are in it."""
    truth = oxford_truth(easy={"q": "a b"})
    cut = evaluate(ranking_of({"q": "c a"}, gallery="a b c d"), truth, protocol="oxford-easy")
    assert cut.mean("AP(interpolated)") is None and "ends at rank 2" in str(
        cut["AP(interpolated)"].unknown
    )
    assert cut.mean("mP@1") == 0.0  # the last relevant image comes later, wherever it is
    full = evaluate(ranking_of({"q": "a b"}, gallery="a b c d"), truth, protocol="oxford-easy")
    assert full.mean("AP(interpolated)") == 1.0 and full.mean("mP@10") is None  # shorter than 10


# ── Landmarks, ILIAS ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "key"), [("gldv2", "AP@100"), ("ilias", "AP@1000")])
def test_landmarks_and_ilias(name: str, key: str) -> None:
    """b is never found; e is empty; n has nothing to find; j only junk."""
    lists = {"q": "x a y", "e": "", "n": "a b", "j": "a b"}
    grades = {"q": {"a": 1, "b": 1}, "e": {"a": 1}, "n": {"a": 0}, "j": {"a": -1, "b": -1}}
    scores = evaluate(ranking_of(lists), Truth.from_grades(grades), protocol=name)
    assert scores.per_query(key) == [0.25, 0.0, None, None]
    assert scores.mean(key) == 0.125 and scores[key].n == 2


# ── persons ──────────────────────────────────────────────────────────────────────────────────────


def test_persons() -> None:
    """q: the same camera and -1 are junk; s: no other camera has seen it; a: all is junk."""
    people = {"p1": "1", "p2": "1", "j": "-1", "d": "0", "o": "2", "t": "3"}
    cameras = {"p1": "1", "p2": "2", "j": "2", "d": "2", "o": "1", "t": "1"}
    truth = Truth(
        {"q": "1", "s": "2"}, people, attributes={"camera": {"q": "1", "s": "1"}},
        gallery_attributes={"camera": cameras},
    )  # fmt: skip
    lists = {"q": "p1 j d p2 o t", "s": "o d t p1 p2 j"}
    scores = evaluate(ranking_of(lists, gallery="p1 p2 j d o t"), truth, protocol="reid")
    assert scores.per_query("top-1") == [0.0, None] and scores.mean("top-5") == 1.0  # after: d p2
    assert scores.mean("AP") == scores.mean("mINP") == 0.5 and scores["AP"].n == 1
    alone = Truth(
        {"q": "1"}, {"p1": "1"}, attributes={"camera": {"q": "1"}},
        gallery_attributes={"camera": {"p1": "1"}},
    )  # fmt: skip
    nothing = evaluate(ranking_of({"q": "p1"}, gallery="p1"), alone, protocol="reid")
    assert [nothing.mean(key) for key in nothing.chosen] == [None] * 5


# ── products, birds, cars, clothes ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["sop", "cub", "cars"])
def test_one_set(name: str) -> None:
    """The query itself takes no rank; c is alone in its class and counts as wrong."""
    labels = {"a1": "a", "a2": "a", "a3": "a", "c": "c"}
    lists = {"a1": "a1 c a2 a3", "a2": "a2 a1 a3 c", "a3": "a1 a3 c a2", "c": "c a1 a2 a3"}
    truth = Truth(labels, labels, one_set=True)
    scores = evaluate(ranking_of(lists, gallery="a1 a2 a3 c"), truth, protocol=name)
    assert scores.per_query("top-1") == [0.0, 1.0, 1.0, 0.0]  # after: c a2 a3; a1 a3 c; a1 c a2
    assert scores.per_query("MAP@R") == [0.25, 1.0, 0.5, 0.0]
    assert scores.per_query("Rprec") == [0.5, 1.0, 0.5, 0.0]
    assert scores.mean("top-1") == 0.5 and scores["MAP@R"].n == 4


def test_clothes() -> None:
    """One image in the gallery, and a query whose product is not in it."""
    truth = Truth({"q": "x", "n": "y"}, {"q": "x"})  # equal names are different photos
    scores = evaluate(ranking_of({"q": "q", "n": "q"}, gallery="q"), truth, protocol="inshop")
    assert scores.mean("top-1") == scores.mean("top-50") == scores.mean("MAP@R") == 0.5


# ── places ───────────────────────────────────────────────────────────────────────────────────────


def test_places() -> None:
    """25 metres are near enough; a query with nothing near is wrong."""
    at = {"q": (0.0, 0.0), "far": (1000.0, 0.0), "a": (15.0, 20.0), "b": (15.1, 20.0)}
    columns = [{name: str(point[axis]) for name, point in at.items()} for axis in (0, 1)]
    pair = dict(zip(("utm_east", "utm_north"), columns, strict=True))
    truth = Truth(
        dict.fromkeys(("q", "far")), dict.fromkeys("ab"), attributes=pair, gallery_attributes=pair
    )
    scores = evaluate(ranking_of({"q": "b a", "far": "a b"}, gallery="a b"), truth,
                      protocol="place")  # fmt: skip
    assert scores.per_query("top-1") == [0.0, 0.0] and scores.per_query("top-5") == [1.0, 0.0]
    assert scores.mean("top-20") == 0.5


# ── copies ───────────────────────────────────────────────────────────────────────────────────────


def test_copies() -> None:
    """d is a distractor; its wrong pair has the score of the right one, and comes first."""
    values = {"q": [0.9, 0.2], "d": [0.9]}
    truth = Truth.from_grades({"q": {"a": 1, "z": 1}})  # z is in no list
    scores = evaluate(ranking_of({"q": "a b", "d": "c"}, values), truth, protocol="copy")
    assert scores.mean("µAP") == (1 / 2) / 2 and scores.mean("R@P90") == 0.0
    half = evaluate(ranking_of({"q": "a b", "d": "c"}, values), truth, protocol="copy",
                    metrics_named="R@P50")  # fmt: skip
    assert half.mean("R@P50") == 0.5
    values = {"q": [0.95, 0.2], "d": [0.9]}
    first = evaluate(ranking_of({"q": "a b", "d": "c"}, values), truth, protocol="copy")
    assert first.mean("µAP") == first.mean("R@P90") == 0.5
    none = evaluate(ranking_of({"d": "c"}), Truth.from_grades({"d": {"c": 0}}), protocol="copy")
    assert none.mean("µAP") is None and none["µAP"].unknown == "there are no such pairs"


# ── animals ──────────────────────────────────────────────────────────────────────────────────────


def animals(protocol: str, values: dict[str, list[float]]) -> Scores:
    """a1, a2, b: known; n: new. The gallery has a and b."""
    truth = Truth({"a1": "a", "a2": "a", "b": "b", "n": "new"}, {"ga": "a", "gb": "b"})
    lists = {"a1": "ga gb", "a2": "gb ga", "b": "gb ga", "n": "ga gb"}
    return evaluate(ranking_of(lists, values, gallery="ga gb"), truth, protocol=protocol)


def test_animals() -> None:
    values = {"a1": [0.9, 0.1], "a2": [0.8, 0.7], "b": [0.5, 0.1], "n": [0.4, 0.3]}
    closed = animals("animals", values)
    assert closed.mean("top-1") == pytest.approx(2 / 3)  # of queries
    assert closed.mean("BAKS") == pytest.approx((1 / 2 + 1) / 2)  # of individuals
    found = animals("animals(threshold=0.6)", values)
    assert found.mean("BAKS(threshold=0.6)") == (1 / 2 + 0) / 2  # b was called new
    assert found.mean("BAUS(threshold=0.6)") == 1.0
    assert found.mean("BA(threshold=0.6)") == 0.5
    # a1 and a2 are one group, by ga, and with b's image in it; b and n are alone
    assert found.mean("ARI(threshold=0.6)") == 1.0
    all_called = animals("animals(threshold=0)", values)  # one group of all: as by chance
    assert all_called.mean("BAUS(threshold=0)") == 0.0
    assert all_called.mean("ARI(threshold=0)") == 0.0
    at_threshold = animals("animals(threshold=0.4)", values)
    assert at_threshold.mean("BAUS(threshold=0.4)") == 0.0  # a score equal to it is a match


def test_animals_without_unknown_ones() -> None:
    truth = Truth({"q": "a"}, {"g": "a"})
    ranking = ranking_of({"q": "g"}, gallery="g")
    scores = evaluate(ranking, truth, protocol="animals(threshold=0.5)")
    assert scores.mean("BAKS") == 1.0 and scores["BAKS"].low is None  # one query: no interval
    assert scores.mean("BAUS(threshold=0.5)") is None and scores.mean("BA(threshold=0.5)") is None
    assert not math.isnan(scores.mean("ARI(threshold=0.5)") or math.nan)


# ── ties ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["inshop", "gldv2", "animals"])
def test_of_equal_scores_the_order_of_the_ranking_decides(name: str) -> None:
    tied = {"q": [0.5, 0.5]}
    truth = Truth({"q": "x"}, {"a": "x", "b": "y"})
    key = "AP@100" if name == "gldv2" else "top-1"
    means = [
        evaluate(ranking_of({"q": row}, tied, gallery="a b"), truth, protocol=name).mean(key)
        for row in ("a b", "b a")
    ]
    assert means == [1.0, 0.5 if name == "gldv2" else 0.0]
