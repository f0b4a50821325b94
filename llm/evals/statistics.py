"""Intervals: what a figure measured on a sample says about the figure itself.

Wilson's interval for plain shares, the percentile bootstrap for means and for paired differences.
Resampling is seeded and works on counts of rows, so the same figures always give the same interval.

N observations, R resamples.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
CHUNK_ENTRIES = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A figure with the interval that holds it at the stated level."""

    value: float
    low: float
    high: float
    n: int


def wilson_interval(successes: float, n: int, level: float = 0.95) -> Interval:
    """Return a share with Wilson's score interval.

    Args:    successes: in [0, n]; may be fractional when ties are split.  n: trials, at least 1.
             level: coverage, in (0, 1).
    Returns: Interval of the share; low and high lie within [0, 1].
    Raises:  ValueError: n < 1, successes outside [0, n], or level outside (0, 1).
    Source:  Wilson, JASA 22(158), 1927. Without continuity correction.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials: need n >= 1 and 0 <= successes <= n")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: it must lie in (0, 1)")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    # At the ends centre and half cancel; rounding must not leave 1e-17.
    low = 0.0 if successes == 0 else float(centre - half)
    high = 1.0 if successes == n else float(centre + half)
    return Interval(share, low, high, n)


def bootstrap_interval(values: npt.ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return the mean of `values` with its percentile bootstrap interval.

    Args:    values: N finite numbers, independent of one another.  level: coverage, in (0, 1).
             resamples: R, at least 1.  seed: of the resampling.
    Returns: Interval of the mean; low <= value <= high holds for all but degenerate samples.
    Raises:  ValueError: empty, not one-dimensional, or not finite.
    Source:  Efron, Annals of Statistics 7(1), 1979; percentile method.
    """
    values_N = _one_dimensional(values)
    means_R = resample_means(values_N, resamples, seed)
    low, high = np.quantile(means_R, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(values_N.mean()), float(low), float(high), len(values_N))


def clustered_interval(
    values: npt.ArrayLike,
    clusters: Sequence[Hashable],
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return the mean of `values` with a percentile bootstrap over clusters of values that hang together.

    Args:    values: N finite numbers.  clusters: the cluster of each; whole clusters are resampled.
    Returns: Interval of the mean over values (a ratio of sums: a cluster counts by its size); n is N.
    Raises:  ValueError: lengths differ, empty, or not finite.
    Source:  Davison and Hinkley, Bootstrap Methods, 1997, section 3.8 (resampling of whole groups).
    """
    values_N = _one_dimensional(values)
    if len(clusters) != len(values_N):
        raise ValueError(f"{len(clusters)} cluster names for {len(values_N)} values")
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    cluster_N = np.array([places[name] for name in clusters])
    sum_C = np.bincount(cluster_N, weights=values_N).astype(np.float64)
    size_C = np.bincount(cluster_N).astype(np.float64)
    # The same seed draws the same clusters for both sums.
    means_R = resample_means(sum_C, resamples, seed) / resample_means(size_C, resamples, seed)
    low, high = np.quantile(means_R, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(values_N.mean()), float(low), float(high), len(values_N))


def paired_difference(
    ours: npt.ArrayLike, theirs: npt.ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the mean of ours - theirs, bootstrapped over pairs (same item, two treatments).

    Args:    ours, theirs: N numbers each, entry i of both from the same item.
    Returns: Interval of the mean difference; excludes zero when the sign is settled at `level`.
    Raises:  ValueError: lengths differ, empty, or not finite.
    Source:  Efron, 1979, applied to the differences, so that what the items share cancels.
    """
    ours_N, theirs_N = _one_dimensional(ours), _one_dimensional(theirs)
    if len(ours_N) != len(theirs_N):
        raise ValueError(f"a paired difference needs equal lengths, got {len(ours_N)} and {len(theirs_N)}")
    return bootstrap_interval(ours_N - theirs_N, level, resamples, seed)


def share_difference(ours: Interval, theirs: Interval, phi: float = 0.0) -> Interval:
    """Return the difference of two shares, ours - theirs, from their Wilson intervals.

    low = d - sqrt((p - l)^2 - 2 phi (p - l)(u' - p') + (u' - p')^2), and high with the ends exchanged, where p, l, u
    are our share and its bounds, p', l', u' theirs, and phi the correlation of the two.

    Args:    ours, theirs: as `wilson_interval` returns them, at one level.  phi: 0 for independent samples.
    Returns: Interval of the difference at that level. It has a width even where both shares are 0, or 1.
    Source:  Newcombe, Statistics in Medicine 17, 1998, pp. 873-890, method 10.
    """

    def reach(one: float, other: float) -> float:
        return float(np.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2)))

    value = ours.value - theirs.value
    low = value - reach(ours.value - ours.low, theirs.high - theirs.value)
    high = value + reach(ours.high - ours.value, theirs.value - theirs.low)
    return Interval(value, low, high, min(ours.n, theirs.n))


def paired_share_difference(ours: Sequence[bool], theirs: Sequence[bool], level: float = 0.95) -> Interval:
    """Return the difference of two shares of the same items, ours - theirs.

    Args:    ours, theirs: N truth values each, entry i of both from the same item.
    Returns: Interval of `share_difference`, phi being the correlation of the pairs, corrected for continuity. Where no
             item differs it still has a width: a few items settle nothing.
    Raises:  ValueError: lengths differ, or empty.
    Source:  Newcombe, Statistics in Medicine 17, 1998, pp. 2635-2650, method 10.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"a paired difference needs equal lengths, got {len(ours)} and {len(theirs)}")
    n, a, b = len(ours), sum(map(bool, ours)), sum(map(bool, theirs))
    p, q = wilson_interval(a, n, level), wilson_interval(b, n, level)
    both = sum(bool(one) and bool(other) for one, other in zip(ours, theirs, strict=True))
    # both * neither - ours alone * theirs alone
    covariance = float(both * (n - a - b + both) - (a - both) * (b - both))
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    spread = float(np.sqrt(a * (n - a) * b * (n - b)))
    return share_difference(p, q, covariance / spread if spread else 0.0)


def mean_difference(
    ours: npt.ArrayLike, theirs: npt.ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the difference of the means of two independent samples, ours - theirs, each bootstrapped on its own.

    Args:    ours, theirs: finite numbers, not of the same items (see `paired_difference`).
    Returns: Interval of the difference; n is the smaller sample's.
    Raises:  ValueError: empty, or not finite.
    Source:  Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 8.3 (two samples); percentiles.
    """
    ours_N, theirs_N = _one_dimensional(ours), _one_dimensional(theirs)
    means_R = resample_means(ours_N, resamples, seed) - resample_means(theirs_N, resamples, seed + 1)
    low, high = np.quantile(means_R, [0.5 - level / 2, 0.5 + level / 2])
    value = float(ours_N.mean() - theirs_N.mean())
    return Interval(value, float(low), float(high), min(len(ours_N), len(theirs_N)))


def ratio_interval(
    above: npt.ArrayLike, below: npt.ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return sum(above) / sum(below) with a percentile bootstrap over the N items that both belong to.

    Args:    above: N finite numbers.  below: N numbers, at least 0, not all 0.
    Returns: Interval of the ratio; with `below` all ones that of a mean. n is N.
    Raises:  ValueError: lengths differ, empty, or not finite.
    Source:  Davison and Hinkley, Bootstrap Methods, 1997, section 2.4 (ratio of averages).
    """
    return _compare_ratios([(above, below)], level, resamples, seed)


def paired_ratio_difference(
    ours: tuple[npt.ArrayLike, npt.ArrayLike],
    theirs: tuple[npt.ArrayLike, npt.ArrayLike],
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return the difference of two `ratio_interval`s whose items are the same: both are resampled together.

    Args:    ours, theirs: (above, below) as there, N numbers each, entry i of all four from the same item.
    Returns: Interval of ours - theirs; excludes zero when the sign is settled at `level`.
    Raises:  ValueError: lengths differ, empty, or not finite.
    Source:  Efron, 1979, applied to the items, so that what both have in common cancels.
    """
    return _compare_ratios([ours, theirs], level, resamples, seed)


def _compare_ratios(
    sides: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], level: float, resamples: int, seed: int
) -> Interval:
    """The first side's ratio less the second's, if there is one; the same seed draws the same items for every sum."""
    value: float = 0.0
    ratios_R: Floats = np.zeros(resamples)
    lengths = set()
    for sign, (above, below) in zip((1, -1), sides, strict=False):
        above_N, below_N = _one_dimensional(above), _one_dimensional(below)
        lengths |= {len(above_N), len(below_N)}
        if len(lengths) > 1:
            raise ValueError(f"the items of a ratio need equal lengths, got {sorted(lengths)}")
        value += sign * float(above_N.sum() / below_N.sum())
        ratios_R += sign * resample_means(above_N, resamples, seed) / resample_means(below_N, resamples, seed)
    low, high = np.quantile(ratios_R, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value, float(low), float(high), lengths.pop())


def resample_means(values_N: Floats, resamples: int, seed: int) -> Floats:
    """Means of `resamples` draws with replacement; chunked, so that memory does not grow with R."""
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}: at least 1 is needed")
    random = np.random.default_rng(seed)
    rows = max(1, CHUNK_ENTRIES // len(values_N))
    chunks = [
        values_N[random.integers(0, len(values_N), (min(rows, resamples - done), len(values_N)))].mean(axis=1)
        for done in range(0, resamples, rows)
    ]
    return np.concatenate(chunks)


def as_metrics(interval: Interval, name: str = "value") -> dict[str, float | int]:
    """The interval as reports hold it: {name, low, high, n}."""
    return {name: interval.value, "low": interval.low, "high": interval.high, "n": interval.n}


def _one_dimensional(values: npt.ArrayLike) -> Floats:
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or not len(values_N):
        raise ValueError(f"need a non-empty list of numbers, got the shape {values_N.shape}")
    if not np.isfinite(values_N).all():
        raise ValueError(f"{int((~np.isfinite(values_N)).sum())} of {len(values_N)} values are not finite")
    return values_N
