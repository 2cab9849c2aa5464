"""Per-query values → intervals and p-values. Knows nothing of rankings.

A mean over queries is one draw of what other queries of the same kind would give; an interval says
how far it may be off. Hit rates: Wilson (1927). Other means: the bootstrap's percentiles, shifted
for bias and skewness (BCa, Efron 1987) and widened for few units (Hesterberg 2015); the plain
percentiles hold the truth too seldom for skewed values (docs/metrics.md has the figures).
If queries of one class resemble each other, whole classes are drawn: `clusters`.
"""

import numpy as np

from vizsla.errors import DataError

RESAMPLES = 1000
PERMUTATIONS = 10_000
_CHUNK = 200_000  # numbers in memory at once while resampling: what fits a processor's cache


def wilson(
    successes: np.ndarray | float, n: np.ndarray | float, *, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval (low, high) of a share; of the shape of `successes`."""
    from scipy.special import ndtri

    z = float(ndtri((1 + confidence) / 2))
    n = np.asarray(n, dtype=float)
    share = np.asarray(successes, dtype=float) / n
    middle = share + z * z / (2 * n)
    reach = z * np.sqrt(np.maximum(share * (1 - share), 0) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return np.maximum((middle - reach) / scale, 0.0), np.minimum((middle + reach) / scale, 1.0)


def bootstrap_intervals(
    values: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    highest: np.ndarray | float = 1.0,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """BCa intervals of the means of the columns, (M, 2); nan with fewer than two units.

    values: (n, M) without nan, from 0 to `highest`. clusters: (n,) any labels, drawn as wholes.
    Values that are all the same show no spread to resample: then Wilson's interval for that mean,
    the widest that values between 0 and `highest` allow.
    """
    sums, counts = _by_unit(values, clusters)
    units = len(counts)
    if units < 2:
        return np.full((sums.shape[1], 2), np.nan)
    means = sums.sum(axis=0) / counts.sum()
    off = sums - means * counts[:, None]  # (U, M), each unit's pull on the mean
    spread = (off**2).sum(axis=0)
    flat = spread <= 1e-18 * np.maximum(1.0, means**2)
    skew = (off**3).sum(axis=0) / (6 * np.where(flat, 1, spread) ** 1.5)
    drawn = _resampled_means(sums, counts, resamples, seed)  # (resamples, M)
    below = (drawn < means - 1e-12).sum(axis=0) + 0.5 * (abs(drawn - means) <= 1e-12).sum(axis=0)
    levels = _bca_levels(below / resamples, skew, units, confidence)
    intervals = np.array([np.quantile(drawn[:, j], levels[j]) for j in range(len(means))])
    top = np.broadcast_to(np.asarray(highest, dtype=float), means.shape)
    wide = np.stack(wilson(units * means / top, units, confidence=confidence), axis=1)
    return np.where(flat[:, None], wide * top[:, None], intervals.reshape(-1, 2))


def difference_interval(
    differences: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    comparisons: int = 1,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Interval of the mean of paired differences, (n,); None with fewer than two units.

    Differences of hits (-1, 0, 1): Bonett and Price (2012), which few disagreements do not upset.
    Others, and any with clusters: percentile bootstrap, widened for few units.
    comparisons: how many intervals are to hold together with this confidence (Bonferroni). So far
    out in the tail a thousand resamples say nothing, so the ends are stretched like a normal's.
    """
    differences = np.asarray(differences, dtype=float)
    sums, counts = _by_unit(differences[:, None], clusters)
    if len(counts) < 2:
        return None
    if clusters is None and np.isin(differences, (-1.0, 0.0, 1.0)).all():
        return _bonett_price(differences, 1 - (1 - confidence) / comparisons)
    drawn = _resampled_means(sums, counts, resamples, seed)[:, 0]
    ends = np.quantile(drawn, _wide_levels(len(counts), confidence))
    mean = differences.mean()
    each = _wide_normals(len(counts), 1 - (1 - confidence) / comparisons)
    low, high = mean + (ends - mean) * each / _wide_normals(len(counts), confidence)
    return float(low), float(high)


def resampled_difference(
    drawn: np.ndarray,
    difference: float,
    *,
    units: int,
    comparisons: int = 1,
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """(low, high, p) of a difference, from its values for queries drawn anew, (draws,); nan: none.

    The percentiles, widened and stretched as those of `difference_interval`. p, two-sided: how
    often the resampled values lie as far from the difference as it lies from 0 (Efron and
    Tibshirani 1993, chapter 16). units: how many queries, or classes, were drawn from.
    """
    drawn = drawn[~np.isnan(drawn)]
    ends = np.quantile(drawn, _wide_levels(units, confidence))
    each = _wide_normals(units, 1 - (1 - confidence) / comparisons)
    low, high = difference + (ends - difference) * each / _wide_normals(units, confidence)
    as_far = (abs(drawn - difference) >= abs(difference) * (1 - 1e-12)).sum()
    return float(low), float(high), float((as_far + 1) / (len(drawn) + 1))


def sign_flip_p(
    differences: np.ndarray,
    *,
    clusters: np.ndarray | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> float:
    """Two-sided p-value of paired differences, (n,): how often random signs reach as far.

    If both systems were equally good, each query (or class) could as well have favoured the other.
    Never below 1 / (permutations + 1).
    """
    sums = _by_unit(np.asarray(differences, dtype=float)[:, None], clusters)[0][:, 0]
    sums = sums[sums != 0]  # a zero stays zero under any sign
    if len(sums) == 0:
        return 1.0
    generator = np.random.default_rng(seed)
    reached = abs(sums.sum()) * (1 - 1e-12)
    as_far = 0
    for size in _chunks(permutations, len(sums)):
        signs = generator.integers(0, 2, (size, len(sums)), dtype=np.int8) * 2 - 1
        as_far += int((abs(signs.astype(float) @ sums) >= reached).sum())
    return (as_far + 1) / (permutations + 1)


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected for being many (Holm 1979), in the order given."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in corrected]


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def _by_unit(values: np.ndarray, clusters: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums (U, M) and counts (U,) of the units that are drawn: queries, or clusters of them."""
    if np.isnan(values).any():
        raise DataError("cannot resample unknown values (nan): leave those queries out first")
    if clusters is None:
        return values.astype(float), np.ones(len(values))
    if len(clusters) != len(values):
        raise DataError(f"{len(clusters)} clusters for {len(values)} queries: expected one each")
    _, unit = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    counts = np.bincount(unit).astype(float)
    columns = [np.bincount(unit, values[:, j], len(counts)) for j in range(values.shape[1])]
    return np.stack(columns, axis=1) if columns else np.zeros((len(counts), 0)), counts


def _resampled_means(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples, M): means of as many units, drawn with replacement; the same for all columns."""
    generator = np.random.default_rng(seed)
    units = len(counts)
    means = []
    for size in _chunks(resamples, units):
        times = np.empty((size, units))  # how often each unit was drawn
        for row, drawn in zip(times, generator.integers(0, units, (size, units)), strict=True):
            row[:] = np.bincount(drawn, minlength=units)
        means.append((times @ sums) / (times @ counts)[:, None])
    return np.concatenate(means)


def _chunks(total: int, width: int) -> list[int]:
    """Sizes that add up to `total`, each at most _CHUNK / width (and at least 1)."""
    size = max(1, _CHUNK // max(width, 1))
    return [min(size, total - start) for start in range(0, total, size)]


def _wide_levels(units: int, confidence: float) -> np.ndarray:
    """(2,): the percentiles to read, a little further out than (1 ± confidence) / 2.

    Resampled means spread like a mean whose variance divides by U, and as if the spread were
    known: both make percentiles of few units too narrow.
    """
    from scipy.special import ndtr

    levels: np.ndarray = ndtr(_wide_normals(units, confidence))
    return levels


def _wide_normals(units: int, confidence: float) -> np.ndarray:
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    ends = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    normals: np.ndarray = np.sqrt(units / (units - 1)) * stdtrit(units - 1, ends)
    return normals


def _bca_levels(below: np.ndarray, skew: np.ndarray, units: int, confidence: float) -> np.ndarray:
    """(M, 2): the percentiles to read. below: (M,) share of resampled means below the mean."""
    from scipy.special import ndtr, ndtri

    edge = 1 / (2 * RESAMPLES)
    shift = ndtri(np.clip(below, edge, 1 - edge))[:, None]
    z = shift + _wide_normals(units, confidence)[None]
    levels: np.ndarray = ndtr(shift + z / np.maximum(1 - skew[:, None] * z, 0.1))
    return levels


def _bonett_price(differences: np.ndarray, confidence: float) -> tuple[float, float]:
    from scipy.special import ndtri

    n = len(differences) + 2
    better = ((differences > 0).sum() + 1) / n
    worse = ((differences < 0).sum() + 1) / n
    middle = better - worse
    reach = float(ndtri((1 + confidence) / 2)) * np.sqrt((better + worse - middle**2) / n)
    return float(max(middle - reach, -1)), float(min(middle + reach, 1))
