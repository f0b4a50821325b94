"""Group-normalised advantages: hand-worked values and properties."""

import math

import pytest
import torch

from llm.rl.advantages import compute_group_advantages, price_length, price_repeats


def test_equals_the_hand_worked_value():
    # Mean 2, sample standard deviation 1 (deviations -1, 0, 1; sum of squares 2, over 2).
    advantages = compute_group_advantages(torch.tensor([[1.0, 2.0, 3.0]]), eps=1e-9)
    torch.testing.assert_close(advantages, torch.tensor([[-1.0, 0.0, 1.0]]))


def test_groups_do_not_leak_into_each_other():
    easy_and_hard = torch.tensor([[10.0, 11.0], [0.0, 1.0]])
    advantages = compute_group_advantages(easy_and_hard)
    torch.testing.assert_close(advantages[0], advantages[1])
    # Negative control: normalising over the batch would praise every answer to the easy prompt.
    whole_batch = (easy_and_hard - easy_and_hard.mean()) / easy_and_hard.std()
    assert (whole_batch[0] > 0).all()
    assert advantages[0, 0] < 0


def test_equal_rewards_give_exactly_zero():
    # 0.1 is not exact in binary: without care the mean's rounding error over eps would remain.
    assert torch.equal(compute_group_advantages(torch.full((2, 7), 0.1), eps=1e-12), torch.zeros(2, 7))


def test_rows_sum_to_zero_and_ignore_shift_and_scale():
    rewards = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    advantages = compute_group_advantages(rewards, eps=1e-9)
    torch.testing.assert_close(advantages.sum(1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(compute_group_advantages(3 * rewards + 7, eps=1e-9), advantages, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rewards", [torch.zeros(3), torch.zeros(3, 1), torch.tensor([[1.0, float("nan")]])])
def test_refuses_what_cannot_be_normalised(rewards):
    with pytest.raises(ValueError):
        compute_group_advantages(rewards)


def test_length_effect_equals_the_hand_worked_value():
    # Lengths 1, 2, 3, 4: z = (-1.5, -0.5, 0.5, 1.5) / sqrt(1.25).  A = (-1, 0, 0, 1): slope * z = sum(A d) /
    # sum(d d) * d = 3 / 5 * d with d the centred length, so A - 0.6 d = (-0.1, 0.3, -0.3, 0.1).
    advantage, length = torch.tensor([[-1.0, 0.0, 0.0, 1.0]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    torch.testing.assert_close(price_length(advantage, length, 0.0), torch.tensor([[-0.1, 0.3, -0.3, 0.1]]))
    priced = price_length(advantage, length, 1.25**0.5)  # now 1.6 d in all
    torch.testing.assert_close(priced, torch.tensor([[1.4, 0.8, -0.8, -1.4]]))


def test_what_length_does_not_explain_stays():
    generator = torch.Generator().manual_seed(2)
    merit = torch.randn(16, 8, generator=generator)
    length = torch.randint(5, 40, (16, 8), generator=generator).float()
    advantage = compute_group_advantages(merit + 0.2 * length)
    controlled = price_length(advantage, length, 0.0)

    def correlate(a, b):
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return ((a * b).sum() / (a.norm() * b.norm())).item()

    assert correlate(controlled, length) == pytest.approx(0.0, abs=1e-5)
    assert correlate(controlled, merit) > 0.9
    # Negative control: uncontrolled, this reward pays mostly for length.
    assert correlate(advantage, length) > 0.8
    assert correlate(price_length(advantage, length, 0.5), length) < -0.3
    torch.testing.assert_close(controlled.sum(1), torch.zeros(16), atol=1e-4, rtol=0)


def test_equal_lengths_change_nothing():
    advantage = torch.tensor([[1.0, -1.0]])
    assert price_length(advantage, torch.full((1, 2), 7.0), 3.0) is advantage


def test_length_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        price_length(torch.zeros(1, 2), torch.zeros(2, 1), 0.0)


def test_a_repeated_answer_pays_the_logarithm_of_its_count():
    # Two groups of three: "a" twice in the first, "a" once in the second.
    priced = price_repeats(torch.ones(6), ["a", "b", "a", "a", "c", "d"], 3, 0.5)
    half = 1.0 - 0.5 * math.log(2.0)
    torch.testing.assert_close(priced, torch.tensor([half, 1.0, half, 1.0, 1.0, 1.0]))
    assert torch.equal(price_repeats(torch.ones(6), list("aaaaaa"), 3, 0.0), torch.ones(6))
    with pytest.raises(ValueError, match="5 answers for 6 signals in groups of 3"):
        price_repeats(torch.ones(6), list("abcde"), 3, 0.5)
