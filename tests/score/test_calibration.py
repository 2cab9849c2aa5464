from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Target, split
from vizsla.embed.embeddings import Embeddings
from vizsla.errors import DataError, UsageError
from vizsla.score.calibration import (
    calibrate,
    calibrate_on_split,
    calibrate_on_training,
    share_like,
)
from vizsla.score.relevance import Relevance, relevance
from vizsla.score.truth import Truth
from vizsla.search.ranking import Ranking


def judged(n: int, *, right_above: float, seed: int = 0) -> Relevance:
    """n queries whose first match is right where its score lies above, else by a coin."""
    rng = np.random.default_rng(seed)
    scores = rng.random(n)
    right = (scores > right_above) | (rng.random(n) < 0.5)
    labels = {f"q{i}": "cat" if r else "dog" for i, r in enumerate(right)}
    lists = {name: ["g"] for name in labels}
    ranking = Ranking.from_lists(lists, {f"q{i}": [float(s)] for i, s in enumerate(scores)})
    return relevance(ranking, Truth(labels, {"g": "cat", "h": "dog"}))


def test_the_cut_off_keeps_its_promise_on_other_queries() -> None:
    learned = calibrate(judged(2000, right_above=0.6), precision=0.95, learned_on="some")
    assert learned.cutoff is not None
    assert 0.45 < learned.cutoff.score < 0.6  # half of those below .6 are right too
    assert learned.queries == 2000 and learned.auc is not None and learned.auc > 0.7
    text = learned.applied(judged(5000, right_above=0.6, seed=1))
    share = float(text.split(", ")[1].split(" %")[0])
    assert 95 <= share < 98
    assert "learned on some" in learned.lines()[0]
    assert "95 % of the time" in learned.lines()[-1]


def test_a_stricter_promise_needs_a_higher_score() -> None:
    part = judged(2000, right_above=0.6)
    low, high = (calibrate(part, precision=p).cutoff for p in (0.8, 0.99))
    assert low is not None and high is not None and low.score < high.score


def test_few_queries_promise_nothing() -> None:
    learned = calibrate(judged(20, right_above=0.0))
    assert learned.right == 20 and learned.auc is None
    assert learned.cutoff is None and learned.applied(judged(20, right_above=0.0)) == ""
    assert "no cut-off" in learned.lines()[-1]


def test_each_query_of_several_draws_counts_once() -> None:
    part = judged(50, right_above=0.5)
    assert calibrate([part, part]).queries == 50
    assert calibrate([part, part]).to_dict() == calibrate(part).to_dict()


def test_rankings_without_scores_and_wrong_shares_are_refused() -> None:
    plain = relevance(Ranking.from_lists({"q": ["g"]}), Truth({"q": "a"}, {"g": "a"}))
    with pytest.raises(DataError, match="holds no scores"):
        calibrate(plain)
    with pytest.raises(UsageError, match="between 0 and 1"):
        calibrate(judged(5, right_above=0), precision=95)


def training(classes: int = 30, each: int = 12) -> Embeddings:
    """Classes as noisy directions."""
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(classes, 16))
    vectors = np.repeat(centres, each, axis=0) + rng.normal(size=(classes * each, 16)) * 0.9
    labels = [f"c{i // each}" for i in range(classes * each)]
    return Embeddings.from_arrays(vectors, [f"{i:04}.png" for i in range(len(labels))], labels)


def test_the_validation_part_is_as_large_as_the_test_part() -> None:
    vectors = training()
    images = ImageSet(Path("x"), vectors.ids, vectors.attributes)
    assert share_like(images, None) == 0.9
    assert share_like(images, Target(50, 150, per_class=10)) == pytest.approx(15 / 30)
    assert share_like(images, Target(60, 120)) == pytest.approx(180 / 360)
    assert share_like(images, Target(3, 3)) == 0.2
    learned = calibrate_on_training(vectors, target=Target(50, 150, per_class=10), source="here")
    assert "of here (each among 135 images of 15 classes)" in learned.learned_on
    assert 50 <= learned.queries <= 150
    assert learned.right < learned.queries


def test_images_that_could_not_be_read_are_left_out() -> None:
    vectors = training()
    images = ImageSet(Path("x"), vectors.ids, vectors.attributes)
    parts = split(images, share=0.5)
    gone = set(parts.draws[0].query[:3].tolist())
    kept = [i for i in range(len(vectors)) if i not in gone]
    some = Embeddings([vectors.ids[i] for i in kept], vectors.vectors[kept], pa.table({}), "own")
    whole = calibrate_on_split([vectors], images, parts, source="x")
    assert calibrate_on_split([some], images, parts, source="x").queries < whole.queries
    with pytest.raises(DataError, match="hold none of"):
        calibrate_on_split(
            [Embeddings(["no"], vectors.vectors[:1], pa.table({}), "own")],
            images,
            parts,
            source="x",
        )


def test_other_models_and_images_without_labels_are_refused() -> None:
    with pytest.raises(DataError, match="by model own, the vectors to be judged by other"):
        calibrate_on_training(training(), model_id="other")
    plain = Embeddings(["a"], np.ones((1, 2), np.float32), pa.table({}), "own")
    with pytest.raises(DataError, match="has no labels"):
        calibrate_on_training(plain, source="t.emb")
