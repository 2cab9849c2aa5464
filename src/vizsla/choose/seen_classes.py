"""Training and test images → whether the test classes are those of training. Needs no test labels.

An image of a class that was seen lies near that class, and far from the next one; an image of a
new class lies between several. How near is learned from the training images: each is compared with
all others (as if its class were seen), and with those of other classes only (as if it were new).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vizsla.data.splits import NEW, SEEN

log = logging.getLogger("vizsla.choose")

SURE = 0.7  # the share of seen classes that the interval must exceed
PER_CLASS, IMAGES = 60, 600  # training images of a class; images on either side
FEWEST = 20  # images on either side
REPLICATES = 300


@dataclass(frozen=True)
class SeenShare:
    """The estimated share of the test images whose class is among the training classes.

    low, high: its 95 % interval, by a bootstrap over training classes and test images; wider where
    some classes have too few images to be compared.
    """

    share: float
    low: float
    high: float

    @property
    def validate_on(self) -> str:
        """What validation should hold out: seen classes only where that is sure."""
        return SEEN if self.low > SURE else NEW

    def text(self) -> str:
        """The finding and what follows from it, for the log."""
        shown = [f"{float(np.clip(v, 0, 1)):.0%}" for v in (self.share, self.low, self.high)]
        is_sure = self.low > SURE or self.high < SURE
        sure = "" if is_sure else ", the safer choice where it is unsure"
        return (
            f"about {shown[0]} of the test images ({shown[1]} to {shown[2]}) are of training "
            f"classes, by their nearest training images: validating on {self.validate_on}{sure}"
        )


def seen_share(
    training: np.ndarray,
    labels: Sequence[str],
    test: np.ndarray,
    *,
    all_labels: Sequence[object] | None = None,
    seed: int = 0,
) -> SeenShare | None:
    """The share of test images of training classes. None: too few images or classes to tell.

    training (N, D), test (M, D): unit vectors of one model, not trained on these images. labels: N.
    all_labels: of the whole training part, if these images are only some of them.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import

    rng = np.random.default_rng((seed, 71))
    codes = np.unique(np.array(labels), return_inverse=True)[1]
    classes = [np.flatnonzero(codes == c) for c in range(int(codes.max(initial=-1)) + 1)]
    kept = [rng.permutation(rows)[:PER_CLASS] for rows in classes if len(rows) > 1]
    if len(kept) < 3 or sum(map(len, kept)) < FEWEST or len(test) < FEWEST:
        return None
    known, known_codes = training[np.concatenate(kept)], codes[np.concatenate(kept)]
    # Classes of single images cannot be compared. The others' share of the seen test images is not
    # known: it is that of the classes, or of the training images if large classes have more.
    compared = {str(labels[rows[0]]) for rows in kept}
    everywhere = [str(label) for label in (labels if all_labels is None else all_labels)]
    of_classes = len(compared) / len(set(everywhere))
    of_images = float(np.mean([label in compared for label in everywhere]))
    asked = rng.permutation(len(known))[:IMAGES]
    test = test[rng.permutation(len(test))[:IMAGES]]

    cosines = known[asked] @ known.T
    cosines[np.arange(len(asked)), asked] = -np.inf  # itself
    as_seen = _nearness(cosines, known_codes)
    cosines[known_codes[None, :] == known_codes[asked, None]] = -np.inf  # its own class
    as_new = _nearness(cosines, known_codes)
    measured = np.concatenate([as_seen, as_new])
    scale = measured.mean(axis=0), measured.std(axis=0) + 1e-9
    truth = np.repeat([1, 0], len(asked))
    model = LogisticRegression().fit((measured - scale[0]) / scale[1], truth)
    seen, new, found = (
        model.predict_proba((part - scale[0]) / scale[1])[:, 1]
        for part in (as_seen, as_new, _nearness(test @ known.T, known_codes))
    )
    # Adjusted count (Forman, 2008): the test part's mean between those of both extremes.
    own = np.unique(known_codes[asked], return_inverse=True)[1]
    sums = np.stack([np.bincount(own, w) for w in (np.ones(len(own)), seen, new)])  # (3, C)
    C = sums.shape[1]
    counts, seen_sums, new_sums = sums @ rng.multinomial(C, np.full(C, 1 / C), REPLICATES).T
    means = rng.choice(found, (REPLICATES, len(found))).mean(axis=1)
    drawn = _between(means, seen_sums / counts, new_sums / counts)
    low, high = np.percentile(drawn, [2.5, 97.5])
    low, high = low / max(of_classes, of_images), high / min(of_classes, of_images)
    share = _between(found.mean(), seen.mean(), new.mean()) / of_classes
    return SeenShare(float(share), float(low), float(high))


def _between(value: Any, seen: Any, new: Any) -> Any:
    """Where a value lies between `new` (0) and `seen` (1)."""
    return (value - new) / np.maximum(seen - new, 1e-3)


def _nearness(cosines: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(Q, 2): the cosine of the nearest image, and by how much its class is nearer than the next.

    cosines (Q, N); codes (N,): the images' classes. -inf: not to be compared with.
    """
    nearest = np.stack([cosines[:, codes == c].max(axis=1) for c in np.unique(codes)], axis=1)
    second, first = np.sort(nearest, axis=1)[:, -2:].T
    return np.stack([first, first - second], axis=1)
