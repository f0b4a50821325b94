"""Lagrange multipliers: the price of a constraint, raised while it is violated and lowered while there is room.

    max_policy min_(multiplier >= 0)  E[reward] - multiplier * (E[value] - bound)

Both players move at once: the policy by gradient steps on the priced objective, the multiplier by one step of
dual ascent per batch.  A multiplier follows the mean of a batch and so lags; the caller still has to check
what it keeps against the bound itself.
"""

import math


class UpperBound:
    """The multiplier of E[value] <= bound; positive, moved in log space so that it can cross orders of magnitude.

    log multiplier += rate * clip(value / bound - 1, -1, 3): it rises faster than it falls, since a policy that
    has left the bound is lost while one within it only learns more slowly.
    It stays between 1/30 and 1000 times its start.

    Source: adaptive KL coefficient, Ziegler et al. 2019, arXiv:1909.08593, section 2.2, whose factor is linear
    in the clipped error; constraint as a dual problem: Safe RLHF, arXiv:2310.12773, eq. 9.
    """

    def __init__(self, bound: float, start: float, rate: float):
        assert bound > 0
        assert start > 0
        self.bound, self.rate = bound, rate
        self.value = start
        self.floor, self.ceiling = start / 30, start * 1000

    def update(self, measured: float) -> None:
        """Take one step of dual ascent on a batch's mean."""
        error = max(-1.0, min(3.0, measured / self.bound - 1.0))
        self.value = min(self.ceiling, max(self.floor, self.value * math.exp(self.rate * error)))


class Equality:
    """The multiplier of E[value] = target; of either sign.

    With the relative error e = value / target - 1: multiplier = rate * sum of past e, each step back counting
    0.8 of the next.  The leak keeps old errors from winding the multiplier up.

    Source: PID Lagrangian methods, Stooke et al. 2020, arXiv:2007.03964, eq. 9; only the integral, leaky.
    """

    LEAK = 0.8

    def __init__(self, target: float, rate: float):
        assert target > 0
        self.target, self.rate = target, rate
        self.value = 0.0

    def update(self, measured: float) -> None:
        """Take one step on a batch's mean."""
        self.value = self.LEAK * self.value + self.rate * (measured / self.target - 1.0)
