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
    half = held.vectors.shape[1] // 2
    alone = {"a": held.vectors[:, :half], "b": held.vectors[:, half:]}
    draws = [Draw(np.flatnonzero(query), np.flatnonzero(~query))]
    classes = np.unique(learned_on.labels, return_inverse=True)[1]
    choice = choose_projection(
        held, validation_set(images, held.ids, draws),
        closed_form_makers(learned_on.vectors, classes), weights=[0.5, 0.5], alone=alone,
    )  # fmt: skip
    assert choice.method == "concat" and choice.weights == [0.5, 0.5]
    values = {trial.name: trial.value for trial in choice.report.trials}
    assert choice.without is not None
    assert choice.without.name == max(("a alone", "b alone"), key=lambda name: values[name])
    text = "\n".join(choice.lines())
    assert "a alone" in text and "b alone" in text
    return choice.whiten, values


def test_a_head_is_kept_where_it_gains_and_refused_where_it_harms() -> None:
    kept, values = chosen(noisy(1), noisy(2))
    assert kept not in (None, "none")
    assert values[f"concat({kept})"] > values["concat(none)"] + 0.2
    shuffled = noisy(2)
    labels = np.random.default_rng(3).permutation(shuffled.labels).tolist()
    clear = Embeddings.from_arrays(np.eye(CLASSES)[LABELS], noisy(1).ids, noisy(1).labels)
    wrong = Embeddings.from_arrays(shuffled.vectors[:, :CLASSES], shuffled.ids, labels)
    assert chosen(clear, wrong)[0] == "none"


def test_a_model_alone_is_shown_and_never_kept() -> None:
    """Not even the one that is better than all joined vectors."""
    clear, noise = np.eye(CLASSES)[LABELS], np.random.default_rng(4).normal(size=(len(LABELS), 99))
    ids, labels = noisy(1).ids, noisy(1).labels
    held = Embeddings.from_arrays(np.concatenate([clear, noise], axis=1), ids, labels)
    images, query = ImageSet(Path("x"), held.ids, held.attributes), np.arange(len(held)) % 6 == 0
    on = validation_set(images, ids, [Draw(np.flatnonzero(query), np.flatnonzero(~query))])
    alone = {"clear": held.vectors[:, :CLASSES], "noise": held.vectors[:, CLASSES:]}
    choice = choose_projection(held, on, {}, weights=[0.5, 0.5], alone=alone)
    assert choice.whiten == "none" and choice.without is not None
    assert choice.without.name == "clear alone" and choice.without.value == 1
    assert choice.report.chosen.value < 1 and "rejected" not in "\n".join(choice.lines())


def test_as_many_classes_are_held_out_as_the_test_part_has() -> None:
    images = ImageSet(Path("x"), noisy(1).ids, noisy(1).attributes)
    assert share_held_out(images, Target(30, 66)) == 96 / len(images)
    assert share_held_out(images, Target(200, 600)) == MOST_HELD_OUT
