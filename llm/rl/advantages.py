"""Advantages: how much better an answer was than could be expected.

Shape suffixes: P prompts, G answers per prompt.
"""

from collections import Counter
from collections.abc import Hashable, Sequence

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


def price_length(advantage_PG: Tensor, length_PG: Tensor, price: float) -> Tensor:
    """Return the advantages without what length explains of them, minus a price for being long.

    With z the length less its group's mean, in pooled standard deviations:
    A' = A - slope * z - price * z, where slope = sum(A z) / sum(z z) over the whole batch.

    At price 0 the result is uncorrelated with length within groups.  A (natural) policy-gradient step changes
    the expected length by the covariance of advantage and length: so a reward model that likes words cannot
    pay for them, and the price alone moves the mean length, down when positive and up when negative.

    Args:    advantage_PG: rows that sum to zero, fp32.  length_PG: tokens of each answer, fp32.
             price: in standard deviations of advantage per standard deviation of length, any sign.
    Returns: advantages [P, G]; unchanged when all answers to each prompt are of one length.
    Raises:  ValueError: shapes differ.
    Source:  least squares; the same control for length as in length-controlled AlpacaEval, arXiv:2404.04475,
             there on win rates.  Differs: a linear effect within prompts, removed before learning.
    """
    if advantage_PG.shape != length_PG.shape:
        raise ValueError(f"shapes differ: {advantage_PG.shape}, {length_PG.shape}")
    centred_PG = length_PG - length_PG.mean(dim=1, keepdim=True)
    spread = centred_PG.square().mean().sqrt()
    if spread < 1e-6:
        return advantage_PG
    z_PG = centred_PG / spread
    slope = (advantage_PG * z_PG).mean()  # the mean of z * z is 1
    return advantage_PG - (slope + price) * z_PG


def price_repeats(signal_B: Tensor, answers: Sequence[Hashable], group: int, price: float) -> Tensor:
    """Return the signal less a price for saying what others of the group said too.

    s' = s - price * log(answers of the group that are this very one).

    Where several answers are equally good, the judge's noise alone would make one of them the only one: advantages are
    in standard deviations, however small. A count over the group estimates the answer's probability, so that this is
    an entropy bonus on whole answers, which words that are common to all of them do not feel.

    Args:    signal_B: fp32; `group` neighbours answer the same prompt.  answers: B.  price: >= 0, per nat.
    Returns: fp32 [B]; the same signal where no two answers to a prompt are equal.
    Raises:  ValueError: answers are not as many as signals, or they are no whole groups.
    Source:  entropy-regularised policy gradients, arXiv:1602.01783, section 4, there per token.
    """
    if len(answers) != len(signal_B) or len(answers) % group:
        raise ValueError(f"{len(answers)} answers for {len(signal_B)} signals in groups of {group}")
    counts = []
    for first in range(0, len(answers), group):
        same = Counter(answers[first : first + group])
        counts += [same[answer] for answer in answers[first : first + group]]
    return signal_B - price * torch.tensor(counts, dtype=torch.float32).log()
