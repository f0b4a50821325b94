"""Advantages: how much better an answer was than could be expected.

Shape suffixes: P prompts, G answers per prompt, B = P * G answers.
"""

import torch
from torch import Tensor


def compute_group_advantages(reward_PG: Tensor, eps: float = 1e-4) -> Tensor:
    """Return each answer's reward relative to the other answers to its own prompt, in standard deviations.

    A = (reward - mean over the group) / (standard deviation over the group + eps).

    Args:    reward_PG: one row per prompt, one column per answer, fp32.  eps: > 0.
    Returns: advantages [P, G], fp32; rows sum to zero; a row of equal rewards is exactly zero.
    Raises:  ValueError: not a matrix, fewer than two answers per prompt, or a non-finite reward.
    Source:  GRPO, arXiv:2402.03300, section 4.1.2.  The standard deviation is the sample one (G - 1).
    """
    if reward_PG.ndim != 2 or reward_PG.shape[1] < 2:
        raise ValueError(f"rewards must be [prompts, answers >= 2], got {tuple(reward_PG.shape)}")
    if not bool(torch.isfinite(reward_PG).all()):
        raise ValueError("a reward is not finite")
    centred_PG = reward_PG - reward_PG.mean(dim=1, keepdim=True)
    # Equal rewards leave rounding noise of the mean behind, which the division would blow up to order one.
    equal_P1 = (reward_PG == reward_PG[:, :1]).all(dim=1, keepdim=True)
    scaled_PG = centred_PG / (reward_PG.std(dim=1, keepdim=True) + eps)
    return scaled_PG.masked_fill(equal_P1, 0.0)
