"""Which projection of joint vectors validation prefers."""

from pathlib import Path

import numpy as np

from vizsla.choose.projection_choice import MOST_HELD_OUT, choose_projection, share_held_out
from vizsla.choose.validation import validation_set
from vizsla.data.imageset import ImageSet
from vizsla.data.splits import Draw, Target
from vizsla.embed.embeddings import Embeddings
from vizsla.model.closed_forms import closed_form_makers

CLASSES, EACH, DIM = 12, 24, 16
LABELS = np.repeat(np.arange(CLASSES), EACH)


def noisy(seed: int) -> Embeddings:
    """Classes that differ in the first half of the numbers, under strong noise that all share."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(CLASSES, DIM)) * (np.arange(DIM) < DIM / 2)
    mixing = np.random.default_rng(1).normal(size=(3, DIM)) * 3
    noise = rng.normal(size=(len(LABELS), 3)) @ mixing
    vectors = centres[LABELS] + noise + rng.normal(size=(len(LABELS), DIM)) * 0.3
    ids = [f"{seed}-{i}" for i in range(len(LABELS))]
    return Embeddings.from_arrays(vectors, ids, [str(label) for label in LABELS])


def chosen(held: Embeddings, learned_on: Embeddings) -> tuple[str | None, dict[str, float]]:
    images = ImageSet(Path("x"), held.ids, held.attributes)
    query = np.arange(len(held)) % 6 == 0
    draws = [Draw(np.flatnonzero(query), np.flatnonzero(~query))]
    classes = np.unique(learned_on.labels, return_inverse=True)[1]
    choice = choose_projection(
        held, validation_set(images, held.ids, draws),
        closed_form_makers(learned_on.vectors, classes), weights=[0.5, 0.5],
    )  # fmt: skip
    assert choice.method == "concat" and choice.weights == [0.5, 0.5]
    assert choice.without is not None and choice.without.name == "concat(none)"
    return choice.whiten, {trial.name: trial.value for trial in choice.report.trials}


def test_a_head_is_kept_where_it_gains_and_refused_where_it_harms() -> None:
    kept, values = chosen(noisy(1), noisy(2))
    assert kept not in (None, "none")
    assert values[f"concat({kept})"] > values["concat(none)"] + 0.2
    shuffled = noisy(2)
    labels = np.random.default_rng(3).permutation(shuffled.labels).tolist()
    clear = Embeddings.from_arrays(np.eye(CLASSES)[LABELS], noisy(1).ids, noisy(1).labels)
    wrong = Embeddings.from_arrays(shuffled.vectors[:, :CLASSES], shuffled.ids, labels)
    assert chosen(clear, wrong)[0] == "none"


def test_as_many_classes_are_held_out_as_the_test_part_has() -> None:
    images = ImageSet(Path("x"), noisy(1).ids, noisy(1).attributes)
    assert share_held_out(images, Target(30, 66)) == 96 / len(images)
    assert share_held_out(images, Target(200, 600)) == MOST_HELD_OUT
