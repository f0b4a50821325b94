"""Judging answers: one pass of a reward model gives reward and costs; rules may add to the reward.

Shape suffixes: B answers, P principles.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llm.infer.generate import Completion
from llm.rl.reward_model import RewardModel
from llm.rl.rollout import RewardFunction, close_answers


class Judgement(NamedTuple):
    """What a judge says of answers."""

    reward_B: Tensor  # learned and by rule, weighted
    cost_BP: Tensor  # probability of a bad answer by each principle, in the order of PRINCIPLES


class Judge:
    """A reward model, and rules with their weights beside it."""

    def __init__(self, model: RewardModel, end_id: int, rules: Mapping[RewardFunction, float] | None = None):
        self.model, self.end_id, self.rules = model, end_id, rules or {}

    def __call__(self, prompts: Sequence[list[int]], completions: Sequence[Completion]) -> Judgement:
        """Judge answers, given each one's prompt."""
        closed = close_answers(prompts, completions, self.end_id, self.model.trunk.config.context)
        score_BH = self.model.score(closed)
        reward_B = score_BH[:, 0]
        for rule, weight in self.rules.items():
            reward_B = reward_B + weight * rule(prompts, completions)
        return Judgement(reward_B, score_BH[:, 1:])


def price_costs(reward_B: Tensor, cost_B: Tensor, multiplier_B: Tensor) -> Tensor:
    """Return what is to be maximised of each answer: reward - multiplier * cost.

    Args:    cost_B: in [0, 1], 0 where no principle applies.  multiplier_B: >= 0, of each answer's principle.
    Returns: fp32 [B]; the bound of the constraint is left out, a constant that no comparison sees.
    Raises:  ValueError: shapes differ, or a multiplier is negative.
    Source:  Safe RLHF, arXiv:2310.12773, eq. 9-11.  Differs: not divided by 1 + multiplier, since advantages are
             normalised within each prompt's group.
    """
    if not reward_B.shape == cost_B.shape == multiplier_B.shape:
        raise ValueError(f"shapes differ: {reward_B.shape}, {cost_B.shape}, {multiplier_B.shape}")
    if bool((multiplier_B < 0).any()):
        raise ValueError("a multiplier is negative")
    return reward_B - multiplier_B * cost_B.to(torch.float32)
