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


class CostMultiplier:
    """The multiplier of E[cost] <= bound, for a cost that is a probability; in [0, limit].

    With the running mean m = 0.8 m + 0.2 cost and the error e = clip(m / target - 1, -1, 2):
    value = clip(value + rate * e, 0, limit).

    Each batch holds few prompts of a principle, which the running mean makes up for.  The target is 0.3 of the bound:
    what is measured on held-out prompts is higher, and has an interval.

    Source: dual ascent with a moving average of the cost: Safe RLHF, arXiv:2310.12773, eq. 11 and appendix B.  Differs:
    additive instead of in log space, so that it can reach zero, and with a clipped relative error.
    """

    MEMORY, TARGET = 0.8, 0.3

    def __init__(self, bound: float, start: float, rate: float, limit: float):
        assert 0 < bound < 1
        assert 0 <= start <= limit
        self.target, self.rate, self.limit = self.TARGET * bound, rate, limit
        self.value, self.mean = start, None  # type: float, float | None

    def update(self, measured: float) -> None:
        """Take one step on a batch's mean cost."""
        self.mean = measured if self.mean is None else self.MEMORY * self.mean + (1 - self.MEMORY) * measured
        error = max(-1.0, min(2.0, self.mean / self.target - 1.0))
        self.value = min(self.limit, max(0.0, self.value + self.rate * error))


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
