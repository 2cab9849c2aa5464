"""Two images' tokens → how alike they are by late interaction (Khattab and Zaharia, 2020).

Each token of the query looks for the most similar one of the other image, wherever that is:
`geometry` compares places.
"""

from collections.abc import Sequence

import numpy as np

from vizsla.embed.local_features import LocalFeatures

STEP = 2**-11  # tokens are rounded to multiples of it
AT_ONCE = 64  # images in one product


def max_similarities(query: LocalFeatures, others: Sequence[LocalFeatures]) -> np.ndarray:
    """(n,) float64: the mean, over the query's tokens, of the highest cosine with a token of each
    image; 0 where one of both has none.

    The same whatever is compared at once: products of numbers of 11 bits and their partial sums are
    exact in float32. The rounding moves a cosine by about 0.0002.
    """
    found = np.zeros(len(others))
    ours = _rounded(query)
    there = [i for i, other in enumerate(others) if len(other) and len(query)]
    for start in range(0, len(there), AT_ONCE):
        block = there[start : start + AT_ONCE]
        rows = [_rounded(others[i]) for i in block]
        firsts = np.cumsum([0, *map(len, rows)])[:-1]
        cosines = ours @ np.concatenate(rows).T  # (T, ΣT)
        best = np.maximum.reduceat(cosines, firsts, axis=1)  # (T, n)
        found[block] = best.mean(axis=0, dtype=np.float64)
    return found


def _rounded(features: LocalFeatures) -> np.ndarray:
    """(T, D) float32 tokens of length about 1."""
    rows: np.ndarray = np.round(features.unit / np.float32(STEP)) * np.float32(STEP)
    return rows
