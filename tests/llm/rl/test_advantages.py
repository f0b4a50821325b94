"""Group-normalised advantages: hand-worked values and properties."""

import pytest
import torch

from llm.rl.advantages import compute_group_advantages


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
