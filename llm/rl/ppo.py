"""PPO: every token is judged by what came of it, against what a value model expected at that token.

    reward_t = -kl_coef * (log pi - log ref)(token t), and at the last token the answer's reward besides
    delta_t  = reward_t + gamma * V_(t+1) - V_t
    A_t      = sum over l >= 0 of (gamma * lambda)^l * delta_(t+l), whitened over the batch's tokens
    loss     = clipped policy loss(A) (`losses.compute_policy_loss`), and for the value model its clipped squared error

Left out: an entropy bonus; a trunk that policy and value model share: each has its optimiser, so that no weight has to
balance the two losses.
Differs: an answer's reward is relative to that of the other answers to its prompt, as GRPO's advantage. Most of the
variance of priced rewards lies between prompts; a critic would need all of a short run to learn what the group says.
Source: arXiv:1707.06347, eq. 7 (policy) and eq. 9 (value); GAE, arXiv:1506.02438, eq. 16; rewards per token as in
InstructGPT, arXiv:2203.02155, eq. 2, and Ziegler et al. 2019, arXiv:1909.08593, eq. 2.

Shape suffixes: B answers, T sampled positions; a mask's row is a run of ones from column 0 on, then zeros.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from llm.config import BaseParams
from llm.infer.score import TokenScores
from llm.model.transformer import Transformer
from llm.rl.grpo import compute_grpo_advantages
from llm.rl.losses import average_tokens
from llm.rl.policy_engine import PolicyEngine, Task, split_strided
from llm.rl.precision import compute_in
from llm.rl.rollout import Rollout
from llm.rl.value_model import ValueModel
from llm.train.optimiser import Optimiser, OptimiserConfig


class PPOConfig(BaseParams):
    """How advantages are estimated, and how the value model learns."""

    gamma: float = Field(1.0, gt=0, le=1, description="discount per token; 1: a late reward is worth an early one")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="0: trust the value model; 1: trust what was sampled")
    value_lr: float = Field(5e-4, gt=0, le=0.1, description="peak learning rate of the value model (AdamW)")
    value_clip: float = Field(0.2, gt=0, le=100, description="how far a value may move from that of the rollout")


def spread_reward(reward_B: Tensor, logp_BT: Tensor, ref_logp_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
    """Return the reward of every sampled token: a price for leaving the reference, and at the end the answer's reward.

    reward_t = -kl_coef * (logp_t - ref_logp_t) + [t is the last] * reward.

    Args:    reward_B: of whole answers, fp32.  logp_BT, ref_logp_BT: log-probabilities [nats], fp32, constants.
             mask_BT: 1 where the token was sampled.  kl_coef: >= 0, per nat.
    Returns: [B, T], fp32; 0 outside the mask, and in a row without tokens.
    Raises:  ValueError: shapes differ.
    Source:  arXiv:1909.08593, eq. 2; InstructGPT, arXiv:2203.02155, eq. 2.  The estimate of the divergence is k1: a
             reward needs no gradient through it, and its sum over the answer is exact in expectation.
    """
    if not logp_BT.shape == ref_logp_BT.shape == mask_BT.shape or reward_B.shape != mask_BT.shape[:1]:
        raise ValueError(f"shapes differ: {reward_B.shape}, {logp_BT.shape}, {ref_logp_BT.shape}, {mask_BT.shape}")
    selected_BT = mask_BT.bool()
    spread_BT = (-kl_coef * (logp_BT - ref_logp_BT)).masked_fill(~selected_BT, 0.0)
    columns_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    is_last_BT = selected_BT & (columns_T == selected_BT.sum(dim=1, keepdim=True) - 1)
    return spread_BT + is_last_BT * reward_B[:, None]


def compute_gae(
    reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Return the generalised advantage estimate of every sampled token, and the return its value is fitted to.

    delta_t = reward_t + gamma * V_(t+1) - V_t;  A_t = delta_t + gamma * lambda * A_(t+1);  return_t = A_t + V_t,
    where V and A are 0 after an answer's last token.

    Args:    reward_BT, value_BT: fp32, constants; V_t is the value of the state in which token t is chosen.
             mask_BT: 1 where the token was sampled.  gamma, gae_lambda: in [0, 1].
    Returns: advantages and returns [B, T], fp32; 0 outside the mask.
    Raises:  ValueError: shapes differ, or gamma or gae_lambda out of range.
    Source:  arXiv:1506.02438, eq. 16 (its sum, computed from the end).
    """
    if not reward_BT.shape == value_BT.shape == mask_BT.shape:
        raise ValueError(f"shapes differ: {reward_BT.shape}, {value_BT.shape}, {mask_BT.shape}")
    if not (0.0 <= gamma <= 1.0 and 0.0 <= gae_lambda <= 1.0):
        raise ValueError(f"gamma is {gamma}, gae_lambda {gae_lambda}; both must lie in [0, 1]")
    outside_BT = ~mask_BT.bool()
    reward_BT, value_BT = (each.detach().masked_fill(outside_BT, 0.0) for each in (reward_BT, value_BT))
    advantage_BT = torch.zeros_like(value_BT)
    next_value_B = next_advantage_B = torch.zeros_like(value_BT[:, 0])
    for t in range(value_BT.shape[1] - 1, -1, -1):
        delta_B = reward_BT[:, t] + gamma * next_value_B - value_BT[:, t]
        # Outside the mask all terms are 0, so that an answer's last token sees 0 behind it.
        next_advantage_B = (delta_B + gamma * gae_lambda * next_advantage_B).masked_fill(outside_BT[:, t], 0.0)
        next_value_B = value_BT[:, t]
        advantage_BT[:, t] = next_advantage_B
    return advantage_BT, advantage_BT + value_BT


def whiten(value_BT: Tensor, mask_BT: Tensor, eps: float = 1e-8) -> Tensor:
    """Return the values shifted and scaled to mean 0 and standard deviation 1 over the tokens that the mask selects.

    (value - mean) / sqrt(variance + eps).

    Args:    value_BT: fp32.  mask_BT: 1 where the token was sampled.  eps: > 0.
    Returns: [B, T], fp32; 0 outside the mask, and (to rounding) where all values are equal.
    Raises:  ValueError: shapes differ.
    Source:  advantage normalisation of PPO's reference implementations (Andrychowicz et al. 2020, arXiv:2006.05990,
             section 3.5); the variance is that of the population.
    """
    if value_BT.shape != mask_BT.shape:
        raise ValueError(f"shapes differ: {value_BT.shape}, {mask_BT.shape}")
    centred_BT = (value_BT - average_tokens(value_BT, mask_BT)).masked_fill(~mask_BT.bool(), 0.0)
    return centred_BT / (average_tokens(centred_BT.square(), mask_BT) + eps).sqrt()


def compute_value_loss(
    value_BT: Tensor, old_value_BT: Tensor, return_BT: Tensor, mask_BT: Tensor, value_clip: float
) -> Tensor:
    """Return half the clipped squared error of values, averaged over all sampled tokens of the batch.

    loss = mean(max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2)) / 2: a value that has moved further than c
    towards its return has no gradient any more.

    Args:    value_BT, old_value_BT, return_BT: fp32; the last two are constants.
             mask_BT: 1 where the token was sampled.  value_clip: c, > 0.
    Returns: scalar loss; 0.0 when the mask is empty.
    Raises:  ValueError: shapes differ, or value_clip is not positive.
    Source:  arXiv:1707.06347, eq. 9; the clip is that of its published code; Engstrom et al. 2020,
             arXiv:2005.12729, section 3, write it out, with min where the code has max.
    """
    if not value_BT.shape == old_value_BT.shape == return_BT.shape == mask_BT.shape:
        raise ValueError(f"shapes differ: {value_BT.shape}, {old_value_BT.shape}, {return_BT.shape}, {mask_BT.shape}")
    if not value_clip > 0:
        raise ValueError(f"value_clip is {value_clip}, allowed is value_clip > 0")
    old_BT, return_BT = old_value_BT.detach(), return_BT.detach()
    clipped_BT = old_BT + (value_BT - old_BT).clamp(-value_clip, value_clip)
    worse_BT = torch.maximum((value_BT - return_BT).square(), (clipped_BT - return_BT).square())
    return 0.5 * average_tokens(worse_BT, mask_BT)


class Critic:
    """A value model and its optimiser."""

    def __init__(self, model: ValueModel, config: PPOConfig, dtype: torch.dtype):
        self.model, self.config, self.dtype = model, config, dtype
        rate = config.value_lr
        self.optimiser = Optimiser(
            model, OptimiserConfig(optimiser="adamw", lr=rate, embedding_lr=rate, weight_decay=0.0)
        )

    def estimate(self, sequences: Sequence[list[int]], starts: Sequence[int]) -> Tensor:
        """Return the values [B, T] of sampled tokens, without gradients."""
        with torch.no_grad():
            return self._compute(sequences, starts)

    def update(
        self, sequences: Sequence[list[int]], starts: Sequence[int], old_BT: Tensor, return_BT: Tensor, lr_scale: float
    ) -> float:
        """Take one step towards the returns of a minibatch, whose columns may go on beyond its longest answer."""
        value_BT = self._compute(sequences, starts)
        width = value_BT.shape[1]
        lengths = [len(sequence) - start for sequence, start in zip(sequences, starts, strict=True)]
        lengths_B1 = torch.tensor(lengths, device=value_BT.device)[:, None]
        mask_BT = torch.arange(width, device=value_BT.device) < lengths_B1
        loss = compute_value_loss(value_BT, old_BT[:, :width], return_BT[:, :width], mask_BT, self.config.value_clip)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step(lr_scale, loss.detach())
        return loss.item()

    def _compute(self, sequences: Sequence[list[int]], starts: Sequence[int]) -> Tensor:
        with compute_in(self.dtype, self.model.weight_D.device):
            value_BT: Tensor = self.model(sequences, starts)
        return value_BT


class PPOEngine(PolicyEngine):
    """The engine of a policy, with a critic beside it."""

    def __init__(self, policy: Transformer, task: Task, ppo: PPOConfig):
        super().__init__(policy, task)
        self.ppo, self.critic = ppo, Critic(ValueModel.from_reward_model(self.judge.model), ppo, self.dtype)

    def learn(
        self, rollout: Rollout, signal_B: Tensor, old: TokenScores, ref_BT: Tensor, lr_scale: float
    ) -> list[tuple[float, float]]:
        """Take the steps of a rollout by PPO, of the critic and of the policy; return the policy's losses and norms."""
        sequences, starts = rollout.sequences, rollout.starts
        value_BT = self.critic.estimate(sequences, starts)
        group = self.config.answers_per_prompt
        score_B = compute_grpo_advantages(signal_B, rollout.length_B, group, self.length_price.value)[:, 0]
        reward_BT = spread_reward(score_B.to(self.device), old.logp_BT, ref_BT, old.mask_BT, self.kl_price.value)
        advantage_BT, return_BT = compute_gae(reward_BT, value_BT, old.mask_BT, self.ppo.gamma, self.ppo.gae_lambda)
        for rows_N in split_strided(len(sequences), self.config.minibatches):
            rows = rows_N.tolist()
            part = [sequences[i] for i in rows], [starts[i] for i in rows]
            self.critic.update(*part, value_BT[rows_N], return_BT[rows_N], lr_scale)
        # The divergence is priced in the rewards already.
        return self.step_clipped(rollout, old.logp_BT, ref_BT, whiten(advantage_BT, old.mask_BT), 0.0, lr_scale)

    def state(self) -> dict[str, Tensor]:
        """Return what learns and how, of the policy and of the critic."""
        return super().state() | {f"critic.{name}": x for name, x in self.critic.optimiser.state().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned in an earlier process."""
        super().load_state(state)
        mine = {name: x for name, x in state.items() if name.startswith("critic.")}
        self.critic.optimiser.load({name.removeprefix("critic."): x for name, x in mine.items()})
