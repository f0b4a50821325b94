"""AUROC and calibration: by hand, against scipy and scikit-learn, and on what cannot be measured."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from llm.evals.discrimination import (
    Bin,
    bin_confidences,
    expected_error,
    fit_temperature,
    measure_auroc,
    measure_calibration,
)


def test_auroc_by_hand() -> None:
    # Positives 3 and 2 against negatives 1, 2: 3 beats both, 2 beats 1 and ties with 2: (2 + 1.5) / 4.
    found = measure_auroc([3, 2, 1, 2], [True, True, False, False], ["a", "b", "c", "d"])
    assert (found.value, found.n) == (0.875, 4)
    assert measure_auroc([5, 5, 5, 5], [True, False, True, False], ["a", "a", "b", "b"]).value == 0.5


@pytest.mark.parametrize("levels", [4, 1_000_000])  # with many ties, and with none
def test_auroc_equals_scipy_and_scikit_learn(levels: int) -> None:
    random = np.random.default_rng(levels)
    positive = random.random(300) < 0.3
    scores = np.round(random.normal(positive * 0.7) * levels)
    found = measure_auroc(scores, positive, range(300)).value
    statistic = mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert found == pytest.approx(statistic / (positive.sum() * (~positive).sum()), abs=1e-12)
    assert found == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Both rows of a cluster share a shift, and the positive one is sqrt 2 above: rows of two clusters then differ by
    a normal of mean sqrt 2 and variance 4, which is above 0 with probability Phi(1 / sqrt 2) = 0.7602, those of one
    cluster by a normal of variance 2: Phi(1) = 0.8413.
    """
    truth, covered = (59 * 0.7602 + 0.8413) / 60, 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        shift = random.normal(size=60)
        scores = np.concatenate([shift + random.normal(size=60) + np.sqrt(2), shift + random.normal(size=60)])
        found = measure_auroc(scores, np.arange(120) < 60, [*range(60), *range(60)], resamples=400, seed=seed)
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_copies_of_a_row_do_not_narrow_the_interval() -> None:
    random = np.random.default_rng(0)
    scores, positive = random.normal(size=40), np.arange(40) % 2 == 0
    once = measure_auroc(scores, positive, range(40))
    copied = measure_auroc(np.tile(scores, 9), np.tile(positive, 9), [*range(40)] * 9)
    unaware = measure_auroc(np.tile(scores, 9), np.tile(positive, 9), range(360))
    assert (copied.value, copied.low, copied.high) == pytest.approx((once.value, once.low, once.high))
    assert unaware.high - unaware.low < 0.5 * (once.high - once.low)


def test_a_perfect_order_of_few_prompts_is_no_certainty() -> None:
    scores, positive = [0.9, 0.1] * 5, [True, False] * 5
    few = measure_auroc(scores, positive, [i // 2 for i in range(10)])
    assert (few.value, few.high) == (1.0, 1.0)
    assert few.low == pytest.approx(0.5655, abs=1e-4)  # Wilson, 5 of 5
    assert measure_auroc(scores, np.logical_not(positive), range(10)).low == 0.0
    assert measure_auroc(scores * 4, positive * 4, [i // 2 for i in range(40)]).low > 0.8


@pytest.mark.parametrize(
    "scores, positive, clusters, message",
    [
        ([1, 2], [True, True], "ab", "both classes"),
        ([], [], "", "both classes"),
        ([1, 2], [True, False], "aa", "at least 2"),
        ([1, np.nan], [True, False], "ab", "not finite"),
        ([1, 2, 3], [True, False], "ab", "labels"),
    ],
)
def test_auroc_refuses_what_has_none(scores: list, positive: list, clusters: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_auroc(scores, positive, clusters)


def test_calibration_error_by_hand() -> None:
    # sigmoid(ln 3) = 0.75, in bin 5 of ten: three of four right is exactly that. sigmoid(ln 9) = 0.9, half right.
    logits = np.log([3, 3, 3, 1 / 3, 9, 1 / 9])
    bins = bin_confidences(logits, np.array([True] * 6))
    assert [(one.n, one.accuracy) for one in bins] == [(4, 0.75), (2, 0.5)]
    assert [one.confidence for one in bins] == pytest.approx([0.75, 0.9])
    assert expected_error(bins) == pytest.approx((4 * 0.0 + 2 * 0.4) / 6)
    assert bin_confidences(np.zeros(3), np.array([True, False, True])) == [Bin(0.5, 0.5, 3)]


def test_the_temperature_by_hand() -> None:
    # Logits of +-2, right three times of four: at T the confidence must be 3/4, so 2 / T = ln 3.
    logits, positive = np.array([2.0, 2.0, -2.0, 2.0]), np.array([True, True, False, False])
    assert fit_temperature(logits, positive) == pytest.approx(2 / np.log(3), rel=1e-4)
    assert fit_temperature(logits, ~positive) == pytest.approx(100, rel=1e-3)
    assert fit_temperature(np.array([1.0, 2.0]), np.array([True, True])) == pytest.approx(0.01, rel=1e-3)


def test_scaling_mends_an_overconfident_judge_on_the_half_it_was_not_fitted_on() -> None:
    random = np.random.default_rng(1)
    honest = random.normal(size=8000)
    positive = random.random(8000) < 1 / (1 + np.exp(-honest))
    found = measure_calibration(4 * honest, positive, np.arange(8000) % 2 == 0)
    assert found.temperature == pytest.approx(4, rel=0.1)
    assert found.n == 4000
    assert found.ece > 0.15
    assert found.ece_scaled < 0.02
    assert set(found.metrics()) == {"ece", "ece_scaled", "temperature", "n", "bins"}
    # The reported half alone decides the error: labels turned round in the other one change the temperature only.
    turned = measure_calibration(4 * honest, positive ^ (np.arange(8000) % 2 == 0), np.arange(8000) % 2 == 0)
    assert (turned.ece, turned.bins) == (found.ece, found.bins)
    assert turned.temperature > found.temperature


@pytest.mark.parametrize(
    "logits, is_fit, message",
    [
        ([1.0, 2.0], [True, True], "halves"),
        ([1.0, np.inf], [True, False], "not finite"),
        ([1.0], [True, False], "halv"),
    ],
)
def test_calibration_refuses_what_has_none(logits: list, is_fit: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_calibration(logits, [True] * len(logits), is_fit)
