"""The mixed plan: by hand, against every possible plan, within its budget."""

from itertools import product

import numpy as np
import pytest

from llm.config import ConfigError
from llm.quant.blocks import BITS
from llm.quant.plan import plan_kinds


def test_two_small_matrices_beat_the_most_sensitive_one():
    # 400 weights. q4_0 throughout takes 4.5 bits each; 5.5 allow 400 bits more: 4 more for 100 weights.
    # By loss alone `big` would come first; it does not fit. By loss per byte `first` and `second` fill the budget.
    counts = {"big": 300, "first": 50, "second": 50}
    plan = plan_kinds({"big": 9.0, "first": 2.0, "second": 1.0}, counts, budget_bits=5.5)
    assert plan == {"big": "q4_0", "first": "q8_0", "second": "q8_0"}


def test_greedy_by_loss_per_byte_is_not_enough():
    # 1000 bits more are allowed, those of 250 weights: `dense` (0.010 a weight) leaves no room for `wide` (0.009).
    counts = {"dense": 100, "wide": 200, "rest": 700}
    plan = plan_kinds({"dense": 1.0, "wide": 1.8, "rest": 0.1}, counts, budget_bits=5.5)
    assert plan == {"dense": "q4_0", "wide": "q8_0", "rest": "q4_0"}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget_bits", [4.6, 5.5, 6.3, 8.4, 9.0])
def test_no_plan_within_the_budget_loses_less(seed: int, budget_bits: float):
    random = np.random.default_rng(seed)
    names = [f"m{i}" for i in range(9)]
    counts = {name: int(random.choice([32, 64, 96, 512])) for name in names}
    losses = {name: float(random.uniform(-0.1, 1) * counts[name]) for name in names}

    def judge(kinds: tuple[str, ...]) -> tuple[float, float]:
        lost = sum(max(losses[name], 0) for name, kind in zip(names, kinds, strict=True) if kind == "q4_0")
        return lost, sum(BITS[kind] * counts[name] for name, kind in zip(names, kinds, strict=True))

    budget = budget_bits * sum(counts.values())
    fitting = [judge(kinds) for kinds in product(("q4_0", "q8_0"), repeat=9) if judge(kinds)[1] <= budget]
    plan = plan_kinds(losses, counts, budget_bits)
    assert list(plan) == names
    assert judge(tuple(plan.values())) == pytest.approx(min(fitting))


def test_weights_outside_matrices_count():
    # 32 bits for each of 10 norms: 400 * 4.5 + 320 of 410 weights are 5.17 bits each.
    with pytest.raises(ConfigError, match=r"q4_0 throughout takes 5\.1707 bits per weight"):
        plan_kinds({"m": 1.0}, {"m": 400}, budget_bits=5.0, num_other=10)
    assert plan_kinds({"m": 1.0}, {"m": 400}, budget_bits=5.2, num_other=10) == {"m": "q4_0"}
