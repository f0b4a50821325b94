"""DPO: the loss by hand, wrong ones that must fail, and which answers become pairs."""

import math

import pytest
import torch

from llm.rl.dpo import compute_dpo_loss, pair_answers


def test_loss_equals_the_hand_worked_value():
    # log ratios: chosen ln 3 and 0, rejected ln(1/3) and 0; beta 1/2: margins ln 3 and 0.
    chosen, rejected = torch.tensor([-2.0 + math.log(3), -4.0]), torch.tensor([-3.0 - math.log(3), -1.0])
    loss = compute_dpo_loss(chosen, rejected, torch.tensor([-2.0, -4.0]), torch.tensor([-3.0, -1.0]), 0.5)
    # -log sigmoid(ln 3) = ln(4/3); -log sigmoid(0) = ln 2.
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, abs=1e-6)


def test_gradient_equals_the_papers():
    """Its gradient (below eq. 7): -beta * sigmoid(-margin) on the chosen answer, the opposite on the rejected."""
    chosen, rejected = torch.tensor([-2.0], requires_grad=True), torch.tensor([-1.0], requires_grad=True)
    # margin = 0.5 * ((-2 + 3) - (-1 + 4)) = -1
    compute_dpo_loss(chosen, rejected, torch.tensor([-3.0]), torch.tensor([-4.0]), 0.5).backward()
    expected = -0.5 * torch.sigmoid(torch.tensor([1.0]))
    assert torch.allclose(chosen.grad, expected)
    assert torch.allclose(rejected.grad, -expected)
    # Negative control: without the reference the margin would be -0.5, and the weight another.
    assert not torch.allclose(chosen.grad, -0.5 * torch.sigmoid(torch.tensor([0.5])))


def test_bad_arguments_are_named():
    one, two = torch.zeros(1), torch.zeros(2)
    for arguments, said in (
        ((one, one, one, two, 0.1), "per pair"),
        ((*(one[:0],) * 4, 0.1), "one pair"),
        ((*(one,) * 4, 0.0), "beta is 0.0"),
    ):
        with pytest.raises(ValueError, match=said):
            compute_dpo_loss(*arguments)


def test_the_best_is_paired_with_the_worst():
    score = torch.tensor([[5.0, -1, 2, 0, 9, 3, 4, 6], [1.0, 1, 1, 1, 1, 1, 1, 1], [1.0, 1, 1, 0, 1, 1, 1, 1]])
    better, worse = pair_answers(score)
    # Row 0: 9 with -1 and 6 with 0, the four in the middle are left out. Row 1 has no better one, row 2 a single pair.
    assert list(zip(better.tolist(), worse.tolist(), strict=True)) == [(4, 1), (7, 3), (16, 19)]
