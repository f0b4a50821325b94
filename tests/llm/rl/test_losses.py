"""Losses and estimators: hand-worked values, gradients, masks, and wrong formulas that must fail."""

import math

import pytest
import torch

from llm.rl.losses import (
    compute_cost_loss,
    compute_policy_loss,
    compute_preference_loss,
    estimate_kl,
    estimate_sequence_kl,
)


def preference_loss(chosen, rejected, margin=None, tie=None, threshold=1.0):
    chosen, rejected = torch.tensor(chosen), torch.tensor(rejected)
    margin = torch.zeros_like(chosen) if margin is None else torch.tensor(margin)
    tie = torch.zeros(chosen.shape, dtype=torch.bool) if tie is None else torch.tensor(tie)
    return compute_preference_loss(chosen, rejected, margin, tie, threshold)


def test_bradley_terry_equals_the_hand_worked_value():
    # -log sigmoid(ln 3) = ln(4/3); -log sigmoid(0) = ln 2.
    loss = preference_loss([math.log(3.0), 1.0], [0.0, 1.0])
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, abs=1e-6)


def test_margin_asks_for_a_larger_difference():
    with_margin = preference_loss([2.0], [1.0], [1.0])
    assert with_margin.item() == pytest.approx(math.log(2), abs=1e-6)
    # Negative control: a margin added to the difference instead would reward a lazy model.
    wrong = preference_loss([3.0], [1.0])
    assert wrong.item() < preference_loss([2.0], [1.0]).item() < with_margin.item()


def test_tie_equals_the_hand_worked_value():
    # Threshold ln 2 at a difference of 0: P(win) = P(loss) = 1 / (1 + 2) = 1/3, so P(tie) = 1/3.
    assert preference_loss([0.7], [0.7], tie=[True], threshold=math.log(2)).item() == pytest.approx(math.log(3))
    # A difference of ln 4: P(win) = 2/3, P(loss) = 1/9, so P(tie) = 2/9.
    loss = preference_loss([math.log(4)], [0.0], tie=[True], threshold=math.log(2))
    assert loss.item() == pytest.approx(math.log(9 / 2))


def test_a_tie_pulls_rewards_together_and_a_win_apart():
    for tie, direction in ((True, 1), (False, -1)):
        chosen, rejected = torch.tensor([1.0], requires_grad=True), torch.tensor([0.0])
        compute_preference_loss(chosen, rejected, torch.zeros(1), torch.tensor([tie])).backward()
        assert chosen.grad is not None
        assert chosen.grad.item() * direction > 0


def test_bradley_terry_does_not_overflow():
    chosen = torch.tensor([-500.0], requires_grad=True)
    loss = compute_preference_loss(chosen, torch.tensor([500.0]), torch.zeros(1), torch.tensor([False]))
    loss.backward()
    assert loss.item() == pytest.approx(1000.0)
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("chosen", "rejected", "margin", "threshold"),
    [([0.0, 0.0], [0.0], None, 1.0), ([], [], None, 1.0), ([0.0], [0.0], [-1.0], 1.0), ([0.0], [0.0], None, 0.0)],
)
def test_preference_loss_refuses_bad_pairs(chosen, rejected, margin, threshold):
    with pytest.raises(ValueError):
        preference_loss(chosen, rejected, margin, threshold=threshold)


def test_cost_loss_equals_the_hand_worked_value():
    # The odds of "bad" are 3 to 1: a bad answer costs ln(4/3), a good one ln 4.
    loss = compute_cost_loss(torch.full((2,), math.log(3.0)), torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2, abs=1e-6)


def test_policy_loss_equals_the_hand_worked_value():
    # Ratios 1.5, 0.5, 1.5, 0.5 with advantages +1, +1, -1, -1 and eps 0.2:
    # min picks 1.2, 0.5, -1.5, -0.8, so the loss is -(1.2 + 0.5 - 1.5 - 0.8) / 4 = 0.15.
    old = torch.zeros(2, 2)
    logp = torch.log(torch.tensor([[1.5, 0.5], [1.5, 0.5]]))
    advantage = torch.tensor([[1.0], [-1.0]])
    loss = compute_policy_loss(logp, old, advantage, torch.ones(2, 2), clip_eps=0.2)
    assert loss.item() == pytest.approx(0.15, abs=1e-6)


def test_clipping_stops_the_gradient_only_where_the_step_went_too_far():
    logp = torch.log(torch.tensor([[1.5, 0.5, 1.5, 0.5]])).requires_grad_()
    advantage = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    compute_policy_loss(logp, torch.zeros(1, 4), advantage, torch.ones(1, 4), 0.2).backward()
    assert logp.grad is not None
    # d(-ratio * A / 4) / dlogp = -ratio * A / 4 on the unclipped side, 0 on the clipped one.
    torch.testing.assert_close(logp.grad, torch.tensor([[0.0, -0.125, 0.375, 0.0]]))


def test_first_step_gradient_is_reinforce():
    logp = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    compute_policy_loss(logp, logp.detach(), torch.tensor([[2.0], [-1.0]]), mask, 0.2).backward()
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, torch.tensor([[-2.0, -2.0], [1.0, 0.0]]) / 3)


def test_loss_is_a_token_mean_and_not_a_mean_of_sequence_means():
    logp = torch.zeros(2, 3)
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    advantage = torch.tensor([[1.0], [-1.0]])
    loss = compute_policy_loss(logp, logp, advantage, mask, 0.2).item()
    assert loss == pytest.approx(-(3 - 1) / 4)
    # Negative control: the mean of sequence means would be 0 here and hide that the batch got better.
    sequence_means = (advantage.expand(2, 3) * mask).sum(1) / mask.sum(1)
    assert -sequence_means.mean().item() != pytest.approx(loss)


def test_masked_positions_have_no_effect_even_when_not_finite():
    logp = torch.tensor([[-1.0, float("nan"), float("-inf")]], requires_grad=True)
    mask = torch.tensor([[1.0, 0.0, 0.0]])
    loss = compute_policy_loss(logp, torch.full((1, 3), -1.0), torch.ones(1, 1), mask, 0.2)
    loss.backward()
    assert loss.item() == pytest.approx(-1.0)
    assert logp.grad is not None
    assert logp.grad[0].tolist() == [-1.0, 0.0, 0.0]
    assert estimate_sequence_kl(logp, torch.zeros(1, 3), mask).isfinite().all()


def test_empty_mask_gives_zero():
    zeros = torch.zeros(2, 3)
    assert compute_policy_loss(zeros, zeros, zeros, zeros, 0.2).item() == 0.0


@pytest.mark.parametrize("clip_eps", [0.0, 1.0, -0.1])
def test_policy_loss_refuses_clip_eps(clip_eps):
    zeros = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="clip_eps"):
        compute_policy_loss(zeros, zeros, zeros, zeros, clip_eps)


def test_kl_of_identical_policies_is_exactly_zero():
    logp = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)) - 3
    assert torch.equal(estimate_kl(logp, logp), torch.zeros(4, 7))
    assert torch.equal(estimate_sequence_kl(logp, logp, torch.ones(4, 7)), torch.zeros(4))


def test_k3_is_unbiased_over_a_whole_distribution():
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    exact = (policy * (policy / reference).log()).sum().item()
    expected = (policy * estimate_kl(policy.log(), reference.log())).sum().item()
    assert expected == pytest.approx(exact, abs=1e-12)
    # Negative control: the other direction's estimator has another expectation.
    swapped = (policy * estimate_kl(reference.log(), policy.log())).sum().item()
    assert swapped != pytest.approx(exact, abs=1e-3)


def test_k3_equals_the_hand_worked_value_and_is_never_negative():
    # x = ln 2: 2 - 1 - ln 2.  x = -ln 2: 1/2 - 1 + ln 2.
    estimate = estimate_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(2), -math.log(2)]]))
    torch.testing.assert_close(estimate, torch.tensor([[1 - math.log(2), math.log(2) - 0.5]]))
    x = torch.linspace(-5, 5, 101)[None]
    assert (estimate_kl(torch.zeros_like(x), x) >= 0).all()


def test_sequence_kl_sums_the_sampled_tokens():
    logp, reference = torch.zeros(2, 2), torch.full((2, 2), math.log(2))
    kl = estimate_sequence_kl(logp, reference, torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    torch.testing.assert_close(kl, torch.tensor([2.0, 1.0]) * (1 - math.log(2)))
