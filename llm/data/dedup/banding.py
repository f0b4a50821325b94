"""The arithmetic of the near-duplicate threshold: which pairs meet in a band, and which of them are dropped.

Let s be the true Jaccard similarity of two texts' shingles. Each of the N entries of their signatures is equal
with probability s, independently. They meet when all r entries of one of b bands are equal, with probability
1 - (1 - s**r)**b; the later one is dropped when they meet and at least a share t of the N entries is equal.

With the defaults (t = 0.7, N = 128, b = 25, r = 5), computed by `describe_threshold`:

    s        0.50    0.55    0.60    0.65    0.70    0.75    0.80    0.85    0.90    0.95
    meet     0.548   0.725   0.868   0.954   0.990   0.999   1.000   1.000   1.000   1.000
    dropped  2.5e-06 2.8e-04 1.0e-02 1.2e-01 5.1e-01 9.1e-01 1.0e+00 1.0e+00 1.0e+00 1.0e+00
"""

from math import comb, sqrt

from llm.data.dedup.minhash import NearDuplicateParams

SIMILARITIES = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def match_probability(similarity: float, bands: int, rows: int) -> float:
    """Return the probability that two texts share at least one band.

    Args:    similarity: true Jaccard similarity of their shingles, in [0, 1].
    Source:  Leskovec et al., Mining of Massive Datasets, section 3.4.2: 1 - (1 - s**r)**b.
    """
    return float(1 - (1 - similarity**rows) ** bands)


def drop_probability(similarity: float, params: NearDuplicateParams) -> float:
    """Return the probability that two texts share a band and are estimated at the threshold or above.

    Both look at the same entries: given k equal entries, every set of k of N is as likely, so the chance that
    no band lies within them is counted by inclusion and exclusion over the bands.
    Args:    similarity: true Jaccard similarity s of their shingles, in [0, 1].
    Returns: sum over k >= tN of C(N, k) s**k (1 - s)**(N - k) P(some band within k equal entries).
    """
    size, total = params.num_perm, 0.0
    for equal in range(size + 1):
        if equal / size >= params.threshold:
            chance = comb(size, equal) * similarity**equal * (1 - similarity) ** (size - equal)
            total += chance * (1 - _none_full(size, equal, params.bands, params.rows))
    return total


def _none_full(size: int, equal: int, bands: int, rows: int) -> float:
    """Return the probability that k equal entries among N fill none of the bands."""
    ways: int = sum(
        (-1) ** full * comb(bands, full) * comb(size - full * rows, equal - full * rows)
        for full in range(min(bands, equal // rows) + 1)
    )
    return ways / comb(size, equal)


def describe_threshold(params: NearDuplicateParams) -> dict[str, object]:
    """Return what the params amount to: the chance that a pair of each similarity meets, and that it is dropped.

    `half_met` is the similarity at which half of the pairs meet, `deviation` the standard deviation of the
    estimate for a pair at the threshold, sqrt(t (1 - t) / N).
    """
    half = (1 - 0.5 ** (1 / params.bands)) ** (1 / params.rows)
    meet = {f"{s:.2f}": round(match_probability(s, params.bands, params.rows), 4) for s in SIMILARITIES}
    dropped = {f"{s:.2f}": round(drop_probability(s, params), 4) for s in SIMILARITIES}
    return {
        "threshold": params.threshold,
        "bands": params.bands,
        "rows": params.rows,
        "half_met": round(half, 4),
        "deviation": round(sqrt(params.threshold * (1 - params.threshold) / params.num_perm), 4),
        "meet": meet,
        "dropped": dropped,
    }
