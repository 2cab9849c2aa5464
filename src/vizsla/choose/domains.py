"""Vectors of queries and gallery → whether they look different, and which training images look so.

Photos and drawings of the same things differ in how they look, not in what they show. So each query
is paired with a gallery image that shows about the same, and a classifier has to tell queries from
gallery images in pairs that it was not fitted to. Needs no labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vizsla.data.splits import LIKE_GALLERY, LIKE_QUERIES

DIFFERENT = 0.75  # the AUC that the interval must exceed; that of random halves is below .64
FEWEST = 20  # images on either side
MOST = 400, 2_000  # queries, gallery images
NEAREST = 0.5  # the share of pairs that is kept: the most similar ones show the same most surely
FOLDS = 5
REPLICATES = 300
SURE = 0.75  # the share of a training domain's images that must look like one side
BOTH = 0.1  # of the training images must look like either side, or most classes have such images
CLEAR = 0.38  # of the median margin on test images: misclassified photos are nearer to the border
FEWEST_CLASSES = 4  # that have both kinds


@dataclass(frozen=True, eq=False)
class DomainGap:
    """How well queries and gallery images are told apart by how they look.

    auc: of a query and a gallery image, how often the query is taken for the query, .5 by chance.
    low, high: its 95 % interval, by a bootstrap over pairs. hit, false_alarm: the shares of queries
    and of gallery images taken for queries. query_margin, gallery_margin: the median distances of
    both from the border, on their own side of it. direction (D,), offset: the classifier, fitted to
    all pairs.
    """

    auc: float
    low: float
    high: float
    hit: float
    false_alarm: float
    query_margin: float
    gallery_margin: float
    direction: np.ndarray
    offset: float

    @property
    def is_wide(self) -> bool:
        """Whether queries and gallery surely look different."""
        return self.low > DIFFERENT

    def text(self) -> str:
        """The finding in words."""
        return (
            f"queries and gallery look different (told apart with AUC {self.auc:.2f}, "
            f"{self.low:.2f} to {self.high:.2f})"
        )

    def margins(self, vectors: np.ndarray) -> np.ndarray:
        """(N,) above 0 for images that look like queries, below it for those like the gallery."""
        found: np.ndarray = vectors @ self.direction + self.offset
        return found


def domain_gap(queries: np.ndarray, gallery: np.ndarray, *, seed: int = 0) -> DomainGap | None:
    """How different queries and gallery look. None: too few to tell.

    queries (Q, D), gallery (G, D): unit vectors of one model.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import
    from sklearn.linear_model import LogisticRegression

    if len(queries) < FEWEST or len(gallery) < FEWEST:
        return None
    rng = np.random.default_rng((seed, 74))
    queries, gallery = (
        side[np.sort(rng.permutation(len(side))[:most])]
        for side, most in zip((queries, gallery), MOST, strict=True)
    )
    cosines = queries @ gallery.T
    rows, columns = linear_sum_assignment(-cosines)
    kept = np.argsort(-cosines[rows, columns])[: max(FEWEST, round(NEAREST * len(rows)))]
    pairs = np.stack([queries[rows[kept]], gallery[columns[kept]]])  # (2, P, D)
    P, D = pairs.shape[1:]
    mean, scale = pairs.mean(axis=(0, 1)), pairs.std(axis=(0, 1)) + 1e-6
    pairs = (pairs - mean) / (scale * D**0.5)
    truth = np.repeat([1, 0], P)

    def fitted(part: np.ndarray) -> LogisticRegression:
        model = LogisticRegression(C=10.0, max_iter=500)
        return model.fit(pairs[:, part].reshape(-1, D), truth.reshape(2, P)[:, part].ravel())

    fold = rng.permutation(P) % FOLDS
    scores = np.empty((2, P))
    for f in range(FOLDS):
        held = fold == f
        model = fitted(~held)
        scores[:, held] = model.decision_function(pairs[:, held].reshape(-1, D)).reshape(2, -1)
    right = (scores[0][:, None] > scores[1]) + 0.5 * (scores[0][:, None] == scores[1])  # (P, P)
    shares = rng.multinomial(P, np.full(P, 1 / P), REPLICATES) / P  # (R, P)
    low, high = np.percentile(np.einsum("ri,ij,rj->r", shares, right, shares), [2.5, 97.5])
    model = fitted(np.ones(P, bool))
    direction = model.coef_[0] / (scale * D**0.5)
    offset = float(model.intercept_[0] - mean @ direction)
    hit, false_alarm = (scores > 0).mean(axis=1)
    return DomainGap(
        float(right.mean()), float(low), float(high), float(hit), float(false_alarm),
        float(np.median(scores[0])), float(np.median(-scores[1])), direction, offset,
    )  # fmt: skip


@dataclass(frozen=True)
class DomainRoles:
    """The training images' domains that validation takes its queries and its gallery from.

    assigned: N domains, if the images had none of their own.
    """

    query: str
    gallery: str
    assigned: list[str] | None = None


def domain_roles(
    gap: DomainGap,
    vectors: np.ndarray,
    labels: Sequence[str | None],
    domains: Sequence[str | None] | None,
) -> DomainRoles | None:
    """Which training images can be queries, and which gallery. None: they are not of both kinds.

    vectors (N, D), N labels: of training images. domains: N of their own; None to assign them by
    how they look.
    """
    margins = gap.margins(vectors)
    taken = margins > 0
    names = np.array([str(label) for label in labels])
    if domains is None:
        share = (taken.mean() - gap.false_alarm) / max(gap.hit - gap.false_alarm, 1e-3)
        rare, usual = (taken, gap.query_margin) if share < 0.5 else (~taken, gap.gallery_margin)
        is_clear = rare.any() and np.median(abs(margins[rare])) > CLEAR * usual
        # Rare are, for example, one catalogue picture of each class: then most classes have one.
        least = 0.0 if BOTH < share < 1 - BOTH else 0.5
        if not is_clear or not _in_enough_classes(names, taken, ~taken, share=least):
            return None
        assigned = [LIKE_QUERIES if one else LIKE_GALLERY for one in taken]
        return DomainRoles(LIKE_QUERIES, LIKE_GALLERY, assigned)
    own = np.array([domain or "" for domain in domains])
    shares = {str(name): float(taken[own == name].mean()) for name in np.unique(own) if name}
    query, gallery = (max(shares, key=lambda d: s * shares[d], default="") for s in (1, -1))
    if shares.get(query, 0) < SURE or shares.get(gallery, 1) > 1 - SURE:
        return None
    if not _in_enough_classes(names, own == query, own == gallery):
        return None
    return DomainRoles(query, gallery)


def _in_enough_classes(
    names: np.ndarray, one: np.ndarray, other: np.ndarray, *, share: float = 0.0
) -> bool:
    """Whether enough classes, and this share of them, have images of both kinds; names (N,), one
    and other (N,) bool."""
    found = len(set(names[one].tolist()) & set(names[other].tolist()))
    return found >= max(FEWEST_CLASSES, share * len(np.unique(names)))
