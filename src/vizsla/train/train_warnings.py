"""The warnings of a training: each function returns sentences on what is wrong and what to do."""

import numpy as np
import torch
from torch import Tensor, nn

from vizsla.train.optimizer import largest_changes

NEAR_CHANCE = 0.01  # of the loss
COLLAPSED = 0.98  # mean cosine of different images
FEW_QUERIES = 50  # of the validation: a standard error of .05 and more
OVERRUN = 1.1  # times the budget


def few_queries(queries: int) -> list[str]:
    """queries: of the validation."""
    if queries >= FEW_QUERIES:
        return []
    return [
        f"the choice rests on only {queries} held-out queries: more training images, or a larger "
        "share of them (--set share=0.4), would make it more reliable"
    ]


def budget_overrun(
    budget: float | None, spent: float, images: int, embedding: float, validation: float
) -> list[str]:
    """embedding, validation: seconds for embedding the images and for scoring a model, the least
    that any training takes."""
    if budget is None or spent < OVERRUN * budget + 1:
        return []
    return [
        f"training took {spent:.0f} s, {spent - budget:.0f} s more than the budget of "
        f"{budget:.0f} s: embedding {images:,} training images alone took {embedding:.0f} s, and "
        f"scoring a model on the held-out ones {validation:.0f} s. Give more time, or fewer images"
    ]


def after_training(
    stopped: str | None,
    unmoved: list[str],
    final_loss: float,
    chance: float | None,
    loss: str,
    vectors: Tensor,
) -> list[str]:
    """Warnings about the loop and its last weights.

    stopped: why it ended early, if it did. unmoved: of `unmoved_weights`, left out in that case,
    since they prove nothing by then. vectors: (B, D) of some training images.
    """
    ended = [stopped] if stopped else unmoved
    return [*ended, *loss_near_chance(final_loss, chance, loss), *collapsed(vectors)]


def unmoved_weights(before: dict[str, Tensor], module: nn.Module, steps: int) -> list[str]:
    """Weights that should have moved and did not, and the reverse. before: by name."""
    if steps == 0:
        return []
    moved = largest_changes(before, module)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    still = sorted(name for name in trained if moved.get(name) == 0)
    moved_frozen = sorted(name for name, far in moved.items() if far > 0 and name not in trained)
    found = []
    if still:
        all_of_them = "all" if len(still) == len(trained) else f"{len(still)} of"
        found.append(
            f"{all_of_them} {len(trained)} trained weights did not move in {steps} steps "
            f"({', '.join(still[:3])}): either the vectors do not depend on them, or the learning "
            "rate is 0. Check --learning-rate and --pooling"
        )
    if moved_frozen:
        found.append(
            f"{len(moved_frozen)} weights that should be frozen moved "
            f"({', '.join(moved_frozen[:3])}): the network shares or rewrites them. Use --finetune "
            "full, or report it"
        )
    return found


def loss_near_chance(loss: float, chance: float | None, name: str) -> list[str]:
    """chance: the loss of a network that has learned nothing; None if it is unknown."""
    if chance is None or not np.isfinite(loss) or abs(loss - chance) > NEAR_CHANCE * chance:
        return []
    return [
        f"the loss ended at {loss:.3f}, within 1 % of chance ({chance:.3f}) for {name}: nothing "
        "was learned. Raise --learning-rate, train longer, or check that the labels fit the images"
    ]


def collapsed(vectors: Tensor) -> list[str]:
    """Vectors that are all nearly the same. vectors: (B, D) of different images, unit rows."""
    if len(vectors) < 4:
        return []
    total = torch.nn.functional.normalize(vectors.double(), dim=1).sum(0)
    mean = (float(total @ total) - len(vectors)) / (len(vectors) * (len(vectors) - 1))
    if mean < COLLAPSED:
        return []
    return [
        f"the embedding collapsed: different images have a mean cosine of {mean:.3f}. Lower "
        "--learning-rate, or use another --loss or --miner (hard triplets are prone to it)"
    ]


def frozen_near_chance(
    values: np.ndarray, chance: float | None, *, real_weights: bool
) -> list[str]:
    """values: of the frozen model, one per query. chance: what a random ranking would give."""
    if chance is None or not real_weights:
        return []
    mean = float(values.mean())
    error = float(values.std() / max(1, len(values)) ** 0.5)
    if mean > chance + max(3 * error, 0.05 * (1 - chance)):
        return []
    return [
        f"the frozen model scores {mean:.3f} on validation, chance is {chance:.3f}: the weights or "
        "the preprocessing are wrong for these images. Check --weights and `vizsla show`"
    ]


def tuned_like_frozen(tuned: np.ndarray, frozen: np.ndarray) -> list[str]:
    """tuned, frozen: the scores of both models, one value per query."""
    if (
        not np.array_equal(tuned, frozen) or frozen.min(initial=1.0) >= 1
    ):  # two perfect models prove nothing
        return []
    return [
        "the tuned model scores exactly as the frozen one on every query: nothing was trained. "
        "Raise --learning-rate or train longer"
    ]
