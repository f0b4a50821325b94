"""Intervals against hand-worked cases."""

import numpy as np
import pytest

from llm.evals.statistics import (
    bootstrap_interval,
    clustered_interval,
    paired_difference,
    paired_ratio_difference,
    paired_share_difference,
    ratio_interval,
    wilson_interval,
)


def test_wilson_matches_the_hand_worked_case() -> None:
    # 5 of 10, z = 1.959964: (0.5 + 0.192073) / 1.384146 -+ 1.959964 sqrt(0.025 + 0.0096036) / 1.384146.
    found = wilson_interval(5, 10)
    assert found.value == 0.5
    assert (found.low, found.high) == (pytest.approx(0.236593, abs=1e-6), pytest.approx(0.763407, abs=1e-6))


def test_wilson_stays_within_zero_and_one() -> None:
    # 0 of 10: the upper end is z^2 / (n + z^2) = 3.841459 / 13.841459.
    found = wilson_interval(0, 10)
    assert (found.low, found.high) == (0.0, pytest.approx(0.277533, abs=1e-6))
    assert wilson_interval(10, 10).high == 1.0


@pytest.mark.parametrize("successes, n", [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes: float, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(successes, n)


def test_wilson_covers_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).binomial(400, 0.25, size=2000)
    covered = [w.low <= 0.25 <= w.high for w in (wilson_interval(int(d), 400) for d in draws)]
    assert 0.935 <= np.mean(covered) <= 0.965


def test_bootstrap_of_two_values_is_the_binomial_by_hand() -> None:
    # Means of resamples of (0, 1) are 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    found = bootstrap_interval([0.0, 1.0], level=0.95)
    assert (found.value, found.low, found.high, found.n) == (0.5, 0.0, 1.0, 2)
    narrow = bootstrap_interval([0.0, 1.0], level=0.4)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_bootstrap_agrees_with_the_normal_approximation_for_many_values() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 2000)
    found = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)


def test_bootstrap_is_the_same_every_time_and_constant_values_have_no_width() -> None:
    values = np.random.default_rng(2).normal(size=50)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    constant = bootstrap_interval([2.0] * 7)
    assert (constant.low, constant.high) == (2.0, 2.0)


def test_pairing_removes_what_the_items_share() -> None:
    random = np.random.default_rng(4)
    shared = random.normal(0.0, 10.0, 200)
    ours = shared + 0.5 + random.normal(0.0, 0.5, 200)
    paired = paired_difference(ours, shared)
    assert paired.low > 0.0
    # Negative control: without the pairing the same difference drowns in what the items differ by.
    unpaired = paired_difference(ours, random.permutation(shared))
    assert unpaired.low < 0.0 < unpaired.high


@pytest.mark.parametrize("values", [[], [[1.0], [2.0]], [1.0, float("nan")]])
def test_bootstrap_refuses_what_has_no_mean(values: list) -> None:
    with pytest.raises(ValueError):
        bootstrap_interval(values)


def test_pairs_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="equal lengths"):
        paired_difference([1.0, 2.0], [1.0])


def test_clusters_are_drawn_whole() -> None:
    # Four values of each cluster sum to one: however they are drawn, the mean is 1/4.
    values = [1.0, 0.0, 0.0, 0.0] * 20
    clustered = clustered_interval(values, [i // 4 for i in range(80)])
    assert (clustered.value, clustered.low, clustered.high, clustered.n) == (0.25, 0.25, 0.25, 80)
    assert bootstrap_interval(values).low < 0.2


def test_clusters_of_one_are_the_plain_bootstrap() -> None:
    values = np.random.default_rng(5).normal(size=40)
    assert clustered_interval(values, range(40)) == bootstrap_interval(values)


def test_a_repeated_value_is_worth_no_more_than_itself() -> None:
    values = np.random.default_rng(6).normal(size=50)
    repeated = clustered_interval(np.repeat(values, 4), np.repeat(np.arange(50), 4).tolist())
    plain = bootstrap_interval(values)
    assert repeated.high - repeated.low == pytest.approx(plain.high - plain.low, rel=1e-6)


def make_pairs(both: int, ours: int, theirs: int, neither: int) -> tuple[list[bool], list[bool]]:
    counts = [(both, True, True), (ours, True, False), (theirs, False, True), (neither, False, False)]
    return [a for n, a, _ in counts for _ in range(n)], [b for n, _, b in counts for _ in range(n)]


def test_newcombe_matches_his_example_and_is_worked_by_hand() -> None:
    # His table of 36, 12, 2, 0: 48 of 50 against 38 of 50, 0.0569 to 0.3404.
    found = paired_share_difference(*make_pairs(36, 12, 2, 0))
    assert (found.value, found.n) == (pytest.approx(0.2), 50)
    assert (found.low, found.high) == (pytest.approx(0.0569, abs=5e-5), pytest.approx(0.3404, abs=5e-5))
    turned = paired_share_difference(*make_pairs(36, 2, 12, 0))
    assert (turned.low, turned.high) == (pytest.approx(-found.high), pytest.approx(-found.low))
    # All 54 alike: Wilson's lower end is 54 / (54 + z^2), so that the difference can be z^2 / (54 + z^2) = 0.0664.
    alike = paired_share_difference([True] * 54, [True] * 54)
    assert (alike.value, alike.low, alike.high) == (
        0.0,
        pytest.approx(-0.0664, abs=5e-5),
        pytest.approx(0.0664, abs=5e-5),
    )


def test_newcombe_refuses_what_is_not_paired() -> None:
    with pytest.raises(ValueError, match="equal lengths"):
        paired_share_difference([True], [True, False])
    with pytest.raises(ValueError, match="n >= 1"):
        paired_share_difference([], [])


def test_ratio_of_sums_by_hand() -> None:
    # Resamples of the items (1 of 2) and (3 of 2) are 2/4, 4/4 twice, and 6/4.
    found = ratio_interval([1, 3], [2, 2], level=0.95)
    assert (found.value, found.low, found.high, found.n) == (1.0, 0.5, 1.5, 2)
    heavy = ratio_interval([1, 30], [1, 10])  # 31/11, not the mean of 1 and 3
    assert (heavy.value, heavy.low, heavy.high) == (31 / 11, 1.0, 3.0)


def test_ratio_over_ones_is_the_mean() -> None:
    values = np.random.default_rng(3).normal(size=60)
    assert ratio_interval(values, np.ones(60)) == bootstrap_interval(values)
    zeros = np.zeros(60)
    assert paired_ratio_difference((values, np.ones(60)), (zeros, np.ones(60))) == bootstrap_interval(values)


def test_paired_ratios_share_their_items() -> None:
    random = np.random.default_rng(5)
    below = random.integers(1, 50, 300).astype(float)
    theirs = below * random.normal(3.0, 1.0, 300)
    found = paired_ratio_difference((theirs + 0.1 * below, below), (theirs, below))
    assert found.value == pytest.approx(0.1)
    assert found.high - found.low < 1e-9  # the same shift everywhere: nothing is left to chance
    apart = ratio_interval(theirs, below)
    assert apart.high - apart.low > 0.1
    with pytest.raises(ValueError, match="equal lengths"):
        paired_ratio_difference(([1.0], [1.0]), ([1.0, 2.0], [1.0, 1.0]))
