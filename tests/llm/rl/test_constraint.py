"""Multipliers: direction, size, limits."""

import math

import pytest

from llm.rl.constraint import CostMultiplier, Equality, UpperBound


def test_price_rises_while_violated_and_falls_while_there_is_room():
    price = UpperBound(bound=2.0, start=0.1, rate=0.5)
    price.update(3.0)  # relative error 0.5
    assert price.value == pytest.approx(0.1 * math.exp(0.25) * 1.5**2)
    price.update(2.0)  # on the bound: the base stays, the factor is gone
    assert price.value == pytest.approx(0.1 * math.exp(0.25))
    price.update(1.6)  # relative error -0.2
    assert price.value == pytest.approx(0.1 * math.exp(0.15))


def test_price_never_falls_below_its_start():
    price = UpperBound(bound=1.0, start=0.1, rate=5.0)
    for _ in range(100):
        price.update(0.0)
    assert price.value == 0.1


def test_one_outlier_moves_what_is_remembered_by_a_bounded_factor():
    price = UpperBound(bound=1.0, start=0.1, rate=0.5)
    price.update(1e6)
    price.update(1.0)
    assert price.value == pytest.approx(0.1 * math.exp(1.5))
    for _ in range(100):
        price.update(9.0)
    price.update(1.0)
    assert price.value == pytest.approx(100.0)


def test_equality_prices_both_sides_and_forgets():
    price = Equality(target=10.0, rate=2.0)
    price.update(11.0)  # e = 0.1
    assert price.value == pytest.approx(0.2)
    price.update(10.0)  # 0.8 * 0.2
    assert price.value == pytest.approx(0.16)
    price.update(7.0)  # 0.8 * 0.16 - 2 * 0.3
    assert price.value == pytest.approx(-0.472)


def test_a_cost_multiplier_follows_the_running_mean_within_its_limits():
    price = CostMultiplier(bound=1 / 3, start=1.0, rate=0.5, limit=2.0)  # its target is 0.1
    price.update(0.15)  # e = 0.5
    assert price.value == pytest.approx(1.25)
    price.update(0.05)  # the mean is 0.8 * 0.15 + 0.2 * 0.05 = 0.13, e = 0.3
    assert price.value == pytest.approx(1.4)
    price.update(1.0)  # e = 2.04, clipped to 2; then the limit
    assert price.value == 2.0
    for _ in range(40):
        price.update(0.0)  # e tends to -1: the price falls to zero, and no further
    assert price.value == 0.0


def test_a_multiplier_without_rate_stays_at_zero():
    price = CostMultiplier(bound=0.2, start=0.0, rate=0.0, limit=2.0)
    price.update(1.0)
    assert price.value == 0.0
