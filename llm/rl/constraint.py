"""Lagrange multipliers: the price of a constraint, raised while it is violated and lowered while there is room.

    max_policy min_(multiplier >= 0)  E[reward] - multiplier * (E[value] - bound)

Both players move at once: the policy by gradient steps on the priced objective, the multiplier by one step of
dual ascent per batch.  A multiplier follows the mean of a batch and so lags; the caller still has to check
what it keeps against the bound itself.
"""

import math


class UpperBound:
    """The multiplier of E[value] <= bound; positive, never below its start.

    With the error e = clip(value / bound - 1, -1, 3):
    log base += rate * e, base >= start;  multiplier = base * max(1, value / bound)^2.

    The base is dual ascent in log space, so that it can cross orders of magnitude; the factor acts at once,
    because a policy that has left the bound is lost before an integral has caught up with it.

    Source: adaptive KL coefficient, Ziegler et al. 2019, arXiv:1909.08593, section 2.2, whose factor is linear
    in the clipped error; proportional next to integral control of multipliers: Stooke et al. 2020,
    arXiv:2007.03964.
    """

    def __init__(self, bound: float, start: float, rate: float):
        assert bound > 0
        assert start > 0
        self.bound, self.rate = bound, rate
        self.start = self.base = self.value = start

    def update(self, measured: float) -> None:
        """Take one step on a batch's mean."""
        ratio = measured / self.bound
        error = max(-1.0, min(3.0, ratio - 1.0))
        self.base = min(1000 * self.start, max(self.start, self.base * math.exp(self.rate * error)))
        self.value = self.base * max(1.0, ratio) ** 2


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
