"""How well scores tell bad from good, and how far their probabilities can be believed.

AUROC asks for the order alone, calibration for the level. Rows that hang together (both answers of a prompt, all
prompts of a group) are one cluster, and whole clusters are resampled.

N rows, K different scores, C clusters, R resamples.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm.evals.statistics import Floats, Interval, wilson_interval

CHUNK_ENTRIES = 4_000_000
BINS = 10
MIN_AUROC = 0.8
MIN_GROUPS = 10  # fewer resample to an interval that is too narrow
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0  # the ends are reached where the data name no temperature


def measure_auroc(
    scores: npt.ArrayLike,
    positive: npt.ArrayLike,
    clusters: Sequence[Hashable],
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """Return the probability that a positive row has a higher score than a negative one, ties counted as half.

    Args:    scores: N finite numbers.  positive: N truth values.
             clusters: the cluster of each row; at least two different ones.
    Returns: Interval at 95 %, percentile bootstrap over clusters; resamples that lack a class say nothing and are
             left out. Under a perfect order no resample differs, so that the bootstrap has no width: there the far end
             is Wilson's for as many trials as there are clusters. n is N.
    Raises:  ValueError: lengths differ, a score is not finite, a class or a second cluster is missing.
    Source:  Mann and Whitney 1947; Hanley and McNeil, Radiology 143(1), 1982.
    """
    scores_N, positive_N = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if scores_N.ndim != 1 or scores_N.shape != positive_N.shape or len(clusters) != len(scores_N):
        raise ValueError(f"{scores_N.shape} scores, {positive_N.shape} labels and {len(clusters)} clusters")
    if not np.isfinite(scores_N).all():
        raise ValueError(f"{int((~np.isfinite(scores_N)).sum())} of {len(scores_N)} scores are not finite")
    if positive_N.all() or not positive_N.any():
        raise ValueError(f"{int(positive_N.sum())} of {len(positive_N)} rows are positive: both classes are needed")
    places = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    if len(places) < 2:
        raise ValueError(f"{len(places)} cluster: an interval needs at least 2")
    order = np.argsort(scores_N, kind="stable")
    cluster_N = np.array([places[name] for name in clusters])[order]
    starts_K = np.flatnonzero(np.diff(scores_N[order], prepend=-np.inf))
    whole = np.ones((1, len(places)))
    value = float(_order_share(whole, cluster_N, positive_N[order], starts_K)[0])
    if value in (0.0, 1.0):
        bound = wilson_interval(value * len(places), len(places))
        return Interval(value, bound.low, bound.high, len(scores_N))
    random = np.random.default_rng(seed)
    rows = max(1, CHUNK_ENTRIES // len(scores_N))
    shares = []
    for done in range(0, resamples, rows):
        drawn = random.multinomial(len(places), whole[0] / len(places), min(rows, resamples - done))
        shares.append(_order_share(drawn.astype(np.float64), cluster_N, positive_N[order], starts_K))
    low, high = np.nanquantile(np.concatenate(shares), [0.025, 0.975])
    return Interval(value, float(low), float(high), len(scores_N))


def measure_pairs(cost_NS: npt.ArrayLike, groups: Sequence[Hashable]) -> Interval | None:
    """Return the AUROC of a cost over written answers; None where fewer than MIN_GROUPS groups leave it open.

    Args:    cost_NS: of each pair's good and bad answer, probabilities or logits.
             groups: of each pair; whole groups are resampled.
    """
    cost_N = np.asarray(cost_NS, dtype=np.float64).ravel()
    if len(set(groups)) < MIN_GROUPS:
        return None
    return measure_auroc(cost_N, np.arange(len(cost_N)) % 2 == 1, [group for group in groups for _ in range(2)])


def is_measurable(auroc: Interval | None) -> bool:
    """Say whether a head tells good from bad answers well enough for its mean to be called a cost."""
    return auroc is not None and auroc.low > MIN_AUROC


def _order_share(
    weight_RC: Floats,
    cluster_N: npt.NDArray[np.int_],
    positive_N: npt.NDArray[np.bool_],
    starts_K: npt.NDArray[np.int_],
) -> Floats:
    """AUROC of rows sorted by score and weighted by cluster, [R]; starts_K: where each different score begins."""
    weight_RN = weight_RC[:, cluster_N]
    positive_RK = np.add.reduceat(weight_RN * positive_N, starts_K, axis=1)
    negative_RK = np.add.reduceat(weight_RN * ~positive_N, starts_K, axis=1)
    below_RK = np.cumsum(negative_RK, axis=1) - negative_RK / 2
    pairs_R = positive_RK.sum(axis=1) * negative_RK.sum(axis=1)
    with np.errstate(invalid="ignore"):
        share_R: Floats = (positive_RK * below_RK).sum(axis=1) / pairs_R
    return share_R


@dataclass(frozen=True)
class Bin:
    """Rows of similar confidence: how sure the scores were on average, and how often they were right."""

    confidence: float
    accuracy: float
    n: int


@dataclass(frozen=True)
class Calibration:
    """Of the rows that the temperature was not fitted on: the error as it stands, and at the temperature."""

    ece: float
    ece_scaled: float
    temperature: float
    bins: list[Bin]
    n: int

    def metrics(self) -> dict[str, object]:
        """As reports hold it."""
        bins = [{"confidence": one.confidence, "accuracy": one.accuracy, "n": one.n} for one in self.bins]
        figures = {"ece": self.ece, "ece_scaled": self.ece_scaled, "temperature": self.temperature, "n": self.n}
        return {**figures, "bins": bins}


def measure_calibration(logits: npt.ArrayLike, positive: npt.ArrayLike, is_fit: npt.ArrayLike) -> Calibration:
    """Return the calibration of two-way logits; the temperature is fitted on one half and judged on the other.

    Args:    logits: N log-odds that a row is positive; of a pair, reward(chosen) - reward(rejected).
             positive: N truth values; of pairs whose first answer is the chosen one, all true.
             is_fit: N truth values, the half that the temperature is fitted on; halve by prompt, not by row.
    Returns: Calibration of the other half.
    Raises:  ValueError: shapes differ, a logit is not finite, or a half is empty.
    Source:  Guo et al. 2017, arXiv:1706.04599, sections 2 and 4.2.
    """
    logit_N, positive_N = np.asarray(logits, dtype=np.float64), np.asarray(positive, dtype=bool)
    is_fit_N = np.asarray(is_fit, dtype=bool)
    if logit_N.ndim != 1 or not logit_N.shape == positive_N.shape == is_fit_N.shape:
        raise ValueError(f"{logit_N.shape} logits, {positive_N.shape} labels, {is_fit_N.shape} halves")
    if is_fit_N.all() or not is_fit_N.any():
        raise ValueError(f"{int(is_fit_N.sum())} of {len(is_fit_N)} rows to fit on: both halves need some")
    if not np.isfinite(logit_N).all():
        raise ValueError(f"{int((~np.isfinite(logit_N)).sum())} of {len(logit_N)} logits are not finite")
    temperature = fit_temperature(logit_N[is_fit_N], positive_N[is_fit_N])
    logit_N, positive_N = logit_N[~is_fit_N], positive_N[~is_fit_N]
    bins = bin_confidences(logit_N, positive_N)
    scaled = bin_confidences(logit_N / temperature, positive_N)
    return Calibration(expected_error(bins), expected_error(scaled), temperature, bins, len(logit_N))


def bin_confidences(logit_N: Floats, positive_N: npt.NDArray[np.bool_]) -> list[Bin]:
    """Return the filled bins, equally wide from 0.5 to 1, of confidence = sigmoid(|logit|).

    A row is right when its logit has the sign of its label; at a logit of 0 it is half right.
    """
    confidence_N = 1 / (1 + np.exp(-np.abs(logit_N)))
    right_N = np.where(logit_N == 0, 0.5, (logit_N > 0) == positive_N)
    place_N = np.minimum(((confidence_N - 0.5) * 2 * BINS).astype(int), BINS - 1)
    filled = [place_N == place for place in range(BINS) if (place_N == place).any()]
    return [Bin(float(confidence_N[own].mean()), float(right_N[own].mean()), int(own.sum())) for own in filled]


def expected_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error: the mean of |accuracy - confidence|, each bin by its rows.

    Source:  Guo et al. 2017, arXiv:1706.04599, eq. 3 (after Naeini et al. 2015).
    """
    return sum(one.n * abs(one.accuracy - one.confidence) for one in bins) / sum(one.n for one in bins)


def fit_temperature(logit_N: Floats, positive_N: npt.NDArray[np.bool_]) -> float:
    """Return the temperature T that minimises the mean of log(1 + exp(-s logit / T)), s = 1 or -1 by the label.

    The loss is convex in 1 / T, so that one minimum is found by golden section over log T.
    Returns: T within [0.01, 100]; 100 where the scores are no better than chance, 0.01 where they never err.
    Source:  temperature scaling, Guo et al. 2017, arXiv:1706.04599, section 4.2; Kiefer 1953 (golden section).
    """
    signed_N = np.where(positive_N, logit_N, -logit_N)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -signed_N * np.exp(-log_temperature)).mean())

    low, high = np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)
    ratio = (np.sqrt(5.0) - 1) / 2
    while high - low > 1e-6:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        # Where the loss has run out of digits (scores that never err) the lower temperature is no worse.
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))
