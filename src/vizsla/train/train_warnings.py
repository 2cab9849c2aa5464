"""Signs that a training did nothing, or did harm, in sentences that say what to do."""

import numpy as np
import torch
from torch import Tensor, nn

from vizsla.train.optimizer import distance_moved

NEAR_CHANCE = 0.01  # of the loss
COLLAPSED = 0.98  # mean cosine of different images


def after_training(
    stopped: str | None,
    still: list[str],
    final_loss: float,
    chance: float | None,
    loss: str,
    vectors: Tensor,
) -> list[str]:
    """All signs that the loop and its last weights give. stopped: why it ended early, if it did;
    what did not move by then says nothing. vectors: (B, D) of some training images."""
    ended = [stopped] if stopped else still
    return [*ended, *loss_near_chance(final_loss, chance, loss), *collapsed(vectors)]


def unmoved(before: dict[str, Tensor], module: nn.Module, steps: int) -> list[str]:
    """Weights that should have moved and did not, and the reverse."""
    if steps == 0:
        return []
    moved = distance_moved(before, module)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    still = sorted(name for name in trained if moved.get(name) == 0)
    strayed = sorted(name for name, far in moved.items() if far > 0 and name not in trained)
    said = []
    if still:
        all_of_them = "all" if len(still) == len(trained) else f"{len(still)} of"
        said.append(
            f"{all_of_them} {len(trained)} trained weights did not move in {steps} steps "
            f"({', '.join(still[:3])}): they are not part of what makes the vectors, or the "
            "learning rate is 0; check --learning-rate and --pooling"
        )
    if strayed:
        said.append(
            f"{len(strayed)} weights that should be frozen moved ({', '.join(strayed[:3])}): "
            "the network shares or rewrites them; use --finetune full, or report it"
        )
    return said


def loss_near_chance(loss: float, chance: float | None, name: str) -> list[str]:
    if chance is None or not np.isfinite(loss) or abs(loss - chance) > NEAR_CHANCE * chance:
        return []
    return [
        f"the loss ended at {loss:.3f}, within 1 % of chance ({chance:.3f}) for {name}: nothing "
        "was learned. Raise --learning-rate, train longer, or check that the labels fit the images"
    ]


def collapsed(vectors: Tensor) -> list[str]:
    """vectors: (B, D) of different images, unit rows."""
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
    """values: the frozen model's, one a query; chance: what a random ranking would give."""
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
    if not np.array_equal(tuned, frozen) or frozen.min(initial=1.0) >= 1:  # perfect: no sign
        return []
    return [
        "the tuned model scores exactly as the frozen one on every query: nothing was trained. "
        "Raise --learning-rate or train longer"
    ]
